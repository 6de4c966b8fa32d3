"""Errors that a visitor can mend become messages on the page."""

from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr
import torch

from textir.images.picture import UnusableImageError
from textir.space.inputs import NoPhotoError


@contextmanager
def messages(way_out: str = "set a tile of 512 under Advanced") -> Iterator[None]:
    """Within the block, errors that a visitor can mend become messages.

    Args:
        way_out: what helps where memory does not suffice.
    """
    try:
        yield
    except NoPhotoError as error:
        raise gr.Error(str(error), title="No photo yet") from None
    except UnusableImageError as error:
        raise gr.Error(str(error), title="This photo cannot be used") from None
    except ValueError as error:
        raise gr.Error(str(error), title="This cannot be done as it is set") from None
    except (MemoryError, torch.OutOfMemoryError):
        raise gr.Error(
            f"There is not enough memory for this photo; {way_out}.",
            title="Too little memory",
        ) from None
