"""Cross-entropy on the data's labels."""

import torch
from torch import Tensor

from amid.losses.base import Loss
from amid.losses.counted import check_labels, check_leading_shape, given, mean, select
from amid.losses.inputs import Positions, Stats, Sums
from amid.losses.numerics import entropy, log_normalise, softmaxes


class CrossEntropy(Loss):
    """Cross-entropy on the data's labels, -log q(label): supervised fine-tuning.

    `return_stats=True` gives "entropy_q".

    Args:
        fused: whether training uses `fused`, if the model's head can be separated from the other layers.
    """

    needs_teacher = False
    needs_labels = True

    def __init__(self, fused: bool = True) -> None:
        self.uses_fused = fused

    def __repr__(self) -> str:
        return "CrossEntropy()"

    def on_logits(
        self,
        with_stats: bool,
        *,
        student_logits: Tensor,
        labels: Tensor,
        mask: Tensor | None = None,
        denominator: float | Tensor | None = None,
    ) -> tuple[Tensor, Stats]:
        """Returns the mean of -log q(label), differentiable, and the sums to be logged."""
        check_leading_shape("labels", labels.shape, student_logits.shape[:-1])
        logits_q, counted = select(mask, student_logits), select(mask, labels.unsqueeze(-1))
        check_labels(counted, logits_q.shape[-1])
        log_q = log_normalise(logits_q.to(torch.promote_types(logits_q.dtype, torch.float32)))
        loss = mean(-log_q.gather(-1, counted.long()).squeeze(-1), denominator)
        return loss, {"entropy_q": entropy(log_q.detach())} if with_stats else {}

    def check(self) -> None:
        """Does nothing: there are no settings to check."""

    def value_and_gradient(self, at: Positions, with_gradient: bool, with_stats: bool) -> Sums:
        """Returns the summed loss and its gradient: q, less 1 at the label."""
        index = given("labels", at.labels).unsqueeze(-1)
        check_labels(index, at.student_logits.shape[-1])
        log_q, q = softmaxes(at.student_logits)
        value = -log_q.gather(-1, index.long()).sum()
        stats = {"entropy_q": entropy(log_q)} if with_stats else {}
        if with_gradient:
            q.scatter_add_(-1, index.long(), -torch.ones_like(index, dtype=q.dtype))
        return Sums(value, q if with_gradient else None, stats)
