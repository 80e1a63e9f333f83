"""The training of a student by Lightning: from where it goes on, and the weights that are kept."""

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger

from amid.console import announce
from amid.data import InstructionData
from amid.distributed import interruption, ranks
from amid.errors import InputError
from amid.measures import VALIDATION, Measure, measure_of
from amid.results import CHECKPOINTS
from amid.tracking.progress import StatusRecords, progress
from amid.training.checkpoints import Checkpoints, WholeFiles, shards_are_whole, with_stored_tensors
from amid.training.devices import environment
from amid.training.length import Course
from amid.training.module import DistillationModule, Diverged
from amid.training.process_memory import forget_peak_memory, peak_memory
from amid.training.resume import States, whole_state


@dataclass(frozen=True)
class Trained:
    """The outcome of a training. The trainer's module holds the weights that are kept."""

    trainer: L.Trainer
    figures: dict[str, float]
    """The figures of `RunResult.training`; of a training that diverged also `diverged_step`."""
    seconds: float
    """Seconds that the training took, with its validations, summed over all processes of a resumed run."""

    @property
    def diverged(self) -> bool:
        """Whether the training ended because its loss or its gradient was not finite."""
        return "diverged_step" in self.figures


@dataclass(frozen=True)
class Training:
    """How a student is trained.

    Args:
        course: its steps, epochs and validations.
        checkpoints: which checkpoints are kept.
        callbacks: the user's own.
        lightning: makes Lightning's trainer, from arguments besides its settings, or in their place.
    """

    course: Course
    checkpoints: Checkpoints
    callbacks: Iterable[L.Callback]
    lightning: Callable[..., L.Trainer]

    def fit(
        self,
        module: DistillationModule,
        data: InstructionData,
        directory: Path,
        loggers: Sequence[Logger],
        last: Path | None,
    ) -> Trained:
        """Trains the module, from the checkpoint `last` on if there is one, and loads its best weights.

        Raises:
            KeyboardInterrupt: where a signal or Ctrl-C stops it.
        """
        taking = _Taken()
        best = self.checkpoints.best(directory / CHECKPOINTS)
        trainer = self._trainer(directory / CHECKPOINTS, best, taking, loggers)
        try:
            if last is None:
                trainer.validate(module, datamodule=data, verbose=False)
            trainer.fit(module, datamodule=data, ckpt_path=last, weights_only=True)
            taken = taking.state_dict()
            kept = self._best_epoch(trainer, module, data, best)
        except SystemExit as error:
            if trainer.interrupted:
                raise interruption.Stopped(interruption.signal_of(error)) from error
            raise
        except Diverged as error:
            announce(f"{directory} diverged at {error}; it ends here")
            taken = taking.state_dict()
            figures = {**module.before, **_figures(module, taken), "diverged_step": float(error.step)}
            return Trained(trainer, figures, taken["seconds"])
        finally:
            interruption.release_signals(quiet=True)
        figures = _keep(module, kept, trainer.global_step, data.valid_metric) | {
            **_figures(module, taken),
            "train_rows": float(len(data.train_examples)),
            "peak_memory": taken["peak_memory"],
            "response_tokens_per_second": module.response_tokens / taken["fit_seconds"],
        }
        return Trained(trainer, figures, taking.state_dict()["seconds"])

    def _trainer(
        self, folder: Path, best: ModelCheckpoint, taking: "_Taken", loggers: Sequence[Logger]
    ) -> L.Trainer:
        course = self.course
        states = States(best, self.checkpoints, course)
        shown = (progress(course.steps), StatusRecords(course.steps))
        return self.lightning(
            max_epochs=course.epochs,
            max_steps=-1,
            check_val_every_n_epoch=course.epochs_to_validation,
            callbacks=[states, taking, best, *shown, *self.callbacks],
            plugins=[WholeFiles(), environment()],
            enable_progress_bar=sys.stdout.isatty(),
            logger=list(loggers),
            default_root_dir=str(folder / "of_lightning"),  # not made: it holds no hpc_ckpt_*.ckpt
        )

    def _best_epoch(
        self, trainer: L.Trainer, module: DistillationModule, data: InstructionData, best: ModelCheckpoint
    ) -> Path | None:
        """The checkpoint of the best validated epoch; None where the student as it is now is better."""
        path = Path(best.best_model_path) if best.best_model_path else None
        if module.validated_step != trainer.global_step:
            now = trainer.validate(module, datamodule=data, verbose=False)[0][self.checkpoints.monitor]
            then = best.best_model_score
            # of equal ones the earlier is kept, as by the checkpoint
            if then is None or (now > float(then) if best.mode == "max" else now < float(then)):
                return None
        return path


class _Taken(L.Callback):
    """Counts the time and the memory of a training; of a resumed one, over all its processes.

    If a process was interrupted, only its part up to the checkpoint that the next one resumed from counts.
    """

    def __init__(self) -> None:
        self._began = self._fit_began = time.perf_counter()
        self._device = torch.device("cpu")
        self._steps: list[float] = []
        self._before: Mapping[str, float] = Counter()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Begins to count the time and the memory of the fit."""
        if stage == "fit":
            self._device = trainer.strategy.root_device
            forget_peak_memory(self._device)
            self._fit_began = time.perf_counter()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begins a step."""
        self._step_began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ends a step."""
        self._steps.append(time.perf_counter() - self._step_began)

    def state_dict(self) -> dict[str, float]:
        """Returns seconds and bytes: the time since this object was made, the time of the fit, the time of
        `timed_steps` optimiser steps, and the peak memory. The first step of a process is left out of the
        timed steps if the process has more."""
        now, steps = time.perf_counter(), self._steps[1:] or self._steps
        here = {
            "seconds": now - self._began,
            "fit_seconds": now - self._fit_began,
            "step_seconds": sum(steps),
            "timed_steps": len(steps),
        }
        taken = {name: value + self._before[name] for name, value in here.items()}
        peak = max(self._before["peak_memory"], peak_memory(self._device))
        return {**taken, "peak_memory": float(peak)}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """Continues to count from the figures of an earlier process."""
        self._before = state_dict


def _keep(module: DistillationModule, best: Path | None, steps: int, metric: str | None) -> dict[str, float]:
    """Loads the weights of the best epoch unless the module has them; returns its validation measures.

    From now on each rank has the whole student.
    """
    module.gather()
    last = {
        f"{name}_last": value for name, value in module.validation.items() if name == "valid_cross_entropy"
    }
    kept: Mapping[str, Any] = {"validation": module.validation}
    if best is not None:
        state = whole_state(best)
        if state is None or not ranks.from_first(partial(shards_are_whole, state, best)):
            raise InputError(f"{best} is damaged; run the same command again, which makes it anew")
        kept = state
        module.load_state_dict(with_stored_tensors(kept["state_dict"], state, best))
    announce(f"  kept: {_in_words(kept, module.before, steps, metric)}")
    return {**module.before, **kept["validation"], **last}


def _in_words(kept: Mapping[str, Any], before: Mapping[str, float], steps: int, metric: str | None) -> str:
    """Says in words which step a run's final weights come from, and how they score on validation data."""
    validation: Mapping[str, float] = kept["validation"]

    def change(of: Measure) -> str:
        after, first = validation[f"valid_{of.name}"], before[f"valid_{of.name}_before"]
        return f"{of.number(after)} (before {of.number(first)})"

    text = f"step {kept.get('global_step', steps)} of {steps}, valid cross-entropy "
    text += change(VALIDATION["cross_entropy"])
    if f"valid_{metric}" in validation:
        text += f", {measure_of(str(metric)).title} {change(measure_of(str(metric)))}"
    return text


def _figures(module: DistillationModule, taken: Mapping[str, float]) -> dict[str, float]:
    """Returns the steps, tokens and other counts of the training so far, and the mean time of its steps."""
    figures = {"steps": float(module.global_step), "response_tokens": float(module.response_tokens)}
    n = taken["timed_steps"]
    return figures | ({"step_seconds": taken["step_seconds"] / n} if n else {})
