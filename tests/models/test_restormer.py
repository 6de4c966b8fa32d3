"""Restormer, PromptIR and DRSformer keep the restorer's contract: any size, guidance that starts at
nothing and can be turned off, the same result whatever form the attention is computed in.

Of its own DRSformer has sparse attention, convolutions in pairs, and experts.
"""

import sys

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model

from tests.tools.tiny import image, transformer
from textir.hub.published_arithmetic import expert_layer
from textir.models import DRSformer, PromptIR, Restormer, restormer
from textir.models.restormer import (
    KEPT,
    Averages,
    ChannelAttention,
    ChannelNorm,
    ExpertCompensator,
    ExpertLayer,
    MixedScaleFeedForward,
    PairedConv,
    SparseChannelAttention,
)

NETWORKS = [Restormer, PromptIR, DRSformer]


def guidance(batch: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(batch, *shape, generator=generator)
        for shape in ((4, 20, 32), (6, 10, 16), (8, 5, 8))
    ]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("size", [(16, 24), (17, 31), (30, 19)])
def test_any_size_comes_back(network, size):
    restored = transformer(network, guided=False)(image(*size, batch=2))
    assert restored.shape == (2, 3, *size) and restored.isfinite().all()


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("is_trained", [False, True])
def test_a_tile_with_shared_averages_is_a_part_of_the_whole(network, is_trained):
    """Patches that cover the photo measure what the whole photo has, tile by tile and at once."""
    model, photo = transformer(network, guided=False).eval(), image(128, 128)
    for name, parameter in model.named_parameters():
        if "temperature" in name:
            parameter.data *= 8
    photo[..., 64:] = torch.linspace(0, 1, 64) * torch.tensor([1.0, 0.5, 0.2])[:, None, None]
    with torch.set_grad_enabled(is_trained):  # in training nothing goes tile by tile
        whole, left = model(photo), photo[..., :64]
        averages = model.share_averages((128, 128), 32, (4, 4))
        with averages.measuring():
            model(cells_of(photo))
        with averages.at((0, 128, 0, 64)):
            shared = model(left)
        inside = (..., slice(None), slice(None, 48))
        error = (shared - whole[..., :64])[inside].abs().mean()
        assert error < 0.4 * (model(left) - whole[..., :64])[inside].abs().mean()


def cells_of(photo: torch.Tensor) -> torch.Tensor:
    """Squares of 32 pixels, row by row."""
    return photo.unfold(2, 32, 32).unfold(3, 32, 32).permute(2, 3, 0, 1, 4, 5).flatten(0, 2)


def test_patches_count_by_what_they_know():
    """The patches count as one; a reduced cell adds what its patch has missed."""
    weights = Averages((512, 512), 64, (2, 2)).weights(torch.zeros(8, 3, 64, 64))
    sums = weights.sum((1, 2, 3))
    torch.testing.assert_close(sums, torch.tensor([0.25] * 4 + [0.0] * 4))
    assert weights[0, 0, :3].eq(0).all() and weights[0, 0, 32, 32] > 0
    assert weights[4, 0, 32, 32] < 0 < weights[4, 0, 12, 32]


def test_what_patches_compare_is_what_the_photo_compares(monkeypatch):
    monkeypatch.setattr(restormer, "MIDDLE", 1.0)
    query, key = torch.randn(2, 1, 8, 64, 64)
    attention = ChannelAttention(8, 2)
    averages = Averages((64, 64), 32, (2, 2))
    weights = averages.weights(cells_of(query))
    attention.keep(averages, attention.compare(cells_of(query), cells_of(key), weights))
    expected = attention.weigh(*attention.compare(query, key))
    torch.testing.assert_close(averages.kept[attention], expected)


def test_a_tile_sees_its_part_of_a_prompt():
    averages, prompt = Averages((64, 96), 32, (2, 3)), torch.rand(1, 4, 8, 8)
    whole = F.interpolate(prompt, (32, 48), mode="bilinear", align_corners=False)
    with averages.at((16, 64, 32, 96)):
        torch.testing.assert_close(averages.stretch(prompt, 24, 32), whole[..., 8:, 16:])
    with averages.measuring():
        patches = averages.stretch(prompt.expand(6, -1, -1, -1), 16, 16)
    torch.testing.assert_close(patches[4], whole[0, :, 16:, 16:32])


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("fusion", ["encoder", "decoder", "both"])
def test_a_fresh_guided_network_equals_its_backbone_to_the_bit(network, fusion):
    fresh = transformer(network, open_gates=False, fusion=fusion).eval()
    x = image(17, 31)
    with torch.no_grad():
        assert torch.equal(fresh(x, guidance()), fresh(x))


@pytest.mark.parametrize("network", NETWORKS)
def test_strength_turns_guidance_off_to_the_bit(network):
    model, x = transformer(network).eval(), image(17, 31, batch=2)
    with torch.no_grad():
        bare, guided = model(x), model(x, guidance(2))
        assert torch.equal(model(x, guidance(2), strength=0), bare) and not torch.allclose(
            guided, bare
        )
        single = model(x, guidance(2), strength=torch.tensor([0.0, 1.0])[:, None, None, None])
        torch.testing.assert_close(single, torch.stack([bare[0], guided[1]]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_batch_equals_its_images(network):
    model, x = transformer(network).eval(), image(17, 31, batch=3)
    features = guidance(3)
    with torch.no_grad():
        singles = [model(x[i : i + 1], [f[i : i + 1] for f in features]) for i in range(3)]
        torch.testing.assert_close(model(x, features), torch.cat(singles), atol=1e-5, rtol=0)


@pytest.mark.parametrize("network", NETWORKS)
def test_blocks_in_tiles_do_the_same_as_on_whole_maps(network, monkeypatch):
    module = sys.modules[network.__module__]
    model, x = transformer(network).eval(), image(41, 70, batch=2)
    features = [torch.randn(2, *shape) for shape in ((4, 44, 72), (6, 22, 36), (8, 11, 18))]
    whole = model(x, features)  # with gradients
    monkeypatch.setattr(module, "TILE", 1)
    cut = next(module.tiles(torch.empty(1, 1, 41, 70), 1, border=1))[2]
    assert (cut[1].stop, cut[2].stop) == (13, 17)  # there are three times four
    with torch.no_grad():
        torch.testing.assert_close(model(x, features), whole, atol=2e-6, rtol=1e-4)


def test_attention_is_the_one_of_the_paper():
    layer, x = ChannelAttention(8, 2), torch.randn(2, 8, 5, 7)
    with torch.no_grad():
        layer.temperature.copy_(torch.tensor([0.5, 2.0])[:, None, None])
        q, k, v = (
            part.unflatten(1, (2, 4)).flatten(3)
            for part in layer.depthwise(layer.qkv(x)).chunk(3, dim=1)
        )
        cosines = torch.nn.functional.normalize(q, dim=-1) @ torch.nn.functional.normalize(
            k, dim=-1
        ).transpose(-2, -1)
        expected = layer.project(
            ((cosines * layer.temperature).softmax(-1) @ v).flatten(1, 2).unflatten(2, (5, 7))
        )
        torch.testing.assert_close(layer(x), expected, atol=1e-6, rtol=1e-5)


def test_normalisation_without_bias_keeps_the_mean():
    x = torch.randn(2, 6, 3, 4) + 5
    y = ChannelNorm(6, bias=False)(x)
    torch.testing.assert_close(y, x / (x.var(1, keepdim=True, correction=0) + 1e-5).sqrt())


def test_dual_pixel_views_give_one_image():
    model = transformer(Restormer, guided=False, in_channels=6, out_channels=3, dual_pixel=True)
    assert model(torch.rand(1, 6, 17, 31)).shape == (1, 3, 17, 31)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": (1, 2)}, "`heads` one more"),
        ({"decoder_depths": (1,)}, "`decoder_depths` must have 2 entries"),
        ({"fusion": "middle"}, "`fusion` must be encoder, decoder or both"),
        ({"guidance_channels": (4, 6)}, "`guidance_channels` must have 3 entries"),
        ({"in_channels": 6}, "unless `dual_pixel`, got 3"),
    ],
)
def test_wrong_shapes_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        transformer(Restormer, **options)


def test_guidance_for_an_unguided_network_is_refused():
    with pytest.raises(ValueError, match="This PromptIR takes no guidance"):
        transformer(PromptIR, guided=False)(image(16, 24), guidance())


def test_sparse_attention_is_the_sum_of_four_that_keep_the_best():
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


def test_every_weight_of_sparse_attention_learns():
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
def test_feed_forward_in_halves_is_the_same(expansion, bias, adapted):
    layer, x = MixedScaleFeedForward(16, expansion, bias), torch.randn(2, 16, 9, 11)
    if adapted:
        inject_adapter_in_model(
            LoraConfig(r=2, target_modules=["expand", "reduce"], init_lora_weights=False), layer
        )
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.2)
        torch.testing.assert_close(layer.work(x, layer.halves()), layer(x), atol=1e-5, rtol=1e-5)


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
