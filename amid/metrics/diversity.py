"""Measures how much answers resemble each other, and how much they repeat themselves."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from math import exp, log, nan
from statistics import fmean
from typing import Literal

from amid.metrics.quality import check_pairs
from amid.metrics.words import check_tokenize, sacrebleu_tokenizer

Smoothing = Literal["none", "floor", "add-k", "exp", "method1"]
"""The smoothing of n-gram orders without a match: sacrebleu's, or `method1` of NLTK, as in Texygen."""

MAX_NGRAM_ORDER = 4
"""sacrebleu's longest n-grams."""

METHOD1 = "method1"
_EPSILON = 0.1
"""The number of matches that `method1` counts for an order without any."""


def self_bleu(
    texts: Sequence[str],
    *,
    smooth_method: Smoothing = "exp",
    smooth_value: float | None = None,
    tokenize: str = "13a",
    order: int = MAX_NGRAM_ORDER,
) -> float:
    """Computes Self-BLEU: the mean over texts of the BLEU of each text with all other texts as references.

        mean over i of  sentence_bleu(texts[i], texts without the i-th)

    The BLEU is `sacrebleu.sentence_bleu`: n-grams up to 4, effective order (orders longer than the text are
    left out), and by default exponential smoothing and the 13a tokeniser. The result equals calling it text
    by text, in time linear in the number of words: counts are clipped at the largest count among the other
    texts, and the two largest counts over all texts give this.

    Texygen's Self-BLEU-n is `smooth_method="method1", order=n`: the `sentence_bleu` of NLTK with equal
    weights and `SmoothingFunction().method1`. An order without a match counts as 0.1 matches, no order is
    left out, and a text too short for an order has one n-gram of it. For text in tokens, as Texygen takes
    it, add `tokenize="none"`.

    Args:
        texts: at least two. A text without words scores 0 and is never matched, but its length counts.
        smooth_method: `none`, `floor`, `add-k` or `exp`, as sacrebleu defines them, or `method1`.
        smooth_value: the value of `floor` (default 0.1), `add-k` (default 1) and `method1` (default 0.1).
        tokenize: a tokeniser of sacrebleu, such as `zh` or `char` for text without spaces between words.
        order: words of the longest n-grams, at least 1.

    Returns:
        From 0 (no word is shared) to 100 (all texts are equal). Lower is more diverse.

    Raises:
        ValueError: for fewer than two texts, a single string, an unknown `smooth_method` or `tokenize`, or an
            `order` below 1.

    Reference: Zhu et al. 2018, "Texygen: A Benchmarking Platform for Text Generation Models".
    """
    if isinstance(texts, str) or len(texts) < 2:
        got = f"the string {texts!r}" if isinstance(texts, str) else f"{len(texts)}"
        raise ValueError(f"self_bleu compares texts with each other and needs at least 2, got {got}")
    from sacrebleu.metrics.bleu import BLEU  # a report reads scores without it

    if smooth_method not in (*BLEU.SMOOTH_DEFAULTS, METHOD1):
        known = ", ".join([*BLEU.SMOOTH_DEFAULTS, METHOD1])
        raise ValueError(f"smooth_method must be one of {known}, got {smooth_method!r}")
    check_tokenize(tokenize)
    if order < 1:
        raise ValueError(f"order must be at least 1, got {order}")

    tokenizer = sacrebleu_tokenizer(tokenize)
    words = [tuple(tokenizer(text.rstrip()).split()) for text in texts]
    correct = [_shared_ngrams(words, n) for n in range(1, order + 1)]
    lengths = sorted(map(len, words))
    return fmean(
        _bleu(shared, own, _closest_other(own, lengths), smooth_method, smooth_value)
        for own, shared in zip(map(len, words), zip(*correct, strict=True), strict=True)
    )


@lru_cache(maxsize=65536)
def _bleu(
    correct: tuple[int, ...], own: int, nearest: int, smooth_method: Smoothing, smooth_value: float | None
) -> float:
    """Computes BLEU × 100 of a text of `own` words; `correct` counts its n-grams in the others, by order."""
    total = [max(own - n, 0) for n in range(len(correct))]
    if smooth_method == METHOD1:
        return _by_method1(correct, total, own, nearest, _EPSILON if smooth_value is None else smooth_value)
    from sacrebleu.metrics.bleu import BLEU

    bleu = BLEU.compute_bleu(
        correct=list(correct),
        total=total,
        sys_len=own,
        ref_len=nearest,
        smooth_method=smooth_method,
        smooth_value=smooth_value,
        effective_order=True,
        max_ngram_order=len(correct),
    )
    return float(bleu.score)


def _by_method1(
    correct: Sequence[int], total: Sequence[int], own: int, nearest: int, epsilon: float
) -> float:
    """Computes BLEU × 100 as NLTK does with `SmoothingFunction().method1` and equal weights."""
    if not correct[0]:
        return 0.0
    precisions = [(found or epsilon) / max(of, 1) for found, of in zip(correct, total, strict=True)]
    brevity = 1.0 if own > nearest else exp(1 - nearest / own)
    return 100 * brevity * (exp(fmean(map(log, precisions))) if min(precisions) > 0 else 0.0)


def self_bleu_per_prompt(
    samples: Sequence[Sequence[str]],
    *,
    smooth_method: Smoothing = "exp",
    smooth_value: float | None = None,
    tokenize: str = "13a",
    order: int = MAX_NGRAM_ORDER,
) -> float:
    """Computes the mean over prompts of the Self-BLEU among the samples of one prompt (`self_bleus`).

    Unlike `self_bleu` over all answers, it does not reward that different prompts need different answers.

    Args:
        samples: for each prompt, at least two sampled answers.
        smooth_method: as in `self_bleu`.
        smooth_value: as in `self_bleu`.
        tokenize: as in `self_bleu`.
        order: as in `self_bleu`.

    Returns:
        From 0 to 100. Lower is more diverse.

    Raises:
        ValueError: without any prompt, and as `self_bleu`, naming the prompt.
    """
    if not samples:
        raise ValueError("self_bleu_per_prompt needs the samples of at least one prompt, got none")
    return fmean(
        self_bleus(
            samples, smooth_method=smooth_method, smooth_value=smooth_value, tokenize=tokenize, order=order
        )
    )


def self_bleus(
    samples: Sequence[Sequence[str]],
    *,
    smooth_method: Smoothing = "exp",
    smooth_value: float | None = None,
    tokenize: str = "13a",
    order: int = MAX_NGRAM_ORDER,
) -> list[float]:
    """Computes the Self-BLEU among the samples of each prompt.

    Args:
        samples: for each prompt, at least two sampled answers.
        smooth_method: as in `self_bleu`.
        smooth_value: as in `self_bleu`.
        tokenize: as in `self_bleu`.
        order: as in `self_bleu`.

    Returns:
        One value for each prompt, from 0 to 100. Lower is more diverse.

    Raises:
        ValueError: as `self_bleu`, naming the prompt.
    """
    scores = []
    for index, texts in enumerate(samples):
        try:
            scores.append(
                self_bleu(
                    texts,
                    smooth_method=smooth_method,
                    smooth_value=smooth_value,
                    tokenize=tokenize,
                    order=order,
                )
            )
        except ValueError as error:
            raise ValueError(f"samples[{index}]: {error}") from None
    return scores


def distinct_n(texts: Sequence[str], *, n: int, tokenize: str = "13a") -> float:
    """Computes distinct-n: the share of different n-grams among the n-grams of all texts, × 100.

        100 · different n-grams of the texts / n-grams of the texts

    It falls with the number and the length of the texts, so compare equal numbers of texts of similar length.

    Args:
        texts: at least one.
        n: words of an n-gram, at least 1.
        tokenize: as in `self_bleu`.

    Returns:
        From near 0 (one n-gram again and again) to 100 (none twice). Higher is more diverse. NaN where no
        text has n words.

    Raises:
        ValueError: for no texts, a single string, n below 1, or an unknown `tokenize`.

    Reference: Li et al. 2016, "A Diversity-Promoting Objective Function for Neural Conversation Models".
    """
    counts = Counter(chain.from_iterable(_ngrams("distinct_n", texts, n, tokenize)))
    return 100 * len(counts) / counts.total() if counts else nan


def repetition(texts: Sequence[str], *, n: int = 4, tokenize: str = "13a") -> list[float]:
    """Computes rep-n: the share of each text's n-grams that occurred earlier in the text, × 100.

        100 · (1 - different n-grams of the text / n-grams of the text)

    Args:
        texts: at least one.
        n: words of an n-gram, at least 1.
        tokenize: as in `self_bleu`.

    Returns:
        One value per text, from 0 (no n-gram twice, or too short for one) to near 100. Lower is better.

    Raises:
        ValueError: as `distinct_n`.

    Reference: Welleck et al. 2020, "Neural Text Generation With Unlikelihood Training" (seq-rep-n).
    """
    rows = _ngrams("repetition", texts, n, tokenize)
    return [100 * (1 - len(set(ngrams)) / len(ngrams)) if ngrams else 0.0 for ngrams in rows]


def overlong(
    predictions: Sequence[str], references: Sequence[Sequence[str]], *, times: float = 2.0
) -> list[float]:
    """Returns 100 for each prediction with over `times` as many words as its longest reference, else 0.

    White space separates words.

    Args:
        predictions: one answer for each prompt.
        references: the acceptable answers of each prompt, at least one.
        times: at least 1.

    Raises:
        ValueError: if the lengths differ, a prediction has no reference or one string in place of a list, or
            `times` is below 1.
    """
    check_pairs(predictions, references)
    if not times >= 1:
        raise ValueError(f"times must be at least 1, got {times}")
    return [
        100.0 * (len(prediction.split()) > times * max(len(answer.split()) for answer in answers))
        for prediction, answers in zip(predictions, references, strict=True)
    ]


def _ngrams(caller: str, texts: Sequence[str], n: int, tokenize: str) -> list[list[str]]:
    if isinstance(texts, str) or not texts:
        raise ValueError(f"{caller} needs a list of at least one text, got {texts!r}")
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    check_tokenize(tokenize)
    tokenizer = sacrebleu_tokenizer(tokenize)
    rows = [tokenizer(text.rstrip()).split() for text in texts]
    return [[" ".join(words[i : i + n]) for i in range(len(words) - n + 1)] for words in rows]


def _shared_ngrams(texts: Sequence[Sequence[str]], order: int) -> list[int]:
    """Counts for each text, a list of words, its n-grams of one order that other texts share.

    The count of an n-gram is at most its largest count in another text. Nearly all n-grams occur once in a
    text. For these, only the presence in another text matters, so the Python loops visit repeated n-grams
    alone. N-grams are strings, because millions of tuples would slow down the garbage collector.
    """
    ngrams = [tuple(map(" ".join, zip(*(words[i:] for i in range(order)), strict=False))) for words in texts]
    seen: set[str] = set()
    shared: set[str] = set()
    repeated: list[dict[str, int]] = []
    for every in ngrams:
        own = set(every)
        shared |= seen & own
        seen |= own
        again = Counter(every) if len(own) < len(every) else {}
        repeated.append({ngram: n for ngram, n in again.items() if n > 1})
    # The two largest counts of each n-gram over the texts; they are equal if two texts tie.
    top: dict[str, tuple[int, int]] = {}
    for ngram, n in chain.from_iterable(again.items() for again in repeated):
        first, second = top.get(ngram, (1, 1))
        top[ngram] = (max(first, n), max(second, min(first, n)))
    return [
        sum(map(shared.__contains__, every))
        - sum(n - min(n, top[ngram][n == top[ngram][0]]) for ngram, n in again.items() if ngram in shared)
        for every, again in zip(ngrams, repeated, strict=True)
    ]


def _closest_other(length: int, lengths: list[int]) -> int:
    """Returns the nearest of the sorted `lengths` without `length` itself; in a tie, the shorter one."""
    own = bisect_left(lengths, length)
    neighbours = lengths[max(own - 1, 0) : own] + lengths[own + 1 : own + 2]
    return min(neighbours, key=lambda other: (abs(other - length), other))
