"""What was measured of test sets: a row for each set, in it an arm for each method, and the tables
that cards and READMEs show."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import chain
from pathlib import Path
from typing import TypeVar

import numpy as np

from textir.evaluation.intervals import capped, paired_difference
from textir.evaluation.metrics import Protocol
from textir.evaluation.record import measured_with
from textir.evaluation.scores import DIGITS, Pair, measure

T = TypeVar("T")
Figures = dict[str, list[list[float]]]
MEASURES = ("psnr", "ssim", "lpips", "niqe")
OWN = (*MEASURES, "seconds", "guidance_psnr")
TITLES = {
    "psnr": "PSNR in dB",
    "psnr_y": "PSNR of luma, in dB",
    "inside_psnr": "PSNR in holes, in dB",
    "colorfulness": "Colourfulness, as a ratio to that of the clean photo",
    "difference": "Mean difference from the gray photo, of 255",
    "seconds": "Seconds an image",
}
DIFFERENCES = (
    ("default", "none"),
    ("cleaned", "none"),
    ("degraded", "none"),
    ("auto", "blind"),
    ("told", "blind"),
    ("auto", "against"),
)


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
        lpips: LPIPS likewise, if it was asked for.
        niqe: NIQE likewise.
        seconds: that an arm took, likewise.
        figures: what is measured of edits alone, by its name and arm.
        digests: of the images of all seeds.
        suite: that the row belongs to.
    """

    row: str
    images: list[str] = field(default_factory=list)
    psnr: Figures = field(default_factory=dict)
    ssim: Figures = field(default_factory=dict)
    guidance_psnr: Figures = field(default_factory=dict)
    lpips: Figures = field(default_factory=dict)
    niqe: Figures = field(default_factory=dict)
    seconds: Figures = field(default_factory=dict)
    figures: dict[str, Figures] = field(default_factory=dict)
    digests: list[str] = field(default_factory=list)
    suite: str = ""

    def of(self, measure: str) -> Figures:
        """The figures of a measure by arm."""
        return getattr(self, measure) if measure in OWN else self.figures.get(measure, {})

    def put(self, measure: str, arm: str, place: int, value: float) -> None:
        """Take a figure of an arm, of the seed at `place`."""
        own = measure in OWN
        add(
            getattr(self, measure) if own else self.figures.setdefault(measure, {}),
            arm,
            place,
            value,
        )

    def mean(self, arm: str, measure: str = "psnr") -> float:
        """Mean over seeds and images; equal images count with 100 dB."""
        return float(capped(self.of(measure)[arm]).mean())

    def difference(self, arm: str, other: str, measure: str = "psnr") -> tuple[float, float, float]:
        """How much `arm` is above `other`: the mean over images of their mean over seeds, and its
        95 % interval (bootstrap over images)."""
        first, second = (capped(self.of(measure)[name]).mean(0) for name in (arm, other))
        return paired_difference(first, second)

    def begin(self, pair: Pair, place: int) -> None:
        """Note an image before its arms are added; `place` is that of the seed."""
        if not place:
            self.images.append(pair.name)
        self.digests.append(pair.digest + pair.clean_digest)

    def timed(self, arm: str, place: int, call: Callable[..., T], *arguments, **options) -> T:
        """What a call returns; its seconds are noted."""
        start = time.perf_counter()
        result = call(*arguments, **options)
        add(self.seconds, arm, place, time.perf_counter() - start)
        return result

    def add_image(
        self,
        arm: str,
        place: int,
        image: np.ndarray,
        pair: Pair,
        protocol: Protocol = Protocol(),
        with_lpips: str | None = None,
        with_niqe: bool = False,
    ) -> None:
        """Measure what an arm made of an image; arguments as of `scores.measure`."""
        found = measure(image, pair.clean, protocol, with_lpips, with_niqe)
        for name, value in found.items():
            self.put(name, arm, place, value)


def add(table: Figures, name: str, place: int, value: float) -> None:
    """Put a figure of the seed at `place` behind the others."""
    seeds = table.setdefault(name, [])
    seeds.extend([] for _ in range(place + 1 - len(seeds)))
    seeds[place].append(value)


def table(
    results: Sequence[RowScores],
    differences: Sequence[tuple[str, str]] = DIFFERENCES,
    measure: str = "psnr",
) -> str:
    """The results in Markdown: a measure of every arm, and the mean paired differences of two arms
    with their intervals, where both were measured."""
    arms = list(dict.fromkeys(chain.from_iterable(scores.of(measure) for scores in results)))
    gains = [(arm, other) for arm, other in differences if arm in arms and other in arms]
    head = ["set", "images", *arms, *(f"{arm} - {other} [95 %]" for arm, other in gains)]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    digits = 2 if "psnr" in measure else DIGITS.get(measure, 3)
    for scores in results:
        known = scores.of(measure)
        cells = [scores.row, str(len(scores.images))]
        cells += [f"{scores.mean(arm, measure):.{digits}f}" if arm in known else "" for arm in arms]
        for pair in gains:
            cells.append(_gain(scores, pair, measure, digits) if set(pair) <= set(known) else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _gain(scores: RowScores, pair: tuple[str, str], measure: str, digits: int) -> str:
    mean, low, high = scores.difference(*pair, measure)
    return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def tables(
    results: Sequence[RowScores], differences: Sequence[tuple[str, str]] = DIFFERENCES
) -> str:
    """A table in Markdown for each measure that the results have, ready for a card."""
    parts = []
    others = dict.fromkeys(chain.from_iterable(scores.figures for scores in results))
    for name in (*MEASURES, *others, "seconds"):
        with_it = [scores for scores in results if scores.of(name)]
        if with_it:
            gains = differences if name != "seconds" else ()
            title = TITLES.get(name, name.upper() if name in MEASURES else name)
            parts.append(f"{title}\n\n{table(with_it, gains, name)}")
    return "\n\n".join(parts)


def guidance_table(results: Sequence[RowScores]) -> str:
    """PSNR of the guidance itself in Markdown, beside the input and what the restorer makes alone,
    at its own size and at 8 x 8."""
    results = [row for row in results if row.guidance_psnr]
    sources = list(dict.fromkeys(chain.from_iterable(row.guidance_psnr for row in results)))
    if not sources:
        return ""
    lines = ["| set | " + " | ".join(sources) + " |", "|---" * (len(sources) + 1) + "|"]
    for scores in results:
        cells = [f"{scores.mean(name, 'guidance_psnr'):.2f}" for name in sources]
        lines.append(f"| {scores.row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def rows_to_dict(results: Sequence[RowScores]) -> dict:
    """Rows for a JSON file, with the code, the machine and the images that made them."""
    digests = chain.from_iterable(scores.digests for scores in results)
    return {"rows": [asdict(scores) for scores in results], **measured_with(digests)}


def read_rows(path: str | Path) -> list[RowScores]:
    """The rows of a JSON file that `suite` or `compare` wrote, for tables of cards.

    Raises:
        ValueError: if the file is no such file.
    """
    known = {item.name for item in fields(RowScores)}
    try:
        rows = json.loads(Path(path).read_text(encoding="utf-8"))["rows"]
        return [RowScores(**{key: row[key] for key in known & row.keys()}) for row in rows]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is no result of `python -m textir suite` or `compare`: {error!r}."
        ) from None
