"""Many photos, one after the other: each is read, worked on, and written with its record; a bad one
does not stop the others, and what an earlier run has finished is left alone."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch

from textir.images.explanation import Explanation
from textir.images.picture import Picture, output_name, read_picture, write_picture
from textir.images.plans import Job, list_left_out, numbered, plan_jobs, short_name
from textir.images.records import (
    describe_weights,
    digest,
    is_made_of,
    plain,
    read_record,
    record_file,
    versions,
    write_record,
)
from textir.images.shares import count_pixels

__all__ = [
    "Job",
    "Made",
    "Outcome",
    "Report",
    "Run",
    "Work",
    "list_left_out",
    "plan_jobs",
    "restore_files",
]
logger = logging.getLogger(__name__)

STALE = "left alone, though made of another photo, with other settings or by other weights"


@dataclass(frozen=True)
class Made:
    """What a work made of one photo.

    Attributes:
        results: the pictures.
        notes: what is to be told of it: a line for each result, then for all.
        found: what was found in the photo, for its record.
        done: what was done to each result, for its record.
        explanation: to be written beside the result, if asked for.
    """

    results: list[Picture]
    notes: list[str] = field(default_factory=list)
    found: Mapping = field(default_factory=dict)
    done: Sequence[Mapping] = ()
    explanation: Explanation | None = None


class Work(Protocol):
    """What is done to each photo; it holds no network."""

    @property
    def count(self) -> int:
        """Results of each photo."""

    def name_result(self, source: Path, picture: Picture) -> str:
        """The name of the result of a file and its picture."""

    def settings(self, job: Job) -> Mapping:
        """Everything that decides on the results of a job, beside its photo and the weights."""

    def __call__(self, pipe, jobs: Sequence[Job], pictures: Sequence[Picture]) -> list[Made]:
        """What is made of photos of one size."""


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
        job: the job.
        targets: the files written, or there already.
        problem: what went wrong, if they were not written.
        notes: what is to be told: a line for each file, then for all.
        was_there: whether an earlier run had made them.
        seconds: how long it took.
        pixels: of the photo, where it was worked on.
    """

    job: Job
    targets: list[Path] = field(default_factory=list)
    problem: str | None = None
    notes: list[str] = field(default_factory=list)
    was_there: bool = False
    seconds: float = 0.0
    pixels: int = 0


@dataclass
class Report:
    """What became of many jobs.

    Attributes:
        total: how many there are.
        made: results made now.
        earlier: photos that an earlier run had finished.
        bad: name and problem of those without a result.
        pixels: of the photos worked on.
        seconds: from the beginning to the end.
    """

    total: int
    made: int = 0
    earlier: int = 0
    bad: list[tuple[str, str]] = field(default_factory=list)
    pixels: int = 0
    seconds: float = 0.0

    def add(self, outcome: Outcome) -> None:
        if outcome.problem is not None:
            self.bad.append((str(outcome.job), outcome.problem))
            return
        self.earlier += outcome.was_there
        self.made += not outcome.was_there
        self.pixels += outcome.pixels

    @property
    def finished(self) -> int:
        """Photos with a result."""
        return self.made + self.earlier

    @classmethod
    def joined(cls, reports: Iterable["Report"]) -> "Report":
        """One of what several processes did at the same time."""
        whole = cls(0)
        for report in reports:
            whole.total += report.total
            whole.made += report.made
            whole.earlier += report.earlier
            whole.bad += report.bad
            whole.pixels += report.pixels
            whole.seconds = max(whole.seconds, report.seconds)
        return whole

    def lines(self, done: str) -> list[str]:
        """The report in words; `done` is what was done, such as "restored"."""
        earlier = f" ({self.earlier} of them earlier)" if self.earlier else ""
        bad = f", {len(self.bad)} bad" if self.bad else ""
        lines = [f"{self.finished} of {self.total} images {done}{earlier}{bad}."]
        if self.made:
            speed = f"{self.made / self.seconds:.2f} images"
            area = f"{self.pixels / 1e6 / self.seconds:.3f} megapixels"
            lines.append(f"{self.seconds:.1f} s; {speed} and {area} a second.")
        return lines + [f"bad: {with_name(name, problem)}" for name, problem in self.bad]


def with_name(name: str | Path, problem: str) -> str:
    """A problem with the name of the file in front, unless it begins so itself."""
    return problem if problem.startswith(str(name)) else f"{name}: {problem}"


@dataclass(frozen=True)
class Ready:
    """A photo that waits to be worked on.

    Attributes:
        job: its job.
        picture: the decoded file.
        targets: where its results go.
        sha256: of the file, `None` where records are neither read nor written.
        seconds: that this took.
    """

    job: Job
    picture: Picture
    targets: list[Path]
    sha256: str | None
    seconds: float


@dataclass(frozen=True)
class Run:
    """How many photos are worked on, and what is written beside their results. It holds no network,
    so it can be sent to other processes.

    Attributes:
        work: what is done to each photo.
        sidecar: write a record `NAME.json` beside each result; by default beside those in a folder,
            and not beside a result that the user has named.
        resume: leave alone results whose record tells of the same photo, settings and weights.
        skip_existing: leave alone any result that is there.
        batch_size: photos of one size that are worked on together; they are brought together.
            Results then agree to 1e-6 of the range and not always to the bit.
        names: how records call checkpoint and adapters, such as `{"checkpoint": "mini"}`; as the
            pipeline does by default.
        read: decodes a file, in place of `read_picture`; then there are no records.
    """

    work: Work
    sidecar: bool | None = None
    resume: bool = True
    skip_existing: bool = False
    batch_size: int = 1
    names: Mapping = field(default_factory=dict)
    read: Callable[[Path], Picture] | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, got {self.batch_size}.")

    def __call__(
        self, pipe, jobs: Sequence[Job], weights: Mapping | None = None
    ) -> Iterator[Outcome]:
        """Work on photos; a bad one does not stop the others.

        Args:
            pipe: a pipeline that fits the work.
            jobs: the photos.
            weights: what `weights_of` tells, if it is known already.

        Yields:
            what became of each, in the order of `jobs` where `batch_size` is 1.
        """
        weights = self.weights_of(pipe, jobs) if weights is None else weights
        waiting: list[Ready] = []
        if self.batch_size > 1:
            jobs = sorted(jobs, key=count_pixels)
        for job in jobs:
            ready = self.prepare(job, weights)
            if isinstance(ready, Outcome):
                yield ready
                continue
            if waiting and not same_size(waiting[0], ready):
                yield from self.finish(pipe, waiting, weights)
                waiting = []
            waiting.append(ready)
            if len(waiting) == self.batch_size:
                yield from self.finish(pipe, waiting, weights)
                waiting = []
        yield from self.finish(pipe, waiting, weights)

    def weights_of(self, pipe, jobs: Sequence[Job]) -> Mapping:
        """What `describe_weights` tells, where records are read or written."""
        if any(self.writes_record(job) or self.reads_record(job) for job in jobs):
            return {**describe_weights(pipe), **self.names}
        return {}

    def writes_record(self, job: Job) -> bool:
        return self.read is None and (job.target is None if self.sidecar is None else self.sidecar)

    def reads_record(self, job: Job) -> bool:
        if self.read is not None or not (self.resume or self.skip_existing):
            return False
        return any(map(Path.exists, map(record_file, self.possible_first_targets(job))))

    def possible_first_targets(self, job: Job) -> list[Path]:
        return [numbered(target, self.work.count)[0] for target in job.possible_targets()]

    def look(self, job: Job, weights: Mapping) -> Outcome | None:
        """The results of a job that are there and are to be left alone, or why it cannot be read;
        `None` if it is to be worked on."""
        if self.skip_existing and any(map(Path.exists, self.possible_first_targets(job))):
            ready = self.prepare(job, weights)
            return ready if isinstance(ready, Outcome) else None
        try:
            targets = self.finished(job, digest(job.read()), weights) if self.resume else None
            return None if targets is None else Outcome(job, targets, was_there=True)
        except Exception as error:  # no file ends a batch
            return failed(job, error)

    def prepare(self, job: Job, weights: Mapping) -> Ready | Outcome:
        """Read a photo, unless its results are there."""
        start = time.perf_counter()
        try:
            if self.read is not None:
                picture, sha256 = self.read(job.source), None
            else:
                data = job.read()
                sha256 = digest(data)
                if self.resume and (targets := self.finished(job, sha256, weights)):
                    return Outcome(job, targets, was_there=True)
                picture = read_picture(data, name=str(job))
            target = job.target_named(self.work.name_result(job.source, picture))
            targets = numbered(target, self.work.count)
            if self.skip_existing and all(path.exists() for path in targets):
                notes = [STALE] if self.is_stale(job, targets, sha256, weights) else []
                return Outcome(job, targets, notes=notes, was_there=True)
            return Ready(job, picture, targets, sha256, time.perf_counter() - start)
        except Exception as error:  # no file ends a batch
            return failed(job, error)

    def finished(self, job: Job, sha256: str, weights: Mapping) -> list[Path] | None:
        """The results of a job if an earlier run has made all of them of this photo, with these
        settings and weights."""
        for target in job.possible_targets():
            targets = numbered(target, self.work.count)
            if not record_file(targets[0]).exists():
                continue
            settings, records = self.work.settings(job), [read_record(path) for path in targets]
            if all(
                record is not None and is_made_of(record, sha256, settings, weights.get("sha256"))
                for record in records
            ):
                return targets
        return None

    def is_stale(
        self, job: Job, targets: Sequence[Path], sha256: str | None, weights: Mapping
    ) -> bool:
        """Whether records tell that results were made of something else."""
        if sha256 is None:
            return False
        settings, digest_of_weights = self.work.settings(job), weights.get("sha256")
        records = filter(None, map(read_record, targets))
        return not all(
            is_made_of(record, sha256, settings, digest_of_weights) for record in records
        )

    def finish(self, pipe, waiting: Sequence[Ready], weights: Mapping) -> Iterator[Outcome]:
        """Work on photos of one size together, and write what was made."""
        if not waiting:
            return
        start = time.perf_counter()
        jobs = [ready.job for ready in waiting]
        try:
            made = self.work(pipe, jobs, [ready.picture for ready in waiting])
        except Exception as error:  # no file ends a batch
            if len(waiting) == 1:
                yield failed(jobs[0], error)
                return
            for ready in waiting:  # one of them is bad
                yield from self.finish(pipe, [ready], weights)
            return
        seconds = (time.perf_counter() - start) / len(waiting)
        for ready, single in zip(waiting, made, strict=True):
            yield self.write(pipe, ready, single, seconds, weights)

    def write(self, pipe, ready: Ready, made: Made, seconds: float, weights: Mapping) -> Outcome:
        """Write results, each followed by its record: who has a record is whole."""
        start = time.perf_counter()
        job, targets = ready.job, ready.targets
        height, width = ready.picture.pixels.shape[:2]
        try:
            for target, result in zip(targets, made.results, strict=True):
                write_picture(target, result)
            if made.explanation is not None:
                made.explanation.write(explanation_folder(job, targets[0]))
            seconds += ready.seconds + time.perf_counter() - start
            if self.writes_record(job):
                shared = {
                    "input": {
                        "name": job.name,
                        "sha256": ready.sha256,
                        "height": height,
                        "width": width,
                    },
                    "settings": plain(self.work.settings(job)),
                    "weights": weights,
                    "found": made.found,
                    "versions": versions(),
                    "machine": {"device": str(pipe.device), "threads": torch.get_num_threads()},
                    "seconds": round(seconds, 3),
                }
                for target, done in zip(targets, made.done, strict=True):
                    write_record(target, {**shared, "done": done})
        except Exception as error:  # no file ends a batch
            return failed(job, error)
        return Outcome(job, targets, None, made.notes, False, seconds, height * width)


def same_size(one: Ready, other: Ready) -> bool:
    return one.picture.pixels.shape == other.picture.pixels.shape


def failed(job: Job, error: Exception) -> Outcome:
    logger.debug("%s", job, exc_info=error)
    return Outcome(job, problem=str(error) or type(error).__name__)


def explanation_folder(job: Job, target: Path) -> Path:
    """Where the explanation of a result is written; those of twins have folders of their own."""
    name = target.stem if job.spare is None else target.name
    return target.with_name(short_name(name, ".intermediates"))


@dataclass(frozen=True)
class Calling:
    """A work that calls a function for each picture."""

    restore: Callable[[Picture], tuple[Picture, object]]
    name: Callable[[Path, Picture], str]
    intermediates: bool
    count: int = 1

    def name_result(self, source: Path, picture: Picture) -> str:
        return self.name(source, picture)

    def settings(self, job: Job) -> Mapping:
        return {}

    def __call__(self, pipe, jobs: Sequence[Job], pictures: Sequence[Picture]) -> list[Made]:
        made = []
        for picture in pictures:
            restored, output = self.restore(picture)
            explanation = Explanation.of(output) if self.intermediates else None
            made.append(Made([restored], explanation=explanation))
        return made


def restore_files(
    jobs: Sequence[Job],
    restore: Callable[[Picture], tuple[Picture, object]],
    skip_existing: bool = False,
    intermediates: bool = False,
    read: Callable[[Path], Picture] = read_picture,
    name_result: Callable[[Path, Picture], str] = output_name,
) -> Iterator[tuple[Job, Path | None, str | None]]:
    """Restore file after file by a function; a bad one does not stop the others. A `Run` also
    writes records and goes on where an earlier one has stopped.

    Args:
        jobs: the files.
        restore: gives the restored picture, and the pipeline's output where there is one.
        skip_existing: leave alone what an earlier run has written.
        intermediates: also write what the pipeline's output explains.
        read: decodes a file.
        name_result: names the result of a file and its picture.

    Yields:
        the job, the file written (or already there), and what went wrong if it was not written.
    """
    work = Calling(restore, name_result, intermediates)
    run = Run(work, skip_existing=skip_existing, read=read)
    for outcome in run(None, jobs):
        yield outcome.job, next(iter(outcome.targets), None), outcome.problem
