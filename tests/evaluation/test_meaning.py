"""Meaning is compared in the text-image space of a pipeline, and only where that was asked for."""

import json

import pytest
import torch
from PIL import Image

from pipelines import TextGuidedRestorationPipeline
from tests.pipelines.test_words import BLOCKS, PhotoProcessor, encoder
from tests.tools import tiny
from textir.evaluation.meaning import agreement, compare_meaning, read_captions, similarity
from textir.evaluation.scores import evaluate


@pytest.fixture(scope="module")
def pipe():
    pipe = TextGuidedRestorationPipeline(
        restorer=tiny.restorer(guided=False),
        photo_encoder=encoder(),
        photo_processor=PhotoProcessor(32),
        photo_text_encoder=tiny.text_tower(sum(BLOCKS)),
        photo_tokenizer=tiny.tokenizer(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def photos(tmp_path):
    for name in ("a", "b"):
        generator = torch.Generator().manual_seed(ord(name))
        pixels = torch.randint(0, 256, (24, 40, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(tmp_path / f"{name}.png")
    return tmp_path


def test_an_image_is_most_like_itself(pipe):
    image, other = tiny.image(), 0.1 * tiny.image()
    assert similarity(pipe, image, image) == pytest.approx(1)
    assert similarity(pipe, image, other) < similarity(pipe, image, image)


def test_agreement_is_the_mean_over_captions(pipe):
    image = tiny.image()
    each = [agreement(pipe, image, [text]) for text in ("a photo", "rain")]
    assert agreement(pipe, image, ["a photo", "rain"]) == pytest.approx(sum(each) / 2)


def test_captions_are_read_from_an_image_folder(tmp_path):
    rows = [{"file_name": "in/a.png", "captions": ["One.", "Two."]}]
    rows.append({"file_name": "b.png", "text": "Three."})
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    expected = {"a": ["One.", "Two."], "b": ["Three."]}
    assert read_captions(tmp_path) == read_captions(tmp_path / "metadata.jsonl") == expected


@pytest.mark.parametrize("line", ['{"file_name": "a.png"}', '{"captions": []}', "[1]", "no JSON"])
def test_other_lines_are_refused_with_what_they_should_hold(tmp_path, line):
    (tmp_path / "metadata.jsonl").write_text(line)
    with pytest.raises(ValueError, match="must hold JSON lines with file_name, and captions or"):
        read_captions(tmp_path)


def test_scores_hold_meaning_only_where_it_was_asked_for(pipe, photos):
    plain = evaluate(pipe, photos, "noise:25")
    assert plain.scores[0].similarity is None and "similarity" not in plain.summary()
    told = evaluate(pipe, photos, "noise:25", meaning=True, captions={"b": ["a photo"]})
    first, second = told.scores
    assert first.agreement is None and -1 <= second.agreement <= 1
    assert first.input_similarity < 1 and set(told.summary()) >= {"similarity", "agreement"}
    assert first.psnr == plain.scores[0].psnr


def test_a_pipeline_without_a_space_says_so(photos):
    bare = TextGuidedRestorationPipeline(restorer=tiny.restorer(guided=False))
    with pytest.raises(ValueError, match="has no text-image space"):
        evaluate(bare, photos, "noise:25", meaning=True)


def test_images_and_captions_are_embedded_once(pipe, monkeypatch):
    embedded = []
    for name in ("embed_photos", "embed_texts"):
        method = getattr(pipe, name)

        def counted(value, name=name, method=method):
            embedded.append(name)
            return method(value)

        monkeypatch.setattr(pipe, name, counted)
    images = tiny.image(seed=0), tiny.image(seed=1), tiny.image(seed=2)
    found = compare_meaning(pipe, *images, ["a photo", "rain"])
    assert embedded == ["embed_photos"] * 3 + ["embed_texts"]
    monkeypatch.undo()
    assert found["similarity"] == pytest.approx(similarity(pipe, images[1], images[2]))
    expected = agreement(pipe, images[0], ["a photo", "rain"])
    assert found["input_agreement"] == pytest.approx(expected)
