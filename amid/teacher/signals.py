"""The teacher's logits at the counted positions: from its model, from its stored hidden states, or both."""

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from amid.console import in_bytes
from amid.data.tokens import NO_ROW, MicroBatch
from amid.losses import Head
from amid.models.counted_states import CountedStates
from amid.models.placement import move
from amid.models.vocabulary import output_rows
from amid.teacher.state_store import States

ATTENTION_BLOCK = 16
"""Rows go through the teacher at lengths that are multiples of this number, the block in which attention on a
CPU adds up. So in float32 the states of a row are the same to the last bit, whatever other rows are in its
batch."""


class LiveTeacher:
    """A frozen model that is run on every batch, always in eval mode.

    It is no `nn.Module`, so that its weights stay out of the student's optimiser and checkpoint.

    Args:
        model: the model.
        offload: whether its weights are on the CPU while it is `aside`.
    """

    def __init__(self, model: PreTrainedModel, offload: bool = False) -> None:
        self.model = model.requires_grad_(False).eval()
        self._offload = offload
        self._states = CountedStates(self.model)
        self.vocabulary = output_rows(model)

    @property
    def lost(self) -> dict[str, float]:
        """Nothing is lost, see `CachedTeacher.lost`."""
        return {}

    @property
    def head(self) -> Head | None:
        """The head, which makes logits [N, V] of hidden states; None if it cannot be split off the model."""
        return self._states.head

    def to(self, device: torch.device) -> None:
        """Moves the weights to `device`; a model that is spread over devices stays where it is."""
        move(self.model, device)

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Keeps the weights on the CPU within the block, so that others have the device's memory."""
        device = self.model.device
        if self._offload:
            move(self.model, torch.device("cpu"))
        yield
        if self._offload:
            move(self.model, device)

    @torch.no_grad()
    def hidden(self, batch: MicroBatch, positions: Tensor) -> Tensor:
        """The last hidden states [N, D] where `positions` [rows, length] is true, row by row."""
        if "position_ids" in batch:
            return self._states.hidden(batch["input_ids"], positions, batch["position_ids"])
        length = batch["input_ids"].shape[1]
        longer = -length % ATTENTION_BLOCK
        if (most := getattr(self.model.config, "max_position_embeddings", None)) is not None:
            longer = min(longer, max(int(most) - length, 0))
        input_ids = pad(batch["input_ids"], (0, longer))
        return self._states.hidden(input_ids, pad(positions, (0, longer)))

    @torch.no_grad()
    def logits(self, batch: MicroBatch, positions: Tensor) -> Tensor:
        """The model's own logits [N, V] at these positions."""
        return self._states.logits(batch["input_ids"], positions, batch.get("position_ids"))


class CachedTeacher:
    """A teacher with stored states and a head, without the weights of its body.

    Args:
        head: the teacher's head.
        states: the teacher's states at the counted positions of each row.
        first: the number that `MicroBatch` gives the first of these rows.
    """

    def __init__(self, head: Head, states: States, first: int = 0) -> None:
        self.head = head
        self.vocabulary = len(head.weight)
        self._states, self._first = states, first

    @property
    def size(self) -> str:
        """The positions and bytes of the states, in words, and what they lose if they are not exact."""
        words = f"{self._states.positions:,} positions, {in_bytes(self._states.nbytes)}"
        if not (lost := self.lost):
            return words
        each, nats = lost["teacher_states_bytes"], lost["teacher_states_kl"]
        return f"{words}, lossy: {each:.0f} bytes a token, KL {nats:.2g} nats a token to the exact states"

    @property
    def lost(self) -> dict[str, float]:
        """The measures of lossy states in `amid.measures`; empty for exact states."""
        if self._states.kl is None:
            return {}
        nats, measured = self._states.kl
        each = self._states.nbytes / self._states.positions
        return {"teacher_states_bytes": each, "teacher_states_kl": nats / measured}

    def to(self, device: torch.device) -> None:
        """Moves the head to `device`; the states stay on disk until they are asked for."""
        self.head = self.head.to(device)

    def aside(self) -> AbstractContextManager[None]:
        """Changes nothing: there are no weights to keep elsewhere."""
        return contextlib.nullcontext()

    def hidden(self, batch: MicroBatch, positions: Tensor) -> Tensor:
        """The last hidden states [N, D] where `positions` [rows, length] is true, row by row.

        `positions` are the batch's counted positions: no others are stored.
        """
        states = self._states[batch["rows"].cpu() - self._first]
        if len(states) != int(positions.sum()):
            raise RuntimeError(f"{len(states)} stored states for {int(positions.sum())} positions")
        return states.to(positions.device)

    def logits(self, batch: MicroBatch, positions: Tensor) -> Tensor:
        """Logits [N, V] at the counted positions."""
        return self.head.logits(self.hidden(batch, positions))


class PartlyCachedTeacher:
    """A teacher that reads the states of stored rows, and runs the model on all other rows."""

    def __init__(self, live: LiveTeacher, cached: CachedTeacher) -> None:
        self.live, self.cached = live, cached
        self.model = live.model
        self.vocabulary = cached.vocabulary

    @property
    def lost(self) -> dict[str, float]:
        """What lossy states of the stored rows cost, as `CachedTeacher.lost`."""
        return self.cached.lost

    @property
    def head(self) -> Head:
        """The teacher's head, the same for stored states and for the model."""
        return self.cached.head

    def to(self, device: torch.device) -> None:
        """Moves weights and head to `device`."""
        self.live.to(device)
        self.cached.to(device)

    def aside(self) -> AbstractContextManager[None]:
        """Keeps the model's weights on the CPU within the block, as `LiveTeacher.aside`."""
        return self.live.aside()

    def hidden(self, batch: MicroBatch, positions: Tensor) -> Tensor:
        """The last hidden states [N, D] where `positions` [rows, length] is true, row by row.

        In a stored row, `positions` must mark the counted tokens.
        """
        return self._of(batch).hidden(batch, positions)

    def logits(self, batch: MicroBatch, positions: Tensor) -> Tensor:
        """Logits [N, V] at these positions."""
        return self._of(batch).logits(batch, positions)

    def _of(self, batch: MicroBatch) -> LiveTeacher | CachedTeacher:
        return self.live if bool((batch["rows"] == NO_ROW).any()) else self.cached


Teacher = LiveTeacher | CachedTeacher | PartlyCachedTeacher
