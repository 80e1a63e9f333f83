"""Hidden states on disk: written once in shards, verified, read through memory maps."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from amid.console import announce
from amid.files import Record, checksum, forget_parts, read_made, write_json
from amid.tensor_files import write_tensors

SHARD_BYTES = 256 * 2**20
"""Bytes of a shard at most, unless one row alone takes more."""

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class States:
    """Hidden states of many rows: row i is `shards[s][start:stop]`, where `places[i]` is (s, start, stop)."""

    shards: Sequence[Tensor]
    places: Tensor

    def __len__(self) -> int:
        return len(self.places)

    @property
    def positions(self) -> int:
        """Positions of all rows."""
        return sum(len(shard) for shard in self.shards)

    @property
    def nbytes(self) -> int:
        """Bytes of all states."""
        return sum(shard.nbytes for shard in self.shards)

    def __getitem__(self, rows: Tensor) -> Tensor:
        """The states [N, D] of `rows`, one row after the other."""
        return torch.cat([self.shards[s][start:stop] for s, start, stop in self.places[rows].tolist()])

    @classmethod
    def joined(cls, parts: Sequence["States"]) -> "States":
        """The rows of all parts, numbered on from part to part."""
        shards: list[Tensor] = []
        places = []
        for part in parts:
            places.append(part.places + torch.tensor([len(shards), 0, 0]))
            shards += part.shards
        return cls(shards, torch.cat(places))


class Shard(Record):
    """A file of the states of some rows; `checksum` is None until it is written."""

    file: str
    rows: int
    positions: int
    checksum: str | None = None


class _Manifest(Record):
    made_from: dict[str, Any]
    rows: int
    positions: int
    width: int
    dtype: str
    shards: list[Shard]


class StateFolder:
    """A folder with the hidden states of one set of rows.

    `manifest.json` says what they were made from, and lists the shards. A shard is a safetensors file with
    `states` [positions, D] of whole rows, in the order of `order`. Every file appears whole or not at all; a
    shard that is missing, cut or changed is found by its checksum, and made again alone. Writing needs a lock
    around it.

    Args:
        folder: the folder; it is made if it does not exist.
        counts: positions of each row.
        order: the rows in the order in which they are written.
        made_from: JSON values of all that the states follow from; states of another origin are not used.
    """

    def __init__(
        self, folder: Path, counts: Sequence[int], order: Sequence[int], made_from: Mapping[str, Any]
    ) -> None:
        self.folder = folder
        self.counts = [counts[row] for row in order]  # in the order of writing
        self.order = order
        self.made_from = dict(made_from)

    def open(self) -> States | None:
        """Verifies and memory-maps every shard, and returns the states; None if a shard is to be written."""
        shards = self._shards(self._manifest())
        if not shards or not all(self._whole(shard) for shard in shards):
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
        return States([load_file(self.folder / shard.file)["states"] for shard in shards], places)

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
        self, width: int, dtype: torch.dtype, states_of: Callable[[Sequence[int]], Iterator[Tensor]]
    ) -> None:
        """Writes the shards that are missing or damaged.

        `states_of(rows)` gives the states of these rows in this order, in pieces [N, `width`].
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        forget_parts(self.folder)
        shards = self._planned(width, dtype)
        about = {"made_from": self.made_from, "rows": len(self.order), "positions": sum(self.counts)}
        about |= {"width": width, "dtype": str(dtype).removeprefix("torch.")}
        done = 0
        for shard in shards:
            rows = self.order[done : done + shard.rows]
            done += shard.rows
            if self._whole(shard):
                continue
            if shard.checksum is not None:
                announce(f"{self.folder / shard.file} is damaged: made again")
            states = torch.empty(shard.positions, width, dtype=dtype)
            filled = 0
            for piece in states_of(rows):
                states[filled : filled + len(piece)] = piece
                filled += len(piece)
            assert filled == shard.positions, (filled, shard)
            shard.checksum = write_tensors(self.folder / shard.file, {"states": states})
            write_json(self.folder / MANIFEST, about | {"shards": [shard.model_dump() for shard in shards]})

    def _planned(self, width: int, dtype: torch.dtype) -> list[Shard]:
        """Returns the shards of the manifest, or new shards if the manifest has none of this shape."""
        manifest = self._manifest()
        if manifest and (manifest.width, manifest.dtype) == (width, str(dtype).removeprefix("torch.")):
            shards = self._shards(manifest)
            if shards:
                return shards
        most = SHARD_BYTES // (width * dtype.itemsize)
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
