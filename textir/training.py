"""What every training stage shares: losses, and checkpoints that are whole or absent.

Losses are pure functions of a batch; loops live in `train_lora/`.
"""

import os
import re
import shutil
from pathlib import Path

import torch


def restoration_loss(restored: torch.Tensor, clean: torch.Tensor, kind: str = "l1") -> torch.Tensor:
    """Distance of restored images from their clean twins.

    Args:
        restored: `(B, C, H, W)`.
        clean: `(B, C, H, W)` in [0, 1].
        kind: `l1` (the paper), or `psnr`: the mean logarithm of each image's squared error (Chen et al. 2022), which weighs
            slight and heavy degradations alike; errors below 40 dB count less and less.

    Returns:
        a scalar.

    Raises:
        ValueError: if `kind` is neither.
    """
    error = restored.float() - clean.float()
    if kind == "l1":
        return error.abs().mean()
    if kind == "psnr":
        return (error.square().mean((1, 2, 3)) + 1e-4).log().mean() / 2
    raise ValueError(f"`kind` must be l1 or psnr, got {kind!r}.")


def find_checkpoint(output_dir: str | Path, resume: str | None) -> Path | None:
    """The checkpoint to resume from: `latest` in `output_dir` (`None` if there is none yet), or the folder named.

    Raises:
        ValueError: if the folder named is no checkpoint.
    """
    if resume is None:
        return None
    if resume == "latest":
        found = list_checkpoints(output_dir)
        return found[-1] if found else None
    path = Path(resume)
    if _step(path) is None or not (path / "optimizer.bin").is_file():
        raise ValueError(f"{path} is not a checkpoint: a folder `checkpoint-STEP` with optimizer.bin was expected.")
    return path


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """Checkpoint folders of a run, oldest first."""
    folders = [p for p in Path(output_dir).glob("checkpoint-*") if p.is_dir() and _step(p) is not None]
    return sorted(folders, key=_step)


def checkpoint_step(path: Path) -> int:
    """The number of optimizer steps behind a checkpoint folder."""
    return _step(path)


def _step(path: Path) -> int | None:
    match = re.fullmatch(r"checkpoint-(\d+)", path.name)
    return int(match[1]) if match else None


def save_checkpoint(accelerator, output_dir: str | Path, step: int, total_limit: int | None = None) -> Path:
    """Save the whole state of a run as `checkpoint-STEP`: written beside, then moved into place; the oldest make room."""
    final = Path(output_dir) / f"checkpoint-{step}"
    partial = Path(output_dir) / f".checkpoint-{step}.part"
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)  # what an interrupted save has left
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        for old in list_checkpoints(output_dir)[: -total_limit if total_limit else 0]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return final
