"""Measure edits: what a network gives back of holes, colours and pixels, against rivals without
learning on the same photos.

All figures are of images rounded to 8 bits. `inside_psnr` is of the hole alone: the whole photo
flatters, since what is known is kept. Photos are the sample of the intervals.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from textir.data.photos import find_entries
from textir.degradations import EDITS, Recipe, take_away
from textir.evaluation.edit_rivals import EDIT_BASELINES, EditCase, Rival
from textir.evaluation.intervals import capped, paired_difference, paired_interval
from textir.evaluation.lpips import load_lpips
from textir.evaluation.metrics import Protocol, psnr
from textir.evaluation.record import image_digest, measured_with
from textir.images.picture import read_picture, to_pixels, to_tensor
from textir.models.edit_processor import is_gray

__all__ = [
    "EditEvaluation",
    "EditScore",
    "colorfulness",
    "edit_case",
    "inside_psnr",
    "luma_psnr",
    "make_case",
    "mean_difference",
    "paired_interval",
    "score_edits",
    "whole_psnr",
]


def inside_psnr(result: torch.Tensor, clean: torch.Tensor, hole: torch.Tensor) -> float:
    """PSNR in dB of the pixels in a hole `(B, 1, H, W)`, of two `(B, C, H, W)` in [0, 1]; infinite
    if they are equal."""
    weight = hole.to(result.dtype).expand_as(result)
    error = float((weight * (result - clean).square()).sum() / weight.sum())
    return -10 * math.log10(error) if error else math.inf


def whole_psnr(
    result: torch.Tensor, clean: torch.Tensor, protocol: Protocol = Protocol(rounding="none")
) -> float:
    """PSNR in dB of two images `(1, 3, H, W)` in [0, 1]; infinite if they are equal."""
    return psnr(to_pixels(result), to_pixels(clean), protocol)


def luma_psnr(result: torch.Tensor, clean: torch.Tensor, protocol: Protocol = Protocol()) -> float:
    """PSNR in dB of the luma of Rec. 601 in [16, 235], by which the field reports enlargement."""
    return whole_psnr(result, clean, replace(protocol, color="y"))


def colorfulness(image: torch.Tensor) -> float:
    """How colourful a photo `(1, 3, H, W)` in [0, 1] is (Hasler and Suesstrunk, *Measuring
    colourfulness in natural images*, 2003), on the 0-255 scale: 0 for gray, about 40 for photos."""
    red, green, blue = (255 * image.double()).unbind(1)
    across, along = red - green, (red + green) / 2 - blue
    spread = math.hypot(float(across.std(correction=0)), float(along.std(correction=0)))
    return spread + 0.3 * math.hypot(float(across.mean()), float(along.mean()))


def mean_difference(result: torch.Tensor, other: torch.Tensor) -> float:
    """Mean |difference| of two images in [0, 1] over pixels and channels, on the 0-255 scale."""
    return 255 * float((result - other).abs().mean())


@dataclass
class EditScore:
    """What was measured of one photo and one method.

    Attributes:
        name: of the photo.
        method: `edit`, or the name of a rival.
        figures: by their names: `psnr`, `psnr_y`, `inside_psnr` (with a hole), `colorfulness` (as a
            ratio to the truth) and `difference` (to the gray photo; both for colour), `lpips`.
        seconds: that the method took.
    """

    name: str
    method: str
    figures: dict[str, float]
    seconds: float = 0.0


@dataclass
class EditEvaluation:
    """Scores of an edit and its rivals on the same photos, and what they were measured with.

    Attributes:
        left_out: photos that were gray already, which say nothing of colour.
        protocol: how whole photos are compared.
        digests: of what was given and what should come back.
    """

    data: str
    recipe: str
    seed: int
    scores: list[EditScore] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    protocol: str = str(Protocol())
    digests: list[str] = field(default_factory=list)

    @property
    def methods(self) -> list[str]:
        """Edit first if it was measured, then the rivals."""
        return list(dict.fromkeys(score.method for score in self.scores))

    def figures(self, method: str, name: str) -> list[float]:
        """A figure of every photo, in the order of the photos; equal photos count with 100 dB."""
        found = [score.figures[name] for score in self.scores if score.method == method]
        return capped(found).tolist()

    def means(self) -> dict[str, dict[str, float]]:
        """For each method the mean of each figure over photos."""
        means: dict[str, dict[str, float]] = {}
        for method in self.methods:
            names = next(score.figures for score in self.scores if score.method == method)
            means[method] = {name: float(np.mean(self.figures(method, name))) for name in names}
        return means

    def gain(self, name: str, rival: str, method: str = "edit") -> tuple[float, float, float]:
        """Mean gain of a method over a rival in a figure, and its paired 95 % interval."""
        return paired_difference(self.figures(method, name), self.figures(rival, name))

    def table(self) -> str:
        """The means as a table in Markdown."""
        means = self.means()
        names = list(next(iter(means.values())))
        lines = [f"| {' | '.join(['method', *names])} |", "|---" * (len(names) + 1) + "|"]
        for method, figures in means.items():
            cells = [f"{figures[name]:.{2 if 'psnr' in name else 3}f}" for name in names]
            lines.append(f"| {' | '.join([method, *cells])} |")
        return "\n".join(lines)

    def to_dict(self) -> dict:
        return {"means": self.means(), **asdict(self), **measured_with(self.digests)}


def make_case(
    name: str,
    clean: torch.Tensor,
    recipe: Recipe,
    seed: int = 0,
    protocol: Protocol = Protocol(),
) -> tuple[EditCase, torch.Tensor]:
    """What is left of a clean photo `(1, 3, H, W)` on the levels of 8 bits, and the photo as it can
    come back: cropped to the protocol's multiple and to one of a whole factor. Drawn from the
    photo's name and `seed`.

    Raises:
        ValueError: if the recipe does not hold one edit.
    """
    if len(recipe.tasks) != 1:
        raise ValueError(
            f"A recipe to measure edits by holds one of {', '.join(EDITS)}, got {str(recipe)!r}."
        )
    if protocol.multiple > 1:
        clean = to_tensor(protocol.crop(to_pixels(clean)))
    for step in recipe.steps:
        if step.name == "down" and step.low == step.high == int(step.low):
            height, width = (side - side % int(step.low) for side in clean.shape[-2:])
            clean = clean[..., :height, :width]
    remainder = take_away(clean, recipe, protocol.generator(name, seed))
    image = _on_levels(remainder.image)
    height, width = clean.shape[-2:]
    return EditCase(name, image, remainder.hole, (height, width), recipe.tasks[0]), clean


def score_edits(
    edit: Callable[[EditCase], torch.Tensor] | None,
    photos: str | Path | Sequence[Path],
    recipe: str,
    seed: int = 0,
    limit: int | None = None,
    rivals: Mapping[str, Rival] | Sequence[str] | None = None,
    lpips: str | None = None,
    on_score: Callable[[EditScore], None] = lambda score: None,
    protocol: Protocol = Protocol(),
) -> EditEvaluation:
    """Measure an edit and its rivals on photos from which a recipe took something away.

    Args:
        edit: from a case to `(1, 3, H, W)` in [0, 1] of the clean photo's size; `None` measures the
            rivals alone.
        photos: a folder of clean photos (or with target/), or files.
        recipe: with one edit, such as `strokes:0.25`, `down:4` or `gray`.
        seed: added to the seed that each file name gives.
        limit: only the first photos.
        rivals: of `EDIT_BASELINES` by name, or others; those of the task by default.
        lpips: `alexnet` or `vgg16` measures LPIPS too, see `load_lpips`.
        on_score: called after each method and photo.
        protocol: how whole photos are compared; what is given is on the levels of 8 bits under any.

    Raises:
        ValueError: if the recipe does not hold one edit, a rival is unknown, there are no photos,
            or a result has another size.
    """
    plan = Recipe.parse(recipe, edits=True)
    source = str(photos) if isinstance(photos, str | Path) else ""
    result = EditEvaluation(source, recipe, seed, protocol=str(protocol))
    metric = load_lpips(lpips) if lpips else None
    for path in _list_photos(photos)[:limit]:
        case, clean = make_case(path.stem, read_picture(path).tensor(), plan, seed, protocol)
        if case.task == "colorize" and is_gray(clean):
            result.left_out.append(case.name)
            continue
        result.digests.append(image_digest(to_pixels(case.image), to_pixels(clean)))
        methods: dict[str, Rival] = {} if edit is None else {"edit": edit}
        methods.update(_choose_rivals(rivals, case.task))
        for method, function in methods.items():
            start = time.perf_counter()
            image = _on_levels(function(case))
            seconds = time.perf_counter() - start
            figures = _measure(image, clean, case, protocol)
            if metric is not None:
                figures["lpips"] = float(metric(image, clean))
            result.scores.append(EditScore(case.name, method, figures, seconds))
            on_score(result.scores[-1])
    return result


def edit_case(pipe, case: EditCase, prompt: str | None = "") -> torch.Tensor:
    """What a `TextEditableRestorationPipeline` makes of a case, `(1, 3, H, W)` in [0, 1].

    Args:
        pipe: the pipeline.
        case: what it is given.
        prompt: empty for no words, `None` for the photo's own embedding.
    """
    options: dict = {"task": case.task}
    if case.task == "inpaint":
        options["mask_image"] = case.hole[0].float()
    if case.task == "super-resolution":
        options["scale"] = case.size[0] / case.image.shape[-2]
    image = case.image.expand(-1, 3, -1, -1)
    return pipe(image, prompt, output_type="pt", **options).images


def _list_photos(photos: str | Path | Sequence[Path]) -> list[Path]:
    if not isinstance(photos, str | Path):
        return list(photos)
    folder = Path(photos)
    folder = folder / "target" if (folder / "target").is_dir() else folder
    return [entry.clean for entry in find_entries(folder, split="test")]


def _choose_rivals(
    rivals: Mapping[str, Rival] | Sequence[str] | None, task: str
) -> Mapping[str, Rival]:
    known = EDIT_BASELINES[task]
    if rivals is None:
        return known
    if isinstance(rivals, Mapping):
        return rivals
    unknown = [name for name in rivals if name not in known]
    if unknown:
        raise ValueError(f"Rivals of {task} are {', '.join(known)}, got {', '.join(unknown)}.")
    return {name: known[name] for name in rivals}


def _measure(
    result: torch.Tensor, clean: torch.Tensor, case: EditCase, protocol: Protocol
) -> dict[str, float]:
    """The figures of one result on the levels of 8 bits."""
    if result.shape != clean.shape:
        raise ValueError(
            f"The edit of {case.name} must be {tuple(clean.shape)}, got {tuple(result.shape)}."
        )
    figures = {
        "psnr": whole_psnr(result, clean, protocol),
        "psnr_y": luma_psnr(result, clean, protocol),
    }
    if case.task == "inpaint":
        figures["inside_psnr"] = inside_psnr(result, clean, case.hole)
    if case.task == "colorize":
        figures["colorfulness"] = colorfulness(result) / max(colorfulness(clean), 1e-3)
        figures["difference"] = mean_difference(result, case.image)
    return figures


def _on_levels(image: torch.Tensor) -> torch.Tensor:
    return (image.float().clamp(0, 1) * 255).round() / 255
