"""Step time, communication and memory of a training on 1 to N processes, with each strategy.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --processes 1 2 --strategies fsdp --rows 8 --tokens 256 --threads 2
    python benchmarks/scaling.py --device cuda --processes 1 2 4 8 --precision bf16-mixed

The student has the shape of the study's student (12 layers of SmolLM2-135M, 71M weights) and random weights.
It is trained by AdamW on the cross-entropy of all tokens, without a teacher. A step has the same rows on any
number of processes. "step" is the median time of the steps after the first, and "exchange" the share of one
further step in which the first process exchanges tensors with others, or waits for them. "memory" is the
peak memory of the process that needs most, "states" the part that weights, gradients and AdamW's states take
after a step: on GPUs the memory of tensors, on a CPU the memory that the process takes beyond its imports.
The threads are shared out among the processes.
"""

import argparse
import itertools
import os
import statistics
import time
from functools import partial
from typing import Any

import lightning as L
import torch
from activations import STUDENT
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR
from torch.profiler import ProfilerActivity, profile

from amid.data import InstructionData
from amid.data.builtin import TEMPLATE, TEMPLATE_WITH_INPUT, corpus, tokenizer
from amid.data.templates import Template
from amid.data.tokens import Row
from amid.distributed import ranks
from amid.distributed.processes import run_in_processes
from amid.losses import CrossEntropy
from amid.models.source import ModelSource
from amid.settings import nodes
from amid.text import DataText
from amid.training.devices import environment, of_trainer, use_threads
from amid.training.module import DistillationModule, Optimisation
from amid.training.process_memory import forget_peak_memory, peak_memory

_HAND_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Makes glibc hand freed tensors back at once, so that a CPU's peak memory is the memory of live tensors."""

EXCHANGES = ("gloo:", "nccl")
"""What the names of exchanges in a profile begin with."""


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--strategies", choices=["ddp", "fsdp"], nargs="+", default=["ddp", "fsdp"])
    parser.add_argument("--rows", type=int, default=8, help="rows of a step, over all processes")
    parser.add_argument("--micro-rows", type=int, default=None, help="rows of a micro-batch")
    parser.add_argument("--tokens", type=int, default=256, help="tokens of a row")
    parser.add_argument("--layers", type=int, default=STUDENT["num_hidden_layers"])
    parser.add_argument("--precision", choices=["32-true", "bf16-mixed"], default="32-true")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of all processes")
    parser.add_argument("--steps", type=int, default=3)
    args = parser.parse_args()
    os.environ |= _HAND_BACK  # to the processes that are started from here
    print(f"torch {torch.__version__}, {args}\n")
    heads = f"{'step (s)':>10}{'exchange':>10}{'states (MB)':>13}{'memory (MB)':>13}"
    print(f"{'processes':<11}{'strategy':<10}{heads}")
    first: dict[str, float] = {}
    for n, strategy in itertools.product(args.processes, args.strategies):
        if n == 1 and strategy != args.strategies[0]:
            continue  # one process has nothing to spread
        found = run_in_processes(n, of_rank, args, n, strategy)
        first = first or found
        states, memory = (found[name] / 1e6 for name in ("states", "memory"))
        print(
            f"{n:<11}{strategy if n > 1 else '-':<10}{found['step']:>10.2f}{found['exchange']:>10.1%}"
            f"{states:>13.0f}{memory:>13.0f}   {found['step'] / first['step']:.2f} of the step, "
            f"{found['memory'] / first['memory']:.2f} of the memory of the first line",
            flush=True,
        )


def of_rank(args: argparse.Namespace, n: int, strategy: str) -> dict[str, float]:
    """Figures of the training on this process, the largest memory of all processes."""
    use_threads(max(1, args.threads // n))
    if n == 1:
        return measured(args, strategy)
    with ranks.together(gpus=args.device == "cuda"):
        figures = ranks.gathered(measured(args, strategy))
    return figures[0] | {name: max(of[name] for of in figures) for name in ("states", "memory")}


def measured(args: argparse.Namespace, strategy: str) -> dict[str, float]:
    """Trains for some steps; returns seconds of a step, the share of exchanges, and bytes."""
    data = InstructionData(
        tokenizer=tokenizer(),
        train=corpus("train", size=args.rows),
        valid=corpus("valid", size=1),
        test={},
        template=Template(TEMPLATE, TEMPLATE_WITH_INPUT),
        batch_size=args.rows,
        micro_batch_size=args.micro_rows,
        valid_metric=None,
    )
    settings = nodes.Trainer(
        max_epochs=-1,
        max_steps=args.steps,
        accelerator=args.device,
        devices=ranks.number(),
        strategy=strategy,
        precision=args.precision,
        log_every_n_steps=10**6,
        check_val_every_n_epoch=1,
    )
    watch = Watch(args)
    trainer = L.Trainer(
        max_epochs=-1,
        accelerator=args.device,
        precision=args.precision,
        callbacks=[watch],
        plugins=[environment()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        **of_trainer(settings),
    )
    device = trainer.strategy.root_device
    forget_peak_memory(device)
    before = 0 if device.type == "cuda" else peak_memory(device)
    trainer.fit(module_of(args, data, strategy), train_dataloaders=Steps(args))
    return {
        "step": statistics.median(watch.seconds[1:-1] or watch.seconds),
        "exchange": watch.exchange,
        "states": watch.states,
        "memory": peak_memory(device) - before,
    }


def module_of(args: argparse.Namespace, data: InstructionData, strategy: str) -> DistillationModule:
    """The student and how it is trained."""
    torch.manual_seed(0)
    architecture = STUDENT | {"num_hidden_layers": args.layers}
    source = ModelSource(architecture=architecture, gradient_checkpointing=args.checkpointing)
    adamw: Any = partial(torch.optim.AdamW, lr=1e-4)
    return DistillationModule(
        student=source.load(tokenizer(), values=strategy == "ddp" or ranks.is_first()),
        teacher=None,
        objective=CrossEntropy(),
        data=data,
        text=DataText(),
        optimisation=Optimisation(adamw, partial(LambdaLR, lr_lambda=lambda step: 1.0), 1.0, args.steps + 1),
        log_every_n_steps=10**6,
    )


class Steps:
    """The rows of each step, random tokens."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args

    def __len__(self) -> int:
        return int(self._args.steps) + 1

    def __iter__(self) -> Any:
        args = self._args
        for step in range(len(self)):
            random = torch.Generator().manual_seed(step)
            ids = torch.randint(0, STUDENT["vocab_size"], (args.rows, args.tokens), generator=random)
            yield [Row(row, 1, number) for number, row in enumerate(ids)]


class Watch(L.Callback):
    """Takes the time of each step, and a profile of the last one."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.seconds: list[float] = []
        self.exchange, self.states, self._last = 0.0, 0.0, args.steps
        gpu = [ProfilerActivity.CUDA] if args.device == "cuda" else []
        self._profile = profile(activities=[ProfilerActivity.CPU, *gpu])

    def on_train_batch_start(self, trainer: L.Trainer, *given: Any) -> None:
        """Begins a step."""
        _wait(trainer)
        if trainer.global_step == self._last:
            self._profile.start()
        self._began = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, *given: Any) -> None:
        """Ends a step."""
        _wait(trainer)
        self.seconds.append(time.perf_counter() - self._began)
        if trainer.global_step > self._last:
            self._profile.stop()
            spans = [
                (event.time_range.start, event.time_range.end)
                for event in self._profile.events()
                if event.name.startswith(EXCHANGES)
            ]
            self.exchange = _covered(spans) / 1e6 / self.seconds[-1]
            self.states = _bytes_of_states(trainer)


def _wait(trainer: L.Trainer) -> None:
    if trainer.strategy.root_device.type == "cuda":
        torch.cuda.synchronize()
    ranks.wait_for_all()


def _covered(spans: list[tuple[float, float]]) -> float:
    """The length of the union of intervals."""
    covered, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        covered += max(0.0, end - max(start, until))
        until = max(until, end)
    return covered


def _bytes_of_states(trainer: L.Trainer) -> float:
    """The bytes of this process's weights, gradients and optimiser states."""
    (optimizer,) = trainer.optimizers
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    states = [value for of in optimizer.state.values() for value in of.values() if torch.is_tensor(value)]
    local = [of.to_local() if isinstance(of, DTensor) else of for of in (*weights, *weights, *states)]
    return float(sum(tensor.nbytes for tensor in local))  # a gradient is as large as its weight


if __name__ == "__main__":
    main()
