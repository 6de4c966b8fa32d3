"""Finds, for every place of the degraded image, the place of the guidance image that shows the same
thing.

Guidance has the right content but not the right geometry. As in the paper (Lin et al., CVPR 2024,
section 3.4), which follows MASA-SR (Lu et al., CVPR 2021), both images go through one encoder;
blocks are located coarsely at the deepest level, then each 3 x 3 patch inside its block; the
guidance features of all levels are moved there and weighted by how well they match.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.utils import BaseOutput
from torch import nn


@dataclass
class MatchedGuidance(BaseOutput):
    """Guidance brought into the geometry of the degraded image.

    Attributes:
        features: one `(B, C_level, H_level, W_level)` for each level, finest first, weighted by
            `confidence`.
        confidence: `(B, 1, H, W)` in [0, 1] at the size of the degraded image: cosine similarity of
            the matched patches.
    """

    # Defaults let accelerate rebuild outputs under mixed precision.
    features: list[torch.Tensor] = None
    confidence: torch.Tensor = None


class ResidualBlock(nn.Module):
    """`x + conv(relu(conv(x)))`, `(B, C, H, W)` -> the same."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv2(F.relu(self.conv1(x)))


class GuidanceMatcher(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """Matches guidance to degraded images and returns its features for the restorer.

    Args:
        in_channels: channels of both images.
        widths: channels of each level, finest first; a restorer takes them as its
            `guidance_channels`.
        depth: residual blocks for each level.
        downscale: fold squares of this many pixels into channels before the first level, like the
            restorer's.
        block_size: side of the blocks located together, in pixels of the deepest level.
        window: side of the search window, in blocks.
        dilations: dilations of the 3 x 3 patches that describe a block's centre.
        aligned: search nothing; for guidance that shows everything where the degraded image does,
            as it does when it was painted from it (`guidance_init="image"`). Features are weighted
            by the match at the place itself.
        relative: return by how much the features of the guidance differ from those of the degraded
            image at that place. A restorer that predicts what to add to the degraded image then
            reads what the guidance would add, and need not work it out itself.
    """

    _supports_gradient_checkpointing = True

    _lora_layers = ["conv1", "conv2"]

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        widths: tuple[int, ...] = (32, 64, 128, 256),
        depth: int = 2,
        downscale: int = 1,
        block_size: int = 8,
        window: float = 1.5,
        dilations: tuple[int, ...] = (1, 2, 3),
        aligned: bool = False,
        relative: bool = False,
    ):
        super().__init__()
        if block_size < 1 or window < 1:
            raise ValueError(
                f"`block_size` and `window` must be at least 1, got {block_size} and {window}."
            )
        sources = (in_channels * downscale**2, *widths[:-1])
        self.entries = nn.ModuleList()
        for level, width in enumerate(widths):
            stride = 2 if level else 1
            self.entries.append(nn.Conv2d(sources[level], width, 3, stride=stride, padding=1))
        # Features stay as large as the image, level by level; by default each would be smaller.
        for entry in self.entries:
            nn.init.kaiming_normal_(entry.weight, nonlinearity="linear")
        self.levels = nn.ModuleList()
        for width in widths:
            self.levels.append(nn.ModuleList(ResidualBlock(width) for _ in range(depth)))
        self.gradient_checkpointing = False

    def forward(self, degraded: torch.Tensor, guidance: torch.Tensor) -> MatchedGuidance:
        """Match `guidance` `(B, C, h, w)` to `degraded` `(B, C, H, W)`, both in [0, 1]; any sizes
        and aspects."""
        if degraded.ndim != 4 or degraded.shape[:2] != guidance.shape[:2]:
            raise ValueError(
                "`degraded` and `guidance` must be (B, C, H, W) with one batch size and number of "
                "channels, "
                f"got {tuple(degraded.shape)} and {tuple(guidance.shape)}."
            )
        height, width = degraded.shape[-2:]
        if guidance.shape[-2:] != degraded.shape[-2:]:
            resized = F.interpolate(
                guidance.float(), (height, width), mode="bicubic", antialias=True
            )
            guidance = resized.clamp(0, 1).to(guidance.dtype)
        queries = self.encode(degraded)
        sources = self.encode(guidance)
        if self.config.aligned:
            score = cosine_in_place(queries[-1].float(), sources[-1].float())
        else:
            rows, columns, score = self.match(queries[-1], sources[-1])
        score = score[:, None].to(degraded)
        features = []
        for level, source in enumerate(sources):
            scale = 2 ** (len(sources) - 1 - level)
            moved = source if self.config.aligned else gather_blocks(source, rows, columns, scale)
            if self.config.relative:
                moved = moved - queries[level]
            features.append(
                moved * F.interpolate(score, moved.shape[-2:], mode="bilinear", align_corners=False)
            )
        step = self.config.downscale * 2 ** (len(sources) - 1)
        size = (score.shape[-2] * step, score.shape[-1] * step)
        confidence = F.interpolate(score, size, mode="bilinear", align_corners=False)[
            ..., :height, :width
        ]
        return MatchedGuidance(features=features, confidence=confidence)

    def encode(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Features of every level, finest first; sides are padded to whole blocks of the deepest
        level's pixels."""
        multiple = self.config.downscale * 2 ** (len(self.levels) - 1)
        x = F.pixel_unshuffle(pad_to_multiple(image, multiple), self.config.downscale)
        x = x.contiguous(memory_format=torch.channels_last)  # a third faster on processors
        features = []
        for entry, blocks in zip(self.entries, self.levels):
            x = entry(x)
            for block in blocks:
                if torch.is_grad_enabled() and self.gradient_checkpointing:
                    x = self._gradient_checkpointing_func(block, x)
                else:
                    x = block(x)
            features.append(x)
        return features

    def match(
        self, query: torch.Tensor, source: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """For each pixel of `query` `(B, C, H, W)` the best pixel of `source` (same size).

        Returns:
            rows and columns in `source`, integers `(B, H, W)`, and the cosine similarity of the 3 x
            3 patches in [0, 1], `(B, H, W)`. Gradients flow through the similarity.
        """
        query, source = query.float(), source.float()
        # What is exported must not depend on the number of images.
        if torch.onnx.is_in_onnx_export():
            return self._match(query, source)
        found = [self._match(*pair) for pair in zip(query.split(1), source.split(1))]
        rows, columns, score = (torch.cat(parts) for parts in zip(*found))
        return rows, columns, score

    def _match(self, query, source, blocks_at_once: int = 64):
        size, device = self.config.block_size, query.device
        batch, _, height, width = query.shape
        side = round(size * self.config.window)
        if not torch.onnx.is_in_onnx_export():
            side = min(side, max(height, width))
        whole = pad_to_multiple(query, size)
        grid = (whole.shape[-2] // size, whole.shape[-1] // size)
        with torch.no_grad():
            # (B * blocks,) each.
            top, left = (places.flatten() for places in self._locate(whole, source, grid, side))

        bordered_query, bordered_source = F.pad(whole, (1, 1, 1, 1)), F.pad(source, (1, 1, 1, 1))
        image, row, column = torch.meshgrid(
            *(torch.arange(n, device=device) for n in (batch, *grid)), indexing="ij"
        )
        image, query_top, query_left = (
            image.flatten(),
            row.flatten() * size,
            column.flatten() * size,
        )
        steps = torch.arange(side, device=device)
        # A window may be larger than the source.
        inside = ((steps < height)[:, None] & (steps < width)).flatten()
        parts = [torch.arange(top.shape[0], device=device)]
        if not torch.onnx.is_in_onnx_export():
            parts = parts[0].split(blocks_at_once)
        rows, columns, scores = [], [], []
        for part in parts:
            q = cut_squares(
                bordered_query, image[part], query_top[part], query_left[part], size + 2
            )
            s = cut_squares(bordered_source, image[part], top[part], left[part], side + 2)
            similarity = patch_cosine(q, s).masked_fill(~inside, -1)  # (blocks, size², side²)
            score, best = similarity.max(-1)
            rows.append((top[part, None] + best // side).clamp(max=height - 1))
            columns.append((left[part, None] + best % side).clamp(max=width - 1))
            scores.append(score.clamp(0, 1))

        def unblock(values: list[torch.Tensor]) -> torch.Tensor:
            whole_blocks = torch.cat(values).reshape(batch, *grid, size, size).transpose(2, 3)
            return whole_blocks.reshape(batch, grid[0] * size, grid[1] * size)[:, :height, :width]

        return unblock(rows), unblock(columns), unblock(scores)

    def _locate(self, query, source, grid, side) -> tuple[torch.Tensor, torch.Tensor]:
        """Top and left of the search window in `source` `(B, C, H, W)`, integers `(B, blocks)`.

        Each block of `query` finds its window by its dilated centre patches.
        """
        size = self.config.block_size
        batch, _, height, width = source.shape
        similarity = torch.zeros(batch, grid[0] * grid[1], height, width, device=query.device)
        centers = torch.arange(grid[0], device=query.device) * size + size // 2
        middles = torch.arange(grid[1], device=query.device) * size + size // 2
        for dilation in self.config.dilations:
            bordered = F.pad(query, (dilation,) * 4)
            offsets = torch.arange(3, device=query.device) * dilation
            patches = bordered[
                ...,
                (centers[:, None] + offsets)[:, None, :, None],
                (middles[:, None] + offsets)[None, :, None, :],
            ]
            kernels = patches.permute(0, 2, 3, 1, 4, 5).flatten(1, 2)  # (B, blocks, C, 3, 3)
            kernels = (
                kernels / kernels.flatten(2).norm(dim=2).clamp(min=1e-6)[..., None, None, None]
            )
            dots = correlate(source, kernels, dilation)
            ones = torch.ones(1, 1, 3, 3, device=query.device)
            energy = F.conv2d(
                source.square().sum(1, keepdim=True), ones, padding=dilation, dilation=dilation
            )
            similarity += dots / energy.sqrt().clamp(min=1e-6)
        best = similarity.flatten(2).argmax(2)
        row = best // width
        top = (row - side // 2).clamp(max=height - side).clamp(min=0)
        left = (best - row * width - side // 2).clamp(max=width - side).clamp(min=0)
        return top, left


def pad_to_multiple(image: torch.Tensor, multiple: int) -> torch.Tensor:
    """Repeat the border of `(B, C, H, W)` at the right and bottom until both sides are multiples of
    `multiple`."""
    height, width = image.shape[-2:]
    return F.pad(image, (0, -width % multiple, 0, -height % multiple), mode="replicate")


def correlate(source: torch.Tensor, kernels: torch.Tensor, dilation: int) -> torch.Tensor:
    """Each image of `source` `(B, C, H, W)` under its own dilated `kernels` `(B, K, C, 3, 3)`: `(B,
    K, H, W)`."""
    if not torch.onnx.is_in_onnx_export():  # then B is 1
        return F.conv2d(source, kernels[0], padding=dilation, dilation=dilation)
    # ONNX knows no convolution with kernels for each image: the same as one product.
    height, width = source.shape[-2:]
    bordered, starts = F.pad(source, (dilation,) * 4), [i * dilation for i in range(3)]
    shifted = []
    for top in starts:
        for left in starts:
            shifted.append(bordered[..., top : top + height, left : left + width])
    pixels = torch.cat(shifted, dim=1).flatten(2)
    products = kernels.permute(0, 1, 3, 4, 2).flatten(2) @ pixels
    return products.unflatten(2, (height, width))


def cosine_in_place(query: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """Cosine similarity in [0, 1] of the 3 x 3 patches of `query` and `source` `(B, C, H, W)`
    around each pixel, `(B, H, W)`."""

    def mean_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d((a * b).sum(1, keepdim=True), 3, 1, padding=1)

    dots = mean_product(query, source)
    energies = (mean_product(query, query), mean_product(source, source))
    norms = [energy.clamp(min=1e-12).sqrt() for energy in energies]
    return (dots / (norms[0] * norms[1]))[:, 0].clamp(0, 1)


def cut_squares(
    images: torch.Tensor, which: torch.Tensor, top: torch.Tensor, left: torch.Tensor, side: int
) -> torch.Tensor:
    """Squares of `images` `(B, C, H, W)`, of the one that `which` `(K,)` names at `top`, `left`
    `(K,)`, as `(K, side, side, C)`; beyond the border the last pixel repeats."""
    steps = torch.arange(side, device=images.device)
    rows = (top[:, None] + steps).clamp(max=images.shape[-2] - 1)
    columns = (left[:, None] + steps).clamp(max=images.shape[-1] - 1)
    return images.permute(0, 2, 3, 1)[which[:, None, None], rows[:, :, None], columns[:, None, :]]


def patch_cosine(query: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """Cosine similarity of all 3 x 3 patches of two images.

    `query` is `(K, a + 2, a + 2, C)` and `source` `(K, b + 2, b + 2, C)`. Patches are never
    unfolded: products of single pixels are summed along the nine shifts that both patches share.

    Returns:
        `(K, a * a, b * b)`.
    """
    a, b = query.shape[1] - 2, source.shape[1] - 2
    pixels = torch.einsum("kyxc,kvuc->kyxvu", query, source)
    dots = 0
    for i in range(3):
        for j in range(3):
            dots = dots + pixels[:, i : i + a, j : j + a, i : i + b, j : j + b]
    query_norms, source_norms = patch_norms(query), patch_norms(source)
    norms = query_norms[:, :, None] * source_norms[:, None]
    return dots.flatten(3).flatten(1, 2) / norms


def patch_norms(pixels: torch.Tensor) -> torch.Tensor:
    """Lengths of all 3 x 3 patches of `(K, a + 2, a + 2, C)`, `(K, a * a)`."""
    energy = F.avg_pool2d(pixels.square().sum(-1)[:, None], 3, 1) * 9
    return energy.clamp(min=1e-12).sqrt().flatten(1)


def gather_blocks(
    features: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, scale: int
) -> torch.Tensor:
    """Move `scale` x `scale` squares of `features` `(B, C, h * scale, w * scale)`: the one at
    `rows`, `columns` `(B, h, w)` goes to the place where that entry stands."""
    batch, channels, height, width = features.shape
    steps = torch.arange(scale, device=features.device)
    fine_rows = (rows[:, :, None, :, None] * scale + steps[:, None, None]).expand(
        -1, -1, -1, -1, scale
    )
    fine_columns = (columns[:, :, None, :, None] * scale + steps).expand(-1, -1, scale, -1, -1)
    index = (fine_rows * width + fine_columns).flatten(1)[:, None].expand(-1, channels, -1)
    return features.flatten(2).gather(2, index).reshape(batch, channels, height, width)
