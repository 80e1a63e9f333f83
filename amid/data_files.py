"""The files that a configuration names as data, before any is read."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amid.errors import InputError

HUB_PREFIX = "hf://datasets/"

RESPONSES = "responses"
"""In the place of plain text: the training data's own responses."""


def check_files(data: Mapping[str, Any]) -> None:
    """Looks whether the files of the data are there.

    Raises:
        InputError: for one that is not.
    """
    for source in (data["train"], data["valid"], data.get("plain_text"), *data["test"].values()):
        if source != RESPONSES:
            check_source(source)


def check_source(source: object) -> None:
    """Raises InputError if `source` is the path of a file on disk that cannot be opened."""
    if isinstance(source, str) and not source.startswith(HUB_PREFIX):
        path = Path(path_and_rows(source)[0])
        try:
            path.open("rb").close()
        except OSError as error:
            raise unreadable(path, error) from error


def path_and_rows(source: str) -> tuple[str, slice]:
    """The path in `source`, on disk or on the hub, and the slice of rows that follows it; else all rows."""
    match = re.fullmatch(r"(.*?)(?:\[(\d*):(\d*)\])?", source, flags=re.DOTALL)
    assert match is not None
    path, start, stop = match.groups()
    return path, slice(int(start or 0), int(stop) if stop else None)


def unreadable(path: Path, error: OSError) -> InputError:
    """What is said of a file that cannot be opened."""
    return InputError(
        f"data file {path} cannot be read ({error.strerror or error}); "
        "give the path of a JSON Lines, CSV or Parquet file"
    )
