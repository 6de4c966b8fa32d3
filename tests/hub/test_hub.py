"""Checkpoints must travel: pushed from here they load on machines that have never heard of this
package, and where the package is installed no code of a repository may run.

Everything happens in fresh processes against a stand-in for the Hub, because the client reads its
environment when it is imported and because only a fresh process can lack the package. Starting one
costs seconds, so each does many things and reports; the tests below read the reports.
"""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.tools.standin_hub import StandinHub

TOWERS = ["photo_encoder", "photo_processor", "photo_text_encoder", "photo_tokenizer"]
ABSENT_ANYWAY = [*TOWERS, "instruction_reader"]  # of the tiny chain
ROOT = Path(__file__).parents[2]
OWN_PARTS = {
    "mapper": "image_to_text_mapper",
    "cleaner": "textual_cleaner",
    "matcher": "guidance_matcher",
    "restorer": "nafnet",
    "detector": "degradation_detector",
}


# ---- what the fresh processes do; each function travels as text, with `render` and `error_of`, and
# imports all it needs


def render(pipe, **arguments):
    """Restore a fixed image; half-precision networks included."""
    import torch

    pipe.set_progress_bar_config(disable=True)
    image = torch.rand(1, 3, 24, 40, generator=torch.Generator().manual_seed(0))
    return pipe(
        image, output_type="pt", generator=torch.Generator().manual_seed(0), **arguments
    ).images


def error_of(function, *arguments, **options):
    """The message of the error that a call ends with; empty if it does not."""
    try:
        function(*arguments, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def publish(folder: str, booby_trap: str):
    """The author's machine, with the package: save, push, and load again what was pushed."""
    import shutil
    from pathlib import Path

    import torch
    from huggingface_hub import HfApi
    from peft import LoraConfig, get_peft_model_state_dict
    from safetensors.torch import save_file

    from pipelines import TextGuidedRestorationPipeline
    from tests.tools import tiny

    api, folder = HfApi(), Path(folder)
    pipe = tiny.pipeline()
    pixels = {"saved": render(pipe)}
    pipe.save_pretrained(folder / "saved")
    half = tiny.pipeline().to(torch.float16)
    half.push_to_hub("tester/whole", variant="fp16")
    pixels["fp32 of fp16"] = render(half.to(torch.float32))
    # After its half: transformers notes the precision that was pushed last as the default.
    pipe.push_to_hub("tester/whole")
    tiny.pipeline(image_encoder=None, unet=None, detector=None).push_to_hub("tester/partial")
    pipe.save_pretrained(
        str(folder / "saved-and-pushed"), push_to_hub=True, repo_id="tester/saved-and-pushed"
    )

    # an adapter
    pipe.cleaner.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["fc1", "fc2", "fc3"]))
    for name, parameter in pipe.cleaner.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    pixels["adapted"] = render(pipe)
    pipe.save_lora_weights(
        folder / "adapter", cleaner_lora_layers=get_peft_model_state_dict(pipe.cleaner)
    )
    api.create_repo("tester/adapter")
    api.upload_folder(repo_id="tester/adapter", folder_path=folder / "adapter")

    # a repository whose every source file does something when it runs
    shutil.copytree(folder / "saved", folder / "trapped")
    for source in (folder / "trapped").rglob("*.py"):
        source.write_text(booby_trap + source.read_text())
    api.create_repo("tester/trapped")
    api.upload_folder(repo_id="tester/trapped", folder_path=folder / "trapped")

    loaded = TextGuidedRestorationPipeline.from_pretrained("tester/trapped")
    pixels["loaded"] = render(loaded)
    trusting = TextGuidedRestorationPipeline.from_pretrained(
        "tester/trapped", trust_remote_code=True
    )
    pixels["trusting"] = render(trusting)
    TextGuidedRestorationPipeline.from_pretrained(folder / "trapped", trust_remote_code=True)
    loaded.load_lora_weights("tester/adapter")
    pixels["adapted, loaded"] = render(loaded)
    partial = TextGuidedRestorationPipeline.from_pretrained("tester/partial")

    # a repository that files its code under the names of the package's modules
    index = (folder / "trapped" / "model_index.json").read_text()
    (folder / "trapped" / "model_index.json").write_text(
        index.replace('"nafnet"', '"textir.models.nafnet"')
    )
    shutil.copyfile(
        folder / "trapped/restorer/nafnet.py", folder / "trapped/restorer/textir.models.nafnet.py"
    )
    impostor = error_of(TextGuidedRestorationPipeline.from_pretrained, folder / "trapped")

    save_file(pixels, folder / "with package.safetensors")
    return {
        "classes": {
            name: [
                f"{type(part).__module__}.{type(part).__name__}"
                for part in (one, *one.components.values())
            ]
            for name, one in {"made": pipe, "loaded": loaded, "trusting": trusting}.items()
        },
        "absent": [name for name, part in partial.components.items() if part is None],
        "impostor": impostor,
    }


def visit(folder: str, marker: str):
    """A stranger's machine, without the package: load, adapt, save again, push again."""
    import importlib
    from pathlib import Path

    import torch
    from diffusers import DiffusionPipeline
    from safetensors.torch import save_file

    folder, load = Path(folder), DiffusionPipeline.from_pretrained
    report = {
        "package": [error_of(importlib.import_module, name) for name in ("textir", "pipelines")]
    }
    report["without trust"] = error_of(load, "tester/trapped")
    report["without trust, local"] = error_of(load, folder / "saved")
    report["trapped without trust"] = Path(marker).exists()

    pipe = load("tester/whole", trust_remote_code=True)
    report["classes"] = {name: type(part).__module__ for name, part in pipe.components.items()}
    pixels = {
        "from the Hub": render(pipe),
        "from a folder": render(load(folder / "saved", trust_remote_code=True)),
    }
    partial = load("tester/partial", trust_remote_code=True)
    report["absent"] = [name for name, part in partial.components.items() if part is None]
    pixels["unguided"] = render(partial)

    pipe.save_pretrained(folder / "again")
    pipe.push_to_hub("tester/again")

    pipe.load_lora_weights("tester/adapter", adapter_name="derain")
    pixels["adapted"] = render(pipe)
    report["save while adapted"] = error_of(pipe.save_pretrained, folder / "adapted")

    cache = folder / "cache of half"
    half = load(
        "tester/whole", trust_remote_code=True, variant="fp16", dtype=torch.float16, cache_dir=cache
    )
    report["dtypes"] = [
        {
            name: sorted({str(p.dtype) for p in part.parameters()})
            for name, part in one.components.items()
            if hasattr(part, "parameters")
        }
        for one in (pipe, half)
    ]
    snapshot = next(cache.glob("models--*/snapshots/*"))
    report["half files"] = sorted(
        str(file.relative_to(snapshot)) for file in snapshot.rglob("*") if file.is_file()
    )
    pixels["fp16"] = render(half)
    pixels["fp32 of fp16"] = render(half.to(torch.float32))
    pixels["bf16"] = render(half.to(torch.bfloat16))

    report["trapped with trust"] = (
        bool(error_of(load, "tester/trapped", trust_remote_code=True)) or Path(marker).exists()
    )
    save_file(pixels, folder / "without package.safetensors")
    return report


def visit_again(folder: str):
    """Another stranger, without the package: load what the first one saved and pushed."""
    from pathlib import Path

    from diffusers import DiffusionPipeline
    from safetensors.torch import save_file

    folder = Path(folder)
    sources = {"folder": folder / "again", "Hub": "tester/again"}
    pipes = {
        name: DiffusionPipeline.from_pretrained(source, trust_remote_code=True)
        for name, source in sources.items()
    }
    save_file(
        {name: render(pipe) for name, pipe in pipes.items()}, folder / "once more.safetensors"
    )
    return {"name": type(pipes["Hub"]).__name__}


# ---- the processes


def alone(function, hub: StandinHub, home: Path, package: bool, helpers=(), **arguments):
    """Run a function of a test file in a fresh process with empty caches, in a folder of its own;
    returns what it returns. `helpers` travel with it, beside those of this file."""
    # For machines where the package is installed.
    hide = "sys.modules.update(textir=None, pipelines=None)"
    script = "\n".join(
        [
            "import json, sys",
            "" if package else hide,
            *map(inspect.getsource, (render, error_of, *helpers, function)),
            f"json.dump({function.__name__}(**json.loads(sys.argv[1])), open('report.json', 'w'))",
        ]
    )
    home.mkdir()
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment = {**inherited, **hub.environment(home / "cache"), "OMP_NUM_THREADS": "1"}
    if package:
        environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-c", script, json.dumps(arguments)]
    process = subprocess.run(
        command, cwd=home, env=environment, capture_output=True, text=True, timeout=600
    )
    assert process.returncode == 0, f"{function.__name__} failed:\n{process.stderr[-6000:]}"
    return json.loads((home / "report.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What the processes save and read."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def hub():
    with StandinHub() as hub:
        yield hub


@pytest.fixture(scope="module")
def marker(folder) -> Path:
    """A file that exists once code of the trapped repository has run."""
    return folder / "trap went off"


@pytest.fixture(scope="module")
def author(hub, folder, marker) -> dict:
    trap = f"open({str(marker)!r}, 'w').close()\n"
    report = alone(
        publish, hub, folder / "author", package=True, folder=str(folder), booby_trap=trap
    )
    return {
        **report,
        "trap went off": marker.exists(),
        "pixels": load_file(folder / "with package.safetensors"),
    }


@pytest.fixture(scope="module")
def stranger(hub, folder, marker, author) -> dict:
    report = alone(
        visit, hub, folder / "stranger", package=False, folder=str(folder), marker=str(marker)
    )
    return {**report, "pixels": load_file(folder / "without package.safetensors")}


@pytest.fixture(scope="module")
def second_stranger(hub, folder, stranger) -> dict:
    report = alone(visit_again, hub, folder / "second stranger", package=False, folder=str(folder))
    return {**report, "pixels": load_file(folder / "once more.safetensors")}


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal but for rounding, which may depend on where in memory weights lie."""
    return torch.allclose(a, b, rtol=0, atol=1e-5)


# ---- repositories


def test_repository_holds_weights_configuration_and_one_source_file_for_each_part(hub, author):
    files = hub.files("tester/whole")
    sources = {path for path in files if path.endswith(".py")}
    assert sources == {"pipeline.py", *(f"{part}/{stem}.py" for part, stem in OWN_PARTS.items())}
    index = json.loads(files["model_index.json"].content)
    assert index["_class_name"] == ["pipeline", "TextGuidedRestorationPipeline"]
    assert {part: index[part][0] for part in OWN_PARTS} == OWN_PARTS
    assert {part: index[part][0] for part in ("unet", "text_encoder")} == {
        "unet": "diffusers",
        "text_encoder": "transformers",
    }
    assert "_name_or_path" not in index
    assert not [path for path in files if path.endswith((".bin", ".pt", ".pyc"))]


def test_sources_in_the_repository_are_those_of_the_package(hub, author):
    files = hub.files("tester/whole")
    assert (
        files["pipeline.py"].content
        == (ROOT / "pipelines/pipeline_text_guided_restoration.py").read_bytes()
    )
    for part, stem in OWN_PARTS.items():
        assert (
            files[f"{part}/{stem}.py"].content == (ROOT / f"textir/models/{stem}.py").read_bytes()
        )


def test_saving_with_push_to_hub_uploads_the_sources_too(hub, author):
    whole, pushed = hub.files("tester/whole"), hub.files("tester/saved-and-pushed")
    assert set(pushed) == {path for path in whole if ".fp16." not in path}
    assert pushed["model_index.json"].content == whole["model_index.json"].content


# ---- with the package


def test_with_the_package_no_code_of_a_repository_runs(author):
    assert not author["trap went off"]


def test_with_the_package_repositories_load_into_its_classes(author):
    made, loaded = author["classes"]["made"], author["classes"]["loaded"]
    assert "pipelines.pipeline_text_guided_restoration.TextGuidedRestorationPipeline" in made
    assert "textir.models.nafnet.NAFNet" in made
    assert loaded == made
    assert author["classes"]["trusting"] == made


def test_with_the_package_pixels_stay_the_same(author):
    assert same(author["pixels"]["loaded"], author["pixels"]["saved"])
    assert same(author["pixels"]["trusting"], author["pixels"]["saved"])


def test_with_the_package_code_under_the_names_of_its_modules_is_refused(author):
    assert "trust_remote_code" in author["impostor"]


def test_with_the_package_absent_parts_stay_absent(author):
    assert author["absent"] == ["image_encoder", "unet", "detector", *ABSENT_ANYWAY]


def test_with_the_package_adapters_load_from_the_hub(author):
    assert same(author["pixels"]["adapted, loaded"], author["pixels"]["adapted"])
    assert not same(author["pixels"]["adapted"], author["pixels"]["saved"])


def test_with_the_package_a_pipeline_saved_without_it_loads(second_stranger, author, folder):
    from pipelines import TextGuidedRestorationPipeline

    pipe = TextGuidedRestorationPipeline.from_pretrained(folder / "again")
    assert type(pipe) is TextGuidedRestorationPipeline
    assert type(pipe.restorer).__module__ == "textir.models.nafnet"
    assert same(render(pipe), author["pixels"]["saved"])


# ---- without the package


def test_strangers_really_lack_the_package(stranger):
    textir, pipelines = stranger["package"]
    assert "ModuleNotFoundError" in textir and "textir" in textir
    assert "ModuleNotFoundError" in pipelines and "pipelines" in pipelines


def test_without_trust_nothing_loads_and_nothing_runs(stranger):
    assert "trust_remote_code=True" in stranger["without trust"]
    assert "trust_remote_code=True" in stranger["without trust, local"]
    assert not stranger["trapped without trust"]


def test_the_trap_does_go_off_where_code_is_trusted(stranger, marker):
    """Otherwise the tests that it stays silent could not fail."""
    assert stranger["trapped with trust"]
    assert marker.exists()


def test_with_trust_the_carried_classes_restore_the_same_pixels(stranger, author):
    assert {stranger["classes"][part] for part in OWN_PARTS} == {
        f"diffusers_modules.local.{stem}" for stem in OWN_PARTS.values()
    }
    assert same(stranger["pixels"]["from the Hub"], author["pixels"]["saved"])
    assert same(stranger["pixels"]["from a folder"], author["pixels"]["saved"])


def test_parts_that_are_absent_stay_absent_and_the_rest_works(stranger, author):
    assert stranger["absent"] == ["image_encoder", "unet", "detector", *ABSENT_ANYWAY]
    assert not same(stranger["pixels"]["unguided"], author["pixels"]["saved"])


def test_carried_pipeline_takes_adapters_from_the_hub(stranger, author):
    assert same(stranger["pixels"]["adapted"], author["pixels"]["adapted"])
    assert "save_lora_weights" in stranger["save while adapted"]


def test_half_precision_fetches_its_own_weights_only(hub, stranger):
    weights = {path for path in hub.files("tester/whole") if path.endswith(".safetensors")}
    half = {path for path in weights if ".fp16." in path}
    assert len(weights) == 2 * len(half)
    assert {path for path in stranger["half files"] if path.endswith(".safetensors")} == half
    assert {f"{part}/{stem}.py" for part, stem in OWN_PARTS.items()} < set(stranger["half files"])


def test_half_precision_is_half_and_full_is_full_in_every_network(stranger):
    networks = {"unet", "vae", "text_encoder", "image_encoder", *OWN_PARTS}
    full, half = stranger["dtypes"]
    assert full == {name: ["torch.float32"] for name in networks}
    assert half == {name: ["torch.float16"] for name in networks}


def test_half_precision_weights_restore_what_they_did_before(stranger, author):
    assert same(stranger["pixels"]["fp32 of fp16"], author["pixels"]["fp32 of fp16"])
    assert not same(author["pixels"]["fp32 of fp16"], author["pixels"]["saved"])


@pytest.mark.parametrize("precision, error", [("fp16", 0.001), ("bf16", 0.005)])
def test_half_precision_runs_throughout(stranger, author, precision, error):
    pixels = stranger["pixels"][precision]
    assert pixels.dtype == torch.float32
    assert (pixels - author["pixels"]["saved"]).abs().mean() < error


def test_pipelines_saved_and_pushed_without_the_package_load_elsewhere(
    hub, second_stranger, author
):
    assert second_stranger["name"] == "TextGuidedRestorationPipeline"
    assert same(second_stranger["pixels"]["folder"], author["pixels"]["saved"])
    assert same(second_stranger["pixels"]["Hub"], author["pixels"]["saved"])
    whole = {path for path in hub.files("tester/whole") if ".fp16." not in path}
    assert set(hub.files("tester/again")) == whole


# ---- the stand-in itself


def test_stand_in_answered_everything_that_was_asked(hub, second_stranger):
    """A route that is missing would show as a failure of the client, far from its cause."""
    assert hub.unanswered == []
