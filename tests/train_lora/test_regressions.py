"""What broke in the code published with the paper must not break here: black images, the wrong
network trained and saved, frozen weights, swapped sides, images that are never used or silently
replaced, guidance one level short.
"""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pipelines import TextGuidedRestorationPipeline
from tests.tools import tiny
from tests.train_lora import (
    make_config,
    run,
    second_moments,
    small_restorer,
    tensors,
    trained,
    write_chain,
    write_pairs,
    write_photo,
    write_photos,
)
from textir.training.config import parse_config
from train_lora import train_cleaner
from train_lora.data import TrainingData
from train_lora.watching import recorded_inputs

# What each stage trains: in full (a pattern of names), and the parts that its adapter has layers
# in.
STAGES = {
    "train_mapper": (r"mapper\..*|unet\..*\.attn2\.to_[kv]\.weight", {"mapper", "unet"}),
    "train_cleaner": (r"cleaner\..*", {"cleaner"}),
    "train_detector": (r"detector\..*", {"detector"}),
    "train_restorer": (r"restorer\..*", {"restorer"}),
}
# Gates that start at zero open before what is behind them.
LONG = {
    "max_train_steps": 4,
    "learning_rate": 1e-2,
    "use_ema": False,
}


@pytest.fixture(scope="module")
def chain(tmp_path_factory) -> str:
    return write_chain(tmp_path_factory.mktemp("chain"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> str:
    return write_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> str:
    return write_pairs(tmp_path_factory.mktemp("pairs"))


def cells(path, rows: int) -> np.ndarray:
    """The pictures of a sheet, `(rows, columns, 192, 192, 3)` in [0, 1]."""
    sheet = np.asarray(Image.open(path), dtype=np.float64) / 255
    return sheet.reshape(rows, 192, -1, 192, 3).swapaxes(1, 2)


def gets_gradient(checkpoint, count: int) -> bool:
    """Whether `count` weights train and each of them has got a gradient that is not nothing."""
    moments = second_moments(checkpoint)
    return len(moments) == count and all(
        moment.isfinite().all() and (moment > 0).any() for moment in moments
    )


# ---- what trains


@pytest.mark.parametrize("script", STAGES)
def test_full_training_reaches_and_changes_just_what_its_stage_is_for(
    tmp_path, chain, photos, script
):
    intended, _ = STAGES[script]
    output = run(
        script, tmp_path, pretrained_model_name_or_path=chain, train_data_dir=[photos], **LONG
    )
    before, after = tensors(chain), tensors(output / "pipeline")
    assert before.keys() == after.keys()
    names = {name for name in before if re.fullmatch(intended, name)}
    assert names and names == set(trained(output / "checkpoint-4"))
    assert {name for name in before if not torch.equal(before[name], after[name])} == names
    assert gets_gradient(output / "checkpoint-4", len(names))


@pytest.mark.parametrize("script", STAGES)
def test_lora_training_reaches_and_changes_its_layers_alone(tmp_path, chain, photos, script):
    _, parts = STAGES[script]
    knobs = {
        "pretrained_model_name_or_path": chain,
        "train_data_dir": [photos],
        "rank": 2,
        "lora_alpha": 6,
        **LONG,
    }
    output = run(script, tmp_path, **knobs)
    assert not (output / "pipeline").exists()
    saved = trained(output / "checkpoint-4")
    assert (
        all("lora_" in name for name in saved) and {name.split(".")[0] for name in saved} == parts
    )
    layers = tensors(output / "adapter")
    assert len(layers) == len(saved)
    assert all((value != 0).any() for value in layers.values())  # B starts at zero
    assert gets_gradient(output / "checkpoint-4", len(layers))
    pipe = TextGuidedRestorationPipeline.from_pretrained(chain)
    pipe.load_lora_weights(str(output / "adapter"), adapter_name="mine")
    assert set(pipe.get_list_adapters()) == parts
    assert all(getattr(pipe, part).peft_config["mine"].lora_alpha == 6 for part in parts)


def test_a_unet_that_shall_not_train_does_not(tmp_path, chain, photos):
    output = run(
        "train_mapper",
        tmp_path,
        pretrained_model_name_or_path=chain,
        train_data_dir=[photos],
        train_unet=False,
    )
    assert {name.split(".")[0] for name in trained(output / "checkpoint-2")} == {"mapper"}


@pytest.mark.parametrize(
    ("rank", "knobs"),
    [
        (2, {"pixel_weight": 1.0, "diffusion_weight": 0.0}),
        (
            2,
            {
                "pixel_weight": 0.5,
                "guidance_init": "image",
                "init_strength": 0.3,
                "num_cached_samples": 6,
            },
        ),
        (None, {}),
    ],
)
def test_mapper_and_unet_learn_beside_the_cleaner(tmp_path, chain, photos, rank, knobs):
    knobs = {
        "pretrained_model_name_or_path": chain,
        "train_data_dir": [photos],
        "rank": rank,
        **knobs,
    }
    output = run("train_cleaner", tmp_path, also_train=["mapper", "unet"], **knobs, **LONG)
    saved = trained(output / "checkpoint-4")
    assert {name.split(".")[0] for name in saved} == {"cleaner", "mapper", "unet"}
    assert gets_gradient(output / "checkpoint-4", len(saved))
    if rank:
        assert len(tensors(output / "adapter")) == len(saved)
    else:
        before, after = tensors(chain), tensors(output / "pipeline")
        intended = rf"{STAGES['train_cleaner'][0]}|{STAGES['train_mapper'][0]}"
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert changed == set(saved) == {name for name in before if re.fullmatch(intended, name)}


@pytest.mark.parametrize("cached", [0, 6])
def test_words_learn_from_what_the_restorer_makes_of_their_guidance(tmp_path, photos, cached):
    start = write_chain(
        tmp_path / "chain",
        restorer=tiny.restorer(open_gates=True),
        matcher=tiny.components()["matcher"],
    )
    knobs = {
        "pretrained_model_name_or_path": start,
        "train_data_dir": [photos],
        "num_cached_samples": cached,
        **LONG,
    }
    knobs |= {"diffusion_weight": 0.0, "restored_weight": 1.0}
    output = run("train_cleaner", tmp_path / "run", also_train=["mapper", "unet"], **knobs)
    saved = trained(output / "checkpoint-4")
    assert {name.split(".")[0] for name in saved} == {"cleaner", "mapper", "unet"}
    assert gets_gradient(output / "checkpoint-4", len(saved))
    before, after = tensors(start), tensors(output / "pipeline")
    # Restorer and matcher stay.
    assert {name for name in before if not torch.equal(before[name], after[name])} == set(saved)


def test_words_cannot_learn_from_a_restorer_that_takes_no_guidance(tmp_path, chain, photos):
    knobs = {
        "pretrained_model_name_or_path": chain,
        "train_data_dir": [photos],
        "restored_weight": 1.0,
    }
    with pytest.raises(ValueError, match="This stage needs matcher, which the checkpoint lacks"):
        run("train_cleaner", tmp_path, **knobs)


def test_a_cleaner_learns_from_where_the_checkpoint_paints(tmp_path, chain, photos):
    """Degraded latents reach the UNet where guidance starts from the image, and only there; a knob
    says otherwise."""
    pipe = TextGuidedRestorationPipeline.from_pretrained(chain)
    pipe.register_to_config(default_guidance_init="image", default_init_strength=0.1)
    pipe.save_pretrained(tmp_path / "from_image")

    def learnt(name, start, **knobs):
        data = {
            "pretrained_model_name_or_path": str(start),
            "train_data_dir": [photos],
            "degradations": ["noise:100"],
        }
        return trained(run("train_cleaner", tmp_path / name, **data, **knobs) / "checkpoint-2")

    def same(one, other):
        return all(torch.equal(one[name], other[name]) for name in one)

    by_noise, by_image = learnt("1", chain), learnt("2", tmp_path / "from_image")
    assert not same(by_noise, by_image)
    assert same(by_image, learnt("3", chain, guidance_init="image", init_strength=0.1))
    assert same(by_noise, learnt("4", tmp_path / "from_image", guidance_init="noise"))
    assert not same(by_image, learnt("5", tmp_path / "from_image", init_strength=0.9))


def test_a_strength_of_the_start_is_refused_where_painting_starts_from_noise(
    tmp_path, chain, photos
):
    knobs = {
        "pretrained_model_name_or_path": chain,
        "train_data_dir": [photos],
        "init_strength": 0.2,
    }
    with pytest.raises(ValueError, match="it needs `--guidance_init image`"):
        run("train_cleaner", tmp_path, **knobs)


@pytest.mark.parametrize("script", ["train_mapper", "train_cleaner"])
def test_a_unet_that_knows_squares_alone_learns_from_the_size_that_it_paints(
    tmp_path, chain, photos, script
):
    pipe = TextGuidedRestorationPipeline.from_pretrained(chain)
    pipe.register_to_config(square_guidance=True, guidance_size=16)
    pipe.save_pretrained(tmp_path / "square")
    knobs = {
        "pretrained_model_name_or_path": str(tmp_path / "square"),
        "train_data_dir": [photos],
        "num_cached_samples": 2,
    }
    output = run(script, tmp_path / "run", **knobs)
    cached = load_file(next(output.rglob("cache/*/00000.safetensors")))
    assert cached["latents"].shape[-2:] == (16 // pipe.vae_scale_factor,) * 2


@pytest.mark.parametrize("rank", [None, 2])
def test_guided_training_changes_restorer_and_matcher(tmp_path, pairs, rank):
    start = write_chain(
        tmp_path / "chain",
        restorer=tiny.restorer(open_gates=True),
        matcher=tiny.components()["matcher"],
    )
    knobs = {
        "pretrained_model_name_or_path": start,
        "train_data_dir": [pairs],
        "degradations": [],
        "rank": rank,
        **LONG,
    }
    output = run("train_restorer", tmp_path / "run", **knobs)
    saved = trained(output / "checkpoint-4")
    assert {name.split(".")[0] for name in saved} == {"restorer", "matcher"}
    assert gets_gradient(output / "checkpoint-4", len(saved))
    if rank is None:
        before, after = tensors(start), tensors(output / "pipeline")
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert (
            changed
            == set(saved)
            == {name for name in before if name.split(".")[0] in ("restorer", "matcher")}
        )


@pytest.mark.parametrize("script", ["train_detector", "train_mapper"])
def test_training_runs_in_reduced_precision_and_keeps_its_weights_in_full(
    tmp_path, chain, photos, script
):
    knobs = {
        "pretrained_model_name_or_path": chain,
        "train_data_dir": [photos],
        "mixed_precision": "bf16",
    }
    output = run(script, tmp_path, **knobs)
    assert {value.dtype for value in trained(output / "checkpoint-2").values()} == {torch.float32}
    before, after = tensors(chain), tensors(output / "pipeline")
    intended, _ = STAGES[script]
    for name in before:
        assert after[name].dtype == before[name].dtype and after[name].isfinite().all(), name
        assert not re.fullmatch(intended, name) or not torch.equal(before[name], after[name]), name


@pytest.mark.parametrize("guided", [False, True])
def test_a_restorer_trains_in_reduced_precision(tmp_path, pairs, guided):
    knobs = {
        "train_data_dir": [pairs],
        "degradations": [],
        "restorer_config": small_restorer(),
        "mixed_precision": "bf16",
    }
    output = run("train_restorer", tmp_path, guidance=guided, matcher_widths=[4, 6, 8], **knobs)
    assert all(
        value.dtype == torch.float32 and value.isfinite().all()
        for value in tensors(output / "pipeline").values()
    )


# ---- what the networks see


def test_recorded_inputs_are_the_image_itself_neither_black_nor_out_of_range(chain):
    pipe = TextGuidedRestorationPipeline.from_pretrained(chain)
    image = tiny.image(32, 32)  # the encoder's own size, so that nothing is resampled
    with recorded_inputs(pipe) as seen, torch.no_grad():
        pipe.encode_image(image)
        pipe.encode_latents(image)
    assert set(seen) == {"image encoder", "VAE"}
    assert all(torch.allclose(picture, image, atol=1e-5) for picture in seen.values())
    with torch.no_grad():
        pipe.encode_image(1 - image)
    assert torch.allclose(seen["image encoder"], image, atol=1e-5)  # noted within the block only


@pytest.mark.parametrize("cached", [0, 8])
def test_stage_2_shows_the_degraded_image_to_the_encoder_and_the_clean_one_to_the_vae(
    tmp_path, chain, photos, cached
):
    knobs = {
        "pretrained_model_name_or_path": chain,
        "train_data_dir": [photos],
        "num_cached_samples": cached,
    }
    output = run("train_cleaner", tmp_path, degradations=["noise:50"], **knobs)
    sheet = cells(output / "first_batch.png", rows=4 if cached else 2)
    degraded, clean, encoder, vae = sheet.swapaxes(0, 1)
    assert np.abs(degraded - encoder).max() < 0.01 and np.abs(clean - vae).max() < 0.01
    assert np.abs(degraded - clean).mean() > 0.05
    assert clean.mean((1, 2, 3)).min() > 0.1 and clean.std((1, 2, 3)).min() > 0.05


def test_stage_1_shows_one_image_to_encoder_and_vae_clean_or_degraded(tmp_path, chain, photos):
    knobs = {
        "pretrained_model_name_or_path": chain,
        "train_data_dir": [photos],
        "train_batch_size": 4,
    }
    for share in (0.0, 0.5, 1.0):
        output = run(
            "train_mapper",
            tmp_path / str(share),
            degradations=["noise:50"],
            clean_share=share,
            **knobs,
        )
        degraded, clean, encoder, vae = cells(output / "first_batch.png", rows=4).swapaxes(0, 1)
        assert np.abs(encoder - vae).max() < 0.01 and vae.std((1, 2, 3)).min() > 0.05
        is_clean = np.abs(vae - clean).max((1, 2, 3)) < 0.01
        assert (is_clean | (np.abs(vae - degraded).max((1, 2, 3)) < 0.01)).all()
        assert is_clean.mean() == share


# ---- images


@pytest.mark.parametrize(("height", "width"), [(33, 90), (90, 33)])
def test_sides_are_not_swapped(tmp_path, height, width):
    """Red grows along the width and green along the height, in the photo and so in every crop, as
    far as the sides allow."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., 0] = (np.arange(width) * 2)[None]
    pixels[..., 1] = (np.arange(height) * 2)[:, None]
    write_photo(tmp_path / "photos" / "ramp.png", pixels)
    config = make_config(
        "train_cleaner",
        tmp_path / "run",
        train_data_dir=[str(tmp_path / "photos")],
        max_reduction=1.0,
    )
    crops = TrainingData(config, 32).crops(32)
    clean = [crops[i]["clean"] for i in range(20)]
    for crop in clean:
        assert (crop[0].std(0) < 1e-6).all() and (crop[1].std(1) < 1e-6).all()
        assert (crop[1].diff(dim=0) > 0).all() and (crop[0].diff(dim=1).abs() > 0).all()
    starts = torch.tensor([[crop[0].min(), crop[1].min()] for crop in clean]) * 255 / 2
    assert (starts[:, 0].max() > 30) == (width > height) and (starts[:, 1].max() > 30) == (
        height > width
    )


def test_all_images_are_used_about_equally(tmp_path):
    for k in range(6):
        write_photo(tmp_path / "photos" / f"{k}.png", np.full((34, 50, 3), 40 * k, dtype=np.uint8))
    config = make_config(
        "train_cleaner", tmp_path / "run", train_data_dir=[str(tmp_path / "photos")]
    )
    crops = TrainingData(config, 32).crops(32)
    seen = torch.tensor(
        [round(float(crops[i]["clean"].mean()) * 255 / 40) for i in range(300)]
    ).bincount(minlength=6)
    assert len(seen) == 6 and seen.min() > 25 and seen.max() < 80


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "small"])
def test_an_image_that_cannot_be_used_is_an_error_before_anything_trains(tmp_path, chain, damage):
    folder = write_photos(tmp_path / "photos")
    bad = tmp_path / "photos" / "holiday.png"
    if damage == "small":
        write_photo(bad, np.zeros((20, 40, 3), dtype=np.uint8))
    else:
        whole = (tmp_path / "photos" / "0.png").read_bytes()
        bad.write_bytes(
            {"truncated": whole[: len(whole) // 2], "empty": b"", "text": b"not an image"}[damage]
        )
    knobs = {"pretrained_model_name_or_path": chain, "train_data_dir": [folder]}
    with pytest.raises(
        ValueError,
        match=r"1 images cannot be used \(`--skip_bad` leaves them out\):\n.*holiday\.png",
    ):
        run("train_cleaner", tmp_path / "run", **knobs)
    assert not list((tmp_path / "run").glob("checkpoint-*"))
    run("train_cleaner", tmp_path / "run", skip_bad=True, **knobs)


def test_an_image_that_breaks_while_training_is_an_error_and_no_black_image(tmp_path):
    folder = write_photos(tmp_path / "photos")
    config = make_config("train_cleaner", tmp_path / "run", train_data_dir=[folder])
    data = TrainingData(config, 32)
    data.sources[0].kept.clear()  # as with a data set that does not fit into memory
    crops = data.crops(32)
    crops[0]
    for path in (tmp_path / "photos").iterdir():
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"\.png is damaged or truncated"):
        crops[0]


def test_paths_are_not_split_into_letters(tmp_path, chain):
    (tmp_path / "recipe.yaml").write_text(
        f"train_data_dir: {write_photos(tmp_path / 'photos')}\ndegradations: noise:25\n"
    )
    config = parse_config(
        train_cleaner.Config,
        ["--config", str(tmp_path / "recipe.yaml"), "--output_dir", str(tmp_path / "run")],
    )
    config.resolution = 32
    assert len(TrainingData(config, 32).sources[0]) == 4


# ---- guidance


@pytest.mark.parametrize(
    ("levels", "fusion"), [(1, "both"), (2, "encoder"), (2, "decoder"), (3, "both")]
)
def test_guided_training_runs_with_every_number_of_levels_and_place_of_fusion(
    tmp_path, pairs, levels, fusion
):
    config = {"width": 4, "encoder_depths": [1] * levels, "decoder_depths": [1] * levels}
    knobs = {
        "train_data_dir": [pairs],
        "degradations": [],
        "matcher_widths": [4, 6, 8, 10][: levels + 1],
        "guidance_dropout": 0.0,
    }
    output = run(
        "train_restorer",
        tmp_path,
        restorer_config=json.dumps(config),
        fusion=fusion,
        **knobs,
        **LONG,
    )
    pipe = TextGuidedRestorationPipeline.from_pretrained(output / "pipeline")
    assert len(pipe.restorer.encoder_fusions) == (0 if fusion == "decoder" else levels + 1)
    assert len(pipe.restorer.decoder_fusions) == (0 if fusion == "encoder" else levels)
    gates = [value for name, value in pipe.restorer.named_parameters() if name.endswith("alpha")]
    assert gates and all((gate != 0).any() for gate in gates)
    image, guidance = tiny.image(24, 40), tiny.image(24, 40, seed=1)
    plain = pipe(image, guidance="none", output_type="pt").images
    assert not torch.equal(pipe(image, guidance_image=guidance, output_type="pt").images, plain)


def test_a_freshly_guided_network_is_the_unguided_one_to_the_bit(tmp_path, chain, pairs):
    knobs = {"pretrained_model_name_or_path": chain, "train_data_dir": [pairs], "degradations": []}
    output = run("train_restorer", tmp_path, learning_rate=0.0, matcher_widths=[4, 6, 8], **knobs)
    before, after = (
        TextGuidedRestorationPipeline.from_pretrained(folder)
        for folder in (chain, output / "pipeline")
    )
    weights = after.restorer.state_dict()
    assert all(
        torch.equal(weights[name], value) for name, value in before.restorer.state_dict().items()
    )
    image = tiny.image(24, 40)
    expected = before(image, guidance="none", output_type="pt").images
    unguided = after(image, guidance="none", output_type="pt").images
    assert torch.equal(
        after(image, guidance_image=tiny.image(24, 40, seed=1), output_type="pt").images, unguided
    )
    # Kernels round by where a file puts the weights in memory.
    assert torch.allclose(unguided, expected, rtol=0, atol=1e-6)
    assert after.matcher is not None and after.restorer.config.guidance_channels == [4, 6, 8]


def test_the_ablation_without_guidance_trains_no_matcher(tmp_path, chain, pairs):
    knobs = {"pretrained_model_name_or_path": chain, "train_data_dir": [pairs], "degradations": []}
    output = run("train_restorer", tmp_path, guidance=False, **knobs)
    assert {name.split(".")[0] for name in trained(output / "checkpoint-2")} == {"restorer"}
    assert not (output / "pipeline" / "matcher").exists()


def test_validation_does_not_change_what_is_learnt(tmp_path, photos):
    """Attention averages over a window outside training only, so a network left in the wrong mode
    learns something else."""
    restorer = tiny.NAFNet(width=4, encoder_depths=(1,), decoder_depths=(1,), pooling_window=8)
    start = write_chain(tmp_path / "chain", restorer=restorer)
    knobs = {"pretrained_model_name_or_path": start, "train_data_dir": [photos], **LONG}
    plain = run("train_restorer", tmp_path / "plain", **knobs)
    judged = run(
        "train_restorer",
        tmp_path / "judged",
        validation_data_dir=photos,
        validation_steps=1,
        **knobs,
    )
    assert all(
        torch.equal(a, b)
        for a, b in zip(*(trained(f / "checkpoint-4").values() for f in (plain, judged)))
    )


def test_a_restorer_from_a_checkpoint_trains_in_training_mode_as_a_new_one_does(tmp_path, photos):
    """While it trains, channel attention sees the whole crop, wherever the network came from."""
    plain = tiny.restorer(guided=False)
    settings = {name: value for name, value in plain.config.items() if not name.startswith("_")}
    weights = []
    for window in (None, 8):
        network = tiny.NAFNet(**{**settings, "pooling_window": window})
        network.load_state_dict(plain.state_dict())
        start = write_chain(tmp_path / f"chain-{window}", restorer=network)
        output = run(
            "train_restorer",
            tmp_path / f"run-{window}",
            pretrained_model_name_or_path=start,
            train_data_dir=[photos],
        )
        weights.append(trained(output / "checkpoint-2"))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("script", ["train_restorer", "train_cleaner", "train_mapper"])
def test_an_adapter_for_a_network_that_is_new_is_refused(tmp_path, photos, script):
    """Its layers would sit on random weights that are saved nowhere."""
    start = {"pretrained_model_name_or_path": write_chain(tmp_path / "chain", **{script[6:]: None})}
    if script == "train_mapper":
        start["mapper_config"] = '{"num_words": 4, "width": 8}'
    if script == "train_restorer":
        start = {"restorer_config": small_restorer()}
    with pytest.raises(ValueError, match="rank"):
        run(script, tmp_path / "run", train_data_dir=[photos], rank=2, **start)


def test_an_adapter_for_guidance_that_is_new_is_refused(tmp_path, chain, pairs):
    knobs = {
        "pretrained_model_name_or_path": chain,
        "train_data_dir": [pairs],
        "degradations": [],
        "matcher_widths": [4, 6, 8],
    }
    with pytest.raises(ValueError, match="rank"):
        run("train_restorer", tmp_path, rank=2, **knobs)
