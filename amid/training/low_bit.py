"""AdamW with its two moments in 8 bits, by torchao."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from amid.errors import InputError


def adamw_8bit(
    params: Iterable[Tensor],
    lr: float = 1e-3,
    betas: Sequence[float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
) -> Optimizer:
    """torchao's AdamW with its moments in 8 bits, each block of 256 values with a scale of its own.

    Weights of fewer than 4096 values, or of a number that is no multiple of 256, keep moments in their own
    dtype.

    Args:
        params: the weights that are trained.
        lr: the learning rate.
        betas: decay rates of the two running means.
        eps: what is added to the denominator.
        weight_decay: the decay of all weights.

    Raises:
        InputError: if torchao is not installed.
    """
    try:
        from torchao.optim import AdamW8bit
    except ImportError as error:
        raise InputError(
            f"optimizer=adamw_8bit needs torchao ({error}): pip install 'amid-distill[quantized]', or use "
            "optimizer=adamw"
        ) from error

    class Eager(AdamW8bit):  # type: ignore[misc]
        """Computes steps without torch.compile, which needs a C++ compiler on a CPU."""

        def step(self, closure: Callable[[], Any] | None = None) -> Any:
            """Takes a step."""
            with torch.compiler.set_stance("force_eager"):
                return super().step(closure)

    optimizer: Optimizer = Eager(
        list(params), lr=lr, betas=(betas[0], betas[1]), eps=eps, weight_decay=weight_decay
    )
    return optimizer
