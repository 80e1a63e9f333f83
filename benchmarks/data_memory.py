"""The memory that a set of many rows takes, until the first hundred steps have their batches.

    python benchmarks/data_memory.py
    python benchmarks/data_memory.py --rows 200000 --tokenizer

It writes JSON Lines with short rows, reads them as a run does, and makes the batches. "peak" is the most
memory that the process had resident until then, with the pages of mapped files; "own" is what it has without
them. Each row takes up to 40 token ids, made without a tokenizer. With --tokenizer, which is slow, the
built-in one makes them.
"""

import argparse
import json
import os
import random
import resource
import tempfile
import time
from pathlib import Path

from amid.data import Example, InstructionData, Template
from amid.data.builtin import TEMPLATE, TEMPLATE_WITH_INPUT, corpus, tokenizer
from amid.data.prompts import Encoded, Encoder

WORDS = (
    "sum",
    "of",
    "two",
    "and",
    "three",
    "numbers",
    "is",
    "cat",
    "house",
    "tree",
    "water",
    "light",
    "small",
)


def main() -> None:
    """Prints a line after each stage."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument(
        "--tokenizer", action="store_true", help="take the token ids of the built-in tokenizer"
    )
    args = parser.parse_args()
    if not args.tokenizer:
        Encoder.example = made_up  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "rows.jsonl")
        write(file, args.rows)
        print(f"{args.rows:,} rows, {file.stat().st_size / 1e6:,.0f} MB")
        measure(file, Path(folder, "cache"))


def measure(file: Path, cache: Path) -> None:
    """Reads the rows as a run does."""
    said("imports")
    data = InstructionData(
        tokenizer=tokenizer(),
        train=str(file),
        valid=corpus("valid", size=8),
        test={},
        template=Template(TEMPLATE, TEMPLATE_WITH_INPUT),
        max_prompt_length=64,
        max_length=128,
        cache_dir=str(cache),
    )
    said("rows", len(data.train_examples))
    said("token ids", len(data.train_tokens.ids))
    data.announce_cuts()
    said("notes")
    for _, batch in zip(range(100), data.train_dataloader(), strict=False):
        data.micro_batches(batch)
    said("batches")


def write(file: Path, rows: int) -> None:
    """Writes rows of 22 words."""
    rng = random.Random(0)
    with file.open("w", encoding="utf-8") as stream:
        for number in range(rows):
            question, answer = (" ".join(rng.choices(WORDS, k=k)) for k in (12, 10))
            row = {"instruction": f"Question {number}: {question}", "output": answer, "category": "a"}
            stream.write(json.dumps(row) + "\n")


def made_up(_: Encoder, example: Example) -> Encoded:
    """Returns token ids that are cheap to make: 10 to 39 of them, each an integer of its own."""
    n = 10 + len(example.outputs[0]) % 30
    return Encoded([300 + len(example.instruction) * i % 4000 for i in range(n)], n // 2, False, False)


def said(stage: str, n: int | None = None) -> None:
    """Prints the memory after a stage."""
    resident, shared = map(int, Path("/proc/self/statm").read_text().split()[1:3])
    own = (resident - shared) * os.sysconf("SC_PAGE_SIZE") / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    shown = "" if n is None else f"{n:,}"
    seconds = time.process_time()
    print(
        f"{stage:<10}{shown:>14}  own {own:>6,.0f} MB  peak {peak:>6,.0f} MB  {seconds:>4.0f} s", flush=True
    )


if __name__ == "__main__":
    main()
