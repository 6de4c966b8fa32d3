"""Edits are measured on photos that lack something, against rivals without learning."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tools.tiny import image
from textir.degradations import Recipe
from textir.evaluation.edit_rivals import EDIT_BASELINES, EditCase, enlarge_lanczos
from textir.evaluation.edit_scores import (
    EditEvaluation,
    EditScore,
    colorfulness,
    inside_psnr,
    luma_psnr,
    make_case,
    mean_difference,
    paired_interval,
    score_edits,
    whole_psnr,
)
from textir.evaluation.metrics import Protocol, psnr


@pytest.fixture
def photos(tmp_path):
    for number in range(3):
        tone = torch.nn.functional.interpolate(
            torch.rand(1, 3, 6, 8, generator=torch.Generator().manual_seed(number)),
            (40, 56),
            mode="bicubic",
        ).clamp(0, 1)
        pixels = (tone[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    return tmp_path


def test_the_figures_follow_their_formulas():
    clean = 0.9 * image(16, 24)
    hole = torch.zeros(1, 1, 16, 24, dtype=torch.bool)
    hole[..., :8, :] = True
    result = torch.where(hole, clean + 0.1, clean)
    assert inside_psnr(result, clean, hole) == pytest.approx(20, abs=1e-3)
    assert whole_psnr(result, clean) == pytest.approx(20 + 10 * np.log10(2), abs=1e-3)
    assert inside_psnr(result, clean, ~hole) == float("inf")
    assert mean_difference(result, clean) == pytest.approx(25.5 / 2, abs=1e-3)


def test_luma_is_compared_as_the_protocol_does():
    clean, other = ((image(16, 24) * 255).round() / 255, (image(16, 24) ** 1.2 * 255).round() / 255)
    first, second = (photo[0].permute(1, 2, 0).numpy() for photo in (other, clean))
    assert luma_psnr(other, clean) == pytest.approx(psnr(first, second, Protocol("y")), abs=1e-3)


def test_colorfulness_is_nothing_for_gray_and_follows_its_formula():
    assert colorfulness(torch.full((1, 3, 4, 5), 0.4)) == 0
    red = torch.tensor([1.0, 0, 0])[None, :, None, None].expand(1, 3, 4, 5)
    assert colorfulness(red) == pytest.approx(0.3 * np.hypot(255, 127.5))


def test_intervals_hold_the_mean_and_shrink_with_the_photos():
    gains = np.random.default_rng(0).normal(1, 1, 400)
    low, high = paired_interval(gains)
    assert low < gains.mean() < high and high - low == pytest.approx(3.92 / 20, rel=0.15)
    assert np.diff(paired_interval(gains[:50])) > high - low
    assert paired_interval([0.5]) == (0.5, 0.5)


@pytest.mark.parametrize("task", EDIT_BASELINES)
def test_every_rival_returns_a_photo_of_the_size_wanted(task):
    recipe = {"inpaint": "box:0.2", "super-resolution": "down:4", "colorize": "gray"}[task]
    case, clean = make_case("a", image(40, 56), Recipe.parse(recipe, edits=True))
    assert case.task == task
    for name, rival in EDIT_BASELINES[task].items():
        result = rival(case)
        assert result.shape == clean.shape, name
        assert result.min() >= 0 and result.max() <= 1
        if task == "inpaint":
            known = ~case.hole.expand_as(result)
            assert torch.equal(result[known], case.image[known]), name


def test_lanczos_is_that_of_pillow():
    small = image(10, 14)
    case = EditCase("a", small, torch.zeros(1, 1, 10, 14), (40, 56), "super-resolution")
    picture = Image.fromarray(small[0, 1].numpy()).resize((56, 40), Image.Resampling.LANCZOS)
    expected = np.array(picture).clip(0, 1)
    np.testing.assert_allclose(enlarge_lanczos(case)[0, 1].numpy(), expected, atol=1e-6)


def test_a_case_depends_on_its_name_and_seed_alone():
    recipe, clean = Recipe.parse("strokes:0.25", edits=True), image(40, 56)
    first, again = make_case("a", clean, recipe)[0], make_case("a", clean, recipe)[0]
    assert torch.equal(first.hole, again.hole) and torch.equal(first.image, again.image)
    assert not torch.equal(first.hole, make_case("b", clean, recipe)[0].hole)
    assert not torch.equal(first.hole, make_case("a", clean, recipe, seed=1)[0].hole)


def test_a_case_of_a_whole_factor_is_cropped_to_its_multiple():
    case, clean = make_case("a", image(41, 59), Recipe.parse("down:4", edits=True))
    assert clean.shape[-2:] == (40, 56) == case.size and case.image.shape[-2:] == (10, 14)


@pytest.mark.parametrize("recipe", ["noise:25", "gray+down:2", "clean"])
def test_recipes_that_hold_no_single_edit_are_refused(recipe, photos):
    with pytest.raises(ValueError, match="holds one of mask, "):
        score_edits(None, photos, recipe)


def test_an_edit_is_scored_beside_its_rivals_on_the_same_photos(photos):
    seen = []
    evaluation = score_edits(
        lambda case: EDIT_BASELINES["inpaint"]["harmonic"](case),
        photos,
        "strokes:0.25",
        rivals=["mean", "harmonic"],
        on_score=seen.append,
    )
    assert evaluation.methods == ["edit", "mean", "harmonic"] and len(seen) == 9
    means = evaluation.means()
    assert means["edit"] == means["harmonic"]
    assert means["harmonic"]["inside_psnr"] > means["mean"]["inside_psnr"]
    assert means["edit"]["psnr"] > means["edit"]["inside_psnr"]
    assert evaluation.gain("inside_psnr", "harmonic") == (0, 0, 0)
    gain, low, high = evaluation.gain("inside_psnr", "mean")
    assert low <= gain <= high and low > 0
    assert evaluation.table().splitlines()[0] == "| method | psnr | psnr_y | inside_psnr |"
    assert evaluation.to_dict()["recipe"] == "strokes:0.25"


def test_projection_gains_over_bicubic(photos):
    evaluation = score_edits(None, photos, "down:2", limit=2)
    assert evaluation.gain("psnr", "bicubic", "bicubic, projected")[0] > 0.1
    assert len(evaluation.scores) == 6


def test_colour_is_reported_as_a_ratio_to_the_truth(photos):
    clean = {path.stem: path for path in photos.glob("*.png")}

    def cheat(case):
        return torch.from_numpy(np.array(Image.open(clean[case.name]))).permute(2, 0, 1)[None] / 255

    means = score_edits(cheat, photos, "gray").means()
    assert means["edit"]["colorfulness"] == pytest.approx(1) and means["edit"]["psnr"] == 100
    assert means["gray"]["colorfulness"] == 0 and means["gray"]["difference"] == 0
    assert 0 < means["tint"]["colorfulness"] < 1 and means["tint"]["difference"] > 1


def test_an_unknown_rival_and_a_result_of_another_size_are_refused(photos):
    with pytest.raises(ValueError, match="Rivals of colorize are gray, tint, got bicubic"):
        score_edits(None, photos, "gray", rivals=["bicubic"])
    with pytest.raises(ValueError, match=r"The edit of 0 must be \(1, 3, 40, 56\)"):
        score_edits(lambda case: case.image, photos, "down:2")


def test_equal_photos_do_not_make_a_mean_infinite():
    evaluation = EditEvaluation("", "gray", 0, [EditScore("a", "edit", {"psnr": float("inf")})])
    assert evaluation.means() == {"edit": {"psnr": 100.0}}


def test_photos_that_are_gray_already_say_nothing_of_colour(photos):
    Image.open(photos / "1.png").convert("L").save(photos / "1.png")
    evaluation = score_edits(None, photos, "gray")
    assert evaluation.left_out == ["1"] and len(evaluation.scores) == 2 * 2
    assert not score_edits(None, photos, "down:2", rivals=["bicubic"]).left_out
