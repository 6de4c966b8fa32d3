"""One picture through a pipeline with nothing lost, and how long each stage of it takes."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from textir.images.picture import Picture, to_pixels


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
    restored = to_pixels(output.images[0])
    if restored.shape != picture.pixels.shape:
        # A pipeline without restorer returns the guidance itself, in its own size.
        return Picture(restored), output
    return picture.with_pixels(restored), output


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
