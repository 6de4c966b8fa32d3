"""The worker tells what happens, stops, and is what ZeroGPU expects of it."""

import inspect
import pickle
import threading
import time

import numpy as np
import pytest
import spaces
import torch

from pipelines import TextGuidedRestorationPipeline
from tests.tools import tiny
from textir.images.picture import Picture
from textir.images.restoration import STAGES
from textir.space.model import Model
from textir.space.settings import Settings
from textir.space.worker import (
    WAITING,
    Advance,
    Beat,
    Preview,
    Result,
    Stage,
    Stopped,
    Worker,
    remaining,
    stoppable,
    waiting,
)


def worker_of(pipe) -> Worker:
    pipe.set_progress_bar_config(disable=True)
    return Worker(Model(pipe, "mini", "cpu"))


@pytest.fixture(scope="module")
def worker():
    """Of a whole chain of tiny networks."""
    return worker_of(tiny.pipeline())


@pytest.fixture
def photo():
    return Picture(np.random.default_rng(0).random((24, 40, 3), dtype=np.float32))


def test_a_run_tells_of_every_stage_and_step_and_ends_with_the_result(worker, photo):
    *events, result = worker.run(photo, Settings(num_inference_steps=3))
    assert isinstance(result, Result) and result.restored.pixels.shape == photo.pixels.shape
    names = [event.name for event in events if isinstance(event, Stage)]
    assert set(names) - {WAITING} == set(result.seconds) <= set(STAGES)
    assert sum(isinstance(event, Preview) for event in events) == 3


def test_what_is_told_can_be_sent_to_another_process(worker, photo):
    for event in worker.run(photo, Settings(both_words=True)):
        if isinstance(event, Beat):
            continue
        copy = pickle.loads(pickle.dumps(event))
        assert type(copy) is type(event)
        tensors = [value for value in vars(copy).values() if isinstance(value, torch.Tensor)]
        assert not tensors
    explanation = copy.explanation
    assert explanation.guidance_pixels.shape == explanation.degraded_guidance_pixels.shape
    assert explanation.match_pixels.shape == (24, 40, 1)


def test_closing_the_run_ends_its_thread_before_its_work_is_done(worker, photo):
    before, steps = set(threading.enumerate()), []
    run = worker.run(photo, Settings(num_inference_steps=50))
    hook = worker.model.pipe.unet.register_forward_hook(lambda *_: steps.append(1))
    next(run)
    assert len(set(threading.enumerate()) - before) == 1
    run.close()
    hook.remove()
    assert set(threading.enumerate()) <= before and len(steps) < 40


def test_a_visitor_who_stops_does_not_touch_the_picture_of_the_next(worker, photo):
    alone = list(worker.run(photo, Settings(task="auto")))[-1].restored.pixels
    for _ in range(6):
        stopping = worker.run(photo, Settings(num_inference_steps=50, seed=1))
        next(stopping)
        results = []

        def visit(results=results):
            results.extend(worker.run(photo, Settings(task="auto")))

        next_visitor = threading.Thread(target=visit)
        next_visitor.start()
        time.sleep(0.1)  # both would be at work, if they might
        stopping.close()
        next_visitor.join()
        np.testing.assert_array_equal(results[-1].restored.pixels, alone)


def test_threads_that_share_a_pipeline_get_their_own_pictures(worker, photo):
    pipe, image = worker.model.pipe, photo.tensor()
    alone = [pipe(image, num_inference_steps=n, output_type="pt").images for n in (1, 2, 3, 4)]
    together = [None] * len(alone)

    def call(n):
        together[n] = pipe(image, num_inference_steps=n + 1, output_type="pt").images

    threads = [threading.Thread(target=call, args=(n,)) for n in range(len(alone))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(alone, together):
        assert torch.equal(one, other)


def test_what_goes_wrong_in_the_thread_is_raised_where_the_run_is_followed(worker, photo):
    with pytest.raises(ValueError, match="magic"):
        list(worker.run(photo, Settings(guidance="magic")))


def test_the_bar_moves_within_its_span(worker, photo):
    shares = []
    worker.finish(photo, Settings(), lambda share, desc: shares.append(share), span=(0.5, 0.75))
    assert shares and 0.5 < min(shares) <= max(shares) < 0.75


def test_a_checkpoint_without_painter_asks_for_less_time(worker, photo):
    bare = worker_of(TextGuidedRestorationPipeline(restorer=tiny.restorer(guided=False)))
    steps = Settings(num_inference_steps=50)
    twice = Settings(num_inference_steps=50, both_words=True)
    seconds = [
        bare.gpu_seconds(photo, steps),
        worker.gpu_seconds(photo, steps),
        worker.gpu_seconds(photo, twice),
    ]
    assert seconds == sorted(set(seconds))


def test_zerogpu_gets_a_generator_and_its_duration(worker, photo, monkeypatch):
    decorated = []

    def record(duration):
        return lambda task: decorated.append((task, duration)) or task

    monkeypatch.setattr(spaces, "GPU", record)
    Worker(worker.model)
    ((task, duration),) = decorated
    assert inspect.isgeneratorfunction(task)
    assert 0 < duration(photo, Settings()) <= 120


def test_the_bar_moves_with_the_blocks_of_the_restorer(worker, photo):
    shares = [event.share for event in worker.run(photo, Settings()) if isinstance(event, Advance)]
    assert len(shares) > 2 and shares == sorted(shares) and shares[-1] > 0.9


def test_tiles_count_in_the_bar(worker):
    photo = Picture(np.random.default_rng(0).random((100, 140, 3), dtype=np.float32))
    settings = Settings(tile=64, guidance="none")
    shares = [event.share for event in worker.run(photo, settings) if isinstance(event, Advance)]
    assert shares == sorted(shares) and 0.9 < shares[-1] <= 1 and shares[-2] < 1


@pytest.mark.parametrize("stage", ["image_encoder", "mapper", "unet", "restorer"])
def test_stop_ends_the_work_in_every_stage_before_the_next_operation(worker, photo, stage):
    run = worker.run(photo, Settings(num_inference_steps=4))
    for event in run:
        if isinstance(event, Stage) and event.name == stage:
            break
    start = time.perf_counter()
    run.close()
    assert time.perf_counter() - start < 2


def test_a_visitor_who_waits_can_stop(worker, photo):
    with worker.model.pipe.exclusive():
        run = worker.run(photo, Settings())
        assert next(run) == Stage(WAITING)
        assert isinstance(next(run), Beat)
        start = time.perf_counter()
        run.close()
        assert time.perf_counter() - start < 2


def test_a_large_photo_has_its_own_pipeline_with_the_same_weights(worker, photo, monkeypatch):
    alone = worker.finish(photo, Settings(), lambda *_, **__: None).restored.pixels
    monkeypatch.setattr("textir.space.worker.FAST_PIXELS", 100)
    aside = worker.pipe_for(photo)
    assert aside is not worker.model.pipe
    parts = [pipe.restorer.state_dict() for pipe in (aside, worker.model.pipe)]
    assert all(a.data_ptr() == b.data_ptr() for a, b in zip(*(p.values() for p in parts)))
    with worker.model.pipe.exclusive():  # a small one is at work
        large = worker.finish(photo, Settings(), lambda *_, **__: None).restored.pixels
    np.testing.assert_array_equal(large, alone)


def test_what_cannot_be_stopped_is_left_alone():
    release = threading.Event()
    run = waiting(release.wait)
    assert isinstance(next(run), Beat)
    start = time.perf_counter()
    run.close()
    assert time.perf_counter() - start < 2
    release.set()
    *_, value = waiting(lambda: 7)
    assert value == 7


def test_the_rest_of_the_time_is_told_once_it_is_known():
    assert remaining(1, 0.05) == "Restoring, 5%"
    assert remaining(10, 0.5) == "Restoring, 50%, about 10 s left"


def test_work_of_several_photos_ends_at_its_next_check_when_nobody_waits():
    begun, ended = threading.Event(), threading.Event()

    def work(check):
        begun.set()
        try:
            while True:
                check()
                time.sleep(0.01)
        finally:
            ended.set()

    run = stoppable(work)
    assert isinstance(next(run), Beat) and begun.is_set() and not ended.is_set()
    run.close()
    assert ended.is_set()
    *_, last = stoppable(lambda check: 7)
    assert last == 7
    with pytest.raises(ValueError, match="why"):
        list(stoppable(lambda check: int("why")))


def test_a_check_ends_a_run_to_the_end(worker, photo):
    def check():
        raise Stopped

    with pytest.raises(Stopped):
        worker.finish(photo, Settings(), lambda *_, **__: None, check=check)
    assert worker.model.pipe.exclusive().acquire(timeout=5)
    worker.model.pipe.exclusive().release()
