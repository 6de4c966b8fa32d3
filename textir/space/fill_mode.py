"""The mode Erase and fill: what is painted over is filled by words, or with its surroundings."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
from PIL import Image

from textir.space.bench import Bench
from textir.space.edit_controls import Canvas, prompt_input, word_inputs
from textir.space.edit_mode import EditMode
from textir.space.editor import NAMES
from textir.space.inputs import read_upload
from textir.space.masks import read_hole
from textir.space.messages import messages


class FillMode(EditMode):
    """Fills what is painted over."""

    task = "inpaint"
    name = NAMES[task]
    endpoint = "inpaint"
    word = "filled"

    def lay_out(self) -> None:
        """Make the inputs, but for photo and canvas."""
        gr.Markdown("Paint over what shall be filled. The rest stays unchanged to the bit.")
        prompt = prompt_input(
            self.editor, "What should be there?", "empty: what the rest of the photo says"
        )
        self.buttons("Fill")
        self.words = word_inputs(self.editor, prompt)
        with gr.Accordion("Mask: from a file, or inverted", open=False):
            self.mask = gr.File(
                label="Mask of the photo's size: bright is filled",
                file_types=["image"],
                type="filepath",
                height=120,
            )
            self.invert = gr.Checkbox(False, label="Invert: keep what is painted, fill the rest")
        self.own = {prompt: "", self.mask: None, self.invert: False}

    def join(self, photo: gr.Image, canvas: Canvas, bench: Bench):
        """Join the inputs to `inpaint`; returns the event."""
        inputs = [photo, self.mask, *self.words.inputs, self.invert, canvas]
        return self.join_run(inputs, bench, [bench.mask])

    def inpaint(
        self,
        image: str,
        mask: str | None = None,
        prompt: str = "",
        strength: float = 1.0,
        variants: int = 1,
        seed: int = 0,
        invert: bool = False,
        drawing: dict | None = None,
        progress=gr.Progress(),
    ) -> Iterator[tuple]:
        """Fill a part of a photo; everything else stays equal to the bit.

        Args:
            image: the photo.
            mask: a file of the photo's size, bright where to fill.
            prompt: what should be there; empty: what the rest of the photo says.
            strength: of the words, from 0 (not heeded) over 1 (as learnt) to 2 (exaggerated).
            variants: how many results, 1 to 4.
            seed: of what differs between them.
            invert: fill what is dark, or not painted, instead.
            drawing: strokes of the brush on the page; calls without a browser leave it out.

        Returns:
            the photo before and after, the file of the first result, what was done, the results
            side by side, all files, the code that does the same in Python, and the mask.
        """
        with messages():
            progress(0.02, desc="Reading the photo")
            picture = read_upload(image)
            keeper = self.editor.pipe.edit_processor
            hole = read_hole(drawing, mask, picture.pixels.shape[:2], invert, keeper)
            settings = self.settings(prompt, strength, variants, seed, hole=hole)
        name = f"{Path(image).stem}-mask.png"
        code = self.code(settings, mask=name)
        with tempfile.TemporaryDirectory(prefix="textir-") as folder:
            file = Path(folder) / name
            Image.fromarray(hole).convert("L").save(file)
            for values in self.answer(image, picture, settings, code, progress):
                is_last = isinstance(values[1], str)
                yield *values, str(file) if is_last else gr.skip()
