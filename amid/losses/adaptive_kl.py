"""Adaptive KL: forward KL where the heads differ, reverse KL where the tails do (AKL, arXiv 2404.02657)."""

import torch
from torch import Tensor

from amid.losses.divergence import KL, Pair, ReverseKL
from amid.losses.numerics import finite_number, rounding
from amid.losses.weighted_divergences import WeightedDivergences

_LIKELIEST = 64
"""How many tokens are sorted first: sorting a whole large vocabulary takes longer than everything else."""


class AdaptiveKL(WeightedDivergences):
    """Adaptive KL divergence (AKL, arXiv 2404.02657).

        w_h KL(p ‖ q) + w_t KL(q ‖ p),    w_h = Σ_head |p - q| / Σ |p - q|,    w_t = 1 - w_h

    at each position. The head holds p's likeliest tokens as long as their sum does not exceed `head_mass`.
    The token that crosses this limit belongs to the tail, unless it is the first. Where p = q the weights
    are ½. No gradient passes through the weights.

    `return_stats=True` also gives "weight_kl" (w_h), "weight_reverse_kl" (w_t), "divergence_kl" and
    "divergence_reverse_kl".

    Args:
        head_mass: the probability in p's head, 0 < head_mass < 1; published: 0.5.
        swapped: exchanges p and q: w_h KL(q ‖ p) + w_t KL(p ‖ q), with q's head, and with the gradient
            passing through the weights. The training scripts of ABKD and AMiD call the paper's code this way.
        shared_vocab: see `Distillation`.
        fused: see `Distillation`.

    Raises:
        ValueError: if `head_mass` lies outside (0, 1).
    """

    def __init__(
        self,
        head_mass: float = 0.5,
        swapped: bool = False,
        shared_vocab: int | None = None,
        fused: bool = True,
    ) -> None:
        remedy = "choose 0 < head_mass < 1, such as 0.5"
        if not 0 < finite_number("head_mass", head_mass, remedy) < 1:
            raise ValueError(f"head_mass must lie in (0, 1), got head_mass={head_mass!r}; {remedy}")
        self.head_mass = float(head_mass)
        self.swapped = swapped
        self.constant_weights = not swapped
        of_head, of_tail = ("reverse_kl", "kl") if swapped else ("kl", "reverse_kl")
        divergences = {"kl": KL(), "reverse_kl": ReverseKL()}
        super().__init__({name: divergences[name] for name in (of_head, of_tail)}, shared_vocab, fused)

    def __repr__(self) -> str:
        return (
            f"AdaptiveKL(head_mass={self.head_mass}, swapped={self.swapped}, "
            f"shared_vocab={self.shared_vocab!r})"
        )

    def weights(self, pair: Pair, values: Tensor) -> Tensor:
        """Returns the shares of head and tail in Σ |p - q|, [2, N]; they sum to 1."""
        gaps = pair.difference.abs()
        index, in_head = self._head(pair.b if self.swapped else pair.a)
        of_head = gaps.gather(-1, index).masked_fill(~in_head, 0).sum(-1)
        total = gaps.sum(-1)
        equal = total <= rounding(total)
        share = torch.where(equal, 0.5, of_head / total.masked_fill(equal, 1))
        return torch.stack([share, 1 - share])

    def _head(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the likeliest tokens of x [N, V], at least the whole head, and a mask of the head."""
        for n in (min(_LIKELIEST, x.shape[-1]), x.shape[-1]):
            likeliest, index = x.detach().topk(n, dim=-1)
            mass = likeliest.cumsum(-1)
            if bool((mass[..., -1] > self.head_mass).all()):
                break
        in_head = mass <= self.head_mass + rounding(mass)
        in_head[..., 0] = True
        return index, in_head
