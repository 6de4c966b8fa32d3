"""A training run that can be killed at any time and goes on to the same bits.

The stages themselves, one script and one visible loop each, are in `train_lora/`; what they
minimise is in `losses.py`.
"""

import contextlib
import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, set_seed
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader, IterableDataset
from transformers import get_scheduler

from textir.hub.publishing import check_access
from textir.training.config import TrainingConfig, public

logger = logging.getLogger("textir.training")

WEIGHTS, AVERAGES, STATE = "trainable.safetensors", "averages.safetensors", "run.json"


class TrainingRun:
    """One run: what trains, its optimizer, and everything that has to survive a kill.

    Args:
        config: the knobs.
        models: what trains, by the name of the pipeline's component; of their parameters those with
            `requires_grad`.
        learning_rates: of components that differ from `config.learning_rate`.

    Attributes:
        models: the same, ready for several processes and mixed precision; call these in the loop.
        trainable: the one list of parameters that optimizer, clipping, averaging and checkpoints go
            by.
        step: optimizer steps done.
        rate: samples a second, over the steps of the last log line.

    Raises:
        ValueError: if nothing trains, the output folder cannot be written, or the checkpoint to
            resume from does not fit.
    """

    def __init__(
        self,
        config: TrainingConfig,
        models: dict[str, torch.nn.Module],
        learning_rates: dict[str, float] | None = None,
    ):
        self.config, self.output_dir = config, Path(config.output_dir)
        make_folder(self.output_dir)
        if config.push_to_hub:
            check_access(config.hub_token)  # better now than after days of training
        tracker = None if config.report_to == "none" else config.report_to
        self.accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            log_with=tracker,
            project_config=ProjectConfiguration(
                project_dir=str(self.output_dir),
                logging_dir=str(self.output_dir / config.logging_dir),
            ),
            cpu=not torch.cuda.is_available(),
        )
        self.is_main, self.device = self.accelerator.is_main_process, self.accelerator.device
        logger.setLevel(logging.INFO if self.is_main else logging.ERROR)
        torch.backends.cuda.matmul.allow_tf32 = config.allow_tf32
        set_seed(config.seed)

        self._set_up_optimizer(models, learning_rates or {})
        for model in models.values():
            model.train()
        prepared = self.accelerator.prepare(*models.values(), self.optimizer)
        *wrapped, self.optimizer = prepared
        self.bare = dict(models)
        self.models = dict(zip(models, wrapped))
        if self.ema is not None:
            self.ema.to(self.device)
        self.accelerator.register_save_state_pre_hook(self._save_trainable)
        self.accelerator.register_load_state_pre_hook(self._load_trainable)

        self.step = self.samples = 0
        self.saved: int | None = None
        self.losses: list[float] = []
        self.clock = time.perf_counter()
        self.rate = 0.0
        self._resume()
        if self.is_main:
            settings = public(config)
            (self.output_dir / "config.json").write_text(
                json.dumps(settings, indent=2) + "\n", encoding="utf-8"
            )
            noted = {name: str(value) for name, value in settings.items()}
            self.accelerator.init_trackers(config.tracker_project_name, noted)
        count = sum(parameter.numel() for parameter in self.trainable)
        logger.info(
            "%s train: %.3f M parameters, steps %d to %d",
            ", ".join(models),
            count / 1e6,
            self.step,
            config.max_train_steps,
        )

    def _set_up_optimizer(
        self, models: dict[str, torch.nn.Module], learning_rates: dict[str, float]
    ) -> None:
        """AdamW with a group for each component, its schedule, and the averaged weights."""
        config = self.config
        groups, self.trainable = [], []
        for name, model in models.items():
            learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
            rate = learning_rates.get(name, config.learning_rate)
            groups.append({"params": learning, "lr": rate})
            self.trainable += learning
        if not self.trainable:
            raise ValueError("Nothing to train: no parameter requires a gradient.")
        self.optimizer = torch.optim.AdamW(
            groups,
            betas=(config.adam_beta1, config.adam_beta2),
            weight_decay=config.adam_weight_decay,
            eps=config.adam_epsilon,
        )
        self.scheduler = get_scheduler(
            config.lr_scheduler,
            self.optimizer,
            config.lr_warmup_steps,
            config.max_train_steps,
            self._decay(),
        )
        self.ema = None
        if config.use_ema:
            self.ema = EMAModel(self.trainable, decay=config.ema_decay, foreach=True)

    def _decay(self) -> dict | None:
        if self.config.lr_scheduler != "warmup_stable_decay":
            return None
        steps = (
            self.config.max_train_steps // 3
            if self.config.lr_decay_steps is None
            else self.config.lr_decay_steps
        )
        return {"num_decay_steps": steps, "min_lr_ratio": 0.01}

    # ---- the loop

    def batches(
        self, phases: Sequence[tuple[torch.utils.data.Dataset, int, int]]
    ) -> Iterator[dict[str, torch.Tensor]]:
        """Batches from the present step to the end.

        Args:
            phases: `(samples, batch size, last step)`, one after the other; sample indices go on
                where the phase before ended.
        """
        first, begin = 0, 0
        for samples, batch_size, end in phases:
            taken = (
                batch_size
                * self.accelerator.num_processes
                * self.config.gradient_accumulation_steps
            )
            todo = range(first + max(self.step - begin, 0) * taken, first + (end - begin) * taken)
            first, begin = first + (end - begin) * taken, end
            if len(todo):
                yield from self._loader(samples, batch_size, todo)

    def _loader(self, samples, batch_size: int, todo: range):
        workers = self.config.dataloader_num_workers
        if isinstance(samples, IterableDataset):
            samples.start, samples.length = todo.start, len(todo)
            loader = DataLoader(samples, batch_size, num_workers=min(workers, 1))
        else:
            loader = DataLoader(
                samples,
                batch_size,
                sampler=todo,
                num_workers=workers,
                prefetch_factor=8 if workers else None,
            )
        return self.accelerator.prepare(loader)

    def accumulate(self):
        """Around one forward and backward pass: gradients of processes and passes are joined when a
        step is complete."""
        return self.accelerator.accumulate(*self.models.values())

    def update(self, loss: torch.Tensor, count: int) -> None:
        """Learn from the loss of `count` samples; after a whole step count, log and save.

        Raises:
            ValueError: if losses are no longer finite.
        """
        self.accelerator.backward(loss)
        if self.accelerator.sync_gradients:
            self.accelerator.clip_grad_norm_(self.trainable, self.config.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.losses.append(loss.detach())
        self.samples += count * self.accelerator.num_processes
        if not self.accelerator.sync_gradients:
            return
        self.scheduler.step()
        if self.ema is not None:
            self.ema.step(self.trainable)
        self.step += 1
        if self.due(self.config.logging_steps) or (
            self.losses and (self.step == 1 or self.is_last)
        ):
            self._log_loss()
        if self.due(self.config.checkpointing_steps):
            self.save()

    @property
    def is_last(self) -> bool:
        """Whether no step is left."""
        return self.step == self.config.max_train_steps

    def due(self, steps: int) -> bool:
        """Whether a step that is a multiple of `steps` has just been completed."""
        return self.accelerator.sync_gradients and self.step % steps == 0

    def is_to_validate(self) -> bool:
        """Whether it is time for a validation: every `--validation_steps`, and at the end."""
        return self.due(self.config.validation_steps) or (
            self.accelerator.sync_gradients and self.is_last
        )

    def _mean_loss(self) -> float:
        mean = self.accelerator.reduce(torch.stack(self.losses).mean(), "mean").item()
        if not abs(mean) < float("inf"):
            raise ValueError(
                f"The loss is {mean} at step {self.step}; take a lower `--learning_rate` and "
                f"resume from {self.output_dir}, "
                "whose checkpoints are from before."
            )
        return mean

    def _log_loss(self) -> None:
        self.rate = self.samples / (time.perf_counter() - self.clock)
        loss, lr = self._mean_loss(), self.scheduler.get_last_lr()[0]
        is_logarithm = getattr(self.config, "loss", None) == "psnr"
        scale = " (log10 of the squared error)" if is_logarithm else ""
        logger.info(
            "step %d loss %.4f%s lr %.2e %.1f samples/s", self.step, loss, scale, lr, self.rate
        )
        self.accelerator.log(
            {"loss": loss, "lr": lr, "samples_per_second": self.rate}, step=self.step
        )
        self.samples, self.losses, self.clock = 0, [], time.perf_counter()

    def report(self, scores: dict[str, float]) -> None:
        """Log validation scores."""
        logger.info(
            "step %d validation %s",
            self.step,
            " ".join(f"{name} {value:.2f}" for name, value in scores.items()),
        )
        self.accelerator.log(
            {f"validation/{name}": value for name, value in scores.items()}, step=self.step
        )
        self.samples, self.clock = 0, time.perf_counter()

    def save(self) -> None:
        """Save a checkpoint now, unless this step has one."""
        if self.saved == self.step:
            return
        if self.losses:
            self._mean_loss()
        if not all(parameter.isfinite().all() for parameter in self.trainable):
            raise ValueError(
                f"Weights are no longer finite at step {self.step} and are not saved; take a lower "
                "`--learning_rate` or "
                f"`--max_grad_norm` and resume from {self.output_dir}."
            )
        save_checkpoint(
            self.accelerator, self.output_dir, self.step, self.config.checkpoints_total_limit
        )
        self.saved = self.step

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Within the block the models hold their averaged weights, if an average is kept."""
        if self.ema is None:
            yield
            return
        self.ema.store(self.trainable)
        self.ema.copy_to(self.trainable)
        try:
            yield
        finally:
            self.ema.restore(self.trainable)

    def settle(self) -> None:
        """Take the averaged weights for good; training is over."""
        if self.ema is not None:
            self.ema.copy_to(self.trainable)
            self.ema = None

    # ---- what is saved: the trainable weights only, by name

    def _named(self) -> dict[str, torch.nn.Parameter]:
        named = {}
        for part, model in self.bare.items():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    named[f"{part}.{name}"] = parameter
        return named

    def _save_trainable(self, models, weights, folder) -> None:
        weights.clear()  # the frozen networks are not written again and again
        if not self.is_main:
            return
        named = {name: p.detach().cpu().contiguous() for name, p in self._named().items()}
        save_file(named, Path(folder) / WEIGHTS)
        state = {"scheduler": self.scheduler.state_dict()}
        if self.ema is not None:
            state["average"] = self.ema.state_dict()
            shadows = state["average"].pop("shadow_params")
            averages = {
                name: shadow.detach().cpu().contiguous() for name, shadow in zip(named, shadows)
            }
            save_file(averages, Path(folder) / AVERAGES)
        (Path(folder) / STATE).write_text(json.dumps(state, default=str), encoding="utf-8")

    def _load_trainable(self, models, folder) -> None:
        models.clear()
        self._load_weights(folder)
        state = json.loads((Path(folder) / STATE).read_text(encoding="utf-8"))
        self.scheduler.load_state_dict(state["scheduler"])
        if self.ema is not None and "average" in state:
            averages = load_file(Path(folder) / AVERAGES)
            shadows = [averages[name] for name in self._named()]
            self.ema.load_state_dict({**state["average"], "shadow_params": shadows})

    def _load_weights(self, folder) -> None:
        saved, named = load_file(Path(folder) / WEIGHTS), self._named()
        different = sorted(saved.keys() ^ named.keys()) + [
            f"{name} {tuple(saved[name].shape)} instead of {tuple(p.shape)}"
            for name, p in named.items()
            if name in saved and saved[name].shape != p.shape
        ]
        if different:
            raise ValueError(
                f"{folder} is a checkpoint of another model; {len(different)} weights do not fit, "
                f"such as {different[0]}. "
                "Resume with the settings it was made with (config.json), or choose another "
                "`--output_dir`."
            )
        with torch.no_grad():
            for name, p in named.items():
                p.copy_(saved[name])

    def _resume(self) -> None:
        checkpoint = find_checkpoint(self.output_dir, self.config.resume_from_checkpoint)
        if checkpoint is None:
            found = list_checkpoints(self.output_dir)
            if found:
                raise ValueError(
                    f"{self.output_dir} holds checkpoints of an earlier run ({found[-1].name}); "
                    "pass `--resume_from_checkpoint latest` "
                    "to go on, or choose another `--output_dir`."
                )
            return
        before, now = self.output_dir / "config.json", public(self.config)
        if before.is_file() and self.is_main:
            old = json.loads(before.read_text(encoding="utf-8"))
            changed = [
                f"{k} {old[k]} -> {now[k]}"
                for k in now
                if k in old and old[k] != now[k] and k != "resume_from_checkpoint"
            ]
            if changed:
                logger.info("changed since the checkpoint was made: %s", "; ".join(changed))
        if not (checkpoint / STATE).is_file() or list(checkpoint.glob("custom_checkpoint_*")):
            raise ValueError(
                f"{checkpoint} is not a checkpoint of this version: it lacks {STATE} or holds "
                "pickled objects (custom_checkpoint_*.pkl), which could run code when they are "
                "opened. Start from its weights instead, or resume with the version that made it."
            )
        self.accelerator.load_state(str(checkpoint))
        if self.ema is not None:
            self.ema.to(self.device)  # its state is loaded to the CPU
        self.step = self.saved = checkpoint_step(checkpoint)
        logger.info("resumed from %s", checkpoint)
        if self.step > self.config.max_train_steps:
            raise ValueError(
                f"{checkpoint} is beyond `--max_train_steps` {self.config.max_train_steps}."
            )


def make_folder(path: Path) -> None:
    """Make a folder, or say that it cannot be written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()  # of its own name in each process
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written: {error.strerror}; choose another `--output_dir`."
        ) from None


# ---- checkpoints: whole or absent


def find_checkpoint(output_dir: str | Path, resume: str | None) -> Path | None:
    """The checkpoint to resume from: `latest` in `output_dir` (`None` if there is none yet), or the
    folder named.

    Raises:
        ValueError: if the folder named is no checkpoint.
    """
    if resume is None:
        return None
    if resume == "latest":
        found = list_checkpoints(output_dir)
        return found[-1] if found else None
    path = Path(resume)
    if checkpoint_step_or_none(path) is None or not (path / "optimizer.bin").is_file():
        raise ValueError(
            f"{path} is not a checkpoint: a folder `checkpoint-STEP` with optimizer.bin was "
            "expected."
        )
    return path


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """Checkpoint folders of a run, oldest first."""
    folders = [
        path
        for path in Path(output_dir).glob("checkpoint-*")
        if checkpoint_step_or_none(path) is not None
    ]
    return sorted(folders, key=checkpoint_step)


def checkpoint_step(path: Path) -> int:
    """The number of optimizer steps behind a checkpoint folder."""
    return int(path.name.removeprefix("checkpoint-"))


def checkpoint_step_or_none(path: Path) -> int | None:
    match = re.fullmatch(r"checkpoint-(\d+)", path.name)
    return int(match[1]) if match and path.is_dir() else None


def save_checkpoint(
    accelerator, output_dir: str | Path, step: int, total_limit: int | None = None
) -> Path:
    """Save the whole state of a run as `checkpoint-STEP`: written beside, then moved into place;
    older ones make room."""
    final = Path(output_dir) / f"checkpoint-{step}"
    partial = Path(output_dir) / f".checkpoint-{step}.part"
    if accelerator.is_main_process:
        for leftover in Path(output_dir).glob(".checkpoint-*.part"):  # of a run that was killed
            shutil.rmtree(leftover)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        others = [path for path in list_checkpoints(output_dir) if path != final]
        for old in others[: max(len(others) + 1 - total_limit, 0)] if total_limit else []:
            # Half deleted, it must not look like a checkpoint.
            fading = old.with_name(f".{old.name}.part")
            os.replace(old, fading)
            shutil.rmtree(fading)
    accelerator.wait_for_everyone()
    return final
