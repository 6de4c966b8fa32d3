"""The tab Degrade: a clean photo is spoilt by a recipe, restored and measured."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import torch

from textir.degradations import RECIPES, Recipe, degrade
from textir.images.picture import write_picture
from textir.space.controls import photo_input, seed_input
from textir.space.examples import CLEAN_NAMES, Example
from textir.space.inputs import read_upload
from textir.space.messages import messages
from textir.space.settings import Settings, whole
from textir.space.view import preview, scores
from textir.space.worker import QUEUE, Result, Worker

CHOICES = {  # name -> recipe
    "Noise": "noise:25",
    "Noise of a camera": "camera:medium",
    "Rain": "rain:medium",
    "Heavy rain in haze": "rain:heavy+haze:0.8",
    "Haze": "haze:medium",
    "Dark": "lowlight:medium",
    "Motion blur": "blur:medium",
    "Out of focus": "defocus:medium",
    "Blocks of JPEG": "jpeg:medium",
}
LEVELS = ("light", "medium", "heavy")
NUMBERS = """| | PSNR in dB | SSIM |
|---|---|---|
| degraded | {} | {} |
| restored | {} | {} |"""


class DegradeTab:
    """Degrades one photo and restores it."""

    def __init__(self, worker: Worker):
        self.worker = worker

    def lay_out(self, examples: list[Example]) -> None:
        """Make the inputs and outputs, and join them to `degrade_and_restore`."""
        gr.Markdown("Take a clean photo, spoil it by a recipe, restore it, and see the numbers.")
        with gr.Row():
            with gr.Column():
                clean = photo_input("Clean photo", height=300)
                recipe = gr.Dropdown(
                    list(CHOICES.items()),
                    value="noise:25",
                    label="Recipe",
                    info=(
                        f"Or write your own of {', '.join(RECIPES)}, each with a level "
                        f"({', '.join(LEVELS)}) or a number, joined by +: noise8:15+haze:0.5"
                    ),
                    allow_custom_value=True,
                )
                seed = seed_input()
                with gr.Row(elem_classes="act"):
                    start = gr.Button("Degrade and restore", variant="primary")
                    stop = gr.Button("Stop")
                gr.Examples(
                    [[example.clean] for example in examples[: len(CLEAN_NAMES)]],
                    [clean],
                    example_labels=CLEAN_NAMES,
                    label="Examples",
                )
            with gr.Column():
                slider = gr.ImageSlider(
                    label="Degraded and restored", type="pil", format="png", interactive=False
                )
                numbers = gr.Markdown(label="Numbers")
                file = gr.File(label="Degraded file", interactive=False)
        event = start.click(
            self.degrade_and_restore,
            [clean, recipe, seed],
            [slider, file, numbers],
            api_name="degrade",
            **QUEUE,
        )
        stop.click(None, cancels=[event], api_visibility="private")

    def degrade_and_restore(
        self, image: str, recipe: str = "noise:25", seed: int = 0, progress=gr.Progress()
    ) -> Iterator[tuple]:
        """Degrade a clean photo by a recipe such as `rain:heavy+haze:0.8`, restore it, and measure.

        Args:
            image: a clean photo.
            recipe: what to do to it.
            seed: of everything random.

        Returns:
            the photo before and after restoration, the degraded file, and the numbers.
        """
        with messages():
            clean = read_upload(image)
            generator = torch.Generator().manual_seed(whole(seed))
            degraded = clean.with_tensor(degrade(clean.tensor(), Recipe.parse(recipe), generator))
            for event in self.worker.follow(degraded, Settings(seed=whole(seed)), progress):
                if not isinstance(event, Result):
                    yield (gr.skip(),) * 3
            restored = event.restored
            numbers = NUMBERS.format(*scores(degraded, clean), *scores(restored, clean))
        with tempfile.TemporaryDirectory(prefix="textir-") as folder:
            suffix = "png" if clean.bits <= 16 else "tif"
            file = Path(folder) / f"{Path(image).stem}-degraded.{suffix}"
            write_picture(file, degraded)
            yield (preview(degraded), preview(restored)), str(file), numbers
