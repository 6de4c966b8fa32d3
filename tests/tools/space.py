"""The Space as its users meet it: `python app.py` in a process of its own, with a checkpoint of
tiny networks."""

import atexit
import functools
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import torch

from tests.tools import tiny
from textir.training.lora import make_trainable, save_adapter

ROOT = Path(__file__).parents[2]
MAX_PIXELS = 300_000  # just above the largest example


def save_checkpoint(folder: Path) -> Path:
    """A whole tiny chain with one embedded adapter, `derain`, that shows in the pixels."""
    tiny.pipeline().save_pretrained(folder)
    trained = tiny.pipeline()
    make_trainable(trained, ["restorer"], rank=2)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in trained.restorer.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    save_adapter(trained, folder / "adapters" / "derain")
    return folder


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def running(**environment: str):
    """`python app.py` with some environment variables; hands out the process and its address once
    it answers."""
    port = free_port()
    variables = {
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    url = f"http://127.0.0.1:{port}"
    with (
        tempfile.TemporaryDirectory(prefix="textir-space-") as folder,
        open(Path(folder) / "log.txt", "w+") as log,
    ):
        places = {"GRADIO_TEMP_DIR": f"{folder}/gradio", "TMPDIR": folder}
        process = subprocess.Popen(
            [sys.executable, "app.py"],
            cwd=ROOT,
            env={**os.environ, **variables, **places, **environment},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            deadline = time.monotonic() + 300
            while True:
                try:
                    urllib.request.urlopen(f"{url}/config", timeout=5).close()
                    break
                except (urllib.error.URLError, ConnectionError, TimeoutError):
                    if process.poll() is not None or time.monotonic() > deadline:
                        log.seek(0)
                        raise RuntimeError(f"app.py does not answer:\n{log.read()}") from None
                    time.sleep(0.2)
            process.log = log
            yield process, url
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@functools.cache
def tiny_space() -> tuple[str, Path]:
    """Address and checkpoint of one Space that all test modules share; it ends with Python. Its
    editor lies beside the checkpoint, as `editor`."""
    folder = tempfile.TemporaryDirectory(prefix="textir-checkpoint-")
    checkpoint = save_checkpoint(Path(folder.name) / "chain")
    editor = checkpoint.with_name("editor")
    tiny.editing_pipeline().save_pretrained(editor)
    space = running(
        TEXTIR_CHECKPOINT=str(checkpoint),
        TEXTIR_EDIT_CHECKPOINT=str(editor),
        TEXTIR_MAX_PIXELS=str(MAX_PIXELS),
    )
    _, url = space.__enter__()
    atexit.register(folder.cleanup)
    atexit.register(space.__exit__, None, None, None)
    return url, checkpoint
