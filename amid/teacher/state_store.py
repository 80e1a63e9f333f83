"""Hidden states on disk: written once in shards, verified, read through memory maps."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from amid.console import announce
from amid.distributed import ranks
from amid.files import Record, checksum, forget_parts, read_made, write_json
from amid.losses import Head
from amid.teacher.state_codes import EXACT, bytes_of_position, decoded, encoded, kl
from amid.tensor_files import write_tensors

SHARD_BYTES = 256 * 2**20
"""Bytes of a shard at most, unless one row alone takes more."""

MANIFEST = "manifest.json"

MEASURED = 16
"""The KL divergence of lossy states from the exact ones is measured at one position in this many."""


@dataclass(frozen=True)
class States:
    """Hidden states of many rows: row i is in shard s from start to stop, where `places[i]` is (s, start,
    stop). A shard holds what `amid.teacher.state_codes.encoded` gives."""

    shards: Sequence[Mapping[str, Tensor]]
    places: Tensor
    dtype: torch.dtype
    kl: tuple[float, int] | None = None
    """The sum of KL(p ‖ p') over measured positions, and their number, where p is of the exact states and p'
    of these; None for exact states."""

    def __len__(self) -> int:
        return len(self.places)

    @property
    def positions(self) -> int:
        """Positions of all rows."""
        return sum(len(shard["states"]) for shard in self.shards)

    @property
    def nbytes(self) -> int:
        """Bytes of all states."""
        return sum(tensor.nbytes for shard in self.shards for tensor in shard.values())

    def __getitem__(self, rows: Tensor) -> Tensor:
        """The states [N, D] of `rows`, one row after the other."""
        pieces = [
            {name: tensor[start:stop] for name, tensor in self.shards[s].items()}
            for s, start, stop in self.places[rows].tolist()
        ]
        return decoded({name: torch.cat([p[name] for p in pieces]) for name in pieces[0]}, self.dtype)

    @classmethod
    def joined(cls, parts: Sequence["States"]) -> "States":
        """The rows of all parts, numbered on from part to part."""
        shards: list[Mapping[str, Tensor]] = []
        places = []
        for part in parts:
            places.append(part.places + torch.tensor([len(shards), 0, 0]))
            shards += part.shards
        measured = [part.kl for part in parts if part.kl is not None]
        kl = (sum(nats for nats, _ in measured), sum(n for _, n in measured)) if measured else None
        return cls(shards, torch.cat(places), parts[0].dtype, kl)


class Shard(Record):
    """A file of the states of some rows; `checksum` is None until it is written."""

    file: str
    rows: int
    positions: int
    checksum: str | None = None
    nats: float = 0.0
    """The sum of the KL divergence at the measured positions, see `States.kl`."""
    measured: int = 0
    """The number of these positions; 0 for exact states."""


class _Manifest(Record):
    made_from: dict[str, Any]
    rows: int
    positions: int
    width: int
    dtype: str
    shards: list[Shard]


class StateFolder:
    """A folder with the hidden states of one set of rows.

    `manifest.json` says what they were made from, and lists the shards. A shard is a safetensors file of
    whole rows, in the order of `order`, with `states` [positions, D] and what else `code` writes. Every file
    appears whole or not at all; a shard that is missing, cut or changed is found by its checksum, and made
    again alone. Writing needs a lock around it.

    Args:
        folder: the folder; it is made if it does not exist.
        counts: positions of each row.
        order: the rows in the order in which they are written.
        made_from: JSON values of all that the states follow from; states of another origin are not used.
        code: how the states are written (`amid.teacher.state_codes`); another code is another origin.
    """

    def __init__(
        self,
        folder: Path,
        counts: Sequence[int],
        order: Sequence[int],
        made_from: Mapping[str, Any],
        code: str = EXACT,
    ) -> None:
        self.folder = folder
        self.code = code
        self.counts = [counts[row] for row in order]  # in the order of writing
        self.order = order
        self.made_from = dict(made_from)

    def open(self) -> States | None:
        """Verifies and memory-maps every shard, and returns the states; None if a shard is to be written."""
        manifest = self._manifest()
        shards = self._shards(manifest)
        if manifest is None or not shards or not all(self._whole(shard) for shard in shards):
            return None
        places = torch.empty(len(self.order), 3, dtype=torch.int64)
        counts, order = torch.tensor(self.counts), torch.tensor(self.order)
        done = 0
        for number, shard in enumerate(shards):
            here = slice(done, done + shard.rows)
            stops = counts[here].cumsum(0)
            place = torch.stack([torch.full_like(stops, number), stops - counts[here], stops], dim=1)
            places[order[here]] = place
            done += shard.rows
        measured = sum(shard.measured for shard in shards)
        kl = (sum(shard.nats for shard in shards), measured) if measured else None
        tensors = [load_file(self.folder / shard.file) for shard in shards]
        return States(tensors, places, getattr(torch, manifest.dtype), kl)

    def missing(self, width: int, dtype: torch.dtype) -> list[int]:
        """Returns the rows that still need their states [N, `width`] written."""
        rows: list[int] = []
        done = 0
        for shard in self._planned(width, dtype):
            if not self._whole(shard):
                rows += self.order[done : done + shard.rows]
            done += shard.rows
        return rows

    def write(
        self,
        width: int,
        dtype: torch.dtype,
        states_of: Callable[[Sequence[int]], Iterator[Tensor]],
        head: Head | None = None,
    ) -> None:
        """Writes the shards that are missing or damaged. The ranks of a run each write some.

        Args:
            width: D.
            dtype: the dtype of the states.
            states_of: gives the states of rows in their order, in pieces [N, D].
            head: the head that makes logits of the states, to measure what a lossy code loses.
        """
        shards, waiting = ranks.from_first(lambda: self._begin(width, dtype))
        about = {"made_from": self.made_from, "rows": len(self.order), "positions": sum(self.counts)}
        about |= {"width": width, "dtype": str(dtype).removeprefix("torch.")}
        starts = [0, *accumulate(shard.rows for shard in shards)]
        for first in range(0, len(waiting), ranks.number()):
            together = waiting[first : first + ranks.number()]
            written = None
            if ranks.rank() < len(together):
                number = together[ranks.rank()]
                rows = self.order[starts[number] : starts[number + 1]]
                shard = self._write(shards[number], width, dtype, states_of(rows), head)
                written = number, shard
            for number, shard in filter(None, ranks.gathered(written)):
                shards[number] = shard
            content = about | {"shards": [shard.model_dump() for shard in shards]}
            ranks.from_first(partial(write_json, self.folder / MANIFEST, content))

    def _begin(self, width: int, dtype: torch.dtype) -> tuple[list[Shard], list[int]]:
        """Makes the folder; returns all shards, and the numbers of the shards that are to be written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        forget_parts(self.folder)
        shards = self._planned(width, dtype)
        waiting = [number for number, shard in enumerate(shards) if not self._whole(shard)]
        for number in waiting:
            if shards[number].checksum is not None:
                announce(f"{self.folder / shards[number].file} is damaged: made again")
        return shards, waiting

    def _write(
        self, shard: Shard, width: int, dtype: torch.dtype, pieces: Iterator[Tensor], head: Head | None
    ) -> Shard:
        """Writes the states of a shard's rows, given in pieces; returns the shard as it is now."""
        tensors = encoded(torch.empty(shard.positions, width, dtype=dtype), self.code)
        filled, shard.nats, shard.measured = 0, 0.0, 0
        for piece in pieces:
            coded = encoded(piece, self.code)
            for name, tensor in coded.items():
                tensors[name][filled : filled + len(piece)] = tensor
            if self.code != EXACT and head is not None:
                measured = slice(-filled % MEASURED, None, MEASURED)  # of the shard, however it is cut
                some = {name: tensor[measured] for name, tensor in coded.items()}
                shard.nats += kl(head, piece[measured], decoded(some, dtype))
                shard.measured += len(some["states"])
            filled += len(piece)
        assert filled == shard.positions, (filled, shard)
        shard.checksum = write_tensors(self.folder / shard.file, tensors)
        return shard

    def _planned(self, width: int, dtype: torch.dtype) -> list[Shard]:
        """Returns the shards of the manifest, or new shards if the manifest has none of this shape."""
        manifest = self._manifest()
        if manifest and (manifest.width, manifest.dtype) == (width, str(dtype).removeprefix("torch.")):
            shards = self._shards(manifest)
            if shards:
                return shards
        most = SHARD_BYTES // bytes_of_position(self.code, width, dtype)
        shards = []
        for count in self.counts:
            if not shards or shards[-1].positions + count > most:
                file = f"states-{len(shards):05d}.safetensors"
                shards.append(Shard(file=file, rows=0, positions=0))
            shards[-1].rows += 1
            shards[-1].positions += count
        return shards

    def _manifest(self) -> _Manifest | None:
        return read_made(self.folder / MANIFEST, _Manifest)

    def _shards(self, manifest: _Manifest | None) -> list[Shard]:
        """Returns the shards that a manifest lists; none if the manifest has other rows or another origin."""
        if manifest is None or manifest.made_from != self.made_from:
            return []
        done = 0
        for shard in manifest.shards:
            here = self.counts[done : done + shard.rows]
            done += shard.rows
            if len(here) != shard.rows or sum(here) != shard.positions or Path(shard.file).name != shard.file:
                return []
        return manifest.shards if done == len(self.counts) else []

    def _whole(self, shard: Shard) -> bool:
        return shard.checksum is not None and shard.checksum == checksum(self.folder / shard.file)
