"""Checkpoints of text-editable restoration travel: published with a card of their own, they load
with and without the package and do the same."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.hub.test_hub import alone, error_of
from tests.tools import tiny
from tests.tools.standin_hub import StandinHub
from textir.hub.publishing import MARK, build_card, write_card

ROOT = Path(__file__).parents[2]
OWN_PARTS = {
    "inpainter": "text_editable_restorer",
    "upscaler": "text_editable_restorer",
    "colorizer": "text_editable_restorer",
    "edit_processor": "edit_processor",
    "photo_encoder": "photo_encoder",
    "photo_processor": "photo_encoder",
}


def render(pipe):
    """All three tasks on fixed images; travels as text to fresh processes."""
    import torch

    pipe.set_progress_bar_config(disable=True)
    image = torch.rand(1, 3, 24, 40, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(24, 40)
    mask[5:15, 9:30] = 1
    options = {"prompt": "a dog", "output_type": "pt"}
    gray = image[:, :1].expand(-1, 3, -1, -1)
    results = [
        pipe(image, mask_image=mask, **options).images,
        pipe(image, scale=2, **options).images,
        pipe(gray, task="colorize", **options).images,
    ]
    return torch.cat([result.flatten() for result in results])


def publish(folder: str):
    """The author's machine, with the package: save, push with a card, load what was pushed."""
    from pathlib import Path

    from safetensors.torch import save_file

    from pipelines import TextEditableRestorationPipeline, load_editor
    from tests.tools import tiny
    from textir.hub.publishing import push

    folder = Path(folder)
    pipe = tiny.editing_pipeline()
    pipe.save_pretrained(folder / "saved")
    url = push(folder / "saved", "tester/editor")
    loaded = TextEditableRestorationPipeline.from_pretrained("tester/editor")
    pixels = {"made": render(pipe), "loaded": render(loaded)}
    pixels["by name"] = render(load_editor("tester/editor"))
    save_file(pixels, folder / "with package.safetensors")
    return {
        "url": url,
        "classes": [type(part).__module__ for part in loaded.components.values()],
    }


def visit(folder: str):
    """A stranger's machine, without the package."""
    import importlib
    from pathlib import Path

    from diffusers import DiffusionPipeline
    from safetensors.torch import save_file

    load = DiffusionPipeline.from_pretrained
    report = {
        "package": [error_of(importlib.import_module, name) for name in ("textir", "pipelines")],
        "without trust": error_of(load, "tester/editor"),
    }
    pipe = load("tester/editor", trust_remote_code=True)
    pixels = {"from the Hub": render(pipe)}
    pipe.save_pretrained(Path(folder) / "again")
    pixels["again"] = render(load(Path(folder) / "again", trust_remote_code=True))
    save_file(pixels, Path(folder) / "without package.safetensors")
    return report


@pytest.fixture(scope="module")
def hub():
    with StandinHub() as hub:
        yield hub


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def author(hub, folder) -> dict:
    report = alone(publish, hub, folder / "author", True, helpers=[render], folder=str(folder))
    return {**report, "pixels": load_file(folder / "with package.safetensors")}


@pytest.fixture(scope="module")
def stranger(hub, folder, author) -> dict:
    report = alone(visit, hub, folder / "stranger", False, helpers=[render], folder=str(folder))
    return {**report, "pixels": load_file(folder / "without package.safetensors")}


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, rtol=0, atol=0.004)  # colours stand on levels of 8 bits


def test_a_repository_holds_one_source_file_for_each_part(hub, author):
    files = hub.files("tester/editor")
    sources = {path for path in files if path.endswith(".py")}
    assert sources == {"pipeline.py", *(f"{part}/{stem}.py" for part, stem in OWN_PARTS.items())}
    source = ROOT / "pipelines/pipeline_text_editable_restoration.py"
    assert files["pipeline.py"].content == source.read_bytes()
    index = json.loads(files["model_index.json"].content)
    assert index["_class_name"] == ["pipeline", "TextEditableRestorationPipeline"]


def test_with_the_package_its_classes_are_taken_and_do_the_same(author):
    assert all(name.startswith(("textir.", "transformers.")) for name in author["classes"])
    assert same(author["pixels"]["loaded"], author["pixels"]["made"])
    assert same(author["pixels"]["by name"], author["pixels"]["made"])


def test_without_the_package_it_does_the_same(author, stranger):
    assert all("ModuleNotFoundError" in error for error in stranger["package"])
    assert "trust_remote_code" in stranger["without trust"]
    for name in ("from the Hub", "again"):
        assert same(stranger["pixels"][name], author["pixels"]["made"]), name


def test_the_card_says_what_it_does(hub, author):
    card = hub.files("tester/editor")["README.md"].content.decode()
    matter = yaml.safe_load(card.split("---")[1])
    assert matter["pipeline_tag"] == "image-to-image" and matter["library_name"] == "diffusers"
    assert {"inpainting", "super-resolution", "image-colorization"} <= set(matter["tags"])
    assert "2302.14736" in card and "textir edit photo.png" in card


@pytest.mark.parametrize("kept", ["inpainter", "upscaler", "colorizer"])
def test_the_example_of_a_card_runs(kept, tmp_path, monkeypatch):
    """Whichever network the checkpoint has."""
    from PIL import Image

    absent = {part: None for part in ("inpainter", "upscaler", "colorizer") if part != kept}
    tiny.editing_pipeline(**absent).save_pretrained(tmp_path / "editor")
    path = write_card(tmp_path / "editor")
    assert MARK in path.read_text()
    monkeypatch.chdir(tmp_path)
    Image.effect_noise((40, 24), 90).convert("RGB").save("photo.png")
    mask = Image.new("L", (40, 24))
    mask.paste(255, (5, 5, 20, 15))
    mask.save("mask.png")
    example = re.search(r"```python\n(.*?)```", path.read_text(), re.S)[1]
    found = {}
    exec(example, found)
    assert min(found["result"].size) >= 24


def test_a_card_of_a_restorer_is_what_it_was(tmp_path):
    tiny.pipeline().save_pretrained(tmp_path)
    assert "TextGuidedRestorationPipeline" in build_card(tmp_path).content
