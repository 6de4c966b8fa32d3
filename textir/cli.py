"""The command line: `python -m textir restore PHOTO --output restored`.

Heavy libraries load inside the commands, so that `--help` answers at once.
"""

import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

app = typer.Typer(
    help=__doc__.splitlines()[0],
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

Inputs = Annotated[list[Path], typer.Argument(help="Image files and folders.")]
Output = Annotated[Path, typer.Option(help="Folder for the results; made if it is not there.")]
Checkpoint = Annotated[
    str, typer.Option(help="mini (embedded), a folder in diffusers format, or a Hub id.")
]
Adapter = Annotated[
    str | None, typer.Option(help="LoRA: a name in the checkpoint, a folder or a Hub id.")
]
Task = Annotated[
    str,
    typer.Option(
        help="What to remove: auto (find out), denoise, derain, dehaze, deblur, defocus, "
        "lowlight, dejpeg, sharpen, or several, joined "
        "by +."
    ),
]
Keep = Annotated[
    str | None,
    typer.Option(
        help="What must stay, such as haze; with --task auto everything else that is found is "
        "removed."
    ),
]
Guidance = Annotated[str, typer.Option(help="cleaned, degraded, prompt or none.")]
Prompt = Annotated[str | None, typer.Option(help="Words joined to the pseudo-words.")]
NegativePrompt = Annotated[str | None, typer.Option(help="What the guidance should not show.")]
Strength = Annotated[
    float | None,
    typer.Option(
        help="Weight of the guidance, 0 (none) to 1; if not given 1, but 0 where the checkpoint's "
        "is not known to help."
    ),
]
Steps = Annotated[
    int | None, typer.Option(help="Denoising steps; the checkpoint's default if not given.")
]
Scale = Annotated[
    float | None,
    typer.Option(help="Classifier-free guidance; the checkpoint's default if not given."),
]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Tile = Annotated[
    int | None,
    typer.Option(help="Side of tiles in pixels; 0 for none; chosen by free memory if not given."),
]
Recursive = Annotated[bool, typer.Option(help="Look into sub-folders and keep their tree.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16.")]
Backend = Annotated[
    str,
    typer.Option(help="What runs the restorer: torch, or onnx (onnxruntime) after `export onnx`."),
]


@contextmanager
def explained() -> Iterator[None]:
    """Within the block an error that says what to do ends the command with its message."""
    try:
        yield
    except (ValueError, OSError) as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        raise typer.Exit(2) from None


def load_pipeline(
    checkpoint: str, adapter: str | None, device: str, dtype: str, backend: str = "torch"
):
    """A pipeline ready to work, quiet while it loads."""
    from diffusers.utils import logging
    from transformers.utils import logging as transformers_logging

    from pipelines import load

    logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    pipe = load(checkpoint, adapter, device, dtype, backend)
    pipe.set_progress_bar_config(leave=False, disable=not sys.stderr.isatty())
    return pipe


@app.command()
def restore(
    inputs: Inputs,
    output: Output,
    task: Task = "auto",
    keep: Keep = None,
    checkpoint: Checkpoint = "mini",
    adapter: Adapter = None,
    guidance: Guidance = "cleaned",
    prompt: Prompt = None,
    negative_prompt: NegativePrompt = None,
    strength: Strength = None,
    steps: Steps = None,
    guidance_scale: Scale = None,
    seed: Seed = 0,
    tile: Tile = None,
    intermediates: Annotated[
        bool, typer.Option(help="Also write guidance, match, influence and words.")
    ] = False,
    recursive: Recursive = False,
    skip_existing: Annotated[
        bool, typer.Option(help="Leave alone what an earlier run has written.")
    ] = False,
    fail_fast: Annotated[bool, typer.Option(help="Stop at the first bad file.")] = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    backend: Backend = "torch",
) -> None:
    """Restore images; every result has the name, size, depth, alpha, profile and EXIF of its
    source."""
    from textir.images.explanation import what_was_done
    from textir.images.jobs import plan_jobs, restore_files
    from textir.images.restoration import restore_picture

    with explained():
        jobs = plan_jobs(inputs, output, recursive)
        pipe = load_pipeline(checkpoint, adapter, device, dtype, backend)
        pipe.check(
            task,
            keep,
            prompt,
            negative_prompt,
            guidance,
            guidance_strength=strength,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            tile=tile or None,
        )
    import torch

    def run(picture):
        restored, output = restore_picture(
            pipe,
            picture,
            tile="auto" if tile is None else tile or None,
            task=task,
            keep=keep,
            guidance=guidance,
            prompt=prompt,
            negative_prompt=negative_prompt,
            guidance_strength=strength,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            return_influence=intermediates,
            generator=torch.Generator().manual_seed(seed),
        )
        notes.append(what_was_done(output, hint="--task"))
        return restored, output

    written, bad, notes = 0, [], []
    for job, target, problem in tqdm(
        restore_files(jobs, run, skip_existing, intermediates),
        total=len(jobs),
        unit="image",
        disable=None,
    ):
        if problem is None:
            written += 1
            tqdm.write(str(target))
            while notes:
                tqdm.write(f"  {notes.pop()}")
            continue
        bad.append(job.source)
        notes.clear()
        tqdm.write(f"error: {job.source}: {problem}", file=sys.stderr)
        if fail_fast:
            break
    typer.echo(
        f"{written} of {len(jobs)} images restored"
        + (f", {len(bad)} bad: {', '.join(map(str, bad))}" if bad else "")
        + "."
    )
    if written != len(jobs):
        raise typer.Exit(1)


@app.command()
def degrade(
    inputs: Inputs,
    output: Annotated[Path | None, typer.Option(help="Folder for the results.")] = None,
    recipe: Annotated[
        str, typer.Option(help="What to do to them, such as noise:25 or rain:heavy+haze:0.8.")
    ] = "",
    sheet: Annotated[
        Path | None,
        typer.Option(
            help="Write a figure of all degradations (or of the recipe) of the first image."
        ),
    ] = None,
    seed: Seed = 0,
    recursive: Recursive = False,
) -> None:
    """Degrade clean images, or show what each degradation looks like (`--sheet figure.png`)."""
    import zlib

    import torch

    from textir.degradations import RECIPES, Recipe, degrade
    from textir.evaluation.scores import contact_sheet
    from textir.images.jobs import plan_jobs, restore_files
    from textir.images.picture import list_images, read_picture, write_picture

    def run(picture):
        generator = torch.Generator().manual_seed(zlib.crc32(picture.pixels.tobytes()) + seed)
        return picture.with_tensor(degrade(picture.tensor(), recipe, generator)), None

    with explained():
        if (output is None) == (sheet is None):
            raise ValueError("Pass either --output (with --recipe) or --sheet.")
        if sheet is not None:
            first = list_images(inputs[0], recursive)[0]
            typer.echo(
                write_picture(
                    sheet,
                    contact_sheet(
                        read_picture(first), [recipe] if recipe else list(RECIPES), seed=seed
                    ),
                )
            )
            return
        if not Recipe.parse(recipe).steps:
            raise ValueError("Pass a `--recipe`, such as noise:25.")
        jobs = plan_jobs(inputs, output, recursive)
    bad = 0
    for job, target, problem in restore_files(jobs, run):
        typer.echo(
            str(target) if problem is None else f"error: {job.source}: {problem}",
            err=problem is not None,
        )
        bad += problem is not None
    if bad:
        raise typer.Exit(1)


@app.command()
def evaluate(
    data: Annotated[
        str,
        typer.Option(
            help="Folder with input/ and target/, a benchmark as gopro:ROOT, or clean images with "
            "--degradation; for a suite the folder "
            "that holds its sets."
        ),
    ],
    suite: Annotated[
        str | None,
        typer.Option(
            help="mini: all test sets, blind, by itself and told; guidance: what each kind of "
            "guidance is worth; keep: what shall stay, "
            "stays."
        ),
    ] = None,
    rows: Annotated[
        list[str] | None,
        typer.Option(
            "--row", help="Of a suite: only rows whose name starts so, such as haze; repeatable."
        ),
    ] = None,
    seeds: Annotated[
        int, typer.Option(help="Of a suite: repeat with so many seeds, from --seed on.")
    ] = 1,
    baselines: Annotated[
        bool, typer.Option(help="Of a suite: measure methods without learning too.")
    ] = False,
    against: Annotated[
        str | None,
        typer.Option(
            help="Of a suite: another checkpoint, measured beside this one with its own defaults."
        ),
    ] = None,
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
    tile: Annotated[
        int | None,
        typer.Option(help="Side of tiles in pixels; the whole image at once if not given."),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first images.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all scores and settings here.")
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    backend: Backend = "torch",
) -> None:
    """Measure PSNR and SSIM, before and after restoration."""
    from textir.evaluation.metrics import Protocol
    from textir.evaluation.scores import evaluate

    with explained():
        brought = (degradation, kept, keep) != (None, None, None) or (
            task,
            protocol,
            border,
            multiple,
        ) != ("auto", "rgb", 0, 1)
        if suite is not None and brought:
            raise ValueError(
                "A suite brings its degradations, its task and its protocol; leave out those "
                "options."
            )
        if suite is None and (rows or seeds != 1 or baselines or against):
            raise ValueError(
                "`--row`, `--seeds`, `--baselines` and `--against` belong to a `--suite`."
            )
        pipe = load_pipeline(checkpoint, adapter, device, dtype, backend)
        if suite is not None:
            other = None if against is None else load_pipeline(against, None, device, dtype)
            options = {"with_baselines": baselines, "against": other}
            measured = measure_suite(
                pipe, suite, rows, data, range(seed, seed + seeds), tile or None, limit, **options
            )
            if json_file is not None:
                write_scores(json_file, measured, checkpoint, adapter)
            return
        result = evaluate(
            pipe,
            data,
            degradation,
            Protocol(protocol, border, multiple),
            seed,
            limit,
            on_score=lambda s: typer.echo(
                f"{s.name:24} {s.input_psnr:6.2f} {s.input_ssim:.4f}  ->  {s.psnr:6.2f} "
                f"{s.ssim:.4f}"
            ),
            kept=kept,
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
    typer.echo(
        f"\n{mean['images']} images of "
        f"{data}{f' degraded by {degradation}' if degradation else ''} ({result.protocol}; seed "
        f"{seed})\n"
        f"input    {mean['input_psnr']:.2f} dB  {mean['input_ssim']:.4f}\n"
        f"restored {mean['psnr']:.2f} dB  {mean['ssim']:.4f}   {mean['seconds']:.2f} s/image"
    )


def measure_suite(
    pipe,
    name: str,
    only: list[str] | None,
    root: str,
    seeds,
    tile: int | None,
    limit: int | None,
    **options,
) -> dict:
    """Run a suite and print its tables; returns everything measured."""
    from dataclasses import asdict

    from textir.evaluation.suite import SUITES, guidance_table, protocol, run_suite, table

    if name not in SUITES:
        raise ValueError(f"Unknown `--suite` {name!r}; known are {', '.join(SUITES)}.")
    rows = [row for row in SUITES[name] if not only or row.name.startswith(tuple(only))]
    if not rows:
        raise ValueError(
            f"No row of {name} starts with {' or '.join(only)}; it has "
            f"{', '.join(r.name for r in SUITES[name])}."
        )
    results = []
    for row in tqdm(rows, "sets", disable=None):
        results += run_suite(pipe, root, [row], seeds, tile, limit, **options)
    typer.echo(f"{protocol(seeds, tile)}\n\n{table(results)}\n")
    if thumbnails := guidance_table(results):
        typer.echo(f"PSNR of the guidance itself; coarse: 8 x 8 pixels\n\n{thumbnails}")
    return {
        "suite": name,
        "protocol": protocol(seeds, tile),
        "rows": [asdict(scores) for scores in results],
    }


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
        temporary.write_text(json.dumps({**scores, **made}, indent=2) + "\n")


@app.command()
def push(
    folder: Annotated[
        Path, typer.Argument(help="Checkpoint in diffusers format, or folder of an adapter.")
    ],
    repo: Annotated[
        str,
        typer.Argument(help="user/name on the Hub; `name` alone goes to the owner of the token."),
    ],
    private: Annotated[
        bool, typer.Option(help="Make the repository private if it is new.")
    ] = False,
    token: Annotated[
        str | None,
        typer.Option(help="Hub token, instead of the one that `hf auth login` has stored."),
    ] = None,
    license_name: Annotated[
        str | None,
        typer.Option("--license", help="Of the weights, such as apache-2.0 or openrail++."),
    ] = None,
    message: Annotated[str, typer.Option(help="Commit message.")] = "Upload with textir",
) -> None:
    """Publish a trained checkpoint or adapter, with a card made of its training record and its
    measured evaluations."""
    from textir.hub.publishing import push

    with explained():
        typer.echo(push(folder, repo, token, private, license_name, message))


benchmarks = typer.Typer(help="Measure this machine.", no_args_is_help=True)
app.add_typer(benchmarks, name="benchmark")


@benchmarks.command()
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
        sides = [
            tuple(map(int, text.lower().split("x")))
            for text in size or ["256x256", "512x512", "768x1024"]
        ]
        if any(len(pair) != 2 or min(pair) < 16 for pair in sides) or runs < 1:
            raise ValueError(
                "`--size` must be height x width of at least 16, such as 256x256, and `--runs` at "
                "least 1."
            )
        place = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        choice = [
            network or list(RESTORERS),
            sides,
            dtype or ["float32", "bfloat16"],
            way or ["ours", "plain", "guided"],
        ]
        for timing in time_restorers(*choice, runs, place):
            typer.echo(str(timing))


@app.command()
def convert(
    weights: Annotated[
        Path, typer.Argument(help="Published weights: .pth, .ckpt or .safetensors.")
    ],
    source: Annotated[
        str, typer.Option("--from", help="restormer, promptir, nafnet, sfnet or drsformer.")
    ],
    output: Annotated[Path, typer.Option(help="Folder for the checkpoint in diffusers format.")],
    back: Annotated[
        bool,
        typer.Option(help="The other way: WEIGHTS is a checkpoint, OUTPUT a .safetensors file."),
    ] = False,
) -> None:
    """Turn published weights of a restoration network into a checkpoint that restores, or back."""
    from safetensors.torch import save_file

    from pipelines import TextGuidedRestorationPipeline
    from textir.hub.conversion import convert, convert_back, read_weights
    from textir.machine import writing

    with explained():
        if back:
            pipe = load_pipeline(str(weights), None, "cpu", "float32")
            published = {
                name: value.contiguous()
                for name, value in convert_back(pipe.restorer, source).items()
            }
            output.parent.mkdir(parents=True, exist_ok=True)
            with writing(output) as temporary:
                save_file(published, temporary)
        else:
            if output.exists() and any(output.iterdir()):
                raise ValueError(f"{output} is not empty; choose another `--output`.")
            model = convert(read_weights(weights), source)
            TextGuidedRestorationPipeline(restorer=model).save_pretrained(output)
        typer.echo(str(output))


exports = typer.Typer(help="Write networks for other runtimes.", no_args_is_help=True)
app.add_typer(exports, name="export")


@exports.callback()
def export() -> None:
    """Write networks for other runtimes."""


@exports.command()
def onnx(
    checkpoint: Annotated[
        str, typer.Argument(help="mini (embedded), a folder in diffusers format, or a Hub id.")
    ],
    output: Annotated[
        Path,
        typer.Option(
            help="New folder for the checkpoint with its ONNX files, or the checkpoint's own; "
            "then only these are written."
        ),
    ],
    adapter: Adapter = None,
) -> None:
    """Write restorer and matcher as ONNX files, for `--backend onnx` and runtimes without torch; an
    adapter becomes part of them."""
    from textir.hub.onnx_files import export_onnx, require

    with explained():
        require("onnx")
        pipe = load_pipeline(checkpoint, adapter, "cpu", "float32")
        if adapter is not None:
            if Path(checkpoint).resolve() == output.resolve():
                raise ValueError(
                    "An adapter changes the weights; choose a new folder as `--output`."
                )
            pipe.fuse_lora()
            pipe.unload_lora_weights()
        for file in export_onnx(pipe, output):
            typer.echo(file)
