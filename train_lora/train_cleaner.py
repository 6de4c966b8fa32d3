"""Stage 2: teach the cleaner to take the degradation out of words (Lin et al., section 3.3).

    accelerate launch -m train_lora.train_cleaner --pretrained_model_name_or_path runs/mapper/pipeline \
        --train_data_dir PHOTOS --degradations noise:0..50 rain:0.2..1 --mixed_precision bf16 --output_dir runs/cleaner

The words of the degraded image, cleaned, must let the UNet predict the noise in the latents of its *clean* twin. Mapper and UNet are
frozen. `--word_weight` adds the distance from the words of the clean twin; with `--diffusion_weight 0` that alone trains the cleaner,
without a UNet and many times faster. The result is `OUTPUT_DIR/pipeline`, or `OUTPUT_DIR/adapter` with `--rank`; LoRA of stage 1
(`--adapter`) goes into the same file.
"""

from dataclasses import dataclass

import torch
from diffusers import DDPMScheduler

from textir.adapters import make_trainable
from textir.encoding import draw_noise
from textir.losses import diffusion_loss, word_loss
from textir.training import TrainingRun, knob, run_script
from train_lora.stage import (
    StageConfig,
    TrainingData,
    add_cleaner,
    encoded_batches,
    load_chain,
    need,
    place,
    publish,
    validate,
)


@dataclass(kw_only=True)
class Config(StageConfig):
    learning_rate: float = knob(6.4e-5, "the paper's, for 64 images a step")
    cleaner_config: str | None = knob(
        None, "JSON of TextualCleaner arguments: builds a new cleaner, such as '{\"residual\": true}'"
    )
    diffusion_weight: float = knob(1.0, "of the loss on the clean latents (the paper)")
    word_weight: float = knob(0.0, "of the distance from the words of the clean twin")
    snr_gamma: float | None = knob(None, "min-SNR weighting of the timesteps; 5 is usual")
    num_cached_samples: int = knob(0, "encode so many samples once and go round them; 0 makes fresh ones forever")

    def __post_init__(self):
        super().__post_init__()
        if min(self.diffusion_weight, self.word_weight) < 0 or self.diffusion_weight + self.word_weight == 0:
            raise ValueError("`--diffusion_weight` and `--word_weight` must not be negative, and one of them above 0.")


def main(config: Config) -> TrainingRun:
    pipe = load_chain(config)
    need(pipe, "image_encoder", "image_processor", "mapper")
    painting = ("text_encoder", "tokenizer", "unet", "vae", "scheduler")
    if config.diffusion_weight or config.validation_data_dir is not None:  # validation shows what the words paint
        need(pipe, *painting)
    add_cleaner(pipe, config)
    models = make_trainable(pipe, ["cleaner"], config.rank, config.lora_alpha)
    if config.gradient_checkpointing and pipe.unet is not None:
        pipe.unet.enable_gradient_checkpointing()
    data = TrainingData(config, config.resolution)
    run = TrainingRun(config, models)
    place(
        pipe,
        run,
        "image_encoder",
        "mapper",
        "cleaner",
        *(part for part in ("text_encoder", "unet", "vae") if getattr(pipe, part)),
    )
    noise_scheduler = pipe.scheduler and DDPMScheduler.from_config(pipe.scheduler.config)
    cleaner = run.models["cleaner"]

    @torch.no_grad()
    def encode(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        encoded = {"words": pipe.mapper(pipe.encode_image(batch["degraded"]).float())}
        if config.word_weight:
            encoded["clean_words"] = pipe.mapper(pipe.encode_image(batch["clean"]).float())
        if config.diffusion_weight:
            encoded["latents"] = pipe.encode_latents(batch["clean"])
        return encoded

    samples = data.crops(config.resolution)
    for batch in encoded_batches(run, pipe, samples, encode, config.num_cached_samples):
        with run.accumulate():
            cleaned, loss = cleaner(batch["words"]), 0.0
            if config.word_weight:
                loss = loss + config.word_weight * word_loss(cleaned, batch["clean_words"])
            if config.diffusion_weight:
                latents = batch["latents"]
                noise, timesteps = draw_noise(batch["index"], latents.shape[1:], noise_scheduler, config.seed, run.device)
                painted = diffusion_loss(
                    pipe.unet, noise_scheduler, latents, pipe.encode_words(cleaned), noise, timesteps, config.snr_gamma
                )
                loss = loss + config.diffusion_weight * painted
            run.update(loss, len(cleaned))
        if run.due(config.validation_steps):
            validate(run, config, config.resolution, compare(pipe, config))
    run.save()
    publish(run, pipe, "train_cleaner")
    return run


def compare(pipe, config: Config):
    """Guidance from the words as they are and from cleaned ones, beside the clean image at their size."""
    paint = pipe.painter()

    def render(degraded: torch.Tensor) -> dict[str, torch.Tensor]:
        return {
            kind: paint(degraded, guidance=kind, generator=torch.Generator().manual_seed(config.seed), output_type="pt").images
            for kind in ("degraded", "cleaned")
        }

    return render


if __name__ == "__main__":
    run_script(main, Config)
