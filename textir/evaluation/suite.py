"""Suites of test sets: what a checkpoint restores, and what guidance is worth to it.

A row of restoration has three arms: *blind* (the restorer finds out by itself), *auto* (a call that
says nothing) and *told* (the task that fits), beside another checkpoint and methods without
learning where they are asked for. A row of guidance compares no guidance, guidance from degraded
words, from cleaned words, and from a clean thumbnail: an oracle, which bounds what a perfect
painter of that size could give. Lin et al. compare the first three in their Table 11.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from textir.degradations import Recipe
from textir.evaluation.edit_rivals import EDIT_BASELINES, EditCase
from textir.evaluation.edit_scores import EditEvaluation, score_edits
from textir.evaluation.metrics import Protocol, psnr
from textir.evaluation.rivals import BASELINES
from textir.evaluation.rows import DIFFERENCES, RowScores, add, guidance_table, table, tables
from textir.evaluation.scores import Pair, blind_of, called, load_pairs
from textir.images.picture import resize, to_pixels, to_tensor

__all__ = [
    "EDITED",
    "SUITES",
    "Row",
    "RowScores",
    "choose_rows",
    "guidance_table",
    "run_edits",
    "run_suite",
    "run_suites",
    "suite_tables",
    "table",
]

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
EDITED = (
    Row("holes, strokes", "CBSD68", "strokes:0.25"),
    Row("holes, box", "CBSD68", "box:0.25"),
    Row("enlarge 2", "CBSD68", "down:2"),
    Row("enlarge 3", "CBSD68", "down:3"),
    Row("enlarge 4", "CBSD68", "down:4"),
    Row("colours", "CBSD68", "gray"),
)
EDIT_GAINS = tuple(("edit", rival) for rivals in EDIT_BASELINES.values() for rival in rivals)
SUITES = {"mini": MINI, "guidance": GUIDED, "keep": KEPT, "edit": EDITED}


def choose_suites(name: str, only: Sequence[str] | None = None) -> dict[str, Sequence[Row]]:
    """The rows of a suite, or of `all` of them, by the suite's name.

    Raises:
        ValueError: if there is no such suite or no such row.
    """
    if name != "all":
        return {name: choose_rows(name, only)}
    chosen = {suite: _begin_with(rows, only) for suite, rows in SUITES.items()}
    found: dict[str, Sequence[Row]] = {suite: rows for suite, rows in chosen.items() if rows}
    if not found:
        raise ValueError(f"No row of any suite starts with {' or '.join(only or ())}.")
    return found


def choose_rows(name: str, only: Sequence[str] | None = None) -> Sequence[Row]:
    """The rows of a suite, or those whose name starts with one of `only`.

    Raises:
        ValueError: if there is no such suite or no such row.
    """
    if name not in SUITES:
        raise ValueError(f"Unknown suite {name!r}; known are {', '.join(SUITES)}, all.")
    rows = _begin_with(SUITES[name], only)
    if not rows:
        known = ", ".join(row.name for row in SUITES[name])
        asked = " or ".join(only or ())
        raise ValueError(f"No row of {name} starts with {asked}; it has {known}.")
    return rows


def _begin_with(rows: Sequence[Row], only: Sequence[str] | None) -> list[Row]:
    return [row for row in rows if not only or row.name.startswith(tuple(only))]


def check_sets(root: str | Path, rows: Sequence[Row]) -> None:
    """Refuse to begin where a set is missing.

    Raises:
        ValueError: if one is.
    """
    missing = sorted({row.data for row in rows if not (Path(root) / row.data).is_dir()})
    if missing:
        raise ValueError(
            f"{root} lacks the sets {', '.join(missing)}; pass the folder that holds them."
        )


def run_suite(
    pipe,
    root: str | Path,
    rows: Sequence[Row] = MINI,
    seeds: Sequence[int] = (0,),
    tile: int | None = None,
    limit: int | None = None,
    with_baselines: bool = False,
    against=None,
    protocol: Protocol = Protocol(),
    with_lpips: str | None = None,
    with_niqe: bool = False,
    on_row: Callable[[RowScores], None] = lambda row: None,
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
        protocol: how images are degraded and compared.
        with_lpips: also LPIPS, by `alexnet` or `vgg16`.
        with_niqe: also NIQE.
        on_row: called after each row.

    Raises:
        ValueError: if a set is missing.
    """
    check_sets(root, rows)
    results = []
    for row in tqdm(rows, "sets", disable=None):
        scores, folder = RowScores(row.name), Path(root) / row.data
        for place, seed in enumerate(seeds):
            pairs = list(
                load_pairs(folder, row.degradation, seed, kept=row.kept, protocol=protocol)
            )
            for pair in pairs[slice(*row.part)][:limit]:
                scores.begin(pair, place)
                arms = restoration_arms if row.told else guidance_arms
                images = arms(scores, place, pipe, pair, seed, tile, row)
                if against is not None:
                    images["against"] = scores.timed(
                        "against", place, called, against, pair, seed, tile
                    )
                for name in row.baselines if with_baselines else ():
                    images[name] = scores.timed(name, place, BASELINES[name], pair.degraded)
                for name, image in images.items():
                    scores.add_image(name, place, image, pair, protocol, with_lpips, with_niqe)
        results.append(scores)
        on_row(scores)
    return results


def run_suites(
    suites: Mapping[str, Sequence[Row]],
    root: str | Path,
    pipe=None,
    edit: Callable[[EditCase], torch.Tensor] | None = None,
    *,
    seeds: Sequence[int] = (0,),
    limit: int | None = None,
    protocol: Protocol = Protocol(),
    with_lpips: str | None = None,
    on_row: Callable[[list[RowScores]], None] = lambda rows: None,
    **options,
) -> list[RowScores]:
    """Measure several suites in turn; each row says which it belongs to.

    Args:
        suites: rows by the suite's name, see `choose_suites`.
        root: folder of the test sets.
        pipe: a restoration pipeline, for all suites but `edit`.
        edit: an editor, for `edit`; see `run_edits`.
        seeds: and the others: as of `run_suite`, whose further arguments are `options`.
        on_row: called after each row with all rows up to it.

    Raises:
        ValueError: if a set is missing; nothing has been measured then.
    """
    for rows in suites.values():
        check_sets(root, rows)
    shared: dict[str, Any] = {"seeds": seeds, "limit": limit}
    shared |= {"protocol": protocol, "with_lpips": with_lpips}
    results: list[RowScores] = []

    def note(suite: str, row: RowScores) -> None:
        row.suite = suite
        results.append(row)
        on_row(results)

    for name, rows in suites.items():
        if name == "edit":
            run_edits(edit, root, rows, on_row=partial(note, name), **shared)
        else:
            run_suite(pipe, root, rows, on_row=partial(note, name), **shared, **options)
    return results


def run_edits(
    edit: Callable[[EditCase], torch.Tensor] | None,
    root: str | Path,
    rows: Sequence[Row] = EDITED,
    seeds: Sequence[int] = (0,),
    limit: int | None = None,
    protocol: Protocol = Protocol(),
    with_lpips: str | None = None,
    on_row: Callable[[RowScores], None] = lambda row: None,
) -> list[RowScores]:
    """Measure an editor on every row, beside methods without learning.

    Args:
        edit: from a case to `(1, 3, H, W)` in [0, 1] of the clean photo's size, such as
            `edit_scores.edit_case` of a pipeline; `None` measures the rivals alone.
        root: and the others: as of `run_suite`.

    Raises:
        ValueError: if a set is missing.
    """
    check_sets(root, rows)
    results = []
    for row in tqdm(rows, "sets", disable=None):
        scores = RowScores(row.name)
        for place, seed in enumerate(seeds):
            evaluation = score_edits(
                edit,
                Path(root) / row.data,
                row.degradation,
                seed,
                limit,
                lpips=with_lpips,
                protocol=protocol,
            )
            add_edits(scores, place, evaluation)
        results.append(scores)
        on_row(scores)
    return results


def add_edits(scores: RowScores, place: int, evaluation: EditEvaluation) -> None:
    """Take over the figures of an evaluation of edits for the seed at `place`."""
    if not place:
        first = evaluation.methods[0]
        scores.images = [score.name for score in evaluation.scores if score.method == first]
    scores.digests += evaluation.digests
    for score in evaluation.scores:
        add(scores.seconds, score.method, place, score.seconds)
        for name, value in score.figures.items():
            scores.put(name, score.method, place, value)


Arms = dict[str, np.ndarray]


def restoration_arms(
    scores: RowScores, place: int, pipe, pair: Pair, seed: int, tile: int | None, row: Row
) -> Arms:
    """What a pipeline makes of an image blind, by itself, told what shall go and, where there is
    such, what shall stay, `(H, W, 3)` each."""
    arms = {"input": pair.degraded.clip(0, 1)}
    calls: dict[str, dict] = {"auto": {}}
    if pipe.can_remove:
        arms["blind"] = scores.timed("blind", place, blind_of, pipe, pair, tile)
        calls["told"] = {"task": row.told}
        if row.kept:
            calls["keep"] = {"keep": list(Recipe.parse(row.kept).labels)}
    for name, options in calls.items():
        arms[name] = scores.timed(name, place, called, pipe, pair, seed, tile, **options)
    return arms


def guidance_arms(
    scores: RowScores, place: int, pipe, pair: Pair, seed: int, tile: int | None, row: Row
) -> Arms:
    """What a pipeline makes of an image with each kind of guidance; adds the PSNR of the guidance
    itself to `scores`."""
    degraded, clean = (to_tensor(pixels).to(pipe.device) for pixels in (pair.degraded, pair.clean))

    def call(arm: str, **options):
        return scores.timed(
            arm,
            place,
            pipe,
            degraded,
            tile=tile,
            output_type="pt",
            return_influence=False,
            generator=torch.Generator().manual_seed(seed),
            **options,
        )

    unguided = call("none", guidance="none")
    arms = {"input": degraded, "none": unguided.images}
    if pipe.unet is not None and pipe.matcher is not None:
        thumbnails = {}
        for kind in ("degraded", "cleaned"):
            output = call(kind, guidance=kind, guidance_strength=1.0)
            arms[kind], thumbnails[kind] = output.images, output.guidance_images
        thumbnails["oracle"] = small(clean, thumbnails["cleaned"].shape[-2:])
        reference = resize(thumbnails["oracle"], degraded.shape[-2:])
        arms["oracle"] = call(
            "oracle", guidance="none", guidance_image=reference, guidance_strength=1.0
        ).images
        thumbnails |= {"input": degraded, "none": unguided.images}
        add_thumbnails(scores, place, thumbnails, clean, thumbnails["cleaned"].shape[-2:])
        if pipe.config.guided_degradations is not None:
            guided = pipe.default_strengths(unguided.removed, unguided.degradation, 1)[0]
            arms["default"] = arms["cleaned" if guided else "none"]
    return {name: to_pixels(image) for name, image in arms.items()}


def add_thumbnails(
    scores: RowScores,
    place: int,
    thumbnails: dict[str, torch.Tensor],
    clean: torch.Tensor,
    size: tuple[int, int],
) -> None:
    """PSNR of thumbnails `(1, 3, h, w)` at a size, that of the guidance, and at 8 x 8."""
    for name, image in thumbnails.items():
        for label, side in ((name, size), (f"{name}, coarse", (COARSE, COARSE))):
            value = psnr(to_pixels(small(image, side)), to_pixels(small(clean, side)))
            add(scores.guidance_psnr, label, place, value)


def small(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(image.clamp(0, 1), size, mode="area")


def described(
    protocol: Protocol = Protocol(), seeds: Sequence[int] = (0,), tile: int | None = None
) -> str:
    """What the numbers were measured with, in a sentence."""
    view = "whole image" if tile is None else f"tiles of {tile} pixels, guidance of the whole image"
    return f"{protocol}; {view}; seeds {', '.join(map(str, seeds))}"


def suite_tables(results: Sequence[RowScores]) -> str:
    """The tables of each suite in Markdown, ready for a card."""
    parts = []
    for name in dict.fromkeys(row.suite for row in results):
        rows = [row for row in results if row.suite == name]
        parts.append(f"## {name}\n\n{tables(rows, EDIT_GAINS if name == 'edit' else DIFFERENCES)}")
        if thumbnails := guidance_table(rows):
            parts.append(f"PSNR of the guidance itself; coarse: 8 x 8 pixels\n\n{thumbnails}")
    return "\n\n".join(parts)
