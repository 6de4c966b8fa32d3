"""What every script learns from: its knobs, and the samples that they describe."""

import logging
from dataclasses import dataclass, field
from pathlib import Path

from textir.data.layouts import BENCHMARKS
from textir.data.photos import HubPhotos, Photos, find_entries, parse_source
from textir.data.samples import Sampler, StreamedCrops, TrainingCrops
from textir.degradations import LABELS, Mixture
from textir.training.config import TrainingConfig, knob
from textir.training.run import make_folder

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


def source_labels(source: str, texts: list[str], place: int) -> tuple[str, ...]:
    """What the pairs of the source at `place` suffer from: what `--pair_label` says, or what its
    benchmark is known for."""
    if texts:
        return read_labels(texts[place if len(texts) > 1 else 0])
    name = source.partition(":")[0]
    return (BENCHMARKS[name].label,) if name in BENCHMARKS else ()


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
        for source in self.sources:
            if not isinstance(source, Photos):
                return False
            if not all(entry.guidance for entry in source.entries):
                return False
        return True

    @property
    def labels(self) -> list[str]:
        """What the data suffer from, by recipes and as pairs."""
        present = set().union(*(source.labels for source in self.sources))
        if self.is_mixed:
            for recipe in Mixture.parse(self.config.degradations).recipes:
                present |= set(recipe.labels)
        return [label for label in LABELS if label in present]

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
