"""Many photos through a pipeline: records, going on where a run has stopped, photos of one size
together, estimates."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines import TextGuidedRestorationPipeline
from tests.tools import tiny
from textir.images.editing import Editing
from textir.images.estimates import duration, estimate
from textir.images.jobs import Report, Run
from textir.images.picture import read_picture
from textir.images.plans import plan_jobs
from textir.images.records import read_record, record_file, weights_digest
from textir.images.restoration import Restoring


@pytest.fixture
def pipe():
    torch.manual_seed(1)
    return TextGuidedRestorationPipeline(restorer=tiny.restorer(guided=False, told=True))


@pytest.fixture
def photos(tmp_path):
    """in/a.png, in/b.jpg and in/deep/c.png, of two sizes."""
    generator = np.random.default_rng(0)
    for name, size in (("a.png", (24, 40)), ("b.jpg", (24, 40)), ("deep/c.png", (20, 32))):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (*size, 3), np.uint8)).save(path)
    return tmp_path / "in"


def jobs_of(photos, name="out"):
    return plan_jobs([photos], photos.parent / name, recursive=True)


def made(outcomes) -> list[str]:
    """The photos that were worked on."""
    outcomes = list(outcomes)
    assert all(outcome.problem is None for outcome in outcomes)
    return [outcome.job.name for outcome in outcomes if not outcome.was_there]


def test_a_record_tells_how_a_result_was_made(pipe, photos):
    work = Restoring({"task": "denoise"}, seed=3)
    assert len(made(Run(work)(pipe, jobs_of(photos)))) == 3
    record = read_record(photos.parent / "out" / "deep" / "c.png")
    assert record["input"]["name"] == "deep/c.png" and record["input"]["width"] == 32
    assert record["settings"]["task"] == "denoise" and record["settings"]["seed"] == 3
    assert record["done"]["removed"] == ["noise"] and record["weights"]["sha256"]
    assert record["versions"]["torch"] == torch.__version__ and record["machine"]["threads"]


def test_what_is_finished_is_known_by_photo_settings_weights_and_result(pipe, photos):
    jobs, run = jobs_of(photos), Run(Restoring())
    out = photos.parent / "out"
    made(run(pipe, jobs))
    assert made(run(pipe, jobs)) == []
    assert made(Run(Restoring(seed=1))(pipe, jobs)) == ["a.png", "b.jpg", "deep/c.png"]
    made(run(pipe, jobs))
    Image.open(photos / "a.png").transpose(Image.Transpose.ROTATE_180).save(photos / "a.png")
    assert made(run(pipe, jobs)) == ["a.png"]
    (out / "a.png").write_bytes((out / "deep" / "c.png").read_bytes())
    assert made(run(pipe, jobs)) == ["a.png"]
    (out / "b.jpg").unlink()
    record_file(out / "deep" / "c.png").write_text("half of a reco")
    assert made(run(pipe, jobs)) == ["b.jpg", "deep/c.png"]
    torch.nn.init.zeros_(pipe.restorer.outro.weight)
    assert len(made(run(pipe, jobs))) == 3
    assert len(made(Run(Restoring(), resume=False)(pipe, jobs))) == 3


def test_what_exists_is_left_alone_if_asked_and_told_if_it_is_something_else(pipe, photos):
    jobs = jobs_of(photos)
    made(Run(Restoring())(pipe, jobs))
    (photos.parent / "out" / "a.png.json").unlink()
    outcomes = list(Run(Restoring(seed=1), skip_existing=True)(pipe, jobs))
    assert all(outcome.was_there for outcome in outcomes)
    assert [bool(outcome.notes) for outcome in outcomes] == [False, True, True]


def test_records_lie_beside_results_in_a_folder_unless_told_otherwise(pipe, photos):
    out = photos.parent
    made(Run(Restoring())(pipe, plan_jobs([photos / "a.png"], out / "named.png")))
    made(Run(Restoring(), sidecar=True)(pipe, plan_jobs([photos / "a.png"], out / "told.png")))
    made(Run(Restoring(), sidecar=False)(pipe, jobs_of(photos)))
    assert sorted(path.name for path in out.rglob("*.json")) == ["told.png.json"]


def test_photos_of_one_size_are_restored_together(photos):
    pipe = tiny.pipeline()
    together = Restoring({"num_inference_steps": 1}, intermediates=True)
    made(Run(together)(pipe, jobs_of(photos, "singles")))
    sizes = []
    handle = pipe.mapper.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    names = made(Run(together, batch_size=8)(pipe, jobs_of(photos, "batch")))
    handle.remove()
    assert sorted(sizes) == [1, 2] and sorted(names) == ["a.png", "b.jpg", "deep/c.png"]
    for path in (photos.parent / "singles").rglob("*.png"):
        other = photos.parent / "batch" / path.relative_to(photos.parent / "singles")
        gap = np.abs(read_picture(path).pixels - read_picture(other).pixels).max()
        assert gap <= 1 / 255 + 1e-6, path
    words = list((photos.parent / "batch").rglob("words.json"))
    singles = [photos.parent / "singles" / p.relative_to(photos.parent / "batch") for p in words]
    seen = [json.loads(path.read_text())["degradation"] for path in (*words, *singles)]
    assert len(words) == 3
    for one, other in zip(seen[:3], seen[3:]):
        assert one == pytest.approx(other, abs=1e-5)


def test_a_bad_photo_does_not_spoil_those_beside_it(photos):
    class Picky(Restoring):
        def __call__(self, pipe, jobs, pictures):
            if any(job.name == "b.jpg" for job in jobs):
                raise ValueError("not this one")
            return super().__call__(pipe, jobs, pictures)

    pipe = TextGuidedRestorationPipeline(restorer=tiny.restorer(guided=False))
    outcomes = list(Run(Picky(), batch_size=3)(pipe, jobs_of(photos)))
    assert {o.job.name: o.problem for o in outcomes} == {
        "a.png": None,
        "b.jpg": "not this one",
        "deep/c.png": None,
    }


def test_edits_are_known_by_their_masks_too(photos):
    pipe = tiny.editing_pipeline()
    mask = photos.parent / "mask.png"
    jobs = plan_jobs([photos / "a.png"], photos.parent / "out")
    run = Run(Editing({"prompt": ["a dog", "a street"]}, mask=mask))
    for column, expected in ((3, ["a.png"]), (3, []), (20, ["a.png"])):
        hole = np.zeros((24, 40), np.uint8)
        hole[4:12, column : column + 9] = 255
        Image.fromarray(hole).save(mask)
        assert made(run(pipe, jobs)) == expected
    record = read_record(photos.parent / "out" / "a-2.png")
    assert record["done"]["task"] == "inpaint" and "street" in record["done"]["words"]


def test_weights_are_what_a_pipeline_computes_with(pipe):
    before = weights_digest(pipe)
    assert weights_digest(pipe) == before
    with torch.no_grad():
        next(pipe.restorer.parameters()).view(-1)[0] += 1e-3
    assert weights_digest(pipe) != before


def test_an_estimate_is_measured_and_writes_nothing(pipe, photos):
    jobs, run = jobs_of(photos), Run(Restoring())
    told = estimate(run, pipe, jobs)
    assert (told.total, told.earlier, told.pixels) == (3, 0, 2 * 24 * 40 + 20 * 32)
    assert told.seconds > 0 and "measured on" in told.basis
    assert not (photos.parent / "out").exists()
    next(iter(run(pipe, jobs)))
    (photos / "b.jpg").write_bytes(b"")
    told = estimate(run, pipe, jobs)
    assert told.earlier == 1 and told.left == 1 and "0 bytes" in told.bad[0][1]
    assert duration(40) == "40 s" and duration(9000) == "2.5 h"


def test_a_report_counts_what_several_processes_did():
    one = Report(3, made=2, earlier=1, pixels=10**6, seconds=2.0)
    other = Report(2, made=1, bad=[("x.png", "is empty")], pixels=10**6, seconds=4.0)
    lines = Report.joined([one, other]).lines("restored")
    assert lines[0] == "4 of 5 images restored (1 of them earlier), 1 bad."
    assert lines[1] == "4.0 s; 0.75 images and 0.500 megapixels a second."
    assert lines[2] == "bad: x.png: is empty"
