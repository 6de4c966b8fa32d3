"""Commands for photos: restore and degrade."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from textir.cli.options import (
    FILES,
    Adapter,
    Backend,
    BatchSize,
    Checkpoint,
    Device,
    DryRun,
    Dtype,
    Engine,
    FailFast,
    Guidance,
    Inputs,
    Instruction,
    Keep,
    NegativePrompt,
    Output,
    Prompt,
    Recursive,
    Resume,
    Scale,
    Seed,
    Sidecar,
    SkipExisting,
    Steps,
    Strength,
    Task,
    Tile,
    Workers,
    explained,
    load_pipeline,
    places_everywhere,
)


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
        bool,
        typer.Option(
            rich_help_panel=FILES, help="Also write guidance, match, influence and words."
        ),
    ] = False,
    recursive: Recursive = False,
    skip_existing: SkipExisting = False,
    fail_fast: FailFast = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    backend: Backend = "torch",
    instruction: Instruction = None,
    resume: Resume = True,
    sidecar: Sidecar = None,
    dry_run: DryRun = False,
    batch_size: BatchSize = 1,
    engine: Engine = "local",
    workers: Workers = None,
) -> None:
    """Restore images; every result has the name, size, depth, alpha, profile and EXIF of its
    source.

    A record NAME.json beside each result tells how it was made; the same command goes on where it
    was stopped.
    """
    from textir.cli.batch import Manner, named, plan, tell_beginning, work_through
    from textir.images.jobs import Run
    from textir.images.restoration import Restoring

    wishes = {
        "task": task,
        "keep": keep,
        "guidance": guidance,
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "guidance_strength": strength,
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "instruction": instruction,
    }
    choice = "auto" if tile is None else tile or None
    work = Restoring(wishes, seed, choice, intermediates, "--task")
    manner = Manner("restored", dry_run, fail_fast, engine, workers)

    def check(pipe) -> None:
        pipe.check(tile=choice, **wishes)

    with explained():
        jobs = plan(inputs, output, recursive)
        run = Run(work, sidecar, resume, skip_existing, batch_size, named(checkpoint, adapter))
        tell_beginning(f"{len(jobs)} to restore; loading {checkpoint} ...")
        places = places_everywhere(checkpoint, adapter)
        load = partial(load_pipeline, *places, dtype=dtype, backend=backend)
        work_through(run, jobs, load, check, device, manner)


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
    """Degrade clean images, or show what each degradation looks like (`--sheet figure.png`).

    Recipes for edits take away what no restorer finds again: mask:0.25 also writes the hole as
    NAME.mask.png, down:4 a smaller photo, gray one without colour.
    """
    import zlib
    from dataclasses import replace

    import torch

    from textir.cli.batch import plan
    from textir.degradations import RECIPES, Recipe, take_away
    from textir.evaluation.scores import contact_sheet
    from textir.images.jobs import restore_files, with_name
    from textir.images.picture import (
        Picture,
        list_images,
        read_picture,
        resize,
        to_pixels,
        write_picture,
    )

    holes: list[torch.Tensor] = []  # of the photo at hand

    def run(picture):
        generator = torch.Generator().manual_seed(zlib.crc32(picture.pixels.tobytes()) + seed)
        remainder = take_away(picture.tensor(), recipe, generator)
        holes[:] = [remainder.hole] if remainder.hole.any() else []
        alpha = picture.alpha
        if alpha is not None:
            size = remainder.image.shape[-2:]
            alpha = resize(torch.from_numpy(alpha)[None, None], size)[0, 0].numpy()
        return replace(picture, pixels=to_pixels(remainder.image), alpha=alpha), None

    with explained():
        if (output is None) == (sheet is None):
            raise ValueError("Pass either --output (with --recipe) or --sheet.")
        if sheet is not None:
            photo = read_picture(list_images(Path(inputs[0]).expanduser(), recursive)[0])
            recipes = [recipe] if recipe else list(RECIPES)
            typer.echo(write_picture(sheet, contact_sheet(photo, recipes, seed=seed)))
            return
        if not Recipe.parse(recipe, edits=True).steps:
            raise ValueError("Pass a `--recipe`, such as noise:25.")
        jobs = plan(inputs, output, recursive)
    bad = 0
    for job, target, problem in restore_files(jobs, run):
        if problem is None:
            typer.echo(target)
            if holes:
                white = to_pixels(holes[0].expand(-1, 3, -1, -1).float())
                mask = target.with_name(f"{target.stem}.mask.png")
                typer.echo(write_picture(mask, Picture(white, is_gray=True)))
            continue
        typer.echo(f"error: {with_name(job.source, problem)}", err=True)
        bad += 1
    if bad:
        raise typer.Exit(1)
