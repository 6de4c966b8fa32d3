"""One way to get a pipeline ready to work, for Python, the command line, the app and training
alike."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from diffusers.utils import logging
from safetensors import safe_open

import textir
from pipelines.pipeline_text_editable_restoration import TextEditableRestorationPipeline
from pipelines.pipeline_text_guided_restoration import TextGuidedRestorationPipeline

MINI = str(Path(textir.__file__).parent / "checkpoints" / "mini")
"""Folder of the embedded checkpoint."""
MINI_TEXTIR = str(Path(textir.__file__).parent / "checkpoints" / "mini-textir")
"""Folder of the embedded checkpoint of text-editable restoration."""
EMBEDDED = {"mini": MINI, "mini-textir": MINI_TEXTIR}

DTYPES = {
    "auto": torch.float32,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
BACKENDS = ("torch", "onnx")
Kind = TypeVar("Kind", TextGuidedRestorationPipeline, TextEditableRestorationPipeline)


def load(
    checkpoint: str | Path = "mini",
    adapter: str | Path | Sequence[str | Path] | None = None,
    device: str = "auto",
    dtype: str = "auto",
    backend: str = "torch",
    **options,
) -> TextGuidedRestorationPipeline:
    """Load a pipeline, with the adapters that are named.

    Args:
        checkpoint: `mini` (embedded), a folder in diffusers format, or a Hub id of the form
            user/name.
        adapter: LoRA weights, one or several that act together: a name in the checkpoint's folder
            `adapters`, a folder or file, or a Hub id.
        device: `auto` (CUDA or the GPU of an Apple computer, where there is one), `cpu`, `cuda`,
            `cuda:1`, `mps`.
        dtype: `float32` (also `auto`), `float16` or `bfloat16`: of what sees, says and paints.
            Restorer and matcher stay in `float32`, since half precision shows in the pixels that
            they make (0.001 to 0.04 of the range).
        backend: what runs restorer and matcher: `torch`, or `onnx` (onnxruntime) for a checkpoint
            with ONNX files.
        options: further arguments of `from_pretrained`, such as `revision`.

    Raises:
        ValueError: if an argument is not understood, the checkpoint cannot be loaded or an adapter
            does not fit it.
    """
    if dtype not in DTYPES:
        raise ValueError(f"`dtype` must be one of {', '.join(DTYPES)}, got {dtype!r}.")
    if backend not in BACKENDS:
        raise ValueError(f"`backend` must be one of {', '.join(BACKENDS)}, got {backend!r}.")
    precision = {"restorer": torch.float32, "matcher": torch.float32, "default": DTYPES[dtype]}
    pipe = load_kind(
        TextGuidedRestorationPipeline, checkpoint, adapter, device, dtype=precision, **options
    )
    if backend == "onnx":
        from textir.hub.onnx_files import use_onnx

        use_onnx(pipe, locate(checkpoint))
    return pipe


def load_editor(
    checkpoint: str | Path = "mini-textir",
    adapter: str | Path | Sequence[str | Path] | None = None,
    device: str = "auto",
    **options,
) -> TextEditableRestorationPipeline:
    """Load a pipeline of text-editable restoration, in single precision.

    Args:
        checkpoint: `mini-textir` (embedded), a folder in diffusers format, or a Hub id of the form
            user/name.
        adapter: LoRA weights, as for `load`.
        device: as for `load`.
        options: further arguments of `from_pretrained`, such as `revision`.

    Raises:
        ValueError: if the checkpoint cannot be loaded, or an adapter does not fit it.
    """
    options.setdefault("dtype", torch.float32)
    return load_kind(TextEditableRestorationPipeline, checkpoint, adapter, device, **options)


KINDS = {  # what takes checkpoints of which pipeline
    TextGuidedRestorationPipeline.__name__: "`load` and `textir restore`",
    TextEditableRestorationPipeline.__name__: "`load_editor` and `textir edit`",
}


def load_kind(
    kind: type[Kind],
    checkpoint: str | Path,
    adapter: str | Path | Sequence[str | Path] | None,
    device: str,
    **options,
) -> Kind:
    """Load a pipeline of a class, with adapters. Arguments as of `load`; `options` are those of
    `from_pretrained`.

    Raises:
        ValueError: as `load`.
    """
    device = best_device() if device == "auto" else device
    place = locate(checkpoint)
    check_files(Path(place))
    check_kind(Path(place), kind)
    try:
        pipe = kind.from_pretrained(place, **options)
        with quiet():  # half precision on a processor is slow, and asked for
            pipe.to(device)
    except Exception as error:  # on damaged files libraries raise nearly anything
        raise ValueError(f"{place} could not be loaded on {device}: {first_line(error)}") from error
    places = find_adapters(checkpoint, adapter)
    for name, source in places.items():
        load_adapter(pipe, source, name)
    if len(places) > 1:
        pipe.set_adapters(list(places))
    return pipe


@contextmanager
def quiet() -> Iterator[None]:
    """Within the block diffusers and our pipelines give no advice."""
    level, ours = logging.get_verbosity(), logging.get_logger("pipelines")
    our_level = ours.level
    logging.set_verbosity_error()
    ours.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(level)
        ours.setLevel(our_level)


def best_device() -> str:
    """CUDA where there is one, else the GPU of an Apple computer, else the processor."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def check_files(folder: Path) -> None:
    """Check that the files of a checkpoint can be read at all.

    Raises:
        ValueError: if one is damaged; it is named.
    """
    for file in (*folder.glob("model_index.json"), *sorted(folder.glob("*/*.json"))):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{file} is damaged: {error}.") from None
        if file.name in ("model_index.json", "config.json") and not isinstance(content, dict):
            raise ValueError(f"{file} is damaged: it must hold a JSON object.")
    for file in sorted(folder.glob("*/*.safetensors")):
        check_safetensors(file)


def check_kind(folder: Path, kind: type) -> None:
    """Check that a folder is not a checkpoint of our other pipeline; what is on the Hub is not
    looked at.

    Args:
        folder: the checkpoint, whose files can be read.
        kind: the pipeline that shall be loaded.

    Raises:
        ValueError: if it is.
    """
    name = class_name(folder)
    if name != kind.__name__ and name in KINDS:
        raise ValueError(f"{folder} holds a {name}; that is for {KINDS[name]}.")


def is_editor(checkpoint: str | Path) -> bool:
    """Whether a checkpoint is a folder that holds text-editable restoration."""
    return class_name(Path(locate(checkpoint))) == TextEditableRestorationPipeline.__name__


def class_name(folder: Path) -> str | None:
    """The class of the pipeline in a folder, if it says."""
    index = folder / "model_index.json"
    if not index.is_file():
        return None
    name = json.loads(index.read_text(encoding="utf-8")).get("_class_name")
    return name[-1] if isinstance(name, list) and name else name


def check_safetensors(file: Path) -> None:
    try:
        with safe_open(file, framework="pt"):
            return
    except Exception as error:  # a type of its own, or those of the system
        raise ValueError(f"{file} is damaged: {first_line(error)}") from None


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def locate(checkpoint: str | Path) -> str:
    """The folder or Hub id of a checkpoint.

    Raises:
        ValueError: if it is neither.
    """
    place = EMBEDDED.get(str(checkpoint), str(checkpoint))
    if not Path(place).is_dir() and (Path(place).exists() or place.count("/") != 1):
        raise ValueError(
            f"{place} is neither a folder in diffusers format nor a Hub id of the form user/name."
        )
    return place


def find_adapters(
    checkpoint: str | Path, adapter: str | Path | Sequence[str | Path] | None
) -> dict[str, str]:
    """Names and places of adapters; a name that the checkpoint has in its folder `adapters` is
    taken from there."""
    names = (
        [] if adapter is None else [adapter] if isinstance(adapter, str | Path) else list(adapter)
    )
    carried = Path(locate(checkpoint)) / "adapters"
    places = {}
    for name in map(str, names):
        title = Path(name).name.replace(".", "_")  # peft allows no dots
        places[title] = str(carried / name) if (carried / name).is_dir() else name
    return places


def load_adapter(pipe: Kind, source: str, name: str) -> None:
    """Attach LoRA weights under a name.

    Raises:
        ValueError: if they cannot be had or do not fit; then nothing stays attached.
    """
    place = Path(source).expanduser()
    inner = place / "adapter"
    if place.is_dir() and not any(place.glob("*.safetensors")) and inner.is_dir():
        raise ValueError(f"{source} holds no LoRA weights. Did you mean {inner}?")
    if not place.exists() and source.count("/") != 1:
        raise ValueError(
            f"The adapter {source} cannot be loaded: there is no such folder or file, and a Hub id "
            "has the form user/name."
        )
    files = place.glob("*.safetensors") if place.is_dir() else [place] if place.is_file() else []
    for file in files:
        if file.suffix == ".safetensors":
            check_safetensors(file)
    try:
        pipe.load_lora_weights(source, adapter_name=name)
    except Exception as error:  # on damaged files libraries raise nearly anything
        raise ValueError(f"The adapter {source} cannot be loaded: {first_line(error)}") from error


def carried_adapters(checkpoint: str | Path) -> list[str]:
    """Names of the adapters in a checkpoint's folder `adapters`; each can be given to `load`."""
    return sorted(
        folder.name for folder in Path(locate(checkpoint)).glob("adapters/*") if folder.is_dir()
    )
