"""The pipeline of text-editable restoration keeps what is known exactly, follows words, and says
what is wrong with a call."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from pipelines import TextEditableRestorationPipeline, load_editor
from tests.tools import tiny
from textir.models.edit_processor import luma
from textir.training.lora import make_trainable, save_adapter

SIZE = (24, 40)  # height, width
BOX = (slice(6, 16), slice(10, 26))


@pytest.fixture(scope="module")
def pipe():
    return tiny.editing_pipeline()


def pixels(*shape, kind=np.uint8, seed=0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    if np.dtype(kind).kind == "f":
        return generator.random(shape or (*SIZE, 3)).astype(kind)
    return generator.integers(0, np.iinfo(kind).max + 1, shape or (*SIZE, 3), dtype=kind)


def photo(mode: str = "RGB", size=SIZE, seed=0) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(pixels(*size, kind=np.uint16, seed=seed))
    if mode == "F":
        return Image.fromarray(pixels(*size, kind=np.float32, seed=seed))
    image = Image.fromarray(pixels(*size, 4, seed=seed), "RGBA")
    return image.convert(mode) if mode == "RGBA" else image.convert("RGB").convert(mode)


def gray(size=SIZE, seed=0) -> Image.Image:
    return photo("L", size, seed)


def hole() -> np.ndarray:
    mask = np.zeros(SIZE, np.uint8)
    mask[BOX] = 255
    return mask


def known(array) -> np.ndarray:
    return np.asarray(array)[hole() == 0]


# ---- what must be kept


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "P", "1", "CMYK", "I;16", "F"])
def test_known_pixels_of_pil_images_stay_to_the_bit(pipe, mode):
    image = photo(mode)
    result = pipe(image, "a dog", mask_image=hole()).images[0]
    same = {"P": "RGB", "CMYK": "RGB", "1": "L"}.get(mode, mode)
    expected = image.convert(same) if same != mode else image
    assert result.mode == same and result.size == image.size
    assert np.array_equal(known(result), known(expected))
    assert not np.array_equal(np.asarray(result)[BOX], np.asarray(expected)[BOX])


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_known_pixels_of_arrays_stay_to_the_bit(pipe, kind):
    image = pixels(kind=kind)
    result = pipe(image, mask_image=hole(), output_type="np").images[0]
    if kind != np.float32:
        result = (result * np.iinfo(kind).max).round().astype(kind)
    assert np.array_equal(known(result), known(image))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_known_pixels_of_tensors_stay_to_the_bit(pipe, dtype):
    image = tiny.image(*SIZE).to(dtype)
    result = pipe(image, mask_image=hole(), output_type="pt").images
    outside = torch.from_numpy(hole() == 0)
    assert torch.equal(result.to(dtype)[..., outside], image[..., outside])


def test_luminance_of_a_gray_photo_stays_to_the_bit(pipe):
    for words in ("a dog", None, ""):
        result = pipe(gray(), words).images[0]
        assert result.mode == "RGB"
        assert np.array_equal(np.asarray(result.convert("L")), np.asarray(gray()))
        assert np.ptp(np.asarray(result).astype(int), axis=-1).max() > 3


def test_sixteen_bits_of_a_gray_array_keep_their_luminance(pipe):
    image = pixels(*SIZE, kind=np.uint16)
    result = pipe(image, task="colorize", output_type="pt").images
    levels = (result.double() * 65535).round().long()
    assert np.array_equal(luma(levels)[0, 0].numpy(), image.astype(np.int64))


@pytest.mark.parametrize("scale", [1.5, 2, 4])
def test_an_enlarged_photo_reduced_again_is_the_photo(pipe, scale):
    smooth = torch.nn.functional.interpolate(tiny.image(6, 10), SIZE, mode="bicubic").clamp(0, 1)
    result = pipe(smooth, "a dog", scale=scale, output_type="pt").images
    assert tuple(result.shape[-2:]) == tuple(round(side * scale) for side in SIZE)
    again = pipe.edit_processor.reduce(result, SIZE)
    assert 255 * (again - smooth).abs().max() < 0.5


def test_results_of_an_enlargement_have_the_mode_of_the_photo(pipe):
    for mode in ("RGB", "L", "RGBA", "LA", "I;16", "F", "1", "P"):
        result = pipe(photo(mode), scale=2).images[0]
        assert result.mode == {"1": "L", "P": "RGB"}.get(mode, mode) and result.size == (80, 48)


def test_size_and_resolution_in_metadata_are_true_of_the_result(pipe):
    image = photo()
    exif = image.getexif()
    exif[282] = exif[283] = 72.0
    exif[271] = "Maker"
    exif.get_ifd(34665)[40962] = 40
    exif.get_ifd(34665)[40963] = 24
    image.info |= {"exif": exif.tobytes(), "dpi": (72, 72), "icc_profile": b"profile"}
    result = pipe(image, scale=2).images[0]
    written = result.getexif()
    assert result.info["dpi"] == (144, 144) and result.info["icc_profile"] == b"profile"
    assert dict(written.get_ifd(34665)) == {40962: 80, 40963: 48}
    assert written[271] == "Maker" and written[282] == 144
    assert pipe(image, mask_image=hole()).images[0].info["exif"] == image.info["exif"]


def test_a_gray_profile_is_not_put_on_colours(pipe):
    image = gray()
    image.info["icc_profile"] = b"of gray"
    assert "icc_profile" not in pipe(image).images[0].info
    image = gray().convert("RGB")
    image.info["icc_profile"] = b"of colours"
    assert pipe(image).images[0].info["icc_profile"] == b"of colours"


def test_photos_are_turned_upright_first(pipe):
    image = photo()
    image.getexif()[274] = 6
    assert pipe(image, scale=2).images[0].size == (48, 80)


def test_a_thick_hole_leaves_a_strip_of_known_pixels_alone():
    pipe = tiny.editing_pipeline(hole_width=8)
    mask = np.full((64, 80), 255, np.uint8)
    mask[0] = 0
    image = photo(size=(64, 80))
    result = pipe(image, mask_image=mask).images[0]
    assert np.array_equal(np.asarray(result)[0], np.asarray(image)[0])


# ---- tasks


def test_auto_takes_the_task_that_suits(pipe):
    assert pipe(photo(), mask_image=hole()).tasks == ["inpaint"]
    assert pipe(gray()).tasks == ["colorize"]
    assert pipe(photo()).tasks == ["super-resolution"]
    assert pipe(gray(), scale=2).tasks == ["super-resolution"]
    assert pipe([photo(), gray()]).tasks == ["super-resolution", "colorize"]


def test_a_photo_that_was_enlarged_before_is_enlarged_anew(pipe):
    native = Image.fromarray(tiny.natural_photo())
    small = native.resize((128, 96), Image.Resampling.BICUBIC)
    enlarged = small.resize(native.size, Image.Resampling.BICUBIC)
    output = pipe(enlarged)
    assert output.images[0].size == enlarged.size and "enlarged by 2" in output.notes[0]
    assert pipe(enlarged, task="super-resolution", scale=1.5).notes == ()


def test_tiles_belong_to_enlargement(pipe):
    for options in ({"mask_image": hole()}, {"task": "colorize"}, {}):
        with pytest.raises(ValueError, match="`tile` belongs to super-resolution"):
            pipe(gray() if "mask_image" not in options else photo(), tile=256, **options)


def test_masks_of_every_kind_mean_the_same(pipe):
    mask = hole()
    rgba = np.zeros((*SIZE, 4), np.uint8)
    rgba[..., 0], rgba[..., 3] = 255, mask
    kinds = [
        mask,
        mask > 0,
        mask // 255,
        mask.astype(np.float32) / 255,
        Image.fromarray(mask),
        Image.fromarray(mask).convert("1"),
        Image.fromarray(mask).convert("RGB"),
        Image.fromarray(rgba),
        torch.from_numpy(mask),
        torch.from_numpy(mask > 0)[None],
        torch.from_numpy(mask / 255)[None, None],
    ]
    expected = np.asarray(pipe(photo(), mask_image=mask).images[0])
    for kind in kinds:
        assert np.array_equal(np.asarray(pipe(photo(), mask_image=kind).images[0]), expected)
    turned = pipe(photo(), mask_image=255 - mask, invert_mask=True).images[0]
    assert np.array_equal(np.asarray(turned), expected)


def test_every_photo_may_have_a_mask_of_its_own(pipe):
    masks = [hole(), np.roll(hole(), 5, axis=1)]
    images = tiny.image(*SIZE, batch=2)
    lists = pipe(images, mask_image=masks, output_type="pt").images
    stacked = torch.stack([torch.from_numpy(mask) for mask in masks])[:, None]
    assert torch.equal(lists, pipe(images, mask_image=stacked, output_type="pt").images)
    for number, mask in enumerate(masks):
        alone = pipe(images[number], mask_image=mask, output_type="pt").images
        assert torch.equal(alone[0], lists[number])


def test_tiles_do_not_show(pipe):
    image = tiny.image(150, 90)
    whole = pipe(image, scale=2, tile=1000, output_type="pt").images
    tiles = pipe(image, scale=2, tile=128, output_type="pt").images
    assert 255 * (whole - tiles).abs().mean() < 1


# ---- words


def test_words_are_seen_and_named(pipe):
    results = pipe(gray(), ["a dog", "the street", ""], output_type="pt", return_effect=True)
    assert results.words == ["a dog", "the street", "none"] and len(results.images) == 3
    assert results.effect[0] > 0 and results.effect[2] == 0
    assert not torch.equal(results.images[0], results.images[1])


def test_no_prompt_is_the_embedding_of_the_photo(pipe):
    assert pipe(gray()).words == ["photo"]
    bare = tiny.editing_pipeline(photo_encoder=None, photo_processor=None)
    assert bare(gray()).words == ["none"]


def test_strength_goes_from_no_words_on(pipe):
    def made(words, strength):
        return pipe(gray(), words, strength=strength, output_type="pt").images

    none = made("", 1)
    assert torch.equal(made("a dog", 0), none) and torch.equal(made(None, 0), none)
    assert not torch.equal(made("a dog", 1), none)
    assert not torch.equal(made("a dog", 3), made("a dog", 1))


def test_a_reference_stands_in_place_of_words(pipe):
    output = pipe(gray(), reference_image=photo(seed=4), output_type="pt")
    assert output.words == ["reference image"]
    other = pipe(gray(), reference_image=photo(seed=5), output_type="pt")
    assert not torch.equal(output.images, other.images)
    both = [photo(seed=4), photo(seed=5)]
    lists = pipe([gray(), gray()], reference_image=both, output_type="pt").images
    assert torch.equal(lists, torch.cat([output.images, other.images]))


def test_words_from_the_other_pipeline(pipe):
    guided = tiny.pipeline()
    output = pipe(gray(), words_from=guided, output_type="pt")
    assert output.words == ["cleaned words"]
    assert torch.equal(output.images, pipe(gray(), words_from=guided, output_type="pt").images)
    with pytest.raises(ValueError, match="must be a TextGuidedRestorationPipeline"):
        pipe(gray(), words_from="mini")


def test_variants_differ_and_a_seed_repeats_them(pipe):
    def made(seed):
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        options = {"num_images_per_prompt": 3, "generator": generator, "output_type": "pt"}
        return pipe(gray(), ["a dog", ""], **options).images

    images = made(0)
    assert len(images) == 6 and len(images.flatten(1).unique(dim=0)) == 6
    assert torch.equal(images, made(None)) and not torch.equal(images, made(1))
    assert torch.equal(images[:1], pipe(gray(), "a dog", output_type="pt").images)


def test_one_prompt_for_each_of_several_photos(pipe):
    images = [gray(seed=1), gray(seed=2)]
    output = pipe(images, ["a dog", "the street"])
    assert output.words == ["a dog", "the street"]
    for image, words, result in zip(images, output.words, output.images):
        assert np.array_equal(np.asarray(pipe(image, words).images[0]), np.asarray(result))


def test_photos_of_several_sizes_give_lists(pipe):
    images = [gray(), gray((32, 20))]
    assert isinstance(pipe(images, output_type="pt").images, list)
    assert [array.shape for array in pipe(images, output_type="np").images] == [
        (1, 24, 40, 3),
        (1, 32, 20, 3),
    ]


def test_a_prompt_that_is_too_long_is_told(pipe):
    output = pipe(gray(), "a photo of the dog , " * 9)
    assert "too long by" in output.notes[0] and "the dog" in output.notes[0]
    assert pipe(gray(), "a dog").notes == ()


@pytest.mark.parametrize("size", [(24, 40), (90, 20)])
def test_a_clip_of_the_hub_stands_in_for_the_towers(size):
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, do_rescale=False
    )
    encoder = tiny.clip_photo_tower()
    pipe = tiny.editing_pipeline(photo_encoder=encoder, photo_processor=processor)
    image = tiny.image(*size)
    assert pipe(image, scale=2).words == ["photo"]
    by_default = CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    other = tiny.editing_pipeline(photo_encoder=encoder, photo_processor=by_default)
    assert torch.allclose(pipe.embed_photos(image), other.embed_photos(image), atol=0.02)


# ---- the call


def test_the_callback_counts_results(pipe):
    calls = []
    pipe(gray(), ["a dog", ""], callback=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 2), (2, 2)]


def test_a_tuple_holds_the_same(pipe):
    images, tasks, words, notes = pipe(gray(), "a dog", return_dict=False)
    assert tasks == ["colorize"] and words == ["a dog"] and notes == () and len(images) == 1


def test_half_precision_stays_close():
    exact = tiny.editing_pipeline()(gray(), "a dog", output_type="pt").images
    pipe = tiny.editing_pipeline().to(torch.bfloat16)
    for words in ("a dog", None):
        result = pipe(gray(), words, output_type="pt").images
        assert result.dtype == torch.float32
    assert 255 * (pipe(gray(), "a dog", output_type="pt").images - exact).abs().mean() < 4


ERRORS = [
    ({"task": "paint"}, "`task` must be auto, inpaint"),
    ({"output_type": "jpg"}, "`output_type` must be"),
    ({"strength": 4}, "`strength` must lie in 0 to 3"),
    ({"strength": float("nan")}, "`strength` must lie"),
    ({"strength": "much"}, "`strength` must lie"),
    ({"num_images_per_prompt": 0}, "`num_images_per_prompt` must be at least 1"),
    ({"num_images_per_prompt": True}, "`num_images_per_prompt` must be at least 1"),
    ({"tile": 8}, "`tile` must be at least 128"),
    ({"scale": 1}, "`scale` must lie above 1"),
    ({"scale": 128}, "`scale` must lie above 1 and up to 16, got 128"),
    ({"scale": 2, "mask_image": hole()}, "leave it out of inpainting"),
    ({"scale": 2, "task": "colorize"}, "leave it out of colorize"),
    ({"mask_image": hole(), "task": "colorize"}, "`mask_image` belongs to inpainting"),
    ({"invert_mask": True}, "pass `mask_image` too"),
    ({"task": "inpaint"}, "Inpainting needs `mask_image`"),
    ({"task": "colorize"}, "has colours already"),
    ({"prompt": 3}, "`prompt` must be a text"),
    ({"prompt": []}, "`prompt` must be a text"),
    ({"prompt": ["a", None, 3]}, "`prompt` must be a text"),
    ({"prompt": "a", "reference_image": photo()}, "not both"),
    ({"reference_image": tiny.image(batch=2), "scale": 2}, "must be one image for each photo"),
    ({"reference_image": [photo(), photo()], "scale": 2}, "is a list of 2 for 1 images"),
    ({"mask_image": [hole(), hole()]}, "is a list of 2 for 1 images"),
    ({"mask_image": hole()[:20]}, "must have the size of the photo, 40 x 24"),
    ({"mask_image": 0 * hole()}, "The mask is empty"),
    ({"mask_image": 0 * hole() + 255}, "covers the whole photo"),
    ({"generator": 7, "scale": 2}, "must be one torch.Generator"),
    ({"image": None}, "`image` must be a PIL image"),
    ({"image": []}, "got an empty list"),
    ({"image": np.zeros((8, 40, 3), np.uint8)}, "at least 16 pixels on each side"),
    ({"image": torch.full((3, 24, 40), float("nan"))}, "NaN or infinite"),
    ({"image": torch.zeros(3, 24, 40).byte()}, "floating-point"),
    ({"image": [tiny.image(batch=2)]}, "each entry must be one image"),
]


@pytest.mark.parametrize(("options", "message"), ERRORS, ids=lambda value: str(value)[:40])
def test_calls_that_make_no_sense_say_why(pipe, options, message):
    with pytest.raises(ValueError, match=message):
        pipe(**{"image": photo(), **options})


def test_prompts_and_photos_must_agree_in_number(pipe):
    with pytest.raises(ValueError, match="has 3 texts for 2 images"):
        pipe([gray(), gray()], ["a", "b", "c"])


def test_a_result_that_is_too_large_is_refused_before_any_work():
    pipe = tiny.editing_pipeline(max_pixels=2000)
    for options in ({"scale": 2}, {"task": "super-resolution"}):
        with pytest.raises(ValueError, match=r"more than the .* million"):
            pipe(photo(), **options)


@pytest.mark.parametrize(
    ("part", "options"),
    [
        ("inpainter", {"mask_image": hole()}),
        ("upscaler", {"task": "super-resolution"}),
        ("colorizer", {"image": gray()}),
        ("photo_text_encoder", {"prompt": "a dog", "scale": 2}),
        ("photo_tokenizer", {"prompt": "a dog", "scale": 2}),
        ("photo_encoder", {"reference_image": photo(), "scale": 2}),
        ("edit_processor", {}),
    ],
)
def test_a_missing_component_is_named(part, options):
    pipe = tiny.editing_pipeline(**{part: None})
    with pytest.raises(ValueError, match=f"has no {part}"):
        pipe(**{"image": photo(), **options})


# ---- checkpoints


def test_saved_and_loaded_it_does_the_same(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    loaded = load_editor(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    for image, options in (
        (gray(), {}),
        (photo(), {"mask_image": hole()}),
        (photo(), {"scale": 2}),
    ):
        results = [
            one(image, "a dog", output_type="pt", **options).images for one in (pipe, loaded)
        ]
        assert (results[0] - results[1]).abs().max() < 1e-5
    assert {name: part is None for name, part in loaded.components.items()} == {
        name: part is None for name, part in pipe.components.items()
    }


def test_from_pipe_shares_components(pipe):
    other = TextEditableRestorationPipeline.from_pipe(pipe, colour_side=48)
    assert other.colorizer is pipe.colorizer and other.config.colour_side == 48


def test_checkpoints_of_the_other_kind_are_told_apart(pipe, tmp_path):
    from pipelines import load

    pipe.save_pretrained(tmp_path / "editor")
    with pytest.raises(ValueError, match="that is for `load_editor`"):
        load(tmp_path / "editor")
    with pytest.raises(ValueError, match="that is for `load` and"):
        load_editor("mini")


def test_an_adapter_that_is_asked_for_acts_or_is_refused(tmp_path):
    pipe = tiny.editing_pipeline()
    pipe.save_pretrained(tmp_path / "editor")
    make_trainable(pipe, ["colorizer"], rank=2)
    with torch.no_grad():
        for parameter in pipe.colorizer.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2)
    save_adapter(pipe, tmp_path / "adapter")
    plain, adapted = (
        load_editor(tmp_path / "editor", adapter)(gray(), "a dog", output_type="pt").images
        for adapter in (None, tmp_path / "adapter")
    )
    assert not torch.equal(plain, adapted)
    with pytest.raises(ValueError, match="cannot be loaded: there is no such folder"):
        load_editor(tmp_path / "editor", "nothing")


@pytest.mark.parametrize("other", [{"prompt": "a dog"}, {"reference_image": tiny.image()}])
def test_words_from_stand_alone(pipe, other):
    with pytest.raises(ValueError, match="in place of `prompt`"):
        pipe(gray(), words_from=tiny.pipeline(), **other)


def test_a_hole_is_filled_from_its_border_once(pipe, monkeypatch):
    fills = []
    fill = type(pipe.edit_processor).fill
    monkeypatch.setattr(
        type(pipe.edit_processor),
        "fill",
        lambda self, *inputs: fills.append(1) or fill(self, *inputs),
    )
    image = tiny.image(40, 56)
    mask = torch.zeros(40, 56)
    mask[10:20, 10:30] = 1
    options = {"mask_image": mask, "num_images_per_prompt": 2, "return_effect": True}
    pipe(image, ["a dog", "a street"], output_type="pt", **options)
    assert len(fills) == 1


def test_a_thick_hole_that_no_network_changes_is_filled_from_its_border(pipe, monkeypatch):
    """In a reduced copy only what the network adds counts."""
    monkeypatch.setattr(type(pipe.inpainter), "forward", lambda self, start, *inputs: start)
    image = tiny.image(200, 240)
    mask = torch.zeros(200, 240)
    mask[40:160, 50:190] = 1
    filled = pipe.edit_processor.fill(image, mask[None, None] > 0)
    result = pipe(image, "a dog", mask_image=mask, output_type="pt").images
    torch.testing.assert_close(result, filled, atol=1e-5, rtol=0)
