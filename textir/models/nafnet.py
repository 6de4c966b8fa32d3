"""NAFNet, a restoration network without activation functions, that can also listen to a guidance
image.

Chen et al., *Simple Baselines for Image Restoration* (ECCV 2022, arXiv 2204.04676), written from
the paper. Guidance enters as in *Improving Image Restoration through Removing Degradations in
Textual Representations* (CVPR 2024, eq. 5): `F <- F + alpha * B([F, F_g])` with `alpha` zero at the
start, so a fresh guided network is its backbone to the bit.

Ours: a network with `labels` can be told what to remove. Its condition scales and shifts the
normalised features of each block (Perez et al., *FiLM*, AAAI 2018). It also weighs low-rank experts
on the 1 x 1 convolutions, one a label (Hu et al., *LoRA*, ICLR 2022).
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from torch import nn

TILE = 3 * 2**19  # numbers in a tile of feature maps, 6 MiB in float32
MOST_PRODUCTS = 256  # places of a window up to which means are made by a product


class LayerNorm2d(nn.Module):
    """Layer normalisation over the channels of every pixel of `(B, C, H, W)`; free of copies in
    channels_last memory."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, eps=1e-6)
        return x.permute(0, 3, 1, 2)


class Tile(NamedTuple):
    """Where a tile lies: slices of one side, or indices of `(B, C, H, W)`.

    Attributes:
        bordered: the tile with a border, where there is one.
        inside: the tile within that.
        place: the tile within the whole map.
    """

    bordered: slice | tuple
    inside: slice | tuple
    place: slice | tuple


def count_pieces(size: int, wanted: float) -> int:
    """About as many pieces of a side as `wanted`, each of about 16 pixels or more."""
    return max(1, min(round(wanted), round(size / 16)))


def cut_side(size: int, count: int, border: int) -> list[Tile]:
    """Slices that cut a side of `size` pixels into `count` pieces."""
    ends = [size * i // count for i in range(count + 1)]
    pieces = []
    for start, end in pairwise(ends):
        first, last = max(start - border, 0), min(end + border, size)
        inside = slice(start - first, end - first)
        pieces.append(Tile(slice(first, last), inside, slice(start, end)))
    return pieces


def tiles(x: torch.Tensor, channels: int, border: int) -> Iterator[Tile]:
    """Cut `(B, C, H, W)` into tiles with a border of `border` pixels.

    They are so small that `channels` maps of one stay in the cache of a processor. Whole rows are
    taken where 32 of them are about as small: in channels_last memory these need no copies.
    """
    height, width = x.shape[-2:]
    pixels = max(1, TILE // channels)
    across = count_pieces(width, 32 * width / pixels)
    down = count_pieces(height, height * width / (across * pixels))
    columns = cut_side(width, across, border)
    for row in cut_side(height, down, border):
        for column in columns:
            yield Tile(
                bordered=(..., row.bordered, column.bordered),
                inside=(..., row.inside, column.inside),
                place=(..., row.place, column.place),
            )


def in_tiles(x: torch.Tensor) -> bool:
    """Whether blocks go tile by tile: in inference on a processor, where whole maps would pass
    through memory again and again."""
    return (
        x.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling()
    )


def gate(x: torch.Tensor) -> torch.Tensor:
    """SimpleGate: one half of the channels times the other, `(B, 2C, H, W)` -> `(B, C, H, W)`."""
    left, right = x.chunk(2, dim=1)
    return left * right


def local_mean(x: torch.Tensor, window: int | None, share: float = 0.0) -> torch.Tensor:
    """Mean of `(B, C, H, W)` over a `window` x `window` square around each pixel.

    The window grows to `share` of the longer side if that is more. At the border it moves inwards.
    The mean is over the whole image where the window is larger, or `None`.
    """
    if window is not None and torch.onnx.is_in_onnx_export():  # there sizes are tensors
        height, width = x.shape[-2:]
        if share:
            window = (torch.maximum(height, width) * round(share * 1000) // 1000).clamp(min=window)
        return banded_mean(banded_mean(x, window, -1), window, -2)
    means, border = window_means(x, window, share)
    return means if border is None else F.pad(means, border, mode="replicate")


def window_means(
    x: torch.Tensor, window: int | None, share: float = 0.0
) -> tuple[torch.Tensor, tuple[int, int, int, int] | None]:
    """The means of `local_mean` without repetitions: near a border pixels have the same window.

    Returns:
        the mean of each window within `(B, C, H, W)`, and how often the outermost ones are repeated
        at the left, right, top and bottom; `None` where there is one window, `(B, C, 1, 1)`.
    """
    height, width = x.shape[-2:]
    if window is not None:
        window = max(window, max(height, width) * round(share * 1000) // 1000)
    if window is None or window >= max(height, width):
        return x.mean((2, 3), keepdim=True), None
    rows, columns = min(window, height), min(window, width)
    means = mean_along(mean_along(x.float(), rows, -2), columns, -1).to(x)
    (left, right), (top, bottom) = (
        (half := side // 2, side - 1 - half) for side in (columns, rows)
    )
    return means, (left, right, top, bottom)


def mean_along(x: torch.Tensor, window: int, dim: int) -> torch.Tensor:
    """The mean of each run of `window` pixels along a side of `(B, C, H, W)`, in single
    precision."""
    count = x.shape[dim] - window + 1
    if count <= MOST_PRODUCTS:  # a product with a band is faster than sums that move on
        places = torch.arange(x.shape[dim], device=x.device)
        starts = torch.arange(count, device=x.device)[:, None]
        band = ((places >= starts) & (places < starts + window)).to(x) / window
        moved = x.permute(0, 2, 3, 1) if dim == -1 else x.permute(0, 2, 3, 1).flatten(2)
        means = band @ moved
        means = means if dim == -1 else means.unflatten(2, (x.shape[-1], x.shape[1]))
        return means.permute(0, 3, 1, 2)
    first = x.narrow(dim, 0, window).sum(dim, keepdim=True)
    change = x.narrow(dim, window, count - 1) - x.narrow(dim, 0, count - 1)
    return torch.cat([first, first + change.cumsum(dim)], dim) / window


def banded_mean(x: torch.Tensor, window: int, dim: int) -> torch.Tensor:
    """The same as a product with a band matrix, which asks nothing about sizes: for ONNX, whose
    cumulated sums are slow besides."""
    places = torch.arange(x.shape[dim], device=x.device)
    starts = (places - window // 2).clamp(max=x.shape[dim] - window).clamp(min=0)
    band = ((places[:, None] >= starts) & (places[:, None] < starts + window)).to(x)
    return (x.transpose(dim, -1) @ (band / band.sum(0))).transpose(dim, -1)


class ExpertConv2d(nn.Conv2d):
    """A 1 x 1 convolution with a low-rank expert for each of `labels` labels: `W + sum_l c_l * U_l
    D_l`.

    `U` is zero at the start, so a fresh layer is the plain convolution to the bit. With `rank` 0
    there are no experts. The other arguments are those of the base class, of which peft builds the
    layers of an adapter.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        bias: bool = True,
        labels: int = 0,
        rank: int = 0,
    ):
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=bias
        )
        self.has_experts = labels > 0 and rank > 0
        if self.has_experts:
            self.expert_down = nn.Parameter(
                torch.randn(labels, rank, in_channels) / in_channels**0.5
            )
            self.expert_up = nn.Parameter(torch.zeros(labels, out_channels, rank))

    def kernels(self, weights: torch.Tensor) -> torch.Tensor:
        """`(1 or B, O, C)`, with experts of the given weights `(1 or B, labels)`."""
        experts = torch.einsum("bl,lor,lri->boi", weights, self.expert_up, self.expert_down)
        return self.weight[..., 0, 0] + experts

    def forward(self, x: torch.Tensor, wish: "Wish | None" = None) -> torch.Tensor:
        """Convolve `(B, C, H, W)`; without a wish the experts are left out."""
        if wish is None or not self.has_experts:
            return super().forward(x)
        kernels = wish.once(self, self.kernels)
        pixels = x.permute(0, 2, 3, 1)
        if len(kernels) == 1:
            mapped = F.linear(pixels, kernels[0], self.bias)
        elif x.device.type == "cpu" and not torch.onnx.is_in_onnx_export():
            # Twice as fast there as one product of batches.
            mapped = [F.linear(image, kernel, self.bias) for image, kernel in zip(pixels, kernels)]
            mapped = torch.stack(mapped)
        else:
            mapped = pixels.flatten(1, 2) @ kernels.transpose(1, 2) + self.bias
        return mapped.reshape(*pixels.shape[:3], -1).permute(0, 3, 1, 2)


class Wish:
    """What a condition means to the blocks, in one call of a network.

    Attributes:
        embedding: `(1 or B, condition_width)`, from which blocks draw scales and shifts.
        weights: `(1 or B, labels)` of the experts.
    """

    def __init__(self, embedding: torch.Tensor, weights: torch.Tensor):
        self.embedding, self.weights = embedding, weights
        self.kept: dict[nn.Module, torch.Tensor] = {}

    def once(
        self, module: nn.Module, kernels: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """The kernels of a module; outside training made once for all tiles."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return kernels(self.weights)
        if module not in self.kept:
            self.kept[module] = kernels(self.weights)
        return self.kept[module]


class Averages:
    """What blocks average over a photo that is restored in tiles: measured on patches of it, which
    go through the network together, and then the same for all tiles.

    In each cell of a grid over the photo lies a patch of its own pixels. Where cells are larger
    than that, a reduced copy of the whole cell says what the patch has missed: its mean counts, and
    the patch corrects it by what reduction has changed (a control variate).

    Args:
        size: height and width of the photo in pixels.
        patch: side of the patches in pixels.
        grid: rows and columns of the cells. A batch holds the patches from the middles of the cells
            row by row and then, where cells are larger than a patch, the reduced cells.
    """

    def __init__(self, size: tuple[int, int], patch: int, grid: tuple[int, int]):
        self.size, self.patch, self.grid = size, patch, grid
        self.attention: dict[nn.Module, torch.Tensor] = {}
        self.box: tuple[int, int, int, int] | None = None

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """What runs within is the batch of patches."""
        self.attention.clear()
        with self.at(None):
            yield

    @contextmanager
    def at(self, box: tuple[int, int, int, int] | None) -> Iterator[None]:
        """What runs within is the tile with these first and last rows, first and last columns."""
        before = AVERAGES.set(self)
        self.box = box
        try:
            yield
        finally:
            AVERAGES.reset(before)

    def attend(self, block: "NAFBlock", mixed: torch.Tensor) -> torch.Tensor:
        """The attention of a block for patches `(B, C, 1, 1)`, or for a tile `(B, C, H, W)`."""
        if self.box is None:
            means = self.of_cells(mixed).T.unflatten(1, self.grid)[None]
            scale = mixed.shape[-1] / self.patch
            attention = block.channel_attention(self.of_windows(block, means, scale))
            self.attention[block] = attention
            patches = attention[0].flatten(1).T[..., None, None]
            return patches.repeat(len(mixed) // len(patches), 1, 1, 1)
        rows, columns = (
            between_cells(first / size, last / size, steps, cells).to(mixed)
            for first, last, size, steps, cells in zip(
                self.box[::2], self.box[1::2], self.size, mixed.shape[-2:], self.grid
            )
        )
        return rows @ self.attention[block] @ columns.T

    def of_cells(self, mixed: torch.Tensor) -> torch.Tensor:
        """The mean of each cell `(cells, C)`, by what lies inside the patches: near their borders
        they do not know the photo."""
        count = self.grid[0] * self.grid[1]
        native, reduced = mixed[:count], mixed[count:]
        means = middle_mean(native, 0.75, 0.75)
        if not len(reduced):
            return means
        sides = zip(self.size, self.grid)
        shares = [0.75 * min(1.0, self.patch * cells / side) for side, cells in sides]
        return middle_mean(reduced, 0.75, 0.75) + means - middle_mean(reduced, *shares)

    def of_windows(self, block: "NAFBlock", means: torch.Tensor, scale: float) -> torch.Tensor:
        """Means over the window of a block around each cell `(1, C, rows, columns)`; the block sees
        the photo scaled."""
        if block.window is None:
            return means.mean((2, 3), keepdim=True).expand_as(means)
        sides = [side * scale for side in self.size]
        window = max(block.window, block.share * max(sides))
        rows, columns = (
            windows_of_cells(min(1.0, window / side), cells).to(means)
            for side, cells in zip(sides, self.grid)
        )
        return rows @ means @ columns.T


def middle_mean(x: torch.Tensor, share_down: float, share_across: float) -> torch.Tensor:
    """Mean `(B, C)` of the middle of `(B, C, H, W)`, these shares of its sides."""
    weights = []
    for side, share in zip(x.shape[-2:], (share_down, share_across)):
        edges = torch.arange(side + 1, device=x.device) / side - 0.5
        covered = edges[1:].clamp(max=share / 2) - edges[:-1].clamp(min=-share / 2)
        weights.append(covered.clamp(min=0).to(x) / share)
    return torch.einsum("bchw,h,w->bc", x, *weights)


AVERAGES: ContextVar[Averages | None] = ContextVar("averages", default=None)


def windows_of_cells(share: float, cells: int) -> torch.Tensor:
    """Weights `(cells, cells)` of the mean over a window around the middle of each cell of a side;
    it takes a share of the side and moves inwards at its ends."""
    starts = ((torch.arange(cells) + 0.5) / cells - share / 2).clamp(0, 1 - share)[:, None]
    edges = torch.arange(cells + 1) / cells
    covered = torch.minimum(starts + share, edges[1:]) - torch.maximum(starts, edges[:-1])
    covered = covered.clamp(min=0)
    return covered / covered.sum(1, keepdim=True)


def between_cells(first: float, last: float, steps: int, cells: int) -> torch.Tensor:
    """Weights `(steps, cells)` that interpolate between the middles of the cells of a side, for
    steps from a share `first` of the side to `last`."""
    places = first + (last - first) * (torch.arange(steps) + 0.5) / steps
    places = (places * cells - 0.5).clamp(0, cells - 1)[:, None]
    return (1 - (places - torch.arange(cells)).abs()).clamp(min=0)


class NAFBlock(nn.Module):
    """Two gated residual branches, `(B, C, H, W)` -> the same: spatial mixing with channel
    attention, then feed-forward.

    Args:
        channels: of the features.
        window: side of the neighbourhood of channel attention outside training, see `NAFNet`.
        share: of the longer side that it grows to.
        labels: number of degradations that a condition may name; 0 builds a block that takes no
            condition.
        condition_width: numbers in the embedding of a condition.
        rank: of the experts.
    """

    def __init__(
        self,
        channels: int,
        window: int | None = None,
        share: float = 0.0,
        labels: int = 0,
        condition_width: int = 64,
        rank: int = 0,
    ):
        super().__init__()
        self.window, self.share = window, share
        self.norm1 = LayerNorm2d(channels)
        self.expand1 = ExpertConv2d(channels, 2 * channels, labels=labels, rank=rank)
        self.depthwise = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=2 * channels)
        self.channel_attention = nn.Conv2d(channels, channels, 1)
        self.project1 = ExpertConv2d(channels, channels, labels=labels, rank=rank)
        self.scale1 = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.norm2 = LayerNorm2d(channels)
        self.expand2 = ExpertConv2d(channels, 2 * channels, labels=labels, rank=rank)
        self.project2 = ExpertConv2d(channels, channels, labels=labels, rank=rank)
        self.scale2 = nn.Parameter(torch.zeros(1, channels, 1, 1))
        if labels:
            self.modulate = nn.Linear(condition_width, 2 * channels)
            nn.init.zeros_(self.modulate.weight)
            nn.init.zeros_(self.modulate.bias)

    def forward(self, x: torch.Tensor, wish: Wish | None = None) -> torch.Tensor:
        if in_tiles(x):
            return self.forward_in_tiles(x, wish)
        mixed = self.mix(x, wish)
        return self.feed_forward(x, mixed * self.attend(mixed), wish)

    def mix(self, x: torch.Tensor, wish: Wish | None = None) -> torch.Tensor:
        """Neighbouring pixels mixed."""
        x = self.norm1(x)
        if wish is not None:
            scale, shift = self.modulate(wish.embedding)[:, :, None, None].chunk(2, dim=1)
            x = torch.addcmul(shift, x, 1 + scale)
        return gate(self.depthwise(self.expand1(x, wish)))

    def attend(self, mixed: torch.Tensor) -> torch.Tensor:
        """The weight of each channel, of the whole image or around each pixel."""
        averages = None if torch.compiler.is_compiling() else AVERAGES.get()
        if averages is not None:
            return averages.attend(self, mixed)
        window = None if self.training else self.window
        if torch.onnx.is_in_onnx_export():
            return self.channel_attention(local_mean(mixed, window, self.share))
        means, border = window_means(mixed, window, self.share)
        attention = self.channel_attention(means)
        return attention if border is None else F.pad(attention, border, mode="replicate")

    def feed_forward(
        self, x: torch.Tensor, mixed: torch.Tensor, wish: Wish | None = None
    ) -> torch.Tensor:
        """What follows pixel by pixel."""
        x = torch.addcmul(x, self.project1(mixed, wish), self.scale1.to(mixed))
        y = gate(self.expand2(self.norm2(x), wish))
        return torch.addcmul(x, self.project2(y, wish), self.scale2.to(y))

    def forward_in_tiles(self, x: torch.Tensor, wish: Wish | None = None) -> torch.Tensor:
        mixed = torch.empty_like(x)
        for tile in tiles(x, 2 * x.shape[1], border=1):
            mixed[tile.place] = self.mix(x[tile.bordered], wish)[tile.inside]
        attention = self.attend(mixed).expand_as(x)
        for tile in tiles(x, 2 * x.shape[1], border=0):
            place = tile.place
            mixed[place] = self.feed_forward(x[place], mixed[place] * attention[place], wish)
        return mixed


class GuidanceFusion(nn.Module):
    """`F + strength * alpha * B([F, F_g])`: a block of the backbone's own kind on both feature
    maps, gated from zero.

    The backbone's features, which are small in its depths, are normalised before: the block's own
    norm sees both maps at once and would let the larger one drown the other.
    """

    def __init__(
        self, channels: int, guidance_channels: int, window: int | None = None, share: float = 0.0
    ):
        super().__init__()
        self.norm = LayerNorm2d(channels)
        self.block = NAFBlock(channels + guidance_channels, window, share)
        self.project = nn.Conv2d(channels + guidance_channels, channels, 1)
        self.alpha = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(
        self, x: torch.Tensor, guidance: torch.Tensor, strength: float | torch.Tensor
    ) -> torch.Tensor:
        guidance = fit(guidance, *x.shape[-2:]).to(x)
        return x + strength * self.alpha * self.project(
            self.block(torch.cat([self.norm(x), guidance], dim=1))
        )


def fit(features: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Crop features at the right and bottom, or repeat their border there, until they are `height`
    x `width`."""
    features = features[..., :height, :width]
    missing = (0, width - features.shape[-1], 0, height - features.shape[-2])
    return F.pad(features, missing, mode="replicate") if any(missing) else features


class Guidance(NamedTuple):
    """Guidance for a network.

    Attributes:
        features: `(B, C_level, H_level, W_level)` of each level, finest first.
        strength: multiplies what they add; a number, or `(B, 1, 1, 1)`, one for each image.
    """

    features: list[torch.Tensor]
    strength: float | torch.Tensor


def check_levels(depth: int, guidance_channels: tuple[int, ...] | None, fusion: str) -> None:
    """Refuse another way of `fusion` than there are, and guidance for another number of levels."""
    if fusion not in ("encoder", "decoder", "both"):
        raise ValueError(f"`fusion` must be encoder, decoder or both, got {fusion!r}.")
    if guidance_channels is not None and len(guidance_channels) != depth + 1:
        raise ValueError(
            f"`guidance_channels` must have {depth + 1} entries ({depth} levels and the "
            f"middle), got {len(guidance_channels)}."
        )


def check_degraded(degraded: torch.Tensor, channels: int) -> None:
    """Refuse what is not `(B, channels, H, W)`."""
    if degraded.ndim != 4 or degraded.shape[1] != channels:
        raise ValueError(f"`degraded` must be (B, {channels}, H, W), got {tuple(degraded.shape)}.")


def read_guidance(
    features: list[torch.Tensor] | None,
    strength: float | torch.Tensor,
    expected: tuple[int, ...] | None,
    network: str,
) -> Guidance | None:
    """Guidance whose features have the `expected` channels; `None` where it adds nothing."""
    if features is None or not (torch.is_tensor(strength) or strength):
        return None
    if expected is None:
        raise ValueError(
            f"This {network} takes no guidance; build it with `guidance_channels`, or pass no "
            "`guidance_features`."
        )
    channels = [level.shape[1] for level in features]
    if channels != list(expected):
        raise ValueError(
            f"`guidance_features` must have {list(expected)} channels, finest level first, got "
            f"{channels}."
        )
    return Guidance(features, strength)


def fuse(
    x: torch.Tensor,
    fusions: nn.ModuleList,
    guidance: Guidance | None,
    level: int,
    deepest_first: bool = False,
) -> torch.Tensor:
    """Let the guidance of a level into its features, where there are `fusions`."""
    if guidance is None or not len(fusions):
        return x
    fusion = fusions[-1 - level if deepest_first else level]
    return fusion(x, guidance.features[level], guidance.strength)


def read_condition(
    condition: torch.Tensor | None,
    labels: tuple[str, ...] | None,
    like: torch.Tensor,
    network: str,
) -> torch.Tensor | None:
    """A condition `(1 or B, len(labels) + 1)` in the precision of `like` `(B, ...)`; without one
    "find out yourself". `None` for a network without labels."""
    if labels is None and condition is None:
        return None
    if labels is None:
        raise ValueError(
            f"This {network} is blind: it was built without `labels` and cannot be told what to "
            "remove."
        )
    count = len(labels) + 1
    if condition is None:
        condition = F.one_hot(torch.tensor([count - 1], device=like.device), count)
    elif condition.ndim != 2 or condition.shape[1] != count or len(condition) not in (1, len(like)):
        raise ValueError(
            f"`condition` must be ({len(like)}, {count}): one number for each of "
            f"{', '.join(labels)}, and a last one for 'find out yourself'; got "
            f"{tuple(condition.shape)}."
        )
    return condition.to(like)


def check_pooling(window: int | None, share: float) -> None:
    """Refuse a share outside 0 to 1, and one without a window that it could let grow."""
    if not 0 <= share <= 1:
        raise ValueError(f"`pooling_share` must lie in 0 to 1, got {share}.")
    if share and window is None:
        raise ValueError(
            "`pooling_share` lets a `pooling_window` grow; give that too, or neither to "
            "average over the image."
        )


def check_labels(labels: tuple[str, ...] | None, expert_rank: int) -> None:
    """Refuse labels that are none or stand twice, and experts without labels."""
    if labels is not None and (not labels or len(set(labels)) < len(labels)):
        raise ValueError(
            f"`labels` must name each degradation once, got {list(labels)}; `None` builds a "
            "blind network."
        )
    if expert_rank and labels is None:
        raise ValueError(
            f"`expert_rank` {expert_rank} needs `labels`: there is one expert for each."
        )


def embed_condition(entries: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(entries, width), nn.GELU(), nn.Linear(width, width))


def up(channels: int) -> nn.Sequential:
    """To twice the size and half as many channels, which are then `channels`."""
    return nn.Sequential(nn.Conv2d(2 * channels, 4 * channels, 1, bias=False), nn.PixelShuffle(2))


class NAFNet(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """Restores degraded images of any size, alone or with the features of a guidance image.

    Args:
        in_channels: channels of the image.
        width: channels of the finest level; each deeper level doubles them.
        encoder_depths: blocks of each encoder level, finest first; each is followed by a halving of
            the size.
        middle_depth: blocks below the deepest level.
        decoder_depths: blocks of each decoder level, deepest first.
        downscale: fold squares of this many pixels into channels first (pixel unshuffle); 1 is the
            network of the paper.
        guidance_channels: channels of the guidance features, one for each encoder level and one for
            the middle; `None` builds a network that takes no guidance.
        fusion: where guidance enters: `encoder` (and middle), `decoder`, or `both`.
        pooling_window: side in pixels of the neighbourhood over which channel attention averages
            outside training, some times the training crop; `None` averages over the whole image,
            however large (Chu et al., *Improving Image Restoration by Revisiting Global Information
            Aggregation*, ECCV 2022).
        pooling_share: lets that neighbourhood grow with the photo, to at least this share of its
            longer side: veils and darkness are matters of the whole photo, however many pixels it
            has.
        labels: degradations that the network can be told to remove, in the order of the condition's
            entries; `None` builds a network that always finds out for itself.
        condition_width: numbers in the embedding of a condition.
        expert_rank: rank of the experts, one for each label in each block; 0 builds none.
        border: what fills sides up to a multiple of the coarsest level: the photo's border
            (`replicate`) or, as the published network does, `zeros`.
    """

    _supports_gradient_checkpointing = True
    _repeated_blocks = ["NAFBlock"]
    _no_split_modules = ["NAFBlock"]

    _lora_layers = ["expand1", "expand2", "project1", "project2"]

    # Of a matcher that costs a small part of the network, finest level first.
    guidance_widths = (8, 16, 32, 48, 64, 96)

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        width: int = 32,
        encoder_depths: tuple[int, ...] = (1, 1, 1, 28),
        middle_depth: int = 1,
        decoder_depths: tuple[int, ...] = (1, 1, 1, 1),
        downscale: int = 1,
        guidance_channels: tuple[int, ...] | None = None,
        fusion: str = "both",
        pooling_window: int | None = None,
        pooling_share: float = 0.0,
        labels: tuple[str, ...] | None = None,
        condition_width: int = 64,
        expert_rank: int = 0,
        border: str = "replicate",
    ):
        super().__init__()
        if border not in ("replicate", "zeros"):
            raise ValueError(f"`border` must be replicate or zeros, got {border!r}.")
        depth = len(encoder_depths)
        if len(decoder_depths) != depth:
            raise ValueError(
                f"`decoder_depths` must have {depth} entries like `encoder_depths`, got "
                f"{len(decoder_depths)}."
            )
        check_levels(depth, guidance_channels, fusion)
        check_pooling(pooling_window, pooling_share)
        check_labels(labels, expert_rank)
        pixels = in_channels * downscale**2
        widths = [width * 2**level for level in range(depth + 1)]
        windows = [
            pooling_window and max(1, pooling_window // (downscale * 2**level))
            for level in range(depth + 1)
        ]
        wishes = (len(labels or ()), condition_width, expert_rank)

        def blocks(level: int, count: int) -> nn.ModuleList:
            options = (widths[level], windows[level], pooling_share, *wishes)
            return nn.ModuleList(NAFBlock(*options) for _ in range(count))

        def fusion_at(level: int) -> GuidanceFusion:
            guidance_width = guidance_channels[level]
            return GuidanceFusion(widths[level], guidance_width, windows[level], pooling_share)

        upwards = range(depth - 1, -1, -1)
        self.intro = nn.Conv2d(pixels, width, 3, padding=1)
        self.encoders = nn.ModuleList(map(blocks, range(depth), encoder_depths))
        self.downs = nn.ModuleList(nn.Conv2d(c, 2 * c, 2, stride=2) for c in widths[:-1])
        self.middle = blocks(depth, middle_depth)
        self.ups = nn.ModuleList(up(widths[level]) for level in upwards)
        self.decoders = nn.ModuleList(map(blocks, upwards, decoder_depths))
        self.outro = nn.Conv2d(width, pixels, 3, padding=1)
        if labels is not None:
            self.condition_embedding = embed_condition(len(labels) + 1, condition_width)
        self.encoder_fusions, self.decoder_fusions = nn.ModuleList(), nn.ModuleList()
        if guidance_channels is not None and fusion != "decoder":
            self.encoder_fusions.extend(map(fusion_at, range(depth + 1)))
        if guidance_channels is not None and fusion != "encoder":
            self.decoder_fusions.extend(map(fusion_at, upwards))
        self.gradient_checkpointing = False

    @property
    def size_multiple(self) -> int:
        """Sides are padded to a multiple of this many pixels."""
        return self.config.downscale * 2 ** len(self.config.encoder_depths)

    @staticmethod
    def share_averages(size: tuple[int, int], patch: int, grid: tuple[int, int]) -> Averages:
        """What tiles of a photo have in common, see `Averages`."""
        return Averages(size, patch, grid)

    def forward(
        self,
        degraded: torch.Tensor,
        guidance_features: list[torch.Tensor] | None = None,
        strength: float | torch.Tensor = 1.0,
        condition: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Restore images.

        Args:
            degraded: `(B, C, H, W)` in [0, 1], any size.
            guidance_features: one `(B, C_level, H_level, W_level)` for each level, finest first, as
                a matcher returns them.
            strength: multiplies what guidance adds; 0 leaves the bare backbone. A number, or `(B,
                1, 1, 1)`, one for each image.
            condition: `(B, len(labels) + 1)`, or `(1, ...)` for all images alike: 1 for each
                degradation to remove, and 1 in the last entry for "find out yourself". All zeros:
                remove nothing. `None`: find out yourself.

        Returns:
            restored images `(B, C, H, W)`, not clipped.

        Raises:
            ValueError: if guidance is given to a network built without it, or with another number
                of levels; likewise a condition.
        """
        check_degraded(degraded, self.config.in_channels)
        expected = self.config.guidance_channels
        guidance = read_guidance(guidance_features, strength, expected, type(self).__name__)
        wish = self._read_wish(condition, degraded)
        height, width = degraded.shape[-2:]
        multiple = self.size_multiple
        sides = height + -height % multiple, width + -width % multiple
        if self.config.border == "zeros":
            image = F.pad(degraded, (0, sides[1] - width, 0, sides[0] - height))
        else:
            image = fit(degraded, *sides)

        folded = F.pixel_unshuffle(image, self.config.downscale)
        # A third faster on processors.
        x = self.intro(folded.contiguous(memory_format=torch.channels_last))
        skips = []
        for level, blocks in enumerate(self.encoders):
            x = fuse(x, self.encoder_fusions, guidance, level)
            x = self._run(blocks, x, wish)
            skips.append(x)
            x = self.downs[level](x)
        depth = len(self.encoders)
        x = fuse(x, self.encoder_fusions, guidance, depth)
        x = self._run(self.middle, x, wish)
        for index, blocks in enumerate(self.decoders):
            x = self.ups[index](x) + skips.pop()
            x = fuse(x, self.decoder_fusions, guidance, depth - 1 - index, deepest_first=True)
            x = self._run(blocks, x, wish)
        restored = image + F.pixel_shuffle(self.outro(x), self.config.downscale)
        return restored[..., :height, :width]

    def _read_wish(self, condition: torch.Tensor | None, degraded: torch.Tensor) -> Wish | None:
        condition = read_condition(condition, self.config.labels, degraded, type(self).__name__)
        if condition is None:
            return None
        return Wish(self.condition_embedding(condition), condition[:, :-1])

    def _run(self, group: Iterable[nn.Module], x: torch.Tensor, *inputs) -> torch.Tensor:
        for block in group:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                x = self._gradient_checkpointing_func(block, x, *inputs)
            else:
                x = block(x, *inputs)
        return x
