"""Errors that a visitor can mend become messages on the page."""

from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr
import torch


@contextmanager
def messages() -> Iterator[None]:
    """Within the block, errors that a visitor can mend become messages."""
    try:
        yield
    except ValueError as error:
        raise gr.Error(str(error), title="This cannot be done") from None
    except (MemoryError, torch.OutOfMemoryError):
        raise gr.Error(
            "There is not enough memory for this photo; set a tile of 512 under Advanced.",
            title="Too large",
        ) from None
