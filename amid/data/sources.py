"""Where data come from: files on disk or on the Hugging Face hub, or lists of examples and documents."""

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from amid.data.examples import Example
from amid.data_files import HUB_PREFIX, path_and_rows, unreadable
from amid.errors import InputError
from amid.hub import ask_its_cache_alone_if_it_is_silent, reason_of

Source = str | Sequence[Example]
"""The path of a file that `read_examples` reads, `hf://datasets/OWNER/NAME/FILE`, or the examples themselves.

A slice of rows may follow the path: `FILE[1000:]`, `FILE[:60]`.
"""

TextSource = str | Sequence[str]
"""Plain text: a file as above whose rows have a `text`, a text file (`.txt`), which is one document, or the
documents themselves. A slice of documents may follow a path."""

_T = TypeVar("_T")

Fields = Mapping[str, str]
"""Where a row has what an example needs: `instruction`, `input` (may be left out) and `output`, each the name
of a field, dotted for one inside another: `translation.de`."""

FIELDS: Fields = {"instruction": "instruction", "input": "input", "output": "output"}


def load_examples(
    source: Source | None, limit: int | None = None, fields: Fields | None = None
) -> list[Example]:
    """The examples of `source`, the first `limit` of them.

    Raises:
        InputError: if the file is not there, cannot be downloaded or holds no usable example (see
            `read_examples`), or `limit` is not positive.
    """
    if limit is not None and limit < 1:
        raise InputError(f"data limit must be at least 1, got {limit}; use null for all examples")
    if source is None:
        raise InputError("data.train and data.valid must not be null for a training run; give a path")
    if isinstance(source, str):
        path, rows = _located(source)
        examples = _sliced(read_examples(path, fields), rows, source)
    else:
        examples = list(source)
    return examples[:limit]


def load_documents(source: TextSource) -> list[str]:
    """The documents of `source`, of which at least one is not empty.

    Raises:
        InputError: if the file is not there, cannot be downloaded or read, or holds no text, or a row of it
            has no string `text`.
    """
    if isinstance(source, str):
        path, rows = _located(source)
        found = _read(path, _text_rows if path.suffix.lower() == ".txt" else None)
        documents = _sliced([_text(row, place) for place, row in found], rows, source)
    else:
        documents = list(source)
    if not any(document.strip() for document in documents):
        raise InputError(f"data.plain_text={source!r} holds no text; give another file, or null for none")
    return documents


def _located(source: str) -> tuple[Path, slice]:
    """The file that `source` names, downloaded if need be, and the rows of it."""
    path, rows = path_and_rows(source)
    return _download(path) if path.startswith(HUB_PREFIX) else Path(path), rows


def _sliced(items: list[_T], rows: slice, source: str) -> list[_T]:
    if not items[rows]:
        raise InputError(f"data source {source!r} is a slice without rows; widen it")
    return items[rows]


def read_examples(path: Path, fields: Fields | None = None) -> list[Example]:
    """Reads rows of a JSON Lines file, or by their suffix of a CSV (`.csv`) or Parquet file (`.parquet`).

    A row has `instruction`, `input` (may be missing or empty) and `output`, strings all, called so or as
    `fields` says; `output` may be a list of acceptable strings. Its other strings and numbers are the
    example's `fields`. Rows whose outputs are all empty are left out; blank lines are skipped.

    Raises:
        InputError: for `fields` without `instruction` or `output`, or with another name; naming file and line
            (or row), for a line that cannot be read, a missing or mistyped field; naming the file, where it
            does not exist, is empty, or has no output that is not empty.
    """
    fields = FIELDS if fields is None else fields
    if not {"instruction", "output"} <= fields.keys() <= FIELDS.keys():
        raise InputError(
            f"data.fields names {', '.join(fields) or 'nothing'}; "
            "it needs 'instruction' and 'output', and may have 'input'"
        )
    examples = [_example(row, place, fields) for place, row in _read(path)]
    usable = [example for example in examples if example.outputs]
    if not usable:
        raise InputError(
            f"data file {path}: all {len(examples)} rows have an empty {fields['output']!r}; "
            "give a file with at least one response"
        )
    return usable


Rows = Iterator[tuple[str, Mapping[str, Any]]]
"""Where each row stands, for messages, and the row."""


def _read(path: Path, reader: Callable[[Path], Rows] | None = None) -> Rows:
    """The rows of a file, at least one, by `reader` or the one of its suffix."""
    readers = {".csv": _csv_rows, ".parquet": _parquet_rows}
    empty = True
    try:
        for place, row in (reader or readers.get(path.suffix.lower(), _jsonl_rows))(path):
            empty = False
            yield place, row
    except OSError as error:
        raise unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise InputError(f"data file {path} is not UTF-8 ({error}); convert it to UTF-8") from error
    if empty:
        raise InputError(f"data file {path} is empty; give a file with one example a row")


def _text_rows(path: Path) -> Rows:
    yield str(path), {"text": path.read_text(encoding="utf-8")}


def _jsonl_rows(path: Path) -> Rows:
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            row: Any = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{place}: not valid JSON ({error}); repair or remove the line") from error
        if not isinstance(row, dict):
            raise InputError(f"{place}: a {type(row).__name__}, not a JSON object; give one object a line")
        yield place, row


def _csv_rows(path: Path) -> Rows:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for row in reader:
                place = f"{path}:{reader.line_num}"
                if None in row or None in row.values():
                    raise InputError(f"{place}: not as many values as the first line has names; repair it")
                yield place, row
        except csv.Error as error:
            raise InputError(
                f"data file {path} is not valid CSV near line {reader.line_num} ({error}); repair it"
            ) from error


def _parquet_rows(path: Path) -> Rows:
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError
    from pyarrow import ArrowException

    path.open("rb").close()
    try:
        rows = load_dataset("parquet", data_files=str(path), split="train", streaming=True)
        for number, row in enumerate(rows, 1):
            yield f"{path} row {number}", row
    except (ArrowException, DatasetGenerationError) as error:
        raise InputError(f"data file {path} is not a whole Parquet file ({error}); repair it") from error


def _text(row: Mapping[str, Any], place: str) -> str:
    text = row.get("text")
    if not isinstance(text, str):
        raise InputError(f"{place}: field 'text' is {text!r}, not a string; plain text needs one in each row")
    return text


def _example(row: Mapping[str, Any], place: str, fields: Fields) -> Example:
    output = _value(row, fields["output"], place)
    outputs = output if isinstance(output, list) else [output]
    values: dict[str, Any] = {"instruction": _value(row, fields["instruction"], place), "input": ""}
    if "input" in fields:
        values["input"] = _value(row, fields["input"], place, optional=True) or ""
    for name, value in [*values.items(), *(("output", output) for output in outputs)]:
        if not isinstance(value, str):
            raise InputError(f"{place}: field {fields[name]!r} is {value!r}, not a string; make it one")
    others = {
        name: value
        for name, value in row.items()
        if name not in fields.values() and isinstance(value, str | int | float)
    }
    return Example(**values, outputs=tuple(output for output in outputs if output.strip()), fields=others)


def _value(row: Mapping[str, Any], name: str, place: str, optional: bool = False) -> Any:
    """The field of a row; one inside another by its dotted name."""
    value: Any = row
    for part in [name] if name in row else name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            if optional:
                return None
            raise InputError(
                f"{place}: field {name!r} is missing (the row has {', '.join(row) or 'none'}); "
                "each row needs an instruction and an output; data.fields says how they are called"
            )
        value = value[part]
    return value


def _download(url: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError

    owner, _, rest = url.removeprefix(HUB_PREFIX).partition("/")
    name, _, file = rest.partition("/")
    if not (owner and name and file):
        raise InputError(f"data source {url!r} is incomplete; write {HUB_PREFIX}OWNER/NAME/FILE")
    ask_its_cache_alone_if_it_is_silent()
    try:
        return Path(hf_hub_download(f"{owner}/{name}", file, repo_type="dataset"))
    except (RepositoryNotFoundError, EntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise InputError(
            f"data source {url!r} cannot be had ({reason_of(error)}); check the name and the network, "
            "or give the path of a file"
        ) from error
