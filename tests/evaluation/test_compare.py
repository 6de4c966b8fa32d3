"""A comparison gives every arm the same images and keeps what is blind apart from what is told."""

import json

import numpy as np
import pytest

from pipelines.pipeline_text_guided_restoration import TASKS
from tests.evaluation.test_suite import soft_photo
from tests.tools import tiny
from textir.evaluation import compare as compare_all
from textir.evaluation import read_rows
from textir.evaluation.compare import TASK_OF, list_arms
from textir.evaluation.metrics import psnr
from textir.evaluation.protocol import PRESETS
from textir.evaluation.rivals import check_rivals, fitting_rivals
from textir.evaluation.scores import load_pairs
from textir.images.picture import Picture, to_tensor, write_picture


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    for k in range(3):
        clean = soft_photo(48 + 8 * k, 64, k)
        write_picture(folder / "rain" / "target" / f"{k}.png", Picture(clean))
        write_picture(folder / "rain" / "input" / f"{k}.png", Picture(clean * 0.5))
    return folder


@pytest.fixture(scope="module")
def pipe():
    return tiny.pipeline()


def test_every_arm_is_measured_on_the_same_images(root, pipe):
    pipes = {"one": pipe, "two": tiny.pipeline(seed=3)}
    result = compare_all(
        pipes, [str(root / "rain")], ["noise:25"], rivals=["fitting", "CLAHE"], limit=2
    )
    (row,) = result.rows
    arms = [f"{name} {task}" for name in pipes for task in ("blind", "auto", "told")]
    denoisers = fitting_rivals(["noise"])
    assert set(row.psnr) == {"input", *arms, *denoisers, "CLAHE"} and len(row.images) == 2
    assert set(row.seconds) == set(row.psnr) - {"input"}
    pair = next(load_pairs(root / "rain", "noise:25"))
    image = to_tensor(pair.degraded)
    expected = {
        "one blind": pipe.restore(image)[0],
        "one told": pipe(image, task="denoise", output_type="pt").images,
        "two auto": pipes["two"](image, output_type="pt").images,
    }
    for arm, restored in expected.items():
        pixels = restored[0].detach().movedim(0, -1).numpy()
        assert row.psnr[arm][0][0] == pytest.approx(psnr(pixels, pair.clean), abs=1e-4), arm
    assert result.reference == "one blind" and ("one told", "one blind") in result.differences
    assert "| one told - one blind [95 %] |" in result.table()


def test_ways_of_guidance_and_strengths_are_arms(root, pipe):
    result = compare_all(
        {"mini": pipe},
        [f"rain100l:{root / 'rain'}"],
        tasks=["told"],
        guidance=["none", "cleaned"],
        strengths=[0, 1],
        limit=1,
    )
    (row,) = result.rows
    none, off, on = (
        row.psnr[f"mini told, {way}"][0][0]
        for way in ("none", "cleaned, strength 0", "cleaned, strength 1")
    )
    assert none == off != on and row.row == "rain100l"


def test_one_arm_is_made_for_what_is_blind():
    names = [arm.name for arm in list_arms(["a"], ["blind", "auto"], ["degraded"], [0.5, 1])]
    assert names == ["a blind", "a auto, degraded, strength 0.5", "a auto, degraded, strength 1"]


def test_seeds_protocol_and_further_measures_are_kept(root, pipe, tmp_path):
    result = compare_all(
        {"mini": pipe},
        [str(root / "rain")],
        ["noise:25"],
        tasks=["blind"],
        protocol=PRESETS["promptir"],
        seeds=(0, 1),
        reference="input",
    )
    (row,) = result.rows
    assert np.array(row.psnr["mini blind"]).shape == (2, 3)
    assert row.psnr["input"][0] != row.psnr["input"][1]
    assert "multiple of 16" in result.protocol and "seeds 0, 1" in result.protocol
    written = result.to_dict()
    assert written["psnr_differences"][0]["arm"] == "mini blind"
    assert written["machine"]["cores"] and len(written["code_sha256"]) == 64
    (tmp_path / "c.json").write_text(json.dumps(written))
    assert read_rows(tmp_path / "c.json") == result.rows


def test_a_measure_has_a_table_of_its_own(tmp_path, pipe):
    write_picture(tmp_path / "a.png", Picture(soft_photo(96, 192)))
    result = compare_all({"m": pipe}, [str(tmp_path)], ["noise:25"], ["blind"], with_niqe=True)
    assert "NIQE\n\n| set | images | input | m blind |" in result.table()


def test_what_cannot_be_told_is_left_out_and_said(root, pipe):
    blind = tiny.pipeline(restorer=tiny.restorer())
    pipes = {"told": pipe, "deaf": blind}
    result = compare_all(pipes, [f"rain100l:{root / 'rain'}"], tasks=["told", "auto"], limit=1)
    assert "deaf told" not in result.rows[0].psnr and "deaf auto" in result.rows[0].psnr
    assert result.left_out == ["deaf told on rain100l: the checkpoint cannot be told of rain"]
    assert "Left out:\n\n- deaf told on rain100l" in result.table()
    result = compare_all({"a": pipe}, [str(root / "rain")], ["clean"], ["told"], limit=1)
    assert result.left_out == ["a told on rain, clean: there is nothing to tell"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": []}, "Name what shall be measured"),
        ({}, "`told` needs to know what .* suffers from: name the benchmark"),
        ({"tasks": ["defog"]}, "`task` must be auto, or one or several of"),
        ({"tasks": ["auto"], "guidance": ["prompt"]}, "paints from your words alone"),
        ({"tasks": ["auto"], "guidance": ["none"], "strengths": [1]}, "Strengths are those of"),
        ({"tasks": ["auto"], "strengths": [2]}, "must lie in"),
        ({"rivals": ["median"]}, "Rivals are non-local means, .*; got median"),
        ({"tasks": ["auto"], "reference": "other"}, "must be one of input, mini auto; got 'other'"),
        ({"degradations": ["fog"]}, "fog"),
    ],
)
def test_wishes_that_cannot_be_fulfilled_are_refused_before_the_work(root, pipe, options, message):
    options = {"data": [str(root / "rain")], **options}
    with pytest.raises(ValueError, match=message):
        compare_all({"mini": pipe}, **options)


def test_rivals_fit_what_is_wrong(monkeypatch):
    assert fitting_rivals(["haze"]) == ["dark channel"] and fitting_rivals(["rain"]) == []
    monkeypatch.setattr("textir.evaluation.rivals.find_spec", lambda name: None)
    assert "CBM3D" not in fitting_rivals(["noise"])
    with pytest.raises(ValueError, match="needs the package bm3d: `pip install bm3d`"):
        check_rivals(["CBM3D"])


def test_cbm3d_denoises():
    pytest.importorskip("bm3d")
    from textir.evaluation.rivals import cbm3d

    clean = soft_photo(96, 96)
    noisy = (clean + np.random.default_rng(0).normal(0, 0.1, clean.shape)).astype(np.float32)
    assert psnr(cbm3d(noisy), clean) > psnr(noisy, clean) + 6


def test_unsharp_masking_sharpens():
    from kornia.filters import gaussian_blur2d

    from textir.evaluation.rivals import sharpen

    clean = soft_photo(96, 96)
    clean[20:60, 30:70] *= 0.4
    blurred = gaussian_blur2d(to_tensor(clean), 9, (1.5, 1.5))[0].movedim(0, -1).numpy()
    assert psnr(sharpen(blurred), clean) > psnr(blurred, clean)


def test_tasks_are_those_of_the_pipeline():
    assert {label: task for task, label in TASKS.items()} == TASK_OF
