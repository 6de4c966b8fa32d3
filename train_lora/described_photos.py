"""Photos in memory with what is said of them, in a text-image space: what the editor learns from.

Everything slow is done once and kept in files, piece by piece: embeddings of photos as they are and
as the editor will see them, of their captions, and of sentences made of words for colours, light
and things.
"""

import hashlib
import logging
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from textir.data.photos import find_entries
from textir.evaluation.meaning import read_captions
from textir.images.picture import read_picture, resize, to_pixels
from textir.machine import writing
from train_lora.photo_labels import COLOURS
from train_lora.sentences import (
    COLOUR_PHRASES,
    PHRASES_OF_PLACE,
    light_labels,
    load_words,
    with_article,
)

logger = logging.getLogger("textir.training")

PIECE = 50  # photos for each file of the cache
THING_FORMS = ("a {}", "a photo of a {}", "the {}")
COLOURED_FORMS = ("a {colour} {thing}", "a photo of a {colour} {thing}", "the {thing} is {colour}")
SYNONYMS = {"grey": ("gray",), "purple": ("violet",)}


@dataclass
class DescribedPhoto:
    """A photo, and what is said of it.

    Attributes:
        pixels: 8-bit RGB `(H, W, 3)`.
        image_embed: of the photo as it is `(D,)`.
        own_embed: of what is given of it at use, such as the photo in gray `(D,)`.
        caption_embeds: of its captions `(N, D)`, N may be 0.
        things: names of things in it, as far as its captions tell.
        captions: the captions themselves.
        maps: where each thing is, 0 to 1 `(len(things), h, w)`; of no things without an encoder
            that tells.
    """

    pixels: np.ndarray
    image_embed: torch.Tensor
    own_embed: torch.Tensor
    caption_embeds: torch.Tensor
    things: tuple[str, ...]
    captions: tuple[str, ...] = ()
    maps: torch.Tensor | None = None


def caption_of_name(name: str) -> str:
    """What a file name says: "n01443537_goldfish.jpg" -> "a goldfish"; nothing of mere numbers."""
    thing = thing_of_name(name)
    return with_article(thing) if thing else ""


def thing_of_name(name: str) -> str:
    """The same without its article: "goldfish"."""
    words = re.sub(r"[^A-Za-z]+", " ", re.sub(r"^n\d{8}", "", Path(name).stem)).strip().lower()
    return words if len(words) >= 3 else ""


def things_in(captions: Sequence[str], words: dict) -> tuple[str, ...]:
    """Names of things of the word list that captions name, plain or in the plural."""
    text = f" {' '.join(captions).lower()} "
    text = re.sub(r"[^a-z ]", " ", text)
    return tuple(thing for thing in words["things"] if re.search(rf" {thing}(s|es)? ", text))


class SpokenWords:
    """Embeddings of made sentences: colours, light, things, and things in a colour.

    Args:
        embed_texts: makes `(T, D)` of T sentences.
        folder: where they are kept.
        names: further things, of which no more than the colour is said.
    """

    def __init__(
        self,
        embed_texts: Callable[[list[str]], torch.Tensor],
        folder: Path,
        names: Sequence[str] = (),
    ):
        self.words = load_words()
        self.light = light_labels(self.words)
        common = dict.fromkeys(self.words["things"])
        self.things = tuple(common)
        said: dict[tuple[str, ...], list[str]] = {}
        for label in self.light:
            said["light", label] = _light_sentences(label, self.words)
        for colour in COLOURS:
            said["colour", colour] = [form.format(colour) for form in COLOUR_PHRASES]
            for other in SYNONYMS.get(colour, ()):
                said["colour", colour] += [form.format(other) for form in COLOUR_PHRASES]
        for thing in dict.fromkeys((*self.things, *names)):
            count = len(THING_FORMS) if thing in common else 1
            said["thing", thing] = [_article(form.format(thing)) for form in THING_FORMS[:count]]
            for colour in COLOURS:
                forms = COLOURED_FORMS[:count]
                forms = [form.format(colour=colour, thing=thing) for form in forms]
                said["coloured", colour, thing] = [_article(form) for form in forms]
        texts = list(dict.fromkeys(chain.from_iterable(said.values())))
        embeds = embed_once(texts, embed_texts, folder)
        place = {text: number for number, text in enumerate(texts)}
        self._said = {}
        for key, phrases in said.items():
            self._said[key] = embeds[list(map(place.__getitem__, phrases))]
        self.mean = embeds.mean(0)

    def draw(self, *key: str, generator: torch.Generator) -> torch.Tensor:
        """The embedding `(D,)` of a sentence with this meaning, such as `("coloured", "red",
        "car")`."""
        embeds = self._said[key]
        return embeds[int(torch.randint(len(embeds), (), generator=generator))]


def _light_sentences(label: str, words: dict) -> list[str]:
    if label in words["light"]:
        return [f"a {phrase} photo" for phrase in words["light"][label]] + words["light"][label]
    colour, _, place = label.partition(" ")
    return [
        phrase.format(colour) for phrase in (PHRASES_OF_PLACE[place] if place else COLOUR_PHRASES)
    ]


def _article(text: str) -> str:
    return re.sub(r"\ba (?=[aeiou])", "an ", text)


def embed_once(
    texts: Sequence[str], embed_texts: Callable[[list[str]], torch.Tensor], folder: Path
) -> torch.Tensor:
    """Embeddings `(len(texts), D)`, kept in `folder` under the hash of the texts."""
    name = hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
    path = folder / f"texts-{name}.safetensors"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        logger.info("embedding %d sentences", len(texts))
        save_whole({"embeds": embed_texts(list(texts)).half()}, path)
    return load_file(path)["embeds"].float()


def save_whole(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Write a file that exists only once it is whole."""
    with writing(path) as temporary:
        save_file({name: value.contiguous() for name, value in tensors.items()}, temporary)


def describe_photos(
    sources: Sequence[str],
    pipe,
    given: Callable[[torch.Tensor], torch.Tensor],
    kind: str,
    folder: Path,
    largest: int,
    smallest: int,
    names_as_captions: bool = False,
    left_out: Collection[str] = (),
) -> list[DescribedPhoto]:
    """Read all photos of folders, with embeddings by the towers of a pipeline.

    Args:
        sources: folders of clean photos, with `metadata.jsonl` where there are captions.
        pipe: a pipeline with `embed_photos` and `embed_texts`.
        given: what is given of a photo `(1, 3, H, W)` at use, of the same form.
        kind: a name for that, by which its embeddings are kept.
        folder: where embeddings are kept; they go by content.
        largest: photos are reduced to so many pixels on the shorter side.
        smallest: photos whose shorter side is less are left out, and counted in the log.
        names_as_captions: whether a file's name says what it shows, where there is no caption.
        left_out: names of files that are set aside.

    Raises:
        ValueError: if nothing is left, or captions cannot be read.
    """
    words, photos, too_small = load_words(), [], 0
    for source in sources:
        described = (Path(source) / "metadata.jsonl").is_file()
        captions = read_captions(source) if described else {}
        paths = [Path(entry.clean) for entry in find_entries(source, "train")]
        for start in range(0, len(paths), PIECE):
            piece = paths[start : start + PIECE]
            read = [(path, read_small(path, largest)) for path in piece]
            kept = [(path, image) for path, image in read if min(image.shape[-2:]) >= smallest]
            too_small += len(piece) - len(kept)
            embeds = _embed_piece(kept, pipe, given, kind, folder)
            for (path, image), pair in zip(kept, embeds):
                if path.name in left_out:
                    continue
                thing = thing_of_name(path.name) if names_as_captions else ""
                said = tuple(captions.get(path.stem, ()))
                if thing and not said:
                    said = (with_article(thing),)
                things = (*([thing] if thing else ()), *things_in(said, words))
                pixels = (255 * to_pixels(image)).round().astype(np.uint8)
                photos.append(DescribedPhoto(pixels, *pair, torch.empty(0), things, said))
    if not photos:
        raise ValueError(
            f"No photo of at least {smallest} pixels on the shorter side in {', '.join(sources)}."
        )
    texts = list(chain.from_iterable(photo.captions for photo in photos))
    embeds = embed_once(texts, pipe.embed_texts, folder) if texts else torch.empty(0, 0)
    first = 0
    for photo in photos:
        photo.caption_embeds = embeds[first : first + len(photo.captions)]
        first += len(photo.captions)
    find_things(photos, pipe, folder)
    logger.info(
        "%d photos, %d with captions, %d left out as too small",
        len(photos),
        sum(len(photo.caption_embeds) > 0 for photo in photos),
        too_small,
    )
    return photos


def read_photo(path: Path) -> torch.Tensor:
    """`(1, 3, H, W)` in [0, 1]; a grey photo has three equal channels."""
    image = read_picture(path).tensor()[:, :3]
    return image.expand(-1, 3, -1, -1) if image.shape[1] != 3 else image


def read_small(path: Path, largest: int) -> torch.Tensor:
    """A photo `(1, 3, H, W)` in [0, 1], reduced to at most `largest` pixels on the shorter side."""
    image = read_photo(path)
    shorter = min(image.shape[-2:])
    if shorter > largest:
        size = [round(side * largest / shorter) for side in image.shape[-2:]]
        image = resize(image, size).clamp(0, 1)
    return image


def _embed_piece(photos, pipe, given, kind: str, folder: Path) -> list[tuple[torch.Tensor, ...]]:
    """`(image_embed, own_embed)` for each of some photos, from the cache where it has them."""
    if not photos:
        return []
    stamps = [f"{path.name} {path.stat().st_size} {tuple(x.shape)}" for path, x in photos]
    name = hashlib.sha256("\n".join(stamps).encode()).hexdigest()[:16]
    found = []
    for part, view in (("image", lambda image: image), (kind, given)):
        path = folder / f"{part}-{name}.safetensors"
        if not path.exists():
            embeds = [pipe.embed_photos(view(image)) for _, image in photos]
            save_whole({"embeds": torch.cat(embeds).half()}, path)
            logger.info("embedded %d photos (%s)", len(photos), part)
        found.append(load_file(path)["embeds"].float())
    return list(zip(*(F.normalize(embeds, dim=-1) for embeds in found)))


# ---- where things are


def all_things(photos: Sequence[DescribedPhoto]) -> list[str]:
    """Names of the things of all photos, sorted."""
    return sorted(set(chain.from_iterable(photo.things for photo in photos)))


@torch.no_grad()
def find_things(photos: Sequence[DescribedPhoto], pipe, folder: Path) -> None:
    """Write into photos where their things are, as far as the photo encoder can tell.

    Each place of its last feature map is embedded as if it were a whole photo, and compared with
    the name of the thing and, to take off what every name has, with those of all other things
    (after Zhou et al., *Extract Free Dense Labels from CLIP*, ECCV 2022). Encoders without such a
    feature map, such as a CLIP of the Hub, leave photos as they are.
    """
    encoder = pipe.photo_encoder
    if not hasattr(encoder, "content_of"):
        return
    width = encoder.config.blocks[0]
    names = all_things(photos)
    if not names:
        return
    said = embed_once([with_article(name) for name in names], pipe.embed_texts, folder)
    said = F.normalize(said[:, :width], dim=-1)
    place = {name: number for number, name in enumerate(names)}
    for first in range(0, len(photos), PIECE):
        piece = [photo for photo in photos[first : first + PIECE] if photo.things]
        if not piece:
            continue
        stamp = "".join(f"{photo.things} {photo.image_embed.sum():.6f}" for photo in piece)
        path = folder / f"maps-{hashlib.sha256(stamp.encode()).hexdigest()[:16]}.safetensors"
        if not path.exists():
            maps = {}
            for number, photo in enumerate(piece):
                rows = said[[place[thing] for thing in photo.things]]
                maps[str(number)] = map_of_things(photo.pixels, encoder, pipe, rows, said).half()
            save_whole(maps, path)
            logger.info("found the things of %d photos", len(piece))
        maps = load_file(path)
        for number, photo in enumerate(piece):
            photo.maps = maps[str(number)].float()


def map_of_things(
    pixels: np.ndarray, encoder, pipe, things: torch.Tensor, all_things: torch.Tensor
) -> torch.Tensor:
    """Where things are in a photo, `(T, h, w)` in [0, 1]: 0 in the half that is least like them.

    Args:
        pixels: 8-bit RGB `(H, W, 3)`.
        encoder: a `PhotoEncoder`.
        pipe: whose `photo_processor` is taken.
        things: content of their names `(T, C)`, unit vectors.
        all_things: content of all names `(N, C)`.
    """
    photo = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    network, x = encoder.network, pipe.photo_processor._squeeze(photo)
    x = F.relu6(network.stem(x))
    for block in network.blocks:
        x = block(x)
    x = F.relu6(network.head(x))[0]
    content = encoder.content_of(x.flatten(1).T)
    likeness = things @ content.T - (all_things @ content.T).mean(0)
    low = likeness.quantile(0.5, dim=1, keepdim=True)
    high = likeness.quantile(0.95, dim=1, keepdim=True)
    found = ((likeness - low) / (high - low).clamp(min=1e-4)).clamp(0, 1)
    return found.unflatten(1, x.shape[1:])
