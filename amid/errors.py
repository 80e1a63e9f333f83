"""The error that stands for a mistake in the user's input."""

import difflib
from collections.abc import Sequence


class InputError(ValueError):
    """A mistake in the user's input: the message names the argument, its value and the remedy."""


class Busy(InputError):
    """Another process is at the run that is asked for."""


def choose_one(name: str, options: Sequence[str]) -> str:
    """The end of a message about a `name` that is none of `options`: the nearest one, and all."""
    choice = f"hoose one of {', '.join(options)}"
    near = difflib.get_close_matches(name.lower(), options, 1)
    return f"; did you mean {near[0]!r}? C{choice}" if near else f"; c{choice}"


def first_line(error: BaseException) -> str:
    """That of its message; the kind of error where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def was_interrupted(error: BaseException) -> bool:
    """Whether an interrupt led to `error`: a library may answer it with an error of its own."""
    chain: list[BaseException] = [error]
    for link in chain:
        before = (link.__cause__, link.__context__)
        chain += [other for other in before if other is not None and other not in chain]
    return any(isinstance(link, KeyboardInterrupt) for link in chain)
