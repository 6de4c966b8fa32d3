"""Training pictures: mixtures are read or refused, photos loaded or named, samples depend on seed and index alone."""

import logging
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from textir.data import CleanPhotos, DegradedCrops, parse_mixture


def save_photo(path, height: int = 40, width: int = 56, seed: int = 0) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.fixture
def folder(tmp_path):
    """Three photos, none of them square, one in a folder of its own."""
    save_photo(tmp_path / "photos" / "a.png", 40, 56, seed=1)
    save_photo(tmp_path / "photos" / "b.png", 72, 48, seed=2)
    save_photo(tmp_path / "photos" / "deep" / "er" / "c.bmp", 48, 80, seed=3)
    return tmp_path / "photos"


@pytest.fixture
def photos(folder):
    return CleanPhotos([folder], min_size=32)


def same(first: dict, second: dict) -> bool:
    return all(torch.equal(first[key], second[key]) for key in ("degraded", "clean", "task"))


# ---- mixtures


@pytest.mark.parametrize(
    ("recipes", "expected"),
    [
        (["noise:25"], [("noise:25", 1.0)]),
        (["noise:0..50@3", "rain:heavy"], [("noise:0..50", 0.75), ("rain:heavy", 0.25)]),
        (["clean@0.5", "rain+haze@1.5"], [("clean", 0.25), ("rain+haze", 0.75)]),
    ],
)
def test_weights_become_shares(recipes, expected):
    assert parse_mixture(recipes) == expected


@pytest.mark.parametrize(
    ("recipes", "message"),
    [
        ([], "At least one degradation recipe is needed, for instance `noise:0..50`"),
        (["noise:25@0"], "weight in 'noise:25@0' must be a positive number, as in `noise:25@2`"),
        (["noise:25@-1"], "must be a positive number"),
        (["noise:25@"], "must be a positive number"),
        (["noise:25@many"], "must be a positive number"),
        (["noise:25@nan"], "must be a positive number"),
        (["noise", "snow@2"], "Unknown degradation 'snow' in recipe 'snow'"),
    ],
)
def test_a_mixture_that_makes_no_sense_is_refused(recipes, message):
    with pytest.raises(ValueError, match=message):
        parse_mixture(recipes)


# ---- photos


def test_photos_of_nested_folders_are_kept_as_they_are(folder):
    photos = CleanPhotos([folder], min_size=40)
    assert [path.name for path in photos.paths] == ["a.png", "b.png", "c.bmp"] and len(photos) == 3
    assert [tuple(photo.shape) for photo in photos.photos] == [(3, 40, 56), (3, 72, 48), (3, 48, 80)]
    expected = np.asarray(Image.open(folder / "a.png"))
    np.testing.assert_array_equal(photos.photos[0].movedim(0, -1), expected)
    assert photos.photos[0].dtype == torch.uint8


def test_several_folders_are_joined(folder, tmp_path):
    save_photo(tmp_path / "more" / "d.png")
    assert [path.name for path in CleanPhotos([tmp_path / "more", folder / "deep"], min_size=32).paths] == ["d.png", "c.bmp"]


def test_files_that_cannot_be_used_are_all_named(folder):
    (folder / "broken.png").write_bytes(b"not a picture")
    save_photo(folder / "small.png", 20, 90)
    with pytest.raises(ValueError) as caught:
        CleanPhotos([folder], min_size=32)
    message = str(caught.value)
    assert message.startswith("2 files cannot be used (`skip_bad` leaves them out):")
    assert f"{folder / 'broken.png'} is not an image" in message
    assert f"{folder / 'small.png'} is 90 x 20, smaller than 32." in message


def test_files_that_cannot_be_used_are_left_out_and_logged(folder, caplog):
    (folder / "broken.png").write_bytes(b"not a picture")
    with caplog.at_level(logging.WARNING):
        photos = CleanPhotos([folder], min_size=32, skip_bad=True)
    assert len(photos) == 3
    assert "left out" in caplog.text and "broken.png" in caplog.text


@pytest.mark.parametrize("skip_bad", [False, True])
def test_a_folder_without_photos_is_refused(skip_bad, tmp_path):
    (tmp_path / "notes.txt").write_text("no photo")
    with pytest.raises(ValueError, match=f"No photos found in {tmp_path}"):
        CleanPhotos([tmp_path], skip_bad=skip_bad)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nowhere does not exist"):
        CleanPhotos([tmp_path / "nowhere"])


# ---- samples


def test_a_sample_has_the_size_asked_for_and_lies_in_range(photos):
    crops = DegradedCrops(photos, ["noise8:5..50", "rain", "downup"], crop_size=24, length=40)
    assert len(crops) == 40
    for index in range(40):
        sample = crops[index]
        assert sample["clean"].shape == sample["degraded"].shape == (3, 24, 24)
        assert sample["task"].dtype == torch.int64 and sample["task"].shape == ()
        for key in ("clean", "degraded"):
            assert sample[key].dtype == torch.float32 and sample[key].min() >= 0 and sample[key].max() <= 1
        assert not torch.equal(sample["clean"], sample["degraded"])


def test_the_same_seed_and_index_give_the_same_sample_whatever_was_asked_before(photos):
    recipes = ["noise:0..50@2", "rain", "haze"]
    first, second = (DegradedCrops(photos, recipes, 24, seed=5) for _ in range(2))
    later = [first[index] for index in (0, 1, 2, 7)][-1]
    torch.manual_seed(99)
    assert same(second[7], later)


@pytest.mark.parametrize("seed", [1, 2, 20261123, 2**31])
def test_another_seed_gives_another_stream(photos, seed):
    first, second = DegradedCrops(photos, ["noise:25"], 24, seed=0), DegradedCrops(photos, ["noise:25"], 24, seed=seed)
    assert not any(torch.equal(first[index]["degraded"], second[index]["degraded"]) for index in range(4))


def test_neighbouring_seeds_share_no_sample(photos):
    streams = [DegradedCrops(photos, ["noise:25"], 24, seed=seed) for seed in range(3)]
    samples = [stream[index]["degraded"].numpy().tobytes() for stream in streams for index in range(10)]
    assert len(set(samples)) == 30


def test_different_indices_differ(photos):
    crops = DegradedCrops(photos, ["clean"], 24)
    samples = {crops[index]["clean"].numpy().tobytes() for index in range(50)}
    assert len(samples) == 50


def test_workers_change_nothing(photos):
    crops = DegradedCrops(photos, ["noise:0..50", "rain"], 24, length=6, seed=3)
    batches = [list(DataLoader(crops, batch_size=3, num_workers=workers)) for workers in (0, 1)]
    assert len(batches[0]) == len(batches[1]) == 2
    assert all(same(alone, worker) for alone, worker in zip(*batches))


def test_the_task_tells_the_recipe_and_shares_are_respected(photos):
    crops = DegradedCrops(photos, ["clean@3", "downup:8@1"], 24, max_reduction=1, length=400)
    tasks = []
    for index in range(400):
        sample = crops[index]
        tasks.append(int(sample["task"]))
        assert torch.equal(sample["clean"], sample["degraded"]) == (tasks[-1] == 0)
    deviation = math.sqrt(400 * 0.75 * 0.25)
    assert abs(tasks.count(0) - 300) < 4 * deviation


def test_crops_are_cut_from_the_photos_and_half_of_them_mirrored(folder):
    photos = CleanPhotos([folder / "deep"], min_size=32)
    pixels = photos.photos[0].float() / 255
    crops = DegradedCrops(photos, ["clean"], 24, max_reduction=1)
    windows = pixels.unfold(1, 24, 1).unfold(2, 24, 1)  # (3, tops, lefts, 24, 24)
    mirrored, places = [], set()
    for index in range(60):
        clean = crops[index]["clean"][:, None, None]
        found = [(windows == candidate).all(-1).all(-1).all(0) for candidate in (clean, clean.flip(-1))]
        assert sum(f.sum() for f in found) == 1
        mirrored.append(bool(found[1].any()))
        places.add(tuple((found[0] | found[1]).nonzero()[0].tolist()))
    assert 15 < sum(mirrored) < 45
    assert len(places) > 50


def test_some_crops_are_reduced_when_reduction_is_allowed(folder):
    photos = CleanPhotos([folder / "deep"], min_size=32)
    deviations = {
        reduction: [DegradedCrops(photos, ["clean"], 24, max_reduction=reduction)[index]["clean"].std() for index in range(40)]
        for reduction in (1, 2)
    }
    whole = min(deviations[1])
    smoothed = sum(bool(deviation < 0.9 * whole) for deviation in deviations[2])
    assert 5 < smoothed < 35


def test_a_photo_as_small_as_the_crop_is_taken_whole(tmp_path):
    pixels = save_photo(tmp_path / "only.png", 24, 24)
    sample = DegradedCrops(CleanPhotos([tmp_path], min_size=24), ["clean"], 24)[0]["clean"]
    expected = torch.from_numpy(pixels).movedim(-1, 0) / 255
    assert torch.equal(sample, expected) or torch.equal(sample, expected.flip(-1))


def test_a_crop_larger_than_a_photo_is_refused(tmp_path):
    save_photo(tmp_path / "only.png", 24, 40)
    crops = DegradedCrops(CleanPhotos([tmp_path], min_size=16), ["clean"], 32)
    with pytest.raises(ValueError, match="A photo of 40 x 24 is smaller than the crop of 32"):
        crops[0]
