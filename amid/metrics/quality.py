"""Measures how close answers are to their references."""

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import pairwise

from rouge_score.scoring import fmeasure

from amid.metrics.words import ROUGE_SCORE, check_tokenize, words_of

CHARACTERS_OF_A_PROCESS = 5_000_000
"""The characters that one process scores in about a second; another process takes 0.4 s to start."""


def rouge_l(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    tokenize: str = ROUGE_SCORE,
    processes: int | None = None,
) -> list[float]:
    """ROUGE-L of each prediction, best over references: F1 × 100 of the longest common subsequence of words.

        P = LCS / words of the prediction,  R = LCS / words of the reference,  F1 = 2 P R / (P + R)

    Words are lower-cased runs of a-z and 0-9; words of more than three letters are Porter-stemmed. The values
    equal `rouge_score.RougeScorer(["rougeL"], use_stemmer=True)` exactly; the common subsequence is computed
    faster. This tokenisation reads English: letters such as ü are dropped, and text without any a-z or 0-9,
    such as Chinese, has no words and scores 0. With another `tokenize` the words are lower-cased and not
    stemmed, and the values equal `rouge_score` with such a tokenizer.

    Args:
        predictions: one answer for each prompt.
        references: the acceptable answers of each prompt, at least one.
        tokenize: `rouge_score` as published, or a tokeniser of sacrebleu: `intl` for all scripts with spaces
            between words, `zh` for Chinese, `char` for single characters, …
        processes: processes that share the work, with the same result; by default one for each
            `CHARACTERS_OF_A_PROCESS` of predictions and references, up to the number of CPUs, so that all
            but large inputs stay in this one. The others are fresh interpreters that import this module only.

    Returns:
        One score per prediction, from 0 (no common word) to 100 (the same words in the same order).

    Raises:
        ValueError: if the lengths differ, a prediction has no reference or one string in place of a list,
            `tokenize` is unknown, or `processes` is below 1.
        RuntimeError: if one of the processes fails, with its message.

    Reference: Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries".
    """
    check_pairs(predictions, references)
    check_tokenize(tokenize, ROUGE_SCORE)
    if processes is None:
        processes = min(_characters(predictions, references) // CHARACTERS_OF_A_PROCESS, _cpus()) or 1
    if processes < 1:
        raise ValueError(f"processes must be at least 1, got {processes}")
    bounds = [len(predictions) * i // processes for i in range(processes + 1)]
    parts = [slice(*ends) for ends in pairwise(bounds) if ends[0] < ends[1]]
    with ExitStack() as stack:
        others = [
            stack.enter_context(_Other(predictions[part], references[part], tokenize)) for part in parts[1:]
        ]
        scores = [_rouge_l(predictions[part], references[part], tokenize) for part in parts[:1]]
        scores += [other.scores() for other in others]
    return [score for part in scores for score in part]


def _rouge_l(predictions: Sequence[str], references: Sequence[Sequence[str]], tokenize: str) -> list[float]:
    tokenizer = words_of(tokenize)
    scores = []
    for prediction, answers in zip(predictions, references, strict=True):
        words = tokenizer(prediction)
        scores.append(100 * max(_rouge_l_f1(tokenizer(answer), words) for answer in answers))
    return scores


def rouge_n(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    n: int,
    tokenize: str = ROUGE_SCORE,
) -> list[float]:
    """ROUGE-n of each prediction, best over references: F1 × 100 of the n-grams of words in common.

    An n-gram counts as many times as it occurs in both. Words and values equal
    `rouge_score.RougeScorer([f"rouge{n}"], use_stemmer=True)`, see `rouge_l`.

    Args:
        predictions: one answer for each prompt.
        references: the acceptable answers of each prompt, at least one.
        n: words of an n-gram, such as 1 or 2.
        tokenize: as in `rouge_l`.

    Returns:
        One score per prediction, from 0 (no n-gram in common) to 100 (the same ones).

    Raises:
        ValueError: if the lengths differ, a prediction has no reference or one string in place of a list,
            `tokenize` is unknown, or `n` is below 1.
    """
    check_pairs(predictions, references)
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    tokenizer = words_of(tokenize)

    def ngrams(text: str) -> Counter[tuple[str, ...]]:
        words = tokenizer(text)
        return Counter(zip(*(words[i:] for i in range(n)), strict=False))

    def f1(target: Counter[tuple[str, ...]], own: Counter[tuple[str, ...]]) -> float:
        common = (target & own).total()
        value: float = fmeasure(common / max(own.total(), 1), common / max(target.total(), 1))
        return value

    return [
        100 * max(f1(ngrams(answer), ngrams(prediction)) for answer in answers)
        for prediction, answers in zip(predictions, references, strict=True)
    ]


def exact_match(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Whether each prediction equals one of its references, surrounding white space aside: 100 if so, else 0.

    Case and inner white space count. An empty prediction matches an empty reference.

    Args:
        predictions: one answer for each prompt.
        references: the acceptable answers of each prompt, at least one.

    Raises:
        ValueError: as `rouge_l`.
    """
    check_pairs(predictions, references)
    return [
        100.0 if prediction.strip() in {answer.strip() for answer in answers} else 0.0
        for prediction, answers in zip(predictions, references, strict=True)
    ]


def check_pairs(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    """Refuses predictions and references that do not match.

    Raises:
        ValueError: if the lengths differ, or a prediction has no reference or one string in place of a list.
    """
    if isinstance(predictions, str):
        raise ValueError(
            f"predictions must be a list of strings, got the string {predictions!r}; put it in a list"
        )
    if len(predictions) != len(references):
        raise ValueError(
            f"predictions and references must be equally many, got {len(predictions)} and {len(references)}; "
            "give one list of references for each prediction"
        )
    for index, answers in enumerate(references):
        if isinstance(answers, str):
            raise ValueError(
                f"references[{index}] must be a list of strings, got the string {answers!r}; put it in a list"
            )
        if not answers:
            raise ValueError(f"references[{index}] is empty; give at least one reference for each prediction")


def _characters(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> int:
    return sum(map(len, predictions)) + sum(len(answer) for answers in references for answer in answers)


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Other:
    """A process that scores a part of the pairs; it starts at once and ends with the context.

    It is a fresh interpreter rather than one of multiprocessing, which would run the main module again (or
    fork a process that holds torch's threads).
    """

    def __init__(
        self, predictions: Sequence[str], references: Sequence[Sequence[str]], tokenize: str
    ) -> None:
        with tempfile.TemporaryFile("w+") as given:
            json.dump([list(predictions), [list(answers) for answers in references], tokenize], given)
            given.seek(0)
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", "from amid.metrics.quality import _serve; _serve()"],
                stdin=given,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
                text=True,
            )

    def __enter__(self) -> "_Other":
        return self

    def scores(self) -> list[float]:
        """Waits for the scores of its part and returns them."""
        out, err = self._process.communicate()
        if self._process.returncode:
            raise RuntimeError(
                f"a process of rouge_l ended with status {self._process.returncode}: {err.strip()}; "
                "processes=1 does without"
            )
        scores: list[float] = json.loads(out)
        return scores

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()


def _serve() -> None:
    """Runs in another process: reads pairs from standard input, writes their scores to standard output."""
    json.dump(_rouge_l(*json.load(sys.stdin)), sys.stdout)


def _rouge_l_f1(target: list[str], prediction: list[str]) -> float:
    if not target or not prediction:
        return 0.0
    common = _longest_common_subsequence(target, prediction)
    f1: float = fmeasure(common / len(prediction), common / len(target))
    return f1


def _longest_common_subsequence(first: list[str], second: list[str]) -> int:
    """Returns the length of the longest common subsequence, with each row of the table in an integer's bits.

    Bit i of `row` is 0 where the table grows from column i to i + 1 (Hyyrö 2004, "Bit-parallel LCS-length
    computation revisited").
    """
    columns: dict[str, int] = {}
    for index, word in enumerate(first):
        columns[word] = columns.get(word, 0) | 1 << index
    every = (1 << len(first)) - 1
    row = every
    for word in second:
        if matches := row & columns.get(word, 0):
            row = ((row + matches) | (row - matches)) & every
    return len(first) - row.bit_count()
