"""The foundation stages build on one another: a VAE whose encoder is exact, words near a
vocabulary, a painter, each behind its gate."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pipelines import TextGuidedRestorationPipeline
from tests.train_lora import forget_processes
from textir.degradations import LABELS
from train_lora import train_cleaner
from train_lora.captions import DEGRADATION_WORDS
from train_lora.mini import train_painter, train_vae, train_words
from train_lora.mini.gate import pass_gate

SMALL = {
    "max_train_steps": 2,
    "train_batch_size": 2,
    "dataloader_num_workers": 0,
    "num_validation_images": 1,
    "mixed_precision": "no",
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for k in range(3):
        coarse = np.random.default_rng(k).integers(0, 256, (9, 12, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((160 + k, 132), Image.BICUBIC).save(folder / f"{k}.png")
    rows = [
        {"file_name": f"{k}.png", "captions": [f"a dog on street {k}", "a brown dog"]}
        for k in range(2)
    ]
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def knobs(photos, output, **options) -> dict:
    places = {
        "train_data_dir": [str(photos)],
        "validation_data_dir": str(photos),
        "validation_degradations": ["clean"],
    }
    return {**SMALL, **places, "output_dir": str(output), **options}


def run(script, config):
    forget_processes()
    return script.main(config)


@pytest.fixture(scope="module")
def chain(photos, tmp_path_factory):
    """All stages, two steps each, their gates open."""
    place = tmp_path_factory.mktemp("mini")
    run(train_vae, train_vae.Config(**knobs(photos, place / "vae", gate=0.0, pca_samples=20)))
    words = knobs(
        photos,
        place / "words",
        gate=0.0,
        captions=[str(photos / "captions.jsonl")],
        dim=48,
        mapper_width=16,
        num_words=5,
    )
    words |= {
        "pretrained_model_name_or_path": str(place / "vae" / "pipeline"),
        "degradations": ["haze", "noise", "clean"],
    }
    run(train_words, train_words.Config(**words, vocabulary_size=200, text_length=24))
    painter = knobs(
        photos,
        place / "painter",
        gate=100.0,
        captions=words["captions"],
        block_out_channels=[32, 64],
    )
    cleaner = knobs(
        photos,
        place / "cleaner",
        diffusion_weight=0.0,
        word_weight=1.0,
        cleaner_config='{"width": 16, "residual": true}',
    )
    cleaner |= {
        "pretrained_model_name_or_path": str(place / "words" / "pipeline"),
        "degradations": ["haze", "clean"],
        "resolution": 64,
    }
    run(train_cleaner, train_cleaner.Config(**{**cleaner, "validation_data_dir": None}))
    painter |= {
        "pretrained_model_name_or_path": str(place / "cleaner" / "pipeline"),
        "degradations": ["haze", "clean"],
    }
    readout = str(place / "words" / "readout.safetensors")
    run(
        train_painter,
        train_painter.Config(**painter, readout=readout, caption_share=0.5, empty_share=0.3),
    )
    return place


def test_the_encoder_is_exactly_the_whitened_principal_components():
    config = train_vae.Config(train_data_dir=["x"], output_dir="x")
    vae = train_vae.build_vae(config)
    smooth = torch.nn.functional.interpolate(
        torch.rand(40, 3, 9, 9), (32, 48), mode="bicubic"
    ).clamp(0, 1)
    train_vae.set_components(vae, smooth)
    with torch.no_grad():
        latents = vae.encode(smooth * 2 - 1).latents
    assert latents.shape == (40, 8, 8, 12)
    flat = latents.movedim(1, 0).flatten(1)
    assert torch.allclose(torch.cov(flat), torch.eye(8) * train_vae.LATENT_STD**2, atol=2e-3)
    squares = torch.nn.functional.unfold(smooth, 4, stride=4).movedim(1, -1).flatten(0, 1)
    values = torch.linalg.eigvalsh(torch.cov(squares.T))
    best = torch.linalg.lstsq(
        torch.cat([flat.T, torch.ones(flat.shape[1], 1)], 1), squares
    ).solution
    rest = squares - torch.cat([flat.T, torch.ones(flat.shape[1], 1)], 1) @ best
    # No projection keeps more.
    assert rest.square().sum(1).mean().item() == pytest.approx(values[:-8].sum().item(), rel=0.02)


def test_only_the_decoder_learns(chain):
    trained = load_file(chain / "vae" / "checkpoint-2" / "trainable.safetensors")
    assert trained and all(name.startswith("vae.decoder.") for name in trained)


def test_a_missed_gate_stops_the_chain_and_keeps_the_checkpoint(photos, tmp_path, capsys):
    with pytest.raises(ValueError, match="The gate of train_vae is missed; train longer"):
        run(train_vae, train_vae.Config(**knobs(photos, tmp_path, gate=99.0, pca_samples=20)))
    assert "dB reached, 99.00 dB asked for" in capsys.readouterr().out
    assert (tmp_path / "checkpoint-2").is_dir() and not (tmp_path / "pipeline").exists()


def test_a_gate_needs_photos_to_measure():
    config = train_vae.Config(train_data_dir=["x"], output_dir="x")
    with pytest.raises(ValueError, match="--validation_data_dir"):
        pass_gate(None, config, 1.0, None)


def test_every_degradation_is_one_token_of_the_vocabulary(chain):
    pipe = TextGuidedRestorationPipeline.from_pretrained(chain / "words" / "pipeline")
    for word in [*(words[0] for words in DEGRADATION_WORDS.values()), "clean"]:
        assert len(pipe.tokenizer(word, add_special_tokens=False).input_ids) == 1, word
    assert (
        pipe.tokenizer.decode(
            pipe.tokenizer("a Hazy photo of a dog").input_ids, skip_special_tokens=True
        ).strip()
        == "a hazy photo of a dog"
    )


def test_words_have_unit_size_and_can_be_read(chain, photos):
    pipe = TextGuidedRestorationPipeline.from_pretrained(chain / "words" / "pipeline")
    image = torch.rand(4, 3, 64, 96)
    with torch.no_grad():
        words = pipe.mapper(pipe.encode_image(image))
    assert words.shape == (4, 5, 48) and 0.3 < words.std() < 3
    trained, scale = (
        load_file(chain / "words" / "checkpoint-2" / "trainable.safetensors"),
        pipe.mapper.state_dict(),
    )
    name = "from_patches.outputs.0.bias"
    # Divided by the size of the words it had.
    assert not torch.allclose(scale[name], trained[f"mapper.{name}"], rtol=0.05)
    assert load_file(chain / "words" / "readout.safetensors")["weight"].shape == (
        3 * 16 * 16,
        5 * 48,
    )


def test_images_are_described_by_their_degradations_and_captions():
    names = {"noisy": 0, "hazy": 1, "clean": 2, "dog": 3}
    names |= {words[0]: 9 for label, words in DEGRADATION_WORDS.items() if words[0] not in names}
    labels = [torch.full((2, len(names)), float("nan"))]
    labels[0][1, 3] = 1.0
    severity = torch.zeros(3, len(LABELS))
    severity[:2, LABELS.index("haze")] = 0.5
    batch = {"source": torch.zeros(3), "photo": torch.tensor([0, 1, 1]), "severity": severity}
    present = train_words.describe(batch, torch.tensor([False, True, False]), labels, names)
    assert present[:, 1].tolist() == [1, 0, 0] and present[:, 2].tolist() == [0, 1, 1]
    assert present[0, 3].isnan() and present[1:, 3].tolist() == [1, 1]


def test_the_painter_completes_a_chain_that_paints_in_one_step(chain):
    pipe = TextGuidedRestorationPipeline.from_pretrained(chain / "painter" / "pipeline")
    assert pipe.config.default_num_inference_steps == 1 and pipe.config.square_guidance
    painted = pipe(
        torch.rand(1, 3, 48, 96),
        guidance="degraded",
        output_type="pt",
        generator=torch.Generator().manual_seed(0),
    )
    assert painted.images.shape == (1, 3, 64, 64) and painted.images.isfinite().all()
    assert pipe.config.default_guidance_init == "image" and pipe.num_timesteps == 1
    prompted = pipe(
        torch.rand(1, 3, 48, 96), guidance="prompt", prompt="a brown dog", output_type="pt"
    ).images
    assert not torch.equal(prompted, painted.images)


def test_text_encoder_and_unet_learn_and_nothing_else(chain):
    trained = load_file(chain / "painter" / "checkpoint-2" / "trainable.safetensors")
    assert {name.split(".")[0] for name in trained} == {"text_encoder", "unet"}
    before = TextGuidedRestorationPipeline.from_pretrained(chain / "words" / "pipeline")
    after = TextGuidedRestorationPipeline.from_pretrained(chain / "painter" / "pipeline")
    for part in ("image_encoder", "mapper", "vae"):  # the cleaner came between
        old, new = (getattr(pipe, part).state_dict() for pipe in (before, after))
        assert all(torch.equal(old[name], new[name]) for name in old), part


def test_a_painter_is_trained_on(chain, photos, tmp_path):
    start = chain / "painter" / "pipeline"
    config = knobs(
        photos,
        tmp_path,
        gate=100.0,
        pretrained_model_name_or_path=str(start),
        degradations=["haze"],
    )
    run(train_painter, train_painter.Config(**config, learning_rate=1e-12, use_ema=False))
    old, new = (
        TextGuidedRestorationPipeline.from_pretrained(place).unet
        for place in (start, tmp_path / "pipeline")
    )
    assert new.config.block_out_channels == old.config.block_out_channels  # not those of a new one
    assert all(
        torch.allclose(value, new.state_dict()[name], atol=1e-5)
        for name, value in old.state_dict().items()
    )


def test_captions_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "captions.jsonl").write_text('{"file": 1}\n')
    with pytest.raises(ValueError, match="must hold JSON lines with file_name and captions"):
        train_words.read_captions([str(tmp_path / "captions.jsonl")])


def test_samples_are_spread_over_what_the_painter_learns():
    config = train_painter.Config(
        train_data_dir=["x"], output_dir="x", clean_share=0.3, image_share=0.5, uncleaned_share=0.2
    )
    kinds = train_painter.draw_kinds(torch.arange(10_000), config, True)
    shares = {name: kind.double().mean().item() for name, kind in kinds.items()}
    assert shares == pytest.approx({"clean": 0.3, "from_image": 0.5, "cleaned": 0.4}, abs=1e-3)
    assert (
        not (kinds["clean"] & kinds["from_image"]).any()
        and not (kinds["cleaned"] & ~kinds["from_image"]).any()
    )
    without = train_painter.draw_kinds(torch.arange(100), config, False)
    assert not without["from_image"].any() and not without["cleaned"].any()
