"""Stage 2: teach the cleaner to take the degradation out of words (Lin et al., section 3.3).

    accelerate launch -m train_lora.train_cleaner --pretrained_model_name_or_path \
        runs/mapper/pipeline \
        --train_data_dir PHOTOS --degradations noise:0..50 rain:0.2..1 \
        --mixed_precision bf16 --output_dir runs/cleaner

The words of the degraded image, cleaned, must let the UNet predict the noise in the latents of its
*clean* twin. Where the guidance of a checkpoint starts from the degraded image, the noise is put on
that (ours). Mapper and UNet are frozen unless `--also_train mapper unet` says otherwise: then the
words themselves and how they are read may suit the degradation, which is what LoRA for one
degradation is for. `--pixel_weight` adds the distance of what one step paints from the clean twin,
`--restored_weight` that of what the checkpoint's restorer makes of the image with such a guidance;
`--word_weight` the distance from the words of the clean twin, and that alone trains the cleaner
without a UNet and many times faster (`--diffusion_weight 0`). The result is `OUTPUT_DIR/pipeline`,
or `OUTPUT_DIR/adapter` with `--rank`; LoRA of stage 1 (`--adapter`) goes into the same file.
"""

from dataclasses import dataclass

import torch
from diffusers import DDPMScheduler

from textir.data.samples import draw_noise, near_timesteps
from textir.images.picture import resize
from textir.training.config import knob, run_script
from textir.training.lora import make_trainable
from textir.training.losses import diffusion_loss, painted_in_one_step, restoration_loss, word_loss
from textir.training.run import TrainingRun
from train_lora.chain import (
    add_cleaner,
    add_condition,
    as_guidance,
    check_labels,
    condition_columns,
    labels_of,
    load_chain,
    need,
    place,
    publish,
)
from train_lora.data import StageConfig, TrainingData
from train_lora.encoding import encoded_batches
from train_lora.watching import validate


@dataclass(kw_only=True)
class Config(StageConfig):
    learning_rate: float = knob(6.4e-5, "the paper's, for 64 images a step")
    cleaner_config: str | None = knob(
        None,
        "JSON of TextualCleaner arguments: builds a new cleaner, such as '{\"residual\": true}'",
    )
    also_train: list[str] = knob(
        [],
        "parts that learn beside the cleaner: mapper, unet (keys and values of its text "
        "cross-attention)",
    )
    diffusion_weight: float = knob(1.0, "of the loss on the clean latents (the paper)")
    pixel_weight: float = knob(
        0.0, "of the logarithm of the squared error of what one step paints, in pixels"
    )
    restored_weight: float = knob(
        0.0,
        "of the logarithm of the squared error of the image restored with that guidance; matcher "
        "and restorer are frozen",
    )
    word_weight: float = knob(0.0, "of the distance from the words of the clean twin")
    guidance_init: str | None = knob(
        None, "what guidance is painted from: noise or image; the checkpoint's default by default"
    )
    init_strength: float | None = knob(
        None, "how far towards noise an image is taken, half more or less; as the checkpoint does"
    )
    snr_gamma: float | None = knob(None, "min-SNR weighting of the timesteps; 5 is usual")
    num_cached_samples: int = knob(
        0, "encode so many samples once and go round them; 0 makes fresh ones forever"
    )

    def __post_init__(self):
        super().__post_init__()
        weights = self.diffusion_weight, self.pixel_weight, self.restored_weight, self.word_weight
        if min(weights) < 0 or sum(weights) == 0:
            raise ValueError(
                "`--diffusion_weight`, `--pixel_weight`, `--restored_weight` and `--word_weight` "
                "must not be negative, and one of them "
                "above 0."
            )
        unknown = set(self.also_train) - {"mapper", "unet"}
        if unknown:
            raise ValueError(
                f"`--also_train` may name mapper and unet, got {', '.join(sorted(unknown))}."
            )
        if self.word_weight and "mapper" in self.also_train:
            raise ValueError(
                "`--word_weight` measures by the mapper's words, which `--also_train mapper` would "
                "move; take one of them."
            )
        if "unet" in self.also_train and not self.paints:
            raise ValueError(
                "`--also_train unet` needs a weight on what is painted; `--word_weight` alone does "
                "not reach the UNet."
            )
        if self.guidance_init not in (None, "noise", "image"):
            raise ValueError(
                f"`--guidance_init` must be noise or image, got {self.guidance_init!r}."
            )
        if self.init_strength is not None and not 0 < self.init_strength <= 1:
            raise ValueError(f"`--init_strength` must lie in (0, 1], got {self.init_strength}.")
        if not self.paints and (self.guidance_init is not None or self.init_strength is not None):
            raise ValueError(
                "`--guidance_init` and `--init_strength` say how guidance is painted, and with "
                "`--word_weight` alone nothing is."
            )
        if self.snr_gamma is not None and not self.diffusion_weight:
            raise ValueError(
                "`--snr_gamma` weighs the loss of `--diffusion_weight`, which is 0; leave it out."
            )

    @property
    def paints(self) -> bool:
        """Whether what the words paint is part of the loss."""
        return bool(self.diffusion_weight or self.pixel_weight or self.restored_weight)


def main(config: Config) -> TrainingRun:
    pipe = load_for(config)
    models = make_trainable(pipe, ["cleaner", *config.also_train], config.rank, config.lora_alpha)
    if config.gradient_checkpointing and pipe.unet is not None:
        pipe.unet.enable_gradient_checkpointing()
    data = TrainingData(config, config.resolution)
    told_share = check_labels(pipe.cleaner, config, data)
    columns = condition_columns(pipe.cleaner)
    run = TrainingRun(config, models)
    place(pipe, run, "image_encoder", "mapper", "cleaner", *parts_that_judge(pipe, config))
    cleaner = run.models["cleaner"]
    mapper = run.models.get("mapper")
    painting_loss = PaintingLoss(pipe, run, config) if config.paints else None
    encode = encoder(pipe, config, painting_loss, told_share is not None)

    samples = data.crops(config.resolution, told_share)
    for batch in encoded_batches(run, pipe, samples, encode, config.num_cached_samples):
        with run.accumulate():
            words = mapper(batch["image_tokens"]) if mapper else batch["words"]
            told = {} if told_share is None else {"condition": batch["condition"][:, columns]}
            cleaned, loss = cleaner(words, **told), 0.0
            if config.word_weight:
                loss = loss + config.word_weight * word_loss(cleaned, batch["clean_words"])
            if config.paints:
                loss = loss + painting_loss(cleaned, batch)
            run.update(loss, len(cleaned))
        if run.is_to_validate():
            validate(run, config, config.resolution, compare(pipe, config))
    run.save()
    publish(run, pipe, "train_cleaner")
    return run


def load_for(config: Config):
    """The chain with its cleaner, new or with a condition where the knobs say so; everything that
    the losses need is there."""
    pipe = load_chain(config)
    need(pipe, "image_encoder", "image_processor", "mapper")
    # Validation shows what the words paint.
    if config.paints or config.validation_data_dir is not None:
        need(pipe, "text_encoder", "tokenizer", "unet", "vae", "scheduler")
    if config.restored_weight:
        need(pipe, "matcher", "restorer")
    add_cleaner(pipe, config)
    if config.labels:
        add_condition(pipe, "cleaner", config)
    return pipe


def parts_that_judge(pipe, config: Config) -> list[str]:
    """The networks behind the cleaner that its losses or its validation go through."""
    parts = [name for name in ("text_encoder", "unet", "vae") if getattr(pipe, name)]
    if config.restored_weight:
        parts += ["matcher", "restorer"]
    return parts


def encoder(pipe, config: Config, painting: "PaintingLoss | None", told: bool):
    """What the frozen networks make of a batch: words or image tokens, and what painting needs."""

    @torch.no_grad()
    def encode(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tokens = pipe.encode_image(batch["degraded"])
        if "mapper" in config.also_train:
            encoded = {"image_tokens": tokens}
        else:
            encoded = {"words": pipe.mapper(tokens.float())}
        if told:
            encoded["condition"] = batch["condition"]
        if config.word_weight:
            encoded["clean_words"] = pipe.mapper(pipe.encode_image(batch["clean"]).float())
        if painting is not None:
            encoded |= painting.encode(batch)
        return encoded

    return encode


class PaintingLoss:
    """The error of what cleaned words paint: of latents, of the pixels that one step paints, and of
    what the restorer makes of those.

    Args:
        pipe: the chain.
        run: the run, which holds the networks that learn.
        config: the weights of the three, and where painting starts.
    """

    def __init__(self, pipe, run: TrainingRun, config: Config):
        self.pipe, self.config, self.device = pipe, config, run.device
        self.scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
        self.unet = run.models.get("unet", pipe.unet)
        init = config.guidance_init or pipe.config.default_guidance_init
        self.from_image = init == "image"
        if config.init_strength is not None and not self.from_image:
            raise ValueError(
                "`--init_strength` says how far an image is taken towards noise; it needs "
                "`--guidance_init image`."
            )
        self.strength = config.init_strength or pipe.config.default_init_strength

    def encode(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What the loss needs of a batch beside its words."""
        target = as_guidance(self.pipe, batch["clean"])
        encoded = {"latents": self.pipe.encode_latents(target)}
        if self.from_image:
            start = as_guidance(self.pipe, batch["degraded"].clamp(0, 1))
            encoded["start"] = self.pipe.encode_latents(start)
        if self.config.pixel_weight:
            encoded["target"] = target
        if self.config.restored_weight:
            encoded |= {"degraded": batch["degraded"], "clean": batch["clean"]}
        return encoded

    def __call__(self, cleaned: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        config, scheduler = self.config, self.scheduler
        latents, start = batch["latents"], batch.get("start")
        embeds = self.pipe.encode_words(cleaned)
        noise, timesteps = draw_noise(
            batch["index"], latents.shape[1:], scheduler, config.seed, self.device
        )
        if self.from_image:
            chance = timesteps / scheduler.config.num_train_timesteps
            timesteps = near_timesteps(chance, self.strength, scheduler)
        loss = 0.0
        if config.diffusion_weight:
            error = diffusion_loss(
                self.unet, scheduler, latents, embeds, noise, timesteps, config.snr_gamma, start
            )
            loss = loss + config.diffusion_weight * error
        if not (config.pixel_weight or config.restored_weight):
            return loss
        noisy = scheduler.add_noise(latents if start is None else start, noise, timesteps)
        one_step = painted_in_one_step(self.unet, scheduler, noisy, embeds, timesteps)
        painted = self.pipe.decode_latents(one_step, clip=False)
        if config.pixel_weight:
            loss = loss + config.pixel_weight * restoration_loss(painted, batch["target"], "psnr")
        if config.restored_weight:
            guidance = resize(painted, batch["degraded"].shape[-2:])
            restored = restore_told(self.pipe, batch, guidance)
            error = restoration_loss(restored, batch["clean"], "psnr")
            loss = loss + config.restored_weight * error
        return loss


def restore_told(pipe, batch: dict[str, torch.Tensor], guidance: torch.Tensor) -> torch.Tensor:
    """What the checkpoint's restorer makes of degraded images with a guidance of their size, told
    what the samples are told."""
    if "condition" not in batch or not labels_of(pipe.restorer):
        return pipe.restore(batch["degraded"], guidance)[0]
    features = pipe.matcher(batch["degraded"], guidance).features
    condition = batch["condition"][:, condition_columns(pipe.restorer)]
    return pipe.restorer(batch["degraded"], features, condition=condition).clamp(0, 1)


def compare(pipe, config: Config):
    """Guidance from the words as they are and from cleaned ones, beside the clean image at their
    size."""

    def render(degraded: torch.Tensor, recipe: str | None) -> dict[str, torch.Tensor]:
        rendered = {}
        for kind in ("degraded", "cleaned"):
            generator = torch.Generator().manual_seed(config.seed)
            rendered[kind] = pipe.guide(degraded, kind, generator=generator).images
        return rendered

    return render


if __name__ == "__main__":
    run_script(main, Config)
