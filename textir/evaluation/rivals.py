"""Methods without learning, to know what a network is worth: denoisers, sharpening and CLAHE of
scikit-image, haze removal by the dark channel, and CBM3D where the package `bm3d` is installed
(`pip install bm3d`; free for non-commercial use).

All take and return an image `(H, W, 3)` in [0, 1] and are told nothing.
"""

from collections.abc import Collection, Iterable
from importlib.util import find_spec
from itertools import chain

import numpy as np
import torch
import torch.nn.functional as F
from kornia.filters import guided_blur
from skimage.color import lab2rgb, rgb2lab
from skimage.exposure import equalize_adapthist
from skimage.filters import unsharp_mask
from skimage.restoration import denoise_nl_means, denoise_tv_chambolle, denoise_wavelet

from textir.images.picture import to_pixels, to_tensor

NEEDS_BM3D = (
    "The rival CBM3D needs the package bm3d: `pip install bm3d` (free for non-commercial use), or "
    "leave it out."
)


def non_local_means(image: np.ndarray) -> np.ndarray:
    """Non-local means (Buades et al., CVPR 2005) at the noise level that the image shows."""
    sigma = noise_level(image)
    settings = {"patch_size": 5, "patch_distance": 6, "fast_mode": True, "channel_axis": -1}
    return (
        denoise_nl_means(image, h=0.8 * sigma, sigma=sigma, **settings)
        .clip(0, 1)
        .astype(np.float32)
    )


def total_variation(image: np.ndarray) -> np.ndarray:
    """Total variation (Rudin et al. 1992, by Chambolle's algorithm) with a weight in proportion to
    the noise level."""
    sigma = noise_level(image)
    return (
        denoise_tv_chambolle(image, weight=max(sigma, 1e-4), channel_axis=-1)
        .clip(0, 1)
        .astype(np.float32)
    )


def wavelet(image: np.ndarray) -> np.ndarray:
    """BayesShrink of wavelet coefficients in YCbCr (Chang et al., *Adaptive wavelet thresholding*,
    2000)."""
    clipped = image.clip(0, 1)
    return (
        denoise_wavelet(clipped, method="BayesShrink", convert2ycbcr=True, channel_axis=-1)
        .clip(0, 1)
        .astype(np.float32)
    )


def cbm3d(image: np.ndarray) -> np.ndarray:
    """CBM3D (Dabov et al., ICIP 2007, by its authors' package) at the noise level that the image
    shows.

    Raises:
        ValueError: if `bm3d` is not installed.
    """
    try:
        from bm3d import bm3d_rgb
    except ImportError:
        raise ValueError(NEEDS_BM3D) from None
    return bm3d_rgb(image, noise_level(image)).clip(0, 1).astype(np.float32)


def sharpen(image: np.ndarray, radius: float = 2.0, amount: float = 1.0) -> np.ndarray:
    """Unsharp masking, with scikit-image's strength and a radius in pixels."""
    # Channel by channel: with `channel_axis=-1` scikit-image 0.26 sharpens three rows.
    channels = [unsharp_mask(channel, radius, amount) for channel in np.moveaxis(image, -1, 0)]
    return np.stack(channels, axis=-1).clip(0, 1).astype(np.float32)


def clahe(image: np.ndarray, clip_limit: float = 0.03) -> np.ndarray:
    """Contrast limited adaptive histogram equalisation (Zuiderveld 1994) of the lightness."""
    lab = rgb2lab(image.clip(0, 1))
    lab[..., 0] = 100 * equalize_adapthist(lab[..., 0] / 100, clip_limit=clip_limit)
    return lab2rgb(lab).clip(0, 1).astype(np.float32)


def noise_level(image: np.ndarray) -> float:
    """Standard deviation of Gaussian noise, from the median of a Laplacian's differences that
    smooth images hardly have (Immerkaer, *Fast Noise Variance Estimation*, 1996; with Donoho's
    median instead of the mean)."""
    kernel = torch.tensor([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]]).expand(
        3, 1, 3, 3
    )
    pixels = to_tensor(image).float()
    return float(F.conv2d(pixels, kernel, groups=3).abs().median() / 0.6745 / 6)


def dark_channel(
    image: np.ndarray, window: int = 15, omega: float = 0.95, floor: float = 0.1
) -> np.ndarray:
    """Haze removal by the dark channel prior (He et al., CVPR 2009), its transmission refined by a
    guided filter (He et al., ECCV 2010).

    Args:
        image: `(H, W, 3)` in [0, 1].
        window: side in pixels over which some channel is expected to be dark.
        omega: share of the haze that is removed.
        floor: least transmission.
    """
    haze = to_tensor(image).double().clamp(0, 1)
    dark = lowest(haze, window)
    brightest = dark.flatten().topk(max(dark.numel() // 1000, 1)).indices
    air = haze.flatten(2)[..., brightest].amax(-1)[..., None, None].clamp(min=0.1)
    rough = 1 - omega * lowest(haze / air, window)
    transmission = guided_blur(haze.mean(1, keepdim=True), rough, 81, 1e-3, subsample=4).clamp(
        floor, 1
    )
    clear = ((haze - air) / transmission + air).clamp(0, 1)
    return to_pixels(clear)


def lowest(image: torch.Tensor, window: int) -> torch.Tensor:
    """The least value of any channel in a window around each pixel: `(1, C, H, W)` -> `(1, 1, H,
    W)`."""
    return -F.max_pool2d(-image.amin(1, keepdim=True), window, stride=1, padding=window // 2)


BASELINES = {
    "non-local means": non_local_means,
    "total variation": total_variation,
    "wavelet": wavelet,
    "CBM3D": cbm3d,
    "CLAHE": clahe,
    "dark channel": dark_channel,
    "unsharp mask": sharpen,
}
FITTING = {
    "noise": ("non-local means", "total variation", "wavelet", "CBM3D"),
    "haze": ("dark channel",),
    "lowlight": ("CLAHE",),
    "jpeg": ("total variation",),
    "blur": ("unsharp mask",),
    "defocus": ("unsharp mask",),
    "downup": ("unsharp mask",),
}
"""What one would take against a degradation; nothing against rain."""


def fitting_rivals(labels: Iterable[str]) -> list[str]:
    """The rivals against degradations, those of them that can run here."""
    named = dict.fromkeys(chain.from_iterable(FITTING.get(label, ()) for label in labels))
    return [name for name in named if name != "CBM3D" or find_spec("bm3d")]


def check_rivals(names: Collection[str]) -> None:
    """Refuse rivals that are not known or cannot run here.

    Raises:
        ValueError: if one is so.
    """
    unknown = [name for name in names if name not in BASELINES]
    if unknown:
        raise ValueError(f"Rivals are {', '.join(BASELINES)}; got {', '.join(unknown)}.")
    if "CBM3D" in names and not find_spec("bm3d"):
        raise ValueError(NEEDS_BM3D)
