"""Both directions of KL; the entropies decide which direction weighs more (BDKD, arXiv 2212.12965)."""

import torch
from torch import Tensor

from amid.losses.divergence import KL, Divergence, Pair, ReverseKL
from amid.losses.numerics import finite_number
from amid.losses.weighted_divergences import WeightedDivergences

_TIE = 16 * torch.finfo(torch.float32).eps
"""The relative difference up to which two entropies count as equal, in float64 too."""


class _TeacherCrossEntropy(Divergence):
    """-Σ a log b, which is KL(a ‖ b) + H(a); not 0 where a = b."""

    def terms(self, log_a: Tensor, log_b: Tensor) -> Tensor:
        """The terms of KL(a ‖ b) plus the terms of the entropy."""
        entropy: Tensor = torch.special.entr(log_a.exp())
        return KL().terms(log_a, log_b) + entropy

    def partials(self, log_a: Tensor, log_b: Tensor) -> tuple[Tensor, Tensor]:
        """-a log b, and the partial derivative of KL(a ‖ b)."""
        a, (_, partial_b) = log_a.exp(), KL().partials(log_a, log_b)
        return (-a * log_b).masked_fill(a == 0, 0), partial_b

    def value_and_partials(self, pair: Pair) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the value [N] and both partial derivatives [N, V]."""
        kl, _, partial_b = KL().value_and_partials(pair)
        partial_a = -pair.a * pair.log_b
        return kl + torch.special.entr(pair.a).sum(-1), partial_a, partial_b


class BidirectionalKL(WeightedDivergences):
    """Balanced divergences (BD-KD, arXiv 2212.12965).

        w_p CE(p, q) + w_q KL(q ‖ p),    CE(p, q) = -Σ p log q

    at each position. Where H(p) > H(q), the student is the surer one: w_p = `weight` and w_q = 1. Where
    H(q) > H(p), w_q = `weight` and w_p = 1. Both are 1 where the entropies are equal up to rounding in
    float32. No gradient passes through the weights. The entropies are taken in float32 or better. In
    float16 the entropies of the published code are NaN, which sets all weights to 1.

    The cross-entropy is larger than KL(p ‖ q) by the teacher's entropy, which has no gradient: the loss is
    w_p H(p) where p = q.

    `return_stats=True` also gives "weight_cross_entropy" (w_p), "weight_reverse_kl" (w_q),
    "divergence_cross_entropy" and "divergence_reverse_kl".

    Args:
        weight: the larger of the two weights, at least 1; published: 2, in ABKD's script 3.
        shared_vocab: see `Distillation`.
        fused: see `Distillation`.

    Raises:
        ValueError: if `weight` is below 1.
    """

    def __init__(self, weight: float = 2.0, shared_vocab: int | None = None, fused: bool = True) -> None:
        remedy = "choose a number of at least 1, such as 2"
        if finite_number("weight", weight, remedy) < 1:
            raise ValueError(f"weight must be at least 1, got weight={weight!r}; {remedy}")
        self.weight = float(weight)
        divergences = {"cross_entropy": _TeacherCrossEntropy(), "reverse_kl": ReverseKL()}
        super().__init__(divergences, shared_vocab, fused)

    def __repr__(self) -> str:
        return f"BidirectionalKL(weight={self.weight}, shared_vocab={self.shared_vocab!r})"

    def weights(self, pair: Pair, values: Tensor) -> Tensor:
        """Returns w_p and w_q, [2, N]."""
        entropy_p, entropy_q = (torch.special.entr(x).sum(-1) for x in (pair.a, pair.b))
        tie = _TIE * entropy_p.clamp(min=1)
        more = torch.stack([entropy_p > entropy_q + tie, entropy_q > entropy_p + tie])
        return torch.where(more, self.weight, 1.0).to(values.dtype)
