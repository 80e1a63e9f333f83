r"""MiniLLM's loss on sampled text: the reverse KL of whole sequences (arXiv 2306.08543).

With r_t = log(p_t/q_t) at the sampled tokens y_t, p_t = p(y_t | s_t) and s_t what stands before, the
gradient of the sequences' KL(q ‖ p) = -E Σ_t r_t over y ~ q falls into two parts,

    single step     Σ_t ∇ KL(q(· | s_t) ‖ p(· | s_t)),    exact over the vocabulary
    long term      -Σ_t R_t ∇ log q_t,                     R_t = Σ_{t'>t} r_t'

both in expectation over y ~ q. If the text was drawn from another q̃, both parts have the importance weight
ρ_t = q_t/q̃_t. In the single step this weight is a constant, and its mean over y_t is 1. MiniLLM's third
part, cross-entropy on plain text, is `CrossEntropy` on a batch of its own.

R and the probabilities that the tokens were drawn with are constants of the sample. With them the loss is a
sum over positions like any other, so that `MiniLLM` has a fused form too.

In tensors [B, T], a row is a sequence and a position is a sampled token. `mask` is true where a token was
sampled.
"""

import math

import torch
from torch import Tensor

from amid.losses.base import Loss
from amid.losses.counted import check_denominator, check_labels, check_leading_shape, given, mean, select
from amid.losses.divergence import KL
from amid.losses.inputs import Positions, Stats, Sums
from amid.losses.numerics import finite_number, log_normalise, softmaxes
from amid.losses.objective import Objective


def mixed_log_probs(log_p: Tensor, log_q: Tensor, teacher_share: float = 0.2) -> Tensor:
    """Returns log q̃ = log(a p + (1-a) q) of teacher-mixed sampling, MiniLLM's guard against reward hacking.

    Args:
        log_p: [...], log-probabilities of the teacher: of a vocabulary to sample from, or of sampled tokens.
        log_q: [...], log-probabilities of the student for the same tokens.
        teacher_share: a, 0 ≤ a ≤ 1; published: 0.2.

    Returns:
        [...]; log_q itself where a = 0, log_p where a = 1.

    Raises:
        ValueError: if `teacher_share` lies outside [0, 1].
    """
    remedy = "choose 0 <= teacher_share <= 1, such as 0.2"
    if not 0 <= finite_number("teacher_share", teacher_share, remedy) <= 1:
        raise ValueError(f"teacher_share must lie in [0, 1], got teacher_share={teacher_share!r}; {remedy}")
    if teacher_share in (0, 1):
        return log_p if teacher_share else log_q
    return torch.logaddexp(log_p + math.log(teacher_share), log_q + math.log1p(-teacher_share))


def rewards_to_go(log_p: Tensor, log_q: Tensor, mask: Tensor, normalise: bool = True) -> Tensor:
    """Returns the reward of the tokens after t, R_t = Σ_{t'>t} log(p_t'/q_t') or the mean, without gradient.

    Args:
        log_p: [B, T], the teacher's log-probabilities of the sampled tokens.
        log_q: [B, T], the student's log-probabilities of the sampled tokens.
        mask: [B, T], boolean; values elsewhere are never read.
        normalise: divide by the number of tokens after t, MiniLLM's length normalisation. Without it, short
            answers are preferred, because their sums are smaller.

    Returns:
        [B, T], float32 or better: 0 at the last token of a row, and where `mask` is False.

    Raises:
        ValueError: if shapes do not match or `mask` is not boolean.
    """
    _check("log_p", log_p, mask)
    _check("log_q", log_q, mask)
    rewards = torch.where(mask, _precise(log_p) - _precise(log_q), 0).detach()
    total = _after(rewards)
    if normalise:
        total = total / _after(mask.to(total.dtype)).clamp(min=1)
    return total.masked_fill(~mask, 0)


def long_term_loss(
    *,
    log_q: Tensor,
    log_sampling: Tensor,
    to_go: Tensor,
    mask: Tensor,
    denominator: float | Tensor | None = None,
    clip: float | None = 0.2,
) -> tuple[Tensor, Stats]:
    """Computes the long-term part of MiniLLM's loss, with importance weights and PPO's clipping.

        Σ_t max(-ρ_t R_t, -clip(ρ_t, 1-ε, 1+ε) R_t) / denominator,    ρ_t = q(y_t | s_t) / q̃(y_t | s_t)

    ρ_t is MiniLLM's approximation of Π_{t'≤t} q_t'/q̃_t', the weight of the whole sequence up to t. The
    variance of that weight would be large. If q̃ = q the gradient is -Σ_t R_t ∇ log q_t.

    Args:
        log_q: [B, T], the student's log-probabilities of the sampled tokens, to be differentiated.
        log_sampling: [B, T], log q̃ of the sampled tokens: under the student at the time of sampling, or with
            teacher-mixed sampling from `mixed_log_probs`.
        to_go: [B, T], R of `rewards_to_go`.
        mask: [B, T], boolean; values elsewhere are never read.
        denominator: divide the sum by this in place of the number of sampled tokens.
        clip: ε > 0; None does not clip. Published: 0.2.

    Returns:
        A scalar, 0 if there is no sampled token, and detached sums over the tokens: "importance" (ρ) and
        "clipped" (1 where clipping leaves no gradient).

    Raises:
        ValueError: if shapes do not match, `mask` is not boolean, or `denominator` or `clip` is not
            positive.
    """
    for name, x in (("log_q", log_q), ("log_sampling", log_sampling), ("to_go", to_go)):
        _check(name, x, mask)
    _check_clip(clip)
    log_q, log_sampling, to_go = (_precise(x[mask]) for x in (log_q, log_sampling, to_go))
    ratio = (log_q - log_sampling.detach()).exp()
    loss = -ratio * to_go.detach()
    clipped = torch.zeros_like(loss, dtype=torch.bool)
    if clip is not None:
        bounded = -ratio.clamp(1 - clip, 1 + clip) * to_go.detach()
        clipped = bounded > loss
        loss = torch.maximum(loss, bounded)
    stats = {"importance": ratio.detach().sum(), "clipped": clipped.sum()}
    return loss.sum() / check_denominator(denominator, loss.numel()), stats


class MiniLLM(Loss):
    """MiniLLM's loss on sampled text: the single-step term plus the long-term term of the same tokens.

    `sampling` [..., 2] has two values for each sampled token: log q̃, the log-probability that it was drawn
    with (see `mixed_log_probs`), and R of `rewards_to_go`. No gradient reaches it.

    Several steps may use the same sample. Each step computes both parts again; `sampling` stays the same.
    Without `sampling`, for text that was not sampled, the loss is the single-step term alone.

    `return_stats=True` also gives "single_step" (KL(q ‖ p), without weights). With `sampling` it also gives
    "to_go" (R) and the sums of `long_term_loss`.

    Args:
        clip: see `long_term_loss`.
        weighted_single_step: whether the single-step term has the importance weight q/q̃ of its token, as in
            the paper. With False it has no weight, as in the published script. Both terms have the same mean
            over the sampled token.
        fused: whether training uses `fused`, if the models' heads can be separated from the other layers.

    Raises:
        ValueError: if `clip` is not a number above 0, or None.
    """

    needs_teacher = True
    needs_labels = False
    uses_sampling = True

    def __init__(
        self, clip: float | None = 0.2, weighted_single_step: bool = True, fused: bool = True
    ) -> None:
        self.clip = clip
        self.weighted_single_step = weighted_single_step
        self.uses_fused = fused
        self.single_step = Objective(KL(), order="qp")
        self.check()

    def __repr__(self) -> str:
        return f"MiniLLM(clip={self.clip}, weighted_single_step={self.weighted_single_step})"

    def on_logits(
        self,
        with_stats: bool,
        *,
        student_logits: Tensor,
        teacher_logits: Tensor,
        labels: Tensor | None = None,
        sampling: Tensor | None = None,
        mask: Tensor | None = None,
        denominator: float | Tensor | None = None,
    ) -> tuple[Tensor, Stats]:
        """Returns the loss, differentiable; `labels` are the sampled tokens, needed with `sampling`."""
        loss, stats = self.single_step.on_logits(
            with_stats,
            student_logits=student_logits,
            teacher_logits=teacher_logits,
            mask=mask,
            denominator=denominator,
        )
        logits = select(mask, student_logits)
        stats["single_step"] = loss.detach() * check_denominator(denominator, len(logits))
        if sampling is not None:
            labels = given("labels", labels)
            check_leading_shape("labels", labels.shape, student_logits.shape[:-1])
            check_leading_shape("sampling", sampling.shape[:-1], student_logits.shape[:-1])
            index = select(mask, labels.unsqueeze(-1))
            check_labels(index, logits.shape[-1])
            log_q = log_normalise(_precise(logits))
            chosen, drawn = log_q.gather(-1, index.long()).squeeze(-1), select(mask, sampling)
            if self.weighted_single_step:
                log_p = log_normalise(_precise(select(mask, teacher_logits.detach())))
                loss = mean(_importance(chosen, drawn) * KL()(log_q, log_p), denominator)
            long, of_long = self._long_term(chosen, drawn, denominator)
            loss = loss + long
            stats |= of_long
        return loss, stats if with_stats else {}

    def value_and_gradient(self, at: Positions, with_gradient: bool, with_stats: bool) -> Sums:
        """Returns the summed loss, its gradient for the student's logits, and the sums to be logged.

        Unless clipped, the gradient of the long term is -ρ R at the sampled token, less q times this value at
        every token. The single step's gradient at a token is multiplied by the token's weight.
        """
        value, gradient, stats = self.single_step.value_and_gradient(at, with_gradient, with_stats)
        stats["single_step"] = value
        if at.sampling is not None:
            index = given("labels", at.labels).unsqueeze(-1)
            check_labels(index, at.student_logits.shape[-1])
            log_q, q = softmaxes(at.student_logits)
            chosen = log_q.gather(-1, index.long())
            if self.weighted_single_step:
                weights = _importance(chosen.squeeze(-1), at.sampling)
                log_p = log_normalise(_precise(given("teacher_logits", at.teacher_logits)))
                value = (weights * KL()(log_q, log_p)).sum()
                if gradient is not None:
                    gradient = gradient * weights.to(gradient.dtype).unsqueeze(-1)
            with torch.set_grad_enabled(with_gradient):
                chosen = chosen.requires_grad_(with_gradient)
                long, of_long = self._long_term(chosen.squeeze(-1), at.sampling, 1)
                if gradient is not None:
                    (slope,) = torch.autograd.grad(long, chosen)
                    slope = slope.to(gradient.dtype)  # float64 where the single step is made in it
                    gradient = torch.addcmul(gradient, q.to(gradient.dtype), slope, value=-1)
                    gradient.scatter_add_(-1, index.long(), slope)
            value = value + long.detach()
            stats |= of_long
        return Sums(value, gradient, stats if with_stats else {})

    def check(self) -> None:
        """Raises a ValueError if `clip` is out of its range."""
        _check_clip(self.clip)

    def _long_term(
        self, log_q: Tensor, sampling: Tensor, denominator: float | Tensor | None
    ) -> tuple[Tensor, Stats]:
        """`long_term_loss` of the sampled tokens [N], with the sum of R."""
        log_sampling, to_go = sampling.detach().unbind(-1)
        loss, stats = long_term_loss(
            log_q=log_q,
            log_sampling=log_sampling,
            to_go=to_go,
            mask=torch.ones_like(log_q, dtype=torch.bool),
            denominator=denominator,
            clip=self.clip,
        )
        return loss, stats | {"to_go": to_go.sum()}


def _importance(log_q: Tensor, sampling: Tensor) -> Tensor:
    """ρ = q/q̃ of the sampled tokens [N], a constant."""
    return (log_q.detach() - sampling.detach()[..., 0]).exp()


def _precise(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _after(x: Tensor) -> Tensor:
    """Sums over the later positions of a row, [B, T]."""
    later = torch.nn.functional.pad(x[..., 1:], (0, 1))
    return later.flip(-1).cumsum(-1).flip(-1)


def _check_clip(clip: float | None) -> None:
    remedy = "choose a number above 0 such as 0.2, or None"
    if clip is not None and finite_number("clip", clip, remedy) <= 0:
        raise ValueError(f"clip must be above 0, got clip={clip!r}; {remedy}")


def _check(name: str, x: Tensor, mask: Tensor) -> None:
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be boolean, got dtype {mask.dtype}; pass mask.bool()")
    if x.shape != mask.shape:
        raise ValueError(f"{name} must have the shape of mask, {tuple(mask.shape)}, got {tuple(x.shape)}")
