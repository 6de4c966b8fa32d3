"""A caption loses its words for degradations and nothing else."""

import re

import pytest

from textir.degradations import RECIPES
from train_lora.captions import DEGRADATION_WORDS, without_degradations

EVERY_WORD = sorted({word for words in DEGRADATION_WORDS.values() for word in words})


@pytest.mark.parametrize(
    "caption",
    [
        "a photo of a dog on a street, at night.",
        "a rainbow over a train, a brain and a drain",  # words within words
        "the darkroom of a dimpled, wetland mister; hazelnuts",
        "a cat in a box",
        "walking through the park, with a dog on a leash",
        "",
    ],
)
def test_a_caption_without_such_words_stays_as_it_is(caption):
    assert without_degradations(caption) == caption


@pytest.mark.parametrize("word", EVERY_WORD)
def test_every_word_is_deleted_in_any_letter_case(word):
    for spelling in (word, word.upper(), word.capitalize()):
        assert without_degradations(f"a {spelling} photo of a dog") == "a photo of a dog"
        assert without_degradations(f"a very {spelling} photo of a dog") == "a photo of a dog"


@pytest.mark.parametrize("word", EVERY_WORD)
def test_a_caption_that_is_only_such_a_word_leaves_nothing(word):
    assert without_degradations(word) == ""


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a rainy photo of a dog", "a photo of a dog"),
        ("a photo of a street, rainy", "a photo of a street"),
        ("a dog in heavy rain, looking up", "a dog, looking up"),
        ("a dog in the rain, looking up", "a dog, looking up"),
        ("a dog with noise.", "a dog."),
        ("a low-light out-of-focus photo of a   cat", "a photo of a cat"),
        ("a motion-blurred street", "a street"),
        ("misty mountains; foggy", "mountains"),
    ],
)
def test_what_hung_on_a_word_goes_with_it(caption, expected):
    assert without_degradations(caption) == expected


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a dog in the rain", "a dog"),
        ("a dog in rain", "a dog"),
        ("a house through the fog", "a house"),
    ],
)
def test_a_preposition_does_not_dangle_at_the_end(caption, expected):
    assert without_degradations(caption) == expected


@pytest.mark.parametrize(
    "caption",
    [
        "a photo, blurry, noisy.",
        "a dim, out-of-focus, grainy photo",
        "hazy, a street, dark, at night",
    ],
)
def test_commas_are_not_left_alone(caption):
    kept = without_degradations(caption)
    assert not re.search(r"[,;]\s*[,;.]|^[\s,;.]|[\s,;]$|\s[,.;]", kept), kept


@pytest.mark.parametrize("word", EVERY_WORD)
@pytest.mark.parametrize(
    "caption",
    [
        "a {} dog, at night",
        "a dog, {}, at night.",
        "{} dog in the {}, at a lake",
        "a dog with {} and a cat",
    ],
)
def test_doing_it_twice_changes_nothing(caption, word):
    kept = without_degradations(caption.format(word, word))
    assert without_degradations(kept) == kept
    assert not re.search(rf"\b{re.escape(word)}\b", kept)


def test_there_are_words_for_every_degradation_that_a_caption_would_mention():
    labels = {ingredient.label for ingredient in RECIPES.values()}
    assert set(DEGRADATION_WORDS) <= labels and labels - set(DEGRADATION_WORDS) == {"downup"}
    assert all(DEGRADATION_WORDS.values())
