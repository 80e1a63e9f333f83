"""How near answers are to their references."""

from collections.abc import Sequence
from functools import cache, lru_cache

from rouge_score.scoring import fmeasure
from rouge_score.tokenizers import DefaultTokenizer


def rouge_l(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """ROUGE-L of each prediction, best over references: F1 × 100 of the longest common subsequence of words.

        P = LCS / words of the prediction,  R = LCS / words of the reference,  F1 = 2 P R / (P + R)

    Words are lower-cased runs of a-z and 0-9, those of more than three letters Porter-stemmed. The values are
    exactly those of `rouge_score.RougeScorer(["rougeL"], use_stemmer=True)`; only the length of the common
    subsequence is computed faster. Text without any a-z or 0-9, such as Chinese, has no words and scores 0.

    Args:
        predictions: one answer for each prompt.
        references: the acceptable answers of each prompt, at least one.

    Returns:
        One score per prediction, from 0 (no common word) to 100 (the same words in the same order).

    Raises:
        ValueError: if the lengths differ, or a prediction has no reference or one string in place of a list.

    Reference: Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries".
    """
    _check_pairs(predictions, references)
    tokenizer = _Words()
    scores = []
    for prediction, answers in zip(predictions, references, strict=True):
        words = tokenizer(prediction)
        scores.append(100 * max(_rouge_l_f1(tokenizer(answer), words) for answer in answers))
    return scores


def exact_match(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Whether each prediction equals one of its references, surrounding white space aside: 100 if so, else 0.

    Case and inner white space count. An empty prediction matches an empty reference.

    Args:
        predictions: one answer for each prompt.
        references: the acceptable answers of each prompt, at least one.

    Raises:
        ValueError: as `rouge_l`.
    """
    _check_pairs(predictions, references)
    return [
        100.0 if prediction.strip() in {answer.strip() for answer in answers} else 0.0
        for prediction, answers in zip(predictions, references, strict=True)
    ]


def _check_pairs(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
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


class _Words:
    """rouge_score's own tokenisation, with each word stemmed once and each recent text split once."""

    def __init__(self) -> None:
        split = DefaultTokenizer(use_stemmer=False).tokenize
        stem = cache(DefaultTokenizer(use_stemmer=True).tokenize)  # of one word: a list of one stem
        self._words = lru_cache(maxsize=4096)(lambda text: [s for word in split(text) for s in stem(word)])

    def __call__(self, text: str) -> list[str]:
        return self._words(text)


def _rouge_l_f1(target: list[str], prediction: list[str]) -> float:
    if not target or not prediction:
        return 0.0
    common = _longest_common_subsequence(target, prediction)
    f1: float = fmeasure(common / len(prediction), common / len(target))
    return f1


def _longest_common_subsequence(first: list[str], second: list[str]) -> int:
    """Length of the longest common subsequence, one row of the table at a time as the bits of an integer.

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
