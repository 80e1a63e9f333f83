"""What data sources name: files, folders and data sets of the hub. Checks that those on disk are there."""

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from amid.errors import InputError

if TYPE_CHECKING:  # commands that only read results do without the models of all settings
    from amid.settings.nodes import Data

HUB = "hf://datasets"
HUB_PREFIX = f"{HUB}/"

RESPONSES = "responses"
"""The value that stands for the training data's own responses in place of a file of plain text."""

PACKED = (".gz", ".bz2", ".xz", ".zst")
"""Suffixes of compressed files that are read."""

_FILES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".txt", ".zip", *PACKED)
"""Suffixes of files: a missing path that ends in one is no OWNER/NAME of the hub."""

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Place:
    """What a data source names, and which of its rows."""

    source: str
    kind: Literal["files", "folder", "hub set", "hub file"]
    path: str
    """A file or a pattern of files, a folder, OWNER/NAME, or OWNER/NAME/FILE."""
    names: tuple[str, ...] = ()
    """CONFIGURATION and SPLIT of a folder or a hub set. A single one may be either; an empty one is open."""
    revision: str | None = None
    """Branch, tag or commit of what is on the hub."""
    rows: slice = field(default_factory=lambda: slice(0, None))

    @property
    def repository(self) -> str | None:
        """OWNER/NAME of what is on the hub; None for what is on disk."""
        return "/".join(self.path.split("/")[:2]) if self.kind in ("hub set", "hub file") else None

    @property
    def files(self) -> list[str]:
        """The files that `path` names, in the order of their names; several only for a pattern.

        Raises:
            InputError: for a pattern that no file matches.
        """
        if os.path.exists(self.path) or not glob.has_magic(self.path):
            return [self.path]
        found = sorted(name for name in glob.glob(self.path, recursive=True) if os.path.isfile(name))
        if not found:
            raise InputError(
                f"data source {self.source!r}: no file matches {self.path}; check the folder and the pattern"
            )
        return found


def place_of(source: str) -> Place:
    """Returns what a data source names. A file or folder that exists goes before a data set of the hub.

    Raises:
        InputError: for an address on the hub that is not whole, or a split of a file.
    """
    path, rows = path_and_rows(source)
    if path.startswith(HUB_PREFIX):
        return _on_hub(source, path.removeprefix(HUB_PREFIX), rows)
    if os.path.isdir(path):
        return Place(source, "folder", path, rows=rows)
    if os.path.exists(path) or glob.has_magic(path):
        return Place(source, "files", path, rows=rows)
    begin, *names = path.split(":")
    if names and len(names) <= 2 and os.path.isdir(begin):
        return Place(source, "folder", begin, tuple(names), rows=rows)
    if names and os.path.isfile(begin):
        raise InputError(f"data source {source!r}: {begin} is a file and has no split; give {begin} alone")
    name = begin.partition("@")[0]
    if _HUB_NAME.fullmatch(name) and not name.lower().endswith(_FILES):
        return _on_hub(source, path, rows)
    return Place(source, "files", path, rows=rows)


def _on_hub(source: str, rest: str, rows: slice) -> Place:
    """Returns what `OWNER/NAME[@REVISION][:CONFIGURATION[:SPLIT]]` or `OWNER/NAME[@REVISION]/FILE` names."""
    revision = r"refs/(?:convert|pr)/[^/:]+|[^/:]+"
    found = re.fullmatch(rf"([^/@:]+/[^/@:]+)(?:@({revision}))?(?:/(.+)|((?::[^:/]*){{0,2}}))", rest)
    if found is None:
        raise InputError(
            f"data source {source!r} is incomplete; write OWNER/NAME, OWNER/NAME:CONFIGURATION:SPLIT or "
            f"{HUB_PREFIX}OWNER/NAME/FILE"
        )
    name, revision, file, names = found.groups()
    if file is not None:
        return Place(source, "hub file", f"{name}/{file}", revision=revision, rows=rows)
    return Place(source, "hub set", name, tuple((names or "").split(":")[1:]), revision, rows)


def parts_of(source: object) -> list[str]:
    """Returns the data sources in a setting, which is one or a list of several; none if it is neither."""
    if isinstance(source, str):
        return [source]
    if isinstance(source, Sequence) and all(isinstance(part, str) for part in source):
        return list(source)
    return []


def check_files(data: "Data") -> None:
    """Checks that the data files exist.

    Raises:
        InputError: for a file that does not exist, naming its setting.
    """
    sources = {f"data.{name}": getattr(data, name) for name in ("train", "valid", "plain_text")}
    sources |= {f"data.test.{name}": source for name, source in data.test.items()}
    for key, source in sources.items():
        if source != RESPONSES:
            try:
                for part in parts_of(source):
                    _check_source(part)
            except InputError as error:
                raise InputError(f"{key}={source}: {error}") from error


def _check_source(source: str) -> None:
    """Raises InputError if `source` is a file on disk that cannot be opened, or a slice without rows."""
    check_slice(source)
    place = place_of(source)
    for file in place.files if place.kind == "files" else ():
        try:
            Path(file).open("rb").close()
        except OSError as error:
            raise unreadable(Path(file), error) from error


def check_slice(source: str) -> None:
    """Raises InputError if a source is empty or a list in quotes, or if its slice has no rows, is written
    otherwise, or does not come last."""
    path, rows = path_and_rows(source)
    if not source.strip():
        raise InputError(f"data source {source!r} is empty; give a file, a folder or OWNER/NAME")
    if rows.stop is not None and rows.start >= rows.stop:
        raise InputError(f"data source {source!r} is a slice without rows; widen it")
    if os.path.exists(path):
        return
    if re.fullmatch(r"\[.*[,/].*\]", path) and not glob.glob(path, recursive=True):
        raise InputError(
            f"data source {source!r} is a list in quotes; put quotes around the whole argument and around "
            f'each source with a slice: "KEY={list_as_typed(path)}"'
        )
    if re.search(r"\[(-?\d*|[^][/]*:[^][/]*)\]$", path):
        raise InputError(
            f"data source {source!r}: write rows as FILE[START:STOP], with whole numbers from 0 or none"
        )
    if early := re.fullmatch(r"(.+)(\[\d*:\d*\])(:[^/]*)", path):
        begin, rows_of_it, names = early.groups()
        raise InputError(f"data source {source!r}: the slice comes last; write {begin}{names}{rows_of_it}")


def list_as_typed(listed: str) -> str:
    """Returns a list of sources, `[a.jsonl,b.csv[:5]]`, with quotes around each source that needs them."""
    parts = [part.strip(" '\"") for part in listed[1:-1].split(",")]
    return f"[{','.join(repr(part) if re.search(r'[][ ]', part) else part for part in parts)}]"


def path_and_rows(source: str) -> tuple[str, slice]:
    """Returns what `source` names, on disk or on the hub, and the slice after it; without one, all rows."""
    match = re.fullmatch(r"(.*?)(?:\[(\d{0,18}):(\d{0,18})\])?", source, flags=re.DOTALL)
    assert match is not None
    path, start, stop = match.groups()
    return path, slice(int(start or 0), int(stop) if stop else None)


def unreadable(path: Path, error: OSError) -> InputError:
    """Returns the message about a file that cannot be opened."""
    return InputError(
        f"data file {path} cannot be read ({error.strerror or error}); "
        "give the path of a JSON, CSV, TSV, Parquet or Arrow file"
    )
