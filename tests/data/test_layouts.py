"""Published benchmarks lie on disk as their authors packed them; every layout is found and every
image gets its own twin."""

import io
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

from textir.data.layouts import BENCHMARKS, Entry, find_benchmark
from textir.data.photos import Photos, find_entries

SPLITS = ("train", "test")


class Tree(NamedTuple):
    """What a root holds: images as `(degraded, ..., clean)` in the order in which they are to be
    found, and what is to be ignored."""

    images: list[tuple[str, ...]]
    decoys: tuple[str, ...] = ()
    list_file: str | None = None
    by_order: bool = False


def png(width: int = 20, height: int = 16) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (90, 120, 30)).save(buffer, "PNG")
    return buffer.getvalue()


def put(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png())


def build(root: Path, tree: Tree) -> None:
    put(root, *(name for image in tree.images for name in image), *tree.decoys)
    if tree.list_file:
        lines = [f"{clean} {degraded}" for degraded, clean in tree.images]
        (root / tree.list_file).write_text("\n".join(lines) + "\n")


def folders(degraded: str, clean: str, names=("1.png", "a2.JPG")) -> Tree:
    return Tree([(f"{degraded}/{name}", f"{clean}/{name}") for name in names])


INPUT_TARGET = folders("input", "target")
TRAIN = [folders("train/input", "train/target"), INPUT_TARGET]
TEST = [folders("test/input", "test/target"), INPUT_TARGET]


def rain100l(folder: str) -> list[Tree]:
    return [
        Tree(
            [
                (f"{folder}/rain/X2/norain-{i}x2.png", f"{folder}/norain/norain-{i}.png")
                for i in (1, 10, 2)
            ],
            decoys=(
                f"{folder}/rainstreak/norainrainstreak-1x2.png",
                f"{folder}/rainregion/norainrainregion-1x2.png",
            ),
        ),
        Tree([(f"rainy/rain-{i}.png", f"gt/norain-{i}.png") for i in ("001", "002")]),
        Tree([(f"rain-{i}.png", f"norain-{i}.png") for i in ("001", "002")]),
    ]


def rain200(split: str) -> list[Tree]:
    return [
        Tree(
            [
                (f"{split}/rain/X2/norain-{i}x2.png", f"{split}/norain/norain-{i}.png")
                for i in (1, 2)
            ]
        )
    ]


def suffixed(degraded: str, clean: str, first: str, second: str, end: str = ".png") -> Tree:
    """Two degraded images of one clean image each, `1_*.png -> 1.png`, where the numbers begin
    alike."""
    return Tree(
        [
            (f"{degraded}/{n}_{s}{end}", f"{clean}/{n}.png")
            for n in ("1", "11")
            for s in (first, second)
        ]
    )


def ddn(split: str) -> list[Tree]:
    images = [
        (f"{split}ing/rainy_image/{n}_{k}.jpg", f"{split}ing/ground_truth/{n}.jpg")
        for n in (1, 11)
        for k in (1, 14)
    ]
    return [Tree(images)]


def gopro(split: str) -> Tree:
    scenes = [f"{split}/GOPR0372_07_00", f"{split}/GOPR0384_11_00"]
    images = [(f"{scene}/blur/000047.png", f"{scene}/sharp/000047.png") for scene in scenes]
    other = "test" if split == "train" else "train"
    return Tree(
        images,
        decoys=(
            f"{scenes[0]}/blur_gamma/000047.png",
            f"{other}/GOPR9/blur/1.png",
            f"{other}/GOPR9/sharp/1.png",
        ),
    )


def realblur(kind: str, folder: str, split: str) -> list[Tree]:
    listed = Tree(
        [
            (f"{folder}/scene{s}/blur/blur_{i}.png", f"{folder}/scene{s}/gt/gt_{i}.png")
            for s in ("002", "001")
            for i in (2, 1)
        ],
        decoys=(f"{folder}/scene050/blur/blur_1.png", f"{folder}/scene050/gt/gt_1.png"),
        list_file=f"RealBlur_{kind}_{split}_list.txt",
    )
    return [
        listed,
        folders(f"{split}/RealBlur_{kind}/input", f"{split}/RealBlur_{kind}/target"),
        INPUT_TARGET,
    ]


def dpdd(split: str) -> list[Tree]:
    # A shot and its twin are numbered apart.
    shots = [(f"1P0A{n}", f"1P0A{n - 1}") for n in (1003, 1705)]
    return [
        Tree(
            [(f"{split}_c/source/{a}.png", f"{split}_c/target/{b}.png") for a, b in shots],
            by_order=True,
        ),
        folders(f"{split}/DPDD/inputC", f"{split}/DPDD/target"),
        folders("inputC", "target"),
    ]


def dual(split: str) -> list[Tree]:
    shots = [(f"1P0A{n}", f"1P0A{n - 1}") for n in (1003, 1705)]
    in_order = [
        (f"{split}_l/source/{a}_B.png", f"{split}_r/source/{a}_A.png", f"{split}_c/target/{b}.png")
        for a, b in shots
    ]
    by_name = [
        Tree(
            [
                (f"{root}inputL/{n}.png", f"{root}inputR/{n}.png", f"{root}target/{n}.png")
                for n in ("1P0A1", "1P0A2")
            ]
        )
        for root in (f"{split}/DPDD/", "")
    ]
    return [Tree(in_order, decoys=(f"{split}_c/source/1P0A1003.png",), by_order=True), *by_name]


def sidd(prefix: str) -> Tree:
    scenes = ("0001_001_S6_00100_00060_3200_L", "0002_001_S6_00100_00020_3200_N")
    images = [
        (
            f"{prefix}{scene}/{scene[:4]}_NOISY_SRGB_{k}.PNG",
            f"{prefix}{scene}/{scene[:4]}_GT_SRGB_{k}.PNG",
        )
        for scene in scenes
        for k in ("010", "011")
    ]
    return Tree(images)


REALBLUR_R = "RealBlur-R_BM3D_ECC_IMCORR_centroid_itensity_ref"
REALBLUR_J = "RealBlur-J_ECC_IMCORR_centroid_itensity_ref"
TREES = {
    ("bsd400_wed", "train"): [
        Tree([("BSD400/100075.jpg",), ("BSD400/test_001.png",), ("WED/00001.bmp",)])
    ],
    ("cbsd68", "test"): [
        Tree(
            [("original_png/0000.png",), ("original_png/0001.png",)],
            decoys=("noisy15/0000.png", "noisy50/0000.png"),
        ),
        Tree([("101085.PNG",), ("101087.png",)]),
    ],
    ("rain100l", "train"): [*rain100l("rain_data_train_Light"), *TRAIN],
    ("rain100l", "test"): [*rain100l("rain_data_test_Light"), *TEST],
    ("rain13k", "train"): [folders("train/Rain13K/input", "train/Rain13K/target"), *TRAIN],
    ("rain13k", "test"): TEST,
    ("rain200l", "train"): [*rain200("train"), *TRAIN],
    ("rain200l", "test"): [*rain200("test"), *TEST],
    ("rain200h", "train"): [*rain200("train"), *TRAIN],
    ("rain200h", "test"): [*rain200("test"), *TEST],
    ("did", "train"): TRAIN,
    ("did", "test"): TEST,
    ("ddn", "train"): [*ddn("train"), *TRAIN],
    ("ddn", "test"): [*ddn("test"), *TEST],
    ("its", "train"): [
        suffixed("hazy", "clear", "10_0.98796", "1_0.74031"),
        suffixed("train/hazy", "train/gt", "10_0.98796", "1_0.74031"),
    ],
    ("ots", "train"): [
        suffixed("hazy", "clear", "0.8_0.04", "1_0.2", ".jpg"),
        Tree(
            [
                (f"part{k}/000{k}_{s}.jpg", f"clear/000{k}.jpg")
                for k in (1, 2)
                for s in ("0.85_0.04", "1_0.2")
            ]
        ),
        suffixed("train/hazy", "train/gt", "0.8_0.04", "1_0.2", ".jpg"),
    ],
    ("sots_indoor", "test"): [
        suffixed("indoor/hazy", "indoor/gt", "1", "10")._replace(
            decoys=("outdoor/hazy/0001_0.8_0.2.jpg",)
        ),
        suffixed("nyuhaze500/hazy", "nyuhaze500/gt", "1", "10"),
        suffixed("hazy", "gt", "1", "10"),
        INPUT_TARGET,
    ],
    ("sots_outdoor", "test"): [
        suffixed("outdoor/hazy", "outdoor/gt", "0.85_0.2", "1_0.2", ".jpg")._replace(
            decoys=("indoor/hazy/1400_1.png",)
        ),
        suffixed("hazy", "gt", "0.85_0.2", "1_0.2", ".jpg"),
        INPUT_TARGET,
    ],
    ("gopro", "train"): [gopro("train"), *TRAIN],
    ("gopro", "test"): [gopro("test"), folders("test/GoPro/input", "test/GoPro/target"), *TEST],
    ("hide", "train"): [
        folders("train", "GT", ("1fromGOPR0950.png", "2fromGOPR0950.png"))._replace(
            decoys=("test/test-close-ups/3fromGOPR0950.png", "GT/3fromGOPR0950.png")
        )
    ],
    ("hide", "test"): [
        Tree(
            [
                (f"test/{kind}/{name}.png", f"GT/{name}.png")
                for kind, name in (("test-close-ups", "13"), ("test-long-shot", "1"))
            ],
            decoys=("train/5fromGOPR0950.png", "GT/5fromGOPR0950.png"),
        ),
        folders("test/HIDE/input", "test/HIDE/target"),
        folders("test", "GT"),
        INPUT_TARGET,
    ],
    ("realblur_r", "train"): realblur("R", REALBLUR_R, "train"),
    ("realblur_r", "test"): realblur("R", REALBLUR_R, "test"),
    ("realblur_j", "train"): realblur("J", REALBLUR_J, "train"),
    ("realblur_j", "test"): realblur("J", REALBLUR_J, "test"),
    ("dpdd", "train"): dpdd("train"),
    ("dpdd", "test"): dpdd("test"),
    ("dpdd_dual", "train"): dual("train"),
    ("dpdd_dual", "test"): dual("test"),
    ("sidd", "train"): [sidd("Data/"), *TRAIN],
    ("sidd", "test"): [sidd("test/"), *TEST],
    ("lol", "train"): [folders("our485/low", "our485/high"), *TRAIN],
    ("lol", "test"): [folders("eval15/low", "eval15/high"), *TEST],
}

CASES = [
    pytest.param(name, split, tree, id=f"{name}-{split}-{i}")
    for (name, split), trees in TREES.items()
    for i, tree in enumerate(trees)
]
PAIRED = [case for case in CASES if len(case.values[2].images[0]) > 1]


def found(name: str, root: Path, split: str) -> list[tuple[str, ...]]:
    """The entries of a benchmark as `(degraded, ..., clean)` below the root."""
    entries = find_benchmark(name, root, split)
    return [
        tuple(str(path.relative_to(root)) for path in (*entry.degraded, entry.clean))
        for entry in entries
    ]


def test_every_layout_of_every_benchmark_has_its_tree_here():
    layouts = {
        (name, split): len(getattr(benchmark, split))
        for name, benchmark in BENCHMARKS.items()
        for split in SPLITS
    }
    assert {key: count for key, count in layouts.items() if count} == {
        key: len(trees) for key, trees in TREES.items()
    }


@pytest.mark.parametrize(("name", "split", "tree"), CASES)
def test_images_are_found_in_order_each_with_its_own_twin(name, split, tree, tmp_path):
    build(tmp_path, tree)
    expected = (
        tree.images if tree.list_file else sorted(tree.images, key=lambda image: Path(image[0]))
    )
    assert found(name, tmp_path, split) == expected


@pytest.mark.parametrize(("name", "split", "tree"), PAIRED)
def test_an_image_without_a_clean_twin_is_named(name, split, tree, tmp_path):
    build(tmp_path, tree)
    lonely, clean = tree.images[-1][0], tree.images[-1][-1]
    (tmp_path / clean).unlink()
    with pytest.raises(ValueError) as caught:
        find_benchmark(name, tmp_path, split)
    if tree.by_order:
        views = ", ".join(["2"] * (len(tree.images[0]) - 1))
        assert (
            str(caught.value)
            == f"The images of {tmp_path} are paired by their order, but there are not as many of "
            f"each: {views}, 1."
        )
    else:
        count = sum(image[-1] == clean for image in tree.images)
        assert (
            str(caught.value).startswith(f"{count} ")
            and str(tmp_path) in str(caught.value)
            and lonely in str(caught.value)
        )
        assert all((image[0] in str(caught.value)) == (image[-1] == clean) for image in tree.images)


@pytest.mark.parametrize(("name", "split"), TREES)
def test_a_root_that_holds_something_else_is_told_what_was_looked_for(name, split, tmp_path):
    put(tmp_path, "elsewhere/deeper/than/any/1.png")
    with pytest.raises(ValueError) as caught:
        find_benchmark(name, tmp_path, split)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path} does not hold {name} ({split}): looked for ")
    for layout in getattr(BENCHMARKS[name], split):
        assert all(pattern in message for pattern in layout.images)
        assert layout.listed is None or layout.listed in message


@pytest.mark.parametrize("split", SPLITS)
def test_a_benchmark_without_a_split_says_so(split, tmp_path):
    lacking = [name for name, benchmark in BENCHMARKS.items() if not getattr(benchmark, split)]
    assert lacking
    for name in lacking:
        with pytest.raises(ValueError, match=f"{name} has no {split} split"):
            find_benchmark(name, tmp_path, split)


def test_an_unknown_benchmark_or_split_or_root_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"Unknown benchmark 'gropro'; known are bsd400_wed, .*, gopro, .*, lol\."
    ):
        find_benchmark("gropro", tmp_path)
    with pytest.raises(ValueError, match="nowhere is not a folder; the root of gopro was expected"):
        find_benchmark("gopro", tmp_path / "nowhere")
    with pytest.raises(ValueError, match="val"):
        find_benchmark("gopro", tmp_path, "val")


def test_a_part_of_bsd400_wed_is_not_the_whole(tmp_path):
    put(tmp_path, "BSD400/1.png")
    with pytest.raises(ValueError, match=r"looked for BSD400/\* and WED/\*"):
        find_benchmark("bsd400_wed", tmp_path)


@pytest.mark.parametrize(
    ("name", "split"), [(name, split) for name, split in TREES if len(TREES[name, split]) > 1]
)
def test_the_layout_of_the_authors_comes_before_repacked_ones(name, split, tmp_path):
    first, *_, last = TREES[name, split]
    build(tmp_path, last)
    build(tmp_path, first)
    assert set(found(name, tmp_path, split)) >= set(first.images)
    assert not {image[0] for image in found(name, tmp_path, split)} & {
        image[0] for image in last.images
    }


# ---- names on disk


@pytest.mark.parametrize(
    ("degraded", "clean"),
    [("PNG", "PNG"), ("PNG", "png"), ("png", "PNG"), ("jpg", "png"), ("JPG", "tiff")],
)
def test_twins_may_differ_in_the_letter_case_and_kind_of_their_extensions(
    degraded, clean, tmp_path
):
    put(tmp_path, f"our485/low/2.{degraded}", f"our485/high/2.{clean}")
    assert found("lol", tmp_path, "train") == [
        (f"our485/low/2.{degraded}", f"our485/high/2.{clean}")
    ]


def test_a_twin_of_the_same_extension_is_preferred(tmp_path):
    put(tmp_path, "input/1.png", "target/1.bmp", "target/1.jpg", "target/1.png")
    assert found("did", tmp_path, "train") == [("input/1.png", "target/1.png")]


def test_dots_in_a_name_are_not_taken_for_an_extension(tmp_path):
    put(tmp_path, "input/a.1.png", "input/a.2.png", "target/a.1.png", "target/a.2.png")
    assert found("did", tmp_path, "train") == [
        ("input/a.1.png", "target/a.1.png"),
        ("input/a.2.png", "target/a.2.png"),
    ]


def test_files_that_are_no_images_are_passed_over(tmp_path):
    put(tmp_path, "input/1.png", "target/1.png")
    (tmp_path / "input" / "Thumbs.db").write_bytes(b"")
    (tmp_path / "input" / "folder.png").mkdir()
    assert found("did", tmp_path, "train") == [("input/1.png", "target/1.png")]


def test_hidden_files_are_passed_over_as_in_any_folder(tmp_path):
    put(tmp_path, "input/1.png", "target/1.png")
    (tmp_path / "input" / "._1.png").write_bytes(b"what macOS leaves beside an unpacked file")
    assert found("did", tmp_path, "train") == [("input/1.png", "target/1.png")]


def test_many_lonely_images_are_counted_and_ten_of_them_named(tmp_path):
    put(tmp_path, *(f"input/{i:02d}.png" for i in range(13)), "target/00.png")
    with pytest.raises(ValueError) as caught:
        find_benchmark("did", tmp_path)
    assert (
        str(caught.value).startswith("12 images have no twin")
        and str(caught.value).count("input/") == 10
    )


# ---- single benchmarks


def test_a_scene_named_blur_in_the_path_of_the_root_changes_nothing(tmp_path):
    root = tmp_path / "train" / "blur" / "GoPro"
    build(root, gopro("train"))
    assert found("gopro", root, "train") == gopro("train").images


def test_a_split_of_realblur_is_what_its_list_says(tmp_path):
    for split, scene in (("train", "scene001"), ("test", "scene002")):
        names = (f"{REALBLUR_J}/{scene}/gt/gt_1.png", f"{REALBLUR_J}/{scene}/blur/blur_1.png")
        put(tmp_path, *names)
        (tmp_path / f"RealBlur_J_{split}_list.txt").write_text(f"{' '.join(names)}\n\n")
        assert found("realblur_j", tmp_path, split) == [names[::-1]]


@pytest.mark.parametrize("line", ["{gt}", "{gt} nowhere.png", "nowhere.png {gt}"])
def test_a_line_of_a_list_that_does_not_name_two_files_is_named(line, tmp_path):
    gt, blur = f"{REALBLUR_R}/scene001/gt/gt_1.png", f"{REALBLUR_R}/scene001/blur/blur_1.png"
    put(tmp_path, gt, blur)
    (tmp_path / "RealBlur_R_test_list.txt").write_text(f"{gt} {blur}\n{line.format(gt=gt)}\n")
    with pytest.raises(ValueError) as caught:
        find_benchmark("realblur_r", tmp_path, "test")
    assert str(caught.value).startswith("1 lines of RealBlur_R_test_list.txt do not name two files")
    assert line.format(gt=gt) in str(caught.value)


def test_a_right_view_that_is_missing_is_named(tmp_path):
    build(tmp_path, dual("test")[1])
    (tmp_path / "test/DPDD/inputR/1P0A2.png").unlink()
    with pytest.raises(
        ValueError, match=r"1 images have no twin in .*: test/DPDD/inputL/1P0A2\.png\."
    ):
        find_benchmark("dpdd_dual", tmp_path, "test")


def test_views_paired_by_order_must_be_as_many(tmp_path):
    build(tmp_path, dual("train")[0])
    put(tmp_path, "train_r/source/1P0A9999.png")
    with pytest.raises(ValueError, match=r"there are not as many of each: 2, 3, 2\."):
        find_benchmark("dpdd_dual", tmp_path, "train")


# ---- as a source


def test_a_benchmark_is_named_before_its_root(tmp_path):
    build(tmp_path, gopro("train"))
    build(tmp_path, gopro("test"))
    for split in SPLITS:
        assert find_entries(f"gopro:{tmp_path}", split) == find_benchmark("gopro", tmp_path, split)
    assert len(find_entries(f"gopro:{tmp_path}")) == 3  # two scenes and the decoy of the other tree


@pytest.mark.parametrize(("name", "split"), TREES)
def test_what_is_found_can_be_read(name, split, tmp_path):
    tree = TREES[name, split][0]
    build(tmp_path, tree)
    images = Photos(find_entries(f"{name}:{tmp_path}", split))[0]
    assert images.clean.shape == (16, 20, 3)
    views = len(tree.images[0]) - 1
    assert images.degraded is None if not views else images.degraded.shape == (16, 20, 3 * views)


def test_an_entry_is_called_like_its_degraded_image():
    assert Entry(Path("gt/1.png"), (Path("rain/1_14.png"),)).name == "1_14"
    assert Entry(Path("photos/a.1.png")).name == "a.1"
