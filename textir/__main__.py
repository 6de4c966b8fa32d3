"""`python -m textir`."""

from textir.cli import app

app(prog_name="textir")
