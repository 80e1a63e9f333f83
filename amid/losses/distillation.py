"""Losses between teacher and student, position by position.

Positions that `mask` leaves out are dropped before any arithmetic: whatever they hold, they influence
neither value nor gradient.
"""

from abc import abstractmethod

import torch
from torch import Tensor

from amid.losses.base import Loss
from amid.losses.counted import check_leading_shape, given, mean, select
from amid.losses.inputs import Positions, Stats, Sums
from amid.losses.numerics import float32_or_better, in_float64

_NEAR, _FAR = 1e-4, 1e3
"""Mean values below or above which a closed form is computed in float64. In float32 its error is about 1e-7,
and the gradients of large values have parts that cancel."""

_EXACT_ELEMENTS = 2**22
"""Logits that are differentiated by autograd in float64 at once."""


class Distillation(Loss):
    """A function of teacher p and student q at each position, averaged over the counted tokens.

    `return_stats=True` gives "entropy_p", "entropy_q", "kl_pq" (KL(p ‖ q)), "same_top" (at how many positions
    p and q have the same likeliest token) and the sums that the class lists.

    Args:
        shared_vocab: n, to cut the logits of both models to the first n entries before the softmax. Use it
            for models of one family with embeddings padded to different sizes, and check first that their
            token maps agree. Without it, different sizes raise an error.
        fused: whether training uses `fused`, if the models' heads can be separated from the other layers.
    """

    needs_teacher = True
    needs_labels = False

    def __init__(self, shared_vocab: int | None, fused: bool) -> None:
        self.shared_vocab = shared_vocab
        self.uses_fused = fused

    def on_logits(
        self,
        with_stats: bool,
        *,
        student_logits: Tensor,
        teacher_logits: Tensor,
        mask: Tensor | None = None,
        denominator: float | Tensor | None = None,
    ) -> tuple[Tensor, Stats]:
        """Returns the loss, differentiable in the student's logits, and the sums to be logged."""
        check_leading_shape("teacher_logits", teacher_logits.shape[:-1], student_logits.shape[:-1])
        logits_q, logits_p = self._cut(student_logits, teacher_logits.detach())
        logits_q, logits_p = float32_or_better(select(mask, logits_q), select(mask, logits_p))
        same_top = _same_top(logits_q, logits_p) if with_stats else {}
        per_token, stats = self._by_autograd(logits_q, logits_p, with_stats)
        return mean(per_token, denominator), same_top | stats

    @abstractmethod
    def _by_autograd(self, logits_q: Tensor, logits_p: Tensor, with_stats: bool) -> tuple[Tensor, Stats]:
        """Returns the loss of logits [N, V] at each position [N], differentiable, and sums to be logged."""

    @property
    @abstractmethod
    def _has_closed_form(self) -> bool:
        """Whether there is a closed form of value and gradient."""

    @abstractmethod
    def _in_closed_form(
        self, logits_q: Tensor, logits_p: Tensor, with_gradient: bool, with_stats: bool
    ) -> tuple[Sums, Tensor]:
        """Returns the loss in closed form, and where [N] it is exact; it is void unless exact everywhere."""

    def value_and_gradient(self, at: Positions, with_gradient: bool, with_stats: bool) -> Sums:
        """Returns the summed loss, its gradient for the student's logits, and the sums to be logged.

        The gradient is in closed form where the divergence has one, else from autograd.

        If values are very small or large, the closed form loses its digits in float32, and is computed in
        float64. Autograd in float64 takes over at positions where teacher and student are too far apart for
        the closed form, or a logit is infinite.
        """
        logits_q, logits_p = self._cut(at.student_logits, given("teacher_logits", at.teacher_logits))
        logits_q, logits_p = float32_or_better(logits_q, logits_p)
        same_top = _same_top(logits_q, logits_p) if with_stats else {}
        asked = with_gradient, with_stats
        if self._has_closed_form:
            value, gradient, stats = self._most_exact(logits_q, logits_p, *asked)
        else:
            value, gradient, stats = self._differentiated(logits_q, logits_p, *asked)
        rest = at.student_logits.shape[-1] - logits_q.shape[-1]
        if gradient is not None and rest:
            gradient = torch.nn.functional.pad(gradient, (0, rest))
        return Sums(value, gradient, same_top | stats)

    def _most_exact(self, logits_q: Tensor, logits_p: Tensor, with_gradient: bool, with_stats: bool) -> Sums:
        """Returns the loss in closed form, where that has enough digits."""
        asked = with_gradient, with_stats
        closed, precise = self._in_closed_form(logits_q, logits_p, *asked)
        if bool(precise.all()):
            n, exact_q = len(logits_q), in_float64(logits_q[:0])
            size = closed.value.abs()
            if exact_q.dtype == logits_q.dtype or bool((_NEAR * n <= size) & (size <= _FAR * n)):
                return closed
            logits_q, logits_p = in_float64(logits_q), in_float64(logits_p)
            closed, precise = self._in_closed_form(logits_q, logits_p, *asked)
            if bool(precise.all()):
                return closed
        if not bool(precise.any()):
            return self._differentiated_in_float64(logits_q, logits_p, *asked)
        one = self._most_exact(logits_q[precise], logits_p[precise], *asked)
        other = self._differentiated_in_float64(logits_q[~precise], logits_p[~precise], *asked)
        gradient = None
        if one.gradient is not None and other.gradient is not None:
            gradient = logits_q.new_empty(logits_q.shape, dtype=other.gradient.dtype)
            gradient[precise], gradient[~precise] = one.gradient.to(gradient.dtype), other.gradient
        stats = {name: x + other.stats[name] for name, x in one.stats.items()}
        return Sums(one.value + other.value, gradient, stats)

    def _differentiated(
        self, logits_q: Tensor, logits_p: Tensor, with_gradient: bool, with_stats: bool
    ) -> Sums:
        """Returns the loss and its gradient by autograd."""
        with torch.set_grad_enabled(with_gradient):
            logits_q = logits_q.detach().requires_grad_(with_gradient)
            per_token, stats = self._by_autograd(logits_q, logits_p, with_stats)
            gradient = torch.autograd.grad(per_token.sum(), logits_q)[0] if with_gradient else None
        return Sums(per_token.detach().sum(), gradient, stats)

    def _differentiated_in_float64(
        self, logits_q: Tensor, logits_p: Tensor, with_gradient: bool, with_stats: bool
    ) -> Sums:
        """Returns the loss by autograd, a part of the positions at a time, since float64 takes memory."""
        size = max(_EXACT_ELEMENTS // logits_q.shape[-1], 1)
        parts = [
            self._differentiated(in_float64(some_q), in_float64(some_p), with_gradient, with_stats)
            for some_q, some_p in zip(logits_q.split(size), logits_p.split(size), strict=True)
        ]
        gradients = [part.gradient for part in parts if part.gradient is not None]
        return Sums(
            torch.stack([part.value for part in parts]).sum(),
            torch.cat(gradients) if gradients else None,
            {name: torch.stack([part.stats[name] for part in parts]).sum() for name in parts[0].stats},
        )

    def check(self) -> None:
        """Raises a ValueError unless the shared vocabulary is a number of tokens."""
        n = self.shared_vocab
        if n is not None and (not isinstance(n, int) or isinstance(n, bool) or n < 1):
            raise ValueError(
                f"shared_vocab must be a positive integer or None, got shared_vocab={n!r}; "
                f"give the number of tokens that both models share"
            )

    def _cut(self, student_logits: Tensor, teacher_logits: Tensor) -> tuple[Tensor, Tensor]:
        n_student, n_teacher, n = student_logits.shape[-1], teacher_logits.shape[-1], self.shared_vocab
        if n is None:
            if n_student != n_teacher:
                raise ValueError(
                    f"student_logits have {n_student} tokens and teacher_logits {n_teacher}; if their first "
                    f"tokens are the same, set shared_vocab to how many (at most {min(n_student, n_teacher)})"
                )
            return student_logits, teacher_logits
        if n > min(n_student, n_teacher):
            raise ValueError(
                f"shared_vocab={n} exceeds the logits (student {n_student}, teacher {n_teacher}); "
                f"choose at most {min(n_student, n_teacher)}"
            )
        return student_logits[..., :n], teacher_logits[..., :n]


def _same_top(logits_q: Tensor, logits_p: Tensor) -> Stats:
    return {"same_top": (logits_q.detach().argmax(-1) == logits_p.argmax(-1)).to(logits_q.dtype).sum()}


def through_softmax(partials: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the gradient for q's logits [N, V] from the one for log q, and where [N] it is finite."""
    drift = partials.sum(-1, keepdim=True)
    return torch.addcmul(partials, q, drift, value=-1), torch.isfinite(drift).squeeze(-1)
