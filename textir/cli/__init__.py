"""The command line: `python -m textir restore PHOTO --output restored`.

Heavy libraries load inside the commands, so that `--help` answers at once.
"""

import typer

from textir.cli import exchange, measure, photos

app = typer.Typer(
    help=__doc__.splitlines()[0],
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for command in (photos.restore, photos.degrade, measure.evaluate, measure.suite):
    app.command()(command)
for command in (exchange.push, exchange.convert):
    app.command()(command)

benchmark = typer.Typer(help="Measure this machine.", no_args_is_help=True)
benchmark.command()(measure.restorers)
app.add_typer(benchmark, name="benchmark")

export = typer.Typer(help="Write networks for other runtimes.", no_args_is_help=True)
export.command()(exchange.onnx)
export.callback()(exchange.export)
app.add_typer(export, name="export")

__all__ = ["app"]
