"""The pipeline keeps the promises of its `__call__`: every argument does what it says, and nothing
fails silently."""

import json
from itertools import combinations, pairwise

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, PNDMScheduler, UniPCMultistepScheduler
from diffusers.utils import logging as diffusers_logging

from pipelines import TextGuidedRestorationPipeline
from pipelines.pipeline_text_guided_restoration import (
    apply_tiled,
    blend_window,
    cut_patches,
    inject_words,
    patch_grid,
    resize,
    tile_starts,
)
from tests.tools import tiny
from textir.models import NAFNet


@pytest.fixture(scope="module")
def pipe():
    return tiny.pipeline()


def seed(value: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(value)


def run(pipe, image=None, **options):
    image = tiny.image() if image is None else image
    return pipe(image, **{"generator": seed(), "output_type": "pt", **options})


# ---- what comes back


def test_output_holds_every_intermediate_of_the_chain(pipe):
    out = run(pipe, tiny.image(batch=2))
    assert out.images.shape == (2, 3, 24, 40)
    assert out.guidance == "cleaned"
    assert out.guidance_images.shape[:2] == (2, 3)
    assert out.pseudo_words.shape == out.cleaned_words.shape == (2, tiny.NUM_WORDS, tiny.WORD_DIM)
    assert out.match_confidence.shape == out.influence.shape == (2, 1, 24, 40)
    assert out.match_confidence.min() >= 0 and out.match_confidence.max() <= 1
    assert set(out.degradation[0]) == set(out.severity[0]) == set(pipe.detector.config.labels)
    assert len(out.nearest_tokens) == 2 and len(out.nearest_tokens[0]) == tiny.NUM_WORDS
    assert {"before", "after"} == set(out.nearest_tokens[0][0])


def test_influence_is_the_difference_that_guidance_makes(pipe):
    guided, unguided = run(pipe), run(pipe, guidance="none")
    expected = (guided.images - unguided.images).abs().mean(1, keepdim=True)
    assert torch.equal(guided.influence, expected)
    assert guided.influence.max() > 0


def test_nearest_token_of_a_vocabulary_word_is_that_word(pipe):
    index = pipe.tokenizer.convert_tokens_to_ids("rainy</w>")
    word = pipe.text_encoder.get_input_embeddings().weight[index].detach()[None, None] * 3
    assert pipe.nearest_tokens(word)[0][0]["before"][0] == "rainy"


def test_tuple_return_equals_the_output(pipe):
    images, guidance = run(pipe, return_dict=False)
    out = run(pipe)
    assert torch.equal(images, out.images) and torch.equal(guidance, out.guidance_images)
    assert torch.equal(out[0], out.images)


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
def test_output_types_hold_the_same_picture(pipe, output_type):
    image = run(pipe, output_type=output_type).images[0]
    reference = run(pipe).images[0].movedim(0, -1).numpy()
    got = {
        "pil": lambda: np.asarray(image) / 255,
        "np": lambda: image,
        "pt": lambda: image.movedim(0, -1).numpy(),
    }[output_type]()
    assert np.abs(got - reference).max() <= (0.5 / 255 + 1e-6 if output_type == "pil" else 0)


def test_latent_output_decodes_to_the_guidance(pipe):
    latents = run(pipe, output_type="latent").images
    assert torch.equal(pipe.decode_latents(latents), run(pipe).guidance_images)


# ---- guidance


@pytest.mark.parametrize(
    "options", [{}, {"guidance_image": tiny.image(30, 50)}, {"guidance": "degraded"}]
)
def test_strength_zero_equals_no_guidance_to_the_bit(pipe, options):
    unguided = run(pipe, guidance="none").images
    assert torch.equal(run(pipe, guidance_strength=0, **options).images, unguided)
    assert not torch.equal(run(pipe, **options).images, unguided)


def test_strength_grows_the_influence(pipe):
    influence = [run(pipe, guidance_strength=strength).influence.mean() for strength in (0.25, 1.0)]
    assert 0 < influence[0] < influence[1]


def seeing(pipe, label: str, images: torch.Tensor, logit: float = 5.0):
    """The pipeline, its detector seeing nothing but `label` in the images, with that mean logit."""
    column = pipe.detector.config.labels.index(label)
    with torch.no_grad():
        seen = (
            pipe.detector(pipe.encode_image(images), pipe.native_pixels(images))
            .logits[:, column]
            .mean()
        )
        pipe.detector.presence.bias -= 50
        pipe.detector.presence.bias[column] += 50 + logit - seen
    return pipe


def test_guidance_is_used_by_default_against_what_it_is_good_for():
    image = tiny.image()
    for label, strength in (("haze", 1.0), ("noise", 0.0)):
        pipe = seeing(tiny.pipeline(guided_degradations=["haze", "rain"]), label, image)
        out = run(pipe, image)
        assert (
            out.guidance_strength == [strength]
            and out.guidance_images is not None
            and out.cleaned_words is not None
        )
        assert torch.equal(out.images, run(pipe, image, guidance_strength=strength).images)
        assert torch.equal(out.images, run(pipe, image, return_influence=False).images)
        assert (out.influence is None) == (out.match_confidence is None) == (strength == 0)
    assert run(tiny.pipeline(), image).guidance_strength == [1.0]


def test_the_task_says_what_guidance_is_used_against():
    pipe = tiny.pipeline(guided_degradations=["haze"])
    strengths = [
        run(pipe, task=task).guidance_strength for task in ("dehaze", "denoise", "denoise+dehaze")
    ]
    assert strengths == [[1.0], [0.0], [1.0]]
    unseeing = tiny.pipeline(guided_degradations=["haze"], detector=None)
    assert [run(unseeing, task=task).guidance_strength for task in ("dehaze", "auto")] == [
        [1.0],
        [0.0],
    ]


def test_guidance_that_was_asked_for_is_used():
    pipe = tiny.pipeline(guided_degradations=[])
    for options in (
        {"prompt": "dog"},
        {"guidance": "degraded"},
        {"guidance_image": tiny.image()},
        {"guidance_strength": 1.0},
    ):
        out = run(pipe, **options)
        assert out.guidance_strength == [1.0] and out.influence.max() > 0, options
    assert run(pipe, guidance="none").guidance_strength is None


def test_each_image_of_a_batch_is_guided_by_what_is_seen_in_it():
    images = torch.cat([tiny.image(seed=0), tiny.image(seed=1) * 0.2])
    pipe = seeing(tiny.pipeline(guided_degradations=["haze"]), "haze", images, logit=0)
    out = run(pipe, images)
    assert sorted(out.guidance_strength) == [0.0, 1.0]
    guided = out.guidance_strength.index(1.0)
    for i, single in enumerate(images.split(1)):
        # Sums of a batch may be taken in another order.
        alone = run(pipe, single, generator=seed()).images[0]
        assert i == guided or (out.images[i] - alone).abs().max() < 1e-5
        assert (out.influence[i].max() > 0) == (i == guided)
    pictures = [
        PIL.Image.fromarray((single.movedim(0, -1) * 255).round().byte().numpy())
        for single in images
    ]
    apart = run(pipe, [*pictures, PIL.Image.new("RGB", (50, 30))])  # of two sizes, so one by one
    assert apart.guidance_strength[:2] == out.guidance_strength
    assert [influence is not None for influence in apart.influence[:2]] == [
        i == guided for i in range(2)
    ]


def test_what_is_no_degradation_cannot_be_guided():
    with pytest.raises(
        ValueError, match=r"`guided_degradations` may name noise, rain, .*; got fog"
    ):
        tiny.pipeline(guided_degradations=["fog"])


# ---- what to remove


def test_each_task_does_something_of_its_own(pipe):
    pictures = [
        run(pipe, task=task).images for task in ("auto", "denoise", "dehaze", "denoise+dehaze")
    ]
    assert all(not torch.equal(*pair) for pair in combinations(pictures, 2))


def test_several_tasks_may_be_a_text_or_a_list_in_any_order(pipe):
    joined, listed, turned = (
        run(pipe, task=task)
        for task in ("denoise+dehaze", ["denoise", "dehaze"], "dehaze + denoise")
    )
    assert torch.equal(joined.images, listed.images) and torch.equal(joined.images, turned.images)
    assert joined.removed == [["noise", "haze"]]


def test_the_output_says_how_far_the_photo_was_moved(pipe):
    image = tiny.image(batch=2)
    out = run(pipe, image, task="denoise")
    assert out.change == pytest.approx(
        ((out.images - image).abs().mean((1, 2, 3)) * 255).tolist(), rel=1e-5
    )


def test_auto_finds_out_by_itself_or_tells_what_the_detector_sees():
    image = tiny.image()
    assert run(tiny.pipeline(), image).removed is None
    for thresholds, removed in (
        ({"haze": [0.2, 0.9], "noise": [0.2, 0.9]}, ["haze"]),
        ({"haze": [0.2, 0.9], "noise": [0.0, 0.0]}, ["haze", "noise"]),
        ({"haze": [0.9999, 0.9999], "noise": [0.2, 0.9]}, None),
    ):
        out = run(seeing(tiny.pipeline(detection_thresholds=thresholds), "haze", image), image)
        assert out.removed == [removed]
    sure = seeing(tiny.pipeline(detection_thresholds={"haze": [0.2, 0.9]}), "haze", image)
    assert torch.equal(run(sure, image).images, run(sure, image, task="dehaze").images)
    unsure = seeing(tiny.pipeline(detection_thresholds={"haze": [0.2, 0.9999]}), "haze", image)
    assert run(unsure, image).removed == [None]
    assert torch.equal(run(unsure, image, guidance="none").images, unsure.restore(image)[0])
    assert (
        run(tiny.pipeline(detection_thresholds={"haze": [0.2, 0.9]}, detector=None), image).removed
        is None
    )


def test_thresholds_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match=r"`detection_thresholds` may name noise, .*; got fog"):
        tiny.pipeline(detection_thresholds={"fog": [0.1, 0.5]})
    with pytest.raises(
        ValueError,
        match=r"`detection_thresholds` must rise from absent to present, from 0 on; got \[0.5, "
        r"0.1\]",
    ):
        tiny.pipeline(detection_thresholds={"haze": [0.5, 0.1]})


def test_what_is_kept_is_not_removed():
    image = tiny.image()
    pipe = seeing(tiny.pipeline(), "haze", image)
    with torch.no_grad():
        pipe.detector.presence.bias[pipe.detector.config.labels.index("noise")] += 100
    assert run(pipe, image, keep="haze").removed == [["noise"]]
    assert run(pipe, image, keep=["haze", "noise"]).removed == [[]]
    assert run(pipe, image, keep="haze", task="denoise").removed == [["noise"]]


def test_images_of_a_batch_are_told_apart():
    images = torch.cat([tiny.image(seed=0), tiny.image(seed=1) * 0.2])
    pipe = seeing(tiny.pipeline(detection_thresholds={"haze": [0.5, 0.5]}), "haze", images, logit=0)
    out = run(pipe, images, generator=[seed(), seed()])
    assert sorted(out.removed, key=str) == [None, ["haze"]]
    for i, single in enumerate(images.split(1)):
        alone = run(pipe, single)
        assert (
            alone.removed == [out.removed[i]]
            and (alone.images[0] - out.images[i]).abs().max() < 1e-3
        )


def test_tiles_and_guidance_are_told_too(pipe):
    image = tiny.image(80, 96)
    for options in ({"tile": 64}, {"guidance": "none"}, {"tile": 64, "guidance": "none"}):
        told, other = (
            run(pipe, image, task=task, **options).images for task in ("dehaze", "denoise")
        )
        assert not torch.equal(told, other), options
    told, other = (run(pipe, image, task=task).cleaned_words for task in ("dehaze", "denoise"))
    assert not torch.equal(told, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "defog"}, r"`task` must be auto, or one or several of denoise, .*; got 'defog'"),
        ({"task": "denoise+defog"}, "got 'defog'"),
        ({"task": "auto+denoise"}, "got 'auto'"),
        ({"task": ""}, "got nothing"),
        ({"task": []}, "got nothing"),
        (
            {"task": None},
            r"`task` must be auto, .* as a text or a list of texts; got None \(NoneType\)",
        ),
        ({"task": 3}, r"got 3 \(int\)"),
        ({"task": ["denoise", 3]}, r"got \['denoise', 3\] \(list\)"),
        ({"keep": "fog"}, r"`keep` names degradations \(noise, rain, .*\), got 'fog'"),
        ({"keep": "dehaze"}, "got 'dehaze'; to keep it, say haze"),
        ({"keep": 3}, r"`keep` must be one or several of .*; got 3 \(int\)"),
        ({"task": "dehaze", "keep": "haze"}, "`task` asks to remove haze and `keep` to keep it"),
    ],
)
def test_wishes_that_cannot_be_understood_are_refused(pipe, options, message):
    with pytest.raises(ValueError, match=message):
        run(pipe, **options)


@pytest.mark.parametrize("options", [{"task": "denoise"}, {"keep": "haze"}])
def test_a_blind_restorer_cannot_be_told(options):
    blind = tiny.pipeline(restorer=tiny.restorer())
    assert run(blind).removed is None
    with pytest.raises(ValueError, match="The restorer of this checkpoint is blind"):
        run(blind, **options)


def test_to_keep_something_without_a_task_needs_a_detector():
    pipe = tiny.pipeline(detector=None)
    assert run(pipe, keep="haze", task="denoise").removed == [["noise"]]
    with pytest.raises(ValueError, match="`keep` with `task='auto'` removes what a detector sees"):
        run(pipe, keep="haze")


def test_a_restorer_that_lacks_a_label_says_so():
    restorer = tiny.with_open_gates(
        NAFNet(width=4, encoder_depths=(1,), decoder_depths=(1,), labels=("noise",))
    )
    pipe = TextGuidedRestorationPipeline(restorer=restorer)
    assert run(pipe, task="denoise").removed == [["noise"]]
    with pytest.raises(ValueError, match="This checkpoint knows no haze; it can be told of noise"):
        run(pipe, task="dehaze")


def test_without_a_generator_a_call_gives_the_same_pixels_again(pipe):
    first, again = (pipe(tiny.image(), output_type="pt").images for _ in range(2))
    assert torch.equal(first, again) and torch.equal(first, run(pipe).images)


# ---- guidance again


def test_guidance_modes_paint_different_pictures(pipe):
    pictures = [
        run(pipe, guidance=mode, prompt="dog").guidance_images
        for mode in ("cleaned", "degraded", "prompt")
    ]
    assert not torch.equal(pictures[0], pictures[1])
    assert not torch.equal(pictures[1], pictures[2])


@pytest.mark.parametrize(
    "options",
    [
        {"guidance_init": "image", "init_strength": 0.5},
        {"prompt": "dog", "negative_prompt": "rainy"},
    ],
)
def test_mirrored_guidance_is_the_mean_of_both_paintings(pipe, options):
    image, generator = tiny.image(batch=2), [seed(1), seed(2)]
    one, two = (
        run(pipe, x, generator=generator, **options).guidance_images
        for x in (image, image.flip(-1))
    )
    out = run(tiny.pipeline(mirror_guidance=True), image, generator=[seed(1), seed(2)], **options)
    torch.testing.assert_close(out.guidance_images, (one + two.flip(-1)) / 2, atol=1e-5, rtol=0)
    plain = run(pipe, image, **options)
    torch.testing.assert_close(out.cleaned_words, plain.cleaned_words)
    assert (
        out.degradation == [pytest.approx(seen, abs=1e-5) for seen in plain.degradation]
        and out.images.shape == image.shape
    )


def test_mirroring_changes_neither_latents_nor_what_is_painted_from_text_alone(pipe):
    mirroring = tiny.pipeline(mirror_guidance=True)
    assert torch.equal(
        run(mirroring, output_type="latent").images, run(pipe, output_type="latent").images
    )
    options = {"guidance": "prompt", "prompt": "dog"}
    assert torch.equal(
        run(mirroring, **options).guidance_images, run(pipe, **options).guidance_images
    )


def test_prompt_and_negative_prompt_change_the_guidance(pipe):
    plain = run(pipe).guidance_images
    assert not torch.equal(run(pipe, prompt="dog").guidance_images, plain)
    assert not torch.equal(run(pipe, negative_prompt="rainy").guidance_images, plain)


def test_cleaned_words_reach_the_painter(pipe):
    out = run(pipe)
    embeds = pipe.encode_words(out.cleaned_words)
    seen = []

    def note(pipeline, step, timestep, tensors):
        seen.append(tensors["prompt_embeds"])
        return {}

    run(pipe, callback_on_step_end=note, callback_on_step_end_tensor_inputs=["prompt_embeds"])
    assert torch.equal(seen[0], embeds)


def test_reference_image_is_used_as_it_is(pipe):
    reference = tiny.image(24, 40, seed=5)
    out = run(pipe, guidance_image=reference)
    assert out.guidance == "reference" and torch.equal(out.guidance_images, reference)
    assert out.pseudo_words is None


def test_guidance_covers_the_whole_image(pipe):
    """What lies at the far end of a wide image must reach the words (no centre crop)."""
    image = tiny.image(24, 96)
    changed = image.clone()
    changed[..., -8:] = 1 - changed[..., -8:]
    assert not torch.allclose(run(pipe, image).pseudo_words, run(pipe, changed).pseudo_words)


def test_guidance_keeps_the_aspect_of_the_image(pipe):
    height, width = run(pipe, tiny.image(24, 96)).guidance_images.shape[-2:]
    assert width / height == pytest.approx(4, rel=0.2)


def test_init_from_the_image_keeps_its_layout(pipe):
    """With little noise the latents stay close to those of the photo; from pure noise they do
    not."""
    image = tiny.image()
    height, width = pipe.guidance_shape(24, 40)
    pixels = (
        torch.nn.functional.interpolate(
            image, (height, width), mode="bicubic", antialias=True
        ).clamp(0, 1)
        * 2
        - 1
    )
    clean = pipe.vae.encode(pixels).latent_dist.mode() * pipe.vae.config.scaling_factor
    start, _ = pipe.prepare_latents(image, "image", 0.01, 50, seed())
    noise, timesteps = pipe.prepare_latents(image, "noise", 0.01, 50, seed())
    assert (start - clean).abs().mean() < 0.5 * (noise - clean).abs().mean()
    assert len(timesteps) == 50


def test_init_strength_sets_the_number_of_steps(pipe):
    run(pipe, guidance_init="image", init_strength=0.5, num_inference_steps=4)
    assert pipe.num_timesteps == 2


def test_few_steps_from_the_image_never_start_beyond_the_strength(pipe):
    _, timesteps = pipe.prepare_latents(tiny.image(), "image", 0.2, 1, seed())
    assert len(timesteps) == 1 and timesteps[0] < 300


def test_a_checkpoint_says_what_guidance_starts_from():
    parts = tiny.components()
    image = tiny.pipeline(**parts, default_guidance_init="image", default_init_strength=0.25)
    noise = tiny.pipeline(**parts)
    assert torch.equal(
        run(image).guidance_images,
        run(noise, guidance_init="image", init_strength=0.25).guidance_images,
    )
    assert torch.equal(
        run(image, guidance_init="noise").guidance_images, run(noise).guidance_images
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"prompt": "a tree"},
        {"guidance": "degraded"},
        {"guidance": "prompt", "prompt": "a tree"},
    ],
)
@pytest.mark.parametrize("mirror", [False, True])
def test_guidance_alone_is_what_a_restoration_shows(mirror, options):
    pipe = tiny.pipeline(
        default_guidance_init="image", square_guidance=True, mirror_guidance=mirror
    )
    guidance, output = pipe.guide(tiny.image(), **options), run(pipe, **options)
    assert torch.equal(guidance.images, output.guidance_images)
    if options.get("guidance") != "prompt":
        assert torch.equal(guidance.pseudo_words, output.pseudo_words)
        assert torch.equal(guidance.cleaned_words, output.cleaned_words)


def test_guidance_alone_needs_no_restorer_and_says_what_it_lacks():
    pipe = tiny.pipeline(restorer=None, matcher=None)
    assert pipe.guide(tiny.image()).images.shape[:2] == (1, 3)
    with pytest.raises(ValueError, match="needs cleaner, which this pipeline lacks"):
        tiny.pipeline(cleaner=None).guide(tiny.image())
    with pytest.raises(ValueError, match="`generator` must be one generator or a list of 1"):
        pipe.guide(tiny.image(), generator=[seed(), seed()])


@pytest.mark.parametrize("scheduler", [DPMSolverMultistepScheduler, UniPCMultistepScheduler])
@pytest.mark.parametrize("init", ["noise", "image"])
def test_fast_schedulers_paint(scheduler, init):
    pipe = tiny.pipeline(scheduler=scheduler())
    assert torch.isfinite(run(pipe, guidance_init=init, num_inference_steps=4).images).all()


def test_pndm_of_old_checkpoints_is_replaced():
    assert isinstance(
        tiny.pipeline(scheduler=PNDMScheduler()).scheduler, DPMSolverMultistepScheduler
    )


def test_classifier_free_guidance_takes_one_unet_call_a_step(pipe):
    sizes = []
    handle = pipe.unet.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    run(pipe, guidance_scale=3.0, num_inference_steps=3)
    run(pipe, guidance_scale=1.0, num_inference_steps=2)
    handle.remove()
    assert sizes == [2, 2, 2, 1, 1]


def test_injected_words_leave_the_text_encoder_as_it_was(pipe):
    before = pipe.encode_text(["a photo"])
    words = torch.randn(1, tiny.NUM_WORDS, tiny.WORD_DIM)
    with torch.no_grad():
        first = pipe.encode_words(words)
        with inject_words(pipe.text_encoder, words, torch.tensor([1, 2])):
            pass
        assert torch.equal(pipe.encode_text(["a photo"]), before)
        assert not torch.equal(pipe.encode_words(words * 2), first)


def test_words_follow_the_template_and_the_prompt_follows_the_words(pipe):
    """Causality: a prompt after the words changes nothing before it."""
    words = torch.randn(1, tiny.NUM_WORDS, tiny.WORD_DIM)
    with torch.no_grad():
        plain, prompted = pipe.encode_words(words), pipe.encode_words(words, ["dog"])
    start = (
        1 + len(pipe.tokenizer("a photo of a", add_special_tokens=False).input_ids) + tiny.NUM_WORDS
    )
    assert torch.equal(plain[:, :start], prompted[:, :start])
    assert not torch.equal(plain[:, start], prompted[:, start])


# ---- images


def test_batch_equals_singles(pipe):
    images = tiny.image(batch=2)
    together = pipe(images, generator=[seed(1), seed(2)], output_type="pt")
    for i in range(2):
        alone = pipe(images[i : i + 1], generator=seed(i + 1), output_type="pt")
        assert torch.allclose(together.images[i : i + 1], alone.images, atol=1e-4)


def test_list_of_different_sizes_equals_singles(pipe):
    pictures = [PIL.Image.new("RGB", (40, 24), "teal"), PIL.Image.new("RGB", (33, 50), "maroon")]
    together = pipe(pictures, generator=[seed(1), seed(2)], prompt=["dog", "street"])
    assert [image.size for image in together.images] == [(40, 24), (33, 50)]
    assert isinstance(together.influence, list) and together.influence[1].shape == (1, 1, 50, 33)
    alone = pipe(pictures[1], generator=seed(2), prompt="street")
    assert np.array_equal(np.asarray(together.images[1]), np.asarray(alone.images[0]))


def test_same_seed_same_pixels(pipe):
    assert torch.equal(run(pipe).images, run(pipe).images)
    assert not torch.equal(run(pipe, generator=seed(1)).guidance_images, run(pipe).guidance_images)


@pytest.mark.parametrize("size", [(16, 900), (17, 31), (16, 16)])
def test_any_size_comes_back(pipe, size):
    assert run(pipe, tiny.image(*size)).images.shape[-2:] == size


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "CMYK", "1", "I;16", "F"])
def test_pillow_modes_come_back(pipe, mode):
    gradient = np.tile(np.linspace(0, 255, 40, dtype=np.uint8), (24, 1))
    if mode == "I;16":
        picture = PIL.Image.fromarray(gradient.astype(np.uint16) * 257)
    elif mode == "F":
        picture = PIL.Image.fromarray(gradient.astype(np.float32) / 255)
    else:
        picture = (
            PIL.Image.fromarray(gradient)
            .convert("RGBA" if mode in ("RGBA", "LA") else "RGB")
            .convert(mode)
        )
    restored = pipe(picture, guidance="none").images[0]
    expected = {"P": "RGB", "CMYK": "RGB", "1": "L"}.get(mode, mode)
    assert (restored.mode, restored.size) == (expected, (40, 24))


def test_alpha_and_profile_survive(pipe):
    picture = PIL.Image.new("RGBA", (40, 24), (10, 200, 90, 77))
    picture.info["icc_profile"] = b"a profile"
    restored = pipe(picture, guidance="none").images[0]
    assert restored.getchannel("A").getextrema() == (77, 77)
    assert restored.info["icc_profile"] == b"a profile"


def test_orientation_is_applied(pipe):
    picture = PIL.Image.new("RGB", (40, 24))
    picture.getexif()[0x0112] = 6
    assert pipe(picture, guidance="none").images[0].size == (24, 40)


# ---- tiles


def local(image, reference):
    """An operation that sees 2 pixels around."""
    kernel = torch.full((3, 1, 5, 5), 1 / 25)
    padded = torch.nn.functional.pad(image, (2, 2, 2, 2), mode="replicate")
    return torch.nn.functional.conv2d(padded, kernel, groups=3) + (
        0 if reference is None else reference
    )


@pytest.mark.parametrize("size", [(100, 150), (64, 200), (130, 64)])
@pytest.mark.parametrize("with_reference", [False, True])
def test_tiled_equals_whole_inside_the_receptive_field(size, with_reference):
    image = tiny.image(*size)
    reference = tiny.image(*size, seed=1) if with_reference else None
    tiled = apply_tiled(lambda *pair: local(*pair), image, reference, tile=64, overlap=16)
    assert torch.allclose(tiled, local(image, reference), atol=1e-6)


def test_a_pointwise_function_is_tiled_exactly():
    image = tiny.image(100, 150)
    assert torch.allclose(
        apply_tiled(lambda x, _: x.square(), image, None, 64, 32), image.square(), atol=1e-6
    )


def test_tiles_cover_everything_and_overlap():
    for side in (64, 65, 100, 640, 1000):
        starts = tile_starts(side, 64, 16)
        assert starts[0] == 0 and starts[-1] + 64 >= side and starts[-1] + 64 <= max(side, 64)
        assert all(after - before <= 48 for before, after in pairwise(starts))


def test_neighbouring_windows_add_up_to_one():
    first, second = blend_window(64, 16, False, True), blend_window(64, 16, True, False)
    assert torch.allclose(first[-16:] + second[:16], torch.ones(16))
    assert first[0] == 1 and first[-4:].max() == 0


def test_tiles_share_one_guidance(pipe):
    calls = []
    handle = pipe.unet.register_forward_pre_hook(lambda module, args: calls.append(1))
    out = run(pipe, tiny.image(70, 130), tile=64, overlap=16)
    handle.remove()
    assert len(calls) == 2  # two steps, however many tiles
    assert out.images.shape == (1, 3, 70, 130) and out.influence.shape == (1, 1, 70, 130)


def test_images_in_tiles_are_those_restored_alone(pipe):
    images = torch.cat([tiny.image(70, 130), tiny.image(70, 130, seed=3) * 0.3])
    options = {"guidance": "none", "tile": 64}
    together = run(pipe, images, **options).images
    for number, result in enumerate(together):
        alone = run(pipe, images[number : number + 1], **options).images[0]
        torch.testing.assert_close(result, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't allocate memory: 7")])
def test_tiles_get_smaller_when_memory_runs_out(pipe, monkeypatch, error):
    restorer, sides = tiny.restorer(guided=False), []

    def forward(image, *args, **kwargs):
        sides.append(max(image.shape[-2:]))
        if max(image.shape[-2:]) > 256:
            raise error
        return image

    monkeypatch.setattr(restorer, "forward", forward)
    alone = TextGuidedRestorationPipeline(restorer=restorer)
    image = tiny.image(600, 300)
    torch.testing.assert_close(alone(image, output_type="pt").images, image)
    assert 600 in sides and sides[-1] == 256
    with pytest.raises(type(error)):
        alone(image, tile=512)
    with pytest.raises(type(error)):
        alone(image, tile=None)


@pytest.mark.parametrize("size", [(70, 130), (300, 64), (64, 64), (2000, 40)])
def test_patches_lie_within_the_photo(size):
    image = tiny.image(*size)
    for patch, most in ((64, 1), (32, 16), (128, 100)):
        grid = patch_grid(size, patch, most)
        assert 1 <= grid[0] * grid[1] <= most
        patches = cut_patches(image, patch, grid)
        is_covered = all(side <= patch * cells for side, cells in zip(size, grid))
        assert len(patches) == grid[0] * grid[1] * (2 - is_covered)
        assert patches.shape[2:] == (min(patch, size[0]), min(patch, size[1]))


def test_a_tile_larger_than_the_image_changes_nothing(pipe):
    assert torch.equal(run(pipe, tile=64).images, run(pipe).images)


# ---- pipelines with missing parts


def test_a_restorer_alone_restores_and_says_that_it_is_unguided(caplog):
    pipe = TextGuidedRestorationPipeline(restorer=tiny.restorer(guided=False))
    diffusers_logging.enable_propagation()
    try:
        out = pipe(tiny.image(), output_type="pt")
        pipe(tiny.image(), output_type="pt")
    finally:
        diffusers_logging.disable_propagation()
    assert out.guidance == "none" and out.guidance_images is None and out.influence is None
    assert [record.message for record in caplog.records].count(
        "This checkpoint has no guidance chain (no UNet); it restores without guidance."
    ) == 1


def test_a_pipeline_without_restorer_returns_the_guidance():
    pipe = tiny.pipeline(restorer=None, matcher=None)
    out = run(pipe)
    assert torch.equal(out.images, out.guidance_images)


def test_optional_parts_may_be_absent(tmp_path):
    pipe = tiny.pipeline(detector=None)
    pipe.save_pretrained(tmp_path)
    again = TextGuidedRestorationPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    out = run(again)
    assert out.degradation is None and torch.allclose(out.images, run(pipe).images, atol=1e-5)


@pytest.mark.parametrize(
    "missing, options, message",
    [
        (["cleaner"], {}, "needs cleaner"),
        (["mapper", "image_encoder"], {"guidance": "degraded"}, "needs image_encoder, mapper"),
        (["matcher"], {}, "needs matcher"),
        (["unet"], {"guidance": "degraded"}, "needs unet"),
        (["unet"], {"prompt": "dog"}, "needs unet"),
        (["restorer"], {"guidance": "none"}, "needs restorer"),
        (["restorer"], {"guidance_image": tiny.image()}, "this pipeline has none"),
    ],
)
def test_missing_parts_are_named(missing, options, message):
    pipe = tiny.pipeline(**dict.fromkeys(missing))
    with pytest.raises(ValueError, match=message):
        run(pipe, **options)


# ---- bases


BASES = {
    "stable diffusion 1.5": {"attention_head_dim": 2, "use_linear_projection": False},
    "stable diffusion 2.1": {"attention_head_dim": (2, 4), "use_linear_projection": True},
    "sd-turbo": {"attention_head_dim": (2, 4), "use_linear_projection": True},
}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("vae", ["kl", "tiny"])
def test_any_base_assembles_from_its_folder(tmp_path, base, vae):
    """A text-to-image checkpoint plus our components, by `from_pretrained(BASE, mapper=...)`."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline

    parts = tiny.components(vae=vae, unet=tiny.unet(**BASES[base]))
    scheduler = (
        EulerDiscreteScheduler(timestep_spacing="trailing", steps_offset=1)
        if base == "sd-turbo"
        else PNDMScheduler(skip_prk_steps=True, steps_offset=1)
    )
    StableDiffusionPipeline(
        vae=parts["vae"],
        text_encoder=parts["text_encoder"],
        tokenizer=parts["tokenizer"],
        unet=parts["unet"],
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(tmp_path)
    ours = ("image_encoder", "image_processor", "mapper", "cleaner", "matcher", "restorer")
    steps = 1 if base == "sd-turbo" else 2
    pipe = TextGuidedRestorationPipeline.from_pretrained(
        tmp_path,
        **{name: parts[name] for name in ours},
        default_num_inference_steps=steps,
        default_guidance_scale=1.0,
    )
    pipe.set_progress_bar_config(disable=True)
    assert pipe.config.default_num_inference_steps == steps
    out = run(pipe)
    assert torch.isfinite(out.images).all() and out.influence.max() > 0


# ---- saving, devices, dtypes


def test_saved_pipeline_loads_equal_to_the_bit(pipe, tmp_path):
    """Weights to the bit; pixels as nearly as matrix products allow on memory of another
    alignment."""
    pipe.save_pretrained(tmp_path)
    again = TextGuidedRestorationPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert torch.allclose(run(again).images, run(pipe).images, atol=1e-5)
    for name in (
        "mapper",
        "cleaner",
        "matcher",
        "restorer",
        "detector",
        "unet",
        "vae",
        "text_encoder",
        "image_encoder",
    ):
        loaded = getattr(again, name).state_dict()
        for key, value in getattr(pipe, name).state_dict().items():
            assert torch.equal(loaded[key], value), f"{name}.{key}"
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert (
        index["restorer"] == ["nafnet", "NAFNet"]
        and (tmp_path / "restorer" / "nafnet.py").is_file()
    )
    assert type(again.restorer) is type(pipe.restorer)


def test_bfloat16_runs_without_nan():
    pipe = tiny.pipeline().to(torch.bfloat16)
    assert torch.isfinite(run(pipe).images).all()


def test_model_offload_gives_the_same_pixels(pipe):
    expected = run(pipe).images
    offloaded = tiny.pipeline()
    offloaded.enable_model_cpu_offload(device="cpu")
    assert torch.equal(run(offloaded).images, expected)
    assert torch.equal(run(offloaded).images, expected)


def test_callback_sees_every_step_and_may_replace_latents(pipe):
    seen = []

    def zero(pipeline, step, timestep, tensors):
        seen.append((step, tensors["latents"].shape))
        return {"latents": torch.zeros_like(tensors["latents"])}

    out = run(pipe, callback_on_step_end=zero, output_type="latent")
    assert [step for step, _ in seen] == [0, 1]
    assert out.images.abs().max() == 0


def test_progress_is_shown_only_when_wanted(pipe, capsys):
    run(pipe)
    assert "2/2" not in capsys.readouterr().err
    pipe.set_progress_bar_config(disable=False)
    run(pipe)
    pipe.set_progress_bar_config(disable=True)
    assert "2/2" in capsys.readouterr().err


# ---- bad input


@pytest.mark.parametrize(
    "options, message",
    [
        ({"task": "defog"}, "`task` must be auto, or one or several of denoise"),
        ({"guidance": "magic"}, "`guidance` must be one of cleaned"),
        ({"guidance": "prompt"}, "pass a `prompt`"),
        ({"guidance": "none", "prompt": "dog"}, "turns off"),
        ({"guidance_image": tiny.image(), "prompt": "dog"}, "nothing is painted"),
        ({"guidance_init": "zeros"}, "`guidance_init` must be noise or image"),
        ({"guidance_init": "image", "init_strength": 0}, "`init_strength` must lie in"),
        ({"guidance_strength": 1.5}, r"`guidance_strength` must lie in \[0, 1\], got 1.5"),
        ({"guidance_strength": -0.1}, "`guidance_strength` must lie in"),
        ({"num_inference_steps": -3}, "at least 1, got -3"),
        ({"num_inference_steps": 0}, "at least 1, got 0"),
        ({"negative_prompt": "rainy", "guidance_scale": 1.0}, "set it above 1"),
        ({"generator": [seed(), seed()]}, "a list of 1, got a list of 2"),
        ({"prompt": ["dog", "street"]}, "`prompt` must be one text or a list of 1"),
        ({"tile": 8}, "`tile` must be auto, None or a whole number of at least 64"),
        ({"tile": 64, "overlap": 50}, "`overlap` must lie between 0 and half"),
        ({"output_type": "jpg"}, "`output_type` must be one of"),
        ({"output_type": "latent", "guidance": "none"}, "latents of a painted guidance"),
        ({"guidance_image": tiny.image(batch=3)}, "one image or 1, got 3"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, "may hold latents, prompt_embeds"),
    ],
)
def test_bad_arguments_are_refused_with_the_way_out(pipe, options, message):
    with pytest.raises(ValueError, match=message):
        run(pipe, **options)


@pytest.mark.parametrize(
    "image, message",
    [
        (torch.full((1, 3, 24, 40), float("nan")), "NaN"),
        (torch.rand(1, 4, 24, 40), r"must be \(B, 3, H, W\), got shape \(1, 4, 24, 40\)"),
        (torch.rand(2, 24, 40), "must be"),
        (torch.rand(0, 3, 24, 40), "at least one image"),
        (torch.rand(1, 3, 24, 40) * 255, "must lie in"),
        (torch.zeros(1, 3, 24, 40, dtype=torch.uint8), "divide 8-bit values by 255"),
        (torch.rand(1, 3, 1, 1), "at least 16 pixels on each side, got 1 x 1"),
        (torch.rand(1, 3, 15, 900), "got 900 x 15; enlarge it first"),
        (PIL.Image.new("RGB", (9, 120)), "got 9 x 120"),
        (PIL.Image.fromarray(np.full((24, 40), 7.0, np.float32)), "floating-point"),
        ([], "an empty list"),
        ("photo.png", "got str"),
        ([PIL.Image.new("RGB", (40, 24)), None], "NoneType"),
    ],
)
def test_bad_images_are_refused_with_the_way_out(pipe, image, message):
    with pytest.raises(ValueError, match=message):
        pipe(image)


def test_a_prompt_that_does_not_fit_is_cut_with_a_warning(pipe, caplog):
    diffusers_logging.enable_propagation()
    try:
        run(pipe, prompt="dog " * 50)
    finally:
        diffusers_logging.disable_propagation()
    assert "are cut" in caplog.text


def test_an_inpainting_base_is_refused():
    pipe = tiny.pipeline(unet=tiny.unet(in_channels=9))
    with pytest.raises(ValueError, match="not an inpainting one"):
        run(pipe)


@pytest.mark.slow
def test_full_size_stable_diffusion_2_1_shapes_run_on_random_weights():
    """865 M UNet, 1024-wide text tower, ViT-H tokens: about 12 GB of memory and some minutes on two
    cores."""
    from tests.tools.full_size import full_size_pipeline

    pipe = full_size_pipeline()
    out = pipe(
        tiny.image(64, 96),
        num_inference_steps=1,
        guidance_scale=1.0,
        generator=seed(),
        output_type="pt",
    )
    assert out.images.shape == (1, 3, 64, 96) and torch.isfinite(out.images).all()


def test_the_detector_sees_the_centre_in_native_pixels():
    pipe = tiny.pipeline()
    pipe.register_modules(detector=type(pipe.detector)(tiny.IMAGE_DIM, width=8, pixel_width=4))
    image = torch.rand(1, 3, 150, 203)
    assert torch.equal(pipe.native_pixels(image), image[..., 11:139, 37:165])
    assert torch.equal(pipe.native_pixels(image[..., :40]), image[..., 11:139, :40])
    assert set(pipe(image, output_type="pt").degradation[0]) == set(pipe.detector.config.labels)


def test_influence_is_left_out_with_its_second_pass(pipe):
    calls = []
    handle = pipe.restorer.register_forward_hook(lambda *_: calls.append(1))
    lean, full = run(pipe, return_influence=False), run(pipe)
    handle.remove()
    assert lean.influence is None and full.influence is not None and len(calls) == 3
    assert torch.equal(lean.images, full.images)
    assert torch.equal(
        run(pipe, return_influence=False, guidance_strength=0.0).images,
        run(pipe, guidance="none").images,
    )


@pytest.mark.parametrize("size", [(640, 900), (33, 1700), (24, 40)])
def test_large_reductions_keep_the_picture(size):
    coarse = torch.rand(1, 3, 5, 7, generator=seed())
    image = torch.nn.functional.interpolate(
        coarse, size, mode="bicubic", align_corners=False
    ).clamp(0, 1)
    expected = torch.nn.functional.interpolate(
        image, (32, 32), mode="bicubic", antialias=True
    ).clamp(0, 1)
    assert (resize(image, (32, 32)) - expected).abs().max() < 0.02


def test_the_vocabulary_is_read_by_calling_the_table(pipe):
    """While weights are offloaded one by one, the table itself is empty; only a call brings it
    in."""
    table, calls = pipe.text_encoder.get_input_embeddings(), []
    handle = table.register_forward_hook(lambda *_: calls.append(1))
    pipe.nearest_tokens(torch.randn(1, 2, tiny.WORD_DIM))
    handle.remove()
    assert calls
