"""What every script does before and after its loop: read the data, put the chain together,
validate, write down what came out."""

import json
import logging
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.training_utils import cast_training_params
from transformers import CLIPImageProcessorPil, CLIPVisionModel

from pipelines import TextGuidedRestorationPipeline, load
from pipelines.loading import find_adapters, load_adapter
from pipelines.pipeline_text_guided_restoration import has_lora_layers
from textir.adapters import has_adapters, save_adapter
from textir.benchmarks import BENCHMARKS
from textir.data import (
    HubPhotos,
    Photos,
    Sampler,
    StreamedCrops,
    TrainingCrops,
    find_entries,
    parse_source,
)
from textir.degradations import LABELS, Mixture
from textir.encoding import encode_samples, to_device
from textir.evaluation import Pair, load_pairs
from textir.hub import describe_training, push, write_card
from textir.images import Picture, to_pixels, to_tensor, write_picture
from textir.metrics import psnr
from textir.models import ImageToTextMapper, TextualCleaner
from textir.training import TrainingConfig, TrainingRun, knob, make_folder, public

logger = logging.getLogger("textir.training")


@dataclass(kw_only=True)
class StageConfig(TrainingConfig):
    """What the stages need beside the knobs of a run: data, and the checkpoint to start from."""

    pretrained_model_name_or_path: str = knob(
        "mini", "checkpoint to start from: mini, a folder or a Hub id; a Stable Diffusion one works"
    )
    revision: str | None = knob(None, "of the Hub repository")
    variant: str | None = knob(None, "of its weight files, such as fp16")
    adapter: str | None = knob(
        None, "LoRA of an earlier stage that this one builds on: a folder or a Hub id"
    )
    train_data_dir: list[str] = field(
        default_factory=list,
        metadata={
            "help": "folders of clean photos or with input/ and target/, or benchmarks such as "
            "gopro:/data/GoPro; @2 weighs one"
        },
    )
    guidance_dir: str | None = knob(
        None, "guidance images (make_guidance.py), named like the degraded ones"
    )
    dataset_name: str | None = knob(
        None, "data set of the Hub, or a folder that `datasets` understands (imagefolder)"
    )
    dataset_split: str = "train"
    clean_column: str = knob("image", "column of the clean image")
    degraded_column: str | None = knob(
        None, "column of the degraded image; degradation is synthetic without one"
    )
    streaming: bool = knob(False, "read the data set of the Hub without downloading it whole")
    pair_label: list[str] = knob(
        [],
        "what the pairs of each --train_data_dir suffer from, such as rain or lowlight+noise, "
        "`clean` for folders of clean photos; "
        "benchmarks know it, and one entry serves all folders",
    )
    labels: list[str] = knob(
        [],
        "give a network that was blind a condition: the degradations that it can be told to "
        "remove, or all (restorer, cleaner)",
    )
    told_share: float = knob(
        0.55, "share of the samples that are told what to remove, where the network has labels"
    )
    degradations: list[str] = knob(
        [], "weighted recipes for clean photos, such as noise:0..50@4 rain:heavy"
    )
    resolution: int = knob(512, "side of the square crops")
    max_reduction: float = knob(2.0, "clean photos are reduced by up to this before cropping")
    low_key: float = knob(
        0.0, "share of clean photos darkened, so that dark is not always under-exposed"
    )
    min_share: float | None = knob(
        None,
        "instead of crops, squeeze at least this share of each side of a clean photo into the "
        "square",
    )
    skip_bad: bool = knob(
        False, "leave out images that cannot be used; without it they are named and nothing starts"
    )

    def __post_init__(self):
        super().__post_init__()
        if not self.train_data_dir and not self.dataset_name:
            raise ValueError("Say what to train on: `--train_data_dir` or `--dataset_name`.")
        if self.streaming and (self.train_data_dir or not self.dataset_name):
            raise ValueError("`--streaming` reads one `--dataset_name` and nothing beside it.")
        if self.degradations:
            Mixture.parse(self.degradations)
        if not 0 <= self.told_share <= 1:
            raise ValueError(f"`--told_share` must lie in 0 to 1, got {self.told_share}.")
        read_all_labels(self.labels)
        if self.pair_label and len(self.pair_label) not in (1, len(self.train_data_dir)):
            raise ValueError(
                f"`--pair_label` needs one entry, or one for each of {len(self.train_data_dir)} "
                "`--train_data_dir`, "
                f"got {len(self.pair_label)}."
            )
        for text in self.pair_label:
            read_labels(text)


def read_labels(text: str) -> tuple[str, ...]:
    """The labels in a text such as `lowlight+noise`; `clean` has none.

    Raises:
        ValueError: if one is unknown.
    """
    labels = () if text == "clean" else tuple(text.split("+"))
    unknown = [label for label in labels if label not in LABELS]
    if unknown:
        raise ValueError(
            f"`--pair_label` takes {', '.join(LABELS)}, joined by +, or clean; got {text!r}."
        )
    return labels


def read_all_labels(names: list[str]) -> tuple[str, ...]:
    """What `--labels` says.

    Raises:
        ValueError: if a degradation is unknown.
    """
    unknown = [label for label in names if label not in LABELS]
    if unknown and list(names) != ["all"]:
        raise ValueError(
            f"`--labels` takes all, or some of {', '.join(LABELS)}; got {', '.join(unknown)}."
        )
    return LABELS if list(names) == ["all"] else tuple(names)


def labels_of(component) -> tuple[str, ...]:
    """What a restorer or cleaner can be told to remove; nothing of a blind one."""
    return tuple(component.config.get("labels") or ())


def condition_columns(component) -> list[int]:
    """Where the entries of a component's condition stand in that of a sample, "find out yourself"
    last."""
    return [*(LABELS.index(label) for label in labels_of(component)), len(LABELS)]


def check_labels(component, config: StageConfig, data: "TrainingData") -> float | None:
    """The share of samples that are told, `None` for a blind network.

    Raises:
        ValueError: if the data suffers from what the network has no label for.
    """
    labels = labels_of(component)
    if not labels:
        return None
    unknown = [label for label in data.labels if label not in labels]
    if config.told_share and unknown:
        raise ValueError(
            f"The training data suffers from {', '.join(unknown)}, for which "
            "the network has no label; it has "
            f"{', '.join(labels)}. Leave that out, or train blind (`--told_share 0`)."
        )
    return config.told_share


def source_labels(source: str, texts: list[str], place: int) -> tuple[str, ...]:
    """What the pairs of the source at `place` suffer from: what `--pair_label` says, or what its
    benchmark is known for."""
    if texts:
        return read_labels(texts[place if len(texts) > 1 else 0])
    name = source.partition(":")[0]
    return (BENCHMARKS[name].label,) if name in BENCHMARKS else ()


# ---- data


class TrainingData:
    """The sources of a configuration, read and checked once; `crops` cuts samples of any size from
    them."""

    def __init__(self, config: StageConfig, smallest: int):
        self.config = config
        make_folder(Path(config.output_dir))
        sources = [parse_source(text) for text in config.train_data_dir]
        if any(weight is not None for _, weight in sources):
            self.weights = [1.0 if weight is None else weight for _, weight in sources] + [
                1.0
            ] * bool(config.dataset_name)
        else:
            self.weights = None
        record = Path(config.output_dir) / "checked_images"
        self.sources = []
        for i, (source, _) in enumerate(sources):
            entries = find_entries(source, "train", config.guidance_dir)
            labels = source_labels(source, config.pair_label, i)
            self.sources.append(
                Photos(
                    entries, smallest, config.skip_bad, record=f"{record}-{i}.json", labels=labels
                )
            )
        if config.dataset_name:
            columns = (config.dataset_split, config.clean_column, config.degraded_column)
            labels = read_labels(config.pair_label[0]) if len(config.pair_label) == 1 else ()
            self.sources.append(
                HubPhotos(config.dataset_name, *columns, streaming=config.streaming, labels=labels)
            )
        if not config.degradations and any(lacks_twins(source) for source in self.sources):
            raise ValueError(
                "Clean photos need `--degradations`, such as noise:0..50 rain:0.2..1@2."
            )
        if not config.streaming:
            logger.info(
                "training data: %s images", " + ".join(str(len(source)) for source in self.sources)
            )

    @property
    def is_synthetic(self) -> bool:
        """Whether all degradation is made by recipes."""
        return all(lacks_twins(source) for source in self.sources)

    @property
    def is_mixed(self) -> bool:
        """Whether some degradation is made by recipes."""
        return any(lacks_twins(source) for source in self.sources)

    @property
    def has_guidance(self) -> bool:
        return all(
            isinstance(source, Photos) and all(entry.guidance for entry in source.entries)
            for source in self.sources
        )

    @property
    def labels(self) -> list[str]:
        """What the data suffer from, by recipes and as pairs."""
        shown = {label for source in self.sources for label in source.labels}
        if self.is_mixed:
            for recipe in Mixture.parse(self.config.degradations).recipes:
                shown |= set(recipe.labels)
        return [label for label in LABELS if label in shown]

    def crops(self, size: int, told_share: float | None = None):
        """Endless training samples of `size` x `size` pixels; with `told_share` they carry
        conditions, see `Sampler`."""
        config = self.config
        sampler = Sampler(
            config.degradations,
            size,
            config.max_reduction,
            config.low_key,
            config.min_share,
            told_share,
            self.labels,
        )
        if config.streaming:
            return StreamedCrops(self.sources[0], sampler, seed=config.seed)
        return TrainingCrops(self.sources, sampler, self.weights, seed=config.seed)


def lacks_twins(source: Photos | HubPhotos) -> bool:
    """Whether some images of a source have no degraded twin."""
    if isinstance(source, HubPhotos):
        return source.degraded_column is None
    return any(not entry.degraded for entry in source.entries)


def validation_pairs(config: StageConfig, side: int) -> Iterator[tuple[str, Pair]]:
    """`(recipe, pair)` for each validation image, with no recipe for pairs: its centre square of
    `side` pixels, less where the image is smaller."""
    if config.validation_data_dir is None:
        return
    entries = find_entries(config.validation_data_dir, "test")
    recipes = [None] if all(entry.degraded for entry in entries) else config.validation_degradations
    for recipe in recipes:
        for pair in load_pairs(
            config.validation_data_dir, recipe, config.seed, config.num_validation_images
        ):
            top, left = ((length - min(length, side)) // 2 for length in pair.clean.shape[:2])
            cut = (slice(top, top + side), slice(left, left + side))
            yield recipe, pair._replace(degraded=pair.degraded[cut], clean=pair.clean[cut])


def validate(
    run: TrainingRun,
    config: StageConfig,
    side: int,
    render: Callable[[torch.Tensor, str | None], dict[str, torch.Tensor]],
    sheet: str = "step",
) -> dict[str, float]:
    """Log the mean PSNR of what `render` makes of degraded images `(1, C, H, W)` and the recipe
    that made them (`None` for pairs), for each recipe and each name that it returns (`clean` stands
    for the target where it differs), save a sheet of the pictures as `validation/SHEET-STEP.png`,
    and return the scores (on the main process)."""
    if not run.is_main or config.validation_data_dir is None:
        run.accelerator.wait_for_everyone()
        return {}
    scores, rows = {}, []
    with run.averaged(), torch.no_grad():
        for recipe, pair in validation_pairs(config, side):
            degraded = to_tensor(pair.degraded).to(run.device)
            rendered = render(degraded, recipe)
            recipe = recipe or "pairs"
            clean = rendered.pop("clean", to_tensor(pair.clean)).cpu()
            size = next(iter(rendered.values())).shape[-2:]
            clean = clean if clean.shape[-2:] == size else F.interpolate(clean, size, mode="area")
            for name, image in rendered.items():
                value = psnr(to_pixels(image), to_pixels(clean))
                scores.setdefault(f"{recipe} {name}" if len(rendered) > 1 else recipe, []).append(
                    value
                )
            if sum(row[0] == recipe for row in rows) < 2:
                rows.append((recipe, [degraded[:, :3], *rendered.values(), clean]))
    means = {name: float(np.mean(values)) for name, values in scores.items()}
    run.report(means)
    write_sheet(
        run.output_dir / "validation" / f"{sheet}-{run.step}.png", [cells for _, cells in rows]
    )
    run.accelerator.wait_for_everyone()
    return means


def write_sheet(path: Path, rows: list[list[torch.Tensor]], side: int = 192) -> None:
    """A figure: a row for each list of images `(1, 3, H, W)` in [0, 1], all brought to one size."""
    cells = [
        [F.interpolate(cell.float().cpu().clamp(0, 1), (side, side), mode="area") for cell in row]
        for row in rows
    ]
    sheet = torch.cat([torch.cat(row, dim=3) for row in cells], dim=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_picture(path, Picture(to_pixels(sheet)))


class recorded_inputs:
    """Within the block, what reaches image encoder and VAE is noted: the very tensors, as pictures
    in [0, 1]."""

    def __init__(self, pipe):
        self.pipe, self.pictures, self.handles = pipe, {}, []

    def __enter__(self) -> dict[str, torch.Tensor]:
        processor = self.pipe.image_processor

        def note_encoder(module, args, kwargs):
            pixels = kwargs["pixel_values"].float().cpu()
            mean, std = (
                torch.tensor(values)[:, None, None]
                for values in (processor.image_mean, processor.image_std)
            )
            # Of several calls the first.
            self.pictures.setdefault("image encoder", pixels * std + mean)

        def note_vae(module, args):
            self.pictures.setdefault("VAE", args[0].float().cpu() / 2 + 0.5)

        self.handles = [
            self.pipe.image_encoder.register_forward_pre_hook(note_encoder, with_kwargs=True),
            *(
                []
                if self.pipe.vae is None
                else [self.pipe.vae.encoder.register_forward_pre_hook(note_vae)]
            ),
        ]
        return self.pictures

    def __exit__(self, *_) -> None:
        for handle in self.handles:
            handle.remove()


def encoded_batches(
    run: TrainingRun, pipe, samples, encode: Callable[[dict], dict], num_cached: int = 0
) -> Iterator[dict[str, torch.Tensor]]:
    """Batches to the end of the run with what the frozen networks make of them: encoded as they
    come, or, with `num_cached`, the first so many samples encoded once and gone round."""
    config = run.config
    if num_cached and isinstance(samples, StreamedCrops):
        raise ValueError(
            "`--num_cached_samples` goes round a part of the data, which `--streaming` cannot."
        )
    if num_cached:
        first = torch.utils.data.default_collate([samples[i] for i in range(4)])
        save_first_batch(run, pipe, to_device(first, run.device), encode)
        samples = encode_samples(
            samples,
            encode,
            num_cached,
            run.output_dir / "cache",
            cache_key(config),
            run.accelerator,
            config.train_batch_size,
            config.dataloader_num_workers,
        )
    for batch in run.batches([(samples, config.train_batch_size, config.max_train_steps)]):
        if not num_cached:
            save_first_batch(run, pipe, batch, encode)
            batch.update(encode(batch))
        yield {
            name: value.float() if value.is_floating_point() else value
            for name, value in batch.items()
        }


def cache_key(config: StageConfig) -> dict:
    """What encoded samples depend on: every knob beyond those of a run, and when the checkpoint was
    written."""
    run_only = {item.name for item in fields(TrainingConfig)} - {"seed", "mixed_precision"}
    key = {name: value for name, value in public(config).items() if name not in run_only}
    folders = [
        Path(str(name)) for name in (config.pretrained_model_name_or_path, config.adapter) if name
    ]
    key["written"] = [
        p.stat().st_mtime_ns
        for folder in folders
        if folder.is_dir()
        for p in sorted(folder.rglob("*.safetensors"))
    ]
    return key


def save_first_batch(
    run: TrainingRun, pipe, batch: dict[str, torch.Tensor], encode: Callable
) -> None:
    """Write `first_batch.png`: the degraded and clean images of a batch, and what image encoder and
    VAE really receive."""
    path = run.output_dir / "first_batch.png"
    if not run.is_main or path.exists():
        return
    with recorded_inputs(pipe) as seen, torch.no_grad():
        encode(batch)
    columns = [batch["degraded"][:, :3], batch["clean"], *seen.values()]
    write_sheet(
        path,
        [[column[i : i + 1] for column in columns] for i in range(min(4, len(batch["clean"])))],
    )
    logger.info(
        "%s: degraded, clean, %s", path, ", ".join(f"what reaches the {name}" for name in seen)
    )


# ---- the chain


def load_chain(config: StageConfig) -> TextGuidedRestorationPipeline:
    """The pipeline to start from, in single precision, with the adapter of an earlier stage if one
    is named."""
    torch.manual_seed(config.seed)  # of what is added to the checkpoint
    try:
        pipe = load(
            config.pretrained_model_name_or_path,
            device="cpu",
            revision=config.revision,
            variant=config.variant,
        )
    except ValueError as error:
        raise ValueError(f"`--pretrained_model_name_or_path`: {error}") from error
    pipe.set_progress_bar_config(disable=True)
    for source in find_adapters(config.pretrained_model_name_or_path, config.adapter).values():
        load_adapter(pipe, source, "default")
    return pipe


def need(pipe, *parts: str) -> None:
    """Refuse a checkpoint that lacks what a stage works with."""
    missing = [part for part in parts if getattr(pipe, part, None) is None]
    if missing:
        raise ValueError(
            f"This stage needs {', '.join(missing)}, which the checkpoint lacks; start from a "
            "Stable Diffusion checkpoint or from the "
            "result of the stage before (`--pretrained_model_name_or_path`)."
        )


def as_guidance(pipe, image: torch.Tensor) -> torch.Tensor:
    """Images `(B, 3, H, W)` as their guidance will show them: squeezed into its square by
    checkpoints that know no other shape."""
    if not pipe.config.square_guidance:
        return image
    return F.interpolate(image, pipe.guidance_shape(*image.shape[-2:]), mode="area")


def refuse_lora(config: StageConfig, part: str) -> None:
    """LoRA layers are saved without what they adapt, so they cannot sit on a network that was made
    just now."""
    if config.rank is not None:
        raise ValueError(
            f"`--rank` adapts a network that is trained already, and the {part} is new; leave "
            "`--rank` out to train it in full."
        )


def add_condition(pipe, part: str, config: StageConfig, **options) -> None:
    """Rebuild a blind restorer or cleaner as one that can be told what to remove; its function
    stays as it was."""
    refuse_lora(config, "condition")
    blind = getattr(pipe, part)
    settings = {name: value for name, value in blind.config.items() if not name.startswith("_")}
    if "labels" not in settings:
        raise ValueError(f"{type(blind).__name__} takes no condition; `--labels` needs a NAFNet.")
    if settings["labels"] is not None:
        raise ValueError(
            f"This {part} has labels already: {', '.join(settings['labels'])}; leave out "
            "`--labels`."
        )
    told = type(blind)(**{**settings, "labels": read_all_labels(config.labels), **options})
    told.load_state_dict(blind.state_dict(), strict=False)
    pipe.register_modules(**{part: told})


def add_image_encoder(pipe, name: str) -> None:
    """Give a base checkpoint the image encoder whose tokens the mapper reads."""
    if pipe.image_encoder is None:
        try:
            encoder = CLIPVisionModel.from_pretrained(name)
            pipe.register_modules(
                image_encoder=encoder, image_processor=CLIPImageProcessorPil.from_pretrained(name)
            )
        except OSError as error:
            raise ValueError(
                f"`--image_encoder_name_or_path` {name} cannot be loaded: {error}"
            ) from error


def add_mapper(pipe, config: StageConfig) -> None:
    """Build a mapper that fits image and text encoder, where there is none or `--mapper_config`
    asks for a new one."""
    if pipe.mapper is None or config.mapper_config:
        refuse_lora(config, "mapper")
        dims = {
            "image_dim": pipe.image_encoder.config.hidden_size,
            "word_dim": pipe.text_encoder.config.hidden_size,
        }
        pipe.register_modules(
            mapper=ImageToTextMapper(
                **{**dims, **read_json(config.mapper_config, "--mapper_config")}
            )
        )


def add_cleaner(pipe, config: StageConfig) -> None:
    """Build a cleaner that fits the mapper, where there is none or `--cleaner_config` asks for a
    new one."""
    if pipe.cleaner is None or config.cleaner_config:
        refuse_lora(config, "cleaner")
        sizes = {"word_dim": pipe.mapper.config.word_dim, "num_words": pipe.mapper.config.num_words}
        pipe.register_modules(
            cleaner=TextualCleaner(
                **{**sizes, **read_json(config.cleaner_config, "--cleaner_config")}
            )
        )


def read_json(text: str | None, flag: str) -> dict:
    try:
        value = json.loads(text or "{}")
    except ValueError as error:
        raise ValueError(
            f"`{flag}` must be JSON such as '{{\"num_words\": 20}}', got {text!r}: {error}"
        ) from None
    if not isinstance(value, dict):
        raise ValueError(f"`{flag}` must be a JSON object, got {text!r}.")
    return value


def place(pipe, run: TrainingRun, *working: str) -> None:
    """Move the `working` components to the run's device, the frozen ones of the base model in its
    reduced precision; on a GPU also what lies under LoRA layers."""
    dtype = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[
        run.config.mixed_precision
    ]
    for name in working:
        part = getattr(pipe, name)
        trains = any(parameter.requires_grad for parameter in part.parameters())
        adapted = trains and has_lora_layers(part) and run.device.type == "cuda"
        reduced = name in ("image_encoder", "text_encoder", "vae", "unet") and (
            adapted or not trains
        )
        torch.nn.Module.to(part, run.device, dtype if reduced else torch.float32)
        cast_training_params(part, dtype=torch.float32)


def without_secrets(arguments: list[str]) -> list[str]:
    """Command line arguments without the Hub token, however it is spelt."""
    kept, skip = [], False
    for argument in arguments:
        secret = argument.replace("-", "_").startswith("__hub_token")
        if not skip and not secret:
            kept.append(argument)
        skip = secret and "=" not in argument
    return kept


def publish(run: TrainingRun, pipe, script: str) -> Path | None:
    """Write the result: `OUTPUT_DIR/adapter` for LoRA layers, else `OUTPUT_DIR/pipeline`; with a
    card, and on the Hub if asked for.

    Returns:
        the folder (on the main process).
    """
    run.accelerator.wait_for_everyone()
    if not run.is_main:
        return None
    config = run.config
    for model in run.bare.values():
        model.eval()
    with run.averaged():
        folder = run.output_dir / ("adapter" if has_adapters(pipe) else "pipeline")
        if has_adapters(pipe):
            save_adapter(pipe, folder)
        else:
            for part in pipe.components.values():
                if isinstance(part, torch.nn.Module):
                    torch.nn.Module.to(part, "cpu", torch.float32)
            pipe.save_pretrained(folder)
    sheets = sorted(
        (run.output_dir / "validation").glob("step-*.png"), key=lambda path: int(path.stem[5:])
    )
    command = shlex.join(["python", "-m", f"train_lora.{script}", *without_secrets(sys.argv[1:])])
    describe_training(
        folder,
        script,
        command,
        public(config),
        run.step,
        run.accelerator.num_processes,
        sheets[-1] if sheets else None,
    )
    write_card(folder)
    logger.info("saved %s", folder)
    run.accelerator.end_training()
    if config.push_to_hub:
        repo = config.hub_model_id or run.output_dir.name
        url = push(folder, repo, token=config.hub_token, private=config.hub_private_repo)
        logger.info("pushed to %s", url)
    return folder
