"""NIQE is that of the published code."""

import numpy as np
import pytest
import torch
from skimage import data as photos

from textir.evaluation.niqe import PRISTINE, fit, halve, niqe, pristine

# What BasicSR 1.4.2 says of the luma of these photos of scikit-image.
PUBLISHED = {"chelsea": 2.62554, "coffee": 4.11524}


@pytest.mark.parametrize("name", PUBLISHED)
def test_it_is_the_published_score(name):
    photo = getattr(photos, name)().astype(np.float32) / 255
    assert niqe(photo) == pytest.approx(PUBLISHED[name], abs=2e-4)


def test_noise_is_not_natural():
    photo = photos.chelsea().astype(np.float32) / 255
    noise = np.random.default_rng(0).normal(0, 0.1, photo.shape)
    assert niqe((photo + noise).astype(np.float32)) > niqe(photo) + 3


def test_the_shape_of_a_gaussian_is_two():
    draws = torch.randn(2, 300, 300, generator=torch.Generator().manual_seed(0)).double()
    shape, left, right = fit(draws)
    assert shape.tolist() == pytest.approx([2, 2], abs=0.05)
    assert left.tolist() == pytest.approx([2**0.5] * 2, abs=0.03)
    assert right.tolist() == pytest.approx([2**0.5] * 2, abs=0.03)


def test_halving_keeps_a_ramp():
    ramp = torch.arange(96, dtype=torch.float64)[None].expand(96, -1)
    half = halve(ramp)
    assert half.shape == (48, 48)
    torch.testing.assert_close(half[20, 5:-5], ramp[20, ::2][5:-5] + 0.5)


def test_the_model_has_36_features_and_its_licence_beside_it():
    mean, covariance = pristine()
    assert mean.shape == (36,) and covariance.shape == (36, 36)
    np.testing.assert_allclose(covariance, covariance.T)
    assert "University of Texas" in PRISTINE.with_suffix(".NOTICE").read_text()


def test_small_and_flat_images_are_no_photos():
    with pytest.raises(ValueError, match="needs two blocks of 96 x 96 pixels, got an image of 100"):
        niqe(np.zeros((100, 100, 3), np.float32))
    assert np.isnan(niqe(np.zeros((96, 192, 3), np.float32)))
