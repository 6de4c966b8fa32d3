"""What to fill: strokes of the brush, or a mask file, at the size of the photo."""

import numpy as np
import torch
from PIL import Image

from textir.images.picture import resize
from textir.models.edit_processor import read_mask

THRESHOLD = 128  # least brightness of a hole in a file, of 255


def read_hole(
    drawing: dict | None, file: str | None, size: tuple[int, int], invert: bool = False
) -> np.ndarray:
    """The pixels to fill, `(H, W)` bool: where there is a stroke, or where the file is bright.

    Args:
        drawing: value of a `gr.ImageEditor` with Pillow images.
        file: path of a mask of the photo's size.
        size: height and width of the photo.
        invert: fill everything else instead.

    Raises:
        ValueError: if there is no mask, it is empty or full, or it does not fit the photo.
    """
    hole = np.zeros(size, dtype=bool)
    strokes = read_strokes(drawing, size)
    if strokes is not None:
        hole |= strokes
    if file:
        hole |= read_mask_file(file, size)
    if strokes is None and not file:
        raise ValueError("Paint over what shall be filled, or upload a mask.")
    return read_mask(hole, size, THRESHOLD, invert)[0, 0].numpy()


def read_mask_file(file: str, size: tuple[int, int]) -> np.ndarray:
    """`(H, W)` bool, where a mask file is bright.

    Raises:
        ValueError: if it is no image, has another size, or is empty or full.
    """
    try:
        with Image.open(file) as image:
            if image.size != (size[1], size[0]):
                raise ValueError(
                    f"The mask must have the size of the photo, {size[1]} x {size[0]}, but has "
                    f"{image.width} x {image.height}."
                )
            image.load()
            return read_mask(image, size, THRESHOLD)[0, 0].numpy()
    except OSError:
        raise ValueError("The mask is not an image that can be read.") from None


def read_strokes(drawing: dict | None, size: tuple[int, int]) -> np.ndarray | None:
    """`(H, W)` bool, where something is painted; `None` where nothing is.

    The page paints on a reduced copy, so that strokes are enlarged to the size of the photo.

    Raises:
        ValueError: if they were painted on a photo of another shape.
    """
    layers = (drawing or {}).get("layers") or []
    alphas = [np.asarray(layer.convert("RGBA").getchannel("A")) for layer in layers]
    alphas = [alpha for alpha in alphas if alpha.any()]
    if not alphas:
        return None
    hole = np.zeros(size, dtype=bool)
    for alpha in alphas:
        factors = [side / drawn for side, drawn in zip(size, alpha.shape)]
        # A side of the copy is rounded to a whole pixel.
        if abs(factors[0] - factors[1]) > max(factors) * 1.5 / min(alpha.shape):
            raise ValueError("The strokes belong to another photo; paint them anew.")
        painted = torch.from_numpy(alpha > 0).float()[None, None]
        hole |= (resize(painted, size) >= 0.5)[0, 0].numpy()
    return hole
