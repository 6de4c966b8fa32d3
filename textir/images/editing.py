"""One picture through a pipeline of text-editable restoration with nothing lost: what is known of
it stays, at its own depth."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from textir.images.jobs import Job
from textir.images.metadata import enlarged_metadata
from textir.images.picture import Picture, is_image, output_name, read_picture, to_pixels


def edit_picture(pipe, picture: Picture, **options) -> tuple[list[Picture], object]:
    """Complete a picture at its own depth; profile, EXIF and alpha stay.

    Pixels outside a hole are those of `picture` to the bit. A colored picture is no longer gray and
    keeps its luma, in 16 bits where its file has more than 8. Of an enlarged one alpha grows too,
    and what EXIF and resolution say of its size is true.

    Args:
        pipe: a pipeline of text-editable restoration.
        picture: what to complete.
        options: further arguments of the pipeline.

    Returns:
        the results and the pipeline's output, whose images are tensors.

    Raises:
        ValueError: what the pipeline raises.
    """
    is_filled = options.get("mask_image") is not None
    image: torch.Tensor | np.ndarray = picture.tensor()
    if picture.bits > 8 and not is_filled:  # whole numbers tell the pipeline the depth
        image = (picture.pixels * 65535).round().astype(np.uint16)
    output = pipe(image, output_type="pt", **options)
    results = []
    for task, result in zip(output.tasks, output.images):
        results.append(dressed(picture, to_pixels(result), task))
    return results, output


def dressed(picture: Picture, pixels: np.ndarray, task: str) -> Picture:
    """Pixels `(H, W, 3)` that a task made of a picture, with what else belongs to it."""
    if task == "colorize":
        profile = None if picture.is_gray else picture.icc_profile  # one of gray fits no colours
        return replace(picture, pixels=pixels, is_gray=False, icc_profile=profile)
    if pixels.shape == picture.pixels.shape:
        return replace(picture, pixels=pixels)
    height, width = pixels.shape[:2]
    alpha = picture.alpha
    if alpha is not None:
        image = torch.from_numpy(np.ascontiguousarray(alpha))[None, None]
        options = {"mode": "bicubic", "align_corners": False}
        grown = torch.nn.functional.interpolate(image, (height, width), **options)
        alpha = grown[0, 0].clamp(0, 1).numpy()
    return replace(picture, pixels=pixels, alpha=alpha, **enlarged_metadata(picture, height, width))


def edited_name(may_colour: bool) -> Callable[[Path, Picture], str]:
    """How results are named: as `output_name` says, for gray photos that get colours by what can
    hold these.

    Args:
        may_colour: whether gray photos get colours.
    """

    def name(path: Path, picture: Picture) -> str:
        return output_name(path, replace(picture, is_gray=picture.is_gray and not may_colour))

    return name


def read_mask_file(path: Path) -> np.ndarray:
    """A mask file as the whole numbers that it holds, `(H, W, C)`: brightness or colours, and alpha
    where it has any; floating point as it is.

    Raises:
        ValueError: if it cannot be read.
    """
    picture = read_picture(path)
    channels = picture.pixels[..., :1] if picture.is_gray else picture.pixels
    if picture.alpha is not None:
        channels = np.concatenate([channels, picture.alpha[..., None]], axis=-1)
    if picture.bits > 16:
        return channels
    kind = np.uint8 if picture.bits == 8 else np.uint16
    return (channels * np.iinfo(kind).max).round().astype(kind)


def mask_of(job: Job, masks: Path) -> Path:
    """The mask of a job's file: `masks` itself, or the image of the same stem in that folder, there
    in the same sub-folder where it has one.

    Raises:
        ValueError: if there is none or several.
    """
    if not masks.is_dir():
        return masks
    for folder in dict.fromkeys((masks / job.tree, masks)):
        found = matches(folder, job.source.stem)
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise ValueError(f"{folder} has several masks for {job.source.name}: {names}.")
        if found:
            return found[0]
    raise ValueError(
        f"{masks} has no mask for {job.source.name}; it must be called {job.source.stem}.png, or "
        "have another suffix of an image."
    )


def matches(folder: Path, stem: str) -> Sequence[Path]:
    """Images of a folder with a certain stem."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.stem == stem and is_image(path))


def edit_note(output, number: int) -> str:
    """A line on one result of a pipeline's output: what was done, and with which words."""
    return f"{output.tasks[number]}; words: {output.words[number]}"
