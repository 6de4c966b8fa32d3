"""NAFNet restores any size, and guidance enters through gates that begin closed."""

from itertools import combinations

import pytest
import torch
from peft import LoraConfig

from tests.tools import tiny
from tests.tools.tiny import image, restorer
from textir.models import NAFNet, nafnet
from textir.models.nafnet import (
    ExpertConv2d,
    GuidanceFusion,
    LayerNorm2d,
    NAFBlock,
    Wish,
    between_cells,
    fit,
    gate,
    local_mean,
    windows_of_cells,
)

CHANNELS = (4, 6, 8)
SMALL = {"width": 4, "encoder_depths": (1, 1), "middle_depth": 1, "decoder_depths": (1, 1)}


def features(
    height: int = 24, width: int = 40, batch: int = 1, seed: int = 1
) -> list[torch.Tensor]:
    """Guidance features as a matcher returns them: finest first, sides padded to whole pixels of
    the deepest level."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = -(-height // 4) * 4, -(-width // 4) * 4
    return [
        torch.randn(batch, c, rows // 2**i, columns // 2**i, generator=generator)
        for i, c in enumerate(CHANNELS)
    ]


def open_gates(model: NAFNet, names: tuple[str, ...] = ("scale1", "scale2", "alpha")) -> NAFNet:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(names):
                parameter.fill_(0.5)
    return model


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("downscale", [1, 2])
@pytest.mark.parametrize("size", [(16, 24), (17, 31), (1, 3), (33, 16)])
def test_restorer_keeps_any_size(size, downscale, guided):
    model = open_gates(
        NAFNet(**SMALL, downscale=downscale, guidance_channels=CHANNELS if guided else None)
    )
    degraded = image(*size, batch=2)
    restored = model(
        degraded,
        features(-(-size[0] // downscale), -(-size[1] // downscale), 2) if guided else None,
    )
    assert restored.shape == degraded.shape and restored.isfinite().all()


def test_sides_are_padded_by_their_last_pixels():
    model, degraded = restorer(guided=False), image(17, 31)
    padded = torch.nn.functional.pad(degraded, (0, 1, 0, 3), mode="replicate")
    assert torch.equal(model(degraded), model(padded)[..., :17, :31])


@pytest.mark.parametrize("window", [None, 12])
def test_blocks_in_tiles_do_the_same_as_on_whole_maps(window, monkeypatch):
    block, x = open_gates(NAFBlock(8, window)).eval(), torch.randn(2, 8, 41, 70)
    monkeypatch.setattr(nafnet, "TILE", 16**2)
    assert len(list(nafnet.tiles(x, 1, border=1))) > 4
    whole = block(x).detach()  # with gradients
    with torch.no_grad():
        torch.testing.assert_close(block(x), whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("share", [0.2, 0.64, 1.0])
def test_windows_of_cells_are_means_that_move_inwards(share):
    weights = windows_of_cells(share, 7)
    torch.testing.assert_close(weights.sum(1), torch.ones(7))
    assert (weights >= 0).all() and torch.equal(weights > 0, (weights > 0).flip(0, 1))
    if share == 1:
        torch.testing.assert_close(weights, torch.full((7, 7), 1 / 7))


def test_steps_between_cells_interpolate_linearly():
    weights = between_cells(0.0, 1.0, 40, 4)
    torch.testing.assert_close(weights.sum(1), torch.ones(40))
    places = ((torch.arange(40) + 0.5) / 10 - 0.5).clamp(0, 3)
    torch.testing.assert_close(weights @ torch.arange(4.0), places)


@pytest.mark.parametrize("window", [None, 96])
def test_a_tile_with_shared_averages_is_a_part_of_the_whole(window):
    """Patches that cover the photo measure what the whole photo has."""
    model = NAFNet(**SMALL, pooling_window=window).eval()
    for block in model.modules():
        if isinstance(block, NAFBlock):
            open_gates(block).channel_attention.weight.data *= 10
    photo = image(128, 128)
    photo[..., 64:] = torch.linspace(0, 1, 64) * torch.tensor([1.0, 0.5, 0.2])[:, None, None]
    whole, left = model(photo), photo[..., :64]
    averages = model.share_averages((128, 128), 32, (4, 4))
    cells = photo.unfold(2, 32, 32).unfold(3, 32, 32).permute(2, 3, 0, 1, 4, 5).flatten(0, 2)
    with torch.no_grad():
        with averages.measuring():
            model(cells)
        with averages.at((0, 128, 0, 64)):
            shared = model(left)
        alone = model(left)
    inside = (..., slice(None), slice(None, 48))
    error = (shared - whole[..., :64])[inside].abs().mean()
    assert error < 0.4 * (alone - whole[..., :64])[inside].abs().mean()


@pytest.mark.parametrize(("downscale", "multiple"), [(1, 4), (2, 8)])
def test_the_size_multiple_is_that_of_the_deepest_level(downscale, multiple):
    assert NAFNet(**SMALL, downscale=downscale).size_multiple == multiple


@pytest.mark.parametrize("channels", [1, 4])
def test_other_numbers_of_channels_work(channels):
    degraded = torch.rand(2, channels, 17, 31)
    assert NAFNet(**SMALL, in_channels=channels)(degraded).shape == degraded.shape


@pytest.mark.parametrize("fusion", ["encoder", "decoder", "both"])
def test_a_fresh_guided_restorer_is_its_backbone_to_the_bit(fusion):
    backbone = open_gates(NAFNet(**SMALL))
    guided = NAFNet(**SMALL, guidance_channels=CHANNELS, fusion=fusion)
    missing, unexpected = guided.load_state_dict(backbone.state_dict(), strict=False)
    assert not unexpected and all("fusions" in name for name in missing)
    open_gates(guided, ("scale1", "scale2"))
    degraded = image(17, 31)
    assert torch.equal(guided(degraded, features(17, 31)), backbone(degraded))


def test_at_strength_zero_guidance_is_not_seen():
    model, degraded = restorer(), image(17, 31)
    assert torch.equal(model(degraded, features(17, 31), strength=0.0), model(degraded))


def test_guidance_is_seen_through_open_gates():
    model, degraded = restorer(), image()
    bare, other, full = (
        model(degraded),
        model(degraded, features(seed=2)),
        model(degraded, features()),
    )
    assert not torch.allclose(full, bare, atol=1e-3) and not torch.allclose(full, other, atol=1e-3)
    slight = model(degraded, features(), strength=0.1)
    assert 0 < (slight - bare).abs().mean() < 0.5 * (full - bare).abs().mean()


def test_what_guidance_adds_is_proportional_to_its_strength():
    fusion = GuidanceFusion(4, 6)
    torch.nn.init.constant_(fusion.alpha, 0.5)
    x, guidance = torch.randn(2, 4, 6, 10), torch.randn(2, 6, 6, 10)
    single, double = (fusion(x, guidance, strength) - x for strength in (1.0, 2.0))
    torch.testing.assert_close(double, 2 * single)
    assert single.abs().mean() > 1e-3


@pytest.mark.parametrize(
    ("fusion", "levels_seen"), [("encoder", [0, 1, 2]), ("decoder", [0, 1]), ("both", [0, 1, 2])]
)
def test_guidance_enters_where_it_should(fusion, levels_seen):
    model = open_gates(NAFNet(**SMALL, guidance_channels=CHANNELS, fusion=fusion))
    assert len(model.encoder_fusions) == (0 if fusion == "decoder" else 3)
    assert len(model.decoder_fusions) == (0 if fusion == "encoder" else 2)
    degraded, guidance = image(), features()
    expected = model(degraded, guidance)
    for level in range(3):
        changed = [g.flip(-1) if i == level else g for i, g in enumerate(guidance)]
        assert torch.equal(model(degraded, changed), expected) == (level not in levels_seen)


def test_gradients_reach_the_guidance():
    guidance = [g.requires_grad_() for g in features()]
    restorer()(image(), guidance).sum().backward()
    assert all(g.grad.abs().sum() > 0 for g in guidance)


def test_a_closed_gate_learns():
    model = open_gates(NAFNet(**SMALL, guidance_channels=CHANNELS), ("scale1", "scale2"))
    model(image(), features()).square().sum().backward()
    alphas = [parameter for name, parameter in model.named_parameters() if name.endswith("alpha")]
    assert len(alphas) == 5 and all(alpha.grad.abs().sum() > 0 for alpha in alphas)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"decoder_depths": (1,)},
            "`decoder_depths` must have 2 entries like `encoder_depths`, got 1",
        ),
        ({"fusion": "middle"}, "`fusion` must be encoder, decoder or both, got 'middle'"),
        (
            {"guidance_channels": (4, 6)},
            r"`guidance_channels` must have 3 entries \(2 levels and the middle\), got 2",
        ),
    ],
)
def test_a_network_that_makes_no_sense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        NAFNet(**{**SMALL, **options})


@pytest.mark.parametrize(
    "guidance", [features()[:2], features()[::-1], [torch.zeros(1, c + 1, 8, 8) for c in CHANNELS]]
)
def test_guidance_of_other_levels_is_refused(guidance):
    channels = [g.shape[1] for g in guidance]
    expected = rf"must have \[4, 6, 8\] channels, finest level first, got \{str(channels)[:-1]}\]"
    with pytest.raises(ValueError, match=expected):
        restorer()(image(), guidance)


def test_guidance_is_refused_by_a_network_without_it():
    with pytest.raises(
        ValueError, match="takes no guidance; build it with `guidance_channels`, or pass no"
    ):
        restorer(guided=False)(image(), features())


def test_its_repeated_blocks_can_be_compiled_alone():
    model, degraded = restorer(), image()
    before = model(degraded, features())
    model.compile_repeated_blocks(backend="eager", fullgraph=True)
    torch.testing.assert_close(model(degraded, features()), before)


# ---- what it is made of


def test_layer_norm_normalises_the_channels_of_every_pixel():
    norm, x = LayerNorm2d(6), torch.randn(2, 6, 5, 7) * 3 + 1
    with torch.no_grad():
        norm.weight.uniform_()
        norm.bias.uniform_()
    expected = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, correction=0) + 1e-6).sqrt()
    torch.testing.assert_close(
        norm(x), expected * norm.weight[:, None, None] + norm.bias[:, None, None]
    )


def test_a_gate_multiplies_the_halves():
    x = torch.randn(2, 6, 3, 5)
    assert torch.equal(gate(x), x[:, :3] * x[:, 3:])


def test_a_fresh_block_is_the_identity():
    x = torch.randn(2, 4, 6, 10)
    assert torch.equal(NAFBlock(4)(x), x)


@pytest.mark.parametrize("size", [(5, 9), (7, 12), (4, 12), (6, 10)])
def test_features_are_cropped_or_repeated_to_fit(size):
    x = torch.randn(1, 2, 6, 10)
    fitted = fit(x, *size)
    rows, columns = (torch.arange(side).clamp(max=old - 1) for side, old in zip(size, (6, 10)))
    assert torch.equal(fitted, x[:, :, rows][..., columns])


@pytest.mark.parametrize("window", [5, 8, 12, 17])
def test_local_mean_averages_a_square_around_each_pixel(window):
    x = torch.rand(2, 3, 13, 21)
    got = local_mean(x, window).expand_as(x)
    height = min(window, 13)
    for row, column in ((0, 0), (6, 10), (12, 20), (3, 17)):
        top = min(max(row - window // 2, 0), 13 - height)
        left = min(max(column - window // 2, 0), 21 - window)
        expected = x[..., top : top + height, left : left + window].mean((2, 3))
        assert torch.allclose(got[..., row, column], expected, atol=1e-5)


def test_a_large_pooling_window_is_the_global_one_and_a_small_one_is_not():
    whole, photo = restorer(guided=False), image(48, 80)
    outputs = {}
    for window in (16, 80):
        model = NAFNet(**SMALL, pooling_window=window)
        model.load_state_dict(whole.state_dict())
        assert torch.equal(model.train()(photo), whole(photo))  # training averages over the crop
        outputs[window] = model.eval()(photo)
    assert torch.equal(outputs[80], whole.eval()(photo))
    assert (outputs[16] - outputs[80]).abs().max() > 1e-5


@pytest.mark.parametrize(("share", "window"), [(0.0, 6), (0.2, 6), (0.5, 12), (1.0, 24)])
def test_the_pooling_window_grows_with_the_photo(share, window):
    x = torch.rand(2, 3, 16, 24)
    assert torch.equal(local_mean(x, 6, share), local_mean(x, window))
    whole, large = restorer(guided=False).eval(), image(48, 80)
    model = NAFNet(**SMALL, pooling_window=16, pooling_share=share).eval()
    model.load_state_dict(whole.state_dict())
    assert torch.equal(model(large), whole(large)) == (share == 1)
    assert all(module.share == share for module in model.modules() if isinstance(module, NAFBlock))


def test_a_pooling_share_that_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="`pooling_share` must lie in 0 to 1"):
        NAFNet(**SMALL, pooling_window=16, pooling_share=1.5)
    with pytest.raises(
        ValueError, match="`pooling_share` lets a `pooling_window` grow; give that too"
    ):
        NAFNet(**SMALL, pooling_share=0.5)


@pytest.mark.parametrize("window", [1, 16])
@pytest.mark.parametrize("size", [(17, 31), (16, 100), (3, 40)])
def test_local_pooling_keeps_any_size(size, window):
    model = open_gates(NAFNet(**SMALL, pooling_window=window)).eval()
    restored = model(image(*size))
    assert restored.shape == (1, 3, *size) and restored.isfinite().all()


@pytest.mark.parametrize("downscale", [1, 2])
def test_the_pooling_window_shrinks_with_the_level(downscale):
    model = NAFNet(**SMALL, downscale=downscale, guidance_channels=CHANNELS, pooling_window=16)
    windows = [16 // downscale, 8 // downscale, 4 // downscale]
    assert [level[0].window for level in (*model.encoders, model.middle)] == windows
    assert [fusion.block.window for fusion in model.encoder_fusions] == windows
    assert [level[0].window for level in model.decoders] == windows[-2::-1]
    assert [fusion.block.window for fusion in model.decoder_fusions] == windows[-2::-1]


# ---- told what to remove

LABELS = ("noise", "haze", "blur")


def told_network(opened: bool = True, **options) -> NAFNet:
    torch.manual_seed(0)
    shape = {"width": 4, "encoder_depths": (1, 1), "middle_depth": 1, "decoder_depths": (1, 1)}
    model = NAFNet(
        **{**shape, "labels": LABELS, "condition_width": 8, "expert_rank": 2, **options}
    ).eval()
    return tiny.with_open_gates(model) if opened else model


def wish(*names: str, blind: bool = False) -> torch.Tensor:
    return torch.tensor([[float(label in names) for label in LABELS] + [float(blind)]])


def test_a_fresh_condition_leaves_the_network_as_it_was_to_the_bit():
    blind = tiny.with_open_gates(told_network(opened=False, labels=None, expert_rank=0))
    told = told_network(opened=False)
    told.load_state_dict(blind.state_dict(), strict=False)
    image = tiny.image()
    for condition in (None, wish("noise"), wish("haze", "blur"), wish()):
        assert torch.equal(told(image, condition=condition), blind(image))


def test_nothing_said_means_find_out_yourself():
    network, image = told_network(), tiny.image()
    assert torch.equal(network(image), network(image, condition=wish(blind=True)))
    assert not torch.equal(network(image), network(image, condition=wish()))


@pytest.mark.parametrize("rank", [0, 2])
def test_each_wish_does_something_of_its_own(rank):
    network, image = told_network(expert_rank=rank), tiny.image()
    outputs = [
        network(image, condition=condition)
        for condition in (wish("noise"), wish("haze"), wish("noise", "haze"))
    ]
    assert all(not torch.equal(*pair) for pair in combinations(outputs, 2))


@pytest.mark.parametrize("train", [False, True])
def test_images_with_wishes_of_their_own_equal_their_singles(train):
    network, images = told_network().train(train), tiny.image(batch=3)
    conditions = torch.cat([wish("noise"), wish("haze"), wish(blind=True)])
    together = network(images, condition=conditions)
    for i in range(3):
        alone = network(images[i : i + 1], condition=conditions[i : i + 1])
        assert torch.allclose(together[i], alone[0], atol=1e-5)
    assert torch.allclose(
        network(images, condition=conditions[:1])[1:2],
        network(images[1:2], condition=wish("noise")),
        atol=1e-5,
    )


def test_an_expert_adds_its_low_rank_product_to_the_weights():
    layer = ExpertConv2d(4, 6, labels=3, rank=2)
    torch.nn.init.normal_(layer.expert_up)
    x, weights = torch.randn(2, 4, 5, 7), torch.tensor([[1.0, 0.0, 0.5], [0.0, 2.0, 0.0]])
    wanted = Wish(torch.zeros(2, 1), weights)
    for i, row in enumerate(weights):
        kernel = layer.weight[..., 0, 0] + sum(
            w * layer.expert_up[k] @ layer.expert_down[k] for k, w in enumerate(row)
        )
        expected = torch.nn.functional.conv2d(x[i : i + 1], kernel[..., None, None], layer.bias)
        assert torch.allclose(layer(x, wanted)[i], expected[0], atol=1e-5)


def test_told_networks_run_tile_by_tile_like_at_once():
    network, image, condition = told_network(width=8), tiny.image(80, 112), wish("haze")
    with torch.no_grad():
        tiled = network(image, condition=condition)
    # With gradients not in tiles.
    assert torch.allclose(tiled, network(image, condition=condition), atol=1e-5)


def test_checkpointing_gives_the_same_gradients_where_it_is_told():
    gradients = []
    for checkpointing in (False, True):
        network = told_network().train()
        if checkpointing:
            network.enable_gradient_checkpointing()
        network(tiny.image(), condition=wish("noise")).square().mean().backward()
        gradients.append(
            {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
        )
    assert gradients[0].keys() == gradients[1].keys() and any(
        "expert" in name for name in gradients[0]
    )
    assert all(
        torch.allclose(gradients[0][name], gradients[1][name], atol=1e-6) for name in gradients[0]
    )


def test_adapters_act_beside_the_experts():
    network, image, condition = told_network(), tiny.image(), wish("noise")
    before = network(image, condition=condition)
    network.add_adapter(LoraConfig(r=2, target_modules=NAFNet._lora_layers))
    assert torch.allclose(network(image, condition=condition), before, atol=1e-6)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    assert not torch.allclose(network(image, condition=condition), before, atol=1e-3)
    assert not torch.equal(
        network(image, condition=condition), network(image, condition=wish("haze"))
    )


def test_compiled_networks_take_conditions():
    network, image = told_network(), tiny.image(batch=2)
    compiled = torch.compile(network, backend="eager")
    for condition in (None, wish("noise"), torch.cat([wish("noise"), wish("haze")])):
        assert torch.allclose(
            compiled(image, condition=condition), network(image, condition=condition), atol=1e-6
        )


@pytest.mark.parametrize("condition", [torch.ones(1, 3), torch.ones(4), torch.ones(3, 4)])
def test_a_condition_of_the_wrong_length_is_refused(condition):
    with pytest.raises(
        ValueError, match=r"`condition` must be \(2, 4\): one number for each of noise, haze, blur"
    ):
        told_network()(tiny.image(batch=2), condition=condition)


def test_a_blind_network_cannot_be_told():
    with pytest.raises(ValueError, match="This NAFNet is blind"):
        tiny.restorer(guided=False)(tiny.image(), condition=wish("noise"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": ()}, "`labels` must name each degradation once"),
        ({"labels": ("noise", "noise")}, "`labels` must name each degradation once"),
        ({"labels": None}, "`expert_rank` 2 needs `labels`"),
    ],
)
def test_labels_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        told_network(**options)


def test_a_told_network_comes_back_as_it_was_saved(tmp_path):
    network, image = told_network(), tiny.image()
    network.save_pretrained(tmp_path)
    again = NAFNet.from_pretrained(tmp_path)
    assert tuple(again.config.labels) == LABELS
    assert torch.equal(again(image, condition=wish("haze")), network(image, condition=wish("haze")))
