"""Real components, tiny: what every test builds its pipelines from. No downloads, no mocks."""

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
)

from pipelines import TextEditableRestorationPipeline, TextGuidedRestorationPipeline
from textir.degradations import LABELS
from textir.models import (
    DegradationDetector,
    DRSformer,
    EditProcessor,
    GuidanceMatcher,
    ImageToTextMapper,
    NAFNet,
    PhotoEncoder,
    PhotoProcessor,
    PromptIR,
    Restormer,
    SFNet,
    TextEditableRestorer,
    TextualCleaner,
)

WORD_DIM, IMAGE_DIM, NUM_WORDS = 16, 24, 4
WORDS = [
    "a",
    "photo",
    "of",
    "the",
    "rainy",
    "hazy",
    "dark",
    "clean",
    "blurred",
    "noisy",
    "dog",
    "street",
    ",",
    ".",
]


def tokenizer(length: int = 24) -> CLIPTokenizer:
    """A CLIP tokenizer whose vocabulary is single letters and a few words."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)] + [",", "."]
    pieces = letters + [letter + "</w>" for letter in letters]
    merges = []
    for word in WORDS:
        units = [*word[:-1], word[-1] + "</w>"]
        while len(units) > 1:
            merges.append((units[0], units[1]))
            units = [units[0] + units[1], *units[2:]]
            pieces.append(units[0])
    pieces = list(dict.fromkeys([*pieces, "<|startoftext|>", "<|endoftext|>"]))
    vocab = {piece: index for index, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocab, merges=list(dict.fromkeys(merges)), model_max_length=length)


def text_encoder(vocab: int, word_dim: int = WORD_DIM, length: int = 24) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=vocab,
        hidden_size=word_dim,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=length,
        bos_token_id=vocab - 2,
        eos_token_id=vocab - 1,
        pad_token_id=vocab - 1,
    )
    return CLIPTextModel(config)


def unet(latent_channels: int = 4, **overrides) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        **{
            "sample_size": 8,
            "in_channels": latent_channels,
            "out_channels": latent_channels,
            "block_out_channels": (8, 16),
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "layers_per_block": 1,
            "cross_attention_dim": WORD_DIM,
            "attention_head_dim": 4,
            "norm_num_groups": 4,
            **overrides,
        }
    )


def vae_kl() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    )


def vae_tiny() -> AutoencoderTiny:
    return AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        latent_channels=4,
    )


def restorer(guided: bool = True, open_gates: bool = True, told: bool = False) -> NAFNet:
    """A NAFNet; with `open_gates` the zero-initialised gates are set so that blocks, guidance and,
    with `told`, the condition show in the output."""
    model = NAFNet(
        width=4,
        encoder_depths=(1, 1),
        middle_depth=1,
        decoder_depths=(1, 1),
        guidance_channels=(4, 6, 8) if guided else None,
        labels=LABELS if told else None,
        expert_rank=2 if told else 0,
    )
    return with_open_gates(model) if open_gates else model


def transformer(
    network: type = Restormer, guided: bool = True, open_gates: bool = True, **overrides
) -> Restormer | PromptIR | DRSformer:
    """A Restormer, PromptIR or DRSformer of two levels."""
    shape = {"width": 8, "encoder_depths": (1, 1), "middle_depth": 1, "decoder_depths": (1, 1)}
    if network is not DRSformer:
        shape["refinement_depth"] = 1
    if network is PromptIR:
        shape |= {
            "prompt_channels": (4, 8),
            "prompt_sizes": (8, 4),
            "prompt_count": 2,
            "prompt_heads": 2,
        }
    model = network(
        **{
            **shape,
            "heads": (1, 2, 2),
            "guidance_channels": (4, 6, 8) if guided else None,
            **overrides,
        }
    )
    return with_open_gates(model) if open_gates else model


def sfnet(guided: bool = True, open_gates: bool = True, **overrides) -> SFNet:
    """An SFNet of two blocks a group, the second with dynamic filters."""
    model = SFNet(
        **{"width": 16, "depth": 2, "guidance_channels": (4, 6, 8) if guided else None, **overrides}
    )
    return with_open_gates(model) if open_gates else model


def with_open_gates(model: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(
                ("alpha", "scale1", "scale2", "patch_selection.low", "patch_selection.high")
            ):
                parameter.fill_(0.5)
            if name.endswith(("expert_up", "modulate.weight", "condition_shift.weight")):
                parameter.normal_(std=0.3)
    return model


def components(seed: int = 0, vae: str = "kl", **overrides) -> dict:
    """All components of a pipeline; overrides replace some (or take them out with `None`)."""
    torch.manual_seed(seed)
    words = tokenizer()
    vision = CLIPVisionConfig(
        hidden_size=IMAGE_DIM,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
    )
    parts = {
        "image_encoder": CLIPVisionModel(vision),
        "image_processor": CLIPImageProcessorPil(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        ),
        "tokenizer": words,
        "text_encoder": text_encoder(len(words)),
        "mapper": ImageToTextMapper(IMAGE_DIM, WORD_DIM, NUM_WORDS, width=16),
        "cleaner": with_open_gates(TextualCleaner(WORD_DIM, NUM_WORDS, width=16, labels=LABELS)),
        "unet": unet(),
        "vae": vae_kl() if vae == "kl" else vae_tiny(),
        "scheduler": DDIMScheduler(),
        "matcher": GuidanceMatcher(widths=(4, 6, 8), depth=1, block_size=4),
        "restorer": restorer(told=True),
        "detector": DegradationDetector(IMAGE_DIM, width=16),
    }
    for part in parts.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    return {**parts, **overrides}


def pipeline(seed: int = 0, vae: str = "kl", **overrides) -> TextGuidedRestorationPipeline:
    """A whole pipeline of tiny components, two steps by default and quiet."""
    pipe = TextGuidedRestorationPipeline(
        **{"default_num_inference_steps": 2, **components(seed, vae, **overrides)}
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def text_tower(dim: int = 20, length: int = 24) -> CLIPTextModelWithProjection:
    """A text tower whose embeddings have `dim` numbers."""
    torch.manual_seed(5)
    words = tokenizer(length)
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=length,
        projection_dim=dim,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    return CLIPTextModelWithProjection(config).eval()


def clip_photo_tower(dim: int = 20) -> CLIPVisionModelWithProjection:
    """An image tower of CLIP whose embeddings have `dim` numbers, for 32 x 32 pixels."""
    torch.manual_seed(2)
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        projection_dim=dim,
    )
    return CLIPVisionModelWithProjection(config).eval()


def photo_encoder() -> PhotoEncoder:
    """An image tower whose embeddings have 12 + 4 + 4 numbers."""
    torch.manual_seed(3)
    return PhotoEncoder(
        blocks=(12, 4, 4),
        stages=((3, 1, 6, 1), (3, 2, 8, 2)),
        stem_channels=4,
        head_channels=16,
        num_classes=7,
        class_rank=5,
        light_width=8,
        faults_width=8,
    ).eval()


def editor(task: str = "inpaint", seed: int = 0, **overrides) -> TextEditableRestorer:
    """An editor that has learnt something by chance: all its weights, those of words too, differ
    from nothing."""
    torch.manual_seed(seed)
    sizes = {"condition_dim": 20, "style_dim": 8, "widths": (4, 6), "depths": (0, 1)}
    network = TextEditableRestorer(task=task, **{**sizes, **overrides})
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


def editing_pipeline(**overrides) -> TextEditableRestorationPipeline:
    """A whole pipeline of text-editable restoration, quiet."""
    parts = {
        "inpainter": editor("inpaint"),
        "upscaler": editor("super-resolution"),
        "colorizer": editor("colorize"),
        "edit_processor": EditProcessor(),
        "photo_encoder": photo_encoder(),
        "photo_processor": PhotoProcessor(32),
        "photo_text_encoder": text_tower(),
        "photo_tokenizer": tokenizer(),
        "colour_side": 32,
    }
    pipe = TextEditableRestorationPipeline(**{**parts, **overrides})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def image(height: int = 24, width: int = 40, seed: int = 0, batch: int = 1) -> torch.Tensor:
    """Random images `(B, 3, height, width)` in [0, 1], never square unless asked for."""
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def natural_photo(height: int = 192, width: int = 256) -> np.ndarray:
    """Noise with the spectrum of photographs, about 1 / f of amplitude at a frequency f:
    `(H, W, 3)`, 8 bits."""
    generator = torch.Generator().manual_seed(0)
    waves = torch.fft.rfft2(torch.randn(3, height, width, generator=generator))
    down, across = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None]
    photo = torch.fft.irfft2(waves / (down.square() + across.square()).sqrt().clamp(min=0.01))
    photo = (photo / photo.std() * 50 + 128).clamp(0, 255).permute(1, 2, 0)
    return photo.numpy().astype(np.uint8)
