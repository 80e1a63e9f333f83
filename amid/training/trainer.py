"""The training of a student by Lightning: how long, from where it goes on, and the weights that are kept."""

import math
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger

from amid.console import announce
from amid.data import InstructionData
from amid.errors import InputError, shortened
from amid.measures import VALIDATION, Measure, measure_of
from amid.tracking.progress import StatusRecords, progress
from amid.training import interruption
from amid.training.checkpoints import FOLDER, Checkpoints, Course, States, WholeFiles, whole_state
from amid.training.module import DistillationModule, Diverged
from amid.training.process_memory import forget_peak_memory, peak_memory

Config = Mapping[str, Any]

MOST_VALIDATIONS = 50
"""At most so many validations in a training, that before it left out; with more epochs, only every k-th ends
with one."""


def one_device(trainer: Config, key: str = "trainer") -> L.Fabric:
    """Device and precision of the settings of a trainer, which stand at `key`.

    Raises:
        InputError: if this machine has no such device.
    """
    devices = trainer["devices"] if isinstance(trainer["devices"], list) else 1
    try:
        return L.Fabric(
            accelerator=trainer["accelerator"],
            devices=devices,
            precision=trainer["precision"],
            plugins=[LightningEnvironment()],  # one process, whatever a scheduler's variables say
        )
    except (RuntimeError, TypeError, ValueError) as error:
        given = f"{key}.accelerator={trainer['accelerator']} {key}.devices={trainer['devices']}"
        raise InputError(f"{given} cannot be had here: {error}") from error


# SLURM may start several processes, each with runs of its own: all of them log.
rank_zero_only.rank = 0  # type: ignore[attr-defined]
_ALL_THREADS = torch.get_num_threads()


def use_threads(threads: int | None) -> None:
    """Lets torch compute on so many CPU threads from now on; None for as many as it began with."""
    torch.set_num_threads(threads or _ALL_THREADS)


def steps_of(trainer: Config, steps_of_all: int) -> int:
    """The optimiser steps of a run whose training data are `steps_of_all`."""
    steps: list[int] = [trainer["max_epochs"] * _steps_of_epoch(trainer, steps_of_all), trainer["max_steps"]]
    return min(n for n in steps if n >= 0)


def _steps_of_epoch(trainer: Config, steps_of_all: int) -> int:
    """The optimiser steps of an epoch of a run whose training data are `steps_of_all`.

    Raises:
        InputError: for a share of them that is less than one.
    """
    limit: int | float | None = trainer.get("limit_train_batches")
    if limit is None:
        return steps_of_all
    if not isinstance(limit, float):
        return min(limit, steps_of_all)
    steps = int(limit * steps_of_all)  # as Lightning rounds
    if limit > 0 and steps == 0 < steps_of_all:
        raise InputError(
            f"trainer.limit_train_batches={limit} of the {steps_of_all} steps of an epoch is not one step; "
            "give a larger share, or a whole number of steps"
        )
    return steps


def epochs_of_validation(trainer: Config, epochs: int) -> int:
    """How many epochs lie between two validations of a run of so many; the last epoch ends with one too."""
    least: int = trainer["check_val_every_n_epoch"]
    return max(least, math.ceil(epochs / MOST_VALIDATIONS))


def length_in_words(trainer: Config, steps_of_all: int, key: str) -> str:
    """The steps and epochs of a run over `steps_of_all`, and the setting below `key` that gives them."""
    steps, epoch = steps_of(trainer, steps_of_all), _steps_of_epoch(trainer, steps_of_all)
    epochs = f"{steps / max(1, epoch):,.2f}".rstrip("0").rstrip(".")
    name = "max_steps" if steps == trainer["max_steps"] else "max_epochs"
    return f"{_count(f'{steps:,}', 'step')} ({_count(epochs, 'epoch')} of {epoch:,}); {key}.{name} sets this"


def _count(number: str, what: str) -> str:
    return f"{number} {what}" if number == "1" else f"{number} {what}s"


def loggers_of(settings: Config) -> list[Logger]:
    """What a configuration logs to, none of which has been written to yet.

    Args:
        settings: of the loggers, by name.

    Raises:
        InputError: for one that cannot be made, as where its package is not installed.
    """
    return list(_made_by_name("logger", settings).values())


def _made_by_name(group: str, settings: Config) -> dict[str, Any]:
    """What the nodes of a group make.

    Raises:
        InputError: naming the one that cannot be made.
    """
    made = {}
    for name, node in settings.items():
        try:
            made[name] = instantiate(node)
        except InstantiationException as error:  # whatever a library raises for a value
            reason = shortened(str(error.__cause__ or error))
            raise InputError(
                f"{group}.{name} cannot be made ({reason}); see the documentation of {node['_target_']}"
            ) from error
    return made


def own_callbacks(cfg: Config) -> list[L.Callback]:
    """The user's own callbacks, as a configuration names them.

    Raises:
        InputError: for one that cannot be made, or is none of Lightning's.
    """
    made = _made_by_name("callbacks", cfg.get("callbacks") or {})
    for name, callback in made.items():
        if not isinstance(callback, L.Callback):
            raise InputError(
                f"callbacks.{name} is a {type(callback).__name__}; it must be a lightning.pytorch.Callback"
            )
    return list(made.values())


class _Taken(L.Callback):
    """What a training has taken so far; of one that went on, in all its processes.

    Of a process that was cut, what came before the checkpoint counts from which the next one went on.
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
        """Seconds: of all since this was made, of the fit, and of `timed_steps` optimiser steps, the first of
        each process left out where it has more; and the most memory in bytes."""
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
        """Goes on from it."""
        self._before = state_dict


def fit(
    cfg: Config,
    module: DistillationModule,
    data: InstructionData,
    directory: Path,
    loggers: Sequence[Logger],
    last: Path | None,
) -> tuple[L.Trainer, dict[str, float], float]:
    """Trains, and leaves the best weights in the module; from the checkpoint `last` on, if there is one.

    Returns:
        The trainer; what `RunResult.training` holds, where the training diverged with `diverged_step`; and
        the seconds that the training took, validations included, in all processes of a run that goes on.

    Raises:
        KeyboardInterrupt: where a signal or Ctrl-C stops it.
    """
    taking = _Taken()
    checkpoints: Checkpoints = instantiate(cfg["checkpoint"])
    folder = directory / FOLDER
    checkpoint = checkpoints.best(folder)
    steps_of_epoch = max(1, _steps_of_epoch(cfg["trainer"], len(data.train_dataloader())))
    epochs = math.ceil(module.steps / steps_of_epoch)
    every = epochs_of_validation(cfg["trainer"], epochs)
    states = States(checkpoint, checkpoints, Course(module.steps, steps_of_epoch, every))
    trainer: L.Trainer = instantiate(
        {**cfg["trainer"], "max_epochs": epochs, "max_steps": -1, "check_val_every_n_epoch": every},
        callbacks=[
            *(states, taking, checkpoint, progress(module.steps), StatusRecords(module.steps)),
            *own_callbacks(cfg),
        ],
        plugins=[WholeFiles(), LightningEnvironment()],
        enable_progress_bar=sys.stdout.isatty(),
        logger=list(loggers),
        default_root_dir=str(folder / "of_lightning"),  # is not made, so no hpc_ckpt_*.ckpt is found in it
    )
    try:
        if last is None:
            trainer.validate(module, datamodule=data, verbose=False)
        trainer.fit(module, datamodule=data, ckpt_path=last, weights_only=True)
        taken = taking.state_dict()
        best = checkpoint.best_model_path
        if module.validated_step != trainer.global_step:
            now = trainer.validate(module, datamodule=data, verbose=False)[0][checkpoints.monitor]
            then = checkpoint.best_model_score
            # of equal ones the earlier is kept, as by the checkpoint
            if then is None or (now > float(then) if checkpoint.mode == "max" else now < float(then)):
                best = ""
    except SystemExit as error:
        if trainer.interrupted:
            raise interruption.Stopped(interruption.signal_of(error)) from error
        raise
    except Diverged as error:
        announce(f"{directory} diverged at {error}; it ends here")
        taken = taking.state_dict()
        training = {**module.before, **_figures(module, taken), "diverged_step": float(error.step)}
        return trainer, training, taken["seconds"]
    finally:
        interruption.release(quiet=True)
    last_validation = {
        f"{name}_last": value for name, value in module.validation.items() if name == "valid_cross_entropy"
    }
    kept: dict[str, Any] = {"validation": module.validation}
    if best:
        state = whole_state(Path(best))
        if state is None:
            raise InputError(f"{best} is damaged; run the same command again, which makes it anew")
        kept = state
        module.load_state_dict(kept["state_dict"])
    announce(f"  kept: {_in_words(kept, module.before, trainer.global_step, data.valid_metric)}")
    training = {
        **module.before,
        **kept["validation"],
        **last_validation,
        **_figures(module, taken),
        "peak_memory": taken["peak_memory"],
        "response_tokens_per_second": module.response_tokens / taken["fit_seconds"],
    }
    return trainer, training, taking.state_dict()["seconds"]


def _in_words(kept: Mapping[str, Any], before: Mapping[str, float], steps: int, metric: str | None) -> str:
    """Of which step the weights are that a run ends with, and how they did on the validation data."""
    validation: Mapping[str, float] = kept["validation"]

    def told(of: Measure) -> str:
        after, first = validation[f"valid_{of.name}"], before[f"valid_{of.name}_before"]
        return f"{of.number(after)} (before {of.number(first)})"

    text = f"step {kept.get('global_step', steps)} of {steps}, valid cross-entropy "
    text += told(VALIDATION["cross_entropy"])
    if f"valid_{metric}" in validation:
        text += f", {measure_of(str(metric)).title} {told(measure_of(str(metric)))}"
    return text


def _figures(module: DistillationModule, taken: Mapping[str, float]) -> dict[str, float]:
    """What the training so far consisted of, and the mean time of its steps."""
    figures = {"steps": float(module.global_step), "response_tokens": float(module.response_tokens)}
    n = taken["timed_steps"]
    return figures | ({"step_seconds": taken["step_seconds"] / n} if n else {})
