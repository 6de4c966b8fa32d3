"""Published weights compute the same function here: outputs of the published networks on weights
made by a recipe, and files that are not what they claim to be are refused by name."""

import json
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from pipelines import TextGuidedRestorationPipeline
from tests.tools import tiny
from textir.cli import app
from textir.hub.conversion import FORMATS, convert, convert_back, looks_like, read_weights
from textir.models import PromptIR, SFNet
from textir.models.nafnet import NAFNet

FIXTURES = Path(__file__).parents[1] / "fixtures"
NAMES = (
    "restormer_deblurring",
    "restormer_denoising_biasfree",
    "promptir",
    "nafnet_gopro_width32",
    "sfnet",
    "drsformer",
)


def published(name: str) -> dict[str, torch.Tensor]:
    """Weights in the published layout, each made from its own name."""
    weights = {}
    for key, shape in dict(
        json.loads((FIXTURES / f"{name}.json").read_text())["state_dict"]
    ).items():
        if key.endswith("num_batches_tracked"):
            weights[key] = torch.tensor(0)
            continue
        value = torch.randn(
            shape, generator=torch.Generator().manual_seed(zlib.crc32(key.encode()))
        )
        if len(shape) >= 2 and value[0].numel() > 1:
            weights[key] = value / value[0].numel() ** 0.5
        elif key.endswith("running_var"):
            weights[key] = 1 + 0.1 * value.abs()
        else:
            weights[key] = 1 + 0.1 * value if key.endswith("weight") else 0.1 * value
    return weights


@pytest.fixture(scope="module")
def small():
    """A small Restormer and a small NAFNet in the published layout."""
    networks = {
        "restormer": FORMATS["restormer"].network(
            width=8,
            encoder_depths=(1, 2, 1),
            middle_depth=1,
            decoder_depths=(1, 2, 1),
            refinement_depth=1,
        ),
        "nafnet": FORMATS["nafnet"].network(
            width=4, encoder_depths=(1, 2), middle_depth=1, decoder_depths=(2, 1)
        ),
    }
    return {name: convert_back(network, name) for name, network in networks.items()}


@pytest.mark.parametrize("name", NAMES)
def test_the_published_function_is_computed(name):
    weights, case = published(name), load_file(FIXTURES / f"{name}.safetensors")
    model = convert(weights, name.split("_")[0])
    with torch.no_grad():
        output = model(case["input"])
    assert (output - case["output"]).abs().max() < 1e-4 * case["output"].abs().max()
    count = json.loads((FIXTURES / f"{name}.json").read_text())["parameters"]
    form = FORMATS[name.split("_")[0]]
    unused = sum(value.numel() for key, value in weights.items() if re.match(form.unused, key))
    assert sum(parameter.numel() for parameter in model.parameters()) == count - unused
    back = convert_back(model, name.split("_")[0])
    assert back.keys() == weights.keys() and all(
        back[key].shape == weights[key].shape for key in weights
    )
    assert all(
        torch.equal(back[key], weights[key]) for key in weights if not re.match(form.unused, key)
    )


def test_means_over_neighbourhoods_are_the_published_ones():
    # The same names and shapes.
    weights, case = (
        published("sfnet"),
        load_file(FIXTURES / "sfnet_local_outdoor.safetensors"),
    )
    whole = convert(weights, "sfnet")
    local = SFNet(pooling_share=210 / 256).eval()
    local.load_state_dict(whole.state_dict())
    with torch.no_grad():
        output = local(case["input"])
        assert (output - case["output"]).abs().max() < 1e-4 * case["output"].abs().max()
        assert (output - whole(case["input"])).abs().max() > 0.1 * case["output"].abs().max()


@pytest.mark.parametrize(
    "wrap", [lambda w: w, lambda w: {"params": w}, lambda w: {"params_ema": w, "params": {}}]
)
def test_wrapped_weights_are_found(wrap, small, tmp_path):
    torch.save(wrap(small["restormer"]), tmp_path / "weights.pth")
    assert convert(read_weights(tmp_path / "weights.pth"), "restormer").config.encoder_depths == [
        1,
        2,
        1,
    ]


def test_a_converted_promptir_restores_from_the_command_line(tmp_path):
    network = PromptIR(
        width=8,
        encoder_depths=(1, 1, 1),
        middle_depth=1,
        decoder_depths=(1, 1, 1),
        refinement_depth=1,
    )
    weights = {f"net.{key}": value for key, value in convert_back(network, "promptir").items()}
    torch.save({"state_dict": weights}, tmp_path / "model.ckpt")
    Image.new("RGB", (41, 30), "teal").save(tmp_path / "photo.png")
    for command in (
        [
            "convert",
            "--from",
            "promptir",
            tmp_path / "model.ckpt",
            "--output",
            tmp_path / "promptir",
        ],
        [
            "restore",
            tmp_path / "photo.png",
            "--checkpoint",
            tmp_path / "promptir",
            "--output",
            tmp_path / "out",
        ],
    ):
        result = CliRunner().invoke(app, [str(argument) for argument in command])
        assert result.exit_code == 0, result.output
    with (
        Image.open(tmp_path / "photo.png") as photo,
        Image.open(tmp_path / "out" / "photo.png") as restored,
    ):
        pipe = TextGuidedRestorationPipeline(restorer=network.eval())
        assert np.array_equal(np.asarray(restored), np.asarray(pipe(photo).images[0]))


def test_the_prefix_of_lightning_is_taken_off(small, tmp_path):
    state = {
        "state_dict": {f"net.{key}": value.half() for key, value in small["nafnet"].items()},
        "epoch": 3,
    }
    torch.save(state, tmp_path / "last.ckpt")
    weights = read_weights(tmp_path / "last.ckpt")
    assert weights.keys() == small["nafnet"].keys() and all(
        value.dtype == torch.float32 for value in weights.values()
    )


def test_weights_saved_on_a_gpu_are_read_without_one(small, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    torch.save(small["nafnet"], tmp_path / "gpu.pth")
    monkeypatch.undo()
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="CUDA"):
            # The file is what it is meant to be.
            torch.load(tmp_path / "gpu.pth", weights_only=True)
    weights = read_weights(tmp_path / "gpu.pth")
    assert all(value.device.type == "cpu" for value in weights.values())
    assert all(torch.equal(weights[key], value) for key, value in small["nafnet"].items())


def test_weights_of_another_network_are_recognised(small):
    assert looks_like(small["nafnet"]) == "nafnet" and looks_like({"a": torch.zeros(1)}) is None
    with pytest.raises(ValueError, match="not weights of restormer; they look like nafnet"):
        convert(small["nafnet"], "restormer")
    with pytest.raises(
        ValueError,
        match="Unknown network 'swinir'; known are restormer, promptir, drsformer, sfnet, nafnet",
    ):
        convert(small["nafnet"], "swinir")


def test_gaps_and_leftovers_are_named(small):
    weights = dict(small["restormer"])
    gone = weights.pop("encoder_level2.1.ffn.project_out.weight")
    with pytest.raises(
        ValueError,
        match=r"1 weights of restormer are missing: encoders\.1\.1\.feed_forward\.reduce\.weight",
    ):
        convert(weights, "restormer")
    with pytest.raises(
        ValueError, match=r"1 weights are left over, which restormer does not have: head\.weight"
    ):
        convert({**small["restormer"], "head.weight": gone}, "restormer")
    with pytest.raises(ValueError, match="have another shape"):
        convert({**small["restormer"], "output.weight": torch.zeros(3, 9, 3, 3)}, "restormer")


class Payload:
    def __reduce__(self):
        return (print, ("code ran",))


def test_a_pickle_with_code_is_refused(tmp_path, capsys):
    torch.save({"weights": Payload()}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match=r"bad\.pth holds more than tensors"):
        read_weights(tmp_path / "bad.pth")
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "cannot be read"), (b"nonsense", "cannot be read"), (None, "is not a file")],
)
def test_files_that_are_none_are_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_weights(tmp_path / "x.pth")


def test_a_converted_network_restores_from_the_command_line(small, tmp_path):
    save_file(small["restormer"], tmp_path / "weights.safetensors")
    run = CliRunner().invoke
    done = run(
        app,
        [
            "convert",
            "--from",
            "restormer",
            str(tmp_path / "weights.safetensors"),
            "--output",
            str(tmp_path / "pipe"),
        ],
    )
    assert done.exit_code == 0, done.output
    pipe = TextGuidedRestorationPipeline.from_pretrained(tmp_path / "pipe")
    assert pipe(torch.rand(1, 3, 35, 50), output_type="pt").images.shape == (1, 3, 35, 50)
    again = run(
        app,
        [
            "convert",
            "--from",
            "restormer",
            str(tmp_path / "weights.safetensors"),
            "--output",
            str(tmp_path / "pipe"),
        ],
    )
    assert again.exit_code == 2 and "not empty" in again.output
    back = run(
        app,
        [
            "convert",
            "--back",
            "--from",
            "restormer",
            str(tmp_path / "pipe"),
            "--output",
            str(tmp_path / "back.safetensors"),
        ],
    )
    assert back.exit_code == 0, back.output
    published = load_file(tmp_path / "back.safetensors")
    assert all(torch.equal(published[key], value) for key, value in small["restormer"].items())


def test_a_network_that_can_be_told_has_no_published_layout():
    with pytest.raises(ValueError, match="A network that can be told what to remove has weights"):
        convert_back(tiny.restorer(guided=False, told=True), "nafnet")


# ---- the layouts in which people hold weights


def small_nafnet() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return convert_back(NAFNet(3, 8, (1, 1), 1, (1, 1)), "nafnet")


def prefixed(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in small_nafnet().items()}


PREFIXES = [
    "net.module.",
    "model.net.",
    "model.module.",
    "_orig_mod.",
    "module._orig_mod.",
    "net._orig_mod.",
    "generator.",
    "net_g.",
    "network.",
]
WRAPPERS = ["state_dict_ema", "ema", "weights", "net", "network", "net_g", "generator", "params"]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_is_found_and_taken_off(prefix, tmp_path):
    torch.save({"state_dict": prefixed(prefix)}, tmp_path / "w.pth")
    assert read_weights(tmp_path / "w.pth").keys() == small_nafnet().keys()


@pytest.mark.parametrize("key", WRAPPERS)
def test_a_wrapper_is_found_and_opened(key, tmp_path):
    torch.save({key: small_nafnet(), "epoch": 3}, tmp_path / "w.pth")
    assert read_weights(tmp_path / "w.pth").keys() == small_nafnet().keys()
    torch.save({"state_dict": {key: small_nafnet()}}, tmp_path / "w.pth")
    assert read_weights(tmp_path / "w.pth").keys() == small_nafnet().keys()


def test_averaged_weights_go_before_others_and_weights_of_a_loss_are_left_out(tmp_path):
    averaged = {key: value + 1 for key, value in small_nafnet().items()}
    stored = {
        **prefixed("generator."),
        **{f"generator_ema.{key}": value for key, value in averaged.items()},
        "loss.vgg.0.weight": torch.zeros(3),
        "step_counter": torch.tensor(5),
    }
    torch.save(stored, tmp_path / "w.pth")
    found = read_weights(tmp_path / "w.pth")
    assert found.keys() == averaged.keys()
    assert torch.equal(found["intro.bias"], averaged["intro.bias"])


def test_numbers_of_numpy_may_stand_beside_the_weights(tmp_path):
    stored = {"state_dict": small_nafnet(), "best": np.float64(30.1), "curve": np.arange(3.0)}
    torch.save(stored, tmp_path / "w.pth")
    assert read_weights(tmp_path / "w.pth").keys() == small_nafnet().keys()


def test_the_suffix_may_be_in_capitals(tmp_path):
    save_file(small_nafnet(), tmp_path / "W.SAFETENSORS")
    assert read_weights(tmp_path / "W.SAFETENSORS").keys() == small_nafnet().keys()


def test_weights_that_fit_nothing_are_shown():
    with pytest.raises(
        ValueError, match=r"nor of any known network\. They begin with head\.weight"
    ):
        convert({"head.weight": torch.zeros(3)}, "nafnet")


@pytest.mark.parametrize("size", [(24, 40), (21, 35)])
def test_a_converted_nafnet_is_the_published_function_at_any_size(size):
    network = convert(small_nafnet(), "nafnet")
    assert network.config.border == "zeros"
    image = torch.rand(1, 3, *size)
    height, width = (side + -side % 4 for side in size)
    whole = torch.zeros(1, 3, height, width)
    whole[..., : size[0], : size[1]] = image
    with torch.no_grad():
        published = network(whole)[..., : size[0], : size[1]]
        assert torch.equal(network(image), published)


def test_six_channels_are_mentioned_when_they_are_converted(tmp_path):
    weights = convert_back(NAFNet(6, 8, (1,), 1, (1,)), "nafnet")
    save_file(weights, tmp_path / "w.safetensors")
    arguments = ["convert", str(tmp_path / "w.safetensors"), "--from", "nafnet", "--output"]
    result = CliRunner().invoke(app, [*arguments, str(tmp_path / "out")])
    assert result.exit_code == 0 and "takes 6 channels" in result.output
