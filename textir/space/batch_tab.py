"""The tab Batch: several photos in, an archive and a table out."""

import tempfile
import time
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import gradio as gr

from textir.images.jobs import Job, restore_files
from textir.images.picture import Picture
from textir.space.bench import QUIET
from textir.space.controls import keep_buttons, task_buttons
from textir.space.inputs import MAX_FILES, check_number, read_upload, restored_name, size_of
from textir.space.messages import messages
from textir.space.page import render
from textir.space.settings import Settings, joined, whole
from textir.space.view import outcome
from textir.space.worker import QUEUE, Beat, Worker, stoppable

HEADS = ["file", "result", "detected", "size", "seconds"]


class BatchTab:
    """Restores several photos."""

    def __init__(self, worker: Worker):
        self.worker = worker
        self.model = worker.model

    def lay_out(self) -> None:
        """Make the inputs and outputs, and join them to `restore_batch`."""
        gr.Markdown(f"Up to {MAX_FILES} photos; a bad one does not stop the others.")
        files = gr.File(label="Photos", file_count="multiple")
        task = task_buttons(self.model)
        keep = keep_buttons(self.model)
        with gr.Row(elem_classes="act"):
            start = gr.Button("Restore all", variant="primary")
            stop = gr.Button("Stop")
        archive = gr.File(label="Restored photos (zip of PNG files)", interactive=False)
        seen = gr.HTML()
        table = gr.Dataframe(headers=HEADS, type="array", interactive=False, visible="hidden")
        event = start.click(
            self.restore_batch, [files, task, keep], [archive, table], api_name="batch", **QUEUE
        )
        event.then(in_html, table, seen, **QUIET)
        stop.click(None, cancels=[event], api_visibility="private")

    def restore_batch(
        self,
        files: list[str],
        task: list[str] | None = None,
        keep: list[str] | None = None,
        seed: int = 0,
        progress=gr.Progress(),
    ) -> Iterator[tuple]:
        """Restore several photos; a bad one does not stop the others.

        Args:
            files: the photos, twenty at most.
            task: what to remove from all of them; nothing: find out.
            keep: what must stay in all of them.
            seed: of everything random.

        Returns:
            a zip of the restored files, and a table of what was done.
        """
        with messages():
            check_number(files)
            settings = Settings(task=joined(task) or "auto", keep=joined(keep), seed=whole(seed))
        with tempfile.TemporaryDirectory(prefix="textir-") as folder:
            # A folder for each keeps files of one name apart.
            jobs = [Job(Path(file), Path(folder, str(n))) for n, file in enumerate(files)]
            archive = Path(folder) / "restored.zip"
            with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as bundle:
                for rows in stoppable(partial(self.restore_into, bundle, jobs, settings, progress)):
                    if isinstance(rows, Beat):
                        yield gr.skip(), gr.skip()
                is_empty = not bundle.namelist()
            yield None if is_empty else str(archive), rows

    def restore_into(
        self, bundle: zipfile.ZipFile, jobs: list[Job], settings: Settings, progress, check
    ) -> list[list[str]]:
        """Put the restored files into an archive; returns a row of the table for each. What
        `check` raises ends it."""
        rows, notes = [], []

        def restore(picture: Picture):
            span = (len(rows) / len(jobs), (len(rows) + 1) / len(jobs))
            result = self.worker.finish(picture, settings, progress, span, check)
            notes[:] = [outcome(result.explanation), size_of(picture)]
            return result.restored, None

        start = time.perf_counter()
        results = restore_files(jobs, restore, read=read_upload, name_result=restored_name)
        for job, file, problem in results:
            if problem is None:
                name = free_name(file.name, bundle.namelist())
                bundle.write(file, name)
                seconds = f"{time.perf_counter() - start:.1f}"
                rows.append([job.source.name, name, *notes, seconds])
            else:
                rows.append([job.source.name, f"not restored: {problem}", "", "", ""])
            check()
            start = time.perf_counter()
        return rows


def in_html(rows: list[list[str]]) -> str:
    """The table as a page shows it: on a phone, the cells of a file stand below each other."""
    return render("batch.html", heads=HEADS, rows=rows)


def free_name(name: str, taken: list[str]) -> str:
    """A name, with a number where it is taken already: `a.png`, `a-1.png`."""
    path, candidate, number = Path(name), name, 0
    while candidate in taken:
        number += 1
        candidate = f"{path.stem}-{number}{path.suffix}"
    return candidate
