"""A suite of test sets, and what guidance is worth on them: unguided, from degraded words, from cleaned words, from a clean thumbnail.

The last is an oracle: it bounds what a perfect painter of that size could give. Lin et al. compare the first three in their Table 11. A
checkpoint that uses guidance against some degradations only has one more: its default.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from textir.baselines import BASELINES
from textir.evaluation import Pair, load_pairs
from textir.metrics import Protocol, psnr, ssim

COARSE = 8  # side in pixels of the thumbnails that show illumination and colour alone
GUIDANCE = ("degraded", "cleaned", "oracle")


@dataclass(frozen=True)
class Row:
    """One line of a suite.

    Attributes:
        name: what is measured.
        data: folder of the set below the root, pairs or clean images.
        degradation: recipe for clean images.
        part: which of the images, in sorted order: start, end and step of a slice.
        baselines: methods without learning to compare with, of `textir.baselines`.
    """

    name: str
    data: str
    degradation: str | None = None
    part: tuple[int | None, int | None, int] = (None, None, 1)
    baselines: tuple[str, ...] = ()


HALF = (None, None, 2)
MINI = (
    Row("noise 15", "CBSD68", "noise:15", baselines=("non-local means", "total variation")),
    Row("noise 25", "CBSD68", "noise:25", baselines=("non-local means", "total variation")),
    Row("noise 50", "CBSD68", "noise:50", baselines=("non-local means", "total variation")),
    Row("real noise", "CC15", baselines=("non-local means", "total variation")),
    Row("rain, streaks", "RainBSD20", part=(10, 20, 1)),
    Row("rain, dense", "RainBSD20", part=(0, 10, 1)),
    Row("haze, indoor", "SOTS_indoor25", baselines=("dark channel",)),
    Row("haze 0.7", "CBSD68", "haze:0.7", HALF),
    Row("haze 1.5", "CBSD68", "haze:1.5", HALF, ("dark channel",)),
    Row("low light 1.3", "CBSD68", "lowlight:1.3", HALF),
    Row("low light 2.5", "CBSD68", "lowlight:2.5", HALF),
    Row("rain heavy", "CBSD68", "rain:heavy", HALF),
    Row("motion blur 9", "CBSD68", "blur:9", HALF),
    Row("defocus 3", "CBSD68", "defocus:3", HALF),
    Row("JPEG 20", "CBSD68", "jpeg:20", HALF),
    Row("haze 1 and noise 15", "CBSD68", "haze:1+noise8:15", HALF),
    Row("clean", "CBSD68", "clean", HALF),
)
SUITES = {"mini": MINI}


@dataclass
class RowScores:
    """What was measured for a row.

    Attributes:
        row: its name.
        images: their names.
        psnr: PSNR in dB by arm, `(seeds, images)`: `input`, `none`, the kinds of guidance, `default`, the baselines.
        ssim: SSIM likewise.
        guidance_psnr: PSNR of thumbnails by source, `(seeds, images)`: at the guidance's own size (`cleaned`) and at 8 x 8
            (`cleaned, coarse`), beside those of the input and of what the restorer makes alone.
    """

    row: str
    images: list[str] = field(default_factory=list)
    psnr: dict[str, list[list[float]]] = field(default_factory=dict)
    ssim: dict[str, list[list[float]]] = field(default_factory=dict)
    guidance_psnr: dict[str, list[list[float]]] = field(default_factory=dict)

    def mean(self, arm: str, measure: str = "psnr") -> float:
        """Mean over seeds and images; equal images count with 100 dB."""
        return float(np.minimum(getattr(self, measure)[arm], 100).mean())

    def difference(self, arm: str, other: str) -> tuple[float, float, float]:
        """How many dB `arm` is above `other`: the mean over images of their mean over seeds, and its 95 % interval (bootstrap over
        images)."""
        gains = (np.minimum(self.psnr[arm], 100) - np.minimum(self.psnr[other], 100)).mean(0)
        draws = np.random.default_rng(0).choice(gains, (10_000, len(gains))).mean(1)
        low, high = np.quantile(draws, (0.025, 0.975))
        return float(gains.mean()), float(low), float(high)


def run_suite(
    pipe,
    root: str | Path,
    rows: Sequence[Row] = MINI,
    seeds: Sequence[int] = (0,),
    tile: int | None = None,
    limit: int | None = None,
    with_baselines: bool = False,
    on_row: Callable[[RowScores], None] = lambda scores: None,
) -> list[RowScores]:
    """Measure a pipeline on every row.

    Args:
        pipe: a restoration pipeline; without a guidance chain only the arms that it has are measured.
        root: folder of the test sets.
        rows: of the suite.
        seeds: of degradation and painting; more than one where a claim is about guidance.
        tile: side of tiles in pixels, none by default; guidance is painted of the whole image in any case.
        limit: at most so many images of a row.
        with_baselines: measure methods without learning too.
        on_row: called after each row.

    Raises:
        ValueError: if a set is missing.
    """
    missing = sorted({row.data for row in rows if not (Path(root) / row.data).is_dir()})
    if missing:
        raise ValueError(f"{root} lacks the sets {', '.join(missing)}; pass the folder that holds them.")
    results = []
    for row in rows:
        scores = RowScores(row.name)
        for place, seed in enumerate(seeds):
            for pair in list(load_pairs(Path(root) / row.data, row.degradation, seed))[slice(*row.part)][:limit]:
                if not place:
                    scores.images.append(pair.name)
                measure(scores, place, pipe, pair, seed, tile, row.baselines if with_baselines else ())
        results.append(scores)
        on_row(scores)
    return results


@torch.no_grad()
def measure(scores: RowScores, place: int, pipe, pair: Pair, seed: int, tile: int | None, baselines: Sequence[str]) -> None:
    """Add the scores of one image under the seed at `place`."""
    degraded, clean = (torch.from_numpy(pixels).movedim(-1, 0)[None].to(pipe.device) for pixels in (pair.degraded, pair.clean))
    arms = {"input": degraded, "none": pipe.restore(degraded, tile=tile)[0]}
    painted = paint_all(pipe, degraded, clean, seed)
    for kind, guidance in painted.items():
        arms[kind], _ = pipe.restore(degraded, stretch(guidance, degraded.shape[-2:]), tile=tile)
        size = guidance.shape[-2:]
        for name, side in ((kind, size), (f"{kind}, coarse", (COARSE, COARSE))):
            add(scores.guidance_psnr, name, place, psnr(array(small(guidance, side)), array(small(clean, side))))
            for other in ("input", "none"):
                label = name.replace(kind, other)
                if kind == "cleaned":
                    add(scores.guidance_psnr, label, place, psnr(array(small(arms[other], side)), array(small(clean, side))))
    if "cleaned" in arms and pipe.config.guided_degradations is not None:
        seen = pipe.detect(pipe.encode_image(degraded), pipe.native_pixels(degraded)) if pipe.detector is not None else ()
        shown = stretch(painted["cleaned"], degraded.shape[-2:])
        arms["default"] = (
            arms["cleaned"] if pipe.default_strengths(degraded, arms["none"], shown, "auto", *seen)[0] else arms["none"]
        )
    for name, image in {name: array(image) for name, image in arms.items()}.items():
        add(scores.psnr, name, place, psnr(image, pair.clean))
        add(scores.ssim, name, place, ssim(image, pair.clean))
    for name in baselines:
        image = BASELINES[name](pair.degraded)
        add(scores.psnr, name, place, psnr(image, pair.clean))
        add(scores.ssim, name, place, ssim(image, pair.clean))


def paint_all(pipe, degraded: torch.Tensor, clean: torch.Tensor, seed: int) -> dict[str, torch.Tensor]:
    """The guidance of an image `(1, 3, H, W)` by kind; nothing where the pipeline has no chain."""
    if pipe.unet is None or pipe.matcher is None:
        return {}
    painter = pipe.painter()
    guidance = {
        kind: painter(degraded, guidance=kind, generator=torch.Generator().manual_seed(seed), output_type="pt").images.float()
        for kind in ("degraded", "cleaned")
    }
    return {**guidance, "oracle": small(clean, guidance["cleaned"].shape[-2:])}


def stretch(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """To another size, as the pipeline does with a guidance."""
    return F.interpolate(image, size, mode="bicubic", antialias=True).clamp(0, 1)


def small(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(image.clamp(0, 1), size, mode="area")


def array(image: torch.Tensor) -> np.ndarray:
    return image[0].float().clamp(0, 1).movedim(0, -1).cpu().numpy()


def add(table: dict[str, list[list[float]]], name: str, place: int, value: float) -> None:
    seeds = table.setdefault(name, [])
    seeds.extend([] for _ in range(place + 1 - len(seeds)))
    seeds[place].append(value)


def table(results: Sequence[RowScores]) -> str:
    """The results in Markdown: PSNR of every arm, and what guidance gains, with its interval."""
    arms = list(dict.fromkeys(arm for scores in results for arm in scores.psnr))
    gains = [(arm, "none") for arm in ("default", "cleaned", "degraded") if arm in arms]
    head = ["set", "images", *arms, *(f"{arm} - {other} [95 %]" for arm, other in gains)]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for scores in results:
        cells = [scores.row, str(len(scores.images))]
        cells += [f"{scores.mean(arm):.2f}" if arm in scores.psnr else "" for arm in arms]
        for arm, other in gains:
            mean, low, high = scores.difference(arm, other)
            cells.append(f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def guidance_table(results: Sequence[RowScores]) -> str:
    """PSNR of the guidance itself in Markdown, beside the input and what the restorer makes alone, at its own size and at 8 x 8."""
    sources = list(dict.fromkeys(name for scores in results for name in scores.guidance_psnr))
    if not sources:
        return ""
    lines = ["| set | " + " | ".join(sources) + " |", "|---" * (len(sources) + 1) + "|"]
    for scores in results:
        cells = [f"{scores.mean(name, 'guidance_psnr'):.2f}" for name in sources]
        lines.append(f"| {scores.row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def protocol(seeds: Sequence[int], tile: int | None) -> str:
    """What the numbers were measured with, in a sentence."""
    view = "whole image" if tile is None else f"tiles of {tile} pixels, guidance of the whole image"
    return f"{Protocol()}; {view}; seeds {', '.join(map(str, seeds))}"
