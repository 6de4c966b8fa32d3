"""SFNet keeps the restorer's contract, and its selections are what the paper says."""

import pytest
import torch
import torch.nn.functional as F

from tests.tools.tiny import image, sfnet
from textir.models import sfnet as module
from textir.models.sfnet import (
    Averages,
    DynamicFilter,
    GlobalSelection,
    PatchSelection,
    PhotoNorm,
    local_mean,
)
from textir.training.losses import restoration_loss


def guidance(batch: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(batch, *shape, generator=generator)
        for shape in ((4, 20, 32), (6, 10, 16), (8, 5, 8))
    ]


@pytest.mark.parametrize("size", [(16, 24), (17, 31), (30, 19)])
def test_any_size_comes_back(size):
    restored = sfnet(guided=False).eval()(image(*size, batch=2))
    assert restored.shape == (2, 3, *size) and restored.isfinite().all()


@pytest.mark.parametrize(
    ("size", "expected"),
    [((16, 24), [(4, 6), (8, 12), (16, 24)]), ((17, 30), [(5, 8), (9, 15), (17, 30)])],
)
def test_three_scales_are_restored(size, expected):
    model, x = sfnet(guided=False).eval(), image(*size)
    with torch.no_grad():
        scales = model(x, all_scales=True)
        assert [tuple(scale.shape[-2:]) for scale in scales] == expected
        assert len(scales) == model.num_scales and torch.equal(scales[-1], model(x))


def cells_of(photo: torch.Tensor) -> torch.Tensor:
    """Squares of 32 pixels, row by row."""
    return photo.unfold(2, 32, 32).unfold(3, 32, 32).permute(2, 3, 0, 1, 4, 5).flatten(0, 2)


@pytest.mark.parametrize("share", [None, 0.82])
def test_a_tile_with_shared_averages_is_a_part_of_the_whole(share):
    """Patches that cover the photo measure what the whole photo has."""
    model, photo = sfnet(guided=False, pooling_share=share).eval(), image(128, 128)
    for name, parameter in model.named_parameters():
        if name.endswith(("low", "high")):
            parameter.data.normal_(0.5, 0.5)
    photo[..., 64:] = torch.linspace(0, 1, 64) * torch.tensor([1.0, 0.5, 0.2])[:, None, None]
    with torch.no_grad():
        whole, left = model(photo), photo[..., :96]
        averages = model.share_averages((128, 128), 32, (4, 4))
        with averages.measuring():
            model(cells_of(photo))
        with averages.at((0, 128, 0, 96)):
            shared = model(left)
        alone = model(left)
    inside = (..., slice(None), slice(None, 80))
    error = (shared - whole[..., :96])[inside].abs().mean()
    assert error < 0.2 * (alone - whole[..., :96])[inside].abs().mean()


@pytest.mark.parametrize(
    "layer",
    [GlobalSelection(3, None), PatchSelection(3, None), PhotoNorm(3, affine=True)],
    ids=["global selection", "patch selection", "norm"],
)
def test_a_layer_on_a_tile_gives_a_part_of_what_it_gives_on_the_photo(layer, monkeypatch):
    monkeypatch.setattr(module, "MIDDLE", 1.0)
    layer = layer.eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(0))
        photo, averages = image(128, 128), Averages((128, 128), 32, (4, 4))
        whole = layer(photo)
        with averages.measuring():
            cells = layer(cells_of(photo))
        torch.testing.assert_close(cells, cells_of(whole))
        with averages.at((32, 128, 16, 112)):
            tile = layer(photo[..., 32:, 16:112])
        torch.testing.assert_close(tile, whole[..., 32:, 16:112])


def test_windows_move_with_the_tile(monkeypatch):
    monkeypatch.setattr(module, "MIDDLE", 1.0)
    layer, photo = GlobalSelection(1, 0.5).eval(), torch.linspace(0, 1, 128)[None, None, None]
    photo = photo.expand(1, 1, 128, 128)
    with torch.no_grad():
        layer.low.fill_(1.0)
        layer.high.fill_(-1.0)  # what is left is the mean around each pixel
        averages = Averages((128, 128), 32, (4, 4))
        with averages.measuring():
            layer(cells_of(photo))
        with averages.at((0, 128, 64, 128)):
            tile = layer(photo[..., 64:])
    torch.testing.assert_close(tile, layer(photo)[..., 64:], atol=0.07, rtol=0)


@pytest.mark.parametrize("guided", [False, True])
def test_every_parameter_learns_from_the_loss_on_all_scales(guided):
    torch.manual_seed(0)
    model, x, clean = sfnet(guided), image(16, 24, batch=2), image(16, 24, batch=2, seed=1)
    features = guidance(2) if guided else None
    restoration_loss(model(x, features, all_scales=True), clean, "l1", 0.1).backward()
    assert [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ] == []
    model.zero_grad()
    restoration_loss(model(x, features), clean, "l1", 0.1).backward()
    assert {name[:9] for name, parameter in model.named_parameters() if parameter.grad is None} == {
        "outputs.0",
        "outputs.1",
    }


@pytest.mark.parametrize("fusion", ["encoder", "decoder", "both"])
def test_a_fresh_guided_network_equals_its_backbone_to_the_bit(fusion):
    fresh, x = sfnet(open_gates=False, fusion=fusion).eval(), image(17, 31)
    with torch.no_grad():
        assert torch.equal(fresh(x, guidance()), fresh(x))


def test_strength_turns_guidance_off_to_the_bit():
    model, x = sfnet().eval(), image(17, 31, batch=2)
    with torch.no_grad():
        bare, guided = model(x), model(x, guidance(2))
        assert torch.equal(model(x, guidance(2), strength=0), bare) and not torch.allclose(
            guided, bare
        )


def test_means_are_taken_nearby_outside_training_only():
    with torch.no_grad():
        x, whole = image(16, 24, batch=2), sfnet(guided=False).eval()
        near = sfnet(guided=False, pooling_share=0.5).eval()
        near.load_state_dict(whole.state_dict())
        for model in (near, whole):
            for name, parameter in model.named_parameters():
                if "selection" in name:
                    parameter.fill_(0.5)
        assert not torch.allclose(near(x), whole(x))
        torch.testing.assert_close(near.train()(x), whole.train()(x))


@pytest.mark.parametrize("share", [0, 1, 210])
def test_a_share_lies_between_none_and_all(share):
    with pytest.raises(ValueError, match="`pooling_share` must lie between 0 and 1"):
        sfnet(pooling_share=share)


def test_the_smallest_images_have_a_neighbourhood():
    with torch.no_grad():
        for share in (None, 0.1):
            assert sfnet(guided=False, pooling_share=share).eval()(image(1, 7)).shape == (
                1,
                3,
                1,
                7,
            )


def test_the_local_mean_is_that_of_its_neighbourhood():
    x = torch.randn(1, 2, 9, 11)
    mean = local_mean(x, 0.46)  # 4 and 5 pixels
    assert mean.shape == x.shape
    torch.testing.assert_close(mean[0, :, 4, 5], x[0, :, 3:7, 3:8].mean((1, 2)))
    torch.testing.assert_close(mean[0, :, 0, 0], x[0, :, :4, :5].mean((1, 2)))


def test_a_dynamic_filter_is_a_weighted_mean_of_neighbours():
    layer, x = DynamicFilter(16, 3, None).eval(), torch.randn(2, 16, 6, 7)
    with torch.no_grad():
        layer.predict.weight.zero_()  # equal weights: a box filter
        box = F.avg_pool2d(F.pad(x, (1,) * 4, mode="reflect"), 3, 1)
        torch.testing.assert_close(layer(x), layer.modulate(box, x - box))


def test_selections_weigh_mean_and_deviation():
    x = torch.randn(2, 4, 6, 8)
    selection = GlobalSelection(4, None)
    torch.testing.assert_close(selection(x), x - x.mean((2, 3), keepdim=True))  # as it starts
    parts = PatchSelection(4, None)
    with torch.no_grad():
        parts.low.fill_(1.0)
    expected = F.interpolate(F.adaptive_avg_pool2d(x, 2), (6, 8), mode="nearest")
    torch.testing.assert_close(parts(x), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fusion": "middle"}, "`fusion` must be"),
        ({"guidance_channels": (4, 6)}, "`guidance_channels` must have 3 entries"),
    ],
)
def test_wrong_shapes_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        sfnet(**options)


def test_guidance_for_an_unguided_network_is_refused():
    with pytest.raises(ValueError, match="This SFNet takes no guidance"):
        sfnet(guided=False)(image(16, 24, batch=2), guidance(2))


def test_gradient_checkpointing_changes_nothing():
    """In evaluation mode: in training every pass moves the running statistics of the dynamic
    filters, and recomputing is a pass."""
    model, x, results = sfnet().eval(), image(16, 24, batch=2), []
    for checkpointed in (False, True):
        if checkpointed:
            model.enable_gradient_checkpointing()
        else:
            model.disable_gradient_checkpointing()
        model.zero_grad()
        scales = model(x, guidance(2), all_scales=True)
        sum(scale.square().mean() for scale in scales).backward()
        results.append(
            [scales[-1].detach(), *(parameter.grad.clone() for parameter in model.parameters())]
        )
    torch.testing.assert_close(results[0], results[1])
