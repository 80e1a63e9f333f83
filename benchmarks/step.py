"""Tokens of response a second of a training step, beside the published way.

    python benchmarks/step.py --device cpu
    python benchmarks/step.py --device cuda --rows 32

The published way, that of the authors' scripts and DistiLLM: rows padded to 512 tokens, the teacher run on
every batch, logits of all positions, the textbook loss by autograd, masked afterwards. Our way: rows of
similar lengths, padded to their longest, the fused objective on the counted positions, the teacher live or
with cached states. Both ways run one optimiser step of the same rows. The models have the shapes of
SmolLM2-135M and of 8 of its 30 layers, or of GPT-2 XL and GPT-2 (--pair gpt2), with random weights. Lengths
are drawn as in Dolly (142 tokens a row on average, 70 of them response). The table shows medians over the
rounds.
"""

import argparse
import gc
import random
import statistics
import time
from collections.abc import Callable

import torch
from loss import PUBLISHED, device_name
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from amid.losses import AlphaBeta, AlphaMixture, Objective
from amid.models.counted_states import CountedStates
from amid.training.process_memory import keep_freed_memory

SMOLLM = {
    "model_type": "llama",
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
    "max_position_embeddings": 2048,
}
GPT2 = {"model_type": "gpt2", "vocab_size": 50_257}
PAIRS = {
    "smollm2": (SMOLLM | {"num_hidden_layers": 30}, SMOLLM | {"num_hidden_layers": 8}),
    "gpt2": (
        GPT2 | {"n_embd": 1600, "n_layer": 48, "n_head": 25},
        GPT2 | {"n_embd": 768, "n_layer": 12, "n_head": 12},
    ),
}
Batch = tuple[Tensor, Tensor, Tensor]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--pair", choices=PAIRS, default="smollm2")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    keep_freed_memory()
    device = torch.device(args.device)
    torch.manual_seed(0)
    teacher, student = (
        model(fields, dtype, device)
        for fields, dtype in zip(PAIRS[args.pair], (torch.bfloat16, torch.float32), strict=True)
    )
    teacher.requires_grad_(False).eval()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5)
    objective = Objective(AlphaBeta(), AlphaMixture(-5, 0.1))
    states, teacher_states = CountedStates(student), CountedStates(teacher)
    batches = [like_lengths(args.rows, seed, device) for seed in range(args.rounds)]
    kept = [keep(teacher_states, batch, device) for batch in batches]

    def published(i: int) -> Tensor:
        ids, mask, positions = (pad(x, 512) for x in batches[i])
        logits = student(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()
        with torch.no_grad():
            theirs = teacher(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()
        return (PUBLISHED["αβ, α=-5"](theirs, logits) * positions).sum() / positions.sum()

    def ours(i: int, cached: bool) -> Tensor:
        assert states.head is not None
        assert teacher_states.head is not None
        return objective.fused(
            student_hidden=states.hidden(batches[i][0], batches[i][2]),
            teacher_hidden=kept[i] if cached else keep(teacher_states, batches[i], device),
            **states.head.inputs("student"),
            **teacher_states.head.inputs("teacher"),
        )

    ways: dict[str, Callable[[int], Tensor]] = {
        "published": published,
        "fused, teacher live": lambda i: ours(i, cached=False),
        "fused, teacher's states kept": lambda i: ours(i, cached=True),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for i in range(args.rounds):
        for way, loss in ways.items():
            gc.collect()
            start = time.perf_counter()
            with torch.autocast(device.type, torch.bfloat16):
                value = loss(i)
            value.backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds[way].append(time.perf_counter() - start)
    tokens = [int(positions.sum()) for _, _, positions in batches]
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {device_name(device)}; {args.pair}, "
        f"bfloat16 products, {args.rows} rows, {statistics.mean(tokens):.0f} tokens of response\n"
    )
    print(f"{'step':<32}{'seconds':>9}{'response tokens/s':>20}{'faster':>9}")
    for way, times in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(seconds["published"], times, strict=True))
        rate = statistics.median(n / t for n, t in zip(tokens, times, strict=True))
        print(f"{way:<32}{statistics.median(times):>9.2f}{rate:>20.1f}{ratio:>8.1f}x")


def model(fields: dict[str, object], dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """A model of random weights."""
    network: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields), dtype=dtype)
    return network.to(device)


def like_lengths(rows: int, seed: int, device: torch.device) -> Batch:
    """Ids, attention mask and counted positions of rows of like lengths."""
    rng = random.Random(seed)
    drawn = [rng.lognormvariate(4.7, 0.7) for _ in range(50 * rows)]
    start = rows * rng.randrange(50)
    lengths = [min(max(round(x), 16), 512) for x in sorted(drawn)[start : start + rows]]
    ids = torch.randint(0, 40_000, (rows, max(lengths)), device=device)
    place = torch.arange(max(lengths), device=device)
    ends = torch.tensor(lengths, device=device).unsqueeze(1)
    return ids, (place < ends).long(), (place < ends - 1) & (place >= ends // 2)


def keep(states: CountedStates, batch: Batch, device: torch.device) -> Tensor:
    """The teacher's states at the counted positions."""
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
        return states.hidden(batch[0], batch[2])


def pad(x: Tensor, length: int) -> Tensor:
    """`x` [rows, n] with zeros up to `length`."""
    return torch.nn.functional.pad(x, (0, length - x.shape[1]))


if __name__ == "__main__":
    main()
