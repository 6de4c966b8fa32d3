"""What all networks share: they save and load to the bit, train as a whole, take adapters, and work
in other precisions.

Weights are compared to the bit. Outputs are not: MKL and oneDNN choose kernels by the alignment of
memory, and loaded weights lie where their file puts them, so that the last bit of a sum may differ.
"""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from diffusers import ModelMixin
from peft import LoraConfig

from tests.tools.tiny import IMAGE_DIM, NUM_WORDS, WORD_DIM, image, restorer, sfnet, transformer
from textir.models import (
    DegradationDetector,
    DRSformer,
    GuidanceMatcher,
    ImageToTextMapper,
    PromptIR,
    TextualCleaner,
)


class Case(NamedTuple):
    build: Callable[[], ModelMixin]
    inputs: Callable[[], tuple]  # a batch of two
    adapted: list[str] | str  # layers for LoRA


def tokens() -> tuple:
    return (torch.randn(2, 7, IMAGE_DIM, generator=torch.Generator().manual_seed(1)),)


def words() -> tuple:
    return (torch.randn(2, NUM_WORDS, WORD_DIM, generator=torch.Generator().manual_seed(1)),)


def guided_image() -> tuple:
    generator = torch.Generator().manual_seed(1)
    shapes = ((4, 20, 32), (6, 10, 16), (8, 5, 8))
    return image(17, 31, batch=2), [torch.randn(2, *shape, generator=generator) for shape in shapes]


CASES = {
    "mapper": Case(
        lambda: ImageToTextMapper(IMAGE_DIM, WORD_DIM, NUM_WORDS, width=16), tokens, ["fc1", "fc2"]
    ),
    "light mapper": Case(
        lambda: ImageToTextMapper(IMAGE_DIM, WORD_DIM, NUM_WORDS, width=16, rank=3),
        tokens,
        ["fc1", "reduce"],
    ),
    "cleaner": Case(lambda: TextualCleaner(WORD_DIM, NUM_WORDS, width=16), words, ["fc1", "fc2"]),
    "light cleaner": Case(
        lambda: TextualCleaner(WORD_DIM, NUM_WORDS, width=16, rank=3), words, ["fc1", "output"]
    ),
    "detector": Case(lambda: DegradationDetector(IMAGE_DIM, width=16), tokens, ["hidden"]),
    "matcher": Case(
        lambda: GuidanceMatcher(widths=(4, 6, 8), depth=1, block_size=4),
        lambda: (image(17, 31, batch=2), image(17, 31, seed=1, batch=2)),
        ["conv1", "conv2"],
    ),
    "restorer": Case(restorer, guided_image, ["expand1", "project1", "channel_attention"]),
    "restormer": Case(transformer, guided_image, ["qkv", "project", "expand"]),
    "sfnet": Case(sfnet, guided_image, r".*(expand|project)\.0"),
    "promptir": Case(lambda: transformer(PromptIR), guided_image, ["qkv", "project", "reduce"]),
    "drsformer": Case(lambda: transformer(DRSformer), guided_image, ["qkv", "project", "reduce"]),
}
CHECKPOINTED = [
    "mapper",
    "light mapper",
    "matcher",
    "restorer",
    "restormer",
    "promptir",
    "drsformer",
]


def tensors(value) -> list[torch.Tensor]:
    """All tensors of a result or of inputs, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    values = value.values() if isinstance(value, dict) else value
    return [tensor for part in values for tensor in tensors(part)]


def cast(value, dtype: torch.dtype):
    return (
        value.to(dtype)
        if isinstance(value, torch.Tensor)
        else type(value)(cast(part, dtype) for part in value)
    )


def equal(first, second) -> bool:
    return all(torch.equal(a, b) for a, b in zip(tensors(first), tensors(second), strict=True))


def assert_same(first, second, tolerance: float = 1e-5):
    for a, b in zip(tensors(first), tensors(second), strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def run(model: ModelMixin, inputs: tuple):
    with torch.no_grad():
        return model.eval()(*inputs)


def gradients(model: ModelMixin, inputs: tuple) -> dict[str, torch.Tensor | None]:
    model.zero_grad()
    torch.stack(
        [output.square().mean() for output in tensors(model.train()(*inputs))]
    ).sum().backward()
    return {
        name: parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


@pytest.fixture(params=CASES)
def case(request) -> Case:
    return CASES[request.param]


def test_saved_and_loaded_weights_are_the_same_to_the_bit(case, tmp_path):
    model = case.build()
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert not loaded.training
    assert {k: v for k, v in loaded.config.items() if k[0] != "_"} == {
        k: list(v) if isinstance(v, tuple) else v for k, v in model.config.items() if k[0] != "_"
    }
    assert equal(loaded.state_dict(), model.state_dict())
    assert_same(run(loaded, case.inputs()), run(model, case.inputs()))


def test_weights_of_the_half_precision_variant_are_the_same_to_the_bit(case, tmp_path):
    model = case.build().half()
    model.save_pretrained(tmp_path, variant="fp16")
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "diffusion_pytorch_model.fp16.safetensors",
    }
    loaded = type(model).from_pretrained(tmp_path, variant="fp16", dtype=torch.float16)
    assert loaded.dtype == torch.float16
    assert equal(loaded.state_dict(), model.state_dict())
    inputs = cast(case.inputs(), torch.float16)
    assert_same(run(loaded, inputs), run(model, inputs), 1e-2)


def test_bfloat16_stays_close_and_finite(case):
    model = case.build()
    exact = tensors(run(model, case.inputs()))
    rounded = tensors(run(model.to(torch.bfloat16), cast(case.inputs(), torch.bfloat16)))
    for a, b in zip(exact, rounded, strict=True):
        assert b.dtype == torch.bfloat16 and b.isfinite().all()
        assert (a - b.float()).abs().mean() < 0.1 * max(a.abs().mean(), a.std())


def test_a_batch_is_its_members(case):
    model, inputs = case.build(), case.inputs()
    batch = tensors(run(model, inputs))
    for i in range(2):
        single = tensors(
            run(
                model,
                tuple(
                    part[i : i + 1] if torch.is_tensor(part) else [p[i : i + 1] for p in part]
                    for part in inputs
                ),
            )
        )
        for a, b in zip(batch, single, strict=True):
            torch.testing.assert_close(a[i : i + 1], b, atol=1e-5, rtol=1e-4)


def test_gradients_reach_every_parameter(case):
    for name, gradient in gradients(case.build(), case.inputs()).items():
        if case.build is sfnet and name.startswith(("outputs.0.", "outputs.1.")):
            continue  # of the smaller scales, which `forward` does not return
        assert gradient is not None and gradient.isfinite().all() and gradient.abs().sum() > 0, name


@pytest.mark.parametrize("name", CHECKPOINTED)
def test_gradient_checkpointing_changes_nothing(name):
    model, inputs = CASES[name].build(), CASES[name].inputs()
    plain_output, plain = model(*inputs), gradients(model, inputs)
    model.enable_gradient_checkpointing()
    assert model.is_gradient_checkpointing
    assert_same(model(*inputs), plain_output)
    assert_same(gradients(model, inputs), plain)


@pytest.mark.parametrize("name", CHECKPOINTED)
def test_gradient_checkpointing_keeps_fewer_activations(name):
    model, inputs = CASES[name].build().train(), CASES[name].inputs()

    def activations() -> int:
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: saved.append(tensor.numel()) or tensor, lambda t: t
        ):
            model(*inputs)
        return sum(saved)

    everything = activations()
    model.enable_gradient_checkpointing()
    assert activations() < 0.8 * everything


def test_a_fresh_adapter_changes_nothing(case):
    model = case.build()
    before = run(model, case.inputs())
    model.add_adapter(LoraConfig(r=2, target_modules=case.adapted))
    assert_same(run(model, case.inputs()), before)


def test_an_adapter_trains_alone_and_can_be_put_aside(case):
    model = case.build().requires_grad_(False)
    before = run(model, case.inputs())
    model.add_adapter(LoraConfig(r=2, target_modules=case.adapted, init_lora_weights=False))
    found = gradients(model, case.inputs())
    assert found and all(
        "lora_" in name and gradient.abs().sum() > 0 for name, gradient in found.items()
    )
    with pytest.raises(AssertionError):
        assert_same(run(model, case.inputs()), before, 1e-3)
    model.disable_adapters()
    assert_same(run(model, case.inputs()), before)


def test_an_adapter_saved_and_loaded_does_the_same(case, tmp_path):
    torch.manual_seed(3)
    model = case.build()
    model.save_pretrained(tmp_path / "base")
    model.add_adapter(
        LoraConfig(r=2, target_modules=case.adapted, init_lora_weights=False), adapter_name="rain"
    )
    model.save_lora_adapter(tmp_path / "adapter", adapter_name="rain")
    other = type(model).from_pretrained(tmp_path / "base")
    other.load_lora_adapter(
        str(tmp_path / "adapter"), prefix=None, adapter_name="rain", use_safetensors=True
    )
    assert_same(run(other, case.inputs()), run(model, case.inputs()))


@pytest.mark.parametrize("name", ["matcher", "restorer"])
def test_it_compiles_without_graph_breaks(name):
    model, inputs = CASES[name].build(), CASES[name].inputs()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert_same(run(compiled, inputs), run(model, inputs))
