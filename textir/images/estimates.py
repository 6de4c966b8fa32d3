"""What a run would do and how long it would take, without doing it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from textir.images.jobs import Job, Outcome, Run
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
        return self.total - self.earlier

    def lines(self) -> list[str]:
        """The estimate in words."""
        earlier = f" ({self.earlier} are there already)" if self.earlier else ""
        lines = [f"{self.left} of {self.total} images to do{earlier}; {self.basis}."]
        if self.seconds is not None:
            area = f"{self.pixels / 1e6:.1f} megapixels"
            lines.append(f"{area} take about {duration(self.seconds)} in one process.")
        return lines + [f"bad: {name}: {problem}" for name, problem in self.bad]


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
    weights, left, bad = run.weights_of(pipe, jobs), [], []
    for job in jobs:
        outcome = run.look(job, weights)
        if outcome is None:
            left.append((count_pixels(job), job))
        elif outcome.problem is not None:
            bad.append((str(job), outcome.problem))
    earlier = len(jobs) - len(left) - len(bad)
    left.sort(key=lambda item: item[0])
    pixels = sum(count for count, _ in left)
    middle = len(left) // 2
    for count, job in left[middle:] + left[:middle]:
        ready = run.prepare(job, weights)
        if isinstance(ready, Outcome):
            if ready.problem is not None:
                bad.append((str(job), ready.problem))
            continue
        start = time.perf_counter()
        try:
            (made,) = run.work(pipe, [job], [ready.picture])
            for target, result in zip(ready.targets, made.results, strict=True):
                encode_picture(result, target.suffix.lower())
        except Exception as error:  # such as no mask: the next photo may do
            bad.append((str(job), str(error)))
            continue
        seconds = ready.seconds + time.perf_counter() - start
        height, width = ready.picture.pixels.shape[:2]
        basis = f"measured on {job} ({width} x {height}): {seconds:.2f} s"
        return Estimate(len(jobs), earlier, pixels, bad, seconds * pixels / max(count, 1), basis)
    return Estimate(len(jobs), earlier, pixels, bad, None, "nothing to measure")
