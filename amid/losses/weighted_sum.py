"""Sums of losses."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from amid.losses.base import Loss
from amid.losses.counted import given
from amid.losses.inputs import FusedInputs, Positions, Stats, Sums
from amid.losses.numerics import finite_number


class WeightedSum(Loss):
    """A weighted sum of objectives, such as distillation plus a language-model loss.

    `return_stats=True` gives the sums of all terms. If several terms have a sum of the same name, the first
    one is given.

    Args:
        terms: pairs of a finite weight and an objective, at least one. Each objective is given only
            what it needs.
        fused: whether training uses `fused`, if the models' heads can be separated from the other layers.

    Raises:
        ValueError: if there is no term or a weight is not a finite number.
    """

    def __init__(self, terms: Sequence[tuple[float, Loss]], fused: bool = True) -> None:
        self.uses_fused = fused
        if len(terms) == 0:
            raise ValueError("terms must hold at least one pair (weight, objective), got terms=[]; add one")
        remedy = "choose any real number, such as 1.0"
        self.terms = [
            (finite_number(f"weight {i}", weight, remedy), term) for i, (weight, term) in enumerate(terms)
        ]
        self.compiled = all(term.compiled for _, term in self.terms)

    def __repr__(self) -> str:
        return f"WeightedSum({self.terms!r})"

    def check(self) -> None:
        """Raises a ValueError if a setting of a term is wrong."""
        for _, term in self.terms:
            term.check()

    def on_batch(self, inputs: FusedInputs) -> Loss:
        """Returns the sum with every term fixed for a whole batch, so that micro-batches can be summed."""
        return WeightedSum([(weight, term.on_batch(inputs)) for weight, term in self.terms])

    def value_and_gradient(self, at: Positions, with_gradient: bool, with_stats: bool) -> Sums:
        """Returns the weighted sum of the terms' values and gradients, and their sums to be logged."""
        total = at.student_logits.new_zeros(())
        gradient = torch.zeros_like(at.student_logits) if with_gradient else None
        stats: Stats = {}
        for weight, term in self.terms:
            counts = weight != 0  # 0 times an infinite loss is 0
            value, of_term, term_stats = term.value_and_gradient(at, with_gradient and counts, with_stats)
            if counts:
                total += weight * value
            if gradient is not None and of_term is not None:
                gradient.add_(of_term, alpha=weight)
            stats = term_stats | stats
        return Sums(total, gradient, stats)

    @property
    def additive(self) -> bool:
        """Whether all terms are additive."""
        return all(term.additive for _, term in self.terms)

    @property
    def needs_teacher(self) -> bool:
        """Whether some term needs `teacher_logits`."""
        return any(term.needs_teacher for _, term in self.terms)

    @property
    def needs_labels(self) -> bool:
        """Whether some term needs `labels`."""
        return any(term.needs_labels for _, term in self.terms)

    @property
    def uses_sampling(self) -> bool:
        """Whether some term uses `sampling`."""
        return any(term.uses_sampling for _, term in self.terms)

    def on_logits(
        self,
        with_stats: bool,
        *,
        student_logits: Tensor,
        teacher_logits: Tensor | None = None,
        labels: Tensor | None = None,
        sampling: Tensor | None = None,
        mask: Tensor | None = None,
        denominator: float | Tensor | None = None,
    ) -> tuple[Tensor, Stats]:
        """Returns the weighted sum of the terms; each term gets the inputs that it needs."""
        losses: list[Tensor] = []
        stats: Stats = {}
        for weight, term in self.terms:
            inputs: dict[str, Any] = {
                "student_logits": student_logits,
                "mask": mask,
                "denominator": denominator,
            }
            if term.needs_teacher:
                inputs["teacher_logits"] = given("teacher_logits", teacher_logits)
            sampled = term.uses_sampling and sampling is not None
            if sampled:
                inputs["sampling"] = sampling
            if term.needs_labels or sampled:
                inputs["labels"] = given("labels", labels)
            loss, term_stats = term.on_logits(with_stats, **inputs)
            stats = term_stats | stats
            losses.append(weight * loss if weight != 0 else student_logits.flatten()[:0].sum().to(loss.dtype))
        return torch.stack(losses).sum(), stats
