"""What holds over many photos: memory stays, results do not depend on what came before, and a kill
at any moment leaves nothing by halves."""

import gc
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch
from PIL import Image

from tests.tools import tiny
from tests.tools.space import ROOT


def memory() -> float:
    """Of this process, in MiB."""
    gc.collect()
    return psutil.Process().memory_info().rss / 2**20


@pytest.mark.parametrize("count", [60, pytest.param(500, marks=pytest.mark.slow)])
def test_memory_stays_flat(count):
    pipe, editor = tiny.pipeline(), tiny.editing_pipeline()
    sizes = [(64, 96), (96, 64), (80, 80), (48, 128)]

    def work(number: int) -> None:
        image = tiny.image(*sizes[number % 4], seed=number)
        pipe(image, guidance_strength=1.0, output_type="pt")
        editor(image.mean(1, keepdim=True).expand(-1, 3, -1, -1), "a dog", output_type="pt")

    for number in range(20):
        work(number)
    before = memory()
    for number in range(count):
        work(number)
    assert memory() - before < 16


def test_a_photo_has_the_same_pixels_whatever_came_before():
    pipe, image = tiny.pipeline(), tiny.image(70, 130)

    def run(**options) -> torch.Tensor:
        generator = torch.Generator().manual_seed(3)
        return pipe(image, generator=generator, output_type="pt", **options).images

    first, tiled = run(), run(tile=64, overlap=16)
    for size in ((40, 56), (130, 70)):
        pipe(tiny.image(*size, seed=9), guidance_strength=1.0, tile=64)
    assert torch.equal(run(), first)
    assert torch.equal(run(tile=64, overlap=16), tiled)


@pytest.mark.parametrize("delays", [(0.3,), pytest.param(range(12), marks=pytest.mark.slow)])
def test_a_killed_run_leaves_whole_files_and_goes_on(delays, tmp_path):
    tiny.pipeline().save_pretrained(tmp_path / "checkpoint")
    (tmp_path / "photos").mkdir()
    for number in range(12):
        pixels = (255 * tiny.image(64, 96, seed=number)[0]).byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")

    def start(output: str) -> subprocess.Popen:
        command = ["restore", "photos", "--checkpoint", "checkpoint", "--output", output]
        return subprocess.Popen(
            [sys.executable, "-m", "textir", *command],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
        )

    assert start("whole").wait() == 0
    expected = {file.name: file.read_bytes() for file in (tmp_path / "whole").glob("*.png")}
    assert len(expected) == 12
    for delay in delays:
        output = tmp_path / f"killed-{delay}"
        process = start(output.name)
        deadline = time.monotonic() + 120
        while not list(output.glob("*.png")) and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.1 * delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        for file in output.glob("*.png"):
            assert file.read_bytes() == expected[file.name]
        assert start(output.name).wait() == 0
        assert {file.name: file.read_bytes() for file in output.glob("*.png")} == expected
        assert not list(output.glob("*.part")) and not list(output.glob(".*.part"))
