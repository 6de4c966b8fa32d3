"""The model at work: one thread for each run, which tells what happens and can be stopped."""

import contextvars
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial

import gradio as gr
import numpy as np
import spaces
import torch
from torch.overrides import TorchFunctionMode

from pipelines.pipeline_text_guided_restoration import TASKS, count_tiles
from textir import machine
from textir.images.explanation import Explanation
from textir.images.picture import Picture, to_pixels
from textir.images.restoration import STAGES, restore_picture, stage_clock
from textir.space.inputs import FAST_PIXELS
from textir.space.model import Model
from textir.space.pace import Pace, megapixels
from textir.space.settings import Settings
from textir.tiling import choose_tile

# Of every event that needs a model. Whoever is let in waits for the lock of a pipeline: so a small
# photo passes by a large one, which has a pipeline of its own.
QUEUE = {"concurrency_limit": 4, "concurrency_id": "model"}
PATIENCE = 0.4  # seconds without news after which the page hears that work goes on
OVERLAP = 32  # of tiles, the default of the pipeline
BEFORE = 0.2  # share of the bar for all that comes before the restorer
WAITING = "waiting"
PROBE = 128  # side of the image that measures this machine, in pixels


class Stopped(Exception):
    """The visitor has pressed Stop."""


@dataclass(frozen=True)
class Stage:
    """A component begins to work; `name` is a key of `STAGES`, or `WAITING`."""

    name: str


@dataclass(frozen=True)
class Advance:
    """So much of the restorer's work is done, as a share of it."""

    share: float


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
        is_told: whether the visitor said what to remove.
    """

    restored: Picture
    explanation: Explanation
    seconds: dict[str, float]
    is_told: bool = True


@dataclass(frozen=True)
class Beat:
    """Work goes on, without news: the moment at which a visitor who left is noticed."""


Event = Stage | Advance | Preview | Result


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


class Stoppable(TorchFunctionMode):
    """Within the block, every call of torch in this thread begins with a check, which may raise."""

    def __init__(self, check: Callable[[], None]):
        super().__init__()
        self.check = check

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.check()
        return func(*args, **(kwargs or {}))


@contextmanager
def turn(lock, check: Callable[[], None]) -> Iterator[None]:
    """Hold a lock; whoever waits for it can be stopped.

    Args:
        lock: of `threading`.
        check: called now and then while it waits; may raise.
    """
    while not lock.acquire(timeout=PATIENCE / 2):
        check()
    try:
        check()
        yield
    finally:
        lock.release()


def waiting(work: Callable[[], object]) -> Iterator:
    """Do some work that cannot be stopped in a thread; closing the iterator leaves it alone.

    Yields:
        beats, at last what the work returns.
    """
    pool = ThreadPoolExecutor(1)
    try:
        future = pool.submit(work)
        while not wait([future], timeout=PATIENCE).done:
            yield Beat()
        yield future.result()
    finally:
        pool.shutdown(wait=False)


class Blocks:
    """Tells how far the restorer is, by the blocks of it that have begun.

    Args:
        channel: is told.
        pipe: whose restorer works.
        size: height and width of the photo.
        settings: of the run.
    """

    def __init__(self, channel: Channel, pipe, size: tuple[int, int], settings: Settings):
        self.channel, self.done, self.stage = channel, 0, ""
        self.total = expected_blocks(pipe, size, settings)

    def begin(self, stage: str) -> None:
        self.stage = stage

    def advance(self) -> None:
        """One more block begins."""
        self.channel.check()
        if self.stage == "restorer":
            self.done += 1
            self.channel.tell(Advance(min(self.done / self.total, 1.0)))


def expected_blocks(pipe, size: tuple[int, int], settings: Settings) -> int:
    """How many blocks of the restorer a run calls: for each tile and once to measure what tiles
    share; all this twice where there is a guidance, whose influence is shown."""
    height, width = size
    tile = settings.tile
    if tile == "auto":
        tile = choose_tile(height, width, pipe.restorer)
    calls = 1
    if tile is not None and tile < max(size):
        calls = count_tiles(height, width, tile, OVERLAP) + hasattr(pipe.restorer, "share_averages")
    names = getattr(pipe.restorer, "_repeated_blocks", None) or []
    modules = pipe.restorer.named_modules()
    blocks = [name for name, module in modules if type(module).__name__ in names]
    unguided = [name for name in blocks if "fusion" not in name]
    count = len(unguided) + (len(blocks) if may_be_guided(pipe, settings) else 0)
    return calls * max(count, 1)


def may_be_guided(pipe, settings: Settings) -> bool:
    """Whether the restorer may take a guidance. Where the pipeline looks at the photo first to
    decide, this says no, and the bar waits at its end meanwhile."""
    if pipe.unet is None or settings.guidance == "none":
        return False
    if settings.guidance_strength is not None:
        return settings.guidance_strength > 0
    guided = pipe.config.guided_degradations
    return guided is None or bool(set(guided) & set(told(settings)))


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


@dataclass(frozen=True)
class Done:
    """Some work has ended well, with what it returns."""

    value: object


def stoppable(work: Callable[[Callable[[], None]], object]) -> Iterator:
    """Do some work in a thread; closing the iterator stops it at its next check.

    Args:
        work: is given a check, which it calls now and then, and which raises once it is to stop.

    Yields:
        beats, at last what the work returns.
    """
    context = contextvars.copy_context()  # in which the bar of the page is found

    def run(channel: Channel) -> None:
        try:
            channel.events.put(Done(context.run(work, channel.check)))
        except Exception as error:
            channel.events.put(error)

    for event in listen(run, Done, PATIENCE):
        yield event.value if isinstance(event, Done) else event


class Worker:
    """Runs a model for one visitor after the other, on ZeroGPU in a process of its own.

    That process is a fork: it finds the pipeline in `self`, and only what changes is sent. So
    photo, settings and events are on the CPU and can be pickled.
    """

    def __init__(self, model: Model):
        self.model = model
        self.pace = Pace()
        # ZeroGPU has to see at import that something is decorated.
        self._run_on_gpu = spaces.GPU(duration=self.gpu_seconds)(self.run)

    def measure(self) -> None:
        """Learn how fast this machine restores, from one small image; every run teaches more."""
        if self.model.device == "cpu":
            probe = torch.full((1, 3, PROBE, PROBE), 0.5)
            call = partial(self.model.pipe.restore, probe)
            machine.seconds(call)  # the first call is slower
            self.pace.learn((PROBE, PROBE), machine.seconds(call))

    def estimate(self, size: tuple[int, int]) -> float | None:
        """Seconds that a photo of a size will take; `None`: not known yet."""
        return self.pace.estimate(size)

    def gpu_seconds(self, picture: Picture, settings: Settings) -> int:
        """GPU time to ask ZeroGPU for: a base, the painting, and the restorer by its pixels.

        On an H200 the embedded checkpoint takes 0.08 s for 512 x 512 pixels.
        Stable Diffusion 2.1 takes 0.6 s for 1536 x 1024 pixels and 8 steps.
        """
        painting = 0.0
        if self.model.has_painter:
            steps = (
                settings.num_inference_steps or self.model.pipe.config.default_num_inference_steps
            )
            painting = 0.1 * steps * (1 + settings.both_words)
        return int(min(10 + painting + 2 * megapixels(picture.pixels.shape[:2]), 120))

    def finish(
        self,
        picture: Picture,
        settings: Settings,
        progress: gr.Progress,
        span: tuple[float, float] = (0.1, 1.0),
        check: Callable[[], None] = lambda: None,
    ) -> Result:
        """Run to the end, and move the bar within a span of it; what `check` raises stops the
        work."""
        with closing(self.follow(picture, settings, progress, span)) as events:
            for event in events:
                check()
                result = event
        return result

    def follow(
        self,
        picture: Picture,
        settings: Settings,
        progress: gr.Progress,
        span: tuple[float, float] = (0.0, 1.0),
    ) -> Iterator[Beat | Preview | Result]:
        """Run, and move the bar with the work; closing the iterator stops the work.

        Yields:
            signs of life and previews, at last the result.
        """
        start, end = span
        begun = last = time.perf_counter()
        for event in self._run_on_gpu(picture, settings):
            if isinstance(event, Stage) and event.name in STAGES:
                share = BEFORE * (list(STAGES).index(event.name) + 1) / len(STAGES)
                words = STAGES[event.name].capitalize()
                if event.name == "restorer":
                    begun = time.perf_counter()
            elif isinstance(event, Stage):
                share, words = 0.01, "Waiting for the photo before yours"
            elif isinstance(event, Advance):
                if time.perf_counter() - last < PATIENCE / 2:
                    continue  # the page hears enough
                share = BEFORE + (0.97 - BEFORE) * event.share
                words = remaining(time.perf_counter() - begun, event.share)
            if isinstance(event, Stage | Advance):
                last = time.perf_counter()
                progress(start + (end - start) * share, desc=words)
                yield Beat()
                continue
            yield event
            if isinstance(event, Result):
                self.learn(picture, event)
                return
        raise gr.Error("The work ended without a result.", title="No result")

    def learn(self, picture: Picture, result: Result) -> None:
        """Remember how long the last photo took."""
        seconds = dict(result.seconds)
        restoring = seconds.pop("restorer", None)
        if restoring is not None:
            self.pace.learn(picture.pixels.shape[:2], restoring, sum(seconds.values()))

    def run(self, picture: Picture, settings: Settings) -> Iterator[Beat | Event]:
        """Restore in a thread, and tell what happens; closing the iterator stops the work."""
        yield from listen(partial(self._work, picture, settings), Result, PATIENCE)

    def pipe_for(self, picture: Picture):
        """The pipeline that restores a photo: large ones have their own."""
        height, width = picture.pixels.shape[:2]
        is_large = height * width > FAST_PIXELS
        return self.model.pipe_aside if is_large else self.model.pipe

    def _work(self, picture: Picture, settings: Settings, channel: Channel) -> None:
        """Restore once nobody else works on the pipeline. A visitor who stops is gone before the
        next operation of torch."""
        try:
            pipe = self.pipe_for(picture)
            channel.tell(Stage(WAITING))
            with (
                turn(pipe.exclusive(), channel.check),
                Stoppable(channel.check),
                self.model.adapted(settings.adapter, pipe),
            ):
                result = self._restore(pipe, picture, settings, channel)
            channel.events.put(result)
        except Exception as error:
            channel.events.put(error)

    def _restore(self, pipe, picture: Picture, settings: Settings, channel: Channel) -> Result:
        blocks = Blocks(channel, pipe, picture.pixels.shape[:2], settings)

        def on_stage(name: str) -> None:
            blocks.begin(name)
            channel.tell(Stage(name))

        def on_step(_, step: int, timestep, tensors: dict) -> dict:
            on_stage("unet")
            if settings.num_inference_steps != 1:
                guidance = pipe.decode_latents(tensors["latents"])[0]
                channel.tell(Preview(to_pixels(guidance)))
            return {}

        reference = None if settings.reference is None else settings.reference.tensor()
        with stage_clock(pipe, on_stage, blocks.advance) as seconds:
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
                degraded_guidance = self._paint_degraded(pipe, picture, settings)
        explanation = Explanation.of(output, degraded_guidance)
        return Result(restored, explanation, seconds, settings.is_told)

    def _paint_degraded(self, pipe, picture: Picture, settings: Settings) -> torch.Tensor:
        """The guidance that words give which were not cleaned, `(3, h, w)`."""
        generator = torch.Generator().manual_seed(settings.seed)
        guidance = pipe.guide(
            picture.tensor(), "degraded", generator=generator, **settings.painting
        )
        return guidance.images[0]


def told(settings: Settings) -> list[str]:
    """Degradations that a visitor names; those that are found out are not known before."""
    return [TASKS[task] for task in settings.task.split("+") if task in TASKS]


def remaining(seconds: float, share: float) -> str:
    """What the bar says while the restorer works: how much is done, how long the rest takes."""
    words = f"Restoring, {share:.0%}"
    if share < 0.1 or seconds < 2:
        return words
    left = seconds * (1 - share) / share
    return f"{words}, about {left:.0f} s left"
