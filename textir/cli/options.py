"""What commands share: their options, their errors, and how they load a pipeline."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

# Groups of options in help texts.
WISH, PAINTING = "What to do", "Guidance"
FILES, MACHINE = "Files", "Checkpoint and machine"

Inputs = Annotated[
    list[str],
    typer.Argument(
        help="Image files, folders, patterns such as 'photos/**/*.jpg', @list.txt (a path a line), "
        "- (the same from standard input), hf://datasets/user/name?split=test."
    ),
]
Output = Annotated[
    Path,
    typer.Option(
        help="Folder for the results, made if it is not there; for one photo also a file such as "
        "restored.png."
    ),
]
Checkpoint = Annotated[
    str,
    typer.Option(
        rich_help_panel=MACHINE, help="mini (embedded), a folder in diffusers format, or a Hub id."
    ),
]
Adapter = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=MACHINE, help="LoRA: a name in the checkpoint, a folder or a Hub id."
    ),
]
Task = Annotated[
    str,
    typer.Option(
        rich_help_panel=WISH,
        help="What to remove: auto (find out), denoise, derain, dehaze, deblur, defocus, "
        "lowlight, dejpeg, sharpen, or several, joined "
        "by +.",
    ),
]
Keep = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=WISH,
        help="What must stay, such as haze; with --task auto everything else that is found is "
        "removed.",
    ),
]
Instruction = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=WISH,
        help="A sentence in place of --task and --keep, such as 'take out the rain but leave the "
        "fog'.",
    ),
]
Guidance = Annotated[
    str, typer.Option(rich_help_panel=PAINTING, help="cleaned, degraded, prompt or none.")
]
Prompt = Annotated[
    str | None, typer.Option(rich_help_panel=PAINTING, help="Words joined to the pseudo-words.")
]
NegativePrompt = Annotated[
    str | None, typer.Option(rich_help_panel=PAINTING, help="What the guidance should not show.")
]
Strength = Annotated[
    float | None,
    typer.Option(
        rich_help_panel=PAINTING,
        help="Weight of the guidance, 0 (none) to 1; if not given 1, but 0 where the checkpoint's "
        "is not known to help.",
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(
        rich_help_panel=PAINTING, help="Denoising steps; the checkpoint's default if not given."
    ),
]
Scale = Annotated[
    float | None,
    typer.Option(
        rich_help_panel=PAINTING,
        help="Classifier-free guidance; the checkpoint's default if not given.",
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        rich_help_panel=MACHINE,
        help="Seed of everything random.",
        min=0,
        max=2**63 - 1,
        show_default=True,
    ),
]
Tile = Annotated[
    int | None,
    typer.Option(
        rich_help_panel=MACHINE,
        help="Side of tiles in pixels; 0 for none; chosen by free memory if not given.",
    ),
]
EditingCheckpoint = Annotated[
    str,
    typer.Option(
        rich_help_panel=MACHINE,
        help="mini-textir (embedded), a folder in diffusers format, or a Hub id.",
    ),
]
SkipExisting = Annotated[
    bool,
    typer.Option(
        rich_help_panel=FILES,
        help="Leave alone whatever an earlier run has written, be it of another photo or with "
        "other settings.",
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        rich_help_panel=FILES,
        help="Leave alone results whose record tells of the same photo, settings and weights.",
    ),
]
Sidecar = Annotated[
    bool | None,
    typer.Option(
        rich_help_panel=FILES,
        help="Write a record NAME.json beside each result; if not given, beside those in a folder "
        "and not beside a file that --output names.",
        show_default=False,
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        rich_help_panel=FILES,
        help="Say what would be done and how long it would take; write nothing.",
    ),
]
BatchSize = Annotated[
    int,
    typer.Option(
        rich_help_panel=MACHINE,
        help="Photos of one size that are worked on together. Above 1 results agree to 1e-6 of "
        "the range, not always to the bit.",
        min=1,
    ),
]
Engine = Annotated[
    str,
    typer.Option(
        rich_help_panel=MACHINE,
        help="local (this process, or those of torchrun), or ray (a Ray cluster; needs "
        "requirements-ray.txt).",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        rich_help_panel=MACHINE,
        help="Of --engine ray; if not given one a GPU, or one a machine.",
        min=1,
    ),
]
FailFast = Annotated[bool, typer.Option(rich_help_panel=FILES, help="Stop at the first bad file.")]
Recursive = Annotated[
    bool, typer.Option(rich_help_panel=FILES, help="Look into sub-folders and keep their tree.")
]
Device = Annotated[str, typer.Option(rich_help_panel=MACHINE, help="auto, cpu, cuda, cuda:1, mps.")]
Dtype = Annotated[
    str, typer.Option(rich_help_panel=MACHINE, help="auto, float32, float16 or bfloat16.")
]
Backend = Annotated[
    str,
    typer.Option(
        rich_help_panel=MACHINE,
        help="What runs the restorer: torch, or onnx (onnxruntime) after `export onnx`.",
    ),
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
    checkpoint: str,
    adapter: str | list[str] | None,
    device: str,
    dtype: str,
    backend: str = "torch",
):
    """A pipeline ready to work, quiet while it loads."""
    from pipelines import load

    hide_loading()
    pipe = load(checkpoint, adapter, device, dtype, backend)
    pipe.set_progress_bar_config(leave=False, disable=not sys.stderr.isatty())
    return pipe


def load_editing_pipeline(checkpoint: str, adapter: str | list[str] | None, device: str):
    """A pipeline of text-editable restoration ready to work, quiet while it loads."""
    from pipelines import load_editor

    hide_loading()
    pipe = load_editor(checkpoint, adapter, device)
    pipe.set_progress_bar_config(leave=False, disable=not sys.stderr.isatty())
    return pipe


def places_everywhere(checkpoint: str, adapter: str | None) -> tuple[str, list[str]]:
    """Checkpoint and adapters as a process in another folder finds them."""
    from pipelines.loading import find_adapters, locate

    found = []
    for place in (locate(checkpoint), *find_adapters(checkpoint, adapter).values()):
        path = Path(place).expanduser()
        found.append(str(path.absolute()) if path.exists() else place)
    return found[0], found[1:]


def hide_loading() -> None:
    """No progress bars while components load."""
    from diffusers.utils import logging
    from transformers.utils import logging as transformers_logging

    logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
