"""Foundation 4: a restorer learns how far to trust guidance, painted in the loop.

    python -m train_lora.mini.train_fusion --config train_lora/mini/told.yaml#fusion

The stage of the paper (`train_restorer`) reads guidance from a folder. A chain as small as the
embedded one paints it for each sample, from a view around the crop, so that it knows more of the
photo than the crop shows; `--crop_sides` teach tiles and whole photos alike.

Photos that the painter has learnt from are painted better than others, so a network that learns
from their paintings trusts guidance too much. `--true_share 1 --guidance_jitter 0.35` takes the
clean photo in small instead, with the errors of a painter on photos it has never seen. Measure then
against what guidance helps, and say so in the result: `--guided_degradations haze lowlight`.

Ours; not in the paper. The result is `OUTPUT_DIR/pipeline`.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from pipelines import TextGuidedRestorationPipeline
from textir.data.samples import sample_generator
from textir.degradations import LABELS
from textir.images.picture import resize
from textir.training.config import knob, run_script
from textir.training.losses import restoration_loss
from textir.training.run import TrainingRun
from train_lora import train_restorer
from train_lora.chain import add_condition, need, publish, refuse_lora
from train_lora.data import TrainingData
from train_lora.train_restorer import (
    PAINTERS,
    add_fusion,
    add_guidance,
    check_told,
    load_restorer,
    restore,
    restore_batch,
    start_run,
)
from train_lora.watching import validate

# The errors that `--guidance_jitter` makes: weight, channels (1: brightness) and cells a side of
# each field that they are the sum of. These numbers are those of the embedded painter on photos
# that it has not seen.
ERRORS = ((0.65, 1, 1), (0.2, 3, 1), (0.7, 1, 4), (0.45, 3, 4))
# Of the logarithm of how wrong guidance is, from photo to photo.
SPREAD = 0.45
# What guidance corrects counts as this much at least: paintings of clean photos err too.
LEAST_CORRECTION = 0.1
# Side in pixels at which that is measured.
COARSE = 8
# Sides in pixels that paintings are as detailed as.
DETAIL = (12, 16, 24, 32)


@dataclass(kw_only=True)
class Config(train_restorer.Config):
    view: int = knob(288, "paint guidance from so many pixels around each crop")
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
        "size of the smooth errors added to the guidance, relative to its correction (0.35 for "
        "mini). Guidance of `--true_share` also loses detail",
    )
    true_share: float = knob(
        0.0,
        "share of samples that are guided by the clean photo at the size of a painting; 1 paints "
        "nothing, so it is faster",
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
        "lowlight; `all`; as the checkpoint has it by default",
    )

    def __post_init__(self):
        super().__post_init__()
        read_guided(self.guided_degradations)
        if len(self.resolution) > 1 or self.view < self.resolution[0] or not self.guidance:
            raise ValueError(
                "`--view` must be at least the one `--resolution`, with `--guidance`, got "
                f"{self.view} and {self.resolution}."
            )
        if self.crops_per_view < 1:
            raise ValueError(f"`--crops_per_view` must be at least 1, got {self.crops_per_view}.")
        if not 0 <= self.true_share <= 1:
            raise ValueError(f"`--true_share` must lie in 0 to 1, got {self.true_share}.")
        sides = self.crop_sides or self.resolution
        if not self.resolution[0] <= min(sides) <= max(sides) <= self.view:
            raise ValueError(
                "`--crop_sides` must lie between `--resolution` and `--view`, got "
                f"{self.crop_sides}, {self.resolution} and {self.view}."
            )
        if self.guidance_jitter < 0:
            raise ValueError(f"`--guidance_jitter` must be at least 0, got {self.guidance_jitter}.")
        if self.guided_degradations and self.rank is not None:
            raise ValueError(
                "`--guided_degradations` belongs to a whole checkpoint; an adapter (`--rank`) has "
                "no place for it."
            )


def main(config: Config) -> TrainingRun:
    data = TrainingData(config, config.view)
    pipe = load_restorer(config)
    need(pipe, "image_encoder", "mapper", "text_encoder", "tokenizer", "unet", "vae", "scheduler")
    if config.labels:
        add_condition(pipe, "restorer", config, expert_rank=config.expert_rank)
    renew_guidance(pipe, config)
    told_share = check_told(pipe.restorer, config, data)
    if config.guided_degradations:
        pipe.register_to_config(guided_degradations=read_guided(config.guided_degradations))
    run = start_run(pipe, config, guided=True)
    for part in (getattr(pipe, name) for name in PAINTERS):
        if part is not None:
            part.to(run.device)
    phases = [
        (data.crops(config.view, told_share), *config.train_batch_size, config.max_train_steps)
    ]
    for views in run.batches(phases):
        batch = cut(paint(pipe, views, config), config)
        with run.accumulate():
            restored = restore_batch(run, pipe.restorer, batch, config, guided=True)
            loss = restoration_loss(restored, batch["clean"], config.loss, config.fft_weight)
            run.update(loss, len(batch["clean"]))
        if run.is_to_validate():
            validate(run, config, config.validation_size, restore(pipe, config, guided=True))
    run.save()
    publish(run, pipe, "mini.train_fusion")
    return run


def renew_guidance(pipe: TextGuidedRestorationPipeline, config: Config) -> None:
    """Give a pipeline fusion blocks and a matcher, new ones where that is asked for."""
    if config.new_guidance:
        refuse_lora(config, "guidance")
        settings = dict(pipe.restorer.config)
        settings = {name: value for name, value in settings.items() if not name.startswith("_")}
        pipe.register_modules(matcher=None)
        add_fusion(pipe, config, settings)
    for option in ("aligned", "relative"):
        if pipe.matcher is not None and getattr(config, option) and not pipe.matcher.config[option]:
            raise ValueError(
                f"`--{option}` shapes a new matcher and this checkpoint has one; add "
                "`--new_guidance`, or leave it out."
            )
    add_guidance(pipe, config, aligned=config.aligned, relative=config.relative)


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


@torch.no_grad()
def paint(
    pipe: TextGuidedRestorationPipeline, batch: dict[str, torch.Tensor], config: Config
) -> dict[str, torch.Tensor]:
    """Paint the guidance of views `(B, 3, V, V)`, or for a share take the clean ones in small;
    drawn by the index of the sample."""
    generators = [sample_generator(config.seed ^ 0x71E, int(i)) for i in batch["index"]]
    draws = [torch.rand((), generator=generator).item() for generator in generators]
    is_true = [draw < config.true_share for draw in draws]
    size = pipe.guidance_shape(*batch["clean"].shape[-2:])
    degraded = batch["degraded"].clamp(0, 1)
    guidance = F.interpolate(batch["clean"], size, mode="area")
    places = [place for place, taken in enumerate(is_true) if not taken]
    if places:
        chosen = [generators[place] for place in places]
        painted = pipe.guide(degraded[places], config.painted_from, generator=chosen).images
        guidance[places] = painted.to(guidance)
    if config.guidance_jitter:
        before = F.interpolate(degraded, size, mode="area")
        samples = zip(guidance, before, is_true, generators)
        guidance = torch.stack([add_errors(*sample, config.guidance_jitter) for sample in samples])
    view = (config.view, config.view)
    return {**batch, "guidance": resize(guidance.float(), view)}


def add_errors(
    guidance: torch.Tensor,
    before: torch.Tensor,
    is_true: bool,
    generator: torch.Generator,
    jitter: float,
) -> torch.Tensor:
    """Guidance `(3, h, w)` as it would be of a photo that the painter has never seen.

    Its errors are of brightness and colour, smooth over the photo, and `jitter` times as large as
    what it corrects of `before`, the degraded photo in small. True guidance loses detail as well.
    """
    guidance, size = guidance[None], guidance.shape[-2:]
    coarse = F.adaptive_avg_pool2d(guidance - before[None], COARSE)
    corrected = (coarse.square().mean() + LEAST_CORRECTION**2).sqrt()
    wrong = torch.exp(SPREAD * torch.randn((), generator=generator)).to(guidance)
    errors = torch.zeros_like(guidance)
    for weight, channels, side in ERRORS:
        field = torch.randn(1, channels, side, side, generator=generator).to(guidance)
        errors = errors + weight * F.interpolate(field, size, mode="bicubic")
    if is_true:
        side = DETAIL[torch.randint(len(DETAIL), (), generator=generator)]
        guidance = F.interpolate(F.adaptive_avg_pool2d(guidance, side), size, mode="bicubic")
    return (guidance + jitter * wrong * corrected * errors)[0]


def cut(batch: dict[str, torch.Tensor], config: Config) -> dict[str, torch.Tensor]:
    """Cut crops out of the views.

    There are `crops_per_view` of `resolution` each, or, of a side that the batch draws, so many in
    all that there are about as many pixels. What is drawn depends on the index of the sample, and
    the side on that of the first.
    """
    views, side = len(batch["index"]), config.resolution[0]
    pixels = views * config.crops_per_view * side**2
    if config.crop_sides:
        first = sample_generator(config.seed ^ 0x51DE, int(batch["index"][0]))
        side = config.crop_sides[torch.randint(len(config.crop_sides), (), generator=first)]
    total = max(1, round(pixels / side**2))
    counts = [len(range(view, total, views)) for view in range(views)]
    corners = []
    for index, count in zip(batch["index"], counts):
        generator = sample_generator(config.seed ^ 0xC07, int(index))
        room = config.view - side + 1
        corners.append(torch.randint(room, (count, 2), generator=generator).tolist())

    def crops(values: torch.Tensor) -> torch.Tensor:
        if values.ndim < 4:
            return values.repeat_interleave(torch.tensor(counts, device=values.device), dim=0)
        cut_out = []
        for view, places in zip(values, corners):
            cut_out += [view[:, top : top + side, left : left + side] for top, left in places]
        return torch.stack(cut_out)

    return {name: crops(values) for name, values in batch.items()}


if __name__ == "__main__":
    run_script(main, Config)
