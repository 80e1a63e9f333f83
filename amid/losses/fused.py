"""Losses from hidden states and head weights, in chunks of tokens: [chunk, V] memory in place of [tokens, V].

For each chunk, the logits are computed and replaced in place by their own gradient. Two matrix products then
give the gradients of hidden states and head, before the next chunk begins. So the forward pass computes the
gradients together with the value, and the backward pass returns them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from amid.losses.counted import check_denominator, check_leading_shape, given, select
from amid.losses.inputs import FusedInputs, Head, Positions, Stats, head_of
from amid.losses.products import multiply, operand_dtype, precise

if TYPE_CHECKING:
    from amid.losses.base import Loss

BUFFER_BYTES = {"cpu": 208 * 2**20, "cuda": 512 * 2**20}
"""The most bytes of a chunk's logits, teacher and student together. The logits of bfloat16 or float16
operands are float32 too, and with their rounded gradient take up to twice as much."""

BLOCK_ELEMENTS = {"cpu": 2**18, "cuda": 2**26}
"""Logits in one block of the arithmetic. On a CPU a block is small enough that its arrays stay in the cache.
Elsewhere it is large enough to keep the device busy; about 18 arrays of its size are in memory at once."""

_COMPILED_ELEMENTS = {"cpu": 2**19, "cuda": 2**28}
"""Logits in one block of compiled arithmetic, which holds fewer arrays and costs more for each call."""


def fused_loss(objective: "Loss", with_stats: bool, **inputs: Unpack[FusedInputs]) -> tuple[Tensor, Stats]:
    """Returns the value of `objective` from hidden states and heads, differentiable, and detached sums."""
    unknown = inputs.keys() - FusedInputs.__annotations__.keys()
    if unknown:
        known = ", ".join(FusedInputs.__annotations__)
        raise TypeError(f"a fused loss has no input {min(unknown)!r}; its inputs are {known}")
    chunk_tokens = inputs.get("chunk_tokens")
    if chunk_tokens is not None and chunk_tokens < 1:
        raise ValueError(f"chunk_tokens={chunk_tokens} must be at least 1; None chooses")
    mask = inputs.get("mask")
    hidden = inputs["student_hidden"]
    leading = hidden.shape[:-1]
    teacher, labels, sampling = None, None, None
    if objective.needs_teacher:
        teacher_hidden = given("teacher_hidden", inputs.get("teacher_hidden"))
        check_leading_shape("teacher_hidden", teacher_hidden.shape[:-1], leading)
        teacher = _Products(select(mask, teacher_hidden.detach()), head_of("teacher", inputs))
    if objective.uses_sampling and inputs.get("sampling") is not None:
        sampling = given("sampling", inputs.get("sampling"))
        check_leading_shape("sampling", sampling.shape[:-1], leading)
        sampling = select(mask, sampling)
    if objective.needs_labels or sampling is not None:
        labels = given("labels", inputs.get("labels"))
        check_leading_shape("labels", labels.shape, leading)
        labels = select(mask, labels.unsqueeze(-1)).squeeze(-1)
    hidden = select(mask, hidden)
    head = head_of("student", inputs)
    wanted = [x is not None and x.requires_grad for x in (hidden, head.weight, head.bias)]
    work = _Work(
        objective=objective,
        student=_Products(hidden, head),
        teacher=teacher,
        labels=labels,
        sampling=sampling,
        denominator=check_denominator(inputs.get("denominator"), len(hidden)),
        chunk_tokens=chunk_tokens,
        with_stats=with_stats,
        with_gradient=torch.is_grad_enabled() and any(wanted),
    )
    loss: Tensor = _FusedFunction.apply(hidden, head.weight, head.bias, work)
    return loss, work.stats


class _Products:
    """The matrix products of counted hidden states [N, D] with a head."""

    def __init__(self, hidden: Tensor, head: Head) -> None:
        dtype = operand_dtype(hidden)
        self.dtype, self.head = dtype, head
        self.hidden, self.weight = hidden.detach().to(dtype), head.weight.detach().to(dtype)
        self.bias = None if head.bias is None else head.bias.detach().to(precise(dtype))

    def buffer(self, n: int) -> Tensor:
        """Returns an empty tensor for the logits of `n` positions."""
        return self.hidden.new_empty(n, len(self.weight), dtype=precise(self.dtype))

    def chunk(self, chunk: slice, buffer: Tensor) -> Tensor:
        """Computes h Wᵀ + b [n, V] of a chunk of positions in `buffer`, and returns it."""
        hidden = self.hidden[chunk]
        out = buffer[: len(hidden)]
        if self.bias is not None and out.dtype == self.dtype:
            return torch.addmm(self.bias, hidden, self.weight.t(), out=out)
        multiply(hidden, self.weight.t(), out)
        return out if self.bias is None else out.add_(self.bias)


@dataclass
class _Work:
    """The inputs of a fused loss besides the tensors that it is differentiated for."""

    objective: "Loss"
    student: _Products
    teacher: _Products | None
    labels: Tensor | None
    sampling: Tensor | None
    denominator: float
    chunk_tokens: int | None
    with_stats: bool
    with_gradient: bool
    stats: Stats = field(default_factory=dict)

    @property
    def block_elements(self) -> int:
        """The number of logits in one block of the arithmetic."""
        elements = _COMPILED_ELEMENTS if self.objective.compiled else BLOCK_ELEMENTS
        return elements.get(self.student.hidden.device.type, elements["cuda"])

    def chunk_size(self) -> int:
        """Returns the positions of a chunk: a multiple of 64, if there are as many positions."""
        n = max(len(self.student.hidden), 1)
        if self.chunk_tokens is not None:
            return min(self.chunk_tokens, n)
        sides = [side for side in (self.student, self.teacher) if side is not None]
        bytes_a_token = sum(len(side.weight) * precise(side.dtype).itemsize for side in sides)
        if self.student.dtype.itemsize == 2:  # with the rounded gradient, in twice the room
            bytes_a_token = (bytes_a_token + 2 * len(self.student.weight)) // 2
        budget = BUFFER_BYTES.get(self.student.hidden.device.type, BUFFER_BYTES["cuda"])
        return min(max(budget // bytes_a_token // 64 * 64, 64), n)

    def to_gradient(
        self,
        products: Tensor,
        teacher_products: Tensor | None,
        chunk: slice,
        out: Tensor,
        scale: float,
        column_sums: Tensor | None,
    ) -> Tensor:
        """Returns the summed loss of a chunk's products; writes `scale` times its gradient for them to `out`.

        `out` may be `products` itself. The column sums of the gradient, before it is rounded, are added to
        `column_sums`.
        """
        labels = None if self.labels is None else self.labels[chunk]
        sampling = None if self.sampling is None else self.sampling[chunk]
        n, n_vocab = products.shape
        size = max(self.block_elements // n_vocab, 1)
        total = torch.zeros((), dtype=products.dtype, device=products.device)
        for start in range(0, n, size):
            block = slice(start, start + size)
            logits = self.student.head.shaped(products[block])
            teacher_logits = None
            if self.teacher is not None and teacher_products is not None:
                teacher_logits = self.teacher.head.shaped(teacher_products[block])
            at = Positions(
                logits,
                teacher_logits,
                None if labels is None else labels[block],
                None if sampling is None else sampling[block],
            )
            value, gradient, stats = self.objective.value_and_gradient(
                at, self.with_gradient, self.with_stats
            )
            total += value
            if gradient is not None:
                gradient = self.student.head.unshaped(gradient, logits)
                gradient = gradient if scale == 1 else gradient * scale
                out[block] = gradient
                if column_sums is not None:
                    column_sums.add_(gradient.sum(0))
            for name, x in stats.items():
                self.stats[name] = self.stats[name] + x if name in self.stats else x
        return total


class _FusedFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, work: _Work) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            loss, ctx.scale, *gradients = _value_and_gradients(work, ctx.needs_input_grad[:3])
        ctx.dtypes = [None if x is None else x.dtype for x in (hidden, weight, bias)]
        ctx.gradients = gradients if ctx.scale != 1 else _as(ctx.dtypes, gradients)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError(
                "a fused loss hands its gradients out once; to go backward a second time, call it again, or "
                "the objective on logits"
            )
        gradients, ctx.gradients = ctx.gradients, None
        (factor,) = grad_outputs
        if ctx.scale != 1:
            factor = factor * ctx.scale
        if factor.device.type != "cpu" or factor != 1:  # a GPU would have to be waited for
            gradients = [None if g is None else g.mul_(factor) for g in gradients]
        return *_as(ctx.dtypes, gradients), None


def _as(dtypes: Sequence[torch.dtype | None], gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Returns gradients in the dtypes of their inputs."""
    return [
        None if g is None or dtype is None else g.to(dtype)
        for g, dtype in zip(gradients, dtypes, strict=True)
    ]


def _value_and_gradients(
    work: _Work, wanted: Sequence[bool]
) -> tuple[Tensor, float, *tuple[Tensor | None, ...]]:
    """Returns the loss, a factor, and the gradients that are wanted among hidden states, weight and bias.

    The factor is still to be applied to the gradients. In float16 it is one over the denominator, which would
    make them underflow before the loss scale reaches them. Elsewhere it is 1.
    """
    student, teacher = work.student, work.teacher
    n, size, sums = len(student.hidden), work.chunk_size(), precise(student.dtype)
    scale = 1 / work.denominator
    # Where the range of the dtype allows it, the gradient for the logits is scaled before it is rounded.
    early = scale if student.dtype == torch.bfloat16 else 1.0
    at_last = scale if student.dtype == torch.float16 else 1.0
    late = scale / early / at_last
    # A sum of one chunk is rounded once, where it is made.
    alone = n <= size and late == 1 and student.head.weight.dtype == student.dtype
    grad_hidden, grad_weight, grad_bias = (
        (torch.empty_like if n else torch.zeros_like)(x, dtype=dtype)
        if want and work.with_gradient and x is not None
        else None
        for want, x, dtype in zip(
            wanted,
            (student.hidden, student.weight, student.bias),
            (student.dtype, student.dtype if alone else sums, sums),
            strict=True,
        )
    )
    if grad_bias is not None:
        grad_bias.zero_()
    buffer = student.buffer(size)
    teacher_buffer = None if teacher is None else teacher.buffer(size)
    rounded = buffer if student.dtype == sums else torch.empty_like(buffer, dtype=student.dtype)
    total = torch.zeros((), dtype=sums, device=student.hidden.device)
    for start in range(0, n, size):
        chunk = slice(start, start + size)
        products = student.chunk(chunk, buffer)
        gradient = products if rounded is buffer else rounded[: len(products)]
        total += work.to_gradient(
            products,
            None if teacher is None or teacher_buffer is None else teacher.chunk(chunk, teacher_buffer),
            chunk,
            gradient,
            early,
            column_sums=None if gradient is products else grad_bias,
        )
        if grad_hidden is not None:
            torch.mm(gradient, student.weight, out=grad_hidden[chunk]).mul_(late)
        if grad_weight is not None:
            _add_product(grad_weight, gradient, student.hidden[chunk], late, first=start == 0)
        if grad_bias is not None and gradient is products:
            grad_bias.add_(gradient.sum(0), alpha=late)
    if grad_bias is not None and rounded is not buffer:
        grad_bias.mul_(late)
    return total * scale, at_last, grad_hidden, grad_weight, grad_bias


def _add_product(total: Tensor, gradient: Tensor, hidden: Tensor, scale: float, first: bool) -> None:
    """Adds scale · gradient [n, V]ᵀ hidden [n, D] to `total` [V, D], in its dtype; sets it if `first`."""
    if total.dtype == gradient.dtype:
        total.addmm_(gradient.t(), hidden, beta=0 if first else 1, alpha=scale)
        return
    size = max(BLOCK_ELEMENTS.get(total.device.type, BLOCK_ELEMENTS["cuda"]) * 4 // total.shape[1], 1)
    for start in range(0, len(total), size):
        rows = slice(start, start + size)
        product = multiply(gradient[:, rows].t(), hidden, torch.empty_like(total[rows]))
        if first:
            torch.mul(product, scale, out=total[rows])
        else:
            total[rows].add_(product, alpha=scale)
