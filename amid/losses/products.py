"""Matrix products of bfloat16 or float16 operands with float32 results.

A product that is rounded to bfloat16 is off by 0.2%. For logits of 20 that is 0.04: the logits of a student
and a teacher that are close to each other may differ by no more.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_BLOCK_ELEMENTS = 3 * 2**20
"""Elements of the second operand that are held in float32 at once: few enough to stay in the cache."""


def precise(dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype of results: float64 for float64, else float32."""
    return torch.promote_types(dtype, torch.float32)


def operand_dtype(x: Tensor) -> torch.dtype:
    """Returns the dtype of the operands of products with `x`: autocast's dtype, if autocast is on."""
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def multiply(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """Multiplies a [n, k] and b [k, m] into `out` [n, m], which has the dtype `precise(a.dtype)`.

    CUDA adds up and returns float32 by itself. Elsewhere the operands are converted to float32 block by
    block. A CPU with bfloat16 instructions still uses them; that is as exact, since the operands have no more
    digits.
    """
    if out.dtype == a.dtype:
        return torch.mm(a, b, out=out)
    if a.device.type == "cuda" and hasattr(torch.ops.aten.mm, "dtype_out"):
        return torch.mm(a, b, out_dtype=out.dtype, out=out)
    wide = a.to(out.dtype)
    with _arithmetic_of(a.dtype):
        width = max(_BLOCK_ELEMENTS // max(len(b), 1), 16)
        for start in range(0, b.shape[1], width):
            columns = slice(start, start + width)
            torch.mm(wide, b[:, columns].to(out.dtype), out=out[:, columns])
    return out


@contextmanager
def _arithmetic_of(dtype: torch.dtype) -> Iterator[None]:
    """float32 products on a CPU, from operands rounded to bfloat16 if they are bfloat16 anyway."""
    of_cpu: Any = getattr(torch.backends.mkldnn, "matmul", None)
    if not hasattr(of_cpu, "fp32_precision"):
        yield
        return
    before = of_cpu.fp32_precision
    of_cpu.fp32_precision = "bf16" if dtype == torch.bfloat16 else "ieee"
    try:
        yield
    finally:
        of_cpu.fp32_precision = before


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x Wᵀ + b, [..., m], of x [..., k], W [m, k] and b [m], in float32 or better; can be differentiated.

    Under autocast the operands have its dtype.
    """
    dtype = operand_dtype(x)
    with torch.autocast(x.device.type, enabled=False):
        if precise(dtype) == dtype:
            return torch.nn.functional.linear(
                x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
            )
        flat = x.reshape(-1, x.shape[-1]).to(dtype)
        products: Tensor = _Linear.apply(flat, weight.to(dtype))
        if bias is not None:
            products = products + bias
        return products.view(*x.shape[:-1], len(weight))


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return multiply(x, weight.t(), x.new_empty(len(x), len(weight), dtype=precise(x.dtype)))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad = grad_outputs[0].to(x.dtype)
        return (
            grad @ weight if ctx.needs_input_grad[0] else None,
            grad.t() @ x if ctx.needs_input_grad[1] else None,
        )
