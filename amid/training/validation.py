"""The validation measures of teacher and student, token by token, on the logits that the loss computes."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from torch import Tensor

from amid.losses import Loss
from amid.losses.inputs import FusedInputs, Positions, Stats, Sums
from amid.measures import VALIDATION

TokenMeasure = Callable[[Tensor, Tensor], Tensor]
"""A function from the logits of student and teacher, [N, V] each, to a number at each position, [N]."""


def token_measures() -> dict[str, TokenMeasure]:
    """The function of each validation measure that has one of its own (`Measure.computed_by`), by name."""
    found = {}
    for name, measure in VALIDATION.items():
        if measure.computed_by:
            module, _, function = measure.computed_by.rpartition(".")
            found[name] = getattr(import_module(module), function)
    return found


class Measured(Loss):
    """Wraps an objective and adds the sums of further measures, computed on the objective's own logits.

    Its value is the value of the objective, and it makes the same chunks of logits. A measure takes no matrix
    product of its own, and no more memory than one chunk.

    Args:
        objective: one that needs a teacher.
        measures: the further measures, by the names of their sums.
    """

    needs_teacher = True

    def __init__(self, objective: Loss, measures: dict[str, TokenMeasure]) -> None:
        self.objective, self.measures = objective, measures
        self.uses_fused, self.compiled = objective.uses_fused, objective.compiled

    @property
    def needs_labels(self) -> bool:
        """Whether the objective needs labels."""
        return self.objective.needs_labels

    @property
    def uses_sampling(self) -> bool:
        """Whether the objective uses `sampling`."""
        return self.objective.uses_sampling

    def on_batch(self, inputs: FusedInputs) -> "Measured":
        """Returns the same measures around the objective's loss for these inputs."""
        return Measured(self.objective.on_batch(inputs), self.measures)

    def check(self) -> None:
        """Checks the objective."""
        self.objective.check()

    def on_logits(self, with_stats: bool, **inputs: Any) -> tuple[Tensor, Stats]:
        """Returns the objective on logits [N, V] of counted positions, without a mask, and the sums."""
        loss, stats = self.objective.on_logits(with_stats, **inputs)
        return loss, stats | self._sums(with_stats, inputs["student_logits"], inputs["teacher_logits"])

    def value_and_gradient(self, at: Positions, with_gradient: bool, with_stats: bool) -> Sums:
        """Returns value and gradient of the objective, and the sums."""
        found = self.objective.value_and_gradient(at, with_gradient, with_stats)
        assert at.teacher_logits is not None
        return found._replace(
            stats=found.stats | self._sums(with_stats, at.student_logits, at.teacher_logits)
        )

    def _sums(self, with_stats: bool, student_logits: Tensor, teacher_logits: Tensor) -> Stats:
        if not with_stats:
            return {}
        logits = student_logits.detach(), teacher_logits.detach()
        return {name: measure(*logits).sum() for name, measure in self.measures.items()}
