"""How hidden states are written: exactly, or lossily in 8 bits."""

from collections.abc import Mapping

import torch
from torch import Tensor

from amid.losses import Head

EXACT, INT8 = "exact", "int8"

LEVELS = 127
"""The largest integer of the 8-bit code; the smallest is its negative."""


def encoded(states: Tensor, code: str) -> dict[str, Tensor]:
    """Returns the tensors that are written for hidden states.

    `exact` gives the states as they are. `int8` gives integers q [N, D] from -127 to 127 and scales s [N] in
    float32: the state is s q, off by at most s / 2 in each element, where s is the largest absolute element
    of the position divided by 127.

    Args:
        states: [N, D], of any floating dtype.
        code: `exact` or `int8`.
    """
    if code == EXACT:
        return {"states": states}
    wide = states.float()
    scale = wide.abs().amax(dim=1) / LEVELS
    steps = wide / torch.where(scale == 0, 1, scale).unsqueeze(1)
    return {"states": steps.round().clamp(-LEVELS, LEVELS).to(torch.int8), "scale": scale}


def decoded(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    """Returns the hidden states [N, D] that `encoded` was given: rounded to `dtype` if the code is lossy."""
    states = tensors["states"]
    return (states * tensors["scale"].unsqueeze(1)).to(dtype) if "scale" in tensors else states


def bytes_of_position(code: str, width: int, dtype: torch.dtype) -> int:
    """Returns the bytes of one hidden state [`width`] as `code` writes it."""
    return width * dtype.itemsize if code == EXACT else width + torch.float32.itemsize


def kl(head: Head, exact: Tensor, lossy: Tensor) -> float:
    """Returns the sum over positions of KL(p ‖ p') in nats, where `head` makes p of the hidden states `exact`
    and p' of `lossy`, both [N, D]."""
    log_p, log_lossy = (head.logits(states).double().log_softmax(dim=-1) for states in (exact, lossy))
    return float((log_p.exp() * (log_p - log_lossy)).sum())
