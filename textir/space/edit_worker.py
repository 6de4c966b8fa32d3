"""The editor at work: one thread for each run, which can be stopped before each operation."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import gradio as gr
import spaces
import torch

from textir import machine
from textir.images.editing import edit_picture
from textir.images.picture import Picture
from textir.space.edit_settings import EditSettings
from textir.space.editor import Editor
from textir.space.pace import Pace, megapixels
from textir.space.worker import PATIENCE, Beat, Channel, Stoppable, listen, turn


@dataclass(frozen=True)
class Made:
    """Some of the results are there."""

    done: int
    count: int


@dataclass(frozen=True)
class EditResult:
    """An edit has ended well.

    Attributes:
        pictures: the results.
        effect: how far words moved the first one: mean difference on the 0-255 scale, or `None`.
        notes: what the pipeline has to say.
        seconds: how long it took.
    """

    pictures: list[Picture]
    effect: float | None
    notes: tuple[str, ...]
    seconds: float


class EditWorker:
    """Edits for one visitor after the other, on ZeroGPU in a process of its own.

    As with `Worker`, that process is a fork, and what is sent is on the CPU and can be pickled.
    """

    def __init__(self, editor: Editor):
        self.editor = editor
        self.lock = threading.Lock()
        self.paces: dict[str, Pace] = defaultdict(Pace)
        # ZeroGPU has to see at import that something is decorated.
        self._run_on_gpu = spaces.GPU(duration=self.gpu_seconds)(self.run)

    def measure(self) -> None:
        """Learn how fast this machine enlarges, from one small photo: 64 x 64 by 4."""
        pipe = self.editor.pipe
        if "super-resolution" in self.editor.tasks and self.editor.device == "cpu":
            photo = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
            call = partial(pipe, photo, "", task="super-resolution", scale=4.0, output_type="pt")
            machine.seconds(call)  # the first call is slower
            self.paces["super-resolution"].learn((256, 256), machine.seconds(call))

    def estimate(self, task: str, size: tuple[int, int], runs: int = 1) -> float | None:
        """Seconds that results of a size will take; `None`: not known yet."""
        return self.paces[task].estimate(size, runs)

    def gpu_seconds(self, picture: Picture, settings: EditSettings) -> int:
        """GPU time to ask ZeroGPU for: a base, and the pixels of all results."""
        return int(min(10 + 2 * settings.runs * megapixels(settings.size(picture)), 120))

    def follow(
        self, picture: Picture, settings: EditSettings, progress: gr.Progress
    ) -> Iterator[Beat | Made | EditResult]:
        """Edit, and move the bar; closing the iterator stops the work.

        Yields:
            signs of life, at last the result.
        """
        size = settings.size(picture)
        expected = self.estimate(settings.task, size, settings.runs)
        start, share = time.perf_counter(), 0.0
        for event in self._run_on_gpu(picture, settings):
            if isinstance(event, Made):
                share = event.done / event.count
            elif expected:
                share = max(share, min((time.perf_counter() - start) / expected, 0.95))
            progress(0.05 + 0.9 * share, desc="At work")
            if isinstance(event, EditResult):
                self.paces[settings.task].learn(size, event.seconds / settings.runs)
            yield event

    def run(self, picture: Picture, settings: EditSettings) -> Iterator[Beat | Made | EditResult]:
        """Edit in a thread, and tell what happens; closing the iterator stops the work."""
        yield from listen(partial(self._work, picture, settings), EditResult, PATIENCE)

    def _work(self, picture: Picture, settings: EditSettings, channel: Channel) -> None:
        try:
            with turn(self.lock, channel.check), Stoppable(channel.check):
                result = edit(
                    self.editor.pipe,
                    picture,
                    settings,
                    lambda done, count: channel.tell(Made(done, count)),
                )
            channel.events.put(result)
        except Exception as error:
            channel.events.put(error)


def edit(
    pipe, picture: Picture, settings: EditSettings, callback: Callable[[int, int], None]
) -> EditResult:
    """Edit a picture, and take the time.

    Raises:
        ValueError: what the pipeline raises.
    """
    start = time.perf_counter()
    pictures, output = edit_picture(
        pipe,
        picture,
        generator=torch.Generator().manual_seed(settings.seed),
        callback=callback,
        **settings.arguments,
    )
    effect = output.effect[0] if output.effect else None
    return EditResult(pictures, effect, output.notes, time.perf_counter() - start)
