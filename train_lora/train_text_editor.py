"""Train the editor: holes, small photos or gray ones, and words for them (Bai et al., TextIR).

    accelerate launch -m train_lora.train_text_editor --task colorize --train_data_dir PHOTOS \
        --output_dir runs/colorizer --mixed_precision bf16 --resume_from_checkpoint latest

Clean photos are all it needs; captions, in `metadata.jsonl` beside them, help the words. Their
embeddings are computed once and kept below the output folder, or in `--cache_dir`.

The paper conditions on the embedding of the clean photo with a little noise, and takes text at use.
Here most conditions are texts from the start, made from the very crop where there is no caption:
noise only bridges the gap between photos and texts, text in training closes it.

The result is `OUTPUT_DIR/pipeline`, or `OUTPUT_DIR/adapter` with `--rank`.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
)

from pipelines import TextEditableRestorationPipeline, TextGuidedRestorationPipeline, load
from pipelines.loading import class_name, load_editor, locate
from pipelines.pipeline_text_editable_restoration import PARTS
from textir.data.photos import parse_source
from textir.data.samples import sample_generator
from textir.degradations import gray
from textir.models import EditProcessor, TextEditableRestorer
from textir.models.edit_processor import fill_harmonic
from textir.training.config import TrainingConfig, knob, run_script
from textir.training.lora import make_trainable
from textir.training.run import TrainingRun
from train_lora.chain import need, publish, read_json
from train_lora.described_photos import DescribedPhoto, SpokenWords, all_things, describe_photos
from train_lora.editor_judge import judge
from train_lora.editor_losses import EditorLosses
from train_lora.editor_samples import EditSamples, Shares, Words, middle_box

logger = logging.getLogger("textir.training")

ENCODERS = ("photo_encoder", "photo_processor", "photo_text_encoder", "photo_tokenizer")
NETWORKS = {
    "inpaint": {"depths": [0, 0, 0, 2]},
    "super-resolution": {"widths": [48, 80, 112, 144], "depths": [1, 2, 1, 1]},
    "colorize": {"encoder_type": "efficient", "widths": [32, 64, 96, 128, 160]},
}
"""Arguments of a new network for each task, those of the embedded ones."""


@dataclass(kw_only=True)
class Config(TrainingConfig):
    task: str = knob("inpaint", "inpaint, super-resolution or colorize")
    pretrained_model_name_or_path: str = knob(
        "mini-textir",
        "checkpoint to start from: mini-textir, a folder or a Hub id; one of text-guided "
        "restoration, such as mini, lends its encoders to a new network",
    )
    revision: str | None = knob(None, "of the Hub repository")
    encoders_name_or_path: str | None = knob(
        None,
        "a CLIP of the Hub, or its folder, in place of the checkpoint's encoders; its embeddings "
        "mean something else, so this needs `--new_network`",
    )
    new_network: bool = knob(
        False, "take encoders and processors of the checkpoint, and a new network for the task"
    )
    network_config: str | None = knob(
        None, "JSON of TextEditableRestorer's arguments, for a new network"
    )
    train_data_dir: list[str] = knob(
        [], "folders of clean photos, with captions in metadata.jsonl if there are any"
    )
    names_as_captions: bool = knob(
        False, "file names say what photos without captions show, as in 012_goldfish.jpg"
    )
    leave_out: str | None = knob(
        None, "text file with names of photos that are set aside, a line each"
    )
    cache_dir: str | None = knob(None, "where embeddings are kept; OUTPUT_DIR/cache by default")
    largest_side: int = knob(
        320, "photos are kept in memory with at most so many pixels on the shorter side"
    )
    resolution: int = knob(160, "side of the square crops")
    least_share: float = knob(
        0.6, "of the shorter side that a crop shows; native pixels if enlarging"
    )
    text_share: float = knob(0.4, "how often the words are a text")
    image_share: float = knob(0.15, "how often they are the photo's own embedding with noise")
    own_share: float = knob(0.25, "how often they are that of what is given, with noise")
    mixture_share: float = knob(0.08, "how often they are a mixture of text and image")
    none_share: float = knob(0.12, "how often there are none")
    made_share: float = knob(0.4, "of texts, made from the crop; captions otherwise")
    vividness: float = knob(
        0.0, "how much more pixels count the more colourful they are (colorize); against brown"
    )
    recoloured_share: float = knob(0.4, "of photos in another colour, which the words name")
    frozen_encoder: bool = knob(False, "the encoder keeps its weights")
    pixel_weight: float = knob(1.0, "of the L1 distance, in holes per pixel of the hole")
    squared_weight: float = knob(
        0.0, "of the squared distance beside the L1 distance (inpaint); towards PSNR"
    )
    colour_weight: float = knob(0.05, "of missing colourfulness (colorize)")
    perceptual_weight: float = knob(0.0, "of the distance of features; 0.01 for holes")
    text_weight: float = knob(0.0, "of the distance of the result from its words (CLIP loss)")
    adversarial_weight: float = knob(0.0, "of a discriminator, non-saturating with R1")
    adversarial_start: int = knob(
        2000, "step at which the discriminator's judgement begins to count; it learns before"
    )
    discriminator_learning_rate: float = knob(2e-4, "of the discriminator")
    train_batch_size: int = 16
    learning_rate: float = 1e-3
    lr_scheduler: str = "warmup_stable_decay"
    lr_warmup_steps: int = 300
    adam_beta2: float = knob(0.99, "memory of the mean of squared gradients")
    adam_weight_decay: float = 1e-4
    use_ema: bool = True
    max_train_steps: int = 100_000

    @property
    def part(self) -> str:
        """The component that trains."""
        return PARTS[self.task]

    def __post_init__(self):
        super().__post_init__()
        if self.task not in PARTS:
            raise ValueError(f"`--task` must be {', '.join(PARTS)}, got {self.task!r}.")
        if not self.train_data_dir:
            raise ValueError("Say what to train on: `--train_data_dir` with clean photos.")
        weighted = [text for text in self.train_data_dir if parse_source(text)[1] is not None]
        if weighted:
            raise ValueError(
                f"The editor takes all photos alike; leave out the weight of {weighted[0]}."
            )
        if self.validation_degradations != ["noise:25"]:
            raise ValueError(
                "`--validation_degradations` is for restorers; the editor is judged by its task."
            )
        if self.vividness and self.task != "colorize":
            raise ValueError("`--vividness` belongs to `--task colorize`.")
        if self.squared_weight and self.task != "inpaint":
            raise ValueError("`--squared_weight` belongs to `--task inpaint`.")
        if self.network_config and not self.new_network:
            raise ValueError("`--network_config` builds a new network; add `--new_network`.")
        if self.encoders_name_or_path and not self.new_network:
            raise ValueError(
                "`--encoders_name_or_path` brings another space, in which the network of the "
                "checkpoint understands nothing; add `--new_network`."
            )
        if self.rank is not None and self.new_network:
            raise ValueError(
                "`--rank` adapts a network that is trained already; leave out `--new_network`."
            )
        if self.resolution < 32 or self.resolution > self.largest_side:
            raise ValueError(
                "`--resolution` must lie between 32 and `--largest_side`, got "
                f"{self.resolution} and {self.largest_side}."
            )
        if not 0 < self.least_share <= 1:
            raise ValueError(f"`--least_share` must lie in 0 to 1, got {self.least_share}.")


def main(config: Config) -> TrainingRun:
    pipe = load_pipeline(config)
    part = config.part
    photos, words = read_words(pipe, config)
    samples = EditSamples(
        config.task,
        photos,
        words,
        config.resolution,
        config.seed,
        None if config.task == "super-resolution" else config.least_share,
    )
    editor = getattr(pipe, part)
    if config.new_network:
        set_means(editor, words)
    models = make_trainable(pipe, [part], config.rank, config.lora_alpha)
    if config.frozen_encoder:
        editor.encoder.requires_grad_(False)
    if config.gradient_checkpointing:
        editor.enable_gradient_checkpointing()
    editor.to(memory_format=torch.channels_last)
    losses = EditorLosses(config, pipe)
    models.update(losses.trainable_models())
    run = TrainingRun(config, models, losses.learning_rates())
    losses.to(run.device)
    for batch in run.batches([(samples, config.train_batch_size, config.max_train_steps)]):
        with run.accumulate():
            condition = conditions(editor, batch)
            edited = edit_batch(run, part, condition, batch)
            loss = losses(run, edited, condition, batch)
            run.update(loss, len(batch["start"]))
        if run.is_to_validate():
            judge(run, config, pipe)
    run.save()
    pipe.register_modules(**{part: editor})
    publish(run, pipe, "train_text_editor")
    return run


def load_pipeline(config: Config) -> TextEditableRestorationPipeline:
    """The checkpoint to start from, with a new network for the task where that is asked for.

    Raises:
        ValueError: if it cannot be loaded, or lacks encoders or the network of the task.
    """
    pipe = load_start(config)
    pipe.set_progress_bar_config(disable=True)
    if pipe.edit_processor is None:  # it has no weights, and older checkpoints no such file
        pipe.register_modules(edit_processor=EditProcessor())
    part = config.part
    if config.new_network:
        torch.manual_seed(config.seed)
        options = {**NETWORKS[config.task], **read_json(config.network_config, "--network_config")}
        options["condition_dim"] = pipe.embedding_dim
        try:
            editor = TextEditableRestorer(task=config.task, **options)
        except TypeError as error:
            raise ValueError(f"`--network_config` does not fit: {error}") from None
        take_encoder(editor, pipe.photo_encoder)
        pipe.register_modules(**{part: editor})
    if getattr(pipe, part) is None:
        raise ValueError(
            f"This checkpoint has no {part} for `--task {config.task}`; add `--new_network`."
        )
    return pipe


def load_start(config: Config) -> TextEditableRestorationPipeline:
    """The encoders, and the networks that there are already.

    Raises:
        ValueError: if something cannot be loaded, or there are no encoders.
    """
    if config.encoders_name_or_path is not None:
        return encoders_of(config.encoders_name_or_path)
    name = config.pretrained_model_name_or_path
    try:
        if class_name(Path(locate(name))) != TextGuidedRestorationPipeline.__name__:
            return load_editor(name, device="cpu", revision=config.revision)
        guided = load(name, device="cpu", revision=config.revision)
    except ValueError as error:
        raise ValueError(f"`--pretrained_model_name_or_path`: {error}") from error
    need(guided, *ENCODERS)
    encoders = {part: getattr(guided, part) for part in ENCODERS}
    return TextEditableRestorationPipeline(edit_processor=EditProcessor(), **encoders)


def encoders_of(name: str) -> TextEditableRestorationPipeline:
    """A pipeline with the towers of a CLIP, and no network yet.

    Raises:
        ValueError: if they cannot be had.
    """
    try:
        return TextEditableRestorationPipeline(
            edit_processor=EditProcessor(),
            photo_encoder=CLIPVisionModelWithProjection.from_pretrained(name),
            photo_processor=CLIPImageProcessorPil.from_pretrained(name),
            photo_text_encoder=CLIPTextModelWithProjection.from_pretrained(name),
            photo_tokenizer=CLIPTokenizer.from_pretrained(name),
        )
    except (OSError, ValueError) as error:
        raise ValueError(f"`--encoders_name_or_path` {name} cannot be loaded: {error}") from error


@torch.no_grad()
def take_encoder(editor: TextEditableRestorer, photo_encoder) -> None:
    """Start an efficient encoder from the weights of the photo encoder's network, if they fit."""
    network = getattr(photo_encoder, "network", None)
    if editor.config.encoder_type != "efficient" or network is None:
        return
    own, given = editor.encoder.state_dict(), network.state_dict()
    for name, value in own.items():
        if name not in given or given[name].shape != value.shape:
            raise ValueError(
                f"The encoder's {name} does not fit that of the photo encoder; give `stages` in "
                "`--network_config` as it has them."
            )
        value.copy_(given[name])


def read_words(
    pipe: TextEditableRestorationPipeline, config: Config
) -> tuple[list[DescribedPhoto], Words]:
    """The photos in memory, and what can be said of them.

    Raises:
        ValueError: if the file of names cannot be read, or no photo is left.
    """
    folder = Path(config.cache_dir or Path(config.output_dir) / "cache")
    shares = Shares(
        text=config.text_share,
        image=config.image_share,
        own=config.own_share,
        mixture=config.mixture_share,
        none=config.none_share,
        made=config.made_share,
        recoloured=config.recoloured_share,
    )
    left_out = frozenset()
    if config.leave_out is not None:
        try:
            left_out = frozenset(Path(config.leave_out).read_text(encoding="utf-8").split())
        except OSError as error:
            raise ValueError(f"`--leave_out` cannot be read: {error}") from None
    photos = describe_photos(
        config.train_data_dir,
        pipe,
        GIVEN[config.task],
        GIVEN[config.task].__name__,
        folder,
        config.largest_side,
        min(128, config.resolution),
        config.names_as_captions,
        left_out,
    )
    spoken = SpokenWords(pipe.embed_texts, folder, all_things(photos))
    words = Words(photos, spoken, shares)
    if config.task == "super-resolution":  # of native pixels
        photos = [photo for photo in photos if min(photo.pixels.shape[:2]) >= config.resolution]
    logger.info("photos and captions agree by %.2f, noise up to %.2f", words.agreement, words.noise)
    return photos, words


def image(image: torch.Tensor) -> torch.Tensor:
    """The photo itself: of a small photo the embedding is much the same."""
    return image


def with_hole(image: torch.Tensor) -> torch.Tensor:
    """A photo with a hole in its middle, filled from its border."""
    return fill_harmonic(image, middle_box(*image.shape[-2:]))


GIVEN = {"inpaint": with_hole, "super-resolution": image, "colorize": gray}


@torch.no_grad()
def set_means(editor: TextEditableRestorer, words: Words) -> None:
    editor.text_mean.copy_(words.text_mean)
    editor.image_mean.copy_(words.image_mean)


def conditions(editor: TextEditableRestorer, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the network is told `(B, D)`: the words, or its own "no words"."""
    return torch.where(batch["wordless"][:, None], editor.no_words, batch["condition"])


def edit_batch(
    run: TrainingRun, part: str, condition: torch.Tensor, batch: dict[str, torch.Tensor]
) -> torch.Tensor:
    """What the training network makes of a batch."""
    inputs = {name: batch[name] for name in ("mask", "scale") if name in batch}
    if run.bare[part].config.noise:
        inputs["generator"] = sample_generator(run.config.seed ^ 0x015E, int(batch["index"][0]))
    start = batch["start"].contiguous(memory_format=torch.channels_last)
    return run.models[part](start, condition, **inputs)


if __name__ == "__main__":
    run_script(main, Config)
