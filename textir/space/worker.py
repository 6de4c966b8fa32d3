"""The model at work: one thread for each run, which tells what happens and can be stopped."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import gradio as gr
import numpy as np
import spaces
import torch

from textir.images.explanation import Explanation
from textir.images.picture import Picture, to_pixels
from textir.images.restoration import STAGES, restore_picture, stage_clock
from textir.space.model import Model
from textir.space.settings import Settings

QUEUE = {"concurrency_limit": 1, "concurrency_id": "model"}  # of every event that needs the model


class Stopped(Exception):
    """The visitor has pressed Stop."""


@dataclass(frozen=True)
class Stage:
    """A component begins to work; `name` is a key of `STAGES`."""

    name: str


@dataclass(frozen=True)
class Preview:
    """The guidance after one more step, float32 `(h, w, 3)` in [0, 1]."""

    pixels: np.ndarray


@dataclass(frozen=True)
class Result:
    """A run has ended well.

    Attributes:
        restored: the restored photo.
        explanation: what was seen and done.
        seconds: how long each stage took.
    """

    restored: Picture
    explanation: Explanation
    seconds: dict[str, float]


@dataclass(frozen=True)
class Beat:
    """Work goes on, without news: the moment at which a visitor who left is noticed."""


Event = Stage | Preview | Result


class Channel:
    """What happens, from the thread at work to the one that waits; Stop the other way round."""

    def __init__(self):
        self.events: queue.SimpleQueue = queue.SimpleQueue()
        self.stop = threading.Event()

    def check(self) -> None:
        """End the work here if the visitor has left.

        Raises:
            Stopped: if so.
        """
        if self.stop.is_set():
            raise Stopped

    def tell(self, event: Event) -> None:
        self.check()
        self.events.put(event)


def listen(work: Callable[[Channel], None], last: type, patience: float | None = None) -> Iterator:
    """Do some work in a thread, and tell what happens; closing the iterator stops the work.

    Args:
        work: puts events into the channel that it is given, at last a result or an error.
        last: the type of that result.
        patience: seconds without news after which there is a `Beat`.
    """
    channel = Channel()
    thread = threading.Thread(target=work, args=(channel,))
    thread.start()
    try:
        while True:
            try:
                event = channel.events.get(timeout=patience)
            except queue.Empty:
                yield Beat()
                continue
            if isinstance(event, Exception):
                raise event
            yield event
            if isinstance(event, last):
                return
    finally:
        channel.stop.set()
        thread.join()


class Worker:
    """Runs a model for one visitor after the other, on ZeroGPU in a process of its own.

    That process is a fork: it finds the pipeline in `self`, and only what changes is sent. So
    photo, settings and events are on the CPU and can be pickled.
    """

    def __init__(self, model: Model):
        self.model = model
        # ZeroGPU has to see at import that something is decorated.
        self._run_on_gpu = spaces.GPU(duration=self.gpu_seconds)(self.run)

    def gpu_seconds(self, picture: Picture, settings: Settings) -> int:
        """GPU time to ask ZeroGPU for: a base, the painting, and the restorer by its pixels.

        On an H200 the embedded checkpoint takes 0.08 s for 512 x 512 pixels.
        Stable Diffusion 2.1 takes 0.6 s for 1536 x 1024 pixels and 8 steps.
        """
        megapixels = picture.pixels.shape[0] * picture.pixels.shape[1] / 1e6
        painting = 0.0
        if self.model.has_painter:
            steps = (
                settings.num_inference_steps or self.model.pipe.config.default_num_inference_steps
            )
            painting = 0.1 * steps * (1 + settings.both_words)
        return int(min(10 + painting + 2 * megapixels, 120))

    def finish(
        self,
        picture: Picture,
        settings: Settings,
        progress: gr.Progress,
        span: tuple[float, float] = (0.1, 1.0),
    ) -> Result:
        """Run to the end, and move the bar within a span of it."""
        return deque(self.follow(picture, settings, progress, span), maxlen=1).pop()

    def follow(
        self,
        picture: Picture,
        settings: Settings,
        progress: gr.Progress,
        span: tuple[float, float] = (0.0, 1.0),
    ) -> Iterator[Preview | Result]:
        """Run, and move the bar from stage to stage; closing the iterator stops the work.

        Yields:
            previews, at last the result.
        """
        start, end = span
        for event in self._run_on_gpu(picture, settings):
            if isinstance(event, Stage):
                share = (list(STAGES).index(event.name) + 1) / (len(STAGES) + 1)
                description = STAGES[event.name].capitalize()
                progress(start + (end - start) * share, desc=description)
                continue
            yield event
            if isinstance(event, Result):
                return
        raise gr.Error("The work ended without a result.")

    def run(self, picture: Picture, settings: Settings) -> Iterator[Event]:
        """Restore in a thread, and tell what happens; closing the iterator stops the work."""
        yield from listen(partial(self._work, picture, settings), Result)

    def _work(self, picture: Picture, settings: Settings, channel: Channel) -> None:
        """Restore once nobody else works on the pipeline: a visitor who pressed Stop frees the
        queue at once, and the thread of that visitor only a little later."""
        try:
            with self.model.pipe.exclusive():
                channel.check()
                with self.model.adapted(settings.adapter):
                    result = self._restore(picture, settings, channel)
            channel.events.put(result)
        except Exception as error:
            channel.events.put(error)

    def _restore(self, picture: Picture, settings: Settings, channel: Channel) -> Result:
        pipe = self.model.pipe

        def on_stage(name: str) -> None:
            channel.tell(Stage(name))

        def on_step(_, step: int, timestep, tensors: dict) -> dict:
            on_stage("unet")
            if settings.num_inference_steps != 1:
                guidance = pipe.decode_latents(tensors["latents"])[0]
                channel.tell(Preview(to_pixels(guidance)))
            return {}

        reference = None if settings.reference is None else settings.reference.tensor()
        with stage_clock(pipe, on_stage, channel.check) as seconds:
            restored, output = restore_picture(
                pipe,
                picture,
                guidance_image=reference,
                generator=torch.Generator().manual_seed(settings.seed),
                callback_on_step_end=on_step,
                **settings.restoring,
            )
            degraded_guidance = None
            if settings.both_words and output.guidance == "cleaned":
                degraded_guidance = self._paint_degraded(picture, settings)
        return Result(restored, Explanation.of(output, degraded_guidance), seconds)

    def _paint_degraded(self, picture: Picture, settings: Settings) -> torch.Tensor:
        """The guidance that words give which were not cleaned, `(3, h, w)`."""
        generator = torch.Generator().manual_seed(settings.seed)
        guidance = self.model.pipe.guide(
            picture.tensor(), "degraded", generator=generator, **settings.painting
        )
        return guidance.images[0]
