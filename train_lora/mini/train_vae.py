"""Foundation 1: a small VAE, 64 x 64 pixels to 16 x 16 latents.

    python -m train_lora.mini.train_vae --train_data_dir PHOTOS --validation_data_dir HELD_OUT \
        --output_dir runs/mini/vae

The encoder is not trained but computed: principal components of 4 x 4 squares, written into the
convolutions of diffusers' `AutoencoderTiny`, so that latents are white from the start. The decoder
learns to undo it. Gate: 26 dB on held-out photos.
"""

from dataclasses import dataclass

import torch
from diffusers import AutoencoderTiny
from torch.nn.functional import pixel_unshuffle

from pipelines import TextGuidedRestorationPipeline
from textir.training.config import knob, run_script
from textir.training.losses import reconstruction_loss
from textir.training.run import TrainingRun
from train_lora.chain import publish
from train_lora.data import StageConfig, TrainingData
from train_lora.mini.gate import WHOLE, pass_gate
from train_lora.watching import validate

LATENT_STD = 0.7  # the decoder squeezes its input with tanh; this much of it passes unharmed


@dataclass(kw_only=True)
class Config(StageConfig):
    degradations: list[str] = knob(
        ["clean"], "guidance is clean, and so is what the decoder learns from"
    )
    resolution: int = 64
    min_share: float | None = knob(0.4, "whole photos in small")
    train_batch_size: int = 32
    learning_rate: float = 2e-3
    lr_scheduler: str = "warmup_stable_decay"
    lr_warmup_steps: int = 100
    adam_weight_decay: float = 0.0
    max_train_steps: int = 4000
    use_ema: bool = True
    latent_channels: int = 8
    width: int = knob(48, "channels of all layers; at least 48 for the exact encoder")
    pca_samples: int = 2000
    gate: float = knob(26.0, "PSNR in dB that held-out photos must reach")


def main(config: Config) -> TrainingRun:
    data = TrainingData(config, config.resolution)
    samples = data.crops(config.resolution)
    vae = build_vae(config)
    set_components(vae, torch.stack([samples[i]["clean"] for i in range(config.pca_samples)]))
    vae.requires_grad_(False)
    vae.decoder.requires_grad_(True)
    vae.to(memory_format=torch.channels_last)
    run = TrainingRun(config, {"vae": vae})
    decode = run.models["vae"]

    for batch in run.batches([(samples, config.train_batch_size, config.max_train_steps)]):
        with run.accumulate():
            image = batch["clean"].contiguous(memory_format=torch.channels_last) * 2 - 1
            loss = reconstruction_loss(decode(image).sample, image)
            run.update(loss, len(image))
        if run.is_to_validate():
            validate(run, config, WHOLE, render(vae))
    run.save()
    pass_gate(run, config, config.gate, render(vae))
    publish(run, TextGuidedRestorationPipeline(vae=vae), "mini.train_vae")
    return run


def build_vae(config: Config) -> AutoencoderTiny:
    return AutoencoderTiny(
        encoder_block_out_channels=(config.width,) * 3,
        decoder_block_out_channels=(config.width,) * 3,
        num_encoder_blocks=(1, 2, 2),
        num_decoder_blocks=(2, 2, 1),
        latent_channels=config.latent_channels,
        scaling_factor=1 / LATENT_STD,
    )


@torch.no_grad()
def set_components(vae: AutoencoderTiny, images: torch.Tensor) -> None:
    """Make the encoder the whitened principal components of the 4 x 4 squares of `images` `(B, 3,
    H, W)` in [0, 1]: blocks pass their input on (all of it is positive), strided convolutions fold
    squares into channels, the last convolution projects."""
    first, *middle, last = (layer for layer in vae.encoder.layers)
    for layer in vae.encoder.layers:
        if isinstance(layer, torch.nn.Conv2d):
            layer.weight.zero_()
            if layer.bias is not None:
                layer.bias.zero_()
        else:  # a residual block: its branch ends at zero, its skip and activation change nothing
            for conv in (module for module in layer.conv if isinstance(module, torch.nn.Conv2d)):
                conv.weight.zero_()
                conv.bias.zero_()
    for channel in range(3):
        first.weight[channel, channel, 1, 1] = 1
    channels = 3
    for fold in (layer for layer in middle if isinstance(layer, torch.nn.Conv2d)):
        for channel in range(channels):
            for i in range(2):
                for j in range(2):
                    fold.weight[4 * channel + 2 * i + j, channel, 1 + i, 1 + j] = 1
        channels *= 4
    squares = pixel_unshuffle(pixel_unshuffle(images, 2), 2).movedim(1, -1).flatten(0, 2)
    mean = squares.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov((squares - mean).T))
    kept = (
        vectors[:, -len(last.weight) :].flip(1)
        / values[-len(last.weight) :].flip(0).clamp(min=1e-8).sqrt()
        * LATENT_STD
    )
    last.weight[:, :channels, 1, 1] = kept.T
    last.bias.copy_(-mean @ kept)


def render(vae: AutoencoderTiny):
    """What is left of a degraded (here: clean) image after encoding and decoding."""

    def through(image: torch.Tensor, recipe: str | None) -> dict[str, torch.Tensor]:
        small = torch.nn.functional.interpolate(image, (64, 64), mode="bilinear", antialias=True)
        return {"restored": vae(small * 2 - 1).sample / 2 + 0.5, "clean": small}

    return through


if __name__ == "__main__":
    run_script(main, Config)
