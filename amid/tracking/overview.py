"""The runs of a folder at a glance: a table for the terminal, and the time until all have finished."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from amid.errors import Damaged, plain
from amid.measures import TRAINING, measure_of
from amid.tracking.status import PREPARING, STATES, RunStatus, read_status

_URGENCY = ("running", "failed", "interrupted", "diverged", "waiting", "done")
"""The states of a run, the most urgent one for a waiting user first."""


def seconds_left(runs: Iterable[RunStatus], starting: int = 0) -> float | None:
    """Estimates the seconds until all runs are finished; None if there is nothing to estimate from.

    The estimate assumes that a waiting run takes as long as a finished run did on average, and that as many
    runs as now run at once. The time left of a preparation says nothing about the run that follows.

    Args:
        runs: all runs.
        starting: how many of the waiting runs begin now.
    """
    runs = list(runs)
    running = [run for run in runs if run.state == "running"]
    waiting = sum(run.state == "waiting" for run in runs)
    known = [run.seconds_left for run in running if run.seconds_left is not None and run.note != PREPARING]
    at_once = len(running) + starting
    if len(known) < len(running) or (waiting and not at_once):
        return None
    took = [run.seconds for run in runs if run.seconds is not None and run.state == "done"]
    if waiting and not took:
        return None
    ahead = waiting * sum(took) / len(took) / at_once if waiting else 0.0
    return max(known, default=0.0) + ahead


def time_left(directory: Path, runs: Sequence[Path]) -> str:
    """Says how long a command's runs may take from the one in `directory` on: `  (about 12 min left in all)`.

    The estimate uses the command's finished runs. The text is empty if there is nothing to estimate from.
    """
    if len(runs) < 2 or not directory.parent.is_dir():
        return ""
    names = {run.name for run in runs}
    try:
        of_runs = [run for run in read_status(directory.parent) if run.name in names]
    except Damaged:  # which `amid status` says
        return ""
    starts = any(run.name == directory.name and run.state == "waiting" for run in of_runs)
    left = seconds_left(of_runs, starting=1) if starts else None
    return "" if left is None else f"  (about {in_words(left)} left in all)"


def to_terminal(runs: Sequence[RunStatus], most: int | None = None) -> Group:
    """The runs as a table, and a line that counts them; with `most` only so many, the running ones first."""
    metrics = list(dict.fromkeys(run.metric for run in runs if run.metric))
    scored = escape(f"valid {measure_of(metrics[0]).title if len(metrics) == 1 else 'score'}")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("run", overflow="fold")
    table.add_column("state")
    for name in ("step", "loss", scored, "left"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    shown = sorted(runs, key=lambda run: _URGENCY.index(run.state))[:most] if most is not None else runs
    for run in shown:
        table.add_row(
            Text(plain(run.name)),
            Text(run.state, style=STATES[run.state]),
            f"{run.step}/{run.steps}" if run.steps else "",
            "" if run.loss is None else TRAINING["loss"].number(run.loss),
            "" if run.score is None or run.metric is None else measure_of(run.metric).number(run.score),
            "" if run.seconds_left is None or run.note == PREPARING else in_words(run.seconds_left),
            Text(plain(_doing(run) if run.state == "running" else run.note)),
        )
    hidden = len(runs) - len(shown)
    counts = {state: sum(run.state == state for run in runs) for state in STATES}
    line = f"{len(runs)} run{'s' * (len(runs) != 1)}: " + ", ".join(
        f"{n} {state}" for state, n in counts.items() if n
    )
    left = seconds_left(runs)
    if counts["running"] and left is not None:
        line += f"; about {in_words(left)} left"
    return Group(table, *([Text(f"and {hidden} more", style="dim")] if hidden else []), Text(line))


def _doing(run: RunStatus) -> str:
    part = run.part
    share = f" {100 * part.done // part.total}%" if part and part.total else ""
    if run.note == PREPARING and run.seconds_left is not None:
        share += f", {in_words(run.seconds_left)} left of it"
    return ": ".join(filter(None, (run.note, part.name if part else ""))) + share


def in_words(seconds: float) -> str:
    """A time in its largest fitting unit: `40 s`, `12 min`, `3.5 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
