"""The training of the editor: samples, words, losses, whole runs, and what is published."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

from pipelines.loading import load_editor
from tests.tools import tiny
from tests.train_lora import trained, write_photo
from textir.models import PhotoProcessor
from textir.models.edit_processor import lab_from_rgb
from textir.training.config import parse_config
from train_lora import described_photos, train_text_editor
from train_lora.described_photos import caption_of_name, things_in
from train_lora.editor_losses import (
    EditorLosses,
    FeatureDistance,
    PatchDiscriminator,
    colourfulness,
    hole_loss,
    r1_penalty,
)
from train_lora.editor_samples import (
    HUES,
    NEUTRAL,
    EditSamples,
    Shares,
    Words,
    draw_factor,
    in_colour,
    recolour,
    recolour_in,
)

TRAIN_LORA = Path(train_text_editor.__file__).parent
RECORD = TRAIN_LORA / "mini" / "editors.yaml"
WORDS = {
    "things": ["dog", "tea cup"],
    "colours": ["red"],
    "light": {"dark": ["dark"], "even": ["even"]},
}
TASKS = ("inpaint", "super-resolution", "colorize")


@pytest.fixture(autouse=True)
def few_words(monkeypatch):
    """Two things instead of two hundred: made sentences are embedded in no time."""
    monkeypatch.setattr(described_photos, "load_words", lambda: WORDS)


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    tiny.editing_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(3):
        coarse = np.random.default_rng(number).integers(0, 256, (5, 7, 3), dtype=np.uint8)
        soft = Image.fromarray(coarse).resize((72, 64), Image.Resampling.BICUBIC)
        write_photo(folder / f"{number}_dog.png", np.array(soft))
    lines = [
        {"file_name": "0_dog.png", "captions": ["a dog .", "the dog"]},
        {"file_name": "1_dog.png", "text": "a dog , a photo of the street"},
    ]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def config(start: Path, photos: Path, output: Path, **knobs) -> train_text_editor.Config:
    small = {
        "pretrained_model_name_or_path": str(start),
        "train_data_dir": [str(photos)],
        "output_dir": str(output),
        "resolution": 32,
        "train_batch_size": 2,
        "max_train_steps": 2,
        "dataloader_num_workers": 0,
        "mixed_precision": "no",
        "logging_steps": 1,
        "checkpointing_steps": 1,
    }
    return train_text_editor.Config(**{**small, **knobs})


@pytest.fixture(scope="module")
def described(start, photos, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(described_photos, "load_words", lambda: WORDS)
        settings = config(start, photos, tmp_path_factory.mktemp("described"), task="colorize")
        return train_text_editor.read_words(train_text_editor.load_pipeline(settings), settings)


# ---- what is said of photos


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("n01443537_goldfish.jpg", "a goldfish"),
        ("n02115641_English_setter.jpg", "an english setter"),
        ("000123.png", ""),
    ],
)
def test_a_file_name_may_say_what_it_shows(name, caption):
    assert caption_of_name(name) == caption


def test_things_are_found_as_whole_words_and_in_the_plural():
    assert things_in(["Two dogs.", "a tea cup"], WORDS) == ("dog", "tea cup")
    assert things_in(["a hotdog"], WORDS) == ()


def test_every_photo_has_its_embeddings(described):
    photos, words = described
    assert len(photos) == 3
    assert [len(photo.caption_embeds) for photo in photos] == [2, 1, 0]
    assert all(photo.image_embed.shape == (20,) for photo in photos)
    assert any(not torch.equal(photo.image_embed, photo.own_embed) for photo in photos)
    assert 0.2 <= words.agreement <= 0.95 and words.noise > 0


def test_embeddings_are_kept(described, start, photos, tmp_path, monkeypatch):
    settings = config(start, photos, tmp_path, task="colorize", cache_dir=str(tmp_path / "cache"))
    pipe = train_text_editor.load_pipeline(settings)
    first, _ = train_text_editor.read_words(pipe, settings)
    monkeypatch.setattr(type(pipe), "embed_photos", None)
    monkeypatch.setattr(type(pipe), "embed_texts", None)
    again, _ = train_text_editor.read_words(pipe, settings)
    for one, other in zip(first, again):
        assert torch.equal(one.own_embed, other.own_embed)


def test_photos_that_are_set_aside_are_left_out(start, photos, tmp_path):
    (tmp_path / "aside.txt").write_text("0_dog.png\n")
    aside = {"leave_out": str(tmp_path / "aside.txt"), "names_as_captions": True}
    settings = config(start, photos, tmp_path, task="colorize", **aside)
    pipe = train_text_editor.load_pipeline(settings)
    left, _ = train_text_editor.read_words(pipe, settings)
    assert [photo.captions for photo in left] == [("a dog , a photo of the street",), ("a dog",)]


# ---- samples


@pytest.mark.parametrize("task", TASKS)
def test_a_sample_depends_on_seed_and_index_alone(described, task):
    first, again = (EditSamples(task, *described, 32, seed=5) for _ in range(2))
    for index in (3, 0):
        one, other = first[index], again[index]
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(first[0]["start"], first[1]["start"])


@pytest.mark.parametrize("task", TASKS)
def test_a_sample_has_what_its_task_needs(described, task):
    sample = EditSamples(task, *described, 32)[0]
    channels = 2 if task == "colorize" else 3
    assert sample["start"].shape == (3, 32, 32) and sample["target"].shape == (channels, 32, 32)
    assert sample["condition"].shape == (20,)
    assert ("mask" in sample) == (task == "inpaint")
    assert ("scale" in sample) == (task == "super-resolution")
    if task == "colorize":
        assert torch.equal(sample["start"][0], sample["start"][2])
    if task == "inpaint":
        known = sample["mask"].expand(3, -1, -1) == 0
        assert torch.equal(sample["start"][known], sample["target"][known])
        assert not torch.equal(sample["start"], sample["target"])


@pytest.mark.parametrize("kind", ["text", "image", "own", "mixture", "none"])
def test_each_kind_of_words_is_a_unit_vector_or_none(described, kind):
    photos, words = described
    nothing = dict.fromkeys(("text", "image", "own", "mixture", "none"), 0.0)
    chosen = Words(photos, words.spoken, Shares(**{**nothing, kind: 1.0}))
    generator = torch.Generator().manual_seed(0)
    for photo in photos:
        condition = chosen.draw(photo, torch.rand(3, 32, 32, generator=generator), generator)
        if kind == "none":
            assert condition is None
        else:
            torch.testing.assert_close(condition.norm(), torch.tensor(1.0))


@pytest.mark.parametrize("colour", [*HUES, *NEUTRAL])
def test_colours_become_what_the_word_says(colour):
    generator = torch.Generator().manual_seed(1)
    photo = (
        0.2
        + 0.5
        * torch.rand(3, 24, 24, generator=generator)
        * torch.tensor([1.0, 0.6, 0.4])[:, None, None]
    )
    lab = lab_from_rgb(photo[None])[0]
    weight = torch.ones(1, 24, 24)
    mean = in_colour(lab[1:], weight, colour, generator).mean((1, 2))
    if colour in NEUTRAL:
        assert mean.norm() < 0.5 * lab[1:].mean((1, 2)).norm()
    else:
        hue = float(torch.rad2deg(torch.atan2(mean[1], mean[0])))
        assert abs((hue - HUES[colour][0] + 180) % 360 - 180) < 30
        assert mean.norm() > 0.08


def test_a_recoloured_photo_keeps_its_lightness():
    generator = torch.Generator().manual_seed(2)
    photo = 0.3 + 0.3 * torch.rand(3, 24, 24, generator=generator)
    changes = []
    for _ in range(12):
        other, _ = recolour(photo, generator)
        before, after = lab_from_rgb(photo[None]), lab_from_rgb(other[None])
        changes.append(float((before[:, 1:] - after[:, 1:]).abs().mean()))
        assert (before[:, 0] - after[:, 0]).abs().mean() < 0.06
    assert max(changes) > 0.05


def test_a_photo_is_recoloured_in_its_hole_alone():
    generator = torch.Generator().manual_seed(0)
    photo, hole = torch.rand(3, 32, 32, generator=generator), torch.zeros(1, 32, 32)
    hole[:, 8:24, 8:24] = 1
    other, _ = recolour_in(photo, hole, generator)
    outside = (hole == 0).expand(3, -1, -1)
    torch.testing.assert_close(other[outside], photo[outside], atol=2e-3, rtol=0)
    assert (other - photo)[~outside].abs().mean() > 0.01


def test_factors_leave_sixteen_pixels():
    generator = torch.Generator().manual_seed(0)
    factors = [draw_factor(96, generator) for _ in range(200)]
    assert min(factors) >= 2 and max(factors) <= 6
    assert {2.0, 3.0, 4.0} < set(factors)


# ---- losses


def test_a_pixel_of_a_small_hole_counts_as_much_as_one_of_a_large():
    truth = torch.zeros(2, 3, 16, 16)
    mask = torch.zeros(2, 1, 16, 16)
    mask[0, :, :2, :2], mask[1, :, :8, :8] = 1, 1
    edited = truth + mask
    assert hole_loss(edited, truth, mask) == 1
    assert hole_loss(truth + 1 - mask, truth, mask) < 0.1
    assert hole_loss(edited, truth, mask, squared=3) == 4


def test_gray_has_no_colourfulness():
    gray = torch.rand(2, 1, 8, 8).expand(-1, 3, -1, -1)
    assert (colourfulness(gray) < 1e-3).all()
    assert (colourfulness(torch.rand(2, 3, 8, 8)) > 0.1).all()


def test_features_agree_where_photos_do():
    distance = FeatureDistance(tiny.photo_encoder().network, 2)
    one, other = torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32)
    assert distance(one, one) == 0 and distance(one, other) > 0


def test_the_gradient_penalty_reaches_the_discriminator():
    judge = PatchDiscriminator(6, (4, 8))
    penalty = r1_penalty(judge, torch.rand(2, 3, 16, 16), torch.rand(2, 6))
    penalty.backward()
    assert penalty > 0 and judge.layers[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("task", TASKS)
def test_the_judgement_moves_the_editor_and_not_its_judge(task):
    pipe = tiny.editing_pipeline()
    part = train_text_editor.PARTS[task]
    weights = {"pixel_weight": 0.0, "colour_weight": 0.0, "perceptual_weight": 0.0}
    weights |= {
        "vividness": 0.5,
        "squared_weight": 0.0,
        "text_weight": 0.5,
        "adversarial_weight": 1.0,
        "adversarial_start": 0,
    }
    losses = EditorLosses(SimpleNamespace(task=task, part=part, **weights), pipe)
    accelerator = SimpleNamespace(autocast=lambda: torch.autocast("cpu", enabled=False))
    run = SimpleNamespace(step=1, accelerator=accelerator, models=losses.trainable_models())
    photo = torch.rand(2, 3, 32, 32)
    edited = torch.rand(2, 2 if task == "colorize" else 3, 32, 32, requires_grad=True)
    batch = {"truth": photo, "target": photo, "wordless": torch.tensor([True, False])}
    batch |= {"condition": torch.rand(2, 20), "mask": torch.ones(2, 1, 32, 32)}
    if task == "colorize":
        batch["target"] = edited.detach()
    losses(run, edited, batch["condition"], batch).backward()
    assert edited.grad.abs().sum() > 0
    assert losses.discriminator.judge.weight.grad.abs().sum() > 0


# ---- runs


@pytest.mark.parametrize("task", TASKS)
def test_a_network_learns_and_is_published(start, photos, tmp_path, task):
    part = train_text_editor.PARTS[task]
    knobs = {"validation_data_dir": str(photos), "validation_steps": 2, "use_ema": False}
    run = train_text_editor.main(config(start, photos, tmp_path, task=task, **knobs))
    assert run.step == 2
    before = load_editor(start).components[part].state_dict()
    after = load_editor(tmp_path / "pipeline").components[part].state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    for name in ("photo_encoder", "edit_processor", "photo_tokenizer"):
        assert (tmp_path / "pipeline" / name).is_dir()


def test_a_new_network_starts_from_the_photo_encoder(start, photos, tmp_path):
    stages = [[3, 1, 6, 1], [3, 2, 8, 2]]
    network = {"encoder_type": "efficient", "stages": stages, "widths": [4, 6], "stem_channels": 4}
    knobs = {"new_network": True, "frozen_encoder": True, "network_config": json.dumps(network)}
    train_text_editor.main(config(start, photos, tmp_path, task="colorize", **knobs))
    pipe = load_editor(tmp_path / "pipeline")
    kept, given = pipe.colorizer.encoder.state_dict(), pipe.photo_encoder.network.state_dict()
    assert all(torch.equal(kept[name], given[name]) for name in kept)
    assert pipe.colorizer.text_mean.abs().sum() > 0


def test_a_run_that_stops_goes_on_to_the_same_bits(start, photos, tmp_path):
    knobs = {"lr_scheduler": "constant", "task": "colorize"}
    train_text_editor.main(config(start, photos, tmp_path / "a", max_train_steps=3, **knobs))
    train_text_editor.main(config(start, photos, tmp_path / "b", max_train_steps=1, **knobs))
    again = {"resume_from_checkpoint": "latest", **knobs}
    train_text_editor.main(config(start, photos, tmp_path / "b", max_train_steps=3, **again))
    one, other = (trained(tmp_path / name / "checkpoint-3") for name in ("a", "b"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_layers_of_low_rank_learn_alone(start, photos, tmp_path):
    knobs = {"rank": 2, "task": "colorize", "use_ema": False, "learning_rate": 1e-2}
    train_text_editor.main(config(start, photos, tmp_path, **knobs))
    assert (tmp_path / "adapter" / "pytorch_lora_weights.safetensors").is_file()


def test_all_losses_together(start, photos, tmp_path):
    weights = {"text_weight": 0.1, "adversarial_weight": 0.01, "adversarial_start": 0}
    run = train_text_editor.main(config(start, photos, tmp_path, task="inpaint", **weights))
    assert set(run.models) == {"inpainter", "discriminator"}
    assert not (tmp_path / "pipeline" / "discriminator").exists()


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """A whole tiny CLIP, as the Hub has them."""
    place = tmp_path_factory.mktemp("clip")
    text = tiny.text_tower(12).config
    vision = tiny.clip_photo_tower(12).config
    torch.manual_seed(0)
    both = {"text_config": text.to_dict(), "vision_config": vision.to_dict()}
    CLIPModel(CLIPConfig(projection_dim=12, **both)).save_pretrained(place)
    tiny.tokenizer().save_pretrained(place)
    size, crop = {"shortest_edge": 32}, {"height": 32, "width": 32}
    CLIPImageProcessorPil(size=size, crop_size=crop).save_pretrained(place)
    return place


def test_a_clip_of_the_hub_takes_the_place_of_the_towers(clip, photos, tmp_path):
    knobs = {"encoders_name_or_path": str(clip), "new_network": True, "text_weight": 0.1}
    network = {"widths": [4, 6], "depths": [0, 1], "noise": True}
    knobs["network_config"] = json.dumps(network)
    train_text_editor.main(config(clip, photos, tmp_path, task="inpaint", **knobs))
    pipe = load_editor(tmp_path / "pipeline")
    assert pipe.inpainter.config.condition_dim == pipe.embedding_dim == 12


def test_a_clip_sees_photos_as_its_processor_makes_them(clip):
    pipe = train_text_editor.encoders_of(str(clip))
    photo = (255 * tiny.image(40, 56)).round() / 255
    pixels = (255 * photo[0]).round().byte().permute(1, 2, 0).numpy()
    inputs = pipe.photo_processor(images=Image.fromarray(pixels), return_tensors="pt")
    with torch.no_grad():
        expected = pipe.photo_encoder(**inputs).image_embeds
    expected = torch.nn.functional.normalize(expected, dim=-1)
    torch.testing.assert_close(pipe.embed_photos(photo), expected)


def test_a_missing_clip_is_named(photos, tmp_path):
    knobs = {"encoders_name_or_path": str(tmp_path / "none"), "new_network": True}
    with pytest.raises(ValueError, match="--encoders_name_or_path"):
        train_text_editor.main(config(tmp_path, photos, tmp_path / "run", **knobs))


def test_a_restoration_checkpoint_lends_its_encoders(photos, tmp_path):
    lenders = {
        "photo_encoder": tiny.photo_encoder(),
        "photo_processor": PhotoProcessor(32),
        "photo_text_encoder": tiny.text_tower(),
        "photo_tokenizer": tiny.tokenizer(),
    }
    tiny.pipeline(**lenders).save_pretrained(tmp_path / "guided")
    network = json.dumps({"widths": [4, 6], "depths": [0, 1]})
    knobs = {"new_network": True, "network_config": network, "task": "super-resolution"}
    train_text_editor.main(config(tmp_path / "guided", photos, tmp_path / "run", **knobs))
    assert load_editor(tmp_path / "run" / "pipeline").upscaler is not None


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"task": "sharpen"}, "inpaint, super-resolution, colorize"),
        ({"train_data_dir": []}, "--train_data_dir"),
        ({"network_config": "{}"}, "--new_network"),
        ({"rank": 2, "new_network": True}, "trained already"),
        ({"resolution": 16}, "between 32"),
        ({"least_share": 0.0}, "0 to 1"),
        ({"encoders_name_or_path": "clip"}, "--new_network"),
        ({"train_data_dir": ["photos@2"]}, "all photos alike"),
        ({"validation_degradations": ["gray"]}, "is for restorers"),
        ({"task": "inpaint", "vividness": 1.0}, "--task colorize"),
    ],
)
def test_knobs_that_contradict_are_refused(start, photos, tmp_path, knobs, message):
    with pytest.raises(ValueError, match=message):
        config(start, photos, tmp_path, **knobs)


def test_a_network_that_is_missing_is_named(start, photos, tmp_path):
    tiny.editing_pipeline(upscaler=None).save_pretrained(tmp_path / "part")
    settings = config(tmp_path / "part", photos, tmp_path / "run", task="super-resolution")
    with pytest.raises(ValueError, match="no upscaler"):
        train_text_editor.main(settings)


def test_features_of_another_encoder_are_refused(start, photos, tmp_path):
    pipe = tiny.editing_pipeline()
    settings = config(start, photos, tmp_path, perceptual_weight=0.1)
    pipe.register_modules(photo_encoder=None)
    with pytest.raises(ValueError, match="perceptual_weight"):
        EditorLosses(settings, pipe)


@pytest.mark.parametrize("section", yaml.safe_load(RECORD.read_text()))
def test_the_record_of_the_embedded_editors_is_understood(section):
    settings = parse_config(train_text_editor.Config, ["--config", f"{RECORD}#{section}"])
    assert settings.part == section and settings.new_network


@pytest.mark.parametrize("section", ["inpaint", "super_resolution", "colorize"])
def test_the_recipe_of_the_paper_is_understood(section):
    recipe = f"{TRAIN_LORA / 'recipes' / 'editing' / 'faces_512.yaml'}#{section}"
    settings = parse_config(train_text_editor.Config, ["--config", recipe])
    network = json.loads(settings.network_config)
    assert settings.resolution == 512 and network["noise"]


def test_the_photos_set_aside_are_named():
    names = (TRAIN_LORA / "mini" / "text_editor_set_aside.txt").read_text().split()
    assert len(names) == len(set(names)) == 259
