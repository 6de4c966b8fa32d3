"""PSNR and SSIM as the field reports them, under a protocol (scikit-image does the arithmetic)."""

import numpy as np
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from textir.evaluation.protocol import Protocol, center_crop

__all__ = ["Protocol", "center_crop", "mean_average_precision", "psnr", "ssim"]

GAUSSIAN = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}


def psnr(restored: np.ndarray, clean: np.ndarray, protocol: Protocol = Protocol()) -> float:
    """Peak signal-to-noise ratio in dB of two `(H, W, 3)` images in [0, 1]; infinite if they are
    equal."""
    restored, clean = _prepared(restored, clean, protocol)
    if np.array_equal(restored, clean):
        return float("inf")
    return float(peak_signal_noise_ratio(clean, restored, data_range=1.0))


def ssim(restored: np.ndarray, clean: np.ndarray, protocol: Protocol = Protocol()) -> float:
    """Structural similarity (Wang et al. 2004) of two `(H, W, 3)` images in [0, 1]."""
    restored, clean = _prepared(restored, clean, protocol)
    window = GAUSSIAN if protocol.window == "gaussian" else {}
    return float(structural_similarity(clean, restored, channel_axis=-1, data_range=1.0, **window))


def mean_average_precision(scores, present) -> float:
    """Mean over labels of the average precision: of how many images ranked as high as each true one
    the label is true.

    Args:
        scores: `(images, labels)`, higher where a label is more likely.
        present: `(images, labels)`, whether it is true; labels without a true image, or with no
            other, are left out.

    Returns:
        a value in [0, 1], NaN if no label is left.
    """
    scores, present = np.asarray(scores, float), np.asarray(present, bool)
    values = []
    for score, true in zip(scores.T, present.T):
        if 0 < true.sum() < len(true):
            # For each true image those ranked as high.
            at_least = score[None] >= score[true][:, None]
            values.append(((at_least & true).sum(1) / at_least.sum(1)).mean())
    return float(np.mean(values)) if values else float("nan")


def _prepared(
    restored: np.ndarray, clean: np.ndarray, protocol: Protocol
) -> tuple[np.ndarray, np.ndarray]:
    if restored.shape != clean.shape:
        raise ValueError(f"Images of one size are needed, got {restored.shape} and {clean.shape}.")
    return protocol.prepare(restored), protocol.prepare(clean)
