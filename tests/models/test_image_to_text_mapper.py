"""The mapper reads words from the class token and the mean of the patches, in the paper's size or a
light one."""

import pytest
import torch

from tests.tools.tiny import IMAGE_DIM, NUM_WORDS, WORD_DIM
from textir.models import ImageToTextMapper


def mapper(**options) -> ImageToTextMapper:
    return ImageToTextMapper(IMAGE_DIM, WORD_DIM, NUM_WORDS, **{"width": 16, **options})


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


FORMS = pytest.mark.parametrize("rank", [None, 3], ids=["paper", "light"])


def test_the_defaults_are_the_papers():
    with torch.device("meta"):
        assert parameters(ImageToTextMapper()) == 249_538_560


def test_the_light_form_is_much_smaller():
    with torch.device("meta"):
        assert parameters(ImageToTextMapper(rank=64)) < 0.1 * 249_538_560


def test_the_width_is_that_of_the_image_tokens_unless_given():
    assert mapper(width=None).from_class.trunks[0].fc1.out_features == IMAGE_DIM
    assert mapper(width=10).from_class.trunks[0].fc1.out_features == 10


@FORMS
@pytest.mark.parametrize("patches", [1, 6, 16])
def test_any_number_of_patches_gives_the_same_number_of_words(rank, patches):
    words = mapper(rank=rank)(torch.randn(3, 1 + patches, IMAGE_DIM))
    assert words.shape == (3, NUM_WORDS, WORD_DIM) and words.isfinite().all()


@FORMS
def test_the_order_and_repetition_of_patches_does_not_matter(rank):
    model, tokens = mapper(rank=rank), torch.randn(2, 7, IMAGE_DIM)
    words = model(tokens)
    torch.testing.assert_close(model(tokens[:, [0, 3, 1, 2, 6, 5, 4]]), words, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        model(torch.cat([tokens, tokens[:, 1:]], dim=1)), words, atol=1e-5, rtol=1e-5
    )


@FORMS
def test_class_token_and_patches_are_read_apart_and_added(rank):
    model, first, second = (
        mapper(rank=rank),
        torch.randn(1, 5, IMAGE_DIM),
        torch.randn(1, 5, IMAGE_DIM),
    )
    mixed = (
        torch.cat([first[:, :1], second[:, 1:]], dim=1),
        torch.cat([second[:, :1], first[:, 1:]], dim=1),
    )
    torch.testing.assert_close(model(mixed[0]) + model(mixed[1]), model(first) + model(second))
    assert not torch.allclose(model(mixed[0]), model(first), atol=1e-3)
    assert not torch.allclose(model(mixed[1]), model(first), atol=1e-3)


@FORMS
def test_words_differ_from_one_another(rank):
    words = mapper(rank=rank)(torch.randn(1, 5, IMAGE_DIM))[0]
    assert all(
        not torch.allclose(words[i], words[j], atol=1e-3)
        for i in range(NUM_WORDS)
        for j in range(i)
    )


def test_every_word_of_the_light_form_has_its_own_head():
    model, tokens = mapper(rank=3), torch.randn(2, 5, IMAGE_DIM)
    words = model(tokens)
    with torch.no_grad():
        for part in (model.from_class, model.from_patches):
            part.expand[1] = 0
    changed = model(tokens)
    assert (changed[:, 1] == 0).all()
    torch.testing.assert_close(changed[:, [0, 2, 3]], words[:, [0, 2, 3]])


@pytest.mark.parametrize("shape", [(2, 5, IMAGE_DIM + 1), (2, 1, IMAGE_DIM), (5, IMAGE_DIM)])
def test_tokens_of_another_shape_are_refused(shape):
    expected = (
        rf"`image_tokens` must be \(B, 1 \+ patches, {IMAGE_DIM}\), got .*; take the last "
        r"hidden state of the image encoder"
    )
    with pytest.raises(ValueError, match=expected):
        mapper()(torch.zeros(shape))
