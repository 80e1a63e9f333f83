"""The type of a metric, and its score for a whole set."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from amid.config.calls import by_name
from amid.metrics.bootstrap import Resampled


@dataclass(frozen=True)
class SetScore:
    """A score of a whole set that is not a mean over its answers."""

    value: float
    signature: str | None = None
    """How the value was computed, such as sacrebleu's signature."""
    resampled: Resampled | None = field(default=None, compare=False, repr=False)
    """A function from the count of each answer in each draw, [draws, answers], to the score of each draw,
    [draws]; None if the metric cannot score draws."""


Metric = Callable[[Sequence[str], Sequence[Sequence[str]]], Sequence[float] | SetScore]
"""A function from `predictions=` (the answers) and `references=` (the acceptable answers to each prompt) to
one score for each answer, or one score for all; 0 to 100, higher is better."""


def tokenize_of(metric: Metric) -> str | None:
    """Returns the value of a metric's argument `tokenize`, such as `rouge_score`; None if it has none."""
    try:
        argument = inspect.signature(metric).parameters.get("tokenize")
    except (TypeError, ValueError):  # for functions written in C
        return None
    return argument.default if argument is not None and isinstance(argument.default, str) else None


def set_score(metric: Metric, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> SetScore:
    """Returns the score of a whole set: the metric's own score, or the mean over the answers.

    Raises:
        ValueError: if there are no predictions, or the metric refuses them.
    """
    if not predictions:
        raise ValueError("predictions is empty; a score over a set needs at least one")
    scores = by_name(metric, predictions=predictions, references=references)
    return scores if isinstance(scores, SetScore) else SetScore(sum(scores) / len(scores))
