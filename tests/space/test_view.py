"""What a run looks like on the page."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from pipelines import TextGuidedRestorationPipeline
from tests.tools import tiny
from textir.images.explanation import Explanation
from textir.images.picture import Picture, read_picture, write_picture
from textir.space.batch_tab import in_html
from textir.space.model import Model
from textir.space.page import render
from textir.space.view import (
    Figure,
    eight_bit,
    explain,
    outcome,
    page_copy,
    shows,
    strip,
    summarise,
    word_table,
)
from textir.space.worker import Result


@pytest.fixture(scope="module")
def model():
    return Model(TextGuidedRestorationPipeline(restorer=tiny.restorer(guided=False)), "mini", "cpu")


def pixels(channels: int, value: float = 0.5) -> np.ndarray:
    return np.full((16, 24, channels), value, dtype=np.float32)


def picture() -> Picture:
    return Picture(pixels(3))


def test_words_of_strangers_are_escaped():
    figure = Figure(np.zeros((16, 24), np.uint8), "<b>", 'a "quoted" <i>')
    assert "<i>" not in strip([figure]) and "&lt;b&gt;" in strip([figure])
    assert "<script>" not in word_table([{"before": ["<script>"], "after": ["<script>"]}])


def test_what_cleaning_changed_is_marked():
    table = word_table([{"before": ["rain", "street"], "after": ["street", "sun"]}])
    assert "<td>street, <mark>sun</mark></td>" in table and "<td>rain, street</td>" in table


def test_without_words_there_is_no_table():
    assert word_table([]) == ""


def test_gray_and_colour_become_eight_bit():
    assert eight_bit(pixels(1)).shape == (16, 24)
    assert eight_bit(pixels(3, 2.0)).max() == 255 and eight_bit(pixels(3)).shape == (16, 24, 3)


@pytest.mark.parametrize(
    "explanation, titles",
    [
        (Explanation(), ["The degraded photo", "Restored"]),
        (
            Explanation(
                guidance_pixels=pixels(3),
                degraded_guidance_pixels=pixels(3),
                match_pixels=pixels(1),
                influence_pixels=pixels(1),
            ),
            ["Painted from its words", "Guidance, none", "Match", "Influence", "Restored"],
        ),
    ],
)
def test_the_strip_shows_what_there_is(model, explanation, titles):
    html = explain(picture(), Result(picture(), explanation, {}), model)
    assert all(f'alt="{title}' in html for title in titles)
    assert html.count("<figure") == len(titles) + (len(titles) > 2)


def test_guidance_that_was_not_taken_is_said_so(model):
    explanation = Explanation(guidance="cleaned", guidance_strength=0, guidance_pixels=pixels(3))
    result = Result(picture(), explanation, {"restorer": 1.5})
    html = explain(picture(), result, model)
    assert "It was not used." in html and "24 x 16 pixels" in html
    assert "painted from cleaned words, not used" in html and "restoring 1.50 s" in html


def test_maps_of_a_guidance_that_was_not_used_are_left_out(model):
    maps = {"match_pixels": pixels(1), "influence_pixels": pixels(1)}
    unused = Explanation(guidance="cleaned", guidance_strength=0, **maps)
    html = explain(picture(), Result(picture(), unused, {}), model)
    assert "Match" not in html and "Influence" not in html


@pytest.mark.parametrize(
    "explanation, words",
    [
        (Explanation(change=9.0, degradation={"rain": 0.93}), "Found rain 93%"),
        (Explanation(change=0.2, degradation={"rain": 0.93}), "Next to nothing changed"),
        (Explanation(change=9.0, removed=["lowlight"]), "Told to remove darkness"),
        (Explanation(change=0.2, removed=["rain"]), "though told to remove rain"),
    ],
)
def test_one_line_says_what_was_found_and_done_and_how_much_changed(model, explanation, words):
    summary = summarise(picture(), Result(picture(), explanation, {}), model, 2.0)
    first = summary.split("\n")[0]
    assert words in first and "24 x 16" in first and "2.0 s" in first
    assert f"changed by {explanation.change:.1f} of 255" in first


def test_where_nothing_is_likely_the_tasks_are_offered():
    told = Model(tiny.pipeline(), "mini", "cpu")
    assert told.tasks
    for share, is_told, is_offered in ((0.3, False, True), (0.3, True, False), (0.9, False, False)):
        result = Result(
            picture(), Explanation(change=9.0, degradation={"rain": share}), {}, is_told
        )
        assert ("Press what you see" in summarise(picture(), result, told, 2.0)) == is_offered


def test_what_was_found_by_itself_is_not_called_told(model):
    explanation = Explanation(change=9.0, removed=["noise"], degradation={"noise": 1.0})
    result = Result(picture(), explanation, {}, is_told=False)
    assert summarise(picture(), result, model, 2.0).startswith("**Found noise 100%**")


def test_a_browser_is_given_the_file_itself_where_it_shows_all_of_it(tmp_path):
    def copied(one: Picture, name: str) -> str:
        file = write_picture(tmp_path / name, one)
        return Path(page_copy(one, file, tmp_path / "copy.jpg")).name

    small = picture()
    assert copied(small, "small.png") == "small.png"
    large = Picture(np.zeros((1500, 1500, 3), dtype=np.float32))
    translucent = replace(small, alpha=np.full(small.pixels.shape[:2], 0.5, dtype=np.float32))
    for number, other in enumerate((large, translucent, replace(small, bits=16))):
        assert copied(other, f"{number}.png") == "copy.jpg"
    turned = Image.fromarray(np.zeros((16, 24, 3), np.uint8))
    turned.getexif()[ExifTags.Base.Orientation] = 3
    turned.save(tmp_path / "turned.jpg", exif=turned.getexif())
    assert not shows(read_picture(tmp_path / "turned.jpg"), tmp_path / "turned.jpg")
    assert page_copy(small, None, tmp_path / "alone.jpg").endswith("alone.jpg")


def test_a_reduced_copy_is_called_one(model):
    whole = Picture(np.zeros((32, 48, 3), dtype=np.float32))
    summary = summarise(picture(), Result(picture(), Explanation(), {}), model, 2.0, whole)
    assert "A reduced copy of 48 x 32" in summary


def test_a_cell_tells_of_removal_detection_and_change():
    explanation = Explanation(removed=["haze"], degradation={"rain": 0.93}, change=0.2)
    assert outcome(explanation) == (
        "told to remove haze; rain 93% detected; hardly changed (0.2 of 255)"
    )
    assert outcome(Explanation()) == "nothing detected"


def test_a_checkpoint_without_painter_says_so():
    assert "the restorer alone" in render("about.md", has_painter=False)
    assert "the restorer alone" not in render("about.md", has_painter=True)


def test_the_table_of_a_batch_escapes_what_strangers_write():
    html = in_html([["<b>.png", "not restored: <i>", "", "", ""]])
    assert "&lt;b&gt;.png" in html and "<i>" not in html and html.count("data-head") == 5
