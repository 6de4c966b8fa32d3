"""What a visitor asks of an edit, as the pipeline takes it."""

from dataclasses import dataclass

import numpy as np

from pipelines.pipeline_text_editable_restoration import MAX_SCALE
from textir.images.picture import Picture, to_pixels
from textir.models.edit_processor import luma
from textir.space.inputs import MAX_PIXELS


@dataclass(frozen=True)
class EditSettings:
    """An edit, but for its photo.

    Attributes:
        task: inpaint, super-resolution or colorize.
        prompt: what the result shall show; `None`: what the photo itself says; empty: no words.
        strength: of the words, 0 to 2.
        variants: how many results.
        seed: of what differs between them.
        hole: `(H, W)` bool, what to fill.
        scale: of an enlargement.
    """

    task: str
    prompt: str | None = None
    strength: float = 1.0
    variants: int = 1
    seed: int = 0
    hole: np.ndarray | None = None
    scale: float | None = None

    @property
    def has_words(self) -> bool:
        return bool(self.prompt)

    @property
    def runs(self) -> int:
        """How often the network works: for the effect of words every result is made twice."""
        return self.variants * (1 + self.has_words)

    def size(self, picture: Picture) -> tuple[int, int]:
        """Height and width of the result."""
        return enlarged_size(picture.pixels.shape[:2], self.scale or 1)

    @property
    def arguments(self) -> dict:
        """What the pipeline is told, but for photo and generator."""
        arguments = {
            "prompt": self.prompt,
            "task": self.task,
            "strength": self.strength,
            "num_images_per_prompt": self.variants,
            "return_effect": self.has_words,
        }
        if self.hole is not None:
            arguments["mask_image"] = self.hole
        if self.scale is not None:
            arguments["scale"] = self.scale
        return arguments


def enlarged_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Height and width after enlarging, rounded as the pipeline does."""
    height, width = size
    return round(height * scale), round(width * scale)


def check_scale(scale: float) -> None:
    """Make sure that a photo can be enlarged by so much.

    Raises:
        ValueError: if not.
    """
    if not 1 < scale <= MAX_SCALE:
        raise ValueError(f"The scale must lie above 1 and up to {MAX_SCALE}, got {scale:g}.")


def check_size(size: tuple[int, int]) -> None:
    """Make sure that a result is not too large to be made here.

    Raises:
        ValueError: if it is.
    """
    height, width = size
    if height * width > MAX_PIXELS:
        raise ValueError(
            f"The result would have {width} x {height} pixels, {height * width / 1e6:.1f} million; "
            f"at most {MAX_PIXELS / 1e6:g} are made here. Take a smaller scale."
        )


def in_gray(picture: Picture) -> Picture:
    """A picture without its colours, with luma as Pillow's `convert("L")` has it."""
    bits = min(picture.bits, 16)
    peak = 2**bits - 1
    levels = (picture.tensor() * peak).round()
    gray = luma(levels).float() / peak
    return picture.with_pixels(to_pixels(gray.expand(1, 3, -1, -1)))
