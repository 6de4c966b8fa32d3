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
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pipelines import TextEditableRestorationPipeline
from pipelines.loading import load_editor
from textir.data.photos import find_entries
from textir.degradations import draw_mask
from textir.images.picture import read_picture
from textir.models.edit_processor import (
    enlarge,
    fill_harmonic,
    lab_from_rgb,
    project_back,
    rgb_from_lab,
)
from train_lora.described_photos import caption_of_name, read_captions, things_in
from train_lora.editor_losses import colourfulness
from train_lora.mini.sentences import load_words
from train_lora.mini.towers_data import name_hash

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
# a and b of CIE Lab / 100: the best constant colour for CBSD68.
TINT = (-0.029, 0.080)
# In units of CIE Lab: a colour that moved less did not obey.
LEAST_MOVE = 1.0


def psnr(image: torch.Tensor, truth: torch.Tensor, where: torch.Tensor | None = None) -> float:
    """PSNR in dB over all pixels, or over a hole `(1, 1, H, W)`, of 8-bit roundings."""
    error = ((255 * image.clamp(0, 1)).round() / 255 - truth).square()
    mean = error.mean() if where is None else error[where.expand_as(error)].mean()
    return float(-10 * mean.clamp(min=1e-12).log10())


def interval(values: Sequence[float], draws: int = 2000) -> tuple[float, float, float]:
    """Mean, and the bounds of its 95 % interval by bootstrap over photos."""
    values = np.asarray(values, dtype=float)
    generator = np.random.default_rng(0)
    rows = generator.integers(len(values), size=(draws, len(values)))
    low, high = np.quantile(values[rows].mean(1), (0.025, 0.975))
    return float(values.mean()), float(low), float(high)


def read_photo(path: Path) -> torch.Tensor:
    """`(1, 3, H, W)` in [0, 1]."""
    image = read_picture(path).tensor()[:, :3]
    return image.expand(-1, 3, -1, -1)


def gray_of(photo: torch.Tensor) -> torch.Tensor:
    """The photo as Pillow's gray copy `(1, 3, H, W)`."""
    pixels = (255 * photo[0]).round().byte().permute(1, 2, 0).numpy()
    gray = np.asarray(Image.fromarray(pixels).convert("L"), dtype=np.float32) / 255
    return torch.from_numpy(gray)[None, None].expand(-1, 3, -1, -1)


def tinted(gray: torch.Tensor) -> torch.Tensor:
    """A gray photo in one constant colour."""
    lab = lab_from_rgb(gray)
    ab = torch.tensor(TINT)[None, :, None, None].expand(-1, -1, *gray.shape[-2:])
    return rgb_from_lab(torch.cat([lab[:, :1], ab], dim=1)).clamp(0, 1)


def box_hole(height: int, width: int) -> torch.Tensor:
    """A box of half of each side in the middle, `(1, 1, height, width)` bool."""
    hole = torch.zeros(1, 1, height, width, dtype=torch.bool)
    hole[..., height // 4 : 3 * height // 4, width // 4 : 3 * width // 4] = True
    return hole


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
        mean, low, high = interval([one - other for one, other in pairs])
        return {"mean": mean, "low": low, "high": high, "photos": len(self.values[name])}


def call(pipe: TextEditableRestorationPipeline, image: torch.Tensor, *prompts, **options):
    """What the pipeline makes of a photo: a list of `(1, 3, H, W)`."""
    prompt = list(prompts) if prompts else None
    images = pipe(image, prompt, output_type="pt", **options).images
    return list(images.split(1)) if isinstance(images, torch.Tensor) else images


# ---- the three tasks


def gate_holes(pipe, photos: Sequence[torch.Tensor], lpips: Callable | None) -> dict:
    """Holes of 25 % in strokes, and a box of half of each side."""
    report = {}
    for kind in ("strokes", "box"):
        table = Table()
        for number, photo in enumerate(photos):
            generator = torch.Generator().manual_seed(number)
            height, width = photo.shape[-2:]
            hole = box_hole(height, width)
            if kind == "strokes":
                hole = draw_mask(height, width, 0.25, "strokes", generator)
            mask = hole[0].float()
            results = {
                "harmonic": fill_harmonic(photo, hole),
                "biharmonic": biharmonic(photo, hole),
                "no words": call(pipe, photo, "", task="inpaint", mask_image=mask)[0],
                "own embedding": call(pipe, photo, task="inpaint", mask_image=mask)[0],
            }
            for name, result in results.items():
                table.add(name, psnr(result, photo, hole))
                if lpips is not None:
                    table.add(f"{name}, LPIPS", lpips(result, photo))
        gain = table.gain("no words", "harmonic")
        report[kind] = {**table.summary(), "no words over harmonic": gain}
    return report


def biharmonic(photo: torch.Tensor, hole: torch.Tensor) -> torch.Tensor:
    """The fill of scikit-image, at up to 128 pixels a side, where it takes seconds."""
    from skimage.restoration import inpaint_biharmonic

    array, mask = photo[0].permute(1, 2, 0).numpy(), hole[0, 0].numpy()
    filled = inpaint_biharmonic(array, mask, channel_axis=-1, split_into_regions=True)
    return torch.from_numpy(filled).float().permute(2, 0, 1)[None].clamp(0, 1)


def gate_sizes(pipe, photos: Sequence[torch.Tensor], factors: Sequence[int] = (2, 3, 4)) -> dict:
    """Photos reduced as Pillow does, and enlarged again."""
    report = {}
    for factor in factors:
        table = Table()
        for photo in photos:
            height, width = (side // factor * factor for side in photo.shape[-2:])
            truth = photo[..., :height, :width]
            pixels = (255 * truth[0]).round().byte().permute(1, 2, 0).numpy()
            size = (width // factor, height // factor)
            low = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
            low = torch.from_numpy(np.array(low)).permute(2, 0, 1)[None].float() / 255
            bicubic = enlarge(low, (height, width))
            options = {"task": "super-resolution", "scale": factor}
            table.add("bicubic", psnr(bicubic, truth))
            table.add("bicubic, projected", psnr(project_back(bicubic, low), truth))
            table.add("no words", psnr(call(pipe, low, "", **options)[0], truth))
            table.add("own embedding", psnr(call(pipe, low, **options)[0], truth))
        gain = table.gain("no words", "bicubic, projected")
        report[f"x{factor}"] = {**table.summary(), "no words over projected": gain}
    return report


def gate_colours(pipe, photos: Sequence[torch.Tensor]) -> dict:
    """Gray photos without words, against a gray copy and one tint."""
    table = Table()
    for photo in photos:
        gray = gray_of(photo)
        results = {
            "gray": gray,
            "tint": tinted(gray),
            "no words": call(pipe, gray, "", task="colorize")[0],
            "own embedding": call(pipe, gray, task="colorize")[0],
        }
        truth = float(colourfulness(photo))
        table.add("colourfulness of the truth", 255 * truth)
        for name, result in results.items():
            table.add(name, psnr(result, photo))
            table.add(f"{name}, colourfulness", 255 * float(colourfulness(result)))
    report = table.summary()
    for name in ("no words", "own embedding"):
        report[f"{name} over tint"] = table.gain(name, "tint")
        report[f"{name}, ratio of colourfulness"] = (
            report[f"{name}, colourfulness"] / report["colourfulness of the truth"]
        )
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
        table.add("own caption", psnr(mine, photo))
        table.add("another's caption", psnr(theirs, photo))
        table.add("no words", psnr(plain, photo))
        table.add("own embedding", psnr(own, photo))
        texts = pipe.embed_texts([captions[0], other])
        looks = torch.cat([pipe.embed_photos(mine), pipe.embed_photos(theirs)])
        agreement = texts @ looks.T
        agreed.append(float(agreement[0, 0] > agreement[0, 1]))
        agreed.append(float(agreement[1, 1] > agreement[1, 0]))
        changes.append(255 * float((mine - theirs).abs().mean()))
    mean, low, high = interval(agreed)
    return {
        **table.summary(),
        "own over no words": table.gain("own caption", "no words"),
        "own over another's": table.gain("own caption", "another's caption"),
        "agrees more with its own": {"mean": mean, "low": low, "high": high},
        "change between both, of 255": interval(changes)[0],
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
    mean, low, high = interval(rows.mean(0))
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
        hole = box_hole(*photo.shape[-2:])
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


def with_article(text: str) -> str:
    return f"an {text}" if text[0] in "aeiou" else f"a {text}"


def described_photos(folder: Path, names: set[str]) -> list[tuple[Path, tuple[str, ...]]]:
    """Set-aside photos with their captions, in the order of a hash of their names."""
    captions = read_captions(folder)
    chosen = sorted((name for name in captions if name in names), key=name_hash)
    return [(folder / name, captions[name]) for name in chosen]


def photos_of_things(
    folders: Sequence[Path], names: set[str], described, count: int
) -> list[tuple[Path, str]]:
    """Set-aside photos of one thing each: those whose name says it, then those whose captions name
    it, most of them."""
    things = []
    for folder in folders:
        for path in sorted(folder.iterdir()):
            if path.name in names and caption_of_name(path.name):
                things.append((path, caption_of_name(path.name).split(" ", 1)[1]))
    words = load_words()
    for path, captions in described:
        said = [thing for caption in captions for thing in things_in([caption], words)]
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
    parser.add_argument("--lpips", help="weights of LPIPS, see textir.evaluation.lpips")
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


def clean_photos(arguments) -> list[torch.Tensor]:
    entries = find_entries(arguments.photos_dir, "test")
    return [read_photo(Path(entry.clean)) for entry in entries[: arguments.count]]


def things_of(arguments, names: set[str]) -> list[tuple[Path, str]]:
    described = described_photos(arguments.captioned_dir, names)
    return photos_of_things(arguments.named_dirs, names, described, min(60, arguments.count))


def captions_of(arguments, names: set[str]):
    return described_photos(arguments.captioned_dir, names)[: min(200, arguments.count)]


def measure_holes(pipe, arguments, names):
    lpips = None
    if arguments.lpips:
        from textir.evaluation.lpips import LPIPS

        lpips = LPIPS.from_file(arguments.lpips)
    return gate_holes(pipe, clean_photos(arguments), lpips)


GATES = {
    "colours": lambda pipe, arguments, names: gate_colours(pipe, clean_photos(arguments)),
    "colour words": lambda pipe, arguments, names: gate_colour_words(
        pipe, things_of(arguments, names)
    ),
    "captions": lambda pipe, arguments, names: gate_captions(pipe, captions_of(arguments, names)),
    "sizes": lambda pipe, arguments, names: gate_sizes(pipe, clean_photos(arguments)),
    "holes": measure_holes,
    "words in holes": lambda pipe, arguments, names: gate_words_in_holes(
        pipe, things_of(arguments, names)[:30]
    ),
}

if __name__ == "__main__":
    with torch.no_grad():
        main()
