"""A protocol says how images are degraded and compared; presets are those of published code."""

import numpy as np
import pytest
import torch
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from textir.evaluation.metrics import psnr, ssim
from textir.evaluation.protocol import PRESETS, Protocol, read_protocol
from textir.evaluation.scores import load_pairs
from textir.images.picture import Picture, write_picture


def pair() -> tuple[np.ndarray, np.ndarray]:
    """Two similar float images `(40, 56, 3)` that lie between the levels of 8 bits."""
    draw = np.random.default_rng(0)
    clean = draw.random((40, 56, 3), np.float32)
    noise = draw.normal(0, 0.05, clean.shape)
    return (clean + noise).clip(0, 1).astype(np.float32), clean


def test_promptir_is_scored_as_its_code_does():
    restored, clean = (image[4:36, 4:52].astype(np.float64) for image in pair())
    protocol = PRESETS["promptir"]
    expected = peak_signal_noise_ratio(clean, restored, data_range=1)
    assert psnr(*pair(), protocol) == pytest.approx(expected, abs=1e-9)
    expected = structural_similarity(clean, restored, data_range=1, channel_axis=-1)
    assert ssim(*pair(), protocol) == pytest.approx(expected, abs=1e-9)


def test_restormer_y_rounds_the_luma_of_8_bit_images():
    lumas = [rgb2ycbcr((image * 255).round().astype(np.uint8))[..., 0].round() for image in pair()]
    expected = peak_signal_noise_ratio(*lumas, data_range=255)
    assert psnr(*pair(), PRESETS["restormer-y"]) == pytest.approx(expected, abs=1e-9)
    assert psnr(*pair(), PRESETS["restormer-y"]) != psnr(*pair(), Protocol("y"))


def test_plain_is_the_default():
    assert PRESETS["plain"] == Protocol() == read_protocol() == read_protocol("rgb")


def test_what_is_said_replaces_what_the_preset_says():
    protocol = read_protocol("promptir", border=4, noise="float")
    assert (protocol.border, protocol.noise, protocol.multiple) == (4, "float", 16)
    assert read_protocol("y", multiple=8) == Protocol("y", multiple=8)


def test_a_protocol_says_how_it_differs():
    assert str(PRESETS["promptir"]) == (
        "RGB PSNR/SSIM of float images, mean over images, centre crop to a multiple of 16, "
        "degraded images cut to 8 bits, SSIM with uniform windows"
    )
    assert str(PRESETS["restormer-y"]) == "Y PSNR/SSIM of 8-bit luma, mean over images"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": "grainy"}, "`noise` must be float or clipped, got 'grainy'"),
        ({"window": "box"}, "`window` must be gaussian or uniform"),
        ({"rounding": "up"}, "`rounding` must be none or image or luma"),
        ({"rounding": "luma"}, "belongs to `color='y'`"),
    ],
)
def test_what_a_protocol_cannot_be_is_said(options, message):
    with pytest.raises(ValueError, match=message):
        Protocol(**options)
    with pytest.raises(ValueError, match="must be one of plain, promptir, restormer-y, rgb, y"):
        read_protocol("psnr")


def test_whole_levels_stay_when_noise_is_cut_to_8_bits():
    levels = np.arange(256, dtype=np.float32).reshape(16, 16, 1).repeat(3, -1) / 255
    protocol = PRESETS["promptir"]
    np.testing.assert_allclose(protocol.as_given(levels), levels, atol=1e-7)
    cut = protocol.as_given(levels * 1.2 - 0.1 + 0.5 / 255)
    assert cut.min() == 0 and cut.max() == 1
    np.testing.assert_allclose(cut * 255, np.round(cut * 255), atol=1e-4)


def test_randomness_comes_from_the_name_and_the_seed():
    draws = [
        torch.rand(3, generator=Protocol.generator(*given))
        for given in (("a", 0), ("b", 0), ("a",))
    ]
    assert torch.equal(draws[0], draws[2]) and not torch.equal(draws[0], draws[1])


def test_images_are_cropped_before_they_are_degraded(tmp_path):
    write_picture(tmp_path / "a.png", Picture(pair()[1]))
    (whole,) = load_pairs(tmp_path, "noise:50")
    (cut,) = load_pairs(tmp_path, "noise:50", protocol=PRESETS["promptir"])
    assert whole.degraded.shape == (40, 56, 3) and cut.degraded.shape == (32, 48, 3)
    assert whole.degraded.min() < 0 and cut.degraded.min() == 0
    np.testing.assert_array_equal(cut.clean, whole.clean[4:36, 4:52])
    with pytest.raises(ValueError, match="Nothing of a 56 x 40 image is left"):
        list(load_pairs(tmp_path, "noise:50", protocol=Protocol(multiple=64)))
