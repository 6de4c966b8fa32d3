"""The app answers through its API: PNG of the same size, the pixels of the Python API, messages for what cannot be done."""

import io

import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

import app as space
from textir.images import Picture, read_picture, write_picture
from textir.restoration import restore_picture


@pytest.fixture(scope="module")
def client():
    _, url, _ = space.demo.launch(prevent_thread_lock=True, quiet=True, show_error=True, ssr_mode=False, server_port=None)
    yield Client(url, verbose=False)
    space.demo.close()


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).random((48, 80, 3), dtype=np.float32)
    return write_picture(tmp_path / "photo.png", Picture(pixels))


def test_restoring_through_the_api_equals_the_python_api(client, photo):
    slider, file, *_ = client.predict(handle_file(photo), api_name="/restore")
    expected, _ = restore_picture(space.pipe, read_picture(photo))
    written = read_picture(file)
    assert np.array_equal((written.pixels * 255).round(), (expected.pixels.clip(0, 1) * 255).round())
    before, after = (Image.open(path) for path in slider)
    assert before.format == after.format == "PNG" and after.size == (80, 48)
    assert np.array_equal(np.asarray(after.convert("RGB")), (written.pixels * 255).round())


def test_depth_and_alpha_survive_the_app(client, tmp_path):
    rng = np.random.default_rng(1)
    picture = Picture(rng.random((48, 80, 3), dtype=np.float32), rng.random((48, 80), dtype=np.float32), bits=16)
    _, file, *_ = client.predict(handle_file(write_picture(tmp_path / "deep.png", picture)), api_name="/restore")
    written = read_picture(file)
    assert file.endswith(".png") and written.bits == 16
    assert np.abs(written.alpha - picture.alpha).max() < 1e-4


@pytest.mark.parametrize("task", ["auto", "denoise", "derain", "dehaze", "lowlight"])
def test_every_task_answers(client, photo, task):
    _, _, summary, inside, code, _ = client.predict(handle_file(photo), task, api_name="/restore")
    assert "80 x 48" in summary and "restoring" in summary and "Restored" in inside
    assert (f"task='{task}'" in code) == (task != "auto")


def test_no_photo_is_a_message(client):
    with pytest.raises(AppError, match="Upload a photo first"):
        client.predict(None, api_name="/restore")


def bad_files():
    buffer = io.BytesIO()
    Image.new("RGB", (80, 48)).save(buffer, "PNG")
    tiny_picture = io.BytesIO()
    Image.new("RGB", (15, 900)).save(tiny_picture, "PNG")
    frames = io.BytesIO()
    Image.new("RGB", (80, 48)).save(frames, "GIF", save_all=True, append_images=[Image.new("RGB", (80, 48), "red")])
    return {
        "truncated": (buffer.getvalue()[:60], "png", "damaged or truncated"),
        "15 x 900": (tiny_picture.getvalue(), "png", "at least 16 pixels"),
        "animated": (frames.getvalue(), "gif", "frames"),
    }


@pytest.mark.parametrize("kind", bad_files())
def test_bad_uploads_give_messages_without_paths(client, tmp_path, kind):
    data, suffix, message = bad_files()[kind]
    path = tmp_path / f"bad.{suffix}"
    path.write_bytes(data)
    with pytest.raises(AppError, match=message) as caught:
        client.predict(handle_file(path), api_name="/restore")
    assert "/tmp" not in str(caught.value) and "Traceback" not in str(caught.value)


def test_unknown_tasks_are_refused(client, photo):
    with pytest.raises((AppError, ValueError)):
        client.predict(handle_file(photo), "defog", api_name="/restore")


def test_examples_are_degraded_photos_of_every_kind():
    rows = space.example_files()
    assert {task for _, task in rows} == {"denoise", "derain", "dehaze", "lowlight"}
    assert all(read_picture(path).pixels.std() > 0.01 for path, _ in rows)


def test_duration_grows_with_pixels_and_is_bounded():
    small, large = (Picture(np.zeros((side, side, 3), np.float32)) for side in (64, 4000))
    options = {"num_inference_steps": None}
    assert 0 < space.gpu_seconds(small, options) < space.gpu_seconds(large, options) <= 120
