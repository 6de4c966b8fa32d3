"""Estimates of how long work will take."""

import pytest

from textir.space.pace import Pace


def test_nothing_is_said_before_something_is_known():
    assert Pace().estimate((1000, 1000)) is None


def test_a_tiny_photo_does_not_make_large_ones_look_slow():
    pace = Pace()
    pace.learn((128, 128), 0.05)
    assert pace.estimate((1000, 1000)) == pytest.approx(3.05, rel=0.01)
    pace.learn((1000, 1000), 4.0, base=0.5)
    pace.learn((64, 64), 0.5, base=0.5)
    assert pace.estimate((3000, 4000)) == pytest.approx(48.5)
    assert pace.estimate((1000, 1000), runs=2) == pytest.approx(8.5)
