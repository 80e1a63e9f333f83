"""Arithmetic of log-probabilities that neither overflows nor loses digits, and checks of numbers."""

import math

import torch
from torch import Tensor


def finite_number(name: str, value: float, remedy: str) -> float:
    """Return `value` as a float, or raise a ValueError that names the argument, the value and the remedy."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{name} must be a finite number, got {name}={value!r}; {remedy}")
    return number


def float32_or_better(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Bring two tensors to their common dtype, at least float32: bfloat16 and float16 are storage only."""
    dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    return x.to(dtype), y.to(dtype)


def in_float64(x: Tensor) -> Tensor:
    """Returns the tensor in float64, where the device has it."""
    return x if x.device.type == "mps" else x.double()


def rounding(x: Tensor) -> float:
    """Returns the relative error that a sum over probabilities may have in the dtype of `x`."""
    return 16 * torch.finfo(x.dtype).eps


def log_normalise(x: Tensor) -> Tensor:
    """Computes log-softmax over the last dimension, and loses no digit to an offset that all logits share.

    `torch.log_softmax` adds up a long vocabulary in sequence on the CPU. At V = 50,000 in float32 its error,
    and the error of its gradient, is about ten times as large as here.
    """
    x = x - x.detach().amax(-1, keepdim=True)
    return x - torch.logsumexp(x, -1, keepdim=True)


def softmaxes(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Returns log-probabilities, as exact as from `log_normalise`, and probabilities; one `exp` a logit."""
    log_x = logits - logits.amax(-1, keepdim=True)
    x = log_x.exp()
    total = x.sum(-1, keepdim=True)
    x.div_(total)
    return log_x.sub_(total.log_()), x


def entropy(log_x: Tensor) -> Tensor:
    """The entropies in nats, summed over all positions."""
    total: Tensor = torch.special.entr(log_x.exp()).sum()
    return total


def both_zero(log_a: Tensor, log_b: Tensor) -> Tensor:
    """Returns where neither distribution has the token: log a - log b is NaN there and must not be used."""
    return (log_a == -math.inf) & (log_b == -math.inf)


def log_mean_exp(x: Tensor, lam: float) -> Tensor:
    """log((1 - λ) + λ eˣ) - max(x, 0), accurate for every x including 0 and ±inf, for 0 < λ < 1.

    The maximum is left out so that the caller adds it where it is exact.
    """
    below = x <= 0

    def chosen(at_most_0: float, above: float) -> Tensor:
        return torch.where(below, x.new_tensor(at_most_0), x.new_tensor(above))

    log_lam, log_rest = math.log(lam), math.log1p(-lam)
    t = torch.where(below, x, -x)
    m = chosen(lam, 1 - lam) * torch.expm1(t)  # from the weight of the smaller of 1 and eˣ
    # log1p keeps the digits where the mean is near 1, the logarithms where it is near 0 (m near -1), also of
    # a λ below the range of x's dtype.
    far = torch.logaddexp(chosen(log_rest, log_lam), t + chosen(log_lam, log_rest))
    return torch.where(m < -0.5, far, torch.log1p(m))
