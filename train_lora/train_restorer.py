"""Train the restorer, unguided: one blind network for all the degradations of a mixture.

    python train_lora/train_restorer.py --train_data_dir PHOTOS --output_dir runs/restorer \
        --degradations noise:0..50@4 rain:0.2..1@2 haze:0.4..2.5@2 --mixed_precision bf16

Clean photos are all it needs: every crop is degraded on the fly (`textir/degradations.py`). The run can be killed at any
time and goes on with `--resume_from_checkpoint latest`; a larger `--max_train_steps` then prolongs it.
The result is `OUTPUT_DIR/pipeline`, a pipeline in diffusers format with averaged (EMA) weights:
`python -m textir restore PHOTO --checkpoint OUTPUT_DIR/pipeline --output restored`.
"""

import json
import logging
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers.training_utils import EMAModel
from torch.utils.data import DataLoader
from transformers import HfArgumentParser, get_wsd_schedule

from pipelines import TextGuidedRestorationPipeline
from textir.data import CleanPhotos, DegradedCrops
from textir.degradations import degrade
from textir.metrics import psnr
from textir.models.nafnet import NAFNet
from textir.training import checkpoint_step, find_checkpoint, restoration_loss, save_checkpoint

logger = logging.getLogger("train_restorer")


@dataclass
class Config:
    train_data_dir: list[str] = field(metadata={"help": "folders of clean photos, searched recursively"})
    output_dir: str = field(metadata={"help": "where checkpoints and the result go"})
    degradations: list[str] = field(default_factory=lambda: ["noise:0..50"], metadata={"help": "weighted recipes"})
    restorer_config: str | None = field(default=None, metadata={"help": "JSON of NAFNet arguments; the defaults otherwise"})
    pretrained_restorer: str | None = field(default=None, metadata={"help": "restorer folder to start from"})
    loss: str = field(default="l1", metadata={"help": "l1 (the paper) or psnr"})
    # Progressive learning: crops grow while batches shrink; phase i ends at step phase_ends[i], the last with the run.
    resolution: list[int] = field(default_factory=lambda: [128], metadata={"help": "crop side in each phase"})
    train_batch_size: list[int] = field(default_factory=lambda: [8], metadata={"help": "crops a process in each phase"})
    phase_ends: list[int] = field(default_factory=list, metadata={"help": "steps at which all but the last phase end"})
    max_reduction: float = field(default=2.0, metadata={"help": "photos are reduced by up to this before cropping"})
    low_key: float = field(default=0.0, metadata={"help": "share of photos darkened, so that dark is not always under-exposed"})
    max_train_steps: int = 100_000
    learning_rate: float = 1e-3  # NAFNet's; 2e-4 for the transformers
    lr_warmup_steps: int = 500
    lr_decay_steps: int | None = field(default=None, metadata={"help": "final steps of cosine decay; a third by default"})
    adam_beta2: float = 0.9  # NAFNet's; short memory suits a mixture of tasks
    adam_weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999
    mixed_precision: str = field(default="no", metadata={"help": "no, bf16 (twice as fast where the CPU has it) or fp16"})
    dataloader_num_workers: int = 1
    checkpointing_steps: int = 1000
    checkpoints_total_limit: int | None = 2
    resume_from_checkpoint: str | None = field(default=None, metadata={"help": "latest, or a checkpoint folder"})
    validation_data_dir: str | None = field(default=None, metadata={"help": "clean photos that are not trained on"})
    validation_degradations: list[str] = field(default_factory=lambda: ["noise:25"])
    validation_steps: int = 1000
    logging_steps: int = 100
    seed: int = 0
    save_fp16: bool = field(default=False, metadata={"help": "halve the size of the result's files"})
    skip_bad: bool = field(default=False, metadata={"help": "leave out photos that cannot be used"})

    def __post_init__(self):
        if not len(self.resolution) == len(self.train_batch_size) == len(self.phase_ends) + 1:
            raise ValueError(
                "`resolution` and `train_batch_size` need one entry a phase and `phase_ends` one less, "
                f"got {self.resolution}, {self.train_batch_size}, {self.phase_ends}."
            )


def main(config: Config) -> None:
    accelerator = Accelerator(mixed_precision=config.mixed_precision, cpu=not torch.cuda.is_available())
    output_dir = Path(config.output_dir)
    if accelerator.is_main_process:
        output_dir.mkdir(parents=True, exist_ok=True)
        (output_dir / "config.json").write_text(json.dumps(asdict(config), indent=2) + "\n")
    set_seed(config.seed)

    restorer = build_restorer(config).to(memory_format=torch.channels_last)
    ema = EMAModel(restorer.parameters(), decay=config.ema_decay, foreach=True)
    optimizer = torch.optim.AdamW(
        restorer.parameters(), config.learning_rate, (0.9, config.adam_beta2), weight_decay=config.adam_weight_decay
    )
    decay_steps = config.max_train_steps // 3 if config.lr_decay_steps is None else config.lr_decay_steps
    scheduler = get_wsd_schedule(
        optimizer,
        num_warmup_steps=config.lr_warmup_steps,
        num_decay_steps=decay_steps,
        num_training_steps=config.max_train_steps,
        min_lr_ratio=0.01,
    )
    restorer, optimizer = accelerator.prepare(restorer, optimizer)
    ema.to(accelerator.device)
    accelerator.register_for_checkpointing(ema, scheduler)

    step = 0
    checkpoint = find_checkpoint(output_dir, config.resume_from_checkpoint)
    if checkpoint is not None:
        accelerator.load_state(str(checkpoint))
        step = checkpoint_step(checkpoint)
        logger.info("resumed from %s", checkpoint)

    photos = CleanPhotos(config.train_data_dir, max(config.resolution), config.skip_bad)
    validation = CleanPhotos([config.validation_data_dir]) if config.validation_data_dir else None
    parameters = sum(p.numel() for p in restorer.parameters())
    logger.info("%d photos, %.2f M parameters, steps %d to %d", len(photos), parameters / 1e6, step, config.max_train_steps)

    losses, clock = [], time.perf_counter()
    for batch in batches(config, photos, step, accelerator):
        restored = restorer(batch["degraded"].contiguous(memory_format=torch.channels_last))
        loss = restoration_loss(restored, batch["clean"], config.loss)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(restorer.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        ema.step(restorer.parameters())
        step += 1

        losses.append(loss.detach())
        if step % config.logging_steps == 0:
            seconds = time.perf_counter() - clock
            rate = config.logging_steps * len(batch["clean"]) * accelerator.num_processes / seconds
            mean = torch.stack(losses).mean().item()
            logger.info("step %d loss %.4f lr %.2e %.1f samples/s", step, mean, scheduler.get_last_lr()[0], rate)
            losses, clock = [], time.perf_counter()
        if step % config.checkpointing_steps == 0:
            save_checkpoint(accelerator, output_dir, step, config.checkpoints_total_limit)
        if validation and step % config.validation_steps == 0 and accelerator.is_main_process:
            with averaged(ema, accelerator.unwrap_model(restorer)) as model:
                scores = validate(model, validation, config.validation_degradations)
            logger.info("step %d validation %s", step, " ".join(f"{k} {v:.2f}" for k, v in scores.items()))
            clock = time.perf_counter()

    save_checkpoint(accelerator, output_dir, step, config.checkpoints_total_limit)
    if accelerator.is_main_process:
        with averaged(ema, accelerator.unwrap_model(restorer)) as model:
            torch.nn.Module.to(model, torch.float16 if config.save_fp16 else torch.float32)
            TextGuidedRestorationPipeline(restorer=model.eval()).save_pretrained(output_dir / "pipeline")
        logger.info("saved %s", output_dir / "pipeline")
    accelerator.end_training()


def build_restorer(config: Config) -> NAFNet:
    if config.pretrained_restorer:
        return NAFNet.from_pretrained(config.pretrained_restorer)
    return NAFNet(**json.loads(config.restorer_config) if config.restorer_config else {})


def batches(config: Config, photos: CleanPhotos, start: int, accelerator: Accelerator):
    """The batches from step `start` to the end, phase by phase; sample indices go on where the last step left them."""
    index, begin = 0, 0
    for size, batch_size, end in zip(config.resolution, config.train_batch_size, [*config.phase_ends, config.max_train_steps]):
        taken = batch_size * accelerator.num_processes
        todo = range(index + max(start - begin, 0) * taken, index + (end - begin) * taken)
        index, begin = index + (end - begin) * taken, end
        if not len(todo):
            continue
        crops = DegradedCrops(photos, config.degradations, size, config.max_reduction, config.low_key, index, config.seed)
        loader = DataLoader(
            crops,
            batch_size=batch_size,
            sampler=todo,
            num_workers=config.dataloader_num_workers,
            prefetch_factor=8 if config.dataloader_num_workers else None,
        )
        yield from accelerator.prepare(loader)


class averaged:
    """Within the block the model holds its averaged weights."""

    def __init__(self, ema: EMAModel, model: torch.nn.Module):
        self.ema, self.model = ema, model

    def __enter__(self) -> torch.nn.Module:
        self.ema.store(self.model.parameters())
        self.ema.copy_to(self.model.parameters())
        return self.model

    def __exit__(self, *_) -> None:
        self.ema.restore(self.model.parameters())


@torch.no_grad()
def validate(model: torch.nn.Module, photos: CleanPhotos, recipes: list[str]) -> dict[str, float]:
    """Mean PSNR over the centre squares of held-out photos for each recipe."""
    model.eval()
    scores = {}
    for recipe in recipes:
        total = 0.0
        for i, photo in enumerate(photos.photos):
            top, left = ((side - min(side, 256)) // 2 for side in photo.shape[-2:])
            clean = photo[None, :, top : top + 256, left : left + 256].float() / 255
            degraded = degrade(clean, recipe, torch.Generator().manual_seed(i))
            restored = model(degraded.to(next(model.parameters()).device))
            total += psnr(restored[0].float().movedim(0, -1).cpu().numpy(), clean[0].movedim(0, -1).numpy())
        scores[recipe] = total / len(photos)
    model.train()
    return scores


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stdout)
    main(HfArgumentParser(Config).parse_args_into_dataclasses()[0])
