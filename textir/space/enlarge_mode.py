"""The mode Enlarge: more pixels, which reduced again are the photo."""

from collections.abc import Iterator

import gradio as gr

from textir.space.bench import Bench
from textir.space.edit_controls import prompt_input, scale_input, word_inputs
from textir.space.edit_mode import EditMode
from textir.space.edit_settings import EditSettings, check_scale
from textir.space.edit_view import size_line
from textir.space.editor import NAMES
from textir.space.inputs import facts_of, read_upload
from textir.space.messages import messages


class EnlargeMode(EditMode):
    """Makes photos larger."""

    task = "super-resolution"
    name = NAMES[task]
    endpoint = "enlarge"
    word = "enlarged"

    def lay_out(self) -> None:
        """Make the inputs, but for the photo."""
        self.scale = scale_input()
        self.line = gr.Markdown("")
        prompt = prompt_input(self.editor, "What does it show?", "empty: seen in the photo")
        self.buttons("Enlarge")
        self.words = word_inputs(self.editor, prompt)
        self.own = {prompt: ""}

    def join(self, photo: gr.Image, bench: Bench):
        """Join the inputs to `enlarge`; returns the event."""
        watched = [self.scale, self.words.variants, self.words.prompt]
        gr.on(
            [photo.change, *(part.change for part in watched)],
            self.foresee,
            [photo, *watched],
            self.line,
            queue=False,
            show_progress="hidden",
            api_visibility="private",
        )
        return self.join_run([photo, self.scale, *self.words.inputs], bench)

    def foresee(self, image: str | None, scale: float, variants: int, prompt: str) -> str:
        """How large a photo will become, and how long that will take."""
        facts = facts_of(image)
        runs = EditSettings(self.task, prompt=prompt.strip(), variants=int(variants)).runs
        return "" if facts is None else size_line(facts, scale, runs, self.worker)

    def enlarge(
        self,
        image: str,
        scale: float = 4,
        prompt: str = "",
        strength: float = 1.0,
        variants: int = 1,
        seed: int = 0,
        progress=gr.Progress(),
    ) -> Iterator[tuple]:
        """Enlarge a photo; reduced again, the result is the photo within half a grey level.

        Args:
            image: the photo.
            scale: above 1 to 16.
            prompt: what it shows; empty: seen in the photo.
            strength: of the words, from 0 (not heeded) over 1 (as learnt) to 2 (exaggerated).
            variants: how many results, 1 to 4.
            seed: of what differs between them.

        Returns:
            the photo before and after, the file of the first result, what was done, the results
            side by side, all files, and the code that does the same in Python.
        """
        with messages():
            progress(0.02, desc="Reading the photo")
            picture = read_upload(image)
            check_scale(scale)
            settings = self.settings(prompt, strength, variants, seed, scale=scale)
        yield from self.answer(image, picture, settings, self.code(settings), progress)
