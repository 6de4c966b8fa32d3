"""Paint the guidance of a data set once, for stage 3 to read.

    accelerate launch -m train_lora.make_guidance --pretrained_model_name_or_path \
        runs/cleaner/pipeline \
        --data PHOTOS --degradations noise:0..50 rain:0.2..1 --variants 4 --output_dir runs/guidance

Clean photos are degraded (`--variants` times each) and written to `OUTPUT_DIR/input` and `target`,
their guidance to `guidance`: a folder that `train_restorer.py` takes as it is. Of pairs only the
guidance is written; pass it with `--guidance_dir`. Processes share the work, and a run that was
killed goes on where it was.
"""

import json
import logging
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import PartialState
from tqdm import tqdm

from textir.data.photos import entry_names, find_entries
from textir.degradations import Mixture, degrade
from textir.images.picture import Picture, read_picture, to_pixels, write_picture
from textir.training.config import knob, public, run_script
from textir.training.run import make_folder
from train_lora.captions import without_degradations
from train_lora.chain import load_chain

logger = logging.getLogger("textir.training")


@dataclass(kw_only=True)
class Config:
    data: str = field(
        metadata={
            "help": "clean photos, a folder with input/ and target/, or a benchmark such as "
            "gopro:/data/GoPro"
        }
    )
    output_dir: str = field(metadata={"help": "where the pictures go"})
    split: str = "train"
    degradations: list[str] = knob([], "weighted recipes for clean photos")
    variants: int = knob(1, "degraded versions of each clean photo")
    pretrained_model_name_or_path: str = "mini"
    revision: str | None = None
    variant: str | None = None
    adapter: str | None = knob(None, "LoRA to be used: a folder or a Hub id")
    guidance: str = knob(
        "cleaned", "painted from cleaned words, degraded words, or a prompt (see --captions)"
    )
    captions: str | None = knob(
        None,
        "JSON lines with file_name and text: explicit words, of which those for degradations are "
        "deleted",
    )
    guidance_init: str | None = knob(
        None, "noise (the paper) or image; the checkpoint's default otherwise"
    )
    init_strength: float | None = knob(
        None, "how far towards noise an image is taken; the checkpoint's default otherwise"
    )
    num_inference_steps: int | None = knob(None, "the checkpoint's default otherwise")
    guidance_scale: float | None = knob(None, "the checkpoint's default otherwise")
    mixed_precision: str = knob("no", "no, bf16 or fp16 (GPU only)")
    seed: int = 0
    max_images: int | None = knob(None, "only the first images")

    def __post_init__(self):
        if self.variants < 1:
            raise ValueError(f"`--variants` must be at least 1, got {self.variants}.")
        if (self.guidance == "prompt") != (self.captions is not None):
            raise ValueError("`--guidance prompt` paints from `--captions`, and only it does.")


def main(config: Config) -> None:
    state = PartialState(cpu=not torch.cuda.is_available())
    entries = find_entries(config.data, config.split)
    names = entry_names(entries)
    entries = entries[: config.max_images]
    clean_only = not entries[0].degraded
    if clean_only and not config.degradations:
        raise ValueError("Clean photos need `--degradations`, such as noise:0..50 rain:0.2..1@2.")
    output = Path(config.output_dir)
    make_folder(output)
    if state.is_main_process:
        keep_settings(output / "guidance.json", public(config))
    captions = read_captions(config.captions)
    pipe = load_chain(config)
    pipe.register_modules(detector=None, matcher=None, restorer=None)
    dtype = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[
        config.mixed_precision
    ]
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            torch.nn.Module.to(part, state.device, dtype)

    jobs = []
    for entry, photo in zip(entries, names):
        if clean_only:
            jobs += [(entry, photo, f"{photo}-{k}") for k in range(config.variants)]
        else:
            jobs.append((entry, photo, photo))
    todo = [
        (*job, name) for *job, name in jobs if not (output / "guidance" / f"{name}.png").exists()
    ]
    logger.info("%d pictures, %d of them done", len(jobs), len(jobs) - len(todo))
    state.wait_for_everyone()  # all have listed the same work before the first picture is written
    with state.split_between_processes(todo) as mine:
        for entry, photo, name in tqdm(mine, disable=None if state.is_main_process else True):
            degraded = (
                degrade_entry(entry, name, config, output)
                if clean_only
                else read_pixels(entry.degraded[0])
            )
            if captions is not None and photo not in captions:
                raise ValueError(f"{config.captions} has no caption for {photo}.")
            painted = pipe.guide(
                degraded[None],
                config.guidance,
                prompt=captions and captions[photo],
                guidance_init=config.guidance_init,
                init_strength=config.init_strength,
                num_inference_steps=config.num_inference_steps,
                guidance_scale=config.guidance_scale,
                generator=torch.Generator().manual_seed(seed_of(name, config.seed)),
            ).images[0]
            save(output / "guidance" / f"{name}.png", painted)
    state.wait_for_everyone()
    logger.info("guidance lies in %s", output / "guidance")


def seed_of(name: str, seed: int) -> int:
    return (zlib.crc32(name.encode()) + seed) % 2**32


def degrade_entry(entry, name: str, config: Config, output: Path) -> torch.Tensor:
    """Write a clean photo and a degraded version of it, drawn by name; returns the degraded one as
    it reads back."""
    generator = torch.Generator().manual_seed(seed_of(name, config.seed))
    clean = read_pixels(entry.clean)
    recipe = Mixture.parse(config.degradations).draw(generator)
    degraded = degrade(clean[None], recipe, generator)[0]
    save(output / "target" / f"{name}.png", clean)
    save(output / "input" / f"{name}.png", degraded)
    return (degraded.clamp(0, 1) * 255).round() / 255


def read_pixels(path: Path) -> torch.Tensor:
    return read_picture(path).tensor()[0]


def save(path: Path, image: torch.Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_picture(path, Picture(to_pixels(image)))


def keep_settings(path: Path, settings: dict) -> None:
    """Note what the pictures were made with; a folder holds pictures of one setting only."""
    settings = {name: value for name, value in settings.items() if name != "max_images"}
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")) != settings:
        old = json.loads(path.read_text(encoding="utf-8"))
        changed = ", ".join(
            f"{k} {old.get(k)} -> {v}" for k, v in settings.items() if old.get(k) != v
        )
        raise ValueError(
            f"{path.parent} was made with other settings ({changed}); choose another "
            "`--output_dir`."
        )
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def read_captions(path: str | None) -> dict[str, str] | None:
    """Captions by file name without extension (folders joined by `_`), without the words for
    degradations (the paper's explicit words)."""
    if path is None:
        return None
    try:
        rows = [
            json.loads(line)
            for line in Path(path).read_text(encoding="utf-8").splitlines()
            if line.strip()
        ]
        return {
            "_".join(Path(row["file_name"]).with_suffix("").parts): without_degradations(
                row["text"]
            )
            for row in rows
        }
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{path} must hold JSON lines with file_name and text: {error!r}."
        ) from None


if __name__ == "__main__":
    run_script(main, Config)
