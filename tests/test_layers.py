"""The rules that keep the house in order: who may import whom, and what travels to the Hub
alone."""

import ast
import inspect
import os
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from importlib.util import find_spec
from pathlib import Path

import pytest

from pipelines import pipeline_text_editable_restoration as editing
from pipelines import pipeline_text_guided_restoration as pipeline
from textir import models
from textir.images import picture
from textir.models import (
    edit_processor,
    nafnet,
    photo_encoder,
    restormer,
    sfnet,
    text_editable_restorer,
    textual_cleaner,
)

ROOT = Path(__file__).parent.parent
CARRIED = sorted(
    [*(ROOT / "textir" / "models").glob("[!_]*.py"), *(ROOT / "pipelines").glob("pipeline_*.py")]
)
THREADS = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}
MAY_TRAVEL = {
    "torch",
    "numpy",
    "PIL",
    "diffusers",
    "transformers",
    "huggingface_hub",
    "peft",
    "safetensors",
}
CHECKPOINTS = ROOT / "textir" / "checkpoints"
EMBEDDED = {  # checkpoint: its pipeline, and how large it may be
    "mini": ("pipeline_text_guided_restoration.py", 80e6),
    "mini-textir": ("pipeline_text_editable_restoration.py", 40e6),
}


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports; relative imports begin with a dot."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add("." * node.level + (node.module or ""))
    return names


def sources(*folders: str) -> list[Path]:
    return [
        path
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*.py"))
        if CHECKPOINTS not in path.parents
    ]


@pytest.mark.parametrize("path", CARRIED, ids=lambda path: path.name)
def test_files_that_travel_to_the_hub_stand_alone(path):
    tops = {name.split(".")[0] for name in imports(path)}
    assert "" not in tops, "relative import"
    assert tops - set(sys.stdlib_module_names) <= MAY_TRAVEL


@pytest.mark.parametrize("path", sources("textir"), ids=lambda path: str(path.relative_to(ROOT)))
def test_only_what_faces_users_imports_pipelines(path):
    if path.relative_to(ROOT / "textir").parts[0] not in ("cli", "space"):
        assert not any(name.split(".")[0] == "pipelines" for name in imports(path))


COPIES = [
    "Guidance",
    "Tile",
    "check_degraded",
    "check_levels",
    "count_pieces",
    "cut_side",
    "fit",
    "fuse",
    "in_tiles",
    "lab_from_rgb",
    "read_condition",
    "read_guidance",
    "tiles",
]


@pytest.mark.parametrize("name", COPIES)
def test_what_files_that_stand_alone_share_is_the_same(name):
    files = (restormer, nafnet, sfnet, textual_cleaner, photo_encoder, edit_processor)
    twins = [getattr(file, name) for file in files if hasattr(file, name)]
    assert len(twins) > 1 and len({inspect.getsource(twin) for twin in twins}) == 1


COPIES_OF_PIPELINES = [
    "CarriesCodeMixin",
    "accepted_images",
    "alpha_of",
    "apply_tiled",
    "blend_window",
    "finite",
    "check_size",
    "check_tensor",
    "check_weights",
    "convert",
    "has_lora_layers",
    "is_compiled",
    "missing_weights",
    "pil_from_array",
    "replace_checkpoint",
    "resize",
    "rgb_of",
    "settle",
    "sweep_unfinished",
    "tensor_from_array",
    "tensor_from_pil",
    "tile_starts",
    "warn_once",
]


@pytest.mark.parametrize("name", COPIES_OF_PIPELINES)
def test_both_pipelines_share_their_tools_to_the_letter(name):
    twins = [inspect.getsource(getattr(module, name)) for module in (pipeline, editing)]
    assert twins[0] == twins[1]


@pytest.mark.parametrize("name", ["SameConv", "InvertedBottleneck"])
def test_both_encoders_share_their_blocks_to_the_letter(name):
    modules = (photo_encoder, text_editable_restorer)
    twins = [inspect.getsource(getattr(module, name)) for module in modules]
    assert twins[0] == twins[1]


def test_colours_are_measured_alike():
    modules = (photo_encoder, edit_processor)
    twins = [inspect.getsource(module.lab_from_rgb) for module in modules]
    assert twins[0] == twins[1]


def test_files_and_pipelines_resize_alike():
    twins = [inspect.getsource(module.resize) for module in (picture, pipeline)]
    assert twins[0] == twins[1]


def test_networks_run_their_blocks_the_same_way():
    networks = (restormer.Backbone, nafnet.NAFNet, sfnet.SFNet)
    assert len({inspect.getsource(network._run) for network in networks}) == 1


def test_gradio_and_spaces_stay_in_the_app():
    for path in sources("textir", "pipelines", "train_lora"):
        if path.parent != ROOT / "textir" / "space":
            assert not {"gradio", "spaces"} & {name.split(".")[0] for name in imports(path)}, path
            assert not any(name.startswith("textir.space") for name in imports(path)), path


def test_accelerate_stays_in_training_code():
    for path in sources("textir", "pipelines"):
        if path.parent.name != "training":
            assert "accelerate" not in {name.split(".")[0] for name in imports(path)}, path


def dotted(path: Path) -> str:
    """`textir/hub/__init__.py` -> `textir.hub`."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported_modules(path: Path, modules: set[str]) -> set[str]:
    """Modules of the house that a file imports as a whole or something of."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in modules else node.module)
    return found & modules


def circles(graph: dict[str, set[str]]) -> list[str]:
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return error.args[1]
    return []


def test_modules_import_one_another_without_circles():
    paths = {dotted(path): path for path in sources("textir", "pipelines", "train_lora")}
    graph = {name: imported_modules(path, set(paths)) for name, path in paths.items()}
    assert not circles(graph)


def test_folders_import_one_another_without_circles():
    paths = {dotted(path): path for path in sources("textir", "pipelines", "train_lora")}
    graph = {}
    for name, path in paths.items():
        folder = name if path.name == "__init__.py" else name.rpartition(".")[0]
        if folder in ("textir", "train_lora"):  # files that lie beside folders
            folder = name
        targets = imported_modules(path, set(paths))
        packages = {
            target
            if paths[target].name == "__init__.py" or target.count(".") < 2
            else target.rpartition(".")[0]
            for target in targets
        }
        graph.setdefault(folder, set()).update(packages - {folder})
    assert not circles(graph)


def test_torchvision_is_not_installed():
    assert find_spec("torchvision") is None


def test_no_requirement_asks_for_torchvision():
    for file in ROOT.glob("requirements*.txt"):
        lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
        assert not any("torchvision" in line for line in lines), file


@pytest.mark.parametrize("name", EMBEDDED)
def test_the_embedded_checkpoint_carries_the_present_code(name):
    """Refresh with `python -m tests.tools.refresh_mini` after a change of a carried file."""
    folder, (pipeline_file, _) = CHECKPOINTS / name, EMBEDDED[name]
    carried = (folder / "pipeline.py").read_text()
    assert carried == (ROOT / "pipelines" / pipeline_file).read_text()
    for copy in folder.glob("*/*.py"):
        assert copy.read_text() == (ROOT / "textir" / "models" / copy.name).read_text(), copy.name


@pytest.mark.parametrize("name", EMBEDDED)
def test_the_embedded_checkpoint_is_small_and_holds_no_pickles(name):
    files = [path for path in (CHECKPOINTS / name).rglob("*") if path.is_file()]
    assert all(path.stat().st_size < 10e6 for path in files)
    assert sum(path.stat().st_size for path in files) < EMBEDDED[name][1]
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl")]


def test_reading_instructions_loads_no_network():
    code = (
        "import sys; from textir.models import InstructionReader; "
        "InstructionReader()('remove the rain'); "
        "sys.exit('diffusers' in sys.modules or 'textir.models.nafnet' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_face_of_the_models_names_what_its_files_hold():
    for name in models.__all__:
        assert getattr(models, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'NAFNeT'"):
        _ = models.NAFNeT


def test_package_and_command_line_work_without_gradio():
    code = (
        "import sys; sys.modules['gradio'] = sys.modules['spaces'] = None; "
        "import textir, textir.cli, textir.space"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("first", ["pipelines", "train_lora", "textir.cli"])
@pytest.mark.parametrize(
    "given, expected",
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "passive"}, "")],
)
def test_threads_are_set_up_before_torch_is_imported(first, given, expected):
    code = f"""
import builtins, os, sys
usual = builtins.__import__
def watch(name, *rest):
    if name.split(".")[0] == "torch" and "torch" not in sys.modules:
        sys.exit(os.environ.get("GOMP_SPINCOUNT"))
    return usual(name, *rest)
builtins.__import__ = watch
import {first}
import torch
"""
    environment = {name: value for name, value in os.environ.items() if name not in THREADS}
    shell = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment | given,
        capture_output=True,
        text=True,
    )
    assert shell.stderr.strip() == expected
