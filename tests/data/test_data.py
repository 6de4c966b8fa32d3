"""Training pictures: sources are found or refused, photos read or named, samples depend on seed and
index alone."""

import json
import logging
import math
import os
import pickle
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from textir.data.layouts import Entry
from textir.data.photos import (
    HubPhotos,
    Images,
    Photos,
    entry_names,
    find_entries,
    parse_source,
)
from textir.data.samples import Sampler, StreamedCrops, TrainingCrops, sample_generator, severities
from textir.degradations import LABELS, RECIPES, Mixture


def random_pixels(height: int = 40, width: int = 56, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save_photo(path: Path, height: int = 40, width: int = 56, seed: int = 0) -> np.ndarray:
    pixels = random_pixels(height, width, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def scene(height: int, width: int, blue: int) -> np.ndarray:
    """A picture that tells where each pixel is (red: row, green: column) and what it is of
    (blue)."""
    rows, columns = np.indices((height, width))
    return np.stack([rows, columns, np.full_like(rows, blue)], axis=-1).astype(np.uint8)


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(
        torch.allclose(first[key], second[key], rtol=0, atol=0, equal_nan=True) for key in first
    )


@pytest.fixture
def folder(tmp_path):
    """Three photos, none of them square, one in a folder of its own."""
    save_photo(tmp_path / "photos" / "a.png", 40, 56, seed=1)
    save_photo(tmp_path / "photos" / "b.png", 72, 48, seed=2)
    save_photo(tmp_path / "photos" / "deep" / "er" / "c.bmp", 48, 80, seed=3)
    return tmp_path / "photos"


@pytest.fixture
def photos(folder):
    return Photos(find_entries(folder), min_size=32)


@pytest.fixture
def pairs(tmp_path):
    """`input/`, `target/` and `guidance/` with two images each."""
    for name in ("b", "a"):
        for part, seed in (("input", 1), ("target", 2), ("guidance", 3)):
            save_photo(tmp_path / "pairs" / part / f"{name}.png", seed=seed + ord(name))
    return tmp_path / "pairs"


# ---- mixtures and sources


@pytest.mark.parametrize(
    ("recipes", "expected"),
    [
        (["noise:25"], [("noise:25", 1.0)]),
        (["noise:0..50@3", "rain:heavy"], [("noise:0..50", 0.75), ("rain:heavy", 0.25)]),
        (["clean@0.5", "rain+haze@1.5"], [("clean", 0.25), ("rain+haze", 0.75)]),
    ],
)
def test_weights_become_shares(recipes, expected):
    mixture = Mixture.parse(recipes)
    assert [
        (str(recipe), share) for recipe, share in zip(mixture.recipes, mixture.shares)
    ] == expected


@pytest.mark.parametrize(
    ("recipes", "message"),
    [
        ([], "At least one degradation recipe is needed, for instance `noise:0..50`"),
        (["noise:25@0"], "weight in 'noise:25@0' must be a positive number, as in `noise:25@2`"),
        (["noise:25@-1"], "must be a positive number"),
        (["noise:25@"], "must be a positive number"),
        (["noise:25@many"], "must be a positive number"),
        (["noise:25@nan"], "must be a positive number"),
        (["noise:25@inf", "rain"], "must be a positive number"),
        (["noise", "snow@2"], "Unknown degradation 'snow' in recipe 'snow'"),
    ],
)
def test_a_mixture_that_makes_no_sense_is_refused(recipes, message):
    with pytest.raises(ValueError, match=message):
        Mixture.parse(recipes)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/data/photos", ("/data/photos", None)),
        ("/data/photos@2", ("/data/photos", 2.0)),
        ("gopro:/data/GoPro@0.5", ("gopro:/data/GoPro", 0.5)),
        ("gopro:/data/GoPro@.5", ("gopro:/data/GoPro", 0.5)),
        ("/data/me@home", ("/data/me@home", None)),
        ("/data/me@home@3", ("/data/me@home", 3.0)),
        ("/data/2@2x/photos", ("/data/2@2x/photos", None)),
    ],
)
def test_a_source_may_have_a_weight(text, expected):
    assert parse_source(text) == expected


@pytest.mark.parametrize("weight", ["0", "0.0", ".0"])
def test_a_weight_of_nothing_is_refused(weight):
    with pytest.raises(
        ValueError,
        match=rf"weight in 'photos@{weight}' must be a positive number, as in `photos@2`",
    ):
        parse_source(f"photos@{weight}")


# ---- which files


def test_photos_of_nested_folders_are_found_in_order(folder):
    (folder / "notes.txt").write_text("no photo")
    assert find_entries(folder) == [
        Entry(folder / "a.png"),
        Entry(folder / "b.png"),
        Entry(folder / "deep/er/c.bmp"),
    ]
    assert find_entries(str(folder)) == find_entries(folder)


def test_pairs_are_joined_by_name_with_the_guidance_beside_them(pairs):
    assert find_entries(pairs) == [
        Entry(
            pairs / f"target/{name}.png",
            (pairs / f"input/{name}.png",),
            pairs / f"guidance/{name}.png",
        )
        for name in "ab"
    ]


def test_twins_may_be_files_of_different_kinds(pairs):
    (pairs / "input/a.png").rename(pairs / "input/a.bmp")
    assert find_entries(pairs)[0].degraded == (pairs / "input/a.bmp",)


def test_pairs_need_no_guidance(pairs):
    (pairs / "guidance").rename(pairs / "elsewhere")
    assert [entry.guidance for entry in find_entries(pairs)] == [None, None]


def test_another_folder_of_guidance_comes_before_that_beside_the_pairs(pairs, tmp_path):
    for name in "ab":
        save_photo(tmp_path / "other" / f"{name}.jpg")
    entries = find_entries(pairs, guidance_dir=tmp_path / "other")
    assert [entry.guidance for entry in entries] == [
        tmp_path / "other" / f"{name}.jpg" for name in "ab"
    ]


@pytest.mark.parametrize("beside", [True, False])
def test_an_image_without_guidance_is_named(beside, pairs):
    guidance = (pairs / "guidance").rename(pairs / ("guidance" if beside else "g"))
    (guidance / "b.png").unlink()
    with pytest.raises(
        ValueError, match=rf"1 images of {pairs} have no guidance in {guidance}: b\."
    ):
        find_entries(pairs, guidance_dir=None if beside else guidance)


@pytest.mark.parametrize("lacking", ["input", "target"])
def test_an_image_without_a_twin_is_named(lacking, pairs):
    (pairs / lacking / "b.png").unlink()
    with pytest.raises(
        ValueError, match=rf"1 images of {pairs} have no twin of the same name: b\."
    ):
        find_entries(pairs)


@pytest.mark.parametrize("lacking", ["input", "target"])
def test_one_of_the_two_folders_is_not_enough(lacking, pairs):
    (pairs / lacking).rename(pairs / "elsewhere")
    with pytest.raises(
        ValueError, match=f"has no folder {lacking}; pairs lie in input/ and target/"
    ):
        find_entries(pairs)


def test_pairs_without_images_are_refused(pairs):
    for name in "ab":
        (pairs / "input" / f"{name}.png").unlink()
    with pytest.raises(ValueError, match=f"No images in {pairs / 'input'}"):
        find_entries(pairs)


def test_two_images_of_one_name_in_a_folder_of_pairs_are_refused(pairs):
    save_photo(pairs / "input/a.bmp")
    with pytest.raises(ValueError, match=r"\ba\b"):
        find_entries(pairs)


def test_a_folder_without_photos_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no photo")
    with pytest.raises(ValueError, match=f"No photos found in {tmp_path}"):
        find_entries(tmp_path)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nowhere does not exist"):
        find_entries(tmp_path / "nowhere")


def test_an_unknown_benchmark_is_told_which_are_known(tmp_path):
    with pytest.raises(
        ValueError, match=f"Unknown benchmark 'gropro' in 'gropro:{tmp_path}'; known are .*gopro"
    ):
        find_entries(f"gropro:{tmp_path}")


def test_a_folder_may_have_a_colon_in_its_name(tmp_path):
    save_photo(tmp_path / "take:2" / "a.png")
    assert find_entries(tmp_path / "take:2") == [Entry(tmp_path / "take:2" / "a.png")]


def make_gopro(root: Path) -> list[str]:
    names = [
        f"{scene}_blur_00004{i}" for scene in ("GOPR0372_07_00", "GOPR0384_11_00") for i in (7, 8)
    ]
    for name in names:
        place, _, number = name.rpartition("_blur_")
        for kind in ("blur", "sharp"):
            save_photo(root / "train" / place / kind / f"{number}.png", seed=len(place))
    return names


def test_guidance_of_a_benchmark_goes_by_the_names_that_entries_are_given(tmp_path):
    names = make_gopro(tmp_path / "GoPro")
    entries = find_entries(f"gopro:{tmp_path / 'GoPro'}")
    assert entry_names(entries) == names
    for name in names:
        save_photo(tmp_path / "guidance" / f"{name}.png")
    guided = find_entries(f"gopro:{tmp_path / 'GoPro'}", guidance_dir=tmp_path / "guidance")
    assert [entry.guidance.stem for entry in guided] == names
    assert [entry[:2] for entry in guided] == [entry[:2] for entry in entries]


def test_names_are_those_of_the_files_where_these_differ(folder, pairs):
    assert entry_names(find_entries(folder)) == ["a", "b", "c"]
    assert entry_names(find_entries(pairs)) == ["a", "b"]


@pytest.mark.parametrize(
    "files",
    [
        ["x/a.png", "y/a.png", "b.png"],
        ["x/deep/a.png", "x/a.png"],
        ["x/a.png", "x/a.jpg"],
        ["x_y/a.png", "x/y_a.png", "z/a.png"],
    ],
)
def test_every_entry_has_a_name_of_its_own_that_can_be_a_file_name(files, tmp_path):
    for file in files:
        save_photo(tmp_path / file)
    names = entry_names(find_entries(tmp_path))
    assert len(set(names)) == len(files)
    assert not any("/" in name for name in names)


# ---- their pixels


def test_pixels_are_those_of_the_files(pairs):
    images = Photos(find_entries(pairs))[0]
    for part, pixels in (
        ("target", images.clean),
        ("input", images.degraded),
        ("guidance", images.guidance),
    ):
        np.testing.assert_array_equal(pixels, np.asarray(Image.open(pairs / part / "a.png")))
        assert pixels.dtype == np.uint8


def test_clean_photos_have_neither_twin_nor_guidance(photos):
    assert len(photos) == 3
    assert [image.clean.shape for image in (photos[0], photos[1], photos[2])] == [
        (40, 56, 3),
        (72, 48, 3),
        (48, 80, 3),
    ]
    assert photos[0].degraded is None and photos[0].guidance is None


def test_sixteen_bits_are_kept(pairs):
    deep = np.random.default_rng(0).integers(0, 65536, (40, 56, 3), dtype=np.uint16)
    (pairs / "input/a.png").write_bytes(imagecodecs.png_encode(deep))
    images = Photos(find_entries(pairs))[0]
    assert images.degraded.dtype == np.uint16 and images.clean.dtype == np.uint8
    np.testing.assert_array_equal(images.degraded, deep)
    sample = Sampler(crop_size=40)(images, sample_generator(0, 0))
    rows = torch.from_numpy(deep.astype(np.float32) / 65535).movedim(-1, 0)
    assert any(
        torch.equal(sample["degraded"], window)
        for left in range(17)
        for window in either_way(rows[:, :, left : left + 40])
    )


def either_way(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return image, image.flip(-1)


def test_two_views_are_joined_along_their_channels(pairs):
    target, left, right = pairs / "target/a.png", pairs / "input/a.png", pairs / "input/b.png"
    images = Photos([Entry(target, (left, right))])[0]
    assert images.degraded.shape == (40, 56, 6)
    for view, file in ((images.degraded[..., :3], left), (images.degraded[..., 3:], right)):
        np.testing.assert_array_equal(view, np.asarray(Image.open(file)))


def test_two_views_of_different_depth_are_seen_at_one_scale(pairs):
    target, left, right = (pairs / name for name in ("target/a.png", "input/a.png", "input/b.png"))
    right.write_bytes(imagecodecs.png_encode(np.asarray(Image.open(left)).astype(np.uint16) * 257))
    sample = Sampler(crop_size=24)(
        Photos([Entry(target, (left, right))])[0], sample_generator(0, 0)
    )
    torch.testing.assert_close(sample["degraded"][:3], sample["degraded"][3:])


def test_files_that_cannot_be_used_are_all_named(pairs):
    (pairs / "input/broken.png").write_bytes(b"not a picture")
    save_photo(pairs / "input/small.png", 20, 90)
    save_photo(pairs / "input/large.png", 41, 56)
    save_photo(pairs / "input/unlit.png")
    for name, size in (
        ("broken", (40, 56)),
        ("small", (20, 90)),
        ("large", (40, 56)),
        ("unlit", (40, 56)),
    ):
        save_photo(pairs / f"target/{name}.png", *size)
        save_photo(pairs / f"guidance/{name}.png")
    (pairs / "guidance/unlit.png").write_bytes(b"")
    with pytest.raises(ValueError) as caught:
        Photos(find_entries(pairs), min_size=32)
    lines = str(caught.value).splitlines()
    assert lines[0] == "4 images cannot be used (`--skip_bad` leaves them out):" and len(lines) == 5
    assert lines[1].startswith(f"{pairs / 'input/broken.png'} is not an image")
    assert (
        lines[2]
        == f"{pairs / 'input/large.png'} is 56 x 41 but its twin {pairs / 'target/large.png'} is "
        "56 x 40."
    )
    assert lines[3] == f"{pairs / 'target/small.png'} is 90 x 20, smaller than 32."
    assert lines[4] == f"{pairs / 'guidance/unlit.png'} is empty (0 bytes)."


def test_two_views_of_different_size_are_named(pairs):
    save_photo(pairs / "input/b.png", 40, 57)
    with pytest.raises(
        ValueError,
        match=rf"The views {pairs / 'input/a.png'} and {pairs / 'input/b.png'} differ in size",
    ):
        Photos([Entry(pairs / "target/a.png", (pairs / "input/a.png", pairs / "input/b.png"))])


def test_images_that_cannot_be_used_are_left_out_and_logged(folder, caplog):
    (folder / "broken.png").write_bytes(b"not a picture")
    with caplog.at_level(logging.WARNING):
        photos = Photos(find_entries(folder), min_size=45, skip_bad=True)
    assert [entry.name for entry in photos.entries] == ["b", "c"]
    assert (
        caplog.text.count("left out") == 2
        and "broken.png" in caplog.text
        and "a.png is 56 x 40" in caplog.text
    )
    assert [photos[i].clean.shape for i in range(len(photos))] == [(72, 48, 3), (48, 80, 3)]


def test_something_must_be_left(folder):
    with pytest.raises(ValueError, match="None of 3 images can be used"):
        Photos(find_entries(folder), min_size=500, skip_bad=True)


def crops_of(*sources, recipes=(), size=24, seed=0, weights=None, **options) -> TrainingCrops:
    return TrainingCrops(sources, Sampler(recipes, size, **options), weights, seed=seed)


@pytest.mark.parametrize("memory", [0, 40 * 56 * 3, 10**9])
def test_memory_changes_no_sample(memory, folder, photos):
    limited = Photos(find_entries(folder), min_size=32, memory=memory)
    kept = sum(images.clean.nbytes for images in limited.kept.values())
    assert kept <= memory and (memory < 10**9 or len(limited.kept) == 3)
    for index in range(8):
        assert same(
            crops_of(limited, recipes=["noise:25"])[index],
            crops_of(photos, recipes=["noise:25"])[index],
        )


def spoil(file: Path) -> None:
    """Damage a file so that only reading it shows it."""
    before = file.stat()
    file.write_bytes(b"x" * before.st_size)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_images_that_are_on_record_are_not_decoded_again(folder, tmp_path):
    entries, record = find_entries(folder), tmp_path / "run" / "checked.json"
    Photos(entries, memory=0, record=record)
    spoil(folder / "a.png")
    assert len(Photos(entries, memory=0, record=record)) == 3
    with pytest.raises(ValueError, match=r"1 images cannot be used.*\n.*a\.png"):
        Photos(entries, memory=0)


def test_what_changed_since_it_was_recorded_is_checked_again(folder, tmp_path):
    entries, record = find_entries(folder), tmp_path / "checked.json"
    Photos(entries, memory=0, record=record)
    with pytest.raises(ValueError, match=r"a\.png is 56 x 40, smaller than 45"):
        Photos(entries, min_size=45, memory=0, record=record)
    save_photo(folder / "a.png", 10, 70)
    with pytest.raises(ValueError, match=r"a\.png is 70 x 10, smaller than 16"):
        Photos(entries, memory=0, record=record)


def test_a_bad_image_is_never_recorded_as_good(folder, tmp_path):
    (folder / "broken.png").write_bytes(b"not a picture")
    entries, record = find_entries(folder), tmp_path / "checked.json"
    for _ in range(2):
        assert len(Photos(entries, memory=0, record=record, skip_bad=True)) == 3
    with pytest.raises(ValueError, match=r"broken\.png"):
        Photos(entries, memory=0, record=record)


@pytest.mark.parametrize("content", ["", '["cut sho', "\x00"])
def test_a_damaged_record_is_written_anew(content, folder, tmp_path):
    record = tmp_path / "checked.json"
    record.write_text(content)
    assert len(Photos(find_entries(folder), memory=0, record=record)) == 3
    assert len(json.loads(record.read_text())) == 3


@pytest.mark.parametrize("memory", [0, None])
def test_photos_can_be_sent_to_another_process(memory, folder):
    photos = Photos(find_entries(folder), memory=memory)
    sent = pickle.loads(pickle.dumps(photos))
    assert len(sent) == 3
    for index in range(3):
        np.testing.assert_array_equal(sent[index].clean, photos[index].clean)


# ---- samples of clean photos


def test_a_sample_has_the_size_asked_for_and_lies_in_range(photos):
    crops = TrainingCrops(
        [photos], Sampler(["noise8:5..50", "rain", "downup"], 24, low_key=0.5), length=40
    )
    assert len(crops) == 40
    for index in range(40):
        sample = crops[index]
        assert (
            sample.keys() == {"clean", "degraded", "severity", "index", "source", "photo"}
            and sample["index"] == index
        )
        assert sample["clean"].shape == sample["degraded"].shape == (3, 24, 24) and sample[
            "severity"
        ].shape == (len(LABELS),)
        for key in ("clean", "degraded"):
            assert (
                sample[key].dtype == torch.float32
                and sample[key].min() >= 0
                and sample[key].max() <= 1
            )
        assert not torch.equal(sample["clean"], sample["degraded"])


def test_the_same_seed_and_index_give_the_same_sample_whatever_was_asked_before(photos, pairs):
    sources = photos, Photos(find_entries(pairs)[:1])
    first, second = (
        crops_of(photos, recipes=["noise:0..50@2", "rain", "haze"], seed=5, low_key=0.5)
        for _ in range(2)
    )
    later = [first[index] for index in (0, 1, 2, 7)][-1]
    torch.manual_seed(99)
    assert same(second[7], later)
    without_guidance = Photos([entry._replace(guidance=None) for entry in sources[1].entries])
    mixed = [crops_of(photos, without_guidance, recipes=["noise"]) for _ in range(2)]
    assert all(same(mixed[0][index], mixed[1][index]) for index in (9, 3, 5, 0))


@pytest.mark.parametrize("seed", [1, 2, 20261123, 2**31])
def test_another_seed_gives_another_stream(photos, seed):
    first, second = (
        crops_of(photos, recipes=["noise:25"]),
        crops_of(photos, recipes=["noise:25"], seed=seed),
    )
    assert not any(
        torch.equal(first[index]["degraded"], second[index]["degraded"]) for index in range(4)
    )


def test_neighbouring_seeds_share_no_sample(photos):
    streams = [crops_of(photos, recipes=["noise:25"], seed=seed) for seed in range(3)]
    samples = [
        stream[index]["degraded"].numpy().tobytes() for stream in streams for index in range(10)
    ]
    assert len(set(samples)) == 30


def test_different_indices_differ(photos):
    crops = crops_of(photos, recipes=["clean"])
    assert len({crops[index]["clean"].numpy().tobytes() for index in range(50)}) == 50


def test_workers_change_nothing(photos, pairs):
    crops = crops_of(photos, recipes=["noise:0..50", "rain"], seed=3, low_key=0.3)
    batches = [
        list(DataLoader(crops, 3, sampler=range(4, 13), num_workers=workers))
        for workers in (0, 1, 2)
    ]
    assert [len(some) for some in batches] == [3, 3, 3]
    assert all(
        same(alone, worker) for workers in batches[1:] for alone, worker in zip(batches[0], workers)
    )


def test_a_resumed_stream_is_the_tail_of_the_whole(photos):
    crops = crops_of(photos, recipes=["noise:0..50"])
    whole = list(DataLoader(crops, 2, sampler=range(10)))
    assert all(
        same(first, second)
        for first, second in zip(whole[3:], DataLoader(crops, 2, sampler=range(6, 10)))
    )


def test_crops_are_cut_from_the_photos_and_half_of_them_mirrored(folder):
    photos = Photos(find_entries(folder / "deep"))
    pixels = torch.from_numpy(photos[0].clean).movedim(-1, 0).float() / 255
    crops = crops_of(photos, recipes=["clean"], max_reduction=1)
    windows = pixels[0].unfold(0, 24, 1).unfold(1, 24, 1)  # (tops, lefts, 24, 24)
    mirrored, places = [], set()
    for index in range(60):
        clean = crops[index]["clean"][0]
        found = [(windows == candidate).all(-1).all(-1) for candidate in either_way(clean)]
        assert sum(f.sum() for f in found) == 1
        mirrored.append(bool(found[1].any()))
        places.add(tuple((found[0] | found[1]).nonzero()[0].tolist()))
    assert 15 < sum(mirrored) < 45
    assert len(places) > 50


def test_crops_reach_every_edge_of_a_photo():
    images, tops, lefts = Images(scene(26, 27, 0)), set(), set()
    for index in range(100):
        clean = (
            Sampler(["clean"], 24, max_reduction=1)(images, sample_generator(0, index))["clean"]
            * 255
        )
        tops.add(round(clean[0].min().item()))
        lefts.add(round(clean[1].min().item()))
    assert tops == {0, 1, 2} and lefts == {0, 1, 2, 3}


def test_half_of_the_clean_photos_are_reduced_where_reduction_is_allowed():
    images, spans = Images(scene(120, 160, 0)), []
    for index in range(200):
        clean = (
            Sampler(["clean"], 24, max_reduction=3)(images, sample_generator(0, index))["clean"]
            * 255
        )
        spans.append((clean[0].max() - clean[0].min()).item() / 23)
    assert 70 < sum(span > 1.02 for span in spans) < 130
    assert 2.5 < max(spans) < 3.2 and min(spans) > 0.99


def test_a_photo_as_small_as_the_crop_is_taken_whole(tmp_path):
    pixels = save_photo(tmp_path / "only.png", 24, 24)  # a square: there is nothing to choose
    sample = crops_of(Photos(find_entries(tmp_path)), recipes=["clean"])[0]["clean"]
    expected = torch.from_numpy(pixels).movedim(-1, 0) / 255
    assert any(torch.equal(sample, candidate) for candidate in either_way(expected))


def test_a_crop_larger_than_a_photo_is_refused(tmp_path):
    save_photo(tmp_path / "only.png", 24, 40)
    with pytest.raises(ValueError, match="A photo of 40 x 24 is smaller than the crop of 32"):
        crops_of(Photos(find_entries(tmp_path)), recipes=["clean"], size=32)[0]


def test_clean_photos_without_recipes_are_refused(photos):
    with pytest.raises(ValueError, match="These are clean photos; pass `--degradations`"):
        crops_of(photos)[0]


def test_recipes_are_drawn_by_their_shares_and_told_by_severity():
    images, sampler, counts = (
        Images(random_pixels()),
        Sampler(["clean@3", "downup:3@1"], 24),
        [0, 0],
    )
    for index in range(400):
        sample = sampler(images, sample_generator(0, index))
        reduced = bool(sample["severity"][LABELS.index("downup")] > 0)
        assert torch.equal(sample["clean"], sample["degraded"]) != reduced
        assert sample["severity"].sum() == (0.5 if reduced else 0)
        counts[reduced] += 1
    assert abs(counts[0] - 300) < 4 * math.sqrt(400 * 0.75 * 0.25)


# ---- severity


def test_there_is_one_label_for_each_kind_of_degradation():
    assert len(set(LABELS)) == len(LABELS) and {
        ingredient.label for ingredient in RECIPES.values()
    } == set(LABELS)


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ("clean", {}),
        ("noise:light", {"noise": 0.25}),
        ("rain:heavy+haze", {"rain": 0.75, "haze": 0.5}),
        ("noise:light+poisson:heavy", {"noise": 0.75}),
        ("poisson:heavy+noise8:light", {"noise": 0.75}),
        ("noise:255+jpeg:95", {"noise": 1.0, "jpeg": 0.0}),
    ],
)
def test_severity_tells_what_a_photo_suffers_from(recipe, expected):
    sample = Sampler([recipe], 24)(Images(random_pixels()), sample_generator(0, 0))
    assert dict(zip(LABELS, sample["severity"].tolist())) == {
        label: expected.get(label, 0) for label in LABELS
    }


def test_severity_is_that_of_the_value_which_was_drawn():
    gray, seen = Images(np.full((40, 56, 3), 128, np.uint8)), []
    for index in range(20):
        sample = Sampler(["noise:5..25"], 40)(gray, sample_generator(0, index))
        sigma = (sample["degraded"] - sample["clean"]).std().item() * 255
        seen.append(sample["severity"][LABELS.index("noise")].item())
        assert seen[-1] == pytest.approx(0.5 + 0.25 * (sigma - 25) / 10, abs=0.04)
    assert max(seen) - min(seen) > 0.2


def test_severity_of_no_steps_is_zero():
    assert torch.equal(severities([]), torch.zeros(len(LABELS)))


def test_severity_of_pairs_is_not_known(pairs):
    assert crops_of(Photos(find_entries(pairs)), recipes=["noise"])[0]["severity"].isnan().all()


# ---- dark photos


def brightness(recipe: str, low_key: float) -> list[float]:
    bright = Images(np.full((30, 40, 3), 204, np.uint8))
    sampler = Sampler([recipe], 24, low_key=low_key)
    return [
        sampler(bright, sample_generator(0, index))["clean"].mean().item() for index in range(60)
    ]


@pytest.mark.parametrize("recipe", ["lowlight", "haze+lowlight:heavy", "lowlight:1..3+noise"])
def test_a_photo_that_is_to_be_underexposed_is_not_darkened(recipe):
    assert brightness(recipe, 1.0) == pytest.approx([0.8] * 60, abs=1e-6)


def test_photos_are_darkened_before_they_are_degraded():
    dark = brightness("noise", 1.0)
    assert (
        max(dark) <= 0.8
        and min(dark) > 0.8**2.5 * 0.5 ** (1 / 2.2) - 1e-6
        and max(dark) - min(dark) > 0.15
    )
    sample = Sampler(["clean"], 24, low_key=1.0)(Images(random_pixels()), sample_generator(0, 0))
    assert torch.equal(sample["clean"], sample["degraded"])


def test_the_share_of_darkened_photos_is_that_asked_for():
    assert brightness("noise", 0.0) == pytest.approx([0.8] * 60, abs=1e-6)
    assert 10 < sum(value < 0.799 for value in brightness("noise", 0.4)) < 40


# ---- samples of pairs


def test_what_belongs_together_is_cut_at_one_place_and_flipped_together():
    parts = [scene(40, 56, blue) for blue in (0, 100, 200)]
    images = Images(
        parts[0], np.concatenate([parts[1], parts[1] + np.uint8([0, 0, 50])], axis=-1), parts[2]
    )
    flips, places = 0, set()
    for index in range(40):
        sample = Sampler(crop_size=24, max_reduction=3)(images, sample_generator(0, index))
        clean, degraded, guidance = (
            (sample[key] * 255).round() for key in ("clean", "degraded", "guidance")
        )
        assert clean.shape == guidance.shape == (3, 24, 24) and degraded.shape == (6, 24, 24)
        for part, blue in ((clean, 0), (degraded[:3], 100), (degraded[3:], 150), (guidance, 200)):
            assert torch.equal(part[:2], clean[:2]) and (part[2] == blue).all()
        step = clean[1, 0, 1] - clean[1, 0, 0]  # pairs are never reduced
        assert step.abs() == 1 and clean[0, 1, 0] - clean[0, 0, 0] == 1
        flips += bool(step < 0)
        places.add((clean[0].min().item(), clean[1].min().item()))
    assert 8 < flips < 32 and len(places) > 30


@pytest.mark.parametrize("scale", [0.5, 2])
def test_guidance_of_another_size_shows_the_same_place(scale):
    small = np.asarray(
        Image.fromarray(scene(64, 96, 200)).resize(
            (round(96 * scale), round(64 * scale)), Image.Resampling.BICUBIC
        )
    )
    images = Images(scene(64, 96, 0), scene(64, 96, 100), small)
    for index in range(20):
        sample = Sampler(crop_size=24)(images, sample_generator(0, index))
        assert sample["guidance"].shape == (3, 24, 24)
        assert ((sample["guidance"][:2] - sample["clean"][:2]).abs() * 255).max() < 2


def test_pairs_are_not_degraded_any_further(pairs):
    with_recipes, without = (
        crops_of(Photos(find_entries(pairs)), recipes=r, low_key=1.0) for r in (["noise:50"], [])
    )
    assert all(same(with_recipes[index], without[index]) for index in range(5))


# ---- several sources


def flat_photos(folder: Path, count: int, value: int) -> Photos:
    folder.mkdir()
    for i in range(count):
        Image.new("RGB", (40, 30), (value,) * 3).save(folder / f"{i}.png")
    return Photos(find_entries(folder))


@pytest.mark.parametrize(
    ("weights", "share"), [(None, 0.25), ([1, 1], 0.5), ([9.0, 1.0], 0.9), ([0.2, 0.3], 0.4)]
)
def test_sources_are_drawn_by_their_weights_or_by_their_size(weights, share, tmp_path):
    sources = flat_photos(tmp_path / "dark", 1, 0), flat_photos(tmp_path / "bright", 3, 255)
    crops = crops_of(*sources, recipes=["clean"], weights=weights)
    dark = sum(bool(crops[index]["clean"].max() == 0) for index in range(400))
    assert abs(dark - 400 * share) < 4 * math.sqrt(400 * share * (1 - share))


def test_photos_of_a_source_are_drawn_alike(tmp_path):
    (tmp_path / "photos").mkdir()
    for value in range(4):
        Image.new("RGB", (40, 30), (value * 60,) * 3).save(tmp_path / "photos" / f"{value}.png")
    crops = crops_of(Photos(find_entries(tmp_path / "photos")), recipes=["clean"])
    counts = np.bincount(
        [round(crops[index]["clean"].max().item() * 255) // 60 for index in range(400)], minlength=4
    )
    # 100 expected, deviation 8.7.
    assert len(counts) == 4 and counts.min() > 65 and counts.max() < 135


# ---- data sets of the Hub


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def image_folder(tmp_path, hub_cache):
    """Five clean photos as the `datasets` library reads a folder."""
    for i in range(5):
        Image.fromarray(scene(30, 40, 50 * i)).save(tmp_path / f"{i}.png")
    return str(tmp_path)


@pytest.fixture
def paired_folder(tmp_path, hub_cache):
    """Three pairs, joined by `metadata.jsonl`."""
    rows = []
    for i in range(3):
        save_photo(tmp_path / "hub" / f"lq/{i}.png", 30, 40, seed=i)
        save_photo(tmp_path / "hub" / f"gt/{i}.png", 30, 40, seed=10 + i)
        rows.append({"lq_file_name": f"lq/{i}.png", "gt_file_name": f"gt/{i}.png"})
    (tmp_path / "hub/metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(tmp_path / "hub")


def test_a_data_set_of_clean_photos_is_read(image_folder):
    photos = HubPhotos(image_folder)
    assert len(photos) == 5
    for i in range(5):
        np.testing.assert_array_equal(photos[i].clean, scene(30, 40, 50 * i))
        assert photos[i].degraded is None
    sample = crops_of(photos, recipes=["noise:heavy"])[3]
    assert sample["degraded"].shape == (3, 24, 24) and sample["severity"].max() == 0.75


@pytest.mark.parametrize("streaming", [False, True])
def test_a_data_set_of_pairs_is_read(streaming, paired_folder):
    photos = HubPhotos(paired_folder, clean_column="gt", degraded_column="lq", streaming=streaming)
    for i, row in enumerate(photos.rows):
        images = photos.read(row)
        np.testing.assert_array_equal(images.clean, random_pixels(30, 40, 10 + i))
        np.testing.assert_array_equal(images.degraded, random_pixels(30, 40, i))
    assert i == 2


def test_pairs_of_a_data_set_and_of_a_folder_are_drawn_together(paired_folder, pairs):
    source = Photos([entry._replace(guidance=None) for entry in find_entries(pairs)])
    crops = crops_of(HubPhotos(paired_folder, clean_column="gt", degraded_column="lq"), source)
    batch = next(iter(DataLoader(crops, 8)))
    assert batch["degraded"].shape == (8, 3, 24, 24) and batch["severity"].isnan().all()


@pytest.mark.parametrize("streaming", [False, True])
def test_columns_that_are_missing_are_named_beside_those_that_are_there(streaming, paired_folder):
    with pytest.raises(
        ValueError, match=f"The data set {paired_folder} has no column image, blur; it has lq, gt"
    ):
        HubPhotos(paired_folder, degraded_column="blur", streaming=streaming)


def test_a_data_set_that_cannot_be_had_is_named(image_folder):
    with pytest.raises(ValueError, match=r"The data set nobody/nothing \(train\) cannot be loaded"):
        HubPhotos("nobody/nothing")
    with pytest.raises(ValueError, match=r"The data set .* \(val\) cannot be loaded: .*val"):
        HubPhotos(image_folder, split="val")


def test_gray_and_transparent_pictures_of_a_data_set_are_colour_pictures(tmp_path, hub_cache):
    Image.fromarray(np.arange(1200, dtype=np.uint8).reshape(30, 40)).save(tmp_path / "a.png")
    Image.fromarray(np.dstack([scene(30, 40, 7), np.full((30, 40), 99, np.uint8)])).save(
        tmp_path / "b.png"
    )
    photos = HubPhotos(str(tmp_path))
    np.testing.assert_array_equal(
        photos[0].clean[..., 1], np.arange(1200, dtype=np.uint8).reshape(30, 40)
    )
    np.testing.assert_array_equal(photos[1].clean, scene(30, 40, 7))


def test_sixteen_bit_pictures_of_a_data_set_keep_their_brightness(tmp_path, hub_cache):
    Image.fromarray(np.full((30, 40), 30000, np.uint16)).save(tmp_path / "a.png")
    clean = HubPhotos(str(tmp_path))[0].clean
    assert clean.mean() / np.iinfo(clean.dtype).max == pytest.approx(30000 / 65535, abs=0.01)


def test_pairs_of_a_data_set_that_differ_in_size_are_refused(paired_folder):
    save_photo(Path(paired_folder) / "lq/1.png", 15, 20)
    photos = HubPhotos(paired_folder, clean_column="gt", degraded_column="lq")
    with pytest.raises(ValueError, match="20 x 15"):
        Sampler(crop_size=24)(photos[1], sample_generator(0, 0))


@pytest.fixture
def streamed(image_folder):
    source = HubPhotos(image_folder, streaming=True)
    return lambda **options: StreamedCrops(
        source, Sampler(["noise:0..50"], 24, max_reduction=1), **options
    )


def test_a_stream_goes_through_its_photos_in_order_again_and_again(streamed):
    samples = list(streamed(length=13))
    assert [int(sample["index"]) for sample in samples] == list(range(13))
    assert [round(sample["clean"][2].mean().item() * 255 / 50) for sample in samples] == [
        i % 5 for i in range(13)
    ]
    assert len({sample["degraded"].numpy().tobytes() for sample in samples}) == 13


@pytest.mark.parametrize(("start", "length"), [(0, 13), (3, 4), (5, 8), (9, 1), (12, 1), (4, 0)])
def test_a_stream_that_starts_later_is_a_part_of_the_whole(start, length, streamed):
    whole, part = list(streamed(length=13)), list(streamed(start=start, length=length))
    assert len(part) == length
    assert all(same(first, second) for first, second in zip(part, whole[start:]))


def test_a_stream_can_be_read_again_and_by_a_worker(streamed):
    stream = streamed(start=2, length=6, seed=4)
    batches = [list(DataLoader(stream, 3, num_workers=workers)) for workers in (0, 0, 1)]
    assert all(
        same(first, other)
        for others in batches[1:]
        for first, other in zip(batches[0], others, strict=True)
    )


def test_streams_of_two_seeds_differ(streamed):
    first, second = (next(iter(streamed(seed=seed, length=1))) for seed in (0, 1))
    assert not torch.equal(first["degraded"], second["degraded"])
