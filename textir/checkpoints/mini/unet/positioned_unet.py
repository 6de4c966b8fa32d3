"""A UNet of Stable Diffusion's kind that knows where it is: what small ones need to paint a layout
from words alone.

Large UNets find positions through their many padded convolutions; with two levels and one step
there is nothing they could find them by. The class is diffusers' own, with a learned map added
behind its first convolution. Ours; not in the paper.
"""

import functools

import torch
import torch.nn.functional as F
from diffusers import ModelMixin, UNet2DConditionModel  # noqa: F401  diffusers looks for the first in this module when it loads
from torch import nn


class PositionedConv(nn.Module):
    """A convolution and a learned map `(1, C, S, S)` added to what it returns, stretched to the
    size at hand."""

    def __init__(self, conv: nn.Conv2d, size: int):
        super().__init__()
        self.conv = conv
        self.positions = nn.Parameter(0.1 * torch.randn(1, conv.out_channels, size, size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        return x + F.interpolate(
            self.positions, x.shape[-2:], mode="bilinear", align_corners=False
        ).to(x.dtype)


class PositionedUNet(UNet2DConditionModel):
    """`UNet2DConditionModel` with a learned map of positions; the arguments are those of its
    parent."""

    @functools.wraps(UNet2DConditionModel.__init__)  # the configuration is read from this signature
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        size = self.config.sample_size
        self.conv_in = PositionedConv(self.conv_in, size if isinstance(size, int) else max(size))
