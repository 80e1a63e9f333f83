"""The device and the CPU threads that a run computes on."""

import lightning as L
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.utilities.rank_zero import rank_zero_only

from amid.errors import InputError
from amid.settings.nodes import Trainer

# SLURM may start several processes, each with runs of its own: all of them log.
rank_zero_only.rank = 0  # type: ignore[attr-defined]
_ALL_THREADS = torch.get_num_threads()


def one_device(trainer: Trainer, key: str = "trainer") -> L.Fabric:
    """Device and precision of the settings of a trainer, which stand at `key`.

    Raises:
        InputError: if this machine has no such device.
    """
    devices = trainer.devices if isinstance(trainer.devices, list) else 1
    try:
        return L.Fabric(
            accelerator=trainer.accelerator,
            devices=devices,
            precision=trainer.precision,
            plugins=[LightningEnvironment()],  # one process, whatever a scheduler's variables say
        )
    except (RuntimeError, TypeError, ValueError) as error:
        given = f"{key}.accelerator={trainer.accelerator} {key}.devices={trainer.devices}"
        raise InputError(f"{given} is not available here: {error}") from error


def use_threads(threads: int | None) -> None:
    """Lets torch compute on so many CPU threads from now on; None for as many as it began with."""
    torch.set_num_threads(threads or _ALL_THREADS)
