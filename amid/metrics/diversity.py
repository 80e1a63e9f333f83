"""How much answers resemble each other."""

from bisect import bisect_left
from collections.abc import Sequence
from functools import cache
from statistics import fmean
from typing import Any, Literal

from sacrebleu.metrics.bleu import BLEU, MAX_NGRAM_ORDER
from sacrebleu.metrics.helpers import extract_all_word_ngrams

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
    counted = [extract_all_word_ngrams(tokenizer(text.rstrip()), 1, MAX_NGRAM_ORDER) for text in texts]
    lengths = sorted(length for _, length in counted)
    # The first two of each n-gram's counts in the texts, in descending order: equal where two texts tie.
    largest: dict[tuple[str, ...], int] = {}
    second: dict[tuple[str, ...], int] = {}
    for ngrams, _ in counted:
        for ngram, count in ngrams.items():
            top = largest.get(ngram, 0)
            if count > top:
                largest[ngram], count = count, top
            if count > second.get(ngram, 0):
                second[ngram] = count

    scores = []
    for ngrams, length in counted:
        correct, total = [0] * MAX_NGRAM_ORDER, [0] * MAX_NGRAM_ORDER
        for ngram, count in ngrams.items():
            among_others = largest[ngram]
            if count == among_others:
                among_others = second.get(ngram, 0)
            order = len(ngram) - 1
            total[order] += count
            correct[order] += min(count, among_others)
        bleu = BLEU.compute_bleu(
            correct=correct,
            total=total,
            sys_len=length,
            ref_len=_closest_other(length, lengths),
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


@cache
def _tokenizer(name: str) -> Any:
    return BLEU(tokenize=name).tokenizer


def _closest_other(length: int, lengths: list[int]) -> int:
    """The nearest of the sorted `lengths` once `length` itself is taken out, the shorter of two as near."""
    own = bisect_left(lengths, length)
    neighbours = lengths[max(own - 1, 0) : own] + lengths[own + 1 : own + 2]
    return min(neighbours, key=lambda other: (abs(other - length), other))
