"""Speed of the metrics, as ratios: `python benchmarks/metrics.py`.

Each row compares two ways. They are measured in turn in one process, several times; the table holds medians.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable
from functools import partial

import sacrebleu
from rich.console import Console
from rich.table import Table
from rouge_score.rouge_scorer import RougeScorer

from amid.metrics import distinct_n, rouge_l, self_bleu

WORDS = 60
VOCABULARY = [f"w{i}" for i in range(5000)]
ZIPF = [1 / rank for rank in range(1, len(VOCABULARY) + 1)]


def texts(n: int, rng: random.Random) -> list[str]:
    return [" ".join(rng.choices(VOCABULARY, ZIPF, k=WORDS)) for _ in range(n)]


def in_turn(repeats: int, *ways: Callable[[], float]) -> list[float]:
    """The median seconds of each way, all of them measured once before any is measured again."""
    seconds = [[way() for way in ways] for _ in range(repeats)]
    return [statistics.median(column) for column in zip(*seconds, strict=True)]


def timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], default="cpu", help="ignored: metrics use the CPU"
    )
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each way (default 5)")
    parser.add_argument(
        "--texts", type=int, default=1000, help="texts of Self-BLEU and distinct-n (default 1000)"
    )
    parser.add_argument(
        "--pairs", type=int, default=20000, help="pairs of ROUGE-L over processes (default 20000)"
    )
    parser.add_argument("--sample", type=int, default=5, help="texts that sacrebleu scores (default 5)")
    arguments = parser.parse_args()
    rng, n = random.Random(0), arguments.texts

    def of_fresh_texts(metric: Callable[[list[str]], float], size: int) -> Callable[[], float]:
        def run() -> float:
            fresh = texts(size, rng)  # the tokeniser keeps what it has seen
            return timed(lambda: metric(fresh))

        return run

    def text_by_text() -> float:
        fresh = texts(n, rng)
        chosen = rng.sample(range(n), arguments.sample)

        def calls() -> None:
            for i in chosen:
                sacrebleu.sentence_bleu(fresh[i], fresh[:i] + fresh[i + 1 :])

        return timed(calls) * n / len(chosen)

    few = texts(1000, rng), [[text] for text in texts(1000, rng)]
    many = texts(arguments.pairs, rng), [[text] for text in texts(arguments.pairs, rng)]

    def rouge_score() -> object:
        scorer = RougeScorer(["rougeL"], use_stemmer=True)
        return [scorer.score_multi(answers, text) for text, answers in zip(*few, strict=True)]

    ours_n, ours_10n, theirs = in_turn(
        arguments.repeats, of_fresh_texts(self_bleu, n), of_fresh_texts(self_bleu, 10 * n), text_by_text
    )
    distinct_2 = partial(distinct_n, n=2)
    distinct, distinct_10 = in_turn(
        arguments.repeats, of_fresh_texts(distinct_2, n), of_fresh_texts(distinct_2, 10 * n)
    )
    rouge_1000, theirs_1000 = in_turn(
        arguments.repeats, lambda: timed(lambda: rouge_l(*few)), lambda: timed(rouge_score)
    )
    alone, together = in_turn(
        arguments.repeats,
        lambda: timed(lambda: rouge_l(*many, processes=1)),
        lambda: timed(lambda: rouge_l(*many, processes=2)),
    )
    table = Table(title=f"Texts of {WORDS} words; medians of {arguments.repeats}")
    for column in ("what", "seconds", "against", "seconds", "ratio", "target"):
        table.add_column(column, justify="right" if column in ("seconds", "ratio") else "left")
    for what, seconds, against, other, target in (
        (
            f"sacrebleu text by text, {n:,} texts ({arguments.sample} timed, scaled to all)",
            theirs,
            f"self_bleu, {n:,} texts",
            ours_n,
            "≥ 100",
        ),
        (f"self_bleu, {10 * n:,} texts", ours_10n, f"self_bleu, {n:,} texts", ours_n, "≤ 12"),
        (f"distinct_n, {10 * n:,} texts", distinct_10, f"distinct_n, {n:,} texts", distinct, "≤ 12"),
        ("RougeScorer, 1,000 pairs", theirs_1000, "rouge_l, 1,000 pairs", rouge_1000, ""),
        (f"rouge_l, {arguments.pairs:,} pairs, one process", alone, "two processes", together, ""),
    ):
        table.add_row(what, f"{seconds:.3f}", against, f"{other:.3f}", f"{seconds / other:.2f}", target)
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
