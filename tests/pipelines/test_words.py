"""What a pipeline does with sentences: instructions are obeyed, photos say what they show, and a
CLIP of the Hub takes the place of the small towers."""

import logging

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    CLIPImageProcessor,
)

from pipelines import TextGuidedRestorationPipeline
from pipelines import pipeline_text_guided_restoration as module
from tests.models.test_photo_encoder import BLOCKS, encoder, tags
from tests.tools import tiny
from textir.models import InstructionReader, PhotoProcessor

IMAGE = tiny.image()


def seeing() -> TextGuidedRestorationPipeline:
    """A tiny chain with towers whose every tag is shown."""
    pipe = tiny.pipeline()
    pipe.register_modules(
        photo_encoder=encoder(tags=tags(threshold=0.0, sure=1.0)),
        photo_processor=PhotoProcessor(32),
        photo_text_encoder=tiny.text_tower(sum(BLOCKS)),
        photo_tokenizer=tiny.tokenizer(),
    )
    return pipe


def told() -> TextGuidedRestorationPipeline:
    return TextGuidedRestorationPipeline(restorer=tiny.restorer(guided=False, told=True))


def call(pipe, **options):
    pipe.set_progress_bar_config(disable=True)
    return pipe(IMAGE, output_type="pt", **options)


# ---- instructions


def test_an_instruction_is_the_same_as_the_task_that_it_names():
    pipe = told()
    output = call(pipe, instruction="please take out the noise and the rain")
    assert sorted(output.removed[0]) == ["noise", "rain"]
    assert output.understood == "removing noise, rain"
    assert torch.equal(output.images, call(pipe, task="denoise+derain").images)


def test_what_shall_stay_is_kept():
    output = call(told(), instruction="take out the rain but leave the fog")
    assert output.removed == [["rain"]] and "keeping haze" in output.understood


def test_what_may_surprise_in_a_reading_is_said():
    contradiction = call(told(), instruction="remove the noise and keep the noise")
    assert "it is kept" in contradiction.understood and "noise" not in (
        contradiction.removed[0] or ()
    )
    cut = call(told(), instruction="remove the rain. " + "please " * 1000)
    assert "only the first 2,000 characters were read" in cut.understood


def test_a_sentence_that_asks_for_nothing_particular_finds_out():
    pipe = told()
    output = call(pipe, instruction="make it pop")
    assert output.removed is None and output.understood
    assert torch.equal(output.images, call(pipe).images)


def test_an_instruction_beside_a_task_is_refused():
    for options in ({"task": "denoise"}, {"keep": "haze"}):
        with pytest.raises(ValueError, match="in `instruction`, or in `task` and `keep`"):
            call(told(), instruction="remove the rain", **options)


@pytest.mark.parametrize("instruction", ["", "   ", 7])
def test_an_instruction_that_is_none_is_refused(instruction):
    with pytest.raises(ValueError):
        call(told(), instruction=instruction)


@pytest.mark.parametrize("instruction", ["убери дождь", "去雨", "x" * 100_000])
def test_other_alphabets_and_endless_texts_find_out(instruction):
    assert call(told(), instruction=instruction).removed is None


def test_a_checkpoint_without_a_reader_says_so(monkeypatch):
    monkeypatch.setattr(TextGuidedRestorationPipeline, "_default_instruction_reader", None)
    with pytest.raises(ValueError, match="has no instruction reader"):
        call(told(), instruction="remove the rain")


def test_reader_and_towers_are_saved_and_loaded(tmp_path):
    pipe = seeing()
    pipe.register_modules(instruction_reader=InstructionReader())
    pipe.save_pretrained(tmp_path)
    again = TextGuidedRestorationPipeline.from_pretrained(tmp_path)
    assert type(again.instruction_reader).__name__ == "InstructionReader"
    torch.testing.assert_close(again.embed_photos(IMAGE), pipe.embed_photos(IMAGE))
    torch.testing.assert_close(again.embed_texts(["a dog"]), pipe.embed_texts(["a dog"]))


# ---- what photos say


def test_photo_guidance_and_result_say_what_they_show():
    output = call(seeing(), return_tags=True)
    (said,) = output.tags
    assert set(said) == {"before", "guidance", "after"}
    for groups in said.values():
        assert [tag["tag"] for tag in groups["things"]] and len(groups["things"]) == 1


def test_every_image_of_a_batch_says_what_it_says_alone():
    images = torch.cat([tiny.image(seed=0), tiny.image(seed=1)])
    pipe = seeing()
    together = pipe.describe(images)
    for image, said in zip(images.split(1), together):
        (alone,) = pipe.describe(image)
        assert alone["things"][0]["tag"] == said["things"][0]["tag"]
        assert alone["things"][0]["probability"] == pytest.approx(
            said["things"][0]["probability"], abs=1e-4
        )


def test_tags_are_said_only_where_they_are_asked_for():
    assert call(seeing()).tags is None
    with pytest.raises(ValueError, match="needs a text-image space with calibrated tags"):
        call(tiny.pipeline(), return_tags=True)


def test_a_clip_of_the_hub_takes_the_place_of_the_towers():
    size = {"shortest_edge": 32}
    pipe = tiny.pipeline()
    pipe.register_modules(
        photo_encoder=tiny.clip_photo_tower(12),
        photo_processor=CLIPImageProcessor(
            size=size, crop_size={"height": 32, "width": 32}, do_rescale=False
        ),
        photo_text_encoder=tiny.text_tower(12),
        photo_tokenizer=tiny.tokenizer(),
    )
    photos, texts = pipe.embed_photos(IMAGE), pipe.embed_texts(["a dog", "a street"])
    assert photos.shape == (1, 12) and texts.shape == (2, 12)
    torch.testing.assert_close(photos.norm(dim=1), torch.ones(1))
    assert not pipe.can_describe
    with pytest.raises(ValueError, match="no calibrated tags"):
        pipe.describe(IMAGE)


def test_a_checkpoint_without_towers_says_so():
    for ask in (tiny.pipeline().embed_photos, tiny.pipeline().describe):
        with pytest.raises(ValueError, match="has no text-image space"):
            ask(IMAGE)


# ---- prompts


def test_a_painter_that_does_not_heed_prompts_says_so_once(caplog):
    module.warn_once.cache_clear()
    module.logging.enable_propagation()
    pipe = tiny.pipeline(heeds_prompts=False)
    try:
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                call(pipe, prompt="a dog")
    finally:
        module.logging.disable_propagation()
    assert caplog.text.count("hardly heeds prompts") == 1


def test_with_words_in_the_negative_branch_the_scale_alone_changes_nothing():
    plain = tiny.pipeline(negative_words=True)
    one, five = (plain.guide(IMAGE, guidance_scale=scale).images for scale in (1.0, 5.0))
    torch.testing.assert_close(one, five, atol=1e-4, rtol=0)
    prompted = plain.guide(IMAGE, prompt="a dog", guidance_scale=5.0).images
    assert (prompted - one).abs().max() > 1e-3


def test_rescaled_guidance_keeps_light_and_contrast():
    noise, like = torch.randn(2, 4, 8, 8) * 3 + 1, torch.randn(2, 4, 8, 8)
    scaled = module.like_statistics(noise, like)
    torch.testing.assert_close(scaled.mean((2, 3)), like.mean((2, 3)), atol=1e-5, rtol=0)
    torch.testing.assert_close(scaled.std((2, 3)), like.std((2, 3)), atol=1e-4, rtol=0)
    cosine = F.cosine_similarity(
        scaled.flatten(2) - scaled.mean((2, 3))[..., None],
        noise.flatten(2) - noise.mean((2, 3))[..., None],
        dim=2,
    )
    torch.testing.assert_close(cosine, torch.ones(2, 4), atol=1e-4, rtol=0)
