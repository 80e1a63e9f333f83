"""A model with its layers' weights in 8 or 4 bits. Products are taken in the model's dtype."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from amid.errors import InputError

INT8, INT4, NF4 = "int8", "int4", "nf4"

_BLOCK, _BLOCKS_OF_SCALE = 64, 256
"""Weights that share a scale in 4 bits, and scales of NF4 that share a factor, at most."""

_STEPS = 15
"""Steps from the least to the greatest value of 4 bits."""

_LEAST = 0.9
"""The least share of the weights of the layers that must be in linear layers."""


def check_quantization(model: PreTrainedModel, to: str) -> None:
    """Checks that `quantize` can be applied to a model, perhaps without values.

    Raises:
        InputError: if `int8` or `nf4` finds no torchao, or the model's weights cannot be quantised.
    """
    if to != INT4:
        try:
            import torchao  # noqa: F401
        except ImportError as error:
            raise InputError(
                f"model quantization={to} needs torchao; pip install 'amid-distill[quantized]', or use null"
            ) from error
    layers, ends = dict(_layers(model)), _ends(model)
    everything = sum(w.numel() for w in model.parameters() if not any(w is end for end in ends))
    share = sum(layer.weight.numel() for layer in layers.values()) / max(everything, 1)
    if share < _LEAST:
        raise InputError(
            f"model quantization={to}: only {share:.0%} of the weights of {type(model).__name__}'s layers "
            "are in linear layers, which alone are quantised; use null"
        )
    for name, layer in layers.items() if to != INT8 else ():
        if layer.weight.numel() % _BLOCK:
            raise InputError(
                f"model quantization={to}: {name} has {layer.weight.numel()} weights, and {to} takes "
                f"multiples of {_BLOCK}; use {INT8}"
            )


def quantize(model: PreTrainedModel, to: str) -> None:
    """Quantises the weights of a model's linear layers, except the head (in place).

    `int8` has a scale for each row of a weight matrix. `nf4` has the 16 values of QLoRA's NormalFloat
    (arXiv 2305.14314), with an 8-bit scale for each 64 weights. Both are torchao's. `int4` has 16 values at
    equal steps, from the least to the greatest of each 64 weights. The model is frozen then. Embeddings, head
    and norms stay as they are.

    Raises:
        InputError: see `check_quantization`.
    """
    check_quantization(model, to)
    model.requires_grad_(False)
    layers = [layer for _, layer in _layers(model)]
    if to == INT4:
        for layer in layers:
            parametrize.register_parametrization(layer, "weight", _Int4(layer.weight), unsafe=True)
        return
    from torchao.quantization import Int8WeightOnlyConfig, NF4Tensor, quantize_

    if to == INT8:
        chosen = {id(layer) for layer in layers}
        quantize_(model, Int8WeightOnlyConfig(), filter_fn=lambda module, _: id(module) in chosen)
    else:
        for layer in layers:
            weight = NF4Tensor.from_tensor(layer.weight.detach(), _BLOCK, _scales_at_once(layer.weight))
            layer.weight = nn.Parameter(weight, requires_grad=False)
    model.requires_grad_(False)


class _Int4(nn.Module):
    """Weights w in 4 bits: w ≈ low + step · n for n in 0 … 15, where `low` and `step` belong to 64 weights.

    A byte holds two n. `low` and `step` have the dtype of the weights.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self._shape = weight.shape

    def forward(self, pairs: Tensor, low: Tensor, step: Tensor) -> Tensor:
        steps = torch.stack((pairs & _STEPS, pairs >> 4), dim=-1).view(-1, _BLOCK)
        return torch.addcmul(low, step, steps.to(low.dtype)).view(self._shape)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        blocks = weight.detach().reshape(-1, _BLOCK)
        low, high = (end.to(torch.float32) for end in blocks.aminmax(dim=1, keepdim=True))
        step = ((high - low) / _STEPS).to(weight.dtype)
        low = low.to(weight.dtype)
        steps = (blocks.float() - low.float()) / step.float()
        steps = steps.nan_to_num(0, posinf=0)  # where all weights are equal
        first, second = steps.round().clamp(0, _STEPS).to(torch.uint8).view(-1, 2).unbind(dim=1)
        return first | second << 4, low, step


def dequantize(model: PreTrainedModel) -> None:
    """Gives a quantised model the plain weights that it computes with, to train or to save it (in place)."""
    for _, layer in _layers(model):
        if parametrize.is_parametrized(layer):
            parametrize.remove_parametrizations(layer, "weight")
            plain = layer.weight
            del layer.weight  # a buffer, since the parts had no gradient
        else:
            weight: Any = layer.weight.data
            is_nf4 = hasattr(weight, "get_original_weight")
            plain = weight.get_original_weight() if is_nf4 else weight.dequantize()
        layer.weight = nn.Parameter(plain)
    model.requires_grad_(True)


def weight_bytes(model: PreTrainedModel, to: str | None = None) -> int:
    """Returns the bytes of a model's weights.

    Args:
        model: the model, perhaps without values.
        to: the quantisation that the model would have; None counts the weights as they are.
    """
    layers = {id(layer.weight) for _, layer in _layers(model)} if to else set()
    return sum(
        _bytes_after(weight, to) if to and id(weight) in layers else _bytes(weight)
        for weight in model.parameters()
    )


def _bytes_after(weight: Tensor, to: str) -> int:
    if to == INT8:
        return weight.numel() + 5 * weight.shape[0]  # a float32 scale and an 8-bit zero point
    blocks = weight.numel() // _BLOCK
    if to == INT4:
        return weight.numel() // 2 + 2 * blocks * weight.dtype.itemsize
    factors = blocks // _scales_at_once(weight)
    return weight.numel() // 2 + blocks + (factors + 1 + 16) * weight.dtype.itemsize


def _bytes(tensor: Tensor) -> int:
    """Bytes of a tensor; of all its parts if it is a quantised one."""
    return sum(part.nbytes for part in plain_parts(tensor))


def plain_parts(tensor: Tensor) -> Iterator[Tensor]:
    """Yields the plain tensors that a quantised one, as torchao makes them, consists of; any other as it
    is."""
    parts = getattr(tensor, "__tensor_flatten__", None)
    if parts is None:
        yield tensor
        return
    for name in parts()[0]:
        if (part := getattr(tensor, name)) is not None:
            yield from plain_parts(part)


def _scales_at_once(weight: Tensor) -> int:
    return math.gcd(weight.numel() // _BLOCK, _BLOCKS_OF_SCALE)


def _layers(model: PreTrainedModel) -> Iterator[tuple[str, nn.Linear]]:
    """The linear layers of a model's body, by name."""
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module is not head:
            yield name, module


def _ends(model: PreTrainedModel) -> list[Tensor]:
    """The weights of embeddings and head."""
    head: Any = model.get_output_embeddings()
    found = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    return found if head is None else [*found, *head.parameters()]
