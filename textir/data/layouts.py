"""Where the published benchmarks keep their images: a table of layouts, so that `gopro:/data/GoPro`
is all one has to say.

A layout names the degraded images by a glob below the root and turns each one's path, without
extension, into that of its clean twin by a regular expression. Sets that circulate in several forms
have several layouts; the first that finds files is taken.
"""

import re
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from textir.images.picture import EXTENSIONS, is_image


class Entry(NamedTuple):
    """The files of one training or test image.

    Attributes:
        clean: the clean image.
        degraded: its degraded twin; two for dual-pixel sets (left and right view), none where
            degradation is synthetic.
        guidance: the guidance image of the degraded one, if it was made
            (`train_lora/make_guidance.py`).
    """

    clean: Path
    degraded: tuple[Path, ...] = ()
    guidance: Path | None = None

    @property
    def name(self) -> str:
        return (self.degraded or (self.clean,))[0].stem


class Layout(NamedTuple):
    """How one split of a benchmark lies on disk.

    Attributes:
        images: globs below the root, of the degraded images, or of the clean ones where `clean` is
            absent; each must find files.
        pattern: regular expression on a degraded image's path below the root, without extension.
        clean: what it is replaced by to give the clean twin; with `pattern=None` a glob, and twins
            go by sorted order.
        right: replacement that gives the right view of a dual-pixel pair (a glob with
            `pattern=None`).
        listed: a text file below the root with a line `clean degraded` for each pair of the split.
    """

    images: tuple[str, ...] = ()
    pattern: str | None = ""
    clean: str | None = None
    right: str | None = None
    listed: str | None = None


class Benchmark(NamedTuple):
    """A published data set: what its degraded images suffer from, and the layouts of its splits."""

    label: str
    train: tuple[Layout, ...] = ()
    test: tuple[Layout, ...] = ()


def _folders(degraded: str, clean: str, names: str = "") -> Layout:
    """Pairs of two folders; `names` is a pattern that cuts from a degraded image's name what the
    clean one's lacks."""
    pattern = (
        rf"^{re.escape(degraded)}/(.*?){names}$" if names else rf"^{re.escape(degraded)}/(.*)$"
    )
    return Layout((f"{degraded}/*",), pattern, rf"{clean}/\1")


_INPUT_TARGET = (_folders("input", "target"),)
_TRAIN = (_folders("train/input", "train/target"), *_INPUT_TARGET)
_TEST = (_folders("test/input", "test/target"), *_INPUT_TARGET)
_AFTER_NUMBER = r"_[^/]*"  # 0005_0.8_0.04 -> 0005


def _yang(folder: str) -> Layout:
    """Rain100L, Rain200L/H as their authors packed them: rain/X2/norain-1x2 or rain/norain-1x2
    beside norain/norain-1."""
    return Layout(
        (f"{folder}/rain/**/norain-*",),
        rf"^{folder}/rain/(?:X2/)?(norain-\d+)x2$",
        rf"{folder}/norain/\1",
    )


def _realblur(kind: str, folder: str, split: str) -> tuple[Layout, ...]:
    listed = Layout(listed=f"RealBlur_{kind}_{split}_list.txt", images=(f"{folder}/*/blur/*",))
    return (
        listed,
        _folders(f"{split}/RealBlur_{kind}/input", f"{split}/RealBlur_{kind}/target"),
        *_INPUT_TARGET,
    )


def _dpdd(split: str) -> tuple[Layout, ...]:
    by_order = Layout((f"{split}_c/source/*",), None, f"{split}_c/target/*")
    return (
        by_order,
        _folders(f"{split}/DPDD/inputC", f"{split}/DPDD/target"),
        _folders("inputC", "target"),
    )


def _dual(split: str) -> tuple[Layout, ...]:
    def left_right(root: str) -> Layout:
        return Layout(
            (f"{root}inputL/*",), rf"^{root}inputL/(.*)$", rf"{root}target/\1", rf"{root}inputR/\1"
        )

    by_order = Layout((f"{split}_l/source/*",), None, f"{split}_c/target/*", f"{split}_r/source/*")
    return (by_order, left_right(f"{split}/DPDD/"), left_right(""))


_REALBLUR_R = "RealBlur-R_BM3D_ECC_IMCORR_centroid_itensity_ref"
_REALBLUR_J = "RealBlur-J_ECC_IMCORR_centroid_itensity_ref"
_RAIN100L = (
    Layout(("rainy/rain-*",), r"^rainy/rain-(.*)$", r"gt/norain-\1"),
    Layout(("rain-*",), r"^rain-(.*)$", r"norain-\1"),
)
_RAIN200 = (_yang("train"), *_TRAIN), (_yang("test"), *_TEST)
_DDN = tuple(
    (_folders(f"{split}ing/rainy_image", f"{split}ing/ground_truth", r"_\d+"), *folders)
    for split, folders in (("train", _TRAIN), ("test", _TEST))
)
_SIDD = tuple(
    (Layout((f"{prefix}*/*_NOISY_SRGB*",), r"^(.*)_NOISY_SRGB(.*)$", r"\1_GT_SRGB\2"), *folders)
    for prefix, folders in (("Data/", _TRAIN), ("test/", _TEST))
)

BENCHMARKS = {
    "bsd400_wed": Benchmark("noise", train=(Layout(("BSD400/*", "WED/*")),)),
    "cbsd68": Benchmark("noise", test=(Layout(("original_png/*",)), Layout(("*",)))),
    "rain100l": Benchmark(
        "rain",
        train=(_yang("rain_data_train_Light"), *_RAIN100L, *_TRAIN),
        test=(_yang("rain_data_test_Light"), *_RAIN100L, *_TEST),
    ),
    "rain13k": Benchmark(
        "rain", train=(_folders("train/Rain13K/input", "train/Rain13K/target"), *_TRAIN), test=_TEST
    ),
    "rain200l": Benchmark("rain", *_RAIN200),
    "rain200h": Benchmark("rain", *_RAIN200),
    "did": Benchmark("rain", _TRAIN, _TEST),
    "ddn": Benchmark("rain", *_DDN),
    "its": Benchmark(
        "haze",
        train=(
            _folders("hazy", "clear", _AFTER_NUMBER),
            _folders("train/hazy", "train/gt", _AFTER_NUMBER),
        ),
    ),
    "ots": Benchmark(
        "haze",
        train=(
            _folders("hazy", "clear", _AFTER_NUMBER),
            Layout(("part*/*",), rf"^part\d*/(.*?){_AFTER_NUMBER}$", r"clear/\1"),
            _folders("train/hazy", "train/gt", _AFTER_NUMBER),
        ),
    ),
    "sots_indoor": Benchmark(
        "haze",
        test=(
            _folders("indoor/hazy", "indoor/gt", _AFTER_NUMBER),
            _folders("nyuhaze500/hazy", "nyuhaze500/gt", _AFTER_NUMBER),
            _folders("hazy", "gt", _AFTER_NUMBER),
            *_INPUT_TARGET,
        ),
    ),
    "sots_outdoor": Benchmark(
        "haze",
        test=(
            _folders("outdoor/hazy", "outdoor/gt", _AFTER_NUMBER),
            _folders("hazy", "gt", _AFTER_NUMBER),
            *_INPUT_TARGET,
        ),
    ),
    "gopro": Benchmark(
        "blur",
        train=(Layout(("train/*/blur/*",), r"/blur/", "/sharp/"), *_TRAIN),
        test=(
            Layout(("test/*/blur/*",), r"/blur/", "/sharp/"),
            _folders("test/GoPro/input", "test/GoPro/target"),
            *_TEST,
        ),
    ),
    "hide": Benchmark(
        "blur",
        train=(_folders("train", "GT"),),
        test=(
            Layout(("test/test-*/*",), r"^test/test-[^/]*/", "GT/"),
            _folders("test/HIDE/input", "test/HIDE/target"),
            _folders("test", "GT"),
            *_INPUT_TARGET,
        ),
    ),
    "realblur_r": Benchmark(
        "blur", _realblur("R", _REALBLUR_R, "train"), _realblur("R", _REALBLUR_R, "test")
    ),
    "realblur_j": Benchmark(
        "blur", _realblur("J", _REALBLUR_J, "train"), _realblur("J", _REALBLUR_J, "test")
    ),
    "dpdd": Benchmark("defocus", _dpdd("train"), _dpdd("test")),
    "dpdd_dual": Benchmark("defocus", _dual("train"), _dual("test")),
    "sidd": Benchmark("noise", *_SIDD),
    "lol": Benchmark(
        "lowlight",
        train=(_folders("our485/low", "our485/high"), *_TRAIN),
        test=(_folders("eval15/low", "eval15/high"), *_TEST),
    ),
}


def find_benchmark(name: str, root: str | Path, split: str = "train") -> list[Entry]:
    """The images of a published benchmark, sorted by path.

    Args:
        name: a key of `BENCHMARKS`.
        root: its folder.
        split: `train` or `test`.

    Raises:
        ValueError: if the benchmark, its split or its files are not known, or an image has no twin.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"Unknown benchmark {name!r}; known are {', '.join(BENCHMARKS)}.")
    if split not in ("train", "test"):
        raise ValueError(f"`split` must be train or test, got {split!r}.")
    root, layouts = Path(root), getattr(BENCHMARKS[name], split)
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder; the root of {name} was expected.")
    if not layouts:
        raise ValueError(f"{name} has no {split} split.")
    tried = []
    for layout in layouts:
        found = [_images(root, pattern) for pattern in layout.images]
        if all(found) and (layout.listed is None or (root / layout.listed).is_file()):
            return _entries(root, layout, sorted(chain.from_iterable(found)))
        tried.append(" and ".join(filter(None, [*layout.images, layout.listed])))
    raise ValueError(f"{root} does not hold {name} ({split}): looked for {'; '.join(tried)}.")


def _images(root: Path, pattern: str) -> list[Path]:
    return sorted(path for path in root.glob(pattern) if is_image(path))


def _entries(root: Path, layout: Layout, images: list[Path]) -> list[Entry]:
    if layout.listed:
        entries, wrong = [], []
        for line in filter(
            str.strip, (root / layout.listed).read_text(encoding="utf-8").splitlines()
        ):
            files = [root / part for part in line.split()[:2]]
            if len(files) == 2 and files[0].is_file() and files[1].is_file():
                entries.append(Entry(files[0], (files[1],)))
            else:
                wrong.append(line)
        _refuse(root, wrong, f"lines of {layout.listed} do not name two files")
        return entries
    if layout.clean is None:
        return [Entry(path) for path in images]
    if layout.pattern is None:
        views = [images] + ([_images(root, layout.right)] if layout.right else [])
        twins = _images(root, layout.clean)
        if any(len(view) != len(twins) for view in views):
            counts = ", ".join(str(len(view)) for view in [*views, twins])
            raise ValueError(
                f"The images of {root} are paired by their order, but there are not as many of "
                f"each: {counts}."
            )
        return [Entry(clean, tuple(degraded)) for clean, *degraded in zip(twins, *views)]

    def twin(path: Path, replacement: str) -> Path | None:
        stem = path.relative_to(root).with_suffix("").as_posix()
        moved, count = re.subn(layout.pattern, replacement, stem)
        if not count:
            return None
        ends = (path.suffix, *sorted(EXTENSIONS))
        for suffix in chain.from_iterable((end, end.upper()) for end in ends):
            file = root / f"{moved}{suffix}"
            if file.is_file():
                return file
        return None

    entries, lonely = [], []
    for path in images:
        files = [path, *([twin(path, layout.right)] if layout.right else [])]
        clean = twin(path, layout.clean)
        if clean is None or None in files:
            lonely.append(str(path.relative_to(root)))
        else:
            entries.append(Entry(clean, tuple(files)))
    _refuse(root, lonely, "images have no twin")
    return entries


def _refuse(root: Path, names: list[str], what: str) -> None:
    if names:
        raise ValueError(f"{len(names)} {what} in {root}: {', '.join(names[:10])}.")
