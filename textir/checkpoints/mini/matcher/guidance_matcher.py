"""Finds, for every place of the degraded image, the place of the guidance image that shows the same thing.

Guidance has the right content but not the right geometry. As in the paper (Lin et al., CVPR 2024, section 3.4), which follows MASA-SR
(Lu et al., CVPR 2021), both images go through one encoder; blocks are located coarsely at the deepest level, then each 3 x 3 patch
inside its block; the guidance features of all levels are moved there and weighted by how well they match.
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
        features: one `(B, C_level, H_level, W_level)` for each level, finest first, weighted by `confidence`.
        confidence: `(B, 1, H, W)` in [0, 1] at the size of the degraded image: cosine similarity of the matched patches.
    """

    features: list[torch.Tensor] = None  # defaults let accelerate rebuild outputs under mixed precision
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
        widths: channels of each level, finest first; a restorer takes them as its `guidance_channels`.
        depth: residual blocks for each level.
        downscale: fold squares of this many pixels into channels before the first level, like the restorer's.
        block_size: side of the blocks located together, in pixels of the deepest level.
        window: side of the search window, in blocks.
        dilations: dilations of the 3 x 3 patches that describe a block's centre.
        aligned: search nothing; for guidance that shows everything where the degraded image does, as it does when it was painted from
            it (`guidance_init="image"`). Features are weighted by the match at the place itself.
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
    ):
        super().__init__()
        if block_size < 1 or window < 1:
            raise ValueError(f"`block_size` and `window` must be at least 1, got {block_size} and {window}.")
        sources = (in_channels * downscale**2, *widths[:-1])
        self.entries = nn.ModuleList(
            nn.Conv2d(source, width, 3, stride=1 if level == 0 else 2, padding=1)
            for level, (source, width) in enumerate(zip(sources, widths))
        )
        self.levels = nn.ModuleList(nn.ModuleList(ResidualBlock(width) for _ in range(depth)) for width in widths)
        self.gradient_checkpointing = False

    def forward(self, degraded: torch.Tensor, guidance: torch.Tensor) -> MatchedGuidance:
        """Match `guidance` `(B, C, h, w)` to `degraded` `(B, C, H, W)`, both in [0, 1]; any sizes and aspects."""
        if degraded.ndim != 4 or degraded.shape[:2] != guidance.shape[:2]:
            raise ValueError(
                "`degraded` and `guidance` must be (B, C, H, W) with one batch size and number of channels, "
                f"got {tuple(degraded.shape)} and {tuple(guidance.shape)}."
            )
        height, width = degraded.shape[-2:]
        if guidance.shape[-2:] != degraded.shape[-2:]:
            resized = F.interpolate(guidance.float(), (height, width), mode="bicubic", antialias=True)
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
            features.append(moved * F.interpolate(score, moved.shape[-2:], mode="bilinear", align_corners=False))
        step = self.config.downscale * 2 ** (len(sources) - 1)
        size = (score.shape[-2] * step, score.shape[-1] * step)
        confidence = F.interpolate(score, size, mode="bilinear", align_corners=False)[..., :height, :width]
        return MatchedGuidance(features=features, confidence=confidence)

    def encode(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Features of every level, finest first; sides are padded to whole blocks of the deepest level's pixels."""
        multiple = self.config.downscale * 2 ** (len(self.levels) - 1)
        height, width = image.shape[-2:]
        missing = (0, -width % multiple, 0, -height % multiple)
        x = F.pixel_unshuffle(F.pad(image, missing, mode="replicate"), self.config.downscale)
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

    def match(self, query: torch.Tensor, source: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """For each pixel of `query` `(B, C, H, W)` the best pixel of `source` (same size).

        Returns:
            rows and columns in `source`, integers `(B, H, W)`, and the cosine similarity of the 3 x 3 patches in [0, 1],
            `(B, H, W)`, through which gradients flow.
        """
        found = [self._match_single(q, s) for q, s in zip(query.float(), source.float())]
        rows, columns, score = (torch.stack(parts) for parts in zip(*found))
        return rows, columns, score

    def _match_single(self, query, source, blocks_at_once: int = 64):
        size = self.config.block_size
        height, width = query.shape[-2:]
        grid = (-(-height // size), -(-width // size))
        whole = F.pad(query[None], (0, grid[1] * size - width, 0, grid[0] * size - height), mode="replicate")[0]
        side = min(round(size * self.config.window), max(height, width))
        with torch.no_grad():
            top, left = self._locate(whole, source, grid, side)  # (blocks,) each

        bordered_query = F.pad(whole[None], (1, 1, 1, 1))[0]
        bordered_source = F.pad(source[None], (1, 1, 1, 1))[0]
        query_rows = torch.arange(grid[0], device=query.device).repeat_interleave(grid[1]) * size
        query_columns = torch.arange(grid[1], device=query.device).repeat(grid[0]) * size
        steps = torch.arange(side, device=query.device)
        inside = ((steps < height)[:, None] & (steps < width)).flatten()  # a window may be larger than the source
        rows, columns, scores = [], [], []
        for part in torch.arange(len(top), device=query.device).split(blocks_at_once):
            q = cut_squares(bordered_query, query_rows[part], query_columns[part], size + 2)
            s = cut_squares(bordered_source, top[part], left[part], side + 2)
            similarity = patch_cosine(q, s).masked_fill(~inside, -1)  # (blocks, size², side²)
            score, best = similarity.max(-1)
            rows.append((top[part, None] + best // side).clamp(max=height - 1))
            columns.append((left[part, None] + best % side).clamp(max=width - 1))
            scores.append(score.clamp(0, 1))

        def unblock(parts: list[torch.Tensor]) -> torch.Tensor:
            image = torch.cat(parts).reshape(*grid, size, size).transpose(1, 2).reshape(grid[0] * size, grid[1] * size)
            return image[:height, :width]

        return unblock(rows), unblock(columns), unblock(scores)

    def _locate(self, query, source, grid, side) -> tuple[torch.Tensor, torch.Tensor]:
        """Top and left of the search window in `source` for each block of `query` `(C, H, W)`, by its dilated centre patches."""
        size = self.config.block_size
        _, height, width = source.shape
        similarity = torch.zeros(grid[0] * grid[1], height, width, device=query.device)
        centers = torch.arange(grid[0], device=query.device) * size + size // 2
        middles = torch.arange(grid[1], device=query.device) * size + size // 2
        for dilation in self.config.dilations:
            bordered = F.pad(query[None], (dilation,) * 4)[0]
            offsets = torch.arange(3, device=query.device) * dilation
            patches = bordered[:, (centers[:, None] + offsets)[:, None, :, None], (middles[:, None] + offsets)[None, :, None, :]]
            kernels = patches.permute(1, 2, 0, 3, 4).flatten(0, 1)  # (blocks, C, 3, 3)
            kernels = kernels / kernels.flatten(1).norm(dim=1).clamp(min=1e-6)[:, None, None, None]
            dots = F.conv2d(source[None], kernels, padding=dilation, dilation=dilation)[0]
            ones = torch.ones(1, 1, 3, 3, device=query.device)
            energy = F.conv2d(source.square().sum(0)[None, None], ones, padding=dilation, dilation=dilation)[0]
            similarity += dots / energy.sqrt().clamp(min=1e-6)
        best = similarity.flatten(1).argmax(1)
        top = (best // width - side // 2).clamp(0, max(height - side, 0))
        left = (best % width - side // 2).clamp(0, max(width - side, 0))
        return top, left


def cosine_in_place(query: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """Cosine similarity in [0, 1] of the 3 x 3 patches of `query` and `source` `(B, C, H, W)` around each pixel, `(B, H, W)`."""
    dots, *energies = (
        F.avg_pool2d((a * b).sum(1, keepdim=True), 3, 1, padding=1)
        for a, b in ((query, source), (query, query), (source, source))
    )
    norms = [energy.clamp(min=1e-12).sqrt() for energy in energies]
    return (dots / (norms[0] * norms[1]))[:, 0].clamp(0, 1)


def cut_squares(image: torch.Tensor, top: torch.Tensor, left: torch.Tensor, side: int) -> torch.Tensor:
    """Squares of `image` `(C, H, W)` at `top`, `left` `(K,)` as `(K, side, side, C)`; beyond the border the last pixel repeats."""
    steps = torch.arange(side, device=image.device)
    rows = (top[:, None] + steps).clamp(max=image.shape[-2] - 1)
    columns = (left[:, None] + steps).clamp(max=image.shape[-1] - 1)
    return image.permute(1, 2, 0)[rows[:, :, None], columns[:, None, :]]


def patch_cosine(query: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """Cosine similarity of all 3 x 3 patches of `query` `(K, a + 2, a + 2, C)` and `source` `(K, b + 2, b + 2, C)`.

    Patches are never unfolded: products of single pixels are summed along the nine shifts that both patches share.

    Returns:
        `(K, a * a, b * b)`.
    """
    a, b = query.shape[1] - 2, source.shape[1] - 2
    pixels = torch.einsum("kyxc,kvuc->kyxvu", query, source)
    dots = sum(pixels[:, i : i + a, j : j + a, i : i + b, j : j + b] for i in range(3) for j in range(3))
    query_energy, source_energy = (F.avg_pool2d(x.square().sum(-1)[:, None], 3, 1) * 9 for x in (query, source))
    norms = (
        query_energy.clamp(min=1e-12).sqrt().flatten(1)[:, :, None] * source_energy.clamp(min=1e-12).sqrt().flatten(1)[:, None]
    )
    return dots.flatten(3).flatten(1, 2) / norms


def gather_blocks(features: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, scale: int) -> torch.Tensor:
    """Move `scale` x `scale` squares of `features` `(B, C, h * scale, w * scale)`: the one at `rows`, `columns` `(B, h, w)` goes to
    the place where that entry stands."""
    batch, channels, height, width = features.shape
    steps = torch.arange(scale, device=features.device)
    fine_rows = (rows[:, :, None, :, None] * scale + steps[:, None, None]).expand(-1, -1, -1, -1, scale)
    fine_columns = (columns[:, :, None, :, None] * scale + steps).expand(-1, -1, scale, -1, -1)
    index = (fine_rows * width + fine_columns).flatten(1)[:, None].expand(-1, channels, -1)
    return features.flatten(2).gather(2, index).reshape(batch, channels, height, width)
