"""The cleaner maps each word on its own, in the paper's size or a light one, and may start as the
identity."""

import pytest
import torch

from tests.tools.tiny import NUM_WORDS, WORD_DIM
from textir.models import TextualCleaner


def cleaner(**options) -> TextualCleaner:
    return TextualCleaner(WORD_DIM, NUM_WORDS, **{"width": 16, **options})


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


FORMS = pytest.mark.parametrize("rank", [None, 3], ids=["paper", "light"])


def test_the_defaults_are_the_papers():
    with torch.device("meta"):
        assert parameters(TextualCleaner()) == 118_215_680


def test_the_light_form_is_much_smaller():
    with torch.device("meta"):
        assert parameters(TextualCleaner(rank=64)) < 0.1 * 118_215_680


@FORMS
@pytest.mark.parametrize("residual", [False, True])
def test_words_keep_their_shape(rank, residual):
    words = torch.randn(3, NUM_WORDS, WORD_DIM)
    cleaned = cleaner(rank=rank, residual=residual)(words)
    assert cleaned.shape == words.shape and cleaned.isfinite().all()


@FORMS
def test_a_residual_cleaner_starts_as_the_identity(rank):
    words = torch.randn(3, NUM_WORDS, WORD_DIM)
    assert torch.equal(cleaner(rank=rank, residual=True)(words), words)
    assert not torch.allclose(cleaner(rank=rank)(words), words, atol=0.1)


@FORMS
def test_a_residual_cleaner_adds_what_the_other_returns(rank):
    plain, residual = cleaner(rank=rank), cleaner(rank=rank, residual=True)
    residual.load_state_dict(plain.state_dict())
    words = torch.randn(3, NUM_WORDS, WORD_DIM)
    torch.testing.assert_close(residual(words), words + plain(words))


@FORMS
def test_a_residual_cleaner_can_leave_the_identity(rank):
    model, words = cleaner(rank=rank, residual=True), torch.randn(3, NUM_WORDS, WORD_DIM)
    model(words).square().sum().backward()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    optimizer.step()
    assert not torch.allclose(model(words), words, atol=1e-4)


@FORMS
def test_words_do_not_talk_to_one_another(rank):
    model, words = cleaner(rank=rank), torch.randn(2, NUM_WORDS, WORD_DIM)
    changed = words.clone()
    changed[:, 1] += 1
    moved = (model(changed) - model(words)).abs().amax((0, 2)) > 1e-6
    assert moved.tolist() == [False, True, False, False]


@FORMS
def test_the_same_word_is_cleaned_differently_at_each_place(rank):
    cleaned = cleaner(rank=rank)(torch.randn(1, 1, WORD_DIM).expand(1, NUM_WORDS, WORD_DIM))[0]
    assert all(
        not torch.allclose(cleaned[i], cleaned[j], atol=1e-3)
        for i in range(NUM_WORDS)
        for j in range(i)
    )


@pytest.mark.parametrize(
    "shape", [(2, NUM_WORDS + 1, WORD_DIM), (2, NUM_WORDS, WORD_DIM - 1), (NUM_WORDS, WORD_DIM)]
)
def test_words_of_another_shape_are_refused(shape):
    with pytest.raises(
        ValueError,
        match=rf"`pseudo_words` must be \(B, {NUM_WORDS}, {WORD_DIM}\), got \({shape[0]}, ",
    ):
        cleaner()(torch.zeros(shape))


def told_cleaner(**options) -> TextualCleaner:
    torch.manual_seed(0)
    return TextualCleaner(
        **{"word_dim": 8, "num_words": 3, "width": 16, "labels": ("noise", "haze"), **options}
    )


@pytest.mark.parametrize("rank", [None, 2])
def test_a_fresh_condition_changes_nothing_and_a_trained_one_does(rank):
    cleaner, words = told_cleaner(rank=rank), torch.randn(2, 3, 8)
    noise, haze = torch.tensor([[1.0, 0, 0]]), torch.tensor([[0.0, 1, 0]])
    assert torch.equal(cleaner(words), cleaner(words, noise))
    torch.nn.init.normal_(cleaner.condition_shift.weight)
    assert not torch.equal(cleaner(words, noise), cleaner(words, haze))
    together = cleaner(words, torch.cat([noise, haze]))
    assert torch.allclose(together[1], cleaner(words[1:], haze)[0], atol=1e-6)
    assert torch.equal(cleaner(words), cleaner(words, torch.tensor([[0.0, 0, 1]])))


def test_a_condition_that_does_not_fit_is_refused():
    with pytest.raises(
        ValueError, match=r"`condition` must be \(2, 3\): one number for each of noise, haze"
    ):
        told_cleaner()(torch.randn(2, 3, 8), torch.ones(2, 2))
    with pytest.raises(
        ValueError, match="This TextualCleaner is blind: it was built without `labels`"
    ):
        told_cleaner(labels=None)(torch.randn(2, 3, 8), torch.ones(2, 3))
