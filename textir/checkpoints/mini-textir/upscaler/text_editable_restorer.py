"""The network of text-editable restoration: a photo with something missing, and words for it.

Bai et al., *TextIR: A Simple Framework for Text-based Editable Image Restoration* (TVCG 2024,
arXiv 2302.14736), written from the paper. An encoder brings the photo down to a coarse feature.
From there a decoder of style-modulated convolutions (Karras et al., *Analyzing and Improving the
Image Quality of StyleGAN*, CVPR 2020) goes up again. Its style is a linear map of a text-image
embedding. At each level generated and encoded feature meet with weights of squared sum 1
(equations 4 and 5).

Ours: the photo itself is added to the result, so the network says only what to change. Residual
blocks at the coarse levels see further. The encoder may be EfficientNet-Lite (Tan and Le, ICML
2019), which brings knowledge of things from another training. Modulation scales the input of a
shared convolution and its output, which gives the same numbers as scaled weights (their equation
3) and needs no convolution in groups. Style and weights of a level start at nothing, so a new
network is a plain U-Net and words grow in.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from torch import nn

# Kernel, stride of the first block, channels, blocks.
STAGES = (
    (3, 1, 16, 1),
    (3, 2, 24, 2),
    (5, 2, 40, 2),
    (3, 2, 80, 3),
    (5, 1, 112, 3),
    (5, 2, 192, 4),
    (3, 1, 320, 1),
)
HEADS = {"rgb": 3, "ab": 2}
LEAK = 0.2
# Of the logarithm of a scale, so that 16 is 1.
LARGEST_OCTAVES = 4.0


class SameConv(nn.Conv2d):
    """A convolution whose output has `ceil(size / stride)` pixels; an odd pixel of padding goes to
    the right and to the bottom, as in TensorFlow, where the weights come from."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        padding = []
        for size, kernel, stride in zip(x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1]):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            padding += [total // 2, total - total // 2]
        return super().forward(F.pad(x, padding) if any(padding) else x)


class InvertedBottleneck(nn.Module):
    """Expansion, depthwise convolution and projection: `(B, C, H, W)` -> `(B, O, H / s, W / s)`.

    Sandler et al., *MobileNetV2* (CVPR 2018): nothing follows the projection, and the input is
    added where stride and channels allow it.
    """

    def __init__(self, channels: int, out_channels: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        hidden = expansion * channels
        self.expand = SameConv(channels, hidden, 1) if expansion > 1 else None
        self.depthwise = SameConv(hidden, hidden, kernel, stride, groups=hidden)
        self.project = SameConv(hidden, out_channels, 1)
        self.adds_input = stride == 1 and channels == out_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = x if self.expand is None else F.relu6(self.expand(x))
        projected = self.project(F.relu6(self.depthwise(hidden)))
        return x + projected if self.adds_input else projected


class EfficientEncoder(nn.Module):
    """The first stages of EfficientNet-Lite: `(B, 3, H, W)` in [0, 1] -> features, the finest
    first, each half the size of the one before.

    Args:
        stages: kernel, stride of the first block, channels and blocks of each.
        stem_channels: of the first convolution, which halves the size.
    """

    def __init__(self, stages: Sequence[Sequence[int]], stem_channels: int = 32):
        super().__init__()
        self.stem = SameConv(3, stem_channels, 3, 2)
        channels, blocks, self.ends, self.widths = stem_channels, [], [], []
        for number, (kernel, first_stride, out_channels, count) in enumerate(stages):
            if first_stride == 2:
                self.ends.append(len(blocks))
                self.widths.append(channels)
            for place in range(count):
                stride, expansion = first_stride if place == 0 else 1, 6 if number > 0 else 1
                blocks.append(InvertedBottleneck(channels, out_channels, kernel, stride, expansion))
                channels = out_channels
        self.blocks = nn.ModuleList(blocks)
        self.ends.append(len(blocks))
        self.widths.append(channels)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        features = []
        x = F.relu6(self.stem((255 * x - 127) / 128))
        for number, block in enumerate(self.blocks):
            if number in self.ends:
                features.append(x)
            x = block(x)
        return [*features, x]


class ResidualBlock(nn.Module):
    """Two convolutions beside the input `(B, C, H, W)`; the second starts at nothing."""

    def __init__(self, channels: int, dilation: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.kaiming_normal_(self.conv1.weight, LEAK)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv2(F.leaky_relu(self.conv1(x), LEAK))


class PlainEncoder(nn.Module):
    """Strided convolutions and residual blocks: `(B, C, H, W)` -> features, the finest at half the
    size, each half the size of the one before.

    Args:
        in_channels: of the input.
        widths: channels of each level.
        depths: residual blocks of each level; those of the coarsest are dilated by 1, 2, 4, ...
    """

    def __init__(self, in_channels: int, widths: Sequence[int], depths: Sequence[int]):
        super().__init__()
        self.widths = list(widths)
        self.stem = nn.Conv2d(4 * in_channels, widths[0], 3, padding=1)
        downs, levels = [], []
        for level, (width, depth) in enumerate(zip(widths, depths)):
            if level:
                downs.append(nn.Conv2d(widths[level - 1], width, 3, 2, padding=1))
            dilates = level == len(widths) - 1
            blocks = [ResidualBlock(width, 2**i if dilates else 1) for i in range(depth)]
            levels.append(nn.Sequential(*blocks))
        self.downs, self.levels = nn.ModuleList(downs), nn.ModuleList(levels)
        for conv in (self.stem, *self.downs):  # without it deep features start too small to count
            nn.init.kaiming_normal_(conv.weight, LEAK)
            nn.init.zeros_(conv.bias)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x = F.leaky_relu(self.stem(F.pixel_unshuffle(x, 2)), LEAK)
        features = [self.levels[0](x)]
        for down, level in zip(self.downs, self.levels[1:]):
            features.append(level(F.leaky_relu(down(features[-1]), LEAK)))
        return features


class ModulatedConv(nn.Module):
    """A 3 x 3 convolution whose input channels are scaled by a style, and whose output has unit
    variance again: `(B, C, H, W)` and `(B, S)` -> `(B, O, H, W)`."""

    def __init__(self, channels: int, out_channels: int, style_dim: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels, 3, padding=1, bias=False)
        self.style = nn.Linear(style_dim, channels)
        nn.init.zeros_(self.style.weight)
        nn.init.ones_(self.style.bias)
        # Of the noise, one picture for all channels; nothing at first.
        self.noise_scale = nn.Parameter(torch.zeros(()))

    def forward(
        self, x: torch.Tensor, style: torch.Tensor, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        scale = self.style(style)
        power = self._weight().float().square().sum((2, 3))
        demodulation = torch.rsqrt(scale.float().square() @ power.T + 1e-8).to(x.dtype)
        x = self.conv(x * scale.to(x.dtype)[:, :, None, None]) * demodulation[:, :, None, None]
        if generator is None:
            return x
        shape = (len(x), 1, *x.shape[-2:])
        noise = torch.randn(shape, generator=generator).to(x)
        return x + self.noise_scale.to(x.dtype) * noise

    def _weight(self) -> torch.Tensor:
        """`(O, C, 3, 3)`, with the share of an adapter; then each kernel may be turned round."""
        if isinstance(self.conv, nn.Conv2d):
            return self.conv.weight
        weight = self.conv.weight
        pixels = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
        return self.conv(F.pad(pixels[..., None, None], (1, 1, 1, 1))).transpose(0, 1)


class Level(nn.Module):
    """A level of the decoder: what was generated below, enlarged and convolved twice, meets the
    feature of the encoder before the second activation (equations 4 and 5).

    Args:
        channels: of what comes from below.
        out_channels: of the level.
        side_channels: of the encoder's feature.
        style_dim: of the style.
        enlarges: whether what comes from below has half the size; the coarsest level does not, and
            convolves once.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        side_channels: int,
        style_dim: int,
        enlarges: bool = True,
    ):
        super().__init__()
        self.conv1 = ModulatedConv(channels, out_channels, style_dim) if enlarges else None
        self.bias1 = nn.Parameter(torch.zeros(out_channels)) if enlarges else None
        inner = out_channels if enlarges else channels
        self.conv2 = ModulatedConv(inner, out_channels, style_dim)
        self.bias2 = nn.Parameter(torch.zeros(out_channels))
        self.lateral = nn.Conv2d(side_channels, out_channels, 1, bias=False)
        nn.init.kaiming_normal_(self.lateral.weight, LEAK)
        # Of the generated and of the encoded feature, for each channel.
        self.share = nn.Linear(style_dim, 2 * out_channels)
        nn.init.zeros_(self.share.weight)
        nn.init.ones_(self.share.bias)

    def forward(
        self,
        x: torch.Tensor,
        side: torch.Tensor,
        style: torch.Tensor,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        if self.conv1 is not None:
            x = F.interpolate(x, side.shape[-2:], mode="bilinear", align_corners=False)
            x = self.conv1(x, style, generator) + self.bias1[:, None, None]
            x = F.leaky_relu(x, LEAK)
        generated = self.conv2(x, style, generator)
        shares = self.share(style).float().abs().unflatten(1, (2, -1))
        shares = shares * torch.rsqrt(shares.square().sum(1, keepdim=True) + 1e-8)
        shares = shares.to(x.dtype)[..., None, None]
        met = shares[:, 0] * generated + shares[:, 1] * self.lateral(side)
        return F.leaky_relu(met + self.bias2[:, None, None], LEAK)


class TextEditableRestorer(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """Completes photos by the words for them: what lies in a hole, at a larger size, its colours.

    One class serves the three tasks of the paper; a network is trained for one of them.

    Args:
        task: "inpaint", "super-resolution" or "colorize".
        condition_dim: of the text-image embedding.
        style_dim: of the style that is made of it.
        encoder_type: "plain" (strided convolutions, as in the paper) or "efficient" (the first
            stages of EfficientNet-Lite).
        widths: channels of the decoder's levels, the finest, at half the size, first; of the plain
            encoder's levels too.
        depths: residual blocks of the plain encoder's levels.
        stages: of the efficient encoder, see `EfficientEncoder`.
        stem_channels: of its first convolution.
        noise: whether convolutions add noise where a generator is given, as in the paper.

    Attributes:
        multiple: sides are padded to multiples of this many pixels, by reflection.
    """

    _supports_gradient_checkpointing = True
    _lora_layers = (
        r"encoder\.(stem|downs\.\d+|.*\.(conv1|conv2|expand|project))"
        r"|levels\..*\.(conv|style|lateral|share)|style|head"
    )
    _keep_in_fp32_modules = ["text_mean", "image_mean"]

    @register_to_config
    def __init__(
        self,
        task: str = "inpaint",
        condition_dim: int = 512,
        style_dim: int = 256,
        encoder_type: str = "plain",
        widths: tuple[int, ...] = (32, 64, 128, 192),
        depths: tuple[int, ...] = (0, 0, 0, 3),
        stages: tuple[tuple[int, int, int, int], ...] = STAGES[:6],
        stem_channels: int = 32,
        noise: bool = False,
    ):
        super().__init__()
        if task not in ("inpaint", "super-resolution", "colorize"):
            raise ValueError(f"`task` must be inpaint, super-resolution or colorize, got {task!r}.")
        if encoder_type not in ("plain", "efficient"):
            raise ValueError(f"`encoder_type` must be plain or efficient, got {encoder_type!r}.")
        if encoder_type == "efficient" and task == "inpaint":
            raise ValueError(
                '`encoder_type="efficient"` takes RGB alone and no mask; take plain for inpainting.'
            )
        head = HEADS["ab" if task == "colorize" else "rgb"]
        if encoder_type == "efficient":
            self.encoder = EfficientEncoder(stages, stem_channels)
        else:
            if len(depths) != len(widths):
                raise ValueError(
                    f"`depths` needs a number for each of `widths`, got {depths} and {widths}."
                )
            self.encoder = PlainEncoder(3 + (task == "inpaint"), widths, depths)
        sides = self.encoder.widths
        if len(sides) != len(widths):
            raise ValueError(
                f"`widths` needs {len(sides)} numbers, one a level of the encoder, got {widths}."
            )
        self.multiple = 2 ** len(widths)
        self.no_words = nn.Parameter(torch.zeros(condition_dim))
        self.register_buffer("text_mean", torch.zeros(condition_dim))
        self.register_buffer("image_mean", torch.zeros(condition_dim))
        self.style = nn.Linear(condition_dim + (task == "super-resolution"), style_dim)
        levels = [Level(sides[-1], widths[-1], sides[-1], style_dim, enlarges=False)]
        for level in reversed(range(len(widths) - 1)):
            levels.append(Level(widths[level + 1], widths[level], sides[level], style_dim))
        self.levels = nn.ModuleList(levels)
        self.head = nn.Conv2d(widths[0], 4 * head, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.gradient_checkpointing = False

    # ---- conditions

    def condition_of(
        self, embeds: torch.Tensor, kind: str = "text", strength: float | torch.Tensor = 1.0
    ) -> torch.Tensor:
        """The condition of text-image embeddings: without the mean of their kind, which closes
        most of the gap between texts and images, as unit vectors.

        Args:
            embeds: `(B, condition_dim)`, of any length.
            kind: "text" or "image".
            strength: 0 is no words, 1 the words, more exaggerates them.

        Returns:
            `(B, condition_dim)`.

        Raises:
            ValueError: if the kind is unknown or the embeddings do not fit.
        """
        means = {"text": self.text_mean, "image": self.image_mean}
        if kind not in means:
            raise ValueError(f"`kind` must be text or image, got {kind!r}.")
        if embeds.ndim != 2 or embeds.shape[1] != self.config.condition_dim:
            raise ValueError(
                f"`embeds` must be (B, {self.config.condition_dim}) as the encoders of this "
                f"checkpoint return them, got {tuple(embeds.shape)}."
            )
        embeds = F.normalize(embeds.float(), dim=-1)
        condition = F.normalize(embeds - means[kind].float(), dim=-1).to(self.dtype)
        return self.no_words + strength * (condition - self.no_words)

    # ---- the network

    def forward(
        self,
        image: torch.Tensor,
        condition: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        scale: torch.Tensor | float | None = None,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """Complete photos.

        Args:
            image: `(B, 3, H, W)` in [0, 1]: with the hole filled roughly, enlarged, or in gray.
            condition: `(B, condition_dim)` from `condition_of`; no words without one.
            mask: `(B, 1, H, W)`, 1 in the hole; inpainting alone takes and needs one.
            scale: of the enlargement, `(B,)` or a number, 1 to 16; super-resolution alone takes and
                needs one.
            generator: of the noise, where the network has any; none is added without one.

        Returns:
            the photo `(B, 3, H, W)`, not clamped, or for colorization a and b of CIE Lab divided by
            110 `(B, 2, H, W)`.

        Raises:
            ValueError: if the inputs do not fit the task.
        """
        self._check(image, mask, scale)
        height, width = image.shape[-2:]
        style = self._style(image.shape[0], condition, scale, image)
        inputs = image if mask is None else torch.cat([image, mask.to(image)], dim=1)
        features = self._run(self.encoder, _pad(inputs, self.multiple))
        noise = generator if self.config.noise else None
        x = features[-1]
        for level, side in zip(self.levels, reversed(features)):
            x = self._run(level, x, side, style, noise)
        change = F.pixel_shuffle(self.head(x), 2)[..., :height, :width]
        return change if self.config.task == "colorize" else image + change

    def _style(self, count: int, condition, scale, like: torch.Tensor) -> torch.Tensor:
        if condition is None:
            condition = self.no_words[None].expand(count, -1)
        if condition.shape != (count, self.config.condition_dim):
            raise ValueError(
                f"`condition` must be {(count, self.config.condition_dim)}, got "
                f"{tuple(condition.shape)}."
            )
        condition = condition.to(like)
        if scale is not None:
            scale = torch.as_tensor(scale, dtype=torch.float32, device=like.device)
            octaves = scale.expand(count).log2() / LARGEST_OCTAVES
            condition = torch.cat([condition, octaves[:, None].to(like)], dim=1)
        return F.leaky_relu(self.style(condition), LEAK)

    def _check(self, image, mask, scale) -> None:
        if image.ndim != 4 or image.shape[1] != 3:
            raise ValueError(f"`image` must be (B, 3, H, W), got {tuple(image.shape)}.")
        task = self.config.task
        if (mask is not None) != (task == "inpaint"):
            raise ValueError(
                f"A network for {task} {'needs' if mask is None else 'takes no'} `mask`."
            )
        if mask is not None and mask.shape != (len(image), 1, *image.shape[-2:]):
            raise ValueError(
                f"`mask` must be {(len(image), 1, *image.shape[-2:])}, got {tuple(mask.shape)}."
            )
        if (scale is not None) != (task == "super-resolution"):
            raise ValueError(
                f"A network for {task} {'needs' if scale is None else 'takes no'} `scale`."
            )

    def _run(self, module: nn.Module, *inputs):
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(module, *inputs)
        return module(*inputs)


def _pad(image: torch.Tensor, multiple: int) -> torch.Tensor:
    """Sides brought to multiples by reflection at the right and the bottom, again and again where a
    side is smaller than what it lacks."""
    missing = [-side % multiple for side in image.shape[-2:]]
    while any(missing):
        steps = [min(lack, side - 1) for lack, side in zip(missing, image.shape[-2:])]
        if max(steps) < 1:
            return F.pad(image, (0, missing[1], 0, missing[0]), mode="replicate")
        image = F.pad(image, (0, steps[1], 0, steps[0]), mode="reflect")
        missing = [-side % multiple for side in image.shape[-2:]]
    return image
