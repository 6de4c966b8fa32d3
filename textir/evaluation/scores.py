"""Measure a pipeline: PSNR and SSIM of what goes in and what comes out, with everything written
down that a number needs."""

import hashlib
import platform
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from textir.data.photos import find_entries
from textir.degradations import Recipe, degrade
from textir.evaluation.meaning import compare_meaning
from textir.evaluation.metrics import Protocol, psnr, ssim
from textir.images.picture import Picture, read_picture, to_pixels, to_tensor


class Pair(NamedTuple):
    """A test image: its name, what the pipeline sees and what it should return, `(H, W, 3)`."""

    name: str
    degraded: np.ndarray
    clean: np.ndarray
    digest: str


@dataclass
class Score:
    """PSNR in dB and SSIM of one image, before and after; and, if they were asked for, similarity
    to the clean image and agreement with captions in a text-image space, cosines."""

    name: str
    input_psnr: float
    input_ssim: float
    psnr: float
    ssim: float
    seconds: float
    input_sha256: str
    input_similarity: float | None = None
    similarity: float | None = None
    input_agreement: float | None = None
    agreement: float | None = None


@dataclass
class Evaluation:
    """The scores of a data set and what they were measured with."""

    data: str
    degradation: str | None
    protocol: str
    seed: int
    settings: dict
    scores: list[Score] = field(default_factory=list)

    def mean(self, name: str) -> float:
        """Mean of a field of the scores that have it; equal images count with 100 dB, so that one
        of them does not make the mean infinite."""
        values = [getattr(score, name) for score in self.scores]
        return float(np.mean([min(value, 100.0) for value in values if value is not None]))

    def summary(self) -> dict[str, float]:
        names = ["input_psnr", "input_ssim", "psnr", "ssim", "seconds"]
        optional = ("input_similarity", "similarity", "input_agreement", "agreement")
        for name in optional:
            if any(getattr(score, name) is not None for score in self.scores):
                names.append(name)
        return {"images": len(self.scores), **{name: round(self.mean(name), 4) for name in names}}

    def to_dict(self) -> dict:
        versions = {"python": platform.python_version(), "torch": torch.__version__}
        return {"summary": self.summary(), **asdict(self), "versions": versions}


def load_pairs(
    folder: str | Path,
    degradation: str | None = None,
    seed: int = 0,
    limit: int | None = None,
    kept: str | None = None,
) -> Iterator[Pair]:
    """The test images of a folder or a published benchmark, in sorted order.

    Without `degradation` these are pairs: a folder with `input/` and `target/`, or
    `sots_indoor:/data/SOTS` (see `textir.benchmarks`). With one they are the clean images, and each
    is degraded with a seed made of its file name, so that an image gets the same degradation
    whatever else is in the folder. What `kept` says, a recipe too, is done to them before that, and
    belongs to the target: a restorer that is told to leave it alone is measured so.

    Raises:
        ValueError: if there is nothing to measure, a pair differs in size, or the recipe is not
            understood.
    """
    if degradation is not None and (Path(folder) / "target").is_dir():
        folder = Path(folder) / "target"
    entries = find_entries(folder, split="test")
    if degradation is None:
        if kept:
            raise ValueError(
                "`kept` is done to clean images; say by `degradation` what is to be removed of "
                "them, or leave it out."
            )
        if not all(entry.degraded for entry in entries):
            raise ValueError(
                f"{folder} has no folder input and target; pairs lie in input/ and target/. "
                "For a folder of clean images pass a degradation recipe such as noise:25."
            )
        for entry in entries[:limit]:
            views = [read_picture(path).pixels for path in entry.degraded]
            degraded, clean = np.concatenate(views, axis=-1), read_picture(entry.clean).pixels
            if degraded.shape[:2] != clean.shape[:2]:
                raise ValueError(
                    f"{entry.degraded[0]} is {_size(degraded)} but its twin {entry.clean} is "
                    f"{_size(clean)}."
                )
            yield Pair(entry.name, degraded, clean, _digest(degraded))
        return
    added, stays = Recipe.parse(degradation), Recipe.parse(kept or "")
    for path in [entry.clean for entry in entries][:limit]:
        clean = read_picture(path).tensor()
        generator = torch.Generator().manual_seed(zlib.crc32(path.stem.encode()) + seed)
        target = degrade(clean, stays, generator)
        degraded = to_pixels(degrade(target, added, generator), clip=False)
        yield Pair(path.stem, degraded, to_pixels(target, clip=False), _digest(degraded))


def _size(pixels: np.ndarray) -> str:
    return f"{pixels.shape[1]} x {pixels.shape[0]}"


def _digest(pixels: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(pixels)).hexdigest()


def evaluate(
    pipe,
    folder: str | Path,
    degradation: str | None = None,
    protocol: Protocol = Protocol(),
    seed: int = 0,
    limit: int | None = None,
    on_score: Callable[[Score], None] = lambda score: None,
    kept: str | None = None,
    meaning: bool = False,
    captions: dict[str, list[str]] | None = None,
    **options,
) -> Evaluation:
    """Restore every image of a folder and compare.

    Args:
        pipe: a restoration pipeline.
        folder: `input/` and `target/`, or clean images if `degradation` is given.
        degradation: recipe, see `textir.degradations.Recipe`.
        protocol: how images are compared.
        seed: added to the seed that each file name gives; also seeds the guidance.
        limit: measure only the first images.
        on_score: called after each image.
        kept: recipe of what the images suffer from and shall keep, see `load_pairs`.
        meaning: also compare images in the text-image space of the pipeline.
        captions: sentences by the stem of the file, for `meaning`; images without any are only
            compared with their clean twin.
        options: further arguments of the pipeline (task, guidance, tile, ...).
    """
    shown = {name: value for name, value in {**options, "kept": kept}.items() if value is not None}
    result = Evaluation(str(folder), degradation, str(protocol), seed, shown)
    for pair in load_pairs(folder, degradation, seed, limit, kept):
        start = time.perf_counter()
        image = to_tensor(pair.degraded)
        generator = torch.Generator().manual_seed(seed)
        output = pipe(image, output_type="np", generator=generator, **options)
        seconds = time.perf_counter() - start
        score = Score(
            pair.name,
            psnr(pair.degraded, pair.clean, protocol),
            ssim(pair.degraded, pair.clean, protocol),
            psnr(output.images[0], pair.clean, protocol),
            ssim(output.images[0], pair.clean, protocol),
            seconds,
            pair.digest,
        )
        if meaning:
            images = (image, to_tensor(output.images[0]), to_tensor(pair.clean))
            said = (captions or {}).get(pair.name)
            for name, value in compare_meaning(pipe, *images, said).items():
                setattr(score, name, value)
        result.scores.append(score)
        on_score(score)
    return result


def contact_sheet(
    photo: Picture, recipes: Sequence[str], width: int = 320, seed: int = 0
) -> Picture:
    """A figure of recipes: a row for each, the clean photo first, then its light, medium and heavy
    degradation (or four draws of a recipe that names its own value)."""
    clean = photo.tensor()
    height = round(width * clean.shape[-2] / clean.shape[-1])
    rows = []
    for recipe in recipes:
        variants = (
            [recipe] * 3
            if ":" in recipe or "+" in recipe
            else [f"{recipe}:{level}" for level in ("light", "medium", "heavy")]
        )
        cells = [clean] + [
            degrade(clean, text, torch.Generator().manual_seed(seed + i))
            for i, text in enumerate(variants)
        ]
        cells = [
            torch.nn.functional.interpolate(cell.clamp(0, 1), (height, width), mode="area")
            for cell in cells
        ]
        rows.append(torch.cat(cells, dim=3))
    return Picture(to_pixels(torch.cat(rows, dim=2)))
