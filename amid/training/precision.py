"""The cost of bfloat16 on this processor."""

import time
from collections.abc import Mapping

import torch

from amid.console import announce
from amid.settings.nodes import ModelSource, Trainer

_SLOW = 3.0
"""A bfloat16 product that takes this many times the time of float32 is announced."""


def announce_slow_bfloat16(trainer: Trainer, models: Mapping[str, ModelSource]) -> None:
    """Warns if a run asks for bfloat16 on a CPU that has no instructions for it.

    Without such instructions (AVX-512 BF16 or AMX on x86) matrix products can take hundreds of times as long
    as in float32. The function times one small product in each dtype.

    Args:
        trainer: the settings of the trainer.
        models: the settings of teacher and student.
    """
    wanted: dict[str, str] = {
        f"model.{role}.dtype": model.dtype for role, model in models.items() if model.dtype == "bfloat16"
    }
    if trainer.precision.startswith("bf16"):
        wanted["trainer.precision"] = trainer.precision
    on_cpu = trainer.accelerator == "cpu" or (
        trainer.accelerator == "auto" and not torch.accelerator.is_available()
    )
    if not wanted or not on_cpu:
        return
    times = times_as_long()
    if times > _SLOW:
        given = ", ".join(f"{key}={value}" for key, value in wanted.items())
        remedy = " ".join(f"{key}={'32-true' if key == 'trainer.precision' else 'float32'}" for key in wanted)
        announce(
            f"bfloat16 ({given}) takes {times:.0f} times as long as float32 on this processor; use {remedy}"
        )


def times_as_long() -> float:
    """Returns the time of a matrix product in bfloat16 divided by its time in float32, on the CPU."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.ones(64, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)
        a @ b
        runs = []
        for _ in range(3):
            started = time.perf_counter()
            a @ b
            runs.append(time.perf_counter() - started)
        seconds[dtype] = min(runs)
    return seconds[torch.bfloat16] / seconds[torch.float32]
