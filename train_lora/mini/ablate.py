"""The paper's ablations in miniature, on the embedded checkpoint: one command each.

    python -m train_lora.mini.ablate cleaning --data SETS --output_dir runs/ablate
    python -m train_lora.mini.ablate implicit --data SETS --output_dir runs/ablate
    python -m train_lora.mini.ablate words --data SETS --output_dir runs/ablate \
        --train_data_dir PHOTOS
    python -m train_lora.mini.ablate fusion --data SETS --output_dir runs/ablate \
        --train_data_dir PHOTOS

| ablation | compares | trains |
|---|---|---|
| `cleaning` | guidance from degraded and from cleaned words, by strength | nothing |
| `implicit` | guidance from pseudo-words, and from tags of the photo | nothing |
| `words` | numbers of pseudo-words | mapper, cross-attention of the UNet, cleaner |
| `fusion` | guidance into the encoder, the decoder, or both | fusion blocks, matcher |

All measure haze, which is what the embedded checkpoint's guidance is for, told `dehaze`: PSNR of
what is restored, and of the guidance itself against the clean photo in small. `SETS` is the folder
of the test sets; `--checkpoint` takes another whole chain. `OUTPUT_DIR/NAME.json` holds the
figures, `OUTPUT_DIR/NAME.md` the tables. The same command goes on with trainings that were cut off.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from pipelines import TextGuidedRestorationPipeline, load
from textir.evaluation.rows import RowScores, rows_to_dict, tables
from textir.evaluation.scores import load_pairs
from textir.evaluation.suite import add_thumbnails, check_sets, choose_rows, guidance_table, small
from textir.images.picture import to_pixels, to_tensor
from textir.machine import writing
from train_lora import train_cleaner, train_mapper
from train_lora.mini import train_fusion

ROWS = ("haze indoors", "haze 1.5")
RECIPES = ["haze:0.3..2.5@5", "room:0.3..2.5@5", "mist:0.2..1.5@2", "clean@1"]
STRENGTHS = (0.5, 1.0)
UNGUIDED = "none"
WORD_SIDE = 128  # of photos that mapper and cleaner learn from, in pixels
SIDES = (96, 288)  # of crops and of the views around them, in pixels


class Way(NamedTuple):
    """One of the ways that an ablation compares.

    Attributes:
        name: of its column.
        pipe: what restores.
        options: of its call for a degraded photo `(1, 3, H, W)`.
    """

    name: str
    pipe: TextGuidedRestorationPipeline
    options: Callable[[torch.Tensor], dict]


def measure(
    ways: Iterable[Way], root: Path, only: Sequence[str], limit: int | None
) -> list[RowScores]:
    """Restore the photos of each row in every way, and once without guidance."""
    rows = choose_rows("mini", only)
    check_sets(root, rows)
    ways, results = list(ways), []
    for row in rows:
        scores = RowScores(row.name, suite="ablation")
        for pair in load_pairs(root / row.data, row.degradation, limit=limit):
            scores.begin(pair, 0)
            degraded, clean = to_tensor(pair.degraded), to_tensor(pair.clean)
            scores.add_image("input", 0, pair.degraded.clip(0, 1), pair)
            thumbnails = {}
            unguided = Way(UNGUIDED, ways[0].pipe, lambda image: {"guidance": "none"})
            for way in (unguided, *ways):
                output = scores.timed(way.name, 0, restore, way, degraded, row.told)
                scores.add_image(way.name, 0, to_pixels(output.images), pair)
                if output.guidance_images is not None:
                    thumbnails[way.name] = output.guidance_images
            size = next(iter(thumbnails.values())).shape[-2:]
            thumbnails = {name: small(image, size) for name, image in thumbnails.items()}
            add_thumbnails(scores, 0, {"input": degraded, **thumbnails}, clean, size)
        results.append(scores)
    return results


def restore(way: Way, degraded: torch.Tensor, task: str):
    """What a way makes of a degraded photo."""
    return way.pipe(
        degraded,
        task=task,
        output_type="pt",
        return_influence=False,
        generator=torch.Generator().manual_seed(0),
        **way.options(degraded),
    )


def by_cleaned_words(image: torch.Tensor) -> dict:
    """The paper's way: guidance from cleaned words, at full strength."""
    return {"guidance": "cleaned", "guidance_strength": 1.0}


# ---- the ablations


def cleaning(options: argparse.Namespace) -> list[Way]:
    """Guidance from degraded words and from cleaned ones."""
    pipe = load_quietly(options.checkpoint)
    ways = []
    for kind in ("degraded", "cleaned"):
        for strength in STRENGTHS:
            said = {"guidance": kind, "guidance_strength": strength}
            ways.append(Way(f"{kind}, strength {strength:g}", pipe, lambda image, said=said: said))
    return ways


def implicit(options: argparse.Namespace) -> list[Way]:
    """Guidance from cleaned pseudo-words, from words that describe the photo, and from both."""
    pipe = load_quietly(options.checkpoint)

    def said(image: torch.Tensor, guidance: str) -> dict:
        prompt = f"{pipe.config.template} {describe(pipe, image)}"
        return {"guidance": guidance, "prompt": prompt, "guidance_strength": 1.0}

    return [
        Way("implicit", pipe, by_cleaned_words),
        Way("explicit", pipe, lambda image: said(image, "prompt")),
        Way("both", pipe, lambda image: said(image, "cleaned")),
    ]


def words(options: argparse.Namespace) -> list[Way]:
    """Chains of several numbers of pseudo-words, each trained alike.

    Raises:
        ValueError: if the text encoder takes fewer words.
    """
    check_counts(load_quietly(options.checkpoint), options.counts)
    ways = []
    for count in options.counts:
        folder = Path(options.output_dir) / f"words-{count}"
        shared = {
            "train_data_dir": options.train_data_dir,
            "degradations": RECIPES,
            "resolution": WORD_SIDE,
            "min_share": 0.4,
            "train_batch_size": 32,
            "learning_rate": 5e-4,
            "max_train_steps": options.steps,
            "checkpointing_steps": max(options.steps // 6, 1),
            "resume_from_checkpoint": "latest",
            "skip_bad": True,
        }
        mapper_config = json.dumps({"num_words": count, "width": 96})
        train_mapper.main(
            train_mapper.Config(
                pretrained_model_name_or_path=options.checkpoint,
                output_dir=str(folder / "mapper"),
                mapper_config=mapper_config,
                **shared,
            )
        )
        train_cleaner.main(
            train_cleaner.Config(
                pretrained_model_name_or_path=str(folder / "mapper" / "pipeline"),
                output_dir=str(folder / "cleaner"),
                cleaner_config=json.dumps({"residual": True}),
                word_weight=1.0,
                diffusion_weight=0.0,
                **shared,
            )
        )
        pipe = load_quietly(folder / "cleaner" / "pipeline")
        ways.append(Way(f"{count} words", pipe, by_cleaned_words))
    return ways


def check_counts(pipe: TextGuidedRestorationPipeline, counts: Sequence[int]) -> None:
    """Refuse numbers of words that do not fit beside the template; nothing has been trained yet.

    Raises:
        ValueError: if there is one.
    """
    template = pipe.tokenizer(pipe.config.template).input_ids  # with the tokens at both ends
    room = pipe.tokenizer.model_max_length - len(template)
    if max(counts) > room:
        raise ValueError(
            f"`--counts` may be up to {room}, which the text encoder has room for beside "
            f"{pipe.config.template!r}; got {max(counts)}."
        )


def fusion(options: argparse.Namespace) -> list[Way]:
    """Fusion blocks in encoder, decoder or both, each trained alike."""
    widths = list(load_quietly(options.checkpoint).matcher.config.widths)
    ways = []
    for place in ("encoder", "decoder", "both"):
        folder = Path(options.output_dir) / f"fusion-{place}"
        config = train_fusion.Config(
            pretrained_model_name_or_path=options.checkpoint,
            output_dir=str(folder),
            train_data_dir=options.train_data_dir,
            degradations=RECIPES,
            skip_bad=True,
            fusion=place,
            trains="guidance",
            new_guidance=True,
            aligned=True,
            relative=True,
            matcher_widths=widths,
            guidance_dropout=0.0,
            true_share=1.0,
            guidance_jitter=0.35,
            loss="psnr",
            resolution=[SIDES[0]],
            view=SIDES[1],
            crops_per_view=4,
            train_batch_size=[2],
            max_train_steps=options.steps,
            checkpointing_steps=max(options.steps // 6, 1),
            resume_from_checkpoint="latest",
            learning_rate=2e-3,
            lr_warmup_steps=max(options.steps // 10, 1),
        )
        train_fusion.main(config)
        pipe = load_quietly(folder / "pipeline")
        ways.append(Way(place, pipe, by_cleaned_words))
    return ways


ABLATIONS = {"cleaning": cleaning, "implicit": implicit, "words": words, "fusion": fusion}
TRAINED = ("words", "fusion")


def describe(pipe: TextGuidedRestorationPipeline, image: torch.Tensor) -> str:
    """The likeliest tag of each group that tells of the content, such as `dog, street, evening`."""
    tags = pipe.describe(image.clamp(0, 1))[0]
    found = [tags[group][0]["tag"] for group in tags if group != "faults" and tags[group]]
    return ", ".join(found) or "photo"


def load_quietly(checkpoint: str | Path) -> TextGuidedRestorationPipeline:
    """A pipeline that draws no progress bars."""
    pipe = load(checkpoint)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def write_results(name: str, results: list[RowScores], options: argparse.Namespace) -> str:
    """Write figures and tables; returns the tables."""
    folder = Path(options.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    arms = dict.fromkeys(arm for row in results for arm in row.psnr)
    gains = [(arm, UNGUIDED) for arm in arms if arm not in ("input", UNGUIDED)]
    text = f"{tables(results, gains)}\n\nPSNR of the guidance\n\n{guidance_table(results)}\n"
    command = shlex.join(["python", "-m", "train_lora.mini.ablate", *sys.argv[1:]])
    scores = {"ablation": name, "command": command, **rows_to_dict(results)}
    written = {f"{name}.json": json.dumps(scores, indent=2) + "\n", f"{name}.md": text}
    for file, content in written.items():
        with writing(folder / file) as temporary:
            temporary.write_text(content, encoding="utf-8")
    return text


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ablation", choices=list(ABLATIONS))
    parser.add_argument("--data", type=Path, required=True, help="folder of the test sets")
    parser.add_argument("--output_dir", required=True, help="for figures, tables and checkpoints")
    parser.add_argument("--checkpoint", default="mini", help="whose parts are ablated")
    parser.add_argument("--row", nargs="+", default=list(ROWS), help="rows of the suite mini")
    parser.add_argument("--limit", type=int, help="photos of each row; all by default")
    parser.add_argument("--train_data_dir", nargs="+", help="clean photos (words, fusion)")
    parser.add_argument("--steps", type=int, help="of each training; 300 by default")
    parser.add_argument(
        "--counts", nargs="+", type=int, help="numbers of words; 5, 10, 20 and 30 by default"
    )
    options = parser.parse_args(arguments)
    trains = options.ablation in TRAINED
    if trains and not options.train_data_dir:
        parser.error(f"{options.ablation} trains: give `--train_data_dir`.")
    if not trains and (options.train_data_dir or options.steps):
        parser.error(f"{options.ablation} trains nothing: leave out `--train_data_dir`, `--steps`.")
    if options.counts and options.ablation != "words":
        parser.error("`--counts` belongs to words.")
    options.steps = options.steps or 300
    options.counts = options.counts or [5, 10, 20, 30]
    return options


def main(arguments: Sequence[str] | None = None) -> list[RowScores]:
    options = parse_options(arguments)
    check_sets(options.data, choose_rows("mini", options.row))
    ways = ABLATIONS[options.ablation](options)
    results = measure(ways, options.data, options.row, options.limit)
    print(write_results(options.ablation, results, options))
    return results


if __name__ == "__main__":
    main()
