"""The same distillation step with amid's loss and with the losses of other libraries, timed in turn.

    pip install trl liger-kernel orda-kernel  # liger-kernel needs triton's package, and no GPU
    python benchmarks/peers.py
    python benchmarks/peers.py --device cuda --tokens 8192 --layers 30 30 --rounds 5

A peer that is not installed is left out, with a line. First, values and gradients must agree for KL(p ‖ q)
and JSD: with a peer that computes another objective the script ends. Then it times, in turn in one process:

- the loss: value and gradients from hidden states and heads, at the positions that count;
- a step: teacher and student forward, loss, backward, clipping, AdamW. Every way takes the same batch. amid,
  liger-kernel and orda-kernel compute the logits of the positions that count. So does TRL on a GPU; on a CPU
  it computes the logits of all positions from the first that counts;
- an on-policy step: the student answers, then the step on its answers. amid draws the answers; the peers have
  transformers' `generate`, which TRL's trainer calls without vLLM.

The models have the shape of SmolLM2-135M with fewer layers and random weights. The table shows medians, and
medians of the ratios to amid in each round. On a CPU, seconds are of the processor: others may use it too.
"""

import argparse
import importlib
import random
import statistics
import sys
import time
from collections.abc import Callable

import torch
from loss import device_name, make_inputs
from step import SMOLLM, Batch, like_lengths, model
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from amid.data.builtin import tokenizer
from amid.generation.sampling import Sampling
from amid.losses import KL, JensenShannon, Objective
from amid.models.counted_states import CountedStates
from amid.training.process_memory import keep_freed_memory

Loss = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""From the student's hidden states and head, the teacher's, and a mask of positions, to the mean."""

OBJECTIVES = {"KL(p ‖ q)": 0.0, "JSD": 0.5}
"""The objectives, each with its β in the generalised JSD of TRL and Liger."""

TOKENS = tokenizer()


def main() -> None:
    """Prints the tables."""
    args = arguments()
    keep_freed_memory()
    device = torch.device(args.device)
    torch.manual_seed(0)
    found = {"amid": amid, **peers()}
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {device_name(device)}; float32, the "
        f"width and vocabulary of SmolLM2, {args.layers[0]} and {args.layers[1]} layers, {args.rows} rows, "
        f"{args.rounds} rounds"
    )
    for name, beta in OBJECTIVES.items():
        losses = {peer: make(beta) for peer, make in found.items()}
        check(name, losses, device)
        inputs = make_inputs(args.tokens, SMOLLM["vocab_size"], 576, 576, device=device, dtype=torch.float32)
        show(
            f"{name}: loss of {args.tokens} positions, half count", alone(losses, inputs, args.rounds, device)
        )
    step = Step(args, device)
    losses = {peer: make(OBJECTIVES["JSD"]) for peer, make in found.items()}
    show("JSD: a step", timed({p: lambda i, p=p: step(losses[p], p, i) for p in losses}, args.rounds, device))
    on_policy = {p: lambda i, p=p: step(losses[p], p, i, on_policy=True) for p in losses}
    show("JSD: an on-policy step", timed(on_policy, args.rounds, device))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--tokens", type=int, default=1024, help="positions of the loss, of which half count")
    parser.add_argument("--layers", type=int, nargs=2, default=(6, 3), help="of teacher and student")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def peers() -> dict[str, Callable[[float], Loss]]:
    """The peers that are installed; prints a line for each other one."""
    made: dict[str, Callable[[float], Loss]] = {}
    for name, module, make in (
        ("TRL", "trl.trainer.distillation_trainer", trl),
        ("Liger", "liger_kernel.chunked_loss", liger),
        ("orda-kernel", "orda_kernel", orda),
    ):
        try:
            importlib.import_module(module)
        except ImportError as error:
            print(f"{name} is left out: {error}")
        else:
            made[name] = make
    return made


def amid(beta: float) -> Loss:
    objective = Objective(JensenShannon(beta) if beta else KL())

    def loss(student: Tensor, weight: Tensor, teacher: Tensor, head: Tensor, mask: Tensor) -> Tensor:
        return objective.fused(
            student_hidden=student,
            teacher_hidden=teacher,
            student_weight=weight,
            teacher_weight=head,
            mask=mask,
        )

    return loss


def trl(beta: float) -> Loss:
    """The loss of TRL's DistillationTrainer."""
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    def loss(student: Tensor, weight: Tensor, teacher: Tensor, head: Tensor, mask: Tensor) -> Tensor:
        value: Tensor = _chunked_divergence_loss(student, teacher, weight, head, mask, beta)[0]
        return value

    return loss


def liger(beta: float) -> Loss:
    """Liger's chunked JSD, not compiled, as amid's loss here."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    made = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=beta, compiled=False)

    def loss(student: Tensor, weight: Tensor, teacher: Tensor, head: Tensor, mask: Tensor) -> Tensor:
        student, teacher = student[mask], teacher[mask]
        value: Tensor = made(
            student, weight, teacher, head, torch.zeros(len(student), dtype=torch.long, device=mask.device)
        )
        return value

    return loss


def orda(beta: float) -> Loss:
    """orda-kernel's loss; on a CPU it takes the logits of all positions that it is given."""
    from orda_kernel import SeparateTeacher, distillation_loss

    given = {"kl_divergence": "skew_js", "kl_beta": beta} if beta else {"kl_divergence": "forward"}

    def loss(student: Tensor, weight: Tensor, teacher: Tensor, head: Tensor, mask: Tensor) -> Tensor:
        labels = torch.zeros(int(mask.sum()), dtype=torch.long, device=mask.device)
        held = SeparateTeacher(hidden=teacher[mask], weight=head)
        value: Tensor = distillation_loss(
            student[mask], weight, labels, held, student_ce_weight=0.0, kl_weight=1.0, **given
        ).loss
        return value

    return loss


def check(name: str, losses: dict[str, Loss], device: torch.device) -> None:
    """Ends the script if values or gradients differ from amid's by more than rounding."""
    inputs = make_inputs(64, 2000, 48, 32, device=device, dtype=torch.float32)
    found = {}
    for peer, loss in losses.items():
        value = called(loss, inputs)
        value.backward()
        gradients = [inputs[part].grad for part in ("student_hidden", "student_weight")]
        found[peer] = (value.detach(), *gradients)
        for tensor in inputs.values():
            tensor.grad = None
    for peer, parts in found.items():
        apart = [float((a - b).norm() / b.norm()) for a, b in zip(parts, found["amid"], strict=True)]
        if max(apart) > 1e-4:
            sys.exit(f"{name}: {peer} computes another objective: value and gradients are {apart} apart")
    print(f"{name}: values and gradients of {', '.join(found)} agree")


def called(loss: Loss, inputs: dict[str, Tensor]) -> Tensor:
    """The loss of inputs as `make_inputs` returns them."""
    parts = ("student_hidden", "student_weight", "teacher_hidden", "teacher_weight", "mask")
    return loss(*(inputs[part] for part in parts))


def alone(
    losses: dict[str, Loss], inputs: dict[str, Tensor], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    def run(loss: Loss) -> None:
        called(loss, inputs).backward()
        for tensor in inputs.values():
            tensor.grad = None

    return timed({peer: lambda i, loss=loss: run(loss) for peer, loss in losses.items()}, rounds, device)


class Step:
    """A training step of random models, with the loss of any library."""

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        teacher, student = (
            model(SMOLLM | {"num_hidden_layers": layers}, torch.float32, device) for layers in args.layers
        )
        self.teacher, self.student = teacher.requires_grad_(False).eval(), student
        self.states = {"student": CountedStates(student), "teacher": CountedStates(teacher)}
        self.optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5)
        self.batches = [like_lengths(args.rows, seed, device) for seed in range(args.rounds + 1)]

    def __call__(self, loss: Loss, peer: str, i: int, on_policy: bool = False) -> None:
        batch = self.batches[i]
        if on_policy:
            batch = self.answered(batch, i, by_amid=peer == "amid")
        hidden = self.whole if peer == "TRL" else self.counted
        student, teacher, mask = hidden(batch)
        heads = [model.get_output_embeddings().weight for model in (self.student, self.teacher)]
        loss(student, heads[0], teacher, heads[1], mask).backward()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def counted(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The hidden states of both models at the positions that count."""
        student = self.states["student"].hidden(batch[0], batch[2])
        with torch.no_grad():
            teacher = self.states["teacher"].hidden(batch[0], batch[2])
        return student, teacher, torch.ones(len(student), dtype=torch.bool, device=student.device)

    def whole(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The hidden states of both models from the first position that counts, as in TRL's trainer."""
        ids, mask, positions = batch
        first = int(positions.any(0).nonzero()[0])
        student = self.student.base_model(ids, mask, use_cache=False).last_hidden_state[:, first:]
        with torch.no_grad():
            teacher = self.teacher.base_model(ids, mask, use_cache=False).last_hidden_state[:, first:]
        return student, teacher, positions[:, first:]

    def answered(self, batch: Batch, seed: int, by_amid: bool) -> Batch:
        """The prompts of a batch with answers of the student, up to 32 tokens each."""
        ids, _, positions = batch
        prompts = [
            row[: int(place.nonzero()[0]) + 1].tolist() for row, place in zip(ids, positions, strict=True)
        ]
        if by_amid:
            drawn = Sampling(32, [seed]).token_ids(
                self.student, TOKENS, prompts, seed, vocabulary=SMOLLM["vocab_size"]
            )
            answers = [answer for (answer,) in drawn]
        else:
            answers = generated(self.student, prompts, seed)
        rows = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
        place = torch.arange(max(map(len, rows)), device=ids.device)
        ends = torch.tensor([len(row) for row in rows], device=ids.device).unsqueeze(1)
        starts = torch.tensor([len(prompt) for prompt in prompts], device=ids.device).unsqueeze(1)
        padded = torch.tensor([row + [0] * (len(place) - len(row)) for row in rows], device=ids.device)
        return padded, (place < ends).long(), (place < ends - 1) & (place >= starts - 1)


def generated(student: PreTrainedModel, prompts: list[list[int]], seed: int) -> list[list[int]]:
    """Answers by transformers' `generate`."""
    torch.manual_seed(seed)
    end, pad = TOKENS.eos_token_id, TOKENS.pad_token_id
    given = GenerationConfig(max_new_tokens=32, do_sample=True, top_k=0, eos_token_id=end, pad_token_id=pad)
    batch = TOKENS.pad({"input_ids": prompts}, return_tensors="pt", padding_side="left").to(student.device)
    with torch.no_grad():
        found = student.generate(**batch, generation_config=given)[:, batch["input_ids"].shape[1] :].tolist()
    return [row[: row.index(end) + 1] if end in row else row for row in found]


def timed(
    ways: dict[str, Callable[[int], object]], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """The seconds of each way in each round, in a new order each round; a first round is not timed."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    for i in range(rounds + 1):
        order = list(ways)
        random.Random(i).shuffle(order)
        for way in order:
            begin = clock()
            ways[way](i)
            if device.type == "cuda":
                torch.cuda.synchronize()
            if i:
                seconds[way].append(clock() - begin)
    return seconds


def show(title: str, seconds: dict[str, list[float]]) -> None:
    print(f"\n{title}\n{'':<14}{'seconds':>9}{'times amid':>12}")
    for peer, times in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(times, seconds["amid"], strict=True))
        print(f"{peer:<14}{statistics.median(times):>9.3f}{ratio:>12.2f}", flush=True)


if __name__ == "__main__":
    main()
