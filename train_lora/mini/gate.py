"""A foundation stage must reach what the next one builds on; otherwise the chain of stages stops
here."""

import sys
from collections.abc import Callable
from pathlib import Path

import torch

from textir.training.run import TrainingRun
from train_lora.data import StageConfig
from train_lora.watching import validate

WHOLE = 10**6  # validate on whole photos, not on their centres


def pass_gate(
    run: TrainingRun,
    config: StageConfig,
    least: float,
    render: Callable[[torch.Tensor, str | None], dict[str, torch.Tensor]],
    against: str | None = None,
) -> None:
    """Print the gate of a stage, the mean of its validation scores (less those named `against`),
    and stop with an error where it is not reached.

    Raises:
        ValueError: if the score is below `least`. Its checkpoint is there to go on from.
    """
    if config.validation_data_dir is None:
        raise ValueError("The gate needs photos that were not trained on: `--validation_data_dir`.")
    scores = validate(run, config, WHOLE, render)
    if not run.is_main:
        return
    name = Path(sys.modules[type(config).__module__].__file__).stem
    yardstick = {key: value for key, value in scores.items() if against and key.endswith(against)}
    own = [value for key, value in scores.items() if key not in yardstick]
    reached = sum(own) / len(own) - (sum(yardstick.values()) / len(yardstick) if yardstick else 0)
    print(f"gate of {name}: {reached:.2f} dB reached, {least:.2f} dB asked for", flush=True)
    if reached < least:
        raise ValueError(
            f"The gate of {name} is missed; train longer (`--max_train_steps`, "
            "`--resume_from_checkpoint latest`)."
        )
