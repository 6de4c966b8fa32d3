"""Training and test photos: which files there are, and how they are read: folders, pairs, published
benchmarks, data sets of the Hub."""

import json
import logging
import os
import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
from tqdm import tqdm

from textir.data.layouts import BENCHMARKS, Entry, find_benchmark
from textir.images.picture import Picture, list_images, picture_from_pil, read_picture

logger = logging.getLogger(__name__)


# ---- which files


def find_entries(
    source: str | Path, split: str = "train", guidance_dir: str | Path | None = None
) -> list[Entry]:
    """The images of a source, sorted.

    Args:
        source: `gopro:/data/GoPro` (a published benchmark by name and root, see
            `textir.benchmarks`); a folder with `input/` and `target/` (pairs by name, and
            `guidance/` if it is there); or a folder of clean photos, searched recursively.
        split: of a benchmark.
        guidance_dir: guidance images named like the degraded ones.

    Raises:
        ValueError: if there is nothing, or an image lacks its twin or its guidance.
    """
    name, colon, root = str(source).partition(":")
    if colon and name in BENCHMARKS:
        entries = find_benchmark(name, root, split)
    elif Path(source).is_dir() and (
        (Path(source) / "input").is_dir() or (Path(source) / "target").is_dir()
    ):
        entries = _pairs(Path(source))
        beside = Path(source) / "guidance"
        guidance_dir = guidance_dir or (beside if beside.is_dir() else None)
    elif colon and re.fullmatch(r"\w{2,}", name) and not Path(source).exists():
        raise ValueError(
            f"Unknown benchmark {name!r} in {source!r}; known are {', '.join(BENCHMARKS)}."
        )
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
        raise ValueError(
            f"{len(lonely)} images of {source} have no guidance in {guidance_dir}: "
            f"{', '.join(lonely[:10])}."
        )
    return [entry._replace(guidance=guidance[name]) for entry, name in zip(entries, names)]


def entry_names(entries: Sequence[Entry]) -> list[str]:
    """A name of its own for each entry: that of its file, with its folders where files of several
    folders are called alike."""
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
        raise ValueError(
            f"{len(lonely)} images of {folder} have no twin of the same name: "
            f"{', '.join(lonely[:10])}."
        )
    return [Entry(clean[name], (degraded[name],)) for name in sorted(degraded)]


def _by_stem(folder: Path) -> dict[str, Path]:
    files = list_images(folder)
    named = {path.stem: path for path in files}
    if len(named) < len(files):
        double = sorted(path.name for path in files if named[path.stem] != path)
        raise ValueError(
            f"{folder} has several files of one name: {', '.join(double[:10])}; pairs go by name "
            "without extension."
        )
    return named


# ---- their pixels


class Images(NamedTuple):
    """Pixels of an entry, integers `(H, W, C)` at the depth of their files; views of a degraded
    image are joined along C."""

    clean: np.ndarray
    degraded: np.ndarray | None = None
    guidance: np.ndarray | None = None


class Photos:
    """The images behind entries, all checked when this is built; as many as fit into `memory` stay
    decoded.

    Args:
        entries: which files, see `find_entries`.
        min_size: smallest side that a photo may have.
        skip_bad: leave out entries that cannot be used (each is logged) instead of raising.
        memory: bytes that decoded photos may take; a quarter of the free memory by default.
        record: a JSON file in which checks are remembered, so that a resumed run need not decode a
            large set again.
        labels: what the degraded images suffer from, where they are pairs and that is known.

    Raises:
        ValueError: if a file is broken or too small or differs in size from its twin; all such
            files are named.
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
            checks = pool.map(
                lambda entry: self._check(entry, self._stamp(entry) in known), entries
            )
            problems = list(
                tqdm(checks, "checking images", len(entries), leave=False, disable=None)
            )
        bad = {entry: problem for entry, problem in zip(entries, problems) if problem is not None}
        if bad and not skip_bad:
            raise ValueError(
                f"{len(bad)} images cannot be used (`--skip_bad` leaves them out):\n"
                + "\n".join([*bad.values()][:20])
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
        # Workers only read.
        return {name: value for name, value in self.__dict__.items() if name != "lock"}

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
            return (
                f"{entry.degraded[0]} is {size} but its twin {entry.clean} is {width} x {height}."
            )
        needed = sum(array.nbytes for array in images if array is not None)
        with self.lock:
            if needed <= self.room:
                self.room -= needed
                self.kept[entry] = images
            else:
                self.room = 0
        return None

    def _stamp(self, entry: Entry) -> str:
        files = [entry.clean, *entry.degraded, *([entry.guidance] if entry.guidance else [])]
        stats = [path.stat() if path.exists() else None for path in files]
        return json.dumps(
            [[str(path), s and s.st_size, s and s.st_mtime_ns] for path, s in zip(files, stats)]
            + [self.min_size]
        )


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


def _read_record(record: str | Path | None) -> set[str]:
    try:
        return (
            set(json.loads(Path(record).read_text(encoding="utf-8")))
            if record is not None and Path(record).is_file()
            else set()
        )
    except ValueError:
        return set()  # cut short by a crash: the images are checked again


def _write_record(record: str | Path, stamps: set[str]) -> None:
    Path(record).parent.mkdir(parents=True, exist_ok=True)
    Path(record).write_text(json.dumps(sorted(stamps)), encoding="utf-8")


class HubPhotos:
    """A data set of the `datasets` library, from the Hub or a local folder that it understands
    (imagefolder), as photos.

    Args:
        name: Hub id, or a folder.
        split: of the data set.
        clean_column: holds the clean image.
        degraded_column: holds the degraded image; without one degradation is synthetic.
        streaming: do not download it whole; then it is read in its order, and samples come from
            `StreamedCrops`.
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
            raise ValueError(
                "Data sets of the Hub need the package `datasets`: pip install -r "
                "requirements-train.txt"
            ) from None
        self.name, self.clean_column, self.degraded_column = name, clean_column, degraded_column
        try:
            self.rows = datasets.load_dataset(
                name, split=split, streaming=streaming, revision=revision
            )
        except (
            Exception
        ) as error:  # of many kinds: no network, no repository, no such split, bad metadata
            raise ValueError(f"The data set {name} ({split}) cannot be loaded: {error}") from error
        columns = self.rows.column_names or list(next(iter(self.rows), {}))
        missing = [
            column for column in (clean_column, degraded_column) if column and column not in columns
        ]
        if missing:
            raise ValueError(
                f"The data set {name} has no column {', '.join(missing)}; it has "
                f"{', '.join(columns)}."
            )

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
                f"{c} is {x.shape[1]} x {x.shape[0]}"
                for c, x in ((self.degraded_column, degraded), (self.clean_column, clean))
            )
            raise ValueError(f"A pair of {self.name} differs in size: {sizes}.")
        return Images(clean, degraded)


# ---- samples


def parse_source(text: str) -> tuple[str, float | None]:
    """`gopro:/data/GoPro@2` -> the source and its weight (`None` without one)."""
    match = re.fullmatch(r"(.+)@(\d*\.?\d+)", text)
    if match is None:
        return text, None
    if not float(match[2]) > 0:
        raise ValueError(f"The weight in {text!r} must be a positive number, as in `{match[1]}@2`.")
    return match[1], float(match[2])
