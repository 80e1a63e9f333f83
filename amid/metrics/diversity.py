"""How much answers resemble each other."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from functools import cache
from itertools import chain
from statistics import fmean
from typing import Any, Literal

from sacrebleu.metrics.bleu import BLEU, MAX_NGRAM_ORDER

Smoothing = Literal["none", "floor", "add-k", "exp"]
"""What sacrebleu does about n-gram orders without a match."""


def self_bleu(
    texts: Sequence[str],
    *,
    smooth_method: Smoothing = "exp",
    smooth_value: float | None = None,
    tokenize: str = "13a",
) -> float:
    """Self-BLEU: the mean over texts of the BLEU of each text with all the others as its references.

        mean over i of  sentence_bleu(texts[i], texts without the i-th)

    The BLEU is that of `sacrebleu.sentence_bleu`: n-grams up to 4, effective order (orders longer than the
    text are left out), and by default exponential smoothing and the 13a tokeniser. Equal to calling it text
    by text, but in time linear in the number of words: counts are clipped at the largest count among the
    other texts, for which the two largest over all texts suffice.

    Args:
        texts: at least two. A text without words scores 0 and is never matched, but its length counts.
        smooth_method: `none`, `floor`, `add-k` or `exp`, as sacrebleu defines them.
        smooth_value: the value of `floor` (default 0.1) and `add-k` (default 1).
        tokenize: a tokeniser of sacrebleu, such as `zh` or `char` for text without spaces between words.

    Returns:
        From 0 (no word is shared) to 100 (all texts are equal). Lower is more diverse.

    Raises:
        ValueError: for fewer than two texts, a single string, or an unknown `smooth_method` or `tokenize`.

    Reference: Zhu et al. 2018, "Texygen: A Benchmarking Platform for Text Generation Models".
    """
    if isinstance(texts, str) or len(texts) < 2:
        got = f"the string {texts!r}" if isinstance(texts, str) else f"{len(texts)}"
        raise ValueError(f"self_bleu compares texts with each other and needs at least 2, got {got}")
    for argument, value, known in (
        ("smooth_method", smooth_method, BLEU.SMOOTH_DEFAULTS),
        ("tokenize", tokenize, BLEU.TOKENIZERS),
    ):
        if value not in known:
            raise ValueError(f"{argument} must be one of {', '.join(known)}, got {value!r}")

    tokenizer = _tokenizer(tokenize)
    words = [tuple(tokenizer(text.rstrip()).split()) for text in texts]
    correct = [_shared_ngrams(words, order) for order in range(1, MAX_NGRAM_ORDER + 1)]
    lengths = sorted(map(len, words))
    scores = []
    for own, shared in zip(map(len, words), zip(*correct, strict=True), strict=True):
        bleu = BLEU.compute_bleu(
            correct=list(shared),
            total=[max(own - order, 0) for order in range(MAX_NGRAM_ORDER)],
            sys_len=own,
            ref_len=_closest_other(own, lengths),
            smooth_method=smooth_method,
            smooth_value=smooth_value,
            effective_order=True,
        )
        scores.append(bleu.score)
    return fmean(scores)


def self_bleu_per_prompt(
    samples: Sequence[Sequence[str]],
    *,
    smooth_method: Smoothing = "exp",
    smooth_value: float | None = None,
    tokenize: str = "13a",
) -> float:
    """The mean over prompts of the Self-BLEU among the samples of one prompt.

    Unlike `self_bleu` over all answers it does not count that different prompts call for different answers.

    Args:
        samples: for each prompt, at least two sampled answers.
        smooth_method: as in `self_bleu`.
        smooth_value: as in `self_bleu`.
        tokenize: as in `self_bleu`.

    Returns:
        From 0 to 100. Lower is more diverse.

    Raises:
        ValueError: without any prompt, and as `self_bleu`, naming the prompt.
    """
    if not samples:
        raise ValueError("self_bleu_per_prompt needs the samples of at least one prompt, got none")
    scores = []
    for index, texts in enumerate(samples):
        try:
            scores.append(
                self_bleu(texts, smooth_method=smooth_method, smooth_value=smooth_value, tokenize=tokenize)
            )
        except ValueError as error:
            raise ValueError(f"samples[{index}]: {error}") from None
    return fmean(scores)


def _shared_ngrams(texts: Sequence[Sequence[str]], order: int) -> list[int]:
    """Of each text, as a list of words: its n-grams of one order, each counted as often at most as in the
    other text that holds it most often.

    Nearly all n-grams occur once in a text, and then only whether another text holds them matters: the
    loops in Python go over the repeated ones alone. N-grams are strings, since millions of tuples would
    occupy the garbage collector.
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
    # The first two of each n-gram's counts in the texts, in descending order: equal where two texts tie.
    top: dict[str, tuple[int, int]] = {}
    for ngram, n in chain.from_iterable(again.items() for again in repeated):
        first, second = top.get(ngram, (1, 1))
        top[ngram] = (max(first, n), max(second, min(first, n)))
    return [
        sum(map(shared.__contains__, every))
        - sum(n - min(n, top[ngram][n == top[ngram][0]]) for ngram, n in again.items() if ngram in shared)
        for every, again in zip(ngrams, repeated, strict=True)
    ]


@cache
def _tokenizer(name: str) -> Any:
    return BLEU(tokenize=name).tokenizer


def _closest_other(length: int, lengths: list[int]) -> int:
    """The nearest of the sorted `lengths` once `length` itself is taken out, the shorter of two as near."""
    own = bisect_left(lengths, length)
    neighbours = lengths[max(own - 1, 0) : own] + lengths[own + 1 : own + 2]
    return min(neighbours, key=lambda other: (abs(other - length), other))
