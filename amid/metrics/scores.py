"""What a metric is, and its value for a whole set."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from amid.config.calls import by_name
from amid.metrics.bootstrap import Resampled


@dataclass(frozen=True)
class SetScore:
    """A score of a whole set that is no mean over its answers."""

    value: float
    signature: str | None = None
    """How the value was computed, such as sacrebleu's signature."""
    resampled: Resampled | None = field(default=None, compare=False, repr=False)
    """From how often each answer is drawn, [draws, answers], to the score of each draw, [draws]; None where
    that cannot be told."""


Metric = Callable[[Sequence[str], Sequence[Sequence[str]]], Sequence[float] | SetScore]
"""From answers, `predictions=`, and the acceptable answers to the prompt of each, `references=`, to one score
for each answer or one for all; 0 to 100, higher is better."""


def tokenize_of(metric: Metric) -> str | None:
    """The value of a metric's argument `tokenize`, such as `rouge_score`; None where it has no such one."""
    try:
        argument = inspect.signature(metric).parameters.get("tokenize")
    except (TypeError, ValueError):  # of what is written in C
        return None
    return argument.default if argument is not None and isinstance(argument.default, str) else None


def set_score(metric: Metric, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> SetScore:
    """The score of a whole set: the metric's own, or the mean over the answers.

    Raises:
        ValueError: if there are no predictions, or the metric refuses them.
    """
    if not predictions:
        raise ValueError("predictions is empty; a score over a set needs at least one")
    scores = by_name(metric, predictions=predictions, references=references)
    return scores if isinstance(scores, SetScore) else SetScore(sum(scores) / len(scores))
