"""Where data come from: files on disk or on the Hugging Face hub, or lists of examples and documents."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from amid.config.data_files import HUB_PREFIX, check_slice, path_and_rows
from amid.data.examples import Example
from amid.data.formats import rows_of, text_of
from amid.data.rows import Fields, checked, document_of, example_of, has_text
from amid.errors import InputError
from amid.models.hub import ask_its_cache_alone_if_it_is_silent, reason_of

Source = str | Sequence[Example]
"""The path of a JSON Lines file, a JSON array, or by its suffix a CSV, TSV or Parquet file; the same on the
hub, `hf://datasets/OWNER/NAME/FILE`; or the examples themselves.

A slice of rows may follow the path: `FILE[1000:]`, `FILE[:60]`. A row has the strings `instruction`, `input`
(may be missing or empty) and `output`, or other names that `fields` gives. `output` may be a list of
acceptable strings. The row's other strings and finite numbers become the example's `fields`. Rows with empty
outputs only are left out; blank lines are skipped. Rows with neither `instruction` nor `output` may be a
prompt and its completion, or a conversation of one turn.
"""

TextSource = str | Sequence[str]
"""Plain text: a file as above with a `text` in each row, a text file (`.txt`), which is one document, or a
list of documents. A slice of documents may follow a path."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class Loaded:
    """The examples of a source, and what became of its rows."""

    examples: list[Example]
    rows: int
    """Rows that were read for the examples: with a slice or a limit, the rows within it and the rows that
    were left out before each of them."""
    empty: int = 0
    """Rows that are left out because none of their outputs has text."""
    taken: Mapping[str, int] = field(default_factory=dict)
    """The number of rows that were read without `fields`, by the way they were read."""


def load_examples(
    source: Source | None, limit: int | None = None, fields: Fields | None = None
) -> list[Example]:
    """The examples of `source`, the first `limit` of them.

    Raises:
        InputError: for `fields` that do not fit, or a `limit` that is not positive; naming file and line (or
            row), for a line that cannot be read, a missing or mistyped field; naming the file, where it does
            not exist, cannot be downloaded, is empty, or has no output that is not empty.
    """
    return loaded(source, limit, fields).examples


def loaded(source: Source | None, limit: int | None = None, fields: Fields | None = None) -> Loaded:
    """The examples of `source`, the first `limit` of them, and what became of the other rows.

    Raises:
        InputError: see `load_examples`.
    """
    if limit is not None and limit < 1:
        raise InputError(f"data limit must be at least 1, got {limit}; use null for all examples")
    if source is None:
        raise InputError("data.train and data.valid must not be null for a training run; give a path")
    if isinstance(source, str):
        check_slice(source)
        path, rows = _located(source)
        found = _read(path, fields)
    else:
        rows, found = slice(0, None), [(example, None) for example in _examples(source)]
    usable = [index for index, (example, _) in enumerate(found) if any(map(has_text, example.outputs))]
    if not usable:
        raise InputError("a data source gives no example with a response; give at least one")
    chosen = _sliced(usable, rows, str(source))[:limit]
    last = rows.start + len(chosen) - 1
    begin = usable[rows.start - 1] + 1 if rows.start else 0
    end = usable[last] + 1 if last + 1 < len(usable) else len(found)
    taken = Counter(instead for _, instead in found[begin:end] if instead is not None)
    return Loaded([found[index][0] for index in chosen], end - begin, end - begin - len(chosen), taken)


def _examples(source: object) -> list[Example]:
    """Returns the examples of a list; Hydra turns some lists and examples into configurations."""
    try:
        if not isinstance(source, Sequence):
            raise TypeError(type(source).__name__)
        return [
            item
            if isinstance(item, Example)
            else Example(item.instruction, item.input, tuple(item.outputs), dict(item.fields))
            for item in source
        ]
    except (AttributeError, TypeError) as error:
        raise InputError(
            f"data source {str(source)[:60]!r} is neither a path nor a list of amid.data.Example; give one"
        ) from error


def load_documents(source: TextSource) -> list[str]:
    """Returns the documents of `source`; at least one is not empty.

    Raises:
        InputError: if the file is not there, cannot be downloaded or read, or holds no text, or a row of it
            has no string `text`.
    """
    if isinstance(source, str):
        path, rows = _located(source)
        is_text = ".txt" in (path.suffix.lower(), Path(path.stem).suffix.lower())
        found = [text_of(path)] if is_text else [document_of(row, place) for place, row in rows_of(path)]
        documents = _sliced(found, rows, source)
    else:
        documents = list(source)
    if not any(map(has_text, documents)):
        raise InputError(f"data.plain_text={source!r} holds no text; give another file, or null for none")
    return documents


def _located(source: str) -> tuple[Path, slice]:
    """The file that `source` names, downloaded if need be, and the rows of it."""
    path, rows = path_and_rows(source)
    return _download(path) if path.startswith(HUB_PREFIX) else Path(path), rows


def _sliced(items: list[_T], rows: slice, source: str) -> list[_T]:
    if not items[rows]:
        raise InputError(f"data source {source!r} is a slice without rows of {len(items):,}; widen it")
    return items[rows]


def _read(path: Path, fields: Fields | None) -> list[tuple[Example, str | None]]:
    """The example of each row, perhaps without an output that has text, and what was taken for its fields."""
    fields = checked(fields)
    found = [example_of(row, place, fields) for place, row in rows_of(path)]
    if not any(example.outputs for example, _ in found):
        raise InputError(
            f"data file {path}: all {len(found)} rows have an empty {fields['output']!r}; "
            "give a file with at least one response"
        )
    return found


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
