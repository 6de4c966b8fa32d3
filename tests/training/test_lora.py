"""LoRA over several networks of the chain in one file: it must load, mix, fuse and go away exactly,
because adapters are how tasks are added to a checkpoint. What adapters should do is computed here a
second time, by adding `weight * alpha / rank * B @ A` to the weights of a plain pipeline.
"""

import copy

import pytest
import torch
from diffusers.training_utils import _collate_lora_metadata
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from pipelines import TextGuidedRestorationPipeline, load
from tests.tools import tiny
from textir.training.lora import make_trainable

TARGETS = {
    "unet": r".*attn2\.to_[kv]",
    "mapper": ["fc1", "fc2", "fc3"],
    "cleaner": ["fc1", "fc2", "fc3"],
    "restorer": ["project1"],
}
RANK, ALPHA = 2, 8
FILE = "pytorch_lora_weights.safetensors"


def plain(**overrides) -> TextGuidedRestorationPipeline:
    """The pipeline that all adapters here belong to, without a detector, so that `task="auto"`
    leaves adapters alone."""
    return tiny.pipeline(**{"detector": None, **overrides})


def attach(pipe: TextGuidedRestorationPipeline, seed: int, parts=tuple(TARGETS)) -> None:
    """Add LoRA as a training script does, and give it weights that show."""
    generator = torch.Generator().manual_seed(seed)
    for part in parts:
        model = getattr(pipe, part)
        model.add_adapter(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS[part]))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)


def save(pipe: TextGuidedRestorationPipeline, folder, parts=tuple(TARGETS), described=None) -> str:
    """Save the adapter of these parts as a training script does; rank and alpha are noted for the
    `described` parts."""
    models = {part: getattr(pipe, part) for part in parts}
    layers = {
        f"{part}_lora_layers": get_peft_model_state_dict(model) for part, model in models.items()
    }
    notes = _collate_lora_metadata(
        {part: models[part] for part in (parts if described is None else described)}
    )
    pipe.save_lora_weights(folder, **layers, **notes)
    return str(folder)


def adapter(folder, seed: int = 1, parts=tuple(TARGETS)) -> str:
    """A folder with an adapter file."""
    pipe = plain()
    attach(pipe, seed, parts)
    return save(pipe, folder, parts)


def render(pipe: TextGuidedRestorationPipeline, **arguments) -> torch.Tensor:
    return pipe(
        tiny.image(), output_type="pt", generator=torch.Generator().manual_seed(0), **arguments
    ).images


def computed(*adapters: tuple[str, float], parts=tuple(TARGETS)) -> TextGuidedRestorationPipeline:
    """A pipeline without LoRA layers, the adapters `(folder, weight)` added to its weights by
    hand."""
    pipe = plain()
    for folder, weight in adapters:
        tensors = load_file(f"{folder}/{FILE}")
        for key in [key for key in tensors if ".lora_A." in key and key.split(".")[0] in parts]:
            down, up = tensors[key], tensors[key.replace("lora_A", "lora_B")]
            layer = pipe.components[key.split(".")[0]].get_submodule(
                key.split(".", 1)[1].removesuffix(".lora_A.weight")
            )
            delta = (up.flatten(1) @ down.flatten(1)) * ALPHA / RANK
            layer.weight.data += weight * delta.reshape(layer.weight.shape)
    return pipe


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal up to the order of additions; adapters here move pixels by 0.05 and more."""
    return torch.allclose(a, b, rtol=0, atol=1e-5)


def active(pipe: TextGuidedRestorationPipeline) -> dict[str, list[str]]:
    return {part: pipe.components[part].active_adapters() for part in pipe.get_list_adapters()}


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> str:
    return adapter(tmp_path_factory.mktemp("one"), seed=1)


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> str:
    return adapter(tmp_path_factory.mktemp("two"), seed=2)


@pytest.fixture(scope="module")
def base() -> torch.Tensor:
    return render(plain())


# ---- one file


def test_saved_adapters_load_with_the_same_pixels(tmp_path, base):
    trained = plain()
    attach(trained, seed=1)
    save(trained, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [FILE]
    assert {key.split(".")[0] for key in load_file(tmp_path / FILE)} == set(TARGETS)
    loaded = plain()
    loaded.load_lora_weights(str(tmp_path))
    assert torch.equal(render(loaded), render(trained))
    assert (render(loaded) - base).abs().max() > 0.05


@pytest.mark.parametrize("part", TARGETS)
def test_adapter_of_each_part_does_what_its_matrices_say(tmp_path, part, base):
    folder = adapter(tmp_path, parts=[part])
    pipe = plain()
    pipe.load_lora_weights(folder)
    assert pipe.get_list_adapters() == {part: ["default_0"]}
    assert close(render(pipe), render(computed((folder, 1.0))))
    assert (render(pipe) - base).abs().max() > 0.05


def test_file_keeps_an_alpha_that_is_not_the_rank(one):
    pipe = plain()
    pipe.load_lora_weights(one, adapter_name="one")
    for part in TARGETS:
        config = pipe.components[part].peft_config["one"]
        assert (config.r, config.lora_alpha) == (RANK, ALPHA), part


def test_part_without_a_note_takes_its_rank_for_alpha(tmp_path):
    trained = plain()
    attach(trained, seed=1, parts=("unet", "cleaner"))
    save(trained, tmp_path, ("unet", "cleaner"), described=("unet",))
    pipe = plain()
    pipe.load_lora_weights(str(tmp_path), adapter_name="one")
    alphas = {
        part: pipe.components[part].peft_config["one"].lora_alpha for part in ("unet", "cleaner")
    }
    assert alphas == {"unet": ALPHA, "cleaner": RANK}


def test_adapters_load_from_file_and_from_tensors_like_from_folder(one):
    pixels = []
    for source, how in ((one, {}), (one, {"weight_name": FILE}), (f"{one}/{FILE}", {})):
        pipe = plain()
        pipe.load_lora_weights(source, **how)
        pixels.append(render(pipe))
    assert torch.equal(pixels[0], pixels[1])
    assert torch.equal(pixels[0], pixels[2])
    pipe = plain()
    pipe.load_lora_weights(load_file(f"{one}/{FILE}"))  # without notes, alpha is the rank
    assert close(render(pipe), render(computed((one, RANK / ALPHA))))


def test_unnamed_adapters_get_a_name_that_is_free_in_every_part(tmp_path, one):
    pipe = plain()
    pipe.load_lora_weights(adapter(tmp_path, parts=["cleaner"]))
    pipe.load_lora_weights(one)
    assert pipe.get_list_adapters() == {
        "unet": ["default_1"],
        "mapper": ["default_1"],
        "cleaner": ["default_0", "default_1"],
        "restorer": ["default_1"],
    }


# ---- several adapters at once


def test_weight_zero_is_the_base(one, base):
    pipe = plain()
    pipe.load_lora_weights(one, adapter_name="one")
    pipe.set_adapters("one", 0.0)
    assert torch.equal(render(pipe), base)


def test_two_adapters_at_half_weight_add_up(one, two):
    pipe = plain()
    pipe.load_lora_weights(one, adapter_name="one")
    pipe.load_lora_weights(two, adapter_name="two")
    pipe.set_adapters(["one", "two"], [0.5, 0.5])
    mixed = render(pipe)
    assert close(mixed, render(computed((one, 0.5), (two, 0.5))))
    assert not close(mixed, render(computed((one, 0.5))))
    assert not close(mixed, render(computed((two, 0.5))))


def test_each_part_can_have_its_own_weight(one):
    pipe = plain()
    pipe.load_lora_weights(one, adapter_name="one")
    pipe.set_adapters("one", {"unet": 0.0, "mapper": 0.0, "cleaner": 1.0, "restorer": 0.0})
    cleaner_only = render(pipe)
    assert close(cleaner_only, render(computed((one, 1.0), parts=["cleaner"])))
    assert not close(cleaner_only, render(computed((one, 1.0))))


def test_adapter_of_the_cleaner_works_beside_a_full_one(tmp_path, one):
    words = adapter(tmp_path, seed=3, parts=["cleaner"])
    pipe = plain()
    pipe.load_lora_weights(one, adapter_name="full")
    pipe.load_lora_weights(words, adapter_name="words")
    pipe.set_adapters(["full", "words"])
    assert close(render(pipe), render(computed((one, 1.0), (words, 1.0))))
    pipe.set_adapters("words")
    assert close(render(pipe), render(computed((words, 1.0))))
    pipe.delete_adapters("words")
    pipe.set_adapters("full")
    assert close(render(pipe), render(computed((one, 1.0))))


def test_hotswap_replaces_the_weights_in_place(one, two):
    pipe = plain()
    pipe.load_lora_weights(one, adapter_name="task")
    layers = [id(module) for module in pipe.unet.modules()]
    pipe.load_lora_weights(two, adapter_name="task", hotswap=True)
    assert [id(module) for module in pipe.unet.modules()] == layers
    assert pipe.get_list_adapters() == {part: ["task"] for part in TARGETS}
    assert close(render(pipe), render(computed((two, 1.0))))


# ---- off, in, and away


def test_disabled_adapters_leave_the_base_and_come_back(one, base):
    pipe = plain()
    pipe.load_lora_weights(one)
    adapted = render(pipe)
    pipe.disable_lora()
    assert torch.equal(render(pipe), base)
    pipe.enable_lora()
    assert torch.equal(render(pipe), adapted)


def test_fused_adapters_do_the_same_and_can_be_taken_out_again(one, base):
    pipe = plain()
    pipe.load_lora_weights(one, adapter_name="one")
    adapted = render(pipe)
    pipe.fuse_lora()
    assert pipe.fused_loras == {"one"}
    assert close(render(pipe), adapted)
    for part in TARGETS:  # fused means: in the weights of every part
        fused = [
            module
            for module in pipe.components[part].modules()
            if getattr(module, "merged_adapters", None)
        ]
        assert fused, part
    pipe.unfuse_lora()
    assert pipe.num_fused_loras == 0
    assert close(render(pipe), adapted)
    pipe.unload_lora_weights()
    assert close(render(pipe), base)


def test_fusing_takes_a_weight(one):
    pipe = plain()
    pipe.load_lora_weights(one)
    pipe.fuse_lora(lora_scale=0.5)
    assert close(render(pipe), render(computed((one, 0.5))))


def test_unloaded_adapters_leave_the_base_and_room_for_others(one, two, base):
    pipe = plain()
    pipe.load_lora_weights(one, adapter_name="task")
    pipe.unload_lora_weights()
    assert pipe.get_list_adapters() == {}
    assert torch.equal(render(pipe), base)
    pipe.load_lora_weights(two, adapter_name="task")
    assert close(render(pipe), render(computed((two, 1.0))))


def test_deleted_adapter_leaves_the_other_one(one, two):
    pipe = plain()
    pipe.load_lora_weights(one, adapter_name="one")
    pipe.load_lora_weights(two, adapter_name="two")
    pipe.set_adapters("one")
    alone = render(pipe)
    pipe.set_adapters(["one", "two"])
    pipe.delete_adapters("two")
    assert pipe.get_list_adapters() == {part: ["one"] for part in TARGETS}
    assert torch.equal(render(pipe), alone)


def test_fused_and_unloaded_adapters_are_saved_for_good(tmp_path, one):
    pipe = plain()
    pipe.load_lora_weights(one)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    fused = render(pipe)
    pipe.save_pretrained(tmp_path)
    loaded = TextGuidedRestorationPipeline.from_pretrained(tmp_path)
    assert close(render(loaded), fused)
    assert close(fused, render(computed((one, 1.0))))


# ---- what is refused


@pytest.mark.parametrize("part", TARGETS)
def test_pipelines_with_adapters_attached_are_not_saved(tmp_path, part):
    pipe = plain()
    attach(pipe, seed=1, parts=[part])
    with pytest.raises(
        ValueError, match=f"attached to {part}.*save_lora_weights.*fuse_lora.*unload_lora_weights"
    ):
        pipe.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize(
    ("parts", "fused"), [(["restorer"], False), (["restorer", "matcher"], True)]
)
def test_fusion_blocks_get_layers_only_where_the_matcher_does(parts, fused):
    models = make_trainable(tiny.pipeline(), parts, rank=2)
    adapted = {name for name, _ in models["restorer"].named_parameters() if "lora_" in name}
    assert adapted and any("_fusions." in name for name in adapted) == fused


def test_pipelines_whose_adapters_were_deleted_save_only_once_unloaded(tmp_path, one, base):
    """The layers of deleted adapters stay, under names that no checkpoint has, until
    `unload_lora_weights`."""
    pipe = plain()
    pipe.load_lora_weights(one, adapter_name="one")
    pipe.delete_adapters("one")
    with pytest.raises(ValueError, match="unload_lora_weights"):
        pipe.save_pretrained(tmp_path / "refused")
    pipe.unload_lora_weights()
    pipe.save_pretrained(tmp_path / "saved")
    assert close(render(TextGuidedRestorationPipeline.from_pretrained(tmp_path / "saved")), base)


@pytest.mark.parametrize("name", ["pytorch_lora_weights.bin", "adapter.pt", "adapter.ckpt"])
def test_pickled_files_are_refused(tmp_path, one, name):
    """A pickle of real LoRA weights, so that nothing but its format speaks against it."""
    torch.save(load_file(f"{one}/{FILE}"), tmp_path / name)
    with pytest.raises(ValueError, match=rf"{name}.*pickled.*safetensors"):
        plain().load_lora_weights(str(tmp_path), weight_name=name)


@pytest.mark.parametrize("name", ["adapter.pickle", "adapter"])
def test_files_of_other_names_are_not_taken_for_safe(tmp_path, one, name):
    torch.save(load_file(f"{one}/{FILE}"), tmp_path / name)
    with pytest.raises(ValueError, match=rf"{name}.*safetensors"):
        plain().load_lora_weights(str(tmp_path), weight_name=name)


def test_path_of_a_pickled_file_is_refused(tmp_path, one):
    torch.save(load_file(f"{one}/{FILE}"), tmp_path / "adapter.pt")
    with pytest.raises(ValueError, match=r"adapter\.pt.*pickled.*safetensors"):
        plain().load_lora_weights(str(tmp_path / "adapter.pt"))


def test_folder_with_nothing_but_a_pickled_file_holds_no_adapter(tmp_path, one):
    torch.save(load_file(f"{one}/{FILE}"), tmp_path / "pytorch_lora_weights.bin")
    with pytest.raises(OSError, match=FILE):
        plain().load_lora_weights(str(tmp_path))


def test_pickled_files_are_not_written_either(tmp_path):
    pipe = plain()
    attach(pipe, seed=1, parts=["cleaner"])
    layers = get_peft_model_state_dict(pipe.cleaner)
    with pytest.raises(ValueError, match="safetensors only"):
        pipe.save_lora_weights(tmp_path, cleaner_lora_layers=layers, safe_serialization=False)


def test_saving_nothing_or_an_unknown_part_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one of unet_lora_layers, mapper_lora_layers"):
        TextGuidedRestorationPipeline.save_lora_weights(tmp_path)
    pipe = plain()
    attach(pipe, seed=1, parts=["cleaner"])
    layers = get_peft_model_state_dict(pipe.cleaner)
    with pytest.raises(ValueError, match="not understood: vae_lora_layers"):
        pipe.save_lora_weights(tmp_path, cleaner_lora_layers=layers, vae_lora_layers=layers)


@pytest.mark.parametrize(
    "key, message",
    [
        (
            "text_encoder.layers.0.lora_A.weight",
            "weights for text_encoder; this pipeline takes cleaner, mapper, matcher, restorer, "
            "unet",
        ),
        ("cleaner.words.0.fc1.weight", "Not a LoRA file: it holds 'cleaner.words.0.fc1.weight'"),
    ],
)
def test_files_with_other_weights_are_refused_whole(tmp_path, one, base, key, message):
    save_file({**load_file(f"{one}/{FILE}"), key: torch.zeros(2, 2)}, tmp_path / FILE)
    pipe = plain()
    with pytest.raises(ValueError, match=message):
        pipe.load_lora_weights(str(tmp_path))
    assert pipe.get_list_adapters() == {}
    assert torch.equal(render(pipe), base)


def test_weights_for_a_component_that_is_absent_are_refused(one):
    pipe = plain(restorer=None, matcher=None)
    with pytest.raises(
        ValueError, match="weights for restorer; this pipeline takes cleaner, mapper, unet"
    ):
        pipe.load_lora_weights(one)


def test_name_in_use_in_one_part_is_refused_for_all(tmp_path, one):
    pipe = plain()
    pipe.load_lora_weights(adapter(tmp_path, parts=["unet"]), adapter_name="one")
    with pytest.raises(ValueError, match="already in use"):
        pipe.load_lora_weights(one, adapter_name="one")
    assert pipe.get_list_adapters() == {"unet": ["one"]}


def test_hotswap_of_a_name_that_a_part_lacks_is_refused_for_all(tmp_path, one):
    words = adapter(tmp_path, seed=3, parts=["cleaner"])
    pipe = plain()
    pipe.load_lora_weights(words, adapter_name="words")
    before = render(pipe)
    with pytest.raises(ValueError, match="hotswap"):
        pipe.load_lora_weights(one, adapter_name="words", hotswap=True)
    assert torch.equal(render(pipe), before)


# ---- adapters are the user's


@pytest.mark.parametrize("task", ["auto", "denoise", "derain"])
def test_an_adapter_acts_whatever_the_task(one, task):
    pipe = tiny.pipeline(detector=None)
    pipe.load_lora_weights(one, adapter_name="derain")
    assert close(render(pipe, task=task), render(computed((one, 1.0)), task=task))
    assert active(pipe) == {part: ["derain"] for part in TARGETS}


def test_the_last_adapter_loaded_acts_unless_several_are_set(one, two):
    pipe = plain()
    pipe.load_lora_weights(one, adapter_name="derain")
    pipe.load_lora_weights(two, adapter_name="dehaze")
    assert close(render(pipe), render(computed((two, 1.0))))
    pipe.set_adapters(["derain", "dehaze"])
    assert close(render(pipe), render(computed((one, 1.0), (two, 1.0))))


def test_load_lets_several_adapters_act_together(tmp_path, one, two):
    plain().save_pretrained(tmp_path / "chain")
    pipe = load(tmp_path / "chain", [one, two])
    pipe.set_progress_bar_config(disable=True)
    assert close(render(pipe), render(computed((one, 1.0), (two, 1.0))))


def test_adapters_do_not_touch_the_weights_beneath(one):
    pipe = plain()
    weights = copy.deepcopy({part: pipe.components[part].state_dict() for part in TARGETS})
    pipe.load_lora_weights(one, adapter_name="derain")
    render(pipe)
    pipe.unload_lora_weights()
    for part, before in weights.items():
        after = pipe.components[part].state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before), part


@pytest.mark.parametrize("change", ["renamed", "wider", "ranks"])
def test_an_adapter_of_other_networks_is_refused_and_nothing_stays(tmp_path, one, base, change):
    layers = load_file(f"{one}/{FILE}")
    key = next(
        name for name in layers if name.startswith("restorer.") and name.endswith("lora_B.weight")
    )
    if change == "renamed":
        layers = {
            name.replace("restorer.", "restorer.other_"): value for name, value in layers.items()
        }
    if change == "wider":
        layers[key] = torch.cat([layers[key]] * 2)
    if change == "ranks":
        layers[key] = torch.cat([layers[key]] * 2, dim=1)
    save_file(layers, tmp_path / FILE)
    pipe = plain()
    with pytest.raises(
        ValueError, match=r"These LoRA weights (belong to other networks|do not fit the)"
    ) as caught:
        pipe.load_lora_weights(str(tmp_path), adapter_name="other")
    assert "\n" not in str(caught.value) and pipe.get_list_adapters() == {}
    assert torch.equal(render(pipe), base)
    pipe.load_lora_weights(one, adapter_name="other")  # the name is free again


def test_an_adapter_that_fails_leaves_the_others_as_they_were(tmp_path, one):
    layers = load_file(f"{one}/{FILE}")
    key = next(
        name for name in layers if name.startswith("unet.") and name.endswith("lora_B.weight")
    )
    save_file({**layers, key: torch.cat([layers[key]] * 2, dim=1)}, tmp_path / FILE)
    pipe = plain()
    pipe.load_lora_weights(one, adapter_name="one")
    before = render(pipe)
    with pytest.raises(ValueError, match="do not fit the unet"):
        pipe.load_lora_weights(str(tmp_path), adapter_name="other")
    assert pipe.get_list_adapters() == {part: ["one"] for part in TARGETS}
    assert torch.equal(render(pipe), before)
