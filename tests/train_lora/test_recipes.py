"""Every section of every recipe runs: two steps, tiny networks, miniature data sets in their
published layouts, in the order of the files."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tests.data.test_layouts import TREES
from tests.tools import tiny
from tests.train_lora import forget_processes, run_twofold, small_restorer, trained, write_pairs
from textir.data.photos import entry_names, find_entries, parse_source
from textir.training.config import parse_config
from train_lora import make_guidance, train_cleaner, train_detector, train_mapper, train_restorer
from train_lora.mini import train_fusion

FOLDER = Path(__file__).parents[2] / "train_lora" / "recipes"
MINI = FOLDER.parent / "mini"
ORDER = (  # a file that takes stages from another comes behind it
    "all_in_one_promptir",
    "motion_deblurring_nafnet",
    "motion_deblurring_restormer",
    "defocus_deblurring_single_restormer",
    "defocus_deblurring_dual_restormer",
    "dehazing_indoor_sfnet",
    "dehazing_outdoor_sfnet",
    "deraining_rain200l_drsformer",
    "deraining_rain200h_drsformer",
    "deraining_did_drsformer",
    "deraining_ddn_drsformer",
    "ablation_number_of_words",
    "ablation_fusion",
    "ablation_guidance",
)
SCRIPTS = {
    "mapper": train_mapper,
    "cleaner": train_cleaner,
    "unguided": train_restorer,
    "guidance": make_guidance,
    "guided": train_restorer,
}
SMALL = {"mixed_precision": "no", "seed": 1}
RUN = {
    **SMALL,
    "max_train_steps": 2,
    "gradient_accumulation_steps": 1,
    "dataloader_num_workers": 0,
    "validation_steps": 2,
    "num_validation_images": 1,
    "train_batch_size": 1,
    "resolution": 32,
}
TWO_LEVELS = {"encoder_depths": [1, 1], "middle_depth": 1, "decoder_depths": [1, 1]}
TRANSFORMER = {"width": 8, **TWO_LEVELS, "heads": [1, 2, 2]}
PROMPTS = {"prompt_channels": [4, 8], "prompt_sizes": [8, 4], "prompt_count": 2, "prompt_heads": 2}
SHAPES = {
    "NAFNet": {"width": 4, **TWO_LEVELS},
    "Restormer": {**TRANSFORMER, "refinement_depth": 1},
    "PromptIR": {**TRANSFORMER, "refinement_depth": 1, **PROMPTS},
    "DRSformer": TRANSFORMER,
    "SFNet": {"width": 16, "depth": 1},
}


def read(name: str) -> dict:
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


def sections():
    for name in ORDER:
        for section, values in read(name).items():
            if section != "expected":
                yield name, section, values


def write_benchmark(name: str, root: Path) -> None:
    """Photos of 40 x 56 pixels where both splits of a benchmark keep theirs."""
    files = {
        root / file
        for split in ("train", "test")
        for tree in TREES.get((name, split), [])[:1]
        for image in tree.images
        for file in image
    }
    for i, path in enumerate(sorted(files)):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(
            np.random.default_rng(i).integers(0, 256, (40, 56, 3), dtype=np.uint8)
        ).save(path)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with the data that the recipes name, as published, captions, and a tiny base model
    with room for forty words."""
    place = tmp_path_factory.mktemp("reproduction")
    named = {
        pair
        for name in ORDER
        for pair in re.findall(r"\b([a-z0-9_]+):(data/\w+)", (FOLDER / f"{name}.yaml").read_text())
    }
    for name, root in sorted(named):
        write_benchmark(name, place / root)
    scenes = sorted(path.name for path in (place / "data" / "GoPro" / "train").iterdir())
    captions = [
        json.dumps({"file_name": f"{scene}/blur/000047.png", "text": "a blurred photo"}) + "\n"
        for scene in scenes
    ]
    (place / "data" / "gopro_captions.jsonl").write_text("".join(captions))
    words = tiny.tokenizer(64)
    gone = dict.fromkeys(("mapper", "cleaner", "restorer", "matcher", "detector"))
    base = tiny.pipeline(
        tokenizer=words, text_encoder=tiny.text_encoder(len(words), length=64), **gone
    )
    base.save_pretrained(place / "base")
    return place


def override(kind: str, values: dict) -> list[str]:
    """Flags that make a recipe small."""
    small = {**RUN} if kind != "guidance" else {**SMALL, "num_inference_steps": 1}
    if str(values.get("pretrained_model_name_or_path", "")).startswith("sd2-community/"):
        small["pretrained_model_name_or_path"] = "base"
    if kind == "mapper":
        words = values.get("mapper_config", {}).get("num_words", 20)
        small["mapper_config"] = f'{{"num_words": {words}, "width": 8}}'
    if kind == "cleaner":
        small["cleaner_config"] = '{"width": 8}'
    if kind == "unguided":
        small["restorer_config"] = json.dumps(
            {**values.get("restorer_config", {}), **SHAPES[values["restorer"]]}
        )
    if kind in ("unguided", "guided"):
        small["train_batch_size"] = 2  # SFNet's batch normalisation refuses a single image
    if kind == "guided":
        small["matcher_widths"] = [4, 6, 8]
    if values.get("phase_ends"):
        small |= {"resolution": [24, 32], "train_batch_size": [2, 1], "phase_ends": 1}
    if "lr_decay_steps" in values:
        small["lr_decay_steps"] = 1
    return [
        text
        for name, value in small.items()
        for text in (f"--{name}", *map(str, value if isinstance(value, list) else [value]))
    ]


def test_every_file_is_here():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_every_file_says_what_to_expect(name):
    expected = read(name)["expected"]
    assert expected and all(20 < value < 45 for values in expected.values() for value in values)


@pytest.mark.parametrize("name", ORDER)
def test_the_readme_lists_every_row_with_its_numbers(name):
    lines = (FOLDER.parent / "README.md").read_text().splitlines()
    row = next(line for line in lines if line.startswith("|") and f"`{name}`" in line)
    for values in read(name)["expected"].values():
        assert " → ".join(f"{value:.2f}" for value in values) in row


@pytest.mark.parametrize(
    ("name", "section", "values"), [pytest.param(*s, id=f"{s[0]}-{s[1]}") for s in sections()]
)
def test_a_section_runs(name, section, values, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    monkeypatch.setattr(sys, "argv", ["script"])
    kind = section.partition("-")[0]
    if (workplace / values["output_dir"]).exists():
        return  # two files may share a row
    script = SCRIPTS[kind]
    config = parse_config(
        script.Config, ["--config", f"{FOLDER / name}.yaml#{section}", *override(kind, values)]
    )
    script.main(config)
    output = workplace / values["output_dir"]
    if kind == "guidance":
        photos = entry_names(find_entries(values["data"]))
        if "degradations" in values:  # of clean photos: several versions of each
            photos = [f"{photo}-{k}" for photo in photos for k in range(values["variants"])]
        assert {path.stem for path in (output / "guidance").iterdir()} == set(photos)
        return
    index, restorer, matcher = (
        json.loads(file.read_text()) if file.exists() else {}
        for file in (
            output / "pipeline" / name
            for name in ("model_index.json", "restorer/config.json", "matcher/config.json")
        )
    )
    if kind == "unguided":
        assert restorer["_class_name"] == values["restorer"]
        assert (
            restorer.items()
            >= (values.get("restorer_config", {}) | SHAPES[values["restorer"]]).items()
        )
    if kind == "guided" and values.get("guidance", True):
        assert restorer["guidance_channels"] == matcher["widths"] == [4, 6, 8]
        assert restorer["fusion"] == values["fusion"]
        assert index["unet"][1] == "UNet2DConditionModel"  # the result paints its guidance itself


# ---- what the recipes need of the script


def guided_config(tmp_path, **knobs):
    return train_restorer.Config(
        output_dir=str(tmp_path / "run"),
        restorer_config=small_restorer(),
        matcher_widths=[4, 6, 8],
        resolution=[32],
        train_batch_size=[2],
        max_train_steps=1,
        dataloader_num_workers=0,
        mixed_precision="no",
        **knobs,
    )


def test_each_source_finds_guidance_in_a_folder_of_its_own(tmp_path):
    folders = []
    for name in "ab":
        write_pairs(tmp_path / name)
        folders.append((tmp_path / name / "guidance").rename(tmp_path / f"{name}-painted"))
    sources = [f"{tmp_path / 'a'}@3", str(tmp_path / "b")]
    config = guided_config(tmp_path, train_data_dir=sources, guidance_dirs=list(map(str, folders)))
    data = train_restorer.read_data(config, 32)
    assert data.has_guidance and data.weights == [3.0, 1.0]
    for (source, folder), photos in zip(zip(sources, folders), data.sources, strict=True):
        assert {entry.guidance.parent for entry in photos.entries} == {folder}
        assert {entry.clean.parents[1] for entry in photos.entries} == {
            Path(parse_source(source)[0])
        }
    forget_processes()
    train_restorer.main(config)


@pytest.mark.parametrize(
    "knobs", [{"guidance_dirs": ["a"]}, {"guidance_dirs": ["a", "b"], "guidance_dir": "c"}]
)
def test_guidance_folders_that_do_not_fit_the_sources_are_refused(tmp_path, knobs):
    with pytest.raises(
        ValueError, match="`--guidance_dirs` needs one folder for each `--train_data_dir`"
    ):
        guided_config(tmp_path, train_data_dir=["x", "y"], **knobs)


def test_a_restorer_needs_a_chain_to_complete(tmp_path):
    with pytest.raises(ValueError, match="`--restorer_from` completes a checkpoint"):
        guided_config(tmp_path, train_data_dir=["x"], restorer_from="y")


def test_two_processes_train_every_scale_of_a_network(tmp_path):
    """A weight without a gradient would stop the second step."""
    knobs = {
        "restorer": "SFNet",
        "restorer_config": json.dumps(SHAPES["SFNet"]),
        "max_train_steps": 3,
        "fft_weight": 0.1,
    }
    data = {
        "train_data_dir": [write_pairs(tmp_path / "pairs")],
        "degradations": [],
        "matcher_widths": [4, 6, 8],
    }
    output = run_twofold(
        "train_restorer",
        tmp_path / "run",
        checkpointing_steps=1,
        checkpoints_total_limit=None,
        **knobs,
        **data,
    )
    before, after = (trained(output / f"checkpoint-{step}") for step in (1, 3))
    for i in range(3):
        assert not torch.equal(
            *(weights[f"restorer.outputs.{i}.0.weight"] for weights in (before, after))
        )


def test_a_matcher_sees_the_mean_of_two_views():
    left, right = tiny.image(seed=0), tiny.image(seed=1)
    assert train_restorer.mean_view(left) is left
    both = train_restorer.mean_view(torch.cat([left, right], dim=1))
    torch.testing.assert_close(both, (left + right) / 2)


@pytest.mark.parametrize("section", yaml.safe_load((MINI / "told.yaml").read_text()))
def test_the_record_of_the_embedded_checkpoint_is_understood(section):
    scripts = {"detector": train_detector, "fusion": train_fusion}
    scripts |= {"trust": train_fusion, "refit": train_fusion}
    script = scripts.get(section, train_restorer)
    config = parse_config(script.Config, ["--config", f"{MINI / 'told.yaml'}#{section}"])
    assert config.output_dir == f"runs/told/{section}"


def test_the_record_names_its_sections_in_order():
    text = (MINI / "told.yaml").read_text()
    assert re.findall(r"told\.yaml#(\w+)", text) == list(yaml.safe_load(text))
