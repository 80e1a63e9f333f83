"""`amid sweep NAME --dry-run`: the runs of a sweep, and what they will take, without starting any."""

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from hydra.errors import InstantiationException
from omegaconf import DictConfig
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from amid.config.compose import as_dict
from amid.config.run_names import LONGEST_NAME
from amid.config.run_settings import Stored, read_settings
from amid.config.sweeps import Sweep
from amid.console import in_bytes
from amid.errors import InputError
from amid.estimates.cost import Cost, Estimator, Once
from amid.estimates.sizes import SAMPLE, Facts, reason_of
from amid.experiment.plan import Plan
from amid.results import RESULT_FILE, files_below, load
from amid.settings import check

RATES = {"cpu": 5e10, "cuda": 1.5e14}
"""Useful operations a second that are assumed where no finished run tells: of a few cores; of an H100
with models of 1B or more (those of 0.1B reached 3e13)."""

MANY = 50
"""More runs than that take a while to list, which is said."""

UNKNOWN = "unknown"


def show_plan(sweep: Sweep, console: Console | None = None) -> None:
    """Prints the runs of a sweep, done or to do, with what they take, and starts nothing.

    Raises:
        InputError: if a setting has no value.
    """
    console = console or Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=max(console.width, 160), file=console.file)
    if (runs := len(sweep.runs())) > MANY:
        console.print(f"Composing the configurations of {runs} runs, at least two a second")
    entries, elsewhere, estimator = _entries(sweep)
    to_do = [entry for entry in entries if entry.state == "to do"]
    works = {key: work for entry in entries for key, work in entry.shared.items() if entry in to_do}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    seconds = _measured(entries, elsewhere)
    console.print(_table(entries, works.values(), seconds, RATES[device]))

    open_works = [work.cost for work in works.values() if not work.done]
    costs = [entry.cost for entry in to_do] + open_works
    time = sum(seconds(entry, RATES[device]) for entry in to_do)
    time += sum(cost.operations / RATES[device] for cost in open_works)
    measured = any(entry.seconds for entry in (*entries, *elsewhere))
    for line in (
        _in_all(entries, costs, time, measured),
        *COUNTED,
        _rates_in_words(device, sum(cost.operations for cost in costs), measured),
        *_notes(entries, estimator.facts),
        "Nothing was started.",
    ):
        console.print(line, markup=False, soft_wrap=True)


COUNTED = (
    "Counted: for each token 6 operations for a weight that is trained, 4 for one below adapters, 2 for "
    "one that is only asked or draws answers, as it does in training, at validations and for the scores "
    f"(each prompt is read once); rows without padding, as long as {SAMPLE} of them are; answers as long "
    "as the training data's responses; text=adaptive with as many answers as it can come to.",
    "Not counted: attention; that answers are drawn more slowly than trained on; the metrics; what a run "
    "takes to begin; reading weights and caches; logs and tokenised data on disk; the memory of keys and "
    "values where answers are drawn, and of Python and its libraries (about 1 GB).",
)
"""What the estimates hold."""


def _table(
    entries: Sequence["_Entry"],
    works: Iterable[Once],
    seconds: Callable[["_Entry", float], float],
    rate: float,
) -> Table:
    """A row for each run, and for each work that several share."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("Run", overflow="fold")
    table.add_column("State", no_wrap=True)
    for head in ("Steps", "Tokens", "Operations", "Time", "Memory", "Disk"):
        table.add_column(head, justify="right", no_wrap=True)
    for entry in entries:
        time = math.nan if entry.state.startswith("refused") else seconds(entry, rate)
        if entry.seconds is not None:
            time = entry.seconds
        table.add_row(escape(entry.text), entry.state.partition(":")[0], *_cells(entry.cost, time))
    table.add_section()
    for work in works:
        time = 0.0 if work.done else work.cost.operations / rate
        table.add_row(
            escape(f"once: {work.what}"), "done" if work.done else "to do", *_cells(work.cost, time)
        )
    return table


def _in_all(entries: Sequence["_Entry"], costs: Sequence[Cost], time: float, measured: bool) -> str:
    """What the runs and the works take that are still to do."""
    states = Counter(entry.state.partition(":")[0] for entry in entries)
    counts = ", ".join(f"{states[state]} {state}" for state in ("done", "to do", "refused") if states[state])
    return (
        f"In all: {counts}; {_operations(sum(cost.operations for cost in costs))} operations, "
        f"{'' if measured or math.isnan(time) else 'at least '}{_time(time)} of time, "
        f"{_size(sum(cost.disk for cost in costs))} on disk (and at most "
        f"{_size(_most(cost.checkpoints for cost in costs))} of checkpoints while one trains), "
        f"{_size(_most(cost.memory for cost in costs))} of memory at most."
    )


def _notes(entries: Sequence["_Entry"], facts: Facts) -> Iterator[str]:
    """What was not read, what is not known, and why runs are refused."""
    if facts.assumed is not None:
        yield f"Assumed, and not read (amid/hub_sizes.yaml): {facts.assumed}."
    for why in dict.fromkeys(facts.unknown.values()):
        yield f"Not known: {', '.join(w for w, y in facts.unknown.items() if y == why)} ({why})."
    for reason in dict.fromkeys(e.state for e in entries if e.state.startswith("refused")):
        yield f"R{reason[1:]} ({sum(e.state == reason for e in entries)} runs)."


@dataclass(frozen=True)
class _Entry:
    """A run of the sweep."""

    text: str
    kind: tuple[object, str]
    """Of `Estimator.kind`."""
    state: str
    cost: Cost
    shared: dict[str, Once]
    seconds: float | None
    """That it took, where it is done."""


def _entries(sweep: Sweep) -> tuple[list[_Entry], list[_Entry], Estimator]:
    """The runs of a sweep, finished ones of their kinds elsewhere in the outputs, and what estimated them."""
    estimator = Estimator()
    entries: list[_Entry] = []
    outputs = set()
    of_settings: dict[frozenset[str], _Entry] = {}  # without the seed, which costs nothing
    for run, composed in sweep.configs():
        settings = frozenset(override for override in run.overrides if not override.startswith("seed="))
        refusal = _refusal(composed)
        text = run.directory.name
        if len(text) >= LONGEST_NAME - 1:  # cut
            text += "\n" + " ".join(o for o in run.overrides if not o.startswith("output_dir="))
        if refusal is not None:
            entries.append(_Entry(text, (None, ""), f"refused: {refusal}", Cost(), {}, None))
            continue
        if settings not in of_settings:
            composed.logger = {}
            plan = Plan(as_dict(composed))
            of_settings[settings] = _estimated(plan, estimator)
            outputs.add(plan.prepared_dir.parent)
        entry = replace(of_settings[settings], text=text)
        if run.finished:
            with contextlib.suppress(InputError):
                entry = replace(entry, state="done", seconds=load(run.directory).own_seconds)
        entries.append(entry)
    kinds, planned = {entry.kind for entry in entries}, {run.directory.resolve() for run in sweep.runs()}
    folders = [file.parent for place in outputs for file in files_below(place, RESULT_FILE)]
    others = _finished(folder for folder in folders if folder.resolve() not in planned)
    return entries, [entry for entry in others if entry.kind in kinds], estimator


def _refusal(cfg: DictConfig) -> str | None:
    """What a run is refused for at its start; None for one that is not."""
    try:
        check(cfg)
    except InputError as error:
        return str(error)
    return None


def _estimated(plan: Plan, estimator: Estimator) -> _Entry:
    """A run of this plan, to do or refused."""
    cost, shared, state = Cost(), dict[str, Once](), "to do"
    try:
        plan.check()
        cost, shared = estimator.run(plan), estimator.shared(plan)
    except (ValueError, InstantiationException) as error:
        state = f"refused: {reason_of(error)}"  # as the run itself would be
    return _Entry("", estimator.kind(plan), state, cost, shared, None)


def _finished(folders: Iterable[Path]) -> list[_Entry]:
    """The runs in `folders` that were trained, as far as they can be read."""
    estimator, entries = Estimator(), []
    for folder in folders:
        with contextlib.suppress(ValueError, OSError, KeyError, TypeError, InstantiationException):
            result = load(folder)
            if result.timings.get("train"):
                cfg = read_settings(folder) or {}
                Stored(folder, False, "").check(cfg)
                plan = Plan(cfg)
                kind, cost = estimator.kind(plan), estimator.run(plan)
                entries.append(_Entry(folder.name, kind, "done", cost, {}, result.own_seconds))
    return entries


def _measured(entries: Sequence[_Entry], elsewhere: Sequence[_Entry]) -> Callable[[_Entry, float], float]:
    """From a run and an assumed rate to its seconds: as finished runs of its student and data took, if any,
    those of the sweep, or else others."""

    def seconds(entry: _Entry, rate: float) -> float:
        alike = [e for e in entries if e.seconds is not None and e.kind == entry.kind]
        alike = alike or [e for e in elsewhere if e.kind == entry.kind]
        if not alike:
            return entry.cost.operations / rate
        took = sum(e.seconds or 0.0 for e in alike)
        share = entry.cost.operations / sum(e.cost.operations for e in alike)
        return took / len(alike) if math.isnan(share) else took * share

    return seconds


def _rates_in_words(device: str, operations: float, measured: bool) -> str:
    names = {"cpu": "a CPU of a few cores", "cuda": "an H100 kept busy"}
    text = f"Time: {names[device]} at an assumed {RATES[device]:.2g} operations a second"
    text += ", runs like finished ones as those took." if measured else "."
    other = "cuda" if device == "cpu" else "cpu"
    if not math.isnan(operations):
        text += f" At {RATES[other]:.2g}, {names[other]}: {_time(operations / RATES[other])}."
    return text


def _most(values: Iterable[float]) -> float:
    """The largest; NaN where one is."""
    known = [0.0, *values]
    return math.nan if any(map(math.isnan, known)) else max(known)


def _cells(cost: Cost, seconds: float) -> list[str]:
    return [
        UNKNOWN if math.isnan(cost.steps) else f"{cost.steps:,.0f}" if cost.steps else "–",
        _short(cost.tokens),
        _operations(cost.operations),
        _time(seconds),
        _size(cost.memory),
        _size(cost.disk),
    ]


def _short(number: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return UNKNOWN if math.isnan(number) else f"{number:.0f}"


def _operations(number: float) -> str:
    return UNKNOWN if math.isnan(number) else f"{number:.1e}"


def _time(seconds: float) -> str:
    for size, name in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {name}"
    return UNKNOWN if math.isnan(seconds) else f"{seconds:.0f} s"


def _size(size: float) -> str:
    return UNKNOWN if math.isnan(size) else in_bytes(size)
