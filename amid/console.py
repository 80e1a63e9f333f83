"""What the entry points print on: tables, and commands to type."""

import shlex
from collections.abc import Iterable

from rich.console import Console

WIDTH_OF_FILES = 200
"""Columns where the output is no terminal, so that nothing is folded."""


def as_typed(words: Iterable[str]) -> str:
    """An `amid` command that a shell takes, quoted where it must be, and as it would be typed."""
    return " ".join(["amid", *map(_quoted, words)])


def _quoted(word: str) -> str:
    readable = "'" in word and not set(word) & set('"$`\\!')
    return f'"{word}"' if readable else shlex.quote(word)


def console() -> Console:
    """A console on the standard output: as wide as the terminal, or `WIDTH_OF_FILES` where it is none."""
    own = Console(highlight=False)
    return own if own.is_terminal else Console(highlight=False, width=WIDTH_OF_FILES)
