"""Many photos on many machines, by Ray Data: workers hold the pipeline, and whoever is free takes
the next photo. Photos and results lie where all machines see them.

Ray is optional: `pip install -r requirements-ray.txt`.
"""

import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from textir.images.jobs import Job, Outcome, Run
from textir.images.shares import count_pixels

MAX_TASKS = 4096  # beyond which tasks hold several photos
ATTEMPTS = 4  # with a photo over which workers die, such as for want of memory
QUIET = {"RAY_BACKEND_LOG_LEVEL": "error", "RAY_USAGE_STATS_ENABLED": "0"}


class Worker:
    """What each worker does; made once in its process.

    Args:
        load: gives the pipeline.
        run: the run.
        jobs: a reference to all photos, with absolute paths.
        attempts: the actor of `count_attempts`.
    """

    def __init__(self, load: Callable, run: Run, jobs, attempts):
        import ray

        self.pipe, self.run, self.jobs = load(), run, ray.get(jobs)
        self.weights = run.weights_of(self.pipe, self.jobs)
        self.begin = lambda number: ray.get(attempts.begin.remote(number))

    def __call__(self, row: Mapping) -> Mapping:
        numbers = json.loads(row["numbers"])
        if self.begin(numbers[0]) > ATTEMPTS:
            lost = {"problem": f"{ATTEMPTS} workers died over it"}
            return {"outcomes": json.dumps([(number, lost) for number in numbers])}
        jobs = [self.jobs[number] for number in numbers]
        positions = {id(job): number for job, number in zip(jobs, numbers)}
        told = []
        for outcome in self.run(self.pipe, jobs, self.weights):
            facts = {
                "targets": [str(target) for target in outcome.targets],
                "problem": outcome.problem,
                "notes": outcome.notes,
                "was_there": outcome.was_there,
                "seconds": outcome.seconds,
                "pixels": outcome.pixels,
            }
            told.append((positions[id(outcome.job)], facts))
        return {"outcomes": json.dumps(told)}


def count_attempts(ray):
    """An actor that counts how often workers have begun with each photo, and outlives them."""

    class Attempts:  # sent as source: its process loads no networks
        def __init__(self):
            self.counts = {}

        def begin(self, number: int) -> int:
            self.counts[number] = self.counts.get(number, 0) + 1
            return self.counts[number]

    return ray.remote(num_cpus=0)(Attempts).remote()


def run_on_ray(
    run: Run, jobs: Sequence[Job], load: Callable, workers: int | None = None
) -> Iterator[Outcome]:
    """Work on photos in a Ray cluster: the one that is connected, that of `RAY_ADDRESS`, or one on
    this machine alone.

    A worker that dies is replaced, and its photos are done again. Results equal those of one
    process to the bit where `batch_size` is 1, and device and number of threads are the same.

    Args:
        run: the run.
        jobs: the photos; paths must be the same on all machines.
        load: gives the pipeline; called once in each worker.
        workers: how many; by default one for each GPU, without GPUs one for each machine.

    Yields:
        what became of each, as it comes.

    Raises:
        ValueError: if Ray is not installed, or the cluster has no room for so many workers.
    """
    if not jobs:
        return
    ray = require_ray()
    is_ours = not ray.is_initialized()
    if is_ours:
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        try:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # of many kinds: no such address, a start that took too long
            raise ValueError(f"Ray could not be started or reached: {error}") from error
    try:
        size, resources = room_for(workers, ray)
        yield from stream(run, jobs, load, size, resources, ray)
    finally:
        if is_ours:
            ray.shutdown()


def require_ray():
    """The module `ray`.

    Raises:
        ValueError: if it is not installed.
    """
    try:
        import ray
        import ray.data
    except ImportError:
        raise ValueError(
            "The engine ray needs Ray Data: pip install -r requirements-ray.txt"
        ) from None
    return ray


def room_for(workers: int | None, ray) -> tuple[int, dict[str, float]]:
    """How many workers a cluster gets, and the share of a machine that each takes.

    Raises:
        ValueError: if there is no room for so many.
    """
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    kind = "GPU" if any(node.get("GPU") for node in alive) else "CPU"
    nodes = [node for node in alive if node.get(kind, 0) >= 1]
    seats = int(sum(node[kind] for node in nodes))
    size = workers or (seats if kind == "GPU" else len(nodes))
    if size > seats or not nodes:
        raise ValueError(
            f"The Ray cluster has room for {seats} workers, and {size} were asked for; pass fewer "
            "`--workers`."
        )
    on_one = math.ceil(size / len(nodes))
    cpus = max(1, int(min(node.get("CPU", 0) for node in nodes)) // on_one)
    return size, {"num_cpus": cpus, **({"num_gpus": 1} if kind == "GPU" else {})}


def stream(
    run: Run, jobs: Sequence[Job], load: Callable, size: int, resources: Mapping, ray
) -> Iterator[Outcome]:
    """The outcomes of `size` workers, and of the photos that none of them survived."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1  # what is lost is told below
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    everything = ray.put([job.absolute() for job in jobs])
    items = [{"numbers": json.dumps(numbers)} for numbers in bundles(jobs, run.batch_size)]
    told = ray.data.from_items(items, override_num_blocks=min(len(items), MAX_TASKS)).map(
        Worker,
        fn_constructor_args=[load, run, everything, count_attempts(ray)],
        compute=ray.data.ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=2),
        **resources,
    )
    left = dict(enumerate(jobs))
    for row in told.iter_rows():
        for number, facts in json.loads(row["outcomes"]):
            job = left.pop(number)
            folder = job.target_folder if job.target is None else job.target.parent
            targets = [folder / Path(target).name for target in facts.pop("targets", [])]
            yield Outcome(job, targets, **facts)
    for job in left.values():
        yield Outcome(job, problem="Ray has lost it; its log tells why")


def bundles(jobs: Sequence[Job], batch_size: int) -> Iterator[list[int]]:
    """Numbers of photos that go to a worker together: photos of one size, or single ones."""
    if batch_size == 1:
        yield from ([number] for number in range(len(jobs)))
        return
    pixels = [count_pixels(job) for job in jobs]
    order = sorted(range(len(jobs)), key=lambda number: pixels[number])
    for _, group in groupby(order, key=lambda number: pixels[number]):
        numbers = list(group)
        for first in range(0, len(numbers), batch_size):
            yield numbers[first : first + batch_size]
