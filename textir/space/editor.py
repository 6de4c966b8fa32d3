"""The pipeline of text-editable restoration that a Space serves, and what of it can be offered."""

import logging
from dataclasses import dataclass

from pipelines import TextEditableRestorationPipeline, load_editor
from pipelines.loading import best_device
from pipelines.pipeline_text_editable_restoration import PARTS

logger = logging.getLogger(__name__)

NAMES = {"inpaint": "Erase and fill", "super-resolution": "Enlarge", "colorize": "Colour"}


@dataclass(frozen=True)
class Editor:
    """A pipeline that is ready to work, or the reason why there is none.

    Attributes:
        pipe: the pipeline, `None` where the checkpoint cannot be loaded.
        checkpoint: where it comes from: `mini-textir`, a folder or a Hub id; empty: none is wanted.
        device: what it works on: cuda or cpu.
    """

    pipe: TextEditableRestorationPipeline | None
    checkpoint: str
    device: str

    @classmethod
    def load(cls, checkpoint: str) -> "Editor":
        """Load a checkpoint onto the GPU where there is one. Without one the page offers less."""
        device, pipe = best_device(), None
        if checkpoint:
            try:
                pipe = load_editor(checkpoint, device=device)
                pipe.set_progress_bar_config(disable=True)
            except ValueError as error:
                logger.warning("No editing: %s", error)
        return cls(pipe, checkpoint, device)

    @property
    def tasks(self) -> list[str]:
        """Tasks whose network is there."""
        if self.pipe is None or self.pipe.edit_processor is None:
            return []
        return [task for task, part in PARTS.items() if getattr(self.pipe, part) is not None]

    @property
    def reads_words(self) -> bool:
        """Whether a prompt can be read."""
        parts = ("photo_text_encoder", "photo_tokenizer")
        return all(getattr(self.pipe, part, None) is not None for part in parts)

    @property
    def absence(self) -> str:
        """What the page does not offer, and why, as a sentence; empty: all is there."""
        missing = [name for task, name in NAMES.items() if task not in self.tasks]
        if not missing:
            return "" if self.reads_words else "The editing checkpoint cannot read words."
        *others, last = missing
        names = f"{', '.join(others)} and {last}" if others else last
        verb = "are" if others else "is"
        if self.pipe is None:
            reason = "the editing checkpoint is not there"
            reason = reason if self.checkpoint else "no editing checkpoint is set"
            return f"{names} {verb} not offered: {reason} (TEXTIR_EDIT_CHECKPOINT names one)."
        if self.pipe.edit_processor is None:
            return f"{names} {verb} not offered: the checkpoint has no edit_processor."
        parts = [PARTS[task] for task in PARTS if task not in self.tasks]
        return f"{names} {verb} not offered: the checkpoint has no {' and no '.join(parts)}."
