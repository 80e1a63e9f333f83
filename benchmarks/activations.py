"""Bytes of activations that a training step keeps for its backward pass, with and without checkpointing.

    python benchmarks/activations.py
    python benchmarks/activations.py --lora --dtype bfloat16

The student has the shape of the study's student (12 layers of SmolLM2-135M, 71M weights) and random weights.
One step computes the fused loss on the states at all positions and its gradient. "Kept" counts the bytes
that autograd saves of the body for the backward pass, each storage once, without the weights. "One layer" is
what the backward pass computes again and holds for one layer at a time. "Estimate" is what a dry run counts
(`amid.estimates.memory`). The gradients' difference is relative to the largest
gradient of the weight. Times are medians.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from amid.data.builtin import tokenizer
from amid.estimates.memory import training_memory
from amid.losses import CrossEntropy
from amid.models.counted_states import CountedStates
from amid.models.source import ModelSource

STUDENT = {
    "model_type": "llama",
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 12,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
    "max_position_embeddings": 2048,
}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    ids = torch.randint(0, STUDENT["vocab_size"], (1, args.tokens), device=args.device)
    found = {on: measured(args, ids, on) for on in (False, True)}
    plain, checkpointed = found[False], found[True]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {args}\n")
    print(f"{'gradient_checkpointing':<26}{'false':>12}{'true':>12}{'ratio':>9}")
    for name in plain[0]:
        off, on = plain[0][name], checkpointed[0][name]
        unit, of = ("s", 1) if name == "seconds" else ("MB", 1e6)
        ratio = f"{on / off:>9.3f}" if off else ""
        print(f"{f'{name} ({unit})':<26}{off / of:>12.2f}{on / of:>12.2f}{ratio}")
    both = [
        (a - b).abs().max() / a.abs().max() for a, b in zip(plain[1], checkpointed[1], strict=True) if a.any()
    ]
    print(f"\nlargest relative difference of a gradient: {max(map(float, both)):.2g} ({len(both)} weights)")


def measured(
    args: argparse.Namespace, ids: Tensor, checkpointing: bool
) -> tuple[dict[str, float], list[Tensor]]:
    """Bytes and seconds of a step, and its gradients."""
    model = student(args, checkpointing)
    states = CountedStates(model)
    assert states.head is not None
    positions = torch.ones_like(ids, dtype=torch.bool)
    seconds = []
    for _ in range(args.rounds):
        model.zero_grad()
        started = time.perf_counter()
        with kept(model) as of_body:
            hidden = states.hidden(ids, positions)
        inputs = states.head.inputs("student")
        CrossEntropy().fused(student_hidden=hidden, labels=ids.flatten(), **inputs).backward()
        if args.device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    shapes = training_memory(model, None, ids.numel(), "32-true")
    layer = one_layer(model, hidden) if checkpointing else 0
    figures = {
        "kept": sum(of_body.values()),
        "one layer": layer,
        "kept and one layer": sum(of_body.values()) + layer,
        "estimate": shapes.activations,
        "seconds": statistics.median(seconds),
    }
    return figures, [weight.grad.float() for weight in model.parameters() if weight.grad is not None]


def student(args: argparse.Namespace, checkpointing: bool) -> PreTrainedModel:
    """The student in train mode, the same whenever it is made."""
    torch.manual_seed(0)
    lora = {"r": 16, "alpha": 64, "dropout": 0.1, "target_modules": "all-linear"} if args.lora else None
    source = ModelSource(
        architecture=STUDENT, dtype=args.dtype, lora=lora, gradient_checkpointing=checkpointing
    )
    model = source.load(tokenizer()).to(args.device)
    torch.manual_seed(1)
    return model.train()


@contextmanager
def kept(model: PreTrainedModel) -> Iterator[dict[int, int]]:
    """Collects the bytes of what autograd saves in the block, by storage, without the model's weights."""
    weights, found = {weight.untyped_storage().data_ptr() for weight in model.parameters()}, {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield found


def one_layer(model: PreTrainedModel, hidden: Tensor) -> int:
    """Bytes that one layer keeps if it is computed without checkpointing."""
    layer = model.base_model.layers[0]
    states = hidden.detach().view(1, -1, hidden.shape[-1]).requires_grad_()
    places = torch.arange(states.shape[1], device=states.device).unsqueeze(0)
    layer.gradient_checkpointing = False
    with kept(model) as found:
        layer(states, position_embeddings=model.base_model.rotary_emb(states, places))
    layer.gradient_checkpointing = True
    return sum(found.values())


if __name__ == "__main__":
    main()
