"""Checks the data files that a configuration names, before any is read."""

import os
import re
from pathlib import Path

from amid.errors import InputError
from amid.settings.nodes import Data

HUB = "hf://datasets"
HUB_PREFIX = f"{HUB}/"

RESPONSES = "responses"
"""The value that stands for the training data's own responses in place of a file of plain text."""


def check_files(data: Data) -> None:
    """Checks that the data files exist.

    Raises:
        InputError: for a file that does not exist, naming its setting.
    """
    sources = {f"data.{name}": getattr(data, name) for name in ("train", "valid", "plain_text")}
    sources |= {f"data.test.{name}": source for name, source in data.test.items()}
    for key, source in sources.items():
        if source != RESPONSES:
            try:
                _check_source(source)
            except InputError as error:
                raise InputError(f"{key}={source}: {error}") from error


def _check_source(source: object) -> None:
    """Raises InputError if `source` is a file on disk that cannot be opened, or a slice without rows."""
    if not isinstance(source, str):
        return
    check_slice(source)
    if not source.startswith(HUB_PREFIX):
        path = Path(path_and_rows(source)[0])
        try:
            path.open("rb").close()
        except OSError as error:
            raise unreadable(path, error) from error


def check_slice(source: str) -> None:
    """Raises InputError if the slice that follows the path in `source` has no rows, or is no such slice."""
    path, rows = path_and_rows(source)
    if rows.stop is not None and rows.start >= rows.stop:
        raise InputError(f"data source {source!r} is a slice without rows; widen it")
    if re.search(r"\[-?\d*(:-?\d*)*\]$", path) and not os.path.exists(path):
        raise InputError(
            f"data source {source!r}: write rows as FILE[START:STOP], with whole numbers from 0 or none"
        )


def path_and_rows(source: str) -> tuple[str, slice]:
    """Returns the path in `source`, on disk or on the hub, and the slice after it; without one, all rows."""
    match = re.fullmatch(r"(.*?)(?:\[(\d{0,18}):(\d{0,18})\])?", source, flags=re.DOTALL)
    assert match is not None
    path, start, stop = match.groups()
    return path, slice(int(start or 0), int(stop) if stop else None)


def unreadable(path: Path, error: OSError) -> InputError:
    """Returns the message about a file that cannot be opened."""
    return InputError(
        f"data file {path} cannot be read ({error.strerror or error}); "
        "give the path of a JSON, CSV, TSV or Parquet file"
    )
