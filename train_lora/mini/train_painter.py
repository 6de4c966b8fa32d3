"""Foundation 3: text encoder and UNet learn to paint a photo from its words.

    python -m train_lora.mini.train_painter --pretrained_model_name_or_path \
        runs/mini/words/pipeline \
        --train_data_dir PHOTOS \
        --captions captions.jsonl --degradations noise:5..50 rain haze clean \
        --readout runs/mini/words/readout.safetensors \
        --validation_data_dir HELD_OUT --output_dir runs/mini/painter

Image encoder, mapper, cleaner and VAE are frozen, words and latents can be cached. The UNet
predicts `v` with zero terminal SNR. It paints from noise what the words say, half of the time from
the last timestep, where one step must paint everything; and, where there is a cleaner, it paints
from the slightly noised latents of the degraded image: by cleaned words the clean photo, by
degraded words the degraded one, so that the words need to bring the appearance only. A share of the
clean photos is painted by a caption or by nothing, so that prompts and classifier-free guidance
mean something. Gate: one step from noise paints held-out photos within half a dB of the linear
read-out of their words. A checkpoint that has a UNet is trained on.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DDPMScheduler
from safetensors.torch import load_file

from textir.data.samples import draw_noise, near_timesteps, sample_generator
from textir.models import PositionedUNet
from textir.training.config import knob, run_script
from textir.training.lora import make_trainable
from textir.training.losses import diffusion_loss
from textir.training.run import TrainingRun
from train_lora.chain import load_chain, need, place, publish
from train_lora.data import StageConfig, TrainingData
from train_lora.encoding import encoded_batches
from train_lora.mini.gate import WHOLE, pass_gate
from train_lora.mini.train_words import ReadOut, read_captions
from train_lora.watching import validate


@dataclass(kw_only=True)
class Config(StageConfig):
    captions: list[str] = knob([], "JSON lines with file_name and captions (a list) or text")
    readout: str = knob("", "the linear head of train_words, as the measure of the gate")
    resolution: int = 128
    min_share: float | None = knob(0.4, "whole photos in small")
    train_batch_size: int = 32
    learning_rate: float = 1e-3
    lr_scheduler: str = "warmup_stable_decay"
    lr_warmup_steps: int = 200
    max_train_steps: int = 8000
    use_ema: bool = True
    guidance_size: int = knob(64, "side of the guidance in pixels")
    block_out_channels: list[int] = knob([64, 96], "channels of the levels of a new UNet")
    last_step_share: float = knob(
        0.5, "share of samples at the last timestep, where one step must paint everything"
    )
    caption_share: float = knob(
        0.1, "share of samples painted from a caption, of photos that have one"
    )
    empty_share: float = knob(
        0.05, "share of samples painted from an empty prompt, for classifier-free guidance"
    )
    clean_share: float = knob(
        0.3, "share of samples that paint from noise the clean photo from its own words"
    )
    image_share: float = knob(
        0.5,
        "share of samples that paint from the degraded image, with a cleaner; the rest paint it "
        "from noise",
    )
    uncleaned_share: float = knob(
        0.15, "of those, the share whose words stay degraded and that paint the image as it is"
    )
    init_strength: float = knob(
        0.15,
        "how far towards noise the degraded image is taken, half more or less; 1 is noise alone",
    )
    num_cached_samples: int = knob(
        0, "encode so many samples once and go round them; 0 makes fresh ones forever"
    )
    gate: float = knob(0.5, "how far in dB the painting may stay behind the read-out")


def main(config: Config) -> TrainingRun:
    data = TrainingData(config, config.resolution)
    captions = read_captions(config.captions)
    pipe = load_chain(config)
    need(pipe, "image_encoder", "mapper", "text_encoder", "tokenizer", "vae")
    if pipe.unet is None:
        add_unet(pipe, config)
    if pipe.cleaner is not None:
        pipe.register_to_config(
            default_guidance_init="image", default_init_strength=config.init_strength
        )
    models = make_trainable(pipe, ["text_encoder", "unet"])
    pipe.unet.requires_grad_(True)
    pipe.unet.to(memory_format=torch.channels_last)
    run = TrainingRun(config, models)
    frozen = ["image_encoder", "mapper", "vae", *(["cleaner"] if pipe.cleaner is not None else [])]
    place(pipe, run, *frozen, "text_encoder", "unet")
    noise_scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    samples = data.crops(config.resolution)
    encode = encoder(pipe, config, run.device)
    for batch in encoded_batches(run, pipe, samples, encode, config.num_cached_samples):
        with run.accumulate():
            latents, index = batch["latents"], batch["index"]
            noise, timesteps = draw_noise(
                index, latents.shape[1:], noise_scheduler, config.seed, run.device
            )
            chance, share = draw_chances(index, config.seed).to(run.device).unbind(1)
            timesteps = choose_timesteps(timesteps, chance, batch, noise_scheduler, config)
            embeds = prompt(pipe, data, captions, batch, share, config)
            loss = diffusion_loss(
                run.models["unet"],
                noise_scheduler,
                latents,
                embeds,
                noise,
                timesteps,
                start=batch["start"],
            )
            run.update(loss, len(latents))
        if run.is_to_validate():
            validate(run, config, WHOLE, paint(pipe, config))
            if pipe.cleaner is not None:
                validate(run, config, WHOLE, guide(pipe, config), "guidance")
    run.save()
    pass_gate(run, config, -config.gate, paint(pipe, config), against="read")
    publish(run, pipe, "mini.train_painter")
    return run


def encoder(pipe, config: Config, device):
    """Words of a batch, the latents that they shall paint, and those from which painting starts."""
    size = (config.guidance_size, config.guidance_size)

    def to_latents(images: torch.Tensor) -> torch.Tensor:
        return pipe.encode_latents(F.interpolate(images, size, mode="area"))

    @torch.no_grad()
    def encode(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        kinds = draw_kinds(batch["index"], config, pipe.cleaner is not None)
        clean = kinds["clean"].to(device)
        cleaned = kinds["cleaned"].to(device)
        is_clean = clean | cleaned
        degraded = batch["degraded"].clamp(0, 1)
        source = torch.where(clean[:, None, None, None], batch["clean"], degraded)
        target = torch.where(is_clean[:, None, None, None], batch["clean"], source)
        words = pipe.mapper(pipe.encode_image(source).float())
        if pipe.cleaner is not None:
            words = torch.where(cleaned[:, None, None], pipe.cleaner(words), words)
        latents = to_latents(target)
        start = latents.clone()
        if cleaned.any():  # elsewhere painting starts from what it shall paint
            start[cleaned] = to_latents(source[cleaned])
        return {
            "words": words,
            "latents": latents,
            "start": start,
            "from_image": kinds["from_image"].to(device),
            "source": batch["source"],
            "photo": batch["photo"],
            "is_clean": is_clean,
        }

    return encode


def draw_chances(index: torch.Tensor, seed: int) -> torch.Tensor:
    """Two numbers in [0, 1) for each of the samples `(B,)`, by `(seed, index)` alone: `(B, 2)`."""
    generators = [sample_generator(seed ^ 0xCA9, int(i)) for i in index]
    return torch.stack([torch.rand(2, generator=generator) for generator in generators])


def choose_timesteps(
    timesteps: torch.Tensor, chance: torch.Tensor, batch: dict, scheduler, config: Config
) -> torch.Tensor:
    """`timesteps` `(B,)`, but for a share of the samples the last one, and near the start for those
    that are painted from an image."""
    last = scheduler.config.num_train_timesteps - 1
    timesteps = torch.where(chance < config.last_step_share, last, timesteps.clamp(min=1))
    near = near_timesteps(chance, config.init_strength, scheduler)
    return torch.where(batch["from_image"].bool(), near, timesteps)


def draw_kinds(index: torch.Tensor, config: Config, has_cleaner: bool) -> dict[str, torch.Tensor]:
    """What each sample `(B,)` paints: `clean` its clean photo by its own words; `from_image` starts
    from the degraded image, by `cleaned` words or by its own; the others paint the degraded image
    from noise."""
    place = (index.cpu().double() * 0.6180339887) % 1  # spreads evenly over [0, 1)
    clean = place < config.clean_share
    from_image = ~clean & (place < config.clean_share + config.image_share) & has_cleaner
    cleaned = from_image & (
        place >= config.clean_share + config.image_share * config.uncleaned_share
    )
    return {"clean": clean, "from_image": from_image, "cleaned": cleaned}


def add_unet(pipe, config: Config) -> None:
    """A new small UNet, and the scheduler with which one step paints."""
    channels, latents = config.block_out_channels, pipe.vae.config.latent_channels
    unet = PositionedUNet(
        sample_size=config.guidance_size // pipe.vae_scale_factor,
        in_channels=latents,
        out_channels=latents,
        down_block_types=("CrossAttnDownBlock2D",) * len(channels),
        up_block_types=("CrossAttnUpBlock2D",) * len(channels),
        block_out_channels=tuple(channels),
        layers_per_block=1,
        cross_attention_dim=pipe.text_encoder.config.hidden_size,
        attention_head_dim=tuple(width // 32 for width in channels),
        norm_num_groups=16,
    )
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )
    pipe.register_modules(unet=unet, scheduler=scheduler)
    pipe.register_to_config(
        default_num_inference_steps=1, default_guidance_scale=1.0, square_guidance=True
    )


def prompt(
    pipe, data: TrainingData, captions: dict, batch: dict, chance: torch.Tensor, config: Config
) -> torch.Tensor:
    """Prompt embeddings of a batch: of the pseudo-words, for a share of the clean photos of a
    caption or of nothing."""
    embeds = pipe.encode_words(batch["words"])
    texts = {}
    for row, (draw, source, photo) in enumerate(
        zip(chance.tolist(), batch["source"].tolist(), batch["photo"].tolist())
    ):
        if not batch["is_clean"][row]:
            continue
        said = captions.get(data.sources[int(source)].entries[int(photo)].clean.stem)
        if draw < config.empty_share:
            texts[row] = ""
        elif draw < config.empty_share + config.caption_share and said:
            texts[row] = said[int(batch["index"][row]) % len(said)]
    if not texts:
        return embeds
    rows = torch.tensor(list(texts), device=embeds.device)
    return embeds.index_copy(0, rows, pipe.encode_text(list(texts.values())).to(embeds.dtype))


def paint(pipe, config: Config):
    """What one step paints from the words of an image, beside what a matrix reads from them and the
    image itself, at one size."""
    weights = load_file(config.readout) if config.readout else None

    def render(degraded: torch.Tensor, recipe: str | None) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        painted = pipe.guide(
            degraded, "degraded", guidance_init="noise", generator=generator
        ).images.float()
        rendered = {
            "painted": painted,
            "clean": F.interpolate(degraded.clamp(0, 1), painted.shape[-2:], mode="area"),
        }
        if weights is not None:
            words = pipe.mapper(pipe.encode_image(degraded).float())
            head = ReadOut(words.shape[1], words.shape[2]).to(words.device)
            head.linear.load_state_dict(weights)
            rendered["read"] = F.interpolate(head(words), painted.shape[-2:], mode="bilinear")
        return rendered

    return render


def guide(pipe, config: Config):
    """The guidance that a restorer would get, from words as they are and from cleaned ones, beside
    the degraded image at its size."""

    def render(degraded: torch.Tensor, recipe: str | None) -> dict[str, torch.Tensor]:
        guidance = {}
        for words in ("degraded", "cleaned"):
            generator = torch.Generator().manual_seed(0)
            guidance[words] = pipe.guide(degraded, words, generator=generator).images.float()
        size = guidance["cleaned"].shape[-2:]
        return {"input": F.interpolate(degraded, size, mode="area"), **guidance}

    return render


if __name__ == "__main__":
    run_script(main, Config)
