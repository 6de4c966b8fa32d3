"""Damaged files are read or refused with a message, whatever the damage; what is read can be
written."""

import random

import numpy as np
import pytest

from tests.fuzz.mutations import mutate, seeds
from textir.images.picture import UnusableImageError, encode_picture, read_picture


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("count", [1500, pytest.param(20_000, marks=pytest.mark.slow)])
def test_damaged_files_are_read_or_refused(count):
    generator, files = random.Random(0), seeds()
    read = 0
    for _ in range(count):
        try:
            picture = read_picture(mutate(generator.choice(files), generator), name="upload")
        except ValueError as error:
            assert str(error).startswith("upload ")
            continue
        read += 1
        try:
            again = read_picture(encode_picture(picture, ".tif"))
        except ValueError as error:  # a damaged profile or text may not fit a TIFF
            assert not isinstance(error, UnusableImageError), error
            continue
        assert again.pixels.shape == picture.pixels.shape
        assert np.abs(again.pixels - picture.pixels).mean() < 0.02
    assert 0.1 * count < read < 0.9 * count
