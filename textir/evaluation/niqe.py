"""NIQE, the naturalness of a photo without a reference: the distance of its local statistics from
those of good photos (Mittal, Soundararajan, Bovik, *Making a "Completely Blind" Image Quality
Analyzer*, IEEE Signal Processing Letters, 2013). Lower is better; good photos have about 3.

Luma is divided by its local contrast. Generalised Gaussians are fitted to the result, and to the
products of neighbours, of each block of 96 pixels and two scales. Mean and covariance of the 36
parameters are compared with those of the authors' 125 good photos, which `niqe.safetensors` holds
(`niqe.NOTICE` has their licence). Luma is that of Rec. 601 on 8 bits, as restoration tables take.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file
from skimage.color import rgb2ycbcr

BLOCK = 96
PRISTINE = Path(__file__).with_name("niqe.safetensors")
NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))
# Shapes of generalised Gaussians that are tried, from peaked to flat.
SHAPES = torch.arange(0.2, 10.0005, 0.001, dtype=torch.float64)
PAD = 8  # pixels mirrored at the border before the photo is halved


def niqe(image: np.ndarray) -> float:
    """NIQE of a photo `(H, W, 3)` in [0, 1]; NaN if less than two of its blocks show anything.

    Raises:
        ValueError: if fewer than two blocks of 96 x 96 pixels fit into it.
    """
    rows, columns = (side // BLOCK for side in image.shape[:2])
    if rows * columns < 2:
        raise ValueError(
            f"NIQE needs two blocks of {BLOCK} x {BLOCK} pixels, got an image of "
            f"{image.shape[1]} x {image.shape[0]}; leave NIQE out for such images."
        )
    levels = (image.astype(np.float64).clip(0, 1) * 255).round() / 255
    luma = torch.from_numpy(rgb2ycbcr(levels)[..., 0]).round()
    luma = luma[: rows * BLOCK, : columns * BLOCK]
    features = [features_of(normalize(luma), BLOCK)]
    features.append(features_of(normalize(halve(luma)), BLOCK // 2))
    blocks = torch.cat(features, dim=1).numpy()
    whole = blocks[~np.isnan(blocks).any(1)]  # a flat block has no shape
    if len(whole) < 2:
        return float("nan")
    mean, covariance = pristine()
    difference = mean - np.nanmean(blocks, axis=0)
    spread = np.linalg.pinv((covariance + np.cov(whole, rowvar=False)) / 2)
    return float(np.sqrt(difference @ spread @ difference))


@lru_cache(maxsize=1)
def pristine() -> tuple[np.ndarray, np.ndarray]:
    """Mean `(36,)` and covariance `(36, 36)` of the features of good photos."""
    model = load_file(PRISTINE)
    return model["mean"], model["covariance"]


def normalize(luma: torch.Tensor) -> torch.Tensor:
    """Luma `(H, W)` on the 0-255 scale less its local mean, in units of its local deviation."""
    offsets = torch.arange(-3, 4, dtype=luma.dtype)
    line = torch.exp(-offsets.square() / (2 * (7 / 6) ** 2))
    window = (line[:, None] * line / line.sum() ** 2)[None, None]

    def local(values: torch.Tensor) -> torch.Tensor:
        padded = F.pad(values[None, None], (3, 3, 3, 3), mode="replicate")
        return F.conv2d(padded, window)[0, 0]

    mean = local(luma)
    deviation = (local(luma.square()) - mean.square()).abs().sqrt()
    return (luma - mean) / (deviation + 1)


def halve(luma: torch.Tensor) -> torch.Tensor:
    """Luma `(H, W)` at half its size, by the cubic kernel without aliasing, mirrored at the border
    as in the authors' code."""
    mirrored = np.pad(luma.numpy(), PAD, mode="symmetric")
    height, width = (side // 2 for side in mirrored.shape)
    half = F.interpolate(
        torch.from_numpy(mirrored)[None, None], (height, width), mode="bicubic", antialias=True
    )[0, 0]
    return half[PAD // 2 : -PAD // 2, PAD // 2 : -PAD // 2]


def features_of(normalized: torch.Tensor, side: int) -> torch.Tensor:
    """Features `(blocks, 18)` of each block of `side` pixels of `(H, W)`."""
    rows, columns = (length // side for length in normalized.shape)
    blocks = normalized.unflatten(0, (rows, side)).unflatten(2, (columns, side))
    blocks = blocks.permute(2, 0, 1, 3).flatten(0, 1)  # column after column
    shape, left, right = fit(blocks)
    features = [shape, (left + right) / 2]
    for shift in NEIGHBOURS:
        shape, left, right = fit(blocks * blocks.roll(shift, (1, 2)))
        mean = (right - left) * torch.exp(torch.lgamma(2 / shape) - torch.lgamma(1 / shape))
        features += [shape, mean, left, right]
    return torch.stack(features, dim=1)


def fit(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Shape, and width to the left and right, of the asymmetric generalised Gaussian of each of
    `(B, H, W)` numbers, by their moments (Lasmar et al., ICIP 2009)."""
    values = blocks.flatten(1)

    def deviation(is_counted: torch.Tensor) -> torch.Tensor:
        return ((values.square() * is_counted).sum(1) / is_counted.sum(1)).sqrt()

    left, right = deviation(values < 0), deviation(values > 0)
    balance = left / right
    ratio = values.abs().mean(1).square() / values.square().mean(1)
    wanted = ratio * (balance**3 + 1) * (balance + 1) / (balance.square() + 1).square()
    once, twice, thrice = (torch.lgamma(order / SHAPES) for order in (1, 2, 3))
    known = torch.exp(2 * twice - once - thrice)
    place = (known - wanted[:, None]).abs().argmin(1)
    shape = SHAPES[place]
    scale = torch.exp((torch.lgamma(1 / shape) - torch.lgamma(3 / shape)) / 2)
    return shape, left * scale, right * scale
