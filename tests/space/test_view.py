"""What a run looks like on the page."""

import numpy as np
import pytest

from pipelines import TextGuidedRestorationPipeline
from tests.tools import tiny
from textir.images.explanation import Explanation
from textir.images.picture import Picture
from textir.space.model import Model
from textir.space.page import render
from textir.space.view import (
    Figure,
    eight_bit,
    explain,
    outcome,
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
        (Explanation(), ["1. The degraded photo", "2. Restored"]),
        (
            Explanation(
                guidance_pixels=pixels(3),
                degraded_guidance_pixels=pixels(3),
                match_pixels=pixels(1),
                influence_pixels=pixels(1),
            ),
            ["2. Painted from its words", "4. Match", "5. Influence", "6. Restored"],
        ),
    ],
)
def test_the_strip_shows_what_there_is(model, explanation, titles):
    html = explain(picture(), Result(picture(), explanation, {}), model)
    assert all(f'alt="{title}' in html for title in titles)
    assert html.count("<figure>") == int(titles[-1][0])


def test_guidance_that_was_not_taken_is_said_so(model):
    explanation = Explanation(guidance="cleaned", guidance_strength=0, guidance_pixels=pixels(3))
    result = Result(picture(), explanation, {"restorer": 1.5})
    assert "It was not used." in explain(picture(), result, model)
    summary = summarise(picture(), result, model, 2.0)
    assert "painted from cleaned words, not used" in summary and "restoring 1.50 s" in summary


def test_a_cell_tells_of_removal_detection_and_change():
    explanation = Explanation(removed=["haze"], degradation={"rain": 0.93}, change=0.2)
    assert outcome(explanation) == (
        "told to remove haze; rain 93% detected; hardly changed (0.2 of 255)"
    )
    assert outcome(Explanation()) == "nothing detected"


def test_a_checkpoint_without_painter_says_so():
    assert "the restorer alone" in render("about.md", has_painter=False)
    assert "the restorer alone" not in render("about.md", has_painter=True)
