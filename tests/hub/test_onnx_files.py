"""Exported networks do what they do in torch, at any size and number of images, and the command
line restores with them."""

import importlib.util
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from pipelines import MINI, TextGuidedRestorationPipeline
from tests.tools import tiny
from textir.cli import app
from textir.hub.onnx_files import (
    DIGEST,
    GUIDED,
    MATCHER,
    RESTORER,
    OnnxMatcher,
    OnnxRestorer,
    export_editors,
    export_onnx,
    use_onnx,
)
from textir.models import DRSformer, GuidanceMatcher, NAFNet, PromptIR
from textir.training.lora import make_trainable, save_adapter

# Images, height, width; with and without padding.
SIZES = [
    (1, 16, 24),
    (3, 40, 32),
    (1, 17, 31),
    (2, 61, 33),
]
# Channels of the guidance features, and how much larger than their level they are.
LEVELS = (
    (4, 1),
    (6, 0),
    (8, -1),
)


def pooling_nafnet() -> NAFNet:
    shape = {"width": 4, "encoder_depths": (1, 1), "middle_depth": 1, "decoder_depths": (1, 1)}
    return tiny.with_open_gates(
        NAFNet(**shape, guidance_channels=(4, 6, 8), pooling_window=24, pooling_share=0.7)
    )


RESTORERS = {
    "nafnet": tiny.restorer,
    "nafnet, pooling": pooling_nafnet,
    "restormer": tiny.transformer,
    "restormer without bias": lambda: tiny.transformer(norm_bias=False),
    "promptir": lambda: tiny.transformer(PromptIR),
    "drsformer": lambda: tiny.transformer(DRSformer),
    "sfnet": tiny.sfnet,
    "sfnet, pooling": lambda: tiny.sfnet(pooling_share=0.8),
}


def matcher(aligned: bool = False, **overrides) -> GuidanceMatcher:
    return GuidanceMatcher(
        **{"widths": (4, 6, 8), "depth": 1, "block_size": 4, "aligned": aligned, **overrides}
    ).eval()


def exported(folder, restorer, matcher) -> TextGuidedRestorationPipeline:
    """A pipeline with these networks; its checkpoint and ONNX files are in `folder`."""
    pipe = TextGuidedRestorationPipeline(restorer=restorer.eval(), matcher=matcher)
    export_onnx(pipe, folder)
    return pipe


def loaded(folder) -> TextGuidedRestorationPipeline:
    pipe = TextGuidedRestorationPipeline.from_pretrained(folder)
    use_onnx(pipe, folder)
    return pipe


def features(batch: int, height: int, width: int) -> list[torch.Tensor]:
    sizes = [
        (channels, height // 2**level + more, width // 2**level + more)
        for level, (channels, more) in enumerate(LEVELS)
    ]
    return [torch.rand(batch, *size) for size in sizes]


def assert_close(found: torch.Tensor, expected: torch.Tensor):
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("name", RESTORERS)
@torch.no_grad()
def test_restorers_do_the_same_at_every_size(name, tmp_path):
    restorer = exported(tmp_path / "checkpoint", RESTORERS[name](), matcher(aligned=True)).restorer
    ours = loaded(tmp_path / "checkpoint").restorer
    assert isinstance(ours, OnnxRestorer)
    for batch, height, width in SIZES:
        image, guidance = tiny.image(height, width, batch=batch), features(batch, height, width)
        assert_close(ours(image), restorer(image))
        assert_close(ours(image, guidance, 0.5), restorer(image, guidance, 0.5))
    strengths = torch.linspace(0, 1, batch).reshape(-1, 1, 1, 1)
    assert_close(ours(image, guidance, strengths), restorer(image, guidance, strengths))
    assert torch.equal(ours(image, guidance, 0.0), ours(image))
    assert (ours(image, guidance) - ours(image)).abs().max() > 1e-3


@pytest.mark.parametrize(
    "options",
    [
        {"aligned": True},
        {"aligned": True, "relative": True},
        {"relative": True},
        {},
        {"block_size": 8, "window": 2.0},
        {"downscale": 2},
    ],
    ids=str,
)
@torch.no_grad()
def test_matchers_do_the_same_at_every_size(options, tmp_path):
    network = exported(tmp_path / "checkpoint", tiny.restorer(), matcher(**options)).matcher
    ours = loaded(tmp_path / "checkpoint").matcher
    assert isinstance(ours, OnnxMatcher)
    for batch, height, width in SIZES:
        image = tiny.image(height, width, batch=batch)
        for guidance in (tiny.image(height, width, 1, batch), tiny.image(20, 28, 1, batch)):
            found, expected = ours(image, guidance), network(image, guidance)
            for ours_at_level, at_level in zip(found.features, expected.features, strict=True):
                assert_close(ours_at_level, at_level)
            assert_close(found.confidence, expected.confidence)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx") / "checkpoint"
    export_onnx(tiny.pipeline(), folder)
    return folder


def test_sizes_have_names_and_files_say_what_they_were_made_of(checkpoint):
    image = ["batch", 3, "height", "width"]
    levels = {
        f"features_{i}": ["batch", c, f"height_{i}", f"width_{i}"]
        for i, (c, _) in enumerate(LEVELS)
    }
    told = {"condition": ["batch", 9]}
    expected = {
        RESTORER: ({"degraded": image, **told}, {"restored": image}),
        GUIDED: (
            {"degraded": image, "strength": ["batch", 1, 1, 1], **levels, **told},
            {"restored": image},
        ),
        MATCHER: (
            {"degraded": image, "guidance": image},
            {**levels, "confidence": ["batch", 1, "height", "width"]},
        ),
    }
    for name, (inputs, outputs) in expected.items():
        session = onnxruntime.InferenceSession(
            checkpoint / name, providers=["CPUExecutionProvider"]
        )
        assert {value.name: value.shape for value in session.get_inputs()} == inputs
        assert {value.name: value.shape for value in session.get_outputs()} == outputs
        assert len(session.get_modelmeta().custom_metadata_map[DIGEST]) == 64
        assert str(checkpoint).encode() not in (checkpoint / name).read_bytes()
        onnx.checker.check_model(onnx.load(checkpoint / name))


def test_a_pipeline_restores_the_same_in_tiles_and_as_a_whole(checkpoint, monkeypatch):
    """There each tile is restored for itself."""
    monkeypatch.delattr(NAFNet, "share_averages")
    ours, torchs = loaded(checkpoint), TextGuidedRestorationPipeline.from_pretrained(checkpoint)
    options = {"guidance_image": tiny.image(80, 112, seed=1), "output_type": "pt"}
    for tile in (None, 64):
        found, expected = (
            pipe(tiny.image(80, 112), tile=tile, **options) for pipe in (ours, torchs)
        )
        assert_close(found.images, expected.images)
        assert_close(found.match_confidence, expected.match_confidence)


# ---- the command line


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def photo(tmp_path):
    pixels = (tiny.image(37, 50)[0].movedim(0, -1).numpy() * 255).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def restored(photo, output, *options) -> np.ndarray:
    result = run("restore", photo, "--output", output, "--steps", 1, *options)
    assert result.exit_code == 0, result.output
    return np.asarray(Image.open(output / photo.name)).astype(int)


def test_export_and_restore_on_the_command_line(photo, tmp_path):
    tiny.pipeline().save_pretrained(tmp_path / "made")
    result = run("export", "onnx", tmp_path / "made", "--output", tmp_path / "exported")
    assert result.exit_code == 0, result.output
    assert result.stdout.split() == [
        str(tmp_path / "exported" / name) for name in (RESTORER, GUIDED, MATCHER)
    ]
    assert not list((tmp_path / "made").glob("*.onnx"))
    expected = restored(photo, tmp_path / "torch", "--checkpoint", tmp_path / "made")
    found = restored(
        photo, tmp_path / "onnx", "--checkpoint", tmp_path / "exported", "--backend", "onnx"
    )
    assert abs(found - expected).max() <= 1
    # In place.
    again = run("export", "onnx", tmp_path / "exported", "--output", tmp_path / "exported")
    assert again.exit_code == 0, again.output


def test_evaluation_runs_on_onnx(photo, checkpoint):
    options = (
        "--data",
        photo.parent,
        "--degradation",
        "noise:25",
        "--guidance",
        "none",
        "--checkpoint",
        checkpoint,
    )
    scores = [run("evaluate", *options, "--backend", backend) for backend in ("torch", "onnx")]
    assert [score.exit_code for score in scores] == [0, 0], scores[1].output
    assert scores[0].output.split("->")[1][:13] == scores[1].output.split("->")[1][:13]


def test_an_adapter_becomes_part_of_the_export(photo, tmp_path):
    made = tmp_path / "made"
    pipe = TextGuidedRestorationPipeline(restorer=tiny.restorer(guided=False).eval())
    pipe.save_pretrained(made)
    make_trainable(pipe, ["restorer"], rank=2)
    for name, parameter in pipe.restorer.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    save_adapter(pipe, tmp_path / "rain")
    options = ("export", "onnx", made, "--adapter", tmp_path / "rain", "--output")
    assert "choose a new folder" in run(*options, made).output
    result = run(*options, tmp_path / "exported")
    assert result.exit_code == 0, result.output
    expected = restored(
        photo, tmp_path / "torch", "--checkpoint", made, "--adapter", tmp_path / "rain"
    )
    found = restored(
        photo, tmp_path / "onnx", "--checkpoint", tmp_path / "exported", "--backend", "onnx"
    )
    bare = restored(photo, tmp_path / "bare", "--checkpoint", made)
    assert abs(found - expected).max() <= 1 < abs(bare - expected).max()
    refused = run(
        "restore",
        photo,
        "--output",
        tmp_path / "no",
        "--checkpoint",
        made,
        "--adapter",
        tmp_path / "rain",
        "--backend",
        "onnx",
    )
    assert refused.exit_code == 2 and "export with the adapter instead" in refused.output


def test_what_cannot_be_exported_is_refused(tmp_path):
    pipe = TextGuidedRestorationPipeline(restorer=tiny.restorer(guided=False))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    with pytest.raises(
        ValueError, match="is not empty; choose a new folder, or the checkpoint's own"
    ):
        export_onnx(pipe, tmp_path / "full")
    with pytest.raises(
        ValueError,
        match="belongs to the installed package, which stays as it is; choose a new folder",
    ):
        export_onnx(pipe, MINI)
    make_trainable(pipe, ["restorer"], rank=2)
    with pytest.raises(ValueError, match=r"make them permanent with `fuse_lora\(\)`"):
        export_onnx(pipe, tmp_path / "new")
    with pytest.raises(ValueError, match="has no restorer"):
        export_onnx(TextGuidedRestorationPipeline(matcher=matcher()), tmp_path / "new")
    with pytest.raises(ValueError, match="has no restorer"):
        use_onnx(TextGuidedRestorationPipeline(matcher=matcher()), tmp_path)
    assert not (tmp_path / "new").exists()


def test_a_checkpoint_without_export_says_how_to_make_one(photo, tmp_path):
    TextGuidedRestorationPipeline(restorer=tiny.restorer(guided=False)).save_pretrained(
        tmp_path / "made"
    )
    result = run(
        "restore",
        photo,
        "--output",
        tmp_path / "out",
        "--checkpoint",
        tmp_path / "made",
        "--backend",
        "onnx",
    )
    assert (
        result.exit_code == 2
        and "run `python -m textir export onnx CHECKPOINT --output FOLDER`" in result.output
    )


def test_an_export_of_other_weights_is_refused(photo, checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "stale")
    tiny.restorer(open_gates=False).save_pretrained(tmp_path / "stale" / "restorer")
    result = run(
        "restore",
        photo,
        "--output",
        tmp_path / "out",
        "--checkpoint",
        tmp_path / "stale",
        "--backend",
        "onnx",
    )
    assert (
        result.exit_code == 2
        and "was not made of the weights in" in result.output
        and "export it again" in result.output
    )


def test_an_unknown_backend_is_refused(photo, checkpoint, tmp_path):
    result = run(
        "restore",
        photo,
        "--output",
        tmp_path / "out",
        "--checkpoint",
        checkpoint,
        "--backend",
        "tensorrt",
    )
    assert (
        result.exit_code == 2
        and "`backend` must be one of torch, onnx, got 'tensorrt'" in result.output
    )


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_missing_packages_are_named(package, photo, checkpoint, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: None if name == package else find(name, *more),
    )
    commands = {
        "onnx": ("export", "onnx", checkpoint, "--output", tmp_path / "new"),
        "onnxruntime": (
            "restore",
            photo,
            "--output",
            tmp_path / "out",
            "--checkpoint",
            checkpoint,
            "--backend",
            "onnx",
        ),
    }
    result = run(*commands[package])
    assert (
        result.exit_code == 2
        and f"ONNX needs {package}; run `pip install {package}`" in result.output
    )


# ---- text-editable restoration


@pytest.mark.parametrize("encoder", ["plain", "efficient"])
@torch.no_grad()
def test_networks_that_edit_do_the_same_at_every_size(encoder, tmp_path):
    options = {}
    if encoder == "efficient":
        stages = ((3, 1, 4, 1), (3, 2, 6, 1))
        options = {"encoder_type": "efficient", "stages": stages, "depths": ()}
    pipe = tiny.editing_pipeline(
        upscaler=tiny.editor("super-resolution", **options),
        colorizer=tiny.editor("colorize", **options),
    )
    files = export_editors(pipe, tmp_path / "checkpoint")
    assert [file.stem for file in files] == ["inpainter", "upscaler", "colorizer"]
    for file in files:
        network = getattr(pipe, file.stem)
        session = onnxruntime.InferenceSession(str(file))
        for batch, height, width in SIZES:
            inputs = {"image": tiny.image(height, width, batch=batch)}
            inputs["condition"] = torch.rand(batch, 20)
            if file.stem == "inpainter":
                inputs["mask"] = (torch.rand(batch, 1, height, width) > 0.5).float()
            if file.stem == "upscaler":
                inputs["scale"] = torch.linspace(2, 5, batch)
            arrays = {name: value.numpy() for name, value in inputs.items()}
            result = torch.from_numpy(session.run(None, arrays)[0])
            assert_close(result, network(**inputs))


def test_the_command_exports_networks_that_edit(tmp_path):
    tiny.editing_pipeline(upscaler=None).save_pretrained(tmp_path / "editor")
    arguments = ["export", "onnx", str(tmp_path / "editor"), "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert {file.name for file in (tmp_path / "out").glob("*.onnx")} == {
        "inpainter.onnx",
        "colorizer.onnx",
    }
    result = CliRunner().invoke(app, [*arguments, "--adapter", "x"])
    assert result.exit_code == 2 and "take no `--adapter`" in result.output


def test_a_checkpoint_without_networks_that_edit_exports_nothing(tmp_path):
    pipe = tiny.editing_pipeline(inpainter=None, upscaler=None, colorizer=None)
    with pytest.raises(ValueError, match="none of inpainter"):
        export_editors(pipe, tmp_path / "new")
