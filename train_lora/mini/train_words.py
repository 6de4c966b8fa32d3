"""Foundation 2: a vocabulary, and the image encoder and mapper that put photos into words near it.

    python -m train_lora.mini.train_words --pretrained_model_name_or_path runs/mini/vae/pipeline \
        --train_data_dir PHOTOS \
        --captions captions.jsonl --degradations noise:5..50 rain haze clean \
        --validation_data_dir HELD_OUT --output_dir runs/mini/words

Encoder and mapper are trained together: from the words of a photo, clean or degraded, a linear head
must read that photo at 16 x 16 pixels, and the words must come near the tokens that describe it:
its degradations ("hazy", "rainy", ...; "clean" without any), and, of captioned photos, the frequent
words of its captions. The UNet plays no part yet. Gate: the head reads held-out photos at 23 dB.
"""

import json
from collections import Counter
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
)

from textir.degradations import LABELS
from textir.models import ImageToTextMapper
from textir.training.config import knob, run_script
from textir.training.losses import bag_of_words_loss
from textir.training.run import TrainingRun
from train_lora.captions import DEGRADATION_WORDS
from train_lora.chain import load_chain, publish
from train_lora.data import StageConfig, TrainingData
from train_lora.mini.gate import WHOLE, pass_gate
from train_lora.watching import validate

STOP_WORDS = {
    "a",
    "an",
    "the",
    "of",
    "in",
    "on",
    "at",
    "to",
    "and",
    "or",
    "with",
    "is",
    "are",
    "it",
    "its",
    "his",
    "her",
    "their",
}
STOP_WORDS |= {"for", "by", "from", "as", "that", "this", "there", "some", "two", "three", "photo"}
READ_SIDE = 16


@dataclass(kw_only=True)
class Config(StageConfig):
    captions: list[str] = knob([], "JSON lines with file_name and captions (a list) or text")
    resolution: int = 128
    min_share: float | None = knob(0.4, "whole photos in small")
    train_batch_size: int = 32
    learning_rate: float = 1e-3
    lr_scheduler: str = "warmup_stable_decay"
    lr_warmup_steps: int = 200
    max_train_steps: int = 4000
    use_ema: bool = True
    vocabulary_size: int = 2048
    content_words: int = knob(
        400, "how many frequent words of the captions the pseudo-words shall name"
    )
    clean_share: float = knob(0.3, "share of samples that describe the clean photo")
    naming_weight: float = knob(0.01, "of naming, beside the squared error of reading")
    dim: int = knob(192, "width of image tokens and words")
    num_words: int = 20
    mapper_width: int = 96
    text_length: int = knob(40, "tokens of a prompt")
    gate: float = knob(23.0, "PSNR in dB at which held-out photos must be read")


class ReadOut(torch.nn.Module):
    """Reads a photo of 16 x 16 pixels from its words, linearly: `(B, N, D)` -> `(B, 3, 16, 16)`.
    Only training needs it."""

    def __init__(self, num_words: int, dim: int):
        super().__init__()
        self.linear = torch.nn.Linear(num_words * dim, 3 * READ_SIDE**2)
        torch.nn.init.zeros_(self.linear.weight)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.linear(words.flatten(1)).unflatten(1, (3, READ_SIDE, READ_SIDE)) + 0.5


def main(config: Config) -> TrainingRun:
    data = TrainingData(config, config.resolution)
    captions = read_captions(config.captions)
    pipe = load_chain(config)
    add_networks(pipe, config, captions)
    names = named_tokens(pipe.tokenizer, captions, config.content_words)
    labels = label_table(data, captions, names)
    torch.manual_seed(config.seed)
    vocabulary = torch.nn.Embedding(len(names), config.dim)
    models_ = {
        "image_encoder": pipe.image_encoder,
        "mapper": pipe.mapper,
        "readout": ReadOut(config.num_words, config.dim),
        "vocabulary": vocabulary,
    }
    # Behind the last hidden state, which is what the mapper reads.
    pipe.image_encoder.post_layernorm.requires_grad_(False)
    run = TrainingRun(config, models_)
    encoder, mapper, readout, embed = run.models.values()

    for batch in run.batches(
        [(data.crops(config.resolution), config.train_batch_size, config.max_train_steps)]
    ):
        with run.accumulate():
            clean = torch.tensor(
                [(int(i) * 0.618034) % 1 < config.clean_share for i in batch["index"]],
                device=run.device,
            )
            image = torch.where(
                clean[:, None, None, None], batch["clean"], batch["degraded"].clamp(0, 1)
            )
            words = mapper(encoder(pixel_values=pipe.encoder_pixels(image)).last_hidden_state)
            error = readout(words) - F.interpolate(image, (READ_SIDE, READ_SIDE), mode="area")
            present = describe(batch, clean, labels, names).to(run.device)
            naming = bag_of_words_loss(
                words, embed(torch.arange(len(names), device=run.device)), present
            )
            run.update(error.float().square().mean() + config.naming_weight * naming, len(image))
        if run.is_to_validate():
            validate(run, config, WHOLE, read(pipe, models_["readout"]))
    run.save()
    pass_gate(run, config, config.gate, read(pipe, models_["readout"]))
    run.settle()
    finish(pipe, models_["readout"], vocabulary, names, data, config, Path(config.output_dir))
    publish(run, pipe, "mini.train_words")
    return run


# ---- the networks


def add_networks(pipe, config: Config, captions: dict[str, list[str]]) -> None:
    """New, small networks in the shapes of CLIP."""
    torch.manual_seed(config.seed)
    tokenizer = build_tokenizer(list(chain.from_iterable(captions.values())), config)
    vision = CLIPVisionConfig(
        hidden_size=config.dim,
        intermediate_size=4 * config.dim,
        num_hidden_layers=4,
        num_attention_heads=6,
        image_size=128,
        patch_size=16,
    )
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.dim,
        intermediate_size=4 * config.dim,
        num_hidden_layers=3,
        num_attention_heads=6,
        max_position_embeddings=config.text_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    encoder = CLIPVisionModel(vision)
    with torch.no_grad():
        # The default, a fiftieth of the patches' size, is lost in the mapper's mean over patches.
        encoder.embeddings.position_embedding.weight[1:] = (
            0.6 * 2**0.5 * sin_cos_positions(8, config.dim)
        )
    pipe.register_modules(
        tokenizer=tokenizer,
        text_encoder=CLIPTextModel(text),
        image_encoder=encoder,
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": 128}, crop_size={"height": 128, "width": 128}
        ),
        mapper=ImageToTextMapper(config.dim, config.dim, config.num_words, config.mapper_width),
    )


def sin_cos_positions(side: int, dim: int) -> torch.Tensor:
    """Sines and cosines of row and column `(side * side, dim)`, a quarter of `dim` each."""
    frequencies = torch.pi / side * 2 ** torch.linspace(0, 2, dim // 4)
    angles = torch.arange(side)[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = waves[:, None].expand(-1, side, -1), waves[None].expand(side, -1, -1)
    return torch.cat([rows, columns], dim=2).flatten(0, 1)


def build_tokenizer(texts: list[str], config: Config) -> CLIPTokenizer:
    """A CLIP tokenizer learnt from captions, in which each word for a degradation is one token."""
    bpe = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)]
    )
    alphabet = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary_size - 2,
        end_of_word_suffix="</w>",
        initial_alphabet=alphabet,
        show_progress=False,
        min_frequency=2,
    )
    emphasis = [*chain.from_iterable(DEGRADATION_WORDS.values()), "clean"] * 1000
    bpe.train_from_iterator([*texts, " ".join(emphasis), "a photo of a"], trainer)
    learnt = json.loads(bpe.to_str())["model"]
    pieces = list(
        dict.fromkeys(
            [
                *learnt["vocab"],
                *(letter + "</w>" for letter in alphabet),
                "<|startoftext|>",
                "<|endoftext|>",
            ]
        )
    )
    return CLIPTokenizer(
        vocab={piece: index for index, piece in enumerate(pieces)},
        merges=[tuple(merge) for merge in learnt["merges"]],
        model_max_length=config.text_length,
    )


# ---- what photos are called


def read_captions(paths: list[str]) -> dict[str, list[str]]:
    """Captions by file name without extension."""
    captions: dict[str, list[str]] = {}
    for path in paths:
        try:
            for row in map(
                json.loads, filter(str.strip, Path(path).read_text(encoding="utf-8").splitlines())
            ):
                captions.setdefault(Path(row["file_name"]).stem, []).extend(
                    row["captions"] if "captions" in row else [row["text"]]
                )
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"{path} must hold JSON lines with file_name and captions (or text): {error!r}."
            ) from None
    return captions


def words_of(texts: list[str]) -> set[str]:
    """The words of some captions, in lower case and without punctuation at their ends."""
    return {word.strip(".,!?") for word in " ".join(texts).lower().split()}


def named_tokens(
    tokenizer: CLIPTokenizer, captions: dict[str, list[str]], count: int
) -> dict[str, int]:
    """The words that pseudo-words are taught to come near, with their token: one for each
    degradation, "clean", and the most frequent content words of the captions that are one token."""
    words = Counter(chain.from_iterable(map(words_of, captions.values())))
    wanted = [DEGRADATION_WORDS[label][0] for label in LABELS if label in DEGRADATION_WORDS]
    wanted += ["clean", *(word for word, _ in words.most_common() if word not in STOP_WORDS)]
    tokens = {}
    for word in dict.fromkeys(wanted):
        ids = tokenizer(word, add_special_tokens=False).input_ids
        if len(ids) == 1 and len(tokens) < len(DEGRADATION_WORDS) + 1 + count:
            tokens[word] = ids[0]
    return tokens


def label_table(
    data: TrainingData, captions: dict[str, list[str]], names: dict[str, int]
) -> list[torch.Tensor]:
    """For each source `(photos, names)`: which words a photo's captions use; NaN for photos without
    caption."""
    tables = []
    for source in data.sources:
        table = torch.full((len(source), len(names)), float("nan"))
        for row, entry in enumerate(source.entries):
            if entry.clean.stem in captions:
                said = words_of(captions[entry.clean.stem])
                table[row] = torch.tensor([float(word in said) for word in names])
        tables.append(table)
    return tables


def describe(
    batch: dict, clean: torch.Tensor, labels: list[torch.Tensor], names: dict[str, int]
) -> torch.Tensor:
    """Which of the named words fit the described images `(B, names)`."""
    present = torch.stack([labels[int(s)][int(p)] for s, p in zip(batch["source"], batch["photo"])])
    severity = torch.where(
        clean.cpu()[:, None], torch.zeros_like(batch["severity"].cpu()), batch["severity"].cpu()
    )
    columns = {word: column for column, word in enumerate(names)}
    for index, label in enumerate(LABELS):
        if label in DEGRADATION_WORDS:
            present[:, columns[DEGRADATION_WORDS[label][0]]] = (severity[:, index] > 0).float()
    present[:, columns["clean"]] = (severity.sum(1) == 0).float()
    return present


# ---- after training


def read(pipe, readout: ReadOut):
    """What the head reads from the words of an image, beside the image at that size."""

    def render(degraded: torch.Tensor, recipe: str | None) -> dict[str, torch.Tensor]:
        words = pipe.mapper(pipe.encode_image(degraded).float())
        return {"read": readout(words).float(), "clean": degraded.clamp(0, 1)}

    return render


@torch.no_grad()
def finish(
    pipe,
    readout: ReadOut,
    vocabulary,
    names: dict[str, int],
    data: TrainingData,
    config: Config,
    folder: Path,
) -> None:
    """Bring words to unit size (small ones are lost on the networks behind), write the named
    embeddings into the table of the text encoder, and keep the head as the measure for the painter.
    """
    crops = data.crops(config.resolution)
    images = torch.stack([crops[i]["clean"] for i in range(128)])
    scale = pipe.mapper(pipe.encode_image(images).float()).std()
    for branch in (pipe.mapper.from_class, pipe.mapper.from_patches):
        for output in branch.outputs:
            output.weight /= scale
            output.bias /= scale
    readout.linear.weight *= scale
    table = pipe.text_encoder.get_input_embeddings().weight
    table.copy_(F.normalize(table, dim=-1) * config.dim**0.5)
    table[torch.tensor(list(names.values()))] = (
        F.normalize(vocabulary.weight, dim=-1) * config.dim**0.5
    )
    save_file(
        {"weight": readout.linear.weight.contiguous(), "bias": readout.linear.bias.contiguous()},
        folder / "readout.safetensors",
    )


if __name__ == "__main__":
    run_script(main, Config)
