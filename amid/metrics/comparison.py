"""Whether two systems differ by more than the choice of prompts explains."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy

_DRAWN_AT_ONCE = 2**22
"""Prompts drawn at once, over all resamples: 32 MB of indices."""


@dataclass(frozen=True)
class Comparison:
    """The difference of two systems' means over the same prompts, the first less the second."""

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
    if len(first) != len(second) or len(first) < 2:
        raise ValueError(
            f"first and second need the scores of the same prompts, at least 2, got {len(first)} and "
            f"{len(second)}"
        )
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    differences = numpy.asarray(first, float) - numpy.asarray(second, float)
    if not numpy.isfinite(differences).all():
        raise ValueError("first and second need finite scores, got one that is not")
    random, n = numpy.random.default_rng(seed), len(differences)
    at_once = max(1, _DRAWN_AT_ONCE // n)
    means = numpy.concatenate(
        [
            differences[random.integers(n, size=(min(at_once, resamples - start), n))].mean(1)
            for start in range(0, resamples, at_once)
        ]
    )
    difference = float(differences.mean())
    against = means <= 0 if difference > 0 else means >= 0
    low, high = numpy.quantile(means, [0.025, 0.975])
    return Comparison(difference, float(low), float(high), min(1.0, 2 * float(against.mean())))
