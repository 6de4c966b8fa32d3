"""One way to get a pipeline ready to work, for Python, the command line, the app and training
alike."""

from collections.abc import Sequence
from pathlib import Path

import torch

import textir
from pipelines.pipeline_text_guided_restoration import TextGuidedRestorationPipeline

MINI = str(Path(textir.__file__).parent / "checkpoints" / "mini")
"""Folder of the embedded checkpoint."""

DTYPES = {
    "auto": torch.float32,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
BACKENDS = ("torch", "onnx")


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
        device: `auto` (CUDA where there is one), `cpu`, `cuda`, `cuda:1`, `mps`.
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
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    place = locate(checkpoint)
    try:
        precision = {"restorer": torch.float32, "matcher": torch.float32, "default": DTYPES[dtype]}
        pipe = TextGuidedRestorationPipeline.from_pretrained(place, dtype=precision, **options).to(
            device
        )
    except (OSError, RuntimeError, AssertionError) as error:
        raise ValueError(f"{place} could not be loaded on {device}: {error}") from error
    places = find_adapters(checkpoint, adapter)
    for name, source in places.items():
        load_adapter(pipe, source, name)
    if len(places) > 1:
        pipe.set_adapters(list(places))
    if backend == "onnx":
        from textir.hub.onnx_files import use_onnx

        use_onnx(pipe, place)
    return pipe


def locate(checkpoint: str | Path) -> str:
    """The folder or Hub id of a checkpoint.

    Raises:
        ValueError: if it is neither.
    """
    place = MINI if str(checkpoint) == "mini" else str(checkpoint)
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


def load_adapter(pipe: TextGuidedRestorationPipeline, source: str, name: str) -> None:
    """Attach LoRA weights under a name.

    Raises:
        ValueError: if they cannot be had or do not fit; then nothing stays attached.
    """
    try:
        pipe.load_lora_weights(source, adapter_name=name)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"The adapter {source} cannot be loaded: {reason}") from error


def carried_adapters(checkpoint: str | Path) -> list[str]:
    """Names of the adapters in a checkpoint's folder `adapters`; each can be given to `load`."""
    return sorted(
        folder.name for folder in Path(locate(checkpoint)).glob("adapters/*") if folder.is_dir()
    )
