"""Reads the runs of a report from folders and archives."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from amid.errors import InputError
from amid.reporting.archives import read_archive
from amid.results import RESULT_FILE, RunResult, check_curves, files_below, load_folders
from amid.tracking.status import RunStatus, without_result


@dataclass(frozen=True)
class Runs:
    """The runs below some folders and in some archives."""

    name: str
    """The name of the folder or archive; for several, all their names."""
    records: Mapping[Path, RunResult]
    """The finished runs, with scores, by their folders."""
    unfinished: Mapping[Path, RunStatus]
    """The runs without a result, by their folders."""
    names: Mapping[Path, str]
    """The report's name for each run's folder: its path from the only place, or from a common parent."""


@contextmanager
def read_runs(places: Sequence[Path]) -> Iterator[Runs]:
    """Yields the finished runs in `places`, folders and zip files; their folders last as long as the block.

    Raises:
        InputError: if a place is no folder or zip file or holds no finished run, or a record is damaged.
    """
    by_path = {place.resolve(): place for place in places}
    shared = Path(os.path.commonpath(by_path))
    records: dict[Path, RunResult] = {}
    unfinished: dict[Path, RunStatus] = {}
    names: dict[Path, str] = {}
    titles = []
    with ExitStack() as stack:
        for path, place in by_path.items():
            folder = stack.enter_context(read_archive(place)) if place.is_file() else place
            found, begun = _finished(folder), without_result(folder)
            for run in (*found, *begun):
                names[run] = _from(path / run.relative_to(folder), shared)
            records |= found
            unfinished |= begun
            titles.append(_from(path, shared).removesuffix(".zip"))
        yield Runs(", ".join(titles), records, unfinished, names)


def _from(path: Path, start: Path) -> str:
    """Returns a path relative to a folder at or above it; if the two are the same, the name alone."""
    return path.name if path == start else os.path.relpath(path, start)


def _finished(folder: Path) -> dict[Path, RunResult]:
    """Returns the finished runs below a folder, at least one, after a check that they wrote their curves."""
    records = load_folders(folder)
    if not records and (unscored := files_below(folder, RESULT_FILE)):
        raise InputError(
            f"{unscored[0].parent} is finished and has no scores, as its data have no test set; "
            f"amid evaluate run={unscored[0].parent} +data.test.NAME=FILE scores its student"
        )
    if not records:
        begun = "; ".join(
            line(run, str(at.relative_to(folder))) for at, run in without_result(folder).items()
        )
        raise InputError(
            f"{folder} has no {RESULT_FILE} in it or below, so there is no finished run to report"
            f"{f' ({begun})' if begun else ''}; make some: amid sweep alpha"
        )
    for at, result in records.items():
        check_curves(at, result)
    return records


def line(run: RunStatus, name: str) -> str:
    """Returns one line with the state of a run without a result, and the reason."""
    return f"{name}: {', '.join(filter(None, (run.state, run.note)))}"
