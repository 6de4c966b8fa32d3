"""Restormer and two of its kin: PromptIR, which puts learned prompts between the levels of its
decoder, and DRSformer, whose attention keeps only the best matches.

Zamir et al., *Restormer: Efficient Transformer for High-Resolution Image Restoration* (CVPR 2022,
arXiv 2111.09881).
Potlapalli et al., *PromptIR: Prompting for All-in-One Blind Image Restoration* (NeurIPS 2023, arXiv
2306.13090).
Chen et al., *Learning A Sparse Transformer Network for Effective Image Deraining* (CVPR 2023, arXiv
2303.11950).
Its experts are those of Suganuma et al., *Attention-based Adaptive Selection of Operations for
Image Restoration in the Presence of Unknown Combined Distortions* (CVPR 2019).
Guidance enters as in Lin et al. (CVPR 2024).

Written from the papers. Attention is over channels, so its map is small and commutes with the
projection behind it: both are applied to the values as one matrix. The four sparse attention maps
of DRSformer are sums over the same ranking, so one sorted softmax gives all of them at once.
Convolutions of channel pairs are done as two depthwise ones on channels sorted by parity. What
experts do last is one matrix with what mixes them. Everything works on channels-last memory, where
layer normalisation needs no reshuffling. On a processor each block goes tile by tile.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from torch import nn

TILE = 3 * 2**19  # numbers in a tile of feature maps, 6 MiB in float32
KEPT = (1 / 2, 2 / 3, 3 / 4, 4 / 5)  # shares of the channels that sparse attention maps keep
MIDDLE = 0.9  # share of the sides of a patch whose pixels count: near borders it knows little


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of `(B, C, H, W)`; without bias the mean is not
    subtracted either."""

    def __init__(self, channels: int, bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.permute(0, 2, 3, 1)
        if self.bias is not None:
            x = F.layer_norm(x, self.weight.shape, self.weight, self.bias)
        else:
            x = x * (torch.rsqrt(x.var(-1, keepdim=True, correction=0) + 1e-5) * self.weight)
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


def patches_in_one(x: torch.Tensor) -> int:
    """By how much smaller tiles must be, where all patches of a photo are at work together."""
    return 1 if shared() is None else max(1, len(x) // 8)


def in_tiles(x: torch.Tensor) -> bool:
    """Whether blocks go tile by tile: in inference on a processor, where whole maps would pass
    through memory again and again."""
    return (
        x.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling()
    )


def transform(x: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """Channels of `(B, C, H, W)` by the matrix `(B, C_out, C)` of each image: as a convolution,
    which processors do twice as fast."""
    if in_tiles(x):
        return torch.cat(
            [
                F.conv2d(image, matrix[..., None, None])
                for image, matrix in zip(x.split(1), matrices)
            ]
        )
    pixels = x.permute(0, 2, 3, 1).flatten(1, 2) @ matrices.transpose(1, 2)
    return pixels.unflatten(1, x.shape[-2:]).permute(0, 3, 1, 2)


class Kernel(NamedTuple):
    """What a convolution needs.

    Attributes:
        weight: `(C_out, C_in / groups, k, k)`.
        bias: `(C_out,)`.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None


def kernel_of(layer: nn.Module) -> Kernel:
    """Kernel of a convolution, adapters of one of single pixels included."""
    base = getattr(layer, "base_layer", layer)
    bias = torch.zeros_like(base.weight[:, 0, 0, 0]) if base.bias is None else base.bias
    if layer is base:
        return Kernel(base.weight, bias)
    unit = torch.eye(base.in_channels, device=bias.device, dtype=bias.dtype)[..., None, None]
    return Kernel((layer(unit) - bias[:, None, None]).transpose(0, 1), bias)


def depthwise(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=len(weight))


class Averages:
    """What a network averages over a photo that is restored in tiles: measured on patches of it,
    which go through the network together, and then the same for all tiles.

    In each cell of a grid over the photo lies a patch of its own pixels. Where cells are larger
    than that, a reduced copy of the whole cell says what the patch has missed: the difference
    between the reduced cell and that part of it which the patch shows is added.

    Args:
        size: height and width of the photo in pixels.
        patch: side of the patches in pixels.
        grid: rows and columns of the cells. A batch holds the patches from the middles of the cells
            row by row and then, where cells are larger than a patch, the reduced cells.
    """

    def __init__(self, size: tuple[int, int], patch: int, grid: tuple[int, int]):
        self.size, self.patch, self.grid = size, patch, grid
        self.kept: dict[nn.Module, torch.Tensor] = {}
        self.boxes: list[Box] = []

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """What runs within is the batch of patches."""
        self.kept.clear()
        patches = self.boxes_of_cells([self.patch / side for side in self.size])
        cells = self.boxes_of_cells([1 / cells for cells in self.grid])
        with self.within([*patches, *cells]):
            yield

    @contextmanager
    def at(self, box: tuple[int, int, int, int]) -> Iterator[None]:
        """What runs within is the tile with these first and last rows, first and last columns."""
        (top, bottom, left, right), (height, width) = box, self.size
        with self.within([Box(top / height, bottom / height, left / width, right / width)]):
            yield

    @contextmanager
    def within(self, boxes: list["Box"]) -> Iterator[None]:
        before, self.boxes = AVERAGES.set(self), boxes
        try:
            yield
        finally:
            AVERAGES.reset(before)

    def boxes_of_cells(self, shares: list[float]) -> list["Box"]:
        """Around the middle of each cell, these shares of the sides of the photo."""
        ends = []
        for cells, share in zip(self.grid, shares):
            middles = [(cell + 0.5) / cells for cell in range(cells)]
            share = min(share, 1.0)
            starts = [min(max(middle - share / 2, 0.0), 1 - share) for middle in middles]
            ends.append([(start, start + share) for start in starts])
        return [Box(*rows, *columns) for rows in ends[0] for columns in ends[1]]

    def weights(self, x: torch.Tensor) -> torch.Tensor:
        """How much each pixel of the patches `(B, C, H, W)` counts, `(B, 1, H, W)`; in all 1."""
        count = self.grid[0] * self.grid[1]
        middle = middle_weights(x, MIDDLE, MIDDLE) / count
        sides = zip(self.size, self.grid)
        shares = [MIDDLE * min(1.0, self.patch * cells / side) for side, cells in sides]
        shown = middle_weights(x, *shares) / count
        missed = [middle - shown] * (len(x) - count)
        return torch.stack([middle] * count + missed)[:, None]

    def mean(self, module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """What a module takes for the mean of `(B, C, H, W)`, `(B, C)`: that of the photo."""
        if module not in self.kept:
            self.kept[module] = (x.float() * self.weights(x)).sum((0, 2, 3))[None]
        return self.kept[module].to(x).expand(len(x), -1)

    def stretch(self, image: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """What the images of this batch show of `(B, C, h, w)`, which is as large as the photo."""
        shown = []
        for one, box in zip(image, self.boxes):
            rows = between(box.top, box.bottom, height, image.shape[-2]).to(image)
            columns = between(box.left, box.right, width, image.shape[-1]).to(image)
            shown.append(rows @ one @ columns.T)
        return torch.stack(shown)


class Box(NamedTuple):
    """Where an image lies within a photo, in shares of its height and width."""

    top: float
    bottom: float
    left: float
    right: float


AVERAGES: ContextVar[Averages | None] = ContextVar("averages", default=None)


def shared() -> Averages | None:
    """What the tiles of a photo share, while one is at work."""
    return None if torch.compiler.is_compiling() else AVERAGES.get()


def middle_weights(x: torch.Tensor, share_down: float, share_across: float) -> torch.Tensor:
    """Weights `(H, W)` of the mean over the middle of `(B, C, H, W)`, these shares of its sides."""
    weights = []
    for side, share in zip(x.shape[-2:], (share_down, share_across)):
        edges = torch.arange(side + 1, device=x.device) / side - 0.5
        covered = edges[1:].clamp(max=share / 2) - edges[:-1].clamp(min=-share / 2)
        weights.append(covered.clamp(min=0) / share)
    return torch.outer(*weights)


def between(first: float, last: float, steps: int, size: int) -> torch.Tensor:
    """Weights `(steps, size)` that interpolate linearly within a side of `size` pixels, from a
    share `first` of it to `last`."""
    places = first + (last - first) * (torch.arange(steps) + 0.5) / steps
    places = (places * size - 0.5).clamp(0, size - 1)[:, None]
    return (1 - (places - torch.arange(size)).abs()).clamp(min=0)


def mean_of(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The mean of `(B, C, H, W)` over the image, or over the photo that it is a tile of, `(B,
    C)`."""
    averages = shared()
    return x.mean((2, 3)) if averages is None else averages.mean(module, x)


class ChannelAttention(nn.Module):
    """Attention between channels ("transposed"): each of `heads` groups mixes its channels by the
    cosine of their images."""

    def __init__(self, channels: int, heads: int, bias: bool = False):
        super().__init__()
        inner = 3 * channels
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Conv2d(channels, inner, 1, bias=bias)
        self.depthwise = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=bias)
        self.project = nn.Conv2d(channels, channels, 1, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.split(x)
        averages = shared()
        if averages is None:
            return self.mix(self.weigh(*self.compare(query, key)), value)
        if self not in averages.kept:
            compared = self.compare(query, key, averages.weights(x))
            self.keep(averages, compared)
        return self.mix(averages.kept[self].expand(len(x), -1, -1, -1), value)

    def keep(self, averages: Averages, compared: Iterable[torch.Tensor]) -> None:
        """Let all tiles of a photo attend by what was compared on its patches."""
        products, *lengths = (part.float().sum(0, keepdim=True) for part in compared)
        # What was missed may have been estimated below nothing.
        averages.kept[self] = self.weigh(products, *(squares.clamp(min=0) for squares in lengths))

    def split(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Queries, keys and values, `(B, C, H, W)` each."""
        return self.depthwise(self.qkv(x)).chunk(3, dim=1)

    def compare(
        self, query: torch.Tensor, key: torch.Tensor, weights: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Products of the channels of each head `(B, heads, c, c)`, and their squared lengths `(B,
        heads, c)`: sums over pixels, weighed by `(B, 1, H, W)` if given."""
        queries, keys = self.divide(query), self.divide(key)
        left, right = queries, keys
        if weights is not None:
            weights = weights.flatten(2).transpose(1, 2).to(query)
            left, right = [q * weights for q in queries], [k * weights for k in keys]
        products = torch.stack([q.transpose(1, 2) @ k for q, k in zip(left, keys)], dim=1)
        return products, squared_lengths(queries, left), squared_lengths(keys, right)

    def divide(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The pixels of each head, `(B, HW, c)`."""
        return x.permute(0, 2, 3, 1).flatten(1, 2).chunk(self.heads, dim=2)

    def weigh(
        self, products: torch.Tensor, query_lengths: torch.Tensor, key_lengths: torch.Tensor
    ) -> torch.Tensor:
        """How much of each channel goes into each other, `(B, heads, c, c)`."""
        lengths = [squares.sqrt().clamp(min=1e-12) for squares in (query_lengths, key_lengths)]
        cosines = products / (lengths[0][..., :, None] * lengths[1][..., None, :])
        return self.normalise(cosines * self.temperature)

    def normalise(self, logits: torch.Tensor) -> torch.Tensor:
        """Weights from logits, `(B, heads, c, c)` both."""
        return logits.softmax(-1)

    def mix(self, weights: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Values mixed by `weights`, and projected."""
        if not isinstance(self.project, nn.Conv2d):  # an adapter sits on it
            values = value.unflatten(1, (self.heads, -1))
            mixed = torch.einsum("bhde,bhenm->bhdnm", weights.to(value), values)
            return self.project(mixed.flatten(1, 2))
        out_weight = self.project.weight.view(len(self.project.weight), self.heads, -1)
        matrices = torch.einsum("ohd,bhde->bohe", out_weight, weights.to(out_weight)).flatten(2)
        mixed = transform(value, matrices.to(value))
        if self.project.bias is None:
            return mixed
        return mixed + self.project.bias.to(mixed)[:, None, None]


def squared_lengths(heads: Iterable[torch.Tensor], weighed: Iterable[torch.Tensor]) -> torch.Tensor:
    """Of the channels of each head `(B, HW, c)`, one factor of which is weighed, as `(B, heads,
    c)`."""
    return torch.stack([(x * y).sum(1) for x, y in zip(heads, weighed)], dim=1)


class SparseChannelAttention(ChannelAttention):
    """Attention between channels of which each mixes its best matches only: the half, 2/3, 3/4 and
    4/5 of them, in learned shares."""

    def __init__(self, channels: int, heads: int, bias: bool = False):
        super().__init__(channels, heads, bias)
        self.shares = nn.ParameterList(nn.Parameter(torch.tensor([0.2])) for _ in KEPT)

    def weigh(
        self, products: torch.Tensor, query_lengths: torch.Tensor, key_lengths: torch.Tensor
    ) -> torch.Tensor:
        """The same, in float32."""
        return super().weigh(products.float(), query_lengths.float(), key_lengths.float())

    def normalise(self, logits: torch.Tensor) -> torch.Tensor:
        """The weighed sum of the softmax over the largest logits of each row `(B, heads, c, c)`,
        for every share that is kept."""
        ranked, places = logits.sort(dim=-1, descending=True)
        powers = (ranked - ranked[..., :1]).exp()
        sums = powers.cumsum(-1)
        factors = torch.zeros_like(powers)
        for share, part in zip(self.shares, KEPT):
            count = int(logits.shape[-1] * part)
            inside = torch.arange(logits.shape[-1], device=logits.device) < count
            factors = factors + inside * (share.float() / sums[..., count - 1 : count])
        return torch.zeros_like(logits).scatter(-1, places, powers * factors)


class GatedFeedForward(nn.Module):
    """Two branches with depthwise convolutions, one gating the other through GELU."""

    def __init__(self, channels: int, expansion: float, bias: bool = False):
        super().__init__()
        hidden = int(channels * expansion)
        self.expand = nn.Conv2d(channels, 2 * hidden, 1, bias=bias)
        self.depthwise = nn.Conv2d(
            2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden, bias=bias
        )
        self.reduce = nn.Conv2d(hidden, channels, 1, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, value = self.depthwise(self.expand(x)).chunk(2, dim=1)
        if not torch.is_grad_enabled():
            gate = gate.contiguous(memory_format=torch.channels_last)  # GELU is three times as fast
        return self.reduce(F.gelu(gate) * value)


class PairedConv(nn.Module):
    """Convolution in groups of two channels that gives one each: `(B, 2 * groups, H, W)` -> `(B,
    groups, H, W)`."""

    def __init__(self, groups: int, kernel: int, bias: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(groups, 2, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(groups)) if bias else None
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        groups, _, kernel, _ = self.weight.shape
        options = {"padding": kernel // 2, "groups": groups}
        first = F.conv2d(x[:, 0::2], self.weight[:, :1], self.bias, **options)
        return first + F.conv2d(x[:, 1::2], self.weight[:, 1:], **options)


class Parities(NamedTuple):
    """Kernels of the even and of the odd channels."""

    even: Kernel
    odd: Kernel


@dataclass
class MixedScaleHalf:
    """Kernels of that half of a `MixedScaleFeedForward` which one `PairedConv` merges.

    Attributes:
        expand: of single pixels, into the channels of the half.
        fine: depthwise, 3 x 3.
        coarse: depthwise, 5 x 5.
        merge_fine: depthwise, of pairs of fine channels.
        merge_coarse: depthwise, of pairs of coarse channels.
        reduce_fine: of single pixels, from the merged fine channels.
        reduce_coarse: of single pixels, from the merged coarse channels.
    """

    expand: Parities
    fine: Parities
    coarse: Parities
    merge_fine: Parities
    merge_coarse: Parities
    reduce_fine: Kernel
    reduce_coarse: Kernel


class MixedScaleFeedForward(nn.Module):
    """Two branches of depthwise convolutions, 3 x 3 and 5 x 5, that exchange half of their channels
    in between."""

    def __init__(self, channels: int, expansion: float, bias: bool = False):
        super().__init__()
        hidden = int(channels * expansion)
        both = 2 * hidden
        self.expand = nn.Conv2d(channels, both, 1, bias=bias)
        self.depthwise3 = nn.Conv2d(both, both, 3, padding=1, groups=both, bias=bias)
        self.depthwise5 = nn.Conv2d(both, both, 5, padding=2, groups=both, bias=bias)
        self.merge3 = PairedConv(hidden, 3, bias)
        self.merge5 = PairedConv(hidden, 5, bias)
        self.reduce = nn.Conv2d(both, channels, 1, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.expand(x)
        first, second = exchange(F.relu_(self.depthwise3(x)), F.relu_(self.depthwise5(x)))
        merged = torch.cat([F.relu_(self.merge3(first)), F.relu_(self.merge5(second))], dim=1)
        return self.reduce(merged)

    def halves(self) -> list[MixedScaleHalf]:
        """The kernels of both halves, even and odd channels apart: pairs become sums of two
        depthwise convolutions, and no feature maps are joined or cut.

        Where a half is odd, the pair in its middle has a channel of both branches. The sum of its
        fine one takes in the other.
        """
        width = -(-len(self.merge3.weight[0::2]) // 16) * 16
        expands = halve(kernel_of(self.expand), width)
        fines = halve(kernel_of(self.depthwise3), width)
        coarses = halve(kernel_of(self.depthwise5), width)
        reduce = kernel_of(self.reduce)
        biases = (reduce.bias, None)
        halves = []
        for index, merge in enumerate((self.merge3, self.merge5)):
            merge_fine, merge_coarse = split_pairs(merge, width)
            columns = split_columns(reduce.weight.chunk(2, dim=1)[index], width)
            halves.append(
                MixedScaleHalf(
                    expand=expands[index],
                    fine=fines[index],
                    coarse=coarses[index],
                    merge_fine=merge_fine,
                    merge_coarse=merge_coarse,
                    reduce_fine=Kernel(columns[0], biases[index]),
                    reduce_coarse=Kernel(columns[1], None),
                )
            )
        return halves

    def work(self, x: torch.Tensor, halves: list[MixedScaleHalf]) -> torch.Tensor:
        """The same as `forward`, from `halves`."""
        out = 0
        for half in halves:
            even, odd = F.conv2d(x, *half.expand.even), F.conv2d(x, *half.expand.odd)
            fine, coarse = self.merge(half, even, odd)
            out = (
                out
                + F.conv2d(F.relu_(fine), *half.reduce_fine)
                + F.conv2d(F.relu_(coarse), *half.reduce_coarse)
            )
        return out

    def merge(
        self, half: MixedScaleHalf, even: torch.Tensor, odd: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Merged fine and coarse channels, from the even and the odd ones of a half."""
        fine = depthwise(F.relu_(depthwise(even, *half.fine.even)), *half.merge_fine.even)
        fine += depthwise(F.relu_(depthwise(odd, *half.fine.odd)), *half.merge_fine.odd)
        coarse = depthwise(F.relu_(depthwise(even, *half.coarse.even)), *half.merge_coarse.even)
        rest = depthwise(F.relu_(depthwise(odd, *half.coarse.odd)), *half.merge_coarse.odd)
        middle, mixed_pairs = divmod(len(self.merge3.weight), 2)
        coarse[:, mixed_pairs:] += rest[:, : rest.shape[1] - mixed_pairs]
        if mixed_pairs:
            fine[:, middle] += coarse[:, 0]
        return fine, coarse


def exchange(fine: torch.Tensor, coarse: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The first halves of the channels of both together, and the second halves."""
    fine_halves, coarse_halves = fine.chunk(2, dim=1), coarse.chunk(2, dim=1)
    return (
        torch.cat([fine_halves[0], coarse_halves[0]], dim=1),
        torch.cat([fine_halves[1], coarse_halves[1]], dim=1),
    )


def fill(rows: torch.Tensor, width: int) -> torch.Tensor:
    """Zeros added to `(C, ...)` until there are `width` rows, which registers hold."""
    return F.pad(rows, [0, 0] * (rows.ndim - 1) + [0, width - len(rows)])


def halve(kernel: Kernel, width: int) -> list[Parities]:
    """The kernels of both halves of the output channels, even and odd ones apart, filled up."""
    halves = []
    for weight, bias in zip(kernel.weight.chunk(2), kernel.bias.chunk(2)):
        even = Kernel(fill(weight[0::2], width), fill(bias[0::2], width))
        odd = Kernel(fill(weight[1::2], width), fill(bias[1::2], width))
        halves.append(Parities(even, odd))
    return halves


def split_pairs(layer: PairedConv, width: int) -> tuple[Parities, Parities]:
    """The kernels of a `PairedConv` for its fine channels, which come first, and for its coarse
    ones, filled up."""
    weight, bias = kernel_of(layer)
    late, mixed_pairs = divmod(len(weight), 2)
    even = late + mixed_pairs
    fine = Parities(
        Kernel(fill(weight[:even, :1], width), fill(bias[:even], width)),
        Kernel(fill(weight[:late, 1:], width), None),
    )
    rest = fill(F.pad(bias[even:], (mixed_pairs, 0)), width)
    coarse = Parities(
        Kernel(fill(weight[late:, mixed_pairs : mixed_pairs + 1], width), rest),
        Kernel(fill(weight[even:, 1 - mixed_pairs : 2 - mixed_pairs], width), None),
    )
    return fine, coarse


def split_columns(weight: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix `(C_out, hidden, 1, 1)` for merged fine and for merged coarse channels, filled
    up."""
    rows = weight.transpose(0, 1)
    late, mixed_pairs = divmod(len(rows), 2)
    even = late + mixed_pairs
    coarse = torch.cat([torch.zeros_like(rows[:mixed_pairs]), rows[even:]])
    return fill(rows[:even], width).transpose(0, 1), fill(coarse, width).transpose(0, 1)


class RestormerBlock(nn.Module):
    """`x + attention(norm(x))`, then `x + feed_forward(norm(x))`; `(B, C, H, W)` -> the same.

    Inference on a processor goes tile by tile: between its convolutions a block has many times the
    channels of `x`, which would pass through memory again and again.
    """

    attention_class: type[nn.Module] = ChannelAttention
    feed_forward_class: type[nn.Module] = GatedFeedForward

    def __init__(
        self,
        channels: int,
        heads: int,
        expansion: float = 2.66,
        norm_bias: bool = True,
        bias: bool = False,
    ):
        super().__init__()
        self.norm1 = ChannelNorm(channels, norm_bias)
        self.attention = self.attention_class(channels, heads, bias)
        self.norm2 = ChannelNorm(channels, norm_bias)
        self.feed_forward = self.feed_forward_class(channels, expansion, bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if in_tiles(x):
            return self.feed_forward_in_tiles(self.attention_in_tiles(x))
        x = x + self.attention(self.norm1(x))
        return x + self.feed_forward(self.norm2(x))

    def attention_in_tiles(self, x: torch.Tensor) -> torch.Tensor:
        values, sums, averages = torch.empty_like(x), (0, 0, 0), shared()
        known = None if averages is None else averages.kept.get(self.attention)
        counts = None if averages is None or known is not None else averages.weights(x)
        channels = 3 * x.shape[1] * patches_in_one(x)
        for tile in tiles(x, channels, border=1):
            parts = self.attention.split(self.norm1(x[tile.bordered]))
            query, key, value = (part[tile.inside] for part in parts)
            values[tile.place] = value
            if known is None:
                counted = None if counts is None else counts[tile.place]
                compared = self.attention.compare(query, key, counted)
                sums = [part.float() + total for part, total in zip(compared, sums)]
        if averages is None:
            weights = self.attention.weigh(*sums)
        else:
            if known is None:
                self.attention.keep(averages, sums)
            weights = averages.kept[self.attention].expand(len(x), -1, -1, -1)
        for tile in tiles(x, channels, border=1):
            place = tile.place
            values[place] = x[place] + self.attention.mix(weights, values[place])
        return values

    def feed_forward_in_tiles(self, x: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        channels = self.feed_forward.depthwise.in_channels * patches_in_one(x)
        for tile in tiles(x, channels, border=1):
            added = self.feed_forward(self.norm2(x[tile.bordered]))
            out[tile.place] = x[tile.place] + added[tile.inside]
        return out


class SparseTransformerBlock(RestormerBlock):
    """The same with the attention and the feed-forward of DRSformer."""

    attention_class = SparseChannelAttention
    feed_forward_class = MixedScaleFeedForward

    def feed_forward_in_tiles(self, x: torch.Tensor) -> torch.Tensor:
        out, halves = torch.empty_like(x), self.feed_forward.halves()
        channels = len(self.feed_forward.merge3.weight) * patches_in_one(x)
        for tile in tiles(x, channels, border=4):
            added = self.feed_forward.work(self.norm2(x[tile.bordered]), halves)
            out[tile.place] = x[tile.place] + added[tile.inside]
        return out


def expert(channels: int, kernel: int, dilation: int, depth: int) -> nn.Sequential:
    """Depthwise and pointwise convolution, `depth` times with ReLU in between."""
    spatial = {"padding": dilation * (kernel // 2), "dilation": dilation, "groups": channels}
    layers = []
    for _ in range(depth):
        layers += [
            nn.Conv2d(channels, channels, kernel, bias=False, **spatial),
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers[:-1])


class ExpertLayer(nn.Module):
    """Eight operations side by side, weighed, joined and reduced: separable convolutions, dilated
    ones, and the mean of 3 x 3."""

    COUNT = 8

    def __init__(self, channels: int):
        super().__init__()
        separable = [expert(channels, kernel, dilation=1, depth=2) for kernel in (1, 3, 5, 7)]
        dilated = [expert(channels, kernel, dilation=2, depth=1) for kernel in (3, 5, 7)]
        self.experts = nn.ModuleList(separable + dilated)
        self.mix = nn.Conv2d(self.COUNT * channels, channels, 1, bias=False)

    def forward(self, x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        matrices = self.join(weights)
        if not in_tiles(x):
            return F.relu(self.work(x, matrices))
        out = torch.empty_like(x)
        for tile in tiles(x, 2 * x.shape[1] * patches_in_one(x), border=6):
            out[tile.place] = F.relu_(self.work(x[tile.bordered], matrices)[tile.inside])
        return out

    def join(self, weights: torch.Tensor) -> torch.Tensor:
        """What follows the last depthwise convolutions as one matrix `(B, C, 8 C)`: pointwise ones,
        weights `(B, 8)` and the mix."""
        # (8, C, C)
        mix = kernel_of(self.mix).weight.flatten(1).unflatten(1, (self.COUNT, -1)).transpose(0, 1)
        last = torch.stack([kernel_of(branch[-1]).weight.flatten(1) for branch in self.experts])
        joined = torch.cat([mix[:-1] @ last, mix[-1:]])
        return (weights[..., None, None] * joined).transpose(1, 2).flatten(2)

    def work(self, x: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
        results = [operation[:-1](x) for operation in self.experts]
        results.append(F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False))
        return transform(torch.cat(results, dim=1), matrices.to(x))


class ExpertCompensator(nn.Module):
    """Layers of experts, whose weights follow from the mean of the features; `(B, C, H, W)` -> the
    same."""

    def __init__(self, channels: int, layers: int = 4):
        super().__init__()
        count = layers * ExpertLayer.COUNT
        self.weigh = nn.Sequential(
            nn.Linear(channels, 2 * count), nn.ReLU(), nn.Linear(2 * count, count)
        )
        self.prepare = nn.Conv2d(channels, channels, 1, bias=False)
        self.layers = nn.ModuleList(ExpertLayer(channels) for _ in range(layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = self.weigh(mean_of(self, x)).unflatten(1, (len(self.layers), -1)).softmax(-1)
        x = F.relu(self.prepare(x))
        for layer, weight in zip(self.layers, weights.unbind(1)):
            x = F.relu_(x + layer(x, weight))
        return x


class GuidanceFusion(nn.Module):
    """`F + strength * alpha * B([F, F_g])`: a block of the backbone's own kind on both feature
    maps, gated from zero.

    The backbone's features, which are small in its depths, are normalised before: the block's own
    norm sees both maps at once and would let the larger one drown the other.
    """

    def __init__(
        self,
        block: type[RestormerBlock],
        channels: int,
        guidance_channels: int,
        heads: int,
        expansion: float,
        norm_bias: bool,
        bias: bool,
    ):
        super().__init__()
        both = channels + guidance_channels
        self.norm = ChannelNorm(channels, norm_bias)
        self.block = block(both, heads if both % heads == 0 else 1, expansion, norm_bias, bias)
        self.project = nn.Conv2d(both, channels, 1)
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


class PromptBlock(nn.Module):
    """A prompt for features `(B, C, H, W)`: learned images, weighed by what the features are like,
    resized to them.

    Interaction: prompt and features are joined, mixed by a transformer block and reduced again.
    """

    def __init__(
        self, channels: int, prompt_channels: int, count: int, size: int, out_channels: int, **block
    ):
        super().__init__()
        both = channels + prompt_channels
        self.prompts = nn.Parameter(torch.rand(count, prompt_channels, size, size))
        self.weigh = nn.Linear(channels, count)
        self.smooth = nn.Conv2d(prompt_channels, prompt_channels, 3, padding=1, bias=False)
        self.block = RestormerBlock(both, **block)
        self.reduce = nn.Conv2d(both, out_channels, 1, bias=block.get("bias", False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights, averages = self.weigh(mean_of(self, x)).softmax(-1), shared()
        prompt = torch.einsum("bn,nchw->bchw", weights, self.prompts.to(weights))
        if averages is None:
            prompt = F.interpolate(prompt, x.shape[-2:], mode="bilinear", align_corners=False)
        else:
            prompt = averages.stretch(prompt, *x.shape[-2:])
        prompt = self.smooth(prompt)
        return self.reduce(self.block(torch.cat([x, prompt.to(x)], dim=1)))


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


@dataclass
class Prompts:
    """The prompts of a `Backbone`: their channels and sides above each level, finest first."""

    channels: tuple[int, ...]
    sizes: tuple[int, ...]
    count: int
    heads: int


@dataclass
class Levels:
    """The U of a `Backbone`; the arguments are Restormer's, `block` the kind of its blocks.

    Raises:
        ValueError: if the number of levels is not the same throughout, or there is no such fusion.
    """

    block: type[RestormerBlock]
    width: int
    encoder_depths: tuple[int, ...]
    middle_depth: int
    decoder_depths: tuple[int, ...]
    heads: tuple[int, ...]
    expansion: float
    norm_bias: bool
    bias: bool
    guidance_channels: tuple[int, ...] | None
    fusion: str

    def __post_init__(self):
        depth = len(self.encoder_depths)
        if len(self.decoder_depths) != depth or len(self.heads) != depth + 1:
            raise ValueError(
                f"`decoder_depths` must have {depth} entries like `encoder_depths`, and `heads` "
                f"one more, got {len(self.decoder_depths)} and {len(self.heads)}."
            )
        check_levels(depth, self.guidance_channels, self.fusion)
        self.depth = depth
        self.widths = [self.width * 2**level for level in range(depth + 1)]
        self.options = {
            "expansion": self.expansion,
            "norm_bias": self.norm_bias,
            "bias": self.bias,
        }

    def guides(self, side: str) -> bool:
        """Whether guidance enters the `encoder` or the `decoder`."""
        return self.guidance_channels is not None and self.fusion in (side, "both")

    def blocks(self, level: int, channels: int, count: int) -> nn.ModuleList:
        heads = self.heads[level]
        return nn.ModuleList(self.block(channels, heads, **self.options) for _ in range(count))

    def fusion_at(self, level: int, channels: int) -> GuidanceFusion:
        guidance_channels, heads = self.guidance_channels[level], self.heads[level]
        return GuidanceFusion(self.block, channels, guidance_channels, heads, **self.options)


class Backbone(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """What the networks share: a U of transformer blocks whose decoder takes in skips, prompts and
    guidance."""

    _supports_gradient_checkpointing = True
    _repeated_blocks = ["RestormerBlock"]
    _no_split_modules = ["RestormerBlock"]
    _lora_layers = ["qkv", "project", "expand", "reduce"]

    # Of a matcher that costs a small part of the network, finest level first.
    guidance_widths = (32, 64, 128, 256, 512)

    # Whether the decoder's fusions are initialised behind everything else: a matter of seeds.
    _draws_fusions_last = False

    def _build(
        self,
        levels: Levels,
        *,
        in_channels: int,
        out_channels: int,
        refinement_depth: int = 0,
        dual_pixel: bool = False,
        prompts: Prompts | None = None,
        experts: bool = False,
    ) -> None:
        width, bias = levels.width, levels.bias
        self.embed = nn.Conv2d(in_channels, width, 3, padding=1, bias=bias)
        self.first_experts = ExpertCompensator(width) if experts else None
        self._build_encoder(levels)
        channels, decoder_fusions = self._build_decoder(levels, prompts)
        self.refinement = levels.blocks(0, channels[-1], refinement_depth)
        self.last_experts = ExpertCompensator(channels[-1]) if experts else None
        self.skip = nn.Conv2d(width, channels[-1], 1, bias=bias) if dual_pixel else None
        self.output = nn.Conv2d(channels[-1], out_channels, 3, padding=1, bias=bias)
        self._build_fusions(levels, channels, decoder_fusions)
        self.gradient_checkpointing = False

    def _build_encoder(self, levels: Levels) -> None:
        self.encoders, self.downs = nn.ModuleList(), nn.ModuleList()
        for level, count in enumerate(levels.encoder_depths):
            self.encoders.append(levels.blocks(level, levels.widths[level], count))
        for width in levels.widths[:-1]:
            shrink = nn.Conv2d(width, width // 2, 3, padding=1, bias=False)
            self.downs.append(nn.Sequential(shrink, nn.PixelUnshuffle(2)))
        self.middle = levels.blocks(levels.depth, levels.widths[-1], levels.middle_depth)

    def _build_decoder(
        self, levels: Levels, prompts: Prompts | None
    ) -> tuple[list[int], list[GuidanceFusion]]:
        """Returns the channels of each level, deepest first, and the fusions drawn with them."""
        self.prompts, self.ups = nn.ModuleList(), nn.ModuleList()
        self.reduces, self.decoders = nn.ModuleList(), nn.ModuleList()
        below, channels, fusions = levels.widths[-1], [], []
        for level, count in zip(reversed(range(levels.depth)), levels.decoder_depths):
            if prompts is not None:
                below = self._add_prompt(levels, prompts, level, below)
            grow = nn.Conv2d(below, 2 * below, 3, padding=1, bias=False)
            self.ups.append(nn.Sequential(grow, nn.PixelShuffle(2)))
            joined = below // 2 + levels.widths[level]
            below = levels.widths[level] if level else joined
            # The finest level keeps what it has joined.
            reduce = nn.Conv2d(joined, below, 1, bias=levels.bias) if level else nn.Identity()
            self.reduces.append(reduce)
            self.decoders.append(levels.blocks(level, below, count))
            if levels.guides("decoder") and not self._draws_fusions_last:
                fusions.append(levels.fusion_at(level, below))
            channels.append(below)
        return channels, fusions

    def _add_prompt(self, levels: Levels, prompts: Prompts, level: int, below: int) -> int:
        """Add the prompt above a level, from `below` channels; returns the channels it leaves."""
        deepest = level == levels.depth - 1
        channels = levels.widths[level] if deepest else below  # halved there only, as published
        self.prompts.append(
            PromptBlock(
                channels=below,
                prompt_channels=prompts.channels[level],
                count=prompts.count,
                size=prompts.sizes[level],
                out_channels=channels,
                heads=prompts.heads,
                **levels.options,
            )
        )
        return channels

    def _build_fusions(
        self, levels: Levels, channels: list[int], decoder_fusions: list[GuidanceFusion]
    ) -> None:
        self.encoder_fusions = nn.ModuleList()
        if levels.guides("encoder"):
            for level, width in enumerate(levels.widths):
                self.encoder_fusions.append(levels.fusion_at(level, width))
        self.decoder_fusions = nn.ModuleList(decoder_fusions)
        if levels.guides("decoder") and self._draws_fusions_last:
            for index, width in enumerate(channels):
                fusion = levels.fusion_at(levels.depth - 1 - index, width)
                self.decoder_fusions.append(fusion)

    @property
    def size_multiple(self) -> int:
        """Sides are padded to a multiple of this many pixels."""
        return 2 ** len(self.config.encoder_depths)

    @staticmethod
    def share_averages(size: tuple[int, int], patch: int, grid: tuple[int, int]) -> Averages:
        """What tiles of a photo have in common, see `Averages`."""
        return Averages(size, patch, grid)

    def forward(
        self,
        degraded: torch.Tensor,
        guidance_features: list[torch.Tensor] | None = None,
        strength: float | torch.Tensor = 1.0,
    ) -> torch.Tensor:
        """Restore images.

        Args:
            degraded: `(B, in_channels, H, W)` in [0, 1], any size.
            guidance_features: one `(B, C_level, H_level, W_level)` for each level, finest first, as
                a matcher returns them.
            strength: multiplies what guidance adds; 0 leaves the bare backbone. A number, or `(B,
                1, 1, 1)`, one for each image.

        Returns:
            restored images `(B, out_channels, H, W)`, not clipped.

        Raises:
            ValueError: if guidance is given to a network built without it, or with another number
                of levels.
        """
        check_degraded(degraded, self.config.in_channels)
        expected = self.config.guidance_channels
        guidance = read_guidance(guidance_features, strength, expected, type(self).__name__)
        height, width = degraded.shape[-2:]
        multiple = self.size_multiple
        image = fit(degraded, height + -height % multiple, width + -width % multiple)

        x = self.embed(image.contiguous(memory_format=torch.channels_last))
        embedded = None if self.skip is None else x
        if self.first_experts is not None:
            x = self._run([self.first_experts], x)
        skips = []
        for level, encoder in enumerate(self.encoders):
            x = fuse(x, self.encoder_fusions, guidance, level)
            x = self._run(encoder, x)
            skips.append(x)
            x = self.downs[level](x)
        depth = len(self.encoders)
        x = fuse(x, self.encoder_fusions, guidance, depth)
        x = self._run(self.middle, x)
        for index, decoder in enumerate(self.decoders):
            if len(self.prompts):
                x = self.prompts[index](x)
            x = torch.cat([self.ups[index](x), skips.pop()], dim=1)
            x = self.reduces[index](x)
            x = fuse(x, self.decoder_fusions, guidance, depth - 1 - index, deepest_first=True)
            x = self._run(decoder, x)
        x = self._run(self.refinement, x)
        if self.last_experts is not None:
            x = self._run([self.last_experts], x)
        if embedded is None:
            restored = self.output(x) + image
        else:
            restored = self.output(x + self.skip(embedded))
        return restored[..., :height, :width]

    def _run(self, group: Iterable[nn.Module], x: torch.Tensor, *inputs) -> torch.Tensor:
        for block in group:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                x = self._gradient_checkpointing_func(block, x, *inputs)
            else:
                x = block(x, *inputs)
        return x


class Restormer(Backbone):
    """Restores degraded images of any size, alone or with the features of a guidance image.

    Args:
        in_channels: channels of the image; 1 for gray, 6 for the two views of a dual-pixel sensor.
        out_channels: channels of the result.
        width: channels of the finest level; each deeper level doubles them.
        encoder_depths: blocks of each encoder level, finest first.
        middle_depth: blocks below the deepest level.
        decoder_depths: blocks of each decoder level, deepest first; the finest works on twice
            `width`.
        refinement_depth: blocks behind the finest decoder level.
        heads: attention heads of each level, finest first, and of the middle.
        expansion: width of the feed-forward branch, in widths of its level.
        norm_bias: layer normalisation with mean and bias; without in the bias-free denoisers.
        bias: biases in all convolutions.
        dual_pixel: join the finest features to the result by a convolution instead of adding the
            image.
        guidance_channels: channels of the guidance features, one for each encoder level and one for
            the middle; `None` builds a network that takes no guidance.
        fusion: where guidance enters: `encoder` (and middle), `decoder`, or `both`.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        width: int = 48,
        encoder_depths: tuple[int, ...] = (4, 6, 6),
        middle_depth: int = 8,
        decoder_depths: tuple[int, ...] = (6, 6, 4),
        refinement_depth: int = 4,
        heads: tuple[int, ...] = (1, 2, 4, 8),
        expansion: float = 2.66,
        norm_bias: bool = True,
        bias: bool = False,
        dual_pixel: bool = False,
        guidance_channels: tuple[int, ...] | None = None,
        fusion: str = "both",
    ):
        super().__init__()
        if not dual_pixel and in_channels != out_channels:
            raise ValueError(
                f"`out_channels` must equal `in_channels` ({in_channels}) unless `dual_pixel`, got "
                f"{out_channels}."
            )
        levels = Levels(
            block=RestormerBlock,
            width=width,
            encoder_depths=encoder_depths,
            middle_depth=middle_depth,
            decoder_depths=decoder_depths,
            heads=heads,
            expansion=expansion,
            norm_bias=norm_bias,
            bias=bias,
            guidance_channels=guidance_channels,
            fusion=fusion,
        )
        self._build(
            levels,
            in_channels=in_channels,
            out_channels=out_channels,
            refinement_depth=refinement_depth,
            dual_pixel=dual_pixel,
        )


class PromptIR(Backbone):
    """Restores any degradation without being told which: prompts carry what the features show of
    it.

    Args:
        prompt_channels: channels of the prompt above each level, finest first.
        prompt_sizes: side of the learned prompts, finest first.
        prompt_count: learned prompts of each level.
        prompt_heads: attention heads of the blocks that mix them in.

    The other arguments are Restormer's.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        width: int = 48,
        encoder_depths: tuple[int, ...] = (4, 6, 6),
        middle_depth: int = 8,
        decoder_depths: tuple[int, ...] = (6, 6, 4),
        refinement_depth: int = 4,
        heads: tuple[int, ...] = (1, 2, 4, 8),
        expansion: float = 2.66,
        norm_bias: bool = True,
        bias: bool = False,
        prompt_channels: tuple[int, ...] = (64, 128, 320),
        prompt_sizes: tuple[int, ...] = (64, 32, 16),
        prompt_count: int = 5,
        prompt_heads: int = 4,
        guidance_channels: tuple[int, ...] | None = None,
        fusion: str = "both",
    ):
        super().__init__()
        if not len(prompt_channels) == len(prompt_sizes) == len(encoder_depths):
            raise ValueError(
                f"`prompt_channels` and `prompt_sizes` must have {len(encoder_depths)} entries "
                "like `encoder_depths`."
            )
        prompts = Prompts(prompt_channels, prompt_sizes, count=prompt_count, heads=prompt_heads)
        levels = Levels(
            block=RestormerBlock,
            width=width,
            encoder_depths=encoder_depths,
            middle_depth=middle_depth,
            decoder_depths=decoder_depths,
            heads=heads,
            expansion=expansion,
            norm_bias=norm_bias,
            bias=bias,
            guidance_channels=guidance_channels,
            fusion=fusion,
        )
        self._build(
            levels,
            in_channels=in_channels,
            out_channels=in_channels,
            refinement_depth=refinement_depth,
            prompts=prompts,
        )


class DRSformer(Backbone):
    """Takes rain out of images of any size, alone or with the features of a guidance image.

    Args:
        in_channels: channels of the image.
        width: channels of the finest level; each deeper level doubles them, the finest decoder
            level works on twice as many.
        encoder_depths: blocks of each encoder level, finest first.
        middle_depth: blocks below the deepest level.
        decoder_depths: blocks of each decoder level, deepest first.
        heads: attention heads of each level, finest first, and of the middle.
        expansion: width of the feed-forward branches, in widths of their level.
        norm_bias: layer normalisation with mean and bias.
        bias: biases in the convolutions.
        experts: the mixture-of-experts feature compensators before the first and behind the last
            level; the publication leaves them out for Rain200L and SPA-Data.
        guidance_channels: channels of the guidance features, one for each encoder level and one for
            the middle; `None` builds a network that takes no guidance.
        fusion: where guidance enters: `encoder` (and middle), `decoder`, or `both`.
    """

    _repeated_blocks = ["SparseTransformerBlock"]
    _no_split_modules = ["SparseTransformerBlock", "ExpertLayer"]
    _draws_fusions_last = True

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        width: int = 48,
        encoder_depths: tuple[int, ...] = (4, 6, 6),
        middle_depth: int = 8,
        decoder_depths: tuple[int, ...] = (6, 6, 4),
        heads: tuple[int, ...] = (1, 2, 4, 8),
        expansion: float = 2.66,
        norm_bias: bool = True,
        bias: bool = False,
        experts: bool = True,
        guidance_channels: tuple[int, ...] | None = None,
        fusion: str = "both",
    ):
        super().__init__()
        levels = Levels(
            block=SparseTransformerBlock,
            width=width,
            encoder_depths=encoder_depths,
            middle_depth=middle_depth,
            decoder_depths=decoder_depths,
            heads=heads,
            expansion=expansion,
            norm_bias=norm_bias,
            bias=bias,
            guidance_channels=guidance_channels,
            fusion=fusion,
        )
        self._build(levels, in_channels=in_channels, out_channels=in_channels, experts=experts)
