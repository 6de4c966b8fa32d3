"""The command for photos and words: edit."""

from pathlib import Path
from typing import Annotated

import typer

from textir.cli.options import (
    Adapter,
    Device,
    EditingCheckpoint,
    FailFast,
    Inputs,
    Output,
    Recursive,
    Seed,
    SkipExisting,
    explained,
    load_editing_pipeline,
)

EditTask = Annotated[
    str,
    typer.Option(
        help="inpaint, super-resolution, colorize, or auto: inpaint with a mask, colorize gray "
        "photos, enlarge others."
    ),
]
Words = Annotated[
    list[str] | None,
    typer.Option(
        help="What the result shall show; several have a result each, '' is no words. Without "
        "one the photo speaks for itself."
    ),
]
Mask = Annotated[
    Path | None,
    typer.Option(
        help="What to fill: an image of the photo's size, bright where the hole is, or a "
        "folder with one of the same name for each photo."
    ),
]
InvertMask = Annotated[bool, typer.Option(help="Dark is the hole.")]
Factor = Annotated[
    float | None,
    typer.Option(help="By how much to enlarge, up to 16; the checkpoint's if not given."),
]
WordStrength = Annotated[
    float, typer.Option(help="Of the words: 0 none, 1 as learnt, up to 3 exaggerated.")
]
Variants = Annotated[int, typer.Option(help="Results of each prompt.", min=1, max=64)]
Reference = Annotated[
    Path | None, typer.Option(help="A photo that says in place of words what to show.")
]
EditTile = Annotated[
    int | None,
    typer.Option(help="Side of the tiles of an enlargement, in pixels of the result."),
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
) -> None:
    """Fill holes, enlarge or colour photos by words.

    Pixels outside a hole stay equal to the bit, a gray photo keeps its luminance, and an enlarged
    one reduced again is the photo that came in.
    """
    import torch

    from pipelines.loading import quiet
    from textir.cli.batch import tell_left_out, tell_results
    from textir.images.editing import (
        edit_note,
        edit_picture,
        edited_name,
        mask_of,
        read_mask_file,
    )
    from textir.images.jobs import list_left_out, plan_jobs, process_files
    from textir.images.picture import read_picture, write_picture

    helpers = [path.expanduser() for path in (mask, reference) if path is not None]
    with explained():
        check_options(task, mask, invert_mask, tile, prompt, reference)
        jobs = plan_jobs(inputs, output, recursive, helpers)
        tell_left_out(list_left_out(inputs, output, recursive))
        mask = mask and mask.expanduser()
        given = None if mask is None or mask.is_dir() else read_mask_file(mask)
        shown = reference and read_picture(reference.expanduser()).tensor()
        typer.echo(f"{len(jobs)} to edit; loading {checkpoint} ...", err=True)
        pipe = load_editing_pipeline(checkpoint, adapter, device)
        wishes = {
            "task": task,
            "scale": scale,
            "strength": strength,
            "num_images_per_prompt": variants,
            **({} if tile is None else {"tile": tile}),
        }
        pipe.check_settings(has_mask=mask is not None, **wishes)
        with quiet():  # warnings of the pipeline are notes, which are printed
            told = pipe.prompt_notes(prompt)
        for note in told:
            typer.echo(f"note: {note}", err=True)
        wishes |= {"prompt": prompt or None, "reference_image": shown, "invert_mask": invert_mask}

    def process(job, picture, targets):
        hole = read_mask_file(mask_of(job, mask)) if mask is not None and given is None else given
        wishes["mask_image"] = hole
        with quiet():
            generator = torch.Generator().manual_seed(seed)
            results, made = edit_picture(pipe, picture, generator=generator, **wishes)
        for target, result in zip(targets, results, strict=True):
            write_picture(target, result)
        notes.extend(edit_note(made, number) for number in range(len(results)))
        notes.extend(f"note: {note}" for note in made.notes if note not in told)

    may_colour = task == "colorize" or (task == "auto" and mask is None and scale is None)
    notes: list[str] = []
    results = process_files(
        jobs,
        process,
        skip_existing,
        name_result=edited_name(may_colour),
        count=variants * max(len(prompt or []), 1),
    )
    tell_results(results, len(jobs), notes, "edited", fail_fast)


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
