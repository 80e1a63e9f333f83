"""The error that stands for a mistake in the user's input."""

import difflib
from collections.abc import Sequence


class InputError(ValueError):
    """A mistake in the user's input: the message names the argument, its value and the remedy."""


def choose_one(name: str, options: Sequence[str]) -> str:
    """The end of a message about a `name` that is none of `options`: the nearest one, and all."""
    choice = f"hoose one of {', '.join(options)}"
    near = difflib.get_close_matches(name, options, 1)
    return f"; did you mean {near[0]!r}? C{choice}" if near else f"; c{choice}"
