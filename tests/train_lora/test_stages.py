"""Runs of the scripts from start to end: cut short and resumed, killed, in two processes; what they
write loads and does what was trained.
"""

import json
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import PartialState
from accelerate.utils import is_tensorboard_available
from safetensors.torch import load_file

from pipelines import TextGuidedRestorationPipeline
from tests.tools import tiny
from tests.train_lora import (
    call,
    in_two_processes,
    make_config,
    run,
    run_twofold,
    same_checkpoint,
    small_restorer,
    tensors,
    trained,
    write_chain,
    write_pairs,
    write_photo,
    write_photos,
)
from textir.degradations import LABELS
from textir.images.picture import read_picture
from textir.models import TextualCleaner
from textir.training.run import list_checkpoints
from train_lora import make_guidance
from train_lora.data import source_labels

load = TextGuidedRestorationPipeline.from_pretrained


@pytest.fixture(scope="module")
def chain(tmp_path_factory) -> str:
    return write_chain(tmp_path_factory.mktemp("chain"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> str:
    return write_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> str:
    return write_pairs(tmp_path_factory.mktemp("pairs"))


def render(pipe, **arguments) -> torch.Tensor:
    return pipe(
        tiny.image(), output_type="pt", generator=torch.Generator().manual_seed(0), **arguments
    ).images


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(Path(folder).rglob("*.png"))
    }


# ---- cut short


@pytest.mark.parametrize(
    ("script", "knobs"),
    [
        ("train_mapper", {"snr_gamma": 5.0}),
        ("train_cleaner", {"rank": 2, "num_cached_samples": 6, "word_weight": 0.5}),
        ("train_detector", {"num_cached_samples": 5, "use_ema": True}),
    ],
)
def test_a_resumed_stage_ends_with_the_bits_of_one_that_was_not_cut(
    tmp_path, chain, photos, script, knobs
):
    knobs = {
        "pretrained_model_name_or_path": chain,
        "train_data_dir": [photos],
        "max_train_steps": 6,
        **knobs,
    }
    whole = run(script, tmp_path / "whole", checkpointing_steps=3, **knobs)
    cut = tmp_path / "cut"
    shutil.copytree(whole / "checkpoint-3", cut / "checkpoint-3")
    run(script, cut, checkpointing_steps=3, resume_from_checkpoint="latest", **knobs)
    assert same_checkpoint(whole / "checkpoint-6", cut / "checkpoint-6")
    for result in ("pipeline", "adapter"):
        assert (whole / result).exists() == (cut / result).exists()
        expected, resumed = tensors(whole / result), tensors(cut / result)
        assert all(torch.equal(expected[name], resumed[name]) for name in expected)


@pytest.mark.parametrize("guided", [False, True])
def test_a_resumed_restorer_with_phases_average_and_accumulation_does_too(tmp_path, pairs, guided):
    knobs = {
        "train_data_dir": [pairs],
        "degradations": [],
        "restorer_config": small_restorer(),
        "matcher_widths": [4, 6, 8],
        "guidance": guided,
        "resolution": [24, 32],
        "train_batch_size": [3, 2],
        "phase_ends": [3],
        "max_train_steps": 6,
        "gradient_accumulation_steps": 2,
        "use_ema": True,
        "fft_weight": 0.1,
        "checkpointing_steps": 1,
        "checkpoints_total_limit": None,
    }
    whole = run("train_restorer", tmp_path / "whole", **knobs)
    for step in (2, 5):
        cut = tmp_path / f"cut-{step}"
        shutil.copytree(whole / f"checkpoint-{step}", cut / f"checkpoint-{step}")
        run("train_restorer", cut, resume_from_checkpoint="latest", **knobs)
        assert same_checkpoint(whole / "checkpoint-6", cut / "checkpoint-6")
        expected, resumed = tensors(whole / "pipeline"), tensors(cut / "pipeline")
        assert expected.keys() == resumed.keys()
        assert all(torch.equal(expected[name], resumed[name]) for name in expected)


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(tmp_path, chain, photos):
    knobs = {
        "pretrained_model_name_or_path": chain,
        "train_data_dir": [photos],
        "max_train_steps": 40,
        "checkpointing_steps": 1,
        "checkpoints_total_limit": 3,
        "resume_from_checkpoint": "latest",
    }
    killed = tmp_path / "killed"
    for step in (4, 16):
        process = multiprocessing.get_context("fork").Process(
            target=call, args=(run, ("train_restorer", killed), knobs), daemon=True
        )
        process.start()
        deadline = time.monotonic() + 60
        while not any(int(path.name[11:]) >= step for path in list_checkpoints(killed)):
            assert process.is_alive() and time.monotonic() < deadline
            time.sleep(0.003)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        found = list_checkpoints(killed)
        assert found and int(found[-1].name[11:]) < 40
        newest = {path.name for path in found[-1].iterdir()}
        weights = {"trainable.safetensors", "averages.safetensors"}
        assert newest == weights | {"optimizer.bin", "run.json", "random_states_0.pkl"}
        assert not (killed / "pipeline").exists()
    run("train_restorer", killed, **knobs)
    whole = run("train_restorer", tmp_path / "whole", **{**knobs, "checkpointing_steps": 40})
    assert same_checkpoint(whole / "checkpoint-40", killed / "checkpoint-40")
    assert not list(killed.glob(".checkpoint*"))


def test_the_seed_decides_everything_also_the_weights_of_new_networks(tmp_path, photos):
    results = []
    for k, seed in enumerate((5, 5, 6)):
        torch.manual_seed(100 + k)  # whatever this process drew before
        knobs = {"train_data_dir": [photos], "restorer_config": small_restorer(), "seed": seed}
        results.append(run("train_restorer", tmp_path / str(k), **knobs) / "checkpoint-2")
    assert same_checkpoint(results[0], results[1])
    assert not same_checkpoint(results[0], results[2])


def test_the_seed_decides_new_lora_layers_too(tmp_path, chain, photos):
    results = []
    for k in range(2):
        torch.manual_seed(100 + k)
        knobs = {"pretrained_model_name_or_path": chain, "train_data_dir": [photos], "rank": 2}
        results.append(run("train_cleaner", tmp_path / str(k), **knobs) / "checkpoint-2")
    assert same_checkpoint(*results)


# ---- two processes


def test_two_processes_train_the_cleaner_like_one_with_twice_the_batch(tmp_path, chain, photos):
    knobs = {
        "pretrained_model_name_or_path": chain,
        "train_data_dir": [photos],
        "max_train_steps": 3,
        "num_cached_samples": 7,
        "learning_rate": 1e-4,
        # Adam divides by gradients: where they are nearly nothing, so are their rounding errors.
        "adam_epsilon": 1e-3,
    }
    two = run_twofold("train_cleaner", tmp_path / "two", train_batch_size=1, **knobs)
    one = run("train_cleaner", tmp_path / "one", train_batch_size=2, **knobs)
    before, first, second = tensors(chain), tensors(one / "pipeline"), tensors(two / "pipeline")
    assert any(not torch.equal(before[name], first[name]) for name in before)
    assert all(torch.allclose(first[name], second[name], rtol=0, atol=1e-5) for name in first)


def test_two_processes_train_a_guided_restorer_like_one(tmp_path, pairs):
    start = write_chain(
        tmp_path / "chain", restorer=tiny.restorer(), matcher=tiny.components()["matcher"]
    )
    knobs = {
        "pretrained_model_name_or_path": start,
        "train_data_dir": [pairs],
        "degradations": [],
        "guidance_dropout": 0.5,
        "max_train_steps": 3,
        "adam_epsilon": 1e-3,
    }
    two = run_twofold("train_restorer", tmp_path / "two", train_batch_size=[1], **knobs)
    one = run("train_restorer", tmp_path / "one", train_batch_size=[2], **knobs)
    first, second = trained(one / "checkpoint-3"), trained(two / "checkpoint-3")
    assert all(torch.allclose(first[name], second[name], rtol=0, atol=1e-5) for name in first)


# ---- results


def test_a_lora_result_loads_and_changes_the_picture(tmp_path, chain, photos):
    knobs = {
        "pretrained_model_name_or_path": chain,
        "train_data_dir": [photos],
        "rank": 2,
        "learning_rate": 0.05,
    }
    output = run("train_mapper", tmp_path, **knobs)
    assert {path.name for path in (output / "adapter").iterdir()} >= {
        "pytorch_lora_weights.safetensors",
        "training.json",
        "README.md",
    }
    pipe = load(chain)
    words = pipe(tiny.image(), output_type="pt", guidance="none").images
    pipe.register_modules(restorer=None)  # what is painted is what the words say
    before = render(pipe)
    pipe.load_lora_weights(str(output / "adapter"))
    assert not torch.equal(render(pipe), before)
    pipe.unload_lora_weights()
    assert torch.equal(render(pipe), before) and words.isfinite().all()


def test_stage_2_writes_the_adapter_of_stage_1_into_the_same_file(tmp_path, chain, photos):
    knobs = {
        "pretrained_model_name_or_path": chain,
        "train_data_dir": [photos],
        "rank": 2,
        "learning_rate": 0.01,
    }
    first = run("train_mapper", tmp_path / "mapper", **knobs)
    second = run("train_cleaner", tmp_path / "cleaner", adapter=str(first / "adapter"), **knobs)
    layers = load_file(second / "adapter" / "pytorch_lora_weights.safetensors")
    assert {name.split(".")[0] for name in layers} == {"mapper", "unet", "cleaner"}
    for name, value in load_file(first / "adapter" / "pytorch_lora_weights.safetensors").items():
        assert torch.equal(layers[name], value), name  # stage 2 leaves stage 1 alone
    assert {name.split(".")[0] for name in trained(second / "checkpoint-2")} == {"cleaner"}
    pipe = load(chain)
    pipe.load_lora_weights(str(second / "adapter"), adapter_name="both")
    assert set(pipe.get_list_adapters()) == {"mapper", "unet", "cleaner"}


@pytest.mark.parametrize(
    ("script", "averaged"),
    [("train_mapper", True), ("train_detector", False), ("train_restorer", True)],
)
def test_a_full_result_loads_with_the_bits_that_were_trained(
    tmp_path, chain, photos, script, averaged
):
    knobs = {
        "pretrained_model_name_or_path": chain,
        "train_data_dir": [photos],
        "use_ema": averaged,
        "learning_rate": 0.01,
    }
    output = run(script, tmp_path, max_train_steps=3, **knobs)
    pipe = load(output / "pipeline")
    weights = trained(output / "checkpoint-3")
    if averaged:
        averages = load_file(output / "checkpoint-3" / "averages.safetensors")
        assert not all(torch.equal(averages[name], weights[name]) for name in weights)
        weights = averages
    for name, value in weights.items():
        part, parameter = name.split(".", 1)
        assert torch.equal(getattr(pipe, part).get_parameter(parameter), value), name
    assert render(pipe, guidance="none").isfinite().all()


def test_stages_follow_one_another_from_a_base_without_words_to_a_guided_restorer(tmp_path, photos):
    start = write_chain(tmp_path / "base", mapper=None, cleaner=None, restorer=None, detector=None)
    knobs = {"train_data_dir": [photos]}
    mapper = run(
        "train_mapper",
        tmp_path / "1",
        pretrained_model_name_or_path=start,
        mapper_config='{"num_words": 3, "width": 8}',
        **knobs,
    )
    cleaner = run(
        "train_cleaner",
        tmp_path / "2",
        pretrained_model_name_or_path=str(mapper / "pipeline"),
        cleaner_config='{"width": 8, "residual": true}',
        **knobs,
    )
    assert load(cleaner / "pipeline").cleaner.config.num_words == 3
    guidance = run(
        "make_guidance",
        tmp_path / "g",
        data=photos,
        degradations=["noise:25"],
        pretrained_model_name_or_path=str(cleaner / "pipeline"),
    )
    guided = run(
        "train_restorer",
        tmp_path / "3",
        train_data_dir=[str(guidance)],
        degradations=[],
        restorer_config=small_restorer(),
        matcher_widths=[4, 6, 8],
    )
    assert load(guided / "pipeline").matcher is not None


def test_a_stage_that_lacks_what_it_works_with_says_so(tmp_path, photos):
    start = write_chain(tmp_path / "chain", mapper=None, vae=None)
    for script in ("train_cleaner", "train_mapper"):
        with pytest.raises(
            ValueError, match=r"This stage needs (mapper|vae), which the checkpoint lacks"
        ):
            run(
                script,
                tmp_path / script,
                pretrained_model_name_or_path=start,
                train_data_dir=[photos],
            )
    with pytest.raises(ValueError, match=r"pretrained_model_name_or_path.*nowhere"):
        run(
            "train_cleaner",
            tmp_path / "x",
            pretrained_model_name_or_path=str(tmp_path / "nowhere"),
            train_data_dir=[photos],
        )


def test_a_detector_trains_on_an_image_encoder_alone(tmp_path, photos):
    absent = dict.fromkeys(
        [
            "mapper",
            "cleaner",
            "unet",
            "vae",
            "scheduler",
            "tokenizer",
            "text_encoder",
            "restorer",
            "detector",
        ]
    )
    start = write_chain(tmp_path / "chain", **absent)
    output = run(
        "train_detector",
        tmp_path / "run",
        pretrained_model_name_or_path=start,
        train_data_dir=[photos],
        detector_config='{"width": 8}',
    )
    assert load(output / "pipeline").detector.config.width == 8


def test_a_cleaner_that_learns_from_words_alone_needs_no_unet(tmp_path, photos):
    start = write_chain(tmp_path / "chain", unet=None, vae=None, scheduler=None)
    knobs = {
        "pretrained_model_name_or_path": start,
        "train_data_dir": [photos],
        "diffusion_weight": 0.0,
        "word_weight": 1.0,
    }
    assert (run("train_cleaner", tmp_path / "run", **knobs) / "pipeline" / "cleaner").exists()


# ---- validation


@pytest.mark.parametrize(
    ("script", "scores", "columns"),
    [
        ("train_mapper", ["noise:25", "rain:heavy"], 3),
        ("train_cleaner", ["noise:25 degraded", "noise:25 cleaned", "rain:heavy degraded"], 4),
        ("train_restorer", ["noise:25", "rain:heavy"], 3),
    ],
)
def test_validation_writes_a_sheet_and_reports(
    tmp_path, chain, photos, caplog, script, scores, columns
):
    knobs = {
        "pretrained_model_name_or_path": chain,
        "train_data_dir": [photos],
        "validation_data_dir": photos,
    }
    knobs |= {"validation_steps": 3, "max_train_steps": 4, "num_validation_images": 3}
    with caplog.at_level("INFO", logger="textir.training"):
        output = run(script, tmp_path, validation_degradations=["noise:25", "rain:heavy"], **knobs)
    assert sorted(path.name for path in (output / "validation").iterdir()) == [
        "step-3.png",
        "step-4.png",  # the end
    ]
    sheet = read_picture(output / "validation" / "step-4.png").pixels
    assert sheet.shape == (4 * 192, columns * 192, 3)  # two images of each recipe
    assert sheet.reshape(4, 192, columns, 192, 3).mean((1, 3, 4)).min() > 0.04
    lines = [message for message in caplog.messages if message.startswith("step 4 validation")]
    assert len(lines) == 1 and all(score in lines[0] for score in scores)
    assert (output / "pipeline" / "before_after.png").read_bytes() == (
        output / "validation" / "step-4.png"
    ).read_bytes()


def test_validation_of_a_guided_restorer_shows_it_with_and_without_guidance(
    tmp_path, chain, pairs, caplog
):
    knobs = {
        "pretrained_model_name_or_path": chain,
        "train_data_dir": [pairs],
        "degradations": [],
        "matcher_widths": [4, 6, 8],
    }
    with caplog.at_level("INFO", logger="textir.training"):
        run("train_restorer", tmp_path, validation_data_dir=pairs, validation_steps=2, **knobs)
    assert any(
        "pairs unguided" in message and "pairs guided" in message for message in caplog.messages
    )


@pytest.mark.parametrize("kind", ["photos", "pairs"])
def test_validation_of_a_detector_counts_what_it_sees(tmp_path, chain, photos, pairs, caplog, kind):
    knobs = {
        "pretrained_model_name_or_path": chain,
        "train_data_dir": [photos],
        "validation_steps": 1,
    }
    knobs |= {
        "validation_data_dir": photos if kind == "photos" else pairs,
        "validation_degradations": ["clean", "noise:25"],
    }
    if kind == "pairs":  # of which it is not known what is wrong with them
        with pytest.raises(ValueError, match="validation_data_dir"):
            run("train_detector", tmp_path, **knobs)
        assert not list_checkpoints(tmp_path)
        return
    with caplog.at_level("INFO", logger="textir.training"):
        run("train_detector", tmp_path, **knobs)
    said = [
        message for message in caplog.messages if "validation mean average precision" in message
    ]
    assert len(said) == 2 and all(
        "severity error" in message and "clean" in message and "noise:25" in message
        for message in said
    )


@pytest.mark.skipif(not is_tensorboard_available(), reason="tensorboard is not installed")
def test_tensorboard_gets_losses_and_validation(tmp_path, chain, photos):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    knobs = {
        "pretrained_model_name_or_path": chain,
        "train_data_dir": [photos],
        "validation_data_dir": photos,
    }
    output = run(
        "train_detector",
        tmp_path,
        report_to="tensorboard",
        logging_steps=1,
        validation_steps=2,
        **knobs,
    )
    events = EventAccumulator(str(output / "logs" / "textir")).Reload()
    assert {"loss", "lr", "validation/noise:25"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("loss")] == [1, 2]


# ---- guidance


@pytest.fixture(scope="module")
def painted(tmp_path_factory, chain, photos) -> Path:
    knobs = {"data": photos, "degradations": ["noise:10..50@2", "rain:heavy"], "variants": 2}
    return run(
        "make_guidance",
        tmp_path_factory.mktemp("painted") / "g",
        pretrained_model_name_or_path=chain,
        **knobs,
    )


def repaint(painted: Path, folder: Path, **knobs):
    """The settings of `painted` for a copy of it."""
    settings = json.loads((painted / "guidance.json").read_text())
    (folder / "guidance.json").write_text(json.dumps({**settings, "output_dir": str(folder)}))
    return {**{name: value for name, value in settings.items() if name != "output_dir"}, **knobs}


def test_guidance_of_photos_is_a_folder_that_the_restorer_takes(painted, photos):
    names = [f"{k}-{v}.png" for k in range(4) for v in range(2)]
    for folder in ("input", "target", "guidance"):
        assert sorted(path.name for path in (painted / folder).iterdir()) == names
    for name in names:
        original, target, degraded = (
            read_picture(path).pixels
            for path in (
                f"{photos}/{name[0]}.png",
                painted / "target" / name,
                painted / "input" / name,
            )
        )
        assert np.array_equal(original, target)
        assert degraded.shape == original.shape and not np.array_equal(original, degraded)
    assert len({path.read_bytes() for path in (painted / "input").iterdir()}) == 8


def test_guidance_that_was_cut_short_goes_on_to_the_same_bytes(tmp_path, painted):
    copy = tmp_path / "g"
    shutil.copytree(painted, copy)
    knobs = repaint(painted, copy)
    for gone in ("guidance/1-0.png", "guidance/3-1.png", "input/3-1.png"):
        (copy / gone).unlink()
    stamp = (copy / "guidance" / "0-0.png").stat().st_mtime_ns
    run("make_guidance", copy, **knobs)
    assert files(copy) == files(painted)
    assert (
        copy / "guidance" / "0-0.png"
    ).stat().st_mtime_ns == stamp  # what is done is not done again


def test_a_folder_holds_guidance_of_one_setting_only(tmp_path, painted):
    copy = tmp_path / "g"
    shutil.copytree(painted, copy)
    knobs = repaint(painted, copy)
    with pytest.raises(
        ValueError,
        match=r"was made with other settings \(seed 0 -> 1\); choose another `--output_dir`",
    ):
        run("make_guidance", copy, **{**knobs, "seed": 1})
    # Which decides how much is made, not what.
    run("make_guidance", copy, **{**knobs, "max_images": 1})
    assert files(copy) == files(painted)


def test_two_processes_paint_what_one_paints(tmp_path, painted):
    (tmp_path / "g").mkdir()
    knobs = repaint(painted, tmp_path / "g")
    two = run_twofold("make_guidance", tmp_path / "g", **knobs)
    assert files(two) == files(painted)


def dawdle(script: str, output_dir: Path, **knobs) -> None:
    """`run`, but the second process is late, as from a cold disk."""
    loaded = make_guidance.load_chain

    def late(config):
        time.sleep(2 * PartialState().process_index)
        return loaded(config)

    make_guidance.load_chain = late
    run(script, output_dir, **knobs)


def test_two_processes_leave_nothing_out_if_one_is_late(tmp_path, painted):
    (tmp_path / "g").mkdir()
    in_two_processes(dawdle, "make_guidance", tmp_path / "g", **repaint(painted, tmp_path / "g"))
    assert files(tmp_path / "g") == files(painted)


def test_of_pairs_only_the_guidance_is_written(tmp_path, chain, pairs):
    output = run("make_guidance", tmp_path / "g", data=pairs, pretrained_model_name_or_path=chain)
    assert sorted(files(output)) == [f"guidance/{k}.png" for k in range(3)]
    trained_with = run(
        "train_restorer",
        tmp_path / "run",
        train_data_dir=[pairs],
        guidance_dir=str(output / "guidance"),
        degradations=[],
        restorer_config=small_restorer(),
        matcher_widths=[4, 6, 8],
    )
    assert (trained_with / "pipeline" / "matcher").exists()


def test_each_image_has_guidance_of_its_own_and_of_its_shape(painted):
    pictures = [read_picture(path).pixels for path in sorted((painted / "guidance").iterdir())]
    assert len({picture.tobytes() for picture in pictures}) == len(pictures)
    for picture, (height, width) in zip(pictures[::2], [(40, 56), (64, 48), (36, 80), (70, 44)]):
        assert (picture.shape[1] > picture.shape[0]) == (width > height)


def write_captions(path: Path, rows: list[dict]) -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return str(path)


def test_captions_paint_guidance_and_words_for_degradations_do_not_count(tmp_path, chain, pairs):
    texts = {
        "plain": "a photo of a dog",
        "noisy": "a noisy photo of a dog",
        "other": "a street, clean",
    }
    painted = {}
    for name, text in texts.items():
        captions = write_captions(
            tmp_path / f"{name}.jsonl", [{"file_name": f"{k}.jpg", "text": text} for k in range(3)]
        )
        knobs = {
            "data": pairs,
            "pretrained_model_name_or_path": chain,
            "guidance": "prompt",
            "captions": captions,
        }
        painted[name] = files(run("make_guidance", tmp_path / name, **knobs))
    assert len(painted["plain"]) == 3
    assert painted["plain"] == painted["noisy"] != painted["other"]


def test_captions_that_cannot_be_used_are_named(tmp_path, chain, pairs):
    knobs = {"data": pairs, "pretrained_model_name_or_path": chain, "guidance": "prompt"}
    (tmp_path / "bad.jsonl").write_text("not json\n")
    with pytest.raises(
        ValueError, match=r"bad\.jsonl must hold JSON lines with file_name and text"
    ):
        run("make_guidance", tmp_path / "a", captions=str(tmp_path / "bad.jsonl"), **knobs)
    few = write_captions(tmp_path / "few.jsonl", [{"file_name": "0.png", "text": "a dog"}])
    with pytest.raises(ValueError, match=r"few\.jsonl has no caption for 1"):
        run("make_guidance", tmp_path / "b", captions=few, **knobs)


def test_clean_photos_need_a_degradation(tmp_path, chain, photos):
    with pytest.raises(ValueError, match="Clean photos need `--degradations`"):
        run("make_guidance", tmp_path / "g", data=photos, pretrained_model_name_or_path=chain)
    config = make_config("train_cleaner", tmp_path / "x", train_data_dir=[photos], degradations=[])
    assert config.degradations == []
    with pytest.raises(ValueError, match="Clean photos need `--degradations`"):
        run("train_restorer", tmp_path / "y", train_data_dir=[photos], degradations=[])


def test_photos_of_one_name_in_several_folders_get_guidance_each(tmp_path, chain):
    for k, place in enumerate(("sea", "land")):
        write_photo(
            tmp_path / "photos" / place / "1.png", np.full((36, 48, 3), 60 + 90 * k, dtype=np.uint8)
        )
    knobs = {
        "data": str(tmp_path / "photos"),
        "degradations": ["noise:25"],
        "pretrained_model_name_or_path": chain,
    }
    output = run("make_guidance", tmp_path / "g", **knobs)
    assert sorted(path.name for path in (output / "guidance").iterdir()) == [
        "land_1-0.png",
        "sea_1-0.png",
    ]


def test_equal_images_of_different_names_are_painted_from_different_noise(tmp_path, chain):
    for name in ("one", "two"):
        for side in ("input", "target"):
            write_photo(
                tmp_path / "pairs" / side / f"{name}.png", np.full((36, 48, 3), 90, dtype=np.uint8)
            )
    output = run(
        "make_guidance",
        tmp_path / "g",
        data=str(tmp_path / "pairs"),
        pretrained_model_name_or_path=chain,
    )
    one, two = files(output).values()
    assert one != two


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"painted_from": "noise"}, "`--painted_from` must be cleaned or degraded, got 'noise'"),
        (
            {"trains": "backbone"},
            "`--trains` must be all, guidance, condition or experts, got 'backbone'",
        ),
        ({"told_share": 1.5}, "`--told_share` must lie in 0 to 1, got 1.5"),
        ({"labels": ["fog"]}, "`--labels` takes all, or some of noise, .* got fog"),
        ({"pair_label": ["fog"]}, "`--pair_label` takes noise, .*, or clean; got 'fog'"),
        ({"pair_label": ["rain", "haze"]}, "`--pair_label` needs one entry, or one for each of 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        make_config("train_restorer", Path("x"), train_data_dir=["x"], **wrong)


# ---- what a network is told


@pytest.mark.parametrize("trains", ["all", "condition", "experts"])
def test_a_blind_network_learns_to_be_told(tmp_path, photos, trains):
    blind = run(
        "train_restorer",
        tmp_path / "blind",
        train_data_dir=[photos],
        restorer_config=small_restorer(),
    )
    start = {
        "pretrained_model_name_or_path": str(blind / "pipeline"),
        "train_data_dir": [photos],
        "labels": ["all"],
    }
    start |= {
        "expert_rank": 2,
        "trains": trains,
        "learning_rate": 1e-2,
        "told_share": 1.0,
        "degradations": ["noise:25", "haze:1"],
    }
    told = run("train_restorer", tmp_path / "told", **start, max_train_steps=4, use_ema=False)
    before, after = load(blind / "pipeline"), load(told / "pipeline")
    assert before.can_remove == () and after.can_remove == LABELS
    image = tiny.image()
    same = torch.allclose(before.restore(image)[0], after.restore(image)[0], atol=1e-6)
    assert same == (trains == "experts")  # experts alone leave the blind network as it was
    noise, haze = (after.restore(image, removed=[[label]])[0] for label in ("noise", "haze"))
    assert not torch.equal(noise, haze)
    names = {
        name
        for name, value in after.restorer.state_dict().items()
        if name in before.restorer.state_dict()
    }
    moved = any(
        not torch.equal(before.restorer.state_dict()[name], after.restorer.state_dict()[name])
        for name in names
    )
    assert moved == (trains == "all")


def test_a_cleaner_learns_to_be_told(tmp_path, photos):
    blind = write_chain(
        tmp_path / "chain",
        cleaner=TextualCleaner(tiny.WORD_DIM, tiny.NUM_WORDS, width=16, residual=True),
    )
    start = {
        "pretrained_model_name_or_path": blind,
        "train_data_dir": [photos],
        "degradations": ["noise:25", "haze:1"],
    }
    start |= {
        "labels": ["all"],
        "diffusion_weight": 0.0,
        "word_weight": 1.0,
        "learning_rate": 1e-2,
        "max_train_steps": 6,
    }
    pipe = load(run("train_cleaner", tmp_path / "told", **start) / "pipeline")
    words = torch.randn(2, tiny.NUM_WORDS, tiny.WORD_DIM)
    noise, haze = (
        pipe.cleaner(words, **pipe.condition_of(pipe.cleaner, [[label]] * 2, words))
        for label in ("noise", "haze")
    )
    assert not torch.equal(noise, haze)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        (
            {"trains": "experts"},
            "`--trains experts` needs a network that can be told what to remove; add `--labels "
            "all`",
        ),
        (
            {"labels": ["noise"], "degradations": ["haze:1"]},
            "The training data suffers from haze, for which the network has no label",
        ),
        (
            {"labels": ["noise"], "rank": 2},
            "`--rank` adapts a network that is trained already, and the condition is new",
        ),
    ],
)
def test_what_a_network_cannot_be_told_is_refused(tmp_path, photos, knobs, message):
    blind = run(
        "train_restorer",
        tmp_path / "blind",
        train_data_dir=[photos],
        restorer_config=small_restorer(),
    )
    with pytest.raises(ValueError, match=message):
        start = {
            "pretrained_model_name_or_path": str(blind / "pipeline"),
            "train_data_dir": [photos],
        }
        run("train_restorer", tmp_path / "told", **start, **knobs)


def test_labels_belong_to_networks_that_take_a_condition(tmp_path, photos):
    start = TextGuidedRestorationPipeline(restorer=tiny.transformer(guided=False))
    start.save_pretrained(tmp_path / "restormer")
    with pytest.raises(ValueError, match="Restormer takes no condition; `--labels` needs a NAFNet"):
        knobs = {
            "pretrained_model_name_or_path": str(tmp_path / "restormer"),
            "train_data_dir": [photos],
        }
        run("train_restorer", tmp_path / "told", **knobs, labels=["all"])


def test_benchmarks_know_what_their_pairs_suffer_from():
    assert source_labels("gopro:/data", [], 0) == ("blur",) and source_labels("photos", [], 0) == ()
    assert source_labels("photos", ["clean", "lowlight+noise"], 1) == ("lowlight", "noise")
    assert source_labels("lol:/data", ["rain"], 3) == ("rain",)
