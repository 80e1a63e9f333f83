"""Draws tokens from distributions: temperature, top-k, top-p, and random numbers that the caller gives."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import TopKLogitsWarper


class Warp(NamedTuple):
    """What changes a model's distribution before a token is drawn."""

    temperature: float
    top_p: float
    top_k: int


def draw(scores: Tensor, warps: Sequence[Warp], rows: Tensor, bits: Tensor) -> Tensor:
    """Draws tokens from `scores` [N, V], the logits of distributions that are changed by `warps` [N].

    Args:
        scores: float32 logits, -inf for a token that is never drawn.
        warps: a temperature of 0 takes the likeliest token.
        rows: the distribution that each token is drawn from: [R].
        bits: the random number of each token, from 0 to 2^32 - 1: [R].

    Returns:
        The tokens: [R].

    Raises:
        FloatingPointError: if no token can be drawn from a distribution, such as one with NaN.
    """
    if any(warp.temperature not in (0, 1) for warp in warps):
        scores = scores / scores.new_tensor([warp.temperature or 1.0 for warp in warps])[:, None]
    for k in {warp.top_k for warp in warps} - {0}:
        chosen = _places(scores, [warp.top_k == k for warp in warps])
        scores = scores.index_copy(0, chosen, TopKLogitsWarper(k)(None, scores[chosen]))
    if any(cut := [warp.top_p < 1 for warp in warps]):
        chosen = _places(scores, cut)
        dropped = scores.new_tensor([1 - warp.top_p for warp in warps if warp.top_p < 1])
        scores = scores.index_copy(0, chosen, _top_p(scores[chosen], dropped))
    check_scores(scores)
    greedy = [warp.temperature == 0 for warp in warps]
    if all(greedy):
        return scores.argmax(-1)[rows]
    tokens = _inverse_cdf(scores, rows, bits)
    if any(greedy):
        tokens = torch.where(
            torch.tensor(greedy, device=scores.device)[rows], scores.argmax(-1)[rows], tokens
        )
    return tokens


def check_scores(scores: Tensor) -> None:
    """Raises FloatingPointError if no token can be drawn from one of the logits `scores` [N, V]."""
    if not scores.amax(-1).isfinite().all():
        raise FloatingPointError("generation: the model's logits are not finite, or no token is left")


def _places(scores: Tensor, chosen: Sequence[bool]) -> Tensor:
    return torch.tensor(chosen, device=scores.device).nonzero()[:, 0]


def _top_p(scores: Tensor, dropped: Tensor) -> Tensor:
    """Drops the unlikeliest tokens of each row of `scores` [N, V] that sum to its share `dropped` [N].

    One token is kept at least; dropped ones become -inf. The arithmetic is that of transformers'
    `TopPLogitsWarper`.
    """
    ascending, order = scores.sort(-1)
    unlikely = ascending.softmax(-1).cumsum(-1) <= dropped[:, None]
    unlikely[:, -1] = False
    return scores.masked_fill(torch.zeros_like(unlikely).scatter(1, order, unlikely), -torch.inf)


def _inverse_cdf(scores: Tensor, rows: Tensor, bits: Tensor) -> Tensor:
    """The tokens at which the cumulated softmax of a row of `scores` [N, V] exceeds bits / 2^32: [R].

    All sums are of integers, thus exact on every device.
    """
    sums = scores.softmax(-1).mul_(2**30).round_().long().cumsum_(-1)
    values = bits * sums[rows, -1] >> 32
    sums += torch.arange(len(sums), device=sums.device)[:, None] << 32  # so that all rows are one rising one
    return torch.searchsorted(sums.flatten(), values + (rows << 32), right=True) - rows * sums.shape[1]
