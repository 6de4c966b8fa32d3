"""Filling, enlarging and colouring through the API of the app: what must stay stays, masks of every
kind, and messages for what cannot be done."""

import inspect
import io
import os
import pickle
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
import torch
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image, ImageCms

from tests.tools import tiny
from tests.tools.space import MAX_PIXELS, ROOT, tiny_space
from textir.images.picture import Picture, read_picture, resize, to_pixels, write_picture
from textir.models import EditProcessor
from textir.models.edit_processor import luma, reduce
from textir.space.edit_settings import EditSettings, in_gray
from textir.space.edit_view import about, size_line
from textir.space.edit_worker import EditResult, EditWorker, Stoppable
from textir.space.editor import NAMES, Editor
from textir.space.inputs import Facts
from textir.space.masks import read_hole
from textir.space.model import Model
from textir.space.photo_tab import PhotoTab
from textir.space.worker import Stopped, Worker

HEIGHT, WIDTH = 48, 80


@pytest.fixture(scope="module")
def space():
    """An app with tiny networks."""
    return Client(tiny_space()[0], verbose=False)


@pytest.fixture(scope="module")
def worker():
    return EditWorker(Editor(tiny.editing_pipeline(), "mini-textir", "cpu"))


def random_pixels(seed: int = 0, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return levels.astype(np.float32) / 255


@pytest.fixture
def photo(tmp_path):
    return write_picture(tmp_path / "photo.png", Picture(random_pixels()))


@pytest.fixture
def gray(tmp_path):
    return write_picture(tmp_path / "gray.png", in_gray(Picture(random_pixels(), is_gray=True)))


def hole() -> np.ndarray:
    inside = np.zeros((HEIGHT, WIDTH), dtype=bool)
    inside[10:24, 30:60] = True
    return inside


@pytest.fixture
def mask(tmp_path):
    return save_mask(tmp_path / "mask.png", hole())


def save_mask(path: Path, inside: np.ndarray) -> Path:
    Image.fromarray(inside).convert("L").save(path)
    return path


def bytes_of(file) -> np.ndarray:
    return np.asarray(Image.open(file))


def fill(space, photo, mask=None, **options) -> list:
    sent = None if mask is None else handle_file(mask)
    return space.predict(handle_file(photo), sent, api_name="/inpaint", **options)


def run_code(code: str, folder) -> np.ndarray:
    names, before = {}, Path.cwd()
    os.chdir(folder)
    try:
        exec(code, names)
    finally:
        os.chdir(before)
    return np.asarray(names["result"])


def assert_nearly_equal(found: np.ndarray, expected: np.ndarray) -> None:
    """Weights that were loaded anew lie elsewhere in memory, where sums round otherwise."""
    assert found.shape == expected.shape
    assert abs(found.astype(int) - expected).max() <= 1


# ---- erase and fill


def test_filling_changes_the_hole_and_nothing_else(space, photo, mask):
    slider, file, summary, variants, files, code, used = fill(space, photo, mask)
    before, after = bytes_of(photo), bytes_of(file)
    assert np.array_equal(before[~hole()], after[~hole()])
    assert (before != after).any(-1)[hole()].mean() > 0.5
    assert Path(file).name == "photo-filled.png" and len(files) == len(variants) == 1
    assert np.array_equal(bytes_of(slider[1]), after) and np.array_equal(bytes_of(used) > 0, hole())
    assert "**Filled** · 80 x 48, 10.9% of it new" in summary and "\n" not in summary
    write = mask.with_name("photo-mask.png")
    write.write_bytes(Path(used).read_bytes())
    assert_nearly_equal(run_code(code, write.parent), after)


def test_depth_alpha_and_profile_survive_filling(space, tmp_path, mask):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 65536, (HEIGHT, WIDTH, 3)).astype(np.float32) / 65535
    alpha = rng.random((HEIGHT, WIDTH), dtype=np.float32)
    deep = Picture(pixels, alpha, bits=16, icc_profile=profile)
    file = fill(space, write_picture(tmp_path / "deep.png", deep), mask)[1]
    sent, written = read_picture(tmp_path / "deep.png"), read_picture(file)
    assert written.bits == 16 and written.icc_profile == profile
    assert np.array_equal(sent.pixels[~hole()], written.pixels[~hole()])
    assert np.array_equal(sent.alpha, written.alpha)


def test_an_inverted_mask_keeps_what_it_shows(space, photo, mask):
    after = bytes_of(fill(space, photo, mask, invert=True)[1])
    before = bytes_of(photo)
    assert np.array_equal(before[hole()], after[hole()])
    assert (before != after).any(-1)[~hole()].mean() > 0.5


def test_strokes_come_without_a_browser_too_at_any_size(space, photo, tmp_path):
    layer = np.zeros((HEIGHT // 2, WIDTH // 2, 4), dtype=np.uint8)
    layer[5:12, 15:30] = (255, 0, 90, 153)
    Image.fromarray(layer).save(tmp_path / "layer.png")
    drawing = {"background": None, "layers": [handle_file(tmp_path / "layer.png")]}
    drawing["composite"] = None
    *_, used = fill(space, photo, drawing=drawing)
    painted = bytes_of(used) > 0
    assert painted[10:24, 30:60].all() and painted.sum() < 1.2 * 14 * 30


def masks_that_cannot_be():
    full = np.ones((HEIGHT, WIDTH), dtype=bool)
    return {
        "none": (None, "Paint over what shall be filled"),
        "small": (hole()[::2, ::2], "the size of the photo, 80 x 48, got 40 x 24"),
        "empty": (~full, "The mask is empty"),
        "full": (full, "covers the whole photo"),
    }


@pytest.mark.parametrize("kind", masks_that_cannot_be())
def test_masks_that_cannot_be_are_messages(space, photo, tmp_path, kind):
    inside, message = masks_that_cannot_be()[kind]
    file = None if inside is None else save_mask(tmp_path / "mask.png", inside)
    with pytest.raises(AppError, match=message) as caught:
        fill(space, photo, file)
    assert "/tmp" not in str(caught.value)


def test_a_file_that_is_no_mask_is_a_message(space, photo, tmp_path):
    (tmp_path / "mask.png").write_bytes(b"nothing")
    with pytest.raises(AppError, match="not an image"):
        fill(space, photo, tmp_path / "mask.png")


def test_strokes_and_a_file_act_together(mask):
    layer = Image.new("RGBA", (WIDTH, HEIGHT))
    layer.paste((255, 0, 90, 153), (0, 40, 10, 48))
    inside = read_hole({"layers": [layer]}, str(mask), (HEIGHT, WIDTH), False, EditProcessor())
    assert inside.sum() == hole().sum() + 80 and inside[44, 4]


def test_strokes_on_another_photo_are_refused():
    layer = Image.new("RGBA", (40, 80), (255, 0, 90, 153))
    with pytest.raises(ValueError, match="another photo"):
        read_hole({"layers": [layer]}, None, (HEIGHT, WIDTH), False, EditProcessor())


# ---- enlarge


def test_an_enlarged_photo_reduced_again_is_the_photo(space, tmp_path):
    coarse = Picture(random_pixels(0, 6, 10)).tensor()  # noise itself has no larger twin in [0, 1]
    smooth = Picture(to_pixels(resize(coarse, (HEIGHT, WIDTH))))
    photo = write_picture(tmp_path / "photo.png", smooth)
    file, summary, _, _, code = space.predict(handle_file(photo), 3, api_name="/enlarge")[1:]
    large = read_picture(file)
    assert large.pixels.shape == (3 * HEIGHT, 3 * WIDTH, 3)
    back = reduce(large.tensor(), (HEIGHT, WIDTH))
    difference = 255 * (back - read_picture(photo).tensor()).abs()
    assert difference.max() < 0.6 and "80 x 48 to 240 x 144" in summary
    assert_nearly_equal(run_code(code, photo.parent), bytes_of(file))


@pytest.mark.parametrize(
    "scale, message",
    [
        (16, f"1280 x 768 pixels, 1.0 million; at most {MAX_PIXELS / 1e6:g}"),
        (128, "above 1 and up to 16, got 128"),
        (1, "above 1 and up to 16, got 1"),
        ("much", "must be a number, got 'much'"),
    ],
)
def test_scales_that_cannot_be_are_refused_before_any_work(space, photo, scale, message):
    with pytest.raises(AppError, match=message):
        space.predict(handle_file(photo), scale, api_name="/enlarge")


def test_the_size_to_come_is_told_with_a_time_once_it_is_known(worker):
    facts = Facts(300, 451, False)
    worker.paces.clear()
    line = size_line(facts, 2, 1, worker)
    assert "902 x 600 pixels" in line and "about" not in line
    worker.measure()
    assert "in about" in size_line(facts, 2, 1, worker)
    assert size_line(Facts(4000, 3000, False), 4, 1, worker).startswith("**Too large.**")
    assert [about(0.2), about(12), about(300)] == [
        "in about a second",
        "in about 12 s",
        "in about 5 minutes",
    ]


# ---- colour


def test_a_coloured_photo_keeps_its_light(space, gray):
    file, summary, _, _, code = space.predict(handle_file(gray), "red", api_name="/colorize")[1:]
    after = torch.from_numpy(bytes_of(file).copy()).movedim(-1, 0)[None]
    assert np.array_equal(luma(after)[0, 0].numpy(), bytes_of(gray))
    assert bytes_of(file).std(-1).max() > 0 and summary.startswith("**Coloured** · 80 x 48")
    photo = gray.with_name("photo.png")
    photo.write_bytes(gray.read_bytes())
    assert_nearly_equal(run_code(code, photo.parent), bytes_of(file))


def test_a_photo_with_colours_is_refused_unless_it_may_be_made_gray(space, photo):
    with pytest.raises(AppError, match=r"has colours already\. Tick “Make it gray first”"):
        space.predict(handle_file(photo), api_name="/colorize")
    slider, file, *_, code = space.predict(handle_file(photo), make_gray=True, api_name="/colorize")
    expected = np.asarray(Image.open(photo).convert("L"))
    before = bytes_of(slider[0])
    assert np.array_equal(before[..., 0], expected) and np.array_equal(before[..., 2], expected)
    assert_nearly_equal(run_code(code, photo.parent), bytes_of(file))


# ---- words, variants, numbers


def test_variants_differ_and_the_seed_decides_all_but_the_first(space, gray):
    def ask(seed: int) -> list[bytes]:
        *_, variants, files, _ = space.predict(
            handle_file(gray), "blue", variants=3, seed=seed, api_name="/colorize"
        )
        assert [entry["caption"] for entry in variants] == ["1", "2", "3"]
        assert Path(files[2]).name == "gray-coloured-3.png"
        return [bytes_of(file).tobytes() for file in files]

    first, again, other = ask(1), ask(1), ask(2)
    assert first == again and len(set(first)) == 3
    assert first[0] == other[0] and first[1] != other[1]


def test_what_the_words_did_is_told(space, photo, mask):
    said = fill(space, photo, mask, prompt="a red car", strength=2)[2]
    assert "Your words moved the result by" in said or "changed next to nothing" in said
    assert "Your words" not in fill(space, photo, mask)[2]
    assert (
        "changed next to nothing** (0.0 of 255)"
        in fill(space, photo, mask, prompt="a red car", strength=0)[2]
    )


def test_a_prompt_that_is_too_long_is_told(space, photo, mask):
    said = fill(space, photo, mask, prompt="a red car " * 40)[2]
    assert "too long" in said


@pytest.mark.parametrize(
    "options, message",
    [
        ({"strength": 3}, "greater than maximum"),
        ({"variants": 9}, "greater than maximum"),
        ({"seed": -1}, "whole number"),
        ({"seed": None}, "whole number"),
    ],
    ids=str,
)
def test_numbers_that_cannot_be_are_messages(space, photo, mask, options, message):
    with pytest.raises((AppError, ValueError), match=message):
        fill(space, photo, mask, **options)


@pytest.mark.parametrize("endpoint", ["/inpaint", "/enlarge", "/colorize"])
def test_no_photo_is_a_message(space, endpoint):
    with pytest.raises(AppError, match="Upload a photo first"):
        space.predict(None, api_name=endpoint)


@pytest.mark.parametrize("endpoint", ["/inpaint", "/enlarge", "/colorize"])
def test_a_broken_photo_is_a_message_without_paths(space, tmp_path, endpoint):
    (tmp_path / "bad.png").write_bytes(b"not a picture")
    with pytest.raises(AppError, match="not an image") as caught:
        space.predict(handle_file(tmp_path / "bad.png"), api_name=endpoint)
    assert not any(hint in str(caught.value) for hint in ("/tmp", str(ROOT), "Traceback"))


# ---- work


def test_stopping_ends_an_edit_soon(space, tmp_path):
    large = write_picture(tmp_path / "large.png", Picture(random_pixels(2, 256, 256)))
    start = time.perf_counter()
    space.predict(handle_file(large), 2, api_name="/enlarge")
    once = time.perf_counter() - start
    job = space.submit(handle_file(large), 2, "a dog", variants=4, api_name="/enlarge")
    next(iter(job))
    assert job.cancel()
    start = time.perf_counter()
    space.predict(handle_file(large), 2, api_name="/enlarge")
    assert time.perf_counter() - start < 6 * once, "the stopped run, eight times as long, went on"


def test_twenty_visitors_with_mixed_work_get_what_they_get_alone(tmp_path, mask):
    def only(archive) -> io.BytesIO:
        with zipfile.ZipFile(archive) as bundle:
            return io.BytesIO(bundle.read(*bundle.namelist()))

    def predict(visitor: Client, photo, *arguments, name: str, **options) -> list:
        return visitor.predict(handle_file(photo), *arguments, api_name=f"/{name}", **options)

    kinds = [
        lambda visitor, photo: predict(visitor, photo, name="restore")[1],
        lambda visitor, photo: fill(visitor, photo, mask)[1],
        lambda visitor, photo: predict(visitor, photo, 2, name="enlarge")[1],
        lambda visitor, photo: predict(visitor, photo, "red", name="colorize", make_gray=True)[1],
        lambda visitor, photo: predict(visitor, photo, "noise:25", 3, name="degrade")[1],
        lambda visitor, photo: only(
            visitor.predict([handle_file(photo)], api_name="/batch")[0],
        ),
        lambda visitor, photo: predict(visitor, photo, name="compare")[0][-1]["image"],
    ]
    # Each has a session: Gradio cancels all runs of a function that one session has.
    visitors = [Client(tiny_space()[0], verbose=False) for _ in range(22)]
    photos = []
    for seed in range(22):
        photos.append(write_picture(tmp_path / f"{seed}.png", Picture(random_pixels(seed))))

    def ask(number: int) -> np.ndarray:
        return bytes_of(kinds[number % len(kinds)](visitors[number], photos[number]))

    alone = [ask(number) for number in range(20)]
    with ThreadPoolExecutor(20) as pool:
        leaving = [
            visitor.submit(handle_file(photo), api_name="/restore")
            for visitor, photo in zip(visitors[20:], photos[20:])
        ]
        answers = pool.map(ask, range(20))
        for job in leaving:
            job.cancel()
        for expected, found in zip(alone, answers, strict=True):
            assert np.array_equal(expected, found)
    for visitor in visitors:
        visitor.close()


def test_every_call_of_torch_can_be_stopped():
    gone = threading.Event()

    def check() -> None:
        if gone.is_set():
            raise Stopped

    with pytest.raises(Stopped), Stoppable(check):
        total = torch.zeros(3)
        gone.set()
        total + 1
    assert (torch.zeros(3) + 1).sum() == 3


def test_closing_a_run_ends_its_thread(worker):
    picture = Picture(random_pixels(0, 256, 256))
    before = set(threading.enumerate())
    run = worker.run(picture, EditSettings("super-resolution", scale=8.0, variants=4))
    next(run)
    assert set(threading.enumerate()) - before
    start = time.perf_counter()
    run.close()
    assert set(threading.enumerate()) <= before and time.perf_counter() - start < 20


def test_zerogpu_gets_a_generator_what_can_be_sent_and_a_duration(worker):
    assert inspect.isgeneratorfunction(worker.run)
    picture = Picture(random_pixels())
    settings = EditSettings("inpaint", "", hole=hole())
    for event in worker.run(picture, pickle.loads(pickle.dumps(settings))):
        last = pickle.loads(pickle.dumps(event))
    assert isinstance(last, EditResult)
    one = EditSettings("super-resolution", scale=4.0)
    many = replace(one, prompt="a dog", variants=4, scale=16.0)
    large = Picture(np.zeros((800, 900, 3), np.float32))
    seconds = [worker.gpu_seconds(large, asked) for asked in (one, many)]
    assert 10 < seconds[0] < seconds[1] <= 120


# ---- without an editor


def page_of(editor: Editor) -> gr.Blocks:
    pipe = tiny.pipeline()
    with gr.Blocks() as page:
        worker = Worker(Model(pipe, "mini", "cpu"))
        PhotoTab(worker, EditWorker(editor)).lay_out()
    return page


def test_without_an_editor_nothing_is_offered_and_the_page_says_so(tmp_path):
    editor = Editor.load(str(tmp_path / "nothing"))
    assert editor.tasks == [] and "the editing checkpoint is not there" in editor.absence
    assert editor.absence.startswith("Erase and fill, Enlarge and Colour are not offered")
    page = page_of(editor)
    endpoints = {function.api_name for function in page.fns.values()}
    assert not {"inpaint", "enlarge", "colorize"} & endpoints and "restore" in endpoints
    row = next(block for block in page.blocks.values() if isinstance(block, gr.Radio))
    assert row.visible is False


def test_a_network_that_is_missing_takes_its_mode_along():
    editor = Editor(tiny.editing_pipeline(colorizer=None), "mini-textir", "cpu")
    assert editor.absence == "Colour is not offered: the checkpoint has no colorizer."
    row = next(block for block in page_of(editor).blocks.values() if isinstance(block, gr.Radio))
    assert [name for name, _ in row.choices] == ["Restore", *list(NAMES.values())[:2]]


def test_a_checkpoint_that_cannot_read_words_takes_none():
    editor = Editor(tiny.editing_pipeline(photo_tokenizer=None), "mini-textir", "cpu")
    assert editor.absence == "The editing checkpoint cannot read words."
    assert Editor(None, "", "cpu").absence.endswith(
        "no editing checkpoint is set (TEXTIR_EDIT_CHECKPOINT names one)."
    )
