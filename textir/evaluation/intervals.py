"""Means over images and how far they can be trusted, in one place for all that is measured."""

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 10_000
CEILING = 100.0
"""PSNR in dB that equal images count with, so that one of them makes no mean infinite."""


def capped(values: ArrayLike) -> np.ndarray:
    """Scores with infinite and huge ones at `CEILING`."""
    return np.minimum(np.asarray(values, float), CEILING)


def paired_interval(gains: ArrayLike, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Bootstrap interval of the mean of some numbers, one for each photo, such as paired
    differences (Efron, 1979).

    Args:
        gains: at least one.
        level: of the interval.
        seed: of the resampling.
    """
    values = np.asarray(gains, float)
    places = np.random.default_rng(seed).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(values[places].mean(1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean_interval(values: ArrayLike) -> tuple[float, float, float]:
    """Mean, and the bounds of its 95 % interval."""
    return float(np.mean(values)), *paired_interval(values)


def paired_difference(first: ArrayLike, second: ArrayLike) -> tuple[float, float, float]:
    """How much higher the first scores are than the second, photo by photo: the mean, and the
    bounds of its 95 % interval."""
    gains = capped(first) - capped(second)
    return float(gains.mean()), *paired_interval(gains)
