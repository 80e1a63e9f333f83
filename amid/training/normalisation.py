"""The normalisation of the loss over an optimiser step."""

from collections.abc import Sequence


def denominators(counted: Sequence[int], mean: str) -> list[int]:
    """Returns the number that the loss summed over each micro-batch of a step is divided by.

    Args:
        counted: the counted tokens of each micro-batch.
        mean: "step", the mean over all counted tokens of the step; "micro_batch", the mean of the
            micro-batches' means, as published scripts take it over GPUs.
    """
    if mean == "micro_batch":
        return [len(counted) * max(tokens, 1) for tokens in counted]
    return [max(sum(counted), 1)] * len(counted)
