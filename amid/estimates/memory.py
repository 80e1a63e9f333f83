"""The GPU memory of a training run, estimated from the models' shapes alone."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from amid.losses.fused import BLOCK_ELEMENTS, BUFFER_BYTES
from amid.models.layers import decoder_layers
from amid.models.quantization import weight_bytes
from amid.models.vocabulary import output_rows

_ACTIVATIONS = 1.5
"""The activations kept for the backward pass, divided by the sizes of the linear layers' inputs and outputs.
Norms, masks and pieces of activation functions add to these sizes; inputs that layers share count once."""

_WORKING_COPIES, _WORKING_COPIES_WITHOUT_TEACHER = 18, 3
"""Float32 arrays as large as a block's logits that an α-mixture and cross-entropy hold at once."""


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes that a training step takes, part by part.

    Some parts are counted: the weights of both models, and for trained weights their gradients, the states of
    the optimiser and, under autocast, the bfloat16 copies of float32 weights.

    Two parts are estimated within a factor of two. The activations that are kept for the backward pass follow
    from the sizes of the student's linear layers; with gradient checkpointing they are the inputs of the
    layers, and the activations of one layer. The arrays of the loss are for an α-mixture, or without a
    teacher for cross-entropy. The fused loss has them for one block of positions at a time.

    Some parts are left out: the answers at a validation, which are drawn when activations and loss are freed,
    the optimiser's temporary arrays, and the one or two GB of CUDA itself.
    """

    teacher: int
    weights: int
    copies: int
    gradients: int
    optimizer: int
    activations: int
    loss: int

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return sum(getattr(self, part.name) for part in fields(self))


def spread(memory: TrainingMemory, student: PreTrainedModel, devices: int) -> TrainingMemory:
    """The memory of each of several devices that a student's weights are spread over (FSDP2).

    A device has its part of the weights, the gradients and the moments. It also has whole weights and
    gradients of embeddings and head, and of two decoder layers.
    """
    layers = [_bytes(layer.parameters()) for layer in decoder_layers(student)]
    whole = memory.weights - sum(layers) + 2 * max(layers)
    return replace(
        memory,
        weights=memory.weights // devices + whole,
        gradients=memory.gradients // devices + min(whole, memory.gradients),
        optimizer=memory.optimizer // devices,
    )


def training_memory(
    student: PreTrainedModel,
    teacher: PreTrainedModel | None,
    tokens: int,
    precision: str,
    quantization: str | None = None,
    optimizer: Callable[[list[Tensor]], Optimizer] = AdamW,
    fused: bool = True,
) -> TrainingMemory:
    """The memory that a step on `tokens` tokens (padding included) at once takes on a device.

    Args:
        student: the student, with its weights' dtypes and `requires_grad` as in training; on any device, also
            without values (`ModelSource.skeleton`).
        teacher: the live teacher; None without one. A cached teacher takes its head's weight only.
        tokens: tokens that go through the models at once: `data.tokens_per_batch`, or rows times length.
        precision: Lightning's precision.
        quantization: how the teacher's weights are quantised; None for not.
        optimizer: makes the optimiser of given weights.
        fused: whether the loss goes through the positions block by block, and not through all at once.
    """
    trained = [weight for weight in student.parameters() if weight.requires_grad]
    wide = [weight for weight in student.parameters() if weight.dtype == torch.float32]
    mixed = precision.endswith("-mixed")
    product_bytes = 2 if mixed else student.dtype.itemsize
    head = student.get_output_embeddings()
    vocabularies = [output_rows(model) for model in (student, teacher) if model is not None]
    # Logits are float32; the gradient for the student's is rounded to what the products are taken in.
    logit_bytes = 4 * sum(vocabularies) + (2 * vocabularies[0] if product_bytes < 4 else 0)
    room = BUFFER_BYTES["cuda"] * (2 if product_bytes < 4 else 1)
    positions = min(tokens, room // logit_bytes) if fused else tokens
    logits = positions * max(vocabularies)
    working = _WORKING_COPIES_WITHOUT_TEACHER if teacher is None else _WORKING_COPIES
    head_gradient = 4 * head.weight.numel() if any(head.weight is weight for weight in trained) else 0
    return TrainingMemory(
        teacher=0 if teacher is None else weight_bytes(teacher, quantization),
        weights=_bytes(student.parameters()),
        copies=sum(2 * weight.numel() for weight in wide) if mixed else 0,
        gradients=_bytes(trained),
        optimizer=optimizer_bytes(optimizer, trained),
        activations=int(tokens * _activations(student, product_bytes)),
        loss=positions * logit_bytes
        + 4 * working * (min(logits, BLOCK_ELEMENTS["cuda"]) if fused else logits)
        + head_gradient,
    )


def optimizer_bytes(optimizer: Callable[[list[Tensor]], Optimizer], trained: Iterable[Tensor]) -> int:
    """The bytes of an optimiser's states, by a step of it on a small matrix of each dtype."""
    sizes = Counter[torch.dtype]()
    for weight in trained:
        sizes[weight.dtype] += weight.numel()
    total = 0.0
    for dtype, size in sizes.items():
        matrix = nn.Parameter(torch.zeros(64, 1024, dtype=dtype))
        matrix.grad = torch.zeros_like(matrix)
        made = optimizer([matrix])
        made.step()
        states = [
            state for state in made.state[matrix].values() if isinstance(state, Tensor) and state.numel() > 1
        ]
        total += size * sum(map(_stored_bytes, states)) / matrix.numel()
    return int(total)


def _stored_bytes(tensor: Tensor) -> int:
    """The bytes of a tensor, or of the tensors that it is made of."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return tensor.nbytes
    return sum(getattr(tensor, name).nbytes for name in tensor.__tensor_flatten__()[0])


def _activations(student: PreTrainedModel, product_bytes: int) -> float:
    """Bytes that are kept of one token for the backward pass of the student's body."""
    again = [
        module
        for module in student.modules()
        if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing
    ]
    widths = [_width(layer) for layer in again]
    head = student.get_output_embeddings()
    width = _width(student) - _width(head) - sum(widths) + max(widths, default=0)
    inputs: int = len(again) * student.config.get_text_config().hidden_size * student.dtype.itemsize
    return _ACTIVATIONS * width * product_bytes + inputs


def _width(module: nn.Module) -> int:
    """The sizes of the inputs and outputs of all linear layers in a module."""
    return sum(sum(m.weight.shape) for m in module.modules() if isinstance(m, nn.Linear | Conv1D))


def _bytes(weights: Iterable[Tensor]) -> int:
    return sum(weight.nbytes for weight in weights)
