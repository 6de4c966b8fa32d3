"""Commands that exchange weights with others: push, convert, export."""

from pathlib import Path
from typing import Annotated

import typer

from textir.cli.options import Adapter, explained, load_editing_pipeline, load_pipeline


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
            channels = model.config.in_channels
            if channels not in (1, 3):
                typer.echo(
                    f"note: this network takes {channels} channels, such as both views of a "
                    "dual-pixel sensor; `restore` cannot feed it from one photo.",
                    err=True,
                )
        typer.echo(str(output))


def export() -> None:
    """Write networks for other runtimes."""


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
    """Write networks as ONNX files for runtimes without torch: restorer and matcher, also for
    `--backend onnx`, an adapter becoming part of them; or the networks of `edit`."""
    from pipelines.loading import is_editor
    from textir.hub.onnx_files import export_editors, export_onnx, require

    with explained():
        require("onnx")
        if is_editor(checkpoint):
            if adapter is not None:
                raise ValueError("Networks of `edit` take no `--adapter`; leave it out.")
            for file in export_editors(load_editing_pipeline(checkpoint, None, "cpu"), output):
                typer.echo(file)
            return
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
