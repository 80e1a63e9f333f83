"""The teacher's signal at the counted positions."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from amid.models import CountedLogits


class LiveTeacher:
    """A frozen model that is run on every batch, always in eval mode.

    It is no `nn.Module`, so that its weights stay out of the student's optimiser and checkpoint.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.requires_grad_(False).eval()
        self._logits = CountedLogits(self.model)

    def to(self, device: torch.device) -> None:
        """Moves the weights to `device`."""
        self.model.to(device)

    @torch.no_grad()
    def logits(self, input_ids: Tensor, attention_mask: Tensor, positions: Tensor) -> Tensor:
        """Logits [N, V] where `positions` [rows, length] is true."""
        return self._logits(input_ids, attention_mask, positions)
