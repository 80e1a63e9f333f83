"""The rows of data files, in JSON, CSV, TSV, Parquet, Arrow or plain text, and what is wrong with a file.

All but a JSON array and objects over many lines are read in a stream, a row or a block of rows at a time.
"""

import bz2
import csv
import gzip
import io
import itertools
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from amid.config.data_files import PACKED, unreadable
from amid.errors import InputError, first_line

Rows = Iterator[tuple[str, Mapping[str, Any]]]
"""Where each row stands, for messages, and the row."""

_T = TypeVar("_T")

_DIGITS = 300
"""The most digits of an integer: a float holds no larger ones."""

_OTHER_FILES = {
    b"\xff\xfe\0\0": "is UTF-32, not UTF-8; convert it: iconv -f UTF-32 -t UTF-8",
    b"\xff\xfe": "is UTF-16, not UTF-8; convert it: iconv -f UTF-16 -t UTF-8",
    b"\xfe\xff": "is UTF-16, not UTF-8; convert it: iconv -f UTF-16 -t UTF-8",
    b"\x1f\x8b": "is packed with gzip; unpack it, or let its name end in .gz",
    b"PAR1": "is a Parquet file; let its name end in .parquet",
    b"PK\x03\x04": "is a zip archive or a spreadsheet; unpack it, or export it as CSV in UTF-8",
    b"\x28\xb5\x2f\xfd": "is packed with zstd; unpack it, or let its name end in .zst",
    b"BZh": "is packed with bzip2; unpack it, or let its name end in .bz2",
    b"\xfd7zXZ": "is packed with xz; unpack it, or let its name end in .xz",
    b"ARROW1": "is an Arrow file; let its name end in .arrow",
    b"\xff\xff\xff\xff": "is an Arrow file; let its name end in .arrow",
    b"version https://git-lfs": "is a pointer of Git LFS, not the file itself; fetch that: git lfs pull",
}
"""Kinds of files that are not UTF-8 text, or not data, by their first bytes."""


class Unreadable(str):
    """A value of a row that cannot be taken, in the words of a message."""


def rows_of(path: Path) -> Rows:
    """The rows of a file, at least one, in the format that its suffix names; JSON where it names no other.

    A text file (`.txt`) is one row, with its `text`.

    Raises:
        InputError: naming the file and where it can the line, for a file that cannot be read, is empty, or
            is not what its suffix says.
    """
    readers: dict[str, Callable[[Path], Rows]] = {
        ".csv": lambda path: _table_rows(path, ","),
        ".tsv": lambda path: _table_rows(path, "\t"),
        ".parquet": lambda path: _column_rows(path, "Parquet", _parquet_batches),
        ".arrow": lambda path: _column_rows(path, "Arrow", _arrow_batches),
        ".txt": lambda path: iter([(str(path), {"text": "".join(_lines(path))})]),
    }
    empty = True
    for place, row in readers.get(_suffix(path), _json_rows)(path):
        empty = False
        yield place, row
    if empty:
        raise InputError(f"data file {path} is empty; give a file with one example a row")


def is_read(path: Path) -> bool:
    """Whether the file's suffix names a format that `rows_of` reads."""
    return _suffix(path) in (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".txt")


def _suffix(path: Path) -> str:
    """The suffix that names the format of a file, which may be compressed."""
    packed = path.suffix.lower() in PACKED
    return (Path(path.stem) if packed else path).suffix.lower()


def _zstd(stream: BinaryIO) -> Iterable[bytes]:
    import pyarrow

    return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.PythonFile(stream), "zstd"))


_UNPACK: Mapping[str, tuple[str, Callable[[BinaryIO], Iterable[bytes]]]] = {
    ".gz": ("gzip", lambda stream: gzip.GzipFile(fileobj=stream)),
    ".bz2": ("bzip2", bz2.BZ2File),
    ".xz": ("xz", lzma.LZMAFile),
    ".zst": ("zstd", _zstd),
}
"""The name of each kind of compression in `PACKED`, and what unpacks a stream of it."""

_NOT_WHOLE = (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError)
"""Errors about compressed bytes that are not as they were written."""


def _raw_lines(path: Path) -> Iterator[bytes]:
    """Yields the unpacked bytes of a file up to each line feed."""
    try:
        stream = path.open("rb")
    except OSError as error:
        raise unreadable(path, error) from error
    kind, unpacked = _UNPACK.get(path.suffix.lower(), (None, lambda stream: stream))
    with stream:
        try:
            yield from unpacked(stream)
        except _NOT_WHOLE as error:
            if kind is None:
                raise InputError(f"data file {path} cannot be read ({error}); repair it") from error
            raise InputError(
                f"data file {path} is not a whole {kind} file ({error}); pack it anew"
            ) from error


def _lines(path: Path) -> Iterator[str]:
    """Yields the lines of a file in UTF-8 with their ends, without a byte order mark at the beginning.

    Raises:
        InputError: naming the file, and the line that is not UTF-8.
    """
    number = 1
    for raw in _raw_lines(path):
        if number == 1:
            _check_beginning(path, raw)
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path}:{number}: not UTF-8 (byte 0x{raw[error.start]:02x}: {error.reason}); "
                "convert the file to UTF-8"
            ) from error
        for line in io.StringIO(text, newline="") if "\r" in text else (text,):
            number += 1
            yield line


def _check_beginning(path: Path, raw: bytes) -> None:
    for beginning, what in _OTHER_FILES.items():
        if raw.startswith(beginning):
            raise InputError(f"data file {path} {what}")
    if raw[:1] == b"\0" or raw[1:2] == b"\0":
        raise InputError(
            f"data file {path} begins with NUL bytes: it is UTF-16, or was not written whole; convert it to "
            "UTF-8, or write it anew"
        )


def _begun(lines: Iterator[str]) -> tuple[str, Iterator[str]]:
    """Returns the first line that is not blank, and all lines."""
    before: list[str] = []
    for line in lines:
        before.append(line)
        if line.strip():
            break
    return before[-1] if before else "", itertools.chain(before, lines)


def _json_rows(path: Path) -> Rows:
    first, lines = _begun(_lines(path))
    if first.lstrip().startswith("["):
        return _array_rows(path, "".join(lines))
    over_lines = re.match(r"\s*\{[ \t]*[\r\n]", first)
    return _object_rows(path, "".join(lines)) if over_lines else _line_rows(path, lines)


def _line_rows(path: Path, lines: Iterable[str]) -> Rows:
    for number, line in enumerate(lines, 1):
        line = line.rstrip("\r\n").removeprefix("\ufeff")  # of a file that was put after another
        if line.strip():
            place = f"{path}:{number}"
            if "\0" in line:
                raise InputError(
                    f"{place}: NUL bytes, as of a file that was not written whole; write it anew"
                )
            remedy = "each line needs one whole object, or the file one array of them"
            yield place, _object(place, _parsed(place, lambda: _DECODER.decode(line), remedy))  # noqa: B023


def _array_rows(path: Path, text: str) -> Rows:
    """Yields the rows of an array over one line or many; a row's line is where its object begins."""
    line, counted = 1, 0
    at = _after_blanks(text, text.index("[") + 1)
    while text[at : at + 1] != "]":
        line, counted = line + text.count("\n", counted, at), at
        place = f"{path}:{line}"
        row, end = _parsed(place, lambda: _DECODER.raw_decode(text, at), "repair the array")  # noqa: B023
        yield place, _object(place, row)
        at = _after_blanks(text, end)
        if text[at : at + 1] == ",":
            at = _after_blanks(text, at + 1)
        elif text[at : at + 1] != "]":
            line += text.count("\n", counted, at)
            raise InputError(f"{path}:{line}: no , or ] after a row of the array; repair it")
    if rest := text[at + 1 :].strip():
        line = 1 + text.count("\n", 0, text.index(rest[0], at + 1))
        raise InputError(f"{path}:{line}: the file goes on after its array; make it one array of all rows")


def _object_rows(path: Path, text: str) -> Rows:
    """Yields the rows of a series of objects over many lines each; a row's line is where it begins."""
    line, counted = 1, 0
    at = _after_blanks(text, 0)
    while at < len(text):
        line, counted = line + text.count("\n", counted, at), at
        place = f"{path}:{line}"
        row, end = _parsed(place, lambda: _DECODER.raw_decode(text, at), "repair it")  # noqa: B023
        yield place, _object(place, row)
        at = _after_blanks(text, end)


def _after_blanks(text: str, at: int) -> int:
    found = re.compile(r"\s*").match(text, at)
    assert found is not None
    return found.end()


def _parsed(place: str, parse: Callable[[], _T], remedy: str) -> _T:
    try:
        return parse()
    except RecursionError as error:
        raise InputError(f"{place}: lists or objects nested too deeply; remove them") from error
    except json.JSONDecodeError as error:
        of_line = f"line {error.lineno}, " * (error.lineno > 1)
        raise InputError(
            f"{place}: not valid JSON ({error.msg} at {of_line}character {error.colno}); {remedy}"
        ) from error
    except _Twice as error:
        raise InputError(f"{place}: field {error.args[0]!r} stands there twice; remove one") from error


def _object(place: str, row: Any) -> Mapping[str, Any]:
    if not isinstance(row, dict):
        kind = {type(None): "null", list: "a list", str: "a string"}.get(
            type(row), "a number or true or false"
        )
        raise InputError(f"{place}: {kind}, not a JSON object; make each row an object")
    return row


class _Twice(Exception):
    """A name that an object has twice."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Twice(next(name for name in names if names.count(name) > 1))
    return found


def _integer(digits: str) -> int | Unreadable:
    if len(digits) <= _DIGITS:
        return int(digits)
    return Unreadable(f"an integer of {len(digits.lstrip('-')):,} digits; write it as a string or remove it")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_int=_integer)


def _table_rows(path: Path, delimiter: str) -> Rows:
    what = "TSV" if delimiter == "\t" else "CSV"
    csv.field_size_limit(2**31 - 1)
    first, lines = _begun(_lines(path))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    names: list[str] | None = None
    before = 0
    try:
        for values in reader:
            place, before = f"{path}:{before + 1}", reader.line_num
            if values and names is None:
                names = _names(place, values, what)
            elif values and names is not None:
                if len(values) != len(names):
                    raise InputError(
                        f"{place}: not as many values ({len(values)}) as the first line has names "
                        f"({len(names)}); repair it"
                    )
                yield place, dict(zip(names, values, strict=True))
    except csv.Error as error:
        if names is None and delimiter not in first:
            _names(f"{path}:{before + 1}", [first.rstrip("\r\n")], what)
        raise InputError(
            f"data file {path} is not valid {what} near line {before + 1} ({error}); repair it: a value that "
            "begins with a quote ends with one, and quotes within it are written twice"
        ) from error


def _names(place: str, names: list[str], what: str) -> list[str]:
    twice = [name for name in names if name and names.count(name) > 1]
    if twice:
        raise InputError(f"{place}: the name {twice[0]!r} stands there twice; rename one column")
    other = next((mark for mark in ",;\t|" if len(names) == 1 and mark in names[0]), None)
    if other is not None:
        raise InputError(
            f"{place}: the names are separated by {other!r}; write {what} (.csv with commas, .tsv with tabs)"
        )
    return names


def _column_rows(path: Path, kind: str, batches: Callable[[Path], Iterator[Any]]) -> Rows:
    """The rows of a file of record batches."""
    from pyarrow import ArrowException

    try:
        path.open("rb").close()
    except OSError as error:
        raise unreadable(path, error) from error
    number = 0
    try:
        for batch in batches(path):
            for start in range(0, len(batch), _AT_ONCE):
                for row in batch.slice(start, _AT_ONCE).to_pylist():
                    number += 1
                    yield f"{path} row {number}", without_nulls(row)
    except (ArrowException, OSError) as error:
        raise InputError(
            f"data file {path} is not a whole {kind} file ({first_line(error)}); repair it"
        ) from error
    except (ValueError, OverflowError) as error:  # for text that is not UTF-8, or a day that no calendar has
        raise InputError(
            f"data file {path} has a value after row {number} that cannot be read ({first_line(error)}); "
            "repair it, or remove its column"
        ) from error


def without_nulls(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row of columns in which the objects within a list have no keys of value null.

    Arrow gives all objects of a list the same keys, with null for a key that an object lacks. A null that was
    written looks the same.
    """
    return {name: _given(value, in_list=False) for name, value in row.items()}


def _given(value: Any, in_list: bool) -> Any:
    if isinstance(value, dict):
        return {key: _given(of, in_list) for key, of in value.items() if of is not None or not in_list}
    if isinstance(value, list):
        return [_given(of, in_list=True) if isinstance(of, dict | list) else of for of in value]
    return value


_AT_ONCE = 1000
"""Rows of a file of columns that are in memory at once."""


def _parquet_batches(path: Path) -> Iterator[Any]:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        yield from file.iter_batches(_AT_ONCE)


def _arrow_batches(path: Path) -> Iterator[Any]:
    """The record batches of an Arrow file, or of a stream, as `save_to_disk` writes it."""
    import pyarrow

    with path.open("rb") as file:
        is_file = file.read(6) == b"ARROW1"
    with pyarrow.memory_map(str(path)) as source:
        if is_file:
            reader = pyarrow.ipc.open_file(source)
            yield from map(reader.get_batch, range(reader.num_record_batches))
        else:
            yield from pyarrow.ipc.open_stream(source)
