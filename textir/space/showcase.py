"""The examples of the page with their results, so that a visitor sees them at once.

python -m textir.space.showcase  # make them anew, after the embedded checkpoints have changed

Photos are in the public domain, from scikit-image; the degradations are our own.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageOps
from skimage import data as photos

from pipelines import load, load_editor
from textir.degradations import degrade
from textir.evaluation.metrics import psnr
from textir.images.picture import (
    Picture,
    picture_from_pil,
    read_picture,
    resize,
    to_pixels,
)

FOLDER = Path(__file__).parent / "showcase"
INDEX = FOLDER / "index.json"
THUMBNAIL = (192, 144)
PREVIEW = (1200, 630)  # what sites that show a preview of a link ask for
PREVIEWED = ("Rain", "Haze", "Noise", "Gray")
Box = tuple[int, int, int, int]  # left, top, right, bottom
SPOILT = {  # name -> photo, part of it, recipe, task, what is said of the result
    "Rain": (photos.chelsea, (10, 0, 450, 300), "rain:0.8", "derain"),
    "Haze": (photos.coffee, (60, 60, 500, 360), "haze:1.4", "dehaze"),
    "Noise": (photos.astronaut, (60, 0, 460, 300), "noise8:35", "denoise"),
    "Dark": (photos.chelsea, (10, 0, 450, 300), "dim:0.7", "lowlight"),
    "Blurred": (photos.astronaut, (60, 0, 460, 300), "blur:9", "deblur"),
    "Out of focus": (photos.astronaut, (60, 0, 460, 300), "defocus:4", "defocus"),
    "Blocky": (photos.coffee, (60, 60, 500, 360), "jpeg:12", "dejpeg"),
    "Soft": (photos.astronaut, (60, 0, 460, 300), "downup:2.5", "sharpen"),
}
BEST_GUIDED = "Dark"  # where guidance helps most
LEAST_CHANGE = 0.3  # of 255: a task that does less than this does nothing
WAYS = ("none", "cleaned words")


@dataclass(frozen=True)
class Exhibit:
    """An example and its result.

    Attributes:
        name: what stands below its thumbnail.
        mode: of the page.
        tasks: buttons that are pressed.
        prompt: words of an edit.
        sentence: what was done, as Markdown.
        scores: PSNR in dB of each of `WAYS`, where the clean photo is known.
        change: mean difference between before and after on the 0-255 scale.
    """

    name: str
    mode: str
    tasks: tuple[str, ...]
    prompt: str
    sentence: str
    scores: tuple[float, ...] = ()
    change: float = 255.0

    @property
    def acts(self) -> bool:
        """Whether anything comes of it."""
        return self.change >= LEAST_CHANGE

    def file(self, part: str = "") -> str:
        """A picture of it: empty for the photo, `result`, `before` or `thumbnail`."""
        suffix = ".png" if part == "mask" else ".jpg"
        stem = self.name.lower().replace(" ", "-")
        return str(FOLDER / (f"{stem}-{part}{suffix}" if part else f"{stem}{suffix}"))

    @property
    def pair(self) -> tuple[str, str]:
        """What the slider shows: before and after, of one size."""
        before = self.file("before")
        return before if Path(before).exists() else self.file(), self.file("result")


def exhibits() -> list[Exhibit]:
    """All examples, in the order of the page."""
    rows = json.loads(INDEX.read_text(encoding="utf-8"))
    return [
        Exhibit(**{**row, "tasks": tuple(row["tasks"]), "scores": tuple(row["scores"])})
        for row in rows
    ]


def idle_tasks(checkpoint: str) -> set[str]:
    """Tasks that do nothing with the embedded checkpoint; of others nothing is known."""
    if checkpoint != "mini":
        return set()
    return {task for one in exhibits() if not one.acts for task in one.tasks}


def part_of(photo: Callable[[], np.ndarray], box: Box) -> Image.Image:
    return Image.fromarray(photo()).crop(box)


def save(picture: Picture | Image.Image, path: str, quality: int = 90) -> Picture:
    """Write a picture as the page will read it, and read it again: JPEG loses a little."""
    image = picture
    if isinstance(picture, Picture):
        image = Image.fromarray((picture.pixels.clip(0, 1) * 255).round().astype(np.uint8))
    image.save(path, quality=quality, subsampling=0)
    return read_picture(path)


def save_thumbnail(exhibit: Exhibit) -> None:
    """Left half before, right half after."""
    before, after = (Image.open(path).convert("RGB") for path in exhibit.pair)
    before.thumbnail((THUMBNAIL[0], THUMBNAIL[0]), Image.LANCZOS)
    after = after.resize(before.size, Image.LANCZOS)
    middle = before.width // 2
    before.paste(after.crop((middle, 0, *after.size)), (middle, 0))
    ImageDraw.Draw(before).line([(middle, 0), (middle, before.height)], "white", 2)
    save(before, exhibit.file("thumbnail"), 85)


def restorations(pipe) -> Iterator[Exhibit]:
    """An example of each task."""
    for seed, (name, (photo, box, recipe, task)) in enumerate(SPOILT.items()):
        clean = picture_from_pil(part_of(photo, box))
        generator = torch.Generator().manual_seed(seed)
        draft = Exhibit(name, "Restore", (task,), "", "")
        spoilt = clean.with_tensor(degrade(clean.tensor(), recipe, generator).clamp(0, 1))
        degraded = save(spoilt, draft.file())
        output = pipe(degraded.tensor(), task=task, output_type="pt")
        restored = save(Picture(to_pixels(output.images[0])), draft.file("result"))
        gain = psnr(restored.pixels, clean.pixels) - psnr(degraded.pixels, clean.pixels)
        sentence = (
            f"**Example: {name.lower()}** · changed by {output.change[0]:.1f} of 255 on average · "
            f"{gain:+.1f} dB closer to the clean photo"
        )
        scores = tuple(compared(pipe, draft, degraded, clean))
        yield Exhibit(name, "Restore", (task,), "", sentence, scores, round(output.change[0], 2))


def compared(pipe, exhibit: Exhibit, degraded: Picture, clean: Picture) -> Iterator[float]:
    """PSNR of each of `WAYS`; the pictures of `BEST_GUIDED` are kept."""
    options = ({"guidance": "none"}, {"guidance": "cleaned", "guidance_strength": 1.0})
    for way, option in zip(WAYS, options):
        generator = torch.Generator().manual_seed(0)
        images = pipe(degraded.tensor(), output_type="pt", generator=generator, **option).images
        restored = Picture(to_pixels(images[0]))
        if exhibit.name == BEST_GUIDED:
            save(restored, exhibit.file(way.replace(" ", "-")))
            save(clean, exhibit.file("clean"))
        yield round(psnr(restored.pixels, clean.pixels), 2)


def edits(pipe) -> Iterator[Exhibit]:
    """An example of each mode that edits."""
    scratched = Exhibit(
        "Scratches", "Erase and fill", (), "", "**Example: scratches filled** · the rest unchanged"
    )
    photo = part_of(photos.coffee, (60, 60, 500, 360))
    mask = Image.new("L", photo.size)
    for start, end in (((20, 40), (210, 110)), ((300, 10), (250, 280)), ((60, 260), (400, 190))):
        ImageDraw.Draw(mask).line([start, end], 255, 5)
    mask.save(scratched.file("mask"))
    photo.paste("white", mask=mask)
    damaged = save(photo, scratched.file())
    hole = torch.from_numpy(np.asarray(mask) > 0)[None, None].float()
    filled = pipe(damaged.tensor(), mask_image=hole, output_type="pt").images
    save(Picture(to_pixels(filled[0])), scratched.file("result"))
    yield scratched

    words = "an orange cat"
    gray = Exhibit("Gray", "Colour", (), words, f"**Example: coloured** by the words “{words}”")
    photo = save(part_of(photos.chelsea, (10, 0, 450, 300)).convert("L"), gray.file())
    coloured = pipe(photo.tensor(), words, task="colorize", output_type="pt").images
    save(Picture(to_pixels(coloured[0])), gray.file("result"))
    yield gray

    small = Exhibit("Small", "Enlarge", (), "", "**Example: enlarged** · 112 x 112 to 448 x 448")
    photo = part_of(photos.astronaut, (112, 0, 336, 224)).resize((112, 112), Image.LANCZOS)
    tiny = save(photo, small.file(), 95)
    large = pipe(tiny.tensor(), "", task="super-resolution", scale=4.0, output_type="pt").images
    save(Picture(to_pixels(large[0])), small.file("result"))
    save(Picture(to_pixels(resize(tiny.tensor(), large.shape[-2:]))), small.file("before"))
    yield small


def save_preview(exhibits: list[Exhibit]) -> None:
    """One picture for links to the page: four examples, each half before, half after."""
    width, height = PREVIEW
    sheet = Image.new("RGB", PREVIEW, "white")
    chosen = [one for one in exhibits if one.name in PREVIEWED]
    for place, exhibit in enumerate(chosen):
        before, after = (Image.open(path).convert("RGB") for path in exhibit.pair)
        size = (width // 2 - 3, height // 2 - 3)
        before, after = (ImageOps.fit(half, size, Image.LANCZOS) for half in (before, after))
        middle = size[0] // 2
        before.paste(after.crop((middle, 0, *size)), (middle, 0))
        ImageDraw.Draw(before).line([(middle, 0), (middle, size[1])], "white", 3)
        sheet.paste(before, (place % 2 * (width // 2 + 3), place // 2 * (height // 2 + 3)))
    save(sheet, str(FOLDER / "preview.jpg"), 85)


def make() -> None:
    """Make all examples with the embedded checkpoints."""
    FOLDER.mkdir(exist_ok=True)
    pipe, editor = load(), load_editor()
    for part in (pipe, editor):
        part.set_progress_bar_config(disable=True)
    made = [*restorations(pipe), *edits(editor)]
    for exhibit in made:
        save_thumbnail(exhibit)
    save_preview(made)
    INDEX.write_text(json.dumps([asdict(one) for one in made], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    make()
