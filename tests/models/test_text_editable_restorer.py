"""The network of text-editable restoration does what its paper's equations say, at every size, and
words reach it."""

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig

from pipelines import TextEditableRestorationPipeline
from tests.tools import tiny
from textir.models import TextEditableRestorer
from textir.models.text_editable_restorer import Level, ModulatedConv
from textir.training.lora import make_trainable

TASKS = ("inpaint", "super-resolution", "colorize")
SIZES = [(16, 24), (17, 31), (61, 33), (16, 90), (3, 2), (1, 1)]
EFFICIENT = {
    "encoder_type": "efficient",
    "stages": ((3, 1, 4, 1), (3, 2, 6, 1)),
    "widths": (4, 6),
    "depths": (),
}


def new(task: str = "inpaint", **options) -> TextEditableRestorer:
    """An untrained network."""
    sizes = {"condition_dim": 20, "style_dim": 8, "widths": (4, 6), "depths": (0, 1)}
    return TextEditableRestorer(task=task, **{**sizes, **options}).eval()


def inputs(task: str, height: int = 24, width: int = 40, batch: int = 2) -> dict:
    generator = torch.Generator().manual_seed(1)
    given = {"image": tiny.image(height, width, batch=batch)}
    given["condition"] = F.normalize(torch.randn(batch, 20, generator=generator), dim=-1)
    if task == "inpaint":
        given["mask"] = (torch.rand(batch, 1, height, width, generator=generator) > 0.7).float()
    if task == "super-resolution":
        given["scale"] = torch.linspace(2, 5, batch)
    return given


@torch.no_grad()
def run(network, given: dict, **changes) -> torch.Tensor:
    return network(**{**given, **changes})


def networks() -> dict[str, TextEditableRestorer]:
    """One of each kind, which have learnt something by chance."""
    found = {task: tiny.editor(task) for task in TASKS}
    return {**found, "efficient": tiny.editor("colorize", **EFFICIENT)}


@pytest.fixture(params=[*TASKS, "efficient"])
def case(request):
    """A network that has learnt something by chance, and its inputs."""
    task = "colorize" if request.param == "efficient" else request.param
    return networks()[request.param], inputs(task, 17, 31)


# ---- shapes


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("size", SIZES)
def test_any_size_and_aspect_come_out_as_they_went_in(task, size):
    result = run(tiny.editor(task), inputs(task, *size))
    assert result.shape == (2, 2 if task == "colorize" else 3, *size)
    assert result.isfinite().all()


def test_padding_does_not_show_in_what_was_a_multiple():
    """The right edge of a photo is what it is with its reflection appended."""
    network, given = tiny.editor("colorize"), inputs("colorize", 24, 38)
    padded = F.pad(given["image"], (0, 2, 0, 0), mode="reflect")
    expected = run(network, given, image=padded)[..., :38]
    assert torch.allclose(run(network, given), expected, atol=1e-6)


@pytest.mark.parametrize("task", TASKS)
def test_a_new_network_changes_nothing(task):
    given = inputs(task)
    expected = torch.zeros(2, 2, 24, 40) if task == "colorize" else given["image"]
    assert torch.equal(run(new(task), given), expected)


def test_a_batch_is_its_members(case):
    network, given = case
    together = run(network, given)
    for i in range(2):
        alone = run(network, {name: value[i : i + 1] for name, value in given.items()})
        assert torch.allclose(together[i : i + 1], alone, atol=1e-5)


# ---- the equations


def test_shares_of_both_features_have_squared_sum_one():
    """Equations 4 and 5, seen through a level whose two branches are told apart."""
    torch.manual_seed(0)
    level = Level(4, 4, 4, 8, enlarges=False)
    torch.nn.init.normal_(level.share.weight)
    style = torch.randn(3, 8)
    generated, encoded = torch.randn(3, 4, 6, 6), torch.randn(3, 4, 6, 6)
    level.lateral.weight.data = torch.eye(4)[..., None, None]
    with torch.no_grad():
        made = level.conv2(generated, style)
        total = torch.nn.functional.leaky_relu
        without = level(generated, torch.zeros_like(encoded), style)
        raw = level.share(style).abs().unflatten(1, (2, 4))
        shares = raw / raw.square().sum(1, keepdim=True).sqrt()
        first, second = (shares[:, i, :, None, None] for i in range(2))
        assert torch.allclose((first**2 + second**2), torch.ones_like(first))
        assert torch.allclose(without, total(first * made, 0.2), atol=1e-5)
        met = level(generated, encoded, style)
        assert torch.allclose(met, total(first * made + second * encoded, 0.2), atol=1e-5)


def test_both_features_count_alike_in_a_new_level():
    level = Level(4, 4, 4, 8)
    assert torch.equal(level.share(torch.randn(2, 8)), torch.ones(2, 8))


def test_modulation_equals_scaled_weights():
    """The grouped convolution of StyleGAN2: weights scaled by the style, then of unit norm."""
    torch.manual_seed(0)
    layer = ModulatedConv(5, 7, 8)
    torch.nn.init.normal_(layer.style.weight)
    x, style = torch.randn(3, 5, 9, 11), torch.randn(3, 8)
    scale = layer.style(style)
    weights = layer.conv.weight[None] * scale[:, None, :, None, None]
    weights = weights * torch.rsqrt(weights.square().sum((2, 3, 4), keepdim=True) + 1e-8)
    grouped = F.conv2d(x.reshape(1, 15, 9, 11), weights.reshape(21, 5, 3, 3), padding=1, groups=3)
    assert torch.allclose(layer(x, style), grouped.reshape(3, 7, 9, 11), atol=1e-5)


def test_demodulation_takes_the_length_of_a_style_out():
    torch.manual_seed(0)
    layer = ModulatedConv(5, 7, 8)
    x = torch.randn(2, 5, 9, 11)
    layer.style.bias.data.fill_(1)
    once = layer(x, torch.zeros(2, 8))
    layer.style.bias.data.fill_(30)
    assert torch.allclose(layer(x, torch.zeros(2, 8)), once, atol=1e-5)


def test_noise_is_one_picture_for_all_channels_and_needs_a_generator():
    layer = ModulatedConv(5, 7, 8)
    layer.noise_scale.data.fill_(0.5)
    x, style = torch.randn(2, 5, 9, 11), torch.zeros(2, 8)
    plain = layer(x, style)
    noise = layer(x, style, torch.Generator().manual_seed(0)) - plain
    assert torch.allclose(noise, noise[:, :1].expand_as(noise), atol=1e-5) and noise.std() > 0.3
    assert torch.equal(layer(x, style), plain)


def test_a_network_adds_noise_only_where_its_config_says_so():
    given = inputs("inpaint")
    for noise in (False, True):
        network = tiny.editor("inpaint", noise=noise)
        plain, once, again = (
            run(network, given, generator=seed and torch.Generator().manual_seed(seed))
            for seed in (None, 1, 1)
        )
        assert torch.equal(once, again)
        assert torch.equal(once, plain) != noise


# ---- words


@pytest.mark.parametrize("task", TASKS)
def test_words_change_nothing_at_first_and_something_later(task):
    given = inputs(task)
    other = given["condition"].flip(0)
    fresh, trained = new(task), tiny.editor(task)
    torch.nn.init.normal_(fresh.head.weight)
    assert not torch.equal(run(fresh, given), given["image"][:, :2])
    # The style reaches nothing yet: its layers start at nothing.
    assert torch.allclose(run(fresh, given), run(fresh, given, condition=other))
    difference = run(trained, given) - run(trained, given, condition=other)
    assert difference.abs().max() > 1e-4


def test_no_words_are_a_condition_of_their_own():
    network, given = tiny.editor(), inputs("inpaint")
    nothing = network.no_words[None].expand(2, -1)
    assert torch.equal(run(network, given, condition=None), run(network, given, condition=nothing))


def test_conditions_are_unit_vectors_without_the_mean_of_their_kind():
    network, embeds = tiny.editor(), 7 * torch.randn(3, 20)
    network.text_mean.copy_(torch.linspace(-0.1, 0.1, 20))
    expected = F.normalize(F.normalize(embeds, dim=-1) - network.text_mean, dim=-1)
    with torch.no_grad():
        assert torch.allclose(network.condition_of(embeds), expected, atol=1e-6)
        image = network.condition_of(embeds, "image")
        assert torch.allclose(image, F.normalize(embeds, dim=-1), atol=1e-6)


def test_strength_goes_from_no_words_through_the_words_on():
    network, embeds = tiny.editor(), torch.randn(2, 20)
    with torch.no_grad():
        none, half, full = (network.condition_of(embeds, strength=s) for s in (0, 0.5, 1))
        double = network.condition_of(embeds, strength=2.0)
    assert torch.allclose(none, network.no_words.expand(2, -1))
    assert torch.allclose(half, (none + full) / 2, atol=1e-6)
    assert torch.allclose(double - full, full - none, atol=1e-6)


def test_the_scale_is_seen():
    network, given = tiny.editor("super-resolution"), inputs("super-resolution")
    assert torch.equal(
        run(network, given, scale=4), run(network, given, scale=torch.tensor([4, 4]))
    )
    assert (run(network, given, scale=2) - run(network, given, scale=8)).abs().max() > 1e-4


# ---- precision, training, files


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_close(case, dtype):
    network, given = case
    exact = run(network, given)
    given = {name: value.to(dtype) for name, value in given.items()}
    result = run(network.to(dtype), given)
    assert result.dtype == dtype and result.isfinite().all()
    tolerance = 0.01 if dtype == torch.float16 else 0.08
    assert (result.float() - exact).abs().max() < tolerance * max(1, exact.abs().max())


def test_the_layout_of_memory_changes_nothing(case):
    network, given = case
    exact = run(network, given)
    network = network.to(memory_format=torch.channels_last)
    image = given["image"].contiguous(memory_format=torch.channels_last)
    assert torch.allclose(run(network, given, image=image), exact, atol=1e-5)


def gradients(network, given: dict) -> dict[str, torch.Tensor | None]:
    network.zero_grad()
    network.train()(**given).square().mean().backward()
    return {name: parameter.grad for name, parameter in network.named_parameters()}


def test_gradients_reach_every_parameter(case):
    network, given = case
    found = gradients(network, given)
    unused = {name for name, gradient in found.items() if gradient is None}
    assert {name.split(".")[-1] for name in unused} == {"noise_scale", "no_words"}
    assert all(found[name].abs().sum() > 0 for name in set(found) - unused)


def test_gradient_checkpointing_changes_nothing(case):
    network, given = case
    plain = gradients(network, given)
    network.enable_gradient_checkpointing()
    for name, gradient in gradients(network, given).items():
        assert (gradient is None) == (plain[name] is None), name
        assert gradient is None or torch.allclose(gradient, plain[name], atol=1e-6), name


@pytest.mark.parametrize("part", ["inpainter", "upscaler", "colorizer"])
def test_adapters_train_alone_and_are_seen(part):
    pipe = tiny.editing_pipeline()
    network = getattr(pipe, part)
    given = inputs(network.config.task)
    before = run(network, given)
    make_trainable(pipe, [part], rank=2)
    assert torch.allclose(run(network, given), before, atol=1e-6)
    names = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    assert all("lora_" in name for name in names)
    for kind in ("conv1", "lateral", "style", "share", "stem"):
        assert any(f"{kind}.lora_A" in name or f"{kind}.conv.lora_A" in name for name in names), (
            kind
        )
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.constant_(parameter, 0.1)
    assert (run(network, given) - before).abs().max() > 1e-3


def test_saved_and_loaded_weights_are_the_same_to_the_bit(case, tmp_path):
    network, given = case
    network.text_mean.copy_(torch.linspace(-0.1, 0.1, 20))
    network.save_pretrained(tmp_path)
    loaded = TextEditableRestorer.from_pretrained(tmp_path)
    state = loaded.state_dict()
    assert state.keys() == network.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert torch.allclose(run(loaded, given), run(network, given), atol=1e-6)


def test_means_stay_in_single_precision_when_loaded_in_half(tmp_path):
    network = tiny.editor()
    network.text_mean.copy_(torch.linspace(-0.1, 0.1, 20))
    network.save_pretrained(tmp_path)
    loaded = TextEditableRestorer.from_pretrained(tmp_path, dtype=torch.float16)
    assert loaded.dtype == torch.float16
    assert torch.equal(loaded.text_mean, network.text_mean)


def test_an_adapter_of_one_network_is_saved_and_loaded(tmp_path):
    torch.manual_seed(3)
    network, given = tiny.editor(), inputs("inpaint")
    network.save_pretrained(tmp_path / "base")
    layers = LoraConfig(r=2, target_modules=network._lora_layers, init_lora_weights=False)
    network.add_adapter(layers, adapter_name="grass")
    network.save_lora_adapter(tmp_path / "adapter", adapter_name="grass")
    other = TextEditableRestorer.from_pretrained(tmp_path / "base")
    place = str(tmp_path / "adapter")
    other.load_lora_adapter(place, prefix=None, adapter_name="grass", use_safetensors=True)
    assert torch.allclose(run(other, given), run(network, given), atol=1e-5)


def test_a_merged_adapter_does_what_the_attached_one_does():
    """Demodulation must know the weights that the convolution has with its adapter."""
    torch.manual_seed(3)
    network, given = tiny.editor(), inputs("inpaint")
    before = run(network, given)
    network.add_adapter(
        LoraConfig(r=2, target_modules=network._lora_layers, init_lora_weights=False)
    )
    attached = run(network, given)
    assert (attached - before).abs().max() > 1e-2
    network.fuse_lora()
    assert torch.allclose(run(network, given), attached, atol=1e-4)


# ---- errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "deblur"}, "`task` must be inpaint"),
        ({"encoder_type": "huge"}, "`encoder_type` must be plain or efficient"),
        ({**EFFICIENT, "task": "inpaint"}, "no mask; take plain"),
        ({"depths": (1,)}, "`depths` needs a number for each"),
        ({**EFFICIENT, "task": "colorize", "widths": (4, 6, 8)}, "`widths` needs 2 numbers"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        new(**options)


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ("inpaint", {"mask": None}, "needs `mask`"),
        ("colorize", {"mask": torch.zeros(2, 1, 24, 40)}, "takes no `mask`"),
        ("inpaint", {"mask": torch.zeros(2, 1, 24, 24)}, "`mask` must be"),
        ("super-resolution", {"scale": None}, "needs `scale`"),
        ("inpaint", {"scale": 2}, "takes no `scale`"),
        ("colorize", {"image": torch.zeros(2, 1, 24, 40)}, r"must be \(B, 3, H, W\)"),
        ("colorize", {"condition": torch.zeros(2, 7)}, "`condition` must be"),
    ],
)
def test_inputs_that_do_not_fit_the_task_are_refused(task, changes, message):
    with pytest.raises(ValueError, match=message):
        run(tiny.editor(task), inputs(task), **changes)


def test_embeddings_that_do_not_fit_are_refused():
    network = tiny.editor()
    with pytest.raises(ValueError, match="`kind` must be text or image"):
        network.condition_of(torch.ones(1, 20), "sound")
    with pytest.raises(ValueError, match="as the encoders of this checkpoint"):
        network.condition_of(torch.ones(1, 512))


def test_the_pipeline_takes_these_networks():
    pipe = TextEditableRestorationPipeline(inpainter=tiny.editor())
    assert pipe.inpainter.config.task == "inpaint"
