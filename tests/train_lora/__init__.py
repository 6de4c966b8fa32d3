"""What the tests of the training scripts share: photos, a tiny chain on disk, and scripts that run
in this process or in forks of it."""

import importlib
import io
import json
import sys
from pathlib import Path

import numpy as np
import torch
from accelerate import debug_launcher
from accelerate.state import AcceleratorState, GradientState
from PIL import Image
from safetensors.torch import load_file

from tests.tools import tiny

SIZES = [(40, 56), (64, 48), (36, 80), (70, 44)]


def write_photo(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_photos(folder: Path, count: int = 4) -> str:
    """Photos with soft shapes, none of them square, no two alike."""
    for k in range(count):
        height, width = SIZES[k % len(SIZES)]
        coarse = np.random.default_rng(k).integers(0, 256, (5, 7, 3), dtype=np.uint8)
        write_photo(
            folder / f"{k}.png",
            np.array(Image.fromarray(coarse).resize((width, height), Image.BICUBIC)),
        )
    return str(folder)


def write_pairs(folder: Path, count: int = 3, guidance: bool = True) -> str:
    """Pairs with guidance: `input/`, `target/`, and `guidance/` of another size than the photos."""
    for k in range(count):
        height, width = SIZES[k % len(SIZES)]
        clean = np.array(
            Image.fromarray(
                np.random.default_rng(k).integers(0, 256, (5, 7, 3), dtype=np.uint8)
            ).resize((width, height))
        )
        noise = np.random.default_rng(100 + k).normal(0, 25, clean.shape)
        write_photo(folder / "target" / f"{k}.png", clean)
        write_photo(folder / "input" / f"{k}.png", (clean + noise).clip(0, 255).astype(np.uint8))
        if guidance:
            write_photo(
                folder / "guidance" / f"{k}.png", np.array(Image.fromarray(clean).resize((32, 24)))
            )
    return str(folder)


def write_chain(folder: Path, **overrides) -> str:
    """A whole chain of tiny networks with an unguided restorer, as a checkpoint."""
    unguided = {"restorer": tiny.restorer(guided=False), "matcher": None}
    pipe = tiny.pipeline(
        **{**unguided, **{name: part for name, part in overrides.items() if name != "vae"}}
    )
    pipe.register_modules(**overrides)
    pipe.save_pretrained(folder)
    return str(folder)


def small_restorer(**options) -> str:
    """`--restorer_config` of a small NAFNet."""
    return json.dumps({"width": 4, "encoder_depths": [1, 1], "decoder_depths": [1, 1], **options})


def forget_processes() -> None:
    """Each run sets up accelerate as a process of its own would."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def make_config(script: str, output_dir: Path, **knobs):
    """A configuration of a script: two steps on batches of two, no worker processes."""
    lists = script in ("train_restorer", "mini.train_fusion")
    defaults = {
        "degradations": ["noise:25"],
        "max_train_steps": 2,
        "train_batch_size": [2] if lists else 2,
        "resolution": [32] if lists else 32,
        "lr_warmup_steps": 0,
        "dataloader_num_workers": 0,
        "mixed_precision": "no",
    }
    if script == "make_guidance":
        defaults = {"num_inference_steps": 2, "mixed_precision": "no"}
    return importlib.import_module(f"train_lora.{script}").Config(
        output_dir=str(output_dir), **{**defaults, **knobs}
    )


def run(script: str, output_dir: Path, **knobs) -> Path:
    """Run a script in this process; returns its output folder."""
    config = make_config(script, output_dir, **knobs)
    forget_processes()
    importlib.import_module(f"train_lora.{script}").main(config)
    forget_processes()
    return Path(output_dir)


def run_twofold(script: str, output_dir: Path, **knobs) -> Path:
    """Run a script in two processes that talk over gloo; returns its output folder."""
    in_two_processes(run, script, output_dir, **knobs)
    return Path(output_dir)


def call(function, arguments, knobs) -> None:
    """Call a function in a fork of this process, quietly."""
    torch.set_num_threads(1)
    sys.stdout = sys.stderr = io.StringIO()
    forget_processes()
    function(*arguments, **knobs)


def in_two_processes(function, *arguments, **knobs) -> None:
    """Call a function in two forks of this process that find each other as processes of
    accelerate."""
    debug_launcher(call, (function, arguments, knobs), num_processes=2)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All weights of a checkpoint folder in diffusers format, by component and name."""
    found = {}
    for file in sorted(Path(folder).rglob("*.safetensors")):
        found |= {f"{file.parent.name}.{key}": value for key, value in load_file(file).items()}
    return found


def trained(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The weights that a checkpoint of a run holds."""
    return load_file(checkpoint / "trainable.safetensors")


def second_moments(checkpoint: Path) -> list[torch.Tensor]:
    """The running mean of each trained weight's squared gradient, in the order of the optimizer."""
    state = torch.load(checkpoint / "optimizer.bin", weights_only=True)["state"]
    return [state[k]["exp_avg_sq"] for k in sorted(state)]


def equal(first, second) -> bool:
    """Whether nested dicts and lists hold the same bits."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(
            equal(first[key], second[key]) for key in first
        )
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(equal, first, second))
    return first == second


def same_checkpoint(first: Path, second: Path) -> bool:
    """Whether two checkpoints hold the same bits: weights, optimizer, averages and schedule."""
    names = ["optimizer.bin", *sorted(path.name for path in first.glob("custom_checkpoint_*"))]
    load = [
        [torch.load(folder / name, weights_only=False) for name in names]
        for folder in (first, second)
    ]
    return equal(*load) and equal(trained(first), trained(second))
