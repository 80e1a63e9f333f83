"""The inputs of losses, by keyword: logits, or hidden states and heads."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, Required, TypedDict

import torch
from torch import Tensor

from amid.losses.counted import given
from amid.losses.numerics import finite_number
from amid.losses.products import linear

Stats = dict[str, Tensor]


class LogitInputs(TypedDict, total=False):
    """The keyword inputs of a loss on logits."""

    student_logits: Required[Tensor]
    """[..., V], any floating dtype; the softmax is taken in float32 or better."""
    teacher_logits: Tensor
    """[..., V], any floating dtype as above; no gradient reaches it."""
    labels: Tensor
    """[...], integers: the token that the logits at the same position predict (already shifted). Values at
    positions that do not count, such as -100, are never read."""
    sampling: Tensor
    """[..., 2], two values for each token of sampled text, see `MiniLLM`."""
    mask: Tensor | None
    """[...], boolean, true where a position counts; None counts all."""
    denominator: float | Tensor | None
    """Divide the sum by this in place of the number of counted positions: the counted tokens of the whole
    optimiser step, so that accumulation and data parallelism leave the loss as it is."""


class FusedInputs(TypedDict, total=False):
    """The keyword inputs of a fused loss. Logits are c tanh(scale (h Wᵀ + b) / c), see `Head`."""

    student_hidden: Required[Tensor]
    """h [..., D], the student's last hidden states, as its head takes them."""
    student_weight: Required[Tensor]
    """W [V, D] of the student's head."""
    student_bias: Tensor | None
    """b [V]."""
    student_scale: float
    """1 unless given."""
    student_softcap: float | None
    """c; None for no tanh."""
    teacher_hidden: Tensor
    """[..., D'], the teacher's last hidden states; dtype and width may differ. Unused without a teacher."""
    teacher_weight: Tensor
    teacher_bias: Tensor | None
    teacher_scale: float
    teacher_softcap: float | None
    labels: Tensor
    """[...], integers: the token predicted at each position; needed by `CrossEntropy`, and by `MiniLLM` with
    `sampling`."""
    sampling: Tensor | None
    """[..., 2], two values for each token of sampled text, see `MiniLLM`."""
    mask: Tensor | None
    """[...], boolean, true where a position counts; None counts all."""
    denominator: float | Tensor | None
    """Divide the sum by this in place of the number of counted positions."""
    chunk_tokens: int | None
    """How many positions have logits in memory at once; None chooses by vocabulary size and device."""


class Positions(NamedTuple):
    """The inputs of a loss at N counted positions; they must not be written to."""

    student_logits: Tensor
    """[N, V], float32 or better."""
    teacher_logits: Tensor | None = None
    """[N, V], float32 or better."""
    labels: Tensor | None = None
    """[N], integers."""
    sampling: Tensor | None = None
    """[N, 2], see `MiniLLM`."""


class Sums(NamedTuple):
    """A loss over N positions."""

    value: Tensor
    """[], the sum over all positions."""
    gradient: Tensor | None
    """[N, V], for the student's logits; None where it was not asked for."""
    stats: Stats
    """Sums to be logged."""


@dataclass(frozen=True)
class Head:
    """The last layer of a language model, from hidden states [..., D] to logits [..., V].

        logits = c tanh(scale (h Wᵀ + b) / c)        without the tanh if softcap is None

    Args:
        weight: W, [V, D].
        bias: b, [V].
        scale: factor of the logits (Cohere's `logit_scale`, one over Granite's `logits_scaling`).
        softcap: c > 0 (Gemma's `final_logit_softcapping`).
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def __post_init__(self) -> None:
        """Checks the numbers.

        Raises:
            ValueError: if `scale` is 0 or not finite, or `softcap` is neither None nor finite and above 0.
        """
        if not finite_number("scale", self.scale, "choose the model's own factor, 1.0 for none"):
            raise ValueError(f"scale must not be 0, got scale={self.scale!r}; give 1.0 for no factor")
        remedy = "choose the model's own value, or None for no softcap"
        if self.softcap is not None and finite_number("softcap", self.softcap, remedy) <= 0:
            raise ValueError(f"softcap must be above 0, got softcap={self.softcap!r}; {remedy}")

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of `hidden` [..., D], float32 or better also from bfloat16 or float16 operands."""
        return self.shaped(linear(hidden, self.weight, self.bias))

    def cut(self, n_vocab: int | None) -> "Head":
        """The head of the first `n_vocab` tokens."""
        return replace(
            self, weight=self.weight[:n_vocab], bias=None if self.bias is None else self.bias[:n_vocab]
        )

    def to(self, device: torch.device) -> "Head":
        """Returns this head on `device`."""
        return replace(
            self, weight=self.weight.to(device), bias=None if self.bias is None else self.bias.to(device)
        )

    def inputs(self, role: str) -> dict[str, Any]:
        """Returns the fields as arguments of a fused loss; `role` is "student" or "teacher"."""
        return {f"{role}_{f.name}": getattr(self, f.name) for f in fields(self)}

    def shaped(self, products: Tensor) -> Tensor:
        """Returns the logits from h Wᵀ + b."""
        logits = products if self.scale == 1 else products * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def unshaped(self, gradient: Tensor, logits: Tensor) -> Tensor:
        """Returns the gradient for h Wᵀ + b from the gradient for the logits."""
        if self.softcap is not None:
            gradient = gradient * (1 - (logits / self.softcap).square_())
        return gradient if self.scale == 1 else gradient * self.scale


def head_of(role: str, inputs: Mapping[str, Any]) -> Head:
    """Returns the head that the inputs of `role` (student or teacher) describe."""
    fields_given = {f.name: inputs.get(f"{role}_{f.name}", f.default) for f in fields(Head)}
    weight = given(f"{role}_weight", inputs.get(f"{role}_weight"))
    width = inputs[f"{role}_hidden"].shape[-1]
    if weight.ndim != 2 or weight.shape[1] != width:
        raise ValueError(
            f"{role}_weight must be [V, {width}], as {role}_hidden is [..., {width}], got "
            f"{list(weight.shape)}; give the weight of the head that these hidden states belong to"
        )
    bias = fields_given["bias"]
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"{role}_bias must be [{len(weight)}], as {role}_weight is, got {list(bias.shape)}")
    return Head(**fields_given | {"weight": weight})
