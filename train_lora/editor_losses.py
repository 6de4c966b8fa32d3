"""What the editor minimises (Bai et al., TextIR, section 3.3): pixels, features, words, and the
judgement of a discriminator."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from textir.models.edit_processor import AB_UNIT, lab_from_rgb, rgb_from_lab
from textir.models.photo_encoder import EfficientNetLite, photo_statistics

LEAK = 0.2
R1_INTERVAL = 16


def hole_loss(
    edited: torch.Tensor,
    truth: torch.Tensor,
    mask: torch.Tensor,
    squared: float = 0.0,
    outside: float = 0.05,
) -> torch.Tensor:
    """Mean distance per pixel of the hole; what lies outside is replaced afterwards and counts
    little.

    Args:
        edited, truth: `(B, 3, H, W)`.
        mask: `(B, 1, H, W)`, 1 in the hole.
        squared: weight of the squared distance beside the absolute one.
        outside: weight of a pixel outside.
    """
    distance = (edited.float() - truth.float()).abs()
    error = (distance + squared * distance.square()).mean(1, keepdim=True)
    inside = (error * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3)).clamp(min=1)
    return inside.mean() + outside * (error * (1 - mask)).mean()


def colour_loss(
    edited: torch.Tensor, target: torch.Tensor, vividness: float = 0.0, beta: float = 0.1
) -> torch.Tensor:
    """Smooth absolute distance of a and b of CIE Lab / 110 `(B, 2, H, W)`.

    Args:
        edited, target: the colours.
        vividness: how much more a pixel counts the more colourful it is, against the brown mean of
            all colours (class rebalancing of Zhang et al., *Colorful Image Colorization*, ECCV
            2016, in a simple form); the mean weight stays about 1.
        beta: where the distance becomes absolute.
    """
    error = F.smooth_l1_loss(edited.float(), target.float(), beta=beta, reduction="none")
    if not vividness:
        return error.mean()
    chroma = target.float().norm(dim=1, keepdim=True)
    weight = 1 + vividness * (chroma / 0.15).clamp(max=3)
    return (weight * error).mean() / (1 + vividness)


def colourfulness(image: torch.Tensor) -> torch.Tensor:
    """How colourful photos `(B, 3, H, W)` in [0, 1] are, `(B,)`; times 255 in the unit of Hasler
    and Suesstrunk, *Measuring colourfulness in natural images* (SPIE 2003)."""
    red, green, blue = image.unbind(1)
    across, along = red - green, (red + green) / 2 - blue
    deviation = (across.var((1, 2)) + along.var((1, 2)) + 1e-8).sqrt()
    mean = (across.mean((1, 2)).square() + along.mean((1, 2)).square() + 1e-8).sqrt()
    return deviation + 0.3 * mean


def photo_of(edited: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """What an editor returned as photos `(B, 3, H, W)`: colours with the lightness of the truth."""
    if edited.shape[1] == 3:
        return edited.float().clamp(0, 1)
    lightness = lab_from_rgb(batch["truth"])[:, :1]
    return rgb_from_lab(torch.cat([lightness, AB_UNIT * edited.float()], dim=1)).clamp(0, 1)


class FeatureDistance(nn.Module):
    """Distance of photos in the features of EfficientNet-Lite: of each stage the squared distance
    of features as unit vectors over channels (the form of Zhang et al., *The Unreasonable
    Effectiveness of Deep Features as a Perceptual Metric*, CVPR 2018).

    Args:
        network: with ImageNet weights; it stays as it is.
        last: blocks that are looked at.
    """

    def __init__(self, network: EfficientNetLite, last: int = 8):
        super().__init__()
        self.stem, self.blocks = network.stem, network.blocks[:last]

    def forward(self, image: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """`(B, 3, H, W)` in [0, 1] twice -> a number."""
        x = F.relu6(self.stem((255 * torch.cat([image, truth]) - 127) / 128))
        distances = [self._distance(x)]
        for block in self.blocks:
            x = block(x)
            distances.append(self._distance(x))
        return torch.stack(distances).mean()

    @staticmethod
    def _distance(x: torch.Tensor) -> torch.Tensor:
        image, truth = F.normalize(x.float(), dim=1, eps=1e-6).chunk(2)
        return (image - truth).square().sum(1).mean()


class PatchDiscriminator(nn.Module):
    """Judges patches of photos by their look and by how they fit the words: `(B, 3, H, W)` and
    `(B, D)` -> logits `(B, 1, H / 16, W / 16)`. Projection: Miyato and Koyama, *cGANs with
    Projection Discriminator* (ICLR 2018).

    Args:
        condition_dim: numbers of an embedding.
        widths: channels of each level.
    """

    def __init__(self, condition_dim: int, widths: Sequence[int] = (48, 96, 192, 256)):
        super().__init__()
        layers, channels = [], 3
        for width in widths:
            layers.append(nn.Conv2d(channels, width, 4, 2, padding=1))
            channels = width
        self.layers = nn.ModuleList(layers)
        self.judge = nn.Conv2d(channels, 1, 1)
        self.words = nn.Linear(condition_dim, channels, bias=False)

    def forward(self, image: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        x = 2 * image - 1
        for layer in self.layers:
            x = F.leaky_relu(layer(x), LEAK)
        fitting = (x * self.words(condition)[:, :, None, None]).sum(1, keepdim=True)
        return self.judge(x) + fitting / x.shape[1] ** 0.5


def r1_penalty(
    discriminator: nn.Module, truth: torch.Tensor, condition: torch.Tensor
) -> torch.Tensor:
    """Mean squared gradient of the judgement of true photos (Mescheder et al., *Which Training
    Methods for GANs do actually Converge?*, ICML 2018), in single precision."""
    truth = truth.detach().float().requires_grad_(True)
    with torch.autocast(truth.device.type, enabled=False):
        logits = discriminator(truth, condition.float()).mean((1, 2, 3))
    (gradient,) = torch.autograd.grad(logits.sum(), truth, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean()


class EditorLosses:
    """The sum of all that a configuration weighs.

    Args:
        config: of `train_text_editor`.
        pipe: its pipeline, whose encoders judge features and words.
    """

    def __init__(self, config, pipe):
        self.config, self.pipe = config, pipe
        self.features = self.discriminator = None
        if config.perceptual_weight:
            network = getattr(pipe.photo_encoder, "network", None)
            if network is None:
                raise ValueError(
                    "`--perceptual_weight` needs the embedded photo encoder, whose features it "
                    "compares; this checkpoint has another one."
                )
            self.features = FeatureDistance(network)
        if config.adversarial_weight:
            self.discriminator = PatchDiscriminator(pipe.embedding_dim)

    def trainable_models(self) -> dict[str, nn.Module]:
        """What trains beside the editor."""
        return {} if self.discriminator is None else {"discriminator": self.discriminator}

    def learning_rates(self) -> dict[str, float]:
        """Of what trains beside the editor."""
        if self.discriminator is None:
            return {}
        return {"discriminator": self.config.discriminator_learning_rate}

    def to(self, device) -> None:
        """Bring to a device what does not train."""
        self.pipe.photo_encoder.to(device)

    def __call__(
        self,
        run,
        edited: torch.Tensor,
        condition: torch.Tensor,
        batch: dict[str, torch.Tensor],
    ) -> torch.Tensor:
        """The loss of what an editor returned for a batch under conditions `(B, D)`."""
        config = self.config
        loss = config.pixel_weight * self._pixels(edited, batch)
        truth = batch["truth"] if config.task == "colorize" else batch["target"]
        if not (
            config.colour_weight * (config.task == "colorize")
            or config.perceptual_weight
            or config.text_weight
            or config.adversarial_weight
        ):
            return loss
        photo = photo_of(edited, batch)
        if config.task == "colorize" and config.colour_weight:
            missing = colourfulness(truth) - colourfulness(photo)
            loss = loss + config.colour_weight * missing.clamp(min=0).mean()
        if config.perceptual_weight:
            loss = loss + config.perceptual_weight * self.features(photo, truth)
        if config.text_weight:
            loss = loss + config.text_weight * self._words(photo, batch)
        if config.adversarial_weight:
            loss = loss + self._judgement(run, photo, truth, condition, batch)
        return loss

    def _pixels(self, edited: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        if self.config.task == "colorize":
            return colour_loss(edited, batch["target"], self.config.vividness)
        if self.config.task == "inpaint":
            squared = self.config.squared_weight
            return hole_loss(edited, batch["target"], batch["mask"], squared)
        return F.l1_loss(edited.float(), batch["target"])

    def _words(self, photo: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """How far results lie from their words (the CLIP loss of the paper); none where there are
        no words."""
        told = ~batch["wordless"]
        if not told.any():
            return photo.new_zeros(())
        embeds = F.normalize(embed_with_gradient(self.pipe, photo[told]), dim=-1)
        editor = self.pipe.components[self.config.part]
        embeds = F.normalize(embeds - editor.image_mean, dim=-1)
        return (1 - (embeds * batch["condition"][told]).sum(1)).mean()

    def _judgement(self, run, photo, truth, condition, batch) -> torch.Tensor:
        """Non-saturating losses of both sides in one: the editor's gradient passes the
        discriminator without moving it. Fake is, in holes, only what meets the hole."""
        config, condition = self.config, condition.detach()
        weights = {name: value.detach() for name, value in self.discriminator.named_parameters()}
        with run.accelerator.autocast():
            judged = torch.func.functional_call(self.discriminator, weights, (photo, condition))
            fake = run.models["discriminator"](photo.detach(), condition)
            true = run.models["discriminator"](truth, condition)
        counted = torch.ones_like(fake)
        if "mask" in batch:
            counted = F.adaptive_max_pool2d(batch["mask"], fake.shape[-2:])

        def mean(values: torch.Tensor) -> torch.Tensor:
            return (counted * values.float()).sum() / counted.sum().clamp(min=1)

        loss = mean(F.softplus(fake.float())) + F.softplus(-true.float()).mean()
        if run.step % R1_INTERVAL == 0:
            penalty = r1_penalty(self.discriminator, truth, condition)
            gamma = 0.0002 * truth.shape[-1] * truth.shape[-2] / len(truth)
            loss = loss + 0.5 * gamma * R1_INTERVAL * penalty
        if run.step >= config.adversarial_start:
            loss = loss + config.adversarial_weight * mean(F.softplus(-judged.float()))
        return loss


def embed_with_gradient(pipe, photo: torch.Tensor) -> torch.Tensor:
    """Embeddings `(B, D)` of photos `(B, 3, H, W)` in [0, 1] that gradients pass through: the
    processor's steps in torch, for the embedded encoder and for a CLIP."""
    processor = pipe.photo_processor
    if hasattr(processor, "image_mean"):
        size = processor.crop_size or processor.size
        sides = (size["height"], size["width"])
        small = F.interpolate(photo, sides, mode="bicubic", antialias=True).clamp(0, 1)
        mean = torch.tensor(processor.image_mean, device=photo.device)[:, None, None]
        deviation = torch.tensor(processor.image_std, device=photo.device)[:, None, None]
        return pipe.photo_encoder(pixel_values=(small - mean) / deviation).image_embeds
    sides = (processor.size, processor.size)
    small = F.interpolate(photo, sides, mode="bicubic", antialias=True).clamp(0, 1)
    pixels = (255 * small - 127) / 128
    return pipe.photo_encoder(pixels, photo_statistics(photo)).image_embeds
