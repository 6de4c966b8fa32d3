"""What the editor minimises (Bai et al., TextIR, section 3.3): pixels, features, words, and the
judgement of a discriminator."""

import torch
import torch.nn.functional as F

from textir.models.edit_processor import rgb_from_lab
from textir.models.photo_encoder import lab_from_rgb

# ab / 110 is the unit of a colorizer's output, ab / 100 that of `lab_from_rgb`.
AB_UNIT = 1.1


def hole_loss(
    edited: torch.Tensor, truth: torch.Tensor, mask: torch.Tensor, outside: float = 0.05
) -> torch.Tensor:
    """Mean absolute distance per pixel of the hole; what lies outside is replaced afterwards and
    counts little.

    Args:
        edited, truth: `(B, 3, H, W)`.
        mask: `(B, 1, H, W)`, 1 in the hole.
        outside: weight of a pixel outside.
    """
    error = (edited.float() - truth.float()).abs().mean(1, keepdim=True)
    inside = (error * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3)).clamp(min=1)
    return inside.mean() + outside * (error * (1 - mask)).mean()


def colour_loss(edited: torch.Tensor, target: torch.Tensor, beta: float = 0.1) -> torch.Tensor:
    """Smooth absolute distance of a and b of CIE Lab / 110 `(B, 2, H, W)`."""
    return F.smooth_l1_loss(edited.float(), target.float(), beta=beta)


def colourfulness(image: torch.Tensor) -> torch.Tensor:
    """How colourful photos `(B, 3, H, W)` in [0, 1] are, `(B,)`; times 255 in the unit of Hasler
    and Suesstrunk, *Measuring colourfulness in natural images* (SPIE 2003)."""
    red, green, blue = image.unbind(1)
    across, along = red - green, (red + green) / 2 - blue
    deviation = (across.var((1, 2)) + along.var((1, 2)) + 1e-8).sqrt()
    mean = (across.mean((1, 2)).square() + along.mean((1, 2)).square() + 1e-8).sqrt()
    return deviation + 0.3 * mean


class EditorLosses:
    """The sum of all that a configuration weighs."""

    def __init__(self, config, pipe):
        self.config, self.pipe = config, pipe

    def trainable_models(self) -> dict[str, torch.nn.Module]:
        return {}

    def learning_rates(self) -> dict[str, float]:
        return {}

    def to(self, device) -> None:
        pass

    def __call__(self, run, edited: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        config = self.config
        if config.task == "colorize":
            loss = config.pixel_weight * colour_loss(edited, batch["target"])
            if config.colour_weight:
                lightness = lab_from_rgb(batch["truth"])[:, :1]
                image = rgb_from_lab(torch.cat([lightness, AB_UNIT * edited.float()], dim=1))
                missing = colourfulness(batch["truth"]) - colourfulness(image.clamp(0, 1))
                loss = loss + config.colour_weight * missing.clamp(min=0).mean()
            return loss
        if config.task == "inpaint":
            return config.pixel_weight * hole_loss(edited, batch["target"], batch["mask"])
        return config.pixel_weight * F.l1_loss(edited.float(), batch["target"])
