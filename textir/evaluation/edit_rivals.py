"""Methods without learning for what an edit gives back, to know what a network is worth: fills of
holes, enlargements, and colours that are the same for every photo.

Each takes an `EditCase` and returns `(1, C, H, W)` in [0, 1] of the size of the clean photo.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from textir.images.picture import to_pixels, to_tensor
from textir.models import edit_processor


class EditCase(NamedTuple):
    """What an edit is given.

    Attributes:
        name: of the photo.
        image: `(1, C, h, w)` in [0, 1] on the levels of 8 bits: holes are black, it has no colour,
            or it is smaller.
        hole: `(1, 1, h, w)` bool.
        size: height and width of what is wanted.
        task: `inpaint`, `colorize` or `super-resolution`.
    """

    name: str
    image: torch.Tensor
    hole: torch.Tensor
    size: tuple[int, int]
    task: str


def fill_with_mean(case: EditCase) -> torch.Tensor:
    """The mean of the known pixels in the hole."""
    known = (~case.hole).to(case.image)
    mean = (case.image * known).sum((2, 3), keepdim=True) / known.sum((2, 3), keepdim=True)
    return torch.where(case.hole, mean, case.image)


def fill_harmonically(case: EditCase) -> torch.Tensor:
    """The solution of Laplace's equation in the hole: the rival that counts."""
    return edit_processor.fill_harmonic(case.image, case.hole)


def fill_biharmonically(case: EditCase) -> torch.Tensor:
    """The solution of the biharmonic equation (scikit-image): smooth, and given to overshoot."""
    from skimage.restoration import inpaint_biharmonic

    pixels = inpaint_biharmonic(
        to_pixels(case.image), case.hole[0, 0].numpy(), channel_axis=-1, split_into_regions=True
    )
    filled = to_tensor(pixels.astype(np.float32)).clamp(0, 1)
    return torch.where(case.hole, filled, case.image)


def enlarge_bicubic(case: EditCase) -> torch.Tensor:
    """Bicubic interpolation."""
    return edit_processor.enlarge(case.image, case.size)


def enlarge_lanczos(case: EditCase) -> torch.Tensor:
    """Lanczos interpolation of Pillow, in floating point."""
    height, width = case.size
    channels = []
    for channel in case.image[0].numpy():
        large = Image.fromarray(channel).resize((width, height), Image.Resampling.LANCZOS)
        channels.append(torch.from_numpy(np.array(large)))
    return torch.stack(channels)[None].clamp(0, 1)


def enlarge_and_project(case: EditCase) -> torch.Tensor:
    """Bicubic interpolation, corrected until its reduction is the photo: what exact keeping alone
    gains."""
    return edit_processor.project_back(enlarge_bicubic(case), case.image)


def copy_gray(case: EditCase) -> torch.Tensor:
    """The gray photo as it is."""
    return case.image


def tint(case: EditCase, a: float = -2.9, b: float = 8.0) -> torch.Tensor:
    """One colour for all photos, with the luma of each: the mean `a` and `b` of CIE Lab of CBSD68,
    which half of the gain of a timid network is made of."""
    lab = edit_processor.lab_from_rgb(case.image)
    tones = torch.tensor([a, b])[None, :, None, None].expand(-1, -1, *lab.shape[-2:]) / 100
    colors = edit_processor.rgb_from_lab(torch.cat([lab[:, :1], tones], dim=1))
    gray = (case.image[:, :1] * 255).round()
    return edit_processor.keep_luminance(colors * 255, gray) / 255


Rival = Callable[[EditCase], torch.Tensor]

EDIT_BASELINES: dict[str, dict[str, Rival]] = {
    "inpaint": {
        "mean": fill_with_mean,
        "harmonic": fill_harmonically,
        "biharmonic": fill_biharmonically,
    },
    "super-resolution": {
        "bicubic": enlarge_bicubic,
        "Lanczos": enlarge_lanczos,
        "bicubic, projected": enlarge_and_project,
    },
    "colorize": {"gray": copy_gray, "tint": tint},
}
"""For each task its rivals by name."""
