"""Gradients of a step that do not depend on how its micro-batches are shared out."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from amid.distributed import ranks


class GradientSums:
    """Sums the gradients of micro-batches in float64, over all ranks, and rounds the sums once.

    A sum of float32 numbers in float64 is exact unless they differ by more than 2^28. So it does not depend
    on their order, nor on the rank that adds them. A sum takes 8 bytes for each trained weight.

    Args:
        weights: the trained weights.
    """

    def __init__(self, weights: Iterable[nn.Parameter]) -> None:
        self._weights = [weight for weight in weights if weight.requires_grad]
        self._sums: list[Tensor | None] = [None] * len(self._weights)

    def add(self) -> None:
        """Takes the gradients of one micro-batch from the weights, which have none afterwards."""
        for number, weight in enumerate(self._weights):
            if weight.grad is not None:
                before = self._sums[number]
                place = "cpu" if weight.device.type == "mps" else weight.device  # Apple's GPUs lack float64
                wide = weight.grad.to(place).to(torch.float64)
                self._sums[number] = wide if before is None else before.add_(wide)
                weight.grad = None

    def finish(self) -> None:
        """Gives each weight the sum over all ranks, rounded to its dtype, and forgets the sums."""
        totals = ranks.summed(self._sums, self._weights, torch.float64)
        for weight, total in zip(self._weights, totals, strict=True):
            weight.grad = None if total is None else total.to(weight.dtype).to(weight.device)
        self._sums = [None] * len(self._weights)
