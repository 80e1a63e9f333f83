"""Padding, time and gradient of a step with padded and with packed rows (`data.packing`).

    python benchmarks/packing.py
    python benchmarks/packing.py --device cuda --attention flash_attention_2 --rows 64

The student has the shape of SmolLM2-135M with 12 layers and random weights. A step is over rows with lengths
as in Dolly, half of each prompt, and the loss is the cross-entropy on the rest, fused. "like lengths"
are rows as a step of `data.mean=step` holds them: neighbours in a sorted part of the data. "random" are rows
as with `data.mean=micro_batch`. Products are bfloat16 by autocast, or with --precision float32 float32. The
gradients' difference is the norm of the difference by the norm of the gradient. Times are medians: seconds of
the clock on a GPU, of the processor on a CPU, where other programs may run too.
"""

import argparse
import random
import statistics
import time

import torch
from activations import STUDENT
from loss import device_name
from torch import Tensor
from transformers import PreTrainedModel

from amid.data.builtin import tokenizer
from amid.data.tokens import MicroBatch, Row, pack, pad
from amid.losses import CrossEntropy
from amid.models.source import ModelSource
from amid.training.counted_loss import CountedLoss
from amid.training.process_memory import keep_freed_memory


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rows", type=int, default=8, help="rows that go through the model at once")
    parser.add_argument("--attention", default="sdpa", help="sdpa, eager, flash_attention_2, ...")
    parser.add_argument("--precision", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(0)
    source = ModelSource(architecture=STUDENT, attention=args.attention)
    student = source.load(tokenizer()).to(args.device).train()
    loss = CountedLoss(student, None, None)
    device = device_name(torch.device(args.device))
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {device}, {args}\n")
    print(f"{'rows':<14}{'padding':>9}{'padded (s)':>12}{'packed (s)':>12}{'ratio':>8}{'gradient':>12}")
    for name in ("like lengths", "random"):
        steps = [rows_of(args.rows, seed, name == "random") for seed in range(args.rounds + 1)]
        batches = [(pad(rows, 0), pack(rows)) for rows in steps]
        found = [[step(args, student, loss, batch) for batch in both] for both in batches]
        padding = 1 - sum(len(b["input_ids"][0]) for _, b in batches) / sum(
            a["input_ids"].numel() for a, _ in batches
        )
        padded, packed = (
            statistics.median(times)
            for times in zip(*[[t for t, _ in both] for both in found[1:]], strict=True)
        )
        (_, first), (_, second) = found[0]
        apart = float((first - second).norm() / first.norm())
        print(f"{name:<14}{padding:>9.1%}{padded:>12.3f}{packed:>12.3f}{padded / packed:>8.2f}{apart:>12.1e}")


def step(
    args: argparse.Namespace, student: PreTrainedModel, loss: CountedLoss, batch: MicroBatch
) -> tuple[float, Tensor]:
    """Seconds of a forward and backward pass, and the gradient of all weights."""
    batch = {name: value.to(args.device) for name, value in batch.items()}
    student.zero_grad()
    clock = time.perf_counter if args.device == "cuda" else time.process_time
    started = clock()
    with torch.autocast(args.device, torch.bfloat16, enabled=args.precision == "bfloat16"):
        value, _ = loss(CrossEntropy(), batch, None)
    value.backward()
    if args.device == "cuda":
        torch.cuda.synchronize()
    seconds = clock() - started
    return seconds, torch.cat([weight.grad.flatten() for weight in student.parameters()])


def rows_of(rows: int, seed: int, in_random_order: bool) -> list[Row]:
    """Rows of a step, with random tokens."""
    rng = random.Random(seed)
    drawn = [rng.lognormvariate(4.7, 0.7) for _ in range(50 * rows)]
    start = rows * rng.randrange(50)
    chosen = (drawn if in_random_order else sorted(drawn))[start : start + rows]
    lengths = [min(max(round(length), 16), 512) for length in chosen]
    return [Row(torch.randint(0, 40_000, (n,)), n // 2, number) for number, n in enumerate(lengths)]


if __name__ == "__main__":
    main()
