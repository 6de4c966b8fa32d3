"""What every script shows of its work: validation, and the first batch as the networks see it."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from textir.data.photos import find_entries
from textir.evaluation.metrics import psnr
from textir.evaluation.scores import Pair, load_pairs
from textir.images.picture import Picture, to_pixels, to_tensor, write_picture
from textir.training.run import TrainingRun
from train_lora.data import StageConfig

logger = logging.getLogger("textir.training")


def validation_pairs(config: StageConfig, side: int) -> Iterator[tuple[str, Pair]]:
    """`(recipe, pair)` for each validation image, with no recipe for pairs: its centre square of
    `side` pixels, less where the image is smaller."""
    if config.validation_data_dir is None:
        return
    entries = find_entries(config.validation_data_dir, "test")
    recipes = [None] if all(entry.degraded for entry in entries) else config.validation_degradations
    for recipe in recipes:
        for pair in load_pairs(
            config.validation_data_dir, recipe, config.seed, config.num_validation_images
        ):
            top, left = ((length - min(length, side)) // 2 for length in pair.clean.shape[:2])
            cut = (slice(top, top + side), slice(left, left + side))
            yield recipe, pair._replace(degraded=pair.degraded[cut], clean=pair.clean[cut])


def validate(
    run: TrainingRun,
    config: StageConfig,
    side: int,
    render: Callable[[torch.Tensor, str | None], dict[str, torch.Tensor]],
    sheet: str = "step",
) -> dict[str, float]:
    """Log the mean PSNR of what `render` makes of degraded images `(1, C, H, W)` and the recipe
    that made them (`None` for pairs), for each recipe and each name that it returns (`clean` stands
    for the target where it differs), save a sheet of the pictures as `validation/SHEET-STEP.png`,
    and return the scores (on the main process)."""
    if not run.is_main or config.validation_data_dir is None:
        run.accelerator.wait_for_everyone()
        return {}
    scores, rows = {}, []
    with run.averaged(), torch.no_grad():
        for recipe, pair in validation_pairs(config, side):
            degraded = to_tensor(pair.degraded).to(run.device)
            rendered = render(degraded, recipe)
            recipe = recipe or "pairs"
            clean = rendered.pop("clean", to_tensor(pair.clean)).cpu()
            size = next(iter(rendered.values())).shape[-2:]
            clean = clean if clean.shape[-2:] == size else F.interpolate(clean, size, mode="area")
            for name, image in rendered.items():
                label = f"{recipe} {name}" if len(rendered) > 1 else recipe
                scores.setdefault(label, []).append(psnr(to_pixels(image), to_pixels(clean)))
            if sum(row[0] == recipe for row in rows) < 2:
                rows.append((recipe, [degraded[:, :3], *rendered.values(), clean]))
    means = {name: float(np.mean(values)) for name, values in scores.items()}
    run.report(means)
    write_sheet(
        run.output_dir / "validation" / f"{sheet}-{run.step}.png", [cells for _, cells in rows]
    )
    run.accelerator.wait_for_everyone()
    return means


def write_sheet(path: Path, rows: list[list[torch.Tensor]], side: int = 192) -> None:
    """A figure: a row for each list of images `(1, 3, H, W)` in [0, 1], all brought to one size."""

    def small(cell: torch.Tensor) -> torch.Tensor:
        return F.interpolate(cell.float().cpu().clamp(0, 1), (side, side), mode="area")

    strips = [torch.cat(list(map(small, row)), dim=3) for row in rows]
    sheet = torch.cat(strips, dim=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_picture(path, Picture(to_pixels(sheet)))


class recorded_inputs:
    """Within the block, what reaches image encoder and VAE is noted: the very tensors, as pictures
    in [0, 1]."""

    def __init__(self, pipe):
        self.pipe, self.pictures, self.handles = pipe, {}, []

    def __enter__(self) -> dict[str, torch.Tensor]:
        processor = self.pipe.image_processor

        def note_encoder(module, args, kwargs):
            pixels = kwargs["pixel_values"].float().cpu()
            mean = torch.tensor(processor.image_mean)[:, None, None]
            std = torch.tensor(processor.image_std)[:, None, None]
            # Of several calls the first.
            self.pictures.setdefault("image encoder", pixels * std + mean)

        def note_vae(module, args):
            self.pictures.setdefault("VAE", args[0].float().cpu() / 2 + 0.5)

        encoder = self.pipe.image_encoder
        self.handles = [encoder.register_forward_pre_hook(note_encoder, with_kwargs=True)]
        if self.pipe.vae is not None:
            self.handles.append(self.pipe.vae.encoder.register_forward_pre_hook(note_vae))
        return self.pictures

    def __exit__(self, *_) -> None:
        for handle in self.handles:
            handle.remove()


def save_first_pairs(run: TrainingRun, batch: dict[str, torch.Tensor]) -> None:
    """Write `first_batch.png`: the degraded and clean images of a batch, and its guidance."""
    path = run.output_dir / "first_batch.png"
    if not run.is_main or path.exists():
        return
    names = [name for name in ("degraded", "clean", "guidance") if name in batch]
    rows = []
    for i in range(min(4, len(batch["clean"]))):
        rows.append([batch[name][i : i + 1, :3] for name in names])
    write_sheet(path, rows)
    logger.info("%s: %s", path, ", ".join(names))


def save_first_batch(
    run: TrainingRun, pipe, batch: dict[str, torch.Tensor], encode: Callable
) -> None:
    """Write `first_batch.png`: the degraded and clean images of a batch, and what image encoder and
    VAE really receive."""
    path = run.output_dir / "first_batch.png"
    if not run.is_main or path.exists():
        return
    with recorded_inputs(pipe) as seen, torch.no_grad():
        encode(batch)
    columns = [batch["degraded"][:, :3], batch["clean"], *seen.values()]
    rows = []
    for i in range(min(4, len(batch["clean"]))):
        rows.append([column[i : i + 1] for column in columns])
    write_sheet(path, rows)
    received = ", ".join(f"what reaches the {name}" for name in seen)
    logger.info("%s: degraded, clean, %s", path, received)
