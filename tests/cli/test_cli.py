"""The command line: one file in, one file out, exit code 0 only if every file was written, and
messages that help."""

import json
import os
import shutil
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from pipelines import TextGuidedRestorationPipeline, load
from tests.tools import tiny
from textir.cli import app
from textir.cli.batch import way_on
from textir.images.jobs import Run
from textir.images.restoration import Restoring
from textir.training.lora import make_trainable, save_adapter

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    TextGuidedRestorationPipeline(restorer=tiny.restorer(guided=False, told=True)).save_pretrained(
        folder
    )
    return str(folder)


@pytest.fixture(scope="module")
def whole_chain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chain")
    tiny.pipeline().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def photos(tmp_path):
    """photos/a.png and photos/deep/b.png, 40 x 24."""
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    for name, color in (("a.png", "teal"), ("deep/b.png", "maroon")):
        Image.new("RGB", (40, 24), color).save(folder / name)
    return folder


def size_of(path):
    with Image.open(path) as image:
        return image.size


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_file_gives_a_file_of_the_same_name_and_size(photos, tmp_path, checkpoint):
    result = run(
        "restore", photos / "a.png", "--output", tmp_path / "out", "--checkpoint", checkpoint
    )
    assert result.exit_code == 0, result.output
    assert size_of(tmp_path / "out" / "a.png") == (40, 24)
    assert "1 of 1 images restored" in result.output


def test_an_adapter_acts_where_it_is_named_and_only_there(photos, tmp_path, checkpoint):
    folder = shutil.copytree(checkpoint, tmp_path / "checkpoint")
    pipe = TextGuidedRestorationPipeline.from_pretrained(folder)
    make_trainable(pipe, ["restorer"], rank=2)
    for name, parameter in pipe.restorer.named_parameters():
        if "lora_B" in name:
            torch.nn.init.constant_(parameter, 0.5)
    save_adapter(pipe, folder / "adapters" / "derain")

    def restored(*options):
        result = run(
            "restore",
            photos / "a.png",
            "--output",
            tmp_path / "out",
            "--checkpoint",
            folder,
            *options,
        )
        assert result.exit_code == 0, result.output
        return np.asarray(Image.open(tmp_path / "out" / "a.png"))

    plain, told = restored(), restored("--task", "derain")
    by_name, by_folder = (
        restored("--adapter", name) for name in ("derain", folder / "adapters" / "derain")
    )
    both = restored("--adapter", "derain", "--task", "derain")
    assert np.array_equal(by_name, by_folder)
    for pair in combinations([plain, told, by_name, both], 2):
        assert not np.array_equal(*pair)

    scores = []
    for options in (["--task", "derain"], ["--adapter", "derain"]):
        data = ["--data", photos, "--degradation", "noise:9", "--checkpoint", folder]
        result = run("evaluate", *data, *options, "--json", tmp_path / "scores.json")
        assert result.exit_code == 0, result.output
        scores.append(json.loads((tmp_path / "scores.json").read_text())["weights"])
    assert "adapter" not in scores[0] and "adapter" in scores[1]


def test_several_tasks_and_what_is_kept_go_to_the_pipeline(photos, tmp_path, whole_chain):
    pipe = load(whole_chain)
    for options in (
        {"task": "denoise+dehaze"},
        {"keep": "haze"},
        {"task": "derain", "keep": "haze+noise"},
    ):
        flags = [part for name, value in options.items() for part in (f"--{name}", value)]
        result = run(
            "restore",
            photos / "a.png",
            "--output",
            tmp_path / "out",
            "--checkpoint",
            whole_chain,
            *flags,
        )
        assert result.exit_code == 0, result.output
        expected = pipe(Image.open(photos / "a.png"), **options).images[0]
        assert np.array_equal(
            np.asarray(Image.open(tmp_path / "out" / "a.png")), np.asarray(expected)
        ), options


def test_the_command_says_what_it_removed_and_where_it_did_nothing(photos, tmp_path, checkpoint):
    told = run(
        "restore",
        photos / "a.png",
        "--output",
        tmp_path / "out",
        "--checkpoint",
        checkpoint,
        "--task",
        "denoise",
    )
    assert "told to remove: noise" in told.output and "mean change" in told.output
    identity = TextGuidedRestorationPipeline(
        restorer=tiny.restorer(guided=False, open_gates=False, told=True)
    )
    torch.nn.init.zeros_(identity.restorer.outro.weight)
    torch.nn.init.zeros_(identity.restorer.outro.bias)
    identity.save_pretrained(tmp_path / "identity")
    idle = run(
        "restore",
        photos / "a.png",
        "--output",
        tmp_path / "out",
        "--checkpoint",
        tmp_path / "identity",
    )
    assert (
        "hardly changed; to say what shall go, pass --task (such as denoise, dehaze, lowlight)"
        in idle.output
    )
    told = run(
        "restore",
        photos / "a.png",
        "--output",
        tmp_path / "told",
        "--task",
        "derain",
        "--checkpoint",
        tmp_path / "identity",
    )
    assert "hardly changed; if something else shall go, pass --task (such as" in told.output


def test_the_result_equals_the_python_api(photos, tmp_path, checkpoint):
    run("restore", photos / "a.png", "--output", tmp_path / "out", "--checkpoint", checkpoint)
    pipe = TextGuidedRestorationPipeline.from_pretrained(checkpoint)
    expected = pipe(Image.open(photos / "a.png")).images[0]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "a.png")), np.asarray(expected))


def test_a_folder_keeps_its_tree(photos, tmp_path, checkpoint):
    result = run(
        "restore", photos, "--output", tmp_path / "out", "--checkpoint", checkpoint, "--recursive"
    )
    assert result.exit_code == 0, result.output
    assert {
        path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png")
    } == {
        "a.png",
        "deep/b.png",
    }


def test_a_bad_file_is_named_and_the_others_are_done(photos, tmp_path, checkpoint):
    (photos / "a0.png").write_bytes(b"")
    (photos / "z.png").write_text("not an image")
    Image.new("RGB", (9, 30)).save(photos / "small.png")
    result = run("restore", photos, "--output", tmp_path / "out", "--checkpoint", checkpoint)
    assert result.exit_code == 1
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == ["a.png"]
    for part in (
        "a0.png",
        "0 bytes",
        "z.png",
        "not an image",
        "small.png",
        "at least 16 pixels",
        "1 of 4 images restored, 3 bad",
    ):
        assert part in result.output


def test_fail_fast_stops_at_the_first_bad_file(photos, tmp_path, checkpoint):
    (photos / "0.png").write_bytes(b"")
    result = run(
        "restore", photos, "--output", tmp_path / "out", "--checkpoint", checkpoint, "--fail-fast"
    )
    assert result.exit_code == 1 and not list(tmp_path.glob("out/*.png"))


def test_skip_existing_goes_on_where_a_run_stopped(photos, tmp_path, checkpoint):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").write_text("done before")
    options = (
        "--output",
        tmp_path / "out",
        "--checkpoint",
        checkpoint,
        "--recursive",
        "--skip-existing",
    )
    assert run("restore", photos, *options).exit_code == 0
    assert (tmp_path / "out" / "a.png").read_text() == "done before"
    assert (tmp_path / "out" / "deep" / "b.png").is_file()


def test_the_same_command_goes_on_where_it_was_stopped(photos, tmp_path, checkpoint, monkeypatch):
    calls = []
    restore = Restoring.__call__

    def stop_at_second(self, *arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return restore(self, *arguments)

    monkeypatch.setattr(Restoring, "__call__", stop_at_second)
    command = ["restore", photos, "--recursive", "--output", tmp_path / "out"]
    command += ["--checkpoint", checkpoint]
    stopped = run(*command)
    assert stopped.exit_code == 130 and "Stopped: 1 of 2 images restored" in stopped.output
    assert "The same command goes on from there." in stopped.output
    assert "2 of 2 images restored (1 of them earlier)" in run(*command).output
    assert len(calls) == 3
    assert run(*command).exit_code == 0 and len(calls) == 3
    assert "--skip-existing" in way_on(Run(Restoring(), sidecar=False), [])


def test_a_dry_run_says_what_it_would_do_and_writes_nothing(photos, tmp_path, checkpoint):
    command = ["restore", photos, "--recursive", "--output", tmp_path / "out", "--dry-run"]
    result = run(*command, "--checkpoint", checkpoint)
    assert result.exit_code == 0 and "2 of 2 images to do; measured on" in result.output
    assert "0.0 megapixels take about" in result.output and not (tmp_path / "out").exists()
    (photos / "bad.png").write_bytes(b"")
    result = run(*command, "--checkpoint", checkpoint)
    assert result.exit_code == 1 and "bad.png is empty" in result.output


def test_lists_and_standard_input_name_photos(photos, tmp_path, checkpoint):
    (tmp_path / "list.txt").write_text(f"{photos}/a.png\n{photos}/deep/b.png\n")
    options = ["--checkpoint", checkpoint, "--output"]
    assert run("restore", f"@{tmp_path}/list.txt", *options, tmp_path / "one").exit_code == 0
    arguments = [str(part) for part in ("restore", "-", *options, tmp_path / "two")]
    text = (tmp_path / "list.txt").read_text()
    assert CliRunner().invoke(app, arguments, input=text).exit_code == 0
    for name in ("one", "two"):
        assert (tmp_path / name / "a.png").is_file() and (tmp_path / name / "deep/b.png").is_file()


@pytest.mark.parametrize(
    "options, message",
    [
        (["--engine", "spark"], "`--engine` must be local or ray"),
        (["--workers", "2"], "`--workers` belongs to `--engine ray`"),
    ],
)
def test_engines_that_cannot_be_are_refused(photos, tmp_path, checkpoint, options, message):
    command = ["restore", photos, "--output", tmp_path / "out", "--checkpoint", checkpoint]
    result = run(*command, *options)
    assert result.exit_code == 2 and message in result.output


def test_an_engine_that_is_not_installed_names_its_requirements(photos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    result = run("restore", photos, "--output", tmp_path / "out", "--engine", "ray")
    assert result.exit_code == 2 and "pip install -r requirements-ray.txt" in result.output


def test_intermediates_are_written(photos, tmp_path, whole_chain):
    options = (
        "--output",
        tmp_path / "out",
        "--checkpoint",
        whole_chain,
        "--intermediates",
        "--steps",
        1,
        "--prompt",
        "dog",
    )
    result = run("restore", photos / "a.png", *options)
    assert result.exit_code == 0, result.output
    folder = tmp_path / "out" / "a.intermediates"
    names = {"guidance.png", "match_confidence.png", "influence.png", "words.json"}
    assert {path.name for path in folder.iterdir()} == names
    words = json.loads((folder / "words.json").read_text())
    assert (
        words["guidance"] == "cleaned"
        and words["guidance_strength"] == 1
        and len(words["nearest_tokens"]) == tiny.NUM_WORDS
        and "rain" in words["degradation"]
    )
    assert size_of(folder / "influence.png") == (40, 24)


def test_the_seed_decides_the_guidance(photos, tmp_path, whole_chain):
    options = ("--checkpoint", whole_chain, "--steps", 1, "--intermediates")
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        run("restore", photos / "a.png", "--output", tmp_path / name, "--seed", seed, *options)
    one, same, other = (
        (tmp_path / n / "a.intermediates" / "guidance.png").read_bytes()
        for n in ("one", "same", "other")
    )
    assert one == same and one != other


@pytest.mark.parametrize(
    "options, message",
    [
        (("--task", "defog"), "`task` must be auto, or one or several of"),
        (("--guidance", "magic"), "`guidance` must be one of"),
        (("--strength", "2"), "`guidance_strength` must lie in"),
        (("--steps", "-1"), "`num_inference_steps` must be"),
        (("--tile", "5"), "a whole number of at least 64 pixels"),
        (("--dtype", "int8"), "`dtype` must be one of"),
        (("--prompt", "a dog"), "needs tokenizer"),
        (("--device", "cuda:7"), "could not be loaded on cuda:7"),
    ],
)
def test_bad_options_end_the_command_before_any_work(
    photos, tmp_path, checkpoint, options, message
):
    result = run(
        "restore",
        photos / "a.png",
        "--output",
        tmp_path / "out",
        "--checkpoint",
        checkpoint,
        *options,
    )
    assert result.exit_code == 2 and message in result.output
    assert not (tmp_path / "out").exists()


def test_bad_paths_are_explained(photos, tmp_path, checkpoint):
    def output_of(*arguments):
        result = run("restore", *arguments, "--checkpoint", checkpoint)
        assert result.exit_code == 2
        return result.output

    assert "does not exist" in output_of(tmp_path / "nothing", "--output", tmp_path / "out")
    assert "use --recursive" in output_of(tmp_path, "--output", tmp_path / "out")
    assert "is a file" in output_of(photos, "--output", photos / "a.png")
    assert "would be overwritten" in output_of(photos, "--output", photos)
    shutil.copytree(photos, tmp_path / "more")
    assert "would both be written" in output_of(
        photos / "a.png", tmp_path / "more" / "a.png", "--output", tmp_path / "out"
    )


def test_a_checkpoint_that_is_none_is_explained(photos, tmp_path):
    result = run(
        "restore", photos, "--output", tmp_path / "out", "--checkpoint", tmp_path / "nowhere"
    )
    assert (
        result.exit_code == 2
        and "neither a folder in diffusers format nor a Hub id" in result.output
    )


def test_degrade_writes_what_the_recipe_says(photos, tmp_path):
    result = run("degrade", photos, "--output", tmp_path / "out", "--recipe", "noise8:40")
    assert result.exit_code == 0, result.output
    assert np.asarray(Image.open(tmp_path / "out" / "a.png")).std() > 20


def test_degrade_is_the_same_for_the_same_seed(photos, tmp_path):
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        run(
            "degrade",
            photos / "a.png",
            "--output",
            tmp_path / name,
            "--recipe",
            "noise8:40",
            "--seed",
            seed,
        )
    one, same, other = (
        (tmp_path / name / "a.png").read_bytes() for name in ("one", "same", "other")
    )
    assert one == same and one != other


def test_degrade_draws_a_sheet_of_all_degradations(photos, tmp_path):
    from textir.degradations import RECIPES

    result = run("degrade", photos / "a.png", "--sheet", tmp_path / "sheet.png")
    assert result.exit_code == 0, result.output
    assert size_of(tmp_path / "sheet.png") == (4 * 320, len(RECIPES) * 192)


def test_degrade_writes_what_an_edit_is_given(photos, tmp_path):
    height, width = np.asarray(Image.open(photos / "a.png")).shape[:2]
    for recipe in ("mask:0.25", "down:2", "gray"):
        folder = tmp_path / recipe.partition(":")[0]
        result = run("degrade", photos / "a.png", "--output", folder, "--recipe", recipe)
        assert result.exit_code == 0, result.output
    hole = np.asarray(Image.open(tmp_path / "mask" / "a.mask.png")) > 0
    masked = np.asarray(Image.open(tmp_path / "mask" / "a.png").convert("RGB"))
    clean = np.asarray(Image.open(photos / "a.png").convert("RGB"))
    assert hole.shape == (height, width) and 0.1 < hole.mean() < 0.4
    assert (masked[hole] == 0).all() and np.array_equal(masked[~hole], clean[~hole])
    assert size_of(tmp_path / "down" / "a.png") == (round(width / 2), round(height / 2))
    tones = np.asarray(Image.open(tmp_path / "gray" / "a.png").convert("RGB"))
    assert np.ptp(tones, axis=-1).max() == 0
    assert not list(tmp_path.glob("gray/*.mask.png"))


@pytest.mark.parametrize(
    "options, message",
    [
        (("--recipe", "fog:1"), "Unknown degradation 'fog'"),
        (("--recipe", ""), "Pass a `--recipe`"),
        (("--recipe", "noise:loud"), "'loud'"),
    ],
)
def test_bad_recipes_are_explained(photos, tmp_path, options, message):
    result = run("degrade", photos, "--output", tmp_path / "out", *options)
    assert result.exit_code == 2 and message in result.output


def test_evaluate_writes_scores_with_their_protocol(photos, tmp_path, checkpoint):
    file = tmp_path / "scores.json"
    options = ("--degradation", "noise:25", "--checkpoint", checkpoint, "--json", file)
    result = run("evaluate", "--data", photos, *options)
    assert result.exit_code == 0, result.output
    scores = json.loads(file.read_text())
    assert scores["summary"]["images"] == 2 and scores["degradation"] == "noise:25"
    assert (
        scores["command"].startswith("python -m textir")
        and len(scores["weights"]["checkpoint"]) == 64
    )
    assert 18 < scores["summary"]["input_psnr"] < 23
    assert "RGB PSNR/SSIM" in scores["protocol"] and len(scores["scores"][0]["input_sha256"]) == 64


def test_evaluate_explains_what_a_data_folder_lacks(photos, checkpoint):
    result = run("evaluate", "--data", photos, "--checkpoint", checkpoint)
    assert result.exit_code == 2 and "no folder input and target" in result.output


def test_two_formats_that_become_one_file_do_not_overwrite_each_other(tmp_path, checkpoint):
    for name, color in (("a.png", "teal"), ("a.gif", "maroon")):
        Image.new("RGB", (40, 24), color).save(tmp_path / name)
    arguments = [tmp_path, "--output", tmp_path / "out", "--checkpoint", checkpoint]
    for options in ([], ["--skip-existing"]):
        result = run("restore", *arguments, *options)
        assert result.exit_code == 0 and "2 of 2 images restored" in result.output
        assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == [
            "a-1.png",
            "a.png",
        ]
    assert Image.open(tmp_path / "out" / "a.png").getpixel((0, 0))[2] > 60


def test_a_console_without_the_letters_of_a_name_ends_no_batch(tmp_path, checkpoint):
    for name in ("a.png", "Łódź.png", "写真.png"):
        Image.new("RGB", (40, 24), "teal").save(tmp_path / name)
    command = [sys.executable, "-m", "textir", "restore", str(tmp_path), "--output"]
    command += [str(tmp_path / "out"), "--checkpoint", str(checkpoint)]
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252", "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr.decode(errors="replace")
    assert len(list((tmp_path / "out").glob("*.png"))) == 3


def test_what_is_not_taken_is_named(photos, checkpoint, tmp_path):
    (photos / "notes.txt").write_text("not an image")
    result = run("restore", photos, "--output", tmp_path / "o", "--checkpoint", checkpoint)
    assert result.exit_code == 0 and "left out" in result.output and "notes.txt" in result.output


def test_a_seed_that_is_too_large_is_refused_at_the_door(photos, tmp_path):
    result = run("restore", photos, "--output", tmp_path / "o", "--seed", str(10**20))
    assert result.exit_code == 2 and "seed" in result.output


def test_the_version_is_said():
    result = run("--version")
    assert result.exit_code == 0 and result.output.startswith("textir 0.1")
