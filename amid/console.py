"""Printing to the terminal: lines, and commands to type."""

import logging
import os
import shlex
import signal
import sys
from collections.abc import Iterable
from pathlib import Path

from amid.errors import plain


def as_typed(words: Iterable[str]) -> str:
    """Returns an `amid` command as a user would type it in a shell, quoted where needed."""
    return " ".join(["amid", *map(_quoted, words)])


def _quoted(word: str) -> str:
    readable = "'" in word and not set(word) & set('"$`\\!')
    return f'"{word}"' if readable else shlex.quote(word)


def shown(path: Path) -> str:
    """Returns a path for use in a command: relative if it is in the working folder, and quoted if need be."""
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))


def in_bytes(size: float) -> str:
    """A number of bytes in its largest fitting unit: `1.54 MB`, `1.7 GB`."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:.3g} MB"


def announce(message: str) -> None:
    """Prints one line for the user, and logs it in the run's log."""
    print(plain(message), flush=True)
    logging.getLogger("amid").info(plain(message))


def stop_printing() -> int:
    """Discards all further output, because its reader has stopped reading; returns the exit status."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + signal.SIGPIPE
