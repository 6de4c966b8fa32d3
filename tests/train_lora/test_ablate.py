"""The ablations compare what they say, on the same photos."""

import json

import pytest
import torch

from tests.tools import tiny
from tests.train_lora import write_photos
from textir.evaluation.rows import read_rows
from textir.images.picture import Picture, write_picture
from train_lora.mini import ablate


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("chain")
    tiny.pipeline().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("sets")
    for number in range(2):
        photo = Picture(tiny.image(40, 56, number)[0].movedim(0, -1).numpy())
        for place in ("CBSD68/target", "SOTS_indoor25/target", "SOTS_indoor25/input"):
            write_picture(folder / place / f"{number}.png", photo)
    return str(folder)


def run(name, checkpoint, sets, output, *options) -> list:
    arguments = [name, "--data", sets, "--output_dir", str(output), "--checkpoint", checkpoint]
    return ablate.main([*arguments, "--limit", "1", *map(str, options)])


def test_words_are_compared_cleaned_and_degraded(checkpoint, sets, tmp_path):
    results = run("cleaning", checkpoint, sets, tmp_path)
    ways = [f"{kind}, strength {s}" for kind in ("degraded", "cleaned") for s in (0.5, 1)]
    for row in results:
        assert list(row.psnr) == ["input", "none", *ways] and len(row.images) == 1
        assert {"input", "cleaned, strength 1", "cleaned, strength 1, coarse"} <= set(
            row.guidance_psnr
        )
    assert read_rows(tmp_path / "cleaning.json") == results
    text = (tmp_path / "cleaning.md").read_text()
    assert "cleaned, strength 1 - none [95 %]" in text and "PSNR of the guidance" in text


def test_words_that_describe_the_photo_are_compared_with_pseudo_words(
    checkpoint, sets, tmp_path, monkeypatch
):
    monkeypatch.setattr(ablate, "describe", lambda pipe, image: "dog")
    results = run("implicit", checkpoint, sets, tmp_path, "--row", "haze 1.5")
    (row,) = results
    assert list(row.psnr) == ["input", "none", "implicit", "explicit", "both"]
    assert row.psnr["implicit"] != row.psnr["explicit"]


def test_numbers_of_words_are_trained_alike(checkpoint, sets, tmp_path, monkeypatch):
    monkeypatch.setattr(ablate, "WORD_SIDE", 32)
    photos = write_photos(tmp_path / "photos")
    options = ["--train_data_dir", photos, "--steps", 1, "--counts", 2, 3, "--row", "haze 1.5"]
    (row,) = run("words", checkpoint, sets, tmp_path / "out", *options)
    assert list(row.psnr) == ["input", "none", "2 words", "3 words"]
    for count in (2, 3):
        config = tmp_path / "out" / f"words-{count}" / "cleaner" / "pipeline" / "mapper"
        assert json.loads((config / "config.json").read_text())["num_words"] == count


def test_numbers_of_words_that_do_not_fit_are_refused_before_training(checkpoint, sets, tmp_path):
    photos = write_photos(tmp_path / "photos")
    options = ["--train_data_dir", photos, "--steps", 1, "--counts", 2, 500]
    with pytest.raises(ValueError, match=r"`--counts` may be up to .* got 500"):
        run("words", checkpoint, sets, tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_places_of_fusion_are_trained_alike(checkpoint, sets, tmp_path, monkeypatch):
    monkeypatch.setattr(ablate, "SIDES", (24, 36))
    photos = write_photos(tmp_path / "photos")
    options = ["--train_data_dir", photos, "--steps", 1, "--row", "haze 1.5"]
    (row,) = run("fusion", checkpoint, sets, tmp_path / "out", *options)
    assert list(row.psnr) == ["input", "none", "encoder", "decoder", "both"]
    folder = tmp_path / "out" / "fusion-encoder" / "pipeline" / "restorer"
    assert json.loads((folder / "config.json").read_text())["fusion"] == "encoder"


def test_tags_of_the_content_are_the_words():
    class Describing:
        def describe(self, image):
            tags = {
                "things": [{"tag": "dog"}, {"tag": "cat"}],
                "place": [],
                "faults": [{"tag": "x"}],
            }
            return [tags]

    assert ablate.describe(Describing(), torch.zeros(1, 3, 16, 24)) == "dog"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["words"], "words trains: give `--train_data_dir`"),
        (["cleaning", "--steps", "3"], "cleaning trains nothing"),
        (["fusion", "--train_data_dir", "x", "--counts", "3"], "`--counts` belongs to words"),
    ],
)
def test_options_that_would_do_nothing_are_refused(options, message, sets, tmp_path, capsys):
    with pytest.raises(SystemExit):
        ablate.main([*options, "--data", sets, "--output_dir", str(tmp_path)])
    assert message in capsys.readouterr().err
