"""Says what is wrong with a photo: a small head on the image tokens, several degradations at once, each with its severity.

Ours; the paper restores each task with a network of its own and needs no detector.
"""

from dataclasses import dataclass

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.utils import BaseOutput
from torch import nn


@dataclass
class DetectedDegradations(BaseOutput):
    """What a detector sees.

    Attributes:
        logits: `(B, L)`; `sigmoid` gives the probability of each degradation, independent of the others.
        severity: `(B, L)` in [0, 1], 0 slight and 1 extreme; only meaningful where the degradation is present.
    """

    logits: torch.Tensor = None  # defaults let accelerate rebuild outputs under mixed precision
    severity: torch.Tensor = None


class DegradationDetector(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """Multi-label classifier of degradations.

    Args:
        image_dim: width of the image tokens.
        labels: names of the degradations, in the order of the outputs.
        width: width of the hidden layer.
        views: how many views of an image it judges by: the whole image first, squeezed into the encoder's square, then its centre in
            native pixels, where noise, blocks and blur show that squeezing hides.
    """

    _lora_layers = ["hidden", "presence", "severity"]

    @register_to_config
    def __init__(
        self,
        image_dim: int = 1280,
        labels: tuple[str, ...] = ("noise", "rain", "haze", "blur", "defocus", "lowlight", "jpeg"),
        width: int = 256,
        views: int = 1,
    ):
        super().__init__()
        if views not in (1, 2):
            raise ValueError(f"`views` must be 1 or 2, got {views}.")
        self.norm = nn.LayerNorm(image_dim)
        self.attention = nn.Linear(image_dim, 1)
        self.hidden = nn.Linear(2 * image_dim * views, width)
        self.activation = nn.GELU()
        self.presence = nn.Linear(width, len(labels))
        self.severity = nn.Linear(width, len(labels))

    def forward(self, image_tokens: torch.Tensor) -> DetectedDegradations:
        """Judge images by their tokens `(B, views, 1 + P, image_dim)`, the class token first; one view may leave out its dimension.

        Raises:
            ValueError: if views or width of the tokens differ.
        """
        views, dim = self.config.views, self.config.image_dim
        tokens = image_tokens[:, None] if image_tokens.ndim == 3 else image_tokens
        if tokens.ndim != 4 or tokens.shape[1] != views or tokens.shape[-1] != dim:
            expected = f"(B, 1 + patches, {dim})" if views == 1 else f"(B, {views}, 1 + patches, {dim})"
            raise ValueError(f"`image_tokens` must be {expected}, got {tuple(image_tokens.shape)}.")
        tokens = self.norm(tokens)
        weights = self.attention(tokens[:, :, 1:]).softmax(dim=2)
        pooled = torch.cat([tokens[:, :, 0], (weights * tokens[:, :, 1:]).sum(2)], dim=-1).flatten(1)
        hidden = self.activation(self.hidden(pooled))
        return DetectedDegradations(logits=self.presence(hidden), severity=self.severity(hidden).sigmoid())
