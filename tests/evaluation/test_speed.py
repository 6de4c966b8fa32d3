"""The benchmark counts and times what it says, and compares with the same function done the plain
way."""

import re

import pytest
import torch
from typer.testing import CliRunner

from tests.tools import tiny
from textir.cli import app
from textir.evaluation import speed
from textir.hub.published_arithmetic import PLAIN, plain
from textir.models import (
    DRSformer,
    GuidanceMatcher,
    PromptIR,
    Restormer,
    nafnet,
    restormer,
)


def features(batch: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(batch, *shape, generator=generator)
        for shape in ((4, 20, 32), (6, 10, 16), (8, 5, 8))
    ]


NETWORKS = {
    "restormer": lambda: tiny.transformer(Restormer),
    "bias-free restormer": lambda: tiny.transformer(Restormer, norm_bias=False),
    "promptir": lambda: tiny.transformer(PromptIR),
    "drsformer": lambda: tiny.transformer(DRSformer),
    "nafnet": tiny.restorer,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_plain_way_computes_the_same_on_whole_maps(name, monkeypatch):
    model, image = NETWORKS[name]().eval(), tiny.image(17, 31, batch=2)
    with torch.no_grad():
        ours = model(image, features(2))
        with plain(model), monkeypatch.context() as patch:
            for module in (restormer, nafnet):
                patch.delattr(module, "tiles")
            assert all(
                "forward" in vars(module) for module in model.modules() if type(module) in PLAIN
            )
            torch.testing.assert_close(model(image, features(2)), ours, atol=2e-6, rtol=1e-4)
        assert torch.equal(model(image, features(2)), ours)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_plain_way_keeps_channels_first(name):
    model, orders = NETWORKS[name]().eval().to(memory_format=torch.channels_last), set()
    for layer in model.modules():
        if isinstance(layer, (torch.nn.Conv2d, restormer.PairedConv)):
            layer.register_forward_hook(
                lambda layer, inputs, output: orders.add(output.is_contiguous())
            )
    with torch.no_grad(), plain(model):
        model(tiny.image(16, 32, batch=2), features(2))
    assert orders == {True}


def test_work_is_counted_in_multiply_adds():
    layer = torch.nn.Conv2d(3, 8, 5, padding=2)
    assert speed.count_gmac(lambda: layer(torch.rand(2, 3, 10, 20))) == pytest.approx(
        2 * 200 * 8 * 3 * 25 / 1e9
    )


def test_time_is_the_median_and_memory_the_peak(monkeypatch):
    times = iter([9.0, 0.3, 0.1, 0.2])
    monkeypatch.setattr(speed, "seconds", lambda call, device: call() or next(times))
    held = []
    milliseconds, memory = speed.measure(lambda: held.append(torch.ones(2**24)), 3, "cpu")
    # Three times 64 MiB; NaN without /proc.
    assert milliseconds == pytest.approx(200) and (memory != memory or memory > 100)


@pytest.fixture
def small(monkeypatch):
    """Networks that take no time."""
    monkeypatch.setitem(
        speed.RESTORERS,
        "restormer",
        lambda guidance_channels=None: tiny.transformer(
            Restormer, guidance_channels=guidance_channels
        ),
    )
    monkeypatch.setattr(
        speed,
        "GuidanceMatcher",
        lambda widths: GuidanceMatcher(widths=widths, depth=1, block_size=4),
    )


def test_every_way_is_timed(small):
    rows = list(speed.time_restorers(["restormer"], [(32, 48)], ["float32", "bfloat16"], runs=1))
    assert [(row.network, row.way) for row in rows[:4]] == [
        ("restormer", "ours"),
        ("restormer", "plain"),
        ("restormer", "guided"),
        ("matcher of restormer", "ours"),
    ]
    assert [row.dtype for row in rows] == ["float32"] * 4 + ["bfloat16"] * 4
    assert all(row.milliseconds > 0 and row.gmac > 0 and row.of_peak > 0 for row in rows)
    assert rows[2].gmac > rows[0].gmac


def test_onnxruntime_is_timed_in_float32(small):
    pytest.importorskip("onnxruntime")
    rows = list(
        speed.time_restorers(
            ["restormer"], [(32, 48)], ["float32", "bfloat16"], ["ours", "onnx"], runs=1
        )
    )
    assert [(row.dtype, row.way) for row in rows] == [
        ("float32", "ours"),
        ("float32", "onnx"),
        ("bfloat16", "ours"),
    ]
    assert rows[1].gmac == rows[0].gmac and rows[1].of_peak > 0


def test_the_command_prints_a_line_for_each(small):
    result = CliRunner().invoke(
        app,
        [
            "benchmark",
            "restorers",
            "--network",
            "restormer",
            "--size",
            "32x48",
            "--dtype",
            "float32",
            "--way",
            "ours",
            "--runs",
            "1",
        ],
    )
    assert result.exit_code == 0, result.output
    assert re.search(
        r"restormer +32 x 48 +float32 +ours .* ms .* MiB .* GMAC .* of peak", result.output
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--network", "swinir"], "Unknown network swinir; known are restormer, promptir"),
        (["--dtype", "int8"], "Unknown dtype int8"),
        (["--way", "fast"], "Unknown way fast"),
        (["--size", "8x8"], "`--size` must be height x width of at least 16"),
        (["--size", "64"], "`--size` must be height x width"),
    ],
)
def test_what_cannot_be_timed_is_said(arguments, message):
    result = CliRunner().invoke(app, ["benchmark", "restorers", *arguments])
    assert result.exit_code == 2 and message in result.output
