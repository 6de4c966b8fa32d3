"""What a visitor sees of a run: pictures, numbers, sentences and the strip of the chain."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from textir.evaluation.metrics import psnr, ssim
from textir.images.explanation import Explanation
from textir.images.picture import Picture
from textir.images.restoration import STAGES
from textir.space.inputs import size_of
from textir.space.model import Model
from textir.space.page import render
from textir.space.worker import Result

FIGURE = (384, 384)  # the most that a picture of the strip measures, in pixels
SHOWN_PIXELS = 2_000_000  # of a picture on the page; the file has all
SHOWN_FORMATS = ("PNG", "JPEG", "WEBP")  # that any browser reads
UNSURE = 0.5  # probability below which a degradation may well not be there
OFFER = "Press what you see in the photo"
PLAIN = {  # label of a degradation -> how the page calls it
    "defocus": "out of focus",
    "lowlight": "darkness",
    "jpeg": "blockiness",
    "downup": "softness",
}
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
    is_small: bool = False  # shown no larger than it is

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


def shown(picture: Picture) -> Image.Image:
    """A picture for the page, large ones reduced."""
    image = preview(picture)
    factor = (SHOWN_PIXELS / (image.width * image.height)) ** 0.5
    if factor < 1:
        image.thumbnail((int(image.width * factor), int(image.height * factor)), Image.LANCZOS)
    return image


def page_copy(picture: Picture, file: str | Path | None, copy: Path) -> str:
    """A file that a browser shows as the picture is, which need not be encoded again.

    Args:
        picture: to be shown.
        file: that holds it, if one does.
        copy: JPEG that is written where `file` will not do.
    """
    if file is not None and shows(picture, file):
        return str(file)
    shown(picture).save(copy, quality=95, subsampling=0)
    return str(copy)


def shows(picture: Picture, file: str | Path) -> bool:
    """Whether a browser that is given a file shows all of a picture, upright."""
    height, width = picture.pixels.shape[:2]
    if picture.bits != 8 or picture.alpha is not None or height * width > SHOWN_PIXELS:
        return False
    with Image.open(file) as image:
        is_upright = image.getexif().get(ExifTags.Base.Orientation, 1) == 1
        is_alone = getattr(image, "n_frames", 1) == 1
        return (
            image.format in SHOWN_FORMATS
            and image.size == (width, height)
            and (is_upright and is_alone and image.mode in ("L", "RGB"))
        )


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


def summarise(
    picture: Picture, result: Result, model: Model, seconds: float, original: Picture | None = None
) -> str:
    """What was found and done, how much changed and how long it took, in a line of Markdown.

    Args:
        picture: as the model saw it.
        result: of the run.
        model: that worked.
        seconds: that it took.
        original: the photo, where the model saw a reduced copy.
    """
    explanation = result.explanation
    parts = [f"**{done(explanation, result.is_told)}**", size_of(picture)]
    if explanation.change is not None:
        parts.append(f"changed by {explanation.change:.1f} of 255 on average")
    parts.append(f"{seconds:.1f} s")
    lines = [" · ".join(parts)]
    if explanation.is_hardly_changed and model.tasks:
        lines.append(f"{OFFER}, and it is tried once more:")
    elif model.tasks and not result.is_told and is_unsure(explanation):
        lines.append(f"It is not sure what is wrong. {OFFER}, and it is tried once more:")
    if explanation.understood is not None:
        lines.append(f"**Understood:** {explanation.understood}")
    if original is not None:
        lines.append(f"A reduced copy of {size_of(original)}; “Full size” restores all of it.")
    return "\n\n".join(lines)


def is_unsure(explanation: Explanation) -> bool:
    """Whether nothing was found that is more likely than not."""
    found = explanation.degradation
    return found is not None and max(found.values()) < UNSURE


def done(explanation: Explanation, is_told: bool) -> str:
    """What was found or told, and whether anything came of it, in a few words."""
    if is_told and explanation.removed is not None:
        words = " and ".join(map(plain, explanation.removed)) or "nothing"
        if explanation.is_hardly_changed:
            return f"Next to nothing changed, though told to remove {words}"
        return f"Told to remove {words}"
    if explanation.is_hardly_changed:
        return "Next to nothing changed"
    ranked = detected(explanation)
    return "Restored" if ranked == "nothing" else f"Found {ranked}"


def plain(label: str) -> str:
    """How the page calls a degradation."""
    return PLAIN.get(label, label)


def details(picture: Picture, result: Result, model: Model) -> str:
    """What was detected, how it was guided, and how long each stage took, as HTML."""
    explanation = result.explanation
    rows = {}
    if model.tasks:
        removed = explanation.removed
        way = "found out by itself"
        if removed is not None:
            way = ", ".join(map(plain, removed)) or "nothing"
            way += "" if result.is_told else ", found out by itself"
        rows["Remove"] = way
    if explanation.degradation is not None:
        rows["Detected"] = detected(explanation)
    guidance = KINDS.get(explanation.guidance, explanation.guidance)
    if not explanation.is_guided:
        guidance += f", {unused(model)}"
    rows["Guidance"] = guidance
    times = [
        f"{words} {result.seconds[stage]:.2f} s"
        for stage, words in STAGES.items()
        if stage in result.seconds
    ]
    rows["Time"] = " · ".join(times)
    rows["Photo"] = f"{size_of(picture)}, {picture.bits}-bit; worked on {model.device}"
    return render("details.html", rows=rows)


def detected(explanation: Explanation) -> str:
    """Degradations that are probably there, as words."""
    words = []
    for likely in explanation.likely_degradations:
        label, _, share = likely.rpartition(" ")
        words.append(f"{plain(label)} {share}")
    return ", ".join(words) or "nothing"


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
        Figure(np.asarray(photo), "The degraded photo", "What you sent."),
        *paintings(explanation, model),
    ]
    if explanation.is_guided:
        figures += maps(explanation)
    title = "Restored"
    sentence = "The same size, depth, alpha and profile as yours."
    figures.append(Figure(eight_bit(result.restored.pixels), title, sentence))
    said = tag_table(explanation.tags) if explanation.tags else ""
    words = "" if explanation.tags else word_table(explanation.nearest_tokens or [])
    return details(picture, result, model) + said + strip(figures) + words


def paintings(explanation: Explanation, model: Model) -> list[Figure]:
    """What was painted, as small as it is."""
    figures = []
    if explanation.degraded_guidance_pixels is not None:
        sentence = "What its words paint as they are: the degradation is in them."
        pixels = eight_bit(explanation.degraded_guidance_pixels)
        figures.append(Figure(pixels, "Painted from its words", sentence, is_small=True))
    if explanation.guidance_pixels is not None:
        height, width = explanation.guidance_pixels.shape[:2]
        sentence = f"Colours and light of a clean photo, no details: {width} x {height} pixels."
        if not explanation.is_guided:
            sentence += f" It was {unused(model)}."
        title = f"Guidance, {KINDS.get(explanation.guidance, explanation.guidance)}"
        pixels = eight_bit(explanation.guidance_pixels)
        figures.append(Figure(pixels, title, sentence, is_small=True))
    return figures


def maps(explanation: Explanation) -> list[Figure]:
    """Where guidance matched, and where it changed the result."""
    figures = []
    if explanation.match_pixels is not None:
        sentence = (
            "Where guidance and photo show the same thing (white); elsewhere guidance is "
            "not trusted."
        )
        figures.append(Figure(eight_bit(explanation.match_pixels), "Match", sentence))
    if explanation.influence_pixels is not None:
        levels = eight_bit(explanation.influence_pixels)
        strongest = max(int(levels.max()), 1)
        sentence = (
            "What guidance changed in the result, brightened: white is "
            f"{strongest / 255:.1%} of the range."
        )
        brightened = (levels.astype(float) * 255 / strongest).astype(np.uint8)
        figures.append(Figure(brightened, "Influence", sentence))
    return figures


def strip(figures: list[Figure]) -> str:
    """Pictures with their captions, as HTML that wraps on narrow screens."""
    return render("strip.html", figures=figures)


def tag_table(tags: dict[str, dict]) -> str:
    """What the photo, its guidance and the result show, a row for each group."""
    moments = [moment for moment in ("before", "guidance", "after") if moment in tags]
    groups = list(tags["before"])
    return render("tags.html", tags=tags, moments=moments, groups=groups, plain=plain)


def word_table(words: list[dict[str, list[str]]]) -> str:
    """The nearest tokens of each word before and after cleaning; changes are marked."""
    return render("words.html", words=words) if words else ""
