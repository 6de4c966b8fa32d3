"""The command line gives the configuration that it says or an error that can be mended; checkpoints
are whole or absent; a run that was cut short goes on to the same bits.
"""

import json
import logging
import os
import stat
import sys
from dataclasses import dataclass

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import is_tensorboard_available
from torch.utils.data import Dataset

from tests.train_lora import equal, forget_processes, in_two_processes, same_checkpoint, trained
from textir.training import config as training
from textir.training.config import TrainingConfig, knob, parse_config, run_script
from textir.training.run import (
    TrainingRun,
    checkpoint_step,
    find_checkpoint,
    list_checkpoints,
    save_checkpoint,
)
from train_lora import make_guidance, train_cleaner, train_detector, train_mapper, train_restorer

SCRIPTS = [train_mapper, train_cleaner, train_detector, train_restorer]
RESTORER = ["--output_dir", "runs/x", "--train_data_dir", "photos", "--degradations", "noise:25"]


@pytest.fixture(autouse=True)
def fresh_processes():
    """Accelerate keeps its state in the process; every test starts and leaves without one."""
    forget_processes()
    yield
    forget_processes()


# ---- command line and recipes


def recipe(tmp_path, text: str) -> list[str]:
    (tmp_path / "recipe.yaml").write_text(text)
    return ["--config", str(tmp_path / "recipe.yaml")]


def restorer(tmp_path, text: str, *flags: str) -> train_restorer.Config:
    return parse_config(train_restorer.Config, [*recipe(tmp_path, text), *RESTORER, *flags])


def test_flags_override_the_recipe_and_the_recipe_overrides_defaults(tmp_path):
    text = "max_train_steps: 7\nlearning_rate: 0.25\nloss: psnr\n"
    config = restorer(tmp_path, text, "--learning_rate", "0.5")
    assert (config.max_train_steps, config.learning_rate, config.loss) == (7, 0.5, "psnr")
    assert config.lr_scheduler == "warmup_stable_decay"
    flags_first = parse_config(
        train_restorer.Config, ["--learning_rate", "0.5", *RESTORER, *recipe(tmp_path, text)]
    )
    assert flags_first == config


def test_flags_replace_a_list_of_the_recipe(tmp_path):
    text = (
        "degradations: [rain:heavy, haze:1]\nresolution: [16, 24]\ntrain_batch_size: [4, "
        "2]\nphase_ends: [5]\n"
    )
    config = parse_config(train_restorer.Config, [*recipe(tmp_path, text), *RESTORER])
    assert config.degradations == ["noise:25"]
    assert (config.resolution, config.train_batch_size, config.phase_ends) == (
        [16, 24],
        [4, 2],
        [5],
    )


@pytest.mark.parametrize("name", ["train_data_dir", "degradations", "validation_degradations"])
def test_a_text_for_a_list_is_one_entry_and_not_its_letters(tmp_path, name):
    value = "noise:0..50@2" if "degradations" in name else "/data/My Photos"
    arguments = [
        "--output_dir",
        "runs/x",
        *recipe(
            tmp_path,
            f"train_data_dir: photos\n{name}: {value}\n".split("\n", name == "train_data_dir")[-1],
        ),
    ]
    assert getattr(parse_config(train_cleaner.Config, arguments), name) == [value]


def test_a_number_for_a_list_is_one_entry(tmp_path):
    config = restorer(tmp_path, "resolution: 48\ntrain_batch_size: 3\n")
    assert (config.resolution, config.train_batch_size) == ([48], [3])


def test_an_empty_list_of_a_recipe_is_an_empty_list(tmp_path):
    """Such as the `phase_ends: []` that a run writes into its config.json."""
    assert restorer(tmp_path, "phase_ends: []\nmatcher_widths: []\n").phase_ends == []


@pytest.mark.parametrize(
    ("text", "value"), [("1e-4", 1e-4), ("1.0e-4", 1e-4), ("2", 2.0), ("'3e-5'", 3e-5)]
)
def test_numbers_of_a_recipe_are_numbers_however_they_are_written(tmp_path, text, value):
    assert restorer(tmp_path, f"learning_rate: {text}\n").learning_rate == value


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("yes", True), ("false", False), ("off", False)]
)
def test_booleans_of_a_recipe_turn_knobs_on_and_off(tmp_path, text, value):
    config = restorer(tmp_path, f"use_ema: {text}\ngradient_checkpointing: {text}\n")
    assert config.use_ema is value and config.gradient_checkpointing is value


def test_nothing_in_a_recipe_leaves_the_default(tmp_path):
    assert restorer(tmp_path, "rank:\nlearning_rate: null\n").learning_rate == 1e-3


def test_a_mapping_in_a_recipe_becomes_json(tmp_path):
    config = restorer(tmp_path, "restorer_config:\n  width: 8\n  encoder_depths: [1, 2]\n")
    assert json.loads(config.restorer_config) == {"width": 8, "encoder_depths": [1, 2]}


def test_required_knobs_may_come_from_the_recipe(tmp_path):
    text = "output_dir: runs/y\ntrain_data_dir: [photos]\ndegradations: [noise:25]\n"
    assert parse_config(train_cleaner.Config, recipe(tmp_path, text)).output_dir == "runs/y"


def test_an_unknown_key_of_a_recipe_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"recipe.yaml.*learnig_rate"):
        restorer(tmp_path, "learnig_rate: 1e-3\nloss: l1\n")


@pytest.mark.parametrize("text", ["- a\n- b\n", "just text", "a: [1", ""])
def test_a_recipe_that_is_none_is_named(tmp_path, text):
    with pytest.raises(ValueError, match=r"recipe\.yaml"):
        restorer(tmp_path, text)


def test_a_recipe_that_is_missing_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere.yaml cannot be read"):
        parse_config(train_cleaner.Config, ["--config", str(tmp_path / "nowhere.yaml")])
    with pytest.raises(ValueError, match="needs a YAML file"):
        parse_config(train_cleaner.Config, ["--output_dir", "x", "--config"])


def test_one_section_of_a_recipe_can_be_chosen(tmp_path):
    flags = recipe(tmp_path, "plain:\n  loss: psnr\nguided:\n  loss: l1\n  learning_rate: 2e-4\n")
    config = parse_config(train_restorer.Config, [flags[0], f"{flags[1]}#plain", *RESTORER])
    assert (config.loss, config.learning_rate) == ("psnr", 1e-3)
    with pytest.raises(ValueError, match="no section 'fancy'; it has plain, guided"):
        parse_config(train_restorer.Config, [flags[0], f"{flags[1]}#fancy", *RESTORER])
    with pytest.raises(ValueError, match="A section is chosen by"):
        parse_config(train_restorer.Config, [*flags, *RESTORER])


def test_the_configuration_that_a_run_writes_is_a_recipe_for_it(tmp_path):
    before = parse_config(train_restorer.Config, RESTORER)
    (tmp_path / "config.json").write_text(json.dumps(vars(before)))
    assert (
        parse_config(train_restorer.Config, ["--config", str(tmp_path / "config.json")]) == before
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rank", "0"], "`--rank` must be at least 1, got 0"),
        (["--rank", "-4"], "`--rank` must be at least 1"),
        (["--max_train_steps", "0"], "`--max_train_steps` must be at least 1"),
        (["--checkpointing_steps", "0"], "`--checkpointing_steps` must be at least 1"),
        (["--validation_steps", "0"], "`--validation_steps` must be at least 1"),
        (
            ["--gradient_accumulation_steps", "0"],
            "`--gradient_accumulation_steps` must be at least 1",
        ),
        (["--mixed_precision", "fp8"], "`--mixed_precision` must be .*got 'fp8'"),
        (
            ["--lr_scheduler", "cosine", "--lr_decay_steps", "9"],
            "`--lr_decay_steps` belongs to .*, got 'cosine'",
        ),
        (
            ["--report_to", "aim"],
            "tracker 'aim' is not installed: pip install aim, or pass `--report_to none`",
        ),
        (["--degradations", "snow:3"], "snow"),
        (["--degradations", "noise:25@0"], "must be a positive number"),
    ],
)
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_knob_that_cannot_be_is_refused_by_every_stage(script, flags, message):
    with pytest.raises(ValueError, match=message):
        parse_config(
            script.Config, ["--output_dir", "runs/x", "--train_data_dir", "photos", *flags]
        )


@pytest.mark.parametrize("script", SCRIPTS)
def test_half_precision_without_a_gpu_is_refused(script, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="fp16` needs a GPU; take bf16"):
        parse_config(script.Config, [*RESTORER, "--mixed_precision", "fp16"])


@pytest.mark.parametrize(("bf16", "chosen"), [(3.0, "bf16"), (1.0, "no")])
def test_automatic_precision_takes_bf16_only_where_it_is_faster(bf16, chosen, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    monkeypatch.setattr(
        training, "matmul_speed", lambda dtype, **options: bf16 if dtype == torch.bfloat16 else 2.0
    )
    training.is_fast_at_bf16.cache_clear()
    assert parse_config(SCRIPTS[0].Config, RESTORER).mixed_precision == chosen
    training.is_fast_at_bf16.cache_clear()


def test_a_cpu_without_bf16_is_not_asked_for_its_speed(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    monkeypatch.setattr(training, "matmul_speed", lambda dtype, **options: pytest.fail("measured"))
    training.is_fast_at_bf16.cache_clear()
    assert not training.is_fast_at_bf16()
    training.is_fast_at_bf16.cache_clear()


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_data_is_refused(script):
    with pytest.raises(
        ValueError, match="Say what to train on: `--train_data_dir` or `--dataset_name`"
    ):
        parse_config(script.Config, ["--output_dir", "runs/x"])


def test_a_token_is_not_logged_to_wandb():
    with pytest.raises(ValueError, match="would be logged to wandb"):
        TrainingConfig(output_dir="x", report_to="wandb", hub_token="hf_secret")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--resolution", "16", "24"], "one entry a phase"),
        (["--resolution", "16", "24", "--train_batch_size", "4", "2"], "`--phase_ends` one less"),
        (["--phase_ends", "5"], "one entry a phase"),
        (
            [
                "--resolution",
                "8",
                "8",
                "8",
                "--train_batch_size",
                "1",
                "1",
                "1",
                "--phase_ends",
                "9",
                "5",
            ],
            "must rise",
        ),
        (
            [
                "--resolution",
                "8",
                "8",
                "--train_batch_size",
                "1",
                "1",
                "--phase_ends",
                "9",
                "--max_train_steps",
                "9",
            ],
            "end before `--max_train_steps`",
        ),
        (["--restorer", "UNet"], "Unknown `--restorer` 'UNet'; known are .*NAFNet"),
        (
            ["--restorer", "TextualCleaner"],
            "Unknown `--restorer` 'TextualCleaner'; known are .*NAFNet",
        ),
    ],
)
def test_phases_and_networks_that_do_not_fit_are_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        parse_config(train_restorer.Config, [*RESTORER, *flags])


@pytest.mark.parametrize(("diffusion", "word"), [("0", "0"), ("-1", "2"), ("1", "-0.5")])
def test_a_cleaner_needs_something_to_learn_from(diffusion, word):
    with pytest.raises(ValueError, match="must not be negative, and one of them above 0"):
        parse_config(
            train_cleaner.Config,
            [*RESTORER, "--diffusion_weight", diffusion, "--word_weight", word],
        )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--also_train", "vae"], "`--also_train` may name mapper and unet, got vae"),
        (
            ["--also_train", "mapper", "--word_weight", "1"],
            "which `--also_train mapper` would move",
        ),
        (
            ["--also_train", "unet", "--diffusion_weight", "0", "--word_weight", "1"],
            "alone does not reach the UNet",
        ),
        (["--guidance_init", "sketch"], "must be noise or image, got 'sketch'"),
        (["--init_strength", "0"], r"must lie in \(0, 1\]"),
        (
            ["--init_strength", "0.2", "--diffusion_weight", "0", "--word_weight", "1"],
            "with `--word_weight` alone nothing is",
        ),
        (
            ["--snr_gamma", "5", "--diffusion_weight", "0", "--pixel_weight", "1"],
            "which is 0; leave it out",
        ),
    ],
)
def test_a_cleaner_is_not_asked_for_what_it_could_not_do(flags, message):
    with pytest.raises(ValueError, match=message):
        parse_config(train_cleaner.Config, [*RESTORER, *flags])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--variants", "0"], "`--variants` must be at least 1"),
        (["--guidance", "prompt"], "paints from `--captions`"),
        (["--captions", "captions.jsonl"], "paints from `--captions`"),
    ],
)
def test_guidance_that_cannot_be_painted_is_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        parse_config(make_guidance.Config, ["--data", "photos", "--output_dir", "x", *flags])


@pytest.mark.parametrize(
    "error", [ValueError("no such recipe"), PermissionError(13, "Permission denied", "/root/x")]
)
def test_an_error_that_can_be_mended_is_one_line_and_exit_code_1(monkeypatch, error):
    def fail(config):
        raise error

    monkeypatch.setattr(sys, "argv", ["train_x.py", "--output_dir", "x"])
    with pytest.raises(SystemExit) as caught:
        run_script(fail, TrainingConfig)
    # Python prints a text and exits with 1.
    assert caught.value.code == f"error: {error}" and "\n" not in caught.value.code
    assert caught.value.__suppress_context__ and caught.value.__cause__ is None


def test_a_configuration_that_contradicts_itself_is_one_line_too(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train_x.py", "--output_dir", "x", "--rank", "0"])
    with pytest.raises(SystemExit, match=r"^error: `--rank` must be at least 1"):
        run_script(lambda config: None, TrainingConfig)


def test_a_mistake_of_ours_keeps_its_trace(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train_x.py", "--output_dir", "x"])
    with pytest.raises(ZeroDivisionError):
        run_script(lambda config: 1 / 0, TrainingConfig)


# ---- checkpoints


def learner(seed: int = 0):
    """An accelerator with a tiny model and its optimizer, one step into training."""
    torch.manual_seed(seed)
    accelerator = Accelerator(cpu=True)
    model = torch.nn.Linear(3, 2)
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.1))
    accelerator.backward(model(torch.randn(4, 3)).square().mean())
    optimizer.step()
    optimizer.zero_grad()
    return accelerator, model, optimizer


def test_a_checkpoint_brings_the_whole_state_back(tmp_path):
    accelerator, model, optimizer = learner(seed=0)
    folder = save_checkpoint(accelerator, tmp_path, 7)
    assert folder == tmp_path / "checkpoint-7" and checkpoint_step(folder) == 7
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-7"]
    saved = {name: value.clone() for name, value in model.state_dict().items()}
    moment = optimizer.state_dict()["state"][0]["exp_avg"].clone()
    expected = torch.rand(2)

    other, model, optimizer = learner(seed=1)
    assert not torch.equal(model.weight, saved["weight"])
    other.load_state(str(find_checkpoint(tmp_path, "latest")))
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())
    assert torch.equal(optimizer.state_dict()["state"][0]["exp_avg"], moment)
    assert torch.equal(torch.rand(2), expected)


def test_checkpoints_are_ordered_by_their_numbers(tmp_path):
    accelerator, *_ = learner()
    for step in (100, 9, 10):
        save_checkpoint(accelerator, tmp_path, step)
    assert [path.name for path in list_checkpoints(tmp_path)] == [
        "checkpoint-9",
        "checkpoint-10",
        "checkpoint-100",
    ]
    assert find_checkpoint(tmp_path, "latest").name == "checkpoint-100"


def test_other_files_are_no_checkpoints(tmp_path):
    for name in (
        "checkpoint-best",
        "checkpoint-",
        "old-checkpoint-3",
        ".checkpoint-4.part",
        "checkpoint-5x",
    ):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-6").write_text("a file")
    assert list_checkpoints(tmp_path) == []
    assert find_checkpoint(tmp_path, "latest") is None


@pytest.mark.parametrize(
    ("limit", "kept"), [(1, [30]), (2, [20, 30]), (5, [5, 20, 30]), (None, [5, 20, 30])]
)
def test_the_oldest_checkpoints_make_room(tmp_path, limit, kept):
    accelerator, *_ = learner()
    for step in (5, 20, 30):
        save_checkpoint(accelerator, tmp_path, step, total_limit=limit)
    assert [checkpoint_step(path) for path in list_checkpoints(tmp_path)] == kept
    assert len(list(tmp_path.iterdir())) == len(kept)


def test_saving_a_step_again_replaces_its_checkpoint(tmp_path):
    accelerator, model, _ = learner()
    save_checkpoint(accelerator, tmp_path, 3)
    (tmp_path / "checkpoint-3" / "stale.txt").write_text("from before")
    with torch.no_grad():
        model.weight.fill_(0.25)
    save_checkpoint(accelerator, tmp_path, 3)
    assert not (tmp_path / "checkpoint-3" / "stale.txt").exists()
    with torch.no_grad():
        model.weight.zero_()
    accelerator.load_state(str(tmp_path / "checkpoint-3"))
    assert (model.weight == 0.25).all()


class Unwritable:
    """State that cannot be saved, as on a full disk."""

    def state_dict(self):
        raise OSError("No space left on device")

    def load_state_dict(self, state):
        pass


def test_a_save_that_fails_leaves_the_older_checkpoint_the_latest(tmp_path):
    accelerator, *_ = learner()
    save_checkpoint(accelerator, tmp_path, 1)
    accelerator.register_for_checkpointing(Unwritable())
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(accelerator, tmp_path, 2, total_limit=1)
    assert find_checkpoint(tmp_path, "latest").name == "checkpoint-1"
    assert (tmp_path / "checkpoint-1" / "optimizer.bin").is_file()


def test_without_resuming_there_is_no_checkpoint(tmp_path):
    accelerator, *_ = learner()
    save_checkpoint(accelerator, tmp_path, 1)
    assert find_checkpoint(tmp_path, None) is None
    assert find_checkpoint(tmp_path / "not yet made", "latest") is None


def test_a_checkpoint_can_be_named(tmp_path):
    accelerator, *_ = learner()
    for step in (1, 2):
        save_checkpoint(accelerator, tmp_path, step)
    assert (
        find_checkpoint(tmp_path / "elsewhere", str(tmp_path / "checkpoint-1"))
        == tmp_path / "checkpoint-1"
    )


@pytest.mark.parametrize("name", ["checkpoint-8", "weights", "checkpoint-empty", "checkpoint-0"])
def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path, name):
    for folder in ("weights", "checkpoint-empty", "checkpoint-0"):
        (tmp_path / folder).mkdir()
    (tmp_path / "weights" / "optimizer.bin").write_bytes(b"")
    with pytest.raises(
        ValueError,
        match=rf"{name} is not a checkpoint: a folder `checkpoint-STEP` with optimizer.bin",
    ):
        find_checkpoint(tmp_path, str(tmp_path / name))


def test_the_checkpoint_just_written_stays_even_if_it_is_not_the_newest(tmp_path):
    accelerator, *_ = learner()
    for step in (20, 30, 10):
        save_checkpoint(accelerator, tmp_path, step, total_limit=2)
    assert (tmp_path / "checkpoint-10" / "optimizer.bin").is_file()
    assert len(list_checkpoints(tmp_path)) == 2


# ---- a run


class Numbers(Dataset):
    """Samples drawn by index; `seen` notes which."""

    def __init__(self):
        self.seen = []

    def __len__(self):
        return 1000

    def __getitem__(self, index):
        self.seen.append(index)
        return {
            "x": torch.randn(3, generator=torch.Generator().manual_seed(index)),
            "index": torch.tensor(index),
        }


@dataclass(kw_only=True)
class Knobs(TrainingConfig):
    max_train_steps: int = 6
    learning_rate: float = 0.05
    train_batch_size: int = 2
    dataloader_num_workers: int = 0
    mixed_precision: str = "no"
    checkpoints_total_limit: int | None = None
    width: int = knob(2, "of the model")


def squared(model, batch):
    return (model(batch["x"]) - 1).square().mean()


def learn(folder, loss=squared, phases=None, **knobs) -> TrainingRun:
    """Train a linear layer beside a frozen one; returns the finished run with what it `saw` and its
    `rates`, batch by batch."""
    forget_processes()
    config = Knobs(output_dir=str(folder), **knobs)
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(3, config.width), torch.nn.Linear(config.width, 2).requires_grad_(False)
    )
    run = TrainingRun(config, {"model": model})
    run.saw, run.rates = [], []
    for batch in run.batches(
        [
            (Numbers(), size, end)
            for size, end in phases or [(config.train_batch_size, config.max_train_steps)]
        ]
    ):
        with run.accumulate():
            run.saw.append(batch["index"].tolist())
            run.rates.append(run.optimizer.param_groups[0]["lr"])
            run.update(loss(run.models["model"], batch), len(batch["x"]))
    run.save()
    return run


@pytest.mark.parametrize("scheduler", ["constant_with_warmup", "warmup_stable_decay", "cosine"])
@pytest.mark.parametrize("at", [1, 3, 5])
def test_a_resumed_run_ends_with_the_bits_of_one_that_was_not_cut(tmp_path, at, scheduler):
    knobs = {
        "lr_scheduler": scheduler,
        "lr_warmup_steps": 2,
        "use_ema": True,
        "gradient_accumulation_steps": 2,
        "checkpointing_steps": 1,
        "phases": [(3, 4), (2, 6)],
    }
    whole = learn(tmp_path / "whole", **knobs)
    (tmp_path / "cut").mkdir()
    os.rename(tmp_path / "whole" / f"checkpoint-{at}", tmp_path / "cut" / f"checkpoint-{at}")
    resumed = learn(tmp_path / "cut", **knobs, resume_from_checkpoint="latest")
    assert resumed.saw == whole.saw[2 * at :]
    assert same_checkpoint(tmp_path / "whole" / "checkpoint-6", tmp_path / "cut" / "checkpoint-6")
    assert equal(whole.ema.shadow_params, resumed.ema.shadow_params)


def test_every_sample_is_seen_once_and_in_order_through_all_phases(tmp_path):
    run = learn(tmp_path, phases=[(3, 2), (1, 4), (2, 6)])
    assert run.saw == [[0, 1, 2], [3, 4, 5], [6], [7], [8, 9], [10, 11]]


def test_accumulated_gradients_equal_those_of_one_large_batch(tmp_path):
    one = learn(tmp_path / "one", train_batch_size=6)
    parts = learn(tmp_path / "parts", train_batch_size=2, gradient_accumulation_steps=3)
    assert len(parts.saw) == 3 * len(one.saw) and parts.step == one.step
    for a, b in zip(one.trainable, parts.trainable):
        assert torch.allclose(a, b, atol=1e-6)


def test_the_learning_rate_rises_in_the_warm_up_and_falls_at_the_end(tmp_path):
    knobs = {
        "max_train_steps": 9,
        "lr_scheduler": "warmup_stable_decay",
        "lr_warmup_steps": 2,
        "lr_decay_steps": 3,
    }
    rates = learn(tmp_path, **knobs).rates
    assert 0 <= rates[0] < rates[1] < 0.05
    assert rates[2:7] == pytest.approx([0.05] * 5)
    assert rates[6] > rates[7] > rates[8] > 0


def test_a_checkpoint_holds_the_trained_weights_and_no_others(tmp_path):
    run = learn(tmp_path, width=64)
    saved = trained(tmp_path / "checkpoint-6")
    assert sorted(saved) == ["model.0.bias", "model.0.weight"]
    assert torch.equal(saved["model.0.weight"], run.bare["model"][0].weight)
    files = {path.name for path in (tmp_path / "checkpoint-6").iterdir()}
    assert files == {
        "trainable.safetensors",
        "optimizer.bin",
        "random_states_0.pkl",
        "run.json",
    }


def test_an_output_folder_with_checkpoints_is_refused_unless_resumed(tmp_path):
    learn(tmp_path, max_train_steps=2)
    with pytest.raises(
        ValueError,
        match=r"holds checkpoints of an earlier run \(checkpoint-2\); pass "
        r"`--resume_from_checkpoint",
    ):
        learn(tmp_path, max_train_steps=4)
    assert learn(tmp_path, max_train_steps=4, resume_from_checkpoint="latest").saw == [
        [4, 5],
        [6, 7],
    ]


def test_latest_in_a_fresh_folder_starts_at_the_beginning(tmp_path):
    assert learn(tmp_path / "new", resume_from_checkpoint="latest").saw[0] == [0, 1]


def test_a_checkpoint_with_pickled_objects_is_not_resumed(tmp_path):
    """Accelerate would open them, and they may run code."""
    learn(tmp_path / "run", max_train_steps=2)
    checkpoint = tmp_path / "run" / "checkpoint-2"
    assert not list(checkpoint.glob("custom_checkpoint_*"))
    evil = Evil(tmp_path / "ran")
    torch.save(evil, checkpoint / "custom_checkpoint_0.pkl")
    with pytest.raises(ValueError, match="pickled objects"):
        learn(tmp_path / "run", max_train_steps=4, resume_from_checkpoint="latest")
    assert not (tmp_path / "ran").exists()


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_the_first_and_the_last_step_are_told_in_short_runs(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="textir.training"):
        learn(tmp_path, max_train_steps=3)
    assert "step 1 loss" in caplog.text and "step 3 loss" in caplog.text


def test_a_finished_run_that_is_resumed_does_nothing(tmp_path):
    learn(tmp_path)
    before = trained(tmp_path / "checkpoint-6")
    assert learn(tmp_path, resume_from_checkpoint="latest").saw == []
    assert equal(trained(tmp_path / "checkpoint-6"), before)


def test_a_checkpoint_beyond_the_end_is_refused(tmp_path):
    learn(tmp_path)
    with pytest.raises(ValueError, match=r"checkpoint-6 is beyond `--max_train_steps` 4"):
        learn(tmp_path, max_train_steps=4, resume_from_checkpoint="latest")


def test_a_folder_that_is_no_checkpoint_cannot_be_resumed(tmp_path):
    with pytest.raises(ValueError, match="nowhere is not a checkpoint"):
        learn(tmp_path / "run", resume_from_checkpoint=str(tmp_path / "nowhere"))


def test_a_checkpoint_of_another_model_is_an_error_that_names_what_differs(tmp_path):
    learn(tmp_path, max_train_steps=2)
    with pytest.raises(
        ValueError,
        match=r"checkpoint of another model; 2 weights do not fit.*\(2, 3\) instead of \(5, 3\)",
    ):
        learn(tmp_path, width=5, resume_from_checkpoint="latest")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(
        ValueError, match="cannot be written: Permission denied; choose another `--output_dir`"
    ):
        learn(tmp_path / "run")


def test_a_file_in_the_place_of_the_output_folder_is_named(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(
        ValueError, match=r"run cannot be written: .*; choose another `--output_dir`"
    ):
        learn(tmp_path / "run")


@pytest.mark.parametrize("every", [1, 2, 4])
def test_a_loss_that_is_not_finite_is_an_error_and_no_checkpoint_keeps_it(tmp_path, every):
    def burst(model, batch):
        return squared(model, batch) * (float("nan") if 6 in batch["index"] else 1.0)  # in step 4

    with pytest.raises(
        ValueError, match=r"The loss is nan at step \d; take a lower `--learning_rate` and resume"
    ):
        learn(tmp_path, burst, checkpointing_steps=every)
    assert [checkpoint_step(path) for path in list_checkpoints(tmp_path)] == {
        1: [1, 2, 3],
        2: [2],
        4: [],
    }[every]


@pytest.mark.parametrize("every", [1, 6])
def test_weights_that_are_not_finite_are_never_saved(tmp_path, every):
    """The loss of the last step is finite, but its gradient is not."""

    def cusp(model, batch):
        loss = squared(model, batch)
        return loss + (model(batch["x"]) * 0).abs().sqrt().sum() if 10 in batch["index"] else loss

    with pytest.raises(ValueError, match=r"finite|nan"):
        learn(tmp_path, cusp, checkpointing_steps=every)
    for checkpoint in list_checkpoints(tmp_path):
        assert all(value.isfinite().all() for value in trained(checkpoint).values()), (
            checkpoint.name
        )


def test_a_model_without_trainable_weights_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Nothing to train"):
        TrainingRun(
            Knobs(output_dir=str(tmp_path)), {"model": torch.nn.Linear(2, 2).requires_grad_(False)}
        )


def test_settings_are_kept_without_the_token(tmp_path):
    learn(tmp_path, hub_token="hf_secret", seed=3)
    text = (tmp_path / "config.json").read_text()
    assert json.loads(text)["seed"] == 3 and "hf_secret" not in text


def test_a_resumed_run_says_which_knobs_changed(tmp_path, caplog):
    learn(tmp_path, max_train_steps=2)
    with caplog.at_level(logging.INFO, logger="textir.training"):
        learn(tmp_path, max_train_steps=4, learning_rate=0.01, resume_from_checkpoint="latest")
    assert "learning_rate 0.05 -> 0.01" in caplog.text and "resumed from" in caplog.text


def test_within_average_the_models_hold_the_average_and_get_their_weights_back(tmp_path):
    run = learn(tmp_path, use_ema=True)
    weights = [p.detach().clone() for p in run.trainable]
    with run.averaged():
        averages = [p.detach().clone() for p in run.trainable]
    assert all(torch.equal(p, w) for p, w in zip(run.trainable, weights))
    assert all(torch.equal(a, s) for a, s in zip(averages, run.ema.shadow_params))
    assert not any(torch.equal(a, w) for a, w in zip(averages, weights))


@pytest.mark.skipif(not is_tensorboard_available(), reason="tensorboard is not installed")
def test_tensorboard_gets_the_losses(tmp_path):
    run = learn(tmp_path, report_to="tensorboard", logging_steps=1)
    run.accelerator.end_training()
    assert list((tmp_path / "logs").rglob("events.out.tfevents.*"))


def learn_and_note(folder, **knobs) -> None:
    run = learn(folder, **knobs)
    (folder / f"saw-{run.accelerator.process_index}.json").write_text(json.dumps(run.saw))


def test_two_processes_share_the_samples_and_end_with_the_weights_of_one(tmp_path):
    phases = {"phases": [(2, 3), (1, 6)], "use_ema": True, "gradient_accumulation_steps": 2}
    in_two_processes(learn_and_note, tmp_path, **phases)
    first, second = (json.loads((tmp_path / f"saw-{k}.json").read_text()) for k in (0, 1))
    one = learn(tmp_path / "one", **{**phases, "phases": [(4, 3), (2, 6)]})
    assert [a + b for a, b in zip(first, second)] == one.saw  # nothing twice, nothing left out
    two = trained(tmp_path / "checkpoint-6")
    for name, weight in trained(tmp_path / "one" / "checkpoint-6").items():
        assert torch.allclose(two[name], weight, rtol=0, atol=1e-5)
