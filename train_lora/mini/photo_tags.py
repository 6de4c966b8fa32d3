"""Foundation of the towers: which tags are offered, and from which similarity on they are shown.

A tag is a sentence. How near a photo lies to it is standardised over a thousand photos, and a
logistic regression for each tag turns that score into a probability. The truth comes from what was
measured (light) or done (faults), from words of captions, and from `judged_tags.yaml`: captions
leave out much, so photos that score high were looked at.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml

from train_lora.mini.gate_towers import Towers
from train_lora.mini.towers_data import Looks, Photo, join
from train_lora.sentences import fault_labels, light_labels, load_words

JUDGED = Path(__file__).with_name("judged_tags.yaml")
TAG_TEXTS = {"things": "photo of a {}", "places": "taken at the {}", "light": "the photo is {}"}
MOST = {"things": 3, "places": 1, "light": 3, "faults": 2}
# The least probability of what is shown, and of what is called sure. Faults were made by recipes,
# and real ones differ: that of faults was raised after a look at real test photos.
LIKELY = {"things": 0.5, "places": 0.5, "light": 0.5, "faults": 0.7}
SURE = {"things": 0.8, "places": 0.8, "light": 0.8, "faults": 0.9}
LOW_SCORE = 2.0  # below it, a tag that no caption names counts as absent
ENOUGH = 10  # photos that have a tag, for a regression of its own
NEWTON_STEPS = 60
LONGEST_STEP = 2.0  # in slope and offset
COMMON = 0.3  # the largest share of photos that are taken to have a tag
NEVER = 1.01  # a threshold that no probability reaches
STEADINESS = 2.0  # how strongly a tag's regression is held at its group's


def calibrate_tags(
    towers: Towers,
    looks: dict[str, Looks],
    photos: Sequence[Photo],
    unseen: torch.Tensor,
    split: str = "choose",
) -> dict[str, dict]:
    """Tags in four groups, each with the numbers that turn a similarity into a probability.

    A tag is shown from the least probability on at which 80 % of those shown were right, and called
    sure from 90 %, but never below `LIKELY` and `SURE` of its group. A tag that few photos have
    goes by its group. A tag of which no such probability is known is not offered. Photos that have
    a tag count less where they are more than `COMMON` of all: captions were written of people.

    Args:
        towers: both, with the image tower as it will be published.
        looks: "clean" and "degraded" of all photos, "recoloured" of those that are not for
            training, and "varied" of those of `split`.
        photos: all, in the order that the others count in.
        unseen: unit vectors `(len(photos), D)` of photos as they are, from heads of content that
            had not seen them; things and places are calibrated on these.
        split: the photos on which light and faults are calibrated.

    Returns:
        for each group `{"most": int, "coverage": share of photos with a tag, "tags": [...]}`; each
        tag has name, text, mean, deviation, slope, offset, threshold, sure.
    """
    words, calibration = load_words(), {}
    learnt = torch.tensor([photo.split != "test" for photo in photos])
    for group, names in words["tags"].items():
        texts = [tag_text(group, name, words) for name in names]
        embeds = towers.embed_texts(texts)
        if group in ("things", "places"):
            seen, ordinary = unseen[learnt], unseen[learnt]
            scores, mean, deviation = standardised(seen, ordinary, embeds)
            some = [photo for photo in photos if photo.split != "test"]
            present, known = said_truth(group, names, some, scores, words)
        else:
            ordinary = ordinary_photos(group, towers, looks, learnt)
            truth, present = made_truth(group, names, looks, photos, split, words)
            seen = towers.embed_looks(truth)
            scores, mean, deviation = standardised(seen, ordinary, embeds)
            known = torch.ones_like(present)
        lines = fit_lines(scores, present, known)
        probabilities = (lines[:, 0] * scores + lines[:, 1]).sigmoid()
        floors = (LIKELY[group], SURE[group])
        thresholds = fit_thresholds(probabilities, present, known, floors)
        tags = [
            {
                "name": name,
                "text": texts[number],
                "mean": round(mean[number].item(), 5),
                "deviation": round(deviation[number].item(), 5),
                "slope": round(lines[number, 0].item(), 4),
                "offset": round(lines[number, 1].item(), 4),
                "threshold": thresholds[number][0],
                "sure": thresholds[number][1],
            }
            for number, name in enumerate(names)
        ]
        shown = probabilities >= torch.tensor([tag["threshold"] for tag in tags])
        calibration[group] = {
            "most": MOST[group],
            "coverage": round(shown.any(1).float().mean().item(), 3),
            "tags": [tag for tag in tags if tag["threshold"] < NEVER],
        }
    return calibration


def tag_text(group: str, name: str, words: dict) -> str:
    """The sentence that stands for a tag."""
    if group == "faults":
        return f"photo with {words['faults'][name]['nouns'][0]}"
    if group == "light" and name in words["colours"]:
        return f"mostly {name}"
    return TAG_TEXTS[group].format(name)


# ---- scores


def standardised(
    seen: torch.Tensor, ordinary: torch.Tensor, embeds: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores `(N, tags)` of photos `(N, D)`, in deviations from the mean similarity of ordinary
    photos `(M, D)` to tags `(tags, D)`; and that mean and deviation `(tags,)`."""
    similarity = ordinary @ embeds.T
    mean, deviation = similarity.mean(0), similarity.std(0, correction=0).clamp(min=1e-4)
    return (seen @ embeds.T - mean) / deviation, mean, deviation


def ordinary_photos(
    group: str, towers: Towers, looks: dict[str, Looks], learnt: torch.Tensor
) -> torch.Tensor:
    """A thousand photos `(1000, D)` of a mask `(photos,)`; for faults half of them degraded."""
    count = 500 if group == "faults" else 1000
    some = towers.embed_looks(looks["clean"].of(learnt).of(slice(count)))
    if group != "faults":
        return some
    degraded = looks["degraded"]
    worse = degraded.of(learnt[degraded.photo]).of(slice(count))
    return torch.cat([some, towers.embed_looks(worse)])


# ---- what is true


def made_truth(
    group: str,
    names: Sequence[str],
    looks: dict[str, Looks],
    photos: Sequence[Photo],
    split: str,
    words: dict,
) -> tuple[Looks, torch.Tensor]:
    """Images to fit light or faults on, and which tags are true of them `(N, tags)`."""
    chosen = torch.tensor([photo.split == split for photo in photos])
    seen = [looks["clean"].of(chosen), looks["degraded"].of(chosen[looks["degraded"].photo])]
    seen.append(looks["varied"])
    if group == "light":
        held_out = [photo.split == split for photo in photos if photo.split != "train"]
        held_out = torch.tensor(held_out)
        seen.append(looks["recoloured"].of(held_out[looks["recoloured"].photo]))
        images = join(seen)
        columns = [light_labels(words).index(name) for name in names]
        return images, images.light[:, columns] > 0.5
    images = join(seen)
    return images, images.faults[:, [fault_labels(words).index(name) for name in names]] > 0


def said_truth(
    group: str, names: Sequence[str], photos: Sequence[Photo], scores: torch.Tensor, words: dict
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which names are true of photos `(N, names)`, and of which that is known.

    A photo that was judged by eye is known, and so are ImageNet's animals. A caption that names a
    thing is right. Where captions do not name it, it is absent if the score is low; unless nothing
    of a tag was judged, because captions rarely leave it out.
    """
    tables = yaml.safe_load(JUDGED.read_text(encoding="utf-8"))
    judged = tables[group]
    captioned = torch.tensor([bool(photo.captions) for photo in photos])[:, None]
    said = torch.tensor([mentioned(names, photo.captions, words["synonyms"]) for photo in photos])
    low = scores < LOW_SCORE
    for column, name in enumerate(names):
        low[:, column] |= name not in judged
    known = captioned & (said | low)
    present = said.clone()
    for row, photo in enumerate(photos):
        shown = animal_truth(photo.path.name, tables["animals"], tables["people"])
        shown |= {
            name: files[photo.path.name]
            for name, files in judged.items()
            if photo.path.name in files
        }
        for name, right in shown.items():
            if name in names:
                column = names.index(name)
                present[row, column], known[row, column] = bool(right), True
    return present, known


def animal_truth(
    file: str, animals: dict[str, list[list[int]]], people: Sequence[str]
) -> dict[str, bool]:
    """Which animals and people a photo of ImageNet's animals shows, by the number in its name; of
    other photos nothing."""
    numbered = re.match(r"n(\d{8})_", file)
    number = int(numbered[1]) if numbered else 0
    families = {
        name: any(first <= number <= last for first, last in ranges)
        for name, ranges in animals.items()
    }
    if not any(families.values()):
        return {}
    return {**dict.fromkeys(people, False), **families}


def mentioned(
    names: Sequence[str], captions: Sequence[str], synonyms: dict[str, list[str]]
) -> list[bool]:
    """Which names stand in the captions, as one or several, or under another name."""
    text = " " + " ".join(re.findall("[a-z]+", " ".join(captions).lower())) + " "
    found = []
    for name in names:
        forms = [name, f"{name}s", f"{name}es", *synonyms.get(name, [])]
        found.append(any(f" {form} " in text for form in forms))
    return found


# ---- probabilities and thresholds


def fit_lines(scores: torch.Tensor, present: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Slope and offset of a logistic regression for each tag `(tags, 2)`, near that of its group.

    Args:
        scores: `(N, tags)`.
        present: what is true `(N, tags)`.
        known: where that is known `(N, tags)`.
    """
    weights = weights_of(present, known)
    start = torch.tensor([1.0, -3.0])
    # A little steadiness: of few photos a line may tell all, and its slope would have no end.
    group = fit_line(scores[known], present[known], weights[known], start, 1e-3)
    lines = []
    for column in range(scores.shape[1]):
        which = known[:, column]
        enough = present[which, column].sum() >= ENOUGH
        steadiness = STEADINESS if enough else 10 * STEADINESS
        some = (values[which, column] for values in (scores, present, weights))
        lines.append(fit_line(*some, group, steadiness))
    return torch.stack(lines)


def fit_line(
    scores: torch.Tensor,
    present: torch.Tensor,
    weights: torch.Tensor,
    start: torch.Tensor,
    steadiness: float,
) -> torch.Tensor:
    """Slope and offset `(2,)` of a weighted logistic regression `(N,)`, held near `start`, by
    Newton's method with steps of limited length."""
    inputs = torch.stack([scores, torch.ones_like(scores)], dim=1).double()
    target, weights, line = present.double(), weights.double(), start.double()
    for _ in range(NEWTON_STEPS):
        probability = (inputs @ line).sigmoid()
        gradient = inputs.T @ (weights * (probability - target))
        gradient = gradient + 2 * steadiness * (line - start)
        curvature = (inputs.T * (weights * probability * (1 - probability))) @ inputs
        curvature = curvature + (2 * steadiness + 1e-6) * torch.eye(2, dtype=torch.float64)
        step = torch.linalg.solve(curvature, gradient)
        line = line - step / (step.norm() / LONGEST_STEP).clamp(min=1)
    return line.float()


def weights_of(present: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """How much each photo counts for each tag `(N, tags)`: 1, but less for those that have a tag
    which more than `COMMON` of the known ones have."""
    right, wrong = (present & known).sum(0), (~present & known).sum(0)
    less = (COMMON / (1 - COMMON) * wrong / right.clamp(min=1)).clamp(max=1)
    return torch.where(present, less, 1.0)


def fit_thresholds(
    probabilities: torch.Tensor,
    present: torch.Tensor,
    known: torch.Tensor,
    floors: tuple[float, float] = (0.5, 0.8),
) -> list[tuple[float, float]]:
    """From which probability on each tag is shown, and called sure, but never below `floors`; a tag
    with few photos goes by all such tags of its group together, if two photos show that it is
    right."""
    weights = weights_of(present, known)
    enough = (present & known).sum(0) >= ENOUGH
    rare = known & ~enough
    tables = (probabilities, present, weights)
    shared = thresholds_of(*(values[rare] for values in tables), ENOUGH, floors)
    found = []
    for column in range(probabilities.shape[1]):
        which = known[:, column]
        own = thresholds_of(*(values[which, column] for values in tables), 2, floors)
        if enough[column] or own[0] == NEVER:
            found.append(own)
        else:
            found.append((max(own[0], shared[0]), max(own[1], shared[1])))
    return found


def thresholds_of(
    probabilities: torch.Tensor,
    present: torch.Tensor,
    weights: torch.Tensor,
    least: int,
    floors: tuple[float, float],
) -> tuple[float, float]:
    """Both thresholds of probabilities `(N,)`, of which `present` `(N,)` are right."""
    shown = max(threshold(probabilities, present, weights, 0.8, least), floors[0])
    sure = threshold(probabilities, present, weights, 0.9, least)
    return shown, max(sure, floors[1], shown)


def threshold(
    probabilities: torch.Tensor,
    present: torch.Tensor,
    weights: torch.Tensor,
    precision: float,
    least: int,
) -> float:
    """The least probability of a right one from which on that share is right, by weights and with
    at least so many right ones; `NEVER` where there is none. All `(N,)`."""
    order = probabilities.argsort(descending=True)
    hits, counts = present[order], weights[order]
    share = (hits * counts).cumsum(0) / counts.cumsum(0)
    good = hits & (share >= precision) & (hits.cumsum(0) >= least)
    if not good.any():
        return NEVER
    # Rounded down: the one that was right is shown.
    return int(1e4 * probabilities[order][good.nonzero()[-1, 0]].item()) / 1e4
