"""Compare checkpoints, tasks, ways of guidance and methods without learning on the same images.

Each image is read and degraded once, and every arm gets that very image, so that differences are
paired. What a restorer makes blind, by itself and told stands in columns of its own:

| task | what the pipeline is told |
|---|---|
| `blind` | nothing: the restorer alone, unguided |
| `auto` | nothing: its detector decides, as in a call that says nothing |
| `told` | what the images suffer from, as their recipe or benchmark says |
| another | that task, such as `dehaze` |
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from textir.data.layouts import BENCHMARKS
from textir.degradations import Recipe
from textir.evaluation.metrics import Protocol
from textir.evaluation.rivals import BASELINES, check_rivals, fitting_rivals
from textir.evaluation.rows import RowScores, rows_to_dict, tables
from textir.evaluation.scores import Pair, blind_of, called, load_pairs
from textir.evaluation.suite import described

TASK_OF = {
    "noise": "denoise",
    "rain": "derain",
    "haze": "dehaze",
    "blur": "deblur",
    "defocus": "defocus",
    "lowlight": "lowlight",
    "jpeg": "dejpeg",
    "downup": "sharpen",
}
"""The task against each degradation."""


@dataclass(frozen=True)
class Arm:
    """One of the ways that are compared.

    Attributes:
        name: of its column.
        checkpoint: a key of `pipes`.
        task: `blind`, `auto`, `told` or tasks.
        options: further arguments of the call.
    """

    name: str
    checkpoint: str
    task: str
    options: dict = field(default_factory=dict)

    def task_on(self, labels: Sequence[str]) -> str:
        """The task of a call on images that suffer from `labels`."""
        if self.task != "told":
            return self.task
        return "+".join(TASK_OF[label] for label in labels)


@dataclass(frozen=True)
class TestSet:
    """Images to be measured, and what they suffer from, where that is known."""

    name: str
    source: str
    degradation: str | None
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Setup:
    """What all arms and sets share; see `compare`."""

    protocol: Protocol
    seeds: tuple[int, ...]
    tile: int | None
    limit: int | None
    steps: int | None
    with_lpips: str | None
    with_niqe: bool

    def pairs(self, source: str, degradation: str | None, seed: int) -> Iterator[Pair]:
        """The images of a set."""
        return load_pairs(source, degradation, seed, self.limit, protocol=self.protocol)


@dataclass
class Comparison:
    """What was measured, and the arm that the others are compared with.

    Attributes:
        rows: one for each set.
        reference: an arm.
        protocol: in words.
        left_out: what could not be measured, and why.
    """

    rows: list[RowScores]
    reference: str
    protocol: str
    left_out: list[str] = field(default_factory=list)

    @property
    def arms(self) -> list[str]:
        """All arms, the input first."""
        return list(dict.fromkeys(chain.from_iterable(row.psnr for row in self.rows)))

    @property
    def differences(self) -> list[tuple[str, str]]:
        """Each arm but the input with the reference."""
        own = ("input", self.reference)
        return [(arm, self.reference) for arm in self.arms if arm not in own]

    def table(self) -> str:
        """A table in Markdown for each measure, with paired differences from the reference."""
        notes = "".join(f"\n- {note}" for note in self.left_out)
        text = f"{self.protocol}\n\n{tables(self.rows, self.differences)}\n"
        return f"{text}\nLeft out:\n{notes}\n" if notes else text

    def to_dict(self) -> dict:
        found = []
        for row in self.rows:
            for arm, other in self.differences:
                if arm in row.psnr and other in row.psnr:
                    mean, low, high = row.difference(arm, other)
                    gain = {"mean": mean, "low": low, "high": high}
                    found.append({"row": row.row, "arm": arm, "less": other, **gain})
        return {
            "protocol": self.protocol,
            "reference": self.reference,
            "left_out": self.left_out,
            "psnr_differences": found,
            **rows_to_dict(self.rows),
        }


def compare(
    pipes: Mapping[str, Any],
    data: Sequence[str],
    degradations: Sequence[str] = (),
    tasks: Sequence[str] = ("blind", "auto", "told"),
    guidance: Sequence[str] = (),
    strengths: Sequence[float] = (),
    rivals: Sequence[str] = (),
    protocol: Protocol = Protocol(),
    seeds: Sequence[int] = (0,),
    tile: int | None = None,
    limit: int | None = None,
    steps: int | None = None,
    with_lpips: str | None = None,
    with_niqe: bool = False,
    reference: str | None = None,
    on_row: Callable[[RowScores], None] = lambda row: None,
) -> Comparison:
    """Measure every checkpoint with every task and way of guidance on every set.

    Args:
        pipes: restoration pipelines by the name of their column.
        data: `rain100l:ROOT` (a benchmark by name), or a folder with input/ and target/; with
            `degradations` also folders of clean images.
        degradations: recipes; each is done to the clean images of each set.
        tasks: see the table above.
        guidance: `cleaned`, `degraded`, `none`; the default of a call if empty. The blind restorer
            has none.
        strengths: of guidance, each in [0, 1]; the default of a call if empty.
        rivals: of `rivals.BASELINES`, or `fitting` for those against what a set suffers from.
        protocol: how images are degraded and compared.
        seeds: of degradation and painting.
        tile: side of tiles in pixels, none by default.
        limit: only the first images of each set.
        steps: denoising steps, the checkpoint's default if not given.
        with_lpips: also LPIPS, by `alexnet` or `vgg16`.
        with_niqe: also NIQE.
        reference: the arm that the others are compared with; the first by default.
        on_row: called after each set.

    Raises:
        ValueError: if a wish is not understood, contradicts another, or cannot be fulfilled.
    """
    names = [name for name in dict.fromkeys(rivals) if name != "fitting"]
    check_rivals(names)
    setup = Setup(protocol, tuple(seeds), tile, limit, steps, with_lpips, with_niqe)
    sets = list_sets(data, degradations, setup)
    arms = list_arms(list(pipes), tasks, guidance, strengths)
    left_out = check_arms(pipes, arms, sets, setup)
    known = ["input", *(arm.name for arm in arms), *names]
    if reference is not None and reference not in known:
        raise ValueError(f"The reference must be one of {', '.join(known)}; got {reference!r}.")
    result = Comparison([], reference or [*known[1:], "input"][0], described(protocol, seeds, tile))
    result.left_out = [f"{arm} on {row}: {reason}" for (row, arm), reason in left_out.items()]
    for test_set in sets:
        methods = [*names, *(fitting_rivals(test_set.labels) if "fitting" in rivals else ())]
        here = [arm for arm in arms if (test_set.name, arm.name) not in left_out]
        row = measure_set(test_set, pipes, here, list(dict.fromkeys(methods)), setup)
        result.rows.append(row)
        on_row(row)
    return result


def measure_set(
    test_set: TestSet,
    pipes: Mapping[str, Any],
    arms: Sequence[Arm],
    rivals: Sequence[str],
    setup: Setup,
) -> RowScores:
    """Measure every arm and rival on the images of a set."""
    row = RowScores(test_set.name)
    for place, seed in enumerate(setup.seeds):
        for pair in setup.pairs(test_set.source, test_set.degradation, seed):
            row.begin(pair, place)
            # Of a dual-pixel pair the first view.
            view = pair.degraded[..., :3]
            images = {"input": view.clip(0, 1)}
            for arm in arms:
                pipe, labels = pipes[arm.checkpoint], test_set.labels
                images[arm.name] = row.timed(
                    arm.name, place, restored, arm, pipe, pair, labels, seed, setup
                )
            for name in rivals:
                images[name] = row.timed(name, place, BASELINES[name], view)
            for name, image in images.items():
                row.add_image(
                    name, place, image, pair, setup.protocol, setup.with_lpips, setup.with_niqe
                )
    return row


def restored(
    arm: Arm, pipe, pair: Pair, labels: Sequence[str], seed: int, setup: Setup
) -> np.ndarray:
    """What an arm makes of an image that suffers from `labels`, `(H, W, 3)`."""
    if arm.task == "blind":
        return blind_of(pipe, pair, setup.tile)
    options = {**arm.options, "num_inference_steps": setup.steps}
    return called(pipe, pair, seed, setup.tile, task=arm.task_on(labels), **options)


def list_sets(data: Sequence[str], degradations: Sequence[str], setup: Setup) -> list[TestSet]:
    """Every source with every recipe; each has an image that can be read.

    Raises:
        ValueError: if there is none, or a source or a recipe is not understood.
    """
    if not data:
        raise ValueError("Name what shall be measured: a folder, or a benchmark as rain100l:ROOT.")
    sources = list(dict.fromkeys(map(str, data)))
    short = [short_name(source) for source in sources]
    recipes: list[str | None] = list(dict.fromkeys(degradations)) or [None]
    sets = []
    for source, name in zip(sources, short):
        name = name if short.count(name) == 1 else source
        for recipe in recipes:
            if recipe is None:
                benchmark = BENCHMARKS.get(source.partition(":")[0])
                labels = [benchmark.label] if benchmark and ":" in source else []
                sets.append(TestSet(name, source, None, tuple(labels)))
            else:
                labels = list(dict.fromkeys(Recipe.parse(recipe).labels))
                sets.append(TestSet(f"{name}, {recipe}", source, recipe, tuple(labels)))
            next(setup.pairs(source, recipe, setup.seeds[0]), None)
    return sets


def short_name(source: str) -> str:
    """The name of a benchmark, or of a folder."""
    name, colon, _ = source.partition(":")
    return name if colon and name in BENCHMARKS else Path(source).name


def list_arms(
    checkpoints: Sequence[str],
    tasks: Sequence[str],
    guidance: Sequence[str] = (),
    strengths: Sequence[float] = (),
) -> list[Arm]:
    """Every checkpoint with every task, and, where it is not blind, every way of guidance.

    Raises:
        ValueError: if strengths are given for no guidance.
    """
    ways: list[tuple[str, dict]] = []
    for kind in dict.fromkeys(guidance or [""]):
        options = {"guidance": kind} if kind else {}
        label = f", {kind}" if kind else ""
        if kind == "none" or not strengths:
            ways.append((label, options))
            continue
        for strength in dict.fromkeys(strengths):
            way = {**options, "guidance_strength": strength}
            ways.append((f"{label}, strength {strength:g}", way))
    if strengths and not any("guidance_strength" in options for _, options in ways):
        raise ValueError("Strengths are those of guidance, and `none` is the only way given.")
    arms = []
    for checkpoint in checkpoints:
        for task in dict.fromkeys(tasks):
            if task == "blind":
                arms.append(Arm(f"{checkpoint} blind", checkpoint, task))
                continue
            for label, options in ways:
                arms.append(Arm(f"{checkpoint} {task}{label}", checkpoint, task, options))
    return arms


def check_arms(
    pipes: Mapping[str, Any], arms: Sequence[Arm], sets: Sequence[TestSet], setup: Setup
) -> dict[tuple[str, str], str]:
    """What cannot be measured: set and arm, and why. Nothing has been restored yet.

    Raises:
        ValueError: if a wish cannot be fulfilled on any set.
    """
    left_out = {}
    for arm in arms:
        pipe = pipes[arm.checkpoint]
        if pipe.restorer is None:
            raise ValueError(f"{arm.checkpoint} has no restorer; there is nothing to compare.")
        for test_set in sets:
            if reason := cannot(arm, pipe, test_set):
                left_out[test_set.name, arm.name] = reason
            elif arm.task != "blind":
                pipe.check(
                    task=arm.task_on(test_set.labels),
                    num_inference_steps=setup.steps,
                    tile=setup.tile,
                    **arm.options,
                )
    return left_out


def cannot(arm: Arm, pipe, test_set: TestSet) -> str | None:
    """Why an arm cannot be told what a set suffers from, if so.

    Raises:
        ValueError: if nobody knows what that is.
    """
    if arm.task != "told":
        return None
    if not test_set.labels and test_set.degradation is None:
        raise ValueError(
            f"`told` needs to know what {test_set.source} suffers from: name the benchmark "
            f"({', '.join(BENCHMARKS)}) as rain100l:ROOT, or say the task, such as derain."
        )
    unknown = [label for label in test_set.labels if label not in pipe.can_remove]
    if unknown:
        return f"the checkpoint cannot be told of {', '.join(unknown)}"
    return None if test_set.labels else "there is nothing to tell"
