"""Says what is wrong with a photo: a small head on the image tokens, several degradations at once,
each with its severity.

Ours; the paper restores each task with a network of its own and needs no detector.
"""

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.utils import BaseOutput
from torch import nn


@dataclass
class DetectedDegradations(BaseOutput):
    """What a detector sees.

    Attributes:
        logits: `(B, L)`; `sigmoid` gives the probability of each degradation, independent of the
            others.
        severity: `(B, L)` in [0, 1], 0 slight and 1 extreme; only meaningful where the degradation
            is present.
    """

    logits: torch.Tensor = None  # defaults let accelerate rebuild outputs under mixed precision
    severity: torch.Tensor = None


class TextureBranch(nn.Module):
    """Statistics of fine structure: `(B, 3, H, W)` -> `(B, 6 * width)`.

    Four convolutions, the first on differences from the local mean, each but that one at half the
    size of the one before; of the last two the mean and the deviation over all pixels.
    """

    def __init__(self, width: int):
        super().__init__()
        channels = (3, width, width, width, 2 * width)
        self.layers = nn.ModuleList()
        for source, target in itertools.pairwise(channels):
            stride = 2 if len(self.layers) else 1
            self.layers.append(nn.Conv2d(source, target, 3, stride=stride, padding=1))
        self.activation = nn.GELU()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        pixels = pixels.to(self.layers[0].weight.dtype)
        x = 4 * (pixels - F.avg_pool2d(pixels, 7, stride=1, padding=3, count_include_pad=False))
        statistics = []
        for layer in self.layers:
            x = self.activation(layer(x))
            statistics += [x.mean((2, 3)), x.flatten(2).std(-1)]
        return torch.cat(statistics[-4:], dim=1)


class DegradationDetector(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """Multi-label classifier of degradations.

    Args:
        image_dim: width of the image tokens.
        labels: names of the degradations, in the order of the outputs.
        width: width of the hidden layer.
        pixel_width: channels of a small convolutional branch that looks at native pixels too;
            `None` goes by the tokens alone. Native pixels show noise, blocks and blur. An image
            encoder sees the image squeezed into its square, which hides them.
    """

    _lora_layers = ["hidden", "presence", "severity"]

    @register_to_config
    def __init__(
        self,
        image_dim: int = 1280,
        labels: tuple[str, ...] = (
            "noise",
            "rain",
            "haze",
            "blur",
            "defocus",
            "lowlight",
            "jpeg",
            "downup",
        ),
        width: int = 256,
        pixel_width: int | None = None,
    ):
        super().__init__()
        self.norm = nn.LayerNorm(image_dim)
        self.attention = nn.Linear(image_dim, 1)
        self.hidden = nn.Linear(2 * image_dim + 6 * (pixel_width or 0), width)
        self.activation = nn.GELU()
        self.presence = nn.Linear(width, len(labels))
        self.severity = nn.Linear(width, len(labels))
        if pixel_width is not None:
            self.texture = TextureBranch(pixel_width)

    def forward(
        self, image_tokens: torch.Tensor, pixels: torch.Tensor | None = None
    ) -> DetectedDegradations:
        """Judge images by their tokens `(B, 1 + P, image_dim)`, the class token first.

        A detector with a branch for native pixels looks at `(B, 3, H, W)` in [0, 1] too.

        Raises:
            ValueError: if the tokens have another width, or pixels are missing.
        """
        if image_tokens.ndim != 3 or image_tokens.shape[-1] != self.config.image_dim:
            raise ValueError(
                f"`image_tokens` must be (B, 1 + patches, {self.config.image_dim}), got "
                f"{tuple(image_tokens.shape)}."
            )
        tokens = self.norm(image_tokens)
        weights = self.attention(tokens[:, 1:]).softmax(dim=1)
        pooled = [tokens[:, 0], (weights * tokens[:, 1:]).sum(1)]
        if self.config.pixel_width is not None:
            if pixels is None:
                raise ValueError("This detector looks at native pixels too; pass `pixels`.")
            pooled.append(self.texture(pixels))
        pooled = torch.cat(pooled, dim=-1)
        hidden = self.activation(self.hidden(pooled))
        return DetectedDegradations(
            logits=self.presence(hidden), severity=self.severity(hidden).sigmoid()
        )
