"""The command line of every training stage: knobs, recipes, errors."""

import functools
import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import diffusers
import torch
import transformers
import yaml
from accelerate.tracking import get_available_trackers
from transformers import HfArgumentParser

from textir.machine import matmul_speed


def knob(default, text: str, **metadata):
    """A field of a configuration with its help text; lists and other mutable defaults are
    copied."""
    metadata = {"help": text, **metadata}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(kw_only=True)
class TrainingConfig:
    """The knobs that all stages share, named as in diffusers' scripts."""

    output_dir: str = field(metadata={"help": "where checkpoints and the result go"})
    seed: int = knob(0, "of everything random; sample k of a run depends on it and k alone")
    max_train_steps: int = knob(10_000, "optimizer steps")
    train_batch_size: int = knob(4, "samples for each process and forward pass")
    gradient_accumulation_steps: int = knob(1, "forward passes for each optimizer step")
    gradient_checkpointing: bool = knob(
        False, "recompute activations in the backward pass: less memory, more time"
    )
    learning_rate: float = knob(1e-4, "of AdamW, after warm-up")
    lr_scheduler: str = knob(
        "constant_with_warmup",
        "constant, constant_with_warmup, linear, cosine, cosine_with_restarts, polynomial, "
        "inverse_sqrt or warmup_stable_decay",
    )
    lr_warmup_steps: int = knob(0, "steps of linear warm-up")
    lr_decay_steps: int | None = knob(
        None, "final steps of the decay of warmup_stable_decay; a third of the run by default"
    )
    adam_beta1: float = knob(0.9, "memory of the mean of gradients")
    adam_beta2: float = knob(0.999, "memory of the mean of their squares")
    adam_weight_decay: float = knob(1e-2, "decoupled weight decay")
    adam_epsilon: float = knob(1e-8, "added to the root of the squares")
    max_grad_norm: float = knob(1.0, "gradients are clipped to this norm")
    use_ema: bool = knob(False, "keep and publish a moving average of the weights")
    ema_decay: float = knob(0.999, "of that average, at most")
    rank: int | None = knob(
        None, "train LoRA layers of this rank instead of the weights themselves"
    )
    lora_alpha: float | None = knob(
        None, "LoRA is scaled by alpha / rank; alpha is the rank by default"
    )
    mixed_precision: str = knob(
        "auto",
        "no, bf16, fp16 (GPU only), or auto: bf16 where this machine is fast at it; what trains "
        "stays fp32",
    )
    allow_tf32: bool = knob(False, "faster, less exact matrix products on Ampere GPUs and later")
    dataloader_num_workers: int = knob(1, "processes that prepare samples")
    checkpointing_steps: int = knob(500, "a run that is killed loses at most so many steps")
    checkpoints_total_limit: int | None = knob(2, "the oldest checkpoints make room")
    resume_from_checkpoint: str | None = knob(None, "latest, or a checkpoint folder")
    validation_data_dir: str | None = knob(
        None, "photos that are not trained on: clean ones, or input/ and target/"
    )
    validation_degradations: list[str] = knob(
        ["noise:25"], "what is done to clean ones, one recipe after the other"
    )
    validation_steps: int = knob(500, "steps between validations; there is one at the end too")
    num_validation_images: int = knob(8, "of each validation")
    report_to: str = knob(
        "none", "tensorboard, trackio, wandb or none; one that is not installed is an error"
    )
    tracker_project_name: str = knob("textir", "what the tracker calls the runs")
    logging_dir: str = knob("logs", "of trackers, below the output folder")
    logging_steps: int = knob(50, "steps between lines of the log; the first and last have one")
    push_to_hub: bool = knob(False, "publish the result")
    hub_model_id: str | None = knob(
        None, "where: user/name; the name of the output folder by default"
    )
    hub_token: str | None = knob(None, "instead of the one that `hf auth login` has stored")
    hub_private_repo: bool = knob(False, "make a new repository private")

    def __post_init__(self):
        for name in (
            "max_train_steps",
            "gradient_accumulation_steps",
            "checkpointing_steps",
            "validation_steps",
            "logging_steps",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"`--{name}` must be at least 1, got {getattr(self, name)}.")
        if self.rank is not None and self.rank < 1:
            raise ValueError(
                f"`--rank` must be at least 1, got {self.rank}; leave it out to train the weights "
                "themselves."
            )
        if self.lr_decay_steps is not None and self.lr_scheduler != "warmup_stable_decay":
            raise ValueError(
                "`--lr_decay_steps` belongs to `--lr_scheduler warmup_stable_decay`, got "
                f"{self.lr_scheduler!r}."
            )
        if self.mixed_precision not in ("auto", "no", "bf16", "fp16"):
            raise ValueError(
                f"`--mixed_precision` must be auto, no, bf16 or fp16, got {self.mixed_precision!r}."
            )
        if self.mixed_precision == "auto":
            self.mixed_precision = "bf16" if is_fast_at_bf16() else "no"
        if self.mixed_precision == "fp16" and not torch.cuda.is_available():
            raise ValueError("`--mixed_precision fp16` needs a GPU; take bf16.")
        if self.report_to == "wandb" and self.hub_token:
            raise ValueError(
                "`--hub_token` would be logged to wandb; log in with `hf auth login` instead."
            )
        available = [str(tracker.value) for tracker in get_available_trackers()]
        if self.report_to != "none" and self.report_to not in available:
            raise ValueError(
                f"The tracker {self.report_to!r} is not installed: pip install {self.report_to}, "
                "or pass `--report_to none`."
                f" Installed: {', '.join(available) or 'none'}."
            )


@functools.cache
def is_fast_at_bf16() -> bool:
    """Whether this machine gains by bf16: a GPU that has it, a CPU whose products of bf16 matrices
    are clearly faster than of single precision. That is measured, since on some CPUs the
    instructions for bf16 take longer than the ordinary ones."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    if not (capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")):
        return False
    return matmul_speed(torch.bfloat16, side=1024) > 1.25 * matmul_speed(torch.float32, side=1024)


def parse_config(kind: type, arguments: Sequence[str] | None = None):
    """A configuration from the command line; `--config recipe.yaml` (or `recipe.yaml#section`)
    gives defaults that flags override.

    Raises:
        ValueError: if the file cannot be read or has a key that `kind` lacks, or the configuration
            contradicts itself.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if "--config" in arguments:
        at = arguments.index("--config")
        path = arguments[at + 1 : at + 2]
        if not path:
            raise ValueError("`--config` needs a YAML file.")
        arguments = recipe_arguments(path[0], kind) + arguments[:at] + arguments[at + 2 :]
    parser = HfArgumentParser(
        kind, description=(sys.modules[kind.__module__].__doc__ or "").strip().split("\n")[0]
    )
    return parser.parse_args_into_dataclasses(arguments, look_for_args_file=False)[0]


def recipe_arguments(path: str, kind: type) -> list[str]:
    """The flags that a YAML file stands for; `recipe.yaml#guided` names a section of a file that
    holds several stages.

    Raises:
        ValueError: if the file cannot be read, lacks the section or has a key that `kind` lacks.
    """
    file, _, section = path.partition("#")
    try:
        values = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file} must set knobs, `name: value` on each line.")
    if section:
        sections = [name for name, value in values.items() if isinstance(value, dict)]
        if section not in sections:
            raise ValueError(
                f"{file} has no section {section!r}; it has {', '.join(sections) or 'none'}."
            )
        values = values[section]
    known = {item.name for item in fields(kind)}
    unknown = sorted(str(name) for name in values.keys() - known)
    if unknown:
        hint = "" if section else f" A section is chosen by {file}#SECTION."
        raise ValueError(
            f"{path} sets {', '.join(unknown)}, which this script does not know.{hint}"
        )
    arguments = []
    for name, value in values.items():
        if value is None or value == []:
            continue
        if isinstance(value, dict):
            value = json.dumps(value)
        arguments += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return arguments


def run_script(main: Callable, kind: type) -> None:
    """Run a training script: errors that a user can mend are one line, without a trace."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stdout
    )
    for noisy in ("accelerate", "httpx", "PIL"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.disable_progress_bar()
    try:
        main(parse_config(kind))
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None


def public(config) -> dict:
    """A configuration as a dict, without its secrets."""
    return {name: value for name, value in asdict(config).items() if name != "hub_token"}
