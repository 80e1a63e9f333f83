"""What the ranks of a run print: the first one speaks for all, and another one only of its own error."""

import os
import sys
from typing import TextIO

from amid.distributed.ranks import LostContact
from amid.errors import in_one_line, wants_traceback

_errors: TextIO | None = None
"""The screen for errors of a rank that prints nothing else."""


def print_nothing() -> None:
    """Discards what this process prints from now on.

    With AMID_TRACEBACK=1 its errors and warnings stay on the screen.
    """
    global _errors
    if _errors is not None:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    _errors = os.fdopen(os.dup(2), "w")
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    if not wants_traceback():
        os.dup2(nothing, 2)


def print_own_error(error: Exception) -> None:
    """Prints an error of a rank that prints nothing else, unless the first rank or the lost one says it."""
    if _errors is not None and not isinstance(error, LostContact) and not hasattr(error, "of_first_rank"):
        place = f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']}"
        print(f"amid: {place}: {in_one_line(error)}", file=_errors, flush=True)
