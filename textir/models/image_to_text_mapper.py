"""M_i2t: from the image tokens of a CLIP vision tower to pseudo-words in the embedding space of its
text tower.

Lin et al., *Improving Image Restoration through Removing Degradations in Textual Representations*
(CVPR 2024, eq. 2). Each word is the sum of what two MLPs read. One reads the class token, the
other the patch tokens, averaged over the patches. The defaults are the paper's shapes (249.5 M
parameters); `rank` builds a light form with shared trunks.
"""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from torch import nn


class MLPTrunk(nn.Module):
    """Three times linear, layer normalisation, LeakyReLU: `(..., in_dim)` -> `(..., width)`."""

    def __init__(self, in_dim: int, width: int):
        super().__init__()
        self.fc1, self.norm1 = nn.Linear(in_dim, width), nn.LayerNorm(width)
        self.fc2, self.norm2 = nn.Linear(width, width), nn.LayerNorm(width)
        self.fc3, self.norm3 = nn.Linear(width, width), nn.LayerNorm(width)
        self.activation = nn.LeakyReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.activation(self.norm1(self.fc1(x)))
        x = self.activation(self.norm2(self.fc2(x)))
        return self.activation(self.norm3(self.fc3(x)))


class WordMLPs(nn.Module):
    """The paper's form: an MLP of its own for each word, `(B, T, in_dim)` -> `(B, num_words, T,
    word_dim)`."""

    def __init__(self, in_dim: int, word_dim: int, num_words: int, width: int):
        super().__init__()
        self.trunks = nn.ModuleList(MLPTrunk(in_dim, width) for _ in range(num_words))
        self.outputs = nn.ModuleList(nn.Linear(width, word_dim) for _ in range(num_words))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.stack(
            [output(trunk(tokens)) for trunk, output in zip(self.trunks, self.outputs)], dim=1
        )


class LowRankWords(nn.Module):
    """The light form: one trunk for all words, and for each word a low-rank head, `(B, T, in_dim)`
    -> `(B, N, T, word_dim)`."""

    def __init__(self, in_dim: int, word_dim: int, num_words: int, width: int, rank: int):
        super().__init__()
        self.num_words, self.rank = num_words, rank
        self.trunk = MLPTrunk(in_dim, width)
        self.reduce = nn.Linear(width, num_words * rank)
        self.expand = nn.Parameter(torch.randn(num_words, rank, word_dim) * rank**-0.5)
        self.bias = nn.Parameter(torch.zeros(num_words, 1, word_dim))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        # (B, T, N, rank)
        low = self.reduce(self.trunk(tokens)).unflatten(-1, (self.num_words, self.rank))
        return torch.einsum("btnr,nrd->bntd", low, self.expand) + self.bias


class ImageToTextMapper(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """Maps image tokens to pseudo-words.

    Args:
        image_dim: width of the image tokens (1280 for CLIP ViT-H/14).
        word_dim: width of the word embeddings (1024 for the text tower of Stable Diffusion 2.1, 768
            for 1.5).
        num_words: pseudo-words for each image; the paper's ablation finds 20 to be enough.
        width: width of the hidden layers; `None` takes `image_dim`.
        rank: rank of each word's head in the light form with shared trunks; `None` gives every word
            MLPs of its own (the paper).
    """

    _supports_gradient_checkpointing = True

    _lora_layers = r".*(fc[123]|reduce|outputs\.\d+)"

    @register_to_config
    def __init__(
        self,
        image_dim: int = 1280,
        word_dim: int = 1024,
        num_words: int = 20,
        width: int | None = None,
        rank: int | None = None,
    ):
        super().__init__()
        width = width or image_dim

        def words() -> nn.Module:
            if rank is None:
                return WordMLPs(image_dim, word_dim, num_words, width)
            return LowRankWords(image_dim, word_dim, num_words, width, rank)

        self.from_class, self.from_patches = words(), words()
        self.gradient_checkpointing = False

    def forward(self, image_tokens: torch.Tensor) -> torch.Tensor:
        """Read the words of images.

        Args:
            image_tokens: `(B, 1 + P, image_dim)`, the class token first: the last hidden state of
                the vision tower.

        Returns:
            pseudo-words `(B, num_words, word_dim)`.

        Raises:
            ValueError: if the tokens have another width or there is no patch token.
        """
        if (
            image_tokens.ndim != 3
            or image_tokens.shape[-1] != self.config.image_dim
            or image_tokens.shape[1] < 2
        ):
            raise ValueError(
                f"`image_tokens` must be (B, 1 + patches, {self.config.image_dim}), got "
                f"{tuple(image_tokens.shape)}; "
                "take the last hidden state of the image encoder that the mapper was trained with."
            )
        class_words = self._run(self.from_class, image_tokens[:, :1])
        patch_words = self._run(self.from_patches, image_tokens[:, 1:])
        return class_words.squeeze(2) + patch_words.mean(2)

    def _run(self, module: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(module, tokens)
        return module(tokens)
