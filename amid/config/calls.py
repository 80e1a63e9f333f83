"""How functions of the user's own are called: with each value under its name."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any


def by_name(function: Callable[..., Any], **values: Any) -> Any:
    """What `function` returns for `values`, given by keyword.

    A function whose arguments have other names gets them by position, in their order, where it needs exactly
    so many: no value reaches an argument that has another meaning and a default.

    Raises:
        TypeError: if it can be called neither way.
    """
    if takes_names(function, tuple(values)):
        return function(**values)
    return function(*values.values())


def takes_names(function: Callable[..., Any], names: Sequence[str]) -> bool:
    """Whether `function` takes values under these names; False where it takes as many by position alone.

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
    """That of a function, or of the class of an object, as its user calls it."""
    inner = getattr(function, "func", function)  # of a functools.partial
    return str(getattr(inner, "__name__", type(inner).__name__))
