"""Measures what the words do to tags: do content tags stay, and do degradation tags go?

    python -m train_lora.mini.tag_table --data TEST_SETS --most 8 --json tags.json

Tags are read in the text-image space of a checkpoint from the degraded photo, from two paintings
and from the result. Words lie in no such space; so they are painted first, and what is read is the
painting. "Degraded words" is the painting from the words as the mapper says them, "cleaned words"
the painting from the cleaned ones: that one is the guidance.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import HfArgumentParser

from pipelines import load
from textir.evaluation.scores import load_pairs
from textir.images.picture import to_tensor

# Folder, recipe for clean images, task.
SETS = (
    ("RainBSD20", None, "derain"),
    ("Rain100L_30", None, "derain"),
    ("SOTS_indoor25", None, "dehaze"),
    ("LOL_eval15", None, "lowlight"),
    ("CC15", None, "denoise"),
    ("CBSD68", "noise:25", "denoise"),
    ("CBSD68", "blur:9", "deblur"),
)
CONTENT = ("things", "places")
STAGES = ("degraded words", "cleaned words", "result")


@dataclass(kw_only=True)
class Config:
    data: str = field(metadata={"help": "folder that holds the test sets"})
    checkpoint: str = field(default="mini", metadata={"help": "name or folder"})
    most: int = field(default=8, metadata={"help": "images of each set"})
    json: str = field(default="tag_table.json", metadata={"help": "file for the counts"})


@dataclass
class Counts:
    """Of one set: tags of the degraded photos, and what became of them at each stage."""

    images: int = 0
    content: int = 0
    faults: int = 0
    kept: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STAGES, 0))
    gone: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STAGES, 0))

    def add(self, before: dict, stages: dict[str, dict]) -> None:
        """Count one photo, by the tags of the degraded one and of each stage."""
        content, faults = names(before, CONTENT), names(before, ("faults",))
        self.images += 1
        self.content += len(content)
        self.faults += len(faults)
        for stage, tags in stages.items():
            self.kept[stage] += len(content & names(tags, CONTENT))
            self.gone[stage] += len(faults - names(tags, ("faults",)))


def names(tags: dict[str, list[dict]], groups: tuple[str, ...]) -> set[str]:
    """The names of the tags of some groups."""
    return {tag["tag"] for group in groups for tag in tags[group]}


def main(config: Config) -> None:
    pipe = load(config.checkpoint)
    pipe.set_progress_bar_config(disable=True)
    rows = {}
    print(f"{'':24} images tags  " + "  ".join(f"{stage:>14}" for stage in STAGES), flush=True)
    for folder, recipe, task in SETS:
        name = f"{folder} {recipe or ''}".strip()
        counts = Counts()
        for before, stages in read_set(pipe, Path(config.data) / folder, recipe, task, config.most):
            counts.add(before, stages)
        rows[name] = vars(counts)
        show(f"{name}, kept", counts.images, counts.content, counts.kept)
        show(f"{name}, gone", counts.images, counts.faults, counts.gone)
    Path(config.json).write_text(json.dumps(rows, indent=1) + "\n")


def read_set(
    pipe, folder: Path, recipe: str | None, task: str, most: int
) -> Iterator[tuple[dict, dict[str, dict]]]:
    """The tags of each degraded photo, and of each stage."""
    for pair in load_pairs(folder, recipe, limit=most):
        image = to_tensor(pair.degraded).clamp(0, 1)
        generators = [torch.Generator().manual_seed(0) for _ in range(2)]
        said = pipe.guide(image, guidance="degraded", generator=generators[0]).images
        output = pipe(image, task=task, return_tags=True, generator=generators[1], output_type="pt")
        tags = output.tags[0]
        yield (
            tags["before"],
            {
                "degraded words": pipe.describe(said)[0],
                "cleaned words": tags["guidance"],
                "result": tags["after"],
            },
        )


def show(name: str, images: int, tags: int, shares: dict[str, int]) -> None:
    """A row: how many tags there were, and the share that stayed or went at each stage."""
    cells = [f"{shares[stage] / tags:14.2f}" if tags else f"{'':>14}" for stage in STAGES]
    print(f"{name:30} {images:3} {tags:5}  " + "  ".join(cells), flush=True)


if __name__ == "__main__":
    parser = HfArgumentParser(Config, description=__doc__.split("\n")[0])
    main(parser.parse_args_into_dataclasses()[0])
