"""How fast the restoration networks are on this machine: time, peak memory, work, and how near to
its matrix multiplication they come."""

import contextlib
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from textir.hub.onnx_files import RESTORER, Session, example, require, unguided, write_onnx
from textir.hub.published_arithmetic import plain
from textir.machine import matmul_speed, peak, reset_peak, seconds
from textir.models import DRSformer, GuidanceMatcher, NAFNet, PromptIR, Restormer, SFNet

# As published; NAFNet with 32 channels as for GoPro. Guidance channels as the training scripts
# build them.
RESTORERS: dict[str, Callable[..., torch.nn.Module]] = {
    "restormer": Restormer,
    "promptir": PromptIR,
    "nafnet": lambda **options: NAFNet(
        width=32,
        encoder_depths=(1, 1, 1, 28),
        middle_depth=1,
        decoder_depths=(1, 1, 1, 1),
        **options,
    ),
    "sfnet": SFNet,
    "drsformer": DRSformer,
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Timing:
    """A row of the benchmark.

    Attributes:
        network: name, or `matcher of ...`.
        size: height and width in pixels.
        dtype: of weights and images.
        way: `ours`, `plain` (published arithmetic), `guided` (ours with guidance features) or
            `onnx` (ours in onnxruntime).
        milliseconds: median of the runs.
        memory: highest memory in MiB above what was in use before, NaN where the system does not
            tell.
        gmac: 10^9 multiply-adds of convolutions and matrix products.
        of_peak: share of the matrix multiplication's speed that this comes to.
    """

    network: str
    size: tuple[int, int]
    dtype: str
    way: str
    milliseconds: float
    memory: float
    gmac: float
    of_peak: float

    def __str__(self) -> str:
        height, width = self.size
        return (
            f"{self.network:22} {height:>4} x {width:<4} {self.dtype:8} {self.way:6} "
            f"{self.milliseconds:9.0f} ms {self.memory:7.0f} MiB "
            f"{self.gmac:7.1f} GMAC {self.of_peak:6.2f} of peak"
        )


def time_restorers(
    names: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    dtypes: Sequence[str] = ("float32",),
    ways: Sequence[str] = ("ours", "plain", "guided"),
    runs: int = 3,
    device: str = "cpu",
) -> Iterator[Timing]:
    """Time networks with random weights, one after the other.

    Args:
        names: keys of `RESTORERS`.
        sizes: height and width in pixels.
        dtypes: `float32`, `bfloat16`, `float16`.
        ways: `ours`, `plain`, `guided`, which also times the matcher, and `onnx`: in onnxruntime,
            in float32 only.
        runs: measured runs, behind one that is not.
        device: where to.

    Raises:
        ValueError: if a name is not known, or onnxruntime is missing.
    """
    for kind, asked, known in (
        ("network", names, RESTORERS),
        ("dtype", dtypes, DTYPES),
        ("way", ways, ("ours", "plain", "guided", "onnx")),
    ):
        unknown = [name for name in asked if name not in known]
        if unknown:
            raise ValueError(f"Unknown {kind} {', '.join(unknown)}; known are {', '.join(known)}.")
    for dtype in dtypes:
        speed = matmul_speed(DTYPES[dtype], device)
        for name in names:
            networks = build(name, DTYPES[dtype], device, guided="guided" in ways)
            if "onnx" in ways and dtype == "float32":
                networks["onnx"] = in_onnxruntime(networks["bare"])
            for size in sizes:
                for label, way, call, counted in calls(name, networks, size, ways):
                    with plain(networks["bare"]) if way == "plain" else contextlib.nullcontext():
                        (milliseconds, memory), gmac = (
                            measure(call, runs, device),
                            count_gmac(counted),
                        )
                    yield Timing(
                        label,
                        size,
                        dtype,
                        way,
                        milliseconds,
                        memory,
                        gmac,
                        2 * gmac / milliseconds / speed,
                    )


def build(name: str, dtype: torch.dtype, device: str, guided: bool) -> dict[str, torch.nn.Module]:
    """A network with random weights, and where asked for its guided form with the matcher that
    feeds it."""
    torch.manual_seed(0)
    networks = {"bare": RESTORERS[name]()}
    if guided:
        levels = len(networks["bare"].config.get("encoder_depths", (1, 1))) + 1
        widths = networks["bare"].guidance_widths[:levels]
        networks |= {
            "guided": RESTORERS[name](guidance_channels=widths),
            "matcher": GuidanceMatcher(widths=widths),
        }
    return {
        part: network.eval().requires_grad_(False).to(device, dtype)
        for part, network in networks.items()
    }


@torch.no_grad()
def calls(
    name: str, networks: dict[str, torch.nn.Module], size: tuple[int, int], ways: Sequence[str]
) -> Iterator[tuple]:
    """`(label, way, call, counted)` of what is timed at a size; `counted` is a call in torch that
    does the same work."""
    bare = networks["bare"]
    parameter = next(bare.parameters())
    image = torch.rand(1, 3, *size, device=parameter.device, dtype=parameter.dtype)
    found = {(name, way): lambda: bare(image) for way in ("ours", "plain") if way in ways}
    if "guided" in ways:
        guided, matcher, other = networks["guided"], networks["matcher"], image.flip(-1)
        features = matcher(image, other).features
        found[name, "guided"] = lambda: guided(image, features)
        found[f"matcher of {name}", "ours"] = lambda: matcher(image, other)
    for (label, way), call in found.items():
        yield label, way, call, call
    if "onnx" in networks:
        yield name, "onnx", lambda: networks["onnx"](degraded=image), lambda: bare(image)


def in_onnxruntime(network: torch.nn.Module) -> Session:
    """A network exported to a folder that is gone afterwards."""
    require("onnx", "onnxruntime")
    with tempfile.TemporaryDirectory() as folder:
        network.save_pretrained(Path(folder) / "restorer")
        file = write_onnx(
            network, unguided, {"degraded": example(network)}, ["restored"], Path(folder) / RESTORER
        )
        return Session(file, torch.device("cpu"))


@torch.no_grad()
def count_gmac(call: Callable[[], object]) -> float:
    """10^9 multiply-adds of the convolutions and matrix products of a call."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 2e9


def measure(call: Callable[[], object], runs: int, device: str) -> tuple[float, float]:
    """Median milliseconds of some runs behind one that is not measured, and the highest memory in
    MiB above what was in use."""
    seconds(call, device)
    before = reset_peak(device)
    times = [seconds(call, device) for _ in range(runs)]
    return 1000 * statistics.median(times), peak(device) - before
