"""The counted positions of a loss: checks of their values, and the mean over them."""

import math

import torch
from torch import Tensor


def given(name: str, value: Tensor | None) -> Tensor:
    """Returns `value`, or raises a ValueError if it is None."""
    if value is None:
        raise ValueError(f"{name}=None but the loss needs it; pass {name}")
    return value


def check_leading_shape(name: str, shape: torch.Size, leading: torch.Size) -> None:
    """Raises a ValueError unless `shape` is the leading shape of the student's input."""
    if shape != leading:
        raise ValueError(
            f"{name} must have the leading shape of the student's, {tuple(leading)}, got {tuple(shape)}; "
            f"align both on the same positions"
        )


def check_denominator(denominator: float | Tensor | None, n_counted: int) -> float:
    """Returns the number that divides the sum: the number of counted positions unless given."""
    if denominator is None:
        return float(max(n_counted, 1))
    value = float(denominator)
    if not 0 < value < math.inf:
        raise ValueError(
            f"denominator must be a positive number, got denominator={denominator!r}; give the counted "
            f"tokens of the step, and 1 where there are none"
        )
    return value


def select(mask: Tensor | None, x: Tensor) -> Tensor:
    """Returns the counted positions of `x` [..., n] as [N, n], before any arithmetic."""
    if mask is None:
        return x.reshape(-1, x.shape[-1])
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be boolean, got dtype {mask.dtype}; pass mask.bool()")
    check_leading_shape("mask", mask.shape, x.shape[:-1])
    return x[mask]


def mean(per_token: Tensor, denominator: float | Tensor | None) -> Tensor:
    """Returns the sum over the counted positions [N], divided by `denominator`."""
    return per_token.sum() / check_denominator(denominator, per_token.numel())


def check_labels(labels: Tensor, n_vocab: int) -> None:
    """Raises a ValueError unless all counted labels are tokens."""
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"labels must be integers, got labels of {labels.dtype}; convert them with .long()")
    if bool(((labels < 0) | (labels >= n_vocab)).any()):
        raise ValueError(
            f"labels at counted positions must lie in [0, {n_vocab}), got values from "
            f"{int(labels.min())} to {int(labels.max())}; set mask to False where none applies"
        )
