"""The α-mixture assistant: a distribution r between the teacher p and the student q (arXiv 2510.15982)."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from amid.losses.numerics import both_zero, finite_number, float32_or_better, log_mean_exp, log_normalise

_FAR = 80.0
"""An exponent at which eˣ does not overflow, and past which 1 is lost in the rounding of eˣ in float32."""

LEAST_SHARE = 1e-16
"""The smallest weight of a mean for which λ e^80 is still far more than 1."""

_REACH = 60.0
"""The largest distance of log r̃ from log x. Below e^-87 float32 rounds x coarsely, and the sum of both
logarithms has lost five digits by then."""

_LEAST_SUM = 1e-30
"""The smallest Σ r̃ for which float32 still has enough digits of the terms."""


class Mixed(NamedTuple):
    """An assistant [..., V] in closed form, compared with x, one of the two distributions that it mixes."""

    log_r: Tensor
    r: Tensor
    log_ratio: Tensor
    """log r - log x"""
    difference: Tensor
    """r - x"""
    gradient_weight: Tensor | float
    """∂log r̃ / ∂log q"""


class AlphaMixture:
    r"""The α-mixture of teacher and student, r = r̃ / Σ r̃ (AMiD, arXiv 2510.15982, section 3).

        r̃ = (λ pˢ + (1-λ) qˢ)^(1/s),  s = (1-α)/2        α ≠ 1
        r̃ = p^λ q^(1-λ)                                  α = 1

    α = -1 is the arithmetic mean (the assistant of GKD and DistiLLM), α = 1 the geometric mean (TAID),
    α = 3 the harmonic mean; r lies on the α-divergence geodesic between p and q (Theorem 3.2). λ is
    the weight of the teacher.

    Support: for α < 1 r is positive where p or q is; for α ≥ 1 where both are. λ = 0 returns q, and λ = 1
    returns p.

    Args:
        alpha: any finite real number. A smaller α is more mode-seeking, a larger α more mode-covering. A
            schedule or a callback may change it during training.
        lam: weight of the teacher, 0 ≤ λ ≤ 1. A schedule or a callback may change it too.
        detach_student: treat q inside r as a constant, so that no gradient reaches the student through
            r (TAID).

    Raises:
        ValueError: if `alpha` or `lam` is out of range, when constructed or set.
    """

    def __init__(self, alpha: float = -5.0, lam: float = 0.1, detach_student: bool = False) -> None:
        self.alpha = alpha
        self.lam = lam
        self.detach_student = detach_student

    @property
    def alpha(self) -> float:
        """Which mean: any finite real number."""
        return self._alpha

    @alpha.setter
    def alpha(self, value: float) -> None:
        self._alpha = finite_number("alpha", value, "choose any real number, such as -5, -1 or 1")

    @property
    def lam(self) -> float:
        """λ, the weight of the teacher, in [0, 1]."""
        return self._lam

    @lam.setter
    def lam(self, value: float) -> None:
        remedy = "choose the teacher's weight from [0, 1]"
        number = finite_number("lam", value, remedy)
        if not 0 <= number <= 1:
            raise ValueError(f"lam must lie in [0, 1], got lam={value!r}; {remedy}")
        self._lam = number

    def __repr__(self) -> str:
        return f"AlphaMixture(alpha={self.alpha}, lam={self.lam}, detach_student={self.detach_student})"

    def __call__(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Returns the log-probabilities of the assistant.

        Args:
            log_p: [..., V], normalised log-probabilities of the teacher; -inf is allowed.
            log_q: [..., V], the same of the student.

        Returns:
            log r, [..., V], normalised; float32, or float64 if an input is.

        Raises:
            ValueError: if α ≥ 1 and p and q have no token in common at some position: r does not exist
                there.
        """
        log_p, log_q = float32_or_better(log_p, log_q)
        if self.detach_student:
            log_q = log_q.detach()
        if self.lam == 0:
            return log_q
        if self.lam == 1:
            return log_p
        log_r = _LogMixture.apply(log_p, log_q, self.alpha, self.lam)
        if self.alpha >= 1 and bool((log_r == -math.inf).all(-1).any()):
            raise ValueError(
                f"teacher and student have disjoint supports at some position, where the α-mixture with "
                f"alpha={self.alpha} >= 1 does not exist; choose alpha < 1, or keep -inf out of the logits"
            )
        return log_normalise(log_r)

    def gradient_weight(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Returns the share of the gradient for log r̃ that reaches log q (AMiD, Proposition 3.5).

            w = ∂log r̃ / ∂log q = (1-λ) qˢ / (λ pˢ + (1-λ) qˢ) = sigmoid(log((1-λ)/λ) - s (log p - log q))

        Args:
            log_p: [..., V], normalised log-probabilities of the teacher.
            log_q: [..., V], the same of the student.

        Returns:
            w, [..., V], in [0, 1]: 1-λ everywhere at α = 1; 0 where p = q = 0, and everywhere when
            `detach_student`.
        """
        log_p, log_q = float32_or_better(log_p, log_q)
        if self.detach_student or self.lam == 1:
            return torch.zeros_like(log_q)
        if self.lam == 0:
            return torch.ones_like(log_q).masked_fill(both_zero(log_p, log_q), 0)
        return _weights(log_p, log_q, self.alpha, self.lam)[1]

    def mixing(self, beside: str) -> "Mixing":
        """Returns the settings and numbers of `Mixing.mixed`, for 0 < λ < 1.

        Args:
            beside: "p" or "q": the distribution that `log_ratio` and `difference` compare r with.
        """
        near_p = self.lam > 0.5
        mu = 1 - self.lam if near_p else self.lam
        return Mixing(
            near_p=near_p,
            beside_p=beside == "p",
            close=(beside == "p") == near_p and mu < 0.25,
            geometric=self.alpha == 1,
            detach_student=self.detach_student,
            s=(1 - self.alpha) / 2,
            mu=mu,
        )


class Mixing(NamedTuple):
    """The arithmetic of an `AlphaMixture` in few passes, without autograd; it branches on its own flags only.

    Of p and q, let x be the one with the larger weight, 1-μ, and y the other. With d = log y - log x,

        log r̃ = log x + u
        u = log(1 + μ (e^(s d) - 1)) / s

    Where r is close to x, v = log r - log x = u - log1p(Σ x (eᵘ - 1)) and r - x = x (eᵛ - 1) keep the
    digits that subtracting the logarithms would lose.
    """

    near_p: bool
    """Whether x is p."""
    beside_p: bool
    """Whether r is compared with p."""
    close: bool
    """Whether r is compared with x, and close to it."""
    geometric: bool
    """s = 0"""
    detach_student: bool
    s: float
    mu: float

    def mixed(self, log_p: Tensor, log_q: Tensor, p: Tensor, q: Tensor) -> Mixed:
        """Returns the assistant of finite log-probabilities [..., V], p = exp(log_p) and q = exp(log_q).

        Returns:
            The fields of `Mixed`. A position is all NaN if these forms have no precision there: the supports
            are (nearly) disjoint, r̃ is further than e^60 from x, or a log-probability is -inf.
        """
        log_x, x, log_y = (log_p, p, log_q) if self.near_p else (log_q, q, log_p)
        u, weight = self._from_x(log_y - log_x)
        far = (u.amax(-1, keepdim=True) > _REACH) | (u.amin(-1, keepdim=True) < -_REACH)
        if self.close:
            total = (x * torch.expm1(u)).sum(-1, keepdim=True)
            log_ratio = u.sub_(total.masked_fill_(far | (total < -31 / 32), math.nan).log1p_())
            difference = torch.expm1(log_ratio).mul_(x)
            mixed = Mixed(log_x + log_ratio, x + difference, log_ratio, difference, weight)
        else:
            log_r = u.add_(log_x)
            r = log_r.exp()
            total = r.sum(-1, keepdim=True)
            r.div_(total.masked_fill_(far | (total < _LEAST_SUM), math.nan))
            log_r.sub_(total.log_())
            log_other, other = (log_p, p) if self.beside_p else (log_q, q)
            mixed = Mixed(log_r, r, log_r - log_other, r - other, weight)
        return mixed._replace(gradient_weight=0.0) if self.detach_student else mixed

    def _from_x(self, log_ratio: Tensor) -> tuple[Tensor, Tensor | float]:
        """Returns u, and ∂log r̃ / ∂log q."""
        s, mu = self.s, self.mu
        if self.geometric:
            return log_ratio * mu, mu if self.near_p else 1 - mu
        exponent = log_ratio.mul_(s)
        excess = torch.expm1(exponent.clamp(max=_FAR)).mul_(mu)
        total = 1 + excess
        weight = (excess + mu).div_(total) if self.near_p else total.reciprocal_().mul_(1 - mu)
        beyond = exponent.sub_(_FAR).clamp_(min=0)
        return excess.log1p_().add_(beyond).div_(s), weight


def _weights(log_p: Tensor, log_q: Tensor, alpha: float, lam: float) -> tuple[Tensor, Tensor]:
    """∂log r̃ / ∂log p and ∂log r̃ / ∂log q, for 0 < λ < 1; they sum to 1 except where p = q = 0."""
    s = (1 - alpha) / 2
    x = s * (log_p - log_q) if s else torch.zeros_like(log_q)
    log_odds = math.log1p(-lam) - math.log(lam) - x
    zero = both_zero(log_p, log_q)
    return torch.sigmoid(-log_odds).masked_fill(zero, 0), torch.sigmoid(log_odds).masked_fill(zero, 0)


class _LogMixture(torch.autograd.Function):
    """log r̃ with the closed-form gradient, which stays exact where differentiating the branches would not."""

    @staticmethod
    def forward(ctx: Any, log_p: Tensor, log_q: Tensor, alpha: float, lam: float) -> Tensor:
        ctx.save_for_backward(log_p, log_q)
        ctx.alpha, ctx.lam = alpha, lam
        if alpha == 1:
            return lam * log_p + (1 - lam) * log_q
        s = (1 - alpha) / 2
        x = s * (log_p - log_q)
        log_r = torch.where(x > 0, log_p, log_q) + log_mean_exp(x, lam) / s
        return log_r.masked_fill(both_zero(log_p, log_q), -math.inf)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        log_p, log_q = ctx.saved_tensors
        weight_p, weight_q = _weights(log_p, log_q, ctx.alpha, ctx.lam)
        return grad * weight_p, grad * weight_q, None, None
