"""`compare` measures several ways on the same images and writes what a card needs."""

import json

import pytest
from typer.testing import CliRunner

from tests.evaluation.test_suite import soft_photo
from tests.tools import tiny
from tests.tools.space import save_checkpoint
from textir.cli import app
from textir.images.picture import Picture, write_picture


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chain")
    tiny.pipeline().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def photos(tmp_path):
    for name in ("a", "b"):
        write_picture(tmp_path / "photos" / f"{name}.png", Picture(soft_photo(48, 64, ord(name))))
    return tmp_path / "photos"


def run(*arguments):
    return CliRunner().invoke(app, ["compare", *map(str, arguments)])


def test_tables_and_scores_are_written(photos, checkpoint, tmp_path):
    options = ["--degradation", "noise:25", "--degradation", "jpeg:20", "--task", "blind"]
    options += ["--task", "told", "--guidance", "degraded", "--rival", "fitting"]
    files = ["--json", tmp_path / "out" / "c.json", "--markdown", tmp_path / "out" / "c.md"]
    result = run("--data", photos, "--checkpoint", checkpoint, *options, *files)
    assert result.exit_code == 0, result.output
    written = json.loads((tmp_path / "out" / "c.json").read_text())
    assert [row["row"] for row in written["rows"]] == ["photos, noise:25", "photos, jpeg:20"]
    assert set(written["rows"][1]["psnr"]) == {
        "input",
        f"{checkpoint} blind",
        f"{checkpoint} told, degraded",
        "total variation",
    }
    assert len(written["weights"][checkpoint]) == 64 and written["data_sha256"]
    assert written["command"].startswith("python -m textir")
    table = (tmp_path / "out" / "c.md").read_text()
    assert table in result.output and "PSNR in dB\n\n| set | images | input |" in table


def test_several_checkpoints_are_named_in_the_weights(photos, checkpoint, tmp_path):
    other = tmp_path / "other"
    tiny.pipeline(seed=1).save_pretrained(other)
    paths = ["--checkpoint", checkpoint, "--checkpoint", other]
    options = ["--degradation", "noise:25", "--task", "auto", "--limit", "1"]
    result = run("--data", photos, *paths, *options, "--json", tmp_path / "c.json")
    assert result.exit_code == 0, result.output
    written = json.loads((tmp_path / "c.json").read_text())
    assert set(written["weights"]) == {checkpoint, str(other)}
    assert written["psnr_differences"][0]["arm"] == f"{other} auto"


def test_an_adapter_is_a_column_beside_its_checkpoint(photos, tmp_path):
    checkpoint = save_checkpoint(tmp_path / "chain")
    options = ["--degradation", "noise:25", "--task", "auto", "--guidance", "none", "--limit", "1"]
    options += ["--checkpoint", checkpoint, "--adapter", "derain", "--json", tmp_path / "c.json"]
    result = run("--data", photos, *options)
    assert result.exit_code == 0, result.output
    written = json.loads((tmp_path / "c.json").read_text())
    names = [str(checkpoint), f"{checkpoint} + derain"]
    assert len(set(written["weights"].values())) == 2 and set(written["weights"]) == set(names)
    assert written["psnr_differences"][0]["arm"] == f"{names[1]} auto, none"
    assert written["psnr_differences"][0]["mean"] != 0


def test_adapters_belong_to_one_checkpoint(photos, checkpoint):
    options = ["--degradation", "noise:25", "--adapter", "derain", "--checkpoint", "mini"]
    result = run("--data", photos, "--checkpoint", checkpoint, *options)
    assert result.exit_code == 2 and "needs one `--checkpoint`" in result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--protocol", "psnr"], "The protocol must be one of plain, promptir, restormer-y"),
        (["--task", "told"], "lie in input/ and target/"),
        (["--degradation", "noise:25", "--rival", "magic"], "Rivals are non-local means"),
        (["--noise", "clipped"], "Leave out --noise: it is done to images that"),
    ],
)
def test_what_cannot_be_compared_is_said(photos, checkpoint, options, message):
    result = run("--data", photos, "--checkpoint", checkpoint, *options)
    assert result.exit_code == 2 and message in result.output
