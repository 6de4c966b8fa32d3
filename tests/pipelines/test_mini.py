"""The embedded checkpoint: a whole chain, small enough to travel, that does what its card says on a
photo it has never seen."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage.data import astronaut

from pipelines import MINI, TextGuidedRestorationPipeline, load
from pipelines.pipeline_text_guided_restoration import TASKS
from textir.degradations import degrade
from textir.evaluation.metrics import psnr


@pytest.fixture(scope="module")
def mini():
    pipe = TextGuidedRestorationPipeline.from_pretrained(MINI)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def photo() -> torch.Tensor:
    pixels = torch.from_numpy(astronaut().astype(np.float32) / 255).movedim(-1, 0)[None]
    return F.interpolate(pixels, (192, 224), mode="area")


def restore(mini, image: torch.Tensor, **options):
    return mini(image, generator=torch.Generator().manual_seed(0), output_type="pt", **options)


def decibel(image: torch.Tensor, clean: torch.Tensor) -> float:
    clean = F.interpolate(clean, image.shape[-2:], mode="area")
    return psnr(*(x[0].clamp(0, 1).movedim(0, -1).numpy() for x in (image, clean)))


def test_it_has_a_name_everywhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for pipe in (TextGuidedRestorationPipeline.from_pretrained("mini"), load("mini")):
        assert pipe.can_remove and pipe.restorer is not None


def test_every_part_of_the_chain_is_there(mini):
    assert not [name for name, part in mini.components.items() if part is None]
    assert mini.config.default_guidance_init == "image" and mini.config.square_guidance


def test_it_says_what_a_photo_shows_and_finds_the_sentence_for_it(mini, photo):
    tags = mini.describe(photo)[0]
    assert {"person", "helmet"} <= {tag["tag"] for tag in tags["things"]}
    dark = mini.describe(degrade(photo, "lowlight:3", torch.Generator().manual_seed(0)))[0]
    assert "lowlight" in {tag["tag"] for tag in dark["faults"]}
    texts = mini.embed_texts(["an astronaut in a space suit", "a bowl of soup", "a train"])
    assert (mini.embed_photos(photo) @ texts.T).argmax() == 0


def test_the_licences_of_the_towers_travel_with_them():
    notice = (Path(MINI) / "NOTICE").read_text(encoding="utf-8")
    for name in ("EfficientNet-Lite0", "MiniLM", "Apache License 2.0", "ML Illustrated"):
        assert name in notice


def test_every_part_computes_in_single_precision_unless_told_otherwise(mini):
    parts = [part for part in mini.components.values() if isinstance(part, torch.nn.Module)]
    assert {part.dtype for part in parts} == {torch.float32}
    halved = TextGuidedRestorationPipeline.from_pretrained(MINI, dtype=torch.bfloat16)
    assert {
        part.dtype for part in halved.components.values() if isinstance(part, torch.nn.Module)
    } == {torch.bfloat16}


@pytest.mark.parametrize(("recipe", "gain"), [("haze:1.5", 3), ("lowlight:2.5", 4)])
def test_cleaned_words_paint_what_degraded_words_do_not(mini, photo, recipe, gain):
    degraded = degrade(photo, recipe, torch.Generator().manual_seed(0))
    cleaned, as_it_is = (
        restore(mini, degraded, guidance=kind).guidance_images for kind in ("cleaned", "degraded")
    )
    assert decibel(cleaned, photo) > decibel(as_it_is, photo) + gain


@pytest.mark.parametrize(
    ("recipe", "gain"), [("noise:25", 7), ("haze:1", 4), ("lowlight:2.5", 6), ("rain:heavy", 2)]
)
def test_photos_come_out_better_than_they_went_in(mini, photo, recipe, gain):
    degraded = degrade(photo, recipe, torch.Generator().manual_seed(0))
    assert decibel(restore(mini, degraded).images, photo) > decibel(degraded, photo) + gain


def test_a_clean_photo_comes_back(mini, photo):
    assert decibel(restore(mini, photo).images, photo) > 36


def test_guidance_is_used_against_haze(mini, photo):
    degraded = degrade(photo, "haze:1.5", torch.Generator().manual_seed(0))
    guided, unguided = (
        restore(mini, degraded, task="dehaze", guidance=kind) for kind in ("cleaned", "none")
    )
    assert guided.guidance_strength == [1.0] and not torch.equal(guided.images, unguided.images)
    assert decibel(guided.images, photo) > decibel(unguided.images, photo) - 0.5


@pytest.mark.parametrize("recipe", ["noise:25", "rain:0.6", "lowlight:2.5", "clean"])
def test_guidance_is_left_out_where_it_does_not_help(mini, photo, recipe):
    degraded = degrade(photo, recipe, torch.Generator().manual_seed(0)).clamp(0, 1)
    out = restore(mini, degraded)
    assert out.guidance_strength == [0.0] and out.guidance_images is not None
    assert torch.equal(out.images, restore(mini, degraded, guidance="none").images)


@pytest.mark.parametrize(
    ("task", "recipe", "gain"),
    [
        ("denoise", "noise:25", 7),
        ("derain", "rain:0.6", 2),
        ("dehaze", "haze:1", 4),
        ("lowlight", "lowlight:2.5", 6),
        ("lowlight", "dim:0.5", 6),
        ("dejpeg", "jpeg:15", 0.3),
        ("deblur", "blur:9", 0.1),
        ("defocus", "defocus:3", 0.1),
        ("dehaze+denoise", "haze:1+noise8:15", 3),
    ],
)
def test_told_what_is_wrong_photos_come_out_better(mini, photo, task, recipe, gain):
    degraded = degrade(photo, recipe, torch.Generator().manual_seed(0)).clamp(0, 1)
    out = restore(mini, degraded, task=task)
    assert decibel(out.images, photo) > decibel(degraded, photo) + gain


@pytest.mark.parametrize(
    "task", ["denoise", "derain", "dehaze", "deblur", "defocus", "lowlight", "dejpeg", "sharpen"]
)
def test_told_what_is_not_there_a_clean_photo_comes_back(mini, photo, task):
    out = restore(mini, photo, task=task, guidance="none")
    assert decibel(out.images, photo) > 30 and out.removed == [[TASKS[task]]]


def test_haze_stays_where_only_noise_shall_go(mini, photo):
    hazy = degrade(photo, "haze:1", torch.Generator().manual_seed(0))
    noisy = degrade(hazy, "noise8:15", torch.Generator().manual_seed(1))
    for wish in ({"task": "denoise"}, {"task": "denoise", "keep": "haze"}):
        assert decibel(restore(mini, noisy, **wish).images, hazy) > decibel(noisy, hazy) + 6


def test_strength_nought_is_no_guidance_to_the_bit(mini, photo):
    degraded = degrade(photo, "haze:1", torch.Generator().manual_seed(0))
    assert torch.equal(
        restore(mini, degraded, guidance_strength=0.0).images,
        restore(mini, degraded, guidance="none").images,
    )
