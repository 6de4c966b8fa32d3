"""Restormer, and PromptIR, which is Restormer with learned prompts between the levels of its
decoder.

Zamir et al., *Restormer: Efficient Transformer for High-Resolution Image Restoration* (CVPR 2022,
arXiv 2111.09881); Potlapalli et al., *PromptIR: Prompting for All-in-One Blind Image Restoration*
(NeurIPS 2023, arXiv 2306.13090). Guidance enters as in Lin et al. (CVPR 2024).

Written from the papers. Attention is over channels, so its map is small and commutes with the
projection behind it: both are applied to the values as one matrix. Everything works on
channels-last memory, where layer normalisation needs no reshuffling, and on a processor tile by
tile within each block.
"""

from collections.abc import Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from torch import nn

TILE = 3 * 2**19  # numbers in a tile of feature maps, 6 MiB in float32


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


def tiles(x: torch.Tensor, channels: int, border: int) -> Iterator[tuple[tuple, tuple, tuple]]:
    """Cut `(B, C, H, W)` into tiles so small that `channels` maps of one stay in the cache of a
    processor.

    Yields:
        indices of the tile with a border of `border` pixels where there is one, of the tile within
        that, and of the tile.
    """
    spans = []
    for size in x.shape[-2:]:
        count = max(1, round(size / max(16, (TILE / channels) ** 0.5)))
        ends = [size * i // count for i in range(count + 1)]
        seen = [(max(start - border, 0), min(end + border, size)) for start, end in pairwise(ends)]
        inside = [
            slice(start - low, end - low) for (low, _), start, end in zip(seen, ends, ends[1:])
        ]
        spans.append(
            [
                (slice(*s), i, slice(start, end))
                for s, i, start, end in zip(seen, inside, ends, ends[1:])
            ]
        )
    for rows in spans[0]:
        for columns in spans[1]:
            yield tuple((..., row, column) for row, column in zip(rows, columns))


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


class ChannelAttention(nn.Module):
    """Attention between channels ("transposed"): each of `heads` groups mixes its channels by the
    cosine of their images."""

    def __init__(self, channels: int, heads: int, bias: bool = False):
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=bias)
        self.depthwise = nn.Conv2d(
            3 * channels, 3 * channels, 3, padding=1, groups=3 * channels, bias=bias
        )
        self.project = nn.Conv2d(channels, channels, 1, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.split(x)
        return self.mix(self.weigh(*self.compare(query, key)), value)

    def split(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Queries, keys and values, `(B, C, H, W)` each."""
        return self.depthwise(self.qkv(x)).chunk(3, dim=1)

    def compare(
        self, query: torch.Tensor, key: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Products of the channels of each head `(B, heads, c, c)`, and their squared lengths `(B,
        heads, c)`: sums over pixels."""
        # (B, HW, c) each.
        query, key = (
            x.permute(0, 2, 3, 1).flatten(1, 2).chunk(self.heads, dim=2) for x in (query, key)
        )
        products = torch.stack([q.transpose(1, 2) @ k for q, k in zip(query, key)], dim=1)
        lengths = (
            torch.stack([part.square().sum(1) for part in parts], dim=1) for parts in (query, key)
        )
        return products, *lengths

    def weigh(
        self, products: torch.Tensor, query_lengths: torch.Tensor, key_lengths: torch.Tensor
    ) -> torch.Tensor:
        """How much of each channel goes into each other, `(B, heads, c, c)`."""
        lengths = [squares.sqrt().clamp(min=1e-12) for squares in (query_lengths, key_lengths)]
        cosines = products / (lengths[0][..., :, None] * lengths[1][..., None, :])
        return (cosines * self.temperature).softmax(-1)

    def mix(self, weights: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Values mixed by `weights`, and projected."""
        if isinstance(self.project, nn.Conv2d):
            out_weight = self.project.weight.view(len(self.project.weight), self.heads, -1)
            matrices = torch.einsum("ohd,bhde->bohe", out_weight, weights.to(out_weight)).flatten(2)
            mixed = transform(value, matrices.to(value))
            return (
                mixed
                if self.project.bias is None
                else mixed + self.project.bias.to(mixed)[:, None, None]
            )
        mixed = torch.einsum(
            "bhde,bhenm->bhdnm", weights.to(value), value.unflatten(1, (self.heads, -1))
        )
        return self.project(mixed.flatten(1, 2))  # an adapter sits on it


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


class RestormerBlock(nn.Module):
    """`x + attention(norm(x))`, then `x + feed_forward(norm(x))`; `(B, C, H, W)` -> the same.

    Inference on a processor goes tile by tile: between its convolutions a block has many times the
    channels of `x`, which would pass through memory again and again.
    """

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
        self.attention = ChannelAttention(channels, heads, bias)
        self.norm2 = ChannelNorm(channels, norm_bias)
        self.feed_forward = GatedFeedForward(channels, expansion, bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if in_tiles(x):
            return self.feed_forward_in_tiles(self.attention_in_tiles(x))
        x = x + self.attention(self.norm1(x))
        return x + self.feed_forward(self.norm2(x))

    def attention_in_tiles(self, x: torch.Tensor) -> torch.Tensor:
        values, sums = torch.empty_like(x), None
        for seen, inside, tile in tiles(x, 3 * x.shape[1], border=1):
            query, key, value = (part[inside] for part in self.attention.split(self.norm1(x[seen])))
            values[tile] = value
            compared = self.attention.compare(query, key)
            sums = [part.float() + total for part, total in zip(compared, sums or (0, 0, 0))]
        weights = self.attention.weigh(*sums)
        for *_, tile in tiles(x, 3 * x.shape[1], border=1):
            values[tile] = x[tile] + self.attention.mix(weights, values[tile])
        return values

    def feed_forward_in_tiles(self, x: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        for seen, inside, tile in tiles(x, self.feed_forward.depthwise.in_channels, border=1):
            out[tile] = x[tile] + self.feed_forward(self.norm2(x[seen]))[inside]
        return out


class GuidanceFusion(nn.Module):
    """`F + strength * alpha * B([F, F_g])`: a block of the backbone's own kind on both feature
    maps, gated from zero.

    The backbone's features, which are small in its depths, are normalised before: the block's own
    norm sees both maps at once and would let the larger one drown the other.
    """

    def __init__(
        self,
        channels: int,
        guidance_channels: int,
        heads: int,
        expansion: float,
        norm_bias: bool,
        bias: bool,
    ):
        super().__init__()
        self.norm = ChannelNorm(channels, norm_bias)
        both = channels + guidance_channels
        self.block = RestormerBlock(
            both, heads if both % heads == 0 else 1, expansion, norm_bias, bias
        )
        self.project = nn.Conv2d(both, channels, 1)
        self.alpha = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(
        self, x: torch.Tensor, guidance: torch.Tensor, strength: float | torch.Tensor
    ) -> torch.Tensor:
        guidance = fit(guidance, *x.shape[-2:]).to(x)
        return x + strength * self.alpha * self.project(
            self.block(torch.cat([self.norm(x), guidance], dim=1))
        )


class PromptBlock(nn.Module):
    """A prompt for features `(B, C, H, W)`: learned images, weighed by what the features are like,
    resized to them.

    Interaction: prompt and features are joined, mixed by a transformer block and reduced again.
    """

    def __init__(
        self, channels: int, prompt_channels: int, count: int, size: int, out_channels: int, **block
    ):
        super().__init__()
        self.prompts = nn.Parameter(torch.rand(count, prompt_channels, size, size))
        self.weigh = nn.Linear(channels, count)
        self.smooth = nn.Conv2d(prompt_channels, prompt_channels, 3, padding=1, bias=False)
        self.block = RestormerBlock(channels + prompt_channels, **block)
        self.reduce = nn.Conv2d(
            channels + prompt_channels, out_channels, 1, bias=block.get("bias", False)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = self.weigh(x.mean((2, 3))).softmax(-1)
        prompt = torch.einsum("bn,nchw->bchw", weights, self.prompts.to(weights))
        prompt = self.smooth(
            F.interpolate(prompt, x.shape[-2:], mode="bilinear", align_corners=False)
        )
        return self.reduce(self.block(torch.cat([x, prompt.to(x)], dim=1)))


def fit(features: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Crop features at the right and bottom, or repeat their border there, until they are `height`
    x `width`."""
    features = features[..., :height, :width]
    missing = (0, width - features.shape[-1], 0, height - features.shape[-2])
    return F.pad(features, missing, mode="replicate") if any(missing) else features


def blocks(channels: int, count: int, heads: int, **options) -> nn.ModuleList:
    return nn.ModuleList(RestormerBlock(channels, heads, **options) for _ in range(count))


class Backbone(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """What both networks share: a U of transformer blocks whose decoder takes in skips, prompts and
    guidance."""

    _supports_gradient_checkpointing = True
    _repeated_blocks = ["RestormerBlock"]
    _no_split_modules = ["RestormerBlock"]
    _lora_layers = ["qkv", "project", "expand", "reduce"]

    # Of a matcher that costs a small part of the network, finest level first.
    guidance_widths = (
        32,
        64,
        128,
        256,
        512,
    )

    def _build(
        self, in_channels, out_channels, width, encoder_depths, middle_depth, decoder_depths,
        refinement_depth, heads, expansion, norm_bias, bias, guidance_channels, fusion,
        dual_pixel=False, prompts=None,
    ) -> None:  # fmt: skip
        depth = len(encoder_depths)
        if len(decoder_depths) != depth or len(heads) != depth + 1:
            raise ValueError(
                f"`decoder_depths` must have {depth} entries like `encoder_depths`, and `heads` "
                "one more, "
                f"got {len(decoder_depths)} and {len(heads)}."
            )
        if fusion not in ("encoder", "decoder", "both"):
            raise ValueError(f"`fusion` must be encoder, decoder or both, got {fusion!r}.")
        if guidance_channels is not None and len(guidance_channels) != depth + 1:
            raise ValueError(
                f"`guidance_channels` must have {depth + 1} entries ({depth} levels and the "
                f"middle), got {len(guidance_channels)}."
            )
        options = {"expansion": expansion, "norm_bias": norm_bias, "bias": bias}
        widths = [width * 2**level for level in range(depth + 1)]
        self.embed = nn.Conv2d(in_channels, width, 3, padding=1, bias=bias)
        self.encoders = nn.ModuleList(
            blocks(c, n, h, **options) for c, n, h in zip(widths, encoder_depths, heads)
        )
        self.downs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, c // 2, 3, padding=1, bias=False), nn.PixelUnshuffle(2))
            for c in widths[:-1]
        )
        self.middle = blocks(widths[-1], middle_depth, heads[-1], **options)

        self.prompts, self.ups, self.reduces = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        self.decoders, decoder_fusions = nn.ModuleList(), []
        channels = widths[-1]
        for level, count in zip(reversed(range(depth)), decoder_depths):
            if prompts is not None:
                below = channels
                # As published: halved at the deepest level only.
                channels = widths[level] if level == depth - 1 else below
                sizes = (prompts["channels"][level], prompts["count"], prompts["sizes"][level])
                self.prompts.append(
                    PromptBlock(below, *sizes, channels, heads=prompts["heads"], **options)
                )
            self.ups.append(
                nn.Sequential(
                    nn.Conv2d(channels, 2 * channels, 3, padding=1, bias=False), nn.PixelShuffle(2)
                )
            )
            joined = channels // 2 + widths[level]
            # The finest level keeps what it has joined.
            channels = widths[level] if level else joined
            self.reduces.append(
                nn.Conv2d(joined, channels, 1, bias=bias) if level else nn.Identity()
            )
            self.decoders.append(blocks(channels, count, heads[level], **options))
            if guidance_channels is not None and fusion != "encoder":
                decoder_fusions.append(
                    GuidanceFusion(channels, guidance_channels[level], heads[level], **options)
                )
        self.refinement = blocks(channels, refinement_depth, heads[0], **options)
        self.skip = nn.Conv2d(width, channels, 1, bias=bias) if dual_pixel else None
        self.output = nn.Conv2d(channels, out_channels, 3, padding=1, bias=bias)

        encoder_fusions = []
        if guidance_channels is not None and fusion != "decoder":
            encoder_fusions = [
                GuidanceFusion(c, g, h, **options)
                for c, g, h in zip(widths, guidance_channels, heads)
            ]
        self.encoder_fusions = nn.ModuleList(encoder_fusions)
        self.decoder_fusions = nn.ModuleList(decoder_fusions)
        self.gradient_checkpointing = False

    @property
    def size_multiple(self) -> int:
        """Sides are padded to a multiple of this many pixels."""
        return 2 ** len(self.config.encoder_depths)

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
        if degraded.ndim != 4 or degraded.shape[1] != self.config.in_channels:
            raise ValueError(
                f"`degraded` must be (B, {self.config.in_channels}, H, W), got "
                f"{tuple(degraded.shape)}."
            )
        guidance = (
            self._check_guidance(guidance_features)
            if torch.is_tensor(strength) or strength
            else None
        )
        height, width = degraded.shape[-2:]
        multiple = self.size_multiple
        image = fit(degraded, height + -height % multiple, width + -width % multiple)

        x = embedded = self.embed(image.contiguous(memory_format=torch.channels_last))
        skips = []
        for level, (encoder, shrink) in enumerate(zip(self.encoders, self.downs)):
            x = self._fuse(self.encoder_fusions, level, x, guidance, level, strength)
            x = self._run(encoder, x)
            skips.append(x)
            x = shrink(x)
        depth = len(self.encoders)
        x = self._fuse(self.encoder_fusions, depth, x, guidance, depth, strength)
        x = self._run(self.middle, x)
        for i, (grow, decoder) in enumerate(zip(self.ups, self.decoders)):
            x = self.prompts[i](x) if len(self.prompts) else x
            x = torch.cat([grow(x), skips.pop()], dim=1)
            x = self.reduces[i](x)
            x = self._fuse(self.decoder_fusions, i, x, guidance, depth - 1 - i, strength)
            x = self._run(decoder, x)
        x = self._run(self.refinement, x)
        restored = (
            self.output(x) + image if self.skip is None else self.output(x + self.skip(embedded))
        )
        return restored[..., :height, :width]

    def _check_guidance(self, features: list[torch.Tensor] | None) -> list[torch.Tensor] | None:
        expected = self.config.guidance_channels
        if features is None:
            return None
        if expected is None:
            raise ValueError(
                f"This {type(self).__name__} takes no guidance; build it with `guidance_channels`, "
                "or pass no `guidance_features`."
            )
        channels = [f.shape[1] for f in features]
        if channels != list(expected):
            raise ValueError(
                f"`guidance_features` must have {list(expected)} channels, finest level first, got "
                f"{channels}."
            )
        return features

    def _fuse(self, fusions, index, x, guidance, level, strength) -> torch.Tensor:
        return (
            fusions[index](x, guidance[level], strength)
            if guidance is not None and len(fusions)
            else x
        )

    def _run(self, group: nn.ModuleList, x: torch.Tensor) -> torch.Tensor:
        for block in group:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                x = self._gradient_checkpointing_func(block, x)
            else:
                x = block(x)
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
        self._build(
            in_channels, out_channels, width, encoder_depths, middle_depth, decoder_depths,
            refinement_depth, heads, expansion,
            norm_bias, bias, guidance_channels, fusion, dual_pixel,
        )  # fmt: skip


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
        prompts = {
            "channels": prompt_channels,
            "sizes": prompt_sizes,
            "count": prompt_count,
            "heads": prompt_heads,
        }
        self._build(
            in_channels, in_channels, width, encoder_depths, middle_depth, decoder_depths,
            refinement_depth, heads, expansion,
            norm_bias, bias, guidance_channels, fusion, prompts=prompts,
        )  # fmt: skip
