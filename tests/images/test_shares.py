"""Several processes: every photo once, pixels in balance, and what a killed process leaves is done
by the next run."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.distributed import TCPStore

from pipelines import TextGuidedRestorationPipeline
from tests.tools import tiny
from textir.images.plans import plan_jobs
from textir.images.shares import Share, count_pixels, split_by_pixels

ROOT = Path(__file__).parents[2]


@pytest.fixture
def photos(tmp_path):
    """Eight photos of many sizes, one of them damaged."""
    folder = tmp_path / "in"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number, side in enumerate((16, 90, 24, 60, 40, 40, 17)):
        pixels = generator.integers(0, 256, (side, side + 8, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (folder / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return folder


def test_every_photo_has_one_owner_and_pixels_are_in_balance(photos):
    jobs = plan_jobs([photos], photos.parent / "out")
    shares = split_by_pixels(jobs, 3)
    assert sorted(job.source.name for share in shares for job in share) == sorted(
        job.source.name for job in jobs
    )
    loads = [sum(map(count_pixels, share)) for share in shares]
    assert max(loads) == 90 * 98 and min(loads) > 0.4 * max(loads)
    assert split_by_pixels(jobs, 3) == shares
    assert [Share(rank, 3).of(jobs) for rank in range(3)] == shares


def test_the_environment_says_which_process_this_is():
    assert Share.of_this_process({}) == Share()
    names = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}
    assert Share.of_this_process(names) == Share(3, 4, 1)
    for wrong in ({"RANK": "4", "WORLD_SIZE": "4"}, {"RANK": "x", "WORLD_SIZE": "4"}):
        with pytest.raises(ValueError, match="number below `WORLD_SIZE`"):
            Share.of_this_process(wrong)


def test_processes_of_torchrun_hear_of_one_another():
    store = TCPStore("127.0.0.1", 0, is_master=True)
    places = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    environment = {"TORCHELASTIC_USE_AGENT_STORE": "True", **places}
    with ThreadPoolExecutor() as pool:
        ends = [
            pool.submit(Share(rank, 2).gather, "end", {"rank": rank}, environment)
            for rank in (1, 0)
        ]
    assert [end.result() for end in ends] == [[{"rank": 0}, {"rank": 1}]] * 2
    assert Share(0, 2).gather("end", {}, {}) is None


def start(photos, name, *options):
    """torchrun with two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["-m", "textir", "restore", str(photos), "--output", str(photos.parent / name)]
    command += ["--checkpoint", str(photos.parent / "checkpoint"), *options]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


@pytest.mark.slow
def test_two_processes_do_every_photo_once_and_report_together(photos):
    pipe = TextGuidedRestorationPipeline(restorer=tiny.restorer(guided=False))
    pipe.save_pretrained(photos.parent / "checkpoint")
    output = start(photos, "out").communicate(timeout=300)[0].decode()
    assert output.count("7 of 8 images restored, 1 bad") == 1, output
    assert output.count("8 to restore") == 1
    assert all(output.count(f"out/{number}.png") == 1 for number in range(7))
    assert output.count("bad: ") == 1


@pytest.mark.slow
def test_what_a_killed_process_leaves_is_done_by_the_next_run(photos):
    (photos / "bad.png").unlink()
    for number in range(7):
        Image.open(photos / f"{number}.png").resize((480, 400)).save(photos / f"{number}.png")
    TextGuidedRestorationPipeline(restorer=tiny.restorer(guided=False)).save_pretrained(
        photos.parent / "checkpoint"
    )
    running = start(photos, "out", "--tile", "64")
    out = photos.parent / "out"
    while not list(out.glob("*.json")):
        assert running.poll() is None, running.communicate()[0].decode()
        time.sleep(0.02)
    children = f"/proc/{running.pid}/task/{running.pid}/children"
    os.kill(int(Path(children).read_text().split()[-1]), signal.SIGKILL)
    running.communicate(timeout=120)
    finished = {path: path.stat().st_mtime_ns for path in out.glob("*.png.json")}
    assert 0 < len(finished) < 7 and running.returncode != 0
    rerun = start(photos, "out", "--tile", "64")
    output = rerun.communicate(timeout=300)[0].decode()
    assert rerun.returncode == 0 and "7 of 7 images restored" in output, output
    assert len(list(out.glob("*.png"))) == 7
    assert all(path.stat().st_mtime_ns == before for path, before in finished.items())
