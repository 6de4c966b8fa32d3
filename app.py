"""The Space: drop in a degraded photo, see it restored beside the original, and what the model
thought on the way.

python app.py                                   # the embedded checkpoint, on this machine
TEXTIR_CHECKPOINT=user/name python app.py       # another one, a folder or a Hub id
"""

import spaces  # noqa: I001  first: on ZeroGPU it patches torch

import base64
import html
import importlib.util
import io
import json
import os
import queue
import re
import shlex
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import numpy as np
import torch
from PIL import Image
from skimage import data as photos

from pipelines import MINI, load
from pipelines.loading import carried_adapters, find_adapters, load_adapter
from pipelines.pipeline_text_guided_restoration import TASKS
from textir.degradations import RECIPES, degrade
from textir.images.picture import (
    Picture,
    output_name,
    picture_from_pil,
    read_picture,
    write_picture,
)
from textir.evaluation.metrics import psnr, ssim
from textir.images.explanation import HARDLY
from textir.images.restoration import STAGES, restore_picture, stage_clock

CHECKPOINT = os.environ.get("TEXTIR_CHECKPOINT", MINI)
MAX_PIXELS = int(os.environ.get("TEXTIR_MAX_PIXELS", 16_000_000))
MAX_FILES = 20
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

pipe = load(CHECKPOINT, device=DEVICE)
pipe.set_progress_bar_config(disable=True)
PAINTS = pipe.unet is not None  # otherwise the checkpoint restores without guidance
CARRIED = carried_adapters(CHECKPOINT)
CAN_REMOVE = [task for task, label in TASKS.items() if label in pipe.can_remove]

EXAMPLES = {  # public-domain photos that scikit-image ships, degraded by our own code
    "noise": (photos.astronaut, "noise8:35", "denoise"),
    "rain": (photos.chelsea, "rain:0.8", "derain"),
    "haze": (photos.coffee, "haze:1.4", "dehaze"),
    "low light": (photos.rocket, "lowlight:2+noise8:5", "lowlight"),
    "motion blur": (photos.astronaut, "blur:11", "deblur"),
    "out of focus": (photos.chelsea, "defocus:4", "defocus"),
    "JPEG": (photos.coffee, "jpeg:12", "dejpeg"),
    "enlarged": (photos.astronaut, "downup:2.5", "sharpen"),
}


# ---- the model at work


class Stopped(Exception):
    """The user has pressed Stop."""


def gpu_seconds(picture: Picture, options: dict) -> int:
    """GPU time to ask ZeroGPU for: a base, the painting (twice where both words are painted), and
    the restorer by its pixels.

    On an H200 the embedded checkpoint takes 0.08 s for 512 x 512 pixels, and Stable Diffusion 2.1
    with 8 steps 0.6 s for 1536 x 1024.
    """
    megapixels = picture.pixels.shape[0] * picture.pixels.shape[1] / 1e6
    steps = options.get("num_inference_steps") or pipe.config.default_num_inference_steps
    painting = 0.1 * steps * (2 if options.get("both_words") else 1) if PAINTS else 0
    return int(min(10 + painting + 2 * megapixels, 120))


@spaces.GPU(duration=gpu_seconds)
def run(picture: Picture, options: dict) -> Iterator[tuple[str, object]]:
    """Restore, on the GPU where there is one, and tell what happens: `("stage", name)`, `("step",
    preview)`, at last `("done", (picture, shown))`. What is told is on the CPU and can be pickled;
    closing the iterator stops the work."""
    events, stop = queue.SimpleQueue(), threading.Event()

    def on_block() -> None:
        if stop.is_set():
            raise Stopped

    def on_stage(stage: str) -> None:
        on_block()
        events.put(("stage", stage))

    def on_step(_, step: int, timestep, tensors: dict) -> dict:
        on_stage("unet")
        if options.get("num_inference_steps") != 1:
            events.put(("step", array_of(pipe.decode_latents(tensors["latents"])[0])))
        return {}

    def work() -> None:
        try:
            events.put(
                ("done", restore_and_show(picture, dict(options), on_stage, on_block, on_step))
            )
        except Exception as error:
            events.put(("failed", error))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        while True:
            kind, value = events.get()
            if kind == "failed":
                raise value
            yield kind, value
            if kind == "done":
                return
    finally:
        stop.set()
        thread.join()


def restore_and_show(
    picture: Picture, options: dict, on_stage, on_block, on_step
) -> tuple[Picture, dict]:
    """Restore a picture; the second result is everything that explains it, ready to be drawn."""
    seed, both, reference = (
        options.pop("seed", 0),
        options.pop("both_words", False),
        options.pop("reference", None),
    )
    if reference is not None:
        options["guidance_image"] = reference.tensor()
    with stage_clock(pipe, on_stage, on_block) as seconds:
        generator = torch.Generator().manual_seed(seed)
        restored, output = restore_picture(
            pipe, picture, generator=generator, callback_on_step_end=on_step, **options
        )
        shown = {
            name: getattr(output, name)
            for name in ("guidance_images", "match_confidence", "influence")
        }
        shown = {name: array_of(value[0]) for name, value in shown.items() if value is not None}
        if both and output.guidance == "cleaned":
            shown["degraded_guidance"] = array_of(paint_degraded(picture, options, seed))
    told = ("removed", "change", "degradation", "severity", "nearest_tokens", "guidance_strength")
    words = {name: getattr(output, name) for name in told}
    shown |= {
        name: value[0]
        for name, value in words.items()
        if value is not None and value[0] is not None
    }
    return restored, {**shown, "guidance": output.guidance, "seconds": seconds}


def paint_degraded(picture: Picture, options: dict, seed: int) -> torch.Tensor:
    """The guidance that the words would have given if they had not been cleaned, `(3, h, w)`."""
    names = ("prompt", "negative_prompt", "num_inference_steps", "guidance_scale")
    chosen = {name: options[name] for name in names if name in options}
    generator = torch.Generator().manual_seed(seed)
    return pipe.guide(picture.tensor(), "degraded", generator=generator, **chosen).images[0]


def array_of(image: torch.Tensor) -> np.ndarray:
    """`(1 or 3, H, W)` in [0, 1] -> 8-bit `(H, W)` or `(H, W, 3)`."""
    pixels = (
        (image.detach().float().cpu().reshape(-1, *image.shape[-2:]).clamp(0, 1) * 255)
        .round()
        .byte()
    )
    return pixels.movedim(0, -1).squeeze(-1).numpy()


class with_adapter:
    """Within the block an adapter that was asked for is loaded and acts; afterwards it is gone
    again."""

    def __init__(self, name: str):
        self.name = (name or "").strip()

    def __enter__(self) -> None:
        if not self.name:
            return
        if self.name not in CARRIED and not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", self.name):
            known = f"one of {', '.join(CARRIED)} or " if CARRIED else ""
            raise ValueError(
                f"The adapter must be {known}a Hub id of the form user/name, got {self.name!r}."
            )
        (source,) = find_adapters(CHECKPOINT, self.name).values()
        load_adapter(pipe, source, "visitor")

    def __exit__(self, *_) -> None:
        if self.name:
            pipe.unload_lora_weights()


def follow(
    picture: Picture, options: dict, progress: gr.Progress, start: float = 0.1, end: float = 1.0
):
    """Run to the end, moving the bar from stage to stage; returns what `restore_and_show` does."""
    for kind, value in run(picture, options):
        if kind == "stage":
            progress(
                start + (end - start) * (list(STAGES).index(value) + 1) / (len(STAGES) + 1),
                desc=STAGES[value].capitalize(),
            )
        elif kind == "done":
            return value
    raise gr.Error("The work ended without a result.")


# ---- one function for each tab


def restore(
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
    progress=gr.Progress(),
    request: gr.Request = None,
) -> Iterator[tuple]:
    """Restore a degraded photo: remove noise, rain, haze, blur, darkness or compression artefacts.

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
        tile: side in pixels of the tiles that are restored one by one; 0 chooses by free memory.
        adapter: LoRA weights that act beside the checkpoint's own: a name in the checkpoint or a
            Hub id.
        both_words: also paint from the words as they were before cleaning, to compare.

    Returns:
        the photo before and after, the restored file, what was detected, the chain as a strip of
        pictures, and the code that does the same, in Python and for the shell.
    """
    with messages():
        progress(0.05, desc="Reading the photo")
        picture = read_upload(image)
        options = {
            "task": joined(task) or "auto",
            "keep": joined(keep),
            "tile": int(tile) or "auto",
        }
        options |= {"seed": whole(seed), "guidance_strength": weight(strength)}
        if PAINTS:
            options |= {
                "guidance": guidance,
                "prompt": prompt or None,
                "negative_prompt": negative_prompt or None,
            }
            options |= {
                "num_inference_steps": int(steps) or None,
                "guidance_scale": guidance_scale or None,
                "both_words": both_words,
            }
        arguments = [
            task or [],
            keep or [],
            prompt,
            negative_prompt,
            guidance,
            strength,
            steps,
            guidance_scale,
            seed,
            tile,
        ]
        arguments += [adapter, both_words]
        address = (
            str(request.request.base_url).rstrip("/")
            if request is not None
            else "http://127.0.0.1:7860"
        )
        start = time.perf_counter()
        with with_adapter(adapter):
            for kind, value in run(picture, options):
                if kind == "stage":
                    share = (list(STAGES).index(value) + 1) / (len(STAGES) + 1)
                    progress(share, desc=STAGES[value].capitalize())
                elif kind == "step":
                    preview_strip = strip(
                        [(value, "Guidance, forming", "One step after the other.")]
                    )
                    yield *[gr.skip()] * 3, preview_strip, gr.skip(), gr.skip()
        restored, shown = value
        seconds = time.perf_counter() - start

    with tempfile.TemporaryDirectory(prefix="textir-") as folder:
        file = save_as(picture, restored, image, folder)
        yield (
            (preview(picture), preview(restored)),
            str(file),
            summarise(picture, shown, seconds),
            explain(picture, restored, shown),
            python_for(options, adapter),
            shell_for(arguments, address),
        )


def compare(
    image: str,
    reference: str | None = None,
    truth: str | None = None,
    prompt: str = "",
    seed: int = 0,
    progress=gr.Progress(),
) -> tuple:
    """Restore the same photo with every kind of guidance, side by side.

    Args:
        image: the degraded photo.
        reference: a photo of the same scene that guides instead of a painted one.
        truth: the clean photo, of the same size; then PSNR and SSIM are measured.
        prompt: words; adds guidance painted from them alone.
        seed: of everything random.

    Returns:
        the pictures with their captions, and a table.
    """
    with messages():
        picture = read_upload(image)
        clean = read_upload(truth) if truth else None
        if clean is not None and clean.pixels.shape != picture.pixels.shape:
            sizes = " and ".join(
                f"{p.pixels.shape[1]} x {p.pixels.shape[0]}" for p in (picture, clean)
            )
            raise ValueError(f"Photo and ground truth must have one size, they have {sizes}.")
        ways = {"none": {"guidance": "none"}}
        if PAINTS:
            ways |= {
                "degraded words": {"guidance": "degraded"},
                "cleaned words": {"guidance": "cleaned", "guidance_strength": 1.0},
            }
        if prompt and PAINTS:
            ways["prompt only"] = {"guidance": "prompt", "prompt": prompt}
        if reference:
            if pipe.matcher is None:
                raise ValueError("This checkpoint takes no reference: it has no matcher.")
            ways["reference"] = {"guidance": "none", "reference": read_upload(reference)}
        rows, pictures = [], [(preview(picture), "degraded")]
        for number, (name, options) in enumerate(ways.items()):
            share = (number / len(ways), (number + 1) / len(ways))
            restored, shown = follow(
                picture, {"seed": whole(seed), "tile": "auto", **options}, progress, *share
            )
            rows.append([name, *scores(restored, clean), f"{sum(shown['seconds'].values()):.2f}"])
            pictures.append((preview(restored), f"guidance: {name}"))
        if clean is not None:
            rows.insert(0, ["(degraded)", *scores(picture, clean), ""])
            pictures.append((preview(clean), "ground truth"))
    return pictures, rows


def degrade_and_restore(
    image: str, recipe: str = "noise:25", seed: int = 0, progress=gr.Progress()
) -> tuple:
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
        degraded = clean.with_tensor(
            degrade(clean.tensor(), recipe, torch.Generator().manual_seed(whole(seed)))
        )
        restored, _ = follow(degraded, {"seed": whole(seed), "tile": "auto"}, progress)
        before, after = scores(degraded, clean), scores(restored, clean)
    with tempfile.TemporaryDirectory(prefix="textir-") as folder:
        name = f"{Path(image).stem}-degraded.png"
        file = write_picture(
            Path(folder) / (name if clean.bits <= 16 else name[:-3] + "tif"), degraded
        )
        numbers = (
            f"| | PSNR in dB | SSIM |\n|---|---|---|\n| degraded | {before[0]} | "
            f"{before[1]} |\n| restored | {after[0]} | {after[1]} |"
        )
        yield (preview(degraded), preview(restored)), str(file), numbers


def restore_batch(
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
        if not files:
            raise ValueError("Upload some photos first.")
        if len(files) > MAX_FILES:
            raise ValueError(
                f"{len(files)} files were sent; at most {MAX_FILES} are taken at a time."
            )
        options = {
            "task": joined(task) or "auto",
            "keep": joined(keep),
            "tile": "auto",
            "seed": whole(seed),
        }
    with tempfile.TemporaryDirectory(prefix="textir-") as folder:
        archive, rows, names = Path(folder) / "restored.zip", [], set()
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as bundle:
            for number, path in enumerate(files):
                row = [Path(path).name, "", "", "", ""]
                try:
                    start, picture = time.perf_counter(), read_upload(path)
                    span = (number / len(files), (number + 1) / len(files))
                    restored, shown = follow(picture, options, progress, *span)
                    file = save_as(picture, restored, path, folder)
                    name = next(
                        n
                        for k in range(len(names) + 1)
                        if (n := f"{file.stem}{f'-{k}' if k else ''}{file.suffix}") not in names
                    )
                    bundle.write(file, name)
                    names.add(name)
                    size = f"{picture.pixels.shape[1]} x {picture.pixels.shape[0]}"
                    row[1:] = [size, f"{time.perf_counter() - start:.1f}", found(shown), name]
                except (ValueError, RuntimeError, MemoryError) as error:
                    row[4] = f"not restored: {error}"
                rows.append(row)
        yield (str(archive) if names else None), rows


# ---- reading and drawing


class messages:
    """Within the block, errors that a user can mend become messages."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind, error, trace) -> None:
        if isinstance(error, ValueError):
            raise gr.Error(str(error), title="This cannot be done") from None
        if isinstance(error, MemoryError | torch.OutOfMemoryError):
            raise gr.Error(
                "There is not enough memory for this photo; set a tile of 512 under Advanced.",
                title="Too large",
            ) from None


def whole(seed: float | None) -> int:
    """A seed that a generator takes, or what is wrong with it."""
    if seed is None or not 0 <= seed < 2**63 or int(seed) != seed:
        raise ValueError("The seed must be a whole number from 0 to 2^63 - 1.")
    return int(seed)


def joined(names: list[str] | None) -> str | None:
    """Pressed buttons as the text that Python and the command line take."""
    return "+".join(names) if names else None


def weight(strength: str | float) -> float | None:
    """The weight of the guidance that a user chose, `None` for the checkpoint's own choice."""
    if strength == "auto":
        return None
    try:
        return float(strength)
    except ValueError:
        raise ValueError(
            f"The strength must be auto or a number from 0 to 1, got {strength!r}."
        ) from None


def read_upload(path: str | None) -> Picture:
    """Read an uploaded file, or say why not."""
    if path is None:
        raise ValueError("Upload a photo first, or choose an example.")
    picture = read_picture(path, name="The photo")
    height, width = picture.pixels.shape[:2]
    if height * width > MAX_PIXELS:
        raise ValueError(
            f"The photo has {height * width / 1e6:.1f} million pixels; at most "
            f"{MAX_PIXELS / 1e6:g} are taken here."
        )
    return picture


def save_as(picture: Picture, restored: Picture, source: str, folder: str) -> Path:
    """Write a restored picture under the name of its source, as PNG (TIFF for floating point)."""
    name = Path(output_name(Path(source).with_suffix(".png"), picture))
    return write_picture(Path(folder) / f"{Path(source).stem}-restored{name.suffix}", restored)


def preview(picture: Picture) -> Image.Image:
    return Image.fromarray((picture.pixels.clip(0, 1) * 255).round().astype(np.uint8))


def scores(picture: Picture, clean: Picture | None) -> tuple[str, str]:
    if clean is None:
        return "", ""
    return f"{psnr(picture.pixels, clean.pixels):.2f}", f"{ssim(picture.pixels, clean.pixels):.4f}"


def detected(shown: dict) -> str:
    seen = sorted(shown.get("degradation", {}).items(), key=lambda item: -item[1])
    return (
        ", ".join(f"{name} {probability:.0%}" for name, probability in seen if probability > 0.05)
        or ""
    )


def summarise(picture: Picture, shown: dict, seconds: float) -> str:
    """What was detected, how it was guided, and how long each stage took, as Markdown."""
    height, width = picture.pixels.shape[:2]
    lines = [f"{width} x {height}, {picture.bits}-bit, restored in {seconds:.1f} s on {DEVICE}."]
    if shown.get("change", HARDLY) < HARDLY:
        way = " Press above what shall go." if CAN_REMOVE else ""
        lines.append(f"**Hardly changed:** by {shown['change']:.1f} of 255 on average.{way}")
    if CAN_REMOVE:
        told = shown.get("removed")
        lines.append(
            f"**Told to remove:** {', '.join(told) or 'nothing'}"
            if told is not None
            else "**Found out by itself** what to remove"
        )
    if "degradation" in shown:
        lines.append(f"**Detected:** {detected(shown) or 'nothing'}")
    kinds = {
        "none": "none",
        "cleaned": "painted from cleaned words",
        "degraded": "painted from the words as they were",
    }
    lines.append(
        "**Guidance:** "
        f"{kinds.get(shown['guidance'], shown['guidance'])}{'' if is_used(shown) else f', {UNUSED}'}"
    )
    taken = [
        (STAGES[stage], shown["seconds"][stage]) for stage in STAGES if stage in shown["seconds"]
    ]
    lines.append("**Time:** " + " · ".join(f"{name} {value:.2f} s" for name, value in taken))
    return "\n\n".join(lines)


def found(shown: dict) -> str:
    """What was removed or detected, and whether anything came of it, in a cell of a table."""
    told = (
        f"told to remove {', '.join(shown['removed']) or 'nothing'}; "
        if shown.get("removed") is not None
        else ""
    )
    change = (
        f"; hardly changed ({shown['change']:.1f} of 255)"
        if shown.get("change", HARDLY) < HARDLY
        else ""
    )
    return f"{told}{detected(shown) or 'nothing'} detected{change}"


def is_used(shown: dict) -> bool:
    """Whether the restorer took the guidance, if there is one."""
    return shown.get("guidance_strength") != 0


FIGURE = (384, 384)  # the most that a picture of the strip measures, in pixels


def explain(picture: Picture, restored: Picture, shown: dict) -> str:
    """The chain as a strip of pictures that can be read without the paper, and a table of the
    words."""
    photo = preview(picture)
    photo.thumbnail(FIGURE, Image.LANCZOS)
    figures = [(np.asarray(photo), "1. The degraded photo", "What you sent.")]
    if "degraded_guidance" in shown:
        sentence = "What its words paint as they are: the degradation is in them."
        figures.append(
            (stretch(shown["degraded_guidance"], photo.size), "2. Painted from its words", sentence)
        )
    if "guidance_images" in shown:
        sentence = (
            "What they paint once the degradation is taken out: colours and light of a "
            "clean photo, not its details."
        )
        sentence += "" if is_used(shown) else f" It was {UNUSED}."
        figures.append(
            (
                stretch(shown["guidance_images"], photo.size),
                "3. Guidance, from cleaned words",
                sentence,
            )
        )
    if "match_confidence" in shown:
        sentence = (
            "Where guidance and photo show the same thing (white); elsewhere guidance is "
            "not trusted."
        )
        figures.append((shown["match_confidence"], "4. Match", sentence))
    if "influence" in shown:
        strongest = max(int(shown["influence"].max()), 1)
        sentence = (
            "What guidance changed in the result, brightened: white is "
            f"{strongest / 255:.1%} of the range."
        )
        figures.append(
            (
                (shown["influence"].astype(float) * 255 / strongest).astype(np.uint8),
                "5. Influence",
                sentence,
            )
        )
    figures.append(
        (
            np.asarray(preview(restored)),
            f"{len(figures) + 1}. Restored",
            "The same size, depth, alpha and profile as yours.",
        )
    )
    return strip(figures) + word_table(shown.get("nearest_tokens", []))


def stretch(guidance: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A guidance in the shape of the photo of `size` (width, height), as the restorer gets it."""
    return np.asarray(Image.fromarray(guidance).resize(size, Image.BICUBIC))


def strip(figures: list[tuple[np.ndarray, str, str]]) -> str:
    """Pictures with title and sentence, as HTML that wraps on narrow screens."""
    cells = []
    for array, title, sentence in figures:
        picture = Image.fromarray(array)
        picture.thumbnail(FIGURE, Image.LANCZOS)
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        source = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
        cells.append(
            f'<figure><img src="{source}" alt="{html.escape(title)}"><figcaption><b>{html.escape(title)}</b><br>'
            f"{html.escape(sentence)}</figcaption></figure>"
        )
    return f'<div class="strip">{"".join(cells)}</div>'


def word_table(words: list[dict]) -> str:
    """The nearest vocabulary tokens of each pseudo-word before and after cleaning; what cleaning
    changed is marked."""
    if not words:
        return ""
    rows = []
    for number, word in enumerate(words, 1):
        after = ", ".join(
            html.escape(token) if token in word["before"] else f"<mark>{html.escape(token)}</mark>"
            for token in word["after"]
        )
        rows.append(
            f"<tr><td>{number}</td><td>{html.escape(', '.join(word['before']))}</td><td>{after}</td></tr>"
        )
    head = (
        "<tr><th>word</th><th>nearest tokens as they are</th><th>after cleaning (changes "
        "marked)</th></tr>"
    )
    note = (
        "The photo was put into these pseudo-words; each is shown by the vocabulary tokens "
        "nearest to it."
    )
    return f'<p>{note}</p><div class="words"><table>{head}{"".join(rows)}</table></div>'


def python_for(options: dict, adapter: str = "") -> str:
    """The Python lines that do what was just done."""
    defaults = {"task": "auto", "guidance": "cleaned", "tile": "auto"}
    apart = ("seed", "both_words")
    chosen = {
        k: v
        for k, v in options.items()
        if v is not None and defaults.get(k) != v and k not in apart
    }
    arguments = [
        'Image.open("photo.png")',
        *(f"{name}={value!r}" for name, value in chosen.items()),
    ]
    if options["seed"]:
        arguments.append(f"generator=torch.Generator().manual_seed({options['seed']})")
    loading = [
        repr("mini" if CHECKPOINT == MINI else CHECKPOINT),
        *([f"adapter={adapter.strip()!r}"] if adapter.strip() else []),
    ]
    lines = ["import torch"] if options["seed"] else []
    lines += [
        "from PIL import Image",
        "from pipelines import load",
        "",
        f"pipe = load({', '.join(loading)})",
    ]
    return "\n".join([*lines, f"restored = pipe({', '.join(arguments)}).images[0]"])


def shell_for(arguments: list, address: str) -> str:
    """The same through the API of this page: with `gradio_client`, and with curl alone."""
    call = (
        f"Client({address!r}).predict(handle_file('photo.png'), {repr(arguments)[1:-1]}, "
        "api_name='/restore')"
    )
    return f"""pip install gradio_client
python - <<'END'
from gradio_client import Client, handle_file
before_after, restored_file, *_ = {call}
print(restored_file)
END

FILE=$(curl -s -F files=@photo.png {address}/gradio_api/upload | tr -d '[]"')
OPTIONS={shlex.quote(json.dumps(arguments)[1:-1])}
EVENT=$(curl -s {address}/gradio_api/call/restore -H 'Content-Type: application/json' \\
  -d '{{"data": [{{"path": "'"$FILE"'", "meta": {{"_type": "gradio.FileData"}}}}, '"$OPTIONS"']}}' | cut -d'"' -f4)
curl -sN {address}/gradio_api/call/restore/$EVENT"""


def example_files() -> list[list[str]]:
    """The example photos, degraded and clean, in a temporary folder: `[degraded, tasks, clean]` for
    each."""
    folder = Path(tempfile.mkdtemp(prefix="textir-examples-"))
    rows = []
    for seed, (name, (source, recipe, task)) in enumerate(EXAMPLES.items()):
        clean = picture_from_pil(Image.fromarray(source()))
        degraded = clean.with_tensor(
            degrade(clean.tensor(), recipe, torch.Generator().manual_seed(seed))
        )
        files = (
            write_picture(folder / f"{name}.png", degraded),
            write_picture(folder / f"{name}-clean.png", clean),
        )
        rows.append([str(files[0]), [task] if task in CAN_REMOVE else [], str(files[1])])
    return rows


# ---- the page


class Photo(gr.Image):
    """An image input that hands over the uploaded file untouched: 16 bits, alpha and profile
    included, broken files too."""

    is_template = True  # shown as its parent

    def preprocess(self, payload) -> str | None:
        return None if payload is None else payload.path


def photo_input(label: str, height: int, visible: bool = True) -> Photo:
    sources = ["upload", "clipboard", "webcam"]
    return Photo(
        label=label, type="filepath", format="png", sources=sources, height=height, visible=visible
    )


class Buttons(gr.CheckboxGroup):
    """Names to press, several at once; who calls the API may also write them as the command line
    takes them: `denoise+dehaze`, `auto`."""

    is_template = True  # shown as its parent

    def preprocess(self, payload: list[str] | str | None) -> list[str]:
        names = payload.split("+") if isinstance(payload, str) else payload or []
        return super().preprocess(
            [name.strip() for name in names if name.strip() not in ("", "auto")]
        )


def task_buttons() -> Buttons:
    info = (
        "Several may be pressed; none: find out by itself."
        if CAN_REMOVE
        else "This checkpoint finds out by itself."
    )
    return Buttons(
        CAN_REMOVE, label="Remove", info=info, elem_classes="buttons", visible=bool(CAN_REMOVE)
    )


def keep_buttons() -> Buttons:
    info = "What must stay, such as haze in a picture of morning mist."
    return Buttons(
        list(pipe.can_remove),
        label="Keep",
        info=info,
        elem_classes="buttons",
        visible=bool(pipe.can_remove),
    )


THEME = gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
CSS = """
.strip { display: flex; flex-wrap: wrap; gap: 12px; }
.strip figure { flex: 1 1 180px; max-width: 384px; margin: 0; }
.strip img { width: 100%; border-radius: 6px; outline: 1px solid rgb(128 128 128 / 0.3); }
.strip figcaption { font-size: 0.85em; line-height: 1.35; padding-top: 4px; }
.buttons input { display: none; }
.buttons label:has(input:checked) { background: var(--button-primary-background-fill); color: var(--button-primary-text-color); }
.words { overflow-x: auto; }
.words table { border-collapse: collapse; font-size: 0.9em; }
.words td, .words th { padding: 2px 10px; text-align: left; }
"""
ABOUT = """# TextIR
Restores photographs that suffer from **noise, rain, haze, low light, blur or compression**. A photo is put into words, the degradation is
taken out of the words, a clean guidance image is painted from them, and the guidance helps to restore the photo
([Lin et al., CVPR 2024](https://arxiv.org/abs/2312.17334))."""
UNGUIDED = """*This checkpoint holds the restorer alone: one blind network for all tasks. It finds out by itself what is wrong, and restores
without guidance; a checkpoint with the whole chain also shows words, guidance and influence here.*"""
HELPED = " and ".join(pipe.config.guided_degradations or ())
AUTO_STRENGTH = (
    f"1 where guidance is known to help (against {HELPED}), otherwise 0" if HELPED else "1"
)
UNUSED = f"not used (auto takes it only against {HELPED})" if HELPED else "not used"
HAS_MCP = importlib.util.find_spec("mcp") is not None
MCP = (
    "clients find the same functions at `ADDRESS/gradio_api/mcp/`."
    if HAS_MCP
    else "needs `pip install gradio[mcp]` where this runs."
)
ELSEWHERE = f"""### On the command line
```bash
python -m textir restore photo.png --output restored
```
### In Python and over HTTP
After a restoration, "The same elsewhere" on the first tab holds the lines that do just that again. The endpoints are `/restore`, `/compare`,
`/degrade` and `/batch`; "Use via API" at the foot of this page describes them. MCP {MCP}
"""
FINE_TUNE = """### Fine-tune and publish
Ten photos of your own are enough to teach the embedded checkpoint something new, on a laptop, in two minutes:
```bash
python -m train_lora.train_restorer --pretrained_model_name_or_path mini --train_data_dir photos --degradations defocus:2..4 \\
    --rank 16 --learning_rate 2e-3 --lr_warmup_steps 20 --loss psnr --resolution 96 --max_train_steps 200 --output_dir runs/sharpen
python -m textir restore photo.png --adapter runs/sharpen/adapter --output restored
python -m textir push runs/sharpen/adapter user/sharpen
```
The name on the Hub then works here too, under Advanced, as adapter.
"""
MODEL = {"concurrency_limit": 1, "concurrency_id": "model"}

SHOWN = example_files()

with gr.Blocks(title="TextIR", delete_cache=(3600, 3600)) as demo:
    gr.Markdown(ABOUT + ("" if PAINTS else "\n\n" + UNGUIDED))
    with gr.Tab("Restore"):
        with gr.Row():
            with gr.Column():
                image = photo_input("Degraded photo", height=360)
                task = task_buttons()
                with gr.Row():
                    start = gr.Button("Restore", variant="primary")
                    stop = gr.Button("Stop")
                gr.Examples(
                    [row[:2] for row in SHOWN],
                    [image, task],
                    example_labels=list(EXAMPLES),
                    label="Examples",
                )
                with gr.Accordion("Advanced", open=False):
                    prompt = gr.Textbox(
                        "",
                        label="Prompt",
                        info="Words that describe the clean photo",
                        visible=PAINTS,
                    )
                    negative = gr.Textbox(
                        "",
                        label="Negative prompt",
                        info="Acts with a guidance scale above 1",
                        visible=PAINTS,
                    )
                    guidance = gr.Radio(
                        ["cleaned", "degraded", "prompt", "none"],
                        value="cleaned",
                        label="Guidance",
                        visible=PAINTS,
                    )
                    strength = gr.Dropdown(
                        ["auto", "1", "0.75", "0.5", "0.25", "0"],
                        value="auto",
                        label="Strength of the guidance",
                        info=f"0: none, the faithful end; auto: {AUTO_STRENGTH}",
                        allow_custom_value=True,
                        visible=PAINTS,
                    )
                    steps = gr.Slider(
                        0,
                        50,
                        0,
                        step=1,
                        label="Steps",
                        info="0: the checkpoint's default",
                        visible=PAINTS,
                    )
                    scale = gr.Slider(
                        0,
                        10,
                        0,
                        label="Guidance scale",
                        info="0: the checkpoint's default",
                        visible=PAINTS,
                    )
                    seed = gr.Number(0, precision=0, label="Seed", visible=PAINTS)
                    tile = gr.Slider(
                        0,
                        1024,
                        0,
                        step=64,
                        label="Tile",
                        info="Side in pixels; 0 chooses by free memory",
                    )
                    keep = keep_buttons()
                    choices = ["", *CARRIED]
                    note = "LoRA weights that act beside the checkpoint's own: a Hub id" + (
                        ", or one it carries" if CARRIED else ""
                    )
                    adapter = gr.Dropdown(
                        choices, value="", label="Adapter", info=note, allow_custom_value=True
                    )
                    both = gr.Checkbox(
                        True, label="Also paint from the words before cleaning", visible=PAINTS
                    )
            with gr.Column():
                slider = gr.ImageSlider(
                    label="Before and after",
                    type="pil",
                    format="png",
                    interactive=False,
                    slider_position=50,
                )
                summary = gr.Markdown(label="Summary")
                file = gr.File(
                    label="Restored file (same size, depth, alpha and profile)", interactive=False
                )
        with gr.Accordion("Inside: how it came about", open=True):
            inside = gr.HTML(label="Inside")
        with gr.Accordion("The same elsewhere", open=False):
            code = gr.Code(language="python", interactive=False, label="Python")
            shell = gr.Code(language="shell", interactive=False, label="gradio_client and curl")
    with gr.Tab("Compare"):
        gr.Markdown("The same photo with every kind of guidance; with the ground truth, measured.")
        with gr.Row():
            compare_image = photo_input("Degraded photo", height=240)
            reference = photo_input(
                "Reference of the same scene (optional)",
                height=240,
                visible=pipe.matcher is not None,
            )
            truth = photo_input("Ground truth (optional)", height=240)
        gr.Examples(
            [[row[0], row[2]] for row in SHOWN],
            [compare_image, truth],
            example_labels=list(EXAMPLES),
            label="Examples",
        )
        with gr.Row():
            compare_prompt = gr.Textbox("", label="Prompt (optional)", visible=PAINTS)
            compare_seed = gr.Number(0, precision=0, label="Seed", visible=PAINTS)
            compare_start = gr.Button("Compare", variant="primary")
        pictures = gr.Gallery(
            label="Side by side", format="png", columns=3, object_fit="contain", interactive=False
        )
        table = gr.Dataframe(
            headers=["guidance", "PSNR in dB", "SSIM", "seconds"], interactive=False, wrap=True
        )
    with gr.Tab("Degrade"):
        gr.Markdown("Take a clean photo, spoil it by a recipe, restore it, and see the numbers.")
        with gr.Row():
            with gr.Column():
                clean = photo_input("Clean photo", height=300)
                recipes = [
                    f"{name}:{level}" for name in RECIPES for level in ("light", "medium", "heavy")
                ]
                recipe = gr.Dropdown(
                    ["rain:heavy+haze:0.8", *recipes],
                    value="noise:25",
                    label="Recipe",
                    info="Several are joined by +",
                    allow_custom_value=True,
                )
                degrade_seed = gr.Number(0, precision=0, label="Seed")
                degrade_start = gr.Button("Degrade and restore", variant="primary")
                names = ["astronaut", "cat", "coffee", "rocket"]
                gr.Examples(
                    [[row[2]] for row in SHOWN[:4]], [clean], example_labels=names, label="Examples"
                )
            with gr.Column():
                degrade_slider = gr.ImageSlider(
                    label="Degraded and restored", type="pil", format="png", interactive=False
                )
                numbers = gr.Markdown(label="Numbers")
                degraded_file = gr.File(label="Degraded file", interactive=False)
    with gr.Tab("Batch"):
        gr.Markdown(f"Up to {MAX_FILES} photos; a bad one does not stop the others.")
        files = gr.File(label="Photos", file_count="multiple")
        batch_task = task_buttons()
        batch_keep = keep_buttons()
        batch_start = gr.Button("Restore all", variant="primary")
        archive = gr.File(label="Restored photos (zip of PNG files)", interactive=False)
        done = gr.Dataframe(
            headers=["file", "size", "seconds", "detected", "result"], interactive=False, wrap=True
        )
    with gr.Tab("Use it elsewhere"):
        gr.Markdown(ELSEWHERE)
        gr.Markdown(FINE_TUNE)

    event = start.click(
        restore,
        [
            image,
            task,
            keep,
            prompt,
            negative,
            guidance,
            strength,
            steps,
            scale,
            seed,
            tile,
            adapter,
            both,
        ],
        [slider, file, summary, inside, code, shell],
        api_name="restore",
        scroll_to_output=True,
        show_progress_on=slider,
        **MODEL,
    )
    stop.click(None, cancels=[event], api_visibility="private")
    inputs = [compare_image, reference, truth, compare_prompt, compare_seed]
    compare_start.click(compare, inputs, [pictures, table], api_name="compare", **MODEL)
    inputs = [clean, recipe, degrade_seed]
    degrade_start.click(
        degrade_and_restore,
        inputs,
        [degrade_slider, degraded_file, numbers],
        api_name="degrade",
        **MODEL,
    )
    batch_start.click(
        restore_batch, [files, batch_task, batch_keep], [archive, done], api_name="batch", **MODEL
    )

demo.queue(max_size=32)

if __name__ == "__main__":
    demo.launch(
        theme=THEME,
        css=CSS,
        show_error=True,
        max_file_size="50mb",
        ssr_mode=False,
        mcp_server=HAS_MCP,
        footer_links=["api", "settings"],
    )
