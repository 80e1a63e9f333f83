"""The GPUs of this machine, handed out to the runs of a command: a GPU belongs to one run at a time."""

import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from amid.errors import InputError

VISIBLE = "CUDA_VISIBLE_DEVICES"

SECONDS_BETWEEN_TRIES = 0.5


@dataclass(frozen=True)
class Gpu:
    """A GPU of this machine."""

    name: str
    """Its name in CUDA_VISIBLE_DEVICES."""
    uuid: str
    """The name by which every process of this machine knows it."""

    @property
    def lock(self) -> FileLock:
        """The lock of the process that this GPU belongs to; the system frees it when the process ends."""
        folder = Path(tempfile.gettempdir()) / f"amid-gpus-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        return FileLock(folder / f"{self.uuid}.lock")


def gpus_here() -> list[Gpu]:
    """Returns the GPUs that this process sees."""
    import torch

    count = torch.cuda.device_count()
    names = (os.environ.get(VISIBLE) or ",".join(map(str, range(count)))).split(",")
    gpus = []
    for index, name in enumerate(names[:count]):
        uuid = getattr(torch.cuda.get_device_properties(index), "uuid", name)  # ROCm may have none
        gpus.append(Gpu(name.strip(), str(uuid)))
    return gpus


def devices_of(trainer: Any) -> int | None:
    """Returns how many GPUs a run takes, by the settings of its trainer.

    None means that the run itself says which GPUs it takes, takes all of them, or takes none.
    """
    devices = trainer.devices
    if trainer.accelerator not in ("auto", "gpu", "cuda"):
        return None
    return devices if isinstance(devices, int) and devices > 0 else None


def runs_at_once(gpus: Sequence[Gpu], devices: int) -> int:
    """Returns how many runs with so many GPUs each `gpus` are enough for.

    Raises:
        InputError: if there are fewer GPUs than a run takes.
    """
    if devices > len(gpus):
        raise InputError(
            f"trainer.devices={devices}: this machine has {len(gpus)} GPU{'s' * (len(gpus) > 1)}; "
            f"give each run up to {len(gpus)}"
        )
    return len(gpus) // devices


_taken: list[FileLock] = []
"""The locks of the GPUs that this process has taken."""


def take(gpus: Sequence[Gpu], devices: int) -> None:
    """Takes so many free ones of `gpus` for the rest of this process, and hides all others from it.

    It waits until enough are free. A process that has taken GPUs keeps them: CUDA reads its variable once.
    """
    waits = False
    while not _taken:
        free: list[tuple[Gpu, FileLock]] = []
        for gpu in gpus:
            lock = gpu.lock
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            free.append((gpu, lock))
            if len(free) == devices:
                os.environ[VISIBLE] = ",".join(gpu.name for gpu, _ in free)
                _taken.extend(lock for _, lock in free)
                return
        for _, lock in free:  # another process may need only these
            lock.release()
        if not waits:
            print(f"Waiting for {devices} free GPU{'s' * (devices > 1)} of {len(gpus)}", flush=True)
            waits = True
        time.sleep(SECONDS_BETWEEN_TRIES)
