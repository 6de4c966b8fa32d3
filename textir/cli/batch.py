"""What commands tell of many photos: each result, what went wrong, and how it ended."""

import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import typer
from tqdm import tqdm

from textir.images.estimates import estimate
from textir.images.jobs import Job, Outcome, Report, Run, with_name
from textir.images.plans import find_places, list_left_out, plan_jobs
from textir.images.ray_engine import require_ray, run_on_ray
from textir.images.shares import Share


def plan(
    inputs: Sequence[str],
    output: Path,
    recursive: bool,
    helpers: Sequence[Path] = (),
    count: int = 1,
) -> list[Job]:
    """The jobs of a command, as `plan_jobs` makes them; what is left out is told."""
    places = list(find_places(inputs))  # standard input can be read once
    jobs = plan_jobs(places, output, recursive, helpers, count)
    files = list_left_out(places, output, recursive)
    if files:
        more = f" and {len(files) - 5} more" if len(files) > 5 else ""
        names = ", ".join(str(file) for file in files[:5])
        tell_beginning(f"left out, not images that can be read: {names}{more}")
    return jobs


def tell_beginning(line: str) -> None:
    """Say something that all processes of a run would say."""
    if Share.of_this_process().is_first:
        typer.echo(line, err=True)


def named(checkpoint: str, adapter: str | None) -> dict:
    """How records call the weights: as the user does."""
    return {"checkpoint": checkpoint, "adapters": [adapter] if adapter else []}


ENGINES = ("local", "ray")


@dataclass(frozen=True)
class Manner:
    """How a command works through its photos.

    Attributes:
        done: what is done to them, such as "restored".
        dry_run: only say what would be done.
        fail_fast: stop at the first bad file.
        engine: local or ray.
        workers: of ray.
    """

    done: str
    dry_run: bool = False
    fail_fast: bool = False
    engine: str = "local"
    workers: int | None = None

    def check(self, share: Share) -> None:
        """Check that there is no contradiction.

        Raises:
            ValueError: if there is.
        """
        if self.engine not in ENGINES:
            raise ValueError(f"`--engine` must be {' or '.join(ENGINES)}, got {self.engine!r}.")
        if self.engine == "ray":
            require_ray()
        elif self.workers is not None:
            raise ValueError(
                "`--workers` belongs to `--engine ray`; several processes are started by torchrun."
            )
        if self.engine == "ray" and share.count > 1:
            raise ValueError("`--engine ray` starts its own processes; leave out torchrun.")


def work_through(
    run: Run,
    jobs: Sequence[Job],
    load: Callable[[str], Any],
    check: Callable[[Any], None],
    device: str,
    manner: Manner,
) -> None:
    """Load a pipeline, work through photos in the manner that was asked for, and end the command.

    Args:
        run: the run.
        jobs: all photos; of several processes each takes its share.
        load: gives the pipeline on a device.
        check: checks the wishes with it.
        device: as the user has named it.
        manner: of working.

    Raises:
        ValueError: if the wishes cannot be fulfilled.
        typer.Exit: as `tell_results` and `tell_estimate`.
    """
    share = Share.of_this_process()
    manner.check(share)
    pipe = load("cpu" if manner.engine == "ray" else share.device(device))
    check(pipe)
    if manner.dry_run:
        if share.is_first:
            tell_estimate(run, pipe, jobs)
        return
    mine = share.of(jobs)
    if manner.engine == "ray":
        del pipe
        outcomes = run_on_ray(run, jobs, partial(load, device), manner.workers)
    else:
        outcomes = run(pipe, mine)
    tell_results(outcomes, len(mine), manner.done, manner.fail_fast, share, way_on(run, jobs))


def tell_results(
    outcomes: Iterable[Outcome],
    total: int,
    done: str,
    fail_fast: bool = False,
    share: Share = Share(),
    way_on: str = "",
) -> None:
    """Work through photos, tell of each, and end the command.

    Args:
        outcomes: what becomes of each photo, as it comes.
        total: how many photos there are.
        done: what was done to them, such as "restored".
        fail_fast: stop at the first bad file.
        share: which of several processes this one is.
        way_on: told to who stops.

    Raises:
        typer.Exit: 1 if a photo has no result, 130 if the user has stopped.
    """
    report, start = Report(total), time.perf_counter()
    name = "" if share.count == 1 else f"process {share.rank + 1} of {share.count}: "
    try:
        with stoppable():
            silent = None if share.is_first else True
            for outcome in tqdm(outcomes, total=total, unit="image", disable=silent):
                report.add(outcome)
                tell(outcome)
                if outcome.problem is not None and fail_fast:
                    break
    except KeyboardInterrupt:
        typer.echo(
            f"\n{name}Stopped: {report.finished} of {total} images {done}. {way_on}".rstrip(),
            err=True,
        )
        raise typer.Exit(130) from None
    report.seconds = time.perf_counter() - start
    reports = share.gather("report", asdict(report))
    if reports is not None:
        report, name = Report.joined(Report(**each) for each in reports), ""
    if reports is None or share.is_first:
        for line in report.lines(done):
            typer.echo(f"{name}{line}")
        sys.stdout.flush()
    share.gather("told", {})  # torchrun ends the others with the first that ends badly
    if report.finished != report.total:
        raise typer.Exit(1)


@contextmanager
def stoppable() -> Iterator[None]:
    """Within the block a request to end (SIGTERM) is like Ctrl-C: of torchrun, whose other process
    has died, or of a cluster that takes its machine back."""

    def stop(number: int, frame) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not in the main thread: whoever started it stops it
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def tell(outcome: Outcome) -> None:
    """Name the files of an outcome with their notes, or say what went wrong."""
    if outcome.problem is not None:
        tqdm.write(f"error: {with_name(str(outcome.job), outcome.problem)}", file=sys.stderr)
        return
    notes = list(outcome.notes)
    for target in outcome.targets:
        tqdm.write(str(target))
        if notes:
            tqdm.write(f"  {notes.pop(0)}")
    for note in notes:
        tqdm.write(f"  {note}")


def tell_estimate(run: Run, pipe, jobs: Sequence[Job]) -> None:
    """Say what a run would do.

    Raises:
        typer.Exit: 1 if a photo that was tried is bad.
    """
    told = estimate(run, pipe, jobs)
    for line in told.lines():
        typer.echo(line)
    if told.bad:
        raise typer.Exit(1)


def way_on(run: Run, jobs: Sequence[Job]) -> str:
    """How to go on with a run that was stopped."""
    if run.resume and jobs and all(map(run.writes_record, jobs)):
        return "The same command goes on from there."
    return "The same command with --skip-existing goes on from there."
