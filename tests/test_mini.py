"""The embedded checkpoint: a whole chain, small enough to travel, that does what its card says on a photo it has never seen."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from skimage.data import astronaut, rocket

from pipelines import MINI, TextGuidedRestorationPipeline
from textir.degradations import degrade
from textir.metrics import psnr


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


def test_every_part_of_the_chain_is_there(mini):
    assert not [name for name, part in mini.components.items() if part is None]
    assert mini.config.default_guidance_init == "image" and mini.config.square_guidance


def test_every_part_computes_in_single_precision_unless_told_otherwise(mini):
    parts = [part for part in mini.components.values() if isinstance(part, torch.nn.Module)]
    assert {part.dtype for part in parts} == {torch.float32}
    halved = TextGuidedRestorationPipeline.from_pretrained(MINI, dtype=torch.bfloat16)
    assert {part.dtype for part in halved.components.values() if isinstance(part, torch.nn.Module)} == {torch.bfloat16}


def test_adapters_load_beside_each_other_without_a_warning(recwarn):
    pipe = TextGuidedRestorationPipeline.from_pretrained(MINI)
    for folder in (Path(MINI) / "adapters").iterdir():
        pipe.load_lora_weights(str(folder), adapter_name=folder.name)
    assert len(pipe.restorer.peft_config) == 6
    assert not [str(warning.message) for warning in recwarn if "peft_config" in str(warning.message)]


@pytest.mark.parametrize(("recipe", "gain"), [("haze:1.5", 3), ("lowlight:2.5", 4)])
def test_cleaned_words_paint_what_degraded_words_do_not(mini, photo, recipe, gain):
    degraded = degrade(photo, recipe, torch.Generator().manual_seed(0))
    cleaned, as_it_is = (restore(mini, degraded, guidance=kind).guidance_images for kind in ("cleaned", "degraded"))
    assert decibel(cleaned, photo) > decibel(as_it_is, photo) + gain


@pytest.mark.parametrize(("recipe", "gain"), [("noise:25", 7), ("haze:1", 4), ("lowlight:2.5", 6), ("rain:heavy", 2)])
def test_photos_come_out_better_than_they_went_in(mini, photo, recipe, gain):
    degraded = degrade(photo, recipe, torch.Generator().manual_seed(0))
    assert decibel(restore(mini, degraded).images, photo) > decibel(degraded, photo) + gain


def test_a_clean_photo_comes_back(mini, photo):
    assert decibel(restore(mini, photo).images, photo) > 36


@pytest.mark.parametrize(("recipe", "gain"), [("haze:1.5", 0.3), ("lowlight:2.5", 0.3)])
def test_guidance_helps_against_haze_and_darkness(mini, photo, recipe, gain):
    degraded = degrade(photo, recipe, torch.Generator().manual_seed(0))
    guided, unguided = restore(mini, degraded), restore(mini, degraded, guidance="none")
    assert guided.guidance_strength == [1.0]
    assert decibel(guided.images, photo) > decibel(unguided.images, photo) + gain


@pytest.mark.parametrize("recipe", ["noise:25", "rain:0.6", "clean"])
def test_guidance_is_left_out_where_it_does_not_help(mini, photo, recipe):
    degraded = degrade(photo, recipe, torch.Generator().manual_seed(0)).clamp(0, 1)
    out = restore(mini, degraded)
    assert out.guidance_strength == [0.0] and out.guidance_images is not None
    assert torch.equal(out.images, restore(mini, degraded, guidance="none").images)


@pytest.mark.parametrize("folder", sorted((Path(MINI) / "adapters").iterdir()), ids=lambda folder: folder.name)
def test_adapters_hold_nothing_but_layers_of_the_chain(mini, folder):
    layers = {key.partition(".lora_")[0] for key in load_file(folder / "pytorch_lora_weights.safetensors")}
    there = {
        f"{part}.{name}" for part in ("mapper", "cleaner", "unet", "restorer") for name, _ in getattr(mini, part).named_modules()
    }
    assert layers <= there and any(layer.startswith("restorer.") for layer in layers)


@pytest.mark.parametrize(
    ("task", "recipe", "gain"), [("denoise", "noise:25", 2), ("lowlight", "lowlight:1.3", 2), ("derain", "rain:heavy", 1)]
)
def test_a_painter_that_knows_the_task_paints_nearer_to_the_clean_photo(task, recipe, gain):
    """Colours and brightness of a rocket at dusk, which might be a photo that lacks light."""
    pipe = TextGuidedRestorationPipeline.from_pretrained(MINI)
    pipe.set_progress_bar_config(disable=True)
    photo = F.interpolate(torch.from_numpy(rocket().astype(np.float32) / 255).movedim(-1, 0)[None], (192, 224), mode="area")
    degraded = degrade(photo, recipe, torch.Generator().manual_seed(0)).clamp(0, 1)
    before = restore(pipe, degraded).guidance_images
    pipe.load_lora_weights(f"{MINI}/adapters/{task}", adapter_name=task)
    after = restore(pipe, degraded, task=task).guidance_images
    assert decibel(F.adaptive_avg_pool2d(after, 8), photo) > decibel(F.adaptive_avg_pool2d(before, 8), photo) + gain


def test_strength_nought_is_no_guidance_to_the_bit(mini, photo):
    degraded = degrade(photo, "haze:1", torch.Generator().manual_seed(0))
    assert torch.equal(restore(mini, degraded, guidance_strength=0.0).images, restore(mini, degraded, guidance="none").images)
