"""The mode Restore: everything that can be set, and how the result came about."""

import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import gradio as gr
from gradio.components import Component

from textir.images.picture import write_picture
from textir.space.bench import QUIET, Bench
from textir.space.controls import FIND_OUT, keep_buttons, seed_input, task_buttons
from textir.space.edit_view import about
from textir.space.inputs import (
    FAST_PIXELS,
    facts_of,
    read_upload,
    reduced,
    reduced_size,
    restored_name,
)
from textir.space.messages import messages
from textir.space.model import Model
from textir.space.settings import Wish
from textir.space.snippets import python_lines, shell_lines
from textir.space.view import Figure, eight_bit, explain, page_copy, strip, summarise
from textir.space.worker import QUEUE, Preview, Result, Worker, waiting

LONG = 5.0  # seconds from which the page says beforehand how long it will take
CHOOSE_STRENGTH = """(is_auto, value) => [
    is_auto ? "auto" : String(value),
    {__type__: "update", visible: !is_auto},
]"""
UNCHANGED = "{__type__: 'update'}"
RELEASE = f"""(text) => text.trim() ? [["{FIND_OUT}"], []] : [{UNCHANGED}, {UNCHANGED}]"""
CLEAR_SENTENCE = f"""(pressed) =>
    pressed.some((name) => name !== "{FIND_OUT}") ? "" : {UNCHANGED}"""
TRY = """() => {
    setTimeout(() => document.getElementById("restore").click(), 100);
    return [["%s"]];
}"""


class RestoreTab:
    """Restores one photo."""

    def __init__(self, worker: Worker):
        self.worker = worker
        self.model = worker.model

    def lay_out(self) -> None:
        """Make the inputs, but for the photo."""
        self.line = gr.Markdown("", visible=False)
        self.size = size_input()
        self.instruction = instruction_input(self.model)
        self.task = task_buttons(self.model)
        with gr.Row(elem_classes="act"):
            self.start = gr.Button("Restore", variant="primary", elem_id="restore")
            self.stop = gr.Button("Stop")
        with gr.Accordion("Advanced", open=False):
            painting = painting_inputs(self.model)
            tile = tile_input()
            keep = keep_buttons(self.model)
            adapter = adapter_input(self.model)
            both = both_words_input(self.model)
        self.inputs = [self.task, keep, *painting, tile, adapter, both, self.instruction, self.size]
        self.own = {self.task: [FIND_OUT], keep: [], self.instruction: "", self.size: "fast"}
        make_exclusive(self.instruction, self.task, keep)

    def join(self, photo: gr.Image, bench: Bench):
        """Join inputs and outputs to `restore`; returns the event."""
        event = self.start.click(
            self.restore,
            [photo, *self.inputs],
            bench.restored,
            api_name="restore",
            scroll_to_output=True,
            show_progress_on=bench.slider,
            **QUEUE,
        )
        bench.prepare_for_restoration(self.start.click, event)
        self.stop.click(None, cancels=[event], api_visibility="private")
        photo.change(self.foresee, photo, [self.line, self.size], **QUIET)
        for task, button in bench.offers.items():
            button.click(None, None, self.task, js=TRY % task, api_visibility="private")
        return event

    def foresee(self, image: str | None) -> tuple:
        """How long a photo will take, and the choice of a reduced copy for large ones."""
        facts = facts_of(image)
        if facts is None:
            return gr.Markdown("", visible=False), gr.Radio(visible=False)
        full = (facts.height, facts.width)
        fast = reduced_size(full)
        seconds, words = self.worker.estimate(full), ""
        if fast != full:
            words = f"{facts.width} x {facts.height} is restored as {fast[1]} x {fast[0]}"
            if seconds is not None:
                words += f", {about(self.worker.estimate(fast))}. Full size: {about(seconds)}"
            words += "."
        elif seconds is not None and seconds > LONG:
            words = f"It will be there {about(seconds)}."
        return gr.Markdown(words, visible=bool(words)), gr.Radio(visible=fast != full)

    def restore(
        self,
        image: str,
        task: list[str] | None = None,
        keep: list[str] | None = None,
        prompt: str = "",
        negative_prompt: str = "",
        guidance: str = "cleaned",
        strength: str = "auto",
        steps: int = 0,
        guidance_scale: float = 0.0,
        seed: int = 0,
        tile: int = 0,
        adapter: str = "",
        both_words: bool = True,
        instruction: str = "",
        size: str = "fast",
        progress=gr.Progress(),
        request: gr.Request = None,
    ) -> Iterator[tuple]:
        """Restore a degraded photo: remove noise, rain, haze, blur, darkness or compression
        artefacts.

        Args:
            image: the degraded photo.
            task: what to remove, any of denoise, derain, dehaze, deblur, defocus, lowlight, dejpeg,
                sharpen; nothing: find out.
            keep: what must stay, any of noise, rain, haze, blur, defocus, lowlight, jpeg, downup.
            prompt: words that describe the clean photo.
            negative_prompt: what it should not show; needs a guidance scale above 1.
            guidance: cleaned, degraded, prompt or none.
            strength: weight of the guidance, 0 (most faithful) to 1; auto is 1, but 0 where the
                checkpoint's guidance is not known to help.
            steps: denoising steps of the guidance; 0 is the checkpoint's default.
            guidance_scale: classifier-free guidance; 0 is the checkpoint's default.
            seed: of everything random.
            tile: side in pixels of tiles that are restored one by one; 0 chooses by free memory.
            adapter: LoRA weights beside the checkpoint's own: a name in the checkpoint or a Hub id.
            both_words: also paint from the words as they were before cleaning, to compare.
            instruction: a sentence in place of task and keep, such as "take out the rain but leave
                the fog".
            size: fast restores a reduced copy of photos above 2 megapixels, full all of them.

        Returns:
            the photo before and after, the restored file, what was detected, the chain as a strip
            of pictures, and the code that does the same, in Python and for the shell.
        """
        words = (task or [], keep or [], prompt, negative_prompt, guidance, strength)
        numbers = (steps, guidance_scale, seed, tile, adapter, both_words, instruction, size)
        yield from self.answer(image, Wish(*words, *numbers), address_of(request), progress)

    def answer(self, image: str, wish: Wish, address: str, progress) -> Iterator[tuple]:
        """Each preview, at last the result: values for all outputs."""
        with messages():
            progress(0.05, desc="Reading the photo")
            original = read_upload(image)
            picture = original if wish.size == "full" else reduced(original)
            is_reduced = picture is not original
            settings = wish.settings(self.model.has_painter, self.model.pipe.can_describe)
            start = time.perf_counter()
            for event in self.worker.follow(picture, settings, progress):
                news = forming(event) if isinstance(event, Preview) else gr.skip()
                if not isinstance(event, Result):
                    yield *[gr.skip()] * 3, news, gr.skip(), gr.skip()
            seconds = time.perf_counter() - start
        result = event
        progress(0.98, desc="Writing the file")
        with tempfile.TemporaryDirectory(prefix="textir-", ignore_cleanup_errors=True) as folder:
            file = Path(folder) / restored_name(image, picture)
            before, after = (Path(folder) / f"{name}.jpg" for name in ("before", "after"))
            for _ in waiting(partial(write_picture, file, result.restored)):
                yield (gr.skip(),) * 6
            size = picture.pixels.shape[:2] if is_reduced else None
            yield (
                (
                    page_copy(picture, None if is_reduced else image, before),
                    page_copy(result.restored, file, after),
                ),
                str(file),
                summarise(picture, result, self.model, seconds, original if is_reduced else None),
                explain(picture, result, self.model),
                python_lines(settings, self.model.checkpoint, size),
                shell_lines(wish.arguments, address),
            )


def size_input() -> gr.Radio:
    """Whether large photos are restored whole; shown with large ones only."""
    most = f"{FAST_PIXELS / 1e6:g}"
    choices = [(f"Fast: a copy of {most} megapixels", "fast"), ("Full size", "full")]
    return gr.Radio(choices, value="fast", label="A large photo", visible=False)


def instruction_input(model: Model) -> gr.Textbox:
    return gr.Textbox(
        "",
        label="What should happen?",
        placeholder="take out the rain but leave the fog",
        info="Optional: in words, or by the buttons below",
        max_lines=2,
        visible=bool(model.labels),
    )


def make_exclusive(instruction: gr.Textbox, task: gr.CheckboxGroup, keep: gr.CheckboxGroup) -> None:
    """A sentence releases the buttons, and a button that is pressed clears the sentence."""

    options = {"trigger_mode": "multiple", "api_visibility": "private"}
    instruction.change(None, instruction, [task, keep], js=RELEASE, **options)
    for group in (task, keep):
        group.change(None, group, instruction, js=CLEAR_SENTENCE, **options)


def painting_inputs(model: Model) -> list[Component]:
    """Inputs of the painter, in the order of the API; hidden where there is none."""
    visible = model.has_painter
    heeds = visible and model.pipe.config.heeds_prompts
    strongest = "1"
    if model.guided_degradations:
        strongest = (
            f"1 where guidance is known to help (against {model.guided_degradations}), otherwise 0"
        )
    default = "0: the checkpoint's default"
    return [
        gr.Textbox("", label="Prompt", info="Words that describe the clean photo", visible=heeds),
        gr.Textbox(
            "",
            label="Negative prompt",
            info="Acts with a guidance scale above 1",
            visible=heeds,
        ),
        gr.Radio(
            ["cleaned", "degraded", *(["prompt"] if heeds else []), "none"],
            value="cleaned",
            label="Guidance is painted from",
            info="Cleaned words of the photo, its words as they are, or nothing",
            visible=visible,
        ),
        strength_input(strongest, visible),
        gr.Slider(0, 50, 0, step=1, label="Steps", info=default, visible=visible),
        gr.Slider(0, 10, 0, label="Guidance scale", info=default, visible=visible),
        seed_input(visible=visible),
    ]


def strength_input(strongest: str, visible: bool) -> gr.Textbox:
    """The strength of the guidance, as the API takes it: a box to tick, and a slider."""
    is_auto = gr.Checkbox(
        True, label="The checkpoint chooses the strength", info=f"{strongest}", visible=visible
    )
    slider = gr.Slider(
        0,
        1,
        1,
        step=0.05,
        label="Strength of the guidance",
        info="0: faithful to the photo, no guidance · 1: guided as far as it goes",
        visible=False,
    )
    strength = gr.Textbox("auto", label="Strength", visible="hidden" if visible else False)
    options = {"js": CHOOSE_STRENGTH, "api_visibility": "private"}
    for trigger in (is_auto.input, slider.input):
        trigger(None, [is_auto, slider], [strength, slider], **options)
    return strength


def tile_input() -> gr.Slider:
    info = "Side in pixels; 0 chooses by free memory"
    return gr.Slider(0, 1024, 0, step=64, label="Tile", info=info)


def adapter_input(model: Model) -> gr.Dropdown:
    info = "LoRA weights that act beside the checkpoint's own: a Hub id"
    if model.adapters:
        info += ", or one it carries"
    choices = ["", *model.adapters]
    return gr.Dropdown(choices, value="", label="Adapter", info=info, allow_custom_value=True)


def both_words_input(model: Model) -> gr.Checkbox:
    label = "Also paint from the words before cleaning"
    return gr.Checkbox(True, label=label, visible=model.has_painter)


def forming(event: Preview) -> str:
    """The guidance while it is painted, as HTML."""
    figure = Figure(eight_bit(event.pixels), "Guidance, forming", "One step after the other.")
    return strip([figure])


def address_of(request: gr.Request | None) -> str:
    """Where the page answers, as whoever asked calls it."""
    if request is None:
        return "http://127.0.0.1:7860"
    return str(request.request.base_url).rstrip("/")
