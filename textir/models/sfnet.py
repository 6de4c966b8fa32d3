"""SFNet: a convolutional U with branches that split features into low and high frequencies and
weigh them.

Cui et al., *Selective Frequency Network for Image Restoration* (ICLR 2023). Written from the paper;
guidance enters as in Lin et al. (CVPR 2024). The published network returns three scales in
training; `forward` returns the full-size one, and with `all_scales` all three.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from torch import nn

# Of height and width, of the neighbourhood over which means are taken; `None` is the image.
Share = float | None
MIDDLE = 0.75  # share of the sides of a patch whose pixels count: near borders it knows little


def local_mean(x: torch.Tensor, share: Share) -> torch.Tensor:
    """Mean of `(B, C, H, W)` over the image, `(B, C, 1, 1)`; with a `share` below 1 over that share
    of the sides around each pixel, moved inwards at the border, `(B, C, H, W)`."""
    if share is None:
        return x.mean((2, 3), keepdim=True)
    mean = banded_mean if torch.onnx.is_in_onnx_export() else sliding_mean
    windows = [at_least(1, size * round(256 * share) // 256) for size in x.shape[-2:]]
    return mean(mean(x.float(), windows[1], -1), windows[0], -2).to(x)


def at_least(least: int, size: int) -> int:
    # There sizes are not known yet.
    return size if torch.onnx.is_in_onnx_export() else max(least, size)


def sliding_mean(x: torch.Tensor, window: int, dim: int) -> torch.Tensor:
    size = x.shape[dim]
    sums = x.cumsum(dim)
    first = sums.narrow(dim, window - 1, 1)
    others = sums.narrow(dim, window, size - window) - sums.narrow(dim, 0, size - window)
    missing = window - 1
    centers = (torch.arange(size, device=x.device) - missing // 2).clamp(0, size - window)
    return torch.cat([first, others], dim).index_select(dim, centers) / window


def banded_mean(x: torch.Tensor, window: int, dim: int) -> torch.Tensor:
    """The same as a product with a band matrix, which asks nothing about sizes: for ONNX, whose
    cumulated sums are slow besides."""
    places = torch.arange(x.shape[dim], device=x.device)
    starts = (places - (window - 1) // 2).clamp(max=x.shape[dim] - window).clamp(min=0)
    band = ((places[:, None] >= starts) & (places[:, None] < starts + window)).to(x)
    return (x.transpose(dim, -1) @ (band / band.sum(0))).transpose(dim, -1)


class Averages:
    """What the network averages over a photo that is restored in tiles: measured on patches of it,
    which go through the network together, and then the same for all tiles.

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
        self.kept: dict[tuple[nn.Module, str], torch.Tensor] = {}
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

    def of_cells(self, module: nn.Module, x: torch.Tensor, name: str = "") -> torch.Tensor:
        """The mean of each cell `(1, C, rows, columns)` of what a module calls by a name; measured
        on patches `(B, C, H, W)` by what lies inside of them: near their borders they do not know
        the photo."""
        if (module, name) not in self.kept:
            count = self.grid[0] * self.grid[1]
            native, reduced = x[:count].float(), x[count:].float()
            means = middle_mean(native, MIDDLE, MIDDLE)
            if len(reduced):
                sides = zip(self.size, self.grid)
                shares = [MIDDLE * min(1.0, self.patch * cells / side) for side, cells in sides]
                means = middle_mean(reduced, MIDDLE, MIDDLE) + means - middle_mean(reduced, *shares)
            self.kept[module, name] = means.T.unflatten(1, self.grid)[None]
        return self.kept[module, name].to(x)

    def mean(self, module: nn.Module, x: torch.Tensor, name: str = "") -> torch.Tensor:
        """The mean over the photo, `(1, C, 1, 1)`."""
        return self.of_cells(module, x, name).mean((2, 3), keepdim=True)

    def local_mean(
        self, module: nn.Module, x: torch.Tensor, share: Share, parts: int = 1
    ) -> torch.Tensor:
        """The means of `local_mean` around each pixel of the photo; with `parts` 2 within each half
        of its height and width, `(B, C, H, W)`."""
        if share is None and parts == 1:
            return self.mean(module, x)
        means = self.of_cells(module, x)
        if parts > 1:  # so that as many cells lie in each part
            means = means.repeat_interleave(parts, 2).repeat_interleave(parts, 3)
        rows, columns = (
            torch.block_diag(*[windows_of_cells(share or 1.0, cells)] * parts).to(x)
            for cells in self.grid
        )
        means = (rows @ means @ columns.T)[0]
        shown = []
        for box in self.boxes[: len(x)]:
            rows = between_cells(box.top, box.bottom, x.shape[-2], self.grid[0], parts).to(x)
            columns = between_cells(box.left, box.right, x.shape[-1], self.grid[1], parts).to(x)
            shown.append(rows @ means @ columns.T)
        return torch.stack(shown)

    def halves(self, weights: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """A number for each channel and quarter of the photo `(4 C)`, at each pixel of `(B, C, H,
        W)`."""
        quarters = weights.unflatten(0, (-1, 2, 2))
        shown = []
        for box in self.boxes[: len(x)]:
            rows = half_of(box.top, box.bottom, x.shape[-2]).to(x.device)
            columns = half_of(box.left, box.right, x.shape[-1]).to(x.device)
            shown.append(quarters[:, rows][:, :, columns])
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


def middle_mean(x: torch.Tensor, share_down: float, share_across: float) -> torch.Tensor:
    """Mean `(B, C)` of the middle of `(B, C, H, W)`, these shares of its sides."""
    weights = []
    for side, share in zip(x.shape[-2:], (share_down, share_across)):
        edges = torch.arange(side + 1, device=x.device) / side - 0.5
        covered = edges[1:].clamp(max=share / 2) - edges[:-1].clamp(min=-share / 2)
        weights.append(covered.clamp(min=0).to(x) / share)
    return torch.einsum("bchw,h,w->bc", x, *weights)


def windows_of_cells(share: float, cells: int) -> torch.Tensor:
    """Weights `(cells, cells)` of the mean over a window around the middle of each cell of a side;
    it takes a share of the side and moves inwards at its ends."""
    starts = ((torch.arange(cells) + 0.5) / cells - share / 2).clamp(0, 1 - share)[:, None]
    edges = torch.arange(cells + 1) / cells
    covered = torch.minimum(starts + share, edges[1:]) - torch.maximum(starts, edges[:-1])
    covered = covered.clamp(min=0)
    return covered / covered.sum(1, keepdim=True)


def places_between(first: float, last: float, steps: int) -> torch.Tensor:
    """The middles of equal steps between two shares of a side."""
    return first + (last - first) * (torch.arange(steps) + 0.5) / steps


def half_of(first: float, last: float, steps: int) -> torch.Tensor:
    """Which half of a side each step lies in, 0 or 1."""
    return (places_between(first, last, steps) >= 0.5).long()


def between_cells(first: float, last: float, steps: int, cells: int, parts: int) -> torch.Tensor:
    """Weights `(steps, parts * cells)` that interpolate between the middles of the cells of each
    part of a side, for steps from a share `first` of the side to `last`."""
    places = places_between(first, last, steps) * parts
    part = places.floor().clamp(0, parts - 1)
    inside = ((places - part) * cells - 0.5).clamp(0, cells - 1)
    distances = (part * cells + inside)[:, None] - torch.arange(parts * cells)
    return (1 - distances.abs()).clamp(min=0)


def conv(
    in_channels: int, out_channels: int, size: int, activation: bool = True, stride: int = 1
) -> nn.Sequential:
    layers = [nn.Conv2d(in_channels, out_channels, size, stride, size // 2)]
    if activation:
        layers.append(nn.GELU())
    return nn.Sequential(*layers)


def up_conv(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(nn.ConvTranspose2d(in_channels, out_channels, 4, 2, 1), nn.GELU())


def mean_of(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The mean of `(B, C, H, W)` over the `share` that a module names, of the image or of the photo
    that it is a tile of; in training over the image."""
    averages = shared()
    if averages is not None:
        return averages.local_mean(module, x, module.share)
    return local_mean(x, None if module.training else module.share)


class FrequencyModulation(nn.Module):
    """Weighs low and high frequencies against each other, by what both are like on average."""

    def __init__(self, channels: int, share: Share, hidden: int = 32):
        super().__init__()
        self.share = share
        hidden = max(channels // 2, hidden)
        self.squeeze = nn.Conv2d(channels, hidden, 1)
        self.weigh_high = nn.Conv2d(hidden, channels, 1)
        self.weigh_low = nn.Conv2d(hidden, channels, 1)
        self.mix = nn.Conv2d(channels, channels, 1)

    def forward(self, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        both = self.squeeze(mean_of(self, low + high))
        weights = torch.cat([self.weigh_high(both), self.weigh_low(both)], dim=1).softmax(1)
        weight_high, weight_low = weights.chunk(2, dim=1)
        return self.mix(high * weight_high + low * weight_low)


class DynamicFilter(nn.Module):
    """A low-pass filter made from the features themselves, one for each of `groups`; what it leaves
    is the high frequencies."""

    def __init__(self, channels: int, size: int, share: Share, groups: int = 8):
        super().__init__()
        self.size, self.groups = size, groups
        self.predict = nn.Conv2d(channels, groups * size**2, 1, bias=False)
        self.norm = nn.BatchNorm2d(groups * size**2)
        self.modulate = FrequencyModulation(channels, share)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        channels, height, width = x.shape[1:]
        averages = shared()
        mean = x.mean((2, 3), keepdim=True) if averages is None else averages.mean(self, x)
        kernels = self.norm(self.predict(mean))
        # (B, groups, 1, size², 1, 1)
        kernels = kernels.unflatten(1, (self.groups, 1, self.size**2)).softmax(3)
        border, grouped = self.size // 2, (self.groups, channels // self.groups)
        padded = F.pad(x, (border,) * 4, mode="reflect").unflatten(1, grouped)
        low = torch.zeros_like(x).unflatten(1, grouped)
        for i in range(self.size):
            for j in range(self.size):
                shifted = padded[..., i : i + height, j : j + width]
                low = low + shifted * kernels[:, :, :, i * self.size + j]
        low = low.flatten(1, 2)
        return self.modulate(low, x - low)


class GlobalSelection(nn.Module):
    """Weighs the mean of a channel against its deviations from it."""

    def __init__(self, channels: int, share: Share):
        super().__init__()
        self.share = share
        self.low = nn.Parameter(torch.zeros(channels))
        self.high = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = mean_of(self, x)
        low, high = self.low[:, None, None], self.high[:, None, None]
        return mean * low + (x - mean) * (high + 1)


class PatchSelection(nn.Module):
    """The same for each of 2 x 2 parts of the image on its own."""

    def __init__(self, channels: int, share: Share):
        super().__init__()
        self.share = share
        self.low = nn.Parameter(torch.zeros(4 * channels))
        self.high = nn.Parameter(torch.zeros(4 * channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        averages = shared()
        if averages is not None:
            mean = averages.local_mean(self, x, self.share, parts=2)
            low, high = averages.halves(self.low, x), averages.halves(self.high, x)
            return mean * low + (x - mean) * high
        batch, channels, height, width = x.shape
        parts = (
            x.reshape(batch, channels, 2, height // 2, 2, width // 2)
            .permute(0, 1, 2, 4, 3, 5)
            .flatten(1, 3)
        )
        mean = local_mean(parts, None if self.training else self.share)
        parts = mean * self.low[:, None, None] + (parts - mean) * self.high[:, None, None]
        return (
            parts.unflatten(1, (channels, 2, 2))
            .permute(0, 1, 2, 4, 3, 5)
            .reshape(batch, channels, height, width)
        )


class SFBlock(nn.Module):
    """Residual block whose features are weighed by frequency between its convolutions; some also
    filter them dynamically."""

    def __init__(self, channels: int, filters: bool, share: Share):
        super().__init__()
        half = channels // 2
        self.expand = conv(channels, channels, 3)
        sizes = (3, 5) if filters else ()
        self.filters = nn.ModuleList(DynamicFilter(half, size, share) for size in sizes)
        self.global_selection = GlobalSelection(half, share)
        self.patch_selection = PatchSelection(half, share)
        self.project = conv(channels, channels, 3, activation=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = self.expand(x).chunk(2, dim=1)
        if len(self.filters):
            first, second = self.filters[0](first), self.filters[1](second)
        return x + self.project(
            torch.cat([self.global_selection(first), self.patch_selection(second)], dim=1)
        )


class PhotoNorm(nn.InstanceNorm2d):
    """Instance normalisation; of a tile by the mean and the variance of the photo."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        averages = shared()
        if averages is None:
            return super().forward(x)
        mean = averages.mean(self, x, "mean")
        squares = averages.mean(self, x.float().square(), "squares")
        variance = (squares - mean.float().square()).clamp(min=0)
        normalised = (x.float() - mean) * torch.rsqrt(variance + self.eps)
        weight, bias = self.weight[:, None, None], self.bias[:, None, None]
        return (normalised * weight + bias).to(x)


class ImagePyramid(nn.Module):
    """Features of a reduced image, to be merged with those of its level."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.layers = nn.Sequential(
            conv(in_channels, channels // 4, 3),
            conv(channels // 4, channels // 2, 1),
            conv(channels // 2, channels // 2, 3),
            conv(channels // 2, channels, 1, activation=False),
            PhotoNorm(channels, affine=True),
        )
        self.merge = conv(2 * channels, channels, 3, activation=False)

    def forward(self, features: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        return self.merge(torch.cat([features, self.layers(image)], dim=1))


class GuidanceFusion(nn.Module):
    """`F + strength * alpha * B([F, F_g])`: a block of the backbone's own kind on both feature
    maps, gated from zero."""

    def __init__(self, channels: int, guidance_channels: int, share: Share):
        super().__init__()
        self.block = SFBlock(channels + guidance_channels, False, share)
        self.project = nn.Conv2d(channels + guidance_channels, channels, 1)
        self.alpha = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(
        self, x: torch.Tensor, guidance: torch.Tensor, strength: float | torch.Tensor
    ) -> torch.Tensor:
        guidance = fit(guidance, *x.shape[-2:]).to(x)
        return x + strength * self.alpha * self.project(self.block(torch.cat([x, guidance], dim=1)))


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


class SFNet(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """Restores degraded images of any size, alone or with the features of a guidance image.

    Args:
        in_channels: channels of the image.
        width: channels of the finest level; each of the two deeper levels doubles them.
        depth: blocks of each encoder and decoder group; the last of each filters dynamically.
        pooling_share: share of height and width, in steps of 1/256 below 1, over which means are
            taken outside training; `None` takes the whole image (Chu et al., *Improving Image
            Restoration by Revisiting Global Information Aggregation*, ECCV 2022). Published for
            outdoor haze with 210 / 256. Dynamic filters always follow from the whole image.
        guidance_channels: channels of the guidance features, one for each of the three levels, the
            deepest being the middle; `None` builds a network that takes no guidance.
        fusion: where guidance enters: `encoder`, `decoder`, or `both`.
    """

    _supports_gradient_checkpointing = True
    _repeated_blocks = ["SFBlock"]
    _no_split_modules = ["SFBlock"]
    _lora_layers = r".*(expand|project)\.0"

    # Of a matcher that costs a small part of the network, finest level first.
    guidance_widths = (32, 64, 128)
    num_levels = 3  # each takes guidance
    num_scales = 3  # each restores an image, to be compared with the clean one in training

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        width: int = 32,
        depth: int = 16,
        pooling_share: Share = None,
        guidance_channels: tuple[int, ...] | None = None,
        fusion: str = "both",
    ):
        super().__init__()
        check_levels(self.num_levels - 1, guidance_channels, fusion)
        if pooling_share is not None and not 0 < pooling_share < 1:
            raise ValueError(
                "`pooling_share` must lie between 0 and 1, or be None for the whole image, got "
                f"{pooling_share}."
            )
        widths = [width, 2 * width, 4 * width]
        self.embed = conv(in_channels, width, 3)
        self.pyramid = nn.ModuleList(ImagePyramid(in_channels, c) for c in widths[1:])
        self.encoders = nn.ModuleList(self._group(c, depth, pooling_share) for c in widths)
        self.downs = nn.ModuleList(conv(c, 2 * c, 3, stride=2) for c in widths[:-1])
        self.decoders = nn.ModuleList(self._group(c, depth, pooling_share) for c in widths[::-1])
        self.ups = nn.ModuleList(up_conv(2 * c, c) for c in (widths[1], widths[0]))
        self.reduces = nn.ModuleList(conv(2 * c, c, 1) for c in (widths[1], widths[0]))
        self.outputs = nn.ModuleList(
            conv(c, in_channels, 3, activation=False) for c in widths[::-1]
        )

        self.encoder_fusions, self.decoder_fusions = nn.ModuleList(), nn.ModuleList()
        if guidance_channels is None:
            fusion = None
        if fusion in ("encoder", "both"):
            for level, channels in enumerate(guidance_channels):
                entry = GuidanceFusion(widths[level], channels, pooling_share)
                self.encoder_fusions.append(entry)
        if fusion in ("decoder", "both"):
            for level in (1, 0):
                entry = GuidanceFusion(widths[level], guidance_channels[level], pooling_share)
                self.decoder_fusions.append(entry)
        self.gradient_checkpointing = False

    @staticmethod
    def _group(channels: int, depth: int, share: Share) -> nn.ModuleList:
        return nn.ModuleList(SFBlock(channels, i == depth - 1, share) for i in range(depth))

    @property
    def size_multiple(self) -> int:
        """Sides are padded to a multiple of this many pixels."""
        return 8

    @staticmethod
    def share_averages(size: tuple[int, int], patch: int, grid: tuple[int, int]) -> Averages:
        """What tiles of a photo have in common, see `Averages`."""
        return Averages(size, patch, grid)

    def forward(
        self,
        degraded: torch.Tensor,
        guidance_features: list[torch.Tensor] | None = None,
        strength: float | torch.Tensor = 1.0,
        all_scales: bool = False,
    ) -> torch.Tensor | list[torch.Tensor]:
        """Restore images.

        Args:
            degraded: `(B, C, H, W)` in [0, 1], any size.
            guidance_features: one `(B, C_level, H_level, W_level)` for each level, finest first, as
                a matcher returns them.
            strength: multiplies what guidance adds; 0 leaves the bare backbone. A number, or `(B,
                1, 1, 1)`, one for each image.
            all_scales: return the smaller images too, which training compares with the reduced
                clean image. An argument and no method of its own, because the wrapper that joins
                the gradients of several processes hears of `forward` alone.

        Returns:
            restored images `(B, C, H, W)`, not clipped; with `all_scales` a list of three, coarsest
            first: at a quarter, half and full size, `(B, C, ceil(H / 4), ceil(W / 4))` and so on.

        Raises:
            ValueError: if guidance is given to a network built without it, or with another number
                of levels.
        """
        check_degraded(degraded, self.config.in_channels)
        expected = self.config.guidance_channels
        guidance = read_guidance(guidance_features, strength, expected, type(self).__name__)
        height, width = degraded.shape[-2:]
        multiple = self.size_multiple
        # At least 16 pixels, because the filters reflect two of a quarter of the size.
        sides = [at_least(2 * multiple, side + -side % multiple) for side in (height, width)]
        # Channels first, which suits wide 3 x 3 convolutions on processors.
        image = fit(degraded, *sides).contiguous()
        # Nearest-neighbour reduction, as published.
        images = [image, image[..., ::2, ::2], image[..., ::4, ::4]]

        x, skips = self.embed(image), []
        for level, encoder in enumerate(self.encoders):
            if level:
                x = self.pyramid[level - 1](self.downs[level - 1](x), images[level])
            x = fuse(x, self.encoder_fusions, guidance, level)
            x = self._run(encoder, x)
            skips.append(x)
        skips.pop()
        scales = []
        for index, decoder in enumerate(self.decoders):
            level = len(self.decoders) - 1 - index
            if index:
                x = torch.cat([self.ups[index - 1](x), skips.pop()], dim=1)
                x = self.reduces[index - 1](x)
                x = fuse(x, self.decoder_fusions, guidance, level, deepest_first=True)
            x = self._run(decoder, x)
            scale = self.outputs[index](x) + images[level]
            scales.append(scale[..., : -(-height // 2**level), : -(-width // 2**level)])
        return scales if all_scales else scales[-1]

    def _run(self, group: Iterable[nn.Module], x: torch.Tensor, *inputs) -> torch.Tensor:
        for block in group:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                x = self._gradient_checkpointing_func(block, x, *inputs)
            else:
                x = block(x, *inputs)
        return x
