"""Every section of every recipe runs: two steps, tiny networks, a miniature GoPro, in the order of the files."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from tests import tiny
from textir.training import parse_config
from train_lora import make_guidance, train_cleaner, train_mapper, train_restorer

FOLDER = Path(__file__).parents[2] / "train_lora" / "recipes"
ORDER = ("motion_deblurring_nafnet", "ablation_number_of_words", "ablation_fusion", "ablation_guidance")
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


def sections():
    for name in ORDER:
        for section, values in yaml.safe_load((FOLDER / f"{name}.yaml").read_text()).items():
            if section != "expected":
                yield name, section, values


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with `data/GoPro` as published, captions, and a tiny base model with room for forty words."""
    place = tmp_path_factory.mktemp("reproduction")
    for split, scene in (("train", "GOPR01"), ("train", "GOPR02"), ("test", "GOPR03")):
        for kind in ("blur", "sharp"):
            folder = place / "data" / "GoPro" / split / scene / kind
            folder.mkdir(parents=True)
            pixels = np.random.default_rng(len(scene)).integers(0, 256, (40, 56, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "000047.png")
    captions = [json.dumps({"file_name": f"GOPR0{i}/blur/000047.png", "text": "a blurred photo"}) + "\n" for i in (1, 2)]
    (place / "data" / "gopro_captions.jsonl").write_text("".join(captions))
    words = tiny.tokenizer(64)
    gone = dict.fromkeys(("mapper", "cleaner", "restorer", "matcher", "detector"))
    base = tiny.pipeline(tokenizer=words, text_encoder=tiny.text_encoder(len(words), length=64), **gone)
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
        small["restorer_config"] = '{"width": 4, "encoder_depths": [1, 1], "middle_depth": 1, "decoder_depths": [1, 1]}'
    if kind == "guided":
        small["matcher_widths"] = [4, 6, 8]
    return [
        text for name, value in small.items() for text in (f"--{name}", *map(str, value if isinstance(value, list) else [value]))
    ]


def test_every_file_is_here():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_every_file_says_what_to_expect(name):
    expected = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())["expected"]
    assert expected and all(20 < value < 45 for values in expected.values() for value in values)


@pytest.mark.parametrize(("name", "section", "values"), [pytest.param(*s, id=f"{s[0]}-{s[1]}") for s in sections()])
def test_a_section_runs(name, section, values, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    monkeypatch.setattr(sys, "argv", ["script"])
    kind = section.partition("-")[0]
    if (workplace / values["output_dir"]).exists():
        return  # two files may share a row
    script = SCRIPTS[kind]
    config = parse_config(script.Config, ["--config", f"{FOLDER / name}.yaml#{section}", *override(kind, values)])
    script.main(config)
    result = workplace / values["output_dir"] / ("guidance" if kind == "guidance" else "pipeline/model_index.json")
    assert result.exists()
    if kind == "guidance":
        assert {path.name for path in result.iterdir()} == {"GOPR01_blur_000047.png", "GOPR02_blur_000047.png"}
