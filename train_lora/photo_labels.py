"""Foundation of the towers: what can be said of a photo by measuring it, or by having done it.

Colours and light are measured in CIE Lab and given the labels of `sentences.light_labels`; faults
are made, by recipes of `textir.degradations` or by the few functions here, and so known. Ours: the
colour names go by hue, chroma and lightness, roughly after Berlin and Kay's eleven basic terms.
"""

import random

import torch
import torch.nn.functional as F

from textir.degradations import Recipe, apply_doses
from textir.models.photo_encoder import lab_from_rgb

# sRGB, 0 to 255, of what a recoloured photo turns around.
COLOURS = {
    "red": (205, 30, 35),
    "orange": (240, 130, 25),
    "yellow": (240, 220, 50),
    "green": (45, 150, 55),
    "blue": (40, 85, 205),
    "purple": (125, 45, 165),
    "pink": (248, 150, 190),
    "brown": (115, 72, 38),
    "black": (22, 22, 22),
    "white": (245, 245, 245),
    "grey": (128, 128, 128),
}
NAMED = (*COLOURS, "turquoise", "beige")


# ---- colour and light


def colour_names(lab: torch.Tensor) -> torch.Tensor:
    """Index into `NAMED` of each pixel's colour: `(B, 3, H, W)` of CIE Lab / 100 -> `(B, H, W)`."""
    lightness, a, b = lab.unbind(1)
    chroma = (a.square() + b.square()).sqrt()
    hue = torch.rad2deg(torch.atan2(b, a)) % 360
    index = {name: number for number, name in enumerate(NAMED)}
    names = torch.full_like(lightness, index["pink"], dtype=torch.long)

    def name(colour: str, where: torch.Tensor) -> None:
        names[where] = index[colour]

    reddish, earthy = (hue >= 15) & (hue < 45), (hue >= 45) & (hue < 75)
    name("red", ((hue < 15) | (hue >= 345)) & (lightness < 0.5))
    name("red", reddish & (chroma >= 0.35))
    name("brown", reddish & (chroma < 0.35) & (lightness < 0.6))
    name("orange", earthy)
    name("brown", earthy & ((lightness < 0.52) | (chroma < 0.35)))
    name("yellow", (hue >= 75) & (hue < 110))
    name("brown", (hue >= 75) & (hue < 95) & (lightness < 0.5))
    name("green", (hue >= 95) & (hue < 110) & (lightness < 0.6))
    name("beige", (hue >= 40) & (hue < 105) & (chroma < 0.32) & (lightness > 0.62))
    name("green", (hue >= 110) & (hue < 180))
    name("turquoise", (hue >= 180) & (hue < 232))
    # sRGB's own blue lies at 306. The embedded towers were trained with the border at 304.
    name("blue", (hue >= 232) & (hue < 309))
    name("purple", (hue >= 309) & (hue < 345) & (lightness < 0.62))
    neutral = chroma < 0.09
    name("grey", neutral)
    name("white", neutral & (lightness > 0.82))
    name("black", (lightness < 0.12) | (neutral & (lightness < 0.25)))
    return names


def light_strengths(image: torch.Tensor, labels: tuple[str, ...]) -> torch.Tensor:
    """How strongly each label of colour and light fits photos.

    Args:
        image: `(B, 3, H, W)` in [0, 1]; it is looked at with 96 pixels at most.
        labels: of `sentences.light_labels`.

    Returns:
        `(B, len(labels))` in [0, 1].
    """
    longest = max(image.shape[-2:])
    if longest > 96:
        size = [max(round(96 * side / longest), 4) for side in image.shape[-2:]]
        image = F.interpolate(image, size, mode="bilinear", antialias=True, align_corners=False)
    lab = lab_from_rgb(image.float().clamp(0, 1))
    shares = F.one_hot(colour_names(lab), len(NAMED)).float()
    third = max(image.shape[-2] // 3, 1)
    strengths = _kinds_of_light(lab, shares.mean((1, 2)))
    parts = {"": shares, " top": shares[:, :third], " bottom": shares[:, -third:]}
    for place, part in parts.items():
        for number, colour in enumerate(NAMED):
            share = part.mean((1, 2))[:, number]
            strengths[colour + place] = _ramp(share, 0.08, 0.45)
            if place:
                strengths[colour + place] = 0.6 * _ramp(share, 0.25, 0.7)
    return torch.stack([strengths[label] for label in labels], dim=1)


def _kinds_of_light(lab: torch.Tensor, shares: torch.Tensor) -> dict[str, torch.Tensor]:
    lightness, a, b = lab.unbind(1)
    chroma = (a.square() + b.square()).sqrt()
    mean, deviation = lightness.mean((1, 2)), lightness.flatten(1).std(1)
    strength = chroma.mean((1, 2))
    fields = F.adaptive_avg_pool2d(lightness[:, None], 4)[:, 0]
    inner, outer = fields[:, 1:3, 1:3].mean((1, 2)), fields.mean((1, 2))
    tint = torch.stack([a.mean((1, 2)), b.mean((1, 2))], 1)
    hue = torch.rad2deg(torch.atan2(tint[:, 1], tint[:, 0]))
    one_hue = tint.norm(dim=1) / strength.clamp(min=1e-3)
    many = (shares[:, :8] > 0.07).float().sum(1)
    sepia = _ramp(one_hue, 0.93, 0.99) * ((hue > 45) & (hue < 95)) * _ramp(strength, 0.05, 0.1)
    return {
        "black-and-white": _ramp(strength, 0.03, 0.01),
        "sepia": sepia * _ramp(chroma.flatten(1).std(1), 0.1, 0.05),
        "colourful": _ramp(many, 2.5, 4.5) * _ramp(strength, 0.12, 0.25),
        "pastel": _ramp(mean, 0.62, 0.75)
        * _ramp(strength, 0.06, 0.12)
        * _ramp(strength, 0.32, 0.22),
        "vivid": _ramp(strength, 0.3, 0.5),
        "pale": _ramp(strength, 0.13, 0.06) * _ramp(strength, 0.02, 0.04),
        "warm": _ramp(tint[:, 1] + 0.5 * tint[:, 0], 0.08, 0.25),
        "cold": _ramp(tint[:, 1], -0.03, -0.15),
        "bright": _ramp(mean, 0.55, 0.75),
        "dark": _ramp(mean, 0.38, 0.2),
        "very dark": _ramp(mean, 0.2, 0.08),
        "even": _ramp(fields.flatten(1).std(1), 0.1, 0.04),
        "contrasty": _ramp(deviation, 0.26, 0.36),
        "flat": _ramp(deviation, 0.14, 0.06),
        "backlit": _ramp(outer - inner, 0.06, 0.2) * _ramp(deviation, 0.2, 0.28),
    }


def _ramp(value: torch.Tensor, nothing: float, full: float) -> torch.Tensor:
    """0 up to `nothing`, 1 from `full` on, linear between; `full` may be the smaller one."""
    return ((value - nothing) / (full - nothing)).clamp(0, 1)


def recolour(image: torch.Tensor, colour: str, draw: random.Random) -> torch.Tensor:
    """A photo that is mostly of one colour: its lightness and colours, weakened, stand around that
    colour in CIE Lab.

    Args:
        image: `(B, 3, H, W)` in [0, 1].
        colour: of `COLOURS`.
        draw: moves the colour a little.
    """
    target = lab_from_rgb(torch.tensor(COLOURS[colour]).float()[None, :, None, None] / 255)
    jitter = torch.tensor([draw.gauss(0, sigma) for sigma in (0.03, 0.02, 0.02)])
    lab = lab_from_rgb(image)
    spread = torch.tensor([draw.uniform(0.2, 0.5), draw.uniform(0.05, 0.25), 0.0])
    spread[2] = spread[1]
    if colour in ("black", "white", "grey"):
        jitter[1:] *= 0.3
        spread[1:] *= 0.3
        spread[0] *= {"black": 0.35, "white": 0.25, "grey": 0.8}[colour]
    lab = (
        target
        + jitter[None, :, None, None]
        + spread[None, :, None, None] * (lab - lab.mean((2, 3), keepdim=True))
    )
    return rgb_from_lab(lab).clamp(0, 1)


def rgb_from_lab(lab: torch.Tensor) -> torch.Tensor:
    """sRGB `(B, 3, H, W)`, not clamped, of CIE Lab / 100."""
    y = (lab[:, 0] + 0.16) / 1.16
    root = torch.stack([y + lab[:, 1] / 5, y, y - lab[:, 2] / 2], dim=1)
    xyz = torch.where(root > 0.2069, root**3, (root - 16 / 116) / 7.787)
    xyz = xyz * torch.tensor([0.9505, 1.0, 1.089])[None, :, None, None]
    matrix = torch.tensor(
        [[3.2406, -1.5372, -0.4986], [-0.9689, 1.8758, 0.0415], [0.0557, -0.2040, 1.0570]]
    )
    linear = torch.einsum("ij,bjhw->bihw", matrix, xyz)
    return torch.where(
        linear <= 0.0031308, 12.92 * linear, 1.055 * linear.clamp(min=1e-6) ** (1 / 2.4) - 0.055
    )


# ---- faults


def overexpose(image: torch.Tensor, draw: random.Random) -> torch.Tensor:
    """More light than the sensor holds, by 1 to 2.2 stops of linear light."""
    return (image.clamp(0, 1) ** 2.2 * 2 ** draw.uniform(1.0, 2.2)).clamp(0, 1) ** (1 / 2.2)


def wash_out(image: torch.Tensor, draw: random.Random) -> torch.Tensor:
    """Less contrast, as faded by the sun: black becomes grey, evenly over the photo."""
    contrast, black = draw.uniform(0.3, 0.55), draw.uniform(0.15, 0.4)
    gray = image.mean(1, keepdim=True)
    return (black + contrast * (gray + 0.6 * (image - gray))).clamp(0, 1)


def tint(image: torch.Tensor, draw: random.Random) -> torch.Tensor:
    """A wrong white balance: one channel gained and one lost."""
    gains = [draw.uniform(1.15, 1.5), draw.uniform(0.9, 1.0), draw.uniform(0.5, 0.8)]
    draw.shuffle(gains)
    return (image * torch.tensor(gains)[None, :, None, None]).clamp(0, 1)


def oversaturate(image: torch.Tensor, draw: random.Random) -> torch.Tensor:
    """Colours pushed to 2.2 to 3.5 times their distance from grey."""
    gray = image.mean(1, keepdim=True)
    return (gray + draw.uniform(2.2, 3.5) * (image - gray)).clamp(0, 1)


def pixelate(image: torch.Tensor, draw: random.Random) -> torch.Tensor:
    """Squares of 3 to 8 pixels, each of one colour."""
    side, (height, width) = draw.randint(3, 8), image.shape[-2:]
    small = F.interpolate(image, (max(height // side, 2), max(width // side, 2)), mode="area")
    return F.interpolate(small, (height, width), mode="nearest")


def posterise(image: torch.Tensor, draw: random.Random) -> torch.Tensor:
    """Only 4 to 9 steps in each channel."""
    steps = draw.randint(4, 9) - 1
    return (image * steps).round() / steps


OWN_FAULTS = {
    "overexposed": overexpose,
    "washed-out": wash_out,
    "cast": tint,
    "oversaturated": oversaturate,
    "pixelated": pixelate,
    "banding": posterise,
}
TRAINING_RECIPES = (
    "clean@9",
    "noise:8..50@2",
    "noise8:10..50@2",
    "camera:60..1000@1",
    "developed:60..1000@1.5",
    "rain:0.3..1@6",
    "haze:0.7..2.8@2.5",
    "room:0.5..2.4@1.5",
    "mist:0.25..1.5@1.5",
    "blur:6..25@5",
    "defocus:1.6..6@5",
    "lowlight:1.3..4@3",
    "dim:0.2..0.9@2",
    "jpeg:8..45@5",
    "downup:1.8..4@5",
    "rain:0.3..0.9+haze:0.6..1.6@0.7",
    "haze:0.6..1.8+noise8:8..25@0.7",
    "lowlight:1.3..3+noise8:8..25@1",
    "blur:6..17+jpeg:15..50@0.7",
    "defocus:2..5+jpeg:15..50@0.5",
    "noise8:10..30+jpeg:20..60@0.7",
)


def put_wrong(
    image: torch.Tensor, recipe: Recipe, own: str | None, draw: random.Random
) -> tuple[torch.Tensor, tuple[str, ...]]:
    """A photo with something wrong, as an 8-bit file would hold it.

    Args:
        image: `(1, 3, H, W)` in [0, 1].
        recipe: what to do to it.
        own: one of `OWN_FAULTS` to be done before, or `None`.
        draw: source of randomness.

    Returns:
        the photo and its labels, `("clean",)` where nothing was done.
    """
    generator = torch.Generator().manual_seed(draw.getrandbits(48))
    labels = ()
    if own is not None:
        image, labels = OWN_FAULTS[own](image, draw), (own,)
    doses = recipe.draw(generator)
    image = apply_doses(image, doses, generator)
    labels = (*labels, *(dose.label for dose in doses))
    image = (255 * image.clamp(0, 1)).round() / 255
    return image, tuple(dict.fromkeys(labels)) or ("clean",)
