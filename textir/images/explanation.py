"""What a pipeline saw in a photo and did to it, in words and in files."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from textir.images.picture import Picture, to_pixels, write_picture
from textir.machine import writing

HARDLY = 1.0  # mean change on the 0-255 scale below which a photo counts as unchanged
SURE = 0.05  # probabilities above this are worth telling


@dataclass(frozen=True)
class Explanation:
    """What a pipeline saw in one photo and did to it.

    Pixels are float32 `(h, w, 1 or 3)` in [0, 1], on the CPU. What does not apply is `None`.

    Attributes:
        guidance: where the guidance came from: cleaned, degraded, prompt, reference or none.
        guidance_strength: the weight that it had.
        removed: degradations that the restorer was told to remove; `None`: it found out by itself.
        change: mean of |restored - degraded| on the 0-255 scale.
        understood: how an instruction was understood.
        tags: what the photo says `before` and `after`, and its `guidance`, in groups.
        degradation: the probability of each degradation.
        severity: the severity of each degradation in [0, 1].
        nearest_tokens: for each word the nearest vocabulary tokens, `before` and `after` cleaning.
        guidance_pixels: the guidance.
        degraded_guidance_pixels: the guidance that words give which were not cleaned.
        match_pixels: how well guidance and photo matched.
        influence_pixels: how far guidance moved each pixel.
    """

    guidance: str = "none"
    guidance_strength: float | None = None
    removed: list[str] | None = None
    change: float | None = None
    understood: str | None = None
    tags: dict[str, dict] | None = None
    degradation: dict[str, float] | None = None
    severity: dict[str, float] | None = None
    nearest_tokens: list[dict[str, list[str]]] | None = None
    guidance_pixels: np.ndarray | None = None
    degraded_guidance_pixels: np.ndarray | None = None
    match_pixels: np.ndarray | None = None
    influence_pixels: np.ndarray | None = None

    @classmethod
    def of(
        cls, output, degraded_guidance: torch.Tensor | None = None, number: int = 0
    ) -> "Explanation":
        """The explanation in a pipeline's output.

        Args:
            output: of one photo or several, as tensors.
            degraded_guidance: `(3, h, w)`, painted from words that were not cleaned.
            number: which of the photos.
        """

        def one(values):
            return None if values is None else values[number]

        return cls(
            guidance=output.guidance,
            guidance_strength=one(output.guidance_strength),
            removed=one(output.removed),
            change=one(output.change),
            understood=output.understood,
            tags=one(output.tags),
            degradation=one(output.degradation),
            severity=one(output.severity),
            nearest_tokens=one(output.nearest_tokens),
            guidance_pixels=_pixels(one(output.guidance_images)),
            degraded_guidance_pixels=_pixels(degraded_guidance),
            match_pixels=_pixels(one(output.match_confidence)),
            influence_pixels=_pixels(one(output.influence)),
        )

    @property
    def is_hardly_changed(self) -> bool:
        """Whether the photo came out next to unchanged."""
        return self.change is not None and self.change < HARDLY

    @property
    def is_guided(self) -> bool:
        """Whether the restorer took the guidance, if there is one."""
        return self.guidance_strength != 0

    @property
    def likely_degradations(self) -> list[str]:
        """Degradations that are probably there, the likeliest first, such as `rain 93%`."""
        ranked = sorted((self.degradation or {}).items(), key=lambda item: -item[1])
        return [f"{label} {probability:.0%}" for label, probability in ranked if probability > SURE]

    def line(self, hint: str = "task") -> str:
        """What was removed and how far it went. Where that is next to nothing, the line names the
        way out.

        Args:
            hint: how the user names tasks.
        """
        parts = ["found out by itself what to remove"]
        if self.removed is not None:
            parts = [f"told to remove: {', '.join(self.removed) or 'nothing'}"]
        if self.understood is not None:
            parts.insert(0, f"understood: {self.understood}")
        if self.degradation is not None:
            parts.append(f"seen: {', '.join(self.likely_degradations) or 'nothing'}")
        if self.change is not None:
            parts.append(f"mean change {self.change:.1f} of 255")
        if self.is_hardly_changed:
            wish = "if something else shall go" if self.removed else "to say what shall go"
            parts.append(f"hardly changed; {wish}, pass {hint} (such as denoise, dehaze, lowlight)")
        return "; ".join(parts)

    def write(self, folder: Path) -> None:
        """Write everything as PNG files and `words.json`."""
        pictures = {
            "guidance": self.guidance_pixels,
            "match_confidence": self.match_pixels,
            "influence": self.influence_pixels,
        }
        for name, pixels in pictures.items():
            if pixels is not None:
                is_gray = pixels.shape[-1] == 1
                colors = pixels.repeat(3, -1) if is_gray else pixels
                write_picture(folder / f"{name}.png", Picture(colors, is_gray=is_gray))
        words = {
            "guidance": self.guidance,
            "guidance_strength": self.guidance_strength,
            "removed": self.removed,
            "change": self.change,
            "understood": self.understood,
            "tags": self.tags,
            "degradation": self.degradation,
            "severity": self.severity,
            "nearest_tokens": self.nearest_tokens,
        }
        with writing(folder / "words.json") as temporary:
            temporary.write_text(json.dumps(words, indent=2) + "\n", encoding="utf-8")


def _pixels(image: torch.Tensor | None) -> np.ndarray | None:
    return None if image is None else to_pixels(image)


def what_was_done(output, hint: str = "task") -> str:
    """A line on what a pipeline removed from a photo and how far it went.

    Where that is next to nothing, the line names the way out.

    Args:
        output: of a pipeline, of one photo, as tensors.
        hint: how the user names tasks.
    """
    return Explanation.of(output).line(hint)
