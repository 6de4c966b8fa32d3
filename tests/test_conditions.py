"""What a sample is told during training: the wish and its target must belong together."""

from collections import Counter

import numpy as np
import pytest
import torch

from pipelines import load
from pipelines.pipeline_text_guided_restoration import TASKS
from textir.conditions import SCENE, condition_of, draw_wish, draw_wish_of_pair
from textir.data.photos import Images
from textir.data.samples import Sampler, sample_generator
from textir.degradations import LABELS
from textir.models import DegradationDetector


def told(condition: torch.Tensor) -> set[str]:
    return {label for label, entry in zip(LABELS, condition) if entry}


def wishes(present, share=1.0, count=400, draw=draw_wish):
    return [draw(present, share, sample_generator(0, i)) for i in range(count)]


def test_a_condition_has_an_entry_for_each_label_and_one_for_finding_out():
    assert condition_of(["rain", "jpeg"]).tolist() == [
        float(label in ("rain", "jpeg")) for label in LABELS
    ] + [0.0]
    assert condition_of(blind=True).tolist() == [0.0] * len(LABELS) + [1.0]


@pytest.mark.parametrize("share", [0.0, 0.55, 1.0])
def test_a_share_of_the_samples_is_told(share):
    blind = [bool(wish.condition[-1]) for wish in wishes(["noise"], share, 2000)]
    assert 1 - sum(blind) / len(blind) == pytest.approx(share, abs=0.03)
    assert all(wish.kept == 0 and not told(wish.condition) for wish in wishes(["noise"], 0.0))


@pytest.mark.parametrize("present", [["noise"], ["haze", "noise"], ["rain", "haze", "jpeg"], []])
def test_the_target_keeps_what_was_not_asked_for(present):
    for wish in wishes(present):
        asked, kept = told(wish.condition), present[: wish.kept]
        assert not asked & set(kept)
        assert asked >= set(present[wish.kept :])
        if wish.kept < len(present):
            assert set(kept) <= set(SCENE)


def test_some_samples_ask_for_what_is_not_there_and_their_photo_stays():
    idle = [wish for wish in wishes(["haze", "noise"]) if wish.kept == 2]
    assert 0.05 < len(idle) / 400 < 0.2 and all(
        not told(wish.condition) & {"haze", "noise"} for wish in idle
    )


def test_a_label_that_the_data_never_show_is_not_named():
    """Asked for where it is absent alone, it would be learnt as "do nothing": experts of other
    tasks were lost so."""
    known = ("noise", "blur")
    for present, draw in (
        (["noise"], draw_wish),
        (["blur", "noise"], draw_wish),
        (["blur"], draw_wish_of_pair),
    ):
        drawn = [
            draw(present, 1.0, torch.Generator().manual_seed(seed), known) for seed in range(200)
        ]
        assert set().union(*(told(wish.condition) for wish in drawn)) <= set(known)
    alone = [
        draw_wish(["noise"], 1.0, torch.Generator().manual_seed(seed), ("noise",))
        for seed in range(50)
    ]
    assert all(told(wish.condition) == {"noise"} and not wish.kept for wish in alone)


def test_noise_is_never_absent_from_a_dark_photo():
    assert all("noise" not in told(wish.condition) for wish in wishes(["lowlight"]) if wish.kept)


def test_what_was_done_before_jpeg_is_not_asked_back_alone():
    kept = Counter(wish.kept for wish in wishes(["noise", "jpeg"]))
    assert kept[1] == 0 and Counter(wish.kept for wish in wishes(["haze", "jpeg"]))[1] > 50


def test_of_a_pair_all_goes_or_nothing():
    asked = Counter()
    for wish in wishes(["lowlight", "noise"], draw=draw_wish_of_pair):
        names = told(wish.condition) & {"lowlight", "noise"}
        asked[frozenset(names)] += 1
        assert wish.kept == (0 if names else 2)
    assert asked[frozenset({"lowlight"})] > 100 and asked[frozenset({"lowlight", "noise"})] > 100


# ---- samples


def photo(value: float = 0.5) -> Images:
    pixels = (np.random.default_rng(0).random((40, 56, 3)) * 255 * value).astype(np.uint8)
    return Images(pixels)


def samples(recipe: str, images=None, labels=(), count=60):
    sampler = Sampler([recipe] if recipe else [], crop_size=24, told_share=1.0)
    return [sampler(images or photo(), sample_generator(1, i), labels) for i in range(count)]


def test_a_sample_that_asks_for_nothing_that_is_there_has_its_input_as_target():
    idle = [sample for sample in samples("noise:25") if "noise" not in told(sample["condition"])]
    assert idle and all(torch.equal(sample["degraded"], sample["clean"]) for sample in idle)


def test_a_partial_wish_leaves_the_same_haze_that_the_photo_has():
    """Haze draws its depth and light from its own seed, so the target's is that of the input: what
    is left is the noise alone."""
    partial = [
        sample for sample in samples("haze:1.5+noise:5") if told(sample["condition"]) == {"noise"}
    ]
    assert partial
    for sample in partial:
        difference = sample["degraded"] - sample["clean"]
        assert (
            difference.std().item() * 255 == pytest.approx(5, rel=0.2)
            and abs(difference.mean()) < 0.01
        )


def test_a_pair_of_known_label_is_told_and_one_of_unknown_is_not():
    pair = Images(photo().clean, (photo().clean * 0.5).astype(np.uint8))
    assert {
        frozenset(told(s["condition"])) & {"lowlight"} for s in samples("", pair, ("lowlight",))
    } >= {frozenset({"lowlight"})}
    assert all(sample["condition"][-1] == 1 for sample in samples("", pair))


def test_without_a_share_samples_are_as_before():
    sampler = Sampler(["haze:1.5+noise:5"], crop_size=24)
    sample = sampler(photo(), sample_generator(1, 0))
    assert "condition" not in sample
    blind = Sampler(["haze:1.5+noise:5"], crop_size=24, told_share=0.0)(
        photo(), sample_generator(1, 0)
    )
    assert torch.equal(sample["degraded"], blind["degraded"]) and torch.equal(
        sample["clean"], blind["clean"]
    )


def test_recipes_tasks_detector_and_checkpoint_share_one_vocabulary():
    pipe = load("mini")
    assert tuple(TASKS.values()) == LABELS == DegradationDetector(8).config.labels
    assert tuple(pipe.detector.config.labels) == tuple(pipe.restorer.config.labels) == LABELS
