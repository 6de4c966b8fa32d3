"""The mode Colour: colours for gray photos, whose light stays as it is."""

from collections.abc import Iterator

import gradio as gr

from textir.images.picture import Picture
from textir.space.bench import Bench
from textir.space.edit_controls import colour_chips, prompt_input, word_inputs
from textir.space.edit_mode import EditMode
from textir.space.edit_settings import in_gray
from textir.space.editor import NAMES
from textir.space.inputs import facts_of, read_upload
from textir.space.messages import messages

HAS_COLOURS = "**This photo has colours already.** New ones are for gray photos."


class ColourMode(EditMode):
    """Gives colours to gray photos."""

    task = "colorize"
    name = NAMES[task]
    endpoint = "colorize"
    word = "coloured"

    def lay_out(self) -> None:
        """Make the inputs, but for the photo."""
        self.line = gr.Markdown("", visible=False)
        self.make_gray = gr.Checkbox(False, label="Make it gray first", visible=False)
        prompt = prompt_input(
            self.editor,
            "What is there, in which colours?",
            "a red car on a green meadow; empty: as seen",
            elem_id="colour-words",
        )
        colour_chips(prompt, visible=self.editor.reads_words)
        self.buttons("Colour")
        self.words = word_inputs(self.editor, prompt)
        self.own = {prompt: "", self.make_gray: False}

    def join(self, photo: gr.Image, bench: Bench):
        """Join the inputs to `colorize`; returns the event."""
        photo.change(
            self.offer,
            photo,
            [self.line, self.make_gray],
            queue=False,
            show_progress="hidden",
            api_visibility="private",
        )
        inputs = [photo, *self.words.inputs, self.make_gray]
        return self.join_run(inputs, bench)

    def offer(self, image: str | None) -> tuple:
        """To photos with colours, to make them gray first."""
        facts = facts_of(image)
        has_colours = facts is not None and not facts.is_gray
        return gr.Markdown(HAS_COLOURS, visible=has_colours), gr.Checkbox(visible=has_colours)

    def colorize(
        self,
        image: str,
        prompt: str = "",
        strength: float = 1.0,
        variants: int = 1,
        seed: int = 0,
        make_gray: bool = False,
        progress=gr.Progress(),
    ) -> Iterator[tuple]:
        """Give colours to a gray photo, whose luminance stays exactly as it is.

        Args:
            image: the photo.
            prompt: what is there and in which colours, such as "a red car"; empty: as seen.
            strength: of the words, from 0 (not heeded) over 1 (as learnt) to 2 (exaggerated).
            variants: how many results, 1 to 4.
            seed: of what differs between them.
            make_gray: take the colours of the photo away first, if it has any.

        Returns:
            the photo before and after, the file of the first result, what was done, the results
            side by side, all files, and the code that does the same in Python.
        """
        with messages():
            progress(0.02, desc="Reading the photo")
            picture = self.read(image, make_gray)
            settings = self.settings(prompt, strength, variants, seed)
        code = self.code(settings, make_gray=make_gray)
        yield from self.answer(image, picture, settings, code, progress)

    def read(self, image: str, make_gray: bool) -> Picture:
        """The photo without colours.

        Raises:
            ValueError: if it has some, and they are not to be taken away.
        """
        picture = read_upload(image)
        if make_gray:
            return in_gray(picture)
        if not self.editor.pipe.edit_processor.is_gray(picture.tensor()):
            raise ValueError(
                "This photo has colours already. Tick “Make it gray first” (`make_gray`) to give "
                "it new ones."
            )
        return picture
