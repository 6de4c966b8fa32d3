"""What the page says and shows of an edit."""

from PIL import Image

from textir.images.picture import Picture, to_pixels
from textir.space.edit_settings import EditSettings, check_size, enlarged_size
from textir.space.edit_worker import EditResult, EditWorker
from textir.space.inputs import Facts, size_of
from textir.space.pace import megapixels
from textir.space.view import shown

LEAST_EFFECT = 1.0  # of 255: what can be seen


def before_of(picture: Picture, settings: EditSettings, pipe) -> Image.Image:
    """The photo as it stands beside a result: of its size."""
    if settings.scale is None:
        return shown(picture)
    pixels = to_pixels(pipe.edit_processor.enlarge(picture.tensor(), settings.size(picture)))
    return shown(Picture(pixels))


def summarise_edit(
    picture: Picture, settings: EditSettings, result: EditResult, device: str
) -> str:
    """What was done, what the words did, and what else there is to know, as Markdown."""
    size = size_of(picture)
    done = {
        "inpaint": f"**Filled** · {size}",
        "super-resolution": f"**Enlarged** · {size} to {size_of(result.pictures[0])}",
        "colorize": f"**Coloured** · {size}",
    }[settings.task]
    if settings.hole is not None:
        done += f", {settings.hole.mean():.1%} of it new, the rest unchanged to the bit"
    if settings.variants > 1:
        done += f" · {settings.variants} variants"
    done += f" · {result.seconds:.1f} s on {device}"
    return "\n\n".join([done, *effect_of_words(result), *result.notes])


def effect_of_words(result: EditResult) -> list[str]:
    """How far words moved the result, in a sentence, where there were words."""
    if result.effect is None:
        return []
    if result.effect < LEAST_EFFECT:
        return [
            f"**Your words changed next to nothing** ({result.effect:.1f} of 255). Try others, or "
            "more strength."
        ]
    return [f"Your words moved the result by {result.effect:.1f} of 255."]


def size_line(facts: Facts, scale: float, runs: int, worker: EditWorker) -> str:
    """How large a photo will become, and how long that will take, as Markdown."""
    size = enlarged_size((facts.height, facts.width), scale)
    try:
        check_size(size)
    except ValueError as error:
        return f"**Too large.** {error}"
    words = f"{facts.width} x {facts.height} becomes **{size[1]} x {size[0]} pixels**"
    words += f" ({megapixels(size):.1f} million)"
    seconds = worker.estimate("super-resolution", size, runs)
    return words + (f", {about(seconds)}." if seconds is not None else ".")


def about(seconds: float) -> str:
    """A time to expect, in words."""
    if seconds < 1:
        return "in about a second"
    if seconds < 100:
        return f"in about {seconds:.0f} s"
    return f"in about {seconds / 60:.0f} minutes"
