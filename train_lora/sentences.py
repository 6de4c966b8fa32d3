"""Foundation of the text tower: the sentences from which it learns, made up from lists of words.

Captions alone hardly say what can be wrong with a photo: "fog" stands in one of 5,795. So
`sentences.yaml` lists things, places, weather, colours and faults with their synonyms, and this
file puts them together. What a sentence means is written beside it: the part that a sentence
encoder can judge, and labels of colour, light and faults, which no sentence encoder tells apart
("remove the rain" and "do not remove the rain" have a cosine of 0.90 in MiniLM).
"""

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

WORDS = Path(__file__).with_name("sentences.yaml")
CLASS_NAMES = Path(__file__).with_name("imagenet_names.txt")
PLACES_OF_COLOUR = ("top", "bottom")
PHRASES_OF_PLACE = {
    "top": ("{} at the top", "{} above", "a {} upper half", "{} in the upper part", "{} on top"),
    "bottom": ("{} at the bottom", "{} below", "a {} lower half", "{} in the lower part"),
}
COLOUR_PHRASES = (
    "mostly {}",
    "{}",
    "{} tones",
    "a lot of {}",
    "{} everywhere",
    "{} colours dominate",
    "in {}",
    "all {}",
)
PHOTO_NAMES = ("photo", "picture", "image", "photograph", "shot", "snapshot")


@dataclass(frozen=True)
class Sentence:
    """A text and what it means.

    Attributes:
        text: what the tower reads.
        content: what a sentence encoder shall judge; empty where the text names nothing to see.
        light: labels of colour and light that it names, see `light_labels`.
        faults: labels of faults that it names, or "clean".
    """

    text: str
    content: str = ""
    light: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()


def load_words(path: Path = WORDS) -> dict:
    """The lists of words, by the name of their list.

    Raises:
        OSError: if the file cannot be read.
    """
    return yaml.safe_load(Path(path).read_text())


def load_class_names(path: Path = CLASS_NAMES) -> list[str]:
    """The names of the 1,000 ImageNet classes, in the order of a classifier's outputs.

    Raises:
        OSError: if the file cannot be read.
    """
    return Path(path).read_text().splitlines()


def light_labels(words: dict) -> tuple[str, ...]:
    """Labels of colour and light: colours, colours at the top and at the bottom, kinds of light."""
    places = [f"{colour} {place}" for place in PLACES_OF_COLOUR for colour in words["colours"]]
    return (*words["colours"], *places, *words["light"])


def fault_labels(words: dict) -> tuple[str, ...]:
    """Labels of what can be wrong, "clean" the last."""
    return tuple(words["faults"])


# ---- sentences about what is to be seen


def scenes(words: dict, count: int, draw: random.Random) -> list[str]:
    """People, animals and things that do something somewhere, such as "A dog jumping in the snow".

    Args:
        words: see `load_words`.
        count: how many.
        draw: source of randomness.
    """
    return [_scene(words, draw) for _ in range(count)]


def _scene(words: dict, draw: random.Random) -> str:
    kind = draw.random()
    if kind < 0.3:
        parts = [draw.choice(words["people"]), draw.choice(words["actions"])]
    elif kind < 0.5:
        parts = [draw.choice(words["beasts"]), draw.choice(words["beast_actions"])]
    else:
        parts = [_thing(words, draw)]
    if draw.random() < 0.35:
        parts += [draw.choice(words["relations"]), _thing(words, draw)]
    if draw.random() < 0.5:
        parts += [draw.choice(words["place_relations"]), draw.choice(words["places"])]
    if draw.random() < 0.12:
        parts += [f"at {draw.choice(words['moments'])}"]
    if draw.random() < 0.08:
        parts += [f"on a {draw.choice(words['weathers'])} day"]
    text = " ".join(parts)
    return text.capitalize() + draw.choice(("", ".")) if draw.random() < 0.5 else text


def _thing(words: dict, draw: random.Random) -> str:
    thing, adjective = draw.choice(words["things"]), draw.choice(words["adjectives"])
    name = f"{adjective} {thing}" if draw.random() < 0.5 else thing
    ending = "es" if name.endswith(("s", "sh", "ch", "x")) else "s"
    several = name + ending
    return draw.choice((with_article(name), f"the {name}", f"two {several}", f"several {several}"))


def with_article(name: str) -> str:
    """ "apple" -> "an apple"."""
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def weather_scenes(words: dict, count: int, draw: random.Random) -> list[str]:
    """Places with weather and time of day, such as "a foggy harbour at dawn"."""
    texts = []
    for _ in range(count):
        weather, place = draw.choice(words["weathers"]), draw.choice(words["places"])
        moment = draw.choice(words["moments"])
        forms = (
            f"a {weather} day at the {place}",
            f"the {place} at {moment}",
            f"a {weather} {place}",
            f"{weather} {place} at {moment}",
            f"a {place} in {weather} weather",
            f"taken at the {place} on a {weather} {moment}",
            f"a photo taken in the {place}",
        )
        texts.append(draw.choice(forms))
    return texts


def recombined(captions: Sequence[str], count: int, draw: random.Random) -> list[str]:
    """New captions from halves of true ones, cut before a preposition: "A man in a red shirt" and
    "on a beach with two dogs".

    Args:
        captions: true ones.
        count: how many.
        draw: source of randomness.
    """
    if not captions:
        return []
    cut = re.compile(r"\s(?=(?:on|in|at|with|near|by|next to|behind|under|over|through|while)\s)")
    halves = [cut.split(caption.strip().rstrip("."), maxsplit=1) for caption in captions]
    heads = [parts[0] for parts in halves if len(parts) == 2]
    tails = [parts[1] for parts in halves if len(parts) == 2]
    if not heads:
        return []
    return [f"{draw.choice(heads)} {draw.choice(tails)}" for _ in range(count)]


def names_in_templates(names: Iterable[str], templates: Sequence[str]) -> list[str]:
    """Every name in every template."""
    return [template.format(name) for name in names for template in templates]


# ---- sentences about colour, light and faults


def light_sentence(words: dict, labels: Sequence[str], draw: random.Random) -> Sentence:
    """A sentence that says of a photo what its light and colours are, in random words.

    Args:
        words: see `load_words`.
        labels: of `light_labels`; one phrase for each.
        draw: source of randomness.
    """
    photo = draw.choice(PHOTO_NAMES)
    phrases = [light_phrase(words, label, draw) for label in labels]
    joined = draw.choice((" and ", ", ", " with ")).join(phrases)
    forms = (
        "{joined}",
        "a {photo} that is {joined}",
        "the {photo} is {joined}",
        "the {photo} looks {joined}",
        "{joined} {photo}",
        "a {joined} {photo}",
        "{photo}: {joined}",
        "it is {joined}",
    )
    text = draw.choice(forms).format(joined=joined, photo=photo)
    return Sentence(text, light=tuple(labels))


def light_phrase(words: dict, label: str, draw: random.Random) -> str:
    """What one label of colour or light is called, in random words."""
    if label in words["light"]:
        return draw.choice(words["light"][label])
    colour, _, place = label.partition(" ")
    phrases = PHRASES_OF_PLACE[place] if place else COLOUR_PHRASES
    return draw.choice(phrases).format(colour)


def fault_sentence(words: dict, labels: Sequence[str], draw: random.Random) -> Sentence:
    """A sentence that says what is wrong with a photo, as a description, a complaint or a wish.

    Args:
        words: see `load_words`.
        labels: of `fault_labels`; named one after the other.
        draw: source of randomness.
    """
    photo = draw.choice(PHOTO_NAMES)
    if len(labels) == 1 and draw.random() < 0.15 and words["faults"][labels[0]]["sentences"]:
        return Sentence(draw.choice(words["faults"][labels[0]]["sentences"]), faults=tuple(labels))
    if draw.random() < 0.5:
        phrase = " and ".join(draw.choice(words["faults"][la]["adjectives"]) for la in labels)
        forms = (
            "{phrase}",
            "a {phrase} {photo}",
            "the {photo} is {phrase}",
            "the {photo} looks {phrase}",
            "{phrase} {photo}",
            "it is {phrase}",
            "it was {phrase}",
            "a very {phrase} {photo}",
            "this {photo} is so {phrase}",
        )
    else:
        phrase = " and ".join(draw.choice(words["faults"][la]["nouns"]) for la in labels)
        forms = (
            "{phrase}",
            "{photo} with {phrase}",
            "there is {phrase} in the {photo}",
            "full of {phrase}",
            "{phrase} all over the {photo}",
            "spoilt by {phrase}",
            "a {photo} with {phrase}",
            "too much {phrase}",
        )
        if "clean" not in labels and draw.random() < 0.3:
            wish = draw.choice(words["wishing"])
            forms = (wish + " the {phrase}", wish + " {phrase}")
    return Sentence(draw.choice(forms).format(phrase=phrase, photo=photo), faults=tuple(labels))


def denial(words: dict, draw: random.Random) -> Sentence:
    """A sentence that denies a fault, "no noise"; it means a clean photo."""
    label = draw.choice([label for label in words["faults"] if label != "clean"])
    phrase = f"{draw.choice(words['denials'])} {draw.choice(words['faults'][label]['nouns'])}"
    if draw.random() < 0.3:
        phrase = f"not {draw.choice(words['faults'][label]['adjectives'])}"
    forms = ("{}", "a photo, {}", "the photo is good, {}", "{} in the picture")
    return Sentence(draw.choice(forms).format(phrase), faults=("clean",))


def decorated(sentence: Sentence, words: dict, draw: random.Random) -> Sentence:
    """A sentence about things to which light, faults or both are added, as people write: "a dark
    photo of a man riding a horse"."""
    light, faults = sentence.light, sentence.faults
    text = sentence.text.rstrip(".")
    lowered = text[0].lower() + text[1:] if text else text
    before, behind = [], []
    for label in light:
        phrase = light_phrase(words, label, draw)
        (before if phrase.count(" ") == 0 and draw.random() < 0.6 else behind).append(phrase)
    for label in faults:
        terms = words["faults"][label]
        if draw.random() < 0.6:
            before.append(draw.choice(terms["adjectives"]))
        else:
            behind.append("with " + draw.choice(terms["nouns"]))
    draw.shuffle(before)
    if before:
        photo = draw.choice(PHOTO_NAMES)
        text = f"{with_article(', '.join(before))} {photo} of {lowered}"
    if behind:
        text = f"{text}, {', '.join(behind)}"
    return replace(sentence, text=text)


def misspelt(text: str, draw: random.Random) -> str:
    """The text with one typing error: two letters swapped, one lost or one doubled."""
    places = [i for i in range(1, len(text) - 2) if text[i].isalpha() and text[i + 1].isalpha()]
    if not places:
        return text
    at = draw.choice(places)
    return draw.choice(
        (
            text[:at] + text[at + 1] + text[at] + text[at + 2 :],
            text[:at] + text[at + 1 :],
            text[:at] + text[at] + text[at:],
        )
    )


# ---- the corpus


def make_corpus(
    captions: Sequence[str],
    class_names: Sequence[str] = (),
    vocabulary: Sequence[str] = (),
    scale: float = 1.0,
    seed: int = 0,
) -> list[Sentence]:
    """All sentences of a training, without repetition.

    Args:
        captions: true ones, of photos that may be learnt from.
        class_names: names of things, each put into every template.
        vocabulary: plain words, each said once.
        scale: of the number of made-up sentences; 1 makes about 125,000.
        seed: the same seed makes the same corpus.
    """
    words, draw = load_words(), random.Random(seed)

    def many(count: int) -> range:
        return range(round(scale * count))

    texts = [*captions, *scenes(words, len(many(30_000)), draw)]
    texts += recombined(captions, len(many(25_000)), draw)
    texts += weather_scenes(words, len(many(5_000)), draw)
    texts += names_in_templates(class_names, words["templates"])
    tags = [*words["things"], *words["places"], *words["tags"]["things"], *words["tags"]["places"]]
    texts += names_in_templates(dict.fromkeys(tags), words["templates"])
    texts += list(vocabulary)
    sentences = [Sentence(text, content=text) for text in texts]
    light, faults = light_labels(words), fault_labels(words)
    for _ in many(12_000):
        labels = draw.sample(light, draw.choice((1, 1, 1, 2)))
        sentences.append(light_sentence(words, labels, draw))
    for _ in many(16_000):
        labels = draw.sample(faults[:-1], draw.choice((1, 1, 1, 2)))
        sentences.append(fault_sentence(words, labels, draw))
    sentences += [fault_sentence(words, ("clean",), draw) for _ in many(2_500)]
    sentences += [denial(words, draw) for _ in many(2_500)]
    whole = [sentence for sentence in sentences if sentence.content]
    for _ in many(12_000):
        chosen_light = draw.sample(light, draw.choice((0, 1, 1, 2)))
        chosen_faults = draw.sample(faults, draw.choice((0, 1, 1)))
        sentence = replace(
            draw.choice(whole), light=tuple(chosen_light), faults=tuple(chosen_faults)
        )
        sentences.append(decorated(sentence, words, draw))
    for _ in many(8_000):
        sentence = draw.choice(sentences)
        sentences.append(replace(sentence, text=misspelt(sentence.text, draw)))
    return merged(sentences)


def merged(sentences: Iterable[Sentence]) -> list[Sentence]:
    """Each text once, with all that it was said to mean: "flat" is a light and a fault."""
    found: dict[str, Sentence] = {}
    for sentence in sentences:
        known = found.get(sentence.text, sentence)
        found[sentence.text] = Sentence(
            sentence.text,
            known.content or sentence.content,
            tuple(dict.fromkeys((*known.light, *sentence.light))),
            tuple(dict.fromkeys((*known.faults, *sentence.faults))),
        )
    return list(found.values())
