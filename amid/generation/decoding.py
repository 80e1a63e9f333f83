"""Sequences that models decode together: the tokens so far, the cache, and the logits of the next tokens."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from amid.losses import mixed_log_probs
from amid.losses.numerics import log_normalise
from amid.losses.products import operand_dtype, precise
from amid.models.counted_states import split_head
from amid.models.lora import plain_head


class Batch:
    """Places in which a model decodes sequences: one cache for all, padded on the left to the longest one.

    Answers whose tokens are equal so far share a place.

    Args:
        model: the model, in eval mode.
        vocabulary: the logits are cut to so many first entries; None for all.
        log_probs: whether `notes` holds the tokens' log-probabilities; otherwise it is empty. They come from
            float32 logits, even if the model's own logits are rounded to bfloat16 or float16.
    """

    def __init__(
        self, model: PreTrainedModel, vocabulary: int | None = None, log_probs: bool = False
    ) -> None:
        self._model: Any = model
        self._vocabulary = vocabulary
        self._log_probs = log_probs
        self._output = plain_head(model) if log_probs else None
        self._head = None
        if self._output is not None and _rounds(self._output) and (head := split_head(model)) is not None:
            head = head.cut(vocabulary)
            self._head = replace(head, weight=head.weight.detach().to(operand_dtype(head.weight)))
        self._accepted = inspect.signature(model.forward).parameters
        self._empty()

    def _empty(self) -> None:
        self._cache: DynamicCache | None = None
        self._lengths: list[int] = []
        self._width = 0
        self._last: tuple[Tensor, ...] = ()

    @property
    def logits(self) -> Tensor:
        """The model's own logits of the next token at each place: [places, V]; not after `fork` or `keep`."""
        return self._last[0]

    def join(self, sequences: Sequence[tuple[int, ...]]) -> None:
        """Adds a place for each sequence of token ids."""
        ids, lengths = left_padded(sequences, 0, self._model.device)
        cache = DynamicCache(config=self._model.config)
        cache.layers = [_RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
        last = self._forward(ids, lengths, ids.shape[1], cache)
        width = max(self._width, ids.shape[1])
        if self._cache is None:
            self._cache, self._last = cache, last
        else:
            for layer, other in zip(self._cache.layers, cache.layers, strict=True):
                _join_layers(layer, other, width)
            self._last = tuple(torch.cat(pair) for pair in zip(self._last, last, strict=True))
        self._width = width
        self._lengths += [len(sequence) for sequence in sequences]

    def step(self, tokens: Sequence[int | None]) -> None:
        """Appends a token at each place; None at a place that needs no more logits."""
        self._lengths = [
            1 if token is None else length + 1 for token, length in zip(tokens, self._lengths, strict=True)
        ]
        self._width += 1
        device = self._model.device
        ids = torch.tensor([[token or 0] for token in tokens], device=device)
        assert self._cache is not None
        self._last = self._forward(ids, torch.tensor(self._lengths, device=device), self._width, self._cache)

    def fork(self, copies: Mapping[int, int]) -> None:
        """Copies the sequence of a place to each place of `copies`, from the place that it maps to.

        A place that does not exist yet is added; new places follow the last one.
        """
        assert self._cache is not None
        places = list(range(max(len(self._lengths), *(place + 1 for place in copies))))
        for place, source in copies.items():
            places[place] = source
        self._lengths = [self._lengths[source] for source in places]
        index = torch.tensor(places, device=self._model.device)
        layers: list[Any] = self._cache.layers
        for layer in layers:
            if isinstance(layer, _RoomyLayer):
                layer.fork(copies, len(places))
            else:
                layer.batch_select_indices(index)

    def keep(self, places: Sequence[int]) -> None:
        """Drops all places but these, and the positions that are padding in all that stay."""
        if not places:
            self._empty()
            return
        assert self._cache is not None
        self._lengths = [self._lengths[i] for i in places]
        self._width = max(self._lengths)
        self._cache.batch_select_indices(torch.tensor(places, device=self._model.device))
        for layer in self._cache.layers:
            _trim(layer, self._width)

    def _forward(self, ids: Tensor, lengths: Tensor, width: int, cache: DynamicCache) -> tuple[Tensor, ...]:
        """Runs `ids`, the last columns of sequences `width` wide, and returns the last logits.

        If the logits are rounded, the states [places, D] that they were computed from follow them.
        """
        positions = torch.arange(width - ids.shape[1], width, device=ids.device) - (width - lengths[:, None])
        inputs = {
            "attention_mask": padding_mask(lengths, width).long(),
            "position_ids": positions.clamp(min=0),
            "past_key_values": cache,
            "use_cache": True,
            "logits_to_keep": 1,
        }
        known = {name: value for name, value in inputs.items() if name in self._accepted}
        states: list[Tensor] = []
        handle = None
        if self._head is not None and self._output is not None:
            handle = self._output.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0][:, -1]))
        try:
            logits: Tensor = self._model(input_ids=ids, **known).logits[:, -1, : self._vocabulary]
        finally:
            if handle is not None:
                handle.remove()
        return logits, *states

    @property
    def rounded(self) -> bool:
        """Whether `logits` have fewer digits than `log_probs`."""
        return len(self._last) > 1

    @property
    def log_probs(self) -> Tensor:
        """log p of the next token at each place, [places, V], from logits that are not rounded."""
        logits, *states = self._last
        if self._head is not None and states:
            logits = self._head.logits(states[0])
        return log_normalise(logits.float())

    @property
    def columns(self) -> int:
        """How many values `notes` has for a token."""
        return int(self._log_probs)

    def notes(self, places: Tensor, tokens: Tensor) -> Tensor:
        """Returns the values that answers keep beside their tokens [R] at places [R]: [R, columns]."""
        if not self._log_probs:
            return self.logits.new_empty(len(tokens), 0)
        return self.log_probs[places, tokens][:, None]


class _RoomyLayer(DynamicLayer):
    """Keys and values with room for later tokens: a step writes its own, and seldom copies earlier ones."""

    ROOM = 32

    def __init__(self) -> None:
        super().__init__()
        self._rooms: dict[str, tuple[Tensor, Tensor]] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Appends the new positions [rows, heads, positions, size]; returns all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        return self._appended("keys", key_states), self._appended("values", value_states)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps the places of `indices`, in their order."""
        super().batch_select_indices(indices)
        self.forget_rooms()

    def forget_rooms(self) -> None:
        """Frees the memory of arrays that were replaced when the number of places changed."""
        self._rooms.clear()

    def fork(self, copies: Mapping[int, int], places: int) -> None:
        """Copies places onto others (`Batch.fork`), of which there are then so many."""
        for name in ("keys", "values"):
            held: Tensor = getattr(self, name)
            room, n = self._room(name, held, places), held.shape[-2]
            room[list(copies), :, :n] = room[list(copies.values()), :, :n]
            self._hold(name, room, places, n)

    def _appended(self, name: str, new: Tensor) -> Tensor:
        held: Tensor = getattr(self, name)
        places, n = len(new), held.shape[-2] if held.numel() else 0
        end = n + new.shape[-2]
        room = self._room(name, held, places, end) if n else self._empty_room(new, places, end)
        room[:places, :, n:end] = new
        return self._hold(name, room, places, end)

    def _room(self, name: str, held: Tensor, places: int, end: int = 0) -> Tensor:
        """Returns the array that `held` is a part of, if it has so many places and positions; else a larger
        one with its content."""
        room, filled = self._rooms.get(name, (held, None))
        if filled is held and places <= len(room) and end <= room.shape[-2]:
            return room
        more = 0 if places <= len(held) else len(held) // 2
        room = self._empty_room(held, max(places, len(held) + more), max(end, held.shape[-2]))
        room[: len(held), :, : held.shape[-2]] = held
        return room

    def _empty_room(self, like: Tensor, places: int, end: int) -> Tensor:
        return like.new_empty(places, like.shape[1], end + self.ROOM, like.shape[-1])

    def _hold(self, name: str, room: Tensor, places: int, end: int) -> Tensor:
        held = room[:places, :, :end]
        self._rooms[name] = room, held
        setattr(self, name, held)
        return held


class MixedBatch:
    """Places in which two models decode together by the mixture of their distributions (see `Batch`)."""

    logits: Tensor
    """The logarithm of the mixture over the next token at each place: [places, V]."""

    def __init__(
        self, student: PreTrainedModel, teacher: PreTrainedModel, teacher_share: float, vocabulary: int
    ) -> None:
        self._batches = tuple(Batch(model, vocabulary, log_probs=True) for model in (teacher, student))
        self._teacher_share = teacher_share
        self._parts: list[Tensor] = []

    def join(self, sequences: Sequence[tuple[int, ...]]) -> None:
        """Adds sequences to both models' batches."""
        for batch in self._batches:
            batch.join(sequences)
        self._mix()

    def step(self, tokens: Sequence[int | None]) -> None:
        """Appends a token at each place of both models' batches, and mixes their next distributions."""
        for batch in self._batches:
            batch.step(tokens)
        self._mix()

    def fork(self, copies: Mapping[int, int]) -> None:
        """Copies places of both models' batches onto others."""
        for batch in self._batches:
            batch.fork(copies)

    def keep(self, places: Sequence[int]) -> None:
        """Keeps these places of both models' batches, in this order."""
        for batch in self._batches:
            batch.keep(places)

    columns = 3

    def notes(self, places: Tensor, tokens: Tensor) -> Tensor:
        """Returns log-probabilities of tokens [R] at places [R] under mixture, teacher and student: [R, 3].

        The log-probability under the mixture comes from the same logits that the token is drawn from.
        """
        parts = [
            batch.log_probs if batch.rounded else part
            for batch, part in zip(self._batches, self._parts, strict=True)
        ]
        return torch.stack([part[places, tokens] for part in (self.logits, *parts)], dim=1)

    def _mix(self) -> None:
        log_p, log_q = (batch.logits.float().log_softmax(-1) for batch in self._batches)
        self._parts = [log_p, log_q]
        self.logits = mixed_log_probs(log_p, log_q, self._teacher_share)


def _rounds(output: nn.Module) -> bool:
    """Whether the products of a head have fewer digits than float32."""
    dtype = operand_dtype(output.weight)  # type: ignore[arg-type]
    return precise(dtype) != dtype


def holds_keys_and_values(model: PreTrainedModel) -> bool:
    """Whether the model's cache is keys and values only, so that sequences can be taken out and put in."""
    layers = DynamicCache(config=model.config).layers
    return (
        "past_key_values" in inspect.signature(model.forward).parameters
        and bool(layers)
        and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
    )


def _trim(layer: Any, width: int) -> None:
    """Keeps the last `width` positions of a layer's cache."""
    layer.keys, layer.values = layer.keys[:, :, -width:], layer.values[:, :, -width:]
    if isinstance(layer, DynamicSlidingWindowLayer):
        layer.cumulative_length = width


def _join_layers(layer: Any, other: Any, width: int) -> None:
    """Adds the rows of `other` to `layer`, both padded on the left to `width` positions.

    A sliding layer holds the last positions only, as many as its window needs.
    """
    held = max(layer.keys.shape[-2], other.keys.shape[-2])
    for name in ("keys", "values"):
        parts = (getattr(layer, name), getattr(other, name))
        padded = [F.pad(part, (0, 0, held - part.shape[-2], 0)) for part in parts]
        setattr(layer, name, torch.cat(padded))
    if isinstance(layer, _RoomyLayer):
        layer.forget_rooms()
    if isinstance(layer, DynamicSlidingWindowLayer):
        layer.cumulative_length = width


def left_padded(prompts: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids [rows, longest], and lengths [rows]."""
    lengths = [len(prompt) for prompt in prompts]
    ids = [[pad] * (max(lengths) - len(prompt)) + list(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(lengths, device=device)


def padding_mask(lengths: Tensor, width: int) -> Tensor:
    """True on the last `lengths` of `width` positions: [rows, width]."""
    return torch.arange(width, device=lengths.device) >= width - lengths[:, None]
