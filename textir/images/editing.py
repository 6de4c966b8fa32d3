"""One picture or many through a pipeline of text-editable restoration with nothing lost: what is
known of them stays, at its own depth."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from textir.images.jobs import Job, Made
from textir.images.metadata import enlarged_metadata
from textir.images.picture import Picture, is_image, output_name, read_picture, to_pixels
from textir.images.records import digest


def edit_picture(pipe, picture: Picture, **options) -> tuple[list[Picture], Any]:
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


@dataclass(frozen=True)
class Editing:
    """The work of a pipeline of text-editable restoration: what it does to each of many photos.

    Attributes:
        options: arguments of the pipeline, such as `{"task": "colorize", "prompt": ["a red car"]}`;
            those that follow here are left out.
        seed: of everything random in each photo.
        mask: what to fill: an image, or a folder with one of the same name for each photo.
        reference: a photo that says in place of words what to show.
        told: notes that are not to be told of each photo again.
    """

    options: Mapping = field(default_factory=dict)
    seed: int = 0
    mask: Path | None = None
    reference: Path | None = None
    told: Sequence[str] = ()

    @property
    def count(self) -> int:
        """Results of each photo."""
        prompt = self.options.get("prompt")
        prompts = len(prompt) if isinstance(prompt, list) else 1
        return self.options.get("num_images_per_prompt", 1) * max(prompts, 1)

    def name_result(self, source: Path, picture: Picture) -> str:
        """As `output_name` says; for gray photos that get colours by what can hold these."""
        task = self.options.get("task", "auto")
        is_auto = task == "auto" and self.mask is None and self.options.get("scale") is None
        may_colour = task == "colorize" or is_auto
        return output_name(source, replace(picture, is_gray=picture.is_gray and not may_colour))

    def settings(self, job: Job) -> Mapping:
        mask = None if self.mask is None else file_digest(mask_of(job, self.mask))
        reference = None if self.reference is None else file_digest(self.reference)
        own = {"seed": self.seed, "mask_sha256": mask, "reference_sha256": reference}
        return {"command": "edit", **self.options, **own}

    def check(self) -> None:
        """Read what all photos share.

        Raises:
            ValueError: if it cannot be read.
        """
        if self.mask is not None and not self.mask.is_dir():
            cached_mask(self.mask, stamp(self.mask))
        if self.reference is not None:
            cached_reference(self.reference, stamp(self.reference))

    def __call__(self, pipe, jobs: Sequence[Job], pictures: Sequence[Picture]) -> list[Made]:
        return [self.make(pipe, job, picture) for job, picture in zip(jobs, pictures)]

    def make(self, pipe, job: Job, picture: Picture) -> Made:
        """What is made of one photo."""
        hole = shown = None
        if self.mask is not None:
            path = mask_of(job, self.mask)
            hole = cached_mask(path, stamp(path))
        if self.reference is not None:
            shown = cached_reference(self.reference, stamp(self.reference))
        results, output = edit_picture(
            pipe,
            picture,
            generator=torch.Generator().manual_seed(self.seed),
            mask_image=hole,
            reference_image=shown,
            **self.options,
        )
        notes = [edit_note(output, number) for number in range(len(results))]
        notes += [f"note: {note}" for note in output.notes if note not in self.told]
        done = [
            {"task": task, "words": words, "number": number}
            for number, (task, words) in enumerate(zip(output.tasks, output.words), 1)
        ]
        return Made(results, notes, done=done)


def stamp(path: Path) -> tuple[int, int]:
    """What changes with the content of a file."""
    facts = path.stat()
    return facts.st_mtime_ns, facts.st_size


def file_digest(path: Path) -> str:
    return cached_digest(path, stamp(path))


@functools.lru_cache(maxsize=8)
def cached_digest(path: Path, stamp: tuple[int, int]) -> str:
    return digest(path.read_bytes())


@functools.lru_cache(maxsize=2)
def cached_mask(path: Path, stamp: tuple[int, int]) -> np.ndarray:
    return read_mask_file(path)


@functools.lru_cache(maxsize=2)
def cached_reference(path: Path, stamp: tuple[int, int]) -> torch.Tensor:
    return read_picture(path).tensor()


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
