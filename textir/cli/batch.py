"""What commands tell of many photos: each result, what went wrong, and how it ended."""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import typer
from tqdm import tqdm

from textir.images.jobs import Job

Result = tuple[Job, list[Path], str | None]


def tell_results(
    results: Iterable[Result], total: int, notes: list[str], done: str, fail_fast: bool
) -> None:
    """Work through results, tell of each, and end the command.

    Args:
        results: for each photo its job, the files written and what went wrong, as they come.
        total: how many photos there are.
        notes: what is to be said of the photo that was worked on last, first a line for each file;
            emptied.
        done: what was done to them, such as "restored".
        fail_fast: stop at the first bad file.

    Raises:
        typer.Exit: 1 if a photo has no result, 130 if the user has stopped.
    """
    bad: list[str] = []
    written = 0
    try:
        for job, targets, problem in tqdm(results, total=total, unit="image", disable=None):
            if problem is None:
                written += 1
                for line in interleaved(targets, notes):
                    tqdm.write(line)
                continue
            bad.append(str(job.source))
            notes.clear()
            tqdm.write(f"error: {job.source}: {problem}", file=sys.stderr)
            if fail_fast:
                break
    except KeyboardInterrupt:
        typer.echo(
            f"\nStopped: {written} of {total} images {done}. Go on with --skip-existing.", err=True
        )
        raise typer.Exit(130) from None
    failed = f", {len(bad)} bad: {', '.join(bad)}" if bad else ""
    typer.echo(f"{written} of {total} images {done}{failed}.")
    if written != total:
        raise typer.Exit(1)


def interleaved(targets: list[Path], notes: list[str]) -> Iterator[str]:
    """Each file with the note on it, then the notes on all; `notes` are used up."""
    for target in targets:
        yield str(target)
        if notes:
            yield f"  {notes.pop(0)}"
    while notes:
        yield f"  {notes.pop(0)}"


def tell_left_out(files: list[Path]) -> None:
    """Name the files of input folders that are not taken."""
    if files:
        more = f" and {len(files) - 5} more" if len(files) > 5 else ""
        names = ", ".join(str(file) for file in files[:5])
        typer.echo(f"left out, not images that can be read: {names}{more}", err=True)
