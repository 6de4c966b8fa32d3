"""The model that a Space serves, and what its page has to know of it."""

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch

from pipelines import TextGuidedRestorationPipeline, load
from pipelines.loading import best_device, carried_adapters, find_adapters, load_adapter
from pipelines.pipeline_text_guided_restoration import TASKS


@dataclass(frozen=True)
class Model:
    """A pipeline that is ready to work.

    Attributes:
        pipe: the pipeline.
        checkpoint: where it comes from: `mini`, a folder or a Hub id.
        device: what it works on: cuda or cpu.
    """

    pipe: TextGuidedRestorationPipeline
    checkpoint: str
    device: str

    @classmethod
    def load(cls, checkpoint: str) -> "Model":
        """Load a checkpoint onto the GPU where there is one.

        Raises:
            ValueError: if it cannot be loaded.
        """
        device = best_device()
        pipe = load(checkpoint, device=device)
        pipe.set_progress_bar_config(disable=True)
        return cls(pipe, checkpoint, device)

    @property
    def has_painter(self) -> bool:
        """Whether guidance can be painted; otherwise the restorer works without."""
        return self.pipe.unet is not None

    @property
    def has_matcher(self) -> bool:
        """Whether a photo of the same scene can guide."""
        return self.pipe.matcher is not None

    @cached_property
    def adapters(self) -> list[str]:
        """Names of the adapters that the checkpoint carries."""
        return carried_adapters(self.checkpoint)

    @property
    def labels(self) -> list[str]:
        """Degradations that the restorer can be told to remove."""
        return list(self.pipe.can_remove)

    @property
    def tasks(self) -> list[str]:
        """Tasks that the restorer can be given."""
        return [task for task, label in TASKS.items() if label in self.pipe.can_remove]

    @property
    def guided_degradations(self) -> str:
        """Degradations against which guidance is known to help, as words; empty: not stated."""
        return " and ".join(self.pipe.config.guided_degradations or ())

    @cached_property
    def pipe_aside(self) -> TextGuidedRestorationPipeline:
        """The same networks a second time, with the same weights in memory: for large photos, so
        that small ones need not wait for them."""
        shared = {}
        for part in self.pipe.components.values():
            if isinstance(part, torch.nn.Module):
                tensors = [*part.parameters(), *part.buffers()]
                shared |= {id(tensor): tensor for tensor in tensors}
        return copy.deepcopy(self.pipe, shared)

    @contextmanager
    def adapted(self, name: str, pipe: TextGuidedRestorationPipeline) -> Iterator[None]:
        """Within the block an adapter acts; afterwards it is gone again.

        Args:
            name: one that the checkpoint carries, or a Hub id; empty: none.
            pipe: on which it acts.

        Raises:
            ValueError: if the name is neither, or the adapter cannot be loaded.
        """
        if not name:
            yield
            return
        if name not in self.adapters and not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
            known = f"one of {', '.join(self.adapters)} or " if self.adapters else ""
            raise ValueError(
                f"The adapter must be {known}a Hub id of the form user/name, got {name!r}."
            )
        (source,) = find_adapters(self.checkpoint, name).values()
        load_adapter(pipe, source, "visitor")
        try:
            yield
        finally:
            pipe.unload_lora_weights()
