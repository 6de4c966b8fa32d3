"""What a visitor sees of a run: pictures, numbers, sentences and the strip of the chain."""

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from textir.evaluation.metrics import psnr, ssim
from textir.images.explanation import Explanation
from textir.images.picture import Picture
from textir.images.restoration import STAGES
from textir.space.inputs import size_of
from textir.space.model import Model
from textir.space.page import render
from textir.space.worker import Result

FIGURE = (384, 384)  # the most that a picture of the strip measures, in pixels
KINDS = {
    "cleaned": "painted from cleaned words",
    "degraded": "painted from the words as they were",
}


@dataclass(frozen=True)
class Figure:
    """A picture of the strip, 8-bit `(h, w)` or `(h, w, 3)`, with its caption."""

    pixels: np.ndarray
    title: str
    sentence: str

    @property
    def source(self) -> str:
        """The picture, reduced to `FIGURE`, as an address that holds it."""
        picture = Image.fromarray(self.pixels)
        picture.thumbnail(FIGURE, Image.LANCZOS)
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def eight_bit(pixels: np.ndarray) -> np.ndarray:
    """`(h, w, 1 or 3)` in [0, 1] -> 8-bit `(h, w)` or `(h, w, 3)`."""
    levels = (pixels.clip(0, 1) * 255).round().astype(np.uint8)
    return levels[..., 0] if levels.shape[-1] == 1 else levels


def preview(picture: Picture) -> Image.Image:
    """A picture for the page."""
    return Image.fromarray(eight_bit(picture.pixels))


def scores(picture: Picture, clean: Picture | None) -> tuple[str, str]:
    """PSNR in dB and SSIM as words; empty without ground truth."""
    if clean is None:
        return "", ""
    return f"{psnr(picture.pixels, clean.pixels):.2f}", f"{ssim(picture.pixels, clean.pixels):.4f}"


def unused(model: Model) -> str:
    """How the page says that guidance was not taken."""
    if model.guided_degradations:
        return f"not used (auto takes it only against {model.guided_degradations})"
    return "not used"


def summarise(picture: Picture, result: Result, model: Model, seconds: float) -> str:
    """What was detected, how it was guided, and how long each stage took, as Markdown."""
    explanation = result.explanation
    size = size_of(picture)
    lines = [f"{size}, {picture.bits}-bit, restored in {seconds:.1f} s on {model.device}."]
    if explanation.is_hardly_changed:
        way = " Press above what shall go." if model.tasks else ""
        lines.append(f"**Hardly changed:** by {explanation.change:.1f} of 255 on average.{way}")
    if explanation.understood is not None:
        lines.append(f"**Understood:** {explanation.understood}")
    if model.tasks and explanation.removed is None:
        lines.append("**Found out by itself** what to remove")
    elif model.tasks:
        lines.append(f"**Told to remove:** {', '.join(explanation.removed) or 'nothing'}")
    if explanation.degradation is not None:
        lines.append(f"**Detected:** {detected(explanation)}")
    guidance = KINDS.get(explanation.guidance, explanation.guidance)
    if not explanation.is_guided:
        guidance += f", {unused(model)}"
    lines.append(f"**Guidance:** {guidance}")
    times = [
        f"{words} {result.seconds[stage]:.2f} s"
        for stage, words in STAGES.items()
        if stage in result.seconds
    ]
    lines.append("**Time:** " + " · ".join(times))
    return "\n\n".join(lines)


def detected(explanation: Explanation) -> str:
    """Degradations that are probably there, as words."""
    return ", ".join(explanation.likely_degradations) or "nothing"


def outcome(explanation: Explanation) -> str:
    """What was removed or detected, and whether anything came of it, in a cell of a table."""
    words = f"{detected(explanation)} detected"
    if explanation.removed is not None:
        words = f"told to remove {', '.join(explanation.removed) or 'nothing'}; {words}"
    if explanation.is_hardly_changed:
        words += f"; hardly changed ({explanation.change:.1f} of 255)"
    return words


def explain(picture: Picture, result: Result, model: Model) -> str:
    """The chain as a strip of pictures that can be read without the paper, and its words."""
    explanation = result.explanation
    photo = preview(picture)
    photo.thumbnail(FIGURE, Image.LANCZOS)
    figures = [
        Figure(np.asarray(photo), "1. The degraded photo", "What you sent."),
        *paintings(explanation, photo.size, model),
        *maps(explanation),
    ]
    title = f"{len(figures) + 1}. Restored"
    sentence = "The same size, depth, alpha and profile as yours."
    figures.append(Figure(eight_bit(result.restored.pixels), title, sentence))
    said = tag_table(explanation.tags) if explanation.tags else ""
    words = "" if explanation.tags else word_table(explanation.nearest_tokens or [])
    return said + strip(figures) + words


def paintings(explanation: Explanation, size: tuple[int, int], model: Model) -> list[Figure]:
    """What was painted, in the shape of the photo of `size` (width, height)."""
    figures = []
    if explanation.degraded_guidance_pixels is not None:
        sentence = "What its words paint as they are: the degradation is in them."
        pixels = stretch(explanation.degraded_guidance_pixels, size)
        figures.append(Figure(pixels, "2. Painted from its words", sentence))
    if explanation.guidance_pixels is not None:
        sentence = (
            "What they paint once the degradation is taken out: colours and light of a "
            "clean photo, not its details."
        )
        if not explanation.is_guided:
            sentence += f" It was {unused(model)}."
        pixels = stretch(explanation.guidance_pixels, size)
        figures.append(Figure(pixels, "3. Guidance, from cleaned words", sentence))
    return figures


def maps(explanation: Explanation) -> list[Figure]:
    """Where guidance matched, and where it changed the result."""
    figures = []
    if explanation.match_pixels is not None:
        sentence = (
            "Where guidance and photo show the same thing (white); elsewhere guidance is "
            "not trusted."
        )
        figures.append(Figure(eight_bit(explanation.match_pixels), "4. Match", sentence))
    if explanation.influence_pixels is not None:
        levels = eight_bit(explanation.influence_pixels)
        strongest = max(int(levels.max()), 1)
        sentence = (
            "What guidance changed in the result, brightened: white is "
            f"{strongest / 255:.1%} of the range."
        )
        brightened = (levels.astype(float) * 255 / strongest).astype(np.uint8)
        figures.append(Figure(brightened, "5. Influence", sentence))
    return figures


def stretch(guidance: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A guidance in the shape of a photo of `size` (width, height), as the restorer gets it."""
    return np.asarray(Image.fromarray(eight_bit(guidance)).resize(size, Image.BICUBIC))


def strip(figures: list[Figure]) -> str:
    """Pictures with their captions, as HTML that wraps on narrow screens."""
    return render("strip.html", figures=figures)


def tag_table(tags: dict[str, dict]) -> str:
    """What the photo, its guidance and the result show, a row for each group."""
    moments = [moment for moment in ("before", "guidance", "after") if moment in tags]
    groups = list(tags["before"])
    return render("tags.html", tags=tags, moments=moments, groups=groups)


def word_table(words: list[dict[str, list[str]]]) -> str:
    """The nearest tokens of each word before and after cleaning; changes are marked."""
    return render("words.html", words=words) if words else ""
