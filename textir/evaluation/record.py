"""What a measured number needs beside it: the code, the machine and the images that made it."""

import hashlib
import platform
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np
import psutil
import torch

import textir


def measured_with(digests: Iterable[str]) -> dict:
    """Versions, code, machine, and a digest of the images that were measured.

    Args:
        digests: of the images, in their order, see `image_digest`.
    """
    return {
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "code_sha256": code_digest(),
        "machine": describe_machine(),
        "data_sha256": hashlib.sha256("\n".join(digests).encode()).hexdigest(),
    }


def image_digest(*images: np.ndarray) -> str:
    """SHA-256 of the pixels of one or several images."""
    digest = hashlib.sha256()
    for pixels in images:
        digest.update(np.ascontiguousarray(pixels))
    return digest.hexdigest()


@lru_cache(maxsize=1)
def code_digest() -> str:
    """SHA-256 of the package's source files and of the pipelines beside it."""
    package = Path(textir.__file__).parent
    digest = hashlib.sha256()
    for folder in (package, package.parent / "pipelines"):
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.relative_to(package.parent).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def describe_machine() -> dict:
    """Processor, its cores and the threads in use, memory in GiB, and GPU."""
    return {
        "system": platform.platform(),
        "processor": processor_name(),
        "cores": psutil.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def processor_name() -> str:
    """The processor as the system calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
