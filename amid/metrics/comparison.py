"""Whether two systems differ by more than the choice of prompts explains."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

Resampled = Callable[[NDArray[numpy.int64]], NDArray[numpy.float64]]
"""From how often each item of a set is drawn, [draws, items], to the score of each draw, [draws]."""

_DRAWN_AT_ONCE = 2**18
"""Prompts drawn at once, over all resamples: 2 MB of indices, so that a cache holds them."""


@dataclass(frozen=True)
class Comparison:
    """The difference of two systems' scores of the same prompts, the first less the second."""

    difference: float
    low: float
    """Lower end of the 95% confidence interval."""
    high: float
    """Its upper end."""
    p_value: float
    """Two-sided: twice the share of resamples whose difference has another sign or is 0, at most 1."""

    @property
    def significant(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


def paired_bootstrap(
    first: Sequence[float], second: Sequence[float], *, resamples: int = 10_000, seed: int = 0
) -> Comparison:
    """The difference of two means, and how it varies when the prompts are drawn anew, with replacement.

    Prompts are drawn for both systems at once, so what makes a prompt hard for both cancels. The interval
    is that of percentiles, 2.5 to 97.5. It tells of the choice of prompts only: neither of the seeds of the
    training nor, unless each score is a mean over several answers, of those of the sampling.

    Args:
        first: a score for each prompt, such as the mean ROUGE-L of its answers.
        second: those of the other system, of the same prompts in the same order.
        resamples: sets of prompts drawn.
        seed: of what is drawn; the same one gives the same result.

    Raises:
        ValueError: if there are fewer than two prompts, not equally many of each, a score that is not finite,
            or `resamples` is below 1.

    Reference: Koehn 2004, "Statistical Significance Tests for Machine Translation Evaluation".
    """
    return paired_bootstraps([first, second], [(0, 1)], resamples=resamples, seed=seed)[0]


def paired_bootstraps(
    systems: Sequence[Sequence[float]],
    pairs: Iterable[tuple[int, int]],
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> list[Comparison]:
    """`paired_bootstrap` of many pairs of systems, equal to it; the prompts are drawn once for all.

    Args:
        systems: of each the scores of the same prompts in the same order.
        pairs: places in `systems` of the two to compare, the first less the second.
        resamples: sets of prompts drawn.
        seed: of what is drawn; the same one gives the same result.

    Raises:
        ValueError: as `paired_bootstrap`.
    """
    counts = [len(scores) for scores in systems]
    if len(set(counts)) != 1 or counts[0] < 2:
        raise ValueError(f"systems need the scores of the same prompts, at least 2, got {counts} of them")
    scores = numpy.asarray(systems, float)
    if not numpy.isfinite(scores).all():
        raise ValueError("systems need finite scores, got one that is not")
    resampled = numpy.concatenate(
        [
            numpy.stack([of_system[drawn].mean(1) for of_system in scores])
            for drawn in _drawn(scores.shape[1], resamples, seed)
        ],
        axis=1,
    )
    means = scores.mean(1)
    return [
        _compared(float(means[one] - means[other]), resampled[one] - resampled[other]) for one, other in pairs
    ]


def paired_bootstrap_of_sets(
    first: Resampled, second: Resampled, prompts: int, *, resamples: int = 10_000, seed: int = 0
) -> Comparison:
    """As `paired_bootstrap`, of scores of whole sets, such as BLEU, that are no means over the prompts.

    Args:
        first: the score of one system, from how often each prompt is drawn.
        second: that of the other system, of the same prompts in the same order.
        prompts: how many there are.
        resamples: sets of prompts drawn.
        seed: of what is drawn; the same one gives the same result.

    Raises:
        ValueError: for fewer than two prompts, or if `resamples` is below 1.
    """
    if prompts < 2:
        raise ValueError(f"prompts must be at least 2, got {prompts}")

    def difference(draws: NDArray[numpy.int64]) -> NDArray[numpy.float64]:
        return first(draws) - second(draws)

    def of_drawn(drawn: NDArray[numpy.int64]) -> NDArray[numpy.float64]:
        rows = numpy.arange(len(drawn))[:, None]
        draws = numpy.bincount((drawn + prompts * rows).ravel(), minlength=prompts * len(drawn))
        return difference(draws.reshape(len(drawn), prompts))

    whole = difference(numpy.ones((1, prompts), numpy.int64))
    found = [of_drawn(drawn) for drawn in _drawn(prompts, resamples, seed)]
    return _compared(float(whole[0]), numpy.concatenate(found))


def _drawn(prompts: int, resamples: int, seed: int) -> Iterator[NDArray[numpy.int64]]:
    """The places of the drawn prompts, [draws, prompts], all draws in parts."""
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    random = numpy.random.default_rng(seed)
    at_once = max(1, _DRAWN_AT_ONCE // prompts)
    for start in range(0, resamples, at_once):
        yield random.integers(prompts, size=(min(at_once, resamples - start), prompts))


def _compared(difference: float, resampled: NDArray[numpy.float64]) -> Comparison:
    """Of the difference on all prompts and on those of each draw."""
    against = resampled <= 0 if difference > 0 else resampled >= 0
    low, high = numpy.quantile(resampled, [0.025, 0.975])
    return Comparison(difference, float(low), float(high), min(1.0, 2 * float(against.mean())))
