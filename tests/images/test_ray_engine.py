"""Many photos by Ray Data: the same results to the bit, also where a worker dies in the middle."""

import os
import signal
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines import TextGuidedRestorationPipeline
from tests.tools import tiny
from textir.images.jobs import Run
from textir.images.plans import plan_jobs
from textir.images.ray_engine import bundles, run_on_ray
from textir.images.restoration import Restoring

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """A cluster of two workers on this machine."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    options = {"include_dashboard": False, "log_to_driver": False, "object_store_memory": 10**8}
    ray.init(num_cpus=2, **options)
    yield
    ray.shutdown()


def load():
    """The pipeline of every process."""
    torch.manual_seed(1)
    return TextGuidedRestorationPipeline(restorer=tiny.restorer(guided=False))


@dataclass(frozen=True)
class Deadly(Restoring):
    """Kills its process with one photo, once or whenever it meets it."""

    marker: Path = Path()
    once: bool = True

    def __call__(self, pipe, jobs, pictures):
        is_deadly = jobs[0].source.name == "3.png"
        if is_deadly and not (self.once and self.marker.exists()):
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(pipe, jobs, pictures)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """in/0.png to in/7.png, of mixed sizes, one bad, and the reader beside them."""
    generator = np.random.default_rng(0)
    for number in range(8):
        path = tmp_path / "in" / ("deep" if number % 3 else "") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (24 + 8 * (number % 4), 40)
        Image.fromarray(generator.integers(0, 256, (*size, 3), np.uint8)).save(path)
    (tmp_path / "in" / "bad.png").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def results(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.png")}


def jobs_of(name):
    return plan_jobs(["in"], name, recursive=True)  # relative paths, as a user gives them


@pytest.mark.parametrize("is_killed", [False, True])
def test_results_are_those_of_one_process_to_the_bit(photos, is_killed):
    torch.set_num_threads(1)
    list(Run(Restoring())(load(), jobs_of("single")))
    work = Deadly(marker=photos / "killed") if is_killed else Restoring()
    outcomes = list(run_on_ray(Run(work), jobs_of("out"), load, workers=2))
    assert len(outcomes) == 9 and (photos / "killed").exists() == is_killed
    assert [o.job.source.name for o in outcomes if o.problem is not None] == ["bad.png"]
    assert all(target.is_file() for outcome in outcomes for target in outcome.targets)
    assert results(photos / "out") == results(photos / "single") != {}
    again = list(run_on_ray(Run(work), jobs_of("out"), load, workers=1))
    assert sum(outcome.was_there for outcome in again) == 8


@pytest.mark.slow
def test_a_photo_that_kills_every_worker_is_bad_and_the_others_are_done(photos):
    work = Deadly(marker=photos / "killed", once=False)
    outcomes = list(run_on_ray(Run(work), jobs_of("out"), load, workers=2))
    problems = {o.job.source.name: o.problem for o in outcomes if o.problem is not None}
    assert set(problems) == {"bad.png", "3.png"} and "workers died" in problems["3.png"]
    assert len(results(photos / "out")) == 7


def test_more_workers_than_there_is_room_for_are_refused(photos):
    with pytest.raises(ValueError, match="room for 2 workers, and 5 were asked for"):
        next(run_on_ray(Run(Restoring()), jobs_of("out"), partial(load), workers=5))


def test_photos_of_one_size_go_to_a_worker_together(photos):
    jobs = jobs_of("out")
    together = list(bundles(jobs, 2))
    assert sorted(number for bundle in together for number in bundle) == list(range(9))
    assert max(map(len, together)) == 2 and list(bundles(jobs, 1)) == [[n] for n in range(9)]
