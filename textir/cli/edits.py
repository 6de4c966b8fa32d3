"""The command for photos and words: edit."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from textir.cli.options import (
    MACHINE,
    WISH,
    Adapter,
    Device,
    DryRun,
    EditingCheckpoint,
    Engine,
    FailFast,
    Inputs,
    Output,
    Recursive,
    Resume,
    Seed,
    Sidecar,
    SkipExisting,
    Workers,
    explained,
    load_editing_pipeline,
    places_everywhere,
)

EditTask = Annotated[
    str,
    typer.Option(
        rich_help_panel=WISH,
        help="inpaint, super-resolution, colorize, or auto: inpaint with a mask, colorize gray "
        "photos, enlarge others.",
    ),
]
Words = Annotated[
    list[str] | None,
    typer.Option(
        rich_help_panel=WISH,
        help="What the result shall show; several have a result each, '' is no words. Without "
        "one the photo speaks for itself.",
    ),
]
Mask = Annotated[
    Path | None,
    typer.Option(
        rich_help_panel=WISH,
        help="What to fill: an image of the photo's size, bright where the hole is, or a "
        "folder with one of the same name for each photo.",
    ),
]
InvertMask = Annotated[bool, typer.Option(rich_help_panel=WISH, help="Dark is the hole.")]
Factor = Annotated[
    float | None,
    typer.Option(
        rich_help_panel=WISH,
        help="By how much to enlarge, up to 16; the checkpoint's if not given.",
    ),
]
WordStrength = Annotated[
    float,
    typer.Option(
        rich_help_panel=WISH, help="Of the words: 0 none, 1 as learnt, up to 3 exaggerated."
    ),
]
Variants = Annotated[
    int, typer.Option(rich_help_panel=WISH, help="Results of each prompt.", min=1, max=64)
]
Reference = Annotated[
    Path | None,
    typer.Option(rich_help_panel=WISH, help="A photo that says in place of words what to show."),
]
EditTile = Annotated[
    int | None,
    typer.Option(
        rich_help_panel=MACHINE,
        help="Side of the tiles of an enlargement, in pixels of the result.",
    ),
]


def edit(
    inputs: Inputs,
    output: Output,
    task: EditTask = "auto",
    prompt: Words = None,
    mask: Mask = None,
    invert_mask: InvertMask = False,
    scale: Factor = None,
    strength: WordStrength = 1.0,
    variants: Variants = 1,
    reference: Reference = None,
    seed: Seed = 0,
    checkpoint: EditingCheckpoint = "mini-textir",
    adapter: Adapter = None,
    tile: EditTile = None,
    recursive: Recursive = False,
    skip_existing: SkipExisting = False,
    fail_fast: FailFast = False,
    device: Device = "auto",
    resume: Resume = True,
    sidecar: Sidecar = None,
    dry_run: DryRun = False,
    engine: Engine = "local",
    workers: Workers = None,
) -> None:
    """Fill holes, enlarge or colour photos by words.

    Pixels outside a hole stay equal to the bit, a gray photo keeps its luminance, and an enlarged
    one reduced again is the photo that came in. A record NAME.json beside each result tells how it
    was made; the same command goes on where it was stopped.
    """
    from pipelines.loading import quiet
    from textir.cli.batch import Manner, named, plan, tell_beginning, work_through
    from textir.images.editing import Editing
    from textir.images.jobs import Run

    mask, reference = (path and path.expanduser().absolute() for path in (mask, reference))
    wishes = {
        "task": task,
        "scale": scale,
        "strength": strength,
        "num_images_per_prompt": variants,
        **({} if tile is None else {"tile": tile}),
    }
    told: list[str] = []
    options = {**wishes, "prompt": prompt or None, "invert_mask": invert_mask}
    work = Editing(options, seed, mask, reference, told)
    manner = Manner("edited", dry_run, fail_fast, engine, workers)

    def check(pipe) -> None:
        pipe.check_settings(has_mask=mask is not None, **wishes)
        told.extend(pipe.prompt_notes(prompt))
        for note in told:
            tell_beginning(f"note: {note}")

    with explained(), quiet():  # warnings of the pipeline are notes, which are printed
        check_options(task, mask, invert_mask, tile, prompt, reference)
        helpers = [path for path in (mask, reference) if path is not None]
        jobs = plan(inputs, output, recursive, helpers, work.count)
        work.check()
        run = Run(work, sidecar, resume, skip_existing, names=named(checkpoint, adapter))
        tell_beginning(f"{len(jobs)} to edit; loading {checkpoint} ...")
        load = partial(load_editing_pipeline, *places_everywhere(checkpoint, adapter))
        work_through(run, jobs, load, check, device, manner)


def check_options(
    task: str,
    mask: Path | None,
    invert_mask: bool,
    tile: int | None,
    prompt: list[str] | None,
    reference: Path | None,
) -> None:
    """Check what needs neither photos nor a checkpoint.

    Raises:
        ValueError: if options contradict one another, or a file is not there.
    """
    if task == "inpaint" and mask is None:
        raise ValueError("Inpainting needs `--mask`: an image that is bright where to fill.")
    if invert_mask and mask is None:
        raise ValueError("`--invert-mask` turns a mask round; pass `--mask` too.")
    if tile is not None and (task in ("inpaint", "colorize") or mask is not None):
        raise ValueError("`--tile` belongs to super-resolution; leave it out.")
    if prompt and reference is not None:
        raise ValueError("Pass `--prompt` or `--reference`, not both: each says it all.")
    for name, path in (("--mask", mask), ("--reference", reference)):
        if path is not None and not path.expanduser().exists():
            raise ValueError(f"`{name}` {path} does not exist.")
