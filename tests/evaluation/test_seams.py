"""Results in tiles against that of the whole photo."""

import pytest
import torch

from pipelines import TextGuidedRestorationPipeline
from pipelines.pipeline_text_guided_restoration import apply_tiled
from tests.tools import tiny
from textir.evaluation.seams import compare_tiles, seams


@pytest.mark.parametrize("size", [(100, 150), (64, 200), (230, 64)])
def test_seams_lie_where_tiles_overlap(size):
    counts = torch.zeros(1, 1, *size)

    def count(part, place):
        place += 1  # a view of the counts
        return part

    apply_tiled(count, torch.zeros(1, 1, *size), counts, tile=64, overlap=16)
    assert torch.equal(counts[0, 0] > 1, seams(*size, tile=64, overlap=16))


def test_differences_are_those_of_both_results():
    pipe = TextGuidedRestorationPipeline(restorer=tiny.restorer(guided=False))
    pipe.set_progress_bar_config(disable=True)
    image = tiny.image(70, 150)
    (found,) = compare_tiles(pipe, image, [64], "noise:10", seed=3)
    assert found.tile == 64 and 0 <= found.mean <= found.largest
    with pytest.raises(ValueError, match="holds all of this photo of 150 x 70"):
        compare_tiles(pipe, image, [64, 160])
