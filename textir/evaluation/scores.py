"""Measure a pipeline: scores of what goes in and what comes out, with everything written down that
a number needs."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from textir.data.photos import find_entries
from textir.degradations import Recipe, degrade
from textir.evaluation.intervals import capped, mean_interval, paired_difference
from textir.evaluation.lpips import lpips
from textir.evaluation.meaning import compare_meaning
from textir.evaluation.metrics import Protocol, psnr, ssim
from textir.evaluation.niqe import niqe
from textir.evaluation.record import image_digest, measured_with
from textir.images.picture import Picture, read_picture, to_pixels, to_tensor

DIGITS = {"psnr": 2, "ssim": 4, "niqe": 2, "seconds": 2}
"""Decimals of a figure in tables; three of all others."""


class Pair(NamedTuple):
    """A test image: its name, what the pipeline sees and what it should return, `(H, W, 3)`, and
    digests of both."""

    name: str
    degraded: np.ndarray
    clean: np.ndarray
    digest: str
    clean_digest: str


@dataclass
class Score:
    """PSNR in dB and SSIM of one image, before and after.

    If they were asked for also LPIPS and NIQE (lower is better), and in a text-image space the
    similarity to the clean image and the agreement with captions, cosines.
    """

    name: str
    input_psnr: float
    input_ssim: float
    psnr: float
    ssim: float
    seconds: float
    input_sha256: str
    clean_sha256: str = ""
    input_lpips: float | None = None
    lpips: float | None = None
    input_niqe: float | None = None
    niqe: float | None = None
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

    def values(self, name: str) -> list[float]:
        """A field of the scores that have it; equal images count with 100 dB, so that one of them
        does not make the mean infinite."""
        found = [getattr(score, name) for score in self.scores]
        values = [value for value in found if value is not None]
        return capped(values).tolist() if name.endswith("psnr") else values

    def mean(self, name: str) -> float:
        """Mean of a field of the scores that have it."""
        return float(np.mean(self.values(name)))

    @property
    def measures(self) -> list[str]:
        """What was measured, before and after each."""
        pairs = [(f"input_{name}", name) for name in MEASURES if self.values(name)]
        return [name for pair in pairs for name in pair]

    def summary(self) -> dict[str, float]:
        names = [*self.measures, "seconds"]
        return {"images": len(self.scores), **{name: round(self.mean(name), 4) for name in names}}

    def intervals(self) -> dict[str, list[float]]:
        """Bounds of the 95 % interval of each mean over images, by bootstrap."""
        return {name: list(mean_interval(self.values(name))[1:]) for name in self.measures}

    def gain(self, name: str = "psnr") -> tuple[float, float, float]:
        """Mean gain over the input in a measure, and its paired 95 % interval."""
        return paired_difference(self.values(name), self.values(f"input_{name}"))

    def table(self) -> str:
        """Scores of each image, their mean and its interval, in Markdown."""
        names = [*self.measures, "seconds"]
        rows = [(score.name, [getattr(score, name) for name in names]) for score in self.scores]
        rows.append(("mean", [self.mean(name) for name in names]))
        lines = [f"| image | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
        for label, values in rows:
            cells = [format_figure(name, value) for name, value in zip(names, values)]
            lines.append(f"| {label} | {' | '.join(cells)} |")
        bounds = self.intervals()
        cells = [
            f"{format_figure(name, bounds[name][0])} to {format_figure(name, bounds[name][1])}"
            for name in self.measures
        ]
        lines.append(f"| 95 % of the mean | {' | '.join(cells)} | |")
        return "\n".join(lines)

    def to_dict(self) -> dict:
        digests = [score.input_sha256 + score.clean_sha256 for score in self.scores]
        return {
            "summary": self.summary(),
            "intervals": self.intervals(),
            **asdict(self),
            **measured_with(digests),
        }


MEASURES = ("psnr", "ssim", "lpips", "niqe", "similarity", "agreement")


def format_figure(name: str, value: float | None) -> str:
    """A figure with the decimals that it deserves; nothing if it was not measured."""
    return "" if value is None else f"{value:.{DIGITS.get(name.removeprefix('input_'), 3)}f}"


def load_pairs(
    folder: str | Path,
    degradation: str | None = None,
    seed: int = 0,
    limit: int | None = None,
    kept: str | None = None,
    protocol: Protocol = Protocol(),
) -> Iterator[Pair]:
    """The test images of a folder or a published benchmark, in sorted order.

    Without `degradation` these are pairs: a folder with `input/` and `target/`, or
    `sots_indoor:/data/SOTS` (see `textir.benchmarks`). With one they are the clean images, and each
    is degraded with a seed made of its file name, so that an image gets the same degradation
    whatever else is in the folder. What `kept` says, a recipe too, is done to them before that, and
    belongs to the target: a restorer that is told to leave it alone is measured so.

    Args:
        folder: of the images.
        degradation: recipe for clean images, see `textir.degradations.Recipe`.
        seed: added to the seed that each file name gives.
        limit: only the first images.
        kept: recipe of what shall stay.
        protocol: says how images are cropped, and whether degraded ones keep their floats.

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
            yield _pair(entry.name, protocol.crop(degraded), protocol.crop(clean))
        return
    added, stays = Recipe.parse(degradation), Recipe.parse(kept or "")
    for path in [entry.clean for entry in entries][:limit]:
        clean = to_tensor(protocol.crop(read_picture(path).pixels))
        generator = protocol.generator(path.stem, seed)
        target = degrade(clean, stays, generator)
        degraded = to_pixels(degrade(target, added, generator), clip=False)
        yield _pair(path.stem, protocol.as_given(degraded), to_pixels(target, clip=False))


def _pair(name: str, degraded: np.ndarray, clean: np.ndarray) -> Pair:
    return Pair(name, degraded, clean, image_digest(degraded), image_digest(clean))


def _size(pixels: np.ndarray) -> str:
    return f"{pixels.shape[1]} x {pixels.shape[0]}"


def measure(
    image: np.ndarray,
    clean: np.ndarray,
    protocol: Protocol = Protocol(),
    with_lpips: str | None = None,
    with_niqe: bool = False,
) -> dict[str, float]:
    """PSNR, SSIM and what else is asked for of an image `(H, W, 3)` in [0, 1] and its clean twin.

    Args:
        image: restored or degraded.
        clean: what it should be.
        protocol: how images are compared by PSNR and SSIM.
        with_lpips: network of LPIPS, `alexnet` or `vgg16`, see `textir.evaluation.lpips`.
        with_niqe: NIQE too.

    Raises:
        ValueError: if the images differ in size, are too small, or LPIPS has no weights.
    """
    figures = {"psnr": psnr(image, clean, protocol), "ssim": ssim(image, clean, protocol)}
    if with_lpips:
        figures["lpips"] = lpips(image, clean, with_lpips)
    if with_niqe:
        figures["niqe"] = niqe(image)
    return figures


@torch.no_grad()
def blind_of(pipe, pair: Pair, tile: int | None = None) -> np.ndarray:
    """What the restorer makes of an image alone, told nothing and unguided, `(H, W, 3)`."""
    return to_pixels(pipe.restore(to_tensor(pair.degraded).to(pipe.device), tile=tile)[0])


def called(pipe, pair: Pair, seed: int = 0, tile: int | None = None, **options) -> np.ndarray:
    """What a call of the pipeline returns, with its own defaults where `options` say nothing,
    `(H, W, 3)`."""
    generator = torch.Generator().manual_seed(seed)
    image = to_tensor(pair.degraded).to(pipe.device)
    output = pipe(
        image, tile=tile, output_type="pt", return_influence=False, generator=generator, **options
    )
    return to_pixels(output.images)


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
    with_lpips: str | None = None,
    with_niqe: bool = False,
    **options,
) -> Evaluation:
    """Restore every image of a folder and compare.

    Args:
        pipe: a restoration pipeline.
        folder: `input/` and `target/`, or clean images if `degradation` is given.
        degradation: recipe, see `textir.degradations.Recipe`.
        protocol: how images are degraded and compared.
        seed: added to the seed that each file name gives; also seeds the guidance.
        limit: measure only the first images.
        on_score: called after each image.
        kept: recipe of what the images suffer from and shall keep, see `load_pairs`.
        meaning: also compare images in the text-image space of the pipeline.
        captions: sentences by the stem of the file, for `meaning`; images without any are only
            compared with their clean twin.
        with_lpips: also LPIPS, by `alexnet` or `vgg16`.
        with_niqe: also NIQE.
        options: further arguments of the pipeline (task, guidance, tile, ...).
    """
    shown = {name: value for name, value in {**options, "kept": kept}.items() if value is not None}
    result = Evaluation(str(folder), degradation, str(protocol), seed, shown)
    for pair in load_pairs(folder, degradation, seed, limit, kept, protocol):
        start = time.perf_counter()
        image = to_tensor(pair.degraded)
        generator = torch.Generator().manual_seed(seed)
        output = pipe(image, output_type="np", generator=generator, **options)
        seconds = time.perf_counter() - start
        # Of a dual-pixel pair the first view.
        images = (pair.degraded[..., :3], output.images[0])
        before, after = (
            measure(pixels, pair.clean, protocol, with_lpips, with_niqe) for pixels in images
        )
        figures = {**{f"input_{name}": value for name, value in before.items()}, **after}
        if meaning:
            views = (image, to_tensor(output.images[0]), to_tensor(pair.clean))
            figures |= compare_meaning(pipe, *views, (captions or {}).get(pair.name))
        score = Score(
            pair.name,
            seconds=seconds,
            input_sha256=pair.digest,
            clean_sha256=pair.clean_digest,
            **figures,
        )
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
