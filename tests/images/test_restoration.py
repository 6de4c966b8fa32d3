"""Pictures go through a pipeline with nothing lost, and many pictures one after the other."""

import numpy as np
import pytest

from pipelines import TextGuidedRestorationPipeline
from tests.tools import tiny
from textir.images.jobs import plan_jobs, restore_files
from textir.images.picture import Picture, read_picture, write_picture
from textir.images.restoration import restore_picture
from textir.tiling import bytes_per_pixel, choose_tile


@pytest.fixture(scope="module")
def pipe():
    return TextGuidedRestorationPipeline(restorer=tiny.restorer(guided=False))


def picture(**options) -> Picture:
    return Picture(tiny.image(24, 40)[0].movedim(0, -1).contiguous().numpy(), **options)


def test_depth_alpha_and_profile_pass_through(pipe):
    alpha = np.linspace(0, 1, 24 * 40, dtype=np.float32).reshape(24, 40)
    restored, _ = restore_picture(pipe, picture(alpha=alpha, bits=16, icc_profile=b"profile"))
    assert (
        restored.bits == 16
        and restored.icc_profile == b"profile"
        and np.array_equal(restored.alpha, alpha)
    )


def test_sixteen_bits_reach_the_network_and_the_file(pipe, tmp_path):
    """A 16-bit result holds far more than 256 levels."""
    write_picture(tmp_path / "in.png", picture(bits=16))
    restored, _ = restore_picture(pipe, read_picture(tmp_path / "in.png"))
    write_picture(tmp_path / "out.png", restored)
    assert len(np.unique(read_picture(tmp_path / "out.png").pixels)) > 1000


def test_a_pipeline_without_restorer_gives_the_guidance():
    restored, output = restore_picture(tiny.pipeline(restorer=None, matcher=None), picture())
    assert restored.pixels.shape[:2] == output.images.shape[-2:]


def test_one_bad_file_does_not_stop_the_others(pipe, tmp_path):
    for name in ("a", "c"):
        write_picture(tmp_path / "in" / f"{name}.png", picture())
    (tmp_path / "in" / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    jobs = plan_jobs([tmp_path / "in"], tmp_path / "out")
    outcomes = list(restore_files(jobs, lambda image: restore_picture(pipe, image)))
    assert [target is not None for _, target, _ in outcomes] == [True, False, True]
    assert "b.png" in outcomes[1][2]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "c.png"]


def test_the_whole_image_is_taken_where_memory_allows():
    restorer = tiny.restorer(guided=False)
    assert choose_tile(24, 40, restorer, available=10**9) is None


def test_memory_is_measured_once_and_unseen_by_those_who_watch_the_restorer():
    restorer, calls, blocks = tiny.restorer(guided=False), [], []
    restorer.register_forward_pre_hook(lambda *_: calls.append(1))
    next(restorer.children()).register_forward_hook(lambda *_: blocks.append(1))
    assert bytes_per_pixel(restorer) == bytes_per_pixel(restorer) > 0
    assert (len(calls), len(blocks)) == (0, 1)


def test_tiles_shrink_with_memory_but_stay_useful():
    restorer = tiny.restorer(guided=False)
    need = bytes_per_pixel(restorer)
    tile = choose_tile(2000, 3000, restorer, available=int(2 * need * 640 * 640))
    assert tile in (576, 640)
    assert choose_tile(2000, 3000, restorer, available=1) == 256
