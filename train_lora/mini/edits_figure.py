"""Draw the figure of the card of mini-textir: public-domain photos, what was taken away, and edits.

python -m train_lora.mini.edits_figure textir/checkpoints/mini-textir/edits.jpg
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from skimage import data as photos

from pipelines import TextEditableRestorationPipeline, load_editor
from textir.degradations import draw_mask

SIDE, CAPTION = 224, 22
COLOURED = (  # photo, prompts
    (photos.astronaut, ("", "a woman in an orange suit", "a blue dress", "a green dress")),
    (photos.coffee, ("", "a cup of coffee on a wooden table", "a red cup", "a blue cup")),
    (photos.chelsea, ("", "an orange cat", "a blue cat", "a yellow cat")),
)


def square(array: np.ndarray) -> Image.Image:
    """The middle of a photo as a square of twice the side of a cell."""
    image = Image.fromarray(array)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    cut = image.crop((left, top, left + side, top + side))
    return cut.resize((2 * SIDE, 2 * SIDE), Image.Resampling.LANCZOS)


def rows_of(pipe: TextEditableRestorationPipeline) -> list[list[tuple[str, Image.Image]]]:
    """Cells with their captions: a row for each photo that is coloured, one for holes, one for
    sizes."""
    rows = []
    for photo, prompts in COLOURED:
        gray = square(photo()).convert("L")
        results = pipe(gray, list(prompts), task="colorize").images
        named = [prompt or "no words" for prompt in prompts]
        rows.append([("gray", gray), *zip(named, results)])
    photo = square(photos.coffee())
    hole = draw_mask(2 * SIDE, 2 * SIDE, 0.15, "strokes", torch.Generator().manual_seed(3))
    shown = np.array(photo)
    shown[hole[0, 0].numpy()] = 255
    filled = pipe(photo, ["", "a red thing"], mask_image=hole[0].float()).images
    cells = [("photo", photo), ("15 % taken away", Image.fromarray(shown))]
    rows.append([*cells, ("no words", filled[0]), ("a red thing", filled[1])])
    photo = square(photos.astronaut()).crop((SIDE // 2, 0, SIDE // 2 + SIDE, SIDE))
    small = photo.resize((SIDE // 4, SIDE // 4), Image.Resampling.BICUBIC)
    bicubic = small.resize(photo.size, Image.Resampling.BICUBIC)
    large = pipe(small, "", task="super-resolution", scale=4).images[0]
    rows.append([("photo", photo), ("a quarter, bicubic", bicubic), ("enlarged by 4", large)])
    return rows


def draw(pipe: TextEditableRestorationPipeline) -> Image.Image:
    """The figure."""
    rows = rows_of(pipe)
    columns = max(map(len, rows))
    sheet = Image.new("RGB", (columns * (SIDE + 4), len(rows) * (SIDE + CAPTION)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for row, cells in enumerate(rows):
        for column, (caption, cell) in enumerate(cells):
            x, y = column * (SIDE + 4), row * (SIDE + CAPTION)
            pen.text((x + 2, y + 2), caption, "black", font)
            small = cell.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            sheet.paste(small, (x, y + CAPTION))
    return sheet


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    draw(load_editor()).save(Path(sys.argv[1]), quality=84, optimize=True)
