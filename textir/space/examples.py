"""The photos that the page offers: public domain, from scikit-image, degraded by our own code."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from skimage import data as photos

from textir.degradations import degrade
from textir.images.picture import picture_from_pil, write_picture

SOURCES = {  # name -> photo, recipe, task
    "noise": (photos.astronaut, "noise8:35", "denoise"),
    "rain": (photos.chelsea, "rain:0.8", "derain"),
    "haze": (photos.coffee, "haze:1.4", "dehaze"),
    "low light": (photos.rocket, "lowlight:2+noise8:5", "lowlight"),
    "motion blur": (photos.astronaut, "blur:11", "deblur"),
    "out of focus": (photos.chelsea, "defocus:4", "defocus"),
    "JPEG": (photos.coffee, "jpeg:12", "dejpeg"),
    "enlarged": (photos.astronaut, "downup:2.5", "sharpen"),
}
CLEAN_NAMES = ["astronaut", "cat", "coffee", "rocket"]  # of the first photos
FOLDER = tempfile.TemporaryDirectory(prefix="textir-examples-")  # goes with the process


class Example(NamedTuple):
    """Files of a degraded photo and its clean twin, and the tasks that mend it."""

    degraded: str
    tasks: list[str]
    clean: str


def write_examples(tasks: Sequence[str]) -> list[Example]:
    """Write the example photos to a temporary folder, in the order of `SOURCES`.

    Args:
        tasks: those that the model knows; examples of others come without a task.
    """
    folder = Path(FOLDER.name)
    examples = []
    for seed, (name, (source, recipe, task)) in enumerate(SOURCES.items()):
        clean = picture_from_pil(Image.fromarray(source()))
        generator = torch.Generator().manual_seed(seed)
        degraded = clean.with_tensor(degrade(clean.tensor(), recipe, generator))
        examples.append(
            Example(
                degraded=str(write_picture(folder / f"{name}.png", degraded)),
                tasks=[task] if task in tasks else [],
                clean=str(write_picture(folder / f"{name}-clean.png", clean)),
            )
        )
    return examples
