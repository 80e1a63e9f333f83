"""Sequences that are kept on disk, for more rows than the memory holds."""

import os
import pickle
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar, overload

T = TypeVar("T")


class OnDisk(Sequence[T]):
    """A sequence with its values in a file. An item is read from the file when it is asked for.

    Each value takes 8 bytes of memory. The file has no name: it goes with the sequence, or with the process.

    Args:
        values: what the sequence holds; they are read once, and kept by `pickle`.
        folder: where the file is, on a disk with room for it. It is made if it is not there.
    """

    def __init__(self, values: Iterable[T], folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # open as long as the sequence is
        self._ends = array("Q", [0])
        end = 0
        for value in values:
            end += self._file.write(pickle.dumps(value, pickle.HIGHEST_PROTOCOL))
            self._ends.append(end)
        self._file.flush()

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> list[T]: ...

    def __getitem__(self, index: int | slice) -> T | list[T]:
        numbers = range(len(self))[index]
        if isinstance(numbers, range):
            return [self._read(number) for number in numbers]
        return self._read(numbers)

    def __iter__(self) -> Iterator[T]:
        return map(self._read, range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(self) != len(other):
            return False
        return all(one == two for one, two in zip(self, other, strict=True))

    def _read(self, number: int) -> T:
        start, end = self._ends[number], self._ends[number + 1]
        value: T = pickle.loads(os.pread(self._file.fileno(), end - start, start))  # of this process alone
        return value
