"""Suites of test sets: what a checkpoint restores, and what guidance is worth to it.

A row of restoration has three arms: *blind* (the restorer finds out by itself), *auto* (a call that
says nothing) and *told* (the task that fits), beside another checkpoint and methods without
learning where they are asked for. A row of guidance compares no guidance, guidance from degraded
words, from cleaned words, and from a clean thumbnail: an oracle, which bounds what a perfect
painter of that size could give. Lin et al. compare the first three in their Table 11.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from textir.degradations import Recipe
from textir.evaluation.metrics import Protocol, psnr, ssim
from textir.evaluation.rivals import BASELINES
from textir.evaluation.scores import Pair, load_pairs
from textir.images.picture import resize, to_pixels, to_tensor

COARSE = 8  # side in pixels of the thumbnails that show illumination and colour alone
GUIDANCE = ("degraded", "cleaned", "oracle")


@dataclass(frozen=True)
class Row:
    """One line of a suite.

    Attributes:
        name: what is measured.
        data: folder of the set below the root, pairs or clean images.
        degradation: recipe for clean images.
        part: which of the images, in sorted order: start, end and step of a slice.
        baselines: methods without learning to compare with, of `textir.baselines`.
        told: the task that fits; `None` makes a row of guidance.
        kept: recipe of what the images suffer from and shall keep.
    """

    name: str
    data: str
    degradation: str | None = None
    part: tuple[int | None, int | None, int] = (None, None, 1)
    baselines: tuple[str, ...] = ()
    told: str | None = None
    kept: str | None = None


DENOISERS = ("non-local means", "wavelet")
BRIGHTENERS = ("CLAHE",)
HAZE_REMOVERS = ("dark channel",)
HALF = (None, None, 2)
MINI = (
    Row("noise 15", "CBSD68", "noise:15", baselines=DENOISERS, told="denoise"),
    Row("noise 25", "CBSD68", "noise:25", baselines=DENOISERS, told="denoise"),
    Row("noise 50", "CBSD68", "noise:50", baselines=DENOISERS, told="denoise"),
    Row("real noise, CC15", "CC15", baselines=DENOISERS, told="denoise"),
    Row("rain, Rain100L", "Rain100L_30", told="derain"),
    Row("rain, RainBSD20", "RainBSD20", told="derain"),
    Row("haze indoors, SOTS", "SOTS_indoor25", baselines=HAZE_REMOVERS, told="dehaze"),
    Row("haze 0.7", "CBSD68", "haze:0.7", baselines=HAZE_REMOVERS, told="dehaze"),
    Row("haze 1.5", "CBSD68", "haze:1.5", baselines=HAZE_REMOVERS, told="dehaze"),
    Row("low light, LOL", "LOL_eval15", baselines=BRIGHTENERS, told="lowlight"),
    Row("low light 1.3", "CBSD68", "lowlight:1.3", baselines=BRIGHTENERS, told="lowlight"),
    Row("low light 2.5", "CBSD68", "lowlight:2.5", baselines=BRIGHTENERS, told="lowlight"),
    Row("dim 0.5", "CBSD68", "dim:0.5", baselines=BRIGHTENERS, told="lowlight"),
    Row("motion blur 9", "CBSD68", "blur:9", told="deblur"),
    Row("motion blur, GoPro street", "GoPro_street4", told="deblur"),
    Row("defocus 3", "CBSD68", "defocus:3", told="defocus"),
    Row("JPEG 20", "CBSD68", "jpeg:20", baselines=("total variation",), told="dejpeg"),
    Row("haze 1 and noise 15", "CBSD68", "haze:1+noise8:15", told="dehaze+denoise"),
    Row("clean", "CBSD68", "clean", told="derain"),
)
GUIDED = (
    Row("low light, LOL", "LOL_eval15"),
    Row("low light 1.3", "CBSD68", "lowlight:1.3", HALF),
    Row("low light 2.5", "CBSD68", "lowlight:2.5", HALF),
    Row("dim 0.5", "CBSD68", "dim:0.5", HALF),
    Row("haze 0.7", "CBSD68", "haze:0.7", HALF),
    Row("haze 1.5", "CBSD68", "haze:1.5", HALF),
    Row("haze indoors, SOTS", "SOTS_indoor25"),
    Row("haze 1 and noise 15", "CBSD68", "haze:1+noise8:15", HALF),
    Row("noise 25", "CBSD68", "noise:25", HALF),
    Row("rain, RainBSD20", "RainBSD20"),
    Row("motion blur 9", "CBSD68", "blur:9", HALF),
    Row("JPEG 20", "CBSD68", "jpeg:20", HALF),
    Row("real noise, CC15", "CC15"),
    Row("clean", "CBSD68", "clean", HALF),
)
FIRST = (None, 30, 1)
KEPT = (
    Row("noise goes, haze stays", "CBSD68", "noise8:15", FIRST, told="denoise", kept="haze:1"),
    Row("rain goes, haze stays", "CBSD68", "rain:0.5", FIRST, told="derain", kept="haze:1"),
    Row("haze goes, rain stays", "CBSD68", "haze:1", FIRST, told="dehaze", kept="rain:0.5"),
    Row("noise goes, darkness stays", "CBSD68", "noise8:15", FIRST, told="denoise", kept="dim:0.4"),
    Row("JPEG goes, haze stays", "CBSD68", "jpeg:20", FIRST, told="dejpeg", kept="haze:1"),
)
SUITES = {"mini": MINI, "guidance": GUIDED, "keep": KEPT}


@dataclass
class RowScores:
    """What was measured for a row.

    Attributes:
        row: its name.
        images: their names.
        psnr: PSNR in dB by arm, `(seeds, images)`.
        ssim: SSIM likewise.
        guidance_psnr: PSNR of thumbnails by source, `(seeds, images)`: at the guidance's own size
            (`cleaned`) and at 8 x 8 (`cleaned, coarse`), beside those of the input and of what the
            restorer makes alone.
    """

    row: str
    images: list[str] = field(default_factory=list)
    psnr: dict[str, list[list[float]]] = field(default_factory=dict)
    ssim: dict[str, list[list[float]]] = field(default_factory=dict)
    guidance_psnr: dict[str, list[list[float]]] = field(default_factory=dict)

    def mean(self, arm: str, measure: str = "psnr") -> float:
        """Mean over seeds and images; equal images count with 100 dB."""
        return float(np.minimum(getattr(self, measure)[arm], 100).mean())

    def difference(self, arm: str, other: str) -> tuple[float, float, float]:
        """How many dB `arm` is above `other`: the mean over images of their mean over seeds, and
        its 95 % interval (bootstrap over images)."""
        gains = (np.minimum(self.psnr[arm], 100) - np.minimum(self.psnr[other], 100)).mean(0)
        draws = np.random.default_rng(0).choice(gains, (10_000, len(gains))).mean(1)
        low, high = np.quantile(draws, (0.025, 0.975))
        return float(gains.mean()), float(low), float(high)


def choose_rows(name: str, only: Sequence[str] | None = None) -> list[Row]:
    """The rows of a suite, or those whose name starts with one of `only`.

    Raises:
        ValueError: if there is no such suite or no such row.
    """
    if name not in SUITES:
        raise ValueError(f"Unknown suite {name!r}; known are {', '.join(SUITES)}.")
    rows = [row for row in SUITES[name] if not only or row.name.startswith(tuple(only))]
    if not rows:
        known = ", ".join(row.name for row in SUITES[name])
        asked = " or ".join(only or ())
        raise ValueError(f"No row of {name} starts with {asked}; it has {known}.")
    return rows


def run_suite(
    pipe,
    root: str | Path,
    rows: Sequence[Row] = MINI,
    seeds: Sequence[int] = (0,),
    tile: int | None = None,
    limit: int | None = None,
    with_baselines: bool = False,
    against=None,
) -> list[RowScores]:
    """Measure a pipeline on every row.

    Args:
        pipe: a restoration pipeline; without a guidance chain only the arms that it has are
            measured.
        root: folder of the test sets.
        rows: of the suite.
        seeds: of degradation and painting; more than one where a claim is about guidance.
        tile: side of tiles in pixels, none by default; guidance is painted of the whole image in
            any case.
        limit: at most so many images of a row.
        with_baselines: measure methods without learning too.
        against: another pipeline, measured beside this one with its own defaults.

    Raises:
        ValueError: if a set is missing.
    """
    missing = sorted({row.data for row in rows if not (Path(root) / row.data).is_dir()})
    if missing:
        raise ValueError(
            f"{root} lacks the sets {', '.join(missing)}; pass the folder that holds them."
        )
    results = []
    for row in tqdm(rows, "sets", disable=None):
        scores = RowScores(row.name)
        for place, seed in enumerate(seeds):
            pairs = list(load_pairs(Path(root) / row.data, row.degradation, seed, kept=row.kept))
            for pair in pairs[slice(*row.part)][:limit]:
                if not place:
                    scores.images.append(pair.name)
                arms = restoration_arms if row.told else guidance_arms
                images = arms(scores, place, pipe, pair, seed, tile, row)
                if against is not None:
                    images["against"] = default_of(against, pair, seed, tile)
                for name in row.baselines if with_baselines else ():
                    images[name] = BASELINES[name](pair.degraded)
                for name, image in images.items():
                    add(scores.psnr, name, place, psnr(image, pair.clean))
                    add(scores.ssim, name, place, ssim(image, pair.clean))
        results.append(scores)
    return results


Arms = dict[str, np.ndarray]


@torch.no_grad()
def restoration_arms(
    scores: RowScores, place: int, pipe, pair: Pair, seed: int, tile: int | None, row: Row
) -> Arms:
    """What a pipeline makes of an image blind, by itself, told what shall go and, where there is
    such, what shall stay, `(H, W, 3)` each."""
    arms = {"input": pair.degraded.clip(0, 1)}
    if pipe.can_remove:
        arms["blind"] = to_pixels(
            pipe.restore(to_tensor(pair.degraded).to(pipe.device), tile=tile)[0]
        )
    arms["auto"] = default_of(pipe, pair, seed, tile)
    if pipe.can_remove:
        arms["told"] = default_of(pipe, pair, seed, tile, task=row.told)
        if row.kept:
            arms["keep"] = default_of(
                pipe, pair, seed, tile, keep=list(Recipe.parse(row.kept).labels)
            )
    return arms


def guidance_arms(
    scores: RowScores, place: int, pipe, pair: Pair, seed: int, tile: int | None, row: Row
) -> Arms:
    """What a pipeline makes of an image with each kind of guidance; adds the PSNR of the guidance
    itself to `scores`."""
    degraded, clean = (to_tensor(pixels).to(pipe.device) for pixels in (pair.degraded, pair.clean))

    def call(**options):
        generator = torch.Generator().manual_seed(seed)
        return pipe(
            degraded,
            tile=tile,
            output_type="pt",
            return_influence=False,
            generator=generator,
            **options,
        )

    unguided = call(guidance="none")
    arms = {"input": degraded, "none": unguided.images}
    if pipe.unet is not None and pipe.matcher is not None:
        thumbnails = {}
        for kind in ("degraded", "cleaned"):
            output = call(guidance=kind, guidance_strength=1.0)
            arms[kind], thumbnails[kind] = output.images, output.guidance_images
        thumbnails["oracle"] = small(clean, thumbnails["cleaned"].shape[-2:])
        reference = resize(thumbnails["oracle"], degraded.shape[-2:])
        arms["oracle"] = call(
            guidance="none", guidance_image=reference, guidance_strength=1.0
        ).images
        thumbnails |= {"input": degraded, "none": unguided.images}
        size = thumbnails["cleaned"].shape[-2:]
        for name, image in thumbnails.items():
            for label, side in ((name, size), (f"{name}, coarse", (COARSE, COARSE))):
                add(
                    scores.guidance_psnr,
                    label,
                    place,
                    psnr(to_pixels(small(image, side)), to_pixels(small(clean, side))),
                )
        if pipe.config.guided_degradations is not None:
            guided = pipe.default_strengths(unguided.removed, unguided.degradation, 1)[0]
            arms["default"] = arms["cleaned" if guided else "none"]
    return {name: to_pixels(image) for name, image in arms.items()}


def default_of(pipe, pair: Pair, seed: int, tile: int | None, **options) -> np.ndarray:
    """What a call with the pipeline's own defaults returns, `(H, W, 3)`."""
    generator = torch.Generator().manual_seed(seed)
    image = to_tensor(pair.degraded).to(pipe.device)
    output = pipe(
        image, tile=tile, output_type="pt", return_influence=False, generator=generator, **options
    )
    return to_pixels(output.images)


def small(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(image.clamp(0, 1), size, mode="area")


def add(table: dict[str, list[list[float]]], name: str, place: int, value: float) -> None:
    seeds = table.setdefault(name, [])
    seeds.extend([] for _ in range(place + 1 - len(seeds)))
    seeds[place].append(value)


def table(results: Sequence[RowScores]) -> str:
    """The results in Markdown: PSNR of every arm, and what guidance, or being told, gains, with its
    interval."""
    arms = list(dict.fromkeys(chain.from_iterable(scores.psnr for scores in results)))
    pairs = [
        ("default", "none"),
        ("cleaned", "none"),
        ("degraded", "none"),
        ("auto", "blind"),
        ("told", "blind"),
        ("auto", "against"),
    ]
    gains = [(arm, other) for arm, other in pairs if arm in arms and other in arms]
    head = ["set", "images", *arms, *(f"{arm} - {other} [95 %]" for arm, other in gains)]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for scores in results:
        cells = [scores.row, str(len(scores.images))]
        cells += [f"{scores.mean(arm):.2f}" if arm in scores.psnr else "" for arm in arms]
        for arm, other in gains:
            mean, low, high = scores.difference(arm, other)
            cells.append(f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def guidance_table(results: Sequence[RowScores]) -> str:
    """PSNR of the guidance itself in Markdown, beside the input and what the restorer makes alone,
    at its own size and at 8 x 8."""
    sources = list(dict.fromkeys(chain.from_iterable(row.guidance_psnr for row in results)))
    if not sources:
        return ""
    lines = ["| set | " + " | ".join(sources) + " |", "|---" * (len(sources) + 1) + "|"]
    for scores in results:
        cells = [f"{scores.mean(name, 'guidance_psnr'):.2f}" for name in sources]
        lines.append(f"| {scores.row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def protocol(seeds: Sequence[int], tile: int | None) -> str:
    """What the numbers were measured with, in a sentence."""
    view = "whole image" if tile is None else f"tiles of {tile} pixels, guidance of the whole image"
    return f"{Protocol()}; {view}; seeds {', '.join(map(str, seeds))}"
