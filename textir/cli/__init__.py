"""The command line: `python -m textir restore PHOTO --output restored`.

Heavy libraries load inside the commands, so that `--help` answers at once.
"""

import io
import sys
from typing import Annotated

import typer

from textir import __version__
from textir.cli import edits, exchange, measure, photos, words
from textir.cli.options import load_pipeline

app = typer.Typer(
    help=__doc__.splitlines()[0],
    no_args_is_help=True,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


AT_ONCE = ("instruct",)  # these answer before anything heavy loads


@app.callback()
def begin(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Say the version and end.")] = False,
) -> None:
    """Image restoration guided by cleaned words."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a name that it cannot print ends no batch
    if version:
        typer.echo(f"textir {__version__}")
        raise typer.Exit
    if context.invoked_subcommand not in (None, *AT_ONCE) and "--help" not in sys.argv:
        typer.echo("starting ...", err=True)  # the libraries take seconds


for command in (
    photos.restore,
    edits.edit,
    photos.degrade,
    measure.evaluate,
    measure.evaluate_edit,
    measure.compare,
    measure.suite,
):
    app.command()(command)
for command in (words.instruct, exchange.push, exchange.convert):
    app.command()(command)

benchmark = typer.Typer(help="Measure this machine.", no_args_is_help=True)
benchmark.command()(measure.restorers)
benchmark.command()(measure.tiles)
app.add_typer(benchmark, name="benchmark")

export = typer.Typer(help="Write networks for other runtimes.", no_args_is_help=True)
export.command()(exchange.onnx)
export.callback()(exchange.export)
app.add_typer(export, name="export")

__all__ = ["app", "load_pipeline"]
