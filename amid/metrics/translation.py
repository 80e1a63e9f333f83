"""Measures how close translations are to their references, over a whole set."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy
from numpy.typing import NDArray

from amid.metrics.quality import check_pairs
from amid.metrics.scores import SetScore
from amid.metrics.words import check_tokenize, sacrebleu_tokenizer


def bleu(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    tokenize: str = "13a",
    lowercase: bool = False,
) -> SetScore:
    """Corpus BLEU × 100: `sacrebleu.corpus_bleu` over all predictions at once.

        BP · exp(mean over n = 1..4 of log(matched n-grams of the set / n-grams of its predictions))

    It is not the mean of the BLEU scores of sentences. If a prediction has fewer references than others, the
    missing references are left out.

    Args:
        predictions: one translation for each source; an empty one counts as of no words.
        references: the acceptable translations of each source, at least one.
        tokenize: a tokeniser of sacrebleu: `13a`, `zh` for Chinese, `char`, `intl`, …
        lowercase: whether to ignore case.

    Returns:
        From 0 to 100, with sacrebleu's signature.

    Raises:
        ValueError: if there are no predictions, the lengths differ, a prediction has no reference or one
            string in place of a list, or `tokenize` is unknown.

    Reference: Post 2018, "A Call for Clarity in Reporting BLEU Scores".
    """
    from sacrebleu.metrics.bleu import BLEU  # a report reads scores without it

    check_tokenize(tokenize)
    sacrebleu_tokenizer(tokenize)
    return _of_the_set(BLEU(tokenize=tokenize, lowercase=lowercase), predictions, references)


def chrf(predictions: Sequence[str], references: Sequence[Sequence[str]], *, word_order: int = 0) -> SetScore:
    """Corpus chrF × 100: `sacrebleu.corpus_chrf`, the F2 of character n-grams (n = 1..6) of a whole set.

    Args:
        predictions: one translation for each source.
        references: the acceptable translations of each source, at least one.
        word_order: n-grams of words up to this order count too; 2 makes it chrF++.

    Returns:
        From 0 to 100, with sacrebleu's signature.

    Raises:
        ValueError: if there are no predictions, the lengths differ, a prediction has no reference or one
            string in place of a list, or `word_order` is below 0.

    Reference: Popović 2015, "chrF: character n-gram F-score for automatic MT evaluation".
    """
    from sacrebleu.metrics.chrf import CHRF

    if word_order < 0:
        raise ValueError(f"word_order must be at least 0, got {word_order}")
    return _of_the_set(CHRF(word_order=word_order), predictions, references)


def _of_the_set(metric: Any, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> SetScore:
    check_pairs(predictions, references)
    if not predictions:
        raise ValueError("predictions is empty; a score over a set needs at least one")
    most = max(map(len, references))
    streams = [[answers[i] if i < len(answers) else None for answers in references] for i in range(most)]
    value = metric.corpus_score(list(predictions), streams).score

    @cache
    def statistics() -> NDArray[numpy.int64]:
        """Returns the counts of each prediction, [predictions, counts]; the score follows from their sums."""
        return numpy.array(metric._extract_corpus_statistics(list(predictions), streams))

    def resampled(draws: NDArray[numpy.int64]) -> NDArray[numpy.float64]:
        sums = (draws @ statistics()).tolist()
        return numpy.array([metric._compute_score_from_stats(counts).score for counts in sums])

    return SetScore(float(value), str(metric.get_signature()), resampled)
