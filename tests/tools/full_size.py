"""The whole chain in the shapes of the paper on random weights: does it run, how long, in how much
memory?

python -m tests.tools.full_size [STEPS] [HEIGHT] [WIDTH]
"""

import resource
import sys
import time

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, UNet2DConditionModel
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModel,
)

from pipelines import TextGuidedRestorationPipeline
from tests.tools import tiny
from textir.models import GuidanceMatcher, ImageToTextMapper, NAFNet, TextualCleaner


def full_size_pipeline() -> TextGuidedRestorationPipeline:
    """Stable Diffusion 2.1 (UNet 866 M, text tower 340 M), CLIP ViT-H/14 vision tower (632 M), the
    paper's mapper and cleaner, and NAFNet of width 32 with its matcher. Only the tokenizer is a
    small one: no vocabulary can be downloaded."""
    tokenizer = tiny.tokenizer(length=77)
    text = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=23,
        num_attention_heads=16,
        max_position_embeddings=77,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPVisionConfig(
        hidden_size=1280,
        intermediate_size=5120,
        num_hidden_layers=32,
        num_attention_heads=16,
        image_size=224,
        patch_size=14,
        hidden_act="gelu",
    )
    unet = UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(320, 640, 1280, 1280),
        layers_per_block=2,
        cross_attention_dim=1024,
        attention_head_dim=(5, 10, 20, 20),
        use_linear_projection=True,
    )
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        sample_size=512,
    )
    guidance = (32, 64, 128, 256, 512)
    pipe = TextGuidedRestorationPipeline(
        image_encoder=CLIPVisionModel(vision).eval(),
        image_processor=CLIPImageProcessorPil(),
        tokenizer=tokenizer,
        text_encoder=CLIPTextModel(text).eval(),
        mapper=ImageToTextMapper().eval(),
        cleaner=TextualCleaner().eval(),
        unet=unet.eval(),
        vae=vae.eval(),
        scheduler=DPMSolverMultistepScheduler(),
        matcher=GuidanceMatcher(widths=guidance, depth=1).eval(),
        restorer=NAFNet(width=32, guidance_channels=guidance).eval(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


if __name__ == "__main__":
    steps, height, width = (
        int(argument) for argument in (sys.argv[1:] + ["2", "512", "512"][len(sys.argv) - 1 :])[:3]
    )
    start = time.perf_counter()
    pipe = full_size_pipeline()
    parts = {
        name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)
    }
    for name, part in parts.items():
        print(f"{name:14} {sum(p.numel() for p in part.parameters()) / 1e6:8.1f} M parameters")
    print(f"built in {time.perf_counter() - start:.1f} s")
    for scale in (1.0, 5.0):
        start = time.perf_counter()
        out = pipe(
            tiny.image(height, width),
            num_inference_steps=steps,
            guidance_scale=scale,
            output_type="pt",
        )
        seconds = time.perf_counter() - start
        print(
            f"{width} x {height}, {steps} steps, guidance scale {scale:g}: {seconds:.1f} s, "
            f"finite: {out.images.isfinite().all()}"
        )
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")
