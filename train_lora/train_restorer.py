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

A chain small enough to paint in the loop needs no folder: with `--view 256` the guidance of every
sample is painted from 256 x 256 pixels around the crop, so that it knows more of the photo than the
crop shows; `--crop_sides` teach tiles and whole photos alike. Photos that the painter has learnt
from are painted better than others, so a network that learns from their paintings trusts guidance
too much. `--true_share 1 --guidance_jitter 0.35` takes the clean photo in small instead, with the
errors of a painter on photos it has never seen. Measure then against what guidance helps, and say
so in the result: `--guided_degradations haze lowlight`.

The result is `OUTPUT_DIR/pipeline`, or `OUTPUT_DIR/adapter` with `--rank`.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from pipelines import TextGuidedRestorationPipeline
from textir.adapters import make_trainable
from textir.conditions import condition_of
from textir.data import sample_generator
from textir.degradations import LABELS, Recipe
from textir.losses import restoration_loss
from textir.models import RESTORERS, GuidanceMatcher
from textir.training import TrainingRun, knob, run_script
from train_lora.stage import (
    StageConfig,
    TrainingData,
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
    validate,
)

# The errors that `--guidance_jitter` makes: weight, channels (1: brightness) and cells a side of
# each field that they are the sum of. These numbers are those of the embedded painter on photos
# that it has not seen.
ERRORS = ((0.65, 1, 1), (0.2, 3, 1), (0.7, 1, 4), (0.45, 3, 4))
SPREAD = 0.45  # of the logarithm of how wrong guidance is, from photo to photo
LEAST_CORRECTION = (
    0.1  # what guidance corrects counts as this much at least: paintings of clean photos err too
)
CLASSES = {network.__name__: network for network in RESTORERS}
# Parts that make guidance.
PAINTERS = (
    "image_encoder",
    "mapper",
    "cleaner",
    "text_encoder",
    "unet",
    "vae",
)
COARSE = 8  # side in pixels at which that is measured
DETAIL = (12, 16, 24, 32)  # sides in pixels that paintings are as detailed as


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
    view: int | None = knob(
        None, "paint guidance in the loop, from so many pixels around each crop; of one phase only"
    )
    crops_per_view: int = knob(
        1, "crops of `--resolution` cut out of each view, so that a painting serves several"
    )
    crop_sides: list[int] = knob(
        [],
        "sides of which each batch draws one for its crops, so many of them that batches cost "
        "alike; `--resolution` alone otherwise",
    )
    guidance_jitter: float = knob(
        0.0,
        "errors of guidance, smooth over the view, as a share of what it corrects, such as 0.35: "
        "photos that the painter has learnt from "
        "are painted better than others, and would teach too much trust; guidance of "
        "`--true_share` also loses detail",
    )
    painted_from: str = knob(
        "cleaned",
        "what `--view` and validation paint from: cleaned words, or degraded ones (the ablation)",
    )
    true_share: float = knob(
        0.0,
        "share of samples that `--view` guides by the clean photo at the size of a painting; 1 "
        "paints nothing, so it is faster",
    )
    fusion: str = knob("both", "where guidance enters the network: encoder, decoder or both")
    matcher_widths: list[int] = knob(
        [], "channels of the matcher's levels, finest first; what suits the restorer by default"
    )
    aligned: bool = knob(
        False, "guidance shows everything where the photo does, so a new matcher searches nothing"
    )
    relative: bool = knob(
        False,
        "a new matcher returns what guidance shows differently from the photo, not what it shows",
    )
    new_guidance: bool = knob(
        False, "replace fusion blocks and matcher of the checkpoint by new ones"
    )
    guided_degradations: list[str] = knob(
        [],
        "what the result uses its guidance against unless a call says otherwise, such as haze "
        "lowlight; `all`; as the checkpoint has it "
        "by default",
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
        if self.view is not None and (
            len(self.resolution) > 1 or self.view < self.resolution[0] or not self.guidance
        ):
            raise ValueError(
                "`--view` must be at least the one `--resolution`, with `--guidance`, got "
                f"{self.view} and {self.resolution}."
            )
        if self.crops_per_view < 1 or (self.crops_per_view > 1 and self.view is None):
            raise ValueError(
                "`--crops_per_view` must be at least 1 and goes with `--view`, got "
                f"{self.crops_per_view}."
            )
        if not 0 <= self.true_share <= 1 or (self.true_share and self.view is None):
            raise ValueError(
                f"`--true_share` must lie in 0 to 1 and goes with `--view`, got {self.true_share}."
            )
        if self.crop_sides and (
            self.view is None
            or not self.resolution[0] <= min(self.crop_sides) <= max(self.crop_sides) <= self.view
        ):
            raise ValueError(
                "`--crop_sides` must lie between `--resolution` and `--view`, got "
                f"{self.crop_sides}, {self.resolution} and {self.view}."
            )
        if self.guidance_jitter < 0 or (self.guidance_jitter and self.view is None):
            raise ValueError(
                "`--guidance_jitter` must be at least 0 and goes with `--view`, got "
                f"{self.guidance_jitter}."
            )
        if self.guided_degradations and self.rank is not None:
            raise ValueError(
                "`--guided_degradations` belongs to a whole checkpoint; an adapter (`--rank`) has "
                "no place for it."
            )
        read_guided(self.guided_degradations)
        if self.painted_from not in ("cleaned", "degraded"):
            raise ValueError(
                f"`--painted_from` must be cleaned or degraded, got {self.painted_from!r}."
            )


def main(config: Config) -> TrainingRun:
    sides = config.resolution if config.view is None else [config.view]
    data = read_data(config, max(sides))
    guided = config.guidance and (data.has_guidance or config.view is not None)
    if not guided and (config.new_guidance or config.guided_degradations):
        raise ValueError(
            "`--new_guidance` and `--guided_degradations` need guidance to train with: "
            "`--guidance_dir`, or `--view` for a "
            "chain that paints, and not `--guidance False`."
        )
    pipe = load_restorer(config)
    if config.view is not None:
        need(
            pipe, "image_encoder", "mapper", "text_encoder", "tokenizer", "unet", "vae", "scheduler"
        )
    if config.labels:
        add_condition(pipe, "restorer", config, expert_rank=config.expert_rank)
    if guided:
        add_guidance(pipe, config)
    told_share = check_labels(pipe.restorer, config, data)
    if told_share is None and config.trains in ("condition", "experts"):
        raise ValueError(
            f"`--trains {config.trains}` needs a network that can be told what to remove; add "
            "`--labels all`."
        )
    if config.guided_degradations:
        pipe.register_to_config(guided_degradations=read_guided(config.guided_degradations))
    models = make_trainable(
        pipe, ["restorer", "matcher"] if guided else ["restorer"], config.rank, config.lora_alpha
    )
    freeze_rest(pipe.restorer, config.trains)
    if config.gradient_checkpointing:
        for model in models.values():
            model.enable_gradient_checkpointing()
    for model in models.values():
        model.to(memory_format=torch.channels_last)
    rates = {"matcher": config.matcher_learning_rate} if config.matcher_learning_rate else {}
    run = TrainingRun(config, models, rates)
    shown = guided and pipe.unet is not None and config.validation_data_dir is not None
    place(
        pipe,
        run,
        *models,
        *(["image_encoder", "mapper", "cleaner", "text_encoder", "unet", "vae"] if shown else []),
    )
    restorer, matcher = run.models["restorer"], run.models.get("matcher")
    if config.view is not None:
        for name in PAINTERS:
            part = getattr(pipe, name)
            if part is not None:
                part.to(run.device)
    options = {"all_scales": True} if getattr(pipe.restorer, "num_scales", 1) > 1 else {}

    ends = [*config.phase_ends, config.max_train_steps]
    phases = [
        (data.crops(size, told_share), count, end)
        for size, count, end in zip(sides, config.train_batch_size, ends)
    ]
    columns = condition_columns(pipe.restorer)
    for batch in run.batches(phases):
        if config.view is not None:
            batch = cut(paint(pipe, batch, config), config)
        if told_share is not None:
            options["condition"] = batch["condition"][:, columns]
        with run.accumulate():
            degraded = batch["degraded"].contiguous(memory_format=torch.channels_last)
            if guided:
                guidance = batch["guidance"].contiguous(memory_format=torch.channels_last)
                features = matcher(mean_view(degraded), guidance).features
                restored = restorer(
                    degraded,
                    features,
                    draw_strength(batch["index"], config).to(degraded),
                    **options,
                )
            else:
                restored = restorer(degraded, **options)
            loss = restoration_loss(restored, batch["clean"], config.loss, config.fft_weight)
            run.update(loss, len(degraded))
        if run.due(config.validation_steps):
            validate(run, config, config.validation_size, restore(pipe, config, guided))
    run.save()
    publish(run, pipe, "train_restorer")
    return run


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


def read_guided(names: list[str]) -> list[str] | None:
    """What `--guided_degradations` says, for the pipeline; `None` for all.

    Raises:
        ValueError: if a degradation is unknown.
    """
    if list(names) in ([], ["all"]):
        return None
    unknown = [name for name in names if name not in LABELS]
    if unknown:
        raise ValueError(
            f"`--guided_degradations` takes all, or some of {', '.join(LABELS)}; got "
            f"{', '.join(unknown)}."
        )
    return list(names)


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
        joined.weights = [weight for part in parts for weight in part.weights or [1.0]]
    joined.sources = [source for part in parts for source in part.sources]
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


def add_guidance(pipe: TextGuidedRestorationPipeline, config: Config) -> None:
    """Give a pipeline what guided restoration needs and it lacks: fusion blocks in the restorer,
    and a matcher that feeds them."""
    options = dict(pipe.restorer.config)
    if config.new_guidance:
        pipe.register_modules(matcher=None)
    if options.get("guidance_channels") is None or config.new_guidance:
        refuse_lora(config, "guidance")
        levels = (
            len(options["encoder_depths"]) + 1
            if "encoder_depths" in options
            else pipe.restorer.num_levels
        )
        widths = config.matcher_widths or list(pipe.restorer.guidance_widths[:levels])
        if len(widths) != levels:
            raise ValueError(
                f"`--matcher_widths` needs {levels} numbers, one a level of the restorer, got "
                f"{widths}."
            )
        settings = {name: value for name, value in options.items() if not name.startswith("_")}
        fused = type(pipe.restorer)(
            **{**settings, "guidance_channels": widths, "fusion": config.fusion}
        )
        backbone = {
            key: value for key, value in pipe.restorer.state_dict().items() if "fusion" not in key
        }
        absent = fused.load_state_dict(backbone, strict=False)
        if absent.unexpected_keys or not all("fusion" in key for key in absent.missing_keys):
            raise ValueError(
                f"{type(fused).__name__} with guidance does not extend the one without; this is a "
                "mistake in its class."
            )
        pipe.register_modules(restorer=fused)
    for option in ("aligned", "relative"):
        if pipe.matcher is not None and getattr(config, option) and not pipe.matcher.config[option]:
            raise ValueError(
                f"`--{option}` shapes a new matcher and this checkpoint has one; add "
                "`--new_guidance`, or leave it out."
            )
    if pipe.matcher is None:
        refuse_lora(config, "matcher")
        channels = list(pipe.restorer.config.guidance_channels)
        pipe.register_modules(
            matcher=GuidanceMatcher(
                widths=channels,
                downscale=options.get("downscale", 1),
                aligned=config.aligned,
                relative=config.relative,
            )
        )


@torch.no_grad()
def paint(pipe, batch: dict[str, torch.Tensor], config: Config) -> dict[str, torch.Tensor]:
    """Paint the guidance of views `(B, 3, V, V)`, or for a share take the clean ones in small;
    drawn by the index of the sample."""
    generators = [sample_generator(config.seed ^ 0x71E, int(i)) for i in batch["index"]]
    true = [
        bool(torch.rand((), generator=generator) < config.true_share) for generator in generators
    ]
    size = pipe.guidance_shape(*batch["clean"].shape[-2:])
    degraded, guidance = (
        batch["degraded"].clamp(0, 1),
        F.interpolate(batch["clean"], size, mode="area"),
    )
    painted = [place for place, taken in enumerate(true) if not taken]
    if painted:
        generator = [generators[place] for place in painted]
        guidance[painted] = pipe.guide(
            degraded[painted], config.painted_from, generator=generator
        ).images.to(guidance)
    if config.guidance_jitter:
        before = F.interpolate(degraded, size, mode="area")
        drawn = zip(guidance, before, true, generators)
        guidance = torch.stack([add_errors(*single, config.guidance_jitter) for single in drawn])
    guidance = F.interpolate(
        guidance.float(), (config.view,) * 2, mode="bicubic", antialias=True
    ).clamp(0, 1)
    return {**batch, "guidance": guidance}


def add_errors(
    guidance: torch.Tensor,
    before: torch.Tensor,
    is_true: bool,
    generator: torch.Generator,
    jitter: float,
) -> torch.Tensor:
    """Guidance `(3, h, w)` as it would be of a photo that the painter has never seen: with errors
    of brightness and colour, smooth over the photo, of `jitter` times what it corrects of the
    degraded photo in small, `before`. A true one loses detail as well."""
    guidance, size = guidance[None], guidance.shape[-2:]
    coarse = F.adaptive_avg_pool2d(guidance - before[None], COARSE)
    corrected = (coarse.square().mean() + LEAST_CORRECTION**2).sqrt()
    wrong = torch.exp(SPREAD * torch.randn((), generator=generator)).to(guidance)
    errors = torch.zeros_like(guidance)
    for weight, channels, side in ERRORS:
        drawn = torch.randn(1, channels, side, side, generator=generator).to(guidance)
        errors = errors + weight * F.interpolate(drawn, size, mode="bicubic")
    if is_true:
        side = DETAIL[torch.randint(len(DETAIL), (), generator=generator)]
        guidance = F.interpolate(F.adaptive_avg_pool2d(guidance, side), size, mode="bicubic")
    return (guidance + jitter * wrong * corrected * errors)[0]


def cut(batch: dict[str, torch.Tensor], config: Config) -> dict[str, torch.Tensor]:
    """Cut crops out of the views: `crops_per_view` of `resolution` each, or, of a side that the
    batch draws, so many of them in all that there are about as many pixels. What is drawn depends
    on the index of the sample (the side, on that of the first)."""
    views, side = len(batch["index"]), config.resolution[0]
    pixels = views * config.crops_per_view * side**2
    if config.crop_sides:
        first = sample_generator(config.seed ^ 0x51DE, int(batch["index"][0]))
        side = config.crop_sides[torch.randint(len(config.crop_sides), (), generator=first)]
    counts = [len(range(view, max(1, round(pixels / side**2)), views)) for view in range(views)]
    room, generators = (
        config.view - side + 1,
        [sample_generator(config.seed ^ 0xC07, int(i)) for i in batch["index"]],
    )
    places = [
        torch.randint(room, (count, 2), generator=generator).tolist()
        for count, generator in zip(counts, generators)
    ]

    def crops(values: torch.Tensor) -> torch.Tensor:
        if values.ndim < 4:
            return values.repeat_interleave(torch.tensor(counts, device=values.device), dim=0)
        return torch.stack(
            [v[:, y : y + side, x : x + side] for v, spots in zip(values, places) for y, x in spots]
        )

    return {name: crops(values) for name, values in batch.items()}


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
