"""Where the entry points print tables."""

from rich.console import Console

WIDTH_OF_FILES = 200
"""Columns where the output is no terminal, so that nothing is folded."""


def console() -> Console:
    """A console on the standard output: as wide as the terminal, or `WIDTH_OF_FILES` where it is none."""
    own = Console(highlight=False)
    return own if own.is_terminal else Console(highlight=False, width=WIDTH_OF_FILES)
