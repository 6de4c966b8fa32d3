"""What DRSformer has of its own: sparse attention, convolutions in pairs, experts. The contract of
restorers is tested beside Restormer's."""

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model

from tests.tools.tiny import image, transformer
from textir.hub.published_arithmetic import expert_layer
from textir.models import DRSformer
from textir.models.drsformer import (
    KEPT,
    ExpertCompensator,
    ExpertLayer,
    MixedScaleFeedForward,
    PairedConv,
    SparseChannelAttention,
)


def test_attention_is_the_sum_of_four_that_keep_the_best():
    layer, x = SparseChannelAttention(20, 2), torch.randn(2, 20, 5, 7)
    with torch.no_grad():
        layer.temperature.copy_(torch.tensor([3.0, 8.0])[:, None, None])
        for share, value in zip(layer.shares, (0.4, -0.3, 0.2, 0.9)):
            share.fill_(value)
        q, k, v = (
            part.unflatten(1, (2, 10)).flatten(3)
            for part in layer.depthwise(layer.qkv(x)).chunk(3, dim=1)
        )
        logits = (
            F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        ) * layer.temperature
        total = 0
        for share, part in zip(layer.shares, KEPT):
            least = logits.topk(int(10 * part), dim=-1).values[..., -1:]
            total = total + share * (
                logits.masked_fill(logits < least, float("-inf")).softmax(-1) @ v
            )
        expected = layer.project(total.flatten(1, 2).unflatten(2, (5, 7)))
        torch.testing.assert_close(layer(x), expected, atol=1e-6, rtol=1e-5)


def test_every_weight_of_attention_learns():
    layer = SparseChannelAttention(8, 2)
    layer(torch.randn(1, 8, 5, 7)).square().mean().backward()
    assert all((parameter.grad != 0).any() for parameter in layer.parameters())


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("bias", [False, True])
def test_pairs_of_channels_are_convolved_together(kernel, bias):
    layer, x = PairedConv(5, kernel, bias), torch.randn(2, 10, 9, 11)
    expected = F.conv2d(x, layer.weight, layer.bias, padding=kernel // 2, groups=5)
    torch.testing.assert_close(layer(x), expected, atol=1e-6, rtol=1e-5)


# Of 16 channels 32 and 33 in a branch: 33 has a pair of both.
@pytest.mark.parametrize("expansion", [2, 2.0625])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("adapted", [False, True])
def test_feed_forward_in_quarters_is_the_same(expansion, bias, adapted):
    layer, x = MixedScaleFeedForward(16, expansion, bias), torch.randn(2, 16, 9, 11)
    if adapted:
        inject_adapter_in_model(
            LoraConfig(r=2, target_modules=["expand", "reduce"], init_lora_weights=False), layer
        )
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.2)
        torch.testing.assert_close(layer.work(x, layer.quarters()), layer(x), atol=1e-5, rtol=1e-5)


def test_experts_are_weighed_by_what_the_features_show():
    layer, x = ExpertLayer(4), torch.rand(1, 4, 9, 11)
    pooled_only = torch.eye(ExpertLayer.COUNT)[-1:]
    with torch.no_grad():
        mean = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        torch.testing.assert_close(
            layer(x, pooled_only), F.relu(F.conv2d(mean, layer.mix.weight[:, -4:]))
        )
        compensator = ExpertCompensator(4)
        weights = []
        compensator.layers[0].register_forward_pre_hook(
            lambda module, inputs: weights.append(inputs[1])
        )
        compensator(torch.cat([x, 3 * x]))
    torch.testing.assert_close(weights[0].sum(1), torch.ones(2))
    assert not torch.allclose(weights[0][0], weights[0][1], atol=1e-4)


def test_adapters_on_experts_count():
    layer, x = ExpertLayer(4), torch.rand(1, 4, 9, 11)
    weights = torch.full((1, ExpertLayer.COUNT), 1 / ExpertLayer.COUNT)
    layer.mix.weight.data.abs_()  # what is rectified afterwards is not all nothing
    plain = layer(x, weights)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["mix", r"experts.1.4"]), layer)
    torch.testing.assert_close(layer(x, weights), plain)
    for part in (layer.mix, layer.experts[1][4]):
        torch.nn.init.constant_(part.lora_B["default"].weight, 0.5)
        adapted = layer(x, weights)
        assert not torch.allclose(adapted, plain, atol=1e-3)
        plain = adapted
    torch.testing.assert_close(adapted, expert_layer(layer, x, weights))


def test_without_experts_only_the_compensators_are_gone():
    with_experts, without = (
        set(transformer(DRSformer, experts=kept).state_dict()) for kept in (True, False)
    )
    assert without < with_experts and all("_experts." in name for name in with_experts - without)
    assert transformer(DRSformer, guided=False, experts=False)(image(17, 31)).shape == (
        1,
        3,
        17,
        31,
    )
