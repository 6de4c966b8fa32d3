"""How fast each stage trains on this machine: samples per second, plain and in bf16, fresh and from
the cache.

    python -m train_lora.benchmark --pretrained_model_name_or_path CHECKPOINT --train_data_dir \
        PHOTOS

Stages that the checkpoint has no components for are left out; with `mini` as it comes only the
restorer is measured.
"""

import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from textir.training.config import knob, run_script
from train_lora import train_cleaner, train_detector, train_mapper, train_restorer
from train_lora.chain import load_chain


@dataclass(kw_only=True)
class Config:
    train_data_dir: list[str] = field(metadata={"help": "clean photos"})
    pretrained_model_name_or_path: str = "mini"
    adapter: str | None = None
    revision: str | None = None
    variant: str | None = None
    resolution: int = knob(128, "side of the crops")
    train_batch_size: int = 8
    precisions: list[str] = knob(["no", "bf16"], "of --mixed_precision")
    steps: int = knob(20, "measured steps, after as many for warming up")
    dataloader_num_workers: int = 1
    seed: int = 0


STAGES = {
    "mapper": (train_mapper, ("mapper", "unet", "vae", "image_encoder", "text_encoder")),
    "cleaner": (
        train_cleaner,
        ("mapper", "cleaner", "unet", "vae", "image_encoder", "text_encoder"),
    ),
    "detector": (train_detector, ("detector", "image_encoder")),
    "restorer": (train_restorer, ("restorer",)),
}


def main(config: Config) -> list[tuple[str, str, str, float]]:
    """Run every stage that the checkpoint allows, and print a table of its rows."""
    pipe = load_chain(config)
    rows = []
    print(f"{'stage':10} {'precision':10} {'samples':10} samples/s")
    for stage, (_, parts) in STAGES.items():
        if any(getattr(pipe, part, None) is None for part in parts):
            continue
        for precision in config.precisions:
            for cached in (0,) if stage == "restorer" else (0, 2 * config.train_batch_size):
                with ProcessPoolExecutor(
                    1, multiprocessing.get_context("spawn")
                ) as fresh:  # one precision a process
                    rate = fresh.submit(measure, stage, config, precision, cached).result()
                rows.append((stage, precision, "cached" if cached else "fresh", rate))
                print(
                    f"{stage:10} {precision.replace('no', 'fp32'):10} {rows[-1][2]:10} {rate:.1f}",
                    flush=True,
                )
    return rows


def measure(stage: str, config: Config, precision: str, cached: int) -> float:
    """Samples a second of one stage."""
    script, restorer = STAGES[stage][0], stage == "restorer"
    size = {"resolution": [config.resolution], "train_batch_size": [config.train_batch_size]}
    plain = {
        "resolution": config.resolution,
        "train_batch_size": config.train_batch_size,
        "num_cached_samples": cached,
    }
    with tempfile.TemporaryDirectory() as folder:
        settings = script.Config(
            pretrained_model_name_or_path=config.pretrained_model_name_or_path,
            train_data_dir=config.train_data_dir,
            degradations=["noise:0..50", "haze", "rain"],
            output_dir=str(Path(folder) / "run"),
            max_train_steps=2 * config.steps,
            logging_steps=config.steps,
            checkpointing_steps=2 * config.steps,
            mixed_precision=precision,
            dataloader_num_workers=config.dataloader_num_workers,
            **(size if restorer else plain),
        )
        return script.main(settings).rate


if __name__ == "__main__":
    run_script(main, Config)
