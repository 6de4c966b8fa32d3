"""How large a tile of an image a restorer can take at once; the pipeline does the tiling itself
(`tile=`)."""

import math
from weakref import WeakKeyDictionary

import torch

from textir.machine import free_memory

# Feature maps of the largest kind alive at once in a residual block: input, norm, branch, gate.
LIVE_TENSORS = 8
MOST_WHOLE = 2048 * 2048
LEAST_TILE, LARGEST_TILE = 256, 1024

measured: WeakKeyDictionary[torch.nn.Module, float] = WeakKeyDictionary()


def bytes_per_pixel(restorer: torch.nn.Module) -> float:
    """Memory that a restorer needs for each pixel, from the largest feature map that it makes of a
    small image; measured once."""
    if restorer not in measured:
        measured[restorer] = measure(restorer)
    return measured[restorer]


@torch.no_grad()
def measure(restorer: torch.nn.Module) -> float:
    largest = 0

    def record(module, args, output):
        nonlocal largest
        if isinstance(output, torch.Tensor):
            largest = max(largest, output.numel() * output.element_size())

    leaves = [module for module in restorer.modules() if not list(module.children())]
    hooks = [leaf.register_forward_hook(record) for leaf in leaves]
    parameter = next(restorer.parameters())
    side, channels = 64, getattr(restorer, "config", {}).get("in_channels", 3)
    try:
        # No hooks of others.
        restorer.forward(
            torch.zeros(1, channels, side, side, device=parameter.device, dtype=parameter.dtype)
        )
    finally:
        for hook in hooks:
            hook.remove()
    return LIVE_TENSORS * max(largest, 1) / side**2


def choose_tile(
    height: int, width: int, restorer: torch.nn.Module, available: int | None = None
) -> int | None:
    """Side of the tiles that fit into half of the memory, a multiple of 64, at most `LARGEST_TILE`;
    `None` if the image fits as a whole and is no larger than `MOST_WHOLE` pixels. Larger ones go in
    tiles however much memory there is: nothing is gained by more.

    Args:
        height: of the image in pixels.
        width: of the image in pixels.
        restorer: the network that will see the tiles.
        available: bytes of memory; what is free on the restorer's device if not given.
    """
    if available is None:
        available = free_memory(next(restorer.parameters()).device)
    pixels = available / 2 / bytes_per_pixel(restorer)
    if height * width <= min(pixels, MOST_WHOLE):
        return None
    return min(max(LEAST_TILE, int(math.sqrt(pixels)) // 64 * 64), LARGEST_TILE)
