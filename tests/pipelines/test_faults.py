"""What strangers broke, in kind: damaged checkpoints, odd inputs, and saves that were cut off."""

import json
import os
import shutil

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import ModelMixin
from safetensors.torch import load_file, save_file

from pipelines import TextGuidedRestorationPipeline, load
from pipelines.loading import best_device
from tests.tools import tiny
from textir.images.picture import Picture
from textir.images.restoration import restore_picture
from textir.models import NAFNet
from textir.training.lora import make_trainable, save_adapter

IMAGE = tiny.image()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    tiny.pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def checkpoint(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "checkpoint")


def restored(pipe, image=IMAGE, **options):
    pipe.set_progress_bar_config(disable=True)
    return pipe(image, output_type="pt", **options).images


def weights_of(folder):
    (file,) = folder.glob("*.safetensors")
    return file, load_file(file)


# ---- saving


def test_a_compiled_part_is_saved_as_it_was_before(tmp_path):
    pipe = tiny.pipeline()
    plain = restored(pipe)
    pipe.restorer = torch.compile(pipe.restorer, backend="eager")
    pipe.save_pretrained(tmp_path)
    assert hasattr(pipe.restorer, "_orig_mod")
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["restorer"] == ["nafnet", "NAFNet"]
    again = TextGuidedRestorationPipeline.from_pretrained(tmp_path)
    assert torch.equal(restored(again), plain)


def test_a_save_that_is_cut_off_leaves_the_older_checkpoint_whole(checkpoint, monkeypatch):
    pipe = TextGuidedRestorationPipeline.from_pretrained(checkpoint)
    before = restored(pipe)
    with torch.no_grad():
        for parameter in (*pipe.restorer.parameters(), *pipe.mapper.parameters()):
            parameter.mul_(1.5)
    save, calls = ModelMixin.save_pretrained, []

    def cut(self, *arguments, **options):
        calls.append(self)
        if len(calls) == 3:
            raise KeyboardInterrupt
        save(self, *arguments, **options)

    monkeypatch.setattr(ModelMixin, "save_pretrained", cut)
    with pytest.raises(KeyboardInterrupt):
        pipe.save_pretrained(checkpoint)
    assert torch.equal(restored(TextGuidedRestorationPipeline.from_pretrained(checkpoint)), before)
    assert not [path for path in checkpoint.parent.iterdir() if path != checkpoint]


def test_what_killed_saves_left_is_taken_away(checkpoint):
    left = checkpoint.parent / ".checkpoint-unfinished-abc"
    recent = checkpoint.parent / ".checkpoint-unfinished-def"
    for folder in (left, recent):
        folder.mkdir()
    os.utime(left, (0, 0))
    TextGuidedRestorationPipeline.from_pretrained(checkpoint).save_pretrained(checkpoint)
    assert not left.exists() and recent.exists()


def test_saving_over_an_older_checkpoint_replaces_it_and_keeps_other_files(checkpoint):
    (checkpoint / "notes.txt").write_text("mine")
    pipe = TextGuidedRestorationPipeline.from_pretrained(checkpoint)
    with torch.no_grad():
        for parameter in pipe.restorer.parameters():
            parameter.mul_(1.1)
    changed = restored(pipe)
    pipe.save_pretrained(checkpoint)
    again = TextGuidedRestorationPipeline.from_pretrained(checkpoint)
    assert torch.equal(restored(again), changed)
    assert (checkpoint / "notes.txt").read_text() == "mine"


def test_a_pipeline_made_of_another_has_its_parts_and_settings():
    pipe = tiny.pipeline(default_num_inference_steps=3)
    other = TextGuidedRestorationPipeline.from_pipe(pipe)
    assert other.components == pipe.components
    assert other.config.default_num_inference_steps == 3
    assert torch.equal(restored(other), restored(pipe))
    blind = TextGuidedRestorationPipeline.from_pipe(pipe, detector=None)
    assert blind.detector is None and blind.mapper is pipe.mapper


# ---- damaged checkpoints


@pytest.mark.parametrize("part", ["restorer", "unet", "text_encoder", "detector", "vae"])
def test_weights_that_are_no_numbers_are_refused(checkpoint, part):
    file, weights = weights_of(checkpoint / part)
    name = next(key for key, value in weights.items() if value.is_floating_point())
    weights[name].view(-1)[0] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})
    for read in (TextGuidedRestorationPipeline.from_pretrained, load):
        with pytest.raises(ValueError, match=f"{part} are damaged: .* holds NaN"):
            read(checkpoint)


@pytest.mark.parametrize("part", ["restorer", "mapper", "text_encoder", "image_encoder"])
def test_a_missing_tensor_is_not_replaced_by_random_numbers(checkpoint, part):
    file, weights = weights_of(checkpoint / part)
    weights.pop(sorted(weights)[0])
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"{part}.*(incomplete|missing)"):
        load(checkpoint)


@pytest.mark.parametrize("part", ["restorer", "text_encoder"])
def test_truncated_weights_are_named(checkpoint, part):
    file, _ = weights_of(checkpoint / part)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"{part}.*is damaged") as caught:
        load(checkpoint)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["{", "[1, 2]", ""])
@pytest.mark.parametrize("file", ["model_index.json", "restorer/config.json"])
def test_damaged_settings_are_named(checkpoint, file, content):
    (checkpoint / file).write_text(content)
    with pytest.raises(ValueError, match=r"(model_index|config)\.json is damaged"):
        load(checkpoint)


def test_files_that_are_no_part_of_a_checkpoint_do_not_matter(checkpoint):
    (checkpoint / "scores.json").write_text("{")
    (checkpoint / "runs" / "one").mkdir(parents=True)
    (checkpoint / "runs" / "one" / "config.json").write_text("{")
    assert load(checkpoint).restorer is not None


def test_pickled_weights_of_parts_are_refused(tmp_path):
    tiny.pipeline().save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(ValueError, match="safetensors"):
        load(tmp_path)


def test_a_damaged_adapter_is_named_and_nothing_of_it_stays(checkpoint, tmp_path):
    pipe = tiny.pipeline()
    make_trainable(pipe, ["restorer"], rank=2)
    file = save_adapter(pipe, tmp_path / "run" / "adapter")
    with pytest.raises(ValueError, match=r"Did you mean .*run/adapter\?"):
        load(checkpoint, adapter=tmp_path / "run")
    with pytest.raises(ValueError, match="no such folder or file"):
        load(checkpoint, adapter="nosuch")
    file = next((tmp_path / "run" / "adapter").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"safetensors is damaged") as caught:
        load(checkpoint, adapter=tmp_path / "run" / "adapter")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scale", [float("inf"), float("nan"), -1])
def test_a_guidance_scale_that_paints_nothing_is_refused(scale):
    with pytest.raises(ValueError, match="`guidance_scale` must lie in"):
        tiny.pipeline()(IMAGE, guidance_scale=scale)


def spoil(part: torch.nn.Module) -> None:
    """Let a component compute NaN, as weights do that overflow."""
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.fill_(float("inf"))


PARTS = (
    "image_encoder",
    "detector",
    "mapper",
    "cleaner",
    "text_encoder",
    "unet",
    "vae",
    "matcher",
    "restorer",
)


@pytest.mark.parametrize("part", PARTS)
def test_a_component_that_computes_no_numbers_is_named(part):
    pipe = tiny.pipeline()
    spoil(getattr(pipe, part))
    with pytest.raises(ValueError, match=f"The output of {part} holds NaN or infinity"):
        pipe(IMAGE, guidance_strength=1.0)


@pytest.mark.parametrize("part", ["photo_encoder", "photo_text_encoder", "colorizer"])
def test_a_component_of_the_editor_that_computes_no_numbers_is_named(part):
    pipe = tiny.editing_pipeline()
    spoil(getattr(pipe, part))
    gray = IMAGE.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    prompt = None if part == "photo_encoder" else "a dog"
    with pytest.raises(ValueError, match=f"The output of {part} holds NaN or infinity"):
        pipe(gray, prompt)


# ---- inputs


def test_arrays_and_lists_of_tensors_are_taken_like_pictures():
    pipe = tiny.pipeline()
    pixels = (IMAGE[0].movedim(0, -1).numpy() * 255).round().astype(np.uint8)
    expected = restored(pipe, PIL.Image.fromarray(pixels))
    single = torch.from_numpy(pixels / np.float32(255)).movedim(-1, 0)
    for image in (pixels, pixels[None], pixels / 255, single, [single], [pixels]):
        assert (restored(pipe, image) - expected).abs().max() < 1e-5
    assert restored(pipe, [single, single]).shape == (2, *single.shape)
    assert restored(pipe, IMAGE[:, :1]).shape == IMAGE.shape
    assert torch.equal(
        restored(pipe, IMAGE, num_inference_steps=np.int64(2)),
        restored(pipe, IMAGE, num_inference_steps=2),
    )


@pytest.mark.parametrize(
    "image, message",
    [
        (np.zeros((24, 40, 5)), r"got float64 of shape \(1, 24, 40, 5\)"),
        (np.zeros((24, 40), np.int64), "got int64"),
        ([torch.rand(2, 3, 24, 40)], "must hold one image"),
    ],
)
def test_arrays_that_are_no_images_are_refused(image, message):
    with pytest.raises(ValueError, match=message):
        tiny.pipeline()(image)


@pytest.mark.parametrize("mode", ["La", "LA", "PA", "CMYK", "YCbCr", "HSV", "RGBX", "1", "P"])
def test_pictures_of_every_mode_are_restored(mode):
    pipe = TextGuidedRestorationPipeline(restorer=tiny.restorer(guided=False))
    picture = PIL.Image.new("RGB", (40, 24), "teal")
    picture = (
        picture.convert("LA").convert("La")
        if mode == "La"
        else picture.convert("P" if mode == "PA" else mode)
    )
    picture = picture.convert("PA") if mode == "PA" else picture
    expected = {"La": "LA", "LA": "LA", "PA": "RGBA", "1": "L"}.get(mode, "RGB")
    assert pipe(picture).images[0].mode == expected


def test_a_network_of_one_channel_restores_light_and_leaves_colour():
    torch.manual_seed(0)
    network = NAFNet(1, 8, (1,), 1, (1,)).eval()
    with torch.no_grad():
        network.outro.bias.fill_(0.1)
    pipe = TextGuidedRestorationPipeline(restorer=network)
    image = torch.rand(1, 3, 24, 40) * 0.5 + 0.2
    change = restored(pipe, image) - image
    assert change.abs().max() > 0.01
    assert (change - change[:, :1]).abs().max() < 1e-5
    picture = Picture(np.full((24, 40, 3), 0.5, np.float32), is_gray=True)
    gray, _ = restore_picture(pipe, picture)
    assert gray.pixels.shape == (24, 40, 3)


def test_a_network_of_other_channels_says_so():
    pipe = TextGuidedRestorationPipeline(restorer=NAFNet(6, 8, (1,), 1, (1,)))
    with pytest.raises(ValueError, match="takes 6 channels, such as both views"):
        pipe(IMAGE)


def test_the_gpu_of_an_apple_computer_is_taken_where_there_is_no_other(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert best_device() == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert best_device() == "cuda"


# ---- LoRA files of others


def unet_layers():
    pipe = tiny.pipeline()
    make_trainable(pipe, ["unet"], rank=2)
    layers = {}
    for name, module in pipe.unet.named_modules():
        if hasattr(module, "lora_A") and "default" in module.lora_A:
            torch.manual_seed(len(layers))
            down, up = module.lora_A["default"].weight, module.lora_B["default"].weight
            layers[name] = torch.randn(down.shape), torch.randn(up.shape)
    return layers


def test_kohya_and_alpha_keys_are_read():
    plain, alphas, kohya = {}, {}, {}
    for name, (down, up) in unet_layers().items():
        plain |= {f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up / 2}
        alphas |= {f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}
        alphas[f"unet.{name}.alpha"] = torch.tensor(1.0)
        flat = f"lora_unet_{name.replace('.', '_')}"
        kohya |= {f"{flat}.lora_down.weight": down, f"{flat}.lora_up.weight": up}
        kohya[f"{flat}.alpha"] = torch.tensor(1.0)
    guidance = []
    for weights in ({}, plain, alphas, kohya):
        pipe = tiny.pipeline()
        if weights:
            pipe.load_lora_weights(dict(weights))
        guidance.append(pipe.guide(IMAGE).images)
    none, *others = guidance
    assert all(torch.allclose(other, others[0], atol=1e-5) for other in others)
    assert (others[0] - none).abs().max() > 1e-4


def test_a_file_for_more_parts_is_taken_in_part_if_that_is_asked_for():
    weights = {"text_encoder.x.lora_A.weight": torch.zeros(2, 4)}
    for name, (down, up) in unet_layers().items():
        weights |= {f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}
    pipe = tiny.pipeline()
    with pytest.raises(ValueError, match=r"weights for text_encoder; .* pass `parts`"):
        pipe.load_lora_weights(dict(weights))
    pipe.load_lora_weights(dict(weights), parts=["unet"])
    assert set(pipe.get_list_adapters()) == {"unet"}
    with pytest.raises(ValueError, match="peft's own layout"):
        pipe.load_lora_weights({"base_model.model.x.lora_A.weight": torch.zeros(2, 4)})


@pytest.mark.parametrize("side", ["lora_A", "lora_B"])
def test_half_a_pair_of_lora_weights_is_refused(side):
    weights = {}
    for name, (down, up) in unet_layers().items():
        weights |= {f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}
    key = next(key for key in weights if side in key)
    value = weights.pop(key)
    pipe = tiny.pipeline()
    with pytest.raises(ValueError, match="damaged: one of the two weights of 1 layers"):
        pipe.load_lora_weights(dict(weights))
    with pytest.raises(ValueError, match="damaged: it holds"):
        pipe.load_lora_weights({**weights, f"{key}x": value})
    assert not pipe.get_list_adapters()
