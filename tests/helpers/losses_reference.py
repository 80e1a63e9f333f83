"""Slow, direct forms of the formulas, which the tests compare the package with."""

import math
from decimal import Decimal, localcontext

import torch
from torch import Tensor


def log_probs(seed: int, *shape: int, scale: float = 2.0) -> Tensor:
    """Normalised random log-probabilities in float64."""
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    return torch.log_softmax(scale * torch.randn(*shape, generator=generator, dtype=torch.float64), -1)


def on_default_device(values: dict[str, object]) -> dict[str, object]:
    """The values, tensors of them where new tensors are made."""
    device = torch.get_default_device()
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in values.items()}


def pair(seed: int, *shape: int, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    return log_probs(seed, *shape, scale=scale), log_probs(seed + 1000, *shape, scale=scale)


def mixture(log_p: Tensor, log_q: Tensor, alpha: float, lam: float) -> Tensor:
    """log r by the definition, differentiable; for moderate α and logits."""
    s = (1 - alpha) / 2
    if s == 0:
        log_r = lam * log_p + (1 - lam) * log_q
    else:
        log_r = torch.log(lam * torch.exp(s * log_p) + (1 - lam) * torch.exp(s * log_q)) / s
    return log_r - torch.logsumexp(log_r, -1, keepdim=True)


def alpha_beta(log_a: Tensor, log_b: Tensor, alpha: float, beta: float) -> Tensor:
    """The αβ-divergence with its limit cases, term for term as published."""
    a, b, total = log_a.exp(), log_b.exp(), alpha + beta
    if alpha == 0 and beta == 0:
        terms = 0.5 * (log_a - log_b) ** 2
    elif alpha == 0:
        terms = (b**beta * (beta * (log_b - log_a) - 1) + a**beta) / beta**2
    elif beta == 0:
        terms = (a**alpha * (alpha * (log_a - log_b) - 1) + b**alpha) / alpha**2
    elif total == 0:
        terms = (alpha * (log_b - log_a) + (a / b) ** alpha - 1) / alpha**2
    else:
        terms = -(a**alpha * b**beta - alpha / total * a**total - beta / total * b**total) / (alpha * beta)
    return terms.sum(-1)


def kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    return (log_a.exp() * (log_a - log_b)).sum(-1)


def reverse_kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    return kl(log_b, log_a)


def alpha_divergence(log_a: Tensor, log_b: Tensor, alpha: float) -> Tensor:
    if alpha == -1:
        return kl(log_a, log_b)
    if alpha == 1:
        return kl(log_b, log_a)
    t = torch.exp((1 - alpha) / 2 * log_a + (1 + alpha) / 2 * log_b)
    return 4 / (1 - alpha**2) * (1 - t.sum(-1))


def jensen_shannon(log_a: Tensor, log_b: Tensor, beta: float) -> Tensor:
    log_m = torch.log(beta * log_a.exp() + (1 - beta) * log_b.exp())
    return beta * kl(log_a, log_m) + (1 - beta) * kl(log_b, log_m)


def total_variation(log_a: Tensor, log_b: Tensor) -> Tensor:
    return 0.5 * (log_a.exp() - log_b.exp()).abs().sum(-1)


def decimal_mixture(log_p: Tensor, log_q: Tensor, alpha: float, lam: float) -> Tensor:
    """log r in 80 digits, for one position: exact where float64 brute force is not."""
    with localcontext() as context:
        context.prec = 80
        s, lam_ = (1 - Decimal(alpha)) / 2, Decimal(lam)
        r = []
        for x, y in zip(log_p.tolist(), log_q.tolist(), strict=True):
            x_, y_ = Decimal(x), Decimal(y)
            if s == 0:
                r.append((lam_ * x_ + (1 - lam_) * y_).exp())
            else:
                r.append(((lam_ * (s * x_).exp() + (1 - lam_) * (s * y_).exp()).ln() / s).exp())
        total = sum(r)
        return torch.tensor([float((x / total).ln()) for x in r], dtype=torch.float64)


def decimal_alpha_beta(log_a: Tensor, log_b: Tensor, alpha: float, beta: float) -> float:
    """The general αβ formula in 80 digits, for one position and A, B, A + B ≠ 0 however small."""
    with localcontext() as context:
        context.prec = 80
        alpha_, beta_ = Decimal(alpha), Decimal(beta)
        total = alpha_ + beta_
        value = Decimal(0)
        for x, y in zip(log_a.tolist(), log_b.tolist(), strict=True):
            x_, y_ = Decimal(x), Decimal(y)
            cross, of_a, of_b = (alpha_ * x_ + beta_ * y_).exp(), (total * x_).exp(), (total * y_).exp()
            value -= (cross - alpha_ / total * of_a - beta_ / total * of_b) / (alpha_ * beta_)
        return float(value)


def relative_error(x: Tensor, truth: Tensor) -> float:
    """‖x - truth‖ / ‖truth‖ in float64."""
    return float((x.double() - truth.double()).norm() / truth.double().norm())


NEG_INF = -math.inf
