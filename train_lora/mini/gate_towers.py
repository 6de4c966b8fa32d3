"""Measures the two towers on photos and captions that nothing was trained or chosen on.

    python -m train_lora.mini.gate_towers --result runs/towers/result \
        --captioned_dir CAPTIONED --photo_dirs PHOTOS OTHERS --json gates.json

Four gates: the right photo of 500 for a caption; the right one of eleven colour names for a
recoloured photo; the right one of eight degradations at medium level, or none; and the nearest of
500 photos as they are to a degraded one. Here too: the calibration of tags.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import AutoTokenizer, CLIPTextModelWithProjection, HfArgumentParser

from textir.degradations import LABELS
from textir.models.photo_encoder import PhotoEncoder, PhotoProcessor
from train_lora.mini.photo_labels import COLOURS
from train_lora.mini.sentences import fault_labels, light_labels, load_words
from train_lora.mini.towers_data import Looks, Photo, Viewer, join, list_photos, look_at_all

GATES = {
    "caption finds its photo first": 0.25,
    "caption finds its photo in ten": 0.65,
    "colour name": 0.85,
    "degradation or none": 0.90,
    "photo through degradation": 0.90,
}
DEGRADATION_TEXTS = {
    "noise": ("a noisy photo", "a grainy picture", "photo with noise"),
    "rain": ("a rainy photo", "rain streaks in the picture", "photo with rain"),
    "haze": ("a hazy photo", "a foggy picture", "photo with haze"),
    "blur": ("a photo with motion blur", "a shaky picture", "camera shake"),
    "defocus": ("a photo out of focus", "an unfocused picture", "the focus missed"),
    "lowlight": ("a photo that is too dark", "an underexposed picture", "not enough light"),
    "jpeg": ("a blocky photo", "a compressed picture", "photo with JPEG artefacts"),
    "downup": ("a low-resolution photo", "an upscaled picture", "missing resolution"),
    "clean": ("a clean photo", "a flawless picture", "nothing wrong"),
}
TAG_TEXTS = {"things": "photo of a {}", "places": "taken at the {}", "light": "the photo is {}"}
MOST = {"things": 3, "places": 1, "light": 3, "faults": 2}
NEVER = 1.01  # a threshold that no probability reaches


@dataclass(kw_only=True)
class Config:
    result: str = field(metadata={"help": "folder with both towers, from train_towers"})
    captioned_dir: str = field(metadata={"help": "photos with metadata.jsonl: file_name, captions"})
    photo_dirs: list[str] = field(default_factory=list, metadata={"help": "other photos"})
    test_photos: int = field(default=500, metadata={"help": "as in train_towers"})
    choose_photos: int = field(default=120, metadata={"help": "as in train_towers"})
    split: str = field(default="test", metadata={"help": "test, or choose"})
    cache: str = field(default="runs/gate_towers", metadata={"help": "where looks are kept"})
    json: str = field(default="gates.json", metadata={"help": "file for the figures"})
    seed: int = field(default=1, metadata={"help": "of the degradations"})


def main(config: Config) -> None:
    """Everything from the published files, in float32."""
    photos = list_photos(
        config.captioned_dir, config.photo_dirs, config.test_photos, config.choose_photos
    )
    photos = [photo for photo in photos if photo.split == config.split]
    words, cache = load_words(), Path(config.cache)
    towers = Towers.load(config.result)
    viewer = Viewer(
        towers.encoder.network,
        light_labels(words),
        fault_labels(words),
        PhotoProcessor.from_pretrained(f"{config.result}/photo_processor").size,
        dtype=torch.float32,
    )
    looks = {
        name: look_at_all(photos, getattr(viewer, name), cache / name, config.seed)
        for name in ("clean", "degraded", "recoloured")
    }
    print_gates(measure_gates(towers, looks, photos, config.split), Path(config.json))


@dataclass
class Towers:
    """Both towers, ready to measure.

    Attributes:
        encoder: of photos.
        text_encoder: of sentences.
        tokenizer: of sentences.
    """

    encoder: PhotoEncoder
    text_encoder: CLIPTextModelWithProjection
    tokenizer: object

    @classmethod
    def load(cls, folder: str | Path) -> "Towers":
        """From the folders that `train_towers` writes."""
        folder = Path(folder)
        return cls(
            PhotoEncoder.from_pretrained(folder / "photo_encoder").eval(),
            CLIPTextModelWithProjection.from_pretrained(folder / "photo_text_encoder").eval(),
            AutoTokenizer.from_pretrained(folder / "photo_tokenizer"),
        )

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str], batch_size: int = 128) -> torch.Tensor:
        """Unit vectors `(len(texts), D)`."""
        embeds = []
        for start in range(0, len(texts), batch_size):
            inputs = self.tokenizer(
                list(texts[start : start + batch_size]),
                padding=True,
                truncation=True,
                return_tensors="pt",
            )
            embeds.append(F.normalize(self.text_encoder(**inputs).text_embeds, dim=-1))
        return torch.cat(embeds)

    @torch.no_grad()
    def embed_looks(self, looks: Looks) -> torch.Tensor:
        """Unit vectors `(N, D)`."""
        return self.encoder.embed_features(looks.features, looks.statistics)


# ---- the gates


def measure_gates(
    towers: Towers, looks: dict[str, Looks], photos: Sequence[Photo], split: str = "test"
) -> dict[str, float]:
    """Shares of right answers, by the name of the gate.

    Args:
        towers: to be measured.
        looks: "clean", "degraded" and "recoloured"; `photo` of the last counts the photos that are
            not for training.
        photos: all, in the order that the looks count in.
        split: which photos take part.
    """
    chosen = torch.tensor([photo.split == split for photo in photos])
    captioned = torch.tensor([bool(photo.captions) for photo in photos]) & chosen
    held_out = torch.tensor([photo.split == split for photo in photos if photo.split != "train"])
    clean, degraded = looks["clean"], looks["degraded"].of(chosen[looks["degraded"].photo])
    gallery = towers.embed_looks(clean.of(captioned))
    captions = [photo.captions for photo, asked in zip(photos, captioned.tolist()) if asked]
    ranks = caption_ranks(towers, gallery, captions)

    recoloured = looks["recoloured"].of(held_out[looks["recoloured"].photo])
    names = towers.embed_texts([f"mostly {colour}" for colour in COLOURS])
    named = (towers.embed_looks(recoloured) @ names.T).argmax(1)

    twins = looks["degraded"].of(captioned[looks["degraded"].photo])
    index = captioned.nonzero()[:, 0]
    nearest = index[(towers.embed_looks(twins) @ gallery.T).argmax(1)]
    faults = degradation_accuracy(towers, clean.of(chosen), degraded)
    return {
        "photos": len(gallery),
        "captions": ranks.numel(),
        "caption finds its photo first": (ranks < 1).float().mean().item(),
        "caption finds its photo in ten": (ranks < 10).float().mean().item(),
        "median rank": ranks.float().median().item() + 1,
        "recoloured photos": len(recoloured.told),
        "colour name": (named == recoloured.told).float().mean().item(),
        "degraded and clean photos": len(degraded.told) + int(chosen.sum()),
        "degradation or none": sum(faults.values()) / len(faults),
        **{f"degradation {label}": share for label, share in faults.items()},
        "degraded captioned photos": len(twins.told),
        "photo through degradation": (nearest == twins.photo).float().mean().item(),
    }


def caption_ranks(
    towers: Towers, gallery: torch.Tensor, captions: Sequence[Sequence[str]]
) -> torch.Tensor:
    """How many photos of the gallery `(N, D)` come before the right one, for each caption."""
    owners = [number for number, some in enumerate(captions) for _ in some]
    texts = towers.embed_texts([text for some in captions for text in some])
    similarity = texts @ gallery.T
    right = similarity.gather(1, torch.tensor(owners)[:, None])
    return (similarity > right).sum(1)


def degradation_accuracy(towers: Towers, clean: Looks, degraded: Looks) -> dict[str, float]:
    """Share of photos whose nearest of nine descriptions is the right one, for each."""
    labels = (*LABELS, "clean")
    texts = torch.stack(
        [
            F.normalize(towers.embed_texts(DEGRADATION_TEXTS[label]).mean(0), dim=0)
            for label in labels
        ]
    )
    accuracy = {}
    found = (towers.embed_looks(degraded) @ texts.T).argmax(1)
    for number, label in enumerate(LABELS):
        which = degraded.told == number
        if which.any():
            accuracy[label] = (found[which] == number).float().mean().item()
    found = (towers.embed_looks(clean) @ texts.T).argmax(1)
    accuracy["clean"] = (found == len(LABELS)).float().mean().item()
    return accuracy


def print_gates(figures: dict[str, float], path: Path) -> None:
    """Figures as a table beside what was asked, and as JSON."""
    for name, figure in figures.items():
        if name in GATES:
            verdict = "passed" if figure >= GATES[name] else "MISSED"
            print(f"{name:34} {figure:8.3f}   at least {GATES[name]:.2f}: {verdict}")
        else:
            print(
                f"{name:34} {figure:8.3f}" if isinstance(figure, float) else f"{name:34} {figure:8}"
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"figures": figures, "gates": GATES}, indent=1) + "\n")


# ---- tags


def calibrate_tags(
    towers: Towers,
    looks: dict[str, Looks],
    photos: Sequence[Photo],
    unseen: torch.Tensor,
    split: str = "choose",
) -> dict[str, dict]:
    """Tags in four groups, each with the numbers that turn a similarity into a probability.

    Every tag is standardised over 1,000 photos that no gate sees. One slope and offset for each
    group are fitted: for light and faults on photos of `split`, against what was measured and done;
    for things and places against words of captions, on `unseen`, unit vectors `(len(photos), D)`
    of photos as they are from heads of content that had not seen them. A tag is shown from the
    probability on at which 80 % of those shown were right, and called sure from 90 %; with under
    ten photos that have it, a tag goes by its group. Captions are incomplete, so the true precision
    is higher.

    Returns:
        for each group `{"most": int, "coverage": share of photos with a tag, "tags": [...]}` and
        for places "none", the score of no place at all; each tag has name, text, mean, deviation,
        slope, offset, threshold, sure.
    """
    words, calibration = load_words(), {}
    learnt = torch.tensor([photo.split != "test" for photo in photos])
    chosen = torch.tensor([photo.split == split for photo in photos])
    clean, degraded = looks["clean"], looks["degraded"]
    for group, names in words["tags"].items():
        ordinary = towers.embed_looks(clean.of(learnt))[:1000]
        if group == "faults":
            worse = towers.embed_looks(degraded.of(learnt[degraded.photo]))[:1000]
            ordinary = torch.cat([ordinary[:500], worse[:500]])
        texts = [tag_text(group, name, words) for name in names]
        embeds = towers.embed_texts(texts)
        similarity = ordinary @ embeds.T
        mean, deviation = similarity.mean(0), similarity.std(0)
        if group in ("things", "places"):
            captioned = learnt & torch.tensor([bool(photo.captions) for photo in photos])
            ordinary = unseen[captioned]
            mean, deviation = (ordinary @ embeds.T).mean(0), (ordinary @ embeds.T).std(0)
            seen, least = ordinary, 1.0
            present = caption_truth(names, photos, captioned, words)
        else:
            seen, present = made_truth(group, names, clean, degraded, chosen, words)
            seen, least = towers.embed_looks(seen), -10.0
        scores = (seen @ embeds.T - mean) / deviation
        fit = fit_places if group == "places" else fit_group
        slope, offset, none = fit(scores, present)
        probabilities = tag_probabilities(scores, slope, offset, none)
        # Where nearly all photos have it, precision alone would show a tag always.
        shown = torch.where(scores >= least, probabilities, -1.0)
        tags = []
        for number, name in enumerate(names):
            enough = present[:, number].sum() >= 10
            column = slice(number, number + 1) if enough else slice(None)
            tags.append(
                {
                    "name": name,
                    "text": texts[number],
                    "mean": round(mean[number].item(), 5),
                    "deviation": round(deviation[number].item(), 5),
                    "slope": round(slope, 4),
                    "offset": round(offset, 4),
                    "threshold": threshold(shown[:, column], present[:, column], 0.8),
                    "sure": threshold(shown[:, column], present[:, column], 0.9),
                }
            )
        above = probabilities >= torch.tensor([tag["threshold"] for tag in tags])
        coverage = round(above.any(1).float().mean().item(), 3)
        calibration[group] = {"most": MOST[group], "coverage": coverage, "tags": tags}
        if none is not None:
            calibration[group]["none"] = round(none, 4)
    return calibration


def tag_text(group: str, name: str, words: dict) -> str:
    """The sentence that stands for a tag."""
    if group == "faults":
        return f"photo with {words['faults'][name]['nouns'][0]}"
    if group == "light" and name in words["colours"]:
        return f"mostly {name}"
    return TAG_TEXTS[group].format(name)


def made_truth(
    group: str,
    names: Sequence[str],
    clean: Looks,
    degraded: Looks,
    chosen: torch.Tensor,
    words: dict,
) -> tuple[Looks, torch.Tensor]:
    """Images to fit light or faults on, and which tags are true of them `(N, tags)`."""
    seen = join([clean.of(chosen), degraded.of(chosen[degraded.photo])])
    if group == "light":
        columns = [light_labels(words).index(name) for name in names]
        return seen, seen.light[:, columns] > 0.5
    return seen, seen.faults[:, [fault_labels(words).index(name) for name in names]] > 0


def caption_truth(
    names: Sequence[str], photos: Sequence[Photo], captioned: torch.Tensor, words: dict
) -> torch.Tensor:
    """Which names the captions of photos of a mask use `(N, names)`."""
    said = [
        mentioned(names, photo.captions, words["synonyms"])
        for photo, asked in zip(photos, captioned.tolist())
        if asked
    ]
    return torch.tensor(said)


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


def fit_group(scores: torch.Tensor, present: torch.Tensor) -> tuple[float, float, None]:
    """Slope and offset of a logistic regression `(N, tags)` over all tags of a group."""
    line = torch.tensor([1.0, -3.0], requires_grad=True)

    def loss() -> torch.Tensor:
        return F.binary_cross_entropy_with_logits(line[0] * scores + line[1], present.float())

    minimise(loss, line)
    return line[0].item(), line[1].item(), None


def fit_places(scores: torch.Tensor, present: torch.Tensor) -> tuple[float, float, float]:
    """Slope of a softmax over places, and the score of "none", which is right where the captions
    name no place; of several places each has its share."""
    line = torch.tensor([1.0, 3.0], requires_grad=True)
    answers = torch.cat([present.float(), (~present.any(1, keepdim=True)).float()], dim=1)
    answers = answers / answers.sum(1, keepdim=True)

    def loss() -> torch.Tensor:
        logits = torch.cat([line[0] * scores, line[1].expand(len(scores), 1)], dim=1)
        return -(answers * logits.log_softmax(1)).sum(1).mean()

    minimise(loss, line)
    return line[0].item(), 0.0, line[1].item()


def minimise(loss: Callable[[], torch.Tensor], parameters: torch.Tensor) -> None:
    """A few hundred steps, for very few parameters."""
    optimizer = torch.optim.Adam([parameters], lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


def tag_probabilities(
    scores: torch.Tensor, slope: float, offset: float, none: float | None
) -> torch.Tensor:
    """As `PhotoEncoder.read_tags` computes them: `(N, tags)` of standardised similarities."""
    logits = slope * scores + offset
    if none is None:
        return logits.sigmoid()
    none = torch.full((len(scores), 1), none)
    return torch.cat([logits, none], dim=1).softmax(1)[:, :-1]


def threshold(probabilities: torch.Tensor, present: torch.Tensor, precision: float) -> float:
    """The least probability from which on that share of tags is right, with at least ten of them;
    a number above 1 where there is none."""
    order = probabilities.flatten().argsort(descending=True)
    right = present.flatten()[order].float().cumsum(0)
    good = right / torch.arange(1, len(order) + 1) >= precision
    good &= probabilities.flatten()[order] >= 0
    good[:9] = False
    if not good.any():
        return NEVER
    last = good.nonzero()[-1, 0]
    return round(probabilities.flatten()[order][last].item(), 4)


if __name__ == "__main__":
    main(
        HfArgumentParser(Config, description=__doc__.split("\n")[0]).parse_args_into_dataclasses()[
            0
        ]
    )
