"""One picture or many through a pipeline with nothing lost, and how long each stage of it
takes."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import torch

from textir.images.explanation import Explanation
from textir.images.jobs import Job, Made
from textir.images.picture import Picture, output_name, to_pixels
from textir.tiling import choose_tile


def restore_picture(pipe, picture: Picture, **options) -> tuple[Picture, object]:
    """Restore a picture at its own depth; alpha, profile and EXIF stay.

    Args:
        pipe: a restoration pipeline.
        picture: what to restore.
        options: further arguments of the pipeline.

    Returns:
        the restored picture and the pipeline's output, whose images are tensors.

    Raises:
        ValueError: what the pipeline raises.
    """
    output = pipe(picture.tensor(), output_type="pt", **options)
    return restored_picture(picture, output.images[0]), output


def restored_picture(picture: Picture, image: torch.Tensor) -> Picture:
    """A picture with what a pipeline made of it, `(3, H, W)` in [0, 1]."""
    restored = to_pixels(image)
    if restored.shape != picture.pixels.shape:
        # A pipeline without restorer returns the guidance itself, in its own size.
        return Picture(restored)
    return picture.with_pixels(restored)


@dataclass(frozen=True)
class Restoring:
    """The work of a restoration pipeline: what it does to each of many photos.

    Attributes:
        options: arguments of the pipeline, such as `{"task": "denoise"}`; without a generator.
        seed: of everything random in each photo.
        tile: as the pipeline takes it; with auto results depend on memory where little is free.
        intermediates: also write what the pipeline's output explains.
        hint: how the user names tasks.
        count: results of each photo.
    """

    options: Mapping = field(default_factory=dict)
    seed: int = 0
    tile: int | str | None = "auto"
    intermediates: bool = False
    hint: str = "task"
    count: int = field(default=1, init=False)

    def name_result(self, source: Path, picture: Picture) -> str:
        return output_name(source, picture)

    def settings(self, job: Job) -> Mapping:
        own = {"seed": self.seed, "tile": self.tile, "intermediates": self.intermediates}
        return {"command": "restore", **self.options, **own}

    def __call__(self, pipe, jobs: Sequence[Job], pictures: Sequence[Picture]) -> list[Made]:
        height, width = pictures[0].pixels.shape[:2]
        is_batch = len(pictures) > 1 and pipe.restorer is not None
        if is_batch and choose_tile(height * len(pictures), width, pipe.restorer) is not None:
            # Memory has no room for all of them at once.
            singles = [self(pipe, [job], [picture]) for job, picture in zip(jobs, pictures)]
            return list(chain.from_iterable(singles))
        images = torch.cat([picture.tensor() for picture in pictures])
        generators = [torch.Generator().manual_seed(self.seed) for _ in pictures]
        output = pipe(
            images,
            tile=self.tile,
            output_type="pt",
            generator=generators,
            return_influence=self.intermediates,
            return_tags=self.intermediates and pipe.can_describe,
            **self.options,
        )
        made = []
        for number, picture in enumerate(pictures):
            told = Explanation.of(output, number=number)
            made.append(
                Made(
                    [restored_picture(picture, output.images[number])],
                    [told.line(self.hint)],
                    {"degradation": told.degradation, "severity": told.severity},
                    [done_by(told, self.tile)],
                    told if self.intermediates else None,
                )
            )
        return made


def done_by(told: Explanation, tile: int | str | None) -> dict:
    """What was done to a photo, for its record."""
    return {
        "removed": told.removed,
        "guidance": told.guidance,
        "guidance_strength": told.guidance_strength,
        "understood": told.understood,
        "change": told.change,
        "tile": tile,
    }


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
    """Within the block, note how many seconds each component of a pipeline works.

    They stand in the order in which they begin.

    Args:
        pipe: the pipeline.
        on_stage: called with a component's name whenever it begins. What it raises ends the call
            of the pipeline.
        on_block: called before each block of UNet and restorer, likewise. It is a way to stop soon.
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
        for module in _modules(pipe, stage):
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


def _modules(pipe, stage: str) -> list[torch.nn.Module]:
    """The modules of a pipeline whose calls make up a stage."""
    component = getattr(pipe, stage, None)
    if component is None:
        return []
    return [component.encoder, component.decoder] if stage == "vae" else [component]
