"""`amid sweep NAME --dry-run`: lists the runs of a sweep and their cost, and starts no run."""

import contextlib
import math
import multiprocessing
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hydra.errors import InstantiationException
from omegaconf import DictConfig
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from amid.config.compose import as_dict
from amid.config.run_names import LONGEST_NAME
from amid.config.sweeps import PlannedRun, Sweep
from amid.console import in_bytes
from amid.errors import InputError
from amid.estimates.cost import Cost, Estimator, Once
from amid.estimates.sizes import SAMPLE, Notes, reason_of
from amid.experiment.plan import Plan
from amid.results import RESULT_FILE, load
from amid.settings import check
from amid.terminal import console

MANY = 50
"""With more runs than this, the listing takes a while, and amid says so first."""

ENOUGH = 10
"""The settings of a sweep that are worth a process of their own."""

UNKNOWN = "unknown"


def show_plan(sweep: Sweep) -> None:
    """Prints the runs of a sweep, done or to do, with their cost, and starts nothing.

    Raises:
        InputError: if a setting has no value.
    """
    out = console()
    if (runs := len(sweep.runs())) > MANY:
        out.print(f"Composing the configurations of {runs} runs, at least two a second")
    entries, notes = _entries(sweep)
    to_do = [entry for entry in entries if entry.state == "to do"]
    works = {key: work for entry in entries for key, work in entry.shared.items() if entry in to_do}
    out.print(_table(entries, works.values()))
    costs = [entry.cost for entry in to_do] + [work.cost for work in works.values() if not work.done]
    for line in (
        _in_all(entries, costs, [_seconds(entry, entries) for entry in to_do]),
        COUNTED,
        *_noted(entries, notes),
        "Nothing was started.",
    ):
        out.print(line, markup=False, soft_wrap=True)


COUNTED = (
    f"Counted: rows without padding, as long as {SAMPLE} of them are; answers as long as the training "
    "data's responses; text=adaptive with as many answers as it can come to; the teacher's states and "
    "answers, even if they are there already; the memory of one device. Time: as finished runs took for a "
    "token. Not counted: logs and tokenised data on disk; the memory of keys and values where answers are "
    "drawn, and of Python and its libraries (about 1 GB)."
)
"""The note on what the estimates count and what they leave out."""


def _table(entries: Sequence["_Entry"], works: Iterable[Once]) -> Table:
    """Returns a table with a row for each run and for each piece of work that several runs share."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("Run", overflow="fold")
    table.add_column("State", no_wrap=True)
    for head in ("Steps", "Tokens", "Time", "Memory", "Disk"):
        table.add_column(head, justify="right", no_wrap=True)
    for entry in entries:
        state = entry.state.partition(":")[0]
        table.add_row(escape(entry.text), state, *_cells(entry.cost, _seconds(entry, entries)))
    table.add_section()
    for work in works:
        state = "done" if work.done else "once"
        table.add_row(escape(f"once: {work.what}"), state, *_cells(work.cost, math.nan))
    return table


def _seconds(entry: "_Entry", entries: Sequence["_Entry"]) -> float:
    """Returns the seconds that a run took.

    For a run to do, it estimates them by the token from finished runs with the same models and data. NaN if
    there are none.
    """
    if entry.seconds is not None:
        return entry.seconds
    alike = [e for e in entries if e.seconds is not None and e.kind == entry.kind and e.cost.tokens]
    if not alike:
        return math.nan
    return entry.cost.tokens * sum(e.seconds or 0.0 for e in alike) / sum(e.cost.tokens for e in alike)


def _in_all(entries: Sequence["_Entry"], costs: Sequence[Cost], seconds: Sequence[float]) -> str:
    """Returns the total cost of the runs and the shared work that are still to do."""
    states = Counter(entry.state.partition(":")[0] for entry in entries)
    counts = ", ".join(f"{states[state]} {state}" for state in ("done", "to do", "refused") if states[state])
    known = [one for one in seconds if not math.isnan(one)]
    least = "at least " if len(known) < len(seconds) else ""
    return (
        f"In all: {counts}; {_short(sum(cost.tokens for cost in costs))} tokens, "
        f"{f'{least}{_time(sum(known))} for the runs, ' if any(known) else ''}"
        f"{_size(sum(cost.disk for cost in costs))} on disk (and at most "
        f"{_size(_most(cost.checkpoints for cost in costs))} of checkpoints while one trains), "
        f"{_size(_most(cost.memory for cost in costs))} of memory at most."
    )


def _noted(entries: Sequence["_Entry"], notes: Notes) -> Iterator[str]:
    """Returns lines on what was not read, what is not known, and why runs are refused."""
    if notes.assumed is not None:
        yield f"Assumed, and not read (amid/hub_sizes.yaml): {notes.assumed}."
    for why in dict.fromkeys(notes.unknown.values()):
        yield f"Not known: {', '.join(w for w, y in notes.unknown.items() if y == why)} ({why})."
    for reason in dict.fromkeys(e.state for e in entries if e.state.startswith("refused")):
        yield f"R{reason[1:]} ({sum(e.state == reason for e in entries)} runs)."


@dataclass(frozen=True)
class _Entry:
    """A run of the sweep."""

    text: str
    directory: Path
    kind: str
    """The kind of run, as `Estimator.kind` returns it."""
    state: str
    cost: Cost
    shared: dict[str, Once]
    seconds: float | None
    """The seconds that a finished run took; None for others."""


_Estimated = tuple[dict[frozenset[str], _Entry], Notes]


def _entries(sweep: Sweep) -> tuple[list[_Entry], Notes]:
    """Returns the runs of a sweep, and notes on what could not be read for their cost."""
    settings = sweep.of_each_setting()
    found: dict[frozenset[str], _Entry] = {}
    notes = Notes()
    for some, theirs in _in_processes(sweep, settings):
        notes.add(theirs)
        found |= some
    entries: list[_Entry] = []
    for run in sweep.runs():
        entry = found[run.without_seed]
        directory = entry.directory.with_name(run.directory.name)
        text = directory.name
        if len(text) >= LONGEST_NAME - 1:  # the name was cut
            text += "\n" + " ".join(o for o in run.overrides if not o.startswith("output_dir="))
        entry = replace(entry, text=text, directory=directory)
        if (directory / RESULT_FILE).exists():
            with contextlib.suppress(InputError):
                entry = replace(entry, state="done", seconds=load(directory).own_seconds)
        entries.append(entry)
    return entries, notes


def _in_processes(sweep: Sweep, runs: Sequence[PlannedRun]) -> list[_Estimated]:
    """Returns what `_estimated` does, of as many parts of the runs as there are cores to compose them."""
    if sys.platform != "linux":  # a process would first import torch again
        return [_estimated(sweep, runs)]
    n = min(len(os.sched_getaffinity(0)), len(runs) // ENOUGH)
    if n < 2:
        return [_estimated(sweep, runs)]
    with multiprocessing.get_context("fork").Pool(n, _end_with_command) as pool:
        return pool.starmap(_estimated, [(sweep, runs[first::n]) for first in range(n)], chunksize=1)


def _end_with_command() -> None:
    """Leaves Ctrl-C to the command, which ends its processes by SIGTERM."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _estimated(sweep: Sweep, runs: Sequence[PlannedRun]) -> _Estimated:
    """Returns the entries of runs, by their overrides without the seed, and notes on what was not read."""
    estimator = Estimator()
    entries = {run.without_seed: _entry(run.directory, cfg, estimator) for run, cfg in sweep.configs(runs)}
    return entries, estimator.facts.notes


def _entry(directory: Path, cfg: DictConfig, estimator: Estimator) -> _Entry:
    """Returns the entry of a run with this configuration: a run to do, or a refused one."""
    try:
        check(cfg)
    except InputError as error:
        return _Entry("", directory, "", f"refused: {error}", Cost(), {}, None)
    cfg.logger = {}
    plan = Plan(as_dict(cfg))
    cost, shared, state = Cost(), dict[str, Once](), "to do"
    try:
        plan.check()
        cost, shared = estimator.run(plan), estimator.shared(plan)
    except (ValueError, InstantiationException) as error:
        state = f"refused: {reason_of(error)}"  # as the run itself would be
    return _Entry("", directory, estimator.kind(plan), state, cost, shared, None)


def _most(values: Iterable[float]) -> float:
    """Returns the largest value, at least 0; NaN if a value is NaN."""
    known = [0.0, *values]
    return math.nan if any(map(math.isnan, known)) else max(known)


def _cells(cost: Cost, seconds: float) -> list[str]:
    return [
        UNKNOWN if math.isnan(cost.steps) else f"{cost.steps:,.0f}" if cost.steps else "–",
        _short(cost.tokens),
        "–" if math.isnan(seconds) else _time(seconds),
        _size(cost.memory),
        _size(cost.disk),
    ]


def _short(number: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return UNKNOWN if math.isnan(number) else f"{number:.0f}"


def _time(seconds: float) -> str:
    for size, name in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {name}"
    return f"{seconds:.0f} s"


def _size(size: float) -> str:
    return UNKNOWN if math.isnan(size) else in_bytes(size)
