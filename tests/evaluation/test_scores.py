"""Numbers are only worth something if the same command gives the same number."""

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines import TextGuidedRestorationPipeline
from tests.tools import tiny
from textir.data.photos import find_entries
from textir.evaluation.metrics import Protocol, psnr
from textir.evaluation.scores import contact_sheet, evaluate, load_pairs
from textir.images.picture import Picture, write_picture


@pytest.fixture
def pairs(tmp_path):
    for name in ("b", "a"):
        for folder, shift in (("input", 20), ("target", 0)):
            (tmp_path / folder).mkdir(exist_ok=True)
            array = np.full((24, 40, 3), 100 + shift + ord(name), np.uint8)
            Image.fromarray(array).save(tmp_path / folder / f"{name}.png")
    return tmp_path


@pytest.fixture(scope="module")
def pipe():
    return TextGuidedRestorationPipeline(restorer=tiny.restorer(guided=False))


def test_pairs_come_sorted_by_name(pairs):
    assert [entry.name for entry in find_entries(pairs)] == ["a", "b"]


def test_a_missing_twin_is_named(pairs):
    (pairs / "target" / "b.png").unlink()
    with pytest.raises(ValueError, match="no twin of the same name: b"):
        find_entries(pairs)


def test_pairs_of_different_size_are_named(pairs):
    Image.new("RGB", (41, 24)).save(pairs / "target" / "b.png")
    with pytest.raises(ValueError, match="is 40 x 24 but its twin"):
        list(load_pairs(pairs))


def test_a_degradation_depends_on_file_name_and_seed_only(pairs):
    both = {pair.name: pair.digest for pair in load_pairs(pairs / "target", "noise:25")}
    (pairs / "target" / "a.png").unlink()
    alone = {pair.name: pair.digest for pair in load_pairs(pairs / "target", "noise:25")}
    assert alone["b"] == both["b"] and both["a"] != both["b"]
    assert next(load_pairs(pairs / "target", "noise:25", seed=1)).digest != both["b"]


def test_a_target_folder_serves_as_clean_images(pairs):
    assert len(list(load_pairs(pairs, "noise:25"))) == 2


def test_scores_are_those_of_the_pictures(pairs, pipe):
    result = evaluate(pipe, pairs, seed=3)
    assert [score.name for score in result.scores] == ["a", "b"]
    for score, pair in zip(result.scores, load_pairs(pairs)):
        restored = pipe(
            torch.from_numpy(pair.degraded).movedim(-1, 0)[None], output_type="np"
        ).images[0]
        assert score.psnr == psnr(restored, pair.clean)
        assert score.input_psnr == psnr(pair.degraded, pair.clean) == pytest.approx(22.11, abs=0.01)
    assert result.summary()["images"] == 2


def test_the_result_says_how_it_was_measured(pairs, pipe):
    described = evaluate(
        pipe, pairs, protocol=Protocol("y", border=4), limit=1, guidance="none"
    ).to_dict()
    assert (
        described["protocol"].startswith("Y PSNR/SSIM") and "4 px border" in described["protocol"]
    )
    assert (
        described["settings"] == {"guidance": "none"}
        and described["versions"]["torch"] == torch.__version__
    )
    assert described["summary"]["images"] == 1


def test_a_contact_sheet_has_a_row_for_each_recipe():
    photo = Picture(tiny.image(30, 40)[0].movedim(0, -1).numpy())
    sheet = contact_sheet(photo, ["noise", "rain:heavy+haze:0.8"], width=80)
    assert sheet.pixels.shape == (2 * 60, 4 * 80, 3)


def test_what_is_kept_is_only_of_clean_images(tmp_path):
    for part in ("input", "target"):
        write_picture(tmp_path / part / "a.png", Picture(np.full((32, 40, 3), 0.5, np.float32)))
    with pytest.raises(ValueError, match="`kept` is done to clean images"):
        list(load_pairs(tmp_path, kept="haze:1"))


def test_an_evaluation_has_a_table_intervals_and_a_record(pairs, pipe):
    result = evaluate(pipe, pairs)
    lines = result.table().splitlines()
    assert lines[0] == "| image | input_psnr | psnr | input_ssim | ssim | seconds |"
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        "| a",
        "| b",
        "| mean",
        "| 95 % of the mean",
    ]
    low, high = result.intervals()["psnr"]
    assert low <= result.mean("psnr") <= high
    gain, low, high = result.gain()
    assert low <= gain <= high
    assert gain == pytest.approx(result.mean("psnr") - result.mean("input_psnr"))
    record = result.to_dict()
    assert len(record["data_sha256"]) == len(record["code_sha256"]) == 64
    assert record["machine"]["processor"] and record["intervals"]["ssim"]


def test_the_record_changes_with_the_clean_images(pairs, pipe):
    before = evaluate(pipe, pairs).to_dict()["data_sha256"]
    Image.new("RGB", (40, 24)).save(pairs / "target" / "b.png")
    assert evaluate(pipe, pairs).to_dict()["data_sha256"] != before


def test_further_measures_are_taken_where_they_are_asked_for(tmp_path, pipe):
    photo = tiny.image(96, 192)[0].movedim(0, -1).numpy()
    write_picture(tmp_path / "a.png", Picture(photo))
    plain = evaluate(pipe, tmp_path, "noise:25")
    assert plain.scores[0].niqe is None and "niqe" not in plain.summary()
    told = evaluate(pipe, tmp_path, "noise:25", with_niqe=True)
    assert told.summary()["niqe"] > 0 and "| input_niqe | niqe |" in told.table()
    with pytest.raises(ValueError, match="`network` must be alexnet or vgg16"):
        evaluate(pipe, tmp_path, "noise:25", with_lpips="squeezenet")
