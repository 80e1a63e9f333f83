"""Learning-rate schedules: transformers' own, with a warm-up, and how any schedule is called."""

import inspect
import math
import types
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from hydra.errors import HydraException
from hydra.utils import instantiate
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler
from transformers.optimization import (
    get_constant_schedule_with_warmup,
    get_cosine_with_hard_restarts_schedule_with_warmup,
    get_cosine_with_min_lr_schedule_with_warmup,
    get_cosine_with_min_lr_schedule_with_warmup_lr_rate,
    get_inverse_sqrt_schedule,
    get_linear_schedule_with_warmup,
    get_polynomial_decay_schedule_with_warmup,
    get_wsd_schedule,
)

from amid.config.calls import name_of
from amid.errors import InputError, first_line
from amid.settings import check_arguments, optimisation
from amid.settings.check import NAMES_OF_STEPS


def warmup_steps(warmup: float, steps: int) -> int:
    """The optimiser steps of a warm-up.

    Args:
        warmup: a whole number of steps, from 0, or a share of `steps` above 0 and below 1, which is rounded
            up as transformers does.
        steps: optimiser steps of the whole training.

    Raises:
        InputError: if it is neither, or the warm-up is as long as the training.
    """
    check_arguments("scheduler.", optimisation.WithWarmup, {"warmup": warmup})
    warm = _whole(warmup, steps)
    if warm >= steps > 0:
        raise InputError(
            f"scheduler.warmup={warmup}: {warm} steps of warm-up leave none of the {steps} steps of the "
            "training; use fewer, or a share of them below 1, such as 0.1"
        )
    return warm


def cosine(optimizer: Optimizer, steps: int, warmup: float = 0, eta_min: float = 0.0) -> LRScheduler:
    """Half a cosine from the learning rate of the optimiser to `eta_min`, after a linear warm-up from 0.

    Without a warm-up it is torch's `CosineAnnealingLR`, as published; with one it is transformers'
    `get_cosine_with_min_lr_schedule_with_warmup`.

    Args:
        optimizer: the optimiser that gets the learning rates.
        steps: optimiser steps of the whole training.
        warmup: as in `warmup_steps`.
        eta_min: the last learning rate, at most the learning rate of the optimiser.

    Raises:
        InputError: if `eta_min` is above the learning rate of the optimiser.
    """
    _check_falls(optimizer, "eta_min", eta_min)
    warm = warmup_steps(warmup, steps)
    if warm == 0:
        return CosineAnnealingLR(optimizer, T_max=steps, eta_min=eta_min)
    made: LRScheduler = get_cosine_with_min_lr_schedule_with_warmup(optimizer, warm, steps, min_lr=eta_min)
    return made


def linear(optimizer: Optimizer, steps: int, warmup: float = 0) -> LRScheduler:
    """A line from the learning rate of the optimiser to 0, after a linear warm-up from 0: transformers'
    `get_linear_schedule_with_warmup`.

    Args:
        optimizer: the optimiser that gets the learning rates.
        steps: optimiser steps of the whole training.
        warmup: as in `warmup_steps`.
    """
    made: LRScheduler = get_linear_schedule_with_warmup(optimizer, warmup_steps(warmup, steps), steps)
    return made


def constant(optimizer: Optimizer, steps: int, warmup: float = 0) -> LRScheduler:
    """The learning rate of the optimiser, after a linear warm-up from 0: transformers'
    `get_constant_schedule_with_warmup`.

    Args:
        optimizer: the optimiser that gets the learning rates.
        steps: optimiser steps of the whole training.
        warmup: as in `warmup_steps`.
    """
    made: LRScheduler = get_constant_schedule_with_warmup(optimizer, warmup_steps(warmup, steps))
    return made


def cosine_with_restarts(
    optimizer: Optimizer, steps: int, warmup: float = 0, num_cycles: int = 1
) -> LRScheduler:
    """Halves of a cosine, each from the learning rate of the optimiser to 0, after a linear warm-up from 0:
    transformers' `get_cosine_with_hard_restarts_schedule_with_warmup`.

    Args:
        optimizer: the optimiser that gets the learning rates.
        steps: optimiser steps of the whole training.
        warmup: as in `warmup_steps`.
        num_cycles: the number of halves.
    """
    warm = warmup_steps(warmup, steps)
    made: LRScheduler = get_cosine_with_hard_restarts_schedule_with_warmup(optimizer, warm, steps, num_cycles)
    return made


def polynomial(
    optimizer: Optimizer, steps: int, warmup: float = 0, lr_end: float = 1e-7, power: float = 1.0
) -> LRScheduler:
    """A polynomial from the learning rate of the optimiser to `lr_end`, after a linear warm-up from 0:
    transformers' `get_polynomial_decay_schedule_with_warmup`.

    Args:
        optimizer: the optimiser that gets the learning rates.
        steps: optimiser steps of the whole training.
        warmup: as in `warmup_steps`.
        lr_end: the last learning rate, below the learning rate of the optimiser.
        power: the power of the share of steps that remain; 1 is a line.

    Raises:
        InputError: if `lr_end` is not below the learning rate of the optimiser.
    """
    lr = optimizer.defaults["lr"]
    if lr_end >= lr:
        raise InputError(
            f"scheduler.lr_end={lr_end} must be below the learning rate, optimizer.lr={lr}; use a smaller one"
        )
    warm = warmup_steps(warmup, steps)
    made: LRScheduler = get_polynomial_decay_schedule_with_warmup(optimizer, warm, steps, lr_end, power)
    return made


def inverse_sqrt(
    optimizer: Optimizer, steps: int, warmup: float = 0, timescale: int | None = None
) -> LRScheduler:
    """The learning rate of the optimiser divided by a root of the steps, after a linear warm-up from 0:
    transformers' `get_inverse_sqrt_schedule`.

    Args:
        optimizer: the optimiser that gets the learning rates.
        steps: optimiser steps of the whole training.
        warmup: as in `warmup_steps`.
        timescale: the rate is halved 3 * `timescale` steps after the warm-up; None for the steps of the
            warm-up, or 10,000 without one.
    """
    warm = warmup_steps(warmup, steps)
    made: LRScheduler = get_inverse_sqrt_schedule(optimizer, warm, timescale)
    return made


def warmup_stable_decay(
    optimizer: Optimizer,
    steps: int,
    warmup: float = 0,
    decay: float = 0.1,
    warmup_type: str = "linear",
    decay_type: str = "cosine",
    min_lr_ratio: float = 0.0,
    num_cycles: float = 0.5,
) -> LRScheduler:
    """A warm-up, the learning rate of the optimiser, and a decay at the end of the training: transformers'
    `get_wsd_schedule`.

    Args:
        optimizer: the optimiser that gets the learning rates.
        steps: optimiser steps of the whole training.
        warmup: as in `warmup_steps`.
        decay: the steps of the decay, a whole number or a share of `steps` as for `warmup`.
        warmup_type: linear, cosine or 1-sqrt.
        decay_type: linear, cosine or 1-sqrt.
        min_lr_ratio: the first learning rate of the warm-up and the last one of the decay, as a share of the
            learning rate of the optimiser.
        num_cycles: waves of a decay by cosine; 0.5 goes down once.

    Raises:
        InputError: if warm-up and decay are longer than the training.
    """
    warm = warmup_steps(warmup, steps)
    check_arguments("scheduler.", optimisation.WarmupStableDecay, {"decay": decay})
    last = _whole(decay, steps)
    if warm + last > steps:
        raise InputError(
            f"scheduler.decay={decay}: {warm} steps of warm-up and {last} of decay are more than the {steps} "
            "steps of the training; use fewer"
        )
    made: LRScheduler = get_wsd_schedule(
        optimizer,
        warm,
        last,
        num_training_steps=steps,
        warmup_type=warmup_type,
        decay_type=decay_type,
        min_lr_ratio=min_lr_ratio,
        num_cycles=num_cycles,
    )
    return made


def cosine_with_min_lr(
    optimizer: Optimizer,
    steps: int,
    warmup: float = 0,
    min_lr: float | None = None,
    min_lr_rate: float | None = None,
    num_cycles: float = 0.5,
) -> LRScheduler:
    """A cosine from the learning rate of the optimiser to a least one, after a linear warm-up from 0:
    transformers' `get_cosine_with_min_lr_schedule_with_warmup`.

    Args:
        optimizer: the optimiser that gets the learning rates.
        steps: optimiser steps of the whole training.
        warmup: as in `warmup_steps`.
        min_lr: the least learning rate, at most the learning rate of the optimiser.
        min_lr_rate: the same as a share of the learning rate of the optimiser.
        num_cycles: waves of the cosine; 0.5 goes down once.

    Raises:
        InputError: if not exactly one of `min_lr` and `min_lr_rate` is given, or `min_lr` is above the
            learning rate of the optimiser.
    """
    _check_least(min_lr, min_lr_rate)
    _check_falls(optimizer, "min_lr", min_lr or 0.0)
    made: LRScheduler = get_cosine_with_min_lr_schedule_with_warmup(
        optimizer,
        warmup_steps(warmup, steps),
        steps,
        num_cycles=num_cycles,
        min_lr=min_lr,
        min_lr_rate=min_lr_rate,
    )
    return made


def cosine_warmup_with_min_lr(
    optimizer: Optimizer,
    steps: int,
    warmup: float = 0,
    min_lr: float | None = None,
    min_lr_rate: float | None = None,
    warmup_lr_rate: float | None = None,
    num_cycles: float = 0.5,
) -> LRScheduler:
    """`cosine_with_min_lr` with a warm-up that does not begin at 0: transformers'
    `get_cosine_with_min_lr_schedule_with_warmup_lr_rate`.

    Args:
        optimizer: the optimiser that gets the learning rates.
        steps: optimiser steps of the whole training.
        warmup: as in `warmup_steps`.
        min_lr: the least learning rate, at most the learning rate of the optimiser.
        min_lr_rate: the same as a share of the learning rate of the optimiser.
        warmup_lr_rate: the first learning rate as a share of the learning rate of the optimiser; None for
            1 / the steps of the warm-up.
        num_cycles: waves of the cosine; 0.5 goes down once.

    Raises:
        InputError: if not exactly one of `min_lr` and `min_lr_rate` is given, or `min_lr` is above the
            learning rate of the optimiser.
    """
    _check_least(min_lr, min_lr_rate)
    _check_falls(optimizer, "min_lr", min_lr or 0.0)
    made: LRScheduler = get_cosine_with_min_lr_schedule_with_warmup_lr_rate(
        optimizer,
        warmup_steps(warmup, steps),
        steps,
        num_cycles=num_cycles,
        min_lr=min_lr,
        min_lr_rate=min_lr_rate,
        warmup_lr_rate=warmup_lr_rate,
    )
    return made


def _check_least(min_lr: float | None, min_lr_rate: float | None) -> None:
    if (min_lr is None) == (min_lr_rate is None):
        given = [
            f"scheduler.{name}={'null' if value is None else value}"
            for name, value in (("min_lr", min_lr), ("min_lr_rate", min_lr_rate))
        ]
        raise InputError(f"{' and '.join(given)}: set exactly one of them, and null for the other")


def _check_falls(optimizer: Optimizer, name: str, least: float) -> None:
    lr = optimizer.defaults["lr"]
    if least > lr > 0:
        raise InputError(
            f"scheduler.{name}={least} must be at most the learning rate, optimizer.lr={lr}; use a smaller "
            "one"
        )


def _whole(part: float, steps: int) -> int:
    """The steps of a part of a training, a whole number or a share of `steps`, which is rounded up."""
    return part if isinstance(part, int) else math.ceil(part * steps)


def scheduled(scheduler: Callable[..., Any], optimizer: Optimizer, steps: int) -> LRScheduler:
    """The schedule that `scheduler` makes for an optimiser, stepped after each optimiser step.

    It is called by keyword, with `optimizer=` and with `steps` under each name of `NAMES_OF_STEPS` that it
    takes, unless a value other than null was given for that name.

    Args:
        scheduler: a class or function, or a `functools.partial` of one with further arguments.
        optimizer: the optimiser that gets the learning rates.
        steps: optimiser steps of the whole training.

    Raises:
        InputError: if it cannot be called so, or returns no schedule that steps alone.
    """
    if steps == 0:  # nothing is trained
        return constant(optimizer, steps)
    given = scheduler.keywords if isinstance(scheduler, partial) else {}
    try:
        parameters = inspect.signature(scheduler).parameters
    except ValueError:  # of some built-in classes
        parameters = types.MappingProxyType({})
    counts = {name: steps for name in NAMES_OF_STEPS if name in parameters and given.get(name) is None}
    name = name_of(scheduler)
    try:
        made = scheduler(optimizer=optimizer, **counts)
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        taken = ", ".join(["optimizer", *counts])
        raise InputError(
            f"scheduler={name} was called with {taken} and the settings of scheduler ({first_line(error)}); "
            f"its steps must be an argument with one of the names {', '.join(NAMES_OF_STEPS)}"
        ) from error
    except ZeroDivisionError as error:
        raise InputError(
            f"scheduler={name} cannot be made with optimizer.lr={optimizer.defaults.get('lr')} "
            f"({first_line(error)}); use a learning rate above 0"
        ) from error
    if not isinstance(made, LRScheduler):
        raise InputError(
            f"scheduler={name} returned {type(made).__name__}; it must return a schedule of "
            "torch.optim.lr_scheduler"
        )
    if any(p.default is p.empty for p in inspect.signature(made.step).parameters.values()):
        raise InputError(
            f"scheduler={name} needs a score at each step, which there is none of; use a schedule over "
            "steps, such as scheduler=cosine"
        )
    return made


def check_rates(cfg: Mapping[str, Any], steps: int, prefix: str = "") -> None:
    """Checks that the optimiser and the schedule of a configuration can be made for a training.

    Args:
        cfg: with `optimizer` and `scheduler`.
        steps: optimiser steps of the whole training.
        prefix: the prefix of their keys.

    Raises:
        InputError: naming the one that cannot be made.
    """
    settings = cfg["optimizer"]
    try:
        optimizer = instantiate(settings)(params=[torch.nn.Parameter(torch.zeros(1))])
    except InputError as error:
        raise InputError(f"{prefix}{error}") from error
    except Exception as error:  # whatever a library's optimiser raises for a value
        given = ", ".join(f"{name}={value}" for name, value in settings.items() if not name.startswith("_"))
        remedy = f"see the documentation of {settings['_target_']}"
        raise InputError(
            f"{prefix}optimizer does not take {given} ({first_line(error)}); {remedy}"
        ) from error
    if not isinstance(optimizer, Optimizer):
        raise InputError(
            f"{prefix}optimizer={settings['_target_']} returned {type(optimizer).__name__}; it must return "
            "an optimiser of torch.optim"
        )
    settings = cfg["scheduler"]
    name = f"{prefix}scheduler={settings.get('_target_')}"
    try:
        made = scheduled(instantiate(settings), optimizer, steps)
    except InputError as error:
        raise InputError(f"{prefix}{error}") from error
    except (HydraException, TypeError) as error:
        raise InputError(
            f"{name} cannot be made ({first_line(error)}); it is called with the optimiser later, so it "
            "needs _partial_: true"
        ) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch expects a step of the optimiser before
            made.step()
    except Exception as error:  # whatever a library's schedule raises for a value
        given = ", ".join(f"{name}={value}" for name, value in settings.items() if not name.startswith("_"))
        raise InputError(
            f"{name} cannot take a step with {given} ({first_line(error)}); see its documentation"
        ) from error
