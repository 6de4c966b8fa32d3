"""The app answers through its API: PNG of the same size, the pixels of the Python API, messages for
what cannot be done."""

import io
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from typer.testing import CliRunner

import app as space
from pipelines import MINI, TextGuidedRestorationPipeline, load
from pipelines.pipeline_text_guided_restoration import TASKS
from tests.tools import tiny
from tests.tools.space import MAX_PIXELS, ROOT, tiny_space
from textir.cli import app as command_line
from textir.degradations import degrade
from textir.evaluation.metrics import psnr, ssim
from textir.images.picture import Picture, read_picture, write_picture
from textir.images.restoration import restore_picture
from textir.space.settings import Settings
from textir.training.lora import make_trainable, save_adapter

ENDPOINTS = ["/restore", "/compare", "/degrade", "/batch"]


@pytest.fixture(scope="module")
def client():
    """Of the embedded checkpoint, served by this process."""
    _, url, _ = space.demo.launch(
        prevent_thread_lock=True, quiet=True, show_error=True, ssr_mode=False, server_port=None
    )
    yield Client(url, verbose=False)
    space.demo.close()


@pytest.fixture(scope="module")
def chain():
    """Of a whole chain of tiny networks, served by `python app.py`."""
    return Client(tiny_space()[0], verbose=False)


def random_photo(path, seed: int = 0, height: int = 48, width: int = 80) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_picture(
        path, Picture(np.random.default_rng(seed).random((height, width, 3), dtype=np.float32))
    )


@pytest.fixture
def photo(tmp_path):
    return random_photo(tmp_path / "photo.png")


def bytes_of(file) -> np.ndarray:
    """The 8-bit pixels of a file, which has to be a PNG."""
    image = Image.open(file)
    assert image.format == "PNG"
    return np.asarray(image.convert("RGB"))


def restored(client, file, *arguments, **options) -> np.ndarray:
    return bytes_of(
        client.predict(handle_file(file), *arguments, api_name="/restore", **options)[1]
    )


def run_code(code: str, folder) -> np.ndarray:
    """The pixels that the Python lines of the page give for `photo.png` in a folder."""
    names, before = {}, Path.cwd()
    os.chdir(folder)
    try:
        exec(code, names)
    finally:
        os.chdir(before)
    return np.asarray(names["restored"])


# ---- restoring


def test_restoring_through_the_api_equals_the_python_api(client, photo):
    slider, file, *_ = client.predict(handle_file(photo), api_name="/restore")
    expected, _ = restore_picture(space.model.pipe, read_picture(photo))
    assert np.array_equal(bytes_of(file), (expected.pixels.clip(0, 1) * 255).round())
    before, after = map(bytes_of, slider)
    assert np.array_equal(before, bytes_of(photo)) and np.array_equal(after, bytes_of(file))


def assert_equal_but_for_rounding(found: np.ndarray, expected: np.ndarray):
    """Weights that were loaded anew lie at other alignments in memory, where sums round
    otherwise."""
    assert found.shape == expected.shape
    assert abs(found.astype(int) - expected).max() <= 1 and (found != expected).mean() < 0.01


def test_the_python_lines_of_the_page_restore_alike_with_the_embedded_checkpoint(client, photo):
    *_, file, _, _, code, _ = client.predict(handle_file(photo), "denoise", api_name="/restore")
    assert_equal_but_for_rounding(run_code(code, photo.parent), bytes_of(file))


def test_depth_and_alpha_survive_the_app(client, tmp_path):
    rng = np.random.default_rng(1)
    picture = Picture(
        rng.random((48, 80, 3), dtype=np.float32), rng.random((48, 80), dtype=np.float32), bits=16
    )
    _, file, *_ = client.predict(
        handle_file(write_picture(tmp_path / "deep.png", picture)), api_name="/restore"
    )
    written = read_picture(file)
    assert file.endswith(".png") and written.bits == 16
    assert np.abs(written.alpha - picture.alpha).max() < 1e-4


@pytest.mark.parametrize("task", ["auto", "denoise", "derain+dehaze", ["dehaze", "lowlight"]])
def test_every_task_answers(client, photo, task):
    _, _, summary, inside, code, _ = client.predict(handle_file(photo), task, api_name="/restore")
    assert "80 x 48" in summary and "restoring" in inside and "Restored" in inside
    text = task if isinstance(task, str) else "+".join(task)
    assert (f"task='{text}'" in code) == (task != "auto")
    assert "old to remove" in summary or (task == "auto" and "found out by itself" in inside)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"seed": 7, "steps": 3, "guidance_scale": 2.5, "strength": 0.5},
        {"guidance": "degraded", "both_words": False},
        {"guidance": "prompt", "prompt": "a photo of a dog"},
        {"prompt": "a clean street", "negative_prompt": "rainy, dark"},
        {"guidance": "none"},
        {"tile": 64},
    ],
    ids=lambda options: ", ".join(options) or "defaults",
)
def test_the_python_lines_of_the_page_restore_alike_with_the_whole_chain(chain, tmp_path, options):
    photo = random_photo(tmp_path / "photo.png", height=72, width=100)
    _, file, summary, _, code, _ = chain.predict(
        handle_file(photo), "denoise", api_name="/restore", **options
    )
    assert "100 x 72" in summary and bytes_of(file).shape == (72, 100, 3)
    assert_equal_but_for_rounding(run_code(code, tmp_path), bytes_of(file))


def test_the_seed_decides_the_guidance(chain, photo):
    first, again, other = (restored(chain, photo, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_strength_0_equals_no_guidance_and_guidance_shows(chain, photo):
    weak, none, full = (
        restored(chain, photo, **o) for o in ({"strength": 0}, {"guidance": "none"}, {})
    )
    assert np.array_equal(weak, none) and not np.array_equal(full, none)


def test_guidance_that_is_not_known_to_help_is_shown_and_not_used(client, photo):
    *_, summary, inside, code, _ = client.predict(
        handle_file(photo), "denoise", api_name="/restore"
    )
    unused = f"not used (auto takes it only against {space.model.guided_degradations})"
    assert f"painted from cleaned words, {unused}" in inside
    assert (
        "Guidance, painted" in inside
        and "Influence" not in inside
        and "guidance_strength" not in code
    )
    for options in ({"task": "dehaze"}, {"task": "denoise", "strength": "1"}):
        *_, summary, inside, _, _ = client.predict(
            handle_file(photo), api_name="/restore", **options
        )
        assert "not used" not in summary + inside and "Influence" in inside


def test_the_strip_shows_the_whole_chain_and_the_words(chain, photo):
    *_, inside, _, _ = chain.predict(handle_file(photo), api_name="/restore")
    titles = [
        "The degraded photo",
        "Painted from",
        "Guidance",
        "Match",
        "Influence",
        "Restored",
    ]
    assert inside.count("<figure") == 6 and all(f'alt="{title}' in inside for title in titles)
    assert "<mark>" in inside and "Detected" in inside and "painted from cleaned words" in inside


@pytest.mark.parametrize("prompt", ["a dog", 'it\'s a "dog", $HOME `ls`'])
def test_the_shell_lines_of_the_page_work(chain, photo, prompt):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    *_, file, _, _, _, shell = chain.predict(
        handle_file(photo), "denoise", prompt=prompt, api_name="/restore"
    )
    pip, _, script = shell.partition("\n")
    assert pip == "pip install gradio_client"
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "GRADIO_TEMP_DIR": str(photo.parent),
    }
    done = subprocess.run(
        ["bash", "-ec", script],
        cwd=photo.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    written = next(line for line in done.stdout.splitlines() if line.endswith("photo-restored.png"))
    assert np.array_equal(bytes_of(written), bytes_of(file))
    assert "event: complete" in done.stdout and "photo-restored.png" in done.stdout


# ---- adapters


@pytest.fixture(scope="module")
def plain_pixels(chain, tmp_path_factory):
    """A photo and its restoration without the adapter, of a task for which none is embedded."""
    photo = random_photo(tmp_path_factory.mktemp("plain") / "photo.png")
    return photo, restored(chain, photo, "denoise")


def test_a_carried_adapter_acts_where_it_is_named_and_leaves_no_trace(chain, plain_pixels):
    photo, plain = plain_pixels
    adapted = restored(chain, photo, "denoise", adapter="derain")
    assert not np.array_equal(adapted, plain) and not np.array_equal(
        adapted, restored(chain, photo, "derain")
    )
    assert np.array_equal(restored(chain, photo, "denoise"), plain)


@pytest.mark.parametrize(
    "task, adapter", [("derain", ""), ("auto", ""), ("auto", "derain"), ("denoise", "derain")]
)
def test_the_python_lines_of_the_page_restore_alike_with_adapters(
    chain, plain_pixels, task, adapter
):
    photo, _ = plain_pixels
    *_, file, _, _, code, _ = chain.predict(
        handle_file(photo), task, adapter=adapter, api_name="/restore"
    )
    assert_equal_but_for_rounding(run_code(code, photo.parent), bytes_of(file))


def test_app_command_line_and_python_give_the_same_pixels(chain, tmp_path):
    photo, checkpoint = random_photo(tmp_path / "photo.png"), str(tiny_space()[1])
    for options in (
        {},
        {"task": "denoise+dehaze"},
        {"keep": "haze"},
        {"task": "derain", "adapter": "derain"},
    ):
        flags = [part for name, value in options.items() for part in (f"--{name}", value)]
        arguments = [
            "restore",
            str(photo),
            "--output",
            str(tmp_path / "out"),
            "--checkpoint",
            checkpoint,
            *flags,
        ]
        result = CliRunner().invoke(command_line, arguments)
        assert result.exit_code == 0, result.output
        by_command = bytes_of(tmp_path / "out" / "photo.png")
        wishes = {name: value for name, value in options.items() if name != "adapter"}
        with Image.open(photo) as image:
            in_python = load(checkpoint, options.get("adapter"))(image, **wishes).images[0]
        assert np.array_equal(by_command, np.asarray(in_python)), options
        assert_equal_but_for_rounding(restored(chain, photo, **options), by_command)


@pytest.mark.parametrize("name", ["nothing", "no/such", "/etc/passwd", "textir/checkpoints"])
def test_adapters_that_are_not_there_give_a_message(chain, plain_pixels, name):
    photo, plain = plain_pixels
    with pytest.raises(AppError, match="adapter") as caught:
        restored(chain, photo, "denoise", adapter=name)
    assert_clean_message(caught.value)
    assert np.array_equal(restored(chain, photo, "denoise"), plain)


def save_visitor(pipe, folder) -> None:
    make_trainable(pipe, ["restorer"], rank=2)
    with torch.no_grad():
        for name, parameter in pipe.restorer.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    save_adapter(pipe, folder)


def test_an_adapter_from_elsewhere_is_used_once_and_taken_out_again(
    client, photo, tmp_path, monkeypatch
):
    save_visitor(TextGuidedRestorationPipeline.from_pretrained(MINI), tmp_path / "user" / "name")
    monkeypatch.chdir(tmp_path)
    plain, carried = restored(client, photo), space.model.pipe.get_list_adapters()
    *_, file, _, _, code, _ = client.predict(
        handle_file(photo), adapter="user/name", api_name="/restore"
    )
    assert not np.array_equal(bytes_of(file), plain)
    assert_equal_but_for_rounding(run_code(code, tmp_path), bytes_of(file))
    assert np.array_equal(restored(client, photo), plain)
    assert space.model.pipe.get_list_adapters() == carried


def test_an_adapter_of_another_network_gives_a_message_and_leaves_no_trace(
    client, photo, tmp_path, monkeypatch
):
    save_visitor(tiny.pipeline(), tmp_path / "user" / "other")
    monkeypatch.chdir(tmp_path)
    plain, carried = restored(client, photo), space.model.pipe.get_list_adapters()
    for _ in range(2):
        with pytest.raises(AppError, match="The adapter user/other cannot be loaded"):
            restored(client, photo, adapter="user/other")
    assert np.array_equal(restored(client, photo), plain)
    assert space.model.pipe.get_list_adapters() == carried


# ---- the other tabs


def test_a_large_photo_is_restored_as_a_reduced_copy_unless_the_full_size_is_asked_for(
    client, tmp_path, monkeypatch
):
    monkeypatch.setattr("textir.space.inputs.FAST_PIXELS", 2000)
    photo = random_photo(tmp_path / "photo.png")
    fast = client.predict(handle_file(photo), "denoise", api_name="/restore")
    assert bytes_of(fast[1]).shape == (34, 57, 3)
    assert "57 x 34" in fast[2] and "A reduced copy of 80 x 48" in fast[2]
    assert_equal_but_for_rounding(run_code(fast[4], tmp_path), bytes_of(fast[1]))
    assert restored(client, photo, "denoise", size="full").shape == (48, 80, 3)
    foreseen, choice = space.photo_tab.restoring.foresee(str(photo))
    assert "80 x 48 is restored as 57 x 34" in foreseen.value and choice.visible


def test_comparing_measures_every_guidance_against_the_ground_truth(chain, photo, tmp_path):
    truth = random_photo(tmp_path / "truth.png", seed=1)
    sent = map(handle_file, (photo, truth, truth))
    pictures, table = chain.predict(*sent, "a dog", 3, api_name="/compare")
    ways = ["none", "degraded words", "cleaned words", "prompt only", "reference"]
    assert [row[0] for row in table["data"]] == ["(degraded)", *ways]
    assert [p["caption"] for p in pictures] == [
        "degraded",
        *(f"guidance: {way}" for way in ways),
        "ground truth",
    ]
    shown = [bytes_of(p["image"]) for p in pictures]
    assert np.array_equal(shown[0], bytes_of(photo)) and np.array_equal(shown[-1], bytes_of(truth))
    for row, pixels in zip(table["data"], shown):
        scores = (measure(pixels / 255, read_picture(truth).pixels) for measure in (psnr, ssim))
        assert row[1:3] == [f"{value:{form}}" for value, form in zip(scores, (".2f", ".4f"))]
    assert len({pixels.tobytes() for pixels in shown}) == 7
    assert np.array_equal(shown[3], restored(chain, photo, seed=3))


def test_comparing_without_ground_truth_measures_nothing(client, photo):
    pictures, table = client.predict(handle_file(photo), api_name="/compare")
    kinds = ["none", "degraded words", "cleaned words"]
    assert [p["caption"] for p in pictures] == [
        "degraded",
        *(f"guidance: {kind}" for kind in kinds),
    ]
    assert [row[:3] for row in table["data"]] == [[kind, "", ""] for kind in kinds]


def test_a_ground_truth_of_another_size_is_a_message(chain, photo, tmp_path):
    truth = random_photo(tmp_path / "truth.png", height=80, width=48)
    with pytest.raises(AppError, match="must have one size, they have 80 x 48 and 48 x 80"):
        chain.predict(handle_file(photo), None, handle_file(truth), api_name="/compare")


def test_a_reference_needs_a_matcher(client, photo, monkeypatch):
    monkeypatch.setattr(space.model.pipe, "matcher", None)
    with pytest.raises(AppError, match="no matcher"):
        client.predict(handle_file(photo), handle_file(photo), api_name="/compare")


def test_degrading_does_what_the_recipe_says_and_measures(chain, photo):
    slider, file, numbers = chain.predict(
        handle_file(photo), "noise8:25+haze:0.8", 5, api_name="/degrade"
    )
    clean = read_picture(photo).pixels
    image = torch.from_numpy(clean).movedim(-1, 0)[None]
    expected = (
        degrade(image, "noise8:25+haze:0.8", torch.Generator().manual_seed(5))[0]
        .clamp(0, 1)
        .movedim(0, -1)
        .numpy()
    )
    before, after = map(bytes_of, slider)
    assert np.array_equal(bytes_of(file), (expected * 255).round()) and np.array_equal(
        before, bytes_of(file)
    )
    for name, pixels in (("degraded", before), ("restored", after)):
        assert (
            f"| {name} | {psnr(pixels / 255, clean):.2f} | {ssim(pixels / 255, clean):.4f} |"
            in numbers
        )


def test_unknown_recipes_are_a_message(chain, photo):
    with pytest.raises(AppError, match="Unknown degradation 'fog'"):
        chain.predict(handle_file(photo), "fog:2", api_name="/degrade")


def test_a_batch_keeps_files_of_one_name_apart_and_names_the_bad_one(chain, tmp_path):
    photos = [
        random_photo(tmp_path / folder / "photo.png", seed) for seed, folder in enumerate("ab")
    ]
    bad = tmp_path / "bad.png"
    bad.write_bytes(photos[0].read_bytes()[:200])
    sent = [handle_file(path) for path in (photos[0], bad, photos[1])]
    archive, table = chain.predict(sent, "denoise", api_name="/batch")
    with zipfile.ZipFile(archive) as bundle:
        written = {name: bytes_of(io.BytesIO(bundle.read(name))) for name in bundle.namelist()}
    assert list(written) == ["photo-restored.png", "photo-restored-1.png"]
    for pixels, path in zip(written.values(), photos):
        assert np.array_equal(pixels, restored(chain, path, "denoise"))
    rows = table["data"]
    assert [row[0] for row in rows] == ["photo.png", "bad.png", "photo.png"]
    assert [row[3] for row in rows] == ["80 x 48", "", "80 x 48"]
    assert [row[1] for row in rows if row[4]] == list(written)
    assert rows[1][1].startswith("not restored: The photo is damaged") and "/tmp" not in str(rows)


def test_a_batch_of_bad_files_has_no_archive(chain, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"nothing")
    archive, table = chain.predict([handle_file(tmp_path / "bad.png")], api_name="/batch")
    assert archive is None and "not an image" in table["data"][0][1]


def test_more_than_twenty_files_are_refused(chain, photo):
    with pytest.raises(AppError, match="21 files were sent; at most 20"):
        chain.predict([handle_file(photo)] * 21, api_name="/batch")


# ---- what cannot be done


def assert_clean_message(error: Exception) -> None:
    """A message says nothing of this machine, and nothing of Python."""
    text = str(error)
    assert not any(
        hint in text
        for hint in (
            "/tmp",
            str(ROOT),
            "site-packages",
            "Traceback",
            "NoneType",
            "int()",
            "long long",
        )
    )


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_no_photo_is_a_message(chain, endpoint):
    with pytest.raises(AppError, match=r"Upload (a photo|some photos) first"):
        chain.predict(None, api_name=endpoint)


def bad_files():
    rng = np.random.default_rng(0)
    whole, narrow, frames = io.BytesIO(), io.BytesIO(), io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (48, 80, 3), dtype=np.uint8)).save(whole, "PNG")
    Image.new("RGB", (15, 900)).save(narrow, "PNG")
    Image.new("RGB", (80, 48)).save(
        frames, "GIF", save_all=True, append_images=[Image.new("RGB", (80, 48), "red")]
    )
    large = io.BytesIO()
    Image.new("RGB", (MAX_PIXELS // 400 + 1, 400)).save(large, "PNG")
    return {
        "truncated": (whole.getvalue()[:200], "png", "damaged or truncated"),
        "text": (b"not a picture", "jpg", "not an image that can be read"),
        "15 x 900": (narrow.getvalue(), "png", "at least 16 pixels"),
        "animated": (frames.getvalue(), "gif", "frames"),
        "too large": (
            large.getvalue(),
            "png",
            f"0.3 million pixels; at most {MAX_PIXELS / 1e6:g} are taken here",
        ),
    }


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("kind", bad_files())
def test_bad_uploads_give_messages_without_paths(chain, tmp_path, kind, endpoint):
    data, suffix, message = bad_files()[kind]
    path = tmp_path / f"bad.{suffix}"
    path.write_bytes(data)
    if endpoint == "/batch":
        _, table = chain.predict([handle_file(path)], api_name=endpoint)
        text = table["data"][0][1]
    else:
        with pytest.raises(AppError) as caught:
            chain.predict(handle_file(path), api_name=endpoint)
        text = str(caught.value)
    assert message in text
    assert_clean_message(text)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"task": "defog"}, "defog"),
        ({"guidance": "magic"}, "magic"),
        ({"guidance": "prompt"}, "pass a `prompt`"),
        ({"guidance": "none", "prompt": "a dog"}, "`guidance='none'` turns off"),
        ({"negative_prompt": "rain", "guidance_scale": 1}, "set it above 1"),
        ({"strength": 2}, r"must lie in \[0, 1\], got 2"),
        ({"strength": "much"}, "must be auto or a number from 0 to 1, got 'much'"),
        ({"steps": -1}, "less than minimum"),
        ({"tile": 1}, "at least 64 pixels"),
        ({"seed": None}, "(?i)seed"),
        ({"seed": 2**70}, "(?i)seed"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_settings_that_cannot_be_are_messages(chain, photo, options, message):
    with pytest.raises((AppError, ValueError), match=message) as caught:
        restored(chain, photo, **options)
    assert_clean_message(caught.value)


def test_no_file_of_the_machine_can_be_fetched(chain):
    url, checkpoint = tiny_space()
    files = [
        "/etc/passwd",
        "app.py",
        "textir/checkpoints/mini/model_index.json",
        "../etc/passwd",
        "/proc/self/environ",
    ]
    files += [str(ROOT / "app.py"), str(checkpoint / "model_index.json")]
    for file in files:
        assert httpx.get(f"{url}/gradio_api/file={file}").status_code in (403, 404), file


@pytest.mark.parametrize("file", ["/etc/passwd", str(ROOT / "README.md")])
def test_no_file_of_the_machine_can_be_taken_for_an_upload(chain, file):
    url, _ = tiny_space()
    data = [{"path": file, "meta": {"_type": "gradio.FileData"}}, "noise:25", 0]
    event = httpx.post(f"{url}/gradio_api/call/degrade", json={"data": data}).json()["event_id"]
    answer = httpx.get(f"{url}/gradio_api/call/degrade/{event}", timeout=60).text
    assert "event: error" in answer and "not uploaded by a user" in answer


# ---- while it works


def test_every_step_is_previewed(chain, photo):
    *steps, last = chain.submit(handle_file(photo), steps=4, api_name="/restore")
    previews = {step[3] for step in steps if "Guidance, forming" in str(step[3])}
    assert len(previews) == 4 and all("data:image/png" in preview for preview in previews)
    assert "Restored" in last[3]


def test_stopping_ends_the_work_soon(chain, tmp_path):
    path = random_photo(tmp_path / "photo.png", height=480, width=620)
    start = time.perf_counter()
    restored(chain, path, steps=15, both_words=False)
    fifteen_steps = time.perf_counter() - start
    job = chain.submit(handle_file(path), steps=50, both_words=False, api_name="/restore")
    next(iter(job))
    assert job.cancel()
    start = time.perf_counter()
    restored(chain, path, guidance="none")
    assert time.perf_counter() - start < 1.5 * fifteen_steps, "the stopped run went on"


def ask(url: str, path: Path) -> np.ndarray:
    """The restored pixels of a photo, by bare HTTP."""
    with httpx.Client(base_url=f"{url.rstrip('/')}/gradio_api", timeout=120) as http:
        uploaded = http.post("/upload", files={"files": (path.name, path.read_bytes())}).json()[0]
        data = [
            {"path": uploaded, "meta": {"_type": "gradio.FileData"}},
            [],
            [],
            "",
            "",
            "cleaned",
            "auto",
            0,
            0,
            0,
            0,
            "",
            True,
            "",
            "fast",
        ]
        event = http.post("/call/restore", json={"data": data}).json()["event_id"]
        answer = http.get(f"/call/restore/{event}").text
        assert "event: complete" in answer, answer
        result = json.loads(answer.rpartition("data: ")[2])
        return bytes_of(io.BytesIO(http.get(f"/file={result[1]['path']}").content))


def test_twenty_clients_at_once_are_all_answered_with_their_own_photo(client, tmp_path):
    photos = [random_photo(tmp_path / f"{seed}.png", seed, 32, 48) for seed in range(20)]
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda path: ask(client.src, path), photos))
    for path, pixels in zip(photos, answers):
        expected, _ = restore_picture(
            space.model.pipe, read_picture(path), generator=torch.Generator().manual_seed(0)
        )
        assert np.array_equal(pixels, (expected.pixels.clip(0, 1) * 255).round())


def test_language_models_find_the_endpoints_as_tools(chain):
    with urllib.request.urlopen(
        f"{chain.src.rstrip('/')}/gradio_api/mcp/schema", timeout=60
    ) as answer:
        tools = {tool["name"]: tool for tool in json.load(answer)}
    assert {"restore", "compare", "degrade_and_restore", "restore_batch"} <= tools.keys()
    restore = tools["restore"]
    assert (
        restore["description"].startswith("Restore a degraded photo")
        and "image" in restore["inputSchema"]["properties"]
    )


def test_examples_are_degraded_photos_of_every_kind():
    assert {task for _, (task,), _ in space.examples} == set(TASKS)
    for degraded, _, clean in space.examples:
        pixels = [read_picture(path).pixels for path in (degraded, clean)]
        assert (
            pixels[0].shape == pixels[1].shape
            and pixels[0].std() > 0.01
            and np.abs(pixels[0] - pixels[1]).mean() > 0.002
        )


def test_duration_grows_with_pixels_and_is_bounded():
    small, large = (Picture(np.zeros((side, side + 16, 3), np.float32)) for side in (64, 4000))
    seconds = [space.worker.gpu_seconds(picture, Settings()) for picture in (small, large)]
    assert 0 < seconds[0] < seconds[1] <= 120


@pytest.mark.parametrize("address", ["run/restore", "api/restore"])
def test_no_request_goes_round_the_queue(client, photo, address):
    answer = httpx.post(f"{client.src.rstrip('/')}/gradio_api/{address}", json={"data": [None]})
    assert answer.status_code in (401, 403, 404)


def test_an_instruction_is_obeyed_and_its_reading_is_shown(client, photo):
    output = client.predict(
        handle_file(photo), instruction="take out the noise", api_name="/restore"
    )
    _, file, summary, _, code, _ = output
    assert "Understood" in summary and "removing noise" in summary
    assert "instruction='take out the noise'" in code
    told = client.predict(handle_file(photo), ["denoise"], api_name="/restore")[1]
    np.testing.assert_array_equal(np.asarray(Image.open(file)), np.asarray(Image.open(told)))


def test_an_instruction_beside_a_button_is_refused(client, photo):
    with pytest.raises(AppError, match="not in both"):
        client.predict(
            handle_file(photo), ["denoise"], instruction="remove the rain", api_name="/restore"
        )
