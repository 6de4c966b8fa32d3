"""A suite measures what it says: arms, seeds, intervals; and methods without learning do what they
are for."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from tests.tools import tiny
from textir.cli import app
from textir.degradations import LABELS
from textir.evaluation import suite
from textir.evaluation.edit_rivals import EDIT_BASELINES
from textir.evaluation.metrics import psnr
from textir.evaluation.rivals import clahe, dark_channel, non_local_means, total_variation, wavelet
from textir.evaluation.rows import read_rows
from textir.evaluation.scores import load_pairs
from textir.evaluation.suite import (
    Row,
    RowScores,
    guidance_table,
    run_edits,
    run_suite,
    run_suites,
    suite_tables,
    table,
)
from textir.images.picture import Picture, read_picture, write_picture

ROWS = (
    Row("noise", "clean", "noise:25", baselines=("total variation",)),
    Row("pairs", "pairs", part=(1, 2, 1)),
)
TOLD = (Row("noise told", "clean", "noise:25", baselines=("wavelet",), told="denoise"),)


def soft_photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 5, 6, generator=generator)
    return (
        torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
        .clamp(0, 1)[0]
        .movedim(0, -1)
        .numpy()
        .copy()
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    for k in range(3):
        clean = soft_photo(48 + 8 * k, 64, k)
        write_picture(folder / "clean" / f"{k}.png", Picture(clean))
        write_picture(folder / "pairs" / "target" / f"{k}.png", Picture(clean))
        write_picture(folder / "pairs" / "input" / f"{k}.png", Picture(clean * 0.5))
    return folder


def test_every_arm_is_measured_for_every_seed(root):
    noise, pairs = run_suite(tiny.pipeline(), root, ROWS, seeds=(0, 1), with_baselines=True)
    assert noise.images == ["0", "1", "2"] and pairs.images == ["1"]
    assert set(noise.psnr) == {"input", "none", "degraded", "cleaned", "oracle", "total variation"}
    assert set(pairs.psnr) == set(noise.psnr) - {"total variation"}
    assert all(
        np.array(values).shape == (2, 3) for values in (*noise.psnr.values(), *noise.ssim.values())
    )
    assert (
        noise.psnr["input"][0] != noise.psnr["input"][1]
        and pairs.psnr["input"][0] == pairs.psnr["input"][1]
    )
    assert {"cleaned", "cleaned, coarse", "input, coarse", "none"} <= set(noise.guidance_psnr)
    assert noise.guidance_psnr["oracle"][0] == [float("inf")] * 3


def test_the_arms_are_what_the_pipeline_returns(root):
    pipe = tiny.pipeline()
    (scores,) = run_suite(pipe, root, ROWS[1:])
    image = torch.from_numpy(read_picture(root / "pairs" / "input" / "1.png").pixels).movedim(
        -1, 0
    )[None]
    clean = read_picture(root / "pairs" / "target" / "1.png").pixels
    for arm in ("none", "degraded", "cleaned"):
        restored = pipe(
            image, guidance=arm, generator=torch.Generator().manual_seed(0), output_type="np"
        ).images[0]
        assert scores.psnr[arm] == [[pytest.approx(psnr(restored, clean), abs=1e-6)]]


def test_the_default_of_a_checkpoint_is_an_arm_of_its_own(root):
    for helped, same in (([], "none"), (LABELS, "cleaned")):
        pipe = tiny.pipeline(guided_degradations=helped)
        with torch.no_grad():
            pipe.detector.presence.bias += 50  # sees everything
        (scores,) = run_suite(pipe, root, ROWS[1:])
        assert (
            scores.psnr["default"] == scores.psnr[same]
            and scores.psnr["none"] != scores.psnr["cleaned"]
        )
        assert "default - none" in table([scores])


def test_a_row_that_is_told_compares_blind_auto_and_told(root):
    pipe, other = tiny.pipeline(), tiny.pipeline(seed=3)
    (scores,) = run_suite(pipe, root, TOLD, limit=1, with_baselines=True, against=other)
    assert set(scores.psnr) == {"input", "blind", "auto", "told", "against", "wavelet"}
    (pair,) = load_pairs(root / "clean", "noise:25", limit=1)
    image = torch.from_numpy(pair.degraded).movedim(-1, 0)[None]
    calls = {
        "blind": pipe.restore(image)[0],
        "auto": pipe(image, output_type="pt").images,
        "told": pipe(image, output_type="pt", task="denoise").images,
        "against": other(image, output_type="pt").images,
    }
    for arm, restored in calls.items():
        expected = psnr(restored[0].detach().movedim(0, -1).numpy(), pair.clean)
        assert scores.psnr[arm] == [[pytest.approx(expected, abs=1e-4)]], arm
    assert "told - blind [95 %]" in table([scores]) and "auto - against [95 %]" in table([scores])


def test_what_shall_stay_belongs_to_the_target(root):
    row = Row("kept", "clean", "noise8:15", told="denoise", kept="haze:1")
    (scores,) = run_suite(tiny.pipeline(), root, [row], limit=1)
    assert set(scores.psnr) == {"input", "blind", "auto", "told", "keep"}
    # The noise alone: the target is hazy too.
    assert scores.psnr["input"][0][0] == pytest.approx(24.6, abs=1)


def test_of_a_blind_restorer_a_row_has_no_told_arm(root):
    pipe = tiny.pipeline(restorer=tiny.restorer())
    (scores,) = run_suite(pipe, root, TOLD, limit=1)
    assert set(scores.psnr) == {"input", "auto"}


def test_without_a_chain_only_the_restorer_is_measured(root):
    pipe = tiny.pipeline(unet=None, matcher=None)
    (scores,) = run_suite(pipe, root, ROWS[:1], limit=2)
    assert set(scores.psnr) == {"input", "none"} and len(scores.images) == 2
    assert guidance_table([scores]) == "" and "cleaned" not in table([scores])


def test_a_gain_has_an_interval_over_images():
    scores = RowScores(
        "x", ["a", "b"], {"none": [[20, 30], [20, 30]], "cleaned": [[21, 30], [23, 30]]}
    )
    mean, low, high = scores.difference("cleaned", "none")
    assert mean == pytest.approx(1) and low == pytest.approx(0) and high == pytest.approx(2)
    assert "+1.00 [+0.00, +2.00]" in table([scores])


def test_equal_images_do_not_make_a_mean_infinite():
    scores = RowScores("x", ["a", "b"], {"none": [[float("inf"), 40.0]], "cleaned": [[50.0, 40.0]]})
    assert scores.mean("none") == 70 and scores.difference("cleaned", "none")[0] == -25


def test_a_missing_set_is_named_before_anything_is_measured(root):
    with pytest.raises(
        ValueError, match="lacks the sets CBSD68, CC15, GoPro_street4, LOL_eval15, Rain100L_30"
    ):
        run_suite(tiny.pipeline(), root)


def test_the_command_prints_tables_and_writes_every_score(root, tmp_path, monkeypatch):
    monkeypatch.setitem(suite.SUITES, "mini", ROWS)
    tiny.pipeline().save_pretrained(tmp_path / "chain")
    arguments = [
        "suite",
        "mini",
        "--data",
        str(root),
        "--checkpoint",
        str(tmp_path / "chain"),
        "--seeds",
        "2",
    ]
    result = CliRunner().invoke(
        app, [*arguments, "--limit", "1", "--tile", "64", "--json", str(tmp_path / "s.json")]
    )
    assert result.exit_code == 0, result.output
    assert "tiles of 64 pixels" in result.output and "| cleaned - none [95 %] |" in result.output
    written = json.loads((tmp_path / "s.json").read_text())
    assert len(written["rows"][0]["psnr"]["cleaned"]) == 2 and written["weights"]["checkpoint"]


def test_rows_of_a_suite_are_chosen_by_name(root, tmp_path, monkeypatch):
    monkeypatch.setitem(suite.SUITES, "mini", ROWS)
    tiny.pipeline().save_pretrained(tmp_path / "chain")
    arguments = [
        "suite",
        "mini",
        "--data",
        str(root),
        "--checkpoint",
        str(tmp_path / "chain"),
        "--row",
        "pair",
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "| pairs |" in result.output and "| noise |" not in result.output


def test_edits_are_rows_beside_methods_without_learning(root):
    rows = (Row("holes", "clean", "strokes:0.25"), Row("enlarge", "clean", "down:2"))

    def edit(case):
        kind = "harmonic" if case.task == "inpaint" else "bicubic"
        return EDIT_BASELINES[case.task][kind](case)

    holes, enlarged = run_edits(edit, root, rows, seeds=(0, 1), limit=2)
    assert holes.images == ["0", "1"] and len(holes.digests) == 4
    assert holes.figures["inside_psnr"]["edit"] == holes.figures["inside_psnr"]["harmonic"]
    assert np.array(holes.figures["inside_psnr"]["mean"]).shape == (2, 2)
    assert enlarged.psnr["edit"] == enlarged.psnr["bicubic"] and enlarged.seconds["edit"]
    for row in (holes, enlarged):
        row.suite = "edit"
    text = suite_tables([holes, enlarged])
    assert "PSNR in holes, in dB" in text and "edit - harmonic [95 %]" in text


def test_every_row_of_edits_can_be_measured(root):
    kinds = [Row(row.name, "clean", row.degradation) for row in suite.SUITES["edit"]]
    results = run_edits(None, root, kinds, limit=1)
    assert [row.row for row in results] == [row.name for row in suite.SUITES["edit"]]
    colours = results[-1]
    assert {"colorfulness", "difference"} <= colours.figures.keys()
    assert colours.difference("tint", "gray")[0] != 0
    text = suite_tables(results)
    assert "Colourfulness, as a ratio" in text and "psnr_y" not in text


def test_all_suites_are_one_command(root, tmp_path, monkeypatch):
    suites = {"mini": TOLD, "edit": (Row("enlarge", "clean", "down:2"),)}
    monkeypatch.setattr(suite, "SUITES", suites)
    tiny.pipeline().save_pretrained(tmp_path / "chain")
    tiny.editing_pipeline().save_pretrained(tmp_path / "editor")
    paths = ["--checkpoint", str(tmp_path / "chain"), "--editor", str(tmp_path / "editor")]
    files = ["--json", str(tmp_path / "s.json"), "--markdown", str(tmp_path / "s.md")]
    result = CliRunner().invoke(
        app, ["suite", "all", "--data", str(root), "--limit", "1", *paths, *files]
    )
    assert result.exit_code == 0, result.output
    written = json.loads((tmp_path / "s.json").read_text())
    assert [row["suite"] for row in written["rows"]] == ["mini", "edit"]
    assert set(written["weights"]) == {"checkpoint", "editor"}
    assert written["machine"] and written["data_sha256"] and written["rows"][0]["seconds"]["told"]
    text = (tmp_path / "s.md").read_text()
    assert text.count("## ") == 2 and suite_tables(read_rows(tmp_path / "s.json")) in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["maxi"], "Unknown suite 'maxi'; known are mini, guidance, keep, edit, all"),
        (["all", "--row", "fog"], "No row of any suite starts with fog"),
        (["edit", "--niqe", "--tile", "64"], "Leave out --niqe, --tile: edits always have"),
        (["mini"], "lacks the sets"),
        (["mini", "--row", "fog"], "No row of mini starts with fog; it has noise 15, noise 25"),
    ],
)
def test_what_a_suite_cannot_do_is_said(arguments, message, tmp_path):
    result = CliRunner().invoke(app, ["suite", *arguments, "--data", str(tmp_path)])
    assert result.exit_code == 2 and message in result.output


@pytest.mark.parametrize("method", [non_local_means, total_variation, wavelet])
def test_denoisers_without_learning_denoise(method):
    clean = soft_photo(96, 96)
    noisy = (clean + np.random.default_rng(0).normal(0, 0.1, clean.shape)).astype(np.float32)
    assert psnr(method(noisy), clean) > psnr(noisy, clean) + 4


def test_the_dark_channel_lifts_a_veil():
    clean = soft_photo(96, 128)
    clean[::4] *= 0.1  # the prior: every neighbourhood has something dark
    transmission = np.full((96, 1, 1), 0.4, np.float32)
    transmission[:24] = 0.01  # a sky shows the colour of the air
    veiled = clean * transmission + 0.9 * (1 - transmission)
    assert psnr(dark_channel(veiled)[40:], clean[40:]) > psnr(veiled[40:], clean[40:]) + 4


def test_clahe_brings_out_a_dark_photo():
    clean = soft_photo(96, 96)
    assert psnr(clahe(clean * 0.25), clean) > psnr(clean * 0.25, clean) + 3


def test_rows_are_told_as_soon_as_they_are_measured(root):
    told: list[list[str]] = []
    suites = {"first": ROWS[:1], "second": ROWS[1:]}
    results = run_suites(
        suites, root, tiny.pipeline(), on_row=lambda rows: told.append([one.suite for one in rows])
    )
    assert told == [["first"], ["first", "second"]]
    assert [row.row for row in results] == [row.name for row in ROWS]
