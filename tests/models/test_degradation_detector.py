"""The detector judges every degradation on its own, with a severity, from all image tokens."""

import pytest
import torch

from tests.tools.tiny import IMAGE_DIM
from textir.models import DegradationDetector


def detector(**options) -> DegradationDetector:
    return DegradationDetector(IMAGE_DIM, **{"width": 16, **options})


@pytest.mark.parametrize("labels", [("rain",), ("noise", "rain", "haze")])
@pytest.mark.parametrize("patches", [1, 9])
def test_there_is_one_judgement_for_each_label(labels, patches):
    found = detector(labels=labels)(5 * torch.randn(3, 1 + patches, IMAGE_DIM))
    assert found.logits.shape == found.severity.shape == (3, len(labels))
    assert found.severity.min() >= 0 and found.severity.max() <= 1
    assert found.logits.isfinite().all()


def test_the_order_of_patches_does_not_matter_but_the_class_token_does():
    model, tokens = detector(), torch.randn(2, 5, IMAGE_DIM)
    logits = model(tokens).logits
    torch.testing.assert_close(model(tokens[:, [0, 4, 2, 3, 1]]).logits, logits)
    assert not torch.allclose(model(tokens[:, [1, 0, 2, 3, 4]]).logits, logits, atol=1e-3)


@pytest.mark.parametrize("sharpness", [0.0, 1000.0])
def test_patches_are_weighed_by_attention(sharpness):
    model, tokens, seen = detector(), torch.randn(2, 5, IMAGE_DIM), []
    model.hidden.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        # None: all patches alike; very much: a single patch of each image.
        model.attention.weight.mul_(sharpness)
        model(tokens)
        normed = model.norm(tokens)
        chosen = model.attention(normed[:, 1:]).argmax(1).flatten()
    expected = normed[:, 1:][torch.arange(2), chosen] if sharpness else normed[:, 1:].mean(1)
    torch.testing.assert_close(seen[0], torch.cat([normed[:, 0], expected], dim=-1))


@pytest.mark.parametrize("shape", [(2, 5, IMAGE_DIM - 1), (5, IMAGE_DIM)])
def test_tokens_of_another_shape_are_refused(shape):
    with pytest.raises(
        ValueError,
        match=rf"`image_tokens` must be \(B, 1 \+ patches, {IMAGE_DIM}\), got \({shape[0]}, ",
    ):
        detector()(torch.zeros(shape))


def test_native_pixels_show_what_tokens_hide():
    model, tokens = detector(pixel_width=4), torch.randn(2, 5, IMAGE_DIM)
    smooth = torch.full((2, 3, 40, 56), 0.5)
    noisy = smooth + 0.1 * torch.randn(2, 3, 40, 56)
    assert not torch.allclose(model(tokens, smooth).logits, model(tokens, noisy).logits, atol=1e-4)
    # Brightness is not texture.
    torch.testing.assert_close(
        model(tokens, smooth).logits, model(tokens, smooth * 0.5).logits, atol=1e-5, rtol=0
    )
    assert model(tokens, torch.rand(2, 3, 17, 19)).logits.isfinite().all()
    with pytest.raises(ValueError, match="looks at native pixels too"):
        model(tokens)


def test_without_a_branch_pixels_play_no_part():
    model, tokens = detector(), torch.randn(2, 5, IMAGE_DIM)
    assert torch.equal(model(tokens, torch.rand(2, 3, 32, 32)).logits, model(tokens).logits)
