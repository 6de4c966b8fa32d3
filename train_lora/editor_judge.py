"""Validation of the editor while it trains: what it gives back without words, beside what one has
without a network."""

import torch

from textir.evaluation.edit_scores import edit_case, score_edits
from textir.training.run import TrainingRun

# What is taken away, the figure that counts, and the rivals that cost little.
TASKS = {
    "inpaint": ("box:0.25", "inside_psnr", ["harmonic"]),
    "super-resolution": ("down:4", "psnr", ["bicubic, projected"]),
    "colorize": ("gray", "psnr", ["gray", "tint"]),
}


@torch.no_grad()
def judge(run: TrainingRun, config, pipe) -> None:
    """Log the scores of the pipeline on validation photos, with averaged weights."""
    if not run.is_main or config.validation_data_dir is None:
        return
    recipe, figure, rivals = TASKS[config.task]
    editor = pipe.components[config.part]
    editor.eval()
    with run.averaged():
        scores = score_edits(
            lambda case: edit_case(pipe, case),
            config.validation_data_dir,
            recipe,
            config.seed,
            config.num_validation_images,
            rivals,
        )
    editor.train()
    run.report({method: figures[figure] for method, figures in scores.means().items()})
