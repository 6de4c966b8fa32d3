"""SFNet: a convolutional U with branches that split features into low and high frequencies and
weigh them.

Cui et al., *Selective Frequency Network for Image Restoration* (ICLR 2023). Written from the paper;
guidance enters as in Lin et al. (CVPR 2024). The published network returns three scales in
training; `forward` returns the full-size one, and with `all_scales` all three.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from torch import nn

# Of height and width, of the neighbourhood over which means are taken; `None` is the image.
Share = float | None


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


def conv(
    in_channels: int, out_channels: int, size: int, activation: bool = True, stride: int = 1
) -> nn.Sequential:
    layers = [nn.Conv2d(in_channels, out_channels, size, stride, size // 2)]
    if activation:
        layers.append(nn.GELU())
    return nn.Sequential(*layers)


def up_conv(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(nn.ConvTranspose2d(in_channels, out_channels, 4, 2, 1), nn.GELU())


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
        both = self.squeeze(local_mean(low + high, None if self.training else self.share))
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
        kernels = self.norm(self.predict(x.mean((2, 3), keepdim=True)))
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
        mean = local_mean(x, None if self.training else self.share)
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


class ImagePyramid(nn.Module):
    """Features of a reduced image, to be merged with those of its level."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.layers = nn.Sequential(
            conv(in_channels, channels // 4, 3),
            conv(channels // 4, channels // 2, 1),
            conv(channels // 2, channels // 2, 3),
            conv(channels // 2, channels, 1, activation=False),
            nn.InstanceNorm2d(channels, affine=True),
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
