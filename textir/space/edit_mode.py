"""What the modes that edit have in common: how they run, and what they answer."""

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import gradio as gr
from gradio.components import Component

from textir.images.picture import Picture, write_picture
from textir.space.bench import Bench
from textir.space.edit_controls import Words
from textir.space.edit_settings import EditSettings, check_size
from textir.space.edit_view import before_of, summarise_edit
from textir.space.edit_worker import EditResult, EditWorker
from textir.space.inputs import restored_name
from textir.space.messages import messages
from textir.space.settings import whole
from textir.space.snippets import edit_lines
from textir.space.view import page_copy, shown
from textir.space.worker import QUEUE, Beat, waiting


class EditMode:
    """A mode that edits; its subclasses have the inputs of one task.

    Attributes:
        name: how the page calls it.
        task: of the pipeline.
        endpoint: of the API, and the method that answers it.
        word: what the names of its files end with.
        words: the inputs that all edits share, once they are laid out.
        own: inputs of this mode that begin anew with every photo, and their values then.
        start: the button.
        stop: the button.
    """

    name = ""
    task = ""
    endpoint = ""
    word = ""
    words: Words
    start: gr.Button
    stop: gr.Button

    def __init__(self, worker: EditWorker):
        self.worker = worker
        self.editor = worker.editor
        self.own: dict[Component, object] = {}

    def buttons(self, label: str) -> None:
        """The buttons that start and stop."""
        with gr.Row(elem_classes="act"):
            self.start = gr.Button(label, variant="primary")
            self.stop = gr.Button("Stop")

    def join_run(self, inputs: list[Component], bench: Bench, more: list = ()):
        """Let the button, and Enter after the words, run the mode; returns the event."""
        triggers = [self.start.click, self.words.prompt.submit]
        event = gr.on(
            triggers,
            getattr(self, self.endpoint),
            inputs,
            [*bench.edited, *more],
            api_name=self.endpoint,
            scroll_to_output=True,
            show_progress_on=bench.slider,
            **QUEUE,
        )
        bench.prepare_for_edit(triggers, event)
        self.stop.click(None, cancels=[event], api_visibility="private")
        return event

    def settings(
        self, prompt: str | None, strength: float, variants: int, seed: float, **options
    ) -> EditSettings:
        """What a visitor asks for.

        Raises:
            ValueError: if a number cannot be.
        """
        prompt = (prompt or "").strip()
        if prompt and not self.editor.reads_words:
            raise ValueError("This checkpoint cannot read words; leave them out.")
        return EditSettings(
            task=self.task,
            prompt=prompt or None,
            strength=float(strength),
            variants=int(variants),
            seed=whole(seed),
            **options,
        )

    def answer(
        self, source: str, picture: Picture, settings: EditSettings, code: str, progress
    ) -> Iterator[tuple]:
        """Signs of life, at last the result: values for `Bench.edited`."""
        with messages("take a smaller photo, a smaller scale or fewer variants"):
            check_size(settings.size(picture))
            for event in self.worker.follow(picture, settings, progress):
                if not isinstance(event, EditResult):
                    yield (gr.skip(),) * 6
            before = before_of(picture, settings, self.editor.pipe)
        result = event
        progress(0.98, desc="Writing the file")
        with tempfile.TemporaryDirectory(prefix="textir-", ignore_cleanup_errors=True) as folder:
            for files in waiting(partial(self.write, source, result.pictures, Path(folder))):
                if isinstance(files, Beat):
                    yield (gr.skip(),) * 6
            yield (
                (before, page_copy(result.pictures[0], files[0], Path(folder) / "after.jpg")),
                files[0],
                summarise_edit(picture, settings, result, self.editor.device),
                [(shown(one), str(number)) for number, one in enumerate(result.pictures, 1)],
                files,
                code,
            )

    def write(self, source: str, pictures: list[Picture], folder: Path) -> list[str]:
        """Write the results; returns their paths."""
        files = []
        for number, picture in enumerate(pictures, 1):
            word = self.word if len(pictures) == 1 else f"{self.word}-{number}"
            name = restored_name(source, picture, word)
            files.append(str(write_picture(folder / name, picture)))
        return files

    def code(self, settings: EditSettings, **options) -> str:
        """Python that does the same."""
        return edit_lines(settings, self.editor.checkpoint, **options)
