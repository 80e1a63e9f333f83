"""An objective of student and teacher at the counted positions of a batch."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from amid.data.tokens import MicroBatch, counted_positions
from amid.losses import CrossEntropy, Head, Loss
from amid.losses.inputs import Stats
from amid.models.counted_states import CountedStates
from amid.teacher.signals import Teacher


class CountedLoss:
    """Computes an objective on a batch: bodies run on all tokens, heads on the counted positions alone.

    If the objective has a fused form and both heads can be split off (see `CountedStates`), it calls `fused`.
    Otherwise it calls the objective on the models' own logits at these positions.

    Args:
        student: the model to train.
        teacher: its teacher; None if no objective needs a teacher.
        shared_vocab: both models' logits are cut to so many first entries; None if they have equally many.
    """

    def __init__(self, student: PreTrainedModel, teacher: Teacher | None, shared_vocab: int | None) -> None:
        self._teacher, self._shared_vocab = teacher, shared_vocab
        self._states = CountedStates(student)

    @property
    def has_head(self) -> bool:
        """Whether the student's head can be split off."""
        return self._states.head is not None

    def agree(self, packed: bool) -> None:
        """Gives all ranks what the first one knows of the student (`CountedStates.agree`).

        Raises:
            InputError: if rows will be `packed`, and the student does not keep them apart.
        """
        self._states.agree(packed)

    def __call__(
        self,
        objective: Loss,
        batch: MicroBatch,
        denominator: float | Tensor | None,
        return_stats: bool = False,
        cross_entropy: bool = False,
    ) -> tuple[Tensor, Stats]:
        """The sum over the counted tokens divided by `denominator`, and sums.

        Args:
            objective: an objective of `amid.losses`.
            batch: a `MicroBatch`, padded on the right or packed.
            denominator: None for the number of counted tokens of this batch.
            return_stats: whether the sums that the objective names are asked for.
            cross_entropy: whether the sums also have "cross_entropy", -log q of the labels, with the same
                divisor.
        """
        positions = counted_positions(batch)
        inputs = (batch["input_ids"], positions, batch.get("position_ids"))
        labels = batch["labels"][:, 1:][positions[:, :-1]]
        teacher = self._teacher if objective.needs_teacher else None
        given: dict[str, Any] = {}
        sampled = objective.uses_sampling and "sampling" in batch
        if sampled:
            given["sampling"] = batch["sampling"][:, 1:][positions[:, :-1]]
        if objective.needs_labels or sampled:
            given["labels"] = labels

        def computed(
            loss_of: Callable[..., Any], cross_entropy_of: Callable[..., Any], student: dict[str, Any]
        ) -> tuple[Tensor, Stats]:
            stats: Stats = {}
            if return_stats:
                loss, stats = loss_of(**student, **given, denominator=denominator, return_stats=True)
            else:
                loss = loss_of(**student, **given, denominator=denominator)
            if cross_entropy:
                found = cross_entropy_of(**student, labels=labels, denominator=denominator)
                stats["cross_entropy"] = found.detach()
            return loss, stats

        teacher_head = None if teacher is None else teacher.head
        with_heads = self.has_head and (teacher is None or teacher_head is not None)
        if objective.uses_fused and with_heads:
            if teacher is not None and teacher_head is not None:
                given |= teacher_head.cut(self._shared_vocab).inputs("teacher")
                given["teacher_hidden"] = teacher.hidden(batch, positions)

            def fused(head: Head, hidden: Tensor) -> tuple[Tensor, Stats]:
                student = head.cut(self._shared_vocab).inputs("student") | {"student_hidden": hidden}
                return computed(objective.fused, CrossEntropy().fused, student)

            found: tuple[Tensor, Stats] = self._states.within_head(self._states.hidden(*inputs), fused)
            return found
        student = {"student_logits": self._states.logits(*inputs)[:, : self._shared_vocab]}
        if teacher is not None:
            given["teacher_logits"] = teacher.logits(batch, positions)[:, : self._shared_vocab]
        return computed(objective, CrossEntropy(), student)
