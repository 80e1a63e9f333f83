"""Sequences of token ids, packed text, and the padded micro-batches that are made of them."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from amid.data.prompts import IGNORE

MicroBatch = dict[str, Tensor]
"""`input_ids`, `attention_mask` and `labels`, [rows, longest] each, padded on the right, and `rows` [rows]:
the number of each row's sequence: training sequences come first, then validation sequences; `NO_ROW` for
neither. Sampled rows also have `sampling` [rows, longest, 2], see `SampledRow`.

A packed micro-batch is one row, [1, length], of all its sequences one after the other, without padding. It
also has `position_ids` [1, length], which begin at 0 in each sequence. A sequence's first token is no
label."""

Row = tuple[Tensor, int, int]
"""A sequence: its token ids, the length of its prompt, and its number."""

SampledRow = tuple[Tensor, int, int, Tensor]
"""A sequence with a sampled response: a `Row`, followed by what `amid.losses.MiniLLM` takes as `sampling` for
each token of the response, [response, 2]."""

Mean = Literal["step", "micro_batch"]
"""The unit that the loss is averaged over."""

NO_ROW = -1
"""The number of a sequence that is in neither set."""

_AT_ONCE = 1000
"""Documents that are tokenised at once."""


@dataclass(frozen=True)
class Tokens(Dataset[Row]):
    """Token ids of many sequences: `ids` [total], `ends` [n] of each, `prompts` [n] prompt lengths.

    An item is a sequence, the length of its prompt, and its number; `first` is the first sequence's number.
    """

    ids: Tensor
    ends: Tensor
    prompts: Tensor
    first: int = 0

    @classmethod
    def of(cls, sequences: Iterable[tuple[Sequence[int], int]]) -> "Tokens":
        """Makes `Tokens` from sequences, each with its token ids and the length of its prompt."""
        encoded = list(sequences)
        ids = torch.tensor([i for row, _ in encoded for i in row], dtype=torch.int32)
        lengths = torch.tensor([len(row) for row, _ in encoded], dtype=torch.int64)
        prompts = torch.tensor([n_prompt for _, n_prompt in encoded], dtype=torch.int64)
        return cls(ids, lengths.cumsum(0), prompts)

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> "Tokens":
        """Makes `Tokens` from the `tensors` of another object."""
        return cls(tensors["ids"], tensors["ends"], tensors["prompts"])

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Plain tensors from which `of_tensors` makes the same sequences, without `first`."""
        return {"ids": self.ids, "ends": self.ends, "prompts": self.prompts}

    def __len__(self) -> int:
        return len(self.ends)

    def __iter__(self) -> Iterator[Row]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Row:
        start = int(self.ends[index - 1]) if index > 0 else 0
        return self.ids[start : int(self.ends[index])], int(self.prompts[index]), self.first + index

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sequence."""
        return torch.diff(self.ends, prepend=self.ends.new_zeros(1)).tolist()

    @property
    def counted(self) -> list[int]:
        """Counted tokens of each sequence: response and EOS."""
        starts = self.ends - torch.tensor(self.lengths)
        return (self.ends - starts - self.prompts.clamp(min=1)).clamp(min=0).tolist()

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all token ids and prompt lengths."""
        digest = hashlib.sha256()
        for tensor in (self.ids, self.ends, self.prompts):
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()


def collate(
    rows: Sequence[Row | SampledRow],
    pad_token_id: int,
    micro_batch_size: int | None = None,
    tokens_per_batch: int | None = None,
    by_length: bool = True,
) -> list[MicroBatch]:
    """The micro-batches of one optimiser step (`cut`), each padded to its own longest row (`pad`)."""
    parts = cut(rows, micro_batch_size, tokens_per_batch, by_length)
    return [pad(part, pad_token_id) for part in parts]


def cut(
    rows: Sequence[Row | SampledRow],
    micro_batch_size: int | None = None,
    tokens_per_batch: int | None = None,
    by_length: bool = True,
    packing: bool = False,
) -> list[list[Row | SampledRow]]:
    """Cuts the rows of one optimiser step into micro-batches, the shortest rows first.

    A micro-batch holds at most `micro_batch_size` rows and at most `tokens_per_batch` tokens, padding
    included unless they are for `packing`; a longer row makes one of its own. Without `by_length`, rows stay
    in their order.
    """
    parts: list[list[Row | SampledRow]] = []
    for row in sorted(rows, key=lambda row: len(row[0])) if by_length else rows:
        lengths = [len(ids) for ids, *_ in [*(parts[-1] if parts else []), row]]
        tokens = sum(lengths) if packing else len(lengths) * lengths[-1]
        if (
            not parts
            or (micro_batch_size is not None and len(lengths) > micro_batch_size)
            or (tokens_per_batch is not None and tokens > tokens_per_batch)
        ):
            parts.append([])
        parts[-1].append(row)
    return parts


def counted(row: Row | SampledRow) -> int:
    """The counted tokens of a row: response and EOS."""
    return max(0, len(row[0]) - max(1, row[1]))


def counted_positions(batch: MicroBatch) -> Tensor:
    """Where [rows, length] a counted token, of a response or its EOS, is predicted."""
    positions = torch.zeros_like(batch["labels"], dtype=torch.bool)
    positions[:, :-1] = batch["labels"][:, 1:] != IGNORE
    return positions


def pad(rows: Sequence[Row | SampledRow], pad_token_id: int) -> MicroBatch:
    """Pads rows on the right, to the longest of them.

    Labels are the token ids at response and EOS, `IGNORE` at prompt and padding (unshifted: the label
    at t is predicted from the tokens before t). `sampling` stands where the labels do, 0 elsewhere.
    """
    sequences, prompts, numbers, *sampled = zip(*rows, strict=True)
    lengths = torch.tensor([len(ids) for ids in sequences]).unsqueeze(1)
    input_ids = pad_sequence(list(sequences), batch_first=True, padding_value=pad_token_id).long()
    place = torch.arange(input_ids.shape[1])
    response = (place >= torch.tensor(prompts).unsqueeze(1)) & (place < lengths)
    batch = {
        "input_ids": input_ids,
        "attention_mask": (place < lengths).long(),
        "labels": input_ids.masked_fill(~response, IGNORE),
        "rows": torch.tensor(numbers),
    }
    if sampled:
        batch["sampling"] = torch.zeros(*input_ids.shape, 2)
        batch["sampling"][response] = torch.cat(sampled[0])
    return batch


def pack(rows: Sequence[Row | SampledRow]) -> MicroBatch:
    """Packs rows into one, without padding (see `MicroBatch`); labels and `sampling` are those of `pad`."""
    ids, prompts, numbers, *sampled = zip(*rows, strict=True)
    lengths = torch.tensor([len(of) for of in ids])
    place = torch.cat([torch.arange(n) for n in lengths.tolist()])
    response = place >= torch.tensor(prompts).repeat_interleave(lengths)
    input_ids = torch.cat(ids).long()
    batch = {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "labels": input_ids.masked_fill(~response | (place == 0), IGNORE),
        "position_ids": place,
    }
    if sampled:
        batch["sampling"] = torch.zeros(len(place), 2)
        batch["sampling"][response] = torch.cat(sampled[0])
    return {name: value.unsqueeze(0) for name, value in batch.items()} | {"rows": torch.tensor(numbers)}


def packed(
    documents: Sequence[str], encode: Callable[[Sequence[str]], list[list[int]]], eos: int, length: int
) -> Iterator[list[int]]:
    """The token ids of all documents, one after the other with EOS after each, in pieces of `length` tokens.

    The last piece may be shorter; it is left out where it is a single token, from which nothing is predicted.
    """
    rest: list[int] = []
    for start in range(0, len(documents), _AT_ONCE):
        for ids in encode(documents[start : start + _AT_ONCE]):
            rest += [*ids, eos]
        whole = len(rest) // length * length
        yield from (rest[i : i + length] for i in range(0, whole, length))
        rest = rest[whole:]
    if len(rest) > 1:
        yield rest
