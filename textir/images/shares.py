"""Which photos each of several processes works on: every photo once, with pixels in balance."""

import io
import json
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

import tifffile
import torch
from PIL import Image, UnidentifiedImageError
from torch.distributed import TCPStore

from textir.images.picture import JXL_SIGNATURES, jxl_size
from textir.images.plans import Job

ANSWER = timedelta(minutes=5)  # within which torchrun must answer


def count_pixels(job: Job) -> int:
    """Pixels of a photo as its header says, 0 if it cannot be read."""
    try:
        if job.row is not None:
            return pixels_in(io.BytesIO(job.read()))
        with job.source.open("rb") as file:
            return pixels_in(file)
    except Exception:  # on damaged bytes decoders raise nearly anything; reading it will tell
        return 0


def pixels_in(file) -> int:
    start = file.read(16)
    file.seek(0)
    if start.startswith(JXL_SIGNATURES):
        height, width = jxl_size(file.read())
        return height * width
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # reading it decides
        try:
            with Image.open(file) as image:
                return image.width * image.height
        except UnidentifiedImageError:  # such as floating-point colour
            file.seek(0)
            with tifffile.TiffFile(file) as tiff:
                return tiff.pages[0].imagewidth * tiff.pages[0].imagelength


def split_by_pixels(jobs: Sequence[Job], count: int) -> list[list[Job]]:
    """Split photos among `count` processes so that all have about as many pixels; every process
    that sees the same files comes to the same result.

    The largest photo that is left goes to whoever has the fewest pixels (Graham, *Bounds on
    multiprocessing timing anomalies*, 1969).
    """
    pixels = [max(count_pixels(job), 1) for job in jobs]
    owners = [0] * len(jobs)
    loads = [0] * count
    for number in sorted(range(len(jobs)), key=lambda number: (-pixels[number], number)):
        owners[number] = loads.index(min(loads))
        loads[owners[number]] += pixels[number]
    return [[job for job, owner in zip(jobs, owners) if owner == rank] for rank in range(count)]


@dataclass(frozen=True)
class Share:
    """Which of several processes this one is.

    Attributes:
        rank: its number, from 0.
        count: of processes.
        local_rank: its number on this machine.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @classmethod
    def of_this_process(cls, environment: Mapping[str, str] = os.environ) -> "Share":
        """What torchrun, or another launcher that sets `RANK` and `WORLD_SIZE`, says.

        Raises:
            ValueError: if they are no numbers or do not fit.
        """
        if "RANK" not in environment or "WORLD_SIZE" not in environment:
            return cls()
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        values = [environment.get(name, environment["RANK"]) for name in names]
        if not all(value.isdecimal() for value in values) or int(values[0]) >= int(values[1]):
            told = ", ".join(f"{name}={value}" for name, value in zip(names, values))
            raise ValueError(
                f"`RANK` must be a number below `WORLD_SIZE`, got {told}. Start several processes "
                "with torchrun, or unset these variables."
            )
        return cls(*map(int, values))

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def of(self, jobs: Sequence[Job]) -> list[Job]:
        """The photos that this process works on."""
        return list(jobs) if self.count == 1 else split_by_pixels(jobs, self.count)[self.rank]

    def device(self, device: str) -> str:
        """`auto` and `cuda` as the GPU of this process, where it is one of several."""
        gpus = torch.cuda.device_count() if self.count > 1 and device in ("auto", "cuda") else 0
        return f"cuda:{self.local_rank % gpus}" if gpus else device

    def gather(
        self, name: str, fact: Mapping, environment: Mapping[str, str] = os.environ
    ) -> list[dict] | None:
        """What all processes have to say, in the order of their ranks, once all have said it.

        torchrun ends all processes when one ends with an error; who waits here for the others
        spoils nothing.

        Args:
            name: of the fact, once a run.
            fact: of this process, as JSON takes it.
            environment: tells where torchrun keeps what processes share.

        Returns:
            `None` where another launcher has started them, or there is one process.
        """
        if self.count == 1 or environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            return None
        place = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
        store = TCPStore(*place, is_master=False, timeout=ANSWER)
        turn = environment.get("TORCHELASTIC_RESTART_COUNT", "0")
        keys = [f"textir/{turn}/{name}/{rank}" for rank in range(self.count)]
        store.set(keys[self.rank], json.dumps(fact))
        while not store.check(keys):  # `wait` would not let Ctrl-C through
            time.sleep(0.05)
        return [json.loads(store.get(key)) for key in keys]
