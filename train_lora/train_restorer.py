"""Stage 3: train the restoration network, first alone, then with guidance (Lin et al., section
3.4).

    accelerate launch -m train_lora.train_restorer --train_data_dir PHOTOS --output_dir \
        runs/restorer \
        --degradations noise:0..50@4 rain:0.2..1@2 haze:0.4..2.5@2 \
        --mixed_precision bf16 --resume_from_checkpoint latest

Clean photos are all it needs: every crop is degraded on the fly. With guidance (`make_guidance.py`
writes it once, beside input/ and target/) a matcher and fusion blocks are added to the network,
which start as if they were not there:

    accelerate launch -m train_lora.train_restorer --pretrained_model_name_or_path \
        runs/cleaner/pipeline \
        --restorer_from runs/restorer/pipeline --train_data_dir runs/guidance \
        --output_dir runs/guided \
        --learning_rate 2e-4 --matcher_learning_rate 1e-4

The chain of the first does not train here, but the result paints its guidance with it; validation
shows it too.

`train_lora.mini.train_fusion` paints in the loop instead, with a chain small enough for that.

The result is `OUTPUT_DIR/pipeline`, or `OUTPUT_DIR/adapter` with `--rank`.
"""

from dataclasses import dataclass, replace
from itertools import chain

import torch

from pipelines import TextGuidedRestorationPipeline
from textir.conditions import condition_of
from textir.data.samples import sample_generator
from textir.degradations import Recipe
from textir.models import RESTORERS, GuidanceMatcher
from textir.training.config import knob, run_script
from textir.training.lora import make_trainable
from textir.training.losses import restoration_loss
from textir.training.run import TrainingRun
from train_lora.chain import (
    add_condition,
    check_labels,
    condition_columns,
    labels_of,
    load_chain,
    need,
    place,
    publish,
    read_json,
    refuse_lora,
)
from train_lora.data import StageConfig, TrainingData
from train_lora.watching import save_first_pairs, validate

CLASSES = {network.__name__: network for network in RESTORERS}
PAINTERS = ("image_encoder", "mapper", "cleaner", "text_encoder", "unet", "vae")
"""The parts that make guidance."""


@dataclass(kw_only=True)
class Config(StageConfig):
    pretrained_model_name_or_path: str | None = knob(
        None, "checkpoint to start from: mini, a folder or a Hub id; a new network without"
    )
    restorer_from: str | None = knob(
        None, "another checkpoint to take the restorer of: the chain that paints comes without one"
    )
    restorer: str = knob("NAFNet", "class of a new network")
    restorer_config: str | None = knob(None, "JSON of its arguments; the defaults otherwise")
    guidance: bool = knob(
        True,
        "use the guidance of the training data if there is one; False is the unguided ablation",
    )
    guidance_dirs: list[str] = knob(
        [], "guidance of several sources (see --guidance_dir), a folder for each --train_data_dir"
    )
    painted_from: str = knob(
        "cleaned",
        "what `--view` and validation paint from: cleaned words, or degraded ones (the ablation)",
    )
    fusion: str = knob("both", "where guidance enters the network: encoder, decoder or both")
    matcher_widths: list[int] = knob(
        [], "channels of the matcher's levels, finest first; what suits the restorer by default"
    )
    matcher_learning_rate: float | None = knob(None, "of the matcher; the restorer's otherwise")
    trains: str = knob(
        "all",
        "what of the restorer trains: all; guidance (fusion blocks alone, strength 0 stays as it "
        "was); condition (what tells it what to "
        "remove); experts (of that the experts alone, so that it works as before where it is told "
        "nothing)",
    )
    expert_rank: int = knob(
        16, "rank of the experts that a new condition brings, one for each label"
    )
    guidance_dropout: float = knob(
        0.1, "share of samples restored without guidance, so that strength 0 stays good"
    )
    loss: str = knob("l1", "l1 (the paper) or psnr")
    fft_weight: float = knob(0.0, "of the distance in the Fourier domain; SFNet takes 0.1")
    # Progressive learning: crops grow while batches shrink; phase i ends at step phase_ends[i], the
    # last with the run.
    resolution: list[int] = knob([128], "crop side in each phase")
    train_batch_size: list[int] = knob([8], "crops a process in each phase")
    phase_ends: list[int] = knob([], "steps at which all but the last phase end")
    max_train_steps: int = 100_000
    learning_rate: float = knob(1e-3, "NAFNet's; 3e-4 for Restormer, 2e-4 for PromptIR")
    lr_scheduler: str = "warmup_stable_decay"
    lr_warmup_steps: int = 500
    adam_beta2: float = knob(0.9, "NAFNet's; short memory suits a mixture of tasks")
    adam_weight_decay: float = 0.0
    use_ema: bool = True
    validation_size: int = knob(256, "validation images are cut to a square of this side")

    def __post_init__(self):
        super().__post_init__()
        if not len(self.resolution) == len(self.train_batch_size) == len(self.phase_ends) + 1:
            raise ValueError(
                "`--resolution` and `--train_batch_size` need one entry a phase and `--phase_ends` "
                "one less, "
                f"got {self.resolution}, {self.train_batch_size}, {self.phase_ends}."
            )
        if list(self.phase_ends) != sorted(self.phase_ends) or any(
            end >= self.max_train_steps for end in self.phase_ends
        ):
            raise ValueError(
                "`--phase_ends` must rise and end before `--max_train_steps`, got "
                f"{self.phase_ends}."
            )
        if self.trains not in ("all", "guidance", "condition", "experts"):
            raise ValueError(
                f"`--trains` must be all, guidance, condition or experts, got {self.trains!r}."
            )
        if self.restorer_from and self.pretrained_model_name_or_path is None:
            raise ValueError(
                "`--restorer_from` completes a checkpoint; name it by "
                "`--pretrained_model_name_or_path`, or give the restorer there."
            )
        if self.guidance_dirs and (
            len(self.guidance_dirs) != len(self.train_data_dir)
            or self.guidance_dir
            or self.dataset_name
        ):
            raise ValueError(
                "`--guidance_dirs` needs one folder for each `--train_data_dir`, and neither "
                "`--guidance_dir` nor `--dataset_name`, "
                f"got {len(self.guidance_dirs)} for {len(self.train_data_dir)}."
            )
        if self.restorer not in CLASSES:
            raise ValueError(
                f"Unknown `--restorer` {self.restorer!r}; known are {', '.join(CLASSES)}."
            )
        if self.painted_from not in ("cleaned", "degraded"):
            raise ValueError(
                f"`--painted_from` must be cleaned or degraded, got {self.painted_from!r}."
            )


def main(config: Config) -> TrainingRun:
    data = read_data(config, max(config.resolution))
    guided = config.guidance and data.has_guidance
    pipe = load_restorer(config)
    if config.labels:
        add_condition(pipe, "restorer", config, expert_rank=config.expert_rank)
    if guided:
        add_guidance(pipe, config)
    told_share = check_told(pipe.restorer, config, data)
    run = start_run(pipe, config, guided)
    ends = [*config.phase_ends, config.max_train_steps]
    phases = [
        (data.crops(size, told_share), count, end)
        for size, count, end in zip(config.resolution, config.train_batch_size, ends)
    ]
    for batch in run.batches(phases):
        save_first_pairs(run, batch)
        with run.accumulate():
            restored = restore_batch(run, pipe.restorer, batch, config, guided)
            loss = restoration_loss(restored, batch["clean"], config.loss, config.fft_weight)
            run.update(loss, len(batch["clean"]))
        if run.is_to_validate():
            validate(run, config, config.validation_size, restore(pipe, config, guided))
    run.save()
    publish(run, pipe, "train_restorer")
    return run


def check_told(restorer, config: Config, data: TrainingData) -> float | None:
    """The share of samples that are told what to remove, `None` for a blind network.

    Raises:
        ValueError: if only the condition shall train and there is none.
    """
    share = check_labels(restorer, config, data)
    if share is None and config.trains in ("condition", "experts"):
        raise ValueError(
            f"`--trains {config.trains}` needs a network that can be told what to remove; add "
            "`--labels all`."
        )
    return share


def start_run(pipe: TextGuidedRestorationPipeline, config: Config, guided: bool) -> TrainingRun:
    """Make trainable what shall train, and bring it and what validation paints with to the
    device."""
    parts = ["restorer", "matcher"] if guided else ["restorer"]
    models = make_trainable(pipe, parts, config.rank, config.lora_alpha)
    freeze_rest(pipe.restorer, config.trains)
    for model in models.values():
        if config.gradient_checkpointing:
            model.enable_gradient_checkpointing()
        model.to(memory_format=torch.channels_last)
    rates = {"matcher": config.matcher_learning_rate} if config.matcher_learning_rate else {}
    run = TrainingRun(config, models, rates)
    paints = guided and pipe.unet is not None and config.validation_data_dir is not None
    place(pipe, run, *models, *(PAINTERS if paints else ()))
    return run


def restore_batch(
    run: TrainingRun, network, batch: dict[str, torch.Tensor], config: Config, guided: bool
) -> torch.Tensor | list[torch.Tensor]:
    """What the training restorer makes of a batch, told what its samples are told; `network` is the
    same without what accelerate wraps it in."""
    options = {"all_scales": True} if getattr(network, "num_scales", 1) > 1 else {}
    if "condition" in batch:
        options["condition"] = batch["condition"][:, condition_columns(network)]
    degraded = batch["degraded"].contiguous(memory_format=torch.channels_last)
    if guided:
        guidance = batch["guidance"].contiguous(memory_format=torch.channels_last)
        options["guidance_features"] = run.models["matcher"](mean_view(degraded), guidance).features
        options["strength"] = draw_strength(batch["index"], config).to(degraded)
    return run.models["restorer"](degraded, **options)


def freeze_rest(restorer, trains: str) -> None:
    """Leave to train, of the parameters that do, those that `--trains` names."""
    names = {
        "all": ("",),
        "guidance": ("fusion",),
        "condition": ("condition_embedding", "modulate", "expert_"),
        "experts": ("expert_",),
    }[trains]
    for name, parameter in restorer.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and any(part in name for part in names))


def read_data(config: Config, smallest: int) -> TrainingData:
    """The training data, each source with guidance of its own where `guidance_dirs` says so."""
    if not config.guidance_dirs:
        return TrainingData(config, smallest)
    parts = []
    for i, (source, folder) in enumerate(zip(config.train_data_dir, config.guidance_dirs)):
        single = {"train_data_dir": [source], "guidance_dir": folder, "guidance_dirs": []}
        single["output_dir"] = (
            f"{config.output_dir}/source-{i}"  # where it notes which images it has checked
        )
        parts.append(TrainingData(replace(config, **single), smallest))
    joined = parts[0]
    if any(part.weights for part in parts):
        joined.weights = list(chain.from_iterable(part.weights or [1.0] for part in parts))
    joined.sources = list(chain.from_iterable(part.sources for part in parts))
    return joined


def mean_view(degraded: torch.Tensor) -> torch.Tensor:
    """What a matcher compares with guidance, `(B, 3, H, W)`: the photo `(B, 3 * views, H, W)`
    itself, or of the views of a dual-pixel sensor the mean, which lies where the clean photo does;
    each view alone is shifted against it where it is out of focus."""
    return degraded if degraded.shape[1] == 3 else degraded.unflatten(1, (-1, 3)).mean(1)


def load_restorer(config: Config) -> TextGuidedRestorationPipeline:
    """The pipeline of the checkpoint, or a new one of a new network alone."""
    if config.pretrained_model_name_or_path is not None:
        if config.restorer_config:
            raise ValueError(
                "`--restorer_config` builds a new network; leave out "
                "`--pretrained_model_name_or_path`, which brings one."
            )
        pipe = load_chain(config)
        if config.restorer_from is not None:
            other = {
                "pretrained_model_name_or_path": config.restorer_from,
                "restorer_from": None,
                "adapter": None,
            }
            given = load_chain(replace(config, revision=None, variant=None, **other))
            need(given, "restorer")
            pipe.register_modules(restorer=given.restorer, matcher=given.matcher)
        return pipe
    refuse_lora(config, "restorer")
    torch.manual_seed(config.seed)
    options = read_json(config.restorer_config, "--restorer_config")
    try:
        return TextGuidedRestorationPipeline(restorer=CLASSES[config.restorer](**options))
    except TypeError as error:
        raise ValueError(f"`--restorer_config` does not fit {config.restorer}: {error}") from None


def add_guidance(pipe: TextGuidedRestorationPipeline, config: Config, **matcher_options) -> None:
    """Give a pipeline what guided restoration needs and it lacks: fusion blocks in the restorer,
    and a matcher, with options of its class, that feeds them."""
    settings = {
        name: value for name, value in pipe.restorer.config.items() if not name.startswith("_")
    }
    if settings.get("guidance_channels") is None:
        refuse_lora(config, "guidance")
        add_fusion(pipe, config, settings)
    if pipe.matcher is None:
        refuse_lora(config, "matcher")
        channels = list(pipe.restorer.config.guidance_channels)
        downscale = settings.get("downscale", 1)
        matcher = GuidanceMatcher(widths=channels, downscale=downscale, **matcher_options)
        pipe.register_modules(matcher=matcher)


def add_fusion(pipe: TextGuidedRestorationPipeline, config: Config, settings: dict) -> None:
    """Rebuild a restorer with new fusion blocks, which start as if they were not there; `settings`
    are the arguments of its class."""
    depths = settings.get("encoder_depths")
    levels = len(depths) + 1 if depths is not None else pipe.restorer.num_levels
    widths = config.matcher_widths or list(pipe.restorer.guidance_widths[:levels])
    if len(widths) != levels:
        raise ValueError(
            f"`--matcher_widths` needs {levels} numbers, one a level of the restorer, got {widths}."
        )
    options = {**settings, "guidance_channels": widths, "fusion": config.fusion}
    fused = type(pipe.restorer)(**options)
    backbone = pipe.restorer.state_dict()
    backbone = {key: value for key, value in backbone.items() if "fusion" not in key}
    absent = fused.load_state_dict(backbone, strict=False)
    if absent.unexpected_keys or not all("fusion" in key for key in absent.missing_keys):
        raise ValueError(
            f"{type(fused).__name__} with guidance does not extend the one without; this is a "
            "mistake in its class."
        )
    pipe.register_modules(restorer=fused)


def restore(pipe: TextGuidedRestorationPipeline, config: Config, guided: bool):
    """What the network makes of an image, alone and, where the chain can paint one, with
    guidance."""
    paints = guided and pipe.unet is not None

    def render(degraded: torch.Tensor, recipe: str | None) -> dict[str, torch.Tensor]:
        networks = [pipe.restorer, pipe.matcher] if guided else [pipe.restorer]
        for network in networks:
            network.eval()
        labels = labels_of(pipe.restorer)
        rendered = {"unguided" if guided else "restored": pipe.restorer(degraded)}
        if labels and recipe is not None:
            removed = condition_of(Recipe.parse(recipe).labels)
            condition = removed[condition_columns(pipe.restorer)][None].to(degraded)
            rendered["told"] = pipe.restorer(degraded, condition=condition)
        if paints:
            seen, generator = mean_view(degraded), torch.Generator().manual_seed(0)
            painted = pipe.guide(seen, config.painted_from, generator=generator).images
            rendered["guided"] = pipe.restorer(
                degraded, pipe.matcher(seen, painted.to(seen)).features
            )
        for network in networks:
            network.train()
        return rendered

    return render


def draw_strength(index: torch.Tensor, config: Config) -> torch.Tensor:
    """The strength of the guidance `(B, 1, 1, 1)` for the samples `index` `(B,)`: 0 for a share of
    them, else 1."""
    draws = [torch.rand((), generator=sample_generator(config.seed ^ 0xD20, int(i))) for i in index]
    return (torch.stack(draws) >= config.guidance_dropout).float()[:, None, None, None]


if __name__ == "__main__":
    run_script(main, Config)
