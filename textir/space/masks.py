"""What to fill: strokes of the brush, or a mask file, at the size of the photo."""

from pathlib import Path

import numpy as np
import torch

from textir.images.editing import read_mask_file
from textir.images.picture import resize
from textir.models import EditProcessor
from textir.models.edit_processor import read_mask


def read_hole(
    drawing: dict | None,
    file: str | None,
    size: tuple[int, int],
    invert: bool,
    processor: EditProcessor,
) -> np.ndarray:
    """The pixels to fill, `(H, W)` bool: where there is a stroke, or where the file is bright.

    Args:
        drawing: value of a `gr.ImageEditor` with Pillow images.
        file: path of a mask of the photo's size.
        size: height and width of the photo.
        invert: fill everything else instead.
        processor: of the pipeline, which says what is bright.

    Raises:
        ValueError: if there is no mask, it is empty or full, or it does not fit the photo.
    """
    strokes = read_strokes(drawing, size)
    if strokes is None and not file:
        raise ValueError("Paint over what shall be filled, or upload a mask.")
    hole = np.zeros(size, dtype=bool) if strokes is None else strokes
    if file:
        mask = read_mask_file(Path(file))
        hole |= read_mask(mask, size, processor.mask_threshold)[0, 0].numpy()
    return read_mask(hole, size, processor.mask_threshold, invert)[0, 0].numpy()


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
