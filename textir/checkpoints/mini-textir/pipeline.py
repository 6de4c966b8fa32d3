"""Complete photographs by the user's words: what lies in a hole, at a larger size, in colour.

Bai et al., *TextIR: A Simple Framework for Text-based Editable Image Restoration* (TVCG 2024, arXiv
2302.14736): the text is the user's, not inferred. What is known of a photo is kept exactly: pixels
outside the hole to the bit, the luminance of a gray photo, and an enlarged photo reduced again is
the one that was given.

This one file travels inside every saved checkpoint; it needs nothing but diffusers, transformers,
peft, torch, numpy and Pillow.
"""

import contextlib
import functools
import importlib
import inspect
import io
import json
import math
import os
import re
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from numbers import Integral, Real
from pathlib import Path

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageCms
import PIL.ImageOps
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny, DiffusionPipeline, ModelMixin
from diffusers.loaders.lora_base import LoraBaseMixin, _fetch_state_dict
from diffusers.utils import BaseOutput, logging
from huggingface_hub.utils import validate_hf_hub_args
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from transformers import (
    CLIPTextModelWithProjection,
    FeatureExtractionMixin,
    ImageProcessingMixin,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

logger = logging.get_logger(__name__)

MIN_SIDE = 16
UNFINISHED = "-unfinished-"  # in the name of a folder that a save has begun
LORA_SIDES = (("lora_A", "lora_B"), ("lora_down", "lora_up"), ("lora.down", "lora.up"))
MAX_REDUCTION = 8  # of a side, by bicubic interpolation alone
MIN_TILE = 128
Box = tuple[int, int, int, int]  # first and last row, first and last column, of a tile
TILE = 768  # side of tiles in pixels of the result, where a call says nothing
MAX_SCALE = 16
MAX_STRENGTH = 3
OUTPUT_TYPES = ("pil", "np", "pt")
# task -> the component that does it
PARTS = {"inpaint": "inpainter", "super-resolution": "upscaler", "colorize": "colorizer"}


class CarriesCodeMixin:
    """Saved pipelines carry their source, so that they load anywhere with `trust_remote_code=True`.

    `_own_components` maps class names to modules of the installed package, and `_embedded` names of
    checkpoints to its folders. They are filled where the package is installed; then repositories
    load into the package's classes and none of their code runs. In the carried copy they are empty.
    """

    _own_components: dict[str, str] = {}
    _embedded: dict[str, str] = {}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """Load a folder or a repository of the Hub, like every pipeline of diffusers; `mini` is the
        checkpoint of the package. Weights are read from safetensors only: pickled files can run
        code when they are opened.

        Raises:
            ValueError: if weights lack a tensor or hold NaN or infinity.
        """
        place = cls._embedded.get(str(pretrained_model_name_or_path), pretrained_model_name_or_path)
        kwargs.setdefault("use_safetensors", True)
        pipe = super().from_pretrained(place, **kwargs)
        for name, part in pipe.components.items():
            if isinstance(part, torch.nn.Module):
                check_weights(part, name)
        return pipe

    @classmethod
    def from_pipe(cls, pipeline, **kwargs):
        """A pipeline with the components and settings of another, which share memory.

        Args:
            pipeline: the other one.
            kwargs: components and settings that differ, as `__init__` takes them.
        """
        names, _ = cls._get_signature_keys(cls)
        for name, part in pipeline.components.items():
            if name in names:
                kwargs.setdefault(name, part)
        kwargs.setdefault("dtype", pipeline.dtype)
        return super().from_pipe(pipeline, **kwargs)

    def save_pretrained(self, save_directory, *args, **kwargs):
        """Save in diffusers format, with the source files of the pipeline and its own components.
        What was compiled is saved as it was before. An older checkpoint in the folder is replaced
        only once the new one is written.

        Raises:
            ValueError: if LoRA layers are attached; diffusers would write a checkpoint that cannot
                be read.
        """
        attached = [name for name, part in self.components.items() if has_lora_layers(part)]
        if attached:
            raise ValueError(
                f"LoRA adapters are attached to {', '.join(attached)}. Save them with "
                "`save_lora_weights`, or make them permanent with "
                "`fuse_lora()` and `unload_lora_weights()` before `save_pretrained`."
            )
        compiled = {name: part for name, part in self.components.items() if is_compiled(part)}
        for name, part in compiled.items():
            setattr(self, name, part._orig_mod)
        try:
            if kwargs.get("push_to_hub") or not (Path(save_directory) / self.config_name).is_file():
                return super().save_pretrained(save_directory, *args, **kwargs)
            target = Path(save_directory).resolve()
            sweep_unfinished(target)
            name = f".{target.name}{UNFINISHED}"
            with tempfile.TemporaryDirectory(prefix=name, dir=target.parent) as new:
                super().save_pretrained(new, *args, **kwargs)
                replace_checkpoint(target, Path(new), self.config_name)
        finally:
            for name, part in compiled.items():
                setattr(self, name, part)

    def save_config(self, save_directory, *args, **kwargs):
        """Write `model_index.json` and the sources: the last thing that `save_pretrained` does
        before it uploads."""
        super().save_config(save_directory, *args, **kwargs)
        self._write_sources(Path(save_directory))

    def _write_sources(self, folder: Path) -> None:
        index_file = folder / self.config_name
        index = json.loads(index_file.read_text(encoding="utf-8"))
        for name, part in self.components.items():
            # It warns of its own key.
            forgotten = ["block_out_channels"] if isinstance(part, AutoencoderTiny) else []
            # Without a dtype transformers computes in what is stored, float16 too, and diffusers in
            # single precision.
            single = {"dtype": "float32"} if isinstance(part, PreTrainedModel) else {}
            settle(folder / name / "config.json", "_name_or_path", "dtype", *forgotten, **single)
            if part is None or type(part).__module__.split(".")[0] in ("diffusers", "transformers"):
                continue
            source = Path(inspect.getsourcefile(type(part)))
            shutil.copyfile(source, folder / name / source.name)
            index[name] = [source.stem, type(part).__name__]
        shutil.copyfile(inspect.getsourcefile(type(self)), folder / "pipeline.py")
        index["_class_name"] = ["pipeline", type(self).__name__]
        index.pop("_name_or_path", None)
        index_file.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    @classmethod
    def _dict_from_json_file(cls, json_file):
        config = super()._dict_from_json_file(json_file)
        if cls._own_components and isinstance(config.get("_class_name"), list):
            config["_class_name"] = config["_class_name"][1]
        return config

    @classmethod
    def load_config(cls, *args, **kwargs):
        loaded = super().load_config(*args, **kwargs)
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        for name, value in config.items():
            if (
                isinstance(value, (list, tuple))
                and len(value) == 2
                and value[1] in cls._own_components
            ):
                module = cls._own_components[value[1]]
                importlib.import_module(module)  # diffusers takes only what is imported already
                config[name] = [module, value[1]]
        return loaded


class ChainLoraLoaderMixin(LoraBaseMixin):
    """LoRA of several components in one `pytorch_lora_weights.safetensors`, with diffusers' calling
    conventions."""

    _lora_loadable_modules = ["unet", "mapper", "cleaner", "matcher", "restorer", "detector"]

    @classmethod
    @validate_hf_hub_args
    def lora_state_dict(cls, pretrained_model_name_or_path_or_dict, **kwargs):
        """Read LoRA weights from the Hub, a folder, a file or a dict; safetensors only.

        Raises:
            ValueError: if the file is pickled.
        """
        weight_name = str(kwargs.get("weight_name") or "")
        source = (
            str(pretrained_model_name_or_path_or_dict)
            if not isinstance(pretrained_model_name_or_path_or_dict, dict)
            else ""
        )
        pickled = source.endswith((".bin", ".pt", ".pth", ".ckpt", ".pkl"))
        if pickled or (weight_name and not weight_name.endswith(".safetensors")):
            raise ValueError(
                f"{weight_name or source} is a pickled file, which can run code when it is opened; "
                "only .safetensors are loaded. "
                "Convert it where you trust it."
            )
        with_metadata = kwargs.pop("return_lora_metadata", False)
        keys = (
            "weight_name",
            "local_files_only",
            "cache_dir",
            "force_download",
            "proxies",
            "token",
            "revision",
            "subfolder",
        )
        state_dict, metadata = _fetch_state_dict(
            pretrained_model_name_or_path_or_dict=pretrained_model_name_or_path_or_dict,
            use_safetensors=True,
            allow_pickle=False,
            user_agent={"file_type": "attn_procs_weights", "framework": "pytorch"},
            **{key: kwargs.pop(key, None) for key in keys},
        )
        return (state_dict, metadata) if with_metadata else state_dict

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict,
        adapter_name=None,
        hotswap=False,
        parts=None,
        **kwargs,
    ):
        """Attach LoRA weights to every component that the file has weights for, under one adapter
        name; from then on they act.

        Args:
            pretrained_model_name_or_path_or_dict: a folder, file, Hub id, or the weights.
            adapter_name: their name here; a free one by default.
            hotswap: put them in the place of an adapter of that name.
            parts: take those for these components alone, such as `["unet"]`.
            kwargs: where on the Hub, as diffusers takes it.

        Raises:
            ValueError: if the file holds other weights, weights for a component that this pipeline
                lacks, or weights that do not fit its components; then nothing stays attached.
        """
        state_dict, metadata = self.lora_state_dict(
            pretrained_model_name_or_path_or_dict, return_lora_metadata=True, **kwargs
        )
        state_dict = self._known_layout(state_dict, parts)
        parts = {key.split(".", 1)[0] for key in state_dict}
        if adapter_name is None:
            taken = set().union(*self.get_list_adapters().values())
            free = (f"default_{i}" for i in range(len(taken) + 1))
            adapter_name = next(name for name in free if name not in taken)
        holders = {
            part for part, names in self.get_list_adapters().items() if adapter_name in names
        }
        if hotswap and parts - holders:
            raise ValueError(
                f"`hotswap` needs an adapter named {adapter_name!r} in "
                f"{', '.join(sorted(parts - holders))}; load it first."
            )
        if not hotswap and parts & holders:
            raise ValueError(
                f"The name {adapter_name!r} is already in use in "
                f"{', '.join(sorted(parts & holders))}; choose another one."
            )
        for part in parts:
            layers = {
                key.removeprefix(f"{part}."): value
                for key, value in state_dict.items()
                if key.startswith(f"{part}.")
            }
            check_lora_fits(getattr(self, part), layers, part)
        for part in sorted(parts):
            described = any(key.startswith(f"{part}.") for key in metadata or {})
            try:
                with warnings.catch_warnings():
                    # Several adapters beside each other are meant, and restorers without fusion
                    # blocks have none to leave out.
                    warnings.filterwarnings("ignore", message="Already found a `peft_config`")
                    warnings.filterwarnings("ignore", message="You have passed exclude_modules")
                    getattr(self, part).load_lora_adapter(
                        state_dict,
                        prefix=part,
                        adapter_name=adapter_name,
                        metadata=metadata if described else None,
                        _pipeline=self,
                        hotswap=hotswap,
                    )
            except (RuntimeError, ValueError, TypeError, KeyError) as error:
                if not hotswap:
                    self._detach(adapter_name, parts - holders)
                reason = (
                    str(error).strip().splitlines()[0]
                    if str(error).strip()
                    else type(error).__name__
                )
                raise ValueError(
                    f"These LoRA weights do not fit the {part} of this pipeline: {reason}"
                ) from error

    def _known_layout(
        self, state_dict: dict[str, torch.Tensor], parts: Sequence[str] | None = None
    ) -> dict[str, torch.Tensor]:
        """LoRA weights under the names of this pipeline's components.

        `alpha` keys become part of the weights. Files of kohya's scripts and of diffusers' for
        Stable Diffusion are read as far as they concern the UNet.

        Raises:
            ValueError: if the file is none of these, or concerns components that are not here.
        """
        present = {
            part for part in self._lora_loadable_modules if getattr(self, part, None) is not None
        }
        if any(key.startswith("base_model.model.") for key in state_dict):
            raise ValueError(
                "The file has peft's own layout (base_model.model...), which does not say what "
                "component it is for. Put that name in place of `base_model.model`, such as "
                f"{sorted(present)[0]}."
            )
        if any(key.startswith("lora_unet_") for key in state_dict):
            if getattr(self, "unet", None) is None:
                raise ValueError("The LoRA weights are for a UNet, and this pipeline has none.")
            state_dict = kohya_to_diffusers(state_dict, self.unet)
        if parts is not None:
            state_dict = {
                key: value for key, value in state_dict.items() if key.split(".", 1)[0] in parts
            }
            if not state_dict:
                raise ValueError(f"The file has no weights for {', '.join(parts)}.")
        state_dict = with_alphas(state_dict)
        other = [key for key in state_dict if "lora" not in key]
        if other:
            raise ValueError(
                f"Not a LoRA file: it holds {other[0]!r} and {len(other) - 1} other keys without "
                "`lora` in them."
            )
        absent = sorted({key.split(".", 1)[0] for key in state_dict} - present)
        if absent:
            some = ", ".join(absent[:4])
            raise ValueError(
                f"The file has weights for {some}; this pipeline takes "
                f"{', '.join(sorted(present))}. To load those for some of these alone, pass "
                "`parts`, such as `parts=['unet']`."
            )
        return state_dict

    def _detach(self, adapter_name: str, parts: set[str]) -> None:
        """Take an adapter that failed half-way out of some components, with the layers that were
        made for it alone."""
        for component in (getattr(self, part) for part in parts):
            if adapter_name in getattr(component, "peft_config", {}):
                component.delete_adapters(adapter_name)
            if has_lora_layers(component) and not getattr(component, "peft_config", None):
                component.unload_lora()

    @classmethod
    def save_lora_weights(
        cls,
        save_directory,
        is_main_process=True,
        weight_name=None,
        save_function=None,
        safe_serialization=True,
        **parts,
    ):
        """Write LoRA weights of several components into one file.

        Args:
            save_directory: folder.
            parts: `{component}_lora_layers` (state dicts of peft) and
                `{component}_lora_adapter_metadata`, as
                `diffusers.training_utils._collate_lora_metadata` names them.

        Raises:
            ValueError: if no component is given, an argument is not understood, or a pickled file
                is asked for.
        """
        if not safe_serialization:
            raise ValueError(
                "Weights are saved as safetensors only; leave `safe_serialization` at True."
            )
        layers = {
            part: parts.pop(f"{part}_lora_layers", None) for part in cls._lora_loadable_modules
        }
        metadata = {
            part: parts.pop(f"{part}_lora_adapter_metadata", None)
            for part in cls._lora_loadable_modules
        }
        layers = {part: value for part, value in layers.items() if value}
        if parts or not layers:
            known = ", ".join(f"{part}_lora_layers" for part in cls._lora_loadable_modules)
            raise ValueError(
                f"Pass at least one of {known}"
                + (f"; not understood: {', '.join(parts)}." if parts else ".")
            )
        cls._save_lora_weights(
            save_directory=save_directory,
            lora_layers=layers,
            lora_metadata={part: metadata[part] for part in layers},
            is_main_process=is_main_process,
            weight_name=weight_name,
            save_function=save_function,
            safe_serialization=True,
        )

    def fuse_lora(self, components=None, **kwargs):
        super().fuse_lora(components=components or list(self.get_list_adapters()), **kwargs)

    def unfuse_lora(self, components=None, **kwargs):
        super().unfuse_lora(components=components or list(self.get_list_adapters()), **kwargs)


@dataclass
class EditOutput(BaseOutput):
    """What an edit returns: for each image one result for each prompt and variant, in that order.

    Attributes:
        images: the results, in the form that `output_type` asks for.
        tasks: for each result what was done: inpaint, super-resolution or colorize.
        words: for each result where its words came from: the prompt, "reference image", "cleaned
            words", "photo" (its own embedding) or "none".
        effect: for each result how far its words moved it: mean of |result - result without words|
            on the 0-255 scale; `None` unless asked for.
        notes: what a user should know, such as that a prompt was too long.
    """

    images: list[PIL.Image.Image] | np.ndarray | torch.Tensor | list
    tasks: list[str]
    words: list[str]
    effect: list[float] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Edit:
    """One result to be made: a photo, what is missing, and its words.

    Attributes:
        task: inpaint, super-resolution or colorize.
        image: `(1, 3, H, W)` in [0, 1]; enlarging begins with it.
        hole: `(1, 1, H, W)` bool, or `None`.
        filled: the photo with its hole filled from the border, which serves all its results.
        size: height and width of the result.
        condition: `(1, D)` of the network, `None` for no words.
        words: where they came from.
        tile: side of the tiles that the upscaler works in, in pixels of the result.
        bits: depth at which a colored photo keeps its luma, 8 or 16.
        generator: of the noise, where the network has any.
    """

    task: str
    image: torch.Tensor
    hole: torch.Tensor | None
    size: tuple[int, int]
    condition: torch.Tensor | None = None
    words: str = "none"
    tile: int = TILE
    bits: int = 8
    generator: torch.Generator | None = None
    filled: torch.Tensor | None = None


class TextEditableRestorationPipeline(CarriesCodeMixin, ChainLoraLoaderMixin, DiffusionPipeline):
    """Completes photographs by words; every component may be absent, and what can be done without
    it still works.

    Args:
        inpainter: a `TextEditableRestorer` for holes.
        upscaler: one for larger sizes.
        colorizer: one for gray photos.
        edit_processor: reads masks, and keeps what is known of a photo.
        photo_encoder: image tower of a text-image space: `model(**photo_processor(images))` has
            `image_embeds`, as transformers' `CLIPVisionModelWithProjection`.
        photo_processor: its inputs of images.
        photo_text_encoder: text tower of that space, `CLIPTextModelWithProjection`.
        photo_tokenizer: of that text tower.
        default_scale: of an enlargement that does not say.
        colour_side: shorter side in pixels at which colours are found; they are enlarged along the
            edges of the photo.
        hole_width: width in pixels of the thickest place of a hole, as the inpainter has learnt it;
            photos with thicker holes are filled in a reduced copy.
        variation: length of the noise beside the words of a variant, which are a unit vector.
        max_pixels: of a result; more is refused.
    """

    model_cpu_offload_seq = "photo_text_encoder->photo_encoder->inpainter->upscaler->colorizer"
    _optional_components = [
        "inpainter",
        "upscaler",
        "colorizer",
        "edit_processor",
        "photo_encoder",
        "photo_processor",
        "photo_text_encoder",
        "photo_tokenizer",
    ]
    _lora_loadable_modules = list(PARTS.values())

    def __init__(
        self,
        inpainter: ModelMixin = None,
        upscaler: ModelMixin = None,
        colorizer: ModelMixin = None,
        edit_processor: FeatureExtractionMixin = None,
        photo_encoder: ModelMixin = None,
        photo_processor: ImageProcessingMixin = None,
        photo_text_encoder: CLIPTextModelWithProjection = None,
        photo_tokenizer: PreTrainedTokenizerBase = None,
        default_scale: float = 4.0,
        colour_side: int = 192,
        hole_width: int = 64,
        variation: float = 0.6,
        max_pixels: int = 64_000_000,
    ):
        super().__init__()
        self.register_modules(
            inpainter=inpainter,
            upscaler=upscaler,
            colorizer=colorizer,
            edit_processor=edit_processor,
            photo_encoder=photo_encoder,
            photo_processor=photo_processor,
            photo_text_encoder=photo_text_encoder,
            photo_tokenizer=photo_tokenizer,
        )
        self.register_to_config(
            default_scale=default_scale,
            colour_side=colour_side,
            hole_width=hole_width,
            variation=variation,
            max_pixels=max_pixels,
        )

    # ---- the call

    @torch.no_grad()
    def __call__(
        self,
        image,
        prompt: str | list[str] | None = None,
        task: str = "auto",
        mask_image=None,
        scale: float | None = None,
        strength: float = 1.0,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | None = None,
        reference_image=None,
        words_from: DiffusionPipeline | None = None,
        invert_mask: bool = False,
        tile: int | None = None,
        output_type: str = "pil",
        return_effect: bool = False,
        return_dict: bool = True,
        callback: Callable[[int, int], None] | None = None,
    ) -> EditOutput | tuple:
        """Complete photos.

        Args:
            image: PIL image, array `(H, W, C)` of 8 or 16 bits or in [0, 1], tensor `(3, H, W)` or
                `(B, 3, H, W)` in [0, 1], or a list of single images.
            prompt: what the result shall show. A list holds one for each image or, for a single
                image, several, each of which has a result. `None` takes the photo's own embedding,
                of a photo with a hole after filling it from its border; an empty prompt is no
                words.
            task: inpaint, super-resolution, colorize, or auto: inpaint where there is a mask,
                colorize where a photo has no colours, super-resolution otherwise. With auto a photo
                that was enlarged before is enlarged anew, at its size.
            mask_image: what to fill: bright is the hole. Of the photo's size; one, or one for each
                image.
            scale: of an enlargement, above 1 to 16; `default_scale` by default.
            strength: of the words: 0 is none, 1 as learnt, more exaggerates, up to 3.
            num_images_per_prompt: variants of each prompt; all but the first have noise beside
                their words.
            generator: of that noise; seed 0 by default.
            reference_image: a photo whose embedding stands in place of words; one, or one for each
                image.
            words_from: a `TextGuidedRestorationPipeline`; without a prompt the photo is described
                by the picture that it paints of the photo's cleaned words.
            invert_mask: dark is the hole.
            tile: side of the tiles in which photos are enlarged, in pixels of the result; at least
                128, 768 by default.
            output_type: pil, np or pt.
            return_effect: tell how far the words moved each result; every result is made twice.
            return_dict: return an `EditOutput`, else a tuple of its fields.
            callback: called with the number of results done and to be done.

        Raises:
            ValueError: if an argument is not understood or does not fit the photo, or a component
                is missing; the message says what to do.
        """
        edits, pictures, notes = self.check(
            image,
            prompt,
            task,
            mask_image,
            scale,
            strength,
            num_images_per_prompt,
            generator,
            reference_image,
            words_from,
            invert_mask,
            tile,
            output_type,
        )
        results, effects = [], []
        for number, edit in enumerate(edits):
            results.append(self.edit(edit))
            if return_effect:
                plain = results[-1]
                if edit.condition is not None:
                    plain = self.edit(replace(edit, condition=None))
                effects.append(255 * float((results[-1] - plain).abs().mean()))
            if callback is not None:
                callback(number + 1, len(edits))
        output = EditOutput(
            images=convert(results, output_type, pictures),
            tasks=[edit.task for edit in edits],
            words=[edit.words for edit in edits],
            effect=effects if return_effect else None,
            notes=notes,
        )
        return output if return_dict else output.to_tuple()

    def edit(self, edit: Edit) -> torch.Tensor:
        """One result `(1, 3, H, W)` in [0, 1]."""
        make = {
            "inpaint": self._inpaint,
            "super-resolution": self._enlarge,
            "colorize": self._colorize,
        }
        return make[edit.task](edit)

    def _inpaint(self, edit: Edit) -> torch.Tensor:
        """Fill the hole from its border, and add what the network says; thick holes in a reduced
        copy."""
        image, hole, keeper = edit.image, edit.hole, self.edit_processor
        start = keeper.fill(image, hole) if edit.filled is None else edit.filled
        width = keeper.thickness(hole)
        reduction = max(1.0, width / self.config.hole_width)
        if reduction > 1:
            size = [max(round(side / reduction), MIN_SIDE) for side in image.shape[-2:]]
            small_start = resize(start, size)
            share = F.interpolate(hole.float(), size, mode="area")
            # Where every cell holds a bit of the hole, those with the least count as known.
            small_hole = share > (0 if share.min() == 0 else share.min())
            small_start = keeper.fill(small_start, small_hole)
            small = self._run("inpainter", edit, small_start, small_hole)
            change = (small - small_start) * small_hole
            change = F.interpolate(change, image.shape[-2:], mode="bicubic", antialias=True)
            result = start + change
        else:
            result = self._run("inpainter", edit, start, hole)
        return keeper.finish_inpainting(result.clamp(0, 1), image, hole, start)

    def _enlarge(self, edit: Edit) -> torch.Tensor:
        """Enlarge, add what the network says, and make it agree with the photo."""
        keeper, low = self.edit_processor, edit.image
        start = keeper.enlarge(low, edit.size)
        factor = math.sqrt(math.prod(edit.size) / math.prod(low.shape[-2:]))

        def work(part: torch.Tensor, _) -> torch.Tensor:
            return self._run("upscaler", edit, part, scale=factor)

        result = apply_tiled(work, start, None, edit.tile, min(64, edit.tile // 4))
        return keeper.finish_super_resolution(result.clamp(0, 1), low)

    def _colorize(self, edit: Edit) -> torch.Tensor:
        """Find colours in a reduced copy, enlarge them along the edges of the photo, and keep its
        luminance."""
        gray, keeper = edit.image, self.edit_processor
        side = self.config.colour_side
        # A long strip is reduced further, so that the work does not grow with its length.
        factor = min(side / min(gray.shape[-2:]), 8 * side / max(gray.shape[-2:]))
        size = [max(round(side * factor), MIN_SIDE) for side in gray.shape[-2:]]
        small = F.interpolate(gray, size, mode="bicubic", antialias=True).clamp(0, 1)
        colours = self._run("colorizer", edit, small)
        coloured = keeper.in_colours(gray, small, colours)
        return keeper.finish_colorization(coloured, gray, edit.bits)

    def _run(self, part: str, edit: Edit, start: torch.Tensor, hole=None, scale=None):
        """What the network of a task makes of a start `(1, 3, H, W)`, in single precision."""
        network = getattr(self, part)
        start = start.to(network.device, network.dtype)
        mask = None if hole is None else hole.to(start)
        condition = None if edit.condition is None else edit.condition.to(start)
        result = finite(network(start, condition, mask, scale, edit.generator), part)
        return result.float().to(edit.image.device)

    # ---- the door

    def check(
        self,
        image,
        prompt=None,
        task: str = "auto",
        mask_image=None,
        scale: float | None = None,
        strength: float = 1.0,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | None = None,
        reference_image=None,
        words_from: DiffusionPipeline | None = None,
        invert_mask: bool = False,
        tile: int | None = None,
        output_type: str = "pil",
    ) -> tuple[list[Edit], list, tuple[str, ...]]:
        """Check the arguments of a call and complete them, see `__call__`.

        Returns:
            the results to be made; for each the Pillow image whose mode it shall have, or `None`;
            and notes.

        Raises:
            ValueError: if an argument is not understood, or does not fit.
        """
        self.check_settings(
            task,
            mask_image is not None,
            scale,
            strength,
            num_images_per_prompt,
            tile,
            output_type,
        )
        if invert_mask and mask_image is None:
            raise ValueError("`invert_mask` turns a mask round; pass `mask_image` too.")
        if reference_image is not None and prompt is not None:
            raise ValueError("Pass `prompt` or `reference_image`, not both: each says it all.")
        if words_from is not None and (prompt is not None or reference_image is not None):
            raise ValueError(
                "`words_from` describes a photo in place of `prompt` and `reference_image`; leave "
                "these out."
            )
        photos, pictures, depths = read_photos(image)
        masks = one_each(mask_image, len(photos), "mask_image")
        references = one_each(reference_image, len(photos), "reference_image")
        prompts = self._read_prompts(prompt, len(photos))
        generator = self._read_generator(generator)
        edits, dresses, notes = [], [], self.prompt_notes(prompt)
        for number, photo in enumerate(photos):
            plan, said = self._plan(photo, task, masks[number], scale, invert_mask, tile)
            plan = replace(plan, bits=depths[number], generator=generator)
            notes += said
            dress = dress_of(plan, pictures[number])
            for text in prompts[number]:
                embed, kind, words = self._embed_words(plan, text, references[number], words_from)
                for variant in range(num_images_per_prompt):
                    condition = self._condition(
                        plan.task, embed, kind, strength, variant, generator
                    )
                    edits.append(replace(plan, condition=condition, words=words))
                    dresses.append(dress)
        if tile is not None and all(edit.task != "super-resolution" for edit in edits):
            raise ValueError("`tile` belongs to super-resolution, and no photo is enlarged here.")
        return edits, dresses, tuple(dict.fromkeys(notes))

    def check_settings(
        self,
        task: str = "auto",
        has_mask: bool = False,
        scale: float | None = None,
        strength: float = 1.0,
        num_images_per_prompt: int = 1,
        tile: int | None = None,
        output_type: str = "pil",
    ) -> None:
        """Check what of a call needs no photo, see `__call__`.

        Raises:
            ValueError: if an argument is not understood, does not fit the others, or needs a
                component that is missing.
        """
        if task not in ("auto", *PARTS):
            raise ValueError(f"`task` must be auto, {', '.join(PARTS)}; got {task!r}.")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(
                f"`output_type` must be {', '.join(OUTPUT_TYPES)}; got {output_type!r}."
            )
        if not is_number(strength) or not 0 <= strength <= MAX_STRENGTH:
            raise ValueError(f"`strength` must lie in 0 to {MAX_STRENGTH}, got {strength!r}.")
        if not is_count(num_images_per_prompt):
            raise ValueError(
                f"`num_images_per_prompt` must be at least 1, got {num_images_per_prompt!r}."
            )
        if tile is not None and (not is_count(tile) or tile < MIN_TILE):
            raise ValueError(f"`tile` must be at least {MIN_TILE} pixels, got {tile!r}.")
        if self.edit_processor is None:
            raise ValueError(
                "This checkpoint has no edit_processor; pass one, such as "
                "`textir.models.EditProcessor()`, to `from_pretrained`."
            )
        if task in PARTS:
            self._need(PARTS[task], f"for `task={task!r}`")
        if task not in ("auto", "inpaint") and has_mask:
            raise ValueError(f"`mask_image` belongs to inpainting; leave it out of {task}.")
        if task == "inpaint" and not has_mask:
            raise ValueError(
                "Inpainting needs `mask_image`: bright where to fill, of the photo's size."
            )
        for name, value in (("scale", scale), ("tile", tile)):
            if value is not None and (task not in ("auto", "super-resolution") or has_mask):
                other = "inpainting" if has_mask else task
                raise ValueError(f"`{name}` belongs to super-resolution; leave it out of {other}.")
        if scale is not None and (not is_number(scale) or not 1 < scale <= MAX_SCALE):
            raise ValueError(f"`scale` must lie above 1 and up to {MAX_SCALE}, got {scale!r}.")

    def _plan(
        self, photo: torch.Tensor, task: str, mask, scale, invert_mask: bool, tile: int | None
    ) -> tuple[Edit, list[str]]:
        """What to do with one photo, without words yet; and notes."""
        keeper, notes = self.edit_processor, []
        if task == "auto" and scale is not None:
            task = "super-resolution"
        if task == "auto":
            task = self.propose(photo, mask)
            if task == "super-resolution":
                enlarged = keeper.looks_enlarged(photo)
                if enlarged > 1:
                    notes.append(
                        f"The photo looks as if it had been enlarged by {enlarged}; it was reduced "
                        "to its true size first. `task='super-resolution'` takes it as it is."
                    )
                    size = [max(side // enlarged, MIN_SIDE) for side in photo.shape[-2:]]
                    return self._enlarging(
                        keeper.reduce(photo, size), tuple(photo.shape[-2:]), tile
                    ), notes
        self._need(PARTS[task], f"for `task={task!r}`")
        size = tuple(photo.shape[-2:])
        if task == "inpaint":
            if mask is None:
                raise ValueError(
                    "Inpainting needs `mask_image` for every photo: bright where to fill, of the "
                    "photo's size."
                )
            self._check_pixels(size)
            hole = keeper.read_mask(mask, size, invert_mask).to(photo.device)
            filled = keeper.fill(photo, hole)
            return Edit(task, photo, hole, size, filled=filled), notes
        if task == "colorize":
            if not keeper.is_gray(photo):
                raise ValueError(
                    "This photo has colours already; colorization is for gray ones. Turn it gray "
                    "first, such as by `image.convert('L')`, to give it new colours."
                )
            self._check_pixels(size)
            return Edit(task, photo, None, size), notes
        scale = self.config.default_scale if scale is None else scale
        size = tuple(round(side * scale) for side in size)
        return self._enlarging(photo, size, tile), notes

    def _enlarging(self, photo: torch.Tensor, size: tuple[int, int], tile: int | None) -> Edit:
        self._need("upscaler", "for `task='super-resolution'`")
        self._check_pixels(size)
        return Edit("super-resolution", photo, None, size, tile=tile or TILE)

    def propose(self, photo: torch.Tensor, mask=None) -> str:
        """The task that suits a photo `(1, 3, H, W)` in [0, 1]: inpaint where there is a mask,
        colorize where it has no colours, super-resolution otherwise."""
        if mask is not None:
            return "inpaint"
        return "colorize" if self.edit_processor.is_gray(photo) else "super-resolution"

    def _check_pixels(self, size: tuple[int, int]) -> None:
        height, width = size
        if height * width > self.config.max_pixels:
            raise ValueError(
                f"The result would have {width} x {height} pixels, more than the "
                f"{self.config.max_pixels / 1e6:g} million that are allowed; take a smaller photo "
                "or a smaller `scale`, or set `max_pixels`."
            )

    def _read_prompts(self, prompt, count: int) -> list[list[str | None]]:
        """Prompts of each photo."""
        texts = prompt if isinstance(prompt, (list, tuple)) else [prompt]
        if not texts or not all(text is None or isinstance(text, str) for text in texts):
            raise ValueError(f"`prompt` must be a text or a list of texts, got {prompt!r}.")
        if len(texts) == 1:
            return [list(texts)] * count
        if count == 1:
            return [list(texts)]
        if len(texts) != count:
            raise ValueError(
                f"`prompt` has {len(texts)} texts for {count} images; pass one, or one for each. "
                "Several for one image need a call of its own."
            )
        return [[text] for text in texts]

    def _read_generator(self, generator) -> torch.Generator:
        if generator is None:
            return torch.Generator().manual_seed(0)
        if not isinstance(generator, torch.Generator):
            raise ValueError(
                "`generator` must be one torch.Generator, such as "
                f"`torch.Generator().manual_seed(1)`, got {type(generator).__name__}."
            )
        return generator

    def prompt_notes(self, prompt: str | list[str] | None) -> list[str]:
        """Notes on prompts that do not fit into the text encoder, which reads their beginning."""
        texts = prompt if isinstance(prompt, (list, tuple)) else [prompt]
        if self.photo_tokenizer is None or self.photo_text_encoder is None:
            return []
        limit, notes = self._context, []
        for text in texts:
            if not text:
                continue
            ids = self.photo_tokenizer(text, truncation=False, verbose=False).input_ids
            if len(ids) > limit:
                read = self.photo_tokenizer.decode(ids[1 : limit - 1]).replace("</w>", " ").strip()
                notes.append(
                    f"The prompt is too long by {len(ids) - limit} tokens; what comes after "
                    f"{read[-40:]!r} was not read."
                )
                warn_once(notes[-1])
        return notes

    # ---- words

    @property
    def embedding_dim(self) -> int:
        """Numbers of an embedding.

        Raises:
            ValueError: if there is no text encoder.
        """
        self._need("photo_text_encoder", "to embed texts")
        return self.photo_text_encoder.config.projection_dim

    @property
    def _context(self) -> int:
        return self.photo_text_encoder.config.max_position_embeddings

    def _embed_words(self, plan: Edit, text: str | None, reference, words_from):
        """`(embedding (1, D), its kind, where it came from)`; no embedding for no words."""
        if reference is not None:
            photos, _, _ = read_photos(reference, "reference_image")
            if len(photos) != 1:
                raise ValueError(
                    f"`reference_image` must be one image for each photo, got {len(photos)}."
                )
            return self.embed_photos(photos[0]), "image", "reference image"
        if text is not None and not text.strip():
            return None, "text", "none"
        if text is not None:
            return self.embed_texts([text]), "text", text
        if words_from is not None:
            if not hasattr(words_from, "guide"):
                raise ValueError(
                    "`words_from` must be a TextGuidedRestorationPipeline, got "
                    f"{type(words_from).__name__}."
                )
            again = torch.Generator().manual_seed(plan.generator.initial_seed())
            painted = words_from.guide(plan.image, "cleaned", generator=again).images
            return self.embed_photos(painted), "image", "cleaned words"
        if self.photo_encoder is None:
            return None, "image", "none"
        given = plan.image if plan.filled is None else plan.filled
        return self.embed_photos(given), "image", "photo"

    def _condition(self, task: str, embed, kind: str, strength: float, variant: int, generator):
        """The condition of a network for an embedding `(1, D)`, with noise for all variants but the
        first."""
        network = getattr(self, PARTS[task])
        length = network.config.condition_dim
        noise = torch.randn(1, length, generator=generator, device=generator.device)
        noise = self.config.variation * F.normalize(noise, dim=-1).to(network.no_words)
        if embed is None:
            return network.no_words[None] + noise if variant else None
        condition = network.condition_of(embed.to(network.device), kind, strength)
        return condition + noise if variant else condition

    @torch.no_grad()
    def embed_photos(self, images: torch.Tensor) -> torch.Tensor:
        """Unit vectors `(B, D)` of images `(B, 3, H, W)` in [0, 1], in the space of `embed_texts`.

        Raises:
            ValueError: if this pipeline has no photo encoder.
        """
        self._need("photo_encoder", "to embed photos")
        self._need("photo_processor", "to embed photos")
        pixels = images.float().clamp(0, 1)
        enlargement = MIN_SIDE / min(pixels.shape[-2:])
        if enlargement > 1:
            pixels = resize(pixels, [math.ceil(side * enlargement) for side in pixels.shape[-2:]])
        photos = [*pixels.cpu()]
        if getattr(self.photo_processor, "do_rescale", False):  # a CLIP's divides by 255
            photos = [(255 * photo).round().byte() for photo in photos]
        inputs = self.photo_processor(images=photos, return_tensors="pt")
        inputs = {name: value.to(self.photo_encoder.device) for name, value in inputs.items()}
        embeds = finite(self.photo_encoder(**inputs).image_embeds.float(), "photo_encoder")
        return F.normalize(embeds, dim=-1)

    @torch.no_grad()
    def embed_texts(self, texts: list[str]) -> torch.Tensor:
        """Unit vectors `(T, D)` of sentences, in the space of `embed_photos`; long ones are cut.

        Raises:
            ValueError: if this pipeline has no text encoder.
        """
        self._need("photo_text_encoder", "to read a prompt")
        self._need("photo_tokenizer", "to read a prompt")
        options = {
            "padding": True,
            "truncation": True,
            "max_length": self._context,
            "return_tensors": "pt",
        }
        embeds = []
        for first in range(0, len(texts), 64):
            inputs = self.photo_tokenizer(list(texts[first : first + 64]), **options)
            inputs = inputs.to(self.photo_text_encoder.device)
            output = self.photo_text_encoder(
                input_ids=inputs.input_ids, attention_mask=inputs.attention_mask
            )
            embeds.append(finite(output.text_embeds.float(), "photo_text_encoder"))
        return F.normalize(torch.cat(embeds), dim=-1)

    def _need(self, part: str, purpose: str) -> None:
        if getattr(self, part) is None:
            raise ValueError(
                f"This checkpoint has no {part} {purpose}; pass one to `from_pretrained`, or take "
                "a checkpoint that has it, such as mini-textir."
            )


def is_number(value) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def is_count(value) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and value >= 1


def one_each(value, count: int, name: str) -> list:
    """One of something for each image: a list or a tensor `(B, C, H, W)` has one for each,
    anything else serves all.

    Raises:
        ValueError: if a list has another length.
    """
    if isinstance(value, torch.Tensor) and value.ndim == 4 and len(value) == count:
        return list(value.split(1))
    if not isinstance(value, (list, tuple)):
        return [value] * count
    if len(value) != count:
        raise ValueError(
            f"`{name}` is a list of {len(value)} for {count} images; pass one, or one for each."
        )
    return list(value)


def dress_of(edit: Edit, picture: PIL.Image.Image | None) -> PIL.Image.Image | None:
    """The Pillow image whose mode, alpha, profile and EXIF a result shall have, as the photo has
    them, but in the size of the result, and in colour where it has got colours."""
    if picture is None or edit.task == "inpaint":
        return picture
    keeps_mode = picture.mode in ("L", "LA", "La", "F") or picture.mode.startswith("I")
    mode = picture.mode if keeps_mode else "L" if picture.mode == "1" else "RGB"
    mode = "RGB" if edit.task == "colorize" else mode
    # Profiles of gray and of inks do not fit colours.
    keeps_profile = mode[0] == picture.mode[0] or picture.mode in ("P", "PA")
    size = edit.size[::-1]
    if picture.has_transparency_data:
        mode = "LA" if mode[0] == "L" else "RGBA"
    blank = PIL.Image.new(mode, size)
    if picture.has_transparency_data:
        blank.putalpha(alpha_of(picture).resize(size, PIL.Image.Resampling.BICUBIC))
    keys = ["dpi", "exif", "xmp", "comment", *(["icc_profile"] if keeps_profile else [])]
    blank.info.update({key: picture.info[key] for key in keys if key in picture.info})
    if size != picture.size:
        scale = [new / old for new, old in zip(size, picture.size)]
        if "exif" in blank.info:
            blank.info["exif"] = exif_of_size(blank.info["exif"], size, scale)
        if "dpi" in blank.info:  # so that it measures on paper what it did
            blank.info["dpi"] = tuple(dpi * by for dpi, by in zip(blank.info["dpi"], scale))
    return blank


def exif_of_size(block: bytes, size: tuple[int, int], scale: list[float]) -> bytes:
    """An EXIF block whose fields of size and resolution, where it has them, are true of an enlarged
    photo.

    Args:
        block: of the photo.
        size: width and height of the result in pixels.
        scale: by which width and height have grown.
    """
    exif, tags = PIL.Image.Exif(), PIL.ExifTags.Base
    exif.load(block)
    details = exif.get_ifd(PIL.ExifTags.IFD.Exif)
    for tag, side in zip((tags.ExifImageWidth, tags.ExifImageHeight), size):
        if tag in details:
            details[tag] = side
    for tag, by in zip((tags.XResolution, tags.YResolution), scale):
        if tag in exif:
            exif[tag] = float(exif[tag]) * by
    return exif.tobytes()


def read_photos(image, name: str = "image") -> tuple[list[torch.Tensor], list, list[int]]:
    """Single images `(1, 3, H, W)` in [0, 1], the Pillow images whose mode results shall have
    again, `None` for others, and the depth of each: 16 for whole numbers of 16 bits, else 8.

    Raises:
        ValueError: if it is none of the kinds of image that are accepted.
    """
    if isinstance(image, (list, tuple)):
        photos, pictures, depths = [], [], []
        for single in image:
            read, dress, depth = read_photos(single, name)
            if len(read) != 1:
                raise ValueError(
                    f"`{name}` is a list; each entry must be one image, got a batch of {len(read)}."
                )
            photos += read
            pictures += dress
            depths += depth
        if not photos:
            raise ValueError(f"{accepted_images(name)}; got an empty list.")
        return photos, pictures, depths
    if isinstance(image, PIL.Image.Image):
        picture = PIL.ImageOps.exif_transpose(image)
        return [tensor_from_pil(picture, name)], [picture], [8]
    depth = 16 if isinstance(image, np.ndarray) and image.dtype == np.uint16 else 8
    if isinstance(image, np.ndarray):
        image = tensor_from_array(image, name)
    if not isinstance(image, torch.Tensor):
        raise ValueError(f"{accepted_images(name)}; got {type(image).__name__}.")
    image = image[None] if image.ndim == 3 else image
    if image.ndim == 4 and image.shape[1] == 1:
        image = image.expand(-1, 3, -1, -1)
    check_tensor(image, name)
    count = len(image)
    return list(image.float().clamp(0, 1).split(1)), [None] * count, [depth] * count


# ---- as in the pipeline of text-guided restoration, to the letter


def is_compiled(part) -> bool:
    """Whether a component is the wrapper that `torch.compile` returns."""
    return hasattr(part, "_orig_mod")


def sweep_unfinished(target: Path) -> None:
    """Take away what saves into `target` left that were killed more than an hour ago."""
    for folder in target.parent.glob(f".{target.name}{UNFINISHED}*"):
        if time.time() - folder.stat().st_mtime > 3600:
            shutil.rmtree(folder, ignore_errors=True)


def replace_checkpoint(target: Path, new: Path, index: str) -> None:
    """Put the entries of the folder `new` in the place of those of `target`. The index goes first
    and comes last, so that what a cut in between leaves behind cannot be loaded as a mixture."""
    (target / index).unlink(missing_ok=True)
    for entry in sorted(new.iterdir(), key=lambda entry: entry.name == index):
        old = target / entry.name
        if old.is_dir() and not old.is_symlink():
            shutil.rmtree(old)
        os.replace(entry, old)


def check_weights(part: torch.nn.Module, name: str) -> None:
    """Check that a component has all its weights and that they are numbers.

    Args:
        part: the component.
        name: its name in the pipeline.

    Raises:
        ValueError: if not; a missing tensor would be replaced by random numbers.
    """
    missing = missing_weights(part)
    if missing:
        raise ValueError(
            f"The weights of {name} are incomplete: {len(missing)} tensors are missing, such as "
            f"{missing[0]}. Get the checkpoint again."
        )
    for key, value in part.state_dict().items():
        if not value.is_floating_point() or value.is_meta:
            continue
        # The sum is NaN or infinite if one of the numbers is, and needs no memory.
        if not torch.isfinite(value.sum(dtype=torch.float32)):
            raise ValueError(
                f"The weights of {name} are damaged: {key} holds NaN or infinity. Get the "
                "checkpoint again."
            )


def finite(value: torch.Tensor, name: str) -> torch.Tensor:
    """What a component has returned.

    Args:
        value: of any shape.
        name: of the component.

    Raises:
        ValueError: if it holds NaN or infinity.
    """
    if not torch.isfinite(value.sum(dtype=torch.float32)):
        raise ValueError(
            f"The output of {name} holds NaN or infinity: its weights, or an adapter, are damaged "
            "or overflow in this precision. Try float32."
        )
    return value


def missing_weights(part: torch.nn.Module) -> list[str]:
    """The parameters of a component that are not in the files which it was read from."""
    if isinstance(part, PreTrainedModel):
        folder = Path(part.name_or_path or "-")
    else:
        folder = Path(getattr(part, "config", {}).get("_name_or_path") or "-")
    stored = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            stored |= set(tensors.keys())
    wanted = [name for name, _ in part.named_parameters()]
    if not stored & set(wanted):  # stored under names of another version
        return []
    return sorted(set(wanted) - stored - set(getattr(part, "_tied_weights_keys", None) or ()))


def settle(config_file: Path, *forgotten: str, **values) -> None:
    """Take out of a component's config what should not travel (paths of this machine, a dtype that
    a variant left behind), and write `values` into it."""
    if config_file.is_file():
        kept = {
            key: value
            for key, value in json.loads(config_file.read_text(encoding="utf-8")).items()
            if key not in forgotten
        }
        config_file.write_text(
            json.dumps({**kept, **values}, indent=2, sort_keys=True) + "\n", encoding="utf-8"
        )


def has_lora_layers(part) -> bool:
    """True also where all adapters were deleted: their layers stay until they are unloaded."""
    return isinstance(part, torch.nn.Module) and any(
        isinstance(module, BaseTunerLayer) for module in part.modules()
    )


def kohya_to_diffusers(
    state_dict: dict[str, torch.Tensor], unet: torch.nn.Module
) -> dict[str, torch.Tensor]:
    """LoRA weights of kohya's layout (`lora_unet_down_blocks_0_..._to_k.lora_down.weight`) under
    the names of diffusers; those of text encoders stay below `text_encoder`.

    Raises:
        ValueError: if a layer is not one of the UNet's.
    """
    layers = {name.replace(".", "_"): name for name, _ in unet.named_modules()}
    renames = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"}
    renamed = {}
    for key, value in state_dict.items():
        if key.startswith("lora_te"):
            renamed[f"text_encoder.{key}"] = value
            continue
        layer, _, side = key.removeprefix("lora_unet_").partition(".")
        if not key.startswith("lora_unet_") or layer not in layers:
            raise ValueError(
                f"The file has kohya's layout, and {key!r} is for a layer that the UNet of this "
                "pipeline does not have."
            )
        renamed[f"unet.{layers[layer]}.{renames.get(side, side)}"] = value
    return renamed


def with_alphas(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """LoRA weights without `alpha` keys: each scales its layer by `alpha / rank`."""
    scaled = {key: value for key, value in state_dict.items() if not key.endswith(".alpha")}
    for key, alpha in state_dict.items():
        if key.endswith(".alpha"):
            layer = key.removesuffix(".alpha")
            for down, up in LORA_SIDES:
                if f"{layer}.{down}.weight" in scaled:
                    rank = len(scaled[f"{layer}.{down}.weight"])
                    scaled[f"{layer}.{up}.weight"] = scaled[f"{layer}.{up}.weight"] * (alpha / rank)
    return scaled


def check_lora_fits(component: torch.nn.Module, layers: dict[str, torch.Tensor], part: str) -> None:
    """Check that LoRA weights belong to layers that a component has, at their sizes.

    Args:
        component: the network.
        layers: `{layer}.lora_A.weight` and `{layer}.lora_B.weight`, other keys are left to peft.
        part: its name in the pipeline.

    Raises:
        ValueError: if one does not.
    """
    modules = dict(component.named_modules())
    halves = {"A": set(), "B": set()}
    for key, value in layers.items():
        match = re.fullmatch(r"(.+)\.lora_(A|B)\.weight", key)
        if match is None:
            if re.search(r"\.lora_[AB]\.(?!bias$)", key):
                raise ValueError(f"The LoRA file is damaged: it holds {key!r} for the {part}.")
            continue
        name, side = match.groups()
        halves[side].add(name)
        module = modules.get(name)
        base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
        weight = getattr(base, "weight", None)
        if weight is None:
            raise ValueError(
                f"These LoRA weights belong to other networks: the {part} of this pipeline has no "
                f"layer {name!r}."
            )
        expected, got = (
            (weight.shape[1], value.shape[1]) if side == "A" else (weight.shape[0], value.shape[0])
        )
        if expected != got:
            raise ValueError(
                f"These LoRA weights belong to other networks: the layer {name!r} of the {part} "
                f"has {expected} channels there, "
                f"they are for {got}."
            )
    single = sorted(halves["A"] ^ halves["B"])
    if single:
        raise ValueError(
            f"The LoRA file is damaged: one of the two weights of {len(single)} layers of the "
            f"{part} is missing, such as that of {single[0]!r}."
        )


def accepted_images(name: str) -> str:
    return (
        f"`{name}` must be a PIL image, an array (H, W, 3) or (B, H, W, 3), a tensor (3, H, W) or "
        "(B, 3, H, W) in [0, 1], or a list of single images"
    )


@functools.cache
def warn_once(message: str) -> None:
    logger.warning(message)


def resize(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bicubic with anti-aliasing, `(B, C, H, W)` in [0, 1] -> `(B, C, *size)` in [0, 1].

    Reductions by more than `MAX_REDUCTION` begin with means of squares: CUDA has no room for so
    wide a filter.
    """
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    factors = [side / wanted for side, wanted in zip(image.shape[-2:], size)]
    if max(factors) > MAX_REDUCTION:
        # The rest is left to the better filter.
        smaller = [min(side, 4 * wanted) for side, wanted in zip(image.shape[-2:], size)]
        image = F.interpolate(image, smaller, mode="area")
    return F.interpolate(image, tuple(size), mode="bicubic", antialias=True).clamp(0, 1)


def check_tensor(image: torch.Tensor, name: str) -> None:
    if image.ndim != 4 or image.shape[1] != 3:
        raise ValueError(f"`{name}` must be (B, 3, H, W), got shape {tuple(image.shape)}.")
    if not len(image):
        raise ValueError(f"`{name}` must hold at least one image, got shape {tuple(image.shape)}.")
    if not image.is_floating_point():
        raise ValueError(
            f"`{name}` must hold floating-point values in [0, 1], got {image.dtype}; divide 8-bit "
            "values by 255."
        )
    check_size(image.shape[-2], image.shape[-1], name)
    if not torch.isfinite(image).all():
        raise ValueError(f"`{name}` holds NaN or infinite values.")
    if image.max() > 4 or image.min() < -3:  # unclipped noise may leave [0, 1], but not so far
        low, high = image.min().item(), image.max().item()
        raise ValueError(f"`{name}` must lie in [0, 1], got values from {low:.3g} to {high:.3g}.")


def check_size(height: int, width: int, name: str) -> None:
    if min(height, width) < MIN_SIDE:
        raise ValueError(
            f"`{name}` must be at least {MIN_SIDE} pixels on each side, got {width} x {height}; "
            "enlarge it first."
        )


def tensor_from_array(array: np.ndarray, name: str) -> torch.Tensor:
    """`(B, C, H, W)` in [0, 1] of an array `(H, W)`, `(H, W, C)` or `(B, H, W, C)` of 8-bit or
    16-bit whole numbers, or of floating-point numbers in [0, 1]."""
    array = array[..., None].repeat(3, axis=-1) if array.ndim == 2 else array
    array = array[None] if array.ndim == 3 else array
    if array.dtype in (np.uint8, np.uint16):
        array = array.astype(np.float32) / np.iinfo(array.dtype).max
    if array.ndim != 4 or array.shape[-1] not in (1, 3) or array.dtype.kind != "f":
        raise ValueError(f"{accepted_images(name)}; got {array.dtype} of shape {array.shape}.")
    array = array.repeat(3, axis=-1) if array.shape[-1] == 1 else array
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)).movedim(-1, 1)


def tensor_from_pil(picture: PIL.Image.Image, name: str) -> torch.Tensor:
    """`(1, 3, H, W)` in [0, 1] of a Pillow image of any mode; gray is repeated, alpha is left
    out."""
    check_size(picture.height, picture.width, name)
    if picture.mode.startswith("I"):
        array = np.asarray(picture).astype(np.float32) / 65535
    elif picture.mode == "F":
        array = np.asarray(picture)
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
            raise ValueError(f"`{name}` is a floating-point image; its values must lie in [0, 1].")
    else:
        array = np.asarray(rgb_of(picture), dtype=np.float32) / 255
    array = array[..., None].repeat(3, axis=-1) if array.ndim == 2 else array
    return torch.from_numpy(np.ascontiguousarray(array)).movedim(-1, 0)[None]


def rgb_of(picture: PIL.Image.Image) -> PIL.Image.Image:
    """A Pillow image of any mode in RGB; inks through their profile, if they have one that fits."""
    profile = picture.info.get("icc_profile")
    if picture.mode == "CMYK" and profile:
        try:
            inks = PIL.ImageCms.ImageCmsProfile(io.BytesIO(profile))
            screen = PIL.ImageCms.createProfile("sRGB")
            return PIL.ImageCms.profileToProfile(picture, inks, screen, outputMode="RGB")
        except PIL.ImageCms.PyCMSError as error:
            raise ValueError(
                f"The colour profile of the image is not one of inks: {error}."
            ) from None
    if picture.mode == "La":
        picture = picture.convert("LA")
    return picture.convert("RGB")


def alpha_of(picture: PIL.Image.Image) -> PIL.Image.Image:
    if picture.mode == "La":
        picture = picture.convert("LA")
    return picture.convert("RGBA").getchannel("A")


def pil_from_array(array: np.ndarray, like: PIL.Image.Image | None = None) -> PIL.Image.Image:
    """A Pillow image of `(H, W, 3)` in [0, 1] with mode, alpha, profile and EXIF of the image it
    came from."""
    mode = like.mode if like is not None else "RGB"
    if mode == "F":
        return PIL.Image.fromarray(array.mean(-1, dtype=np.float64).astype(np.float32))
    if mode.startswith("I"):
        return PIL.Image.fromarray((array.mean(-1) * 65535).round().astype(np.uint16))
    image = PIL.Image.fromarray((array * 255).round().astype(np.uint8))
    if mode in ("1", "L", "LA", "La"):
        image = PIL.Image.fromarray((array.mean(-1) * 255).round().astype(np.uint8))
    if like is None:
        return image
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in like.info:
        image.putalpha(alpha_of(like))
    kept = ("icc_profile", "exif", "dpi", "xmp", "comment")
    kept = kept if mode != "CMYK" else kept[1:]
    image.info.update({key: like.info[key] for key in kept if key in like.info})
    return image


def apply_tiled(
    function: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor],
    image: torch.Tensor,
    reference: torch.Tensor | None,
    tile: int,
    overlap: int,
    on_tile: Callable[[], None] = lambda: None,
    at: Callable[[Box], AbstractContextManager] = contextlib.nullcontext,
) -> torch.Tensor:
    """Apply `function` to overlapping tiles of `image` (and of `reference`) `(B, C, H, W)` and
    blend the results.

    The outer quarter of an overlap is thrown away and its middle half blended linearly, so a
    function that sees no further than `overlap // 4` pixels gives the same result as on the whole
    image.

    Args:
        function: takes a tile and that of the reference.
        image: and the reference.
        tile: side in pixels.
        overlap: of neighbouring tiles in pixels.
        on_tile: called after each.
        at: told where a tile lies, returns the context in which `function` works on it.
    """
    height, width = image.shape[-2:]
    total, weight = None, torch.zeros(1, 1, height, width, device=image.device)
    for top in tile_starts(height, tile, overlap):
        for left in tile_starts(width, tile, overlap):
            bottom, right = min(top + tile, height), min(left + tile, width)
            region = (..., slice(top, bottom), slice(left, right))
            with at((top, bottom, left, right)):
                result = function(image[region], None if reference is None else reference[region])
            rows = blend_window(bottom - top, overlap, fade_in=top > 0, fade_out=bottom < height)
            columns = blend_window(right - left, overlap, fade_in=left > 0, fade_out=right < width)
            window = (rows[:, None] * columns[None]).to(image.device)
            if total is None:
                total = torch.zeros(*result.shape[:2], height, width, device=image.device)
            total[region] += result * window
            weight[region] += window
            on_tile()
    return total / weight


def tile_starts(side: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin along a side; the last one ends with the image."""
    if side <= tile:
        return [0]
    steps = math.ceil((side - tile) / (tile - overlap))
    return [round(i * (side - tile) / steps) for i in range(steps + 1)]


def blend_window(side: int, overlap: int, fade_in: bool, fade_out: bool) -> torch.Tensor:
    """Weights `(side,)` of a tile: 1, but fading from and to 0 over `overlap` pixels at ends that
    lie inside the image."""
    margin = overlap // 4
    ramp = ((torch.arange(overlap) - margin + 0.5) / max(overlap - 2 * margin, 1)).clamp(0, 1)
    window = torch.ones(side)
    if fade_in and overlap:
        window[:overlap] *= ramp
    if fade_out and overlap:
        window[-overlap:] *= ramp.flip(0)
    return window


def convert(images: list[torch.Tensor], output_type: str, dress: list | None = None):
    """Single images `(1, C, H, W)` in the form that `output_type` names; lists where sizes
    differ."""
    same = all(image.shape == images[0].shape for image in images)
    if output_type in ("pt", "latent"):
        return torch.cat(images) if same else images
    arrays = [image.float().clamp(0, 1).movedim(1, -1).cpu().numpy() for image in images]
    if output_type == "np":
        return np.concatenate(arrays) if same else arrays
    return [
        pil_from_array(array[0], like) for array, like in zip(arrays, dress or [None] * len(arrays))
    ]
