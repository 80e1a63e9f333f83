"""A console of rich for tables, without control characters of the data."""

from typing import Any

from rich.console import Console
from rich.text import Text

from amid.errors import plain

WIDTH_OF_FILES = 200
"""Columns where the output is no terminal, so that nothing is folded."""


class _PlainConsole(Console):
    """Prints what is given as a string, in cells too, without control characters."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Renders the text without control characters."""
        return super().render_str(plain(text), **options)


def console() -> Console:
    """A console on the standard output: as wide as the terminal, or `WIDTH_OF_FILES` where it is none."""
    own = _PlainConsole(highlight=False)
    return own if own.is_terminal else _PlainConsole(highlight=False, width=WIDTH_OF_FILES)
