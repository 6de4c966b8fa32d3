"""What a run would do and how long it would take, without doing it."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from textir.images.jobs import Job, Outcome, Ready, Run, with_name
from textir.images.picture import encode_picture
from textir.images.shares import count_pixels


@dataclass(frozen=True)
class Estimate:
    """What a run would do.

    Attributes:
        total: photos.
        earlier: of them those that an earlier run has finished.
        pixels: of those that are left.
        bad: name and problem of photos that cannot be read, as far as that was tried.
        seconds: that one process needs; `None` where no photo could be tried.
        basis: how that was found out.
    """

    total: int
    earlier: int
    pixels: int
    bad: list[tuple[str, str]]
    seconds: float | None
    basis: str

    @property
    def left(self) -> int:
        return self.total - self.earlier - len(self.bad)

    def lines(self) -> list[str]:
        """The estimate in words."""
        earlier = f" ({self.earlier} are there already)" if self.earlier else ""
        lines = [f"{self.left} of {self.total} images to do{earlier}; {self.basis}."]
        if self.seconds is not None:
            area = f"{self.pixels / 1e6:.1f} megapixels"
            lines.append(f"{area} take about {duration(self.seconds)} in one process.")
        if self.bad:
            lines.append(f"{len(self.bad)} cannot be done:")
        return lines + [f"bad: {with_name(name, problem)}" for name, problem in self.bad]


def duration(seconds: float) -> str:
    """Seconds in words: `40 s`, `3 min`, `2.5 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def estimate(run: Run, pipe, jobs: Sequence[Job]) -> Estimate:
    """Say what a run would do. One photo, that of median size, is worked on once to measure the
    time; nothing is written.

    Args:
        run: the run.
        pipe: a pipeline that fits its work.
        jobs: the photos.
    """
    weights = run.weights_of(pipe, jobs)
    left, bad = what_is_left(run, jobs, weights)
    earlier = len(jobs) - len(left) - len(bad)
    pixels = sum(count for count, _ in left)
    middle = len(left) // 2
    for count, job in left[middle:] + left[:middle]:
        ready = run.prepare(job, weights)
        if isinstance(ready, Outcome):
            bad += told_of(ready)
            continue
        try:
            seconds = ready.seconds + seconds_of(run, pipe, ready)
        except Exception as error:  # such as no mask: the next photo may do
            bad.append((str(job), str(error)))
            continue
        height, width = ready.picture.pixels.shape[:2]
        basis = f"measured on {job} ({width} x {height}): {seconds:.2f} s"
        return Estimate(len(jobs), earlier, pixels, bad, seconds * pixels / count, basis)
    return Estimate(len(jobs), earlier, pixels, bad, None, "nothing to measure")


def what_is_left(
    run: Run, jobs: Sequence[Job], weights: Mapping
) -> tuple[list[tuple[int, Job]], list[tuple[str, str]]]:
    """Photos that are left to do with their pixels, the smallest first, and bad ones."""
    left, bad = [], []
    for job in jobs:
        outcome = run.look(job, weights)
        count = count_pixels(job) if outcome is None else 0
        if outcome is None and count == 0:
            ready = run.prepare(job, weights)  # says what is wrong
            outcome = ready if isinstance(ready, Outcome) else None
        if outcome is None:
            left.append((max(count, 1), job))
        else:
            bad += told_of(outcome)
    return sorted(left, key=lambda item: item[0]), bad


def told_of(outcome: Outcome) -> list[tuple[str, str]]:
    return [] if outcome.problem is None else [(str(outcome.job), outcome.problem)]


def seconds_of(run: Run, pipe, ready: Ready) -> float:
    """How long it takes to work on a photo and to encode its results."""
    start = time.perf_counter()
    (made,) = run.work(pipe, [ready.job], [ready.picture])
    for target, result in zip(ready.targets, made.results, strict=True):
        encode_picture(result, target.suffix.lower())
    return time.perf_counter() - start
