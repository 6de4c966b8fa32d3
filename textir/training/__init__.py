"""What every training stage shares: command line, run, losses, LoRA."""

from textir.training.config import TrainingConfig, knob, parse_config, run_script
from textir.training.lora import has_adapters, make_trainable, save_adapter
from textir.training.losses import (
    bag_of_words_loss,
    detection_loss,
    diffusion_loss,
    halved,
    painted_in_one_step,
    reconstruction_loss,
    restoration_loss,
    word_loss,
)
from textir.training.run import TrainingRun, list_checkpoints, make_folder

__all__ = [
    "TrainingConfig",
    "TrainingRun",
    "bag_of_words_loss",
    "detection_loss",
    "diffusion_loss",
    "halved",
    "has_adapters",
    "knob",
    "list_checkpoints",
    "make_folder",
    "make_trainable",
    "painted_in_one_step",
    "parse_config",
    "reconstruction_loss",
    "restoration_loss",
    "run_script",
    "save_adapter",
    "word_loss",
]
