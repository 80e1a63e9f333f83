"""Averages of the student's weights over the steps of a training, as a callback of Lightning."""

import math
from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn

from amid.errors import InputError
from amid.settings import check_arguments, optimisation

_KEY = "weight_average"
"""The key of a checkpoint that holds the average, and the weights that the training goes on with."""


class AverageWeights(L.Callback):
    """Validates, scores and keeps an average of the student's weights in place of the weights themselves.

    The average covers the trained weights alone, in float32 at least. It begins with the weights after its
    first step, and every later step updates it: average ← decay · average + (1 - decay) · weights. Without a
    decay, all of its steps weigh the same. The training itself, and text that the student writes in it, use
    the weights of the latest step.

    Args:
        decay: the share of the average that a step keeps, from 0 and below 1; null for the mean of all steps.
        start: optimiser steps before the average begins, or a share of all steps below 1. Validations
            before it measure the weights themselves.

    Raises:
        InputError: for a value outside its range.
    """

    def __init__(self, decay: float | None = 0.999, start: float = 0) -> None:
        check_arguments("AverageWeights ", optimisation.AverageWeights, locals())
        self._update = get_swa_multi_avg_fn() if decay is None else get_ema_multi_avg_fn(decay)
        self._start = start
        self._average: list[Tensor] = []
        self._steps = 0
        self._aside: list[Tensor] | None = None
        """The weights of the latest step, if the student has the average."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Takes an average that was read from a checkpoint to the device of the student.

        Raises:
            InputError: if the average would begin after the last step.
        """
        if self._first_step(pl_module) >= pl_module.steps > 0:  # type: ignore[operator]
            raise InputError(
                f"AverageWeights start={self._start} (callbacks=ema or swa) leaves none of the "
                f"{pl_module.steps} steps of the training; use fewer, or a share of them below 1, such as 0.5"
            )
        if self._average:
            pairs = zip(self._average, _trained(pl_module), strict=True)
            self._average = [average.to(weight.device) for average, weight in pairs]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Adds the weights of a step to the average."""
        if trainer.global_step <= self._first_step(pl_module):
            return
        weights = [_wide(weight) for weight in _trained(pl_module)]
        if self._steps == 0:
            self._average = [weight.clone() for weight in weights]
        else:
            self._update(self._average, weights, self._steps)
        self._steps += 1

    def _first_step(self, module: L.LightningModule) -> int:
        """Returns the number of steps before the average begins."""
        steps: Any = module.steps
        return self._start if isinstance(self._start, int) else math.ceil(self._start * steps)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Gives the student the average for a validation in the training."""
        if trainer.state.fn == "fit":
            self._take(pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Gives the student back the weights of the latest step."""
        if trainer.state.fn == "fit" and self._aside is not None:
            _set(pl_module, self._aside)
            self._aside = None

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leaves the student with the average."""
        self._take(pl_module)

    def _take(self, module: nn.Module) -> None:
        if self._average:
            self._aside = [weight.detach().clone() for weight in _trained(module)]
            _set(module, self._average)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Puts the average in the place of the weights, and the weights beside it."""
        if not self._average:
            return
        trained = list(_trained(pl_module))
        places = {id(weight): average for weight, average in zip(trained, self._average, strict=True)}
        for name, weight in pl_module.named_parameters(remove_duplicate=False):  # tied ones have two names
            if id(weight) in places:
                checkpoint["state_dict"][name] = places[id(weight)].to(weight.dtype)
        latest = [weight.detach() for weight in trained] if self._aside is None else self._aside
        checkpoint[_KEY] = {"steps": self._steps, "average": self._average, "latest": latest}

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Goes on with the average, and gives the student the weights of the latest step.

        Where the training had ended, the student keeps the average.
        """
        if (kept := checkpoint.get(_KEY)) is not None:
            self._steps = kept["steps"]
            self._average = [average.clone() for average in kept["average"]]
            if not checkpoint["ended"]:
                _set(pl_module, kept["latest"])


def _trained(module: nn.Module) -> Iterator[nn.Parameter]:
    return (weight for weight in module.parameters() if weight.requires_grad)


def _wide(weight: Tensor) -> Tensor:
    """A weight in float32 at least: a step would change an average in bfloat16 by less than it can hold."""
    return weight.detach().to(torch.promote_types(weight.dtype, torch.float32))


def _set(module: nn.Module, values: list[Tensor]) -> None:
    with torch.no_grad():
        for weight, value in zip(_trained(module), values, strict=True):
            weight.copy_(value)
