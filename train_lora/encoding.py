"""What the frozen networks make of training samples, batch by batch or computed once."""

from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import torch

from textir.data.cache import encode_samples, to_device
from textir.data.samples import StreamedCrops
from textir.training.config import TrainingConfig, public
from textir.training.run import TrainingRun
from train_lora.data import StageConfig
from train_lora.watching import save_first_batch


def encoded_batches(
    run: TrainingRun, pipe, samples, encode: Callable[[dict], dict], num_cached: int = 0
) -> Iterator[dict[str, torch.Tensor]]:
    """Batches to the end of the run with what the frozen networks make of them: encoded as they
    come, or, with `num_cached`, the first so many samples encoded once and gone round."""
    config = run.config
    if num_cached and isinstance(samples, StreamedCrops):
        raise ValueError(
            "`--num_cached_samples` goes round a part of the data, which `--streaming` cannot."
        )
    if num_cached:
        first = torch.utils.data.default_collate([samples[i] for i in range(4)])
        save_first_batch(run, pipe, to_device(first, run.device), encode)
        samples = encode_samples(
            samples,
            encode,
            num_cached,
            run.output_dir / "cache",
            cache_key(config),
            run.accelerator,
            config.train_batch_size,
            config.dataloader_num_workers,
        )
    for batch in run.batches([(samples, config.train_batch_size, config.max_train_steps)]):
        if not num_cached:
            save_first_batch(run, pipe, batch, encode)
            batch.update(encode(batch))
        yield {
            name: value.float() if value.is_floating_point() else value
            for name, value in batch.items()
        }


def cache_key(config: StageConfig) -> dict:
    """What encoded samples depend on: every knob beyond those of a run, and when the checkpoint was
    written."""
    run_only = {item.name for item in fields(TrainingConfig)} - {"seed", "mixed_precision"}
    key = {name: value for name, value in public(config).items() if name not in run_only}
    weights = []
    for place in (config.pretrained_model_name_or_path, config.adapter):
        if place and Path(str(place)).is_dir():
            weights += sorted(Path(str(place)).rglob("*.safetensors"))
    key["written"] = [path.stat().st_mtime_ns for path in weights]
    return key
