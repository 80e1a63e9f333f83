"""The entry point of `amid status`."""

import time
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live

from amid.errors import InputError
from amid.terminal import console
from amid.tracking.command_records import commands_of
from amid.tracking.overview import to_terminal
from amid.tracking.status import RunStatus, read_status

REFRESH = 2.0
"""Seconds between two refreshes of a followed status."""

MOST_COMMANDS = 3
"""The most commands that are printed to resume runs."""

PATIENCE = 120.0
"""Seconds after which a followed status ends if runs wait and no run is running."""


def run(arguments: list[str]) -> None:
    """Prints how far runs are: FOLDER [--follow].

    Raises:
        InputError: see `show`; or for other arguments.
    """
    if {"-h", "--help"} & set(arguments):
        print(
            "amid status FOLDER [--follow]\n\n"
            "Prints state, step, loss, last validation score and time left of each run in a sweep's FOLDER. "
            "--follow refreshes until all have finished, or until none has run for two minutes."
        )
        return
    folders = [word for word in arguments if not word.startswith("-")]
    if len(folders) != 1 or not set(arguments) <= {*folders, "--follow"}:
        raise InputError("amid status FOLDER [--follow] takes one folder of runs, such as outputs/alpha")
    show(folders[0], "--follow" in arguments)


def show(directory: str, follow: bool) -> None:
    """Prints the progress of the runs in `directory`.

    With `follow` it refreshes until all runs are finished, or no run is running. If no run is running and
    some are not finished, it also prints the command that resumes them.

    Raises:
        InputError: if `directory` is no folder or has no runs, or with `follow` outside a terminal.
    """
    out = console()
    if follow and not out.is_terminal:
        raise InputError("--follow refreshes a terminal, and the output is no terminal; leave it out")
    runs = read_status(directory)
    if follow:
        runs = _followed(directory, runs, out)
    out.print(to_terminal(runs))
    if any(run.state == "running" for run in runs):
        return
    for state in ("interrupted", "waiting", "failed"):
        commands = commands_of(Path(directory), [run.name for run in runs if run.state == state])
        for command in commands[:MOST_COMMANDS]:
            again = "To try again" if state == "failed" else "To go on"
            out.print(f"None is running. {again}: {command}", markup=False, soft_wrap=True)
        if commands and state != "failed":
            break


def _followed(directory: str, runs: list[RunStatus], out: Console) -> list[RunStatus]:
    """Shows the runs, as many as the terminal has lines for, until the end; returns their last state."""
    ran = time.monotonic()
    with Live(_fitting(runs, out), console=out, auto_refresh=False, transient=True) as live:
        while any(run.state in ("running", "waiting") for run in runs) and time.monotonic() - ran <= PATIENCE:
            time.sleep(REFRESH)
            runs = read_status(directory)
            live.update(_fitting(runs, out), refresh=True)
            if any(run.state == "running" for run in runs):
                ran = time.monotonic()
    return runs


def _fitting(runs: list[RunStatus], out: Console) -> Group:
    """Returns as many of the runs as fit in the terminal, with one line free below them."""
    for most in range(min(len(runs), out.height), 0, -1):
        group = to_terminal(runs, most)
        if len(out.render_lines(group)) < out.height:
            break
    return group
