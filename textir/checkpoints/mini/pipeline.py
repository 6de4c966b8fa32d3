"""Restore photographs with the help of a guidance image painted from cleaned words.

Lin et al., *Improving Image Restoration through Removing Degradations in Textual Representations*
(CVPR 2024, arXiv 2312.17334): a degraded image is mapped to pseudo-words, the degradation is
removed from the words, Stable Diffusion paints a clean guidance image from them, and the guidance,
matched to the degraded image, helps a restoration network.

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
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from itertools import chain, islice
from numbers import Integral, Real
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
import PIL.Image
import PIL.ImageCms
import PIL.ImageOps
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    ModelMixin,
    PNDMScheduler,
    SchedulerMixin,
    UNet2DConditionModel,
)
from diffusers.loaders.lora_base import LoraBaseMixin, _fetch_state_dict
from diffusers.utils import BaseOutput, logging
from diffusers.utils.torch_utils import randn_tensor
from huggingface_hub.utils import validate_hf_hub_args
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from transformers import (
    BaseImageProcessor,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModel,
    FeatureExtractionMixin,
    ImageProcessingMixin,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

logger = logging.get_logger(__name__)

MIN_SIDE = 16
PATCH = 128  # side in pixels of the patches on which averages of a whole photo are measured
LEAST_PATCHES, MOST_PATCHES = 16, 64
MOST_WHOLE = 2048 * 2048  # pixels of an image that is restored at once unless tiles are asked for
TILE, LEAST_TILE = 1024, 256
Box = tuple[int, int, int, int]  # first and last row, first and last column, of a tile
GUIDANCE_MODES = ("cleaned", "degraded", "prompt", "none")
WORDS = ("cleaned", "degraded")  # of them, those that put the photo in words
OUTPUT_TYPES = ("pil", "np", "pt", "latent")
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
UNFINISHED = "-unfinished-"  # in the name of a folder that a save has begun
LORA_SIDES = (("lora_A", "lora_B"), ("lora_down", "lora_up"), ("lora.down", "lora.up"))
MAX_SCALE = 1000  # of classifier-free guidance; far beyond anything that paints
MAX_REDUCTION = 8  # of a side, by bicubic interpolation alone
PRESENT = 0.5  # what a detector gives at least this probability counts as seen
# task -> the degradation that it removes, as detector and restorer call it
TASKS = {
    "denoise": "noise",
    "derain": "rain",
    "dehaze": "haze",
    "deblur": "blur",
    "defocus": "defocus",
    "lowlight": "lowlight",
    "dejpeg": "jpeg",
    "sharpen": "downup",
}

TAG_EMBEDS: WeakKeyDictionary = WeakKeyDictionary()  # of text towers: their tags, embedded once
LOCKS: WeakKeyDictionary = WeakKeyDictionary()  # of pipelines; one in itself could not be copied


@dataclass
class RestorationOutput(BaseOutput):
    """What a restoration returns; fields that do not apply are `None`. Tensors become lists where
    images differ in size.

    Attributes:
        images: restored images, in the form that `output_type` asks for.
        guidance_images: what the guidance looked like, in the same form.
        guidance: where the guidance came from: cleaned, degraded, prompt, reference or none.
        removed: for each image the degradations that the restorer was told to remove; `None` where
            it had to find out by itself.
        change: for each image how far restoration moved its pixels: mean of |restored - degraded|
            on the 0-255 scale.
        understood: how an instruction was understood, in one line.
        tags: for each image what it says, `{"before": ..., "guidance": ..., "after": ...}`, each as
            `describe` returns it.
        degradation: for each image the probability of each degradation.
        severity: for each image the severity of each degradation in [0, 1].
        pseudo_words: `(B, N, D)`.
        cleaned_words: `(B, N, D)`.
        nearest_tokens: for each image and word the nearest vocabulary tokens, `{"before": [...],
            "after": [...]}` cleaning.
        match_confidence: `(B, 1, H, W)` in [0, 1], how well guidance matched.
        influence: `(B, 1, H, W)`, how far guidance moved each pixel: mean over channels of
            |restored - unguided|.
        guidance_strength: for each image the weight that its guidance had; where all have 0 there
            is neither match nor influence.
    """

    images: list[PIL.Image.Image] | np.ndarray | torch.Tensor | list | None
    guidance_images: list[PIL.Image.Image] | np.ndarray | torch.Tensor | list | None = None
    guidance: str = "none"
    removed: list[list[str] | None] | None = None
    change: list[float] | None = None
    understood: str | None = None
    tags: list[dict[str, dict]] | None = None
    degradation: list[dict[str, float]] | None = None
    severity: list[dict[str, float]] | None = None
    pseudo_words: torch.Tensor | None = None
    cleaned_words: torch.Tensor | None = None
    nearest_tokens: list[list[dict[str, list[str]]]] | None = None
    match_confidence: torch.Tensor | list[torch.Tensor] | None = None
    influence: torch.Tensor | list[torch.Tensor] | None = None
    guidance_strength: list[float] | None = None


@dataclass(frozen=True)
class Painting:
    """How guidance is painted: the options of a call that concern it, checked and complete.

    Attributes:
        source: what it is painted from: cleaned, degraded or prompt.
        prompts: words of the user, one text for each image, or `None`.
        negatives: what it should not show, likewise.
        init: noise or image.
        init_strength: how much of the way to noise the latents of an image are taken.
        steps: number of denoising steps.
        scale: of classifier-free guidance; 1 or less turns it off.
        generator: source of randomness, or one for each image.
        callback: called after each step.
        callback_inputs: which tensors it gets.
    """

    source: str
    prompts: list[str] | None
    negatives: list[str] | None
    init: str
    init_strength: float
    steps: int
    scale: float
    generator: torch.Generator | list[torch.Generator]
    callback: Callable | None = None
    callback_inputs: tuple[str, ...] = ("latents",)


@dataclass(frozen=True)
class Request:
    """What a call asks for, checked and complete: its defaults are resolved and it contains no
    contradiction.

    Attributes:
        labels: degradations to remove; `None`: find out.
        kept: degradations that must stay.
        source: where the guidance comes from: cleaned, degraded, prompt, reference or none.
        painting: how it is painted; `None` where it is not.
        references: a reference `(1, 3, h, w)` for each image in place of a painted guidance, or
            `None`.
        strength: of the guidance; `None` where the checkpoint decides.
        tile: side of the restorer's tiles in pixels, `auto`, or `None`.
        overlap: of tiles in pixels.
        output_type: form of the results.
        return_influence: whether to restore without guidance too.
        return_tags: whether to read tags of photo, guidance and result.
        understood: how an instruction was understood, or `None`.
    """

    labels: tuple[str, ...] | None
    kept: tuple[str, ...]
    source: str
    painting: Painting | None
    references: list[torch.Tensor] | None
    strength: float | None
    tile: int | str | None
    overlap: int
    output_type: str
    return_influence: bool
    return_tags: bool = False
    understood: str | None = None

    def part(self, images: slice) -> "Request":
        """The same for some of the images."""

        def some(values):
            return values[images] if isinstance(values, list) else values

        painting = self.painting
        if painting is not None:
            texts = {"prompts": some(painting.prompts), "negatives": some(painting.negatives)}
            painting = replace(painting, generator=some(painting.generator), **texts)
        return replace(self, painting=painting, references=some(self.references))


@dataclass
class Guidance:
    """A painted guidance and the words that it was painted from.

    Attributes:
        latents: `(B, C, h, w)`; with mirrored guidance of the images and then of their mirror
            images.
        images: `(B, 3, H, W)` in [0, 1], `None` where it was not decoded.
        pseudo_words: `(B, N, D)`, `None` where it was painted from a prompt alone.
        cleaned_words: `(B, N, D)`, or `None`.
    """

    latents: torch.Tensor
    images: torch.Tensor | None = None
    pseudo_words: torch.Tensor | None = None
    cleaned_words: torch.Tensor | None = None


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


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory did not suffice, on any device."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        "can't allocate memory" in str(error)
    )


def tile_of(height: int, width: int, restorer: torch.nn.Module) -> int | None:
    """Side of tiles where the package, which looks at the memory too, is not installed."""
    return None if height * width <= MOST_WHOLE else TILE


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


def _check_settings(guidance: str, init: str, strength: float, steps: int, scale: float) -> None:
    """Check what guidance is painted with.

    Raises:
        ValueError: if one is unknown or out of range.
    """
    if guidance not in GUIDANCE_MODES:
        raise ValueError(
            f"`guidance` must be one of {', '.join(GUIDANCE_MODES)}, got {guidance!r}."
        )
    if init not in ("noise", "image"):
        raise ValueError(f"`guidance_init` must be noise or image, got {init!r}.")
    if not lies_in(strength, 0, 1) or strength == 0:
        raise ValueError(f"`init_strength` must lie in (0, 1], got {strength!r}.")
    if not isinstance(steps, Integral) or steps < 1:
        raise ValueError(
            f"`num_inference_steps` must be a whole number of at least 1, got {steps!r}."
        )
    if not lies_in(scale, 0, MAX_SCALE):
        raise ValueError(f"`guidance_scale` must lie in [0, {MAX_SCALE}], got {scale!r}.")


class TextGuidedRestorationPipeline(CarriesCodeMixin, ChainLoraLoaderMixin, DiffusionPipeline):
    """Restores degraded photographs; every component may be absent, and what can be done without it
    still works.

    With `restorer` alone it restores without guidance. Without `restorer` it returns the guidance.
    A Stable Diffusion checkpoint becomes a whole one with `from_pretrained(SD, image_encoder=...,
    image_processor=..., mapper=..., ...)`.

    Args:
        image_encoder: CLIP vision tower; its last hidden state feeds mapper and detector.
        image_processor: holds the mean and deviation that the image encoder expects.
        tokenizer: of the text encoder.
        text_encoder: CLIP text tower; its embedding table is the vocabulary that `nearest_tokens`
            reads.
        mapper: image tokens `(B, 1 + P, Di)` -> pseudo-words `(B, N, D)`.
        cleaner: pseudo-words -> cleaned pseudo-words.
        unet: of Stable Diffusion 1.5, 2.1, Turbo or one of the same kind.
        vae: `AutoencoderKL` or `AutoencoderTiny`.
        scheduler: any of diffusers; PNDM, which needs many steps, is replaced by DPM-Solver++.
        matcher: brings guidance into the geometry of the degraded image.
        restorer: degraded image and guidance features -> restored image.
        detector: image tokens -> degradations and their severity.
        photo_encoder: image tower of a text-image space: `model(**photo_processor(images))` has
            `image_embeds`, as transformers' `CLIPVisionModelWithProjection`. One with calibrated
            tags, such as the embedded one, also says what a photo shows (`describe`).
        photo_processor: its inputs of images.
        photo_text_encoder: text tower of that space, `CLIPTextModelWithProjection`.
        photo_tokenizer: of that text tower.
        instruction_reader: sentence -> what to remove and what to keep.
        template: the sentence that the pseudo-words complete.
        default_num_inference_steps: of a call that does not say.
        default_guidance_scale: of a call that does not say; above 1 is classifier-free guidance.
        default_guidance_init: of a call that does not say, `noise` or `image`.
        default_init_strength: of a call that does not say.
        guidance_size: side in pixels of a square guidance image; other aspects get the same area.
            `None` takes the UNet's native size.
        square_guidance: paint every guidance as a square, into which the photo is squeezed as for
            the image encoder, and stretch it to the photo's shape afterwards; for small UNets,
            which know no other shape.
        mirror_guidance: paint from the mirror image of the photo too and take the mean of both,
            mirrored back (geometric self-ensemble, Timofte et al., *Seven Ways to Improve
            Example-based Single Image Super Resolution*, CVPR 2016); for painters whose errors
            differ there.
        guided_degradations: what guidance from cleaned words is good for: a call that does not say
            how strong guidance shall be uses it against these alone (`default_strengths`). `None`:
            against everything.
        detection_thresholds: degradation -> `(absent, present)`: with `task="auto"` the restorer is
            told to remove what the detector gives at least the probability `present`. Where
            something lies between `absent` and `present` the detector is unsure; then, and where it
            sees nothing, the restorer finds out by itself, as it always does with `None`.
        heeds_prompts: whether prompts change what is painted; where they do not, a call that has
            one is told so.
        negative_words: the negative branch of classifier-free guidance sees the photo's words too,
            not an empty prompt. A painter of one step has no later step that corrects what the
            scale makes of the difference between photo and nothing: darkness.
        rescale_guidance: classifier-free guidance keeps mean and deviation of the branch with the
            words (after Lin et al., *Common Diffusion Noise Schedules and Sample Steps are Flawed*,
            WACV 2024, which keeps the deviation).
    """

    model_cpu_offload_seq = (
        "photo_text_encoder->photo_encoder->"
        "image_encoder->detector->mapper->cleaner->text_encoder->unet->vae->matcher->restorer"
    )
    _optional_components = [
        "image_encoder",
        "image_processor",
        "tokenizer",
        "text_encoder",
        "mapper",
        "cleaner",
        "unet",
        "vae",
        "scheduler",
        "matcher",
        "restorer",
        "detector",
        "photo_encoder",
        "photo_processor",
        "photo_text_encoder",
        "photo_tokenizer",
        "instruction_reader",
    ]
    # Reads instructions where a checkpoint brings no reader; set where the package is installed.
    _default_instruction_reader = None
    _choose_tile = staticmethod(tile_of)  # looks at the memory too where the package is installed
    _callback_tensor_inputs = ["latents", "prompt_embeds"]

    def __init__(
        self,
        image_encoder: CLIPVisionModel = None,
        image_processor: BaseImageProcessor = None,
        tokenizer: CLIPTokenizer = None,
        text_encoder: CLIPTextModel = None,
        mapper: ModelMixin = None,
        cleaner: ModelMixin = None,
        unet: UNet2DConditionModel = None,
        vae: AutoencoderKL | AutoencoderTiny = None,
        scheduler: SchedulerMixin = None,
        matcher: ModelMixin = None,
        restorer: ModelMixin = None,
        detector: ModelMixin = None,
        photo_encoder: ModelMixin = None,
        photo_processor: ImageProcessingMixin = None,
        photo_text_encoder: CLIPTextModelWithProjection = None,
        photo_tokenizer: PreTrainedTokenizerBase = None,
        instruction_reader: FeatureExtractionMixin = None,
        template: str = "a photo of a",
        default_num_inference_steps: int = 8,
        default_guidance_scale: float = 5.0,
        default_guidance_init: str = "noise",
        default_init_strength: float = 0.6,
        guidance_size: int | None = None,
        square_guidance: bool = False,
        mirror_guidance: bool = False,
        guided_degradations: list[str] | None = None,
        detection_thresholds: dict[str, list[float]] | None = None,
        heeds_prompts: bool = True,
        negative_words: bool = False,
        rescale_guidance: bool = False,
    ):
        super().__init__()
        named = {
            "guided_degradations": guided_degradations,
            "detection_thresholds": detection_thresholds,
        }
        for name, labels in named.items():
            unknown = sorted(map(str, set(labels or ()) - set(TASKS.values())))
            if unknown:
                raise ValueError(
                    f"`{name}` may name {', '.join(TASKS.values())}; got {', '.join(unknown)}."
                )
        wrong = [
            pair for pair in (detection_thresholds or {}).values() if not 0 <= pair[0] <= pair[1]
        ]
        if wrong:
            raise ValueError(
                "`detection_thresholds` must rise from absent to present, from 0 on; got "
                f"{wrong[0]}."
            )
        if isinstance(scheduler, PNDMScheduler):
            scheduler = DPMSolverMultistepScheduler.from_config(scheduler.config)
        self.register_modules(
            image_encoder=image_encoder,
            image_processor=image_processor,
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            mapper=mapper,
            cleaner=cleaner,
            unet=unet,
            vae=vae,
            scheduler=scheduler,
            matcher=matcher,
            restorer=restorer,
            detector=detector,
            photo_encoder=photo_encoder,
            photo_processor=photo_processor,
            photo_text_encoder=photo_text_encoder,
            photo_tokenizer=photo_tokenizer,
            instruction_reader=instruction_reader,
        )
        self.register_to_config(
            template=template,
            default_num_inference_steps=default_num_inference_steps,
            default_guidance_scale=default_guidance_scale,
            default_guidance_init=default_guidance_init,
            default_init_strength=default_init_strength,
            guidance_size=guidance_size,
            square_guidance=square_guidance,
            mirror_guidance=mirror_guidance,
            guided_degradations=None if guided_degradations is None else list(guided_degradations),
            detection_thresholds=detection_thresholds,
            heeds_prompts=heeds_prompts,
            negative_words=negative_words,
            rescale_guidance=rescale_guidance,
        )
        self._num_timesteps = 0

    @property
    def num_timesteps(self) -> int:
        return self._num_timesteps

    @property
    def vae_scale_factor(self) -> int:
        """Pixels of the guidance for each latent."""
        widths = (
            getattr(self.vae.config, "block_out_channels", None)
            or self.vae.config.encoder_block_out_channels
        )
        return 2 ** (len(widths) - 1)

    @torch.no_grad()
    def __call__(
        self,
        image: PIL.Image.Image | list[PIL.Image.Image] | torch.Tensor,
        task: str | list[str] = "auto",
        keep: str | list[str] | None = None,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        guidance: str = "cleaned",
        guidance_image: PIL.Image.Image | list[PIL.Image.Image] | torch.Tensor | None = None,
        guidance_init: str | None = None,
        init_strength: float | None = None,
        guidance_strength: float | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        tile: int | str | None = "auto",
        overlap: int = 32,
        output_type: str = "pil",
        return_influence: bool = True,
        return_dict: bool = True,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],
        instruction: str | None = None,
        return_tags: bool = False,
    ) -> RestorationOutput | tuple:
        """Restore images.

        Args:
            image: an image, a list of images of any sizes, or a tensor `(B, 3, H, W)` in [0, 1];
                sides of at least 16 pixels.
            task: what to remove: `auto` (find out), a task (denoise, derain, dehaze, deblur,
                defocus, lowlight, dejpeg, sharpen), or several, as a list or joined:
                `"denoise+dehaze"`. What is not there leaves the photo as it is.
            keep: degradations that must stay, such as `"haze"`: with `auto` everything else that
                the detector sees is removed.
            prompt: words of the user, joined to the pseudo-words; one for all images or one each.
            negative_prompt: what the guidance should not show; acts through classifier-free
                guidance (`guidance_scale` > 1).
            guidance: what the guidance is painted from: `cleaned` words (the paper), `degraded`
                words, the `prompt` only, or `none`. A pipeline that has a restorer but no UNet
                restores without guidance.
            guidance_image: a reference to be used instead of a painted guidance; any size, one for
                all or one each.
            guidance_init: `noise` (the paper), or `image`: start from the latents of the degraded
                image, which fixes the layout; the checkpoint's `default_guidance_init` by default.
            init_strength: how much of the way to noise those latents are taken, in (0, 1], and with
                it the share of the steps that is taken (always one at least); the checkpoint's
                `default_init_strength` by default.
            guidance_strength: weight of the guidance in the restorer, in [0, 1]; 0 equals no
                guidance to the bit. By default 1, but 0 where guidance is painted from cleaned
                words alone and the checkpoint does not know it to help (`default_strengths`).
            num_inference_steps: denoising steps; the checkpoint's default if not given.
            guidance_scale: classifier-free guidance; the checkpoint's default if not given, 1 or
                less turns it off.
            generator: source of randomness, or one for each image; by default one with seed 0, so
                that a call gives the same pixels again.
            tile: side in pixels of the tiles that the restorer works on; `None` does the image at
                once; auto takes tiles above 4 megapixels, or where memory asks for them, and
                smaller ones when it runs out. All tiles share one guidance, and what the restorer
                averages over the whole image.
            overlap: pixels that neighbouring tiles share and blend over.
            output_type: `pil` (same mode, profile and alpha as the input), `np` `(B, H, W, 3)`,
                `pt` `(B, 3, H, W)`, or `latent`: stop before decoding and return the latents of the
                guidance.
            return_influence: restore without guidance too, to say what guidance changed; `False`
                saves that time.
            return_dict: return a `RestorationOutput`, otherwise the tuple `(images,
                guidance_images)`.
            callback_on_step_end: called as `callback(pipeline, step, timestep, tensors)` after each
                step; returns a dict of tensors to be replaced. With `mirror_guidance` they are
                those of the photos and then those of their mirror images.
            callback_on_step_end_tensor_inputs: which of `latents` and `prompt_embeds` it gets.
            instruction: a sentence in place of `task` and `keep`, such as "take out the rain but
                leave the fog". The output's `understood` says how it was read.
            return_tags: say what photo, guidance and result show (`tags`); takes a little time.

        Raises:
            ValueError: if an argument is out of range, does not fit the others or needs a component
                that is missing.
        """
        # 1. Check everything at the door
        batches, pictures = self._read_images(image)
        request = self.check(
            task,
            keep,
            prompt,
            negative_prompt,
            guidance,
            guidance_image,
            guidance_init,
            init_strength,
            guidance_strength,
            num_inference_steps,
            guidance_scale,
            generator,
            tile,
            overlap,
            output_type,
            return_influence,
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
            count=len(pictures),
            instruction=instruction,
            return_tags=return_tags,
        )

        # 2. Restore together what has one size
        outputs, first = [], 0
        with self.exclusive():
            for batch in batches:
                images = slice(first, first + len(batch))
                degraded = batch.to(self._execution_device)
                part = request.part(images)
                outputs.append(self._restore_batch(degraded, pictures[images], part))
                first += len(batch)
            self.maybe_free_model_hooks()

        # 3. Give it the form that was asked for
        output = outputs[0] if len(outputs) == 1 else join_outputs(outputs)
        return output if return_dict else (output.images, output.guidance_images)

    def exclusive(self) -> threading.RLock:
        """A lock that a call holds while it works. Threads that share a pipeline wait for one
        another; whoever changes it between calls (adapters, scheduler, hooks) takes it too."""
        return LOCKS.setdefault(self, threading.RLock())

    def _restore_batch(
        self, degraded: torch.Tensor, pictures: list[PIL.Image.Image | None], request: Request
    ) -> RestorationOutput:
        """The chain of the paper, on images `(B, 3, H, W)`; `pictures` are the Pillow images that
        they came from."""
        # 1. See what is wrong, and decide what to remove
        tokens = (
            self.encode_image(degraded) if self._can_detect or request.source in WORDS else None
        )
        degradation, severity = (
            self.detect(tokens, self.native_pixels(degraded)) if self._can_detect else (None, None)
        )
        removed = self.choose_removed(request, degradation, len(degraded))
        found = {
            "guidance": request.source,
            "understood": request.understood,
            "degradation": degradation,
            "severity": severity,
            "removed": removed,
        }

        # 2. Put it in words, clean the words, and paint the guidance from them
        references = request.references
        if request.painting is not None:
            guidance = self._guide(
                degraded, request.painting, removed, tokens, decode=request.output_type != "latent"
            )
            references = None if guidance.images is None else list(guidance.images.split(1))
            words, cleaned = guidance.pseudo_words, guidance.cleaned_words
            found |= {"pseudo_words": words, "cleaned_words": cleaned}
            found["nearest_tokens"] = None if words is None else self.nearest_tokens(words, cleaned)

        # 3. Restore, with what the guidance knows
        if request.output_type == "latent":
            restored = guidance.latents
        elif self.restorer is None:
            restored = torch.cat(references)
        else:
            restored, effect = self._restore_guided(
                degraded, references, removed, degradation, request
            )
            finite(restored, "restorer")
            change = (restored - degraded.clamp(0, 1)).abs().mean((1, 2, 3)) * 255
            found |= {"change": change.tolist(), **effect}
        if request.return_tags and request.output_type != "latent":
            found["tags"] = self._tags_of_all(degraded, references, restored)

        # 4. Give everything the form that was asked for
        images = convert(list(restored.split(1)), request.output_type, pictures)
        guidance_images = None if references is None else convert(references, request.output_type)
        return RestorationOutput(images=images, guidance_images=guidance_images, **found)

    def _tags_of_all(
        self,
        degraded: torch.Tensor,
        references: list[torch.Tensor] | None,
        restored: torch.Tensor,
    ) -> list[dict[str, dict]]:
        """What each photo, its guidance and its result say, see `describe`."""
        read = {"before": self.describe(degraded), "after": self.describe(restored)}
        if references is not None:
            read["guidance"] = [self.describe(reference)[0] for reference in references]
        return [dict(zip(read, tags)) for tags in zip(*read.values())]

    # ---- a text-image space

    @property
    def can_describe(self) -> bool:
        """Whether this pipeline can read tags of photos."""
        return self._has_photo_space and hasattr(self.photo_encoder, "read_tags")

    @property
    def _has_photo_space(self) -> bool:
        parts = ("photo_encoder", "photo_processor", "photo_text_encoder", "photo_tokenizer")
        return all(getattr(self, part) is not None for part in parts)

    @torch.no_grad()
    def embed_photos(self, images: torch.Tensor) -> torch.Tensor:
        """Unit vectors `(B, D)` of images `(B, 3, H, W)` in [0, 1], in the space of `embed_texts`.

        Raises:
            ValueError: if this pipeline has no such space.
        """
        self._check_photo_space()
        pixels = images.float().clamp(0, 1)
        enlargement = MIN_SIDE / min(pixels.shape[-2:])
        if enlargement > 1:  # a small guidance
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
            ValueError: if this pipeline has no such space.
        """
        self._check_photo_space()
        options = {"padding": True, "truncation": True, "return_tensors": "pt"}
        embeds = []
        for first in range(0, len(texts), 64):
            inputs = self.photo_tokenizer(list(texts[first : first + 64]), **options)
            inputs = inputs.to(self.photo_text_encoder.device)
            output = self.photo_text_encoder(
                input_ids=inputs.input_ids, attention_mask=inputs.attention_mask
            )
            embeds.append(finite(output.text_embeds.float(), "photo_text_encoder"))
        return F.normalize(torch.cat(embeds), dim=-1)

    @torch.no_grad()
    def describe(self, images: torch.Tensor) -> list[dict[str, list[dict]]]:
        """What images `(B, 3, H, W)` in [0, 1] show: tags in four groups (things, place, light,
        faults), each with how sure it is.

        Returns:
            for each image `{group: [{"tag": name, "probability": p, "sure": bool}, ...]}`, the
            likeliest first.

        Raises:
            ValueError: if this pipeline has no towers, or none with calibrated tags.
        """
        self._check_photo_space()
        if not self.can_describe:
            raise ValueError(
                "The photo encoder of this checkpoint has no calibrated tags; `embed_photos` and "
                "`embed_texts` compare photos with sentences of yours."
            )
        texts = self.photo_encoder.tag_texts()
        known = TAG_EMBEDS.get(self.photo_text_encoder)
        if known is None or len(known) != len(texts):
            known = self.embed_texts(texts)
            TAG_EMBEDS[self.photo_text_encoder] = known
        embeds = self.embed_photos(images)
        return self.photo_encoder.read_tags(embeds, known.to(embeds.device))

    def _check_photo_space(self) -> None:
        if not self._has_photo_space:
            raise ValueError(
                "This checkpoint has no text-image space: photo_encoder, photo_processor, "
                "photo_text_encoder and photo_tokenizer are needed. The embedded one has them; a "
                "CLIP of the Hub can be given for them."
            )

    def read_instruction(self, instruction: str):
        """What a sentence asks for: an object with `remove`, `keep`, `prompt` and `understood`.

        Raises:
            ValueError: if nothing here reads instructions, or the sentence is empty.
        """
        reader = self.instruction_reader or self._default_instruction_reader
        if reader is None:
            raise ValueError(
                "This checkpoint has no instruction reader; say what to remove by `task` and what "
                "must stay by `keep`."
            )
        return reader(instruction)

    def _restore_guided(
        self,
        degraded: torch.Tensor,
        references: list[torch.Tensor] | None,
        removed: list[list[str] | None] | None,
        degradation: list[dict[str, float]] | None,
        request: Request,
    ) -> tuple[torch.Tensor, dict]:
        """Images restored with their guidance where there is one and it has a strength, and what is
        to be told of its effect."""
        options = {"tile": request.tile, "overlap": request.overlap, "removed": removed}
        if references is None:
            return self.restore(degraded, **options)[0], {}
        strengths = self.choose_strengths(request, removed, degradation, len(degraded))
        effect = {"guidance_strength": strengths}
        if not any(strengths):
            return self.restore(degraded, **options)[0], effect
        unguided = self.restore(degraded, **options)[0] if request.return_influence else None
        aligned = torch.cat(
            [resize(single.to(degraded), degraded.shape[-2:]) for single in references]
        )
        restored, effect["match_confidence"] = self.restore(degraded, aligned, strengths, **options)
        if unguided is not None:
            effect["influence"] = (restored - unguided).abs().mean(1, keepdim=True)
        return restored, effect

    @torch.no_grad()
    def guide(
        self,
        degraded: torch.Tensor,
        guidance: str = "cleaned",
        removed: list[list[str] | None] | None = None,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        guidance_init: str | None = None,
        init_strength: float | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> Guidance:
        """Paint the guidance of images `(B, 3, H, W)` in [0, 1] without restoring them.

        Args:
            degraded: images of one size.
            guidance: what it is painted from: `cleaned` words, `degraded` words or the `prompt`
                only.
            removed: the degradations that the cleaner is told to remove of each image; `None`: it
                finds out by itself.
            prompt: and all others: see `__call__`.

        Raises:
            ValueError: if an argument is out of range, does not fit the others or needs a component
                that is missing.
        """
        check_tensor(degraded, "degraded")
        painting = self.check_painting(
            guidance,
            prompt,
            negative_prompt,
            guidance_init,
            init_strength,
            num_inference_steps,
            guidance_scale,
            generator,
            count=len(degraded),
        )
        if painting is None:
            raise ValueError(
                f"`guidance` must be cleaned, degraded or prompt to be painted, got {guidance!r}."
            )
        return self._guide(degraded.to(self._execution_device), painting, removed)

    def _guide(
        self,
        degraded: torch.Tensor,
        painting: Painting,
        removed: list[list[str] | None] | None = None,
        tokens: torch.Tensor | None = None,
        decode: bool = True,
    ) -> Guidance:
        """See, say, clean and paint; with `mirror_guidance` of the mirror images too. `tokens` are
        those of the images, if known."""
        count, spoken = len(degraded), painting.source in WORDS
        mirrored = spoken and decode and self.config.mirror_guidance
        views = torch.cat([degraded, degraded.flip(-1)]) if mirrored else degraded
        repeats = 2 if mirrored else 1
        prompts = painting.prompts and painting.prompts * repeats
        negatives = (painting.negatives or [""] * count) * repeats
        generator = (
            painting.generator * repeats
            if isinstance(painting.generator, list)
            else painting.generator
        )

        words = cleaned = None
        if spoken:
            known = [] if tokens is None else [tokens]
            tokens = (
                torch.cat([*known, self.encode_image(views[len(known) * count :])])
                if len(known) < repeats
                else tokens
            )
            words = finite(self.mapper(tokens.to(self.mapper.dtype)), "mapper")
            if self.cleaner is not None:
                wish = self.condition_of(self.cleaner, removed and removed * repeats, words)
                cleaned = finite(self.cleaner(words.to(self.cleaner.dtype), **wish), "cleaner")
            embeds = self.encode_words(cleaned if painting.source == "cleaned" else words, prompts)
        else:
            embeds = self.encode_text(prompts)
        finite(embeds, "text_encoder")
        negative_embeds = None
        if painting.scale > 1 and spoken and self.config.negative_words:
            said = cleaned if painting.source == "cleaned" else words
            negative_embeds = self.encode_words(said, negatives if any(negatives) else None)
        elif painting.scale > 1:
            negative_embeds = self.encode_text(negatives)
        latents, timesteps = self.prepare_latents(
            views, painting.init, painting.init_strength, painting.steps, generator
        )
        latents = self.paint(
            latents,
            timesteps,
            embeds,
            negative_embeds,
            painting.scale,
            generator,
            painting.callback,
            painting.callback_inputs,
        )
        finite(latents, "unet")
        images = finite(self.decode_latents(latents), "vae") if decode else None
        if mirrored:
            images = (images[:count] + images[count:].flip(-1)) / 2
        words, cleaned = (None if value is None else value[:count] for value in (words, cleaned))
        return Guidance(latents, images, words, cleaned)

    def choose_strengths(
        self,
        request: Request,
        removed: list[list[str] | None] | None,
        degradation: list[dict[str, float]] | None,
        count: int,
    ) -> list[float]:
        """The weight of the guidance of each of `count` images: what the call says, or, where that
        leaves it to the checkpoint and nothing but the photo speaks, `default_strengths`."""
        painting = request.painting
        prompted = painting is not None and bool(painting.prompts or painting.negatives)
        if request.strength is None and request.source == "cleaned" and not prompted:
            return self.default_strengths(removed, degradation, count)
        return [1.0 if request.strength is None else request.strength] * count

    def default_strengths(
        self,
        removed: list[list[str] | None] | None,
        degradation: list[dict[str, float]] | None,
        count: int,
    ) -> list[float]:
        """The weight of guidance from cleaned words for each of `count` images in a call that does
        not say.

        Returns 1 where something of the checkpoint's `guided_degradations` is to be removed,
        otherwise 0. What the restorer finds out by itself is what the detector sees; without a
        detector, or where `detection_thresholds` tell what is sure, it is nothing.

        Args:
            removed: what the restorer is told to remove of each image, `None` if it is told
                nothing.
            degradation: what `detect` says of them, if it was asked.
            count: number of images.
        """
        helped = self.config.guided_degradations
        if helped is None:
            return [1.0] * count
        images = zip(removed or [None] * count, degradation or [{}] * count)
        # Then what was not told is not sure enough for guidance either.
        unsure = self.config.detection_thresholds is not None
        wanted = [
            ([] if unsure else seen_in(seen)) if labels is None else labels
            for labels, seen in images
        ]
        return [float(bool(set(labels) & set(helped))) for labels in wanted]

    # ---- what to remove

    def choose_removed(
        self, request: Request, degradation: list[dict[str, float]] | None, count: int
    ) -> list[list[str] | None] | None:
        """The degradations that the restorer is told to remove of each of `count` images; `None`:
        it finds out by itself, of one image or of all.

        Args:
            request: a call, of which `labels` and `kept` matter here.
            degradation: what `detect` says of each image, if it was asked.
            count: number of images.
        """
        if request.labels is not None:
            return [list(request.labels)] * count
        thresholds = self.config.detection_thresholds
        if not request.kept:
            if thresholds is None or degradation is None or not self.can_remove:
                return None
            return [surely_seen(image, thresholds) for image in degradation]
        known = set(self.can_remove) - set(request.kept)
        removed = []
        for image in degradation:
            removed.append([label for label in seen_in(image, thresholds) if label in known])
        return removed

    @property
    def can_remove(self) -> tuple[str, ...]:
        """The degradations that this pipeline can be told to remove: those of its restorer, or, if
        it has none, of its cleaner."""
        part = self.cleaner if self.restorer is None else self.restorer
        return tuple((part is not None and part.config.get("labels")) or ())

    def _check_told(self, labels: tuple[str, ...] | None, kept: tuple[str, ...]) -> None:
        both = sorted(set(labels or ()) & set(kept))
        if both:
            raise ValueError(
                f"`task` asks to remove {', '.join(both)} and `keep` to keep it; take one of them "
                "out."
            )
        known = self.can_remove
        if not known and (labels is not None or kept):
            raise ValueError(
                "The restorer of this checkpoint is blind: it finds out by itself what to remove "
                "and cannot be told. Leave `task` at "
                "auto and `keep` empty, or take a checkpoint whose restorer has labels."
            )
        absent = [label for label in (*(labels or ()), *kept) if label not in known]
        if absent:
            raise ValueError(
                f"This checkpoint knows no {', '.join(absent)}; it can be told of "
                f"{', '.join(known)}."
            )
        if kept and labels is None and not self._can_detect:
            raise ValueError(
                "`keep` with `task='auto'` removes what a detector sees, and this checkpoint has "
                "none; name the tasks instead."
            )

    def condition_of(
        self, part: ModelMixin, removed: list[list[str] | None] | None, like: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """The argument `condition` `(B, len(labels) + 1)` that tells a component what to remove;
        nothing for one that is blind."""
        labels = part.config.get("labels")
        if labels is None:
            return {}
        rows = []
        for image in removed or [None]:
            wanted = image or ()
            rows.append([*(float(label in wanted) for label in labels), float(image is None)])
        if all(row == rows[0] for row in rows):
            rows = rows[:1]  # one for all is faster
        return {"condition": torch.tensor(rows, device=like.device, dtype=part.dtype)}

    # ---- the steps, each usable on its own

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        """Image tokens `(B, 1 + P, Di)` of images `(B, 3, H, W)` in [0, 1]; the whole image is
        squeezed into the encoder's square."""
        pixels = self.encoder_pixels(image).to(self.image_encoder.dtype)
        return finite(self.image_encoder(pixel_values=pixels).last_hidden_state, "image_encoder")

    def encoder_pixels(self, image: torch.Tensor) -> torch.Tensor:
        """Images `(B, 3, H, W)` in [0, 1] as the image encoder wants them: its size, mean and
        deviation."""
        side = self.image_encoder.config.image_size
        pixels = resize(image.float().clamp(0, 1), (side, side))
        processor = self.image_processor
        statistics = (processor.image_mean, processor.image_std)
        if not all(isinstance(values, (list, tuple)) and len(values) == 3 for values in statistics):
            raise ValueError(
                "The image processor of this checkpoint is damaged: `image_mean` and `image_std` "
                f"must be three numbers each, got {statistics[0]} and {statistics[1]}."
            )
        mean, std = (torch.tensor(values, device=image.device) for values in statistics)
        return (pixels - mean[:, None, None]) / std[:, None, None]

    def native_pixels(self, image: torch.Tensor, side: int = 128) -> torch.Tensor:
        """The centre of images `(B, 3, H, W)` in native pixels, `side` at most; what a detector may
        judge texture by."""
        top, left = (max(length - side, 0) // 2 for length in image.shape[-2:])
        return image[..., top : top + side, left : left + side].clamp(0, 1)

    def detect(
        self, image_tokens: torch.Tensor, pixels: torch.Tensor | None = None
    ) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
        """Probability and severity of each degradation, a dict for each image; from image tokens
        and `native_pixels`."""
        seen = self.detector(image_tokens.to(self.detector.dtype), pixels)
        labels = self.detector.config.labels
        probability = finite(seen.logits.float(), "detector").sigmoid().tolist()
        severity = finite(seen.severity.float(), "detector").tolist()
        return [dict(zip(labels, row)) for row in probability], [
            dict(zip(labels, row)) for row in severity
        ]

    def encode_words(self, words: torch.Tensor, prompt: list[str] | None = None) -> torch.Tensor:
        """Prompt embeddings `(B, L, D)` of "a photo of a" and the words `(B, N, D)`, followed by
        the user's prompt."""
        batch, count, _ = words.shape
        length = self.tokenizer.model_max_length
        opening = self._token_ids(self.config.template)
        if len(opening) + count + 2 > length:
            raise ValueError(
                f"{count} pseudo-words and the template {self.config.template!r} do not fit into "
                f"{length} tokens."
            )
        rows = []
        for text in prompt or [None] * batch:
            extra = self._token_ids(f", {text}") if text else []
            room = length - 2 - len(opening) - count
            if len(extra) > room:
                logger.warning(
                    "The prompt has %d tokens beside the pseudo-words; the last %d are cut.",
                    len(extra),
                    len(extra) - room,
                )
            rows.append(self._framed([*opening, *opening[-1:] * count, *extra[:room]]))
        ids = torch.tensor(rows, device=words.device)
        positions = torch.arange(count, device=words.device) + 1 + len(opening)
        with inject_words(self.text_encoder, words, positions):
            return self.text_encoder(ids).last_hidden_state

    def encode_text(self, texts: list[str]) -> torch.Tensor:
        """Prompt embeddings `(B, L, D)` of plain texts."""
        length = self.tokenizer.model_max_length
        rows = []
        for text in texts:
            ids = self._token_ids(text)
            if len(ids) > length - 2:
                logger.warning(
                    "%r has %d tokens; the last %d are cut.",
                    text[:40],
                    len(ids),
                    len(ids) - length + 2,
                )
            rows.append(self._framed(ids[: length - 2]))
        return self.text_encoder(
            torch.tensor(rows, device=self._execution_device)
        ).last_hidden_state

    def nearest_tokens(
        self, before: torch.Tensor, after: torch.Tensor | None = None, count: int = 3
    ) -> list[list[dict[str, list[str]]]]:
        """The vocabulary tokens nearest by cosine to each word `(B, N, D)`, before and after
        cleaning."""
        # The table may be padded beyond the vocabulary.
        known = torch.arange(len(self.tokenizer), device=before.device)
        # Called, so that it is there while weights are offloaded.
        table = self.text_encoder.get_input_embeddings()(known)
        table = F.normalize(table.float(), dim=-1)

        def read(words: torch.Tensor) -> list[list[list[str]]]:
            nearest = (
                (F.normalize(words.to(table), dim=-1) @ table.T)
                .topk(min(count, len(table)))
                .indices
            )
            spelled = iter([self._readable(ids) for ids in nearest.flatten(0, 1).tolist()])
            return [list(islice(spelled, words.shape[1])) for _ in words]

        old = read(before)
        new = [[[]] * before.shape[1]] * len(before) if after is None else read(after)
        described = []
        for olds, news in zip(old, new):
            described.append([{"before": b, "after": a} for b, a in zip(olds, news)])
        return described

    def prepare_latents(
        self,
        degraded: torch.Tensor,
        init: str,
        strength: float,
        steps: int,
        generator: torch.Generator | list | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Starting latents for the guidance of `degraded` `(B, 3, H, W)`, and the timesteps that
        lead from them to a picture."""
        height, width = self.guidance_shape(*degraded.shape[-2:])
        shape = (
            len(degraded),
            self.unet.config.in_channels,
            height // self.vae_scale_factor,
            width // self.vae_scale_factor,
        )
        noise = randn_tensor(
            shape, generator=generator, device=degraded.device, dtype=self.unet.dtype
        )
        if init == "image":
            # Fewer would leave no step as short as `strength`.
            steps = max(steps, math.ceil(1 / strength))
        self.scheduler.set_timesteps(steps, device=degraded.device)
        if init == "noise":
            return noise * self.scheduler.init_noise_sigma, self.scheduler.timesteps
        order = getattr(self.scheduler, "order", 1)
        kept = max(1, min(steps, round(steps * strength)))
        timesteps = self.scheduler.timesteps[(steps - kept) * order :]
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index((steps - kept) * order)
        latents = self.encode_latents(resize(degraded.float().clamp(0, 1), (height, width))).to(
            self.unet.dtype
        )
        return self.scheduler.add_noise(latents, noise, timesteps[:1]), timesteps

    def encode_latents(self, image: torch.Tensor) -> torch.Tensor:
        """Images `(B, 3, H, W)` in [0, 1] -> latents, in the scale that the UNet works in."""
        encoded = self.vae.encode((image * 2 - 1).to(self.vae.dtype))
        latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
        return latents * self.vae.config.scaling_factor

    def guidance_shape(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the guidance for an image: its aspect at the area that the UNet is
        used to."""
        native = self.config.guidance_size or self.unet.config.sample_size * self.vae_scale_factor
        multiple = self.vae_scale_factor * 2 ** (len(self.unet.config.block_out_channels) - 1)
        multiple = min(multiple, native)
        ratio = 1.0 if self.config.square_guidance else math.sqrt(height / width)
        sides = (native * ratio, native / ratio)
        tall, wide = (min(max(round(side / multiple), 1) * multiple, 4 * native) for side in sides)
        return tall, wide

    def paint(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        prompt_embeds: torch.Tensor,
        negative_embeds: torch.Tensor | None = None,
        guidance_scale: float = 1.0,
        generator: torch.Generator | list | None = None,
        callback: Callable | None = None,
        callback_inputs: Sequence[str] = ("latents",),
    ) -> torch.Tensor:
        """Denoise latents; both branches of classifier-free guidance go through the UNet in one
        call."""
        self._num_timesteps = len(timesteps)
        takes = inspect.signature(self.scheduler.step).parameters
        extra = {"generator": generator} if "generator" in takes else {}
        with self.progress_bar(total=len(timesteps)) as bar:
            for i, t in enumerate(timesteps):
                guided = negative_embeds is not None
                both = torch.cat([latents, latents]) if guided else latents
                embeds = torch.cat([negative_embeds, prompt_embeds]) if guided else prompt_embeds
                both = self.scheduler.scale_model_input(both, t)
                noise = self.unet(
                    both, t, encoder_hidden_states=embeds.to(self.unet.dtype), return_dict=False
                )[0]
                if guided:
                    negative, positive = noise.chunk(2)
                    noise = negative + guidance_scale * (positive - negative)
                    if self.config.rescale_guidance:
                        noise = like_statistics(noise, positive)
                latents = self.scheduler.step(noise, t, latents, **extra, return_dict=False)[0].to(
                    self.unet.dtype
                )
                if callback is not None:
                    tensors = {}
                    for name in callback_inputs:
                        tensors[name] = locals()[name]
                    replaced = callback(self, i, t, tensors) or {}
                    latents = replaced.pop("latents", latents)
                    prompt_embeds = replaced.pop("prompt_embeds", prompt_embeds)
                bar.update()
        return latents

    def decode_latents(self, latents: torch.Tensor, clip: bool = True) -> torch.Tensor:
        """Latents -> images `(B, 3, h, w)` in [0, 1]; without `clip` values may leave it, and
        gradients are never cut."""
        pixels = self.vae.decode(
            (latents / self.vae.config.scaling_factor).to(self.vae.dtype), return_dict=False
        )[0]
        image = pixels.float() / 2 + 0.5
        return image.clamp(0, 1) if clip else image

    def restore(
        self,
        degraded: torch.Tensor,
        guidance: torch.Tensor | None = None,
        strength: float | list[float] = 1.0,
        tile: int | str | None = "auto",
        overlap: int = 32,
        removed: list[list[str] | None] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Run the restorer on images `(B, 3, H, W)`, with a guidance of the same size if there is
        one, of one strength or one for each; `removed` says what it shall remove of each, `None`
        that it shall find out.

        Returns:
            restored images in [0, 1], and the confidence of the match `(B, 1, H, W)` or `None`.
        """
        height, width = degraded.shape[-2:]
        is_free = tile == "auto"
        if is_free:
            tile = self._choose_tile(height, width, self.restorer)
        if len(degraded) > 1 and tile is not None and tile < max(height, width):
            # What tiles have in common belongs to one image.
            strengths = strength if isinstance(strength, list) else [strength] * len(degraded)
            pairs = [
                self.restore(
                    degraded[i : i + 1],
                    None if guidance is None else guidance[i : i + 1],
                    strengths[i],
                    "auto" if is_free else tile,
                    overlap,
                    None if removed is None else removed[i : i + 1],
                )
                for i in range(len(degraded))
            ]
            restored, confidence = zip(*pairs)
            return torch.cat(restored), None if guidance is None else torch.cat(confidence)
        while True:
            try:
                return self._restore_tiled(degraded, guidance, strength, tile, overlap, removed)
            except (RuntimeError, MemoryError) as error:
                side = max(height, width) if tile is None else tile
                if not (is_free and is_out_of_memory(error)) or side <= LEAST_TILE:
                    raise
            tile = max(min(side // 2, TILE), LEAST_TILE)
            logger.warning("Out of memory; going on with tiles of %d pixels.", tile)

    def _restore_tiled(
        self,
        degraded: torch.Tensor,
        guidance: torch.Tensor | None,
        strength: float | list[float],
        tile: int | None,
        overlap: int,
        removed: list[list[str] | None] | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`restore` in tiles of a side, or at once."""
        wishes = self.condition_of(self.restorer, removed, degraded)

        def run(region: torch.Tensor, reference: torch.Tensor | None) -> torch.Tensor:
            region = region.to(self.restorer.dtype)
            if self._channels == 1:  # a network for gray photos restores light and leaves colour
                light = (region * region.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)
                return (region + self.restorer(light, **wishes) - light).float()
            if reference is None:
                return self.restorer(region, **wishes).float()
            matched = self.matcher(region.to(self.matcher.dtype), reference.to(self.matcher.dtype))
            finite(matched.confidence, "matcher")
            features = [f.to(self.restorer.dtype) for f in matched.features]
            weight = (
                strength
                if isinstance(strength, float | int)
                else region.new_tensor(strength)[:, None, None, None]
            )
            restored = self.restorer(region, guidance_features=features, strength=weight, **wishes)
            return torch.cat([restored.float(), matched.confidence.float()], dim=1)

        if tile is None or tile >= max(degraded.shape[-2:]):
            result = run(degraded, guidance)
        else:
            with self.progress_bar(total=count_tiles(*degraded.shape[-2:], tile, overlap)) as bar:
                at = self._tell_tiles(run, degraded, guidance, tile)
                result = apply_tiled(run, degraded, guidance, tile, overlap, bar.update, at)
        restored, confidence = result[:, :3].clamp(0, 1), result[:, 3:]
        return restored, confidence if guidance is not None else None

    def _tell_tiles(
        self, run: Callable, degraded: torch.Tensor, guidance: torch.Tensor | None, tile: int
    ) -> Callable[[Box], AbstractContextManager]:
        """The context for each tile of an image `(1, 3, H, W)`, in which the restorer knows what it
        averages over the whole image; measured on patches of it, all together no larger than a
        tile. Restorers that cannot be told, and compiled ones, see their tile alone."""
        if is_compiled(self.restorer) or not hasattr(self.restorer, "share_averages"):
            return contextlib.nullcontext
        size, patch = tuple(degraded.shape[-2:]), min(PATCH, tile)
        grid = patch_grid(size, patch, min(max(LEAST_PATCHES, tile**2 // patch**2), MOST_PATCHES))
        averages = self.restorer.share_averages(size, patch, grid)
        with averages.measuring():
            run(
                cut_patches(degraded, patch, grid),
                None if guidance is None else cut_patches(guidance, patch, grid),
            )
        return averages.at

    @property
    def _channels(self) -> int:
        """How many channels the restorer takes."""
        return self.restorer.config.get("in_channels", 3)

    @property
    def _can_detect(self) -> bool:
        return (
            self.detector is not None
            and self.image_encoder is not None
            and self.image_processor is not None
        )

    # ---- tokens

    def _framed(self, ids: list[int]) -> list[int]:
        """Token ids between begin and end of text, padded to the length that the text encoder
        takes."""
        begin, end, pad = (
            self.tokenizer.bos_token_id,
            self.tokenizer.eos_token_id,
            self.tokenizer.pad_token_id,
        )
        row = [begin, *ids, end]
        return row + [end if pad is None else pad] * (self.tokenizer.model_max_length - len(row))

    def _token_ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def _readable(self, ids: list[int]) -> list[str]:
        return [token.removesuffix("</w>") for token in self.tokenizer.convert_ids_to_tokens(ids)]

    # ---- the door

    def check(
        self,
        task: str | list[str] = "auto",
        keep: str | list[str] | None = None,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        guidance: str = "cleaned",
        guidance_image=None,
        guidance_init: str | None = None,
        init_strength: float | None = None,
        guidance_strength: float | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        tile: int | str | None = "auto",
        overlap: int = 32,
        output_type: str = "pil",
        return_influence: bool = True,
        callback: Callable | None = None,
        callback_inputs: Sequence[str] = ("latents",),
        count: int = 1,
        instruction: str | None = None,
        return_tags: bool = False,
    ) -> Request:
        """Check the arguments of a call on `count` images, see `__call__`, and resolve its
        defaults.

        Raises:
            ValueError: if one is unknown or out of range, they contradict each other, or a
                component that they need is missing.
        """
        labels, kept, understood, described = self._read_wish(task, keep, instruction)
        if prompt is None and self._heeds_prompts(guidance):
            prompt = described
        self._check_told(labels, kept)
        if return_tags and not self.can_describe:
            raise ValueError(
                "`return_tags` needs a text-image space with calibrated tags, which this "
                "checkpoint lacks."
            )
        if guidance_strength is not None and not lies_in(guidance_strength, 0, 1):
            raise ValueError(f"`guidance_strength` must lie in [0, 1], got {guidance_strength!r}.")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(
                f"`output_type` must be one of {', '.join(OUTPUT_TYPES)}, got {output_type!r}."
            )
        if tile not in (None, "auto") and not (isinstance(tile, Integral) and tile >= 64):
            raise ValueError(
                f"`tile` must be auto, None or a whole number of at least 64 pixels, got {tile!r}."
            )
        least = 256 if tile == "auto" else tile
        if tile is not None and not 0 <= overlap <= least // 2:
            raise ValueError(
                f"`overlap` must lie between 0 and half of `tile` ({least // 2}), got {overlap}."
            )

        source = self._guidance_source(
            guidance, prompt, negative_prompt, guidance_image, output_type
        )
        painting = self.check_painting(
            "none" if source == "reference" else source,
            prompt,
            negative_prompt,
            guidance_init,
            init_strength,
            num_inference_steps,
            guidance_scale,
            generator,
            callback,
            callback_inputs,
            count,
        )
        if self.restorer is not None and self._channels not in (1, 3):
            raise ValueError(
                f"The restorer takes {self._channels} channels, such as both views of a "
                "dual-pixel sensor; a photo has 3. Take another checkpoint."
            )
        if source == "none":
            self._check_parts(["restorer"], source)
        elif self.restorer is not None and output_type != "latent":
            self._check_parts(["matcher"], source)
        return Request(
            labels=labels,
            kept=kept,
            source=source,
            painting=painting,
            references=self._references(guidance_image, count),
            strength=guidance_strength,
            tile=tile,
            overlap=overlap,
            output_type=output_type,
            return_influence=return_influence,
            return_tags=return_tags,
            understood=understood,
        )

    def _read_wish(
        self, task: str | list[str], keep: str | list[str] | None, instruction: str | None
    ) -> tuple[tuple[str, ...] | None, tuple[str, ...], str | None, str | None]:
        """What to remove and what to keep; of an instruction also how it was understood, and the
        text where it describes the photo instead."""
        labels, kept = read_task(task), read_keep(keep)
        if instruction is None:
            return labels, kept, None, None
        if labels is not None or kept:
            raise ValueError(
                "Say what you want in `instruction`, or in `task` and `keep`, not in both."
            )
        wish = self.read_instruction(instruction)
        understood = "; ".join([wish.understood, *wish.notes])
        return wish.remove, tuple(wish.keep), understood, wish.prompt

    def _heeds_prompts(self, guidance: str) -> bool:
        """Whether a prompt would change what is painted."""
        return self.config.heeds_prompts and guidance != "none" and self.unet is not None

    def check_painting(
        self,
        guidance: str = "cleaned",
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        guidance_init: str | None = None,
        init_strength: float | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        callback: Callable | None = None,
        callback_inputs: Sequence[str] = ("latents",),
        count: int = 1,
    ) -> Painting | None:
        """Check the arguments that concern the painting of guidance, and resolve their defaults;
        `None` if none is painted.

        Raises:
            ValueError: if one is unknown or out of range, they contradict each other, or a
                component that they need is missing.
        """
        steps = (
            self.config.default_num_inference_steps
            if num_inference_steps is None
            else num_inference_steps
        )
        scale = self.config.default_guidance_scale if guidance_scale is None else guidance_scale
        init = guidance_init or self.config.default_guidance_init
        strength = self.config.default_init_strength if init_strength is None else init_strength
        _check_settings(guidance, init, strength, steps, scale)
        if negative_prompt is not None and scale <= 1:
            raise ValueError(
                "`negative_prompt` acts through classifier-free guidance, which `guidance_scale` "
                f"{scale:g} turns off; set it above 1."
            )
        unknown = [name for name in callback_inputs if name not in self._callback_tensor_inputs]
        if unknown:
            raise ValueError(
                "`callback_on_step_end_tensor_inputs` may hold "
                f"{', '.join(self._callback_tensor_inputs)}; got {', '.join(unknown)}."
            )
        if isinstance(generator, list) and len(generator) != count:
            raise ValueError(
                f"`generator` must be one generator or a list of {count}, got a list of "
                f"{len(generator)}."
            )
        prompts = self._one_each(prompt, count, "prompt")
        negatives = self._one_each(negative_prompt, count, "negative_prompt")
        if guidance == "none":
            return None
        if (prompts or negatives) and not self.config.heeds_prompts:
            warn_once(
                "The painter of this checkpoint hardly heeds prompts; those of Stable Diffusion "
                "checkpoints do."
            )
        if guidance == "prompt" and prompts is None:
            raise ValueError("`guidance='prompt'` paints from your words alone; pass a `prompt`.")
        needed = ["tokenizer", "text_encoder", "unet", "vae", "scheduler"]
        needed += ["image_encoder", "image_processor", "mapper"] if guidance in WORDS else []
        needed += ["cleaner"] if guidance == "cleaned" else []
        self._check_parts(needed, guidance)
        if self.unet.config.in_channels != self.vae.config.latent_channels:
            raise ValueError(
                f"The UNet takes {self.unet.config.in_channels} channels and the VAE makes "
                f"{self.vae.config.latent_channels}; "
                "load a text-to-image base, not an inpainting one."
            )
        return Painting(
            source=guidance,
            prompts=prompts,
            negatives=negatives,
            init=init,
            init_strength=strength,
            steps=int(steps),
            scale=float(scale),
            generator=torch.Generator().manual_seed(0) if generator is None else generator,
            callback=callback,
            callback_inputs=tuple(callback_inputs),
        )

    def _guidance_source(
        self, guidance: str, prompt, negative_prompt, guidance_image, output_type: str
    ) -> str:
        """What the guidance of a call comes from: cleaned, degraded, prompt, reference or none."""
        prompted = prompt is not None or negative_prompt is not None
        source = guidance
        if guidance_image is not None:
            source = "reference"
        elif (
            guidance == "cleaned"
            and self.unet is None
            and self.restorer is not None
            and not (prompt or negative_prompt)
        ):
            self._warn_unguided()
            source = "none"
        if source == "none" and prompted:
            raise ValueError(
                "`prompt` and `negative_prompt` speak through the guidance, which "
                "`guidance='none'` turns off."
            )
        if source == "reference" and self.restorer is None:
            raise ValueError("`guidance_image` guides a restorer, and this pipeline has none.")
        if source == "reference" and prompted:
            raise ValueError(
                "`prompt` and `negative_prompt` shape a painted guidance; with `guidance_image` "
                "nothing is painted."
            )
        if source in ("none", "reference") and output_type == "latent":
            raise ValueError(
                "`output_type='latent'` returns the latents of a painted guidance; choose cleaned, "
                "degraded or prompt."
            )
        return source

    def _warn_unguided(self) -> None:
        if not getattr(self, "_told_unguided", False):
            logger.warning(
                "This checkpoint has no guidance chain (no UNet); it restores without guidance."
            )
            self._told_unguided = True

    def _check_parts(self, needed: list[str], source: str) -> None:
        missing = [name for name in needed if getattr(self, name, None) is None]
        if missing:
            raise ValueError(
                f"Guidance {source!r} needs {', '.join(missing)}, which this pipeline lacks; load "
                "a checkpoint that has them"
                + (", or pass `guidance='none'`." if self.restorer is not None else ".")
            )

    def _one_each(self, text: str | list[str] | None, count: int, name: str) -> list[str] | None:
        if text is None:
            return None
        texts = [text] * count if isinstance(text, str) else list(text)
        if len(texts) != count:
            raise ValueError(
                f"`{name}` must be one text or a list of {count}, got a list of {len(texts)}."
            )
        return texts

    def _references(self, image, count: int) -> list[torch.Tensor] | None:
        if image is None:
            return None
        batches, _ = self._read_images(image, name="guidance_image")
        singles = list(chain.from_iterable(batch.split(1) for batch in batches))
        if len(singles) not in (1, count):
            raise ValueError(f"`guidance_image` must be one image or {count}, got {len(singles)}.")
        return singles if len(singles) == count else singles * count

    def _read_images(
        self, image, name: str = "image"
    ) -> tuple[list[torch.Tensor], list[PIL.Image.Image | None]]:
        """Batches `(B, 3, H, W)` in [0, 1], each of one size, and the Pillow images whose mode the
        results shall have again."""
        if isinstance(image, np.ndarray):
            image = tensor_from_array(image, name)
        if isinstance(image, torch.Tensor):
            image = image[None] if image.ndim == 3 else image
            if image.ndim == 4 and image.shape[1] == 1:
                image = image.expand(-1, 3, -1, -1)
            check_tensor(image, name)
            return [image.float()], [None] * len(image)
        images = list(image) if isinstance(image, (list, tuple)) else [image]
        tensors, pictures = [], []
        for single in images:
            picture = None
            if isinstance(single, PIL.Image.Image):
                picture = PIL.ImageOps.exif_transpose(single)
                tensor = tensor_from_pil(picture, name)
            elif isinstance(single, (np.ndarray, torch.Tensor)):
                batches, _ = self._read_images(single, name)
                tensor = batches[0]
                if len(tensor) != 1:
                    raise ValueError(
                        f"`{name}` is a list; each of its tensors must hold one image, got "
                        f"{tuple(single.shape)}. Pass one batch, or single images."
                    )
            else:
                raise ValueError(f"{accepted_images(name)}; got {type(single).__name__}.")
            tensors.append(tensor)
            pictures.append(picture)
        if not tensors:
            raise ValueError(f"{accepted_images(name)}; got an empty list.")
        same = all(tensor.shape == tensors[0].shape for tensor in tensors)
        return [torch.cat(tensors)] if same else tensors, pictures


def accepted_images(name: str) -> str:
    return (
        f"`{name}` must be a PIL image, an array (H, W, 3) or (B, H, W, 3), a tensor (3, H, W) or "
        "(B, 3, H, W) in [0, 1], or a list of single images"
    )


@functools.cache
def warn_once(message: str) -> None:
    logger.warning(message)


def like_statistics(noise: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """`noise` `(B, C, h, w)` with the mean and deviation of `like` in each channel."""
    mean, deviation = noise.mean((2, 3), keepdim=True), noise.std((2, 3), keepdim=True)
    wanted_mean, wanted = like.mean((2, 3), keepdim=True), like.std((2, 3), keepdim=True)
    return (noise - mean) / deviation.clamp(min=1e-6) * wanted + wanted_mean


def lies_in(value, low: float, high: float) -> bool:
    """Whether something is one number between two others; NaN is not."""
    return isinstance(value, Real) and low <= value <= high


def read_task(task: str | list[str]) -> tuple[str, ...] | None:
    """The degradations that a task removes; `None` for `auto`.

    Raises:
        ValueError: if it is not understood.
    """
    names = read_names(task, "task", "auto, or one or several of", tuple(TASKS))
    if names == ("auto",):
        return None
    unknown = [name for name in names if name not in TASKS]
    if unknown or not names:
        got = ", ".join(map(repr, unknown)) or "nothing"
        raise ValueError(
            f"`task` must be auto, or one or several of {', '.join(TASKS)}; got {got}."
        )
    return tuple(TASKS[name] for name in names)


def read_keep(keep: str | list[str] | None) -> tuple[str, ...]:
    """The degradations that must stay.

    Raises:
        ValueError: if one is not understood.
    """
    if keep is None:
        return ()
    labels = tuple(TASKS.values())
    names = read_names(keep, "keep", "one or several of", labels)
    for name in names:
        if name not in labels:
            hint = f"; to keep it, say {TASKS[name]}" if name in TASKS else ""
            raise ValueError(
                f"`keep` names degradations ({', '.join(labels)}), got {name!r}{hint}."
            )
    return names


def read_names(
    value: str | list[str], argument: str, expected: str, known: tuple[str, ...]
) -> tuple[str, ...]:
    """The names in a list, or in a text that joins them by +; each once."""
    names = value.split("+") if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"`{argument}` must be {expected} {', '.join(known)}, as a text or a list of texts; "
            f"got {value!r} "
            f"({type(value).__name__})."
        )
    return tuple(dict.fromkeys(name.strip() for name in names if name.strip()))


def seen_in(
    probabilities: dict[str, float], thresholds: dict[str, list[float]] | None = None
) -> list[str]:
    """The degradations that are more likely there than not, and those that a checkpoint's
    thresholds take for present before."""
    least = {label: min(present, PRESENT) for label, (_, present) in (thresholds or {}).items()}
    return [
        label
        for label, probability in probabilities.items()
        if probability >= least.get(label, PRESENT)
    ]


def surely_seen(
    probabilities: dict[str, float], thresholds: dict[str, list[float]]
) -> list[str] | None:
    """The degradations that a detector takes for present by a checkpoint's thresholds; `None` where
    it is unsure about one or sees none."""
    if any(
        absent <= probabilities.get(label, 0.0) < present
        for label, (absent, present) in thresholds.items()
    ):
        return None
    return [
        label
        for label, (_, present) in thresholds.items()
        if probabilities.get(label, 0.0) >= present
    ] or None


@contextlib.contextmanager
def inject_words(
    text_encoder: CLIPTextModel, words: torch.Tensor, positions: torch.Tensor
) -> Iterator[None]:
    """Within the block the token embeddings at `positions` `(N,)` are `words` `(B, N, D)`; the
    encoder's own `forward` stays the entry, so offloading and LoRA hooks keep working. One call at
    a time for each text encoder."""

    def replace(module, args, embeddings):
        embeddings = embeddings.clone()
        embeddings[:, positions.to(embeddings.device)] = words.to(embeddings)
        return embeddings

    handle = text_encoder.get_input_embeddings().register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


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


def tile_starts(side: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin along a side; the last one ends with the image."""
    if side <= tile:
        return [0]
    steps = math.ceil((side - tile) / (tile - overlap))
    return [round(i * (side - tile) / steps) for i in range(steps + 1)]


def patch_grid(size: tuple[int, int], patch: int, most: int) -> tuple[int, int]:
    """Rows and columns of square patches of an image: about as far apart in both directions, no
    more than `most`, and no more than cover it."""
    height, width = size
    columns = min(math.ceil(width / patch), max(1, round(math.sqrt(most * width / height))), most)
    return min(math.ceil(height / patch), max(1, most // columns)), columns


def cut_patches(image: torch.Tensor, patch: int, grid: tuple[int, int]) -> torch.Tensor:
    """The patches around the middles of the cells of a grid over an image `(1, C, H, W)`, row by
    row and smaller where the image is: `(cells, C, patch, patch)`. Where cells are larger than a
    patch, each of them reduced to a patch follows."""
    starts = []
    for side, cells in zip(image.shape[-2:], grid):
        middles = [(cell + 0.5) / cells * side for cell in range(cells)]
        starts.append([max(0, min(round(m - patch / 2), side - patch)) for m in middles])
    patches = []
    for top in starts[0]:
        for left in starts[1]:
            patches.append(image[..., top : top + patch, left : left + patch])
    if all(side <= cells * patch for side, cells in zip(image.shape[-2:], grid)):
        return torch.cat(patches)
    sides = patches[0].shape[-2:]
    reduced = resize(image, [cells * side for cells, side in zip(grid, sides)])
    rows = reduced.unflatten(3, (grid[1], sides[1])).unflatten(2, (grid[0], sides[0]))
    return torch.cat([*patches, *rows.permute(2, 4, 0, 1, 3, 5).flatten(0, 1)])


def count_tiles(height: int, width: int, tile: int, overlap: int) -> int:
    return len(tile_starts(height, tile, overlap)) * len(tile_starts(width, tile, overlap))


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


def join_outputs(outputs: list[RestorationOutput]) -> RestorationOutput:
    """One output of the outputs of single images; tensors become lists where sizes differ or some
    images have none."""

    def join(values: list):
        if all(value is None for value in values):
            return None
        if any(value is None for value in values):
            return values
        if isinstance(values[0], torch.Tensor):
            same = all(value.shape == values[0].shape for value in values)
            return torch.cat(values) if same else values
        return list(chain.from_iterable(values))

    joined = {}
    for field in fields(RestorationOutput):
        joined[field.name] = join([getattr(output, field.name) for output in outputs])
    joined["guidance"] = outputs[0].guidance
    return RestorationOutput(**joined)


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
