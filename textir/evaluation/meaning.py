"""What restoration does to the meaning of a photo, read in the text-image space of a pipeline.

PSNR and SSIM compare pixels. Here a photo is compared with its clean twin, and with sentences about
it, by the cosine of their embeddings (as CLIP score: Hessel et al., EMNLP 2021).
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch


def read_captions(path: str | Path) -> dict[str, list[str]]:
    """Captions by the stem of their file, from the `metadata.jsonl` of an image folder.

    Args:
        path: that file or its folder; each line has `file_name`, and `captions` (a list) or `text`.

    Raises:
        ValueError: if a line lacks them, or nothing is there to read.
    """
    path = Path(path)
    path = path / "metadata.jsonl" if path.is_dir() else path
    found: dict[str, list[str]] = {}
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.strip():
                row = json.loads(line)
                said = row["captions"] if "captions" in row else [row["text"]]
                found[Path(row["file_name"]).stem] = list(said)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} must hold JSON lines with file_name, and captions or text: {error!r}."
        ) from None
    return found


def similarity(pipe, image: torch.Tensor, clean: torch.Tensor) -> float:
    """Cosine of two images `(1, 3, H, W)` in [0, 1] in the space of `pipe.embed_photos`."""
    first, second = pipe.embed_photos(image), pipe.embed_photos(clean)
    return (first * second).sum().item()


def agreement(pipe, image: torch.Tensor, captions: Sequence[str]) -> float:
    """Mean cosine of an image `(1, 3, H, W)` in [0, 1] with sentences about it."""
    return (pipe.embed_photos(image) @ pipe.embed_texts(list(captions)).T).mean().item()


def compare_meaning(
    pipe,
    degraded: torch.Tensor,
    restored: torch.Tensor,
    clean: torch.Tensor,
    captions: Sequence[str] | None,
) -> dict[str, float]:
    """Fields of a `Score` for images `(1, 3, H, W)` in [0, 1]: similarity to the clean image and,
    with captions, agreement with them, before and after."""
    found = {
        "input_similarity": similarity(pipe, degraded, clean),
        "similarity": similarity(pipe, restored, clean),
    }
    if captions:
        found["input_agreement"] = agreement(pipe, degraded, captions)
        found["agreement"] = agreement(pipe, restored, captions)
    return found
