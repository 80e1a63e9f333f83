"""The interface of every loss: its value on logits, and the same value from hidden states and heads."""

from abc import ABC, abstractmethod
from typing import Any, Literal, Unpack, overload

from torch import Tensor

from amid.losses.fused import fused_loss
from amid.losses.inputs import FusedInputs, LogitInputs, Positions, Stats, Sums


class Loss(ABC):
    """A loss over the counted tokens, called on logits, or on hidden states and heads with `fused`.

    Calls take their inputs by keyword and return a scalar, or with `return_stats=True` a scalar and a
    dictionary of detached sums over the counted positions.
    """

    uses_fused: bool
    """Whether a training loop that has hidden states and heads is to call `fused`."""

    compiled: bool = False
    """Whether the arithmetic of `fused` goes through torch.compile."""

    @property
    def additive(self) -> bool:
        """Whether the losses of the parts of a batch, before division, add up to the loss of the batch."""
        return True

    @property
    @abstractmethod
    def needs_teacher(self) -> bool:
        """Whether `teacher_logits`, or the teacher's hidden states and head, must be given."""

    @property
    @abstractmethod
    def needs_labels(self) -> bool:
        """Whether `labels` must be given."""

    @property
    def uses_sampling(self) -> bool:
        """Whether `labels` and `sampling` are used where the text was sampled; see `MiniLLM`."""
        return False

    @overload
    def __call__(self, *, return_stats: Literal[False] = False, **inputs: Unpack[LogitInputs]) -> Tensor: ...
    @overload
    def __call__(
        self, *, return_stats: Literal[True], **inputs: Unpack[LogitInputs]
    ) -> tuple[Tensor, Stats]: ...
    def __call__(
        self, *, return_stats: bool = False, **inputs: Unpack[LogitInputs]
    ) -> Tensor | tuple[Tensor, Stats]:
        """Returns the mean loss over the counted tokens.

        Args:
            return_stats: also return the detached sums over the counted positions that the class names, for
                averages over any number of batches.
            inputs: see `LogitInputs`; `on_logits` of a loss shows which it takes and which it needs.

        Returns:
            A scalar, float32 or better: 0 with a zero gradient if no position counts.

        Raises:
            TypeError: for an input that the loss does not take, or a missing one.
            ValueError: if shapes do not match, `mask` is not boolean, a counted label is outside [0, V),
                `denominator` is not positive, or settings changed since do not fit (see the class).
        """
        self.check()
        loss, stats = self.on_logits(return_stats, **inputs)
        return (loss, stats) if return_stats else loss

    @abstractmethod
    def on_logits(self, with_stats: bool, *args: Any, **inputs: Any) -> tuple[Tensor, Stats]:
        """Returns what a call on logits returns; the stats are empty unless asked for."""

    @abstractmethod
    def value_and_gradient(self, at: Positions, with_gradient: bool, with_stats: bool) -> Sums:
        """Returns the sum over positions, its gradient, and sums to log; `fused` calls it for each chunk."""

    @abstractmethod
    def check(self) -> None:
        """Raises a ValueError where the settings, which may have changed, do not fit together."""

    def on_batch(self, inputs: FusedInputs) -> "Loss":
        """Returns the loss that `fused` sums over the positions of these inputs.

        This is the loss itself, unless it depends on all positions before the first can be summed.
        """
        return self

    @overload
    def fused(self, *, return_stats: Literal[False] = False, **inputs: Unpack[FusedInputs]) -> Tensor: ...
    @overload
    def fused(
        self, *, return_stats: Literal[True], **inputs: Unpack[FusedInputs]
    ) -> tuple[Tensor, Stats]: ...
    def fused(
        self, *, return_stats: bool = False, **inputs: Unpack[FusedInputs]
    ) -> Tensor | tuple[Tensor, Stats]:
        """Computes the loss from hidden states and heads, with its gradients, chunk by chunk of tokens.

        It is equal to

            loss(student_logits=student_hidden @ student_weight.T + student_bias,
                 teacher_logits=teacher_hidden @ teacher_weight.T + teacher_bias,
                 labels=labels, sampling=sampling, mask=mask, denominator=denominator,
                 return_stats=return_stats)

        with the inputs that the loss needs, but no logits outlive their chunk of tokens. The gradients for
        `student_hidden`, `student_weight` and `student_bias` are computed at once, in closed form. Autograd
        within the chunk differentiates positions with infinite logits, and a divergence or assistant without
        a closed form (your own plain function). The loss can be differentiated once, and not twice in a row
        (no `create_graph`).

        Under autocast the operands of the matrix products have its dtype, otherwise that of the hidden
        states. Logits, the arithmetic on them, and the sum of the chunks' gradients for weight and bias are
        float32 (float64 where the operands are); the gradient for the logits is rounded once, to the dtype
        of the operands.

        Args:
            return_stats: also return the sums that the call on logits returns.
            inputs: see `FusedInputs`.

        Returns:
            A scalar, float32 or better: 0 with zero gradients if no position counts.

        Raises:
            TypeError: for an unknown input.
            ValueError: as the call on logits; if a weight or bias does not fit the hidden states, or
                `chunk_tokens` is below 1.
        """
        self.check()
        loss, stats = fused_loss(self.on_batch(inputs), return_stats, **inputs)
        return (loss, stats) if return_stats else loss
