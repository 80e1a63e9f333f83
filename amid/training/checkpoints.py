"""The checkpoints of a training: the best epoch's student, and the states from which a run goes on."""

import os
import shutil
import uuid
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.distributed.device_mesh import DeviceMesh

from amid.distributed.shards import with_tensors
from amid.files import checksum, forget_parts, written_whole
from amid.settings import check_arguments, nodes

BEST_EPOCH, LAST, PREVIOUS = "best-epoch.ckpt", "last.ckpt", "previous.ckpt"
"""The state after the best validated epoch, the latest state, and the one before it."""

_STATES = BEST_EPOCH, LAST, PREVIOUS

SHARDS = "shards"
"""The key of a checkpoint that names the folder of its spread tensors, and the checksums of its files."""

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
    `previous.ckpt` when a new one is whole.

    A checkpoint of a spread student names a folder with its tensors, which is whole before the checkpoint is.
    """

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
        _forget_unnamed_shards(target.parent)

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Returns the content of a checkpoint, with whole tensors on the CPU."""
        content = stored(Path(path))
        loaded: dict[str, Any] = with_stored_tensors(content, content, Path(path))
        return loaded


def new_shards(path: Path) -> Path:
    """Makes an empty folder for the spread tensors of a checkpoint that is to be at `path`."""
    folder = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    folder.mkdir(parents=True)
    return folder


def stored(path: Path, mmap: bool = False) -> dict[str, Any]:
    """Returns the content of a checkpoint, with names in place of spread tensors."""
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    return content


def with_stored_tensors(
    part: Any, content: dict[str, Any], path: Path, mesh: DeviceMesh | None = None
) -> Any:
    """Returns a part of the content of the checkpoint at `path`, with the spread tensors that it names.

    Args:
        part: the part.
        content: the whole content (`stored`).
        path: the path of the checkpoint.
        mesh: the ranks that the tensors are to be spread over; None for whole tensors on the CPU.
    """
    shards = content.get(SHARDS)
    return part if shards is None else with_tensors(part, path.parent / shards["folder"], mesh)


def shards_are_whole(content: dict[str, Any], path: Path) -> bool:
    """Whether the files of spread tensors of a checkpoint are as they were written."""
    shards = content.get(SHARDS, {"folder": "", "checksums": {}})
    folder = path.parent / shards["folder"]
    return all(checksum(folder / name) == value for name, value in shards["checksums"].items())


def forget_states(folder: Path) -> None:
    """Deletes the states of a training in `folder`, damaged ones too; what others wrote there stays."""
    forget_parts(folder)
    for state in [state for name in _STATES for state in folder.glob(f"{name}*")]:
        if state.is_dir():
            shutil.rmtree(state)
        else:
            state.unlink()


def _forget_unnamed_shards(folder: Path) -> None:
    """Deletes the folders of spread tensors that no checkpoint names any more."""
    if not (found := {shards for name in _STATES for shards in folder.glob(f"{name}.*") if shards.is_dir()}):
        return
    files = [file for name in _STATES if (file := folder / name).exists()]
    named = {
        folder / content[SHARDS]["folder"] for file in files if SHARDS in (content := stored(file, mmap=True))
    }
    for shards in found - named:
        shutil.rmtree(shards)
