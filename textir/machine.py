"""What this machine has: free memory, speed, and files that are whole or not there at all."""

import contextlib
import ctypes
import functools
import os
import platform
import secrets
import time
import zlib
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch
import torch.nn.functional as F

# Temporary files bear the name of their machine and process, so that leftovers can be told.
PART_OF_THIS_MACHINE = f".textir-{zlib.crc32(platform.node().encode()):08x}-"


@contextmanager
def writing(path: Path):
    """Hand out a temporary file beside `path` and move it into place once the block has ended well.

    Raises:
        ValueError: if the folder is a file or may not be written to, or if `path` is a folder.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder; a file is to be written there.")
    temporary = path.parent / f"{PART_OF_THIS_MACHINE}{os.getpid()}-{secrets.token_hex(4)}.part"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent.resolve())
        temporary.touch(exist_ok=False)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(
            f"{path.parent} is a file; a folder is needed to write {path.name} to."
        ) from error
    except OSError as error:
        raise ValueError(f"{path.parent} cannot be written to: {error.strerror}.") from error
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@functools.cache
def sweep(folder: Path) -> None:
    """Take out of a folder what killed processes of this machine left half-written; looked for
    once."""
    for part in folder.glob(f"{PART_OF_THIS_MACHINE}*.part"):
        process = part.name.removeprefix(PART_OF_THIS_MACHINE).split("-")[0]
        if process.isdecimal() and not psutil.pid_exists(int(process)):
            part.unlink(missing_ok=True)


def free_memory(device: torch.device | str = "cpu") -> int:
    """Bytes that are free on a device."""
    device = torch.device(device)
    return (
        torch.cuda.mem_get_info(device)[0]
        if device.type == "cuda"
        else psutil.virtual_memory().available
    )


def matmul_speed(dtype: torch.dtype, device: str = "cpu", side: int = 2048, runs: int = 5) -> float:
    """10^9 operations a millisecond of one large matrix product, the best of some runs, be it as
    such or as a convolution of single pixels, which on some processors is twice as fast: what this
    machine can do at most."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    image = a.T.contiguous().view(1, side, 32, -1).contiguous(memory_format=torch.channels_last)
    ways = (lambda: a @ b, lambda: F.conv2d(image, b[..., None, None]))
    best = min(seconds(way, device) for way in ways * (runs + 1))
    return 2 * side**3 / (1000 * best) / 1e9


@torch.no_grad()
def seconds(call: Callable[[], object], device: str = "cpu") -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start


def reset_peak(device: str) -> float:
    """Start to watch the highest memory; returns what is in use in MiB, NaN where the system does
    not tell."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    give_back_memory()
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        return float("nan")
    return status("VmRSS")


def give_back_memory() -> None:
    """Let the allocator return to the system what is free, where it can (glibc): what earlier runs
    left behind would hide the next peak."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def peak(device: str) -> float:
    return (
        torch.cuda.max_memory_allocated() / 2**20 if device.startswith("cuda") else status("VmHWM")
    )


def status(name: str) -> float:
    """A size from `/proc/self/status` in MiB (Linux)."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return float("nan")
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))
