"""Inputs of the modes that edit: words, colours to press, a canvas to paint on, scales."""

from dataclasses import dataclass

import gradio as gr
from PIL import Image

from textir.space.controls import seed_input
from textir.space.editor import Editor
from textir.space.inputs import read_upload
from textir.space.view import preview

CANVAS_SIDE = 1024  # of the copy that is painted on, in pixels
BRUSH = "rgba(255, 0, 90, 0.6)"
SCALES = (2, 3, 4, 6, 8, 16)
# Those that colorization is measured with; `style.css` gives each its dot.
COLOURS = (
    "red",
    "orange",
    "yellow",
    "green",
    "blue",
    "purple",
    "pink",
    "brown",
    "black",
    "gray",
    "white",
)
ADD_COLOUR = """(text) => {
    const field = document.querySelector("#colour-words textarea, #colour-words input");
    setTimeout(() => field && field.focus(), 50);
    const before = text.trim() ? text.trim().replace(/,$/, "") + ", " : "";
    return before + "%s %s ";
}"""


class Canvas(gr.ImageEditor):
    """A photo to paint on; what matters of it are its layers."""

    is_template = True  # shown as its parent


class Scale(gr.Radio):
    """Factors to press. Who calls the API may send any number, also as a text."""

    is_template = True  # shown as its parent

    def preprocess(self, payload) -> float:
        try:
            return float(payload)
        except (TypeError, ValueError):
            raise gr.Error(f"The scale must be a number, got {payload!r}.") from None


@dataclass(frozen=True)
class Words:
    """What is wanted, and how: the inputs that all edits share, in the order of the API."""

    prompt: gr.Textbox
    strength: gr.Slider
    variants: gr.Slider
    seed: gr.Number

    @property
    def inputs(self) -> list:
        return [self.prompt, self.strength, self.variants, self.seed]


def prompt_input(editor: Editor, label: str, placeholder: str, **options) -> gr.Textbox:
    """The field for words; hidden where they cannot be read."""
    return gr.Textbox(
        "", label=label, placeholder=placeholder, visible=editor.reads_words, **options
    )


def word_inputs(editor: Editor, prompt: gr.Textbox) -> Words:
    """How many results, how strongly words act, and the seed."""
    variants = gr.Slider(1, 4, 1, step=1, label="Variants", info="Side by side, to choose from")
    with gr.Accordion("More", open=False):
        strength = gr.Slider(
            0,
            2,
            1,
            step=0.1,
            label="Strength of the words",
            info="0: not heeded · 1: as learnt · 2: exaggerated",
            visible=editor.reads_words,
        )
        seed = seed_input()
    return Words(prompt, strength, variants, seed)


def canvas_input() -> Canvas:
    """Where to paint what shall be filled."""
    return Canvas(
        label="Paint here",
        type="pil",
        format="png",
        height=420,
        image_mode="RGBA",
        sources=(),
        transforms=(),
        layers=False,
        buttons=["fullscreen"],
        brush=gr.Brush(default_size="auto", colors=[BRUSH], color_mode="fixed"),
        canvas_size=(CANVAS_SIDE, CANVAS_SIDE),
        elem_id="canvas",
        visible=False,
    )


def copy_for_canvas(path: str) -> dict:
    """A photo as the value of a canvas: reduced, nothing painted."""
    copy = preview(read_upload(path)).convert("RGB")
    copy.thumbnail((CANVAS_SIDE, CANVAS_SIDE), Image.LANCZOS)
    return {"background": copy, "layers": [], "composite": None}


def scale_input() -> Scale:
    choices = [(f"{scale} x", scale) for scale in SCALES]
    return Scale(choices, value=4, label="How much larger?", elem_classes="buttons")


def colour_chips(prompt: gr.Textbox, visible: bool) -> None:
    """Buttons that add a colour to the words."""
    with gr.Row(elem_classes="chips", visible=visible):
        for word in COLOURS:
            chip = gr.Button(word, size="sm", min_width=0, elem_classes=f"chip {word}")
            article = "an" if word[0] in "aeiou" else "a"
            script = ADD_COLOUR % (article, word)
            chip.click(None, prompt, prompt, js=script, api_visibility="private")
