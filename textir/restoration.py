"""Files in, files out: a picture through a pipeline with nothing lost, and many pictures one after
the other."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from textir.images import (
    Picture,
    list_images,
    output_name,
    read_picture,
    to_pixels,
    write_picture,
    writing,
)
from textir.tiling import choose_tile


def restore_picture(
    pipe, picture: Picture, tile: int | str | None = "auto", **options
) -> tuple[Picture, object]:
    """Restore a picture at its own depth; alpha, profile and EXIF stay.

    Args:
        pipe: a restoration pipeline.
        picture: what to restore.
        tile: side of the tiles in pixels, `None` for the whole image at once, or `auto`: tiles only
            where memory asks for them.
        options: further arguments of the pipeline.

    Returns:
        the restored picture and the pipeline's output, whose images are tensors.

    Raises:
        ValueError: what the pipeline raises.
    """
    image = picture.tensor()
    if tile == "auto":
        tile = choose_tile(*image.shape[-2:], pipe.restorer) if pipe.restorer is not None else None
    output = pipe(image, tile=tile, output_type="pt", **options)
    restored = to_pixels(output.images[0])
    if (
        restored.shape != picture.pixels.shape
    ):  # a pipeline without restorer returns the guidance itself, in its own size
        return Picture(restored), output
    return picture.with_pixels(restored), output


HARDLY = 1.0  # mean change on the 0-255 scale below which a photo counts as unchanged
SURE = 0.05  # probabilities above this are worth telling


def what_was_done(output, hint: str = "task") -> str:
    """A line on what a pipeline removed from an image and how far it went; where that is next to
    nothing, with the way out.

    Args:
        output: of a pipeline, of one image.
        hint: how the user names tasks.
    """
    parts = []
    if output.removed is not None and output.removed[0] is not None:
        parts.append(f"told to remove: {', '.join(output.removed[0]) or 'nothing'}")
    else:
        parts.append("found out by itself what to remove")
    if output.degradation is not None:
        seen = sorted(output.degradation[0].items(), key=lambda item: -item[1])
        shares = [f"{label} {probability:.0%}" for label, probability in seen if probability > SURE]
        parts.append(f"seen: {', '.join(shares)}" if shares else "seen: nothing")
    if output.change is not None:
        parts.append(f"mean change {output.change[0]:.1f} of 255")
        if output.change[0] < HARDLY:
            parts.append(
                f"hardly changed; to say what shall go, pass {hint} (such as denoise, dehaze, "
                "lowlight)"
            )
    return "; ".join(parts)


STAGES = {  # what a user may be told while a component works
    "image_encoder": "looking at the photo",
    "detector": "finding out what is wrong",
    "mapper": "putting it into words",
    "cleaner": "cleaning the words",
    "text_encoder": "reading the words",
    "unet": "painting the guidance",
    "vae": "developing the guidance",
    "matcher": "matching guidance and photo",
    "restorer": "restoring",
}


@contextmanager
def stage_clock(
    pipe,
    on_stage: Callable[[str], None] = lambda stage: None,
    on_block: Callable[[], None] = lambda: None,
) -> Iterator[dict[str, float]]:
    """Within the block, note how many seconds each component of a pipeline works, in the order in
    which they begin.

    Args:
        pipe: the pipeline.
        on_stage: called with a component's name whenever it begins; what it raises ends the call of
            the pipeline.
        on_block: called before each block of UNet and restorer, likewise; a way to stop soon.
    """
    seconds: dict[str, float] = {}
    begun: dict[str, float] = {}

    def now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    def begin(stage: str) -> None:
        on_stage(stage)
        seconds.setdefault(stage, 0.0)
        begun[stage] = now()

    def end(stage: str) -> None:
        seconds[stage] += now() - begun[stage]

    handles = []
    for stage in STAGES:
        part = getattr(pipe, stage, None)
        modules = [] if part is None else [part.encoder, part.decoder] if stage == "vae" else [part]
        for module in modules:
            handles.append(module.register_forward_pre_hook(lambda *_, stage=stage: begin(stage)))
            handles.append(module.register_forward_hook(lambda *_, stage=stage: end(stage)))
            names = getattr(module, "_repeated_blocks", None) or []
            blocks = [block for block in module.modules() if type(block).__name__ in names]
            handles += [block.register_forward_pre_hook(lambda *_: on_block()) for block in blocks]
    try:
        yield seconds
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Job:
    """One file to restore and where the result goes."""

    source: Path
    target_folder: Path


def plan_jobs(
    inputs: Sequence[str | Path], output: str | Path, recursive: bool = False
) -> list[Job]:
    """The files behind some paths; a folder keeps its tree below `output`.

    Raises:
        ValueError: if a path does not exist, holds no image, or two files would get the same name,
            or one would be overwritten.
    """
    output = Path(output)
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file; `--output` needs a folder.")
    jobs = []
    for path in map(Path, inputs):
        files = list_images(path, recursive)
        if not files:
            hint = "" if recursive else "; use --recursive to look into its sub-folders"
            raise ValueError(f"No images in {path}{hint}.")
        jobs += [
            Job(file, output / (file.parent.relative_to(path) if path.is_dir() else ""))
            for file in files
        ]
    targets = {}
    for job in jobs:
        target = (job.target_folder / job.source.name).resolve()
        if target == job.source.resolve():
            raise ValueError(
                f"{job.source} would be overwritten by its own result; choose another `--output`."
            )
        if target in targets:
            raise ValueError(
                f"{targets[target]} and {job.source} would both be written to {target}; restore "
                "them apart."
            )
        targets[target] = job.source
    return jobs


def restore_files(
    jobs: Sequence[Job],
    restore: Callable[[Picture], tuple[Picture, object]],
    skip_existing: bool = False,
    intermediates: bool = False,
) -> Iterator[tuple[Job, Path | None, str | None]]:
    """Restore file after file; a bad one does not stop the others.

    Yields:
        the job, the file written (or already there), and what went wrong if it was not written.
    """
    sources: dict[Path, Path] = {}
    for job in jobs:
        try:
            picture = read_picture(job.source)
            target = job.target_folder / output_name(job.source, picture)
            if sources.setdefault(target, job.source) != job.source:
                raise ValueError(
                    f"its result {target} is that of {sources[target]} already; restore them apart."
                )
            if not (skip_existing and target.exists()):
                restored, output = restore(picture)
                write_picture(target, restored)
                if intermediates:
                    write_intermediates(target.with_name(target.stem + ".intermediates"), output)
            yield job, target, None
        except (ValueError, OSError, MemoryError, RuntimeError) as error:
            yield job, None, str(error) or type(error).__name__


def write_intermediates(folder: Path, output) -> None:
    """Everything that a pipeline's output (of one image, as tensors) shows, as PNG files and
    `words.json`."""
    pictures = {
        "guidance": output.guidance_images[0] if output.guidance_images is not None else None,
        "match_confidence": output.match_confidence[0]
        if output.match_confidence is not None
        else None,
        "influence": output.influence[0] if output.influence is not None else None,
    }
    for name, tensor in pictures.items():
        if tensor is not None:
            pixels = to_pixels(tensor)
            is_gray = pixels.shape[-1] == 1
            write_picture(
                folder / f"{name}.png",
                Picture(pixels.repeat(3, -1) if is_gray else pixels, is_gray=is_gray),
            )
    words = {
        "guidance": output.guidance,
        "guidance_strength": output.guidance_strength and output.guidance_strength[0],
        "removed": output.removed and output.removed[0],
        "change": output.change and output.change[0],
        "degradation": output.degradation and output.degradation[0],
        "severity": output.severity and output.severity[0],
        "nearest_tokens": output.nearest_tokens and output.nearest_tokens[0],
    }
    with writing(folder / "words.json") as temporary:
        temporary.write_text(json.dumps(words, indent=2) + "\n")
