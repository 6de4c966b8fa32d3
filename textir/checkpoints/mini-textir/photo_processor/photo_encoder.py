"""The image tower of a small text-image space: what a photo shows, its light, and what is wrong.

The network is EfficientNet-Lite0 (Tan and Le, *EfficientNet: Rethinking Model Scaling for
Convolutional Neural Networks*, ICML 2019, in the form without squeeze-excite and with ReLU6),
written from the paper, its normalisation folded into the convolutions. Such a network was trained
to forget colour, light and degradations. Ours: statistics of native pixels stand beside its
features, and one unit vector holds three blocks: content by the features, light and faults by the
statistics. With the features too, faults of unseen photos were told less well (0.91 for 0.94).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from PIL import Image
from torch import nn
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_base import ImageProcessingMixin

# Kernel, stride of the first block, channels, blocks.
STAGES = (
    (3, 1, 16, 1),
    (3, 2, 24, 2),
    (5, 2, 40, 2),
    (3, 2, 80, 3),
    (5, 1, 112, 3),
    (5, 2, 192, 4),
    (3, 1, 320, 1),
)
LUMINANCE = (0.299, 0.587, 0.114)
WINDOW = 512  # native pixels a side on which fine structure is measured


# ---- statistics of native pixels


def photo_statistics(image: torch.Tensor) -> torch.Tensor:
    """Numbers that tell colour, light and degradations of photos: first those of
    `light_statistics`, then those of `texture_statistics`.

    Args:
        image: `(B, 3, H, W)` in [0, 1], native pixels, at least 16 on each side.

    Returns:
        `(B, LIGHT_STATISTICS + TEXTURE_STATISTICS)` in float32.
    """
    return torch.cat([light_statistics(image), texture_statistics(image)], dim=1)


def light_statistics(image: torch.Tensor) -> torch.Tensor:
    """Colour and light of photos `(B, 3, H, W)` in [0, 1]: `(B, LIGHT_STATISTICS)`.

    Of the photo at up to 128 pixels: mean and deviation of CIE Lab in 4 x 4 fields, histograms of
    hue and chroma of the whole, its upper and its lower third, quantiles of lightness, of the dark
    channel (He et al., *Single image haze removal using dark channel prior*, CVPR 2009) and of
    saturation, and the shares of black and white pixels.
    """
    longest = max(image.shape[-2:])
    if longest > 128:
        size = [max(round(128 * side / longest), 4) for side in image.shape[-2:]]
        image = F.interpolate(
            image.float(), size, mode="bilinear", antialias=True, align_corners=False
        )
    lab = lab_from_rgb(image.float().clamp(0, 1))
    mean = F.adaptive_avg_pool2d(lab, 4)
    deviation = (F.adaptive_avg_pool2d(lab.square(), 4) - mean.square()).clamp(min=0).sqrt()
    third = max(image.shape[-2] // 3, 1)
    histograms = [_hues(part) for part in (lab, lab[:, :, :third], lab[:, :, -third:])]
    lightness = _quantiles(lab[:, 0], (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99))
    darkest = -F.max_pool2d(-image.amin(1, keepdim=True), 5, stride=1, padding=2)
    highest = image.amax(1)
    saturation = 1 - image.amin(1) / highest.clamp(min=1e-3)
    clipped = torch.stack([(highest < 0.02).float(), (image.amin(1) > 0.98).float()], 1)
    return torch.cat(
        [
            mean.flatten(1),
            deviation.flatten(1),
            *histograms,
            lightness,
            _quantiles(darkest, (0.1, 0.5, 0.9)),
            _quantiles(saturation, (0.1, 0.5, 0.9)),
            clipped.mean((2, 3)),
            lab.flatten(2).mean(2),
            lab.flatten(2).std(2),
        ],
        dim=1,
    )


def texture_statistics(image: torch.Tensor) -> torch.Tensor:
    """Fine structure of photos `(B, 3, H, W)` in [0, 1]: `(B, TEXTURE_STATISTICS)`.

    Of a window of up to `WINDOW` x `WINDOW` native pixels in the middle, which begins at a multiple
    of 8 pixels, where JPEG's blocks begin. Mostly logarithms, so that a contrast is an offset.
    """
    image = photo_window(image, WINDOW).float().clamp(0, 1)
    weights = torch.tensor(LUMINANCE, device=image.device)[None, :, None, None]
    gray = (image * weights).sum(1, keepdim=True)
    colours = image[:, [0, 2]] - gray
    statistics = []
    for scale in (1, 2, 4):
        statistics += _edges(F.avg_pool2d(gray, scale))
    for scale in (1, 2):
        statistics.append(_log(_quantiles(_checks(F.avg_pool2d(gray, scale)), (0.5,))))
        for channel in F.avg_pool2d(colours, scale).split(1, dim=1):
            statistics.append(_log(_quantiles(_checks(channel), (0.5,))))
    return torch.cat(
        [*statistics, _grain(gray), _spectrum(gray), _block_edges(gray), _frequencies(gray)], dim=1
    )


def lab_from_rgb(image: torch.Tensor) -> torch.Tensor:
    """CIE Lab, divided by 100, of sRGB `(B, 3, H, W)` in [0, 1]: white is (1, 0, 0)."""
    linear = torch.where(image <= 0.04045, image / 12.92, ((image + 0.055) / 1.055) ** 2.4)
    matrix = torch.tensor(
        [
            [0.4124 / 0.9505, 0.3576 / 0.9505, 0.1805 / 0.9505],
            [0.2126, 0.7152, 0.0722],
            [0.0193 / 1.089, 0.1192 / 1.089, 0.9505 / 1.089],
        ],
        device=image.device,
    )
    xyz = torch.einsum("ij,bjhw->bihw", matrix, linear)
    root = torch.where(xyz > 0.008856, xyz.clamp(min=1e-6) ** (1 / 3), 7.787 * xyz + 16 / 116)
    x, y, z = root.unbind(1)
    return torch.stack([1.16 * y - 0.16, 5 * (x - y), 2 * (y - z)], dim=1)


def _hues(lab: torch.Tensor) -> torch.Tensor:
    """Shares of twelve hues, pale and strong, and of black, grey and white: `(B, 27)`."""
    lightness, a, b = lab.unbind(1)
    chroma = (a.square() + b.square()).sqrt()
    hue = ((torch.atan2(b, a) / (2 * math.pi) + 1) * 12).long() % 12
    kind = hue + 12 * (chroma > 0.35)
    neutral = 24 + (lightness > 0.35).long() + (lightness > 0.75).long()
    kind = torch.where((chroma < 0.08) | (lightness < 0.08), neutral, kind)
    return F.one_hot(kind.flatten(1), 27).float().mean(1).sqrt()


def _edges(gray: torch.Tensor) -> list[torch.Tensor]:
    """Differences in four directions, of second order, and their directions, at one scale."""
    across, down = gray[..., :, 1:] - gray[..., :, :-1], gray[..., 1:, :] - gray[..., :-1, :]
    falling = gray[..., 1:, 1:] - gray[..., :-1, :-1]
    rising = gray[..., 1:, :-1] - gray[..., :-1, 1:]
    statistics = []
    for difference in (across, down, falling, rising):
        mean = difference.abs().mean((2, 3))
        statistics += [_log(mean), _log(mean) - 0.5 * _log(difference.square().mean((2, 3)))]
    bend_across = 2 * gray[..., 1:-1, 1:-1] - gray[..., 1:-1, 2:] - gray[..., 1:-1, :-2]
    bend_down = 2 * gray[..., 1:-1, 1:-1] - gray[..., 2:, 1:-1] - gray[..., :-2, 1:-1]
    bend = bend_across + bend_down
    statistics += [_log(_quantiles(bend.abs(), (0.5, 0.95))), _log(bend.abs().mean((2, 3)))]
    statistics += [_skewness(bend), _skewness(bend_across), _skewness(bend_down)]
    x, y = across[..., 1:, :], down[..., :, 1:]
    strength = (x.square() + y.square()).sqrt().flatten(1)
    sector = (torch.atan2(y, x) / math.pi * 12).floor().long().flatten(1) % 12
    shares = torch.zeros(len(gray), 12, device=gray.device).scatter_add_(1, sector, strength)
    statistics.append(_log(shares / strength.sum(1, keepdim=True).clamp(min=1e-6), 1e-3))
    return statistics


def _checks(channel: torch.Tensor) -> torch.Tensor:
    """What is left of 2 x 2 pixels without their mean, row and column: noise more than edges."""
    height, width = channel.shape[-2] // 2 * 2, channel.shape[-1] // 2 * 2
    channel = channel[..., :height, :width]
    top, bottom = channel[..., ::2, :], channel[..., 1::2, :]
    return (top[..., ::2] - top[..., 1::2] - bottom[..., ::2] + bottom[..., 1::2]).abs() / 2


def _grain(gray: torch.Tensor) -> torch.Tensor:
    """Deviation of fine structure in fields of 8 x 8 pixels, and how far it correlates."""
    fine = gray - F.avg_pool2d(gray, 3, stride=1, padding=1, count_include_pad=False)
    fields = F.avg_pool2d(fine.square(), 8).sqrt()
    power = fine.square().mean((2, 3)).clamp(min=1e-10)
    correlations = []
    for lag in (1, 2, 3, 5):
        correlations.append((fine[..., lag:] * fine[..., :-lag]).mean((2, 3)) / power)
        correlations.append((fine[..., lag:, :] * fine[..., :-lag, :]).mean((2, 3)) / power)
    return torch.cat([_log(_quantiles(fields, (0.05, 0.25, 0.5, 0.75, 0.95))), *correlations], 1)


def _spectrum(gray: torch.Tensor) -> torch.Tensor:
    """Logarithm of the power in 8 rings and 4 directions, and of each ring: `(B, 40)`."""
    height, width = gray.shape[-2:]
    window = torch.hann_window(height, device=gray.device)[:, None]
    window = window * torch.hann_window(width, device=gray.device)
    power = torch.fft.rfft2((gray[:, 0] - gray.mean((1, 2, 3))[:, None, None]) * window)
    power = power.abs().square() / (height * width)
    down = torch.fft.fftfreq(height, device=gray.device)[:, None]
    across = torch.fft.rfftfreq(width, device=gray.device)[None]
    ring = ((down.square() + across.square()).sqrt() * 16).long().clamp(max=7)
    direction = ((torch.atan2(down, across) / math.pi + 0.5) * 4 + 0.5).long() % 4
    cell = (4 * ring + direction).flatten()
    counts = torch.zeros(32, device=gray.device).scatter_add_(
        0, cell, torch.ones_like(down + across).flatten()
    )
    sums = torch.zeros(len(gray), 32, device=gray.device)
    sums = sums.scatter_add_(1, cell.expand(len(gray), -1), power.flatten(1))
    rings = sums.unflatten(1, (8, 4)).sum(2) / counts.unflatten(0, (8, 4)).sum(1).clamp(min=1)
    cells = sums / counts.clamp(min=1)
    relative = _log(cells, 1e-8).unflatten(1, (8, 4)) - _log(rings, 1e-8)[..., None]
    return torch.cat([relative.flatten(1), _log(rings, 1e-8)], dim=1)


def _block_edges(gray: torch.Tensor) -> torch.Tensor:
    """How much steps at every eighth pixel stand out, and the share of equal neighbours."""
    statistics = []
    for values in (gray, gray.transpose(2, 3)):
        step = (values[..., 1:] - values[..., :-1]).abs()
        bend = (step[..., 1:-1] - 0.5 * (step[..., 2:] + step[..., :-2])).mean((1, 2))
        usable = bend.shape[1] // 8 * 8
        phases = bend[:, :usable].unflatten(1, (-1, 8)).mean(1)
        spread = (phases - phases.median(1, keepdim=True).values) / (
            step.mean((1, 2, 3))[:, None] + 1e-3
        )
        # A bend at column n belongs to the step from n + 1 to n + 2; blocks end at the sixth.
        statistics += [spread[:, 6:7], spread.amax(1, keepdim=True)]
        statistics.append((step < 0.5 / 255).float().mean((1, 2, 3))[:, None])
    return torch.cat(statistics, dim=1)


def _frequencies(gray: torch.Tensor) -> torch.Tensor:
    """Cosine transform of blocks of 8 x 8 pixels, by the sum of both frequencies: the logarithm of
    the mean, and the share that JPEG would have set to nothing: `(B, 28)`."""
    index = torch.arange(8, device=gray.device)
    waves = torch.cos((2 * index[None] + 1) * index[:, None] * math.pi / 16) / 2
    waves[0] /= math.sqrt(2)
    height, width = (side // 8 * 8 for side in gray.shape[-2:])
    blocks = gray[:, 0, :height, :width].unflatten(2, (-1, 8)).unflatten(1, (-1, 8))
    strength = torch.einsum("ui,brisj,vj->buvrs", waves, blocks, waves).abs().flatten(3)
    size, nothing = strength.mean(3).flatten(1), (strength < 1 / 255).float().mean(3).flatten(1)
    order = (index[:, None] + index[None]).flatten()
    bands = F.one_hot(order, 15).float()
    bands = (bands / bands.sum(0))[:, 1:]
    return torch.cat([_log(size @ bands), nothing @ bands], dim=1)


def photo_window(image: torch.Tensor, side: int) -> torch.Tensor:
    """A window of at most `side` pixels in the middle, from multiples of 8 pixels on."""
    top, left = (max(size - side, 0) // 2 // 8 * 8 for size in image.shape[-2:])
    return image[..., top : top + side, left : left + side]


def _quantiles(values: torch.Tensor, shares: Sequence[float]) -> torch.Tensor:
    """Quantiles of each image, of at most 16,384 of its values: `(B, len(shares))`."""
    values = values.flatten(1)
    values = values[:, :: max(values.shape[1] // 16_384, 1)]
    return torch.quantile(values, torch.tensor(shares, device=values.device), dim=1).T


def _skewness(values: torch.Tensor) -> torch.Tensor:
    values = values.flatten(1)
    deviation = values.std(1, keepdim=True).clamp(min=1e-5)
    return ((values / deviation) ** 3).mean(1, keepdim=True).clamp(-5, 5)


def _log(values: torch.Tensor, least: float = 1e-4) -> torch.Tensor:
    return (values + least).log()


LIGHT_STATISTICS = 2 * 48 + 3 * 27 + 9 + 3 + 3 + 2 + 6
TEXTURE_STATISTICS = 3 * (8 + 3 + 3 + 12) + 6 + 13 + 40 + 6 + 28


# ---- the network


class SameConv(nn.Conv2d):
    """A convolution whose output has `ceil(size / stride)` pixels; an odd pixel of padding goes to
    the right and to the bottom, as in TensorFlow, where the weights come from."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        padding = []
        for size, kernel, stride in zip(x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1]):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            padding += [total // 2, total - total // 2]
        return super().forward(F.pad(x, padding) if any(padding) else x)


class InvertedBottleneck(nn.Module):
    """Expansion, depthwise convolution and projection: `(B, C, H, W)` -> `(B, O, H / s, W / s)`.

    Sandler et al., *MobileNetV2* (CVPR 2018): nothing follows the projection, and the input is
    added where stride and channels allow it.
    """

    def __init__(self, channels: int, out_channels: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        hidden = expansion * channels
        self.expand = SameConv(channels, hidden, 1) if expansion > 1 else None
        self.depthwise = SameConv(hidden, hidden, kernel, stride, groups=hidden)
        self.project = SameConv(hidden, out_channels, 1)
        self.adds_input = stride == 1 and channels == out_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = x if self.expand is None else F.relu6(self.expand(x))
        projected = self.project(F.relu6(self.depthwise(hidden)))
        return x + projected if self.adds_input else projected


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite without its classifier: `(B, 3, H, W)` -> `(B, head_channels)`, the mean
    over all pixels.

    Args:
        stages: kernel, stride of the first block, channels and blocks of each.
        stem_channels: of the first convolution, which halves the size.
        head_channels: of the last.
    """

    def __init__(
        self,
        stages: Sequence[Sequence[int]] = STAGES,
        stem_channels: int = 32,
        head_channels: int = 1280,
    ):
        super().__init__()
        self.stem = SameConv(3, stem_channels, 3, 2)
        channels, blocks = stem_channels, []
        for number, (kernel, first_stride, out_channels, count) in enumerate(stages):
            for place in range(count):
                stride, expansion = first_stride if place == 0 else 1, 6 if number > 0 else 1
                blocks.append(InvertedBottleneck(channels, out_channels, kernel, stride, expansion))
                channels = out_channels
        self.blocks = nn.ModuleList(blocks)
        self.head = SameConv(channels, head_channels, 1)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        x = F.relu6(self.stem(pixel_values))
        for block in self.blocks:
            x = block(x)
        return F.relu6(self.head(x)).mean((2, 3))


class ContentHead(nn.Module):
    """What a photo shows: `(B, D)` features -> `(B, content_dim)`.

    The sum of a linear map of the features, and of what the ImageNet classes are called: their
    probabilities times a vector for each name (Norouzi et al., *Zero-shot learning by convex
    combination of semantic embeddings*, ICLR 2014).
    """

    def __init__(self, dim: int, content_dim: int, num_classes: int, class_rank: int):
        super().__init__()
        self.direct = nn.Linear(dim, content_dim)
        self.reduce = nn.Linear(dim, class_rank, bias=False)
        self.classify = nn.Linear(class_rank, num_classes)
        self.names = nn.Linear(num_classes, content_dim, bias=False)

    def forward(self, features: torch.Tensor, roots: torch.Tensor) -> torch.Tensor:
        classes = self.classify(self.reduce(features)).softmax(-1)
        return self.direct(roots) + self.names(classes)


class SmallHead(nn.Module):
    """Two layers `(B, D)` -> `(B, out_dim)`."""

    def __init__(self, dim: int, width: int, out_dim: int, dropout: float = 0.0):
        super().__init__()
        self.hidden = nn.Linear(dim, width)
        self.activation = nn.GELU()
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(width, out_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.output(self.dropout(self.activation(self.hidden(x))))


@dataclass
class PhotoEmbeds(BaseOutput):
    """What the image tower returns.

    Attributes:
        image_embeds: `(B, sum of blocks)`, unit vectors.
    """

    image_embeds: torch.Tensor = None


class PhotoEncoder(ModelMixin, ConfigMixin):
    """Photos as unit vectors in three blocks, beside those of sentences.

    It is called as transformers' `CLIPVisionModelWithProjection`: `model(**processor(photos))` has
    `image_embeds`.

    Args:
        blocks: widths of content, of light, and of faults.
        shares: squared lengths of the blocks.
        stages: of the network, see `EfficientNetLite`.
        stem_channels: of its first convolution.
        head_channels: of its last.
        num_classes: classes whose names the content goes by.
        class_rank: rank of the classifier.
        light_width: hidden width of the head for light.
        faults_width: hidden width of the head for faults.
        dropout: of the features before the heads, while they train.
        tags: calibration of `read_tags`; `None` for none.
    """

    _keep_in_fp32_modules = ["statistics_mean", "statistics_scale", "roots_mean", "roots_scale"]

    @register_to_config
    def __init__(
        self,
        blocks: tuple[int, int, int] = (384, 64, 64),
        shares: tuple[float, float, float] = (0.75, 0.15, 0.10),
        stages: tuple[tuple[int, int, int, int], ...] = STAGES,
        stem_channels: int = 32,
        head_channels: int = 1280,
        num_classes: int = 1000,
        class_rank: int = 256,
        light_width: int = 128,
        faults_width: int = 256,
        dropout: float = 0.3,
        tags: dict | None = None,
    ):
        super().__init__()
        content, light, faults = blocks
        self.network = EfficientNetLite(stages, stem_channels, head_channels)
        self.content = ContentHead(head_channels, content, num_classes, class_rank)
        self.light = SmallHead(LIGHT_STATISTICS, light_width, light, dropout)
        statistics = LIGHT_STATISTICS + TEXTURE_STATISTICS
        self.faults = SmallHead(statistics, faults_width, faults, dropout)
        self.forget = nn.Dropout(dropout)
        for name, size in (("statistics", statistics), ("roots", head_channels)):
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_scale", torch.ones(size))

    def forward(
        self, pixel_values: torch.Tensor, statistics: torch.Tensor | None = None
    ) -> PhotoEmbeds:
        """Embed photos.

        Args:
            pixel_values: `(B, 3, S, S)` from a `PhotoProcessor`.
            statistics: `(B, LIGHT_STATISTICS + TEXTURE_STATISTICS)` from there too; without them
                nothing is said of light and faults: their blocks are 0, and content has the whole
                length.

        Raises:
            ValueError: if the pixels are no batch of RGB images, or the statistics do not fit.
        """
        if pixel_values.ndim != 4 or pixel_values.shape[1] != 3:
            raise ValueError(
                "`pixel_values` must be (B, 3, height, width) as a `PhotoProcessor` returns them, "
                f"got {tuple(pixel_values.shape)}."
            )
        features = self.network(pixel_values.to(self.dtype))
        return PhotoEmbeds(image_embeds=self.embed_features(features, statistics))

    def embed_features(
        self, features: torch.Tensor, statistics: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Unit vectors `(B, sum of blocks)` of features `(B, head_channels)` of the network, which
        training computes once, and of statistics as in `forward`.

        Raises:
            ValueError: if the statistics do not fit.
        """
        content = self.content_of(features)
        if statistics is None:
            return F.pad(content, (0, sum(self.config.blocks[1:])))
        expected = (len(features), LIGHT_STATISTICS + TEXTURE_STATISTICS)
        if tuple(statistics.shape) != expected:
            raise ValueError(
                f"`statistics` must be {expected} as a `PhotoProcessor` returns them, got "
                f"{tuple(statistics.shape)}."
            )
        light = self.light_of(statistics[:, :LIGHT_STATISTICS])
        parts = (content, light, self.faults_of(statistics))
        lengths = [math.sqrt(share) for share in self.config.shares]
        return torch.cat([length * part for length, part in zip(lengths, parts)], dim=1)

    def content_of(self, features: torch.Tensor) -> torch.Tensor:
        """The block of content `(B, blocks[0])` as unit vectors, of features `(B, D)`."""
        return F.normalize(self.content(features, self._roots(features)), dim=-1)

    def light_of(self, statistics: torch.Tensor) -> torch.Tensor:
        """The block of light `(B, blocks[1])` as unit vectors, of `(B, LIGHT_STATISTICS)`."""
        return F.normalize(self.light(self._standard(statistics)), dim=-1)

    def faults_of(self, statistics: torch.Tensor) -> torch.Tensor:
        """The block of faults `(B, blocks[2])` as unit vectors, of all statistics."""
        return F.normalize(self.faults(self._standard(statistics)), dim=-1)

    def _roots(self, features: torch.Tensor) -> torch.Tensor:
        """Square roots of features, which are not negative, standardised."""
        roots = (features.clamp(min=0).float().sqrt() - self.roots_mean) * self.roots_scale
        return self.forget(roots.to(features.dtype))

    def _standard(self, statistics: torch.Tensor) -> torch.Tensor:
        """The first so many statistics, standardised and kept from extremes."""
        count = statistics.shape[1]
        standard = statistics.float() - self.statistics_mean[:count]
        standard = standard * self.statistics_scale[:count]
        return standard.clamp(-6, 6).to(self.dtype)

    def tag_texts(self) -> list[str]:
        """The sentences whose text embeddings `read_tags` takes, in its order.

        Raises:
            ValueError: if no tags were calibrated for this encoder.
        """
        return [tag["text"] for _, tag in self._tags()]

    def read_tags(
        self, image_embeds: torch.Tensor, tag_embeds: torch.Tensor
    ) -> list[dict[str, list[dict]]]:
        """What photos show, as tags in groups, each with how sure it is.

        Args:
            image_embeds: `(B, D)` of this encoder.
            tag_embeds: `(T, D)` of the text tower for `tag_texts()`, of any length.

        Returns:
            For each photo `{group: [{"tag": name, "probability": p, "sure": bool}, ...]}`, the
            likeliest first, only tags above their threshold, at most as many as the group allows.

        Raises:
            ValueError: if no tags were calibrated for this encoder, or the embeddings do not fit.
        """
        tags = self._tags()
        if tuple(tag_embeds.shape) != (len(tags), image_embeds.shape[-1]):
            raise ValueError(
                f"`tag_embeds` must be {(len(tags), image_embeds.shape[-1])}, one text embedding "
                f"for each of `tag_texts()`, got {tuple(tag_embeds.shape)}."
            )
        probabilities = self._tag_probabilities(image_embeds.float(), tag_embeds.float())
        photos = []
        for row in probabilities.tolist():
            groups = {group: [] for group in self.config.tags}
            for (group, tag), probability in zip(tags, row):
                if probability >= tag["threshold"]:
                    sure = probability >= tag["sure"]
                    groups[group].append(
                        {"tag": tag["name"], "probability": probability, "sure": sure}
                    )
            for group, found in groups.items():
                found.sort(key=lambda tag: -tag["probability"])
                del found[self.config.tags[group]["most"] :]
            photos.append(groups)
        return photos

    def _tags(self) -> list[tuple[str, dict]]:
        """Group and calibration of every tag."""
        if self.config.tags is None:
            raise ValueError(
                "This encoder has no calibrated tags; train it with `train_lora.mini.train_towers`."
            )
        groups = self.config.tags.items()
        return [(group, tag) for group, entry in groups for tag in entry["tags"]]

    def _tag_probabilities(
        self, image_embeds: torch.Tensor, tag_embeds: torch.Tensor
    ) -> torch.Tensor:
        """Probability of each tag `(B, T)`: a sigmoid of its standardised similarity."""
        similarity = F.normalize(image_embeds, dim=-1) @ F.normalize(tag_embeds, dim=-1).T
        numbers = {
            key: torch.tensor([tag[key] for _, tag in self._tags()], device=similarity.device)
            for key in ("mean", "deviation", "slope", "offset")
        }
        score = (similarity - numbers["mean"]) / numbers["deviation"]
        return (numbers["slope"] * score + numbers["offset"]).sigmoid()


# ---- photos into numbers


class PhotoProcessor(ImageProcessingMixin):
    """Makes the inputs of a `PhotoEncoder` from photos, in the manner of transformers' image
    processors.

    Args:
        size: side of the square to which the whole photo is squeezed, so that nothing at its edges
            is lost.
    """

    model_input_names = ["pixel_values", "statistics"]

    def __init__(self, size: int = 320, **kwargs):
        super().__init__(**kwargs)
        self.size = size

    def __call__(
        self,
        images: torch.Tensor | Image.Image | Sequence[Image.Image | torch.Tensor],
        return_tensors: str = "pt",
    ) -> BatchFeature:
        """Prepare photos.

        Args:
            images: `(B, 3, H, W)` in [0, 1], or one PIL image, or a list of PIL images or of
                tensors `(3, H, W)`, which may differ in size; each at least 16 pixels on each side.
            return_tensors: "pt", the only kind there is.

        Returns:
            `pixel_values` `(B, 3, size, size)`, (v - 127) / 128 of 0 to 255, and `statistics`
            `(B, LIGHT_STATISTICS + TEXTURE_STATISTICS)`.

        Raises:
            ValueError: if there is no image, or one is not RGB, too small or not finite.
        """
        if return_tensors != "pt":
            raise ValueError(f'`return_tensors` must be "pt", got {return_tensors!r}.')
        pixels, statistics = [], []
        for photo in self._photos(images):
            middle = photo_window(photo, WINDOW)
            photo = self._reduce(photo)
            pixels.append(self._squeeze(photo))
            statistics.append(
                torch.cat([light_statistics(photo), texture_statistics(middle)], dim=1)
            )
        return BatchFeature(
            {"pixel_values": torch.cat(pixels), "statistics": torch.cat(statistics)}
        )

    def _photos(self, images) -> list[torch.Tensor]:
        """Every photo as `(1, 3, H, W)` in [0, 1], checked."""
        if isinstance(images, Image.Image):
            images = [images]
        elif isinstance(images, torch.Tensor) and images.ndim == 3:
            images = images[None]
        photos = [_tensor(image) for image in images]
        if not photos:
            raise ValueError("`images` must hold at least one image, got none.")
        for photo in photos:
            if photo.ndim != 4 or photo.shape[1] != 3 or min(photo.shape[-2:]) < 16:
                raise ValueError(
                    "Each image must be RGB, (3, height, width), with at least 16 pixels on each "
                    f"side, got {tuple(photo.shape[1:])}; convert or enlarge it first."
                )
            if not photo.sum().isfinite():
                raise ValueError("Each image must be finite, got NaN or infinity.")
        return [photo.clamp(0, 1) for photo in photos]

    def _reduce(self, photo: torch.Tensor) -> torch.Tensor:
        """A photo whose shorter side has four times `size` or more, by a whole factor: the mean
        over squares, at least twice as large as the network sees it. A rest at the edge is left
        out."""
        factor = min(photo.shape[-2:]) // (2 * self.size)
        return F.avg_pool2d(photo, factor) if factor > 1 else photo

    def _squeeze(self, photo: torch.Tensor) -> torch.Tensor:
        size = (self.size, self.size)
        small = F.interpolate(photo, size, mode="bicubic", antialias=True, align_corners=False)
        return (255 * small.clamp(0, 1) - 127) / 128


def _tensor(image: Image.Image | torch.Tensor) -> torch.Tensor:
    """One image as `(1, C, H, W)` in float32."""
    if isinstance(image, Image.Image):
        pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
        return pixels[None].float().div_(255)
    return image[None].float()
