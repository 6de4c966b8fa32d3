"""Many photos: which files are restored, and where the results go."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from textir.images.explanation import Explanation
from textir.images.picture import Picture, list_images, output_name, read_picture, write_picture


@dataclass(frozen=True)
class Job:
    """One file to restore and where the result goes."""

    source: Path
    target_folder: Path


def plan_jobs(
    inputs: Sequence[str | Path], output: str | Path, recursive: bool = False
) -> list[Job]:
    """The files behind some paths; a folder keeps its tree below `output`.

    Raises:
        ValueError: if a path does not exist or holds no image, if two files would get the same
            name, or if one would be overwritten.
    """
    output = Path(output)
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file; `--output` needs a folder.")
    jobs = []
    for path in map(Path, inputs):
        files = list_images(path, recursive)
        if not files:
            hint = "" if recursive else "; use --recursive to look into its sub-folders"
            raise ValueError(f"No images in {path}{hint}.")
        jobs += [
            Job(file, output / (file.parent.relative_to(path) if path.is_dir() else ""))
            for file in files
        ]
    targets = {}
    for job in jobs:
        target = (job.target_folder / job.source.name).resolve()
        if target == job.source.resolve():
            raise ValueError(
                f"{job.source} would be overwritten by its own result; choose another `--output`."
            )
        if target in targets:
            raise ValueError(
                f"{targets[target]} and {job.source} would both be written to {target}; restore "
                "them apart."
            )
        targets[target] = job.source
    return jobs


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
    sources: dict[Path, Path] = {}
    for job in jobs:
        try:
            picture = read(job.source)
            target = job.target_folder / name_result(job.source, picture)
            if sources.setdefault(target, job.source) != job.source:
                raise ValueError(
                    f"its result {target} is that of {sources[target]} already; restore them apart."
                )
            if not (skip_existing and target.exists()):
                restored, output = restore(picture)
                write_picture(target, restored)
                if intermediates:
                    folder = target.with_name(target.stem + ".intermediates")
                    Explanation.of(output).write(folder)
            yield job, target, None
        except (ValueError, OSError, MemoryError, RuntimeError) as error:
            yield job, None, str(error) or type(error).__name__
