"""Training samples: crops, degradations, noise. Each is a pure function of `(seed, index)`: source,
photo, crop, flip and degradation are drawn from a generator with that seed. So a run resumed at
step k sees just what the uninterrupted run would have seen, on any number of workers or
processes.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset, IterableDataset

from textir.conditions import draw_wish, draw_wish_of_pair
from textir.data.photos import HubPhotos, Images
from textir.degradations import LABELS, Dose, Mixture, apply_doses
from textir.images.picture import resize, to_pixels, to_tensor


class Sampler:
    """Turns the images of an entry into a training sample; a pure function of images and generator.

    Args:
        recipes: weighted degradation recipes for clean photos, see `Mixture.parse`; pairs need
            none.
        crop_size: side of the square crop in pixels.
        max_reduction: a clean photo is reduced by up to this factor before it is cropped (half of
            the time not at all).
        low_key: share of the clean photos that are darkened (gamma up to 2.5, up to a stop less
            light) before they are degraded, where the recipe does not darken it: a dark photo need
            not be an under-exposed one.
        min_share: take, instead of crops, most of a clean photo: a window of at least this share of
            each side, squeezed into the square; for networks that see whole photos in small.
        told_share: share of the samples that name what shall go, see `textir.conditions`; of the
            others the network has to find out. `None` makes samples without a condition.
        known: labels that the training data show at all, see `draw_wish`.

    A sample is `{"degraded": (C, S, S), "clean": (3, S, S), "severity": (len(LABELS),)}`, and
    `"guidance": (3, S, S)` where there is one. `severity` is 0 for what a photo does not suffer
    from and NaN throughout for pairs, of which it is not known. With `told_share` there is
    `"condition": (len(LABELS) + 1,)` too, and `clean` is what the photo looks like once that has
    been removed.
    """

    def __init__(
        self,
        recipes: Sequence[str] = (),
        crop_size: int = 128,
        max_reduction: float = 2.0,
        low_key: float = 0.0,
        min_share: float | None = None,
        told_share: float | None = None,
        known: Sequence[str] = LABELS,
    ):
        self.crop_size = crop_size
        self.max_reduction = max_reduction
        self.low_key = low_key
        self.min_share = min_share
        self.told_share = told_share
        self.known = tuple(known)
        self.mixture = Mixture.parse(recipes) if recipes else None

    def __call__(
        self, images: Images, generator: torch.Generator, pair_labels: Sequence[str] = ()
    ) -> dict[str, torch.Tensor]:
        """Make a sample; `pair_labels` say what the degraded image of a pair suffers from."""
        if images.degraded is None and self.mixture is None:
            raise ValueError(
                "These are clean photos; pass `--degradations` to say how they are to be degraded."
            )
        clean, degraded, guidance = self._crop(images, generator)
        if torch.rand((), generator=generator) < 0.5:
            clean, degraded, guidance = (
                x if x is None else x.flip(-1) for x in (clean, degraded, guidance)
            )
        severity = torch.full((len(LABELS),), float("nan"))
        if degraded is None:
            recipe = self.mixture.draw(generator)
            if (
                self.low_key
                and "lowlight" not in recipe.labels
                and torch.rand((), generator=generator) < self.low_key
            ):
                clean = clean ** (1 + 1.5 * torch.rand((), generator=generator))
                clean = clean * 2 ** (-torch.rand((), generator=generator) / 2.2)
            doses = recipe.draw(generator)
            severity = severities(doses)
            photo = clean
            seeds = [int(torch.randint(2**31, (), generator=generator)) for _ in doses]
            degraded = apply_seeded(photo, doses, seeds)
            if self.told_share is not None:
                wish = draw_wish(recipe.labels, self.told_share, generator, self.known)
                clean = apply_seeded(photo, doses[: wish.kept], seeds)
        elif self.told_share is not None:
            share = self.told_share if pair_labels else 0.0
            wish = draw_wish_of_pair(pair_labels, share, generator, self.known)
            clean = degraded if wish.kept else clean
        sample = {"degraded": degraded, "clean": clean, "severity": severity}
        if self.told_share is not None:
            sample["condition"] = wish.condition
        return sample if guidance is None else {**sample, "guidance": guidance}

    def _crop(self, images: Images, generator: torch.Generator) -> list[torch.Tensor | None]:
        height, width = images.clean.shape[:2]
        if min(height, width) < self.crop_size:
            raise ValueError(
                f"A photo of {width} x {height} is smaller than the crop of {self.crop_size}."
            )
        draw = torch.rand(3, generator=generator).tolist()
        if self.min_share is not None:
            shares = self.min_share + (1 - self.min_share) * torch.rand(2, generator=generator)
            tall, wide = int(height * shares[0]), int(width * shares[1])
        else:
            largest = min(
                self.max_reduction if images.degraded is None else 1.0,
                min(height, width) / self.crop_size,
            )
            reduction = largest ** (2 * draw[0] - 1) if draw[0] > 0.5 else 1.0
            tall = wide = int(self.crop_size * reduction)
        top, left = int(draw[1] * (height - tall + 1)), int(draw[2] * (width - wide + 1))

        def cut(array: np.ndarray | None) -> torch.Tensor | None:
            if array is None:
                return None
            if array.shape[:2] != (
                height,
                width,
            ):  # guidance has a size of its own and shows the whole image
                array = resize_pixels(array, height, width)
            crop, size = (
                unit_tensor(array[top : top + tall, left : left + wide]),
                (self.crop_size, self.crop_size),
            )
            return (
                crop
                if crop.shape[1:] == size
                else F.interpolate(crop[None], size, mode="bilinear", antialias=True)[0]
            )

        return [cut(array) for array in images]


def apply_seeded(image: torch.Tensor, doses: Sequence[Dose], seeds: Sequence[int]) -> torch.Tensor:
    """Degrade `(C, H, W)`, each time with a seed of its own: what one degradation draws does not
    depend on those before it."""
    image = image[None]
    for dose, seed in zip(doses, seeds):
        image = apply_doses(image, [dose], torch.Generator().manual_seed(seed))
    return image[0]


def severities(doses: Sequence[Dose]) -> torch.Tensor:
    """The severity `(len(LABELS),)` in [0, 1] of each degradation in what was drawn of a recipe; 0
    where there is none."""
    severity = torch.zeros(len(LABELS))
    for dose in doses:
        at = LABELS.index(dose.label)
        severity[at] = max(severity[at], dose.severity)
    return severity


def unit_tensor(array: np.ndarray) -> torch.Tensor:
    """Integers `(H, W, C)` -> `(C, H, W)` in [0, 1]."""
    return to_tensor(array.astype(np.float32) / np.iinfo(array.dtype).max)[0].contiguous()


def resize_pixels(array: np.ndarray, height: int, width: int) -> np.ndarray:
    """Integers `(h, w, C)` -> `(height, width, C)` of the same kind, bicubic."""
    largest = np.iinfo(array.dtype).max
    resized = to_pixels(resize(unit_tensor(array)[None], (height, width)))
    return (resized * largest).round().astype(array.dtype)


def sample_generator(seed: int, index: int) -> torch.Generator:
    """The source of all randomness of a sample. The CPU generator heeds 32 bits of its seed; the
    golden ratio spreads the streams of neighbouring seeds over them."""
    return torch.Generator().manual_seed((seed * 0x9E3779B1 + index) % 2**32)


class TrainingCrops(Dataset):
    """Endless stream of training pairs; sample `index` depends on `(seed, index)` alone.

    Args:
        sources: where the crops come from, each a `Photos` or `HubPhotos`.
        sampler: how they are cut and degraded.
        weights: share of each source; by default photos count alike, whatever their source.
        length: number of samples; an index is never repeated within it.
        seed: of the stream; its lowest 32 bits count.

    Items are the sampler's, with their `index` and the `source` and `photo` they come from.
    """

    def __init__(
        self,
        sources: Sequence,
        sampler: Sampler,
        weights: Sequence[float] | None = None,
        length: int = 2**31,
        seed: int = 0,
    ):
        self.sources, self.sampler, self.length, self.seed = list(sources), sampler, length, seed
        self.weights = torch.tensor([float(w) for w in (weights or map(len, self.sources))])

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        generator = sample_generator(self.seed, index)
        source = (
            int(torch.multinomial(self.weights, 1, generator=generator))
            if len(self.sources) > 1
            else 0
        )
        photo = int(torch.randint(len(self.sources[source]), (), generator=generator))
        numbers = {"index": index, "source": source, "photo": photo}
        sample = self.sampler(self.sources[source][photo], generator, self.sources[source].labels)
        return {**sample, **{name: torch.tensor(number) for name, number in numbers.items()}}


class StreamedCrops(IterableDataset):
    """Training pairs from a streamed data set, read in its order, again and again.

    Args:
        source: a `HubPhotos` with `streaming=True`.
        sampler: how images are cut and degraded.
        start: first sample; those before are passed over.
        length: number of samples from there.
        seed: of crops and degradations.
    """

    def __init__(
        self,
        source: HubPhotos,
        sampler: Sampler,
        start: int = 0,
        length: int = 2**31,
        seed: int = 0,
    ):
        self.source, self.sampler, self.start, self.length, self.seed = (
            source,
            sampler,
            start,
            length,
            seed,
        )

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        index = 0
        end = self.start + self.length
        while index < end:
            begin = index
            for row in self.source.rows:
                if index >= end:
                    return
                if index >= self.start:
                    yield {
                        **self.sampler(
                            self.source.read(row),
                            sample_generator(self.seed, index),
                            self.source.labels,
                        ),
                        "index": torch.tensor(index),
                    }
                index += 1
            if index == begin:
                raise ValueError("The data set has no rows.")


def draw_noise(
    index: torch.Tensor, shape: tuple[int, ...], scheduler, seed: int, device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise `(B, *shape)` and timesteps of `scheduler` `(B,)` for the samples `index` `(B,)`; each
    depends on `(seed, index)` alone."""
    timesteps = scheduler.config.num_train_timesteps
    generators = [sample_generator(seed ^ 0x5EED, int(i)) for i in index]
    noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
    steps = torch.stack(
        [torch.randint(timesteps, (), generator=generator) for generator in generators]
    )
    return noise.to(device), steps.to(device)


def near_timesteps(chance: torch.Tensor, strength: float, scheduler) -> torch.Tensor:
    """Timesteps of `scheduler` for painting from an image that was taken `strength` of the way to
    noise: evenly between half and one and a half of it as `chance` `(B,)` goes from 0 to 1, never
    without any noise."""
    last = scheduler.config.num_train_timesteps - 1
    return ((0.5 + chance) * strength * last).round().long().clamp(1, last)
