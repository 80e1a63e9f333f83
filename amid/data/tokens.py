"""Sequences of token ids, packed text, and the padded micro-batches that are made of them."""

import hashlib
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Literal, NamedTuple, Self

import numpy as np
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

Sharing = Literal["rows", "micro_batches"]
"""The unit that the devices of a run share out."""

NO_ROW = -1
"""The number of a sequence that is in neither set."""

_IN_MEMORY = 2**22
"""Numbers that are held in memory before they are written to a file."""

_AT_ONCE = 1000
"""Documents that are tokenised at once."""


class _Growing:
    """Numbers that grow, in a file without a name in `folder` once there are many; in memory without one.

    `kind` is the type of `array` that holds them.
    """

    def __init__(self, kind: str, folder: Path | None) -> None:
        self._held = array(kind)
        self._n = 0
        self._folder = folder
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def extend(self, values: Iterable[int]) -> None:
        """Adds numbers at the end."""
        self._held.extend(values)
        if self._folder is not None and len(self._held) >= _IN_MEMORY:
            self._write()

    def tensor(self, dtype: torch.dtype) -> Tensor:
        """All numbers; they are read from the file as they are needed."""
        if self._file is None:
            return torch.from_numpy(np.array(self._held)).view(dtype)
        self._write()
        stored = np.memmap(self._file, self._held.typecode, "c", shape=(self._n,))
        return torch.from_numpy(stored).view(dtype)

    def _write(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115  # closed with this object
        self._n += len(self._held)
        self._held.tofile(self._file)
        self._file.flush()
        del self._held[:]


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
    def of(cls, sequences: Iterable[tuple[Sequence[int], int]], folder: Path | None = None) -> "Tokens":
        """Makes `Tokens` from the token ids of sequences and the lengths of their prompts (`of_turns`)."""
        return cls.of_turns(((ids, n_prompt, None) for ids, n_prompt in sequences), folder)

    @classmethod
    def of_turns(
        cls,
        sequences: Iterable[tuple[Sequence[int], int, Sequence[bool] | None]],
        folder: Path | None = None,
    ) -> "Tokens":
        """Makes `Tokens` from token ids, the length of the prompt, and whether each token counts.

        None stands for a sequence that counts after its prompt alone. If there is a `folder`, it holds the
        ids of many sequences in files without names, which go with them; otherwise the memory does.
        """
        ends, prompts, total, has_counts = array("q"), array("q"), 0, False
        with _Growing("i", folder) as ids, _Growing("b", folder) as counts:
            for row, n_prompt, of_row in sequences:
                total += len(row)
                ends.append(total)
                prompts.append(n_prompt)
                ids.extend(row)
                first = min(n_prompt, len(row))
                counts.extend(b"\0" * first + b"\1" * (len(row) - first) if of_row is None else bytes(of_row))
                has_counts |= of_row is not None
            return cls(
                ids.tensor(torch.int32),
                torch.from_numpy(np.array(ends)),
                torch.from_numpy(np.array(prompts)),
                counts=counts.tensor(torch.bool) if has_counts else None,
            )

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
            digest.update(tensor.contiguous().numpy().data)
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
