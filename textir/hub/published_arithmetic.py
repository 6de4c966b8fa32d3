"""The published arithmetic of the restoration networks, on the same weights: what the benchmark
compares ours with.

`plain(model)` swaps, within the block, the forward passes of layers for straightforward ones:
images channels first in memory, layer normalisation that reshuffles them to tokens and back,
variance computed apart, attention as four (or one) products of whole maps, no tiles, experts
weighed one by one, grouped convolutions as they are. Outputs agree.
"""

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from textir.models import nafnet, restormer


def token_norm(self, x: torch.Tensor) -> torch.Tensor:
    """Layer normalisation of Restormer and DRSformer: to tokens, mean and variance apart, back to
    an image."""
    height, width = x.shape[-2:]
    tokens = x.flatten(2).transpose(1, 2).contiguous()
    variance = tokens.var(-1, keepdim=True, unbiased=False)
    if self.bias is None:
        tokens = tokens / torch.sqrt(variance + 1e-5) * self.weight
    else:
        tokens = (tokens - tokens.mean(-1, keepdim=True)) / torch.sqrt(
            variance + 1e-5
        ) * self.weight + self.bias
    return tokens.transpose(1, 2).contiguous().unflatten(2, (height, width))


def image_norm(self, x: torch.Tensor) -> torch.Tensor:
    """Layer normalisation of NAFNet."""
    mean = x.mean(1, keepdim=True)
    y = (x - mean) / ((x - mean).pow(2).mean(1, keepdim=True) + 1e-6).sqrt()
    return self.weight.view(1, -1, 1, 1) * y + self.bias.view(1, -1, 1, 1)


def heads(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits `(B, heads, c, c)` and values `(B, heads, c, HW)` of attention over channels."""
    q, k, v = (
        part.unflatten(1, (self.heads, -1)).flatten(3).contiguous()
        for part in self.depthwise(self.qkv(x)).chunk(3, dim=1)
    )
    return (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)) * self.temperature, v


def attention(self, x: torch.Tensor) -> torch.Tensor:
    logits, v = heads(self, x)
    return self.project((logits.softmax(-1) @ v).flatten(1, 2).unflatten(2, x.shape[-2:]))


def sparse_attention(self, x: torch.Tensor) -> torch.Tensor:
    logits, v = heads(self, x)
    total = 0
    for share, part in zip(self.shares, restormer.KEPT):
        best = logits.topk(int(logits.shape[-1] * part), dim=-1).indices
        mask = torch.zeros_like(logits).scatter_(-1, best, 1.0)
        kept = torch.where(mask > 0, logits, torch.full_like(logits, float("-inf")))
        total = total + (kept.softmax(-1) @ v) * share
    return self.project(total.flatten(1, 2).unflatten(2, x.shape[-2:]))


def block(self, x: torch.Tensor) -> torch.Tensor:
    """A transformer block of Restormer or DRSformer on whole maps, not tile by tile."""
    x = x + self.attention(self.norm1(x))
    return x + self.feed_forward(self.norm2(x))


def naf_block(self, x: torch.Tensor, wish=None) -> torch.Tensor:
    """A block of NAFNet on whole maps."""
    mixed = self.mix(x, wish)
    return self.feed_forward(x, mixed * self.attend(mixed), wish)


def gated_feed_forward(self, x: torch.Tensor) -> torch.Tensor:
    gate, value = self.depthwise(self.expand(x)).chunk(2, dim=1)
    return self.reduce(F.gelu(gate) * value)


def expert_layer(self, x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    results = [operation(x) for operation in self.experts]
    results.append(F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False))
    weighed = [
        result * weight[:, None, None, None] for result, weight in zip(results, weights.unbind(1))
    ]
    return F.relu(self.mix(torch.cat(weighed, dim=1)))


def paired_conv(self, x: torch.Tensor) -> torch.Tensor:
    return F.conv2d(
        x, self.weight, self.bias, padding=self.weight.shape[-1] // 2, groups=len(self.weight)
    )


PLAIN = {
    restormer.ChannelNorm: token_norm,
    restormer.ChannelAttention: attention,
    restormer.GatedFeedForward: gated_feed_forward,
    restormer.RestormerBlock: block,
    restormer.SparseChannelAttention: sparse_attention,
    restormer.PairedConv: paired_conv,
    restormer.SparseTransformerBlock: block,
    restormer.ExpertLayer: expert_layer,
    nafnet.LayerNorm2d: image_norm,
    nafnet.NAFBlock: naf_block,
}


@contextlib.contextmanager
def plain(model: nn.Module) -> Iterator[nn.Module]:
    """Within the block the model computes the same the plain way."""
    swapped = [module for module in model.modules() if type(module) in PLAIN]
    kernels = [parameter for parameter in model.parameters() if parameter.ndim == 4]
    weights = [kernel.data for kernel in kernels]
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    channels_first = first.register_forward_pre_hook(
        lambda module, inputs: tuple(x.contiguous() for x in inputs)
    )
    try:
        # Anew: `contiguous()` leaves kernels of one pixel or one channel as they are.
        for kernel in kernels:
            kernel.data = torch.empty(kernel.shape, dtype=kernel.dtype, device=kernel.device).copy_(
                kernel.data
            )
        for module in swapped:
            module.forward = PLAIN[type(module)].__get__(module)
        yield model
    finally:
        channels_first.remove()
        for kernel, weight in zip(kernels, weights):
            kernel.data = weight
        for module in swapped:
            module.__dict__.pop("forward", None)
