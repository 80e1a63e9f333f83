"""Who starts the ranks of a run: amid itself on one machine, or torchrun or srun."""

import os
from typing import TYPE_CHECKING

from amid.errors import InputError

if TYPE_CHECKING:  # it takes long to import
    from amid.settings.nodes import Trainer


def ranks_to_start(trainer: "Trainer", key: str = "trainer") -> int:
    """The number of processes that a run is to start for its devices; 1 if it needs no others.

    They are not started if torchrun or srun has started them. This process then has its place among them in
    its environment, see `started_elsewhere`.

    Raises:
        InputError: if other processes were started than the settings ask for, a machine lacks devices, or a
            run of several machines is started by hand.
    """
    wanted = _wanted(trainer)
    given = f"{key}.devices={trainer.devices}"
    found = _found_elsewhere(wanted)
    if found > 1:
        if wanted not in (1, found):
            raise InputError(
                f"{given} {key}.num_nodes={trainer.num_nodes} asks for {wanted} processes, and {found} were "
                f"started; make the numbers equal, or leave {key}.devices out"
            )
        return 1
    if trainer.num_nodes > 1:
        raise InputError(
            f"{key}.num_nodes={trainer.num_nodes}: start amid on each machine, by torchrun or srun; "
            "docs/how-to/several-devices.md has the commands"
        )
    if wanted > 1:
        _check_gpus(trainer, given)
    return wanted


def _check_gpus(trainer: "Trainer", given: str) -> None:
    if has_gpus(trainer):
        import torch

        there = torch.cuda.device_count()
        numbers = trainer.devices if isinstance(trainer.devices, list) else range(trainer.devices)
        if max(numbers) >= there:
            raise InputError(f"{given}: this machine has {there} GPUs; choose at most as many")


def started_elsewhere(trainer: "Trainer") -> bool:
    """Whether this process is one of several that torchrun or srun has started for one run.

    Then RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT are set.
    """
    return _found_elsewhere(_wanted(trainer)) > 1


def _wanted(trainer: "Trainer") -> int:
    """The number of processes that the settings ask for, on all machines."""
    devices = len(trainer.devices) if isinstance(trainer.devices, list) else trainer.devices
    return int(devices * trainer.num_nodes)


def _found_elsewhere(wanted: int) -> int:
    """The number of processes that torchrun or srun has started for one run; 1 for none.

    Processes of srun belong to one run only if the settings ask for several devices. Otherwise each has
    runs of its own.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    tasks = int(os.environ.get("SLURM_NTASKS", 1))
    if wanted == 1 or tasks == 1 or "SLURM_PROCID" not in os.environ:
        return 1
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment  # takes seconds to import

    given = os.environ
    nodes = given.get("SLURM_STEP_NODELIST") or given["SLURM_NODELIST"]
    first = SLURMEnvironment.resolve_root_node_address(nodes)
    port = 15000 + int(given["SLURM_JOB_ID"]) % 10000  # the same on all nodes
    os.environ |= {
        "RANK": given["SLURM_PROCID"],
        "LOCAL_RANK": given["SLURM_LOCALID"],
        "GROUP_RANK": given["SLURM_NODEID"],
        "WORLD_SIZE": str(tasks),
        "LOCAL_WORLD_SIZE": str(tasks // int(given.get("SLURM_NNODES", 1))),
        "MASTER_ADDR": given.get("MASTER_ADDR", first),
        "MASTER_PORT": given.get("MASTER_PORT", str(port)),
    }
    return tasks


def is_other_rank_of_torchrun() -> bool:
    """Whether torchrun has started this process as another rank than the first."""
    return "TORCHELASTIC_RUN_ID" in os.environ and os.environ["RANK"] != "0"


def has_gpus(trainer: "Trainer") -> bool:
    """Whether a run with these settings is computed on NVIDIA GPUs."""
    import torch  # takes seconds to import

    return trainer.accelerator in ("gpu", "cuda", "auto") and torch.cuda.is_available()
