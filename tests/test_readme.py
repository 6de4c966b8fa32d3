"""The README is a promise: its examples run, its commands exist, its front matter is what a Space
needs."""

import importlib
import json
import re
import shlex
import tomllib
from itertools import chain
from pathlib import Path

import gradio
import numpy as np
import pytest
import yaml
from PIL import Image
from skimage import data
from typer.testing import CliRunner

from pipelines import MINI, TextGuidedRestorationPipeline
from textir.cli import app
from textir.data.layouts import BENCHMARKS
from textir.training.lora import make_trainable, save_adapter

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PIPELINE = (ROOT / "docs" / "pipeline.md").read_text()
PIPELINE += (ROOT / "docs" / "editing.md").read_text()
TRAINING = (ROOT / "train_lora" / "README.md").read_text()
OTHERS = [ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md", ROOT / "docs" / "speed.md"]
SAFETY = ROOT / "docs" / "security.md"
NOTEBOOK = json.loads((ROOT / "docs" / "textir.ipynb").read_text())
OTHERS += [
    ROOT / "docs" / "app.md",
    ROOT / "docs" / "evaluation.md",
    ROOT / "docs" / "many_photos.md",
    SAFETY,
]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README + PIPELINE, re.S)


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder with photo.png, mask.png and photos/photo.png, and the reader in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    photo = Image.fromarray(data.chelsea()[:120, :160])
    photo.save("photo.png")
    photo.save("photos/photo.png")
    mask = Image.new("L", photo.size)
    mask.paste(255, (40, 30, 80, 60))
    mask.save("mask.png")
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


@pytest.mark.parametrize(
    "line", re.findall(r"^python -m textir (?!push|convert)([^#\n]*)", README + PIPELINE, re.M)
)
def test_commands_run(line, desk):
    if "--adapter" in line:
        adapter(desk)
    result = CliRunner().invoke(app, shlex.split(line))
    assert result.exit_code == 0, result.output


def adapter(desk) -> None:
    """Where the training command of the README leaves its result: LoRA layers for the embedded
    checkpoint."""
    pipe = TextGuidedRestorationPipeline.from_pretrained(MINI)
    make_trainable(pipe, ["restorer"], rank=2)
    save_adapter(pipe, desk / "runs" / "sharpen" / "adapter")


def cells() -> list[str]:
    """The code of the notebook."""
    return ["".join(one["source"]) for one in NOTEBOOK["cells"] if one["cell_type"] == "code"]


def test_the_notebook_runs(desk):
    (desk / "photo.png").unlink()  # so that it takes its example
    names = {}
    for code in cells():
        if not re.search("^[!%]", code, re.M):  # those are for a shell
            exec(compile(code, "textir.ipynb", "exec"), names)
    assert names["output"].images[0].size == names["photo"].size
    assert names["asked"].understood and (desk / "held_out" / "0.png").exists()


@pytest.mark.parametrize(
    "page", [README, TRAINING, "\n".join(cells())], ids=["README", "train_lora/README", "notebook"]
)
def test_training_commands_take_only_flags_that_exist(page):
    commands = re.findall(r"-m train_lora\.(\w+)((?:[^\n]*\\\n)*[^\n]*)", page)
    assert commands
    for script, options in commands:
        if script != "NAME":
            config = importlib.import_module(f"train_lora.{script}").Config
            assert set(re.findall(r"--(\w+)", options)) <= {*config.__dataclass_fields__, "config"}


def test_the_training_page_names_every_benchmark():
    assert all(f"`{name}`" in TRAINING for name in BENCHMARKS)


@pytest.mark.parametrize(
    ("page", "head", "suite", "count"),
    [
        ("README.md", "images | number", "mini", 8),
        ("model_cards/mini.md", "images | number", "mini", 8),
        ("model_cards/mini.md", "what goes, what stays | photos", "keep", 5),
        ("model_cards/mini-textir.md", "edits of CBSD68 | photos", "edit", 6),
    ],
)
def test_tables_say_what_was_measured(page, head, suite, count):
    rows = json.loads((ROOT / "docs" / "results" / f"{suite}.json").read_text())["rows"]
    measured = {row["row"]: row for row in rows}
    table = re.search(
        rf"^\| {re.escape(head)} \|([^\n]*)\|\n[-|]+\n(.*?)\n\n",
        (ROOT / page).read_text(),
        re.S | re.M,
    )
    arms = [name.strip() for name in table[1].split("|")]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2].split("\n")]
    assert len(lines) >= count
    for name, number, *cells in lines:
        scores = measured[name]["psnr"]
        assert int(number) == len(next(iter(scores.values()))[0])
        for arm, cell in zip(arms, cells, strict=True):
            if cell:
                assert abs(float(cell) - np.mean(scores[arm])) < 0.0051, (name, arm)


def test_no_placeholder_is_left():
    assert "MEASURED" not in README + TRAINING + PIPELINE


@pytest.mark.parametrize("page", [README, PIPELINE, TRAINING, *map(Path.read_text, OTHERS)])
def test_what_a_page_links_to_is_there(page):
    for target in re.findall(r"\]\((?!http|#)([^)#]+)\)", page):
        assert any(
            (folder / target).exists() for folder in (ROOT, ROOT / "docs", ROOT / "train_lora")
        )


def test_the_licence_of_every_dependency_is_told():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    table = SAFETY.read_text()
    for requirement in asked:
        name = re.match(r"[\w-]+", requirement)[0]
        assert re.search(rf"[| ]{name}[, ]", table), name
