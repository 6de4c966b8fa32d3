"""Training and test pictures: clean photos degraded on the fly, pairs from two folders, published benchmarks, data sets of the Hub.

A training sample is a pure function of `(seed, index)`: source, photo, crop, flip and degradation are all drawn from a generator
with that seed. So a run resumed at step k sees just what the uninterrupted run would have seen, on any number of workers or
processes.
"""

import json
import logging
import os
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset, IterableDataset
from tqdm import tqdm

from textir.benchmarks import BENCHMARKS, Entry, find_benchmark
from textir.conditions import draw_wish, draw_wish_of_pair
from textir.degradations import LABELS, RECIPES, apply_steps, draw_recipe, parse_recipe
from textir.images import Picture, list_images, picture_from_pil, read_picture

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
        if not 0 < share < float("inf"):
            raise ValueError(f"The weight in {text!r} must be a positive number, as in `{recipe}@2`.")
        mixture.append((recipe, share))
    total = sum(share for _, share in mixture)
    return [(recipe, share / total) for recipe, share in mixture]


# ---- which files


def find_entries(source: str | Path, split: str = "train", guidance_dir: str | Path | None = None) -> list[Entry]:
    """The images of a source, sorted.

    Args:
        source: `gopro:/data/GoPro` (a published benchmark by name and root, see `textir.benchmarks`); a folder with `input/` and
            `target/` (pairs by name, and `guidance/` if it is there); or a folder of clean photos, searched recursively.
        split: of a benchmark.
        guidance_dir: guidance images named like the degraded ones.

    Raises:
        ValueError: if there is nothing, or an image lacks its twin or its guidance.
    """
    name, colon, root = str(source).partition(":")
    if colon and name in BENCHMARKS:
        entries = find_benchmark(name, root, split)
    elif Path(source).is_dir() and ((Path(source) / "input").is_dir() or (Path(source) / "target").is_dir()):
        entries = _pairs(Path(source))
        beside = Path(source) / "guidance"
        guidance_dir = guidance_dir or (beside if beside.is_dir() else None)
    elif colon and re.fullmatch(r"\w{2,}", name) and not Path(source).exists():
        raise ValueError(f"Unknown benchmark {name!r} in {source!r}; known are {', '.join(BENCHMARKS)}.")
    else:
        entries = [Entry(path) for path in list_images(source, recursive=True)]
    if not entries:
        raise ValueError(f"No photos found in {source}.")
    if guidance_dir is None:
        return entries
    guidance = {path.stem: path for path in list_images(guidance_dir)}
    names = entry_names(entries)
    lonely = [name for name in names if name not in guidance]
    if lonely:
        raise ValueError(f"{len(lonely)} images of {source} have no guidance in {guidance_dir}: {', '.join(lonely[:10])}.")
    return [entry._replace(guidance=guidance[name]) for entry, name in zip(entries, names)]


def entry_names(entries: Sequence[Entry]) -> list[str]:
    """A name of its own for each entry: that of its file, with its folders where files of several folders are called alike."""
    names = [entry.name for entry in entries]
    if len(set(names)) < len(names):
        files = [(entry.degraded or (entry.clean,))[0].resolve() for entry in entries]
        root = Path(os.path.commonpath([file.parent for file in files]))
        names = ["_".join(file.relative_to(root).with_suffix("").parts) for file in files]
    if len(set(names)) < len(names):
        names = [f"{name}~{i}" if names.count(name) > 1 else name for i, name in enumerate(names)]
    return names


def _pairs(folder: Path) -> list[Entry]:
    missing = [name for name in ("input", "target") if not (folder / name).is_dir()]
    if missing:
        raise ValueError(
            f"{folder} has no folder {' and '.join(missing)}; pairs lie in input/ and target/. "
            "For a folder of clean images pass a degradation recipe such as noise:25."
        )
    degraded, clean = (_by_stem(folder / name) for name in ("input", "target"))
    if not degraded:
        raise ValueError(f"No images in {folder / 'input'}.")
    lonely = sorted(degraded.keys() ^ clean.keys())
    if lonely:
        raise ValueError(f"{len(lonely)} images of {folder} have no twin of the same name: {', '.join(lonely[:10])}.")
    return [Entry(clean[name], (degraded[name],)) for name in sorted(degraded)]


def _by_stem(folder: Path) -> dict[str, Path]:
    files = list_images(folder)
    named = {path.stem: path for path in files}
    if len(named) < len(files):
        double = sorted(path.name for path in files if named[path.stem] != path)
        raise ValueError(f"{folder} has several files of one name: {', '.join(double[:10])}; pairs go by name without extension.")
    return named


# ---- their pixels


class Images(NamedTuple):
    """Pixels of an entry, integers `(H, W, C)` at the depth of their files; views of a degraded image are joined along C."""

    clean: np.ndarray
    degraded: np.ndarray | None = None
    guidance: np.ndarray | None = None


class Photos:
    """The images behind entries, all checked when this is built; as many as fit into `memory` stay decoded.

    Args:
        entries: which files, see `find_entries`.
        min_size: smallest side that a photo may have.
        skip_bad: leave out entries that cannot be used (each is logged) instead of raising.
        memory: bytes that decoded photos may take; a quarter of the free memory by default.
        record: a JSON file in which checks are remembered, so that a resumed run need not decode a large set again.
        labels: what the degraded images suffer from, where they are pairs and that is known.

    Raises:
        ValueError: if a file is broken or too small or differs in size from its twin; all such files are named.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        min_size: int = 16,
        skip_bad: bool = False,
        memory: int | None = None,
        record: str | Path | None = None,
        labels: Sequence[str] = (),
    ):
        self.min_size, self.labels = min_size, tuple(labels)
        self.room = psutil.virtual_memory().available // 4 if memory is None else memory
        self.lock = threading.Lock()
        self.kept: dict[Entry, Images] = {}
        known = _read_record(record)
        with ThreadPoolExecutor() as pool:
            checks = pool.map(lambda entry: self._check(entry, self._stamp(entry) in known), entries)
            problems = list(tqdm(checks, "checking images", len(entries), leave=False, disable=None))
        bad = {entry: problem for entry, problem in zip(entries, problems) if problem is not None}
        if bad and not skip_bad:
            raise ValueError(
                f"{len(bad)} images cannot be used (`--skip_bad` leaves them out):\n" + "\n".join([*bad.values()][:20])
            )
        for message in bad.values():
            logger.warning("left out: %s", message)
        self.entries = [entry for entry in entries if entry not in bad]
        if not self.entries:
            raise ValueError(f"None of {len(entries)} images can be used.")
        if record is not None:
            _write_record(record, {self._stamp(entry) for entry in self.entries})

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Images:
        entry = self.entries[index]
        return self.kept[entry] if entry in self.kept else _decode(entry)

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "lock"}  # workers only read

    def _check(self, entry: Entry, known_as_good: bool) -> str | None:
        """What is wrong with an entry; a good one is kept while there is room."""
        if known_as_good and not self.room:
            return None
        try:
            images = _decode(entry)
        except ValueError as error:
            return str(error)
        height, width = images.clean.shape[:2]
        if min(height, width) < self.min_size:
            return f"{entry.clean} is {width} x {height}, smaller than {self.min_size}."
        if images.degraded is not None and images.degraded.shape[:2] != (height, width):
            size = f"{images.degraded.shape[1]} x {images.degraded.shape[0]}"
            return f"{entry.degraded[0]} is {size} but its twin {entry.clean} is {width} x {height}."
        size = sum(array.nbytes for array in images if array is not None)
        with self.lock:
            if size <= self.room:
                self.room -= size
                self.kept[entry] = images
            else:
                self.room = 0
        return None

    def _stamp(self, entry: Entry) -> str:
        files = [entry.clean, *entry.degraded, *([entry.guidance] if entry.guidance else [])]
        stats = [path.stat() if path.exists() else None for path in files]
        return json.dumps([[str(path), s and s.st_size, s and s.st_mtime_ns] for path, s in zip(files, stats)] + [self.min_size])


def _decode(entry: Entry) -> Images:
    views = [read_picture(path) for path in entry.degraded]
    if any(view.pixels.shape != views[0].pixels.shape for view in views):
        raise ValueError(f"The views {' and '.join(map(str, entry.degraded))} differ in size.")
    bits = max((view.bits for view in views), default=8)
    degraded = np.concatenate([_integers(view, bits) for view in views], axis=-1) if views else None
    guidance = None if entry.guidance is None else _integers(read_picture(entry.guidance))
    return Images(_integers(read_picture(entry.clean)), degraded, guidance)


def _integers(picture: Picture, bits: int | None = None) -> np.ndarray:
    kind = np.uint8 if (bits or picture.bits) == 8 else np.uint16
    return (picture.pixels * np.iinfo(kind).max).round().astype(kind)


def list_some(messages: Iterable[str], most: int = 20) -> str:
    """Messages, one a line; the first ones of many."""
    lines = list(messages)
    return "\n".join(lines[:most] + ([f"and {len(lines) - most} more"] if len(lines) > most else []))


def _read_record(record: str | Path | None) -> set[str]:
    try:
        return set(json.loads(Path(record).read_text())) if record is not None and Path(record).is_file() else set()
    except ValueError:
        return set()  # cut short by a crash: the images are checked again


def _write_record(record: str | Path, stamps: set[str]) -> None:
    Path(record).parent.mkdir(parents=True, exist_ok=True)
    Path(record).write_text(json.dumps(sorted(stamps)))


class HubPhotos:
    """A data set of the `datasets` library, from the Hub or a local folder that it understands (imagefolder), as photos.

    Args:
        name: Hub id, or a folder.
        split: of the data set.
        clean_column: holds the clean image.
        degraded_column: holds the degraded image; without one degradation is synthetic.
        streaming: do not download it whole; then it is read in its order, and samples come from `StreamedCrops`.
        revision: of the Hub repository.
        labels: what its degraded images suffer from, where that is known.

    Raises:
        ValueError: if `datasets` is not installed, the data set cannot be had or lacks a column.
    """

    def __init__(
        self,
        name: str,
        split: str = "train",
        clean_column: str = "image",
        degraded_column: str | None = None,
        streaming: bool = False,
        revision: str | None = None,
        labels: Sequence[str] = (),
    ):
        self.labels = tuple(labels)
        try:
            import datasets
        except ImportError:
            raise ValueError("Data sets of the Hub need the package `datasets`: pip install -r requirements-train.txt") from None
        self.name, self.clean_column, self.degraded_column = name, clean_column, degraded_column
        try:
            self.rows = datasets.load_dataset(name, split=split, streaming=streaming, revision=revision)
        except Exception as error:  # of many kinds: no network, no repository, no such split, bad metadata
            raise ValueError(f"The data set {name} ({split}) cannot be loaded: {error}") from error
        columns = self.rows.column_names or list(next(iter(self.rows), {}))
        missing = [column for column in (clean_column, degraded_column) if column and column not in columns]
        if missing:
            raise ValueError(f"The data set {name} has no column {', '.join(missing)}; it has {', '.join(columns)}.")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Images:
        return self.read(self.rows[index])

    def read(self, row: dict) -> Images:
        clean = _integers(picture_from_pil(row[self.clean_column]))
        if self.degraded_column is None:
            return Images(clean)
        degraded = _integers(picture_from_pil(row[self.degraded_column]))
        if degraded.shape != clean.shape:
            sizes = " but ".join(
                f"{c} is {x.shape[1]} x {x.shape[0]}" for c, x in ((self.degraded_column, degraded), (self.clean_column, clean))
            )
            raise ValueError(f"A pair of {self.name} differs in size: {sizes}.")
        return Images(clean, degraded)


# ---- samples


class Sampler:
    """Turns the images of an entry into a training sample; a pure function of images and generator.

    Args:
        recipes: weighted degradation recipes for clean photos, see `parse_mixture`; pairs need none.
        crop_size: side of the square crop in pixels.
        max_reduction: a clean photo is reduced by up to this factor before it is cropped (half of the time not at all).
        low_key: share of the clean photos that are darkened (gamma up to 2.5, up to a stop less light) before they are degraded, where
            the recipe does not darken it: a dark photo need not be an under-exposed one.
        min_share: take, instead of crops, most of a clean photo: a window of at least this share of each side, squeezed into the square;
            for networks that see whole photos in small.
        told_share: share of the samples that name what shall go, see `textir.conditions`; of the others the network has to find out.
            `None` makes samples without a condition.
        known: labels that the training data show at all, see `draw_wish`.

    A sample is `{"degraded": (C, S, S), "clean": (3, S, S), "severity": (len(LABELS),)}`, and `"guidance": (3, S, S)` where there is
    one. `severity` is 0 for what a photo does not suffer from and NaN throughout for pairs, of which it is not known. With `told_share`
    there is `"condition": (len(LABELS) + 1,)` too, and `clean` is what the photo looks like once that has been removed.
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
        self.told_share, self.known = told_share, tuple(known)
        self.crop_size, self.max_reduction, self.low_key, self.min_share = crop_size, max_reduction, low_key, min_share
        self.mixture = parse_mixture(recipes) if recipes else []
        self.shares = torch.tensor([share for _, share in self.mixture])

    def __call__(self, images: Images, generator: torch.Generator, pair_labels: Sequence[str] = ()) -> dict[str, torch.Tensor]:
        """Make a sample; `pair_labels` say what the degraded image of a pair suffers from."""
        if images.degraded is None and not self.mixture:
            raise ValueError("These are clean photos; pass `--degradations` to say how they are to be degraded.")
        clean, degraded, guidance = self._crop(images, generator)
        if torch.rand((), generator=generator) < 0.5:
            clean, degraded, guidance = (x if x is None else x.flip(-1) for x in (clean, degraded, guidance))
        severity = torch.full((len(LABELS),), float("nan"))
        if degraded is None:
            recipe = self.mixture[int(torch.multinomial(self.shares, 1, generator=generator))][0]
            is_dark = any(RECIPES[name].label == "lowlight" for name, *_ in parse_recipe(recipe))
            if self.low_key and not is_dark and torch.rand((), generator=generator) < self.low_key:
                clean = clean ** (1 + 1.5 * torch.rand((), generator=generator))
                clean = clean * 2 ** (-torch.rand((), generator=generator) / 2.2)
            steps = draw_recipe(recipe, generator)
            severity = severities(steps)
            photo, seeds = clean, [int(torch.randint(2**31, (), generator=generator)) for _ in steps]
            degraded = apply_seeded(photo, steps, seeds)
            if self.told_share is not None:
                wish = draw_wish([RECIPES[name].label for name, _ in steps], self.told_share, generator, self.known)
                clean = degraded if wish.kept == len(steps) else apply_seeded(photo, steps[: wish.kept], seeds)
        elif self.told_share is not None:
            wish = draw_wish_of_pair(pair_labels, self.told_share if pair_labels else 0.0, generator, self.known)
            clean = degraded if wish.kept else clean
        sample = {"degraded": degraded, "clean": clean, "severity": severity}
        if self.told_share is not None:
            sample["condition"] = wish.condition
        return sample if guidance is None else {**sample, "guidance": guidance}

    def _crop(self, images: Images, generator: torch.Generator) -> list[torch.Tensor | None]:
        height, width = images.clean.shape[:2]
        if min(height, width) < self.crop_size:
            raise ValueError(f"A photo of {width} x {height} is smaller than the crop of {self.crop_size}.")
        draw = torch.rand(3, generator=generator).tolist()
        if self.min_share is not None:
            shares = self.min_share + (1 - self.min_share) * torch.rand(2, generator=generator)
            tall, wide = int(height * shares[0]), int(width * shares[1])
        else:
            largest = min(self.max_reduction if images.degraded is None else 1.0, min(height, width) / self.crop_size)
            reduction = largest ** (2 * draw[0] - 1) if draw[0] > 0.5 else 1.0
            tall = wide = int(self.crop_size * reduction)
        top, left = int(draw[1] * (height - tall + 1)), int(draw[2] * (width - wide + 1))

        def cut(array: np.ndarray | None) -> torch.Tensor | None:
            if array is None:
                return None
            if array.shape[:2] != (height, width):  # guidance has a size of its own and shows the whole image
                array = resize_pixels(array, height, width)
            crop, size = to_tensor(array[top : top + tall, left : left + wide]), (self.crop_size, self.crop_size)
            return crop if crop.shape[1:] == size else F.interpolate(crop[None], size, mode="bilinear", antialias=True)[0]

        return [cut(array) for array in images]


def apply_seeded(image: torch.Tensor, steps: Sequence[tuple[str, float]], seeds: Sequence[int]) -> torch.Tensor:
    """Apply drawn steps to `(C, H, W)`, each with a seed of its own: what a step draws does not depend on those before it."""
    image = image[None]
    for step, seed in zip(steps, seeds):
        image = apply_steps(image, [step], torch.Generator().manual_seed(seed))
    return image[0]


def severities(steps: Sequence[tuple[str, float]]) -> torch.Tensor:
    """The severity `(len(LABELS),)` in [0, 1] of each degradation in the drawn steps of a recipe; 0 where there is none."""
    severity = torch.zeros(len(LABELS))
    for name, value in steps:
        at = LABELS.index(RECIPES[name].label)
        severity[at] = max(severity[at], RECIPES[name].severity(value))
    return severity


def to_tensor(array: np.ndarray) -> torch.Tensor:
    """Integers `(H, W, C)` -> `(C, H, W)` in [0, 1]."""
    return torch.from_numpy(array.astype(np.float32) / np.iinfo(array.dtype).max).movedim(-1, 0).contiguous()


def resize_pixels(array: np.ndarray, height: int, width: int) -> np.ndarray:
    """Integers `(h, w, C)` -> `(height, width, C)` of the same kind, bicubic."""
    largest = np.iinfo(array.dtype).max
    resized = F.interpolate(to_tensor(array)[None], (height, width), mode="bicubic", antialias=True)[0]
    return (resized.clamp(0, 1) * largest).round().movedim(0, -1).numpy().astype(array.dtype)


def sample_generator(seed: int, index: int) -> torch.Generator:
    """The source of all randomness of a sample. The CPU generator heeds 32 bits of its seed; the golden ratio spreads the streams of
    neighbouring seeds over them."""
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
        self, sources: Sequence, sampler: Sampler, weights: Sequence[float] | None = None, length: int = 2**31, seed: int = 0
    ):
        self.sources, self.sampler, self.length, self.seed = list(sources), sampler, length, seed
        self.weights = torch.tensor([float(w) for w in (weights or map(len, self.sources))])

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        generator = sample_generator(self.seed, index)
        source = int(torch.multinomial(self.weights, 1, generator=generator)) if len(self.sources) > 1 else 0
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

    def __init__(self, source: HubPhotos, sampler: Sampler, start: int = 0, length: int = 2**31, seed: int = 0):
        self.source, self.sampler, self.start, self.length, self.seed = source, sampler, start, length, seed

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
                        **self.sampler(self.source.read(row), sample_generator(self.seed, index), self.source.labels),
                        "index": torch.tensor(index),
                    }
                index += 1
            if index == begin:
                raise ValueError("The data set has no rows.")


def parse_source(text: str) -> tuple[str, float | None]:
    """`gopro:/data/GoPro@2` -> the source and its weight (`None` without one)."""
    match = re.fullmatch(r"(.+)@(\d*\.?\d+)", text)
    if match is None:
        return text, None
    if not float(match[2]) > 0:
        raise ValueError(f"The weight in {text!r} must be a positive number, as in `{match[1]}@2`.")
    return match[1], float(match[2])
