"""Time and memory of the fused loss, beside the published computation and the bare matrix products.

    python benchmarks/loss.py --device cpu [--compiled]
    python benchmarks/loss.py --device cuda --dtype bfloat16 --vocab 151936 --tokens 8192

All are measured in turn in one process, in several rounds; the table shows medians of their ratios. The
published computation takes the logits of all positions, differentiates the textbook formulas by autograd, and
masks half of the positions afterwards, as the scripts of the authors and of DistiLLM do. The bare products
are the products that the counted positions need: two heads forward, two products back, in place. Memory is
the memory of a call beyond its inputs and the gradients that it returns. On a CPU it is resident memory, and
only its first row is valid, before the allocator holds anything.
"""

import argparse
import gc
import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from amid.losses import KL, AlphaBeta, AlphaMixture, JensenShannon, Objective
from amid.training.process_memory import keep_freed_memory

Inputs = dict[str, Tensor]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--vocab", type=int, default=50_257)
    parser.add_argument("--tokens", type=int, default=2048, help="positions, of which half count")
    parser.add_argument("--widths", type=int, nargs=2, default=(1600, 768), help="of teacher and student")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compiled", action="store_true", help="the fused losses through torch.compile")
    parser.add_argument("--skip-published", action="store_true", help="leave out what needs most memory")
    args = parser.parse_args()
    keep_freed_memory()
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    torch.manual_seed(0)
    inputs = make_inputs(args.tokens, args.vocab, *args.widths, device=device, dtype=dtype)
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {device_name(device)}; {args.dtype}, "
        f"V = {args.vocab:,}, widths {args.widths[0]}/{args.widths[1]}, {args.tokens} positions, half count\n"
    )
    cases = {
        "αβ, α=-5": (AlphaBeta(), AlphaMixture(-5, 0.1)),
        "αβ, α=0": (AlphaBeta(), AlphaMixture(0, 0.1)),
        "KL, α=-5": (KL(), AlphaMixture(-5, 0.1)),
        "KL, α=1": (KL(), AlphaMixture(1, 0.1)),
        "JSD": (JensenShannon(), None),
    }
    head = f"{'loss':<10}{'products':>10}{'fused':>9}{'ratio':>8}{'published':>11}{'faster':>8}{'memory':>18}"
    print(head + f"{'liger':>9}{'faster':>8}")
    for name, (divergence, assistant) in cases.items():
        objective = Objective(divergence, assistant, compiled=args.compiled)
        runs: dict[str, Callable[[], object]] = {
            "products": lambda: bare_products(inputs),
            "fused": lambda objective=objective: backward(objective.fused, inputs),
        }
        if not args.skip_published:
            formula = PUBLISHED[name]
            runs["published"] = lambda formula=formula: published(formula, inputs)
        if name == "JSD" and (liger := liger_jsd(args.compiled)) is not None:
            runs["liger"] = lambda: liger(inputs)
        bare_products(inputs)
        backward(objective.fused, inputs)
        clear(inputs)
        seconds: dict[str, list[float]] = {run: [] for run in runs}
        memory: dict[str, int] = {}
        for _ in range(args.rounds):
            for run, function in runs.items():
                took, peak = measured(function, device)
                seconds[run].append(took)
                returned = sum(x.grad.nbytes for x in inputs.values() if x.grad is not None)
                memory[run] = max(memory.get(run, 0), peak - returned)
                clear(inputs)
        show(name, seconds, memory)


def show(name: str, seconds: Mapping[str, list[float]], memory: Mapping[str, int]) -> None:
    """Prints one row."""
    fused = seconds["fused"]
    median = {run: statistics.median(times) for run, times in seconds.items()}
    ratio = {
        run: statistics.median(a / b for a, b in zip(times, fused, strict=True))
        for run, times in seconds.items()
    }
    row = f"{name:<10}{duration(median['products']):>10}{duration(median['fused']):>9}"
    row += f"{1 / ratio['products']:>8.2f}"
    if "published" in seconds:
        row += f"{duration(median['published']):>11}{ratio['published']:>7.1f}x"
        row += f"{memory['fused'] / 2**20:>7.0f}/{memory['published'] / 2**20:.0f} MiB"
    if "liger" in seconds:
        row += f"{duration(median['liger']):>9}{ratio['liger']:>7.1f}x"
    print(row, flush=True)


def duration(seconds: float) -> str:
    """Such as 2.85s, or 4.7ms."""
    return f"{seconds:.2f}s" if seconds >= 0.1 else f"{1e3 * seconds:.1f}ms"


def make_inputs(
    tokens: int, n_vocab: int, teacher: int, student: int, device: torch.device, dtype: torch.dtype
) -> Inputs:
    """Hidden states and heads whose logits have a spread like a language model's, and the mask."""
    hidden = {
        "student_hidden": torch.randn(tokens, student, device=device, dtype=dtype),
        "teacher_hidden": torch.randn(tokens, teacher, device=device, dtype=dtype),
    }
    weights = {
        "student_weight": torch.randn(n_vocab, student, device=device, dtype=dtype) * (3 / student**0.5),
        "teacher_weight": torch.randn(n_vocab, teacher, device=device, dtype=dtype) * (3 / teacher**0.5),
    }
    for name in ("student_hidden", "student_weight"):
        (hidden | weights)[name].requires_grad_()
    return hidden | weights | {"mask": torch.arange(tokens, device=device) % 2 == 0}


def backward(fused: Callable[..., Tensor], inputs: Inputs) -> None:
    """The fused loss and its gradients."""
    clear(inputs)
    fused(**inputs).backward()


def bare_products(inputs: Inputs) -> None:
    """The four products of the counted positions in chunks of 512, written in place."""
    with torch.no_grad():
        mask, n = inputs["mask"], 512
        student, teacher = inputs["student_hidden"][mask], inputs["teacher_hidden"][mask]
        weight, teacher_weight = inputs["student_weight"], inputs["teacher_weight"]
        out = student.new_empty(n, len(weight))
        teacher_out = out.new_empty(n, len(teacher_weight))
        grad_hidden, grad_weight = torch.empty_like(student), torch.zeros_like(weight)
        for start in range(0, len(student), n):
            chunk = slice(start, start + n)
            logits = torch.mm(student[chunk], weight.t(), out=out[: len(student[chunk])])
            torch.mm(teacher[chunk], teacher_weight.t(), out=teacher_out[: len(student[chunk])])
            torch.mm(logits, weight, out=grad_hidden[chunk])
            grad_weight.addmm_(logits.t(), student[chunk])


def published(formula: Callable[[Tensor, Tensor], Tensor], inputs: Inputs) -> None:
    """All positions' logits, the textbook formula, the mask, and autograd."""
    clear(inputs)
    student = (inputs["student_hidden"] @ inputs["student_weight"].t()).float()
    with torch.no_grad():
        teacher = (inputs["teacher_hidden"] @ inputs["teacher_weight"].t()).float()
    per_token = formula(teacher, student)
    mask = inputs["mask"]
    ((per_token * mask).sum() / mask.sum()).backward()


def mixture(p: Tensor, q: Tensor, alpha: float, lam: float = 0.1) -> Tensor:
    """The normalised α-mixture from probabilities."""
    if alpha == 1:
        r = p**lam * q ** (1 - lam)
    else:
        s = (1 - alpha) / 2
        r = (lam * p**s + (1 - lam) * q**s) ** (1 / s)
    return r / r.sum(-1, keepdim=True)


def alpha_beta(alpha: float) -> Callable[[Tensor, Tensor], Tensor]:
    """αβ(p ‖ r), A = 0.2 and B = 0.7."""

    def loss(teacher: Tensor, student: Tensor) -> Tensor:
        p, q = teacher.softmax(-1), student.softmax(-1)
        r = mixture(p, q, alpha)
        terms = p**0.2 * r**0.7 - 0.2 / 0.9 * p**0.9 - 0.7 / 0.9 * r**0.9
        return -terms.sum(-1) / (0.2 * 0.7)

    return loss


def kl(alpha: float) -> Callable[[Tensor, Tensor], Tensor]:
    """KL(p ‖ r) without the entropy of p, which has no gradient."""

    def loss(teacher: Tensor, student: Tensor) -> Tensor:
        p = teacher.softmax(-1)
        if alpha == 1:
            mixed = 0.1 * teacher.log_softmax(-1) + 0.9 * student.log_softmax(-1)
            return -(p * mixed.log_softmax(-1)).sum(-1)
        return -(p * mixture(p, student.softmax(-1), alpha).clamp(min=1e-30).log()).sum(-1)

    return loss


def jensen_shannon(teacher: Tensor, student: Tensor) -> Tensor:
    """½ KL(p ‖ m) + ½ KL(q ‖ m)."""
    log_p, log_q = teacher.log_softmax(-1), student.log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    log_m = ((p + q) / 2).log()
    return 0.5 * (p * (log_p - log_m)).sum(-1) + 0.5 * (q * (log_q - log_m)).sum(-1)


PUBLISHED = {
    "αβ, α=-5": alpha_beta(-5),
    "αβ, α=0": alpha_beta(0),
    "KL, α=-5": kl(-5),
    "KL, α=1": kl(1),
    "JSD": jensen_shannon,
}


def liger_jsd(compiled: bool) -> Callable[[Inputs], None] | None:
    """liger-kernel's chunked JSD on the counted positions; None where it is not installed."""
    try:
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss
    except ImportError:
        return None

    def run(inputs: Inputs) -> None:
        clear(inputs)
        mask = inputs["mask"]
        labels = torch.zeros(int(mask.sum()), dtype=torch.long, device=mask.device)
        loss = LigerFusedLinearJSDLoss(
            weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.5, compiled=compiled
        )
        loss(
            inputs["student_hidden"][mask],
            inputs["student_weight"],
            inputs["teacher_hidden"][mask],
            inputs["teacher_weight"],
            labels,
        ).backward()

    return run


def clear(inputs: Inputs) -> None:
    """Forgets the gradients."""
    for tensor in inputs.values():
        tensor.grad = None


def measured(function: Callable[[], object], device: torch.device) -> tuple[float, int]:
    """Seconds of a call, and the most memory that it took beyond what was taken before, in bytes."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        torch.cuda.synchronize()
        return time.perf_counter() - start, torch.cuda.max_memory_allocated() - before
    with ResidentPeak() as peak:
        start = time.perf_counter()
        function()
        seconds = time.perf_counter() - start
    return seconds, peak.bytes


class ResidentPeak:
    """The most resident memory of this process within the context, beyond that at its start (Linux)."""

    def __enter__(self) -> "ResidentPeak":
        self._start = self._resident()
        self._peak, self._done = self._start, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    @property
    def bytes(self) -> int:
        """The peak."""
        return self._peak - self._start

    def _watch(self) -> None:
        while not self._done.wait(0.01):
            self._peak = max(self._peak, self._resident())

    @staticmethod
    def _resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def device_name(device: torch.device) -> str:
    """What the figures were measured on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return "CPU"


if __name__ == "__main__":
    sys.exit(main())
