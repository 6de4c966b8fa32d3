"""What is written beside a result: of which photo it was made, how, and by which weights. Results
that are there already are recognised by it."""

import hashlib
import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache

from textir import __version__
from textir.images.picture import is_image
from textir.machine import writing

ENDING = ".json"
LONGEST = 255  # bytes of a name


def record_file(target: Path) -> Path:
    """Where the record of a result lies: `photo.png` -> `photo.png.json`."""
    if len(target.name.encode()) + len(ENDING) <= LONGEST:
        return target.with_name(target.name + ENDING)
    return target.with_name(digest(target.name.encode()) + ENDING)


def is_record(path: Path) -> bool:
    """Whether a file is the record of a result that lies beside it."""
    return path.suffix == ENDING and is_image(path.with_suffix(""))


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write_record(target: Path, record: Mapping) -> None:
    """Write the record of a result; it appears whole or not at all."""
    with writing(record_file(target)) as temporary:
        text = json.dumps({"result": describe_file(target), **record}, indent=2, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def read_record(target: Path) -> dict | None:
    """The record of a result, `None` where there is none that belongs to its present content."""
    if not target.is_file():
        return None
    try:
        record = json.loads(record_file(target).read_text(encoding="utf-8"))
        return record if record["result"] == describe_file(target) else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def describe_file(path: Path) -> dict:
    return {"name": path.name, "sha256": digest(path.read_bytes())}


def is_made_of(record: Mapping, input_sha256: str, settings: Mapping, weights: str | None) -> bool:
    """Whether a record tells of this photo, these settings and weights of this digest."""
    try:
        made_of = (record["input"]["sha256"], record["settings"], record["weights"]["sha256"])
    except (TypeError, KeyError):
        return False
    return made_of == (input_sha256, plain(settings), weights)


def plain(settings: Mapping) -> dict:
    """Settings as they are read from JSON again."""
    return json.loads(json.dumps(settings, default=str))


def versions() -> dict[str, str]:
    """Of what results depend on."""
    packages = {name: version(name) for name in ("torch", "diffusers", "transformers")}
    return {"textir": __version__, "python": platform.python_version(), **packages}


def describe_weights(pipe) -> dict:
    """Which weights a pipeline works with.

    Returns:
        `checkpoint` (folder or Hub id), `revision` (the commit, of a checkpoint of the Hub),
        names of attached `adapters`, and `sha256` over all that the pipeline computes with.
    """
    name = getattr(pipe, "name_or_path", None)
    cached = None
    if name and name.count("/") == 1 and not Path(name).is_dir():
        cached = try_to_load_from_cache(name, "model_index.json")
    revision = Path(cached).parent.name if isinstance(cached, str) else None
    adapters = sorted(set().union(*pipe.get_list_adapters().values()))
    return {
        "checkpoint": name,
        "revision": revision,
        "adapters": adapters,
        "sha256": weights_digest(pipe),
    }


def modules(pipe) -> list[tuple[str, torch.nn.Module]]:
    parts = sorted(pipe.components.items())
    return [(name, part) for name, part in parts if isinstance(part, torch.nn.Module)]


@torch.no_grad()
def weights_digest(pipe) -> str:
    """SHA-256 over what a pipeline computes with: its settings, the numbers of its components, and
    which adapters act how strongly."""
    found = hashlib.sha256()

    def add(*facts) -> None:
        found.update(json.dumps(facts, default=str, sort_keys=True).encode())

    settings = {key: value for key, value in pipe.config.items() if not key.startswith("_")}
    add(type(pipe).__name__, settings)
    for name, part in modules(pipe):
        add(name, type(part).__name__, getattr(part, "digest", None))
        for key, tensor in part.state_dict().items():
            if isinstance(tensor, torch.Tensor):
                add(key, tensor.dtype, tensor.shape)
            if isinstance(tensor, torch.Tensor) and not tensor.is_meta:
                found.update(tensor_bytes(tensor))
        for key, layer in part.named_modules():
            if hasattr(layer, "scaling") and hasattr(layer, "active_adapters"):
                add(key, layer.active_adapters, layer.scaling)
    return found.hexdigest()


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy())
