"""The README is a promise: its examples run, its commands exist, its front matter is what a Space needs."""

import re
import shlex
from pathlib import Path

import gradio
import pytest
import yaml
from PIL import Image
from skimage import data
from typer.testing import CliRunner

from textir.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder with photo.png and photos/photo.png, and the reader in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    photo = Image.fromarray(data.chelsea()[:120, :160])
    photo.save("photo.png")
    photo.save("photos/photo.png")
    return tmp_path


def test_front_matter_is_what_a_space_needs():
    front = yaml.safe_load(README.split("---")[1])
    assert front["sdk"] == "gradio" and front["sdk_version"] == gradio.__version__
    assert front["python_version"] == "3.12" and (ROOT / front["app_file"]).is_file()
    assert front["license"] == "apache-2.0" and len(front["short_description"]) <= 60


def test_the_two_commands_stand_near_the_top():
    top = README.split("---", 2)[2][:1500]
    assert "pip install -r requirements.txt && python app.py" in top
    assert "pip install -r requirements-dev.txt && pytest" in top


@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.splitlines()[0][:40])
def test_python_examples_run(code, desk):
    if "needs the Hub" in code:
        compile(code, "README.md", "exec")
        return
    exec(compile(code, "README.md", "exec"), {})


@pytest.mark.parametrize("line", re.findall(r"^python -m textir (.*)$", README, re.M))
def test_commands_run(line, desk):
    result = CliRunner().invoke(app, shlex.split(line))
    assert result.exit_code == 0, result.output


def test_training_command_takes_only_flags_that_exist():
    from train_lora.train_restorer import Config

    flags = set(re.findall(r"--(\w+)", next(block for block in blocks("bash") if "train_restorer.py" in block)))
    assert flags <= set(Config.__dataclass_fields__)
