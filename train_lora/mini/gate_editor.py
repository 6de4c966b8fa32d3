"""Foundation of the editors: measure what they must be able to do, on photos they have not seen.

    python -m train_lora.mini.gate_editor --checkpoint mini-textir --photos_dir CBSD68 \
        --captioned_dir CAPTIONED --set_aside train_lora/mini/text_editor_set_aside.txt --json FILE

Holes are measured against harmonic and biharmonic fill, enlargements against bicubic interpolation
with the same back-projection, colours against a gray copy and one constant tint. Then words: with
captions, others' captions and none; a named colour must draw the hue its way; of two captions each
result must agree more with its own. Intervals are of the mean over photos, by bootstrap.
"""

import argparse
import json
import math
from collections.abc import Sequence
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pipelines import TextEditableRestorationPipeline
from pipelines.loading import load_editor
from textir.degradations import Recipe
from textir.evaluation.edit_rivals import EDIT_BASELINES, EditCase
from textir.evaluation.edit_scores import edit_case, score_edits, whole_psnr
from textir.evaluation.intervals import mean_interval
from textir.evaluation.meaning import read_captions
from textir.models.edit_processor import lab_from_rgb
from train_lora.described_photos import read_photo, thing_of_name, things_in
from train_lora.editor_samples import middle_box
from train_lora.mini.towers_data import name_hash
from train_lora.sentences import load_words, with_article

# Hue of a word in CIE Lab, in degrees; black, white and gray have none.
HUES = {
    "pink": 8,
    "red": 40,
    "brown": 57,
    "orange": 73,
    "yellow": 103,
    "green": 136,
    "blue": 306,
    "purple": 328,
}
NEUTRAL = ("black", "white", "gray")
# In units of CIE Lab: a colour that moved less did not obey.
LEAST_MOVE = 1.0


def gray_of(photo: torch.Tensor) -> torch.Tensor:
    """The photo as Pillow's gray copy `(1, 3, H, W)`."""
    pixels = (255 * photo[0]).round().byte().permute(1, 2, 0).numpy()
    gray = np.asarray(Image.fromarray(pixels).convert("L"), dtype=np.float32) / 255
    return torch.from_numpy(gray)[None, None].expand(-1, 3, -1, -1)


class Table:
    """Numbers of photos by row and column."""

    def __init__(self):
        self.values: dict[str, list[float]] = {}

    def add(self, name: str, value: float) -> None:
        self.values.setdefault(name, []).append(value)

    def summary(self) -> dict[str, float]:
        return {name: float(np.mean(values)) for name, values in self.values.items()}

    def gain(self, name: str, rival: str) -> dict[str, float]:
        """Mean difference of two rows, photo by photo, with its interval."""
        pairs = zip(self.values[name], self.values[rival])
        mean, low, high = mean_interval([one - other for one, other in pairs])
        return {"mean": mean, "low": low, "high": high, "photos": len(self.values[name])}


def call(pipe: TextEditableRestorationPipeline, image: torch.Tensor, *prompts, **options):
    """What the pipeline makes of a photo: a list of `(1, 3, H, W)`."""
    prompt = list(prompts) if prompts else None
    images = pipe(image, prompt, output_type="pt", **options).images
    return list(images.split(1)) if isinstance(images, torch.Tensor) else images


# ---- the three tasks

RECIPES = {
    "holes": {"strokes:0.25": "inside_psnr", "box:0.25": "inside_psnr"},
    "sizes": {"down:2": "psnr", "down:3": "psnr", "down:4": "psnr"},
    "colours": {"gray": "psnr"},
}
"""What is taken away for each gate, and the figure that counts."""


def gate_task(
    pipe, photos: Path, recipes: dict[str, str], limit: int, lpips: str | None
) -> dict[str, dict]:
    """Results without words and with the photo's own embedding, beside what one has without a
    network, see `textir.evaluation.edit_scores`."""
    report = {}
    for recipe, figure in recipes.items():

        def edit(case: EditCase, prompt: str | None = "") -> torch.Tensor:
            return edit_case(pipe, case, prompt)

        rivals = {**EDIT_BASELINES[Recipe.parse(recipe, edits=True).tasks[0]]}
        rivals["own embedding"] = partial(edit, prompt=None)
        scores = score_edits(edit, photos, recipe, limit=limit, rivals=rivals, lpips=lpips)
        report[recipe] = {"means": scores.means()}
        for rival in rivals:
            mean, low, high = scores.gain(figure, rival)
            report[recipe][f"{figure}, no words over {rival}"] = [mean, low, high]
            mean, low, high = scores.gain(figure, rival, "own embedding")
            report[recipe][f"{figure}, own embedding over {rival}"] = [mean, low, high]
    return report


# ---- words


def gate_captions(pipe, described: Sequence[tuple[Path, tuple[str, ...]]]) -> dict:
    """Gray photos with their caption, with that of another photo, and without; and whether each
    result agrees more with its own caption."""
    table, agreed, changes = Table(), [], []
    for number, (path, captions) in enumerate(described):
        photo = read_photo(path)
        gray = gray_of(photo)
        other = described[(number + 7) % len(described)][1][0]
        mine, theirs, plain = call(pipe, gray, captions[0], other, "", task="colorize")
        own = call(pipe, gray, task="colorize")[0]
        table.add("own caption", whole_psnr(mine, photo))
        table.add("another's caption", whole_psnr(theirs, photo))
        table.add("no words", whole_psnr(plain, photo))
        table.add("own embedding", whole_psnr(own, photo))
        texts = pipe.embed_texts([captions[0], other])
        looks = torch.cat([pipe.embed_photos(mine), pipe.embed_photos(theirs)])
        agreement = texts @ looks.T
        agreed.append(float(agreement[0, 0] > agreement[0, 1]))
        agreed.append(float(agreement[1, 1] > agreement[1, 0]))
        changes.append(255 * float((mine - theirs).abs().mean()))
    mean, low, high = mean_interval(agreed)
    return {
        **table.summary(),
        "own over no words": table.gain("own caption", "no words"),
        "own over another's": table.gain("own caption", "another's caption"),
        "agrees more with its own": {"mean": mean, "low": low, "high": high},
        "change between both, of 255": mean_interval(changes)[0],
    }


def gate_colour_words(pipe, things: Sequence[tuple[Path, str]]) -> dict:
    """Gray photos of things: "a COLOUR thing" against "a thing"."""
    hits: dict[str, list[float]] = {name: [] for name in (*HUES, *NEUTRAL)}
    changes, placebo = [], []
    for path, thing in things:
        gray = gray_of(read_photo(path))
        words = list(hits)
        prompts = [with_article(f"{word} {thing}") for word in words]
        plain, *results = call(pipe, gray, with_article(thing), *prompts, task="colorize")
        before = lab_from_rgb(plain)
        counted = (before[:, :1] > 0.2) & (before[:, :1] < 0.9)
        if not counted.any():
            continue
        for place, (word, result) in enumerate(zip(words, results)):
            after = lab_from_rgb(result)
            hits[word].append(float(obeys(word, before, after, counted)))
            other = words[(place + 4) % len(words)]
            placebo.append(float(obeys(other, before, after, counted)))
            changes.append(255 * float((result - plain).abs().mean()))
    rows = np.array([hits[word] for word in hits])
    mean, low, high = mean_interval(rows.mean(0))
    return {
        **{word: float(np.mean(values)) for word, values in hits.items()},
        "all": {"mean": mean, "low": low, "high": high, "photos": rows.shape[1]},
        "another word's direction": float(np.mean(placebo)),
        "change, of 255": float(np.mean(changes)),
    }


def obeys(word: str, before: torch.Tensor, after: torch.Tensor, counted: torch.Tensor) -> bool:
    """Whether colours moved the way of a word, or lost chroma for black, white and gray."""
    if word in NEUTRAL:
        chroma = before[:, 1:].norm(dim=1, keepdim=True) - after[:, 1:].norm(dim=1, keepdim=True)
        return 100 * float(chroma[counted].mean()) >= LEAST_MOVE
    angle = math.radians(HUES[word])
    direction = torch.tensor([math.cos(angle), math.sin(angle)])[None, :, None, None]
    moved = ((after - before)[:, 1:] * direction).sum(1, keepdim=True)
    return 100 * float(moved[counted].mean()) >= LEAST_MOVE


def gate_words_in_holes(pipe, things: Sequence[tuple[Path, str]]) -> dict:
    """A box in the middle of photos of things, filled as "a red thing" and as "a blue thing"."""
    hits, changes = [], []
    for path, thing in things:
        photo = read_photo(path)
        hole = middle_box(*photo.shape[-2:])
        prompts = [with_article(f"{word} {thing}") for word in ("red", "green", "blue")]
        options = {"task": "inpaint", "mask_image": hole[0].float()}
        plain, *results = call(pipe, photo, with_article(thing), *prompts, **options)
        before = lab_from_rgb(plain)
        for word, result in zip(("red", "green", "blue"), results):
            hits.append(float(obeys(word, before, lab_from_rgb(result), hole)))
            error = (result - plain).abs()
            changes.append(255 * float(error[hole.expand_as(error)].mean()))
    return {
        "moves towards the colour": float(np.mean(hits)),
        "change, of 255": float(np.mean(changes)),
    }


def described_photos(folder: Path, names: set[str]) -> list[tuple[Path, tuple[str, ...]]]:
    """Set-aside photos with their captions, in the order of a hash of their names."""
    captions = read_captions(folder)
    chosen = sorted((name for name in names if Path(name).stem in captions), key=name_hash)
    return [(folder / name, tuple(captions[Path(name).stem])) for name in chosen]


def photos_of_things(
    folders: Sequence[Path], names: set[str], described, count: int
) -> list[tuple[Path, str]]:
    """Set-aside photos of one thing each: those whose name says it, then those whose captions name
    it, most of them."""
    things = []
    for folder in folders:
        for path in sorted(folder.iterdir()):
            thing = thing_of_name(path.name)
            if path.name in names and thing:
                things.append((path, thing))
    words = load_words()
    for path, captions in described:
        said = list(chain.from_iterable(things_in([caption], words) for caption in captions))
        common = max(set(said), key=said.count) if said else None
        if common is not None and said.count(common) >= 4:
            things.append((path, common))
    return things[:count]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", default="mini-textir")
    parser.add_argument("--photos_dir", type=Path, required=True, help="clean photos, CBSD68")
    parser.add_argument("--captioned_dir", type=Path, required=True, help="with metadata.jsonl")
    parser.add_argument(
        "--named_dirs", type=Path, nargs="*", default=[], help="named by what they show"
    )
    parser.add_argument("--set_aside", type=Path, required=True, help="names never trained on")
    parser.add_argument("--count", type=int, default=1000, help="photos of each gate, at most")
    parser.add_argument("--gates", nargs="+", default=list(GATES), choices=list(GATES))
    parser.add_argument("--lpips", help="alexnet or vgg16, to measure LPIPS too")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    pipe = load_editor(arguments.checkpoint)
    names = set(arguments.set_aside.read_text(encoding="utf-8").split())
    report = {}
    for gate in arguments.gates:
        report[gate] = GATES[gate](pipe, arguments, names)
        print(gate, json.dumps(report[gate], indent=1), flush=True)
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def things_of(arguments, names: set[str]) -> list[tuple[Path, str]]:
    described = described_photos(arguments.captioned_dir, names)
    return photos_of_things(arguments.named_dirs, names, described, min(60, arguments.count))


def captions_of(arguments, names: set[str]):
    return described_photos(arguments.captioned_dir, names)[: min(200, arguments.count)]


def task_gate(name: str):
    """A gate that takes something away from clean photos."""

    def measure(pipe, arguments, names):
        limit, lpips = arguments.count, arguments.lpips
        return gate_task(pipe, arguments.photos_dir, RECIPES[name], limit, lpips)

    return measure


GATES = {
    "colours": task_gate("colours"),
    "colour words": lambda pipe, arguments, names: gate_colour_words(
        pipe, things_of(arguments, names)
    ),
    "captions": lambda pipe, arguments, names: gate_captions(pipe, captions_of(arguments, names)),
    "sizes": task_gate("sizes"),
    "holes": task_gate("holes"),
    "words in holes": lambda pipe, arguments, names: gate_words_in_holes(
        pipe, things_of(arguments, names)[:30]
    ),
}

if __name__ == "__main__":
    with torch.no_grad():
        main()
