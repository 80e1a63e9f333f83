"""The entry point of `amid status`."""

import time
from pathlib import Path

from rich.console import Console
from rich.live import Live

from amid.errors import InputError
from amid.monitor import command_of, in_words, read_status, to_terminal

REFRESH = 2.0
"""Seconds between two looks."""

PATIENCE = 120.0
"""Seconds after which following ends where none runs, though some wait."""

WIDTH_OF_FILES = 200
"""Columns where the output is no terminal, so that nothing is folded."""


def run(directory: str, follow: bool) -> None:
    """Prints how far the runs in `directory` are; with `follow` until all are finished, or none is running.

    Raises:
        InputError: if it is no folder or has no runs, or is to be followed where there is no terminal.
    """
    console = Console(highlight=False)
    if not console.is_terminal:
        if follow:
            raise InputError("--follow refreshes a terminal, and the output is no terminal; leave it out")
        console = Console(highlight=False, width=WIDTH_OF_FILES)
    runs = read_status(directory)
    if not follow:
        console.print(to_terminal(runs))
        return
    ran = time.monotonic()
    with Live(to_terminal(runs), console=console, auto_refresh=False) as live:
        while any(run.state in ("running", "waiting") for run in runs) and time.monotonic() - ran <= PATIENCE:
            time.sleep(REFRESH)
            runs = read_status(directory)
            live.update(to_terminal(runs), refresh=True)
            if any(run.state == "running" for run in runs):
                ran = time.monotonic()
    if waiting := sum(run.state == "waiting" for run in runs):
        console.print(
            f"{waiting} waiting, none running for {in_words(PATIENCE)}. If nothing is to start them, "
            f"to go on: {command_of(Path(directory))}",
            markup=False,
            soft_wrap=True,
        )
