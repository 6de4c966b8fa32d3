"""Teach the detector to say what is wrong with a photo, several things at once, and how badly.

    accelerate launch -m train_lora.train_detector --pretrained_model_name_or_path \
        runs/cleaner/pipeline --train_data_dir PHOTOS \
        --degradations noise:5..50 rain:0.2..1 haze:0.4..2.5 rain:0.2..1+noise:5..30 clean \
        --output_dir runs/detector

Clean photos are degraded by recipes, so that presence and severity of each degradation are known;
the image encoder is frozen.
"""

from dataclasses import dataclass

import torch

from textir.data.photos import find_entries
from textir.degradations import LABELS, RECIPES, Recipe
from textir.evaluation.metrics import mean_average_precision
from textir.images.picture import to_tensor
from textir.models import DegradationDetector
from textir.training.config import knob, run_script
from textir.training.lora import make_trainable
from textir.training.losses import detection_loss
from textir.training.run import TrainingRun
from train_lora.chain import add_image_encoder, load_chain, place, publish, read_json, refuse_lora
from train_lora.data import StageConfig, TrainingData
from train_lora.encoding import encoded_batches
from train_lora.train_mapper import IMAGE_ENCODER
from train_lora.watching import validation_pairs


@dataclass(kw_only=True)
class Config(StageConfig):
    resolution: int = 256
    train_batch_size: int = 16
    learning_rate: float = 1e-3
    image_encoder_name_or_path: str = knob(IMAGE_ENCODER, "where the checkpoint has none")
    detector_config: str | None = knob(
        None,
        "JSON of DegradationDetector arguments: builds a new detector, which takes over what fits "
        "of the checkpoint's",
    )
    num_cached_samples: int = knob(
        0, "encode so many samples once and go round them; 0 makes fresh ones forever"
    )


def main(config: Config) -> TrainingRun:
    pipe = load_chain(config)
    add_image_encoder(pipe, config.image_encoder_name_or_path)
    if pipe.detector is None or config.detector_config:
        refuse_lora(config, "detector")
        options = {
            "image_dim": pipe.image_encoder.config.hidden_size,
            **read_json(config.detector_config, "--detector_config"),
        }
        detector = DegradationDetector(**options)
        if pipe.detector is not None:
            take_over(detector, pipe.detector)
        pipe.register_modules(detector=detector)
    unknown = set(pipe.detector.config.labels) - set(LABELS)
    if unknown:
        raise ValueError(
            f"No recipe makes {', '.join(sorted(unknown))}; a detector's labels must be among "
            f"{', '.join(LABELS)}."
        )
    models = make_trainable(pipe, ["detector"], config.rank, config.lora_alpha)
    data = TrainingData(config, config.resolution)
    if not data.is_synthetic:
        raise ValueError(
            "The detector learns from clean photos and recipes; of pairs it is not known what is "
            "wrong with them."
        )
    if config.validation_data_dir and find_entries(config.validation_data_dir, "test")[0].degraded:
        raise ValueError(
            "`--validation_data_dir` must hold clean photos here; of pairs it is not known what is "
            "wrong with them."
        )
    run = TrainingRun(config, models)
    place(pipe, run, "image_encoder", "detector")
    detector, columns = (
        run.models["detector"],
        [LABELS.index(label) for label in pipe.detector.config.labels],
    )

    @torch.no_grad()
    def encode(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {
            "image_tokens": pipe.encode_image(batch["degraded"]),
            "pixels": pipe.native_pixels(batch["degraded"]),
            "severity": batch["severity"],
        }

    samples = data.crops(config.resolution)
    for batch in encoded_batches(run, pipe, samples, encode, config.num_cached_samples):
        with run.accumulate():
            seen = detector(batch["image_tokens"], batch["pixels"])
            loss = detection_loss(seen.logits, seen.severity, batch["severity"][:, columns])
            run.update(loss, len(seen.logits))
        if run.is_to_validate():
            judge(run, pipe, config)
    run.save()
    publish(run, pipe, "train_detector")
    return run


@torch.no_grad()
def take_over(detector: DegradationDetector, earlier: DegradationDetector) -> None:
    """Give a new detector the weights of an earlier one: all of the same shape, and of the outputs
    those of the same label."""
    old, new = earlier.state_dict(), detector.state_dict()
    same = {
        name: value for name, value in old.items() if name in new and value.shape == new[name].shape
    }
    detector.load_state_dict(same, strict=False)
    if "hidden.weight" not in same:
        return
    before, after = list(earlier.config.labels), list(detector.config.labels)
    for label in set(before) & set(after):
        for name in ("presence.weight", "presence.bias", "severity.weight", "severity.bias"):
            new[name][after.index(label)] = old[name][before.index(label)]


@torch.no_grad()
def judge(run: TrainingRun, pipe, config: Config) -> None:
    """Log the mean average precision over labels and the mean error of the severity over validation
    images of all recipes, and for each recipe how often the detector sees exactly what it names
    (all in %)."""
    if run.is_main and config.validation_data_dir is not None:
        labels = pipe.detector.config.labels
        rows = {"probability": [], "present": [], "error": []}
        right = {}
        with run.averaged():
            for recipe, pair in validation_pairs(config, config.resolution):
                image = to_tensor(pair.degraded).to(run.device)
                (probability,), (severity,) = pipe.detect(
                    pipe.encode_image(image), pipe.native_pixels(image)
                )
                steps = Recipe.parse(recipe).steps
                true = {
                    step.label: RECIPES[step.name].severity(step.low)
                    for step in steps
                    if step.low == step.high
                }
                present = {step.label for step in steps} & probability.keys()
                rows["probability"].append([probability[label] for label in labels])
                rows["present"].append([label in present for label in labels])
                rows["error"] += [
                    abs(severity[label] - true[label]) for label in present & true.keys()
                ]
                right.setdefault(recipe, []).append(
                    {label for label, p in probability.items() if p > 0.5} == present
                )
        scores = {
            "mean average precision": 100
            * mean_average_precision(rows["probability"], rows["present"])
        }
        if rows["error"]:
            scores["severity error"] = 100 * sum(rows["error"]) / len(rows["error"])
        run.report(
            {
                **scores,
                **{recipe: 100 * sum(values) / len(values) for recipe, values in right.items()},
            }
        )
    run.accelerator.wait_for_everyone()


if __name__ == "__main__":
    run_script(main, Config)
