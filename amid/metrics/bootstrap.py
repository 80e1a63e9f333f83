"""Tests whether two systems differ by more than the choice of prompts explains."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from math import inf

import numpy
from numpy.typing import NDArray

Resampled = Callable[[NDArray[numpy.int64]], NDArray[numpy.float64]]
"""A function from the count of each item in each draw, [draws, items], to the score of each draw, [draws]."""

FEW = 50
"""With fewer prompts, the test is exact: samples with replacement would vary too little."""

FEW_DIFFERENT = 10
"""The test is also exact if fewer prompts than this have different scores, whatever the number of prompts."""

ENUMERATED = 13
"""With at most this many prompts the test takes all 2^13 - 1 non-empty subsets; with more, random ones."""

_FEWEST = 6
"""The fewest prompts that can reject at 5%: five prompts that all differ in one direction give p = 1/16."""

_TAIL = 0.025
_ROUNDING = 1e-10
"""A difference below this share of the largest score counts as rounding: the scores are equal."""
_DRAWN_AT_ONCE = 2**18
"""The number of prompts drawn at once, over all resamples: 2 MB of indices, which fit in a cache."""


@dataclass(frozen=True)
class Comparison:
    """The difference of two systems' scores on the same prompts, the first less the second."""

    difference: float
    low: float
    """Lower end of the 95% confidence interval; minus infinity if the prompts are too few to bound it."""
    high: float
    """Upper end of the interval; infinity if the prompts are too few to bound it."""
    p_value: float
    """Two-sided p-value. Bootstrap: twice the share of resamples with a difference of another sign or 0, at
    most 1. Exact test: the share of sign flips with a difference as large, never 0."""
    prompts: int
    """The number of prompts that both systems answered."""
    exact: bool
    """Whether the exact test for few prompts gave the interval and p, not the bootstrap."""

    @property
    def significant(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0

    @property
    def interval(self) -> str:
        """The interval as reports write it, such as `+0.12 to +3.40` or `-∞ to +∞`."""
        return f"{signed(self.low)} to {signed(self.high)}"


def signed(value: float) -> str:
    """Returns a difference as reports write it: with its sign and two digits, or as ∞ if infinite."""
    return f"{value:+.2f}".replace("inf", "∞")


def paired_bootstrap(
    first: Sequence[float], second: Sequence[float], *, resamples: int = 10_000, seed: int = 0
) -> Comparison:
    """Compares two means, with a confidence interval over the choice of prompts.

    From `FEW` = 50 prompts on, the prompts are drawn again with replacement, and the interval spans the
    percentiles 2.5 to 97.5. Both systems get the same draws, so a prompt that is hard for both cancels.

    Fewer prompts, or fewer than `FEW_DIFFERENT` = 10 with different scores, are tested exactly. The test
    swaps the scores of the two systems prompt by prompt in all ways (`resamples` random ways for more than
    `ENUMERATED` = 13 prompts); p is the share of ways with a difference as large. The interval holds the
    differences that this test does not reject. Five prompts or fewer can reject nothing at 5%: their
    interval is infinite, unless all scores are equal.

    Both tests cover the choice of prompts only. They do not cover the seeds of the training. They cover the
    seeds of the sampling only if each score is a mean over several answers.

    Args:
        first: a score for each prompt, such as the mean ROUGE-L of its answers.
        second: the scores of the other system for the same prompts in the same order.
        resamples: sets of prompts drawn.
        seed: the seed of the draws; the same seed gives the same result.

    Raises:
        ValueError: if there are fewer than two prompts, not equally many of each, a score that is not finite,
            or `resamples` is below 1.

    References: Koehn 2004, "Statistical Significance Tests for Machine Translation Evaluation"; for the exact
    test Hartigan 1969, "Using Subsample Values as Typical Values".
    """
    return paired_bootstraps([first, second], [(0, 1)], resamples=resamples, seed=seed)[0]


def paired_bootstraps(
    systems: Sequence[Sequence[float]],
    pairs: Iterable[tuple[int, int]],
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> list[Comparison]:
    """Computes `paired_bootstrap` for many pairs of systems, and draws the prompts once for all pairs.

    The results equal `paired_bootstrap` of each pair.

    Args:
        systems: for each system, the scores of the same prompts in the same order.
        pairs: the places in `systems` of the two systems to compare, the first less the second.
        resamples: sets of prompts drawn.
        seed: the seed of the draws; the same seed gives the same result.

    Raises:
        ValueError: as `paired_bootstrap`.
    """
    counts = [len(scores) for scores in systems]
    if len(set(counts)) != 1 or counts[0] < 2:
        raise ValueError(f"systems need the scores of the same prompts, at least 2, got {counts} of them")
    scores = numpy.asarray(systems, float)
    if not numpy.isfinite(scores).all():
        raise ValueError("systems need finite scores, got one that is not")
    _check(resamples)
    prompts = scores.shape[1]

    @cache
    def resampled() -> NDArray[numpy.float64]:
        """Returns the mean of each system over each draw, [systems, draws]."""
        parts = [
            numpy.stack([of_system[drawn].mean(1) for of_system in scores])
            for drawn in _drawn(prompts, resamples, seed)
        ]
        return numpy.concatenate(parts, axis=1)

    @cache
    def of_subsets() -> NDArray[numpy.float64]:
        """Returns the mean of each system over each subset, [systems, subsets]."""
        return _subset_means(scores, resamples, seed)

    means = scores.mean(1)
    found = []
    for one, other in pairs:
        difference = float(means[one] - means[other])
        largest = float(numpy.abs(scores[[one, other]]).max())
        different = numpy.count_nonzero(numpy.abs(scores[one] - scores[other]) > _ROUNDING * largest)
        if prompts >= FEW and different >= FEW_DIFFERENT:
            found.append(_compared(difference, resampled()[one] - resampled()[other], prompts, largest))
        else:
            found.append(_exact(difference, of_subsets()[one] - of_subsets()[other], prompts, largest))
    return found


def paired_bootstrap_of_sets(
    first: Resampled, second: Resampled, prompts: int, *, resamples: int = 10_000, seed: int = 0
) -> Comparison:
    """Tests the difference of two whole-set scores, such as BLEU, that are not means over the prompts.

    For fewer than `FEW` prompts it tests exactly what each prompt adds to the difference, found by leaving
    the prompt out (the jackknife). For scores that are means this equals `paired_bootstrap`, but for `FEW`
    prompts or more with fewer than `FEW_DIFFERENT` unlike scores: a score of a whole set does not say which.

    Args:
        first: a function from the number of times each prompt is drawn to the score of one system.
        second: such a function for the other system, with the same prompts in the same order.
        prompts: the number of prompts.
        resamples: sets of prompts drawn.
        seed: the seed of the draws; the same seed gives the same result.

    Raises:
        ValueError: for fewer than two prompts, a score that is not finite, or if `resamples` is below 1.
    """
    if prompts < 2:
        raise ValueError(f"prompts must be at least 2, got {prompts}")
    _check(resamples)

    def difference(draws: NDArray[numpy.int64]) -> NDArray[numpy.float64]:
        return first(draws) - second(draws)

    def of_drawn(drawn: NDArray[numpy.int64]) -> NDArray[numpy.float64]:
        rows = numpy.arange(len(drawn))[:, None]
        draws = numpy.bincount((drawn + prompts * rows).ravel(), minlength=prompts * len(drawn))
        return difference(draws.reshape(len(drawn), prompts))

    every = numpy.ones((1, prompts), numpy.int64)
    whole = float(_finite(difference(every))[0])
    if prompts < FEW:
        without = _finite(difference(every - numpy.eye(prompts, dtype=numpy.int64)))
        added = whole + (prompts - 1) * (without.mean() - without)
        of_subsets = _subset_means(added[None], resamples, seed)[0]
        return _exact(whole, of_subsets, prompts, float(numpy.abs(added).max()))
    found = [of_drawn(drawn) for drawn in _drawn(prompts, resamples, seed)]
    largest = max(abs(float(of(every)[0])) for of in (first, second))
    return _compared(whole, _finite(numpy.concatenate(found)), prompts, largest)


def how_tested(found: Sequence[Comparison]) -> str:
    """Describes the test of comparisons over the same prompts as a phrase: `by paired bootstrap …`."""
    prompts = found[0].prompts
    exact = [one for one in found if one.exact]
    if not exact:
        return "by paired bootstrap over the prompts"
    if prompts >= FEW:
        others = "by paired bootstrap over the prompts, and " * (len(exact) < len(found))
        return f"{others}by swapping scores, where fewer than {FEW_DIFFERENT} prompts have unlike ones"
    few = f"; {prompts} can show none at 5%, {_FEWEST} are needed at least" * (prompts < _FEWEST)
    return f"by swapping the scores of the {prompts} prompts (exact; the bootstrap needs {FEW}{few})"


def _finite(scores: NDArray[numpy.float64]) -> NDArray[numpy.float64]:
    if not numpy.isfinite(scores).all():
        raise ValueError("first and second need finite scores of all draws, got one that is not")
    return scores


def _check(resamples: int) -> None:
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")


def _drawn(prompts: int, resamples: int, seed: int) -> Iterator[NDArray[numpy.int64]]:
    """Yields the places of the drawn prompts, [draws, prompts], in parts until all draws are done."""
    random = numpy.random.default_rng(seed)
    at_once = max(1, _DRAWN_AT_ONCE // prompts)
    for start in range(0, resamples, at_once):
        yield random.integers(prompts, size=(min(at_once, resamples - start), prompts))


def _subset_means(values: NDArray[numpy.float64], resamples: int, seed: int) -> NDArray[numpy.float64]:
    """Returns the mean of each row of `values`, [rows, prompts], over each subset, [rows, subsets]."""
    parts = []
    for subsets in _subsets(values.shape[1], resamples, seed):
        sizes = subsets.sum(1)
        parts.append(numpy.stack([subsets @ row / sizes for row in values]))
    return numpy.concatenate(parts, axis=1)


def _subsets(prompts: int, resamples: int, seed: int) -> Iterator[NDArray[numpy.float64]]:
    """Returns 1 for each prompt in a non-empty subset, else 0, [subsets, prompts]: all or random subsets."""
    if prompts <= ENUMERATED:
        numbers = numpy.arange(1, 2**prompts)
        yield (numbers[:, None] >> numpy.arange(prompts) & 1).astype(float)
        return
    random = numpy.random.default_rng(seed)
    at_once = max(1, _DRAWN_AT_ONCE // prompts)
    for start in range(0, resamples, at_once):
        drawn = random.integers(2, size=(min(at_once, resamples - start), prompts))
        drawn[drawn.sum(1) == 0] = 1  # empty once in 2^prompts draws
        yield drawn.astype(float)


def _compared(
    difference: float, resampled: NDArray[numpy.float64], prompts: int, largest: float
) -> Comparison:
    """Compares two systems, given the difference on all prompts and on the prompts of each draw.

    Args:
        difference: the difference on all prompts.
        resampled: the difference on each draw.
        prompts: the number of prompts.
        largest: the largest absolute score; a difference that is tiny beside it counts as rounding.
    """
    resampled = _without_rounding(resampled, largest)
    against = resampled <= 0 if difference > 0 else resampled >= 0
    low, high = numpy.quantile(resampled, [_TAIL, 1 - _TAIL])
    p_value = min(1.0, 2 * float(against.mean()))
    return Comparison(difference, float(low), float(high), p_value, prompts, exact=False)


def _without_rounding(differences: NDArray[numpy.float64], largest: float) -> NDArray[numpy.float64]:
    """Returns differences, with 0 for those that only rounding makes unlike 0 beside the score `largest`."""
    return numpy.where(numpy.abs(differences) <= _ROUNDING * largest, 0.0, differences)


def _exact(difference: float, of_subsets: NDArray[numpy.float64], prompts: int, largest: float) -> Comparison:
    """Tests a difference exactly by sign flips, given the difference on each subset of the prompts.

    Take the differences, each less a value v, and flip their signs in a subset S. Their sum does not fall if
    the mean over S is at most v. So the sorted means of subsets are the ends of the test's intervals, and the
    means up to 0 give its p. One further way is to flip no sign.

    Args:
        difference: the difference on all prompts.
        of_subsets: the difference on each subset.
        prompts: the number of prompts.
        largest: the largest absolute score; a difference that is tiny beside it counts as rounding.
    """
    ordered = numpy.sort(_without_rounding(of_subsets, largest))
    if not ordered.any():  # equal scores on every prompt
        return Comparison(difference, 0.0, 0.0, 1.0, prompts, exact=True)
    ways = len(ordered) + 1
    tail = min(numpy.count_nonzero(ordered <= 0), numpy.count_nonzero(ordered >= 0))
    outside = int(_TAIL * ways)  # flips that the test may reject on each side
    low, high = (float(ordered[outside - 1]), float(ordered[-outside])) if outside else (-inf, inf)
    return Comparison(difference, low, high, min(1.0, 2 * (1 + tail) / ways), prompts, exact=True)
