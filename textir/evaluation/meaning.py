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
    return _cosine(pipe.embed_photos(image), pipe.embed_photos(clean))


def agreement(pipe, image: torch.Tensor, captions: Sequence[str]) -> float:
    """Mean cosine of an image `(1, 3, H, W)` in [0, 1] with sentences about it."""
    return _cosine(pipe.embed_photos(image), pipe.embed_texts(list(captions)))


def compare_meaning(
    pipe,
    degraded: torch.Tensor,
    restored: torch.Tensor,
    clean: torch.Tensor,
    captions: Sequence[str] | None,
) -> dict[str, float]:
    """Fields of a `Score` for images `(1, 3, H, W)` in [0, 1]: similarity to the clean image and,
    with captions, agreement with them, before and after. Each image, and the captions, are embedded
    once."""
    before, after, truth = (pipe.embed_photos(image) for image in (degraded, restored, clean))
    found = {"input_similarity": _cosine(before, truth), "similarity": _cosine(after, truth)}
    if captions:
        said = pipe.embed_texts(list(captions))
        found |= {"input_agreement": _cosine(before, said), "agreement": _cosine(after, said)}
    return found


def _cosine(image: torch.Tensor, others: torch.Tensor) -> float:
    """Mean cosine of a unit embedding `(1, D)` with others `(N, D)`."""
    return (image @ others.T).mean().item()
