"""The image tower makes unit vectors in three blocks of photos of any size, and reads tags."""

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from tests.tools import tiny
from textir.models.photo_encoder import (
    LIGHT_STATISTICS,
    TEXTURE_STATISTICS,
    EfficientNetLite,
    PhotoEncoder,
    PhotoProcessor,
    SameConv,
    lab_from_rgb,
    photo_statistics,
)

BLOCKS = (12, 4, 4)


def encoder(**options) -> PhotoEncoder:
    small = {
        "blocks": BLOCKS,
        "stages": ((3, 1, 4, 1), (5, 2, 6, 2)),
        "stem_channels": 4,
        "head_channels": 8,
        "num_classes": 5,
        "class_rank": 3,
        "light_width": 6,
        "faults_width": 6,
    }
    return PhotoEncoder(**{**small, **options}).eval()


def photos(height: int = 40, width: int = 56, batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(3))


def tags(**changes) -> dict:
    tag = {"name": "dog", "text": "photo of a dog", "mean": 0.0, "deviation": 0.3, "slope": 5.0}
    tag |= {"offset": 0.0, "threshold": 0.8, "sure": 0.95, **changes}
    return {"things": {"most": 1, "coverage": 1.0, "tags": [tag, {**tag, "name": "cat"}]}}


# ---- the vector


def test_vectors_have_unit_length_and_blocks_have_their_shares():
    embeds = encoder()(**PhotoProcessor(32)(photos())).image_embeds
    assert embeds.shape == (2, sum(BLOCKS))
    squares = [part.square().sum(1) for part in embeds.split(BLOCKS, dim=1)]
    for square, share in zip(squares, (0.75, 0.15, 0.10)):
        torch.testing.assert_close(square, torch.full((2,), share), atol=1e-5, rtol=0)


def test_without_statistics_content_has_the_whole_length():
    model, inputs = encoder(), PhotoProcessor(32)(photos())
    whole = model(**inputs).image_embeds
    content = model(inputs["pixel_values"]).image_embeds
    torch.testing.assert_close(content[:, :12], F.normalize(whole[:, :12], dim=1))
    assert not content[:, 12:].any()


def test_light_is_what_is_seen_while_content_goes_by_the_network():
    model, inputs = encoder(), PhotoProcessor(32)(photos())
    before = model(**inputs).image_embeds
    inputs["statistics"][:, :LIGHT_STATISTICS] += 1
    after = model(**inputs).image_embeds
    torch.testing.assert_close(after[:, :12], before[:, :12])
    assert not torch.allclose(after[:, 12:16], before[:, 12:16], atol=1e-3)


def test_features_computed_once_give_the_same_vectors():
    model, inputs = encoder(), PhotoProcessor(32)(photos())
    features = model.network(inputs["pixel_values"])
    expected = model(**inputs).image_embeds
    assert torch.equal(model.embed_features(features, inputs["statistics"]), expected)


def test_the_call_fits_clip_too():
    clip = tiny.clip_photo_tower()
    pixels = PhotoProcessor(32)(photos())["pixel_values"]
    for model in (clip, encoder()):
        assert model(pixel_values=pixels).image_embeds.shape == (2, 20)


def test_gradients_reach_every_head():
    model, inputs = encoder(dropout=0.0), PhotoProcessor(32)(photos())
    target = torch.randn(2, sum(BLOCKS), generator=torch.Generator().manual_seed(0))
    (model(**inputs).image_embeds * target).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_saved_and_loaded_it_is_the_same_to_the_bit(tmp_path):
    model = encoder(tags=tags())
    model.roots_mean.uniform_()
    model.save_pretrained(tmp_path)
    loaded = PhotoEncoder.from_pretrained(tmp_path)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert loaded.config.tags == tags()


@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 1, 32, 32)])
def test_other_pixels_are_refused(shape):
    with pytest.raises(ValueError, match=r"`pixel_values` must be \(B, 3, height, width\)"):
        encoder()(torch.zeros(shape))


def test_statistics_of_another_number_are_refused():
    with pytest.raises(ValueError, match=r"`statistics` must be \(2, 371\).*got \(2, 7\)"):
        encoder()(torch.zeros(2, 3, 32, 32), torch.zeros(2, 7))


# ---- the network


def test_the_network_has_the_parameters_of_the_paper():
    network = EfficientNetLite()
    biases = sum(p.numel() for name, p in network.named_parameters() if name.endswith("bias"))
    # Published are weight and bias of each normalisation; folded, a bias is left.
    assert sum(p.numel() for p in network.parameters()) + biases == 3_371_008


@pytest.mark.parametrize(("size", "kernel", "stride"), [(8, 3, 2), (9, 3, 2), (8, 5, 2), (7, 5, 1)])
def test_an_odd_pixel_of_padding_goes_to_the_right(size, kernel, stride):
    convolution = SameConv(1, 1, kernel, stride, bias=False)
    x = torch.randn(1, 1, size, size)
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    before, behind = total // 2, total - total // 2
    padded = F.pad(x, (before, behind, before, behind))
    expected = F.conv2d(padded, convolution.weight, stride=stride)
    assert expected.shape[-1] == -(-size // stride)
    torch.testing.assert_close(convolution(x), expected)


# ---- statistics


@pytest.mark.parametrize(("height", "width"), [(16, 16), (17, 90), (200, 150), (530, 700)])
def test_statistics_are_finite_at_every_size(height, width):
    for image in (photos(height, width, 1), torch.zeros(1, 3, height, width)):
        found = photo_statistics(image)
        assert found.shape == (1, LIGHT_STATISTICS + TEXTURE_STATISTICS)
        assert found.isfinite().all()


def test_statistics_of_a_batch_are_those_of_its_photos():
    image = photos()
    singles = torch.cat([photo_statistics(single) for single in image.split(1)])
    torch.testing.assert_close(photo_statistics(image), singles, atol=1e-4, rtol=1e-4)


def test_light_is_no_texture_and_texture_no_light():
    smooth = torch.linspace(0.3, 0.6, 64).expand(1, 3, 48, 64)
    noisy = (smooth + 0.05 * torch.randn(smooth.shape)).clamp(0, 1)
    moved = (photo_statistics(noisy) - photo_statistics(smooth)).abs()[0]
    assert moved[LIGHT_STATISTICS:].median() > 5 * moved[:LIGHT_STATISTICS].median()


def test_white_is_white_in_lab_and_red_is_reddish():
    white = lab_from_rgb(torch.ones(1, 3, 1, 1)).flatten()
    torch.testing.assert_close(white, torch.tensor([1.0, 0.0, 0.0]), atol=2e-3, rtol=0)
    red = lab_from_rgb(torch.tensor([1.0, 0, 0])[None, :, None, None]).flatten()
    torch.testing.assert_close(red, torch.tensor([0.532, 0.801, 0.672]), atol=5e-3, rtol=0)


# ---- the processor


def test_a_pil_image_and_its_tensor_give_the_same_numbers():
    pixels = (255 * photos(batch=1)).round().to(torch.uint8)
    picture = Image.fromarray(pixels[0].permute(1, 2, 0).numpy())
    processor = PhotoProcessor(32)
    from_picture, from_tensor = processor(picture), processor(pixels.float() / 255)
    for name in ("pixel_values", "statistics"):
        assert torch.equal(from_picture[name], from_tensor[name])
    assert from_picture["pixel_values"].shape == (1, 3, 32, 32)


def test_a_large_photo_is_reduced_first_and_says_the_same():
    coarse = torch.rand(1, 3, 6, 8, generator=torch.Generator().manual_seed(1))
    photo = F.interpolate(coarse, (301, 422), mode="bicubic").clamp(0, 1)
    inputs = PhotoProcessor(32)(photo)
    direct = photo_statistics(photo)
    assert torch.equal(inputs["statistics"][:, LIGHT_STATISTICS:], direct[:, LIGHT_STATISTICS:])
    light = inputs["statistics"][:, :LIGHT_STATISTICS]
    assert (light - direct[:, :LIGHT_STATISTICS]).abs().mean() < 0.01
    squeezed = PhotoProcessor(32)._squeeze(photo)
    assert (inputs["pixel_values"] - squeezed).abs().mean() < 0.02


def test_photos_of_several_sizes_make_one_batch():
    inputs = PhotoProcessor(32)([photos(20, 33)[0], photos(48, 30)[0], Image.new("L", (24, 20))])
    assert len(inputs["pixel_values"]) == len(inputs["statistics"]) == 3


def test_the_processor_comes_back_from_its_folder(tmp_path):
    PhotoProcessor(48).save_pretrained(tmp_path)
    assert PhotoProcessor.from_pretrained(tmp_path).size == 48


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "at least one image"),
        (torch.zeros(1, 3, 12, 40), r"at least 16 pixels.*\(3, 12, 40\)"),
        (torch.zeros(1, 1, 40, 40), "must be RGB"),
        (torch.full((1, 3, 40, 40), float("nan")), "must be finite"),
        (torch.full((1, 3, 40, 40), float("inf")), "must be finite"),
    ],
)
def test_unusable_images_are_refused(images, message):
    with pytest.raises(ValueError, match=message):
        PhotoProcessor(32)(images)


# ---- tags


def test_tags_above_their_threshold_are_read_and_the_surest_first():
    model = encoder(tags=tags())
    dog, cat = F.normalize(torch.randn(2, sum(BLOCKS)), dim=1)
    between = F.normalize(dog + 0.9 * cat, dim=0)
    found = model.read_tags(torch.stack([dog, between, -dog - cat]), torch.stack([dog, 2 * cat]))
    assert [tag["tag"] for tag in found[0]["things"]] == ["dog"]
    assert found[0]["things"][0]["sure"] and found[0]["things"][0]["probability"] > 0.95
    assert len(found[1]["things"]) == 1  # two would fit, the group shows one
    assert found[2] == {"things": []}


def test_tags_need_a_calibration_and_one_vector_each():
    with pytest.raises(ValueError, match="no calibrated tags"):
        encoder().tag_texts()
    model = encoder(tags=tags())
    assert model.tag_texts() == ["photo of a dog"] * 2
    with pytest.raises(ValueError, match=r"`tag_embeds` must be \(2, 20\)"):
        model.read_tags(torch.zeros(1, 20), torch.zeros(3, 20))
