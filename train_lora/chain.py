"""What every script does with the chain: load it, add what it lacks, place it, publish the
result."""

import json
import logging
import shlex
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers.training_utils import cast_training_params
from transformers import CLIPImageProcessorPil, CLIPVisionModel

from pipelines import TextGuidedRestorationPipeline, load
from pipelines.loading import find_adapters, load_adapter
from pipelines.pipeline_text_guided_restoration import has_lora_layers
from textir.degradations import LABELS
from textir.hub.publishing import describe_training, push, write_card
from textir.models import ImageToTextMapper, TextualCleaner
from textir.training.config import public
from textir.training.lora import has_adapters, save_adapter
from textir.training.run import TrainingRun
from train_lora.data import StageConfig, TrainingData, read_all_labels

logger = logging.getLogger("textir.training")


def labels_of(component) -> tuple[str, ...]:
    """What a restorer or cleaner can be told to remove; nothing of a blind one."""
    return tuple(component.config.get("labels") or ())


def condition_columns(component) -> list[int]:
    """Where the entries of a component's condition stand in that of a sample, "find out yourself"
    last."""
    return [*(LABELS.index(label) for label in labels_of(component)), len(LABELS)]


def check_labels(component, config: StageConfig, data: "TrainingData") -> float | None:
    """The share of samples that are told, `None` for a blind network.

    Raises:
        ValueError: if the data suffers from what the network has no label for.
    """
    labels = labels_of(component)
    if not labels:
        return None
    unknown = [label for label in data.labels if label not in labels]
    if config.told_share and unknown:
        raise ValueError(
            f"The training data suffers from {', '.join(unknown)}, for which "
            "the network has no label; it has "
            f"{', '.join(labels)}. Leave that out, or train blind (`--told_share 0`)."
        )
    return config.told_share


def load_chain(config: StageConfig) -> TextGuidedRestorationPipeline:
    """The pipeline to start from, in single precision, with the adapter of an earlier stage if one
    is named."""
    torch.manual_seed(config.seed)  # of what is added to the checkpoint
    try:
        pipe = load(
            config.pretrained_model_name_or_path,
            device="cpu",
            revision=config.revision,
            variant=config.variant,
        )
    except ValueError as error:
        raise ValueError(f"`--pretrained_model_name_or_path`: {error}") from error
    pipe.set_progress_bar_config(disable=True)
    for source in find_adapters(config.pretrained_model_name_or_path, config.adapter).values():
        load_adapter(pipe, source, "default")
    return pipe


def need(pipe, *parts: str) -> None:
    """Refuse a checkpoint that lacks what a stage works with."""
    missing = [part for part in parts if getattr(pipe, part, None) is None]
    if missing:
        raise ValueError(
            f"This stage needs {', '.join(missing)}, which the checkpoint lacks; start from a "
            "Stable Diffusion checkpoint or from the "
            "result of the stage before (`--pretrained_model_name_or_path`)."
        )


def as_guidance(pipe, image: torch.Tensor) -> torch.Tensor:
    """Images `(B, 3, H, W)` as their guidance will show them: squeezed into its square by
    checkpoints that know no other shape."""
    if not pipe.config.square_guidance:
        return image
    return F.interpolate(image, pipe.guidance_shape(*image.shape[-2:]), mode="area")


def refuse_lora(config: StageConfig, part: str) -> None:
    """LoRA layers are saved without what they adapt, so they cannot sit on a network that was made
    just now."""
    if config.rank is not None:
        raise ValueError(
            f"`--rank` adapts a network that is trained already, and the {part} is new; leave "
            "`--rank` out to train it in full."
        )


def add_condition(pipe, part: str, config: StageConfig, **options) -> None:
    """Rebuild a blind restorer or cleaner as one that can be told what to remove; its function
    stays as it was."""
    refuse_lora(config, "condition")
    blind = getattr(pipe, part)
    settings = {name: value for name, value in blind.config.items() if not name.startswith("_")}
    if "labels" not in settings:
        raise ValueError(f"{type(blind).__name__} takes no condition; `--labels` needs a NAFNet.")
    if settings["labels"] is not None:
        raise ValueError(
            f"This {part} has labels already: {', '.join(settings['labels'])}; leave out "
            "`--labels`."
        )
    told = type(blind)(**{**settings, "labels": read_all_labels(config.labels), **options})
    told.load_state_dict(blind.state_dict(), strict=False)
    pipe.register_modules(**{part: told})


def add_image_encoder(pipe, name: str) -> None:
    """Give a base checkpoint the image encoder whose tokens the mapper reads."""
    if pipe.image_encoder is None:
        try:
            encoder = CLIPVisionModel.from_pretrained(name)
            pipe.register_modules(
                image_encoder=encoder, image_processor=CLIPImageProcessorPil.from_pretrained(name)
            )
        except OSError as error:
            raise ValueError(
                f"`--image_encoder_name_or_path` {name} cannot be loaded: {error}"
            ) from error


def add_mapper(pipe, config: StageConfig) -> None:
    """Build a mapper that fits image and text encoder, where there is none or `--mapper_config`
    asks for a new one."""
    if pipe.mapper is None or config.mapper_config:
        refuse_lora(config, "mapper")
        dims = {
            "image_dim": pipe.image_encoder.config.hidden_size,
            "word_dim": pipe.text_encoder.config.hidden_size,
        }
        pipe.register_modules(
            mapper=ImageToTextMapper(
                **{**dims, **read_json(config.mapper_config, "--mapper_config")}
            )
        )


def add_cleaner(pipe, config: StageConfig) -> None:
    """Build a cleaner that fits the mapper, where there is none or `--cleaner_config` asks for a
    new one."""
    if pipe.cleaner is None or config.cleaner_config:
        refuse_lora(config, "cleaner")
        sizes = {"word_dim": pipe.mapper.config.word_dim, "num_words": pipe.mapper.config.num_words}
        pipe.register_modules(
            cleaner=TextualCleaner(
                **{**sizes, **read_json(config.cleaner_config, "--cleaner_config")}
            )
        )


def read_json(text: str | None, flag: str) -> dict:
    try:
        value = json.loads(text or "{}")
    except ValueError as error:
        raise ValueError(
            f"`{flag}` must be JSON such as '{{\"num_words\": 20}}', got {text!r}: {error}"
        ) from None
    if not isinstance(value, dict):
        raise ValueError(f"`{flag}` must be a JSON object, got {text!r}.")
    return value


def place(pipe, run: TrainingRun, *working: str) -> None:
    """Move the `working` components to the run's device, the frozen ones of the base model in its
    reduced precision; on a GPU also what lies under LoRA layers."""
    dtype = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[
        run.config.mixed_precision
    ]
    for name in working:
        part = getattr(pipe, name)
        trains = any(parameter.requires_grad for parameter in part.parameters())
        adapted = trains and has_lora_layers(part) and run.device.type == "cuda"
        reduced = name in ("image_encoder", "text_encoder", "vae", "unet") and (
            adapted or not trains
        )
        torch.nn.Module.to(part, run.device, dtype if reduced else torch.float32)
        cast_training_params(part, dtype=torch.float32)


def without_secrets(arguments: list[str]) -> list[str]:
    """Command line arguments without the Hub token, however it is spelt."""
    kept, skip = [], False
    for argument in arguments:
        secret = argument.replace("-", "_").startswith("__hub_token")
        if not skip and not secret:
            kept.append(argument)
        skip = secret and "=" not in argument
    return kept


def publish(run: TrainingRun, pipe, script: str) -> Path | None:
    """Write the result: `OUTPUT_DIR/adapter` for LoRA layers, else `OUTPUT_DIR/pipeline`; with a
    card, and on the Hub if asked for.

    Returns:
        the folder (on the main process).
    """
    run.accelerator.wait_for_everyone()
    if not run.is_main:
        return None
    config = run.config
    for model in run.bare.values():
        model.eval()
    with run.averaged():
        folder = run.output_dir / ("adapter" if has_adapters(pipe) else "pipeline")
        if has_adapters(pipe):
            save_adapter(pipe, folder)
        else:
            for part in pipe.components.values():
                if isinstance(part, torch.nn.Module):
                    torch.nn.Module.to(part, "cpu", torch.float32)
            pipe.save_pretrained(folder)
    sheets = sorted(
        (run.output_dir / "validation").glob("step-*.png"), key=lambda path: int(path.stem[5:])
    )
    command = shlex.join(["python", "-m", f"train_lora.{script}", *without_secrets(sys.argv[1:])])
    describe_training(
        folder,
        script,
        command,
        public(config),
        run.step,
        run.accelerator.num_processes,
        sheets[-1] if sheets else None,
    )
    write_card(folder)
    logger.info("saved %s", folder)
    run.accelerator.end_training()
    if config.push_to_hub:
        repo = config.hub_model_id or run.output_dir.name
        url = push(folder, repo, token=config.hub_token, private=config.hub_private_repo)
        logger.info("pushed to %s", url)
    return folder
