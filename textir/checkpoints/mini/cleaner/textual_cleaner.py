"""M_clean: takes the degradation out of pseudo-words.

Lin et al., *Improving Image Restoration through Removing Degradations in Textual Representations*
(CVPR 2024, eq. 3): one MLP for each word, no exchange between words. The defaults are the paper's
shapes (118.2 M parameters) without residual; `residual=True` starts as the identity, which keeps
the words of clean photos, and `rank` builds a light form. Ours: a cleaner with `labels` can be told
what to take out; the condition moves the words that its MLPs see.
"""

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from torch import nn


class WordMLP(nn.Module):
    """Three times linear, layer normalisation, LeakyReLU, then linear: `(..., word_dim)` -> `(...,
    out_dim)`."""

    def __init__(self, word_dim: int, width: int, out_dim: int):
        super().__init__()
        self.fc1, self.norm1 = nn.Linear(word_dim, width), nn.LayerNorm(width)
        self.fc2, self.norm2 = nn.Linear(width, width), nn.LayerNorm(width)
        self.fc3, self.norm3 = nn.Linear(width, width), nn.LayerNorm(width)
        self.output = nn.Linear(width, out_dim)
        self.activation = nn.LeakyReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.activation(self.norm1(self.fc1(x)))
        x = self.activation(self.norm2(self.fc2(x)))
        x = self.activation(self.norm3(self.fc3(x)))
        return self.output(x)


def read_condition(
    condition: torch.Tensor | None,
    labels: tuple[str, ...] | None,
    like: torch.Tensor,
    network: str,
) -> torch.Tensor | None:
    """A condition `(1 or B, len(labels) + 1)` in the precision of `like` `(B, ...)`; without one
    "find out yourself". `None` for a network without labels."""
    if labels is None and condition is None:
        return None
    if labels is None:
        raise ValueError(
            f"This {network} is blind: it was built without `labels` and cannot be told what to "
            "remove."
        )
    count = len(labels) + 1
    if condition is None:
        condition = F.one_hot(torch.tensor([count - 1], device=like.device), count)
    elif condition.ndim != 2 or condition.shape[1] != count or len(condition) not in (1, len(like)):
        raise ValueError(
            f"`condition` must be ({len(like)}, {count}): one number for each of "
            f"{', '.join(labels)}, and a last one for 'find out yourself'; got "
            f"{tuple(condition.shape)}."
        )
    return condition.to(like)


class TextualCleaner(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """Maps pseudo-words of a degraded image to those of its clean twin.

    Args:
        word_dim: width of the word embeddings.
        num_words: pseudo-words for each image.
        width: width of the hidden layers.
        residual: add the output to the input, starting from zero.
        rank: in the light form one MLP serves all words, told apart by a learned embedding, and
            each word has a low-rank head of this rank; `None` gives every word an MLP of its own
            (the paper).
        labels: degradations that the cleaner can be told to take out, in the order of the
            condition's entries; `None` builds one that always finds out for itself.
    """

    _lora_layers = ["fc1", "fc2", "fc3", "output"]

    @register_to_config
    def __init__(
        self,
        word_dim: int = 1024,
        num_words: int = 20,
        width: int = 1280,
        residual: bool = False,
        rank: int | None = None,
        labels: tuple[str, ...] | None = None,
    ):
        super().__init__()
        if rank is None:
            self.words = nn.ModuleList(WordMLP(word_dim, width, word_dim) for _ in range(num_words))
            last = [word.output for word in self.words]
        else:
            self.position = nn.Parameter(torch.randn(num_words, word_dim) * 0.02)
            self.shared = WordMLP(word_dim, width, rank)
            self.expand = nn.Parameter(torch.randn(num_words, rank, word_dim) * rank**-0.5)
            last = [self.shared.output]
        if residual:
            for layer in last:
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)
        if labels is not None:
            self.condition_shift = nn.Linear(len(labels) + 1, num_words * word_dim, bias=False)
            nn.init.zeros_(self.condition_shift.weight)

    def forward(
        self, pseudo_words: torch.Tensor, condition: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Clean words.

        Args:
            pseudo_words: `(B, num_words, word_dim)`.
            condition: `(B, len(labels) + 1)`, or `(1, ...)` for all alike: 1 for each degradation
                to take out, and 1 in the last entry for "find out yourself", which is also what
                `None` means.

        Returns:
            cleaned pseudo-words `(B, num_words, word_dim)`.

        Raises:
            ValueError: if number or width of the words differ, the condition has another length, or
                one is given to a cleaner without labels.
        """
        expected = (self.config.num_words, self.config.word_dim)
        if pseudo_words.ndim != 3 or tuple(pseudo_words.shape[1:]) != expected:
            raise ValueError(
                f"`pseudo_words` must be (B, {expected[0]}, {expected[1]}), got "
                f"{tuple(pseudo_words.shape)}."
            )
        words = pseudo_words + self._shift(condition, pseudo_words)
        if self.config.rank is None:
            cleaned = [mlp(word) for mlp, word in zip(self.words, words.unbind(1))]
            cleaned = torch.stack(cleaned, dim=1)
        else:
            low = self.shared(words + self.position)
            cleaned = torch.einsum("bnr,nrd->bnd", low, self.expand)
        return pseudo_words + cleaned if self.config.residual else cleaned

    def _shift(self, condition: torch.Tensor | None, words: torch.Tensor) -> torch.Tensor | float:
        """What a condition adds to the words that the MLPs see, `(1 or B, num_words, word_dim)`."""
        condition = read_condition(condition, self.config.labels, words, type(self).__name__)
        if condition is None:
            return 0.0
        shape = (self.config.num_words, self.config.word_dim)
        return self.condition_shift(condition).unflatten(1, shape)
