"""Draw the figure of the embedded checkpoint's card: ten public-domain photos before and after.

python -m train_lora.mini.before_after textir/checkpoints/mini/before_after.jpg
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from skimage import data as photos

from pipelines import TextGuidedRestorationPipeline, load
from textir.degradations import degrade
from textir.images.picture import to_pixels, to_tensor

PAIRS = (  # caption, photo, top left corner of the part that is shown, recipe, task
    ("noise", photos.chelsea, (20, 110), "noise8:35", "denoise"),
    ("camera noise", photos.astronaut, (0, 80), "developed:80+jpeg:90", "denoise+dejpeg"),
    ("rain", photos.coffee, (60, 120), "rain:0.9", "derain"),
    ("haze", photos.astronaut, (120, 20), "haze:1.5", "dehaze"),
    ("mist", photos.coffee, (20, 200), "mist:1", "dehaze"),
    ("darkness", photos.chelsea, (0, 60), "dim:0.7", "lowlight"),
    ("low light", photos.rocket, (120, 220), "lowlight:2.5", "lowlight"),
    ("motion blur", photos.chelsea, (40, 130), "blur:9", "deblur"),
    ("defocus", photos.astronaut, (20, 120), "defocus:3", "defocus"),
    ("JPEG", photos.coffee, (100, 60), "jpeg:10", "dejpeg"),
)
HEIGHT, WIDTH, CAPTION, GAP = 240, 300, 24, 6


def before_and_after(
    pipe: TextGuidedRestorationPipeline, photo: Callable[[], np.ndarray], recipe: str, task: str
) -> list[np.ndarray]:
    """A photo degraded by a recipe, and that restored, as bytes `(H, W, 3)`."""
    clean = to_tensor(photo()) / 255
    degraded = degrade(clean, recipe, torch.Generator().manual_seed(0)).clamp(0, 1)
    restored = pipe(degraded, task=task, output_type="pt").images
    return [(to_pixels(image) * 255).round().astype(np.uint8) for image in (degraded, restored)]


def draw(pipe: TextGuidedRestorationPipeline) -> Image.Image:
    """The figure: two pairs in each row, what is wrong written above."""
    rows, columns = -(-len(PAIRS) // 2), 2
    sheet = Image.new(
        "RGB", (columns * (2 * WIDTH + GAP) - GAP, rows * (HEIGHT + CAPTION)), "white"
    )
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for number, (name, photo, (top, left), recipe, task) in enumerate(PAIRS):
        x, y = number % columns * (2 * WIDTH + GAP), number // columns * (HEIGHT + CAPTION)
        pen.text((x + 2, y + 3), f"{name}  ({recipe})", "black", font)
        for side, picture in enumerate(before_and_after(pipe, photo, recipe, task)):
            part = Image.fromarray(picture[top : top + HEIGHT, left : left + WIDTH])
            sheet.paste(part, (x + side * WIDTH, y + CAPTION))
    return sheet


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    pipe = load()
    pipe.set_progress_bar_config(disable=True)
    draw(pipe).save(Path(sys.argv[1]), quality=84, optimize=True)
