"""Networks as ONNX files, for runtimes without torch, and a pipeline that restores with them by
onnxruntime.

The files lie in the folder of their checkpoint. Batch, height and width are free; images are
`(batch, C, height, width)`, float32 in [0, 1]:

- `restorer.onnx`: `degraded`, and `condition` `(batch, labels + 1)` where the restorer can be told
  what to remove -> `restored` (not
  clipped), without guidance;
- `matcher.onnx`: `degraded`, `guidance` (of one size) -> `features_0`, `features_1`, ... (finest
  first), `confidence`;
- `guided_restorer.onnx`: `degraded`, `strength` `(batch, 1, 1, 1)`, those features, `condition` as
  above -> `restored`;
- `inpainter.onnx`, `upscaler.onnx`, `colorizer.onnx` of text-editable restoration: `image` as the
  network takes it, `condition` `(batch, D)` from `condition_of`, and `mask` `(batch, 1, H, W)` or
  `scale` `(batch,)` -> `result`, not clipped.
"""

import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from textir.hub.publishing import weights_digest
from textir.images.picture import resize
from textir.machine import writing
from textir.models.guidance_matcher import MatchedGuidance

RESTORER, GUIDED, MATCHER = "restorer.onnx", "guided_restorer.onnx", "matcher.onnx"
DIGEST = "textir.weights"  # in the metadata of a file: what it was made of
OPSET = 18
EDITORS = ("inpainter", "upscaler", "colorizer")


def require(*packages: str) -> None:
    """Check that optional packages are installed.

    Raises:
        ValueError: if one is missing, with the command that installs it.
    """
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise ValueError(
            f"ONNX needs {' and '.join(missing)}; run `pip install {' '.join(missing)}` "
            "(requirements-onnx.txt has the tested versions)."
        )


# ---- out


def export_onnx(pipe, folder: str | Path) -> list[Path]:
    """Write the restorer and the matcher of a pipeline as ONNX files into the folder of its
    checkpoint.

    Args:
        pipe: a restoration pipeline in float32 on the CPU.
        folder: a new one, where the pipeline is saved first, or the one that it was loaded from,
            with the weights it still has.

    Returns:
        the files written.

    Raises:
        ValueError: if a package is missing, the pipeline has no restorer or carries adapters, or
            `folder` is that of the installed package or holds something else.
    """
    require("onnx")
    folder = Path(folder)
    if pipe.restorer is None:
        raise ValueError(
            "This checkpoint has no restorer; what is exported are restorers and their matchers."
        )
    if pipe.get_list_adapters():
        raise ValueError(
            "Adapters are attached; make them permanent with `fuse_lora()` and "
            "`unload_lora_weights()`, then export."
        )
    save_beside(pipe, folder)

    degraded, told = example(pipe.restorer), {}
    if pipe.restorer.config.get("labels"):
        told = {"condition": torch.rand(2, len(pipe.restorer.config.labels) + 1)}
    written = [
        write_onnx(
            pipe.restorer, unguided, {"degraded": degraded, **told}, ["restored"], folder / RESTORER
        )
    ]
    if takes_guidance(pipe):
        _, _, height, width = degraded.shape
        channels = pipe.restorer.config.guidance_channels
        features = {
            f"features_{i}": torch.zeros(2, c, height // 2**i, width // 2**i)
            for i, c in enumerate(channels)
        }
        inputs = {"degraded": degraded, "strength": torch.ones(2, 1, 1, 1), **features, **told}
        written.append(write_onnx(pipe.restorer, guided, inputs, ["restored"], folder / GUIDED))
        inputs = {"degraded": degraded, "guidance": torch.zeros_like(degraded)}
        written.append(
            write_onnx(pipe.matcher, matched, inputs, [*features, "confidence"], folder / MATCHER)
        )
    return written


def export_editors(pipe, folder: str | Path) -> list[Path]:
    """Write the networks of a pipeline of text-editable restoration as ONNX files into the folder
    of its checkpoint.

    Args:
        pipe: in float32 on the CPU.
        folder: as for `export_onnx`.

    Returns:
        the files written.

    Raises:
        ValueError: if a package is missing, the pipeline has none of these networks, or `folder` is
            that of the installed package or holds something else.
    """
    require("onnx")
    folder = Path(folder)
    parts = [part for part in EDITORS if getattr(pipe, part) is not None]
    if not parts:
        raise ValueError(f"This checkpoint has none of {', '.join(EDITORS)}; nothing to export.")
    save_beside(pipe, folder)
    written = []
    for part in parts:
        network = getattr(pipe, part)
        side = 4 * network.multiple
        image = torch.rand(2, 3, side + 3, side + network.multiple + 5)
        inputs = {"image": image, "condition": torch.rand(2, network.config.condition_dim)}
        if network.config.task == "inpaint":
            inputs["mask"] = (torch.rand(2, 1, *image.shape[-2:]) > 0.5).float()
        if network.config.task == "super-resolution":
            inputs["scale"] = torch.tensor([2.0, 4.0])
        written.append(write_onnx(network, edited, inputs, ["result"], folder / f"{part}.onnx"))
    return written


def save_beside(pipe, folder: Path) -> None:
    """Save a pipeline into a new folder, if it is not the one that it came from.

    Raises:
        ValueError: if the folder is that of the installed package or holds something else.
    """
    if Path(__file__).parents[1] in folder.resolve().parents:
        raise ValueError(
            f"{folder} belongs to the installed package, which stays as it is; choose a new folder."
        )
    if Path(pipe.name_or_path or "").resolve() != folder.resolve():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(
                f"{folder} is not empty; choose a new folder, or the checkpoint's own."
            )
        pipe.save_pretrained(folder)


def takes_guidance(pipe) -> bool:
    return pipe.matcher is not None and bool(pipe.restorer.config.guidance_channels)


def unguided(restorer: nn.Module, degraded: torch.Tensor, *condition: torch.Tensor) -> torch.Tensor:
    return restorer(degraded, condition=condition[0]) if condition else restorer(degraded)


def guided(
    restorer: nn.Module, degraded: torch.Tensor, strength: torch.Tensor, *others: torch.Tensor
) -> torch.Tensor:
    count = len(restorer.config.guidance_channels)
    features, condition = others[:count], others[count:]
    told = {"condition": condition[0]} if condition else {}
    return restorer(degraded, list(features), strength, **told)


def edited(
    network: nn.Module, image: torch.Tensor, condition: torch.Tensor, *others: torch.Tensor
) -> torch.Tensor:
    name = {"inpaint": "mask", "super-resolution": "scale"}.get(network.config.task)
    return network(image, condition, **({} if name is None else {name: others[0]}))


def matched(
    matcher: nn.Module, degraded: torch.Tensor, guidance: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    match = matcher(degraded, guidance)
    return (*match.features, match.confidence)


def example(restorer: nn.Module) -> torch.Tensor:
    """Images to trace with; their sides are odd, so that padding is traced too."""
    side = 8 * restorer.size_multiple
    return torch.rand(2, restorer.config.in_channels, side + 3, side + restorer.size_multiple + 5)


class Traced(nn.Module):
    """A call of a network as a module that takes tensors and nothing else."""

    def __init__(self, network: nn.Module, call: Callable):
        super().__init__()
        self.network, self.call = network, call

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        return self.call(self.network, *inputs)


def write_onnx(
    network: nn.Module,
    call: Callable,
    inputs: dict[str, torch.Tensor],
    outputs: list[str],
    file: Path,
) -> Path:
    """Export one call of a network, free in every size of its inputs and outputs `(B, C, H, W)` but
    the channels.

    The call is traced (`dynamo=False`): torch's newer exporter reasons about every size
    symbolically, which takes minutes for networks as deep as these. It is traced as in training,
    with gradients, because inference may go tile by tile, as many as the traced image has.
    """
    import onnx

    traced = Traced(network.eval(), call)
    sizes = {name: named_sizes(name) for name in (*inputs, *outputs)}
    with writing(file) as temporary:
        with torch.enable_grad(), warnings.catch_warnings():
            # Of the tracer, wherever Python looks at a size; and that it is the older one.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                traced,
                tuple(inputs.values()),
                str(temporary),
                dynamo=False,
                opset_version=OPSET,
                # Else it takes equal weights for one, and loses some.
                training=torch.onnx.TrainingMode.PRESERVE,
                do_constant_folding=False,  # the runtime's
                input_names=list(inputs),
                output_names=outputs,
                dynamic_axes=sizes,
            )
        model = onnx.load(temporary)
        with torch.no_grad():
            results = traced(*inputs.values())
        for value, result in zip(
            model.graph.output, results if isinstance(results, tuple) else (results,)
        ):
            # Which the tracer leaves open.
            value.type.tensor_type.shape.dim[1].dim_value = result.shape[1]
        part = file.stem if file.stem in ("matcher", *EDITORS) else "restorer"
        onnx.helper.set_model_props(model, {DIGEST: weights_digest(file.parent / part)})
        onnx.save(model, temporary)
    return file


def named_sizes(name: str) -> dict[int, str]:
    """What the free sizes of a tensor are called."""
    if name in ("strength", "condition", "scale"):
        return {0: "batch"}
    level = name.removeprefix("features") if name.startswith("features") else ""
    return {0: "batch", 2: f"height{level}", 3: f"width{level}"}


# ---- in


def use_onnx(pipe, folder: str | Path) -> None:
    """Let a pipeline restore with the ONNX files of its checkpoint; the torch weights of restorer
    and matcher are let go.

    Args:
        pipe: the pipeline of the checkpoint in `folder`; what paints its guidance stays in torch.
        folder: where `export_onnx` wrote to.

    Raises:
        ValueError: if a package is missing, there is no restorer, adapters are attached, files are
            missing, or they were made of other weights.
    """
    require("onnxruntime")
    folder = Path(folder)
    if pipe.restorer is None:
        raise ValueError(
            "This checkpoint has no restorer; there is nothing that could run in onnxruntime."
        )
    if pipe.get_list_adapters():
        raise ValueError(
            "Adapters do not reach exported networks; export with the adapter instead: `export "
            "onnx --adapter`."
        )
    names = [RESTORER, GUIDED, MATCHER] if takes_guidance(pipe) else [RESTORER]
    sessions = [Session(folder / name, pipe.device) for name in names]
    device = pipe.device
    pipe.restorer = OnnxRestorer(pipe.restorer, device, *sessions[:2])
    if len(sessions) == 3:
        pipe.matcher = OnnxMatcher(pipe.matcher, device, sessions[2])


class Session:
    """An ONNX file that is called with tensors; it runs on the CPU, or on the GPU where onnxruntime
    can."""

    def __init__(self, file: Path, device: torch.device):
        import onnxruntime

        part = "matcher" if file.name == MATCHER else "restorer"
        if not file.is_file():
            raise ValueError(
                f"{file} does not exist; run `python -m textir export onnx CHECKPOINT --output "
                "FOLDER`, then use FOLDER as the checkpoint."
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        known = onnxruntime.get_available_providers()
        gpu = (
            ["CUDAExecutionProvider"]
            if device.type == "cuda" and "CUDAExecutionProvider" in known
            else []
        )
        self.session = onnxruntime.InferenceSession(
            str(file), options, providers=[*gpu, "CPUExecutionProvider"]
        )
        self.digest = self.session.get_modelmeta().custom_metadata_map.get(DIGEST)
        if self.digest != weights_digest(file.parent / part):
            raise ValueError(
                f"{file} was not made of the weights in {file.parent / part}; export it again."
            )

    def __call__(self, **inputs: torch.Tensor) -> list[torch.Tensor]:
        arrays = {name: value.detach().float().cpu().numpy() for name, value in inputs.items()}
        device = next(iter(inputs.values())).device
        return [torch.from_numpy(result).to(device) for result in self.session.run(None, arrays)]


class OnnxNetwork(nn.Module):
    """What a pipeline asks of a component, answered for a network that runs in onnxruntime.

    The network itself stays as a shape without weights: it has the config, and it answers for
    tensors on the meta device, so that tiling can measure it. `digest` is that of its weights.
    """

    def __init__(self, network: nn.Module, device: torch.device, digest: str | None):
        super().__init__()
        self.network = network.to("meta")
        self.device, self.dtype = device, torch.float32
        self.digest = digest

    @property
    def config(self):
        return self.network.config


class OnnxRestorer(OnnxNetwork):
    """A restorer that runs in onnxruntime, called like the one in torch."""

    def __init__(
        self,
        network: nn.Module,
        device: torch.device,
        unguided: Session,
        guided: Session | None = None,
    ):
        super().__init__(network, device, unguided.digest)
        self.unguided, self.guided = unguided, guided

    def forward(
        self,
        degraded: torch.Tensor,
        guidance_features: list[torch.Tensor] | None = None,
        strength: float | torch.Tensor = 1.0,
        condition: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Restored images `(B, C, H, W)`; the arguments are those of the network in torch.

        Raises:
            ValueError: if guidance, or a condition, is given to a network that takes none.
        """
        if degraded.is_meta:
            return self.network(degraded)
        told = self._told(condition, degraded)
        if guidance_features is None or not (torch.is_tensor(strength) or strength):
            return self.unguided(degraded=degraded, **told)[0]
        if self.guided is None:
            raise ValueError("This restorer takes no guidance; pass no `guidance_features`.")
        strength = torch.as_tensor(strength, device=degraded.device).expand(len(degraded), 1, 1, 1)
        features = {f"features_{level}": value for level, value in enumerate(guidance_features)}
        return self.guided(degraded=degraded, strength=strength, **features, **told)[0]

    def _told(
        self, condition: torch.Tensor | None, degraded: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """The condition of each image, "find out yourself" where none is given; nothing for a blind
        network."""
        labels = self.config.get("labels")
        if not labels:
            if condition is not None:
                raise ValueError("This restorer is blind: it cannot be told what to remove.")
            return {}
        if condition is None:
            condition = F.one_hot(
                torch.tensor([len(labels)], device=degraded.device), len(labels) + 1
            )
        return {"condition": condition.to(degraded).expand(len(degraded), -1)}


class OnnxMatcher(OnnxNetwork):
    """A matcher that runs in onnxruntime, called like the one in torch."""

    def __init__(self, network: nn.Module, device: torch.device, session: Session):
        super().__init__(network, device, session.digest)
        self.session = session

    def forward(self, degraded: torch.Tensor, guidance: torch.Tensor) -> MatchedGuidance:
        """Match `guidance` `(B, C, h, w)` to `degraded` `(B, C, H, W)`, both in [0, 1]; any sizes
        and aspects."""
        guidance = resize(guidance, degraded.shape[-2:])
        *features, confidence = self.session(degraded=degraded, guidance=guidance)
        return MatchedGuidance(features=features, confidence=confidence)
