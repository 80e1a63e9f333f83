"""The devices and the CPU threads that a run computes on: one device, or one for each of its ranks."""

import os
from collections.abc import Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch.distributed.tensor import DTensor

from amid.distributed import ranks
from amid.distributed.sharding import spread, spread_as
from amid.distributed.shards import without_spread, write
from amid.distributed.start import has_gpus
from amid.errors import InputError
from amid.settings.nodes import Trainer
from amid.training.checkpoints import SHARDS, new_shards, stored, with_stored_tensors
from amid.training.module import DistillationModule

# SLURM may start several processes, each with runs of its own: all of them log.
rank_zero_only.rank = ranks.rank()  # type: ignore[attr-defined]
_ALL_THREADS = torch.get_num_threads()


class DataParallel(DDPStrategy):
    """Data parallelism without Lightning's wrapper around the module.

    `DistillationModule` shares out the rows of a step, and sums the gradients once, after all micro-batches.
    The wrapper would sum them only in its own forward, which the loss does not call.
    """

    def configure_ddp(self) -> None:
        """Leaves the module as it is, with the same weights on all ranks."""
        assert self.lightning_module is not None
        ranks.same_weights(self.lightning_module.parameters())


class Sharded(DataParallel):
    """Data parallelism with the student's weights, gradients and optimiser states spread over the ranks.

    Each rank writes its parts of a checkpoint. A run resumes from it with any strategy on any number of
    devices.
    """

    def setup(self, trainer: L.Trainer) -> None:
        """Spreads the student's weights, from the CPU on, and makes the optimiser of a training."""
        assert self.accelerator is not None
        assert self.model is not None
        self.accelerator.setup(trainer)
        self.precision_plugin.convert_module(self.model)
        self._module.shard(self.root_device)
        self.model_to_device()
        if trainer.state.fn == TrainerFn.FITTING:
            self.setup_optimizers(trainer)
        self.setup_precision_plugin()

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """True: each rank reads the parts of weights that are spread already."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The trained weights, spread."""
        frozen = self._module.frozen()
        return {name: value for name, value in self._module.state_dict().items() if name not in frozen}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Writes a checkpoint: each rank its parts of spread tensors, and then the first one the rest.

        Raises:
            OSError: on all ranks, if one of them cannot write.
        """
        rest, tensors = without_spread(checkpoint)
        path = Path(filepath)
        folder = ranks.from_first(partial(new_shards, path))
        rest[SHARDS] = {"folder": folder.name, "checksums": write(tensors, folder)}
        ranks.from_first(partial(self.checkpoint_io.save_checkpoint, rest, path))

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """The content of a checkpoint, with each rank's parts of the tensors that were spread."""
        path = Path(checkpoint_path)
        content = stored(path, mmap=True)
        mesh = next(of.device_mesh for of in self._module.parameters() if isinstance(of, DTensor))
        loaded: dict[str, Any] = with_stored_tensors(content, content, path, mesh)
        return loaded

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Gives each rank its parts of the trained weights."""
        now = self._module.state_dict()
        given = checkpoint["state_dict"].items()
        parts = {name: spread_as(value, now[name]) if name in now else value for name, value in given}
        self._module.load_state_dict(parts, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Gives each rank its part of the optimisers' states."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            weights = chain.from_iterable(group["params"] for group in optimizer.param_groups)
            optimizer.load_state_dict(spread(state, weights))

    def teardown(self) -> None:
        """Leaves the weights on their devices: they stay spread for what follows."""
        assert self.accelerator is not None
        self.precision_plugin.teardown()
        self.accelerator.teardown()
        self.checkpoint_io.teardown()

    @property
    def _module(self) -> DistillationModule:
        assert isinstance(self.lightning_module, DistillationModule)
        return self.lightning_module


_STRATEGIES = {"auto": DataParallel, "ddp": DataParallel, "fsdp": Sharded}


def of_trainer(trainer: Trainer) -> dict[str, Any]:
    """The arguments of `lightning.Trainer` that say on which devices this process and its ranks compute."""
    if ranks.number() == 1:
        devices = trainer.devices if isinstance(trainer.devices, list) else 1
        return {"devices": devices, "num_nodes": 1, "strategy": "auto"}
    here = int(os.environ["LOCAL_WORLD_SIZE"])
    return {
        "devices": trainer.devices if isinstance(trainer.devices, list) else here,
        "num_nodes": ranks.number() // here,
        "strategy": _STRATEGIES[trainer.strategy](timeout=ranks.ANSWER_WITHIN),
        "use_distributed_sampler": False,  # a step's rows are shared out by tokens
    }


def environment() -> LightningEnvironment | TorchElasticEnvironment:
    """Tells Lightning of this process's place among the ranks, whatever a scheduler's variables say."""
    return LightningEnvironment() if ranks.number() == 1 else TorchElasticEnvironment()


def one_device(trainer: Trainer, key: str = "trainer") -> L.Fabric:
    """The device of this process and the precision, of the settings of a trainer, which stand at `key`.

    Raises:
        InputError: if this machine has no such device.
    """
    devices: Any = trainer.devices if isinstance(trainer.devices, list) else 1
    if ranks.number() > 1:
        local = int(os.environ["LOCAL_RANK"])
        if isinstance(devices, list):
            devices = [devices[local]]
        elif has_gpus(trainer):
            devices = [local]
    try:
        return L.Fabric(
            accelerator=trainer.accelerator,
            devices=devices,
            precision=trainer.precision,
            plugins=[LightningEnvironment()],  # of one process
        )
    except (RuntimeError, TypeError, ValueError) as error:
        given = f"{key}.accelerator={trainer.accelerator} {key}.devices={trainer.devices}"
        raise InputError(f"{given} is not available here: {error}") from error


def use_threads(threads: int | None) -> None:
    """Lets torch compute on so many CPU threads from now on.

    None stands for as many as this process began with, shared out among the ranks of a run on this machine.
    """
    here = int(os.environ["LOCAL_WORLD_SIZE"]) if ranks.number() > 1 else 1
    torch.set_num_threads(threads or max(1, _ALL_THREADS // here))
