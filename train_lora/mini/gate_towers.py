"""Measures the two towers on photos and captions that nothing was trained or chosen on.

    python -m train_lora.mini.gate_towers --result runs/towers/result \
        --captioned_dir CAPTIONED --photo_dirs PHOTOS OTHERS --json gates.json

Four gates: the right photo of 500 for a caption; the right one of eleven colour names for a
recoloured photo; the right one of eight degradations at medium level, or none; and the nearest of
500 photos as they are to a degraded one.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import AutoTokenizer, CLIPTextModelWithProjection, HfArgumentParser

from textir.degradations import LABELS
from textir.models.photo_encoder import PhotoEncoder, PhotoProcessor
from train_lora.mini.towers_data import Looks, Photo, Viewer, list_photos, look_at_all
from train_lora.photo_labels import COLOURS
from train_lora.sentences import fault_labels, light_labels, load_words

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


if __name__ == "__main__":
    main(
        HfArgumentParser(Config, description=__doc__.split("\n")[0]).parse_args_into_dataclasses()[
            0
        ]
    )
