"""Many photos: what is taken, where results go, and that no file ends a batch."""

import os
import stat

import numpy as np
import pytest
from PIL import Image

from textir.images.jobs import list_left_out, plan_jobs, restore_files
from textir.images.picture import read_picture, write_picture
from textir.machine import PART_OF_THIS_MACHINE, sweep, writing


def photo(path, kind=None, size=(24, 20)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "teal").save(path, kind)
    return path


def unchanged(picture):
    return picture, None


def names(jobs):
    return [job.source.name for job in jobs]


def test_all_formats_that_can_be_read_are_taken(tmp_path):
    for name, kind in (
        ("a.jpg", None),
        ("b.avif", None),
        ("c.jp2", None),
        ("e.jfif", "JPEG"),
        ("f.jpe", "JPEG"),
        ("g.tga", None),
    ):
        photo(tmp_path / "in" / name, kind)
    jobs = plan_jobs([tmp_path / "in"], tmp_path / "out")
    assert names(jobs) == ["a.jpg", "b.avif", "c.jp2", "e.jfif", "f.jpe", "g.tga"]
    results = list(restore_files(jobs, unchanged))
    assert [target.name for _, target, _ in results] == names(jobs)
    assert all(read_picture(target).pixels.shape == (20, 24, 3) for _, target, _ in results)


def test_files_that_are_not_taken_are_known(tmp_path):
    photo(tmp_path / "a.png")
    for name in ("b.heic", "notes.txt", ".hidden"):
        (tmp_path / name).write_text("x")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "words.json").write_text("{}")
    left = list_left_out([tmp_path], tmp_path / "out", recursive=True)
    assert [path.name for path in left] == ["b.heic", "notes.txt"]
    assert list_left_out([tmp_path / "a.png"], tmp_path / "out") == []


def test_results_below_the_input_are_not_restored_again(tmp_path):
    photo(tmp_path / "a.png")
    for _ in range(2):
        jobs = plan_jobs([tmp_path], tmp_path / "restored", recursive=True)
        assert names(jobs) == ["a.png"]
        assert [problem for *_, problem in restore_files(jobs, unchanged)] == [None]


def test_an_output_with_the_suffix_of_an_image_is_a_file(tmp_path):
    jobs = plan_jobs([photo(tmp_path / "a.png")], tmp_path / "new" / "restored.jpg")
    ((_, target, problem),) = restore_files(jobs, unchanged)
    assert problem is None and target == tmp_path / "new" / "restored.jpg" and target.is_file()
    photo(tmp_path / "b.png")
    with pytest.raises(ValueError, match="names one file, and the input is not one photo"):
        plan_jobs([tmp_path], tmp_path / "other.png")
    with pytest.raises(ValueError, match="overwritten by its own result"):
        plan_jobs([tmp_path / "a.png"], tmp_path / "a.png")


def test_patterns_and_the_home_folder_are_resolved(tmp_path, monkeypatch):
    photo(tmp_path / "a.png")
    photo(tmp_path / "b.jpg")
    assert names(plan_jobs([tmp_path / "*.png"], tmp_path / "out")) == ["a.png"]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert names(plan_jobs(["~/b.jpg"], tmp_path / "out")) == ["b.jpg"]
    with pytest.raises(ValueError, match="Nothing matches"):
        plan_jobs([tmp_path / "*.webp"], tmp_path / "out")
    with pytest.raises(ValueError, match="address of the web"):
        plan_jobs(["https://example.org/a.jpg"], tmp_path / "out")


@pytest.mark.parametrize("error", [TypeError, KeyError, ZeroDivisionError, AssertionError])
def test_no_file_ends_a_batch(tmp_path, error):
    jobs = plan_jobs([photo(tmp_path / "a.png"), photo(tmp_path / "b.png")], tmp_path / "out")
    calls = []

    def restore(picture):
        calls.append(picture)
        if len(calls) == 1:
            raise error("odd")
        return picture, None

    problems = [problem for *_, problem in restore_files(jobs, restore)]
    assert "odd" in problems[0] and problems[1] is None


class Output:
    """What a pipeline tells of a photo that it left alone."""

    guidance = "none"
    guidance_strength = removed = change = degradation = severity = nearest_tokens = None
    understood = tags = None
    guidance_images = match_confidence = influence = None


def test_intermediates_of_twins_and_of_long_names_have_folders_of_their_own(tmp_path):
    for name in ("two.jpg", "two.png", "one.png", f"{'n' * 246}.png"):
        photo(tmp_path / "in" / name)
    jobs = plan_jobs([tmp_path / "in"], tmp_path / "out")
    results = list(restore_files(jobs, lambda picture: (picture, Output()), intermediates=True))
    assert [problem for *_, problem in results] == [None] * 4
    folders = sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir())
    assert folders[1:] == [
        "one.intermediates",
        "two.jpg.intermediates",
        "two.png.intermediates",
    ]
    assert folders[0].endswith(".intermediates") and len(folders[0]) == 200


def test_results_have_the_rights_that_the_user_gives_to_new_files(tmp_path):
    before = os.umask(0o077)
    try:
        path = write_picture(tmp_path / "a.png", read_picture(photo(tmp_path / "b.png")))
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_what_a_killed_process_left_is_taken_away(tmp_path):
    nobody = 2**22 + 1  # beyond the numbers that Linux gives to processes
    left = tmp_path / f"{PART_OF_THIS_MACHINE}{nobody}-abcd.part"
    mine = tmp_path / f"{PART_OF_THIS_MACHINE}{os.getpid()}-abcd.part"
    for path in (left, mine):
        path.write_text("half")
    sweep.cache_clear()
    with writing(tmp_path / "whole.txt") as temporary:
        temporary.write_text("whole")
    assert not left.exists() and mine.exists() and (tmp_path / "whole.txt").read_text() == "whole"


def test_pixels_of_a_photo_survive_every_lossless_format(tmp_path):
    picture = read_picture(photo(tmp_path / "a.png"))
    for suffix in (".png", ".tif", ".webp", ".bmp", ".tga", ".jp2", ".ppm"):
        again = read_picture(write_picture(tmp_path / f"b{suffix}", picture))
        np.testing.assert_array_equal(again.pixels, picture.pixels, suffix)
