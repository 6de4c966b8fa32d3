"""Many photos: which files are restored, and where the results go."""

import glob
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from textir.images.explanation import Explanation
from textir.images.picture import (
    KINDS,
    Picture,
    is_image,
    list_images,
    output_name,
    read_picture,
    write_picture,
)

logger = logging.getLogger(__name__)


MAX_NAME = 200  # bytes; systems take 255, and temporary files and numbers need room


@dataclass(frozen=True)
class Job:
    """One file to restore and where the result goes.

    Attributes:
        source: the file.
        target_folder: of its result.
        target: the result itself, where the user has named it.
    """

    source: Path
    target_folder: Path
    target: Path | None = None


def plan_jobs(
    inputs: Sequence[str | Path], output: str | Path, recursive: bool = False
) -> list[Job]:
    """The files behind some paths; a folder keeps its tree below `output`.

    Results of earlier runs that lie below `output` are no inputs. `~` and patterns such as
    `photos/*.png` are resolved. One file may be given a name: `output` with an image's suffix.

    Raises:
        ValueError: if a path does not exist or holds no image, if two files would get the same
            name, or if one would be overwritten.
    """
    output = Path(output).expanduser()
    paths = list(chain.from_iterable(map(matching_paths, inputs)))
    if output.suffix.lower() in KINDS and not output.is_dir():
        if len(paths) == 1 and paths[0].is_file():
            refuse_overwriting(paths[0], output)
            return [Job(paths[0], output.parent, output)]
        if not output.exists():
            raise ValueError(f"`--output` {output} names one file, and the input is not one photo.")
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file; `--output` needs a folder.")
    jobs = []
    for path in paths:
        files = without_results(list_images(path, recursive), path, output)
        if not files:
            hint = "" if recursive else "; use --recursive to look into its sub-folders"
            raise ValueError(f"No images in {path}{hint}.")
        for file in files:
            tree = file.parent.relative_to(path) if path.is_dir() else ""
            jobs.append(Job(file, output / tree))
    targets: dict[Path, Path] = {}
    for job in jobs:
        target = job.target_folder / job.source.name
        refuse_overwriting(job.source, target)
        target = target.resolve()
        if target in targets:
            raise ValueError(
                f"{targets[target]} and {job.source} would both be written to {target}; restore "
                "them apart."
            )
        targets[target] = job.source
    return jobs


def matching_paths(text: str | Path) -> list[Path]:
    """The path that a text names, or the paths that match it if it is a pattern.

    Raises:
        ValueError: if nothing matches, or it is an address of the web.
    """
    if str(text).startswith(("http://", "https://", "http:/", "https:/")):
        raise ValueError(f"{text} is an address of the web; download the photo first.")
    path = Path(text).expanduser()
    if path.exists() or not set("*?[") & set(str(path)):
        return [path]
    found = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
    if not found:
        raise ValueError(f"Nothing matches {text}.")
    pictures = [match for match in found if match.is_dir() or is_image(match)]
    return pictures or found


def refuse_overwriting(source: Path, target: Path) -> None:
    if target.resolve() == source.resolve():
        raise ValueError(
            f"{source} would be overwritten by its own result; choose another `--output`."
        )


def without_results(files: list[Path], root: Path, output: Path) -> list[Path]:
    """Files found under `root` but for the results of earlier runs into `output`."""
    folder = output.resolve()
    if root.resolve() == folder:
        return files
    return [file for file in files if folder not in file.resolve().parents]


def list_left_out(
    inputs: Sequence[str | Path], output: str | Path, recursive: bool = False
) -> list[Path]:
    """The files of the input folders that are not taken, because they have no name of an image that
    can be read; hidden ones and what lies below `output` are not counted."""
    left = []
    for path in chain.from_iterable(map(matching_paths, inputs)):
        if path.is_dir():
            found = path.rglob("*") if recursive else path.iterdir()
            files = (file for file in found if file.is_file() and not file.name.startswith("."))
            others = sorted(file for file in files if not is_image(file))
            left += without_results(others, path, Path(output).expanduser())
    return left


def short_name(name: str, ending: str) -> str:
    """A name with an ending, cut to what file systems take."""
    room = MAX_NAME - len(ending.encode())
    return name.encode()[:room].decode(errors="ignore") + ending


def restore_files(
    jobs: Sequence[Job],
    restore: Callable[[Picture], tuple[Picture, object]],
    skip_existing: bool = False,
    intermediates: bool = False,
    read: Callable[[Path], Picture] = read_picture,
    name_result: Callable[[Path, Picture], str] = output_name,
) -> Iterator[tuple[Job, Path | None, str | None]]:
    """Restore file after file; a bad one does not stop the others.

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
    taken = {job.target_folder / job.source.name: job.source for job in jobs}
    stems = Counter((job.target_folder, job.source.stem) for job in jobs)
    for job in jobs:
        try:
            picture = read(job.source)
            target = job.target or free_target(job, name_result(job.source, picture), taken)
            if not (skip_existing and target.exists()):
                restored, output = restore(picture)
                write_picture(target, restored)
                if intermediates:
                    is_alone = stems[job.target_folder, job.source.stem] == 1
                    name = target.stem if is_alone else target.name
                    folder = target.with_name(short_name(name, ".intermediates"))
                    Explanation.of(output).write(folder)
            yield job, target, None
        except Exception as error:  # no file ends a batch
            logger.debug("%s", job.source, exc_info=True)
            yield job, None, str(error) or type(error).__name__


def free_target(job: Job, name: str, taken: dict[Path, Path]) -> Path:
    """Where the result of a job is written: under its name, or with a number where the result of
    another file has that name."""
    path, number = Path(name), 0
    target = job.target_folder / name
    while taken.setdefault(target, job.source) != job.source:
        number += 1
        target = job.target_folder / f"{path.stem}-{number}{path.suffix}"
    return target
