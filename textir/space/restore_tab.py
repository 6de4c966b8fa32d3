"""The mode Restore: everything that can be set, and how the result came about."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
from gradio.components import Component

from textir.images.picture import write_picture
from textir.space.bench import Bench
from textir.space.controls import keep_buttons, seed_input, task_buttons
from textir.space.examples import SOURCES, Example
from textir.space.inputs import read_upload, restored_name
from textir.space.messages import messages
from textir.space.model import Model
from textir.space.settings import Wish
from textir.space.snippets import python_lines, shell_lines
from textir.space.view import Figure, eight_bit, explain, preview, strip, summarise
from textir.space.worker import QUEUE, Preview, Worker


class RestoreTab:
    """Restores one photo."""

    def __init__(self, worker: Worker):
        self.worker = worker
        self.model = worker.model

    def lay_out(self, photo: gr.Image, examples: list[Example]) -> None:
        """Make the inputs, but for the photo."""
        instruction = instruction_input(self.model)
        task = task_buttons(self.model)
        with gr.Row():
            self.start = gr.Button("Restore", variant="primary")
            self.stop = gr.Button("Stop")
        gr.Examples(
            [[example.degraded, example.tasks] for example in examples],
            [photo, task],
            example_labels=list(SOURCES),
            label="Examples",
        )
        with gr.Accordion("Advanced", open=False):
            painting = painting_inputs(self.model)
            tile = tile_input()
            keep = keep_buttons(self.model)
            adapter = adapter_input(self.model)
            both = both_words_input(self.model)
        self.inputs = [task, keep, *painting, tile, adapter, both, instruction]
        self.own = {task: "[]", keep: "[]", instruction: "''"}
        make_exclusive(instruction, [task, keep])

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
        return event

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

        Returns:
            the photo before and after, the restored file, what was detected, the chain as a strip
            of pictures, and the code that does the same, in Python and for the shell.
        """
        words = (task or [], keep or [], prompt, negative_prompt, guidance, strength)
        numbers = (steps, guidance_scale, seed, tile, adapter, both_words, instruction)
        yield from self.answer(image, Wish(*words, *numbers), address_of(request), progress)

    def answer(self, image: str, wish: Wish, address: str, progress) -> Iterator[tuple]:
        """Each preview, at last the result: values for all outputs."""
        with messages():
            progress(0.05, desc="Reading the photo")
            picture = read_upload(image)
            settings = wish.settings(self.model.has_painter, self.model.pipe.can_describe)
            start = time.perf_counter()
            for event in self.worker.follow(picture, settings, progress):
                if isinstance(event, Preview):
                    yield *[gr.skip()] * 3, forming(event), gr.skip(), gr.skip()
            seconds = time.perf_counter() - start
        result = event
        with tempfile.TemporaryDirectory(prefix="textir-") as folder:
            file = Path(folder) / restored_name(image, picture)
            yield (
                (preview(picture), preview(result.restored)),
                str(write_picture(file, result.restored)),
                summarise(picture, result, self.model, seconds),
                explain(picture, result, self.model),
                python_lines(settings, self.model.checkpoint),
                shell_lines(wish.arguments, address),
            )


def instruction_input(model: Model) -> gr.Textbox:
    return gr.Textbox(
        "",
        label="What should happen?",
        placeholder="take out the rain but leave the fog",
        info="In words, or by the buttons below; nothing: find out",
        max_lines=2,
        visible=bool(model.labels),
    )


def make_exclusive(instruction: gr.Textbox, buttons: list[gr.CheckboxGroup]) -> None:
    """A sentence releases the buttons, and a button that is pressed clears the sentence."""
    options = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}

    def release(text: str):
        return [[] if text.strip() else gr.skip() for _ in buttons]

    def clear(pressed: list[str]):
        return "" if pressed else gr.skip()

    instruction.change(release, instruction, buttons, **options)
    for group in buttons:
        group.change(clear, group, instruction, **options)


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
            ["cleaned", "degraded", "prompt", "none"],
            value="cleaned",
            label="Guidance",
            visible=visible,
        ),
        gr.Dropdown(
            ["auto", "1", "0.75", "0.5", "0.25", "0"],
            value="auto",
            label="Strength of the guidance",
            info=f"0: none, the faithful end; auto: {strongest}",
            allow_custom_value=True,
            visible=visible,
        ),
        gr.Slider(0, 50, 0, step=1, label="Steps", info=default, visible=visible),
        gr.Slider(0, 10, 0, label="Guidance scale", info=default, visible=visible),
        seed_input(visible=visible),
    ]


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
