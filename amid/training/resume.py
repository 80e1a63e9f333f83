"""How a training goes on: the states that are kept of it, the newest whole one, and what each holds."""

import csv
import io
import pickle
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from amid.console import announce, shown
from amid.data import InstructionData
from amid.distributed import interruption, ranks
from amid.errors import InputError, first_line
from amid.files import forget_parts, written_whole
from amid.results import CHECKPOINTS
from amid.training.checkpoints import (
    BEST_EPOCH,
    FORMAT,
    LAST,
    PREVIOUS,
    Checkpoints,
    shards_are_whole,
    stored,
)
from amid.training.length import Course


def _loops(course: Course, step: int, validated: bool, ended: bool) -> dict[str, Any]:
    """Returns the state of Lightning's training loop from which a resumed run continues.

    The loop continues with the validation that is due, or with the next step, in its epoch or in a new one.
    Lightning's own state would leave out an interrupted validation, and log steps under other numbers.

    Args:
        course: the course of the training.
        step: the steps that are done.
        validated: whether the validation that follows these steps, if one does, is done too.
        ended: whether the training is over, though steps may be left.
    """
    waits = course.validates_at(step) and not validated and not ended
    epochs, batches = course.place(course.steps if ended else step)
    done = {"total": _count(epochs), "current": _count(epochs)}
    if waits:
        batches, epochs = course.of_epoch, epochs - 1
    if batches:  # within an epoch
        done = {name: _count(epochs) | _begun(epochs + 1) for name in done}
    of_batches = {"total": _count(step), "current": _count(batches), "is_last_batch": waits}
    validation = {"total": _count(0) | _begun(waits), "current": _count(0), "is_last_batch": False}
    steps = {"ready": step, "completed": step}
    return {
        "epoch_progress": done,
        "epoch_loop.batch_progress": of_batches,
        "epoch_loop.state_dict": {"_batches_that_stepped": step - waits},
        "epoch_loop.manual_optimization.optim_step_progress": {"total": steps, "current": steps},
        "epoch_loop.val_loop.batch_progress": validation,
    }


def _count(n: int) -> dict[str, int]:
    return {"ready": n, "started": n, "processed": n, "completed": n}


def _begun(n: int) -> dict[str, int]:
    return {"ready": int(n), "started": int(n)}


class States(Callback):
    """Saves the whole state of a training, as `checkpoints` says, and resumes from it.

    It must stand before all callbacks that measure steps: otherwise their times would include the writing.

    Args:
        best: the callback that keeps the best epoch, in the same folder.
        checkpoints: says how often a state is saved.
        course: the course of the training.
    """

    def __init__(self, best: ModelCheckpoint, checkpoints: Checkpoints, course: Course) -> None:
        assert best.dirpath is not None
        self._best, self._folder = best, Path(best.dirpath)
        self._checkpoints, self._course = checkpoints, course
        self._ended = False
        self._kept: tuple[int, int] | None = None  # the latest state: its steps, and its validated step
        self._kept_at = time.monotonic()
        self._optimizer_is_readable = False

    def _keep(self, trainer: L.Trainer) -> None:
        trainer.save_checkpoint(self._folder / LAST)
        self._kept, self._kept_at = _now(trainer), time.monotonic()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Saves the state before the first step; from now on signals take effect after a step."""
        interruption.hold_signals()
        self._kept_at = time.monotonic()
        if self._kept is None:
            self._keep(trainer)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Saves the state after the previous step, if a state is due or a signal came.

        It waits until now because all of that step must be logged first.

        Raises:
            Stopped: for a signal.
        """
        assert self._kept is not None
        passed = trainer.global_step - self._kept[0], time.monotonic() - self._kept_at
        # A signal reaches the ranks at different times: all stop after the same step.
        stops, due = ranks.any_of([interruption.stop_requested(), self._checkpoints.due(*passed)])
        if _now(trainer) != self._kept and (stops or due):
            self._keep(trainer)
        if stops:
            interruption.stop_now()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keeps the state before a validation in the training, which a signal cuts short."""
        if trainer.state.fn == "fit":
            if _now(trainer) != self._kept:
                self._keep(trainer)
            interruption.release_signals()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lets signals take effect after a step again."""
        if trainer.state.fn == "fit":
            interruption.hold_signals()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keeps the state after the last step and its validation, also where a callback ended the training.

        Raises:
            Stopped: for a signal.
        """
        self._ended = True
        self._keep(trainer)
        interruption.release_signals()

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Adds the log so far to the checkpoint; a resumed run appends the rest to it.

        Raises:
            InputError: for a callback, schedule or optimiser with a state that a resumed run could not read.
        """
        for name, state in checkpoint["callbacks"].items():
            _check_readable(f"callback {name.rpartition('<locals>.')[2]}", state)
        _check_readable("learning-rate schedule", checkpoint["lr_schedulers"])
        if not self._optimizer_is_readable:  # a state that it fills in a step is of one kind for all weights
            _check_readable("optimiser", [_of_one_weight(state) for state in checkpoint["optimizer_states"]])
            self._optimizer_is_readable = trainer.global_step > 0
        checkpoint["format"] = FORMAT
        step, validated_step = _now(trainer)
        checkpoint["ended"] = self._ended or (trainer.should_stop and validated_step == step)
        checkpoint["has_best_epoch"] = bool(self._best.best_model_path)
        checkpoint["metrics"] = [_text(logger) for logger in _csv_loggers(trainer)]

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restores the loops, the order of the data, the log, and the best epoch, also if the folder was
        moved."""
        step, validated = self._kept = checkpoint["global_step"], checkpoint["validated_step"]
        checkpoint["loops"] = {"fit_loop": _loops(self._course, step, validated == step, checkpoint["ended"])}
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, InstructionData)
        data.begin_at(*self._course.place(step))
        for logger, text in zip(_csv_loggers(trainer), checkpoint["metrics"], strict=False):
            _restore(logger, text)
        state = checkpoint["callbacks"][self._best.state_key]
        for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
            state[name] = state[name] and str(self._folder / Path(state[name]).name)
        state["best_k_models"] = {
            str(self._folder / Path(path).name): score for path, score in state["best_k_models"].items()
        }
        state["dirpath"] = self._best.dirpath


def _of_one_weight(state: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the state of an optimiser with that of its smallest weight alone."""

    def size(of_weight: Mapping[str, Any]) -> int:
        return sum(value.numel() for value in of_weight.values() if isinstance(value, Tensor))

    by_weight = state.get("state", {})
    smallest = min(by_weight, key=lambda weight: size(by_weight[weight]), default=None)
    return {**state, "state": {} if smallest is None else {smallest: by_weight[smallest]}}


def _check_readable(owner: str, state: Any) -> None:
    stream = io.BytesIO()
    try:
        torch.save(state, stream)
        stream.seek(0)
        torch.load(stream, weights_only=True)
    except Exception as error:  # whatever a class of the user's own raises
        raise InputError(
            f"the state of the {owner} could not be read in a resumed run ({first_line(error)}); "
            "let its state_dict() return numbers, text, lists, dictionaries and tensors alone"
        ) from error


def _now(trainer: L.Trainer) -> tuple[int, int]:
    """Returns the number of steps done now, and the number done at the last validation."""
    module: Any = trainer.lightning_module
    return trainer.global_step, module.validated_step


def _csv_loggers(trainer: L.Trainer) -> list[CSVLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, CSVLogger)]


def _text(logger: CSVLogger) -> str:
    logger.save()
    file = Path(logger.experiment.metrics_file_path)
    return file.read_bytes().decode() if file.exists() else ""


def _restore(logger: CSVLogger, text: str) -> None:
    """Lets a logger go on after the lines in `text`."""
    writer = logger.experiment
    file = Path(writer.metrics_file_path)
    if text:
        with written_whole(file) as part:
            part.write_bytes(text.encode())
        writer.metrics_keys = list(csv.DictReader(io.StringIO(text)).fieldnames or ())
    else:
        file.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Found:
    """A checkpoint on disk that is whole."""

    path: Path
    step: int
    validated_step: int
    has_best_epoch: bool


def last_checkpoint(directory: Path) -> Path | None:
    """Returns the latest whole state of a run that was begun before; it ignores damaged states.

    It prints where the run resumes, or why it starts over. All ranks resume from the state that the first
    rank finds.
    """
    return ranks.from_first(lambda: _last_checkpoint(directory))


def _last_checkpoint(directory: Path) -> Path | None:
    folder = directory / CHECKPOINTS
    forget_parts(folder)
    files = [folder / name for name in (LAST, PREVIOUS, BEST_EPOCH)]
    found = {file.name: _read(file) for file in files if file.exists()}
    for name in [name for name, state in found.items() if state is None]:
        (folder / name).replace(folder / f"{name}.damaged")
    whole = [state for state in found.values() if state is not None]
    if found.get(BEST_EPOCH) is None:
        whole = [state for state in whole if not state.has_best_epoch]
    damaged = [shown(folder / name) for name, state in found.items() if state is None]
    damage = f"{', '.join(damaged)} {'is' if len(damaged) == 1 else 'are'} damaged: " if damaged else ""
    if whole:
        state = max(whole, key=lambda state: (state.step, state.validated_step))
        source = f", from {state.path.name}" if damaged else ""
        announce(f"{damage}{shown(directory)} goes on after step {state.step} of its training{source}")
        return state.path
    if found:
        announce(f"{damage or 'No checkpoint is left of the best epoch: '}{shown(directory)} starts over")
    elif (directory / "config.yaml").exists():
        announce(f"{shown(directory)} was begun, and stopped before its first checkpoint: it starts over")
    return None


def _read(path: Path) -> _Found | None:
    """Reads a checkpoint; returns None if it is damaged, or written by another version."""
    state = whole_state(path)
    if state is None or state.get("format") != FORMAT or not shards_are_whole(state, path):
        return None
    return _Found(path, state["global_step"], state["validated_step"], state["has_best_epoch"])


def whole_state(path: Path) -> dict[str, Any] | None:
    """Returns the content of a checkpoint (`stored`), read as far as it is used; None if it is damaged.

    Raises:
        OSError: if it cannot be opened.
        InputError: if it is whole, and holds objects that are not read from a file.
    """
    with path.open("rb") as stream:
        try:
            if zipfile.ZipFile(stream).testzip() is not None:
                return None
            return stored(path, mmap=True)
        except pickle.UnpicklingError as error:
            raise InputError(
                f"checkpoint {shown(path)} is whole and holds an object that is not read from a file "
                f"({first_line(error)}); let the state_dict() of your optimizer, scheduler and callbacks "
                "return numbers, text, lists, dictionaries and tensors alone, and delete the checkpoints to "
                "start over"
            ) from error
        except Exception:  # damaged bytes raise nearly anything
            return None
