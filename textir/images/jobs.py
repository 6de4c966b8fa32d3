"""Many photos: which files are worked on, and where the results go."""

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
    """One file to work on and where the result goes.

    Attributes:
        source: the file.
        target_folder: of its result.
        target: the result itself, where the user has named it.
        tree: folders between the input folder and the file.
    """

    source: Path
    target_folder: Path
    target: Path | None = None
    tree: Path = Path()


def plan_jobs(
    inputs: Sequence[str | Path],
    output: str | Path,
    recursive: bool = False,
    helpers: Sequence[Path] = (),
) -> list[Job]:
    """The files behind some paths; a folder keeps its tree below `output`.

    Results of earlier runs that lie below `output` are no inputs. `~` and patterns such as
    `photos/*.png` are resolved. One file may be given a name: `output` with an image's suffix.

    Args:
        inputs: files, folders and patterns.
        output: folder of the results, or the file of the only one.
        recursive: look into sub-folders.
        helpers: files and folders, such as masks, that are no photos where an input folder holds
            them.

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
        files = without_helpers(files, path, helpers)
        if not files:
            hint = "" if recursive else "; use --recursive to look into its sub-folders"
            raise ValueError(f"No images in {path}{hint}.")
        for file in files:
            tree = file.parent.relative_to(path) if path.is_dir() else Path()
            jobs.append(Job(file, output / tree, tree=tree))
    targets: dict[Path, Path] = {}
    for job in jobs:
        target = job.target_folder / job.source.name
        refuse_overwriting(job.source, target)
        target = target.resolve()
        if target in targets:
            raise ValueError(
                f"{targets[target]} and {job.source} would both be written to {target}; "
                "work on them apart."
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


def without_helpers(files: list[Path], root: Path, helpers: Sequence[Path]) -> list[Path]:
    """Files found in the folder `root` but for `helpers` and what such folders hold."""
    if not root.is_dir():
        return files
    places = {helper.resolve() for helper in helpers} - {root.resolve()}
    return [file for file in files if places.isdisjoint([file.resolve(), *file.resolve().parents])]


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
    stems = Counter((job.target_folder, job.source.stem) for job in jobs)

    def process(job: Job, picture: Picture, targets: list[Path]) -> None:
        restored, output = restore(picture)
        target = write_picture(targets[0], restored)
        if intermediates:
            is_alone = stems[job.target_folder, job.source.stem] == 1
            name = target.stem if is_alone else target.name
            folder = target.with_name(short_name(name, ".intermediates"))
            Explanation.of(output).write(folder)

    for job, targets, problem in process_files(jobs, process, skip_existing, read, name_result):
        yield job, targets[0] if targets else None, problem


def process_files(
    jobs: Sequence[Job],
    process: Callable[[Job, Picture, list[Path]], None],
    skip_existing: bool = False,
    read: Callable[[Path], Picture] = read_picture,
    name_result: Callable[[Path, Picture], str] = output_name,
    count: int = 1,
) -> Iterator[tuple[Job, list[Path], str | None]]:
    """Make one or several results of file after file; a bad one does not stop the others.

    Args:
        jobs: the files.
        process: makes the results of a job and its picture, and writes them to the given paths.
        skip_existing: leave alone what an earlier run has written as a whole.
        read: decodes a file.
        name_result: names the result of a file and its picture.
        count: results of a file; several have numbers, such as `photo-1.png`.

    Yields:
        the job, the files written (or already there), and what went wrong if they were not.
    """
    sources = {job.source.resolve() for job in jobs}
    taken = {job.target_folder / job.source.name: job.source for job in jobs}
    for job in jobs:
        try:
            picture = read(job.source)
            target = job.target or free_target(job, name_result(job.source, picture), taken)
            targets = numbered(target, count)
            for path in targets:
                if count > 1 and path.resolve() in sources:
                    raise ValueError(f"{path} is a photo to work on; choose another `--output`.")
            if not (skip_existing and all(path.exists() for path in targets)):
                process(job, picture, targets)
            yield job, targets, None
        except Exception as error:  # no file ends a batch
            logger.debug("%s", job.source, exc_info=True)
            yield job, [], str(error) or type(error).__name__


def numbered(target: Path, count: int) -> list[Path]:
    """Names of several results: `photo.png` -> `photo-1.png`, `photo-2.png`, ...; of one its
    own."""
    if count == 1:
        return [target]
    return [target.with_name(f"{target.stem}-{n}{target.suffix}") for n in range(1, count + 1)]


def free_target(job: Job, name: str, taken: dict[Path, Path]) -> Path:
    """Where the result of a job is written: under its name, or with a number where the result of
    another file has that name."""
    path, number = Path(name), 0
    target = job.target_folder / name
    while taken.setdefault(target, job.source) != job.source:
        number += 1
        target = job.target_folder / f"{path.stem}-{number}{path.suffix}"
    return target
