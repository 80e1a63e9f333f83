"""Losses that weigh divergences between teacher and student at every position."""

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from amid.losses.distillation import Distillation, through_softmax
from amid.losses.divergence import Divergence, Pair
from amid.losses.inputs import Stats, Sums
from amid.losses.numerics import log_normalise, softmaxes


class WeightedDivergences(Distillation):
    """Σ_i w_i D_i(p ‖ q) at each position, with weights w_i ≥ 0 made from p and q.

    Unless `constant_weights` is set to False, the weights count as constants: no gradient passes through
    them.

    `return_stats=True` also gives for each D_i "weight_NAME" and "divergence_NAME", the latter without its
    weight.

    Args:
        divergences: the D_i by the names that they have among the sums.
        shared_vocab: see `Distillation`.
        fused: see `Distillation`.
    """

    constant_weights = True

    def __init__(self, divergences: Mapping[str, Divergence], shared_vocab: int | None, fused: bool) -> None:
        super().__init__(shared_vocab, fused)
        self._divergences = dict(divergences)
        self.check()

    @abstractmethod
    def weights(self, pair: Pair, values: Tensor) -> Tensor:
        """The weights of the D_i, [n, N].

        Args:
            pair: p as a and q as b, at N positions; -inf is allowed in the logarithms, and `log_ratio` is
                NaN where both are.
            values: the D_i(p ‖ q), [n, N].
        """

    def _by_autograd(self, logits_q: Tensor, logits_p: Tensor, with_stats: bool) -> tuple[Tensor, Stats]:
        """Returns the loss at each position [N], differentiable, and the sums to be logged."""
        log_p, log_q = log_normalise(logits_p), log_normalise(logits_q)
        values = torch.stack([divergence(log_p, log_q) for divergence in self._divergences.values()])
        log_b = log_q.detach() if self.constant_weights else log_q
        p, q = log_p.exp(), log_b.exp()
        pair = Pair(log_p, log_b, p, q, log_p - log_b, p - q)
        weights = self.weights(pair, values.detach())
        per_token = _weighted(weights, values).sum(0)
        return per_token, self._stats(pair, weights, values) if with_stats else {}

    @property
    def _has_closed_form(self) -> bool:
        """Whether the weights count as constants."""
        return self.constant_weights

    def _in_closed_form(
        self, logits_q: Tensor, logits_p: Tensor, with_gradient: bool, with_stats: bool
    ) -> tuple[Sums, Tensor]:
        """Returns the weighted sum of the D_i and of their gradients, and where [N] it is finite."""
        log_p, p = softmaxes(logits_p)
        log_q, q = softmaxes(logits_q)
        pair = Pair(log_p, log_q, p, q, log_p - log_q, p - q)
        parts = [divergence.value_and_partials(pair) for divergence in self._divergences.values()]
        values = torch.stack([value for value, _, _ in parts])
        weights = self.weights(pair, values)
        value = _weighted(weights, values).sum(0)
        finite, gradient = torch.isfinite(value), None
        if with_gradient:
            gradient = torch.zeros_like(q)
            for weight, (_, _, partial) in zip(weights, parts, strict=True):
                gradient.addcmul_(partial, weight.unsqueeze(-1))
            gradient, finite_gradient = through_softmax(gradient, q)
            finite = finite & finite_gradient
        stats = self._stats(pair, weights, values) if with_stats else {}
        return Sums(value.sum(), gradient, stats), finite

    def _stats(self, pair: Pair, weights: Tensor, values: Tensor) -> Stats:
        stats = {f"entropy_{name}": torch.special.entr(x).sum() for name, x in (("p", pair.a), ("q", pair.b))}
        of_rows = (pair.a * pair.log_ratio).masked_fill(pair.a == 0, 0).sum(-1)
        stats["kl_pq"] = of_rows.clamp(min=0).sum()
        for name, weight, value in zip(self._divergences, weights, values, strict=True):
            stats[f"weight_{name}"], stats[f"divergence_{name}"] = weight.sum(), value.sum()
        return {name: x.detach() for name, x in stats.items()}


def _weighted(weights: Tensor, values: Tensor) -> Tensor:
    """weights · values with 0 · inf = 0."""
    return (weights * values).masked_fill(weights == 0, 0)
