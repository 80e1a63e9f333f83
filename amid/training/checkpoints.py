"""The checkpoints of a training: the best epoch's student, and the states from which a run goes on."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from amid.files import written_whole
from amid.settings import check_arguments, nodes

BEST_EPOCH, LAST, PREVIOUS = "best-epoch.ckpt", "last.ckpt", "previous.ckpt"
"""The state after the best validated epoch, the latest state, and the one before it."""

FORMAT = 1
"""Version of what a checkpoint holds; a run does not go on from another one."""


class Checkpoints:
    """The choice of checkpoints that a training keeps.

    The checkpoint of the best validated epoch stays. The whole state of the training is also saved every so
    many steps or minutes, before each validation, at the end, and when a signal stops the run. The two latest
    states stay. A resumed run ends with the same result as an uninterrupted run.

    Args:
        monitor: the validation measure that chooses the best checkpoint, such as `valid/loss`.
        mode: `min` or `max`.
        every_n_steps: optimiser steps between two states; null for no such limit.
        every_minutes: minutes between two states, above 0; null for no such limit.
        requeue: whether a SLURM job that SIGTERM, SIGUSR1 or SIGUSR2 stops is put back into the queue.

    Raises:
        InputError: for a value outside its range.
    """

    def __init__(
        self,
        monitor: str,
        mode: str = "min",
        every_n_steps: int | None = None,
        every_minutes: float | None = 5.0,
        requeue: bool = False,
    ) -> None:
        check_arguments("checkpoint.", nodes.Checkpoint, locals())
        self.monitor, self.mode, self.requeue = monitor, mode, requeue
        self.every_n_steps, self.every_minutes = every_n_steps, every_minutes

    def best(self, folder: Path) -> ModelCheckpoint:
        """Returns the callback that keeps the best validated epoch in `folder`."""
        return ModelCheckpoint(
            folder,
            filename=Path(BEST_EPOCH).stem,
            monitor=self.monitor,
            mode=self.mode,
            enable_version_counter=False,
        )

    def due(self, steps: int, seconds: float) -> bool:
        """Whether a state is to be saved, so many steps or seconds after the latest state."""
        by_steps = self.every_n_steps is not None and steps >= self.every_n_steps
        return by_steps or (self.every_minutes is not None and seconds >= 60 * self.every_minutes)


class WholeFiles(TorchCheckpointIO):
    """Writes each checkpoint beside its place, to the disk, and then renames it; `last.ckpt` becomes
    `previous.ckpt` when a new one is whole."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes a checkpoint, whole or not at all.

        Raises:
            OSError: if it cannot be written.
        """
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(target) as part:
            try:
                with part.open("wb") as stream:
                    torch.save(checkpoint, stream)
            except OSError as error:  # of a write, which does not say where
                raise OSError(error.errno, error.strerror, str(target)) from error
            if target.name == LAST and target.exists():
                before = target.with_name(PREVIOUS)
                before.unlink(missing_ok=True)
                try:
                    os.link(target, before)
                except OSError:  # where the file system has no hard links
                    os.replace(target, before)
