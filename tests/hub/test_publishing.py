"""What was trained gets to the Hub whole, with a card that tells the truth, and comes back as it
was; what cannot be published says why, loses nothing and gives nothing away.

The whole way is gone against a stand-in for the Hub in three fresh processes (an author, a visitor,
and one who cannot reach the Hub), each running several of our commands as `python -m` would and
reporting how they ended; the tests below read the reports.
"""

import inspect
import json
import logging
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from pipelines import MINI, TextGuidedRestorationPipeline
from tests.tools import tiny
from tests.tools.standin_hub import StandinHub
from textir.cli import app
from textir.hub import publishing
from textir.training.lora import make_trainable, save_adapter

ROOT = Path(__file__).parents[2]
ADAPTER = "pytorch_lora_weights.safetensors"
SECRET = "hf_SECRETsecret"
LICENCES = {"apache-2.0", "mit", "other", "openrail++"}


def textir(*arguments) -> list[str]:
    return ["textir", *map(str, arguments)]


def training(photos: Path, output: Path, *arguments, steps: int = 3) -> list[str]:
    """The command line of a training run of seconds, whose effect shows in 8-bit pixels."""
    knobs = (
        "--degradations noise:25..50 rain:heavy --resolution 16 --train_batch_size 2 "
        f"--max_train_steps {steps}"
    )
    knobs += (
        " --lr_scheduler constant --learning_rate 0.02 --dataloader_num_workers 0 "
        "--validation_size 16"
    )
    place = [
        "--train_data_dir",
        str(photos),
        "--output_dir",
        str(output),
        "--validation_data_dir",
        str(photos),
    ]
    return [
        "train_lora.train_restorer",
        *place,
        *knobs.split(),
        "--validation_steps",
        str(steps),
        *map(str, arguments),
    ]


# ---- the processes


def drive(steps: list, report: str) -> None:
    """Run commands (lists) as `python -m` would and examples (texts) as `python` would, one after
    the other; write down their exit codes and what they print. Travels as text to a fresh process.
    """
    import contextlib
    import io
    import json
    import runpy
    import sys
    import traceback

    outcomes = []
    for step in steps:
        printed, code = io.StringIO(), 0
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            try:
                if isinstance(step, str):
                    exec(step, {"__name__": "__main__"})
                else:
                    sys.argv = list(step)
                    runpy.run_module(step[0], run_name="__main__", alter_sys=True)
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
                printed.write(f"{end.code}\n" if isinstance(end.code, str) else "")
            except Exception:
                code = 1
                printed.write(traceback.format_exc())
        outcomes.append([code, printed.getvalue()])
    with open(report, "w") as file:
        json.dump(outcomes, file)


class Session:
    """A fresh process at work in the folder `home`; it imports what is slow to import and waits for
    its steps."""

    def __init__(self, environment: dict[str, str], home: Path):
        home.mkdir()
        self.home, self.report, self.steps = home, home / "report.json", {}
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        lines = [
            "import json, sys",
            "import pipelines",
            inspect.getsource(drive),
            "drive(*json.loads(sys.stdin.read()))",
        ]
        with (home / "errors.txt").open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-c", "\n".join(lines)],
                cwd=home,
                env={**inherited, **environment, **own},
                text=True,
                stdin=subprocess.PIPE,
                stderr=errors,
            )

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *exception) -> None:
        self.process.kill()
        self.process.communicate()

    def begin(self, steps: dict) -> None:
        self.steps = steps
        self.process.stdin.write(json.dumps([list(steps.values()), str(self.report)]))
        self.process.stdin.flush()
        self.process.stdin.close()
        self.process.stdin = None

    def outcomes(self) -> dict[str, tuple[int, str]]:
        """Exit code and output of every step, by its name."""
        assert self.process.wait(600) == 0, (self.home / "errors.txt").read_text()[-6000:]
        return {
            name: tuple(outcome)
            for name, outcome in zip(self.steps, json.loads(self.report.read_text()))
        }


def checked(outcomes: dict[str, tuple[int, str]]) -> dict[str, str]:
    """The outputs of steps that must all have ended well."""
    for name, (code, printed) in outcomes.items():
        assert code == 0, f"{name} failed:\n{printed[-6000:]}"
    return {name: printed for name, (_, printed) in outcomes.items()}


def save_photo(path: Path, seed: int, height: int = 36, width: int = 60) -> None:
    """A photo with large shapes and some texture."""
    coarse = tiny.image(4, 6, seed)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    pixels = (smooth * 0.8 + tiny.image(height, width, seed + 100) * 0.2) * 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels[0].movedim(0, -1).round().byte().numpy()).save(path)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def same(a: Path, b: Path) -> bool:
    """Whether two pictures are equal but for the rounding of single values, which may depend on
    where in memory weights lie."""
    difference = np.abs(pixels(a) - pixels(b))
    return difference.max() <= 1 and (difference > 0).mean() < 1e-3


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> Path:
    """A folder with photos/, photo.png and start/, a tiny checkpoint."""
    desk = tmp_path_factory.mktemp("desk")
    for i in range(3):
        save_photo(desk / "photos" / f"{i}.png", seed=i)
    save_photo(desk / "photo.png", seed=7)
    torch.manual_seed(0)
    TextGuidedRestorationPipeline(restorer=tiny.restorer(guided=False)).save_pretrained(
        desk / "start"
    )
    return desk


@pytest.fixture(scope="module")
def hub():
    with StandinHub() as hub:
        yield hub


@pytest.fixture(scope="module")
def visitor_session(hub, desk):
    """One who has the package and knows names on the Hub only; waits for the author."""
    with Session(hub.environment(desk / "visitor/cache"), desk / "visitor") as session:
        yield session


@pytest.fixture(scope="module")
def cut_off_session(desk):
    """One who has no token and no way to the Hub; works beside the author."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        closed = probe.getsockname()[1]
    home = desk / "cut off"
    mine, train = (
        home / "mine",
        ("--rank", 2, "--pretrained_model_name_or_path", desk / "start", "--push_to_hub"),
    )
    environment = {
        "HF_ENDPOINT": f"http://127.0.0.1:{closed}",
        "HF_HOME": str(home / "cache"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    with Session({**environment, "NO_PROXY": "127.0.0.1"}, home) as session:
        shutil.copytree(desk / "start", mine)
        session.begin(
            {
                "push without token": textir("push", mine, "tester/mine"),
                "push, hub away": textir("push", mine, "tester/mine", "--token", SECRET),
                "train without token": training(desk / "photos", home / "run 1", *train),
                "train, hub away": training(
                    desk / "photos", home / "run 2", *train, "--hub_token", SECRET
                ),
            }
        )
        yield session


@pytest.fixture(scope="module")
def author(hub, desk, cut_off_session, visitor_session) -> dict[str, tuple[int, str]]:
    """Trains an adapter on a local checkpoint, another on one of the Hub, and a whole new
    checkpoint, which is also measured."""
    start, photos, home = desk / "start", desk / "photos", desk / "author"
    folder = home / "whole" / "pipeline"
    hub.refused.add("hf_refused")
    session = Session(hub.environment(home / "cache"), home)
    shutil.copytree(start, home / "start")
    network = json.dumps(
        {"width": 4, "encoder_depths": [1], "middle_depth": 1, "decoder_depths": [1]}
    )
    adapter = ("--rank", 2, "--push_to_hub", "--hub_token", SECRET, "--hub_model_id")
    measured = ("evaluate", "--checkpoint", folder, "--data", photos, "--degradation")
    steps = {
        "adapter": training(
            photos,
            home / "local",
            "--pretrained_model_name_or_path",
            start,
            *adapter,
            "tester/on-local",
        ),
        "restore": textir(
            "restore",
            desk / "photo.png",
            "--checkpoint",
            start,
            "--adapter",
            home / "local/adapter",
            "--output",
            home / "adapted",
        ),
        "bare": textir(
            "restore", desk / "photo.png", "--checkpoint", start, "--output", home / "bare"
        ),
        "push start": textir("push", home / "start", "tester/start"),
        "adapter on hub": training(
            photos,
            home / "remote",
            "--pretrained_model_name_or_path",
            "tester/start",
            *adapter,
            "tester/on-hub",
        ),
        "forbidden": training(
            photos,
            home / "forbidden",
            "--pretrained_model_name_or_path",
            start,
            *adapter,
            "stranger/adapter",
            steps=1,
        ),
        "whole": training(photos, home / "whole", "--restorer_config", network),
        "measure": textir(*measured, "noise:25", "--json", folder / "evaluations/noise.json"),
        "measure twice": textir(
            *measured, "rain:heavy", "--protocol", "y", "--json", folder / "evaluations/rain.json"
        ),
        "push": textir("push", folder, "whole", "--private", "--license", "mit"),
        "push refused": textir("push", folder, "whole", "--token", "hf_refused"),
        "restore whole": textir(
            "restore", desk / "photo.png", "--checkpoint", folder, "--output", home / "whole, local"
        ),
    }
    for clutter in (
        "checkpoint-7/optimizer.bin",
        "logs/events",
        "evaluations/.rain-abc.part",
        "cache/samples.pt",
    ):
        (folder / clutter).parent.mkdir(parents=True, exist_ok=True)
        (folder / clutter).write_text("clutter")
    with session:
        session.begin(steps)
        return session.outcomes()


@pytest.fixture(scope="module")
def done(author) -> dict[str, str]:
    """What the author's commands printed, all but those that had to fail."""
    return checked(
        {
            name: outcome
            for name, outcome in author.items()
            if name not in ("forbidden", "push refused")
        }
    )


@pytest.fixture(scope="module")
def cut_off(cut_off_session) -> dict[str, tuple[int, str]]:
    return cut_off_session.outcomes()


@pytest.fixture(scope="module")
def visitor(hub, desk, done, visitor_session) -> Path:
    """The folder of the visitor, who has restored a photo with what the author pushed, also as the
    card of an adapter says."""
    home = visitor_session.home
    shutil.copyfile(desk / "photo.png", home / "photo.png")
    card = read_card(hub, "tester/on-hub").text
    example = re.search(r"```python\n(.*?)```", card, re.S)[1]
    command = re.search(r"`python -m (textir restore .*?)`", card)[1]
    steps = {
        "adapter": textir(
            "restore",
            "photo.png",
            "--checkpoint",
            desk / "start",
            "--adapter",
            "tester/on-local",
            "--output",
            "adapted",
        ),
        "whole": textir(
            "restore", "photo.png", "--checkpoint", "tester/whole", "--output", "whole"
        ),
        "example": f"{example}\nrestored.save('example.png')",
        "command": shlex.split(command),
    }
    visitor_session.begin(steps)
    checked(visitor_session.outcomes())
    return home


def read_card(hub: StandinHub, repo: str) -> ModelCard:
    return ModelCard(hub.files(repo)["README.md"].content.decode())


def front_matter(hub: StandinHub, repo: str) -> dict:
    return yaml.safe_load(hub.files(repo)["README.md"].content.decode().split("---")[1])


# ---- an adapter, there and back


def test_a_pushed_adapter_has_its_weights_its_record_and_a_card(hub, done):
    files = hub.files("tester/on-local")
    assert {ADAPTER, "training.json", "README.md", "before_after.png"} == set(files) - {
        ".gitattributes"
    }


def test_a_pushed_adapter_is_the_one_on_disk(hub, done, desk):
    folder = desk / "author/local/adapter"
    for name, file in hub.files("tester/on-local").items():
        assert file.content == (folder / name).read_bytes(), name


def test_an_adapter_from_the_hub_restores_like_the_local_one(visitor, desk):
    assert same(visitor / "adapted/photo.png", desk / "author/adapted/photo.png")


def test_the_adapter_is_seen_in_the_pixels(done, desk):
    """Otherwise the test above could not fail."""
    assert not same(desk / "author/bare/photo.png", desk / "author/adapted/photo.png")


def test_the_python_example_of_an_adapters_card_restores_with_the_adapter(visitor, desk):
    folder = desk / "author/remote/adapter"
    pipe = TextGuidedRestorationPipeline.from_pretrained(desk / "start")
    pipe.set_progress_bar_config(disable=True)
    photo = Image.open(desk / "photo.png")
    bare = np.asarray(pipe(photo).images[0]).astype(int)
    pipe.load_lora_weights(str(folder))
    expected = np.asarray(pipe(photo).images[0]).astype(int)
    assert np.abs(pixels(visitor / "example.png") - expected).max() <= 1
    assert np.abs(bare - expected).max() > 1


def test_the_command_of_an_adapters_card_does_what_its_example_does(visitor):
    assert same(visitor / "restored/photo.png", visitor / "example.png")


def test_the_token_of_the_command_line_is_the_one_that_the_hub_gets(hub, done):
    assert SECRET in hub.tokens


@pytest.mark.parametrize("run", ["local", "remote"])
def test_the_token_is_written_nowhere(hub, done, desk, run):
    for path in (desk / "author" / run).rglob("*"):
        assert path.is_dir() or SECRET.encode() not in path.read_bytes(), path


@pytest.mark.parametrize("repo", ["tester/on-local", "tester/on-hub"])
def test_the_token_is_published_nowhere(hub, done, repo):
    for path, file in hub.files(repo).items():
        assert SECRET.encode() not in file.content, path


def test_the_token_is_printed_nowhere(author, cut_off):
    for name, (_, printed) in {**author, **cut_off}.items():
        assert SECRET not in printed, name


@pytest.mark.parametrize(
    "flag", [["--hub_token", SECRET], [f"--hub_token={SECRET}"], ["--hub-token", SECRET]]
)
def test_no_spelling_of_the_flag_puts_the_token_into_the_record(tmp_path, monkeypatch, flag):
    """`publish` itself, on the run of one step that the parser makes of this spelling."""
    from textir.training.config import parse_config
    from textir.training.run import TrainingRun
    from train_lora.chain import publish
    from train_lora.train_restorer import Config

    save_photo(tmp_path / "photos/a.png", seed=1)
    arguments = training(tmp_path / "photos", tmp_path / "run", "--rank", 2, *flag)[1:]
    monkeypatch.setattr(sys, "argv", ["train_restorer.py", *arguments])
    pipe = TextGuidedRestorationPipeline(restorer=tiny.restorer(guided=False))
    config = parse_config(Config)
    assert config.hub_token == SECRET
    run = TrainingRun(config, make_trainable(pipe, ["restorer"], rank=2))
    folder = publish(run, pipe, "train_restorer")
    assert (folder / "training.json").is_file()
    for path in (tmp_path / "run").rglob("*.*"):
        assert path.is_dir() or SECRET.encode() not in path.read_bytes(), path


# ---- a checkpoint, there and back


def test_a_pushed_checkpoint_restores_by_its_name_like_the_local_one(visitor, desk):
    assert same(visitor / "whole/photo.png", desk / "author/whole, local/photo.png")
    assert not same(visitor / "whole/photo.png", desk / "photo.png")


def test_a_name_without_owner_goes_to_the_owner_of_the_token(hub, done):
    assert "tester/whole" in hub.repositories
    assert done["push"].strip().endswith(f"{hub.url}/tester/whole")


def test_a_repository_is_private_only_if_asked_for(hub, done):
    assert hub.repositories["tester/whole"].private
    assert not hub.repositories["tester/start"].private


def test_a_pushed_checkpoint_brings_its_record_and_its_evaluations(hub, done, desk):
    files = hub.files("tester/whole")
    assert {
        "model_index.json",
        "training.json",
        "evaluations/noise.json",
        "evaluations/rain.json",
    } < set(files)
    for name in ("training.json", "evaluations/noise.json"):
        assert files[name].content == (desk / "author/whole/pipeline" / name).read_bytes()


def test_clutter_of_training_is_not_uploaded(hub, done, desk):
    clutter = {
        "checkpoint-7/optimizer.bin",
        "logs/events",
        "evaluations/.rain-abc.part",
        "cache/samples.pt",
    }
    local = {
        p.relative_to(desk / "author/whole/pipeline").as_posix()
        for p in (desk / "author/whole/pipeline").rglob("*")
    }
    assert clutter < local
    uploaded = set(hub.files("tester/whole"))
    assert not clutter & uploaded
    assert {
        name for name in local - clutter if (desk / "author/whole/pipeline" / name).is_file()
    } == uploaded - {".gitattributes"}


def test_the_recorded_command_trains_the_same_again(done, desk):
    record = json.loads((desk / "author/whole/pipeline/training.json").read_text())
    network = json.dumps(
        {"width": 4, "encoder_depths": [1], "middle_depth": 1, "decoder_depths": [1]}
    )
    command = training(desk / "photos", desk / "author/whole", "--restorer_config", network)
    assert shlex.split(record["command"]) == ["python", "-m", *command]
    assert record["steps"] == record["settings"]["max_train_steps"] == 3


def test_the_stand_in_answered_everything_that_was_asked(hub, visitor):
    """A route that is missing would show as a failure of the client, far from its cause."""
    assert hub.unanswered == []


# ---- cards of what was really trained


@pytest.mark.parametrize(
    "repo", ["tester/on-local", "tester/on-hub", "tester/whole", "tester/start"]
)
def test_published_cards_have_the_metadata_that_the_hub_reads(hub, done, tmp_path, repo):
    (tmp_path / "README.md").write_bytes(hub.files(repo)["README.md"].content)
    data = ModelCard.load(tmp_path / "README.md").data
    assert data.library_name == "diffusers" and data.pipeline_tag == "image-to-image"
    assert data.license in LICENCES
    assert {"image-restoration", "textir"} <= set(data.tags)
    assert ("lora" in data.tags) == (repo in ("tester/on-local", "tester/on-hub"))


@pytest.mark.parametrize("repo", ["tester/on-local", "tester/on-hub", "tester/whole"])
def test_published_cards_are_tagged_with_the_degradations_of_the_training(hub, done, repo):
    assert {"noise", "rain"} <= set(read_card(hub, repo).data.tags)


def test_a_published_card_names_the_base_only_where_it_is_on_the_hub(hub, done):
    on_hub = read_card(hub, "tester/on-hub").data
    assert on_hub.base_model == "tester/start" and on_hub.base_model_relation == "adapter"
    assert on_hub.license == "other"
    for repo in ("tester/on-local", "tester/whole", "tester/start"):
        data = read_card(hub, repo).data.to_dict()
        assert not {"base_model", "base_model_relation"} & set(data), repo


def test_the_licence_of_the_command_line_is_on_the_card(hub, done):
    assert read_card(hub, "tester/whole").data.license == "mit"
    assert read_card(hub, "tester/on-local").data.license == "apache-2.0"


def test_published_scores_are_those_that_were_measured(hub, done, desk):
    folder = desk / "author/whole/pipeline/evaluations"
    expected = set()
    for path in folder.glob("*.json"):
        evaluation = json.loads(path.read_text())
        for metric in ("psnr", "ssim"):
            how = evaluation["degradation"], evaluation["protocol"], evaluation["command"]
            expected.add((*how, metric, evaluation["summary"][metric]))
    published = set()
    (index,) = front_matter(hub, "tester/whole")["model-index"]
    for result in index["results"]:
        assert result["task"]["type"] == "image-to-image"
        args = result["dataset"]["args"]
        degradation = result["dataset"]["name"].removeprefix("photos, ")
        for metric in result["metrics"]:
            published.add(
                (degradation, args["protocol"], args["command"], metric["type"], metric["value"])
            )
    assert published == expected


def test_the_table_of_a_card_shows_every_evaluation_with_its_command(hub, done, desk):
    rows = [
        line
        for line in read_card(hub, "tester/whole").text.splitlines()
        if "textir evaluate --checkpoint" in line
    ]
    assert len(rows) == 2
    for row, name in zip(rows, ("noise", "rain")):
        evaluation = json.loads(
            (desk / f"author/whole/pipeline/evaluations/{name}.json").read_text()
        )
        summary = evaluation["summary"]
        assert (
            evaluation["command"] in row
            and evaluation["degradation"] in row
            and evaluation["protocol"] in row
        )
        assert f"{summary['psnr']:.2f} / {summary['ssim']:.4f}" in row
        assert f"{summary['input_psnr']:.2f} / {summary['input_ssim']:.4f}" in row


def test_a_card_without_evaluations_makes_no_claims(hub, done):
    card = read_card(hub, "tester/on-local")
    assert "model-index" not in front_matter(hub, "tester/on-local")
    assert "Nothing was measured yet" in card.text and " dB" not in card.text


def test_a_card_tells_how_it_was_trained(hub, done, desk):
    text, record = (
        read_card(hub, "tester/whole").text,
        json.loads((desk / "author/whole/pipeline/training.json").read_text()),
    )
    assert record["command"] in text
    assert "| learning_rate | 0.02 |" in text and "hub_token" not in text


def test_the_picture_of_a_card_is_the_last_validation(hub, done, desk):
    files = hub.files("tester/on-local")
    assert "](before_after.png)" in files["README.md"].content.decode()
    assert (
        files["before_after.png"].content
        == (desk / "author/local/validation/step-3.png").read_bytes()
    )


# ---- cards, in detail


@pytest.fixture
def checkpoint(tmp_path, desk) -> Path:
    return Path(shutil.copytree(desk / "start", tmp_path / "mine"))


@pytest.fixture
def adapter(tmp_path) -> Path:
    """An adapter, as `publish` leaves one, trained on what comes with the package."""
    pipe = TextGuidedRestorationPipeline(restorer=tiny.restorer(guided=False))
    make_trainable(pipe, ["restorer"], rank=2)
    save_adapter(pipe, tmp_path / "adapter")
    record(tmp_path / "adapter", "mini")
    return tmp_path / "adapter"


def record(folder: Path, start: str | Path, **settings) -> None:
    settings = {
        "pretrained_model_name_or_path": str(start),
        "degradations": ["haze:1@2", "noise:0..50+rain:1", "clean"],
        **settings,
    }
    publishing.describe_training(
        folder, "train_restorer", "python -m train_lora.train_restorer", settings, steps=5
    )


def measure(folder: Path, name: str, psnr: float = 30.25, **changes) -> dict:
    """An evaluation of a result, as `python -m textir evaluate --json` writes one."""
    summary = {
        "images": 2,
        "input_psnr": 20.5,
        "input_ssim": 0.5,
        "psnr": psnr,
        "ssim": 0.875,
        "seconds": 0.1,
    }
    made = {
        "command": f"python -m textir evaluate --data {name}",
        "weights": {"checkpoint": publishing.weights_digest(folder)},
    }
    made |= {
        "data": f"/data/{name}",
        "degradation": None,
        "protocol": "rgb",
        "seed": 0,
        "settings": {},
        "scores": [],
    }
    path = folder / "evaluations" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"summary": summary, **made, **changes}))
    return json.loads(path.read_text())


def index_of(card: ModelCard) -> dict[tuple[str, str], float]:
    """The scores of a card by data set and metric, as a reader of its file finds them."""
    results = ModelCard(str(card)).data.eval_results or []
    return {(result.dataset_name, result.metric_type): result.metric_value for result in results}


def change_weights(folder: Path) -> None:
    path = sorted(folder.rglob("*.safetensors"))[0]
    weights = load_file(path)
    save_file({name: value + 0.5 for name, value in weights.items()}, path)


def test_each_data_set_of_a_card_has_its_own_scores(checkpoint):
    measure(checkpoint, "CBSD68", psnr=30.0)
    measure(checkpoint, "SOTS", psnr=17.0)
    scores = index_of(publishing.build_card(checkpoint))
    assert {name: scores.get((name, "psnr")) for name in ("CBSD68", "SOTS")} == {
        "CBSD68": 30.0,
        "SOTS": 17.0,
    }


def test_scores_measured_with_other_weights_stay_out_of_the_card_with_a_warning(checkpoint, caplog):
    measure(checkpoint, "before", psnr=44.0)
    change_weights(checkpoint)
    measure(checkpoint, "after", psnr=33.0)
    with caplog.at_level(logging.WARNING, "textir"):
        card = publishing.build_card(checkpoint)
    assert index_of(card) == {("after", "psnr"): 33.0, ("after", "ssim"): 0.875}
    assert "44.0" not in str(card)
    (message,) = [
        entry.getMessage() for entry in caplog.records if entry.levelno == logging.WARNING
    ]
    assert "before.json" in message and "other weights" in message


def test_scores_measured_with_an_adapter_stay_out_of_the_card_of_its_checkpoint(
    checkpoint, adapter
):
    """They are not what the checkpoint reaches."""
    weights = {
        "checkpoint": publishing.weights_digest(checkpoint),
        "adapter": publishing.weights_digest(adapter),
    }
    measure(checkpoint, "adapted", weights=weights)
    assert index_of(publishing.build_card(checkpoint)) == {}


def test_scores_measured_with_an_adapter_inside_the_checkpoint_stay_out_of_its_card(
    checkpoint, adapter, desk
):
    """`--adapter derain` names one of the adapters that a checkpoint carries; the command line
    really measures here."""
    shutil.copytree(adapter, checkpoint / "adapters" / "derain")
    target = checkpoint / "evaluations/derain.json"
    arguments = (
        "evaluate",
        "--checkpoint",
        checkpoint,
        "--adapter",
        "derain",
        "--data",
        desk / "photos",
    )
    arguments += ("--degradation", "noise:25", "--limit", 1, "--json", target)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    assert index_of(publishing.build_card(checkpoint)) == {}


def test_scores_of_an_adapter_are_on_its_card(checkpoint, adapter):
    weights = {
        "checkpoint": publishing.weights_digest(checkpoint),
        "adapter": publishing.weights_digest(adapter),
    }
    measure(adapter, "adapted", weights=weights)
    assert index_of(publishing.build_card(adapter)) == {
        ("adapted", "psnr"): 30.25,
        ("adapted", "ssim"): 0.875,
    }


def test_a_card_edited_by_hand_stays_as_it_is(checkpoint):
    path = publishing.write_card(checkpoint, "tester/mine")
    path.write_text(path.read_text().replace(publishing.MARK, "My own words."))
    edited = path.read_bytes()
    measure(checkpoint, "CBSD68")
    assert publishing.write_card(checkpoint, "tester/other", "mit") == path
    assert path.read_bytes() == edited


def test_a_card_that_still_has_its_mark_is_renewed(checkpoint):
    path = publishing.write_card(checkpoint)
    assert publishing.MARK in path.read_text() and index_of(ModelCard.load(path)) == {}
    measure(checkpoint, "CBSD68")
    publishing.write_card(checkpoint, "tester/mine")
    assert (
        publishing.MARK in path.read_text()
        and "CBSD68" in path.read_text()
        and "tester/mine" in path.read_text()
    )


def test_writing_a_card_again_changes_nothing(checkpoint):
    record(checkpoint, "tester/start")
    measure(checkpoint, "CBSD68")
    first = publishing.write_card(checkpoint, "tester/mine").read_bytes()
    assert publishing.write_card(checkpoint, "tester/mine").read_bytes() == first


def test_the_card_of_an_adapter_on_the_embedded_checkpoint_starts_from_it(adapter):
    text = publishing.build_card(adapter, "tester/derain").text
    example = re.search(r"```python\n(.*?)```", text, re.S)[1]
    compile(example, "example", "exec")
    assert "from_pretrained(MINI)" in example and 'load_lora_weights("tester/derain")' in example
    command = shlex.split(re.search(r"`(python -m textir restore .*?)`", text)[1])
    assert command[command.index("--adapter") + 1] == "tester/derain"
    assert "--checkpoint" not in command  # the embedded one is the default
    assert Path(MINI).is_dir()


def test_the_card_of_a_checkpoint_names_its_repository_and_its_networks(checkpoint):
    text = publishing.build_card(checkpoint, "tester/mine").text
    example = re.search(r"```python\n(.*?)```", text, re.S)[1]
    compile(example, "example", "exec")
    assert 'from_pretrained("tester/mine")' in example
    assert publishing.components(checkpoint) == ["restorer"]


def test_a_card_names_the_degradations_once_each_and_without_their_values(checkpoint):
    record(checkpoint, "mini")
    tags = publishing.build_card(checkpoint).data.tags
    assert "haze" in tags and "noise" in tags and "clean" not in tags
    assert len(tags) == len(set(tags)) and not [tag for tag in tags if re.search(r"[:@+]", tag)]


def test_a_compound_recipe_tags_the_card_with_all_its_degradations(checkpoint):
    record(checkpoint, "mini", degradations=["noise:25+rain:1@2"])
    assert {"noise", "rain"} <= set(publishing.build_card(checkpoint).data.tags)


def test_the_base_on_the_hub_is_known_through_every_folder_that_was_trained_from_it(
    tmp_path, checkpoint, adapter
):
    record(checkpoint, "tester/start")
    record(adapter, checkpoint)
    for folder, relation in ((checkpoint, "finetune"), (adapter, "adapter")):
        data = ModelCard(str(publishing.build_card(folder, "tester/new"))).data
        assert (data.base_model, data.base_model_relation, data.license) == (
            "tester/start",
            relation,
            "other",
        )


@pytest.mark.parametrize("start", ["mini", "None", "start"])
def test_what_did_not_come_from_the_hub_has_no_base(checkpoint, desk, start):
    begin = {"mini": "mini", "None": None, "start": str(desk / "start")}[start]
    record(checkpoint, "", pretrained_model_name_or_path=begin)
    assert json.loads((checkpoint / "training.json").read_text())["base_model"] is None
    data = ModelCard(str(publishing.build_card(checkpoint))).data.to_dict()
    assert "base_model" not in data
    assert data["license"] == ("other" if start == "mini" else "apache-2.0")
    assert data.get("license_name") == ("research-only" if start == "mini" else None)


def test_the_licence_of_a_checkpoint_holds_for_what_was_trained_from_it(
    tmp_path, checkpoint, adapter
):
    record(checkpoint, "mini")
    publishing.write_card(checkpoint)
    record(adapter, checkpoint)
    assert publishing.build_card(adapter).data.license_name == "research-only"
    assert publishing.build_card(adapter, license_name="mit").data.license == "mit"


def test_a_data_set_of_the_hub_is_named_on_the_card(checkpoint, tmp_path):
    record(checkpoint, "mini", dataset_name="tester/photos")
    assert ModelCard(str(publishing.build_card(checkpoint))).data.datasets == ["tester/photos"]
    record(checkpoint, "mini", dataset_name="imagefolder")
    assert ModelCard(str(publishing.build_card(checkpoint))).data.datasets is None


def test_a_result_without_any_record_gets_a_card_that_says_so(checkpoint):
    assert "No record of its training" in publishing.build_card(checkpoint, "tester/mine").text


# ---- digests


@pytest.mark.parametrize("kind", ["checkpoint", "adapter"])
def test_the_digest_follows_the_weights(request, kind):
    folder = request.getfixturevalue(kind)
    before = publishing.weights_digest(folder)
    assert re.fullmatch("[0-9a-f]{64}", before)
    change_weights(folder)
    assert publishing.weights_digest(folder) != before


def test_the_digest_does_not_depend_on_other_files_or_on_where_the_folder_lies(checkpoint, adapter):
    before = publishing.weights_digest(checkpoint)
    record(checkpoint, "mini")
    measure(checkpoint, "CBSD68")
    publishing.write_card(checkpoint)
    shutil.copytree(adapter, checkpoint / "adapters" / "derain")
    assert publishing.weights_digest(checkpoint) == before
    moved = checkpoint.rename(checkpoint.with_name("adapters"))
    assert publishing.weights_digest(moved) == before == publishing.weights_digest(str(moved))


def test_the_digest_tells_a_file_that_was_renamed_or_added(checkpoint):
    before = publishing.weights_digest(checkpoint)
    (file,) = checkpoint.rglob("*.safetensors")
    renamed = file.rename(file.with_name("other.safetensors"))
    assert publishing.weights_digest(checkpoint) != before
    shutil.copyfile(renamed, file)
    assert publishing.weights_digest(checkpoint) != before


def test_what_is_not_uploaded_does_not_count_in_the_digest(checkpoint):
    """Otherwise the digest of a download differs from that of the folder it was pushed from."""
    before = publishing.weights_digest(checkpoint)
    (checkpoint / "checkpoint-5").mkdir()
    save_file({"weight": torch.ones(1)}, checkpoint / "checkpoint-5" / "trainable.safetensors")
    assert publishing.weights_digest(checkpoint) == before


# ---- what is refused


def test_a_folder_that_is_no_result_is_refused_with_a_hint_to_its_sub_folder(
    tmp_path, checkpoint, adapter
):
    with pytest.raises(
        ValueError, match=r"no result.*model_index\.json or pytorch_lora_weights"
    ) as refusal:
        publishing.push(tmp_path / "nothing", "tester/mine")
    assert "Did you mean" not in str(refusal.value)
    checkpoint.rename(tmp_path / "run").joinpath("model_index.json").unlink()
    for name in ("adapter", "pipeline"):
        run = tmp_path / f"run of {name}"
        (run / name).mkdir(parents=True)
        result = CliRunner().invoke(app, ["push", str(run), "tester/mine"])
        assert result.exit_code == 2
        assert f"Did you mean {run / name}?" in result.output


@pytest.mark.parametrize(
    "content",
    [
        "not JSON",
        "",
        "{}",
        "[]",
        '"text"',
        '{"weights": null}',
        '{"weights": "abc"}',
        '{"weights": {"checkpoint": "DIGEST"}}',
    ],
)
def test_a_file_that_is_no_evaluation_is_named_and_refused(checkpoint, content):
    (checkpoint / "evaluations").mkdir()
    digest = publishing.weights_digest(checkpoint)
    (checkpoint / "evaluations/broken.json").write_text(content.replace("DIGEST", digest))
    with pytest.raises(ValueError, match=r"broken\.json.*not an evaluation"):
        publishing.write_card(checkpoint)
    assert not (checkpoint / "README.md").exists()


@pytest.mark.parametrize(
    "name", ["push without token", "push, hub away", "train without token", "train, hub away"]
)
def test_who_cannot_publish_is_told_so_in_one_message_without_a_trace(cut_off, name):
    code, printed = cut_off[name]
    assert code in (1, 2)
    assert "Traceback" not in printed, printed[-3000:]
    assert "error: " in printed


@pytest.mark.parametrize("name", ["push without token", "train without token"])
def test_without_a_token_the_message_says_how_to_log_in(cut_off, name):
    _, printed = cut_off[name]
    assert "hf auth login" in printed and "HF_TOKEN" in printed


@pytest.mark.parametrize("name", ["push, hub away", "train, hub away"])
def test_a_hub_that_is_away_is_called_so(cut_off, name):
    assert "cannot be reached" in cut_off[name][1]


@pytest.mark.parametrize("name", ["push without token", "push, hub away"])
def test_a_push_that_failed_says_how_to_push_later_and_loses_nothing(cut_off, desk, name):
    mine = desk / "cut off" / "mine"
    _, printed = cut_off[name]
    assert "Nothing was lost" in printed
    assert shlex.split(printed.split("python -m ")[-1].splitlines()[0]) == textir(
        "push", mine, "tester/mine"
    )
    for path in (desk / "start").rglob("*"):
        assert (
            path.is_dir()
            or path.read_bytes() == (mine / path.relative_to(desk / "start")).read_bytes()
        )


@pytest.mark.parametrize("run", ["run 1", "run 2"])
def test_training_that_could_not_be_published_does_not_start(cut_off, desk, run):
    assert not [path for path in (desk / "cut off" / run).iterdir() if path.is_dir()]


def test_a_token_that_the_hub_refuses_is_an_error_that_says_so(author):
    code, printed = author["push refused"]
    assert code == 2 and "Traceback" not in printed
    assert (
        "refuses" in printed and "Invalid user token" in printed and "Nothing was lost" in printed
    )


def test_training_whose_upload_is_refused_keeps_its_result_and_says_how_to_push_it(author, desk):
    code, printed = author["forbidden"]
    folder = desk / "author/forbidden/adapter"
    assert code == 1 and "Traceback" not in printed
    assert "rights" in printed and "Nothing was lost" in printed
    assert shlex.split(printed.split("python -m ")[-1].splitlines()[0]) == textir(
        "push", folder, "stranger/adapter"
    )
    assert {ADAPTER, "training.json", "README.md"} <= {path.name for path in folder.iterdir()}
