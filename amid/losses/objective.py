"""Objectives: from logits to a scalar loss over the counted tokens.

An objective states what it needs in `needs_teacher` and `needs_labels`, takes its inputs by keyword
and returns the mean over the counted tokens, or the sum divided by `denominator`. Positions that
`mask` leaves out are dropped before any
arithmetic: whatever they hold, they influence neither value nor gradient.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, Protocol, overload

import torch
from torch import Tensor

from amid.losses.assistant import AlphaMixture, finite_number, float32_or_better, log_normalise
from amid.losses.divergence import KL

Stats = dict[str, Tensor]

_ORDERS = ("pq", "qp", "pr", "rp", "qr", "rq")


class Loss(Protocol):
    """What `WeightedSum` and a training loop ask of an objective."""

    @property
    def needs_teacher(self) -> bool:
        """Whether `teacher_logits` must be given."""

    @property
    def needs_labels(self) -> bool:
        """Whether `labels` must be given."""

    def __call__(self, *args: Any, **inputs: Any) -> Any:
        """Loss, or loss and stats with `return_stats=True`."""


class CrossEntropy:
    """Cross-entropy on the data's labels, -log q(label): supervised fine-tuning."""

    needs_teacher: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = True

    def __repr__(self) -> str:
        return "CrossEntropy()"

    @overload
    def __call__(
        self,
        *,
        student_logits: Tensor,
        labels: Tensor,
        mask: Tensor | None = None,
        denominator: float | Tensor | None = None,
        return_stats: Literal[False] = False,
    ) -> Tensor: ...
    @overload
    def __call__(
        self,
        *,
        student_logits: Tensor,
        labels: Tensor,
        mask: Tensor | None = None,
        denominator: float | Tensor | None = None,
        return_stats: Literal[True],
    ) -> tuple[Tensor, Stats]: ...
    def __call__(
        self,
        *,
        student_logits: Tensor,
        labels: Tensor,
        mask: Tensor | None = None,
        denominator: float | Tensor | None = None,
        return_stats: bool = False,
    ) -> Tensor | tuple[Tensor, Stats]:
        """Mean cross-entropy over the counted tokens.

        Args:
            student_logits: [..., V], any floating dtype; the softmax is taken in float32 or better.
            labels: [...], integers: the token that the logits at the same position predict (already
                shifted). What stands at positions that do not count, such as -100, is never read.
            mask: [...], boolean, true where a position counts; None counts all.
            denominator: divide the sum by this in place of the number of counted positions.
            return_stats: also return detached sums over the counted positions: "entropy_q".

        Returns:
            A scalar: 0 with a zero gradient if no position counts.

        Raises:
            ValueError: if shapes do not match, `mask` is not boolean, a counted label is outside [0,
                V), or `denominator` is not positive.
        """
        _check_leading_shape("labels", labels.shape, student_logits)
        (logits_q, counted) = _select(mask, student_logits, labels.unsqueeze(-1))
        n_vocab = logits_q.shape[-1]
        if bool(((counted < 0) | (counted >= n_vocab)).any()):
            raise ValueError(
                f"labels at counted positions must lie in [0, {n_vocab}), got values from "
                f"{int(counted.min())} to {int(counted.max())}; set mask to False where none applies"
            )
        log_q = log_normalise(logits_q.to(torch.promote_types(logits_q.dtype, torch.float32)))
        loss = _mean(-log_q.gather(-1, counted.long()).squeeze(-1), denominator)
        if return_stats:
            return loss, {"entropy_q": _entropy(log_q.detach())}
        return loss


class Objective:
    """A divergence between two of teacher, student and assistant, averaged over the counted tokens.

    With the order "pr" it is AMiD's objective D(p ‖ r) (arXiv 2510.15982); without an assistant, the
    knowledge distillation loss D(p ‖ q). The gradient reaches the student through q and, unless the
    assistant detaches it, through r; never the teacher.

    Args:
        divergence: D, from two [..., V] tensors of log-probabilities to a [...] tensor: one of this
            package or any function.
        assistant: r, from log p and log q to log r, [..., V] each: an `AlphaMixture` or any function;
            or None.
        order: first and second argument of D: two different letters of p (teacher), q (student) and r
            (assistant). None means "pr" with an assistant and "pq" without.
        shared_vocab: n, to cut both sides' logits to their first n entries before the softmax, for
            models of one family whose embeddings are padded to different sizes. Whether the token maps
            agree on them is for the caller to check.

    Raises:
        ValueError: if `order` is not one of these, does not fit the assistant, or leaves no gradient:
            λ = 1 with pr or rp (r = p), λ = 0 with qr or rq (r = q), a detached student with pr or rp.
            The call raises the same where `assistant` was changed since.
    """

    needs_teacher: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False

    def __init__(
        self,
        divergence: Callable[[Tensor, Tensor], Tensor],
        assistant: Callable[[Tensor, Tensor], Tensor] | None = None,
        order: str | None = None,
        shared_vocab: int | None = None,
    ) -> None:
        self.divergence = divergence
        self.assistant = assistant
        self.order = order if order is not None else "pq" if assistant is None else "pr"
        self.shared_vocab = shared_vocab
        self._check()

    def __repr__(self) -> str:
        return (
            f"Objective({self.divergence!r}, assistant={self.assistant!r}, order={self.order!r}, "
            f"shared_vocab={self.shared_vocab!r})"
        )

    @overload
    def __call__(
        self,
        *,
        student_logits: Tensor,
        teacher_logits: Tensor,
        mask: Tensor | None = None,
        denominator: float | Tensor | None = None,
        return_stats: Literal[False] = False,
    ) -> Tensor: ...
    @overload
    def __call__(
        self,
        *,
        student_logits: Tensor,
        teacher_logits: Tensor,
        mask: Tensor | None = None,
        denominator: float | Tensor | None = None,
        return_stats: Literal[True],
    ) -> tuple[Tensor, Stats]: ...
    def __call__(
        self,
        *,
        student_logits: Tensor,
        teacher_logits: Tensor,
        mask: Tensor | None = None,
        denominator: float | Tensor | None = None,
        return_stats: bool = False,
    ) -> Tensor | tuple[Tensor, Stats]:
        """Mean divergence over the counted tokens.

        Args:
            student_logits: [..., V], any floating dtype; the softmax is taken in float32 or better.
            teacher_logits: [..., V], the same; no gradient reaches it.
            mask: [...], boolean, true where a position counts; None counts all.
            denominator: divide the sum by this in place of the number of counted positions: the counted
                tokens of the whole optimiser step, so that accumulation and data parallelism leave the
                loss as it is.
            return_stats: also return detached sums over the counted positions, for averages over any
                number of batches: "entropy_p", "entropy_q" and "kl_pq" (KL(p ‖ q)); with an assistant
                "entropy_r"; with an `AlphaMixture` "gradient_weight", the student's mean Σ_v q_v w_v of
                its `gradient_weight` w at each position.

        Returns:
            A scalar, float32 or better: 0 with a zero gradient if no position counts.

        Raises:
            ValueError: if shapes do not match, vocabularies differ without `shared_vocab`, `mask` is
                not boolean, `denominator` is not positive, or the assistant's settings leave no
                gradient (see the class).
        """
        self._check()
        _check_leading_shape("teacher_logits", teacher_logits.shape[:-1], student_logits)
        student_logits, teacher_logits = self._cut(student_logits, teacher_logits.detach())
        logits_q, logits_p = _select(mask, student_logits, teacher_logits)
        logits_q, logits_p = float32_or_better(logits_q, logits_p)
        log_q, log_p = log_normalise(logits_q), log_normalise(logits_p)
        log_probs = {"p": log_p, "q": log_q}
        if self.assistant is not None:
            log_probs["r"] = self.assistant(log_p, log_q)
        log_a, log_b = log_probs[self.order[0]], log_probs[self.order[1]]
        loss = _mean(self.divergence(log_a, log_b), denominator)
        if return_stats:
            return loss, self._stats({name: x.detach() for name, x in log_probs.items()})
        return loss

    def _stats(self, log_probs: dict[str, Tensor]) -> Stats:
        stats = {f"entropy_{name}": _entropy(log_probs[name]) for name in sorted(log_probs)}
        log_p, log_q = log_probs["p"], log_probs["q"]
        if isinstance(self.assistant, AlphaMixture):
            stats["gradient_weight"] = (log_q.exp() * self.assistant.gradient_weight(log_p, log_q)).sum()
        stats["kl_pq"] = KL()(log_p, log_q).sum()
        return stats

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

    def _check(self) -> None:
        order, assistant = self.order, self.assistant
        if order not in _ORDERS:
            raise ValueError(
                f"order must be two different letters of p (teacher), q (student) and r (assistant), got "
                f"order={order!r}; choose one of {', '.join(_ORDERS)}"
            )
        if "r" in order and assistant is None:
            raise ValueError(
                f"order={order!r} names the assistant r but assistant=None; give one, or choose pq or qp"
            )
        if "r" not in order and assistant is not None:
            raise ValueError(
                f"order={order!r} does not use the assistant {assistant!r}; leave the assistant out, "
                f"or choose pr, rp, qr or rq"
            )
        if isinstance(assistant, AlphaMixture):
            if "p" in order and assistant.detach_student:
                raise ValueError(
                    f"order={order!r} with detach_student=True has no gradient: the student enters through r "
                    f"alone; choose detach_student=False, or order qr or rq"
                )
            if "p" in order and assistant.lam == 1:
                raise ValueError(
                    f"order={order!r} with lam=1 has no gradient: r = p whatever the student is; "
                    f"choose lam < 1, or order qr or rq"
                )
            if "q" in order and assistant.lam == 0:
                raise ValueError(
                    f"order={order!r} with lam=0 has no gradient: r = q whatever the student is; "
                    f"choose lam > 0, or order pr or rp"
                )
        n = self.shared_vocab
        if n is not None and (not isinstance(n, int) or n < 1):
            raise ValueError(
                f"shared_vocab must be a positive integer or None, got shared_vocab={n!r}; "
                f"give the number of tokens that both models share"
            )


class WeightedSum:
    """Σ weight · objective, an objective too; for example distillation plus a language-model loss.

    Args:
        terms: pairs of a finite weight and an objective, at least one. Each objective is given only
            what it needs.

    Raises:
        ValueError: if there is no term or a weight is not a finite number.
    """

    def __init__(self, terms: Sequence[tuple[float, Loss]]) -> None:
        if len(terms) == 0:
            raise ValueError("terms must hold at least one pair (weight, objective), got terms=[]; add one")
        remedy = "choose any real number, such as 1.0"
        self.terms = [
            (finite_number(f"weight {i}", weight, remedy), term) for i, (weight, term) in enumerate(terms)
        ]

    def __repr__(self) -> str:
        return f"WeightedSum({self.terms!r})"

    @property
    def needs_teacher(self) -> bool:
        """Whether some term needs `teacher_logits`."""
        return any(term.needs_teacher for _, term in self.terms)

    @property
    def needs_labels(self) -> bool:
        """Whether some term needs `labels`."""
        return any(term.needs_labels for _, term in self.terms)

    @overload
    def __call__(
        self,
        *,
        student_logits: Tensor,
        teacher_logits: Tensor | None = None,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
        denominator: float | Tensor | None = None,
        return_stats: Literal[False] = False,
    ) -> Tensor: ...
    @overload
    def __call__(
        self,
        *,
        student_logits: Tensor,
        teacher_logits: Tensor | None = None,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
        denominator: float | Tensor | None = None,
        return_stats: Literal[True],
    ) -> tuple[Tensor, Stats]: ...
    def __call__(
        self,
        *,
        student_logits: Tensor,
        teacher_logits: Tensor | None = None,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
        denominator: float | Tensor | None = None,
        return_stats: bool = False,
    ) -> Tensor | tuple[Tensor, Stats]:
        """Weighted sum of the terms' losses.

        Args:
            student_logits: [..., V], as in each term.
            teacher_logits: [..., V]; may be None if no term needs it.
            labels: [...], integers; may be None if no term needs it.
            mask: [...], boolean, true where a position counts; None counts all.
            denominator: divide the sums by this in place of the number of counted positions.
            return_stats: also return the terms' stats, merged; where several give one of the same
                name, the first.

        Returns:
            A scalar.

        Raises:
            ValueError: if an input that a term needs is missing, or a term refuses its inputs.
        """
        values: list[Tensor] = []
        stats: Stats = {}
        for weight, term in self.terms:
            inputs: dict[str, Any] = {
                "student_logits": student_logits,
                "mask": mask,
                "denominator": denominator,
            }
            if term.needs_teacher:
                inputs["teacher_logits"] = _given("teacher_logits", teacher_logits, term)
            if term.needs_labels:
                inputs["labels"] = _given("labels", labels, term)
            value = term(**inputs, return_stats=return_stats)
            if return_stats:
                value, term_stats = value
                stats = term_stats | stats
            values.append(weight * value)
        loss = torch.stack(values).sum()
        return (loss, stats) if return_stats else loss


def _given(name: str, value: Tensor | None, term: Loss) -> Tensor:
    if value is None:
        raise ValueError(f"{name}=None but the term {term!r} needs it; pass {name}, or leave the term out")
    return value


def _check_leading_shape(name: str, shape: torch.Size, student_logits: Tensor) -> None:
    if shape != student_logits.shape[:-1]:
        raise ValueError(
            f"{name} must have the leading shape of student_logits, {tuple(student_logits.shape[:-1])}, got "
            f"{tuple(shape)}; align both on the same positions"
        )


def _select(mask: Tensor | None, student_logits: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """The counted positions of both, [N, ...], taken out before any arithmetic."""
    if mask is None:
        return student_logits.reshape(-1, student_logits.shape[-1]), other.reshape(-1, other.shape[-1])
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be boolean, got dtype {mask.dtype}; pass mask.bool()")
    _check_leading_shape("mask", mask.shape, student_logits)
    return student_logits[mask], other[mask]


def _mean(per_token: Tensor, denominator: float | Tensor | None) -> Tensor:
    if denominator is None:
        return per_token.sum() / max(per_token.numel(), 1)
    if not 0 < float(denominator) < math.inf:
        raise ValueError(
            f"denominator must be a positive number, got denominator={denominator!r}; give the counted "
            f"tokens of the step, and 1 where there are none"
        )
    return per_token.sum() / denominator


def _entropy(log_x: Tensor) -> Tensor:
    entropy: Tensor = torch.special.entr(log_x.exp()).sum()
    return entropy
