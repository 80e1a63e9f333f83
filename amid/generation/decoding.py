"""Rows that models decode together: the tokens so far, the cache, and the logits of the next tokens."""

import hashlib
import inspect
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
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


class Row:
    """An answer while it is decoded.

    Args:
        prompt: its token ids.
        stream: names its random numbers.
        max_new_tokens: tokens of the answer at most.
        ngram: size of the n-grams that may not occur twice, or 0.
    """

    def __init__(self, prompt: tuple[int, ...], stream: str, max_new_tokens: int, ngram: int) -> None:
        self.prompt = prompt
        self.tokens: list[int] = []
        self.notes: list[tuple[float, ...]] = []
        self.done = False
        self._limit, self._ngram = max_new_tokens, ngram
        self._random = hashlib.shake_128(stream.encode()).digest(4 * max_new_tokens)
        self._followers: dict[tuple[int, ...], set[int]] = defaultdict(set)
        self._recent: deque[int] = deque(maxlen=max(ngram, 1))
        if ngram:
            self._note(prompt)

    def add(self, token: int, eos: int | None) -> None:
        """Appends a token."""
        self.tokens.append(token)
        self.done = token == eos or len(self.tokens) == self._limit
        if self._ngram:
            self._note([token])

    def bits(self) -> int:
        """The 32 random bits of the next token."""
        at = 4 * len(self.tokens)
        return int.from_bytes(self._random[at : at + 4], "little")

    def banned(self) -> Iterable[int]:
        """The tokens that would complete an n-gram which occurred before."""
        if not self._ngram or self.done:
            return ()
        recent = tuple(self._recent)
        return self._followers.get(recent[len(recent) - self._ngram + 1 :], ())

    def _note(self, tokens: Iterable[int]) -> None:
        for token in tokens:
            self._recent.append(token)
            if len(self._recent) == self._ngram:
                *context, last = self._recent
                self._followers[tuple(context)].add(last)


class Batch:
    """Rows that a model decodes together: one cache for all, padded on the left to the longest row.

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
        self._head = split_head(model) if self._output is not None and _rounds(self._output) else None
        self._accepted = inspect.signature(model.forward).parameters
        self._empty()

    def _empty(self) -> None:
        self._cache: DynamicCache | None = None
        self._lengths: list[int] = []
        self._width = 0
        self._last: tuple[Tensor, ...] = ()

    @property
    def logits(self) -> Tensor:
        """The model's own logits of the next token of each row: [rows, V]."""
        return self._last[0]

    def join(self, prompts: Sequence[tuple[int, ...]]) -> None:
        """Adds a row for each prompt; equal prompts are run once."""
        unique = list(dict.fromkeys(prompts))
        ids, lengths = left_padded(unique, 0, self._model.device)
        cache = DynamicCache(config=self._model.config)
        cache.layers = [_RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
        last = self._forward(ids, lengths, ids.shape[1], cache)
        if len(unique) < len(prompts):
            place = {prompt: i for i, prompt in enumerate(unique)}
            copies = torch.tensor([place[prompt] for prompt in prompts], device=ids.device)
            cache.batch_select_indices(copies)
            last = tuple(x[copies] for x in last)
        width = max(self._width, ids.shape[1])
        if self._cache is None:
            self._cache, self._last = cache, last
        else:
            for layer, other in zip(self._cache.layers, cache.layers, strict=True):
                _join_layers(layer, other, width)
            self._last = tuple(torch.cat(pair) for pair in zip(self._last, last, strict=True))
        self._width = width
        self._lengths += [len(prompt) for prompt in prompts]

    def step(self, tokens: Sequence[int | None]) -> None:
        """Appends a token to each row; None to a row that needs no more logits."""
        self._lengths = [
            1 if token is None else length + 1 for token, length in zip(tokens, self._lengths, strict=True)
        ]
        self._width += 1
        device = self._model.device
        ids = torch.tensor([[token or 0] for token in tokens], device=device)
        assert self._cache is not None
        self._last = self._forward(ids, torch.tensor(self._lengths, device=device), self._width, self._cache)

    def keep(self, rows: Sequence[int]) -> None:
        """Drops all rows but these, and the positions that are padding in all that stay."""
        if not rows:
            self._empty()
            return
        assert self._cache is not None
        index = torch.tensor(rows, device=self.logits.device)
        self._last = tuple(x[index] for x in self._last)
        self._lengths = [self._lengths[i] for i in rows]
        self._width = max(self._lengths)
        self._cache.batch_select_indices(index)
        for layer in self._cache.layers:
            _trim(layer, self._width)

    def _forward(self, ids: Tensor, lengths: Tensor, width: int, cache: DynamicCache) -> tuple[Tensor, ...]:
        """Runs `ids`, the last columns of rows `width` wide, and returns the last logits.

        If the logits are rounded, the states [rows, D] that they were computed from follow them.
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
        """log p of the next token of each row, [rows, V], from logits that are not rounded."""
        logits, *states = self._last
        if self._head is not None and states:
            logits = self._head.cut(self._vocabulary).logits(states[0])
        return log_normalise(logits.float())

    def notes(self, tokens: Sequence[int]) -> list[tuple[float, ...]]:
        """Returns the values that an answer keeps beside the next token of each row."""
        if not self._log_probs:
            return [()] * len(tokens)
        index = torch.tensor(tokens, device=self.logits.device).clamp(min=0).unsqueeze(1)
        return [(value,) for value in self.log_probs.gather(1, index).squeeze(1).tolist()]


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
        self.keys = self._appended("keys", key_states)
        self.values = self._appended("values", value_states)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps the rows of `indices`, in their order."""
        super().batch_select_indices(indices)
        self.forget_rooms()

    def forget_rooms(self) -> None:
        """Frees the memory of arrays that were replaced when the number of rows changed."""
        self._rooms.clear()

    def _appended(self, name: str, new: Tensor) -> Tensor:
        held: Tensor = getattr(self, name)
        n = held.shape[-2] if held.numel() else 0
        end = n + new.shape[-2]
        room, filled = self._rooms.get(name, (held, None))
        if filled is not held or end > room.shape[-2]:
            room = new.new_empty(*new.shape[:2], end + self.ROOM, new.shape[-1])
            if n:
                room[:, :, :n] = held
        room[:, :, n:end] = new
        filled = room[:, :, :end]
        self._rooms[name] = room, filled
        return filled


class MixedBatch:
    """Rows that two models decode together by the mixture of their distributions."""

    logits: Tensor
    """The logarithm of the mixture over the next token of each row: [rows, V]."""

    def __init__(
        self, student: PreTrainedModel, teacher: PreTrainedModel, teacher_share: float, vocabulary: int
    ) -> None:
        self._batches = tuple(Batch(model, vocabulary, log_probs=True) for model in (teacher, student))
        self._teacher_share = teacher_share
        self._parts: list[Tensor] = []

    def join(self, prompts: Sequence[tuple[int, ...]]) -> None:
        """Adds prompts as new rows to both models' batches."""
        for batch in self._batches:
            batch.join(prompts)
        self._mix()

    def step(self, tokens: Sequence[int | None]) -> None:
        """Appends a token to each row of both models' batches, and mixes their next distributions."""
        for batch in self._batches:
            batch.step(tokens)
        self._mix()

    def keep(self, rows: Sequence[int]) -> None:
        """Keeps these rows of both models' batches, in this order."""
        for batch in self._batches:
            batch.keep(rows)

    def notes(self, tokens: Sequence[int]) -> list[tuple[float, ...]]:
        """Returns the log-probabilities of the next token of each row under mixture, teacher and student.

        The log-probability under the mixture comes from the same logits that the token is drawn from.
        """
        index = torch.tensor(tokens, device=self.logits.device).clamp(min=0).unsqueeze(1)
        parts = [
            batch.log_probs if batch.rounded else part
            for batch, part in zip(self._batches, self._parts, strict=True)
        ]
        columns = [part.gather(1, index) for part in (self.logits, *parts)]
        return [tuple(row) for row in torch.cat(columns, dim=1).tolist()]

    def _mix(self) -> None:
        log_p, log_q = (batch.logits.float().log_softmax(-1) for batch in self._batches)
        self._parts = [log_p, log_q]
        self.logits = mixed_log_probs(log_p, log_q, self._teacher_share)


def _rounds(output: nn.Module) -> bool:
    """Whether the products of a head have fewer digits than float32."""
    dtype = operand_dtype(output.weight)  # type: ignore[arg-type]
    return precise(dtype) != dtype


def holds_keys_and_values(model: PreTrainedModel) -> bool:
    """Whether the model's cache is keys and values only, so that rows can be taken out and put in."""
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
