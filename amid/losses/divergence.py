"""Divergences D(a ‖ b) between two distributions over the vocabulary, given as log-probabilities.

Every divergence here is a sum of non-negative terms, so that nothing cancels where a and b are close. For
example, KL is Σ a (δ + e^(-δ) - 1) with δ = log a - log b; for normalised a and b this equals Σ a log(a/b).
KL, reverse KL and the α-divergence are cases of the αβ-divergence. The αβ-divergence with all its limits is
one expression,

    D_AB(a ‖ b) = Σ δ² exp[A log a + B log b, (A+B) log a, (A+B) log b]

where exp[·, ·, ·] is the second divided difference of the exponential function. It needs no limit
cases: divided differences are smooth where their arguments meet.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from amid.losses.assistant import LEAST_SHARE
from amid.losses.numerics import both_zero, finite_number, float32_or_better, log_mean_exp

_FAR = 80.0
"""A log-ratio past which the smaller of two probabilities makes no difference, and exp does not overflow."""


class Pair(NamedTuple):
    """Two distributions [..., V] without zeros, as logarithms, and values already computed from them."""

    log_a: Tensor
    log_b: Tensor
    a: Tensor
    b: Tensor
    log_ratio: Tensor
    """log a - log b, as exact as it is known: with small λ the assistant has it to more digits."""
    difference: Tensor
    """a - b, as exact as it is known."""


class Divergence(ABC):
    """A divergence as a sum over the vocabulary of terms with known partial derivatives.

    Subclasses give `terms` and `partials`; autograd uses the partials and does not differentiate the
    terms. A user's own divergence may subclass this, or be any function from two [..., V] tensors of
    log-probabilities to a [...] tensor.
    """

    def __call__(self, log_a: Tensor, log_b: Tensor) -> Tensor:
        """Returns D(a ‖ b), summed over the vocabulary.

        Args:
            log_a: [..., V], normalised log-probabilities; -inf is allowed.
            log_b: [..., V], the same.

        Returns:
            [...], non-negative; +inf where the divergence is infinite. float32, or float64 if an input
            is. Tokens with a = b = 0 contribute neither value nor gradient.
        """
        log_a, log_b = float32_or_better(log_a, log_b)
        value: Tensor = _SumOfTerms.apply(log_a, log_b, self)
        return value

    @abstractmethod
    def terms(self, log_a: Tensor, log_b: Tensor) -> Tensor:
        """Returns the terms of the sum, [..., V], in the inputs' dtype. Terms with a = b = 0 are ignored."""

    @abstractmethod
    def partials(self, log_a: Tensor, log_b: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ∂D/∂log a and ∂D/∂log b, [..., V] each, with all coordinates free.

        Values where a = b = 0 are ignored.

        Terms may use that a sums to 1. Then the partials differ from the partials of another form by a
        multiple of a. The normalisation of log a removes this multiple. The same holds for b.
        """

    @property
    def counts_the_unlikely(self) -> bool:
        """Whether tokens with nearly no probability count, so that a large value can be all rounding error.

        A fused loss is then computed in float64.
        """
        return False

    def value_and_partials(self, pair: Pair) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the sum of `terms` [...] and the `partials`, of finite log-probabilities.

        A fused loss calls this. Override it if `pair` saves exponentials, or if value and partials have parts
        in common.
        """
        return self.terms(pair.log_a, pair.log_b).sum(-1), *self.partials(pair.log_a, pair.log_b)


class _SumOfTerms(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, log_a: Tensor, log_b: Tensor, divergence: Divergence) -> Tensor:
        ctx.save_for_backward(log_a, log_b)
        ctx.divergence = divergence
        return divergence.terms(log_a, log_b).masked_fill(both_zero(log_a, log_b), 0).sum(-1)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        grad = grad_outputs[0].unsqueeze(-1)
        log_a, log_b = ctx.saved_tensors
        zero = both_zero(log_a, log_b)
        grad_a, grad_b = ctx.divergence.partials(log_a, log_b)
        # A row that the loss leaves out has grad = 0; it stays out even where its own value is infinite.
        return _times(grad, grad_a).masked_fill(zero, 0), _times(grad, grad_b).masked_fill(zero, 0), None


class _AlphaBetaFamily(Divergence):
    """The common base of the αβ-divergence and its special cases."""

    @property
    @abstractmethod
    def exponents(self) -> tuple[float, float]:
        """A and B, the exponents of a and b."""

    @property
    def counts_the_unlikely(self) -> bool:
        """Whether A + B < ½: near a = b the terms are ½ δ² a^(A+B)."""
        return sum(self.exponents) < 0.5

    def terms(self, log_a: Tensor, log_b: Tensor) -> Tensor:
        """δ² exp[n, n_a, n_b], the exponents n = A log a + B log b, n_a = (A+B) log a and n_b = (A+B) log b.

        Let m be the middle one of the three. The others are x = c δ above and below it, and the divided
        difference is

            δ² exp[m, m + c₁ δ, m + c₂ δ] = e^m (φ(c₁ δ)/c₁ - φ(c₂ δ)/c₂) / (c₁ - c₂),    φ(x) = eˣ - 1 - x

        with two positive parts. A and B alone decide which of the three is in the middle.
        """
        alpha, beta = self.exponents
        total = alpha + beta
        delta = log_a - log_b
        if alpha == 0 and beta == 0:
            return 0.5 * delta * delta
        n = _scaled(alpha, log_a) + _scaled(beta, log_b)
        n_a, n_b = _scaled(total, log_a), _scaled(total, log_b)
        if alpha * beta >= 0:
            m, n_1, c_1, n_2, c_2 = n, n_a, beta, n_b, -alpha
        elif abs(alpha) > abs(beta):
            m, n_1, c_1, n_2, c_2 = n_a, n, -beta, n_b, -total
        else:
            m, n_1, c_1, n_2, c_2 = n_b, n, alpha, n_a, total
        terms = torch.zeros_like(delta)
        if c_1:
            terms = terms + _exp_excess(m, n_1, delta, c_1) / (c_1 - c_2)
        if c_2:
            terms = terms + _exp_excess(m, n_2, delta, c_2) / (c_2 - c_1)
        return terms

    def partials(self, log_a: Tensor, log_b: Tensor) -> tuple[Tensor, Tensor]:
        """Returns (a^(A+B) - a^A b^B)/B and (b^(A+B) - a^A b^B)/A, or their limits."""
        alpha, beta = self.exponents
        total = alpha + beta
        delta = log_a - log_b
        n = _scaled(alpha, log_a) + _scaled(beta, log_b)
        return (
            _exp_difference(n, _scaled(total, log_a), delta, beta),
            -_exp_difference(n, _scaled(total, log_b), delta, -alpha),
        )

    def value_and_partials(self, pair: Pair) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the value [N] and both partial derivatives [N, V].

        KL, reverse KL and A, B > 0 need no case distinction by token.

        For A, B > 0 with M = max(a, b)^(A+B), e_A = exp(-A |δ|) - 1 and e_B = exp(-B |δ|) - 1:

            ∂D/∂log a = -M e_B / B                 ∂D/∂log b = M (1 + e_B) e_A / A        where δ > 0
            ∂D/∂log a = M (1 + e_A) e_B / B        ∂D/∂log b = -M e_A / A                 where δ < 0

        and D, homogeneous of degree A+B in (a, b), is the sum of both over A+B.
        """
        alpha, beta = self.exponents
        log_a, log_b, a, b, delta, difference = pair
        if (alpha, beta) == (1, 0):
            partial_a = a * delta
            return (partial_a - difference).sum(-1).clamp_(min=0), partial_a, -difference
        if (alpha, beta) == (0, 1):
            partial_b = b * -delta
            return (partial_b + difference).sum(-1).clamp_(min=0), difference, partial_b
        if alpha <= 0 or beta <= 0:
            return super().value_and_partials(pair)
        total = alpha + beta
        larger = torch.maximum(a, b) if total == 1 else torch.maximum(log_a, log_b).mul_(total).exp_()
        distance, sign = delta.abs(), delta.sign()
        excess_a = torch.expm1(distance * -alpha)
        excess_b = torch.expm1(distance.mul_(-beta))
        rises, falls = (1 + sign).mul_(0.5), (1 - sign).mul_(0.5)
        larger.mul_(sign)
        partial_a = falls.mul_(excess_a).add_(1).mul_(excess_b).mul_(larger).mul_(-1 / beta)
        partial_b = rises.mul_(excess_b).add_(1).mul_(excess_a).mul_(larger).mul_(1 / alpha)
        value = (partial_a.sum(-1) + partial_b.sum(-1)).clamp_(min=0) / total
        return value, partial_a, partial_b


@dataclass(frozen=True)
class KL(_AlphaBetaFamily):
    """Kullback-Leibler divergence Σ a log(a/b); +inf where a token has b = 0 < a."""

    @property
    def exponents(self) -> tuple[float, float]:
        """A = 1 and B = 0."""
        return 1.0, 0.0


@dataclass(frozen=True)
class ReverseKL(_AlphaBetaFamily):
    """Reverse Kullback-Leibler divergence Σ b log(b/a); +inf where a token has a = 0 < b.

    AMiD's D_RKL(p, r) is this with a = p and b = r, that is KL(r ‖ p).
    """

    @property
    def exponents(self) -> tuple[float, float]:
        """A = 0 and B = 1."""
        return 0.0, 1.0


@dataclass(frozen=True)
class AlphaBeta(_AlphaBetaFamily):
    """The αβ-divergence (ABKD, arXiv 2505.04560; AMiD uses A = 0.2 on the first argument and B = 0.7).

        -1/(AB) Σ (a^A b^B - A/(A+B) a^(A+B) - B/(A+B) b^(A+B)),    A = alpha, B = beta

    and its limits

        A = 0           1/B² Σ (b^B (B log(b/a) - 1) + a^B)
        B = 0           1/A² Σ (a^A (A log(a/b) - 1) + b^A)
        A + B = 0       1/A² Σ (A log(b/a) + (a/b)^A - 1)
        A = B = 0       1/2  Σ (log a - log b)²

    (1, 0) is KL, (0, 1) reverse KL, and A + B = 1 the α-divergence with α = B - A. With A, B > 0 it is
    finite for all a and b; otherwise a token with a = 0 < b (where A ≤ 0 or A + B ≤ 0) or b = 0 < a
    (where B ≤ 0 or A + B ≤ 0) makes it infinite.

    Args:
        alpha: A, the exponent of the first argument; any finite real number.
        beta: B, the exponent of the second argument; any finite real number.

    Raises:
        ValueError: if an exponent is not a finite number.
    """

    alpha: float = 0.2
    beta: float = 0.7

    def __post_init__(self) -> None:
        remedy = "choose any real number, such as alpha=0.2 and beta=0.7"
        finite_number("alpha", self.alpha, remedy)
        finite_number("beta", self.beta, remedy)

    @property
    def exponents(self) -> tuple[float, float]:
        """A = alpha and B = beta."""
        return float(self.alpha), float(self.beta)


@dataclass(frozen=True)
class AlphaDivergence(_AlphaBetaFamily):
    """Amari's α-divergence. The α-mixture follows its geodesics (AMiD, Theorem 3.2).

        4/(1-α²) (1 - Σ a^((1-α)/2) b^((1+α)/2))        KL at α = -1, reverse KL at α = 1

    Args:
        alpha: any finite real number.

    Raises:
        ValueError: if `alpha` is not a finite number.
    """

    alpha: float

    def __post_init__(self) -> None:
        finite_number("alpha", self.alpha, "choose any real number; -1 is KL and 1 is reverse KL")

    @property
    def exponents(self) -> tuple[float, float]:
        """A = (1-α)/2 and B = (1+α)/2."""
        return (1 - self.alpha) / 2, (1 + self.alpha) / 2


@dataclass(frozen=True)
class JensenShannon(Divergence):
    """Generalised Jensen-Shannon divergence (GKD, arXiv 2306.13649).

        β KL(a ‖ m) + (1-β) KL(b ‖ m),    m = β a + (1-β) b

    Finite for all a and b.

    Args:
        beta: β, the weight of the first argument, 0 < β < 1.

    Raises:
        ValueError: if `beta` lies outside (0, 1). The divergence is 0 at both ends; GKD defines its
            loss there as KL and reverse KL.
    """

    beta: float = 0.5

    def __post_init__(self) -> None:
        remedy = (
            "choose 0 < beta < 1; GKD's ends 0 and 1 are KL() and ReverseKL(), divergence=kl and reverse_kl"
        )
        if not 0 < finite_number("beta", self.beta, remedy) < 1:
            raise ValueError(f"beta must lie strictly between 0 and 1, got beta={self.beta!r}; {remedy}")

    def _log_ratios(self, log_a: Tensor, log_b: Tensor) -> tuple[Tensor, Tensor]:
        """log(m/a) and log(m/b)."""
        delta = log_a - log_b
        log_ratio_larger = log_mean_exp(delta, self.beta)  # log(m/max(a, b))
        zero = torch.zeros_like(delta)
        x_a = log_ratio_larger - torch.where(delta > 0, zero, delta)
        x_b = log_ratio_larger + torch.where(delta > 0, delta, zero)
        return x_a, x_b

    def terms(self, log_a: Tensor, log_b: Tensor) -> Tensor:
        """Returns the terms of both KL divergences, added up."""
        x_a, x_b = self._log_ratios(log_a, log_b)
        log_m = torch.where(log_a > log_b, log_a + x_a, log_b + x_b)
        kl_a, kl_b = _exp_excess(log_a, log_m, x_a, 1.0), _exp_excess(log_b, log_m, x_b, 1.0)
        return self.beta * kl_a + (1 - self.beta) * kl_b

    def partials(self, log_a: Tensor, log_b: Tensor) -> tuple[Tensor, Tensor]:
        """β a log(a/m) and (1-β) b log(b/m)."""
        x_a, x_b = self._log_ratios(log_a, log_b)
        return -self.beta * _times(log_a.exp(), x_a), -(1 - self.beta) * _times(log_b.exp(), x_b)

    def value_and_partials(self, pair: Pair) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the value, the sum of both partials, and the partials.

        log(m/b) = log(1 + β (e^δ - 1)). For β > ½, where 1-β would be lost, it is
        log(m/a) = log(1 + (1-β)(e^-δ - 1)).
        """
        if min(self.beta, 1 - self.beta) < LEAST_SHARE:
            return super().value_and_partials(pair)
        delta = pair.log_ratio.clamp(-_FAR, _FAR)
        if self.beta <= 0.5:
            log_m_over_b = torch.expm1(delta).mul_(self.beta).log1p_()
            log_m_over_a = log_m_over_b - delta
        else:
            log_m_over_a = torch.expm1(-delta).mul_(1 - self.beta).log1p_()
            log_m_over_b = log_m_over_a + delta
        partial_a = log_m_over_a.mul_(pair.a).mul_(-self.beta)
        partial_b = log_m_over_b.mul_(pair.b).mul_(self.beta - 1)
        value = (partial_a.sum(-1) + partial_b.sum(-1)).clamp_(min=0)
        return value, partial_a, partial_b


@dataclass(frozen=True)
class TotalVariation(Divergence):
    """Total variation distance ½ Σ |a - b|, in [0, 1]. Its gradient is 0 for tokens with a = b."""

    def terms(self, log_a: Tensor, log_b: Tensor) -> Tensor:
        """½ max(a, b) (1 - e^(-|δ|))."""
        return -0.5 * torch.maximum(log_a, log_b).exp() * torch.expm1(-(log_a - log_b).abs())

    def partials(self, log_a: Tensor, log_b: Tensor) -> tuple[Tensor, Tensor]:
        """½ a sign(a - b) and -½ b sign(a - b)."""
        sign = _sign(log_a, log_a - log_b)
        return 0.5 * log_a.exp() * sign, -0.5 * log_b.exp() * sign

    def value_and_partials(self, pair: Pair) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the value [N] and both partial derivatives [N, V]."""
        half_sign = _sign(pair.log_a, pair.log_ratio).mul_(0.5)
        return 0.5 * pair.difference.abs().sum(-1), pair.a * half_sign, pair.b * half_sign.neg_()


def _sign(log_a: Tensor, delta: Tensor) -> Tensor:
    """The sign of δ = log a - log b, 0 where a = b up to the rounding of float64."""
    doubt = log_a.abs().add_(1).mul_(4 * torch.finfo(torch.float64).eps)
    return delta.sign().masked_fill_((delta.abs() <= doubt) & (log_a > -math.inf), 0)


def _times(weight: Tensor, x: Tensor) -> Tensor:
    """weight · x with 0 · ±inf = 0."""
    return (weight * x).masked_fill((weight == 0) | (x == 0) & torch.isinf(weight), 0)


def _scaled(c: float, x: Tensor) -> Tensor:
    """c · x with 0 · ±inf = 0."""
    return c * x if c else torch.zeros_like(x)


def _exp_excess(m: Tensor, n: Tensor, delta: Tensor, c: float) -> Tensor:
    """e^m (eˣ - 1 - x)/c with x = c δ and n = m + x, without overflow; 0 where m = x = -inf."""
    x = c * delta
    series = torch.ones_like(x)
    for k in range(8, 2, -1):
        series = 1 + x / k * series  # 1 + x/3 + x²/(3·4) + …, to machine precision in float64 for |x| < 0.1
    exp_m = m.exp().clamp(min=torch.finfo(m.dtype).tiny).masked_fill(m == -math.inf, 0)  # 0 there alone
    near = _times(exp_m, 0.5 * delta * x * series)
    below = _times(exp_m, torch.expm1(x) - x) / c
    x = x.clamp(0, 1e3)  # past it x e^(-x) is 0, and inf · 0 is avoided
    above = n.exp() * (-torch.expm1(-x) - x * torch.exp(-x)) / c
    return torch.where(delta.abs() * abs(c) < 0.1, near, torch.where(c * delta > 0, above, below))


def _exp_difference(m: Tensor, n: Tensor, delta: Tensor, c: float) -> Tensor:
    """(eⁿ - e^m)/c with n = m + c δ, and its limit δ e^m at c = 0."""
    if c == 0:
        return _times(m.exp(), delta)
    x = c * delta
    rises = x > 0
    difference = torch.where(rises, -1.0, 1.0) * torch.expm1(torch.where(rises, -x, x))
    return _times(torch.maximum(m, n).exp(), difference) / c
