"""Calls the user's own functions, with each value under its name."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any


def by_name(function: Callable[..., Any], **values: Any) -> Any:
    """Calls `function` with `values` as keyword arguments, and returns what it returns.

    If the function's arguments have other names, it gets the values by position, in order. This needs a
    function with exactly as many required arguments, so no value reaches an argument with a default.

    Raises:
        TypeError: if it can be called neither way.
    """
    if takes_names(function, tuple(values)):
        return function(**values)
    return function(*values.values())


def takes_names(function: Callable[..., Any], names: Sequence[str]) -> bool:
    """Returns whether `function` takes values under these names; False if it takes them by position only.

    Raises:
        TypeError: if it does neither.
    """
    try:
        signature = inspect.signature(function)
    except ValueError:  # of some built-in functions
        return False
    try:
        signature.bind(**dict.fromkeys(names))
    except TypeError as error:
        positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        parameters = signature.parameters.values()
        needed = [p for p in parameters if p.default is p.empty and p.kind in positional]
        others = [p for p in parameters if p.default is p.empty and p.kind is p.KEYWORD_ONLY]
        of_any_number = [p for p in parameters if p.kind is p.VAR_POSITIONAL and not needed]
        if others or not (len(needed) == len(names) or of_any_number):
            raise TypeError(
                f"{name_of(function)}{signature} must take {' and '.join(names)}, by these names or as its "
                f"only arguments without a default ({error})"
            ) from error
        return False
    return True


def name_of(function: Any) -> str:
    """Returns the name of a function, or of an object's class, as the user knows it."""
    inner = getattr(function, "func", function)  # of a functools.partial
    return str(getattr(inner, "__name__", type(inner).__name__))
