"""The page on many photos is a promise: its Python runs, and its commands take options that
exist."""

import re
import shlex
from pathlib import Path

import numpy as np
import typer
from PIL import Image

from textir.cli import app

PAGE = (Path(__file__).parents[2] / "docs" / "many_photos.md").read_text()


def test_the_python_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (32, 40, 3), np.uint8)
    Image.fromarray(pixels).save("photos/a.png")
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    exec(compile(code, "many_photos.md", "exec"), {})
    assert Path("restored/a.png.json").is_file()


def test_commands_take_options_that_exist():
    commands = typer.main.get_command(app).commands
    lines = re.findall(r"-m textir (restore|edit) ([^#\n`|]*)", PAGE)
    named = [("restore", option) for option in re.findall(r"^\| `(--[^`]*)`", PAGE, re.M)]
    assert len(lines) > 5 and named
    for command, options in (*lines, *named):
        known = {
            name for each in commands[command].params for name in (*each.opts, *each.secondary_opts)
        }
        given = [part for part in shlex.split(options.replace('"', " ")) if part.startswith("--")]
        assert set(given) <= known, options
