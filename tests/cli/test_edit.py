"""The command edit: what is known of a file is in its result to the bit, every result is written
whole under a name of its own, and messages help."""

import itertools
import os

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from typer.testing import CliRunner

from pipelines import load_editor
from tests.tools import tiny
from textir.cli import app
from textir.images.picture import read_picture
from textir.images.records import is_record
from textir.models import EditProcessor
from textir.models.edit_processor import luma

HEIGHT, WIDTH = 24, 40
BOX = (slice(6, 16), slice(10, 26))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("editor")
    tiny.editing_pipeline().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder to work in, with a mask."""
    monkeypatch.chdir(tmp_path)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[BOX] = 255
    Image.fromarray(mask).save("mask.png")
    return tmp_path


@pytest.fixture
def edit(checkpoint):
    def run(*arguments):
        options = [str(argument) for argument in arguments]
        return CliRunner().invoke(app, ["edit", *options, "--checkpoint", checkpoint])

    return run


def noise(*shape, kind=np.uint8, seed=0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    if kind == np.float32:
        return generator.random(shape, dtype=np.float32)
    return generator.integers(0, np.iinfo(kind).max + 1, shape, dtype=kind)


def save(path, mode: str = "RGB", seed: int = 0, size=(HEIGHT, WIDTH)):
    """A file of noise: a mode of Pillow, or 16-bit or floating-point pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = {"16": np.uint16, "32": np.float32}.get(mode[-2:], np.uint8)
    shape = size if mode.startswith("L") and mode != "LA" else (*size, len(mode.rstrip("1632")))
    array = noise(*shape, kind=kind, seed=seed)
    if kind == np.uint8:
        Image.fromarray(array, mode).save(path)
    elif path.suffix == ".png":
        path.write_bytes(imagecodecs.png_encode(array))
    else:
        colours = "minisblack" if array.ndim == 2 else "rgb"
        tifffile.imwrite(path, array, photometric=colours)
    return path


def stored(path) -> np.ndarray:
    """The numbers in a file."""
    if path.suffix == ".tif":
        return tifffile.imread(path)
    return imagecodecs.png_decode(path.read_bytes())


def names(folder) -> list[str]:
    """The files in a folder but for records."""
    files = (path for path in folder.rglob("*") if path.is_file() and not is_record(path))
    return sorted(str(path.relative_to(folder)) for path in files)


# ---- what must be kept


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("a.png", "RGB"),
        ("a.png", "L"),
        ("a.png", "RGBA"),
        ("a.png", "LA"),
        ("a.png", "RGB16"),
        ("a.png", "L16"),
        ("a.tif", "RGB16"),
        ("a.tif", "L16"),
        ("a.tif", "RGB32"),
        ("a.tif", "L32"),
    ],
)
def test_pixels_outside_the_hole_are_those_of_the_file(place, edit, name, mode):
    source = save(place / name, mode)
    result = edit(source, "--mask", "mask.png", "--prompt", "a dog", "--output", "out")
    assert result.exit_code == 0, result.output
    before, after = stored(source), stored(place / "out" / name)
    assert before.dtype == after.dtype and before.shape == after.shape
    outside = stored(place / "mask.png") == 0
    assert np.array_equal(before[outside], after[outside])
    assert not np.array_equal(before[BOX], after[BOX])


@pytest.mark.parametrize("mode", ["L", "LA", "L16", "RGB"])
def test_colours_keep_the_luminance_of_the_file(place, edit, mode):
    source = save(place / "a.png", mode)
    if mode == "RGB":
        Image.open(source).convert("L").convert("RGB").save(source)
    result = edit(source, "--prompt", "a dog", "--output", "out")
    assert result.exit_code == 0 and "colorize; words: a dog" in result.output
    before, after = stored(source), stored(place / "out" / "a.png")
    assert after.dtype == before.dtype and after.shape[-1] == (4 if mode == "LA" else 3)
    colours = torch.from_numpy(after[..., :3].astype(np.int64)).movedim(-1, 0)[None]
    gray = before if before.ndim == 2 else before[..., 0]
    assert np.array_equal(luma(colours)[0, 0].numpy(), gray)
    if mode == "LA":
        assert np.array_equal(before[..., 1], after[..., 3])


def test_a_gray_format_gives_way_to_one_that_holds_colours(place, edit):
    Image.fromarray(noise(HEIGHT, WIDTH)).save("a.pgm")
    assert edit("a.pgm", "--output", "out").exit_code == 0
    assert names(place / "out") == ["a.png"]
    assert edit("a.pgm", "--scale", 2, "--output", "out").exit_code == 0
    assert names(place / "out") == ["a.pgm", "a.png"]


def test_an_enlarged_file_has_the_new_size_everywhere(place, edit):
    exif = Image.Exif()
    exif[271] = "Maker"
    exif[34665] = {40962: WIDTH, 40963: HEIGHT, 41492: (3, 4)}
    image = Image.fromarray(noise(HEIGHT, WIDTH, 3))
    image.save("a.jpg", exif=exif, dpi=(100, 100), icc_profile=b"profile")
    result = edit("a.jpg", "--scale", 3, "--output", "out")
    assert result.exit_code == 0, result.output
    with Image.open("out/a.jpg") as enlarged:
        assert enlarged.size == (3 * WIDTH, 3 * HEIGHT)
        assert enlarged.info["dpi"] == (300, 300) and enlarged.info["icc_profile"] == b"profile"
        assert dict(enlarged.getexif().get_ifd(34665)) == {40962: 3 * WIDTH, 40963: 3 * HEIGHT}
        assert enlarged.getexif()[271] == "Maker"


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "RGB16", "L16"])
def test_depth_and_alpha_grow_with_the_photo(place, edit, mode):
    source = save(place / "a.png", mode)
    result = edit(source, "--scale", 2, "--task", "super-resolution", "--output", "out")
    assert result.exit_code == 0, result.output
    before, after = read_picture(source), read_picture(place / "out" / "a.png")
    assert (after.bits, after.is_gray) == (before.bits, before.is_gray)
    assert after.pixels.shape == (2 * HEIGHT, 2 * WIDTH, 3)
    assert (after.alpha is None) == (before.alpha is None)
    if mode.endswith("16"):
        assert len(np.unique(after.pixels)) > 1000


def test_the_command_makes_what_the_pipeline_makes(place, edit, checkpoint):
    source = save(place / "a.png")
    edit(source, "--scale", 2, "--prompt", "a dog", "--strength", 2, "--output", "out")
    expected = load_editor(checkpoint)(Image.open(source), "a dog", scale=2, strength=2).images[0]
    assert np.array_equal(stored(place / "out" / "a.png"), np.asarray(expected))


# ---- several photos, several results


def test_variants_have_numbers(place, edit):
    save(place / "a.png", "L")
    result = edit("a.png", "--prompt", "a dog", "--prompt", "", "--variants", 2, "--output", "out")
    assert names(place / "out") == [f"a-{number}.png" for number in (1, 2, 3, 4)]
    results = [stored(place / "out" / name) for name in names(place / "out")]
    assert all(not np.array_equal(*pair) for pair in itertools.combinations(results, 2))
    assert result.output.count("words: a dog") == result.output.count("words: none") == 2
    edit("a.png", "--variants", 2, "--output", "out/b.png")
    assert {"b-1.png", "b-2.png"} <= set(names(place / "out"))


def test_a_seed_decides_the_variants(place, edit):
    save(place / "a.png", "L")
    for output, seed in (("one", 1), ("again", 1), ("other", 2)):
        edit("a.png", "--variants", 2, "--seed", seed, "--output", output)
    one, again, other = (stored(place / name / "a-2.png") for name in ("one", "again", "other"))
    assert np.array_equal(one, again) and not np.array_equal(one, other)


def test_variants_never_overwrite_a_photo(place, edit):
    before = save(place / "a-1.png", "L").read_bytes()
    result = edit("a-1.png", "--variants", 2, "--output", "a.png")
    assert result.exit_code == 2 and "is a photo to work on" in result.output
    assert (place / "a-1.png").read_bytes() == before


def test_a_folder_keeps_its_tree_and_every_photo_has_its_mask(place, edit):
    for name in ("a.png", "deep/b.jpg"):
        save(place / "photos" / name)
    for name, column in (("a.png", 3), ("deep/b.png", 20)):
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[4:12, column : column + 9] = 255
        (place / "photos/masks" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(place / "photos/masks" / name)
    arguments = ["photos", "--recursive", "--mask", "photos/masks", "--output", "photos/out"]
    for _ in range(2):
        result = edit(*arguments)
        assert result.exit_code == 0 and "2 of 2 images edited" in result.output
        assert names(place / "photos" / "out") == ["a.png", "deep/b.jpg"]
    changed = stored(place / "photos/a.png") != stored(place / "photos/out/a.png")
    assert set(np.unique(np.nonzero(changed.any(-1))[1])) <= set(range(3, 12))


def test_a_bad_file_does_not_stop_the_others(place, edit):
    save(place / "photos/a.png")
    (place / "photos/b.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    save(place / "photos/c.png", size=(30, 30))
    save(place / "photos/d.png")
    result = edit("photos", "--mask", "mask.png", "--output", "out")
    assert result.exit_code == 1 and names(place / "out") == ["a.png", "d.png"]
    last = result.output.split("2 of 4 images edited, 2 bad")[1]
    assert "b.png" in last and "c.png" in last
    assert "size of the photo, 30 x 30" in result.output
    result = edit("photos", "--mask", "mask.png", "--output", "other", "--fail-fast")
    assert names(place / "other") == ["a.png"]


def test_photos_without_a_mask_are_named(place, edit):
    save(place / "photos/a.png")
    save(place / "photos/b.png")
    (place / "masks").mkdir()
    for name in ("a.png", "b.png", "b.tif"):
        Image.open("mask.png").save(place / "masks" / name)
    (place / "masks" / "a.png").unlink()
    result = edit("photos", "--mask", "masks", "--output", "out")
    assert result.exit_code == 1
    assert "has no mask for a.png" in result.output
    assert "several masks for b.png" in result.output


def test_twins_have_results_of_their_own(place, edit):
    save(place / "a.png", "L")
    Image.fromarray(noise(HEIGHT, WIDTH, seed=1)).save("a.gif")
    assert edit("a.png", "a.gif", "--variants", 2, "--output", "out").exit_code == 0
    assert len(names(place / "out")) == 4


def test_what_is_there_is_left_alone_if_asked(place, edit):
    save(place / "a.png", "L")
    arguments = ["a.png", "--variants", 2, "--output", "out", "--skip-existing"]
    assert edit(*arguments).exit_code == 0
    before = os.stat("out/a-1.png").st_mtime_ns
    assert edit(*arguments).exit_code == 0 and os.stat("out/a-1.png").st_mtime_ns == before
    os.unlink("out/a-2.png")
    assert edit(*arguments).exit_code == 0 and names(place / "out") == ["a-1.png", "a-2.png"]


def test_who_stops_is_told_what_is_done(place, edit, monkeypatch):
    save(place / "photos/a.png", "L")
    save(place / "photos/b.png", "L")
    calls = []
    finish = EditProcessor.finish_colorization

    def stop_at_second(self, *arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return finish(self, *arguments)

    monkeypatch.setattr(EditProcessor, "finish_colorization", stop_at_second)
    result = edit("photos", "--output", "out")
    assert result.exit_code == 130 and "1 of 2 images edited" in result.output
    assert names(place / "out") == ["a.png"]


# ---- words, masks, messages


def test_a_prompt_that_is_too_long_is_told_once(place, edit):
    save(place / "photos/a.png", "L")
    save(place / "photos/b.png", "L")
    result = edit("photos", "--prompt", "a photo of the dog , " * 9, "--output", "out")
    assert result.exit_code == 0 and result.output.count("too long by") == 1


def test_a_reference_speaks_in_place_of_words(place, edit):
    save(place / "a.png", "L")
    save(place / "b.jpg")
    result = edit("a.png", "--reference", "b.jpg", "--output", "out")
    assert result.exit_code == 0 and "words: reference image" in result.output


def test_masks_are_read_as_they_are_stored(place, edit):
    """Inverted, of ones, of alpha, of 16 bits: the same hole."""
    source, mask = save(place / "a.png"), stored(place / "mask.png")
    layer = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    layer[..., 1], layer[..., 3] = 200, mask
    Image.fromarray(255 - mask).save("inverted.png")
    Image.fromarray(mask // 255).save("ones.png")
    Image.fromarray(layer).save("alpha.png")
    Image.fromarray(mask.astype(np.uint16) * 257).save("deep.png")
    edit(source, "--mask", "mask.png", "--output", "out")
    expected = stored(place / "out" / "a.png")
    for name, options in (
        ("inverted.png", ["--invert-mask"]),
        ("ones.png", []),
        ("alpha.png", []),
        ("deep.png", []),
    ):
        result = edit(source, "--mask", name, *options, "--output", "other")
        assert result.exit_code == 0, result.output
        assert np.array_equal(stored(place / "other" / "a.png"), expected), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "inpaint"], "Inpainting needs `--mask`"),
        (["--task", "paint"], "`task` must be auto"),
        (["--mask", "nowhere.png"], "does not exist"),
        (["--reference", "nowhere.png"], "does not exist"),
        (["--mask", "mask.png", "--scale", "2"], "leave it out of inpainting"),
        (["--mask", "mask.png", "--task", "colorize"], "belongs to inpainting"),
        (["--invert-mask"], "pass `--mask` too"),
        (["--scale", "17"], "up to 16, got 17"),
        (["--strength", "9"], "0 to 3, got 9"),
        (["--tile", "3"], "at least 128"),
        (["--tile", "300", "--task", "colorize"], "belongs to super-resolution"),
        (["--prompt", "a", "--reference", "mask.png"], "not both"),
        (["--checkpoint", "nowhere"], "neither a folder"),
        (["--checkpoint", "mini"], "that is for `load`"),
    ],
)
def test_what_cannot_be_is_one_line(place, checkpoint, options, message):
    save(place / "a.png")
    arguments = ["edit", "a.png", "--output", "out", "--checkpoint", checkpoint, *options]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2 and not (place / "out").exists()
    (line,) = [line for line in result.output.splitlines() if line.startswith("error: ")]
    assert message in line
