"""Sequences of token ids, packed text, and the padded micro-batches that are made of them."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from amid.data.prompts import IGNORE

MicroBatch = dict[str, Tensor]
"""`input_ids`, `attention_mask` and `labels`, [rows, longest] each, padded on the right, and `rows` [rows]:
the number of each row's sequence: training sequences come first, then validation sequences; `NO_ROW` for
neither. Sampled rows also have `sampling` [rows, longest, 2], see `Row`.

A packed micro-batch is one row, [1, length], of all its sequences one after the other, without padding. It
also has `position_ids` [1, length], which begin at 0 in each sequence. A sequence's first token is no
label."""

Mean = Literal["step", "micro_batch"]
"""The unit that the loss is averaged over."""

NO_ROW = -1
"""The number of a sequence that is in neither set."""

_AT_ONCE = 1000
"""Documents that are tokenised at once."""


class Row(NamedTuple):
    """A sequence of token ids: a prompt, its response, and which of the tokens count."""

    ids: Tensor
    """[length]"""
    n_prompt: int
    """The tokens before the last response. A model that answers the row reads them as its prompt."""
    number: int = NO_ROW
    """The number of the sequence in the training and validation data; `NO_ROW` for a sequence in neither."""
    counts: Tensor | None = None
    """Whether each token counts, [length]: in a conversation, earlier answers count too. None if the
    tokens after the prompt count, and no others."""
    sampling: Tensor | None = None
    """What `amid.losses.MiniLLM` takes as `sampling` for each token of a sampled response, [response, 2]."""


@dataclass(frozen=True)
class Tokens(Dataset[Row]):
    """Token ids of many sequences: `ids` [total], `ends` [n] of each, `prompts` [n] prompt lengths.

    `counts` [total] says which tokens count; None if the tokens after a prompt count, and no others. An item
    is a `Row`; `first` is the first sequence's number.
    """

    ids: Tensor
    ends: Tensor
    prompts: Tensor
    first: int = 0
    counts: Tensor | None = None

    @classmethod
    def of(cls, sequences: Iterable[tuple[Sequence[int], int]]) -> "Tokens":
        """Makes `Tokens` from sequences, each with its token ids and the length of its prompt."""
        return cls.of_turns((ids, n_prompt, None) for ids, n_prompt in sequences)

    @classmethod
    def of_turns(cls, sequences: Iterable[tuple[Sequence[int], int, Sequence[bool] | None]]) -> "Tokens":
        """Makes `Tokens` from token ids, the length of the prompt, and whether each token counts.

        None stands for a sequence that counts after its prompt alone.
        """
        encoded = list(sequences)
        ids = torch.tensor([i for row, *_ in encoded for i in row], dtype=torch.int32)
        lengths = torch.tensor([len(row) for row, *_ in encoded], dtype=torch.int64)
        prompts = torch.tensor([n_prompt for _, n_prompt, _ in encoded], dtype=torch.int64)
        counts = None
        if any(of_row is not None for *_, of_row in encoded):
            every = (
                [place >= n_prompt for place in range(len(row))] if of_row is None else of_row
                for row, n_prompt, of_row in encoded
            )
            counts = torch.tensor([one for of_row in every for one in of_row], dtype=torch.bool)
        return cls(ids, lengths.cumsum(0), prompts, counts=counts)

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> "Tokens":
        """Makes `Tokens` from the `tensors` of another object."""
        return cls(tensors["ids"], tensors["ends"], tensors["prompts"], counts=tensors.get("counts"))

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Plain tensors from which `of_tensors` makes the same sequences, without `first`."""
        counts = {} if self.counts is None else {"counts": self.counts}
        return {"ids": self.ids, "ends": self.ends, "prompts": self.prompts, **counts}

    def __len__(self) -> int:
        return len(self.ends)

    def __iter__(self) -> Iterator[Row]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Row:
        start, end = int(self.ends[index - 1]) if index > 0 else 0, int(self.ends[index])
        counts = None if self.counts is None else self.counts[start:end]
        return Row(self.ids[start:end], int(self.prompts[index]), self.first + index, counts)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sequence."""
        return torch.diff(self.ends, prepend=self.ends.new_zeros(1)).tolist()

    @property
    def counted(self) -> list[int]:
        """Counted tokens of each sequence, such as response and EOS. A first token is not predicted."""
        lengths = torch.tensor(self.lengths, dtype=torch.int64)
        if self.counts is None:
            return (lengths - self.prompts.clamp(min=1)).clamp(min=0).tolist()
        predicted = self.counts.clone()
        predicted[(self.ends - lengths)[lengths > 0]] = False
        sums = torch.cat([torch.zeros(1, dtype=torch.int64), predicted.cumsum(0)])
        return torch.diff(sums[self.ends], prepend=sums[:1]).tolist()

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all token ids, prompt lengths and `counts`."""
        digest = hashlib.sha256()
        for tensor in self.tensors.values():
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()


def collate(
    rows: Sequence[Row],
    pad_token_id: int,
    micro_batch_size: int | None = None,
    tokens_per_batch: int | None = None,
    by_length: bool = True,
) -> list[MicroBatch]:
    """The micro-batches of one optimiser step (`cut`), each padded to its own longest row (`pad`)."""
    parts = cut(rows, micro_batch_size, tokens_per_batch, by_length)
    return [pad(part, pad_token_id) for part in parts]


def cut(
    rows: Sequence[Row],
    micro_batch_size: int | None = None,
    tokens_per_batch: int | None = None,
    by_length: bool = True,
    packing: bool = False,
) -> list[list[Row]]:
    """Cuts the rows of one optimiser step into micro-batches, the shortest rows first.

    A micro-batch holds at most `micro_batch_size` rows and at most `tokens_per_batch` tokens, padding
    included unless they are for `packing`; a longer row makes one of its own. Without `by_length`, rows stay
    in their order.
    """
    parts: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: len(row.ids)) if by_length else rows:
        lengths = [len(one.ids) for one in [*(parts[-1] if parts else []), row]]
        tokens = sum(lengths) if packing else len(lengths) * lengths[-1]
        if (
            not parts
            or (micro_batch_size is not None and len(lengths) > micro_batch_size)
            or (tokens_per_batch is not None and tokens > tokens_per_batch)
        ):
            parts.append([])
        parts[-1].append(row)
    return parts


def counted(row: Row) -> int:
    """The counted tokens of a row, such as response and EOS."""
    return int(_counts(row)[1:].sum())


def _counts(row: Row) -> Tensor:
    """Whether each token of a row counts, [length]."""
    return torch.arange(len(row.ids)) >= row.n_prompt if row.counts is None else row.counts


def counted_positions(batch: MicroBatch) -> Tensor:
    """Where [rows, length] a counted token, such as one of a response or its EOS, is predicted."""
    positions = torch.zeros_like(batch["labels"], dtype=torch.bool)
    positions[:, :-1] = batch["labels"][:, 1:] != IGNORE
    return positions


def pad(rows: Sequence[Row], pad_token_id: int) -> MicroBatch:
    """Pads rows on the right, to the longest of them.

    Labels are the token ids where tokens count, `IGNORE` elsewhere (unshifted: the label at t is predicted
    from the tokens before t). `sampling` stands where the labels do, 0 elsewhere.
    """
    lengths = torch.tensor([len(row.ids) for row in rows]).unsqueeze(1)
    input_ids = pad_sequence([row.ids for row in rows], batch_first=True, padding_value=pad_token_id).long()
    counts = pad_sequence([_counts(row) for row in rows], batch_first=True)
    batch = {
        "input_ids": input_ids,
        "attention_mask": (torch.arange(input_ids.shape[1]) < lengths).long(),
        "labels": input_ids.masked_fill(~counts, IGNORE),
        "rows": torch.tensor([row.number for row in rows]),
    }
    return batch | _sampling(rows, counts)


def pack(rows: Sequence[Row]) -> MicroBatch:
    """Packs rows into one, without padding (see `MicroBatch`); labels and `sampling` are those of `pad`."""
    place = torch.cat([torch.arange(len(row.ids)) for row in rows])
    counts = torch.cat([_counts(row) for row in rows])
    input_ids = torch.cat([row.ids for row in rows]).long()
    batch = {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "labels": input_ids.masked_fill(~counts | (place == 0), IGNORE),
        "position_ids": place,
    } | _sampling(rows, counts)
    numbers = torch.tensor([row.number for row in rows])
    return {name: value.unsqueeze(0) for name, value in batch.items()} | {"rows": numbers}


def _sampling(rows: Sequence[Row], counts: Tensor) -> dict[str, Tensor]:
    """`sampling` [*counts.shape, 2] of sampled rows, where `counts` is true; nothing of other rows."""
    of_rows = [row.sampling for row in rows if row.sampling is not None]
    if not of_rows:
        return {}
    assert len(of_rows) == len(rows), "sampled rows and others in one micro-batch"
    sampling = torch.zeros(*counts.shape, 2)
    sampling[counts] = torch.cat(of_rows)
    return {"sampling": sampling}


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
