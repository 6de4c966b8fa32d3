"""The Space: drop in a degraded photo, see it restored beside the original, and what the model thought on the way.

python app.py                                   # the embedded checkpoint, on this machine
TEXTIR_CHECKPOINT=user/name python app.py       # another one, a folder or a Hub id
"""

import spaces  # noqa: I001  first: on ZeroGPU it patches torch

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import numpy as np
import torch
from PIL import Image
from skimage import data as photos

from pipelines import MINI, TextGuidedRestorationPipeline
from pipelines.pipeline_text_guided_restoration import TASKS
from textir.degradations import degrade
from textir.images import Picture, picture_from_pil, output_name, read_picture, write_picture
from textir.restoration import restore_picture

CHECKPOINT = os.environ.get("TEXTIR_CHECKPOINT", MINI)
MAX_PIXELS = int(os.environ.get("TEXTIR_MAX_PIXELS", 16_000_000))
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

pipe = TextGuidedRestorationPipeline.from_pretrained(CHECKPOINT).to(DEVICE)
pipe.set_progress_bar_config(disable=True)
PAINTS = pipe.unet is not None  # otherwise the checkpoint restores without guidance

EXAMPLES = {  # public-domain photos that scikit-image ships, degraded by our own code
    "noise": (photos.astronaut, "noise8:35", "denoise"),
    "rain": (photos.chelsea, "rain:0.8", "derain"),
    "haze": (photos.coffee, "haze:1.4", "dehaze"),
    "low light": (photos.rocket, "lowlight:2+noise8:5", "lowlight"),
}


def gpu_seconds(picture: Picture, options: dict) -> int:
    """GPU time to ask ZeroGPU for: a base, the painting, and the restorer by its pixels."""
    megapixels = picture.pixels.shape[0] * picture.pixels.shape[1] / 1e6
    painting = 0.3 * (options["num_inference_steps"] or 0) if PAINTS else 0
    return int(10 + painting + 4 * megapixels)


@spaces.GPU(duration=gpu_seconds)
def run(picture: Picture, options: dict) -> tuple[Picture, dict]:
    """Restore on the GPU where there is one; what comes back is on the CPU and can be pickled."""
    seed = options.pop("seed")
    restored, output = restore_picture(pipe, picture, generator=torch.Generator().manual_seed(seed), **options)
    shown = {name: getattr(output, name) for name in ("guidance_images", "match_confidence", "influence")}
    shown = {name: array_of(value[0]) for name, value in shown.items() if value is not None}
    words = {"degradation": output.degradation, "nearest_tokens": output.nearest_tokens}
    return restored, {**shown, **{name: value[0] for name, value in words.items() if value is not None}}


def array_of(image: torch.Tensor) -> np.ndarray:
    """`(1 or 3, H, W)` in [0, 1] -> 8-bit `(H, W)` or `(H, W, 3)`."""
    pixels = (image.detach().float().cpu().reshape(-1, *image.shape[-2:]).clamp(0, 1) * 255).round().byte()
    return pixels.movedim(0, -1).squeeze(-1).numpy()


def restore(
    image: str,
    task: str = "auto",
    prompt: str = "",
    negative_prompt: str = "",
    guidance: str = "cleaned",
    strength: float = 1.0,
    steps: int = 0,
    seed: int = 0,
    tile: int = 0,
    progress=gr.Progress(),
) -> Iterator[tuple]:
    """Restore a degraded photo: remove noise, rain, haze, blur, darkness or compression artefacts.

    Args:
        image: the degraded photo.
        task: auto, denoise, derain, dehaze, deblur, defocus, lowlight or dejpeg.
        prompt: words that describe the clean photo.
        negative_prompt: what it should not show.
        guidance: cleaned, degraded, prompt or none.
        strength: weight of the guidance, 0 (most faithful) to 1.
        steps: denoising steps of the guidance; 0 is the checkpoint's default.
        seed: of everything random.
        tile: side in pixels of the tiles that are restored one by one; 0 chooses by free memory.

    Returns:
        the photo before and after, the restored file, the intermediates, their words and a summary.
    """
    if image is None:
        raise gr.Error("Upload a photo first, or choose an example.", title="No photo")
    progress(0.1, desc="Reading the photo")
    try:
        picture = read_picture(image, name="The photo")
        height, width = picture.pixels.shape[:2]
        if height * width > MAX_PIXELS:
            raise ValueError(
                f"The photo has {height * width / 1e6:.1f} million pixels; at most {MAX_PIXELS / 1e6:g} are taken here."
            )
        options = {
            "task": task,
            "guidance": guidance if PAINTS else "cleaned",
            "prompt": (prompt or None) if PAINTS else None,
            "negative_prompt": (negative_prompt or None) if PAINTS else None,
            "guidance_strength": strength,
            "num_inference_steps": int(steps) or None,
            "tile": int(tile) or "auto",
            "seed": int(seed),
        }
        progress(0.3, desc="Restoring")
        start = time.perf_counter()
        restored, shown = run(picture, options)
        seconds = time.perf_counter() - start
    except ValueError as error:
        raise gr.Error(str(error), title="This cannot be restored") from error

    source = Path(image)
    with tempfile.TemporaryDirectory(prefix="textir-") as folder:
        name = Path(output_name(source.with_suffix(".png"), picture))
        file = write_picture(Path(folder) / f"{source.stem}-restored{name.suffix}", restored)
        yield (
            (preview(picture), preview(restored)),
            str(file),
            gallery(shown),
            describe(shown),
            f"{width} x {height}, {picture.bits}-bit, restored in {seconds:.1f} s on {DEVICE}.",
        )


def preview(picture: Picture) -> Image.Image:
    return Image.fromarray((picture.pixels.clip(0, 1) * 255).round().astype(np.uint8))


def gallery(shown: dict) -> list[tuple[Image.Image, str]]:
    captions = {
        "guidance_images": "Guidance, painted from the words",
        "match_confidence": "Match: where guidance and photo agree (white)",
        "influence": "Influence: what guidance changed (white)",
    }
    return [(Image.fromarray(shown[name]), caption) for name, caption in captions.items() if name in shown]


def describe(shown: dict) -> str:
    """Detection and words as Markdown."""
    lines = []
    if "degradation" in shown:
        seen = sorted(shown["degradation"].items(), key=lambda item: -item[1])
        lines.append("**Detected** " + ", ".join(f"{name} {probability:.0%}" for name, probability in seen))
    for number, word in enumerate(shown.get("nearest_tokens", []), 1):
        lines.append(f"{number}. {', '.join(word['before'])} → {', '.join(word['after'])}")
    return "\n".join(lines)


def example_files() -> list[list[str]]:
    """The example photos, degraded and written to a temporary folder."""
    folder = Path(tempfile.mkdtemp(prefix="textir-examples-"))
    rows = []
    for seed, (name, (load, recipe, task)) in enumerate(EXAMPLES.items()):
        clean = picture_from_pil(Image.fromarray(load()))
        image = torch.from_numpy(clean.pixels).movedim(-1, 0)[None]
        degraded = degrade(image, recipe, torch.Generator().manual_seed(seed))[0].clamp(0, 1).movedim(0, -1).numpy()
        rows.append([str(write_picture(folder / f"{name}.png", clean.with_pixels(degraded))), task])
    return rows


class Photo(gr.Image):
    """An image input that hands over the uploaded file untouched: 16 bits, alpha and profile included, broken files too."""

    is_template = True  # shown as its parent

    def preprocess(self, payload) -> str | None:
        return None if payload is None else payload.path


THEME = gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
ABOUT = """# TextIR
Restores photographs that suffer from **noise, rain, haze, low light, blur or compression**. A photo is put into words, the degradation is
taken out of the words, a clean guidance image is painted from them, and the guidance helps to restore the photo
([Lin et al., CVPR 2024](https://arxiv.org/abs/2312.17334))."""
UNGUIDED = """*This checkpoint holds the restorer alone: one blind network for all tasks. It finds out by itself what is wrong, and restores
without guidance; a checkpoint with the whole chain also shows words, guidance and influence here.*"""

with gr.Blocks(title="TextIR", delete_cache=(3600, 3600)) as demo:
    gr.Markdown(ABOUT + ("" if PAINTS else "\n\n" + UNGUIDED))
    with gr.Row():
        with gr.Column():
            image = Photo(label="Degraded photo", type="filepath", format="png", height=360)
            info = "Chooses the adapter of that name where the checkpoint has one."
            task = gr.Dropdown(["auto", *TASKS], value="auto", label="Task", info=info)
            with gr.Row():
                start = gr.Button("Restore", variant="primary")
                stop = gr.Button("Stop")
            gr.Examples(example_files(), [image, task], example_labels=list(EXAMPLES), label="Examples")
            with gr.Accordion("Advanced", open=False):
                prompt = gr.Textbox("", label="Prompt", info="Words that describe the clean photo", visible=PAINTS)
                negative = gr.Textbox("", label="Negative prompt", info="What it should not show", visible=PAINTS)
                guidance = gr.Radio(["cleaned", "degraded", "prompt", "none"], value="cleaned", label="Guidance", visible=PAINTS)
                strength = gr.Slider(0, 1, 1, label="Strength of the guidance", info="0 is the most faithful", visible=PAINTS)
                steps = gr.Slider(0, 50, 0, step=1, label="Steps", info="0: the checkpoint's default", visible=PAINTS)
                seed = gr.Number(0, precision=0, label="Seed", visible=PAINTS)
                tile = gr.Slider(0, 1024, 0, step=64, label="Tile", info="Side in pixels; 0 chooses by free memory")
        with gr.Column():
            slider = gr.ImageSlider(label="Before and after", type="pil", format="png", interactive=False, slider_position=50)
            summary = gr.Markdown(label="Summary")
            file = gr.File(label="Restored file (same size, depth, alpha and profile)", interactive=False)
            inside = gr.Gallery(label="Inside", format="png", columns=3, object_fit="contain", interactive=False, visible=PAINTS)
            words = gr.Markdown(label="Words", visible=PAINTS)
    event = start.click(
        restore,
        [image, task, prompt, negative, guidance, strength, steps, seed, tile],
        [slider, file, inside, words, summary],
        api_name="restore",
        concurrency_limit=1,
        concurrency_id="model",
        scroll_to_output=True,
        show_progress_on=slider,
    )
    stop.click(None, cancels=[event], api_visibility="private")

demo.queue(max_size=32)

if __name__ == "__main__":
    demo.launch(theme=THEME, show_error=True, max_file_size="50mb", ssr_mode=False)
