"""Where data come from: files on disk or on the Hugging Face hub, or lists of examples and documents."""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from amid.config.data_files import check_slice, parts_of, place_of
from amid.data.examples import Example
from amid.data.on_disk import OnDisk
from amid.data.rows import (
    Fields,
    checked,
    document_of,
    example_of,
    has_text,
    missing_input,
    output_in,
)
from amid.data.sets import Use, rows_at
from amid.data.templates import Thinking
from amid.data.thoughts import example_without_thoughts
from amid.errors import InputError

Source = str | Sequence[str] | Sequence[Example]
"""What rows are read from: a path, several paths, or the examples themselves. A path is one of

- a file: JSON Lines, a JSON array, or by its suffix a CSV, TSV, Parquet or Arrow file. A JSON, CSV or TSV
  file may be compressed (`.gz`, `.bz2`, `.xz`, `.zst`);
- a pattern of files, `data/*.jsonl`, which are read in the order of their names;
- a folder with such files, as `datasets.load_dataset` finds them, or as `save_to_disk` wrote it;
- a data set of the hub, `OWNER/NAME`, or `OWNER/NAME@REVISION`. A file or folder that exists here goes before
  it;
- a file of the hub, `hf://datasets/OWNER/NAME/FILE`.

`:CONFIGURATION:SPLIT` after a folder or `OWNER/NAME` chooses from a data set with several. One of the two may
stand alone. Without them the only one is taken, or the one that fits: the split `train` for training.

A slice of rows may follow the path: `FILE[1000:]`, `OWNER/NAME:main:train[:60]`. A row has the strings
`instruction`, `input` (may be missing or empty) and `output`, or other names that `fields` gives. `output`
may be a list of acceptable strings. The row's other strings and finite numbers become the example's `fields`.
Rows with empty outputs only are left out; blank lines are skipped. Rows with neither `instruction` nor
`output` may be of another form: `prompt` and `completion`, `messages`, `conversations`, or `text`.
"""

TextSource = str | Sequence[str]
"""Plain text: a source as above with a `text` in each row, a text file (`.txt`), which is one document, or a
list of documents. A slice of documents may follow a path."""


@dataclass(frozen=True)
class Loaded:
    """The examples of a source, and what became of its rows."""

    examples: Sequence[Example]
    rows: int
    """Rows that were read for the examples: with a slice or a limit, the rows within it and the rows that
    were left out before each of them."""
    empty: int = 0
    """Rows that are left out because none of their outputs has text."""
    unnamed: int = 0
    """Rows with a field without a name, such as a table's column of row numbers; it is left out."""
    forms: Mapping[str, int] = field(default_factory=dict)
    """The number of rows of each form."""
    sources: Sequence[str] = ()
    """The files and data sets that were read, in words; none for examples."""


def load_examples(
    source: Source | None, limit: int | None = None, fields: Fields | None = None, use: Use = "train"
) -> list[Example]:
    """The examples of `source`, the first `limit` of them (`loaded`).

    Raises:
        InputError: for `fields` that do not fit, or a `limit` that is not positive; naming file and line (or
            row), for a line that cannot be read, a missing or mistyped field; naming the source, where it
            does not exist, has no such split or configuration, cannot be downloaded, is empty, or has no
            output that is not empty.
    """
    return list(loaded(source, limit, fields, use).examples)


def loaded(
    source: Source | None,
    limit: int | None = None,
    fields: Fields | None = None,
    use: Use = "train",
    folder: Path | None = None,
    thinking: Thinking = "keep",
) -> Loaded:
    """The examples of `source`, the first `limit` of them, and what became of the other rows.

    Rows are read once, in order, and only as far as a slice and the limit reach.

    Args:
        source: where the rows are.
        limit: the most examples; null for all.
        fields: where a row has what an example needs; null for the usual names.
        use: what the examples are for, which chooses the split of a data set.
        folder: where the examples are kept on disk; null keeps them in memory.
        thinking: "cut" cuts thoughts out of answers; an answer of thoughts alone is then an empty one.

    Raises:
        InputError: see `load_examples`; for an `input` of `fields` that no row has.
    """
    if limit is not None and limit < 1:
        raise InputError(f"data limit must be at least 1, got {limit}; use null for all examples")
    if source is None:
        raise InputError("data.train and data.valid must not be null for a training run; give a path")
    paths = parts_of(source)
    if not paths:
        given = _examples(source)
        return _of_examples([*map(example_without_thoughts, given)] if thinking == "cut" else given, limit)
    reading = _Reading(checked(fields), use, thinking)
    found = itertools.islice(itertools.chain.from_iterable(map(reading.examples, paths)), limit)
    examples: Sequence[Example] = list(found) if folder is None else OnDisk(found, folder)
    if reading.missing_input is not None:
        raise InputError(f"data source {source!r}: {reading.missing_input}")
    return Loaded(examples, reading.rows, reading.empty, reading.unnamed, reading.forms, reading.sources)


def _of_examples(given: Sequence[Example], limit: int | None) -> Loaded:
    usable = [index for index, example in enumerate(given) if any(map(has_text, example.outputs))][:limit]
    if not usable:
        raise InputError("a data source gives no example with a response; give at least one")
    rows = len(given) if limit is None else usable[-1] + 1
    return Loaded([given[index] for index in usable], rows, rows - len(usable))


class _Reading:
    """Reads paths one after the other, and counts what became of their rows."""

    def __init__(self, fields: Fields, use: Use, thinking: Thinking) -> None:
        self._fields, self._use, self._thinking = fields, use, thinking
        self.rows = self.empty = self.unnamed = 0
        self.forms: Counter[str] = Counter()
        self.sources: list[str] = []
        self.missing_input: str | None = None
        self._has_input = False

    def examples(self, path: str) -> Iterator[Example]:
        """Yields the examples with a response in the slice of a path."""
        check_slice(path)
        place = place_of(path)
        found = rows_at(place, self._use)
        self.sources.append(found.what)
        first, stop, usable, n = place.rows.start, place.rows.stop, 0, 0
        outputs: set[str] = set()
        for where, row in found.rows:
            n += 1
            named = {name: value for name, value in row.items() if name}
            example, form = example_of(named, where, self._fields)
            example = example_without_thoughts(example) if self._thinking == "cut" else example
            if not self._has_input:
                self.missing_input = missing_input(named, self._fields)
                self._has_input = self.missing_input is None
            outputs.add(output_in(form, self._fields))
            has_response = any(map(has_text, example.outputs))
            if usable >= first:
                self.rows += 1
                self.empty += not has_response
                self.unnamed += "" in row
                self.forms[form] += 1
            usable += has_response
            if has_response and usable > first:
                yield example
            if usable == stop:
                return
        if not usable:
            raise InputError(
                f"data source {path!r}: all {n} rows have an empty {' or '.join(sorted(outputs))}; "
                "give at least one response"
            )
        if usable <= first:
            raise InputError(f"data source {path!r} is a slice without rows of {usable:,}; widen it")


def _examples(source: object) -> list[Example]:
    """Returns the examples of a list; Hydra turns some lists and examples into configurations."""
    try:
        if not isinstance(source, Sequence):
            raise TypeError(type(source).__name__)
        return [
            item
            if isinstance(item, Example)
            else Example(
                item.instruction,
                item.input,
                tuple(item.outputs),
                dict(item.fields),
                item.conversation,
                item.is_text,
            )
            for item in source
        ]
    except (AttributeError, TypeError) as error:
        raise InputError(
            f"data source {str(source)[:60]!r} is neither a path nor a list of amid.data.Example; give one"
        ) from error


def load_documents(source: TextSource, folder: Path | None = None) -> Sequence[str]:
    """Returns the documents of `source`; at least one is not empty.

    Args:
        source: where the documents are.
        folder: where they are kept on disk; null keeps them in memory.

    Raises:
        InputError: if the source is not there, cannot be downloaded or read, or holds no text, or a row of it
            has no string `text`.
    """
    found: Iterable[str] = _documents(source) if isinstance(source, str) else source
    documents: Sequence[str] = list(found) if folder is None else OnDisk(found, folder)
    if not any(map(has_text, documents)):
        raise InputError(f"data.plain_text={source!r} holds no text; give another file, or null for none")
    return documents


def _documents(path: str) -> Iterator[str]:
    """Yields the documents in the slice of a path."""
    check_slice(path)
    place = place_of(path)
    first, stop, n = place.rows.start, place.rows.stop, 0
    for n, (where, row) in enumerate(rows_at(place, "train").rows, 1):  # used after the loop
        document = document_of(row, where)
        if n > first:
            yield document
        if n == stop:
            return
    if n <= first:
        raise InputError(f"data source {path!r} is a slice without rows of {n:,}; widen it")
