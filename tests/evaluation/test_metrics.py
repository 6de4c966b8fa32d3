"""Scores are those of scikit-image on 8-bit images, under a protocol that says what was
compared."""

import numpy as np
import pytest
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from textir.evaluation.metrics import Protocol, center_crop, mean_average_precision, psnr, ssim

Y, RGB = Protocol("y"), Protocol()


def eight_bit(height: int = 40, width: int = 56, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def pair() -> tuple[np.ndarray, np.ndarray]:
    """Two similar `(40, 56, 3)` 8-bit images, restored and clean."""
    clean = eight_bit()
    noise = np.random.default_rng(1).integers(-20, 21, clean.shape)
    return (clean + noise).clip(0, 255).astype(np.uint8), clean


def scaled(image: np.ndarray) -> np.ndarray:
    return np.float32(image) / 255


def wang_ssim(restored: np.ndarray, clean: np.ndarray, **options) -> float:
    return structural_similarity(
        clean,
        restored,
        data_range=255,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        **options,
    )


def test_colour_scores_are_those_of_skimage_on_eight_bits():
    restored, clean = pair()
    assert psnr(scaled(restored), scaled(clean)) == pytest.approx(
        peak_signal_noise_ratio(clean, restored), abs=1e-9
    )
    expected = wang_ssim(restored.astype(float), clean.astype(float), channel_axis=-1)
    assert ssim(scaled(restored), scaled(clean)) == pytest.approx(expected, abs=1e-9)


def test_luma_scores_are_those_of_skimage_on_the_luma():
    restored, clean = pair()
    lumas = rgb2ycbcr(restored)[..., 0], rgb2ycbcr(clean)[..., 0]
    expected = peak_signal_noise_ratio(lumas[1], lumas[0], data_range=255)
    assert psnr(scaled(restored), scaled(clean), Y) == pytest.approx(expected, abs=1e-9)
    assert ssim(scaled(restored), scaled(clean), Y) == pytest.approx(wang_ssim(*lumas), abs=1e-9)
    assert abs(expected - psnr(scaled(restored), scaled(clean))) > 1


def test_luma_of_black_and_white_is_that_of_bt601():
    black_white = np.stack([np.zeros((16, 3)), np.ones((16, 3))])
    np.testing.assert_allclose(
        Y.prepare(black_white)[..., 0] * 255, np.repeat([[16], [235]], 16, axis=1), atol=1e-3
    )


def test_values_are_clipped_and_rounded_to_eight_bits_before_they_are_compared():
    restored, clean = pair()
    off_grid = scaled(restored) + 0.4 / 255
    off_grid[restored == 255] = 1.7
    off_grid[restored == 0] = -0.3
    assert psnr(off_grid, scaled(clean)) == psnr(scaled(restored), scaled(clean))


@pytest.mark.parametrize("protocol", [RGB, Y, Protocol("y", border=4, multiple=16)])
def test_equal_images_score_infinity_and_one(protocol):
    image = scaled(eight_bit())
    assert psnr(image, image.copy(), protocol) == float("inf")
    assert ssim(image, image.copy(), protocol) == pytest.approx(1)


def test_the_border_is_left_out_on_every_side():
    restored, clean = pair()
    inner = psnr(scaled(restored[3:-3, 3:-3]), scaled(clean[3:-3, 3:-3]))
    restored[:3] = restored[-3:] = 0
    restored[:, :3] = restored[:, -3:] = 0
    assert psnr(scaled(restored), scaled(clean), Protocol(border=3)) == inner


def test_the_centre_is_cropped_to_a_multiple():
    restored, clean = pair()
    inner = np.s_[4:36, 4:52]
    assert psnr(scaled(restored), scaled(clean), Protocol(multiple=16)) == psnr(
        scaled(restored[inner]), scaled(clean[inner])
    )


@pytest.mark.parametrize(
    ("size", "multiple", "expected"),
    [
        ((40, 56), 1, (40, 56)),
        ((41, 59), 16, (32, 48)),
        ((32, 48), 16, (32, 48)),
        ((33, 47), 8, (32, 40)),
    ],
)
def test_a_centre_crop_takes_the_rest_from_both_sides_alike(size, multiple, expected):
    rows, columns = np.indices(size)
    cropped = center_crop(np.stack([rows, columns], axis=-1), multiple)
    assert cropped.shape[:2] == expected
    assert tuple(cropped[0, 0]) == tuple((side - kept) // 2 for side, kept in zip(size, expected))


def test_a_crop_comes_before_the_border():
    assert Protocol(border=4, multiple=16).prepare(scaled(eight_bit())).shape == (24, 40, 3)


@pytest.mark.parametrize("score", [psnr, ssim])
def test_images_of_two_sizes_are_refused(score):
    with pytest.raises(
        ValueError, match=r"one size are needed, got \(40, 56, 3\) and \(56, 40, 3\)"
    ):
        score(scaled(eight_bit()), scaled(eight_bit(56, 40)))


@pytest.mark.parametrize("protocol", [Protocol(border=20), Protocol(multiple=64)])
@pytest.mark.parametrize("score", [psnr, ssim])
def test_a_protocol_that_leaves_nothing_is_refused(score, protocol):
    with pytest.raises(
        ValueError,
        match=r"Nothing of a 56 x 40 image is left to compare under the protocol: RGB PSNR/SSIM",
    ):
        score(scaled(eight_bit()), scaled(eight_bit(seed=1)), protocol)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"color": "luma"}, "`color` must be rgb or y, got 'luma'"),
        ({"border": -1}, "`border` must be at least 0 and `multiple` at least 1, got -1 and 1"),
        ({"multiple": 0}, "got 0 and 0"),
    ],
)
def test_a_protocol_is_checked(options, message):
    with pytest.raises(ValueError, match=message):
        Protocol(**options)


def test_a_protocol_says_what_it_compares():
    assert str(RGB) == "RGB PSNR/SSIM of 8-bit images, mean over images"
    assert str(Protocol("y", 4, 16)) == (
        "Y PSNR/SSIM of 8-bit images, mean over images, 4 px border left out, centre crop to a "
        "multiple of 16"
    )


def test_average_precision_of_a_known_ranking():
    scores = np.array([[0.9], [0.8], [0.7], [0.1]])
    assert mean_average_precision(scores, [[True], [False], [True], [False]]) == pytest.approx(
        (1 + 2 / 3) / 2
    )
    assert mean_average_precision(scores, [[False], [False], [False], [True]]) == pytest.approx(
        1 / 4
    )


def test_labels_that_say_nothing_are_left_out_of_the_mean():
    scores = np.array([[0.9, 0.2, 0.3], [0.1, 0.4, 0.3]])
    assert mean_average_precision(scores, [[True, True, False], [False, True, False]]) == 1
    assert np.isnan(mean_average_precision(scores, np.ones((2, 3), bool)))
    # A tie is no merit.
    assert mean_average_precision(np.zeros((4, 1)), [[True], [False], [False], [False]]) == 1 / 4
