"""Samples of text-editable restoration: what is given of a photo, what it was, and words for it.

A sample is a pure function of the seed and its number, as in `textir.data.samples`.

Words come in five kinds: a caption, or a sentence made from this very crop; the embedding of the
photo itself, or of what is given of it, both with noise (as in LAFITE, Zhou et al., CVPR 2022);
mixtures; and none. Text in training closes most of the gap between texts and images, noise bridges
the rest. Ours: for colorization a share of the photos is recoloured, wholly or in a region, and the
sentence names the colour. Of such photos nothing but the words can tell which colour it was.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from kornia.filters import guided_blur
from torch.utils.data import Dataset

from textir.data.samples import sample_generator
from textir.degradations import draw_mask, gray, lightness
from textir.models.edit_processor import AB_UNIT, fill_harmonic, lab_from_rgb, rgb_from_lab
from train_lora.described_photos import DescribedPhoto, SpokenWords
from train_lora.photo_labels import COLOURS, light_strengths

# Hue in degrees and chroma of CIE Lab / 100 that a word stands for; none of black, white and grey.
HUES = {
    "pink": (8, 0.28),
    "red": (40, 0.45),
    "brown": (57, 0.24),
    "orange": (73, 0.45),
    "yellow": (103, 0.45),
    "green": (136, 0.36),
    "blue": (290, 0.38),
    "purple": (322, 0.36),
}
NEUTRAL = ("black", "white", "grey")
KINDS = ("text", "image", "own", "mixture", "none")


@dataclass
class Shares:
    """How often each kind of words is drawn, and what of text is made from the crop.

    Attributes:
        text, image, own, mixture, none: relative frequency of each kind.
        made: of texts, share that is made from the crop; captions otherwise, where there are any.
        recoloured: of all photos, share that is recoloured (colorization).
    """

    text: float = 0.4
    image: float = 0.15
    own: float = 0.25
    mixture: float = 0.08
    none: float = 0.12
    made: float = 0.4
    recoloured: float = 0.4


class Words:
    """Draws conditions for photos.

    Args:
        photos: all of them, for means and the gap.
        spoken: embeddings of made sentences.
        shares: how often each kind is drawn.

    Attributes:
        text_mean, image_mean: `(D,)`, subtracted from embeddings of each kind.
        agreement: median cosine of a photo and its captions, after that.
        noise: largest length of the noise beside an image's unit vector.
    """

    def __init__(self, photos: Sequence[DescribedPhoto], spoken: SpokenWords, shares: Shares):
        self.spoken, self.shares = spoken, shares
        images = torch.stack([photo.image_embed for photo in photos])
        captioned = [photo for photo in photos if len(photo.caption_embeds)]
        self.image_mean = images.mean(0)
        self.text_mean = spoken.mean
        self.agreement = 0.5
        if captioned:
            said = torch.stack([photo.caption_embeds.mean(0) for photo in captioned])
            self.text_mean = (spoken.mean + said.mean(0)) / 2
            seen = torch.stack([photo.image_embed for photo in captioned])
            said = F.normalize(said - self.text_mean, dim=-1)
            seen = F.normalize(seen - self.image_mean, dim=-1)
            self.agreement = float((said * seen).sum(1).median().clamp(0.2, 0.95))
        self.noise = math.sqrt(1 / self.agreement**2 - 1)

    def of_text(self, embed: torch.Tensor) -> torch.Tensor:
        return F.normalize(embed - self.text_mean, dim=-1)

    def of_image(self, embed: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """With noise of a random length, up to what separates photos from their captions."""
        condition = F.normalize(embed - self.image_mean, dim=-1)
        noise = F.normalize(torch.randn(len(embed), generator=generator), dim=-1)
        length = self.noise * float(torch.rand((), generator=generator))
        return F.normalize(condition + length * noise, dim=-1)

    def draw(
        self, photo: DescribedPhoto, crop: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor | None:
        """A condition `(D,)` for a crop `(3, S, S)`, `None` for no words."""
        shares = self.shares
        weights = torch.tensor([getattr(shares, kind) for kind in KINDS])
        kind = KINDS[int(torch.multinomial(weights, 1, generator=generator))]
        if kind == "none":
            return None
        if kind == "text":
            return self.of_text(self.text_for(photo, crop, generator))
        if kind == "image":
            return self.of_image(photo.image_embed, generator)
        if kind == "own":
            return self.of_image(photo.own_embed, generator)
        share = float(torch.rand((), generator=generator))
        text = self.of_text(self.text_for(photo, crop, generator))
        image = self.of_image(photo.image_embed, generator)
        return F.normalize(share * text + (1 - share) * image, dim=-1)

    def text_for(
        self, photo: DescribedPhoto, crop: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        """The embedding of a sentence about a crop: a caption, its things, or its light."""
        chance = torch.rand(2, generator=generator).tolist()
        count = len(photo.caption_embeds)
        if count and chance[0] >= self.shares.made:
            return photo.caption_embeds[int(chance[1] * count)]
        if photo.things and chance[1] < 0.4:
            return self.spoken.draw("thing", _one_of(photo.things, generator), generator=generator)
        strengths = light_strengths(crop[None], self.spoken.light)[0]
        if float(strengths.sum()) < 1e-3:
            return self.spoken.draw("light", "even", generator=generator)
        label = self.spoken.light[int(torch.multinomial(strengths, 1, generator=generator))]
        return self.spoken.draw("light", label, generator=generator)

    def text_of_colour(
        self, colour: str, photo: DescribedPhoto, generator: torch.Generator
    ) -> torch.Tensor:
        """A condition that names a colour, and mostly a thing of the photo."""
        key: tuple[str, ...] = ("colour", colour)
        if photo.things and float(torch.rand((), generator=generator)) < 0.75:
            key = ("coloured", colour, _one_of(photo.things, generator))
        elif float(torch.rand((), generator=generator)) < 0.5:
            key = ("coloured", colour, _one_of(self.spoken.things, generator))
        return self.of_text(self.spoken.draw(*key, generator=generator))


@dataclass(frozen=True)
class Box:
    """Where a square crop lies in its photo, in pixels, and whether it was flipped."""

    top: int
    left: int
    side: int
    flipped: bool

    def cut_map(self, found: torch.Tensor, photo: DescribedPhoto, size: int) -> torch.Tensor:
        """The same of a coarse map `(h, w)` of the whole photo: `(1, size, size)`."""
        height, width = photo.pixels.shape[:2]
        steps = (torch.arange(size) + 0.5) / size * self.side
        across = 2 * (self.left + (steps.flip(0) if self.flipped else steps)) / width - 1
        down = 2 * (self.top + steps) / height - 1
        grid = torch.stack(torch.meshgrid(down, across, indexing="ij")[::-1], dim=-1)
        options = {"mode": "bilinear", "padding_mode": "border", "align_corners": False}
        return F.grid_sample(found[None, None], grid[None], **options)[0]


def cut(
    photo: DescribedPhoto, size: int, least_share: float | None, generator: torch.Generator
) -> tuple[torch.Tensor, Box]:
    """A square crop `(3, size, size)` of a photo, flipped half of the time: of at least
    `least_share` of the shorter side, or of native pixels; and where it lies."""
    height, width = photo.pixels.shape[:2]
    shorter = min(height, width)
    draws = torch.rand(4, generator=generator).tolist()
    side = min(size, shorter)
    if least_share is not None:
        side = max(round(shorter * (least_share + (1 - least_share) * draws[0])), 1)
    top, left = int(draws[1] * (height - side + 1)), int(draws[2] * (width - side + 1))
    pixels = photo.pixels[top : top + side, left : left + side]
    crop = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255
    if side != size:
        crop = F.interpolate(
            crop[None], (size, size), mode="bicubic", antialias=True, align_corners=False
        )[0].clamp(0, 1)
    box = Box(top, left, side, draws[3] < 0.5)
    return (crop.flip(-1) if box.flipped else crop), box


class EditSamples(Dataset):
    """Endless samples of one task.

    Args:
        task: "inpaint", "super-resolution" or "colorize".
        photos: where they come from.
        words: what is said of them.
        size: side of the square crops.
        seed: of the stream.
        least_share: a crop shows at least this share of the shorter side (inpainting, colour).
        length: number of samples.

    Items have `start` `(3, S, S)`, what the network is given; `target`, `(3, S, S)` or `(2, S, S)`;
    `condition` `(D,)` and `wordless` `()`; `mask` `(1, S, S)` or `scale` `()` where the task has
    one; and `index`.
    """

    def __init__(
        self,
        task: str,
        photos: Sequence[DescribedPhoto],
        words: Words,
        size: int,
        seed: int = 0,
        least_share: float = 0.6,
        length: int = 2**31,
    ):
        self.task, self.photos, self.words, self.size = task, photos, words, size
        self.seed, self.least_share, self.length = seed, least_share, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        generator = sample_generator(self.seed, index)
        photo = self.photos[int(torch.randint(len(self.photos), (), generator=generator))]
        make = {
            "colorize": self._gray,
            "super-resolution": self._small,
            "inpaint": self._with_hole,
        }[self.task]
        sample = make(photo, generator)
        condition = sample.pop("condition")
        wordless = condition is None
        if wordless:
            condition = torch.zeros_like(photo.image_embed)
        numbers = {"wordless": torch.tensor(wordless), "index": torch.tensor(index)}
        return {**sample, "condition": condition, **numbers}

    def _gray(self, photo: DescribedPhoto, generator: torch.Generator) -> dict:
        crop, box = cut(photo, self.size, self.least_share, generator)
        if float(torch.rand((), generator=generator)) < self.words.shares.recoloured:
            crop, condition = self._recoloured(photo, crop, box, generator)
        else:
            condition = self.words.draw(photo, crop, generator)
        lab = lab_from_rgb(crop[None])[0]
        take_colours = gray if float(torch.rand((), generator=generator)) < 0.5 else lightness
        return {
            "start": take_colours(crop[None])[0],
            "target": lab[1:] / AB_UNIT,
            "truth": crop,
            "condition": condition,
        }

    def _recoloured(
        self, photo: DescribedPhoto, crop: torch.Tensor, box: Box, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A thing of the photo in another colour, with its name; or a region of one hue, or all of
        it, with the colour alone."""
        place = None
        if photo.maps is not None and float(torch.rand((), generator=generator)) < 0.75:
            place = int(torch.randint(len(photo.things), (), generator=generator))
            found = box.cut_map(photo.maps[place], photo, self.size)
            if float((found > 0.5).float().mean()) < 0.02:  # it lies outside the crop
                place = None
        if place is not None:
            crop, colour = recolour(crop, generator, along_edges(found, crop))
            key = ("coloured", colour, photo.things[place])
        else:
            crop, colour = recolour(crop, generator)
            key = ("colour", colour)
        return crop, self.words.of_text(self.words.spoken.draw(*key, generator=generator))

    def _small(self, photo: DescribedPhoto, generator: torch.Generator) -> dict:
        crop, _ = cut(photo, self.size, None, generator)
        factor = draw_factor(self.size, generator)
        side = max(round(self.size / factor), 8)
        small = reduce_somehow(crop[None], side, generator)
        start = F.interpolate(
            small, crop.shape[-2:], mode="bicubic", antialias=True, align_corners=False
        )
        condition = self.words.draw(photo, crop, generator)
        scale = torch.tensor(self.size / side)
        return {"start": start[0], "target": crop, "scale": scale, "condition": condition}

    def _with_hole(self, photo: DescribedPhoto, generator: torch.Generator) -> dict:
        crop, _ = cut(photo, self.size, self.least_share, generator)
        share = 0.05 + 0.45 * float(torch.rand((), generator=generator)) ** 2
        hole = draw_mask(self.size, self.size, share, generator=generator)
        if float(torch.rand((), generator=generator)) < self.words.shares.recoloured:
            crop, colour = recolour_in(crop, hole[0], generator)
            condition = self.words.text_of_colour(colour, photo, generator)
        else:
            condition = self.words.draw(photo, crop, generator)
        start = fill_harmonic(crop[None], hole)[0]
        return {"start": start, "target": crop, "mask": hole[0].float(), "condition": condition}


# ---- colour


def recolour(
    crop: torch.Tensor, generator: torch.Generator, weight: torch.Tensor | None = None
) -> tuple[torch.Tensor, str]:
    """A photo `(3, S, S)` in another colour at equal lightness, by weights `(1, S, S)` or, without
    them, wholly or in a region of one hue; and the colour's name."""
    lab = lab_from_rgb(crop[None])[0]
    if weight is None:
        weight = torch.ones_like(lab[:1])
        if float(torch.rand((), generator=generator)) < 0.5:
            weight = region_of_hue(lab, generator)
    colour = _one_of(tuple(COLOURS), generator)
    new = in_colour(lab[1:], weight, colour, generator)
    ab = lab[1:] + weight * (new - lab[1:])
    return rgb_from_lab(torch.cat([lab[:1], ab])[None])[0].clamp(0, 1), colour


def recolour_in(
    crop: torch.Tensor, hole: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, str]:
    """A photo `(3, S, S)` whose hole `(1, S, S)` shows another colour, smoothly inside its edge:
    nothing but the words can tell which."""
    inside = F.avg_pool2d(hole[None].float(), 9, 1, padding=4, count_include_pad=False)[0]
    return recolour(crop, generator, (2 * inside - 1).clamp(0, 1))


def along_edges(found: torch.Tensor, crop: torch.Tensor) -> torch.Tensor:
    """A coarse map `(1, S, S)` that follows the edges of a photo `(3, S, S)` (He et al., *Guided
    Image Filtering*, ECCV 2010), and is flat within a thing."""
    side = 2 * max(crop.shape[-1] // 16, 2) + 1
    guide = crop.mean(0, keepdim=True)
    followed = guided_blur(guide[None], found[None], side, 2e-3, border_type="replicate")[0]
    return (2.2 * followed - 0.4).clamp(0, 1)


def region_of_hue(lab: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """How much each pixel `(1, S, S)` has the hue of a random coloured pixel near the middle; all
    pixels alike where there is none."""
    chroma = lab[1:].norm(dim=0)
    height, width = chroma.shape
    border = (height // 5, width // 5)
    inner = torch.zeros_like(chroma)
    inner[border[0] : height - border[0], border[1] : width - border[1]] = 1
    chance = (inner * (chroma > 0.1)).flatten()
    if not chance.any():
        return torch.ones_like(lab[:1])
    picked = int(torch.multinomial(chance, 1, generator=generator))
    direction = F.normalize(lab[1:].flatten(1)[:, picked], dim=0)
    along = (lab[1:] * direction[:, None, None]).sum(0) / chroma.clamp(min=1e-3)
    alike = torch.sigmoid(14 * (along - 0.75)) * ((chroma - 0.04) / 0.08).clamp(0, 1)
    return F.avg_pool2d(alike[None], 5, 1, padding=2, count_include_pad=False)


def in_colour(
    ab: torch.Tensor, weight: torch.Tensor, colour: str, generator: torch.Generator
) -> torch.Tensor:
    """Colours `(2, S, S)` turned and scaled so that their mean, by weight, is what a word says."""
    draws = torch.randn(2, generator=generator).tolist()
    if colour in NEUTRAL:
        return ab * min(abs(0.12 * draws[0]), 0.3)
    hue, chroma = HUES[colour]
    angle = math.radians(hue + 9 * draws[0])
    chroma = chroma * math.exp(0.25 * draws[1])
    target = chroma * torch.tensor([math.cos(angle), math.sin(angle)])
    mean = (weight * ab).sum((1, 2)) / weight.sum().clamp(min=1e-3)
    length = float(mean.norm())
    if length < 0.05:
        return 0.5 * ab + target[:, None, None]
    turn = angle - math.atan2(float(mean[1]), float(mean[0]))
    gain = min(chroma / length, 3.0)
    cosine, sine = gain * math.cos(turn), gain * math.sin(turn)
    turned = torch.stack([cosine * ab[0] - sine * ab[1], sine * ab[0] + cosine * ab[1]])
    missing = target - target * gain * length / chroma
    return turned + missing[:, None, None]


# ---- size


def draw_factor(size: int, generator: torch.Generator) -> float:
    """By how much a crop is reduced: half of the time 2, 3, 4 or 8, else anything from 2 to 16, as
    far as 16 pixels are left."""
    largest = min(size / 16, 16.0)
    draws = torch.rand(2, generator=generator).tolist()
    whole = [factor for factor in (2.0, 3.0, 4.0, 4.0, 8.0) if factor <= largest]
    if draws[0] < 0.6:
        return whole[int(draws[1] * len(whole))]
    return 2 * (largest / 2) ** draws[1]


def reduce_somehow(image: torch.Tensor, side: int, generator: torch.Generator) -> torch.Tensor:
    """A photo `(1, 3, S, S)` reduced to `side` pixels, mostly bicubic, as an 8-bit file; sometimes
    by area, or with a little blur or noise before or after."""
    draws = torch.rand(4, generator=generator).tolist()
    if draws[0] < 0.1:
        image = F.avg_pool2d(F.pad(image, (1, 1, 1, 1), mode="replicate"), 3, 1)
    options = {"mode": "bicubic", "antialias": True, "align_corners": False}
    if draws[1] < 0.15:
        options = {"mode": "area"}
    small = F.interpolate(image, (side, side), **options)
    if draws[2] < 0.1:
        small = small + draws[3] * 4 / 255 * torch.randn(small.shape, generator=generator)
    return (255 * small.clamp(0, 1)).round() / 255


def _one_of(names: Sequence[str], generator: torch.Generator) -> str:
    return names[int(torch.randint(len(names), (), generator=generator))]


def middle_box(height: int, width: int) -> torch.Tensor:
    """A hole of half of each side in the middle, `(1, 1, height, width)` bool."""
    hole = torch.zeros(1, 1, height, width, dtype=torch.bool)
    hole[..., height // 4 : 3 * height // 4, width // 4 : 3 * width // 4] = True
    return hole
