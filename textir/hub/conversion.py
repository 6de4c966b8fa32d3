"""Published weights of the restoration networks, into the project's layout and back.

The published files keep their weights under names of their own (also below `params`, `params_ema`,
`state_dict` or Lightning's `net.`); the configuration follows from the shapes. Only tensors are
read: a pickle with anything else in it is refused.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file

from textir.models import DRSformer, NAFNet, PromptIR, Restormer, SFNet

Weights = dict[str, torch.Tensor]
# What else than tensors may stand in a file: numbers of numpy, which hold no code.
NUMBERS = [
    np.dtype,
    np.ndarray,
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),
    (np._core.multiarray._reconstruct, "numpy.core.multiarray._reconstruct"),
    np._core.multiarray.scalar,
    np._core.multiarray._reconstruct,
    *(type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "bool")),
]


class Format(NamedTuple):
    """How a network is published.

    Attributes:
        network: the project's class.
        renames: pairs of (published, ours); `#` stands for a number and keeps it, literal numbers
            are levels.
        telling: keys by which a file of this network is known.
        unused: regular expression of published weights that no forward pass uses; they are left
            out, and made again on the way back.
    """

    network: type
    renames: tuple[tuple[str, str], ...]
    telling: tuple[str, ...]
    unused: str = r"(?!)"


_BLOCK = (
    ("norm1.body.", "norm1."),
    ("norm2.body.", "norm2."),
    ("attn.temperature", "attention.temperature"),
    ("attn.qkv_dwconv.", "attention.depthwise."),
    ("attn.qkv.", "attention.qkv."),
    ("attn.project_out.", "attention.project."),
    ("ffn.project_in.", "feed_forward.expand."),
    ("ffn.dwconv.", "feed_forward.depthwise."),
    ("ffn.project_out.", "feed_forward.reduce."),
)


def _in_blocks(published: str, ours: str) -> tuple[tuple[str, str], ...]:
    return tuple((f"{published}{old}", f"{ours}{new}") for old, new in _BLOCK)


_RESTORMER = (
    ("patch_embed.proj.", "embed."),
    *(
        pair
        for level in (1, 2, 3)
        for pair in _in_blocks(f"encoder_level{level}.#.", f"encoders.{level - 1}.#.")
    ),
    *((f"down{level}_{level + 1}.body.0.", f"downs.{level - 1}.0.") for level in (1, 2, 3)),
    *_in_blocks("latent.#.", "middle.#."),
    *((f"up{level + 1}_{level}.body.0.", f"ups.{3 - level}.0.") for level in (3, 2, 1)),
    *((f"reduce_chan_level{level}.", f"reduces.{3 - level}.") for level in (3, 2)),
    *(
        pair
        for level in (3, 2, 1)
        for pair in _in_blocks(f"decoder_level{level}.#.", f"decoders.{3 - level}.#.")
    ),
    *_in_blocks("refinement.#.", "refinement.#."),
    ("skip_conv.", "skip."),
    ("output.", "output."),
)
_PROMPTIR = (
    *_RESTORMER,
    *((f"prompt{level}.prompt_param", f"prompts.{3 - level}.prompts") for level in (3, 2, 1)),
    *((f"prompt{level}.linear_layer.", f"prompts.{3 - level}.weigh.") for level in (3, 2, 1)),
    *((f"prompt{level}.conv3x3.", f"prompts.{3 - level}.smooth.") for level in (3, 2, 1)),
    *(
        pair
        for level in (3, 2, 1)
        for pair in _in_blocks(f"noise_level{level}.", f"prompts.{3 - level}.block.")
    ),
    *((f"reduce_noise_level{level}.", f"prompts.{3 - level}.reduce.") for level in (3, 2, 1)),
)
_EXPERTS = (
    ("layers.0.ca_fc.#.", "weigh.#."),
    ("layers.1.preprocess.op.0.", "prepare."),
    ("layers.1._ops.#._ops.#.op.#.", "layers.#.experts.#.#."),
    ("layers.1._ops.#._out.0.", "layers.#.mix."),
)
_SPARSE = (
    *((f"attn.attn{i + 1}", f"attention.shares.{i}") for i in range(4)),
    ("ffn.dwconv3x3.", "feed_forward.depthwise3."),
    ("ffn.dwconv5x5.", "feed_forward.depthwise5."),
    ("ffn.dwconv3x3_1.", "feed_forward.merge3."),
    ("ffn.dwconv5x5_1.", "feed_forward.merge5."),
)
_SPARSE_GROUPS = (
    *((f"encoder_level{level}.#.", f"encoders.{level - 1}.#.") for level in (1, 2, 3)),
    ("latent.#.", "middle.#."),
    *((f"decoder_level{level}.#.", f"decoders.{3 - level}.#.") for level in (3, 2, 1)),
)
_DRSFORMER = (
    *((f"encoder_level0.{old}", f"first_experts.{new}") for old, new in _EXPERTS),
    *((f"refinement.{old}", f"last_experts.{new}") for old, new in _EXPERTS),
    *((group + old, ours + new) for group, ours in _SPARSE_GROUPS for old, new in _SPARSE),
    *_RESTORMER,
)
_NAFNET_BLOCK = (
    ("norm1.", "norm1."),
    ("conv1.", "expand1."),
    ("conv2.", "depthwise."),
    ("sca.1.", "channel_attention."),
    ("conv3.", "project1."),
    ("beta", "scale1"),
    ("norm2.", "norm2."),
    ("conv4.", "expand2."),
    ("conv5.", "project2."),
    ("gamma", "scale2"),
)
_NAFNET = (
    ("intro.", "intro."),
    ("ending.", "outro."),
    *((f"encoders.#.#.{old}", f"encoders.#.#.{new}") for old, new in _NAFNET_BLOCK),
    *((f"decoders.#.#.{old}", f"decoders.#.#.{new}") for old, new in _NAFNET_BLOCK),
    *((f"middle_blks.#.{old}", f"middle.#.{new}") for old, new in _NAFNET_BLOCK),
    ("downs.#.", "downs.#."),
    ("ups.#.0.", "ups.#.0."),
)
_SFNET_BLOCK = (
    ("conv1.main.0.", "expand.0."),
    ("conv2.main.0.", "project.0."),
    ("global_ap.fscale_d", "global_selection.low"),
    ("global_ap.fscale_h", "global_selection.high"),
    ("localap.l", "patch_selection.low"),
    ("localap.h", "patch_selection.high"),
    *(
        (f"{old}.{published}", f"filters.{number}.{ours}")
        for number, old in enumerate(("dyna", "dyna_2"))
        for published, ours in (
            ("conv.", "predict."),
            ("bn.", "norm."),
            ("modulate.fc.", "modulate.squeeze."),
            ("modulate.fcs.0.", "modulate.weigh_high."),
            ("modulate.fcs.1.", "modulate.weigh_low."),
            ("modulate.out.", "modulate.mix."),
        )
    ),
)
_SFNET = (
    ("feat_extract.0.main.0.", "embed.0."),
    *((f"feat_extract.{level}.main.0.", f"downs.{level - 1}.0.") for level in (1, 2)),
    *((f"feat_extract.{level + 3}.main.0.", f"ups.{level}.0.") for level in (0, 1)),
    *((f"Encoder.#.layers.#.{old}", f"encoders.#.#.{new}") for old, new in _SFNET_BLOCK),
    *((f"Decoder.#.layers.#.{old}", f"decoders.#.#.{new}") for old, new in _SFNET_BLOCK),
    ("Convs.#.main.0.", "reduces.#.0."),
    *((f"ConvsOut.{level}.main.0.", f"outputs.{level}.0.") for level in (0, 1)),
    ("feat_extract.5.main.0.", "outputs.2.0."),
    *((f"FAM{3 - level}.merge.main.0.", f"pyramid.{level - 1}.merge.0.") for level in (1, 2)),
    *(
        (f"SCM{3 - level}.main.{i}.main.0.", f"pyramid.{level - 1}.layers.{i}.0.")
        for level in (1, 2)
        for i in range(4)
    ),
    *((f"SCM{3 - level}.main.4.", f"pyramid.{level - 1}.layers.4.") for level in (1, 2)),
)
FORMATS = {
    "restormer": Format(
        Restormer,
        _RESTORMER,
        (
            "patch_embed.proj.weight",
            "encoder_level1.0.attn.qkv.weight",
            "latent.0.ffn.dwconv.weight",
        ),
    ),
    "promptir": Format(
        PromptIR,
        _PROMPTIR,
        ("prompt1.prompt_param", "noise_level1.attn.qkv.weight"),
        r"chnl_reduce\d\.|reduce_noise_channel_\d\.",
    ),
    "drsformer": Format(
        DRSformer,
        _DRSFORMER,
        ("patch_embed.proj.weight", "encoder_level1.0.attn.attn1", "latent.0.ffn.dwconv3x3.weight"),
    ),
    "sfnet": Format(
        SFNet,
        _SFNET,
        ("feat_extract.0.main.0.weight", "SCM1.main.4.weight"),
        r".*\.dyna(_2)?\.lamb_[lh]$",
    ),
    "nafnet": Format(
        NAFNet, _NAFNET, ("intro.weight", "ending.weight", "middle_blks.0.sca.1.weight")
    ),
}


def read_weights(path: str | Path) -> Weights:
    """The tensors of a published file, whatever they are wrapped in, on the CPU and in single
    precision.

    Raises:
        ValueError: if the file is absent or damaged, holds more than tensors, or no state dict is
            found in it.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"{path} is not a file; the published weights (.pth, .ckpt or .safetensors) were "
            "expected."
        )
    try:
        if path.suffix.lower() == ".safetensors":
            stored = load_file(path)
        else:
            with torch.serialization.safe_globals(NUMBERS):  # a score beside the weights
                stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds: a truncated file, a pickle with code in it, ...
        text = str(error)
        if "Unsupported global" in text or "Unsupported class" in text:
            raise ValueError(
                f"{path} holds more than tensors, which could run code when it is opened; it is "
                "refused. Where you trust it, save its state dict alone: "
                "`torch.save(torch.load(path, weights_only=False)['state_dict'], new_path)`."
            ) from None
        reason = text.splitlines()[0] if text else type(error).__name__
        raise ValueError(f"{path} cannot be read: {reason}") from None
    found = list(state_dicts(stored))
    if not found:
        raise ValueError(f"{path} holds no state dict.")
    fitting = [weights for weights in map(without_prefix, found) if looks_like(weights)]
    weights = fitting[0] if fitting else found[0]
    return {
        key: value.float() if value.is_floating_point() else value for key, value in weights.items()
    }


def state_dicts(stored, depth: int = 3) -> Iterator[Weights]:
    """The dicts of tensors in what a file holds, averaged weights first."""
    if not isinstance(stored, Mapping):
        return
    tensors = {
        key: value
        for key, value in stored.items()
        if isinstance(key, str) and isinstance(value, torch.Tensor)
    }
    if tensors:
        yield tensors
    if depth:
        for key in sorted(map(str, stored), key=lambda key: "ema" not in key):
            yield from state_dicts(stored.get(key), depth - 1)


def without_prefix(weights: Weights) -> Weights:
    """The weights below the prefix under which the telling keys of a network lie, such as `net.`,
    `module._orig_mod.` or `generator_ema.`; averaged weights go first, others are left out."""
    prefixes = set()
    for form in FORMATS.values():
        first = form.telling[0]
        for key in weights:
            if key.endswith(first):
                prefix = key.removesuffix(first)
                if all(prefix + telling in weights for telling in form.telling):
                    prefixes.add(prefix)
    if not prefixes:
        return weights
    prefix = min(prefixes, key=lambda prefix: ("ema" not in prefix, len(prefix)))
    return {
        key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)
    }


def convert(weights: Weights, network: str):
    """A network of the project with published weights.

    Args:
        weights: in the published layout, see `read_weights`.
        network: a key of `FORMATS`.

    Raises:
        ValueError: if the weights are those of another network, some are missing, or some are left
            over; all are named.
    """
    if network not in FORMATS:
        raise ValueError(f"Unknown network {network!r}; known are {', '.join(FORMATS)}.")
    form = FORMATS[network]
    looks = looks_like(weights)
    if looks != network:
        keys = ", ".join(list(weights)[:4])
        guess = f"; they look like {looks}" if looks else " nor of any known network"
        raise ValueError(f"These are not weights of {network}{guess}. They begin with {keys}.")
    used = {key: value for key, value in weights.items() if not re.match(form.unused, key)}
    renamed = {rename(key, form.renames): value for key, value in used.items()}
    strange = sorted(key for key in used if rename(key, form.renames) is None)
    if strange:
        raise ValueError(
            f"{len(strange)} weights are left over, which {network} does not have: "
            f"{', '.join(strange[:10])}."
        )
    model = form.network(**infer_config(used, network))
    expected = model.state_dict()
    renamed = {key: _shaped(value, expected.get(key)) for key, value in renamed.items()}
    missing = sorted(expected.keys() - renamed.keys())
    if missing:
        raise ValueError(
            f"{len(missing)} weights of {network} are missing: {', '.join(missing[:10])}."
        )
    left = sorted(renamed.keys() - expected.keys())
    if left:
        raise ValueError(
            f"{len(left)} weights are left over, which {network} of this size does not have: "
            f"{', '.join(left[:10])}."
        )
    wrong = [
        f"{key} {tuple(renamed[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in expected
        if renamed[key].shape != expected[key].shape
    ]
    if wrong:
        raise ValueError(f"{len(wrong)} weights have another shape: {', '.join(wrong[:5])}.")
    model.load_state_dict(renamed)
    return model.eval()


def convert_back(model, network: str) -> Weights:
    """The weights of an unguided network in the published layout; what the publication has and
    never uses becomes zero.

    Raises:
        ValueError: if the model is another network, or a guided one or one that can be told what to
            remove, for which there is no published layout.
    """
    form = FORMATS[network]
    if not isinstance(model, form.network):
        raise ValueError(f"{network} is a {form.network.__name__}, got {type(model).__name__}.")
    if model.config.guidance_channels is not None:
        raise ValueError("A guided network has weights that the published layout has no place for.")
    if model.config.get("labels"):
        raise ValueError(
            "A network that can be told what to remove has weights that the published layout has "
            "no place for."
        )
    backwards = tuple((ours, published) for published, ours in form.renames)
    weights = {rename(key, backwards): value.clone() for key, value in model.state_dict().items()}
    if network == "promptir":
        weights |= {
            key: value[None] for key, value in weights.items() if key.endswith("prompt_param")
        }
        weights |= {key: torch.zeros(shape) for key, shape in _unused_shapes(model).items()}
    if network == "sfnet":
        filters = {
            key.rsplit(".", 2)[0]: value
            for key, value in weights.items()
            if re.search(r"\.dyna(_2)?\.conv\.weight$", key)
        }
        for name, kernel in filters.items():
            weights[f"{name}.lamb_l"] = torch.zeros(kernel.shape[1])
            weights[f"{name}.lamb_h"] = torch.zeros(kernel.shape[1])
    return weights


def looks_like(weights: Weights) -> str | None:
    """Which network published weights belong to."""
    fits = [name for name, form in FORMATS.items() if all(key in weights for key in form.telling)]
    return "promptir" if "promptir" in fits else fits[0] if fits else None


def rename(key: str, renames: tuple[tuple[str, str], ...]) -> str | None:
    """A key under its other name; `None` if no rule fits."""
    for old, new in renames:
        pattern = re.escape(old).replace(r"\#", r"(\d+)")
        ends = "" if old.endswith(".") else "$"
        match = re.match(pattern + ends, key)
        if match:
            for number in match.groups():
                new = new.replace("#", number, 1)
            return new + key[match.end() :]
    return None


def infer_config(weights: Weights, network: str) -> dict:
    """The arguments of a network, from the shapes of its published weights."""
    if network == "nafnet":
        return _nafnet_config(weights)
    if network == "sfnet":
        width, in_channels = weights["feat_extract.0.main.0.weight"].shape[:2]
        return {
            "in_channels": in_channels,
            "width": width,
            "depth": count(weights, "Encoder.0.layers.#."),
        }
    width, in_channels = weights["patch_embed.proj.weight"].shape[:2]
    hidden = weights["encoder_level1.0.ffn.project_out.weight"].shape[1] // (
        2 if network == "drsformer" else 1
    )
    names = ["encoder_level1", "encoder_level2", "encoder_level3", "latent"]
    config = {
        "in_channels": in_channels,
        "width": width,
        "encoder_depths": [count(weights, f"encoder_level{level}.#.") for level in (1, 2, 3)],
        "middle_depth": count(weights, "latent.#."),
        "decoder_depths": [count(weights, f"decoder_level{level}.#.") for level in (3, 2, 1)],
        "refinement_depth": count(weights, "refinement.#."),
        "heads": [len(weights[f"{name}.0.attn.temperature"]) for name in names],
        "expansion": _expansion(width, hidden),
        "norm_bias": "encoder_level1.0.norm1.body.bias" in weights,
        "bias": "encoder_level1.0.attn.qkv.bias" in weights,
    }
    if network == "restormer":
        return {
            **config,
            "out_channels": len(weights["output.weight"]),
            "dual_pixel": "skip_conv.weight" in weights,
        }
    if network == "drsformer":
        del config["refinement_depth"]
        return {**config, "experts": "encoder_level0.layers.0.ca_fc.0.weight" in weights}
    prompts = [weights[f"prompt{level}.prompt_param"].shape for level in (1, 2, 3)]
    return {
        **config,
        "prompt_channels": [shape[2] for shape in prompts],
        "prompt_sizes": [shape[3] for shape in prompts],
        "prompt_count": prompts[0][1],
        "prompt_heads": len(weights["noise_level1.attn.temperature"]),
    }


def _expansion(width: int, hidden: int) -> float:
    """The factor between a width and its hidden width, which is rounded down; the published 2.66
    where it fits."""
    return (
        2.66
        if int(width * 2.66) == hidden
        else next(f / 100 for f in range(100, 1000) if int(width * f / 100) == hidden)
    )


def _nafnet_config(weights: Weights) -> dict:
    levels = count(weights, "encoders.#.")
    return {
        "in_channels": weights["intro.weight"].shape[1],
        "width": weights["intro.weight"].shape[0],
        "encoder_depths": [count(weights, f"encoders.{level}.#.") for level in range(levels)],
        "middle_depth": count(weights, "middle_blks.#."),
        "decoder_depths": [count(weights, f"decoders.{level}.#.") for level in range(levels)],
        "border": "zeros",  # as published
    }


def count(weights: Weights, pattern: str) -> int:
    """How many numbers stand at `#` in the keys."""
    expression = re.compile(re.escape(pattern).replace(r"\#", r"(\d+)"))
    return len({match[1] for match in map(expression.match, weights) if match})


def _shaped(value: torch.Tensor, expected: torch.Tensor | None) -> torch.Tensor:
    return (
        value[0]
        if expected is not None and value.ndim == expected.ndim + 1 and len(value) == 1
        else value
    )


def _unused_shapes(model) -> dict[str, tuple[int, ...]]:
    width, prompts = model.config.width, model.config.prompt_channels
    squares = {
        f"chnl_reduce{i}.weight": (c, prompts[i - 1], 1, 1)
        for i, c in ((1, prompts[0]), (2, prompts[1]), (3, 256))
    }
    joined = {
        f"reduce_noise_channel_{i}.weight": (width * 2 ** (i - 1), width * 2 ** (i - 1) + p, 1, 1)
        for i, p in ((1, prompts[0]), (2, prompts[1]), (3, 256))
    }
    return squares | joined
