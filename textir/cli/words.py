"""The command for words: instruct."""

import json
from typing import Annotated

import typer

from textir.cli.options import explained


def instruct(
    sentences: Annotated[
        list[str], typer.Argument(help="Wishes such as 'take out the rain but leave the fog'.")
    ],
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help='Print {"remove": [...], "keep": [...]} for each, with "auto" in remove where '
            "nothing particular is asked.",
        ),
    ] = False,
) -> None:
    """Say how each sentence is understood: what is removed from a photo and what stays."""
    from textir.models.instruction_reader import InstructionReader

    reader = InstructionReader()
    with explained():
        instructions = [reader(sentence) for sentence in sentences]
    for instruction in instructions:
        if not as_json:
            typer.echo(instruction.understood)
        else:
            remove = ["auto"] if instruction.remove is None else list(instruction.remove)
            wish = {"remove": remove, "keep": list(instruction.keep)}
            if instruction.prompt is not None:
                wish["prompt"] = instruction.prompt
            typer.echo(json.dumps(wish, ensure_ascii=False))
        for note in instruction.notes:
            typer.echo(f"note: {note}", err=True)
