"""The README's line makes a Space that holds all it needs, and the workflow that keeps it up to
date says the same."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.tools.standin_hub import StandinHub

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
LINE = re.search(r"^hf repos create .*$", README, re.M)[0]


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    """The files of the Space that the README's line makes from a copy of what git knows."""
    work = tmp_path_factory.mktemp("clone")
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split("\n")
    if not any(listed):
        pytest.skip("not a git checkout")
    for name in filter(None, listed):
        if (ROOT / name).is_file():
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            (work / name).write_bytes((ROOT / name).read_bytes())
    with StandinHub() as hub:
        environment = os.environ | hub.environment(work.parent / "cache")
        # `hf` lies beside the python that runs the tests, be the environment activated or not.
        environment["PATH"] = os.pathsep.join(
            [str(Path(sys.executable).parent), os.environ["PATH"]]
        )
        for command in LINE.replace("user/", "tester/").split("&&"):
            done = subprocess.run(
                shlex.split(command),
                cwd=work,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr[-2000:]
        yield {path: file.content for path, file in hub.files("tester/textir").items()}


def test_the_space_holds_the_app_its_requirements_and_the_checkpoint(space):
    needed = {
        "app.py",
        "README.md",
        "requirements.txt",
        "model_cards/checkpoint.md",
        "textir/checkpoints/mini/model_index.json",
    }
    assert needed <= set(space)
    assert any(
        name.startswith("textir/checkpoints/mini/restorer/") and name.endswith(".safetensors")
        for name in space
    )
    assert not any(name.startswith(("tests/", ".git/")) for name in space)


def test_the_space_is_configured_by_the_readme(space):
    front = yaml.safe_load(space["README.md"].decode().split("---")[1])
    assert (
        front["sdk"] == "gradio"
        and front["app_file"] in space
        and front["python_version"] == "3.12"
    )


def test_the_workflow_creates_and_uploads():
    job = yaml.safe_load((ROOT / ".github" / "workflows" / "sync-to-space.yml").read_text())[
        "jobs"
    ]["sync"]
    script = "\n".join(step.get("run", "") for step in job["steps"])
    assert "hf repos create" in script and "hf upload" in script and "--type space" in script
