"""What of a pipeline trains, in full or as LoRA (Hu et al., *LoRA: Low-Rank Adaptation of Large
Language Models*, 2021), and the one file that LoRA layers of all parts are saved in."""

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers.training_utils import _collate_lora_metadata, cast_training_params
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

# What the paper trains of a text-to-image UNet: keys and values of its text cross-attention.
# Networks of the project name theirs.
UNET_LAYERS = r".*attn2\.to_[kv]"
# What guidance adds to a restorer; it learns nothing where no matcher trains beside it.
FUSION_LAYERS = r".*_fusions\..*"


def make_trainable(
    pipe, parts: Sequence[str], rank: int | None = None, alpha: float | None = None
) -> dict[str, torch.nn.Module]:
    """Freeze a pipeline and thaw the `parts` of it that shall train: new LoRA layers if there is a
    `rank`, else the weights (of a UNet only keys and values of the text cross-attention). What
    trains is in single precision.

    Raises:
        ValueError: if a part is missing, has LoRA layers already, or has no layer that LoRA could
            adapt.
    """
    for module in pipe.components.values():
        if isinstance(module, torch.nn.Module):
            module.requires_grad_(False)
    models = {}
    for part in parts:
        model = models[part] = getattr(pipe, part, None)
        if model is None:
            raise ValueError(f"This pipeline has no {part} to train.")
        if getattr(model, "peft_config", None):
            raise ValueError(
                f"The {part} has LoRA layers already; fuse them first (`fuse_lora`, "
                "`unload_lora_weights`)."
            )
        if rank is not None:
            targets = UNET_LAYERS if part == "unet" else getattr(model, "_lora_layers", None)
            if targets is None:
                raise ValueError(
                    f"{type(model).__name__} names no `_lora_layers` that could be adapted; train "
                    "it in full."
                )
            fused = "matcher" not in parts and any(
                re.fullmatch(FUSION_LAYERS, name) for name, _ in model.named_modules()
            )
            left_out = FUSION_LAYERS if fused else None
            model.add_adapter(
                LoraConfig(
                    r=rank,
                    lora_alpha=alpha or rank,
                    target_modules=targets,
                    exclude_modules=left_out,
                )
            )
            for key, parameter in model.named_parameters():
                parameter.requires_grad_("lora_" in key)
        else:
            for key, parameter in model.named_parameters():
                parameter.requires_grad_(
                    part != "unet" or re.fullmatch(UNET_LAYERS, key.rsplit(".", 1)[0]) is not None
                )
        cast_training_params(model, dtype=torch.float32)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ValueError(f"Nothing of the {part} would train.")
    return models


def has_adapters(pipe) -> bool:
    """Whether any part carries LoRA layers."""
    return bool(pipe.get_list_adapters())


def save_adapter(pipe, folder: str | Path) -> Path:
    """Write the LoRA layers of all parts of a pipeline into
    `folder/pytorch_lora_weights.safetensors`."""
    parts = {name: getattr(pipe, name) for name in pipe.get_list_adapters()}
    layers = {}
    for name, model in parts.items():
        state = get_peft_model_state_dict(model)
        layers[f"{name}_lora_layers"] = {
            key: value.detach().cpu().contiguous() for key, value in state.items()
        }
    pipe.save_lora_weights(folder, **layers, **_collate_lora_metadata(parts))
    return Path(folder) / "pytorch_lora_weights.safetensors"
