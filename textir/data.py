"""Training and test pictures: clean photos degraded on the fly, or pairs from two folders.

A training sample is a pure function of `(seed, index)`: photo, crop, flip and degradation are all drawn from a generator with that
seed. So a run resumed at step k sees just what the uninterrupted run would have seen, on any number of workers or processes.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset

from textir.degradations import degrade, parse_recipe
from textir.images import list_images, read_picture

logger = logging.getLogger(__name__)


def parse_mixture(recipes: Sequence[str]) -> list[tuple[str, float]]:
    """Read weighted recipes such as `["noise:0..50@4", "rain:heavy@1"]` into `(recipe, probability)`.

    Raises:
        ValueError: if there is no recipe, a weight is not a positive number or a recipe is not understood.
    """
    if not recipes:
        raise ValueError("At least one degradation recipe is needed, for instance `noise:0..50`.")
    mixture = []
    for text in recipes:
        recipe, at, weight = text.partition("@")
        parse_recipe(recipe)
        try:
            share = float(weight) if at else 1.0
        except ValueError:
            share = 0.0
        if not share > 0:
            raise ValueError(f"The weight in {text!r} must be a positive number, as in `{recipe}@2`.")
        mixture.append((recipe, share))
    total = sum(share for _, share in mixture)
    return [(recipe, share / total) for recipe, share in mixture]


class CleanPhotos:
    """Clean photos of one or more folders (searched recursively), decoded once and kept in memory as 8-bit RGB.

    Args:
        folders: where to look.
        min_size: smallest side that a photo may have.
        skip_bad: leave out files that cannot be used (each is logged) instead of raising.

    Raises:
        ValueError: if there is no photo, or (without `skip_bad`) one is broken or too small; all such files are named.
    """

    def __init__(self, folders: Sequence[str | Path], min_size: int = 64, skip_bad: bool = False):
        self.paths: list[Path] = []
        self.photos: list[torch.Tensor] = []
        bad = []
        for path in (path for folder in folders for path in list_images(folder, recursive=True)):
            try:
                pixels = read_picture(path).pixels
            except ValueError as error:
                bad.append(str(error))
                continue
            if min(pixels.shape[:2]) < min_size:
                bad.append(f"{path} is {pixels.shape[1]} x {pixels.shape[0]}, smaller than {min_size}.")
                continue
            self.paths.append(path)
            self.photos.append(torch.from_numpy((pixels * 255).round().astype(np.uint8)).movedim(-1, 0).contiguous())
        if bad and not skip_bad:
            raise ValueError(f"{len(bad)} files cannot be used (`skip_bad` leaves them out):\n" + "\n".join(bad[:20]))
        for message in bad:
            logger.warning("left out: %s", message)
        if not self.photos:
            raise ValueError(f"No photos found in {', '.join(map(str, folders))}.")

    def __len__(self) -> int:
        return len(self.photos)


class DegradedCrops(Dataset):
    """Endless stream of training pairs made from clean photos; sample `index` depends on `(seed, index)` alone.

    Args:
        photos: where the crops come from.
        recipes: weighted degradation recipes, see `parse_mixture`; one is drawn for each sample.
        crop_size: side of the square crop in pixels.
        max_reduction: a photo is reduced by up to this factor before it is cropped (half of the time not at all).
        low_key: share of the photos that are darkened (gamma up to 2.5) before they are degraded, where the recipe has no `lowlight`:
            a dark photo need not be an under-exposed one.
        length: number of samples; an index is never repeated within it.
        seed: of the stream; its lowest 32 bits count.

    Each item is `{"degraded": (3, S, S), "clean": (3, S, S), "task": int}`; `task` is the index of the recipe.
    """

    def __init__(
        self,
        photos: CleanPhotos,
        recipes: Sequence[str],
        crop_size: int = 128,
        max_reduction: float = 2.0,
        low_key: float = 0.0,
        length: int = 1_000_000,
        seed: int = 0,
    ):
        self.photos, self.crop_size, self.max_reduction, self.low_key = photos, crop_size, max_reduction, low_key
        self.length, self.seed = length, seed
        self.mixture = parse_mixture(recipes)
        self.shares = torch.tensor([share for _, share in self.mixture])

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        # The CPU generator heeds 32 bits of its seed; the golden ratio spreads the streams of neighbouring seeds over them.
        generator = torch.Generator().manual_seed((self.seed * 0x9E3779B1 + index) % 2**32)
        photo = self.photos.photos[int(torch.randint(len(self.photos), (), generator=generator))]
        clean = self._crop(photo, generator)
        if torch.rand((), generator=generator) < 0.5:
            clean = clean.flip(-1)
        task = int(torch.multinomial(self.shares, 1, generator=generator))
        recipe = self.mixture[task][0]
        if self.low_key and "lowlight" not in recipe and torch.rand((), generator=generator) < self.low_key:
            clean = clean ** (1 + 1.5 * torch.rand((), generator=generator))
        degraded = degrade(clean[None], recipe, generator)[0]
        return {"degraded": degraded, "clean": clean, "task": torch.tensor(task)}

    def _crop(self, photo: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        height, width = photo.shape[-2:]
        largest = min(self.max_reduction, min(height, width) / self.crop_size)
        if largest < 1:
            raise ValueError(f"A photo of {width} x {height} is smaller than the crop of {self.crop_size}.")
        draw = torch.rand(3, generator=generator)
        reduction = largest ** (2 * draw[0].item() - 1) if draw[0] > 0.5 else 1.0
        window = int(self.crop_size * reduction)
        top = int(draw[1] * (height - window + 1))
        left = int(draw[2] * (width - window + 1))
        crop = photo[:, top : top + window, left : left + window].float() / 255
        if window == self.crop_size:
            return crop
        return F.interpolate(crop[None], self.crop_size, mode="bilinear", antialias=True)[0]
