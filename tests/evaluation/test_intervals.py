"""Means, differences and how far they can be trusted."""

import numpy as np
import pytest

from textir.evaluation.intervals import capped, mean_interval, paired_difference, paired_interval


def test_equal_images_count_with_100_db():
    assert capped([np.inf, 30]).tolist() == [100, 30]
    assert paired_difference([np.inf, 40], [50, 40])[0] == 25


def test_an_interval_holds_the_mean_of_what_does_not_vary():
    assert paired_interval([0.5]) == (0.5, 0.5) and mean_interval([2, 2]) == (2, 2, 2)


def test_paired_differences_do_not_care_how_images_differ():
    draw = np.random.default_rng(0)
    images = draw.normal(30, 5, 50)
    mean, low, high = paired_difference(images + 1 + draw.normal(0, 0.1, 50), images)
    assert mean == pytest.approx(1, abs=0.05) and high - low < 0.1
    alone = mean_interval(images)
    assert alone[2] - alone[1] > 2
