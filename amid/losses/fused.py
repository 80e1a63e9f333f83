"""Losses from hidden states and head weights, in chunks of tokens: [chunk, V] memory in place of [tokens, V].

Logits are made chunk by chunk and turned into their own gradient where they stand; from it come the
gradients of hidden states and head, two matrix products, before the next chunk is begun. So the forward
pass makes the gradients together with the value, and the backward pass hands them out.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Required, TypedDict, Unpack, overload

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from amid.losses.counted import check_denominator, check_leading_shape, given, select
from amid.losses.products import linear, multiply, operand_dtype, precise

Stats = dict[str, Tensor]

BUFFER_BYTES = {"cpu": 208 * 2**20, "cuda": 512 * 2**20}
"""What the logits of a chunk take at most, teacher and student together. Where operands are bfloat16 or
float16 the logits are float32 too, and with their rounded gradient take up to twice as much."""

BLOCK_ELEMENTS = {"cpu": 2**18, "cuda": 2**26}
"""Logits that the arithmetic is done on at once: on a CPU few enough that what it writes stays in the cache,
elsewhere enough to keep the device busy, while some 18 arrays as large are held."""

_COMPILED_ELEMENTS = {"cpu": 2**19, "cuda": 2**28}
"""The same where the arithmetic is compiled, which holds fewer arrays and has more to do for a call."""


class LogitInputs(TypedDict, total=False):
    """What a loss takes on logits, by keyword."""

    student_logits: Required[Tensor]
    """[..., V], any floating dtype; the softmax is taken in float32 or better."""
    teacher_logits: Tensor
    """[..., V], the same; no gradient reaches it."""
    labels: Tensor
    """[...], integers: the token that the logits at the same position predict (already shifted). What stands
    at positions that do not count, such as -100, is never read."""
    sampling: Tensor
    """[..., 2], of each token of sampled text: see `MiniLLM`."""
    mask: Tensor | None
    """[...], boolean, true where a position counts; None counts all."""
    denominator: float | Tensor | None
    """Divide the sum by this in place of the number of counted positions: the counted tokens of the whole
    optimiser step, so that accumulation and data parallelism leave the loss as it is."""


class FusedInputs(TypedDict, total=False):
    """What a fused loss takes, by keyword. Logits are c tanh(scale (h Wᵀ + b) / c), see `Head`."""

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
    """The same of the teacher, [..., D']; its dtype and width may differ. Unused where none is needed."""
    teacher_weight: Tensor
    teacher_bias: Tensor | None
    teacher_scale: float
    teacher_softcap: float | None
    labels: Tensor
    """[...], integers: the token predicted at each position; needed by `CrossEntropy`, and by `MiniLLM` with
    `sampling`."""
    sampling: Tensor | None
    """[..., 2], what is known of the tokens' sampling; see `MiniLLM`."""
    mask: Tensor | None
    """[...], boolean, true where a position counts; None counts all."""
    denominator: float | Tensor | None
    """Divide the sum by this in place of the number of counted positions."""
    chunk_tokens: int | None
    """Positions whose logits exist at once; None chooses by the vocabulary's size and the device."""


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

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of `hidden` [..., D], float32 or better also from bfloat16 or float16 operands."""
        return self.shaped(linear(hidden, self.weight, self.bias))

    def cut(self, n_vocab: int | None) -> "Head":
        """The head of the first `n_vocab` tokens."""
        return replace(
            self, weight=self.weight[:n_vocab], bias=None if self.bias is None else self.bias[:n_vocab]
        )

    def to(self, device: torch.device) -> "Head":
        """The same on `device`."""
        return replace(
            self, weight=self.weight.to(device), bias=None if self.bias is None else self.bias.to(device)
        )

    def inputs(self, role: str) -> dict[str, Any]:
        """The fields as arguments of a fused loss; `role` is "student" or "teacher"."""
        return {f"{role}_{f.name}": getattr(self, f.name) for f in fields(self)}

    def shaped(self, products: Tensor) -> Tensor:
        """Logits from h Wᵀ + b."""
        logits = products if self.scale == 1 else products * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def unshaped(self, gradient: Tensor, logits: Tensor) -> Tensor:
        """The gradient for h Wᵀ + b from that for the logits."""
        if self.softcap is not None:
            gradient = gradient * (1 - (logits / self.softcap).square_())
        return gradient if self.scale == 1 else gradient * self.scale


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
        """Whether the loss of a batch, but for its denominator, is the sum of those of its parts."""
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
        """Mean over the counted tokens.

        Args:
            return_stats: also return detached sums over the counted positions, for averages over any number
                of batches: those that the class names.
            inputs: see `LogitInputs`; which of them a loss takes, and which it needs, its `on_logits` says.

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
        """What a call on logits returns, the stats empty unless they are asked for."""

    @abstractmethod
    def value_and_gradient(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor | None,
        labels: Tensor | None,
        with_gradient: bool,
        with_stats: bool,
        sampling: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, Stats]:
        """The sum over all positions [N], its gradient for `student_logits` [N, V], and sums to be logged.

        What `fused` is made of. Logits are float32 or better and must not be written to.
        """

    @abstractmethod
    def check(self) -> None:
        """Raises a ValueError where the settings, which may have changed, do not fit together."""

    def on_batch(self, inputs: FusedInputs) -> "Loss":
        """The loss whose sum over positions this is, for these inputs of `fused`.

        The same, unless something must be known of all positions before the first can be summed.
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
        """The loss from hidden states and heads, its gradients made chunk by chunk of tokens.

        Equal to

            loss(student_logits=student_hidden @ student_weight.T + student_bias,
                 teacher_logits=teacher_hidden @ teacher_weight.T + teacher_bias,
                 labels=labels, sampling=sampling, mask=mask, denominator=denominator,
                 return_stats=return_stats)

        with what the loss needs of these, but no logits outlive their chunk of tokens. The gradients for
        `student_hidden`, `student_weight` and `student_bias` are made at once, in closed form; what has no
        closed form (a divergence or assistant of your own that is a plain function) and positions with
        infinite logits are differentiated by autograd within the chunk. The loss can be differentiated
        once, and not twice in a row (no `create_graph`).

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
        loss, stats = _fused(self.on_batch(inputs), return_stats, **inputs)
        return (loss, stats) if return_stats else loss


def _fused(objective: Loss, with_stats: bool, **inputs: Unpack[FusedInputs]) -> tuple[Tensor, Stats]:
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
        teacher = _Products(select(mask, teacher_hidden.detach()), _head("teacher", inputs))
    if objective.uses_sampling and inputs.get("sampling") is not None:
        sampling = given("sampling", inputs.get("sampling"))
        check_leading_shape("sampling", sampling.shape[:-1], leading)
        sampling = select(mask, sampling)
    if objective.needs_labels or sampling is not None:
        labels = given("labels", inputs.get("labels"))
        check_leading_shape("labels", labels.shape, leading)
        labels = select(mask, labels.unsqueeze(-1)).squeeze(-1)
    hidden = select(mask, hidden)
    head = _head("student", inputs)
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


def _head(role: str, inputs: Mapping[str, Any]) -> Head:
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


class _Products:
    """The matrix products of counted hidden states [N, D] with a head."""

    def __init__(self, hidden: Tensor, head: Head) -> None:
        dtype = operand_dtype(hidden)
        self.dtype, self.head = dtype, head
        self.hidden, self.weight = hidden.detach().to(dtype), head.weight.detach().to(dtype)
        self.bias = None if head.bias is None else head.bias.detach().to(precise(dtype))

    def buffer(self, n: int) -> Tensor:
        """Room for the logits of `n` positions."""
        return self.hidden.new_empty(n, len(self.weight), dtype=precise(self.dtype))

    def chunk(self, chunk: slice, buffer: Tensor) -> Tensor:
        """h Wᵀ + b [n, V] of a chunk of positions, in `buffer`."""
        hidden = self.hidden[chunk]
        out = buffer[: len(hidden)]
        if self.bias is not None and out.dtype == self.dtype:
            return torch.addmm(self.bias, hidden, self.weight.t(), out=out)
        multiply(hidden, self.weight.t(), out)
        return out if self.bias is None else out.add_(self.bias)


@dataclass
class _Work:
    """What a fused loss needs beside the tensors that it is differentiated for."""

    objective: Loss
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
        """Logits that the arithmetic is done on at once."""
        elements = _COMPILED_ELEMENTS if self.objective.compiled else BLOCK_ELEMENTS
        return elements.get(self.student.hidden.device.type, elements["cuda"])

    def chunk_size(self) -> int:
        """Positions of a chunk: a multiple of 64 as far as there are as many."""
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
        """The summed loss of a chunk's products; `scale` times its gradient for them is written to `out`.

        `out` may be `products` itself. To `column_sums` those of the gradient are added before it is rounded.
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
            value, gradient, stats = self.objective.value_and_gradient(
                logits,
                teacher_logits,
                None if labels is None else labels[block],
                with_gradient=self.with_gradient,
                with_stats=self.with_stats,
                sampling=None if sampling is None else sampling[block],
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
            loss, *gradients = _value_and_gradients(work, ctx.needs_input_grad[:3])
        inputs = (hidden, weight, bias)
        ctx.gradients = [
            None if g is None or x is None else g.to(x.dtype) for g, x in zip(gradients, inputs, strict=True)
        ]
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
        if factor.device.type != "cpu" or factor != 1:  # a GPU would have to be waited for
            gradients = [None if g is None else g.mul_(factor) for g in gradients]
        return *gradients, None


def _value_and_gradients(work: _Work, wanted: Sequence[bool]) -> tuple[Tensor, *tuple[Tensor | None, ...]]:
    """The loss, and its gradients for hidden states, weight and bias as far as they are wanted."""
    student, teacher = work.student, work.teacher
    n, size, sums = len(student.hidden), work.chunk_size(), precise(student.dtype)
    scale = 1 / work.denominator
    # Where the range of the dtype allows it, the gradient for the logits is scaled before it is rounded.
    early = scale if student.dtype == torch.bfloat16 else 1.0
    late = scale / early
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
    return total * scale, grad_hidden, grad_weight, grad_bias


def _add_product(total: Tensor, gradient: Tensor, hidden: Tensor, scale: float, first: bool) -> None:
    """total [V, D] += scale · gradient [n, V]ᵀ hidden [n, D], in the dtype of `total`, or = where `first`."""
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
