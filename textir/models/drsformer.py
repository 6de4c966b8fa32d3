"""DRSformer: a transformer whose attention keeps only the best matches, with experts for what it
misses.

Chen et al., *Learning A Sparse Transformer Network for Effective Image Deraining* (CVPR 2023, arXiv
2303.11950); the experts are those of Suganuma et al., *Attention-based Adaptive Selection of
Operations for Image Restoration in the Presence of Unknown Combined Distortions* (CVPR 2019).
Guidance enters as in Lin et al. (CVPR 2024).

Written from the papers. The four sparse attention maps are sums over the same ranking, so one
sorted softmax gives all of them at once, and, being over channels, they commute with the projection
behind them. Grouped convolutions of channel pairs are done as two depthwise ones on channels sorted
by parity, and what experts do last is one matrix with what mixes them. Everything works on
channels-last memory, on a processor tile by tile.
"""

from collections.abc import Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from torch import nn

# Shares of the channels that the four sparse attention maps keep.
KEPT = (
    1 / 2,
    2 / 3,
    3 / 4,
    4 / 5,
)
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


def kernel_of(layer: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Kernel `(C_out, C_in / groups, k, k)` and bias `(C_out,)` of a convolution, adapters of one
    of single pixels included."""
    base = getattr(layer, "base_layer", layer)
    bias = torch.zeros_like(base.weight[:, 0, 0, 0]) if base.bias is None else base.bias
    if layer is base:
        return base.weight, bias
    unit = torch.eye(base.in_channels, device=bias.device, dtype=bias.dtype)[..., None, None]
    return (layer(unit) - bias[:, None, None]).transpose(0, 1), bias


def depthwise(x: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return F.conv2d(x, kernel, bias, padding=kernel.shape[-1] // 2, groups=len(kernel))


class SparseChannelAttention(nn.Module):
    """Attention between channels of which each mixes its best matches only: the half, 2/3, 3/4 and
    4/5 of them, in learned shares."""

    def __init__(self, channels: int, heads: int, bias: bool = False):
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.shares = nn.ParameterList(nn.Parameter(torch.tensor([0.2])) for _ in KEPT)
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
        lengths = [
            squares.float().sqrt().clamp(min=1e-12) for squares in (query_lengths, key_lengths)
        ]
        cosines = products.float() / (lengths[0][..., :, None] * lengths[1][..., None, :])
        return self.keep_best(cosines * self.temperature.float())

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

    def keep_best(self, logits: torch.Tensor) -> torch.Tensor:
        """The weighted sum of the softmax over the largest logits of each row `(B, heads, C, C)`,
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


class MixedScaleFeedForward(nn.Module):
    """Two branches of depthwise convolutions, 3 x 3 and 5 x 5, that exchange half of their channels
    in between."""

    def __init__(self, channels: int, expansion: float, bias: bool = False):
        super().__init__()
        hidden = int(channels * expansion)
        self.expand = nn.Conv2d(channels, 2 * hidden, 1, bias=bias)
        self.depthwise3 = nn.Conv2d(
            2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden, bias=bias
        )
        self.depthwise5 = nn.Conv2d(
            2 * hidden, 2 * hidden, 5, padding=2, groups=2 * hidden, bias=bias
        )
        self.merge3 = PairedConv(hidden, 3, bias)
        self.merge5 = PairedConv(hidden, 5, bias)
        self.reduce = nn.Conv2d(2 * hidden, channels, 1, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.expand(x)
        fine, coarse = (
            F.relu_(branch(x)).chunk(2, dim=1) for branch in (self.depthwise3, self.depthwise5)
        )
        fine, coarse = (
            torch.cat([fine[0], coarse[0]], dim=1),
            torch.cat([fine[1], coarse[1]], dim=1),
        )
        return self.reduce(
            torch.cat([F.relu_(self.merge3(fine)), F.relu_(self.merge5(coarse))], dim=1)
        )

    def quarters(self) -> list[tuple]:
        """The kernels and biases of each layer, sorted by half and then by even and odd channels:
        pairs become sums of two depthwise convolutions, and no feature maps are joined or cut.
        Zeros fill each quarter up to the width of a processor's registers.

        Where the halves are odd, the pair in the middle has a channel of both branches; the sum of
        its fine one takes in the other.
        """
        hidden = len(self.merge3.weight)
        odd, late = hidden % 2, hidden // 2
        even = hidden - late
        width = -(-even // 16) * 16

        def fill(rows: torch.Tensor) -> torch.Tensor:
            return F.pad(rows, [0, 0] * (rows.ndim - 1) + [0, width - len(rows)])

        def halves(layer: nn.Module) -> list[list[tuple]]:
            chunks = zip(*(part.chunk(2) for part in kernel_of(layer)))
            return [
                [(fill(kernel[i::2]), fill(bias[i::2])) for i in (0, 1)] for kernel, bias in chunks
            ]

        def pairs(layer: PairedConv) -> tuple:
            kernel, bias = kernel_of(layer)
            fine = (fill(kernel[:even, :1]), fill(bias[:even])), (fill(kernel[:late, 1:]), None)
            rest = fill(F.pad(bias[even:], (odd, 0)))
            return fine, (
                (fill(kernel[late:, odd : odd + 1]), rest),
                (fill(kernel[even:, 1 - odd : 2 - odd]), None),
            )

        def columns(kernel: torch.Tensor) -> tuple:
            kernel = kernel.transpose(0, 1)
            parts = kernel[:even], torch.cat([torch.zeros_like(kernel[:odd]), kernel[even:]])
            return tuple(fill(part).transpose(0, 1) for part in parts)

        branches = zip(halves(self.depthwise3), halves(self.depthwise5))
        kernel, bias = kernel_of(self.reduce)
        reduce = map(columns, kernel.chunk(2, dim=1))
        return list(
            zip(
                halves(self.expand),
                branches,
                map(pairs, (self.merge3, self.merge5)),
                reduce,
                (bias, None),
            )
        )

    def work(self, x: torch.Tensor, quarters: list[tuple]) -> torch.Tensor:
        """The same as `forward`, from `quarters`."""
        odd, middle = len(self.merge3.weight) % 2, len(self.merge3.weight) // 2
        out = 0
        for expand, branches, pairs, (fine_columns, coarse_columns), bias in quarters:
            x_halves = [F.conv2d(x, *kernel) for kernel in expand]
            seen = [
                [F.relu_(depthwise(maps, *kernel)) for maps, kernel in zip(x_halves, branch)]
                for branch in branches
            ]
            (fine, more), (coarse, rest) = (
                [depthwise(m, *kernel) for m, kernel in zip(ms, pair)]
                for ms, pair in zip(seen, pairs)
            )
            fine += more
            coarse[:, odd:] += rest[:, : rest.shape[1] - odd]
            if odd:
                fine[:, middle] += coarse[:, 0]
            out = (
                out
                + F.conv2d(F.relu_(fine), fine_columns, bias)
                + F.conv2d(F.relu_(coarse), coarse_columns)
            )
        return out


class SparseTransformerBlock(nn.Module):
    """`x + attention(norm(x))`, then `x + feed_forward(norm(x))`; `(B, C, H, W)` -> the same."""

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
        self.attention = SparseChannelAttention(channels, heads, bias)
        self.norm2 = ChannelNorm(channels, norm_bias)
        self.feed_forward = MixedScaleFeedForward(channels, expansion, bias)

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
        out, quarters = torch.empty_like(x), self.feed_forward.quarters()
        for seen, inside, tile in tiles(x, len(self.feed_forward.merge3.weight), border=4):
            out[tile] = x[tile] + self.feed_forward.work(self.norm2(x[seen]), quarters)[inside]
        return out


def expert(channels: int, kernel: int, dilation: int, depth: int) -> nn.Sequential:
    """Depthwise and pointwise convolution, `depth` times with ReLU in between."""
    layers = []
    for _ in range(depth):
        padding = dilation * (kernel // 2)
        layers += [
            nn.Conv2d(
                channels,
                channels,
                kernel,
                padding=padding,
                dilation=dilation,
                groups=channels,
                bias=False,
            ),
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
        for seen, inside, tile in tiles(x, 2 * x.shape[1], border=6):
            out[tile] = F.relu_(self.work(x[seen], matrices)[inside])
        return out

    def join(self, weights: torch.Tensor) -> torch.Tensor:
        """What follows the last depthwise convolutions as one matrix `(B, C, 8 C)`: pointwise ones,
        weights `(B, 8)` and the mix."""
        # (8, C, C)
        mix = kernel_of(self.mix)[0].flatten(1).unflatten(1, (self.COUNT, -1)).transpose(0, 1)
        last = torch.stack([kernel_of(operation[-1])[0].flatten(1) for operation in self.experts])
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
        weights = self.weigh(x.mean((2, 3))).unflatten(1, (len(self.layers), -1)).softmax(-1)
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
        self.block = SparseTransformerBlock(
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


def fit(features: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Crop features at the right and bottom, or repeat their border there, until they are `height`
    x `width`."""
    features = features[..., :height, :width]
    missing = (0, width - features.shape[-1], 0, height - features.shape[-2])
    return F.pad(features, missing, mode="replicate") if any(missing) else features


class DRSformer(ModelMixin, ConfigMixin, PeftAdapterMixin):
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

    _supports_gradient_checkpointing = True
    _repeated_blocks = ["SparseTransformerBlock"]
    _no_split_modules = ["SparseTransformerBlock", "ExpertLayer"]
    _lora_layers = ["qkv", "project", "expand", "reduce"]

    # Of a matcher that costs a small part of the network, finest level first.
    guidance_widths = (
        32,
        64,
        128,
        256,
        512,
    )

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

        def blocks(channels: int, count: int, level: int) -> nn.ModuleList:
            return nn.ModuleList(
                SparseTransformerBlock(channels, heads[level], **options) for _ in range(count)
            )

        def fusion_at(channels: int, level: int) -> GuidanceFusion:
            return GuidanceFusion(channels, guidance_channels[level], heads[level], **options)

        self.embed = nn.Conv2d(in_channels, width, 3, padding=1, bias=bias)
        self.first_experts = ExpertCompensator(width) if experts else nn.Identity()
        self.encoders = nn.ModuleList(
            blocks(c, n, level) for level, (c, n) in enumerate(zip(widths, encoder_depths))
        )
        self.downs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, c // 2, 3, padding=1, bias=False), nn.PixelUnshuffle(2))
            for c in widths[:-1]
        )
        self.middle = blocks(widths[-1], middle_depth, depth)
        self.ups, self.reduces, self.decoders = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        levels = list(reversed(range(depth)))
        for level, count in zip(levels, decoder_depths):
            below, here = widths[level + 1], widths[level] if level else 2 * width
            self.ups.append(
                nn.Sequential(
                    nn.Conv2d(below, 2 * below, 3, padding=1, bias=False), nn.PixelShuffle(2)
                )
            )
            self.reduces.append(nn.Conv2d(below, here, 1, bias=bias) if level else nn.Identity())
            self.decoders.append(blocks(here, count, level))
        self.last_experts = ExpertCompensator(2 * width) if experts else nn.Identity()
        self.output = nn.Conv2d(2 * width, in_channels, 3, padding=1, bias=bias)

        into_encoder = guidance_channels is not None and fusion != "decoder"
        into_decoder = guidance_channels is not None and fusion != "encoder"
        self.encoder_fusions = nn.ModuleList(
            fusion_at(widths[level], level) for level in range(depth + 1) if into_encoder
        )
        self.decoder_fusions = nn.ModuleList(
            fusion_at(widths[level] if level else 2 * width, level)
            for level in levels
            if into_decoder
        )
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
            restored images `(B, in_channels, H, W)`, not clipped.

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

        x = self._run(
            [self.first_experts], self.embed(image.contiguous(memory_format=torch.channels_last))
        )
        skips = []
        for level, (encoder, shrink) in enumerate(zip(self.encoders, self.downs)):
            x = self._fuse(self.encoder_fusions, level, x, guidance, level, strength)
            x = self._run(encoder, x)
            skips.append(x)
            x = shrink(x)
        depth = len(self.encoders)
        x = self._fuse(self.encoder_fusions, depth, x, guidance, depth, strength)
        x = self._run(self.middle, x)
        for i, (grow, reduce, decoder) in enumerate(zip(self.ups, self.reduces, self.decoders)):
            x = reduce(torch.cat([grow(x), skips.pop()], dim=1))
            x = self._fuse(self.decoder_fusions, i, x, guidance, depth - 1 - i, strength)
            x = self._run(decoder, x)
        x = self._run([self.last_experts], x)
        return (self.output(x) + image)[..., :height, :width]

    def _check_guidance(self, features: list[torch.Tensor] | None) -> list[torch.Tensor] | None:
        expected = self.config.guidance_channels
        if features is None:
            return None
        if expected is None:
            raise ValueError(
                "This DRSformer takes no guidance; build it with `guidance_channels`, or pass no "
                "`guidance_features`."
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

    def _run(self, group, x: torch.Tensor) -> torch.Tensor:
        for block in group:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                x = self._gradient_checkpointing_func(block, x)
            else:
                x = block(x)
        return x
