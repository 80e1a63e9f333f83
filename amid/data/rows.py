"""From a row of a file to an example, or to a document."""

import math
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from amid.data.examples import Example
from amid.data.formats import Unreadable
from amid.errors import InputError
from amid.settings import check_arguments, nodes

Fields = Mapping[str, str]
"""Where a row has what an example needs: `instruction`, `input` (may be left out) and `output`, each the name
of a field, dotted for one inside another: `translation.de`."""

FIELDS: Fields = {"instruction": "instruction", "input": "input", "output": "output"}

CONVERSATION = "conversations of one turn, the user's message as instruction and the assistant's as output"
PROMPT_AND_COMPLETION = "prompt as instruction and completion as output"
"""How rows without `instruction` and `output` are read, if both can be found in other fields."""

_PARTS = ("instruction", "output")
_CONVERSATIONS = ("messages", "conversations")
_BEFORE = ("system", "tools", "history")
"""Fields beside a conversation that belong to it: no row of one turn has them."""

_ROLES = {"human": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant"}
_ASKS = ("prompt", "question", "query", "problem", "instruction", "input", "article", "dialogue", "document")
_ANSWERS = ("completion", "response", "answer", "output", "reply", "target", "summary", "solution", "chosen")


def checked(fields: Fields | None) -> Fields:
    """`fields`, or the usual ones; an input that is null is left out.

    Raises:
        InputError: for fields without `instruction` or `output`, with another name, or that name no field.
    """
    if fields is None:
        return FIELDS
    check_arguments("data.", nodes.Data, {"fields": fields})
    return {name: field for name, field in fields.items() if field is not None}


def example_of(row: Mapping[str, Any], place: str, fields: Fields) -> tuple[Example, str | None]:
    """The example in a row, perhaps without an output that has text, and what was taken in place of fields.

    Raises:
        InputError: naming `place` and the field, for one that is missing, is no string, or cannot be kept.
    """
    if fields == FIELDS and not {"instruction", "output"} & row.keys():
        plain = _plain(row, place)
        if plain is not None:
            found, taken, used = plain
            return _example(row, place, found, used), taken
    values: _Values = []
    for name in ("output", "instruction", "input"):
        if name in fields:
            value = _value(row, fields[name], place, optional=name == "input")
            values.append((name, fields[name], "" if name == "input" and value is None else value))
    return _example(row, place, values, list(fields.values())), None


_Values = list[tuple[str, str, Any]]
"""The values that an example is made of: each with its part of the example and its field of the row."""


def _example(row: Mapping[str, Any], place: str, values: _Values, used: Sequence[str]) -> Example:
    """Makes the example of `values`; the row's fields that are not `used` become its `fields`."""
    texts: dict[str, Any] = {"input": ""}
    for name, field, value in values:
        several = name == "output" and isinstance(value, list)
        for one in value if several else [value]:
            text(one, field, place)
        texts[name] = tuple(value) if several else value
    outputs = texts.pop("output")
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    others = {name: _further(value, name, place) for name, value in row.items() if name not in used}
    return Example(
        **texts,
        outputs=tuple(output for output in outputs if has_text(output)),
        fields={name: value for name, value in others.items() if value is not None},
    )


def has_text(value: str) -> bool:
    """Whether a string has more than white space and characters without a shape (byte order marks, …)."""
    return any(not c.isspace() and unicodedata.category(c) != "Cf" for c in value)


def document_of(row: Mapping[str, Any], place: str) -> str:
    """The `text` of a row.

    Raises:
        InputError: naming `place`, if it is not a string.
    """
    if "text" not in row:
        raise InputError(f"{place}: field 'text' is missing ({_has(row)}); plain text needs one in each row")
    return text(row["text"], "text", place)


def text(value: Any, field: str, place: str) -> str:
    """`value`, which is to be a string that can be written.

    Raises:
        InputError: if it is not a string, or has half of a surrogate pair in it.
    """
    if isinstance(value, Unreadable):
        raise InputError(f"{place}: field {field!r} is {value}")
    if not isinstance(value, str):
        raise InputError(f"{place}: field {field!r} is {_shown(value)}, not a string; make it one")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{place}: field {field!r} has half of a surrogate pair, {value[error.start]!a}, which "
            "is no character; repair or remove it"
        ) from error
    return value


def _further(value: Any, name: str, place: str) -> str | int | float | None:
    """Returns a further string or number of a row; None, which stands for no value, for anything else."""
    if not isinstance(value, str | int | float) or (isinstance(value, float) and math.isnan(value)):
        return None
    text(name, name, place)
    if isinstance(value, str):
        return text(value, name, place)
    if isinstance(value, float) and math.isinf(value):
        raise InputError(f"{place}: field {name!r} is {value}; give a finite number or null")
    return value


def _value(row: Mapping[str, Any], name: str, place: str, optional: bool = False) -> Any:
    """The field of a row; one inside another by its dotted name."""
    value: Any = row
    for part in [name] if name in row else name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            if optional:
                return None
            raise InputError(
                f"{place}: field {name!r} is missing ({_has(row)}); each row needs an instruction and an "
                f"output; {_remedy(row)}"
            )
        value = value[part]
    return value


def _is_row(value: Any) -> bool:
    return isinstance(value, Mapping) and not {"role", "from"} & value.keys()


def _remedy(row: Mapping[str, Any]) -> str:
    inside = next((n for n, of in row.items() if isinstance(of, list) and of[:1] and _is_row(of[0])), None)
    if inside is not None and inside not in _CONVERSATIONS:
        return f"if the rows are those in {inside!r}, give that array alone"
    ask = next((name for name in _ASKS if name in row), None)
    answer = next((name for name in _ANSWERS if name in row and name != ask), None)
    if ask and answer:
        context = next(
            (f", input: {name}" for name in ("input", "context") if name in row and name != ask), ""
        )
        fields = f"{{instruction: {ask}{context}, output: {answer}}}"
        return f"data.fields says how they are called: 'data.fields={fields}'"
    return "data.fields says how they are called"


def _plain(row: Mapping[str, Any], place: str) -> tuple[_Values, str, list[str]] | None:
    """The values of a conversation of one turn, or of a prompt and its completion; None of other rows.

    Raises:
        InputError: for a conversation of more than one turn, or with other roles.
    """
    both = {"prompt", "completion"} <= row.keys()
    if both and isinstance(row["prompt"], str) and isinstance(row["completion"], str):
        used = ["prompt", "completion"]
        values = [(part, name, row[name]) for part, name in zip(_PARTS, used, strict=True)]
        return values, PROMPT_AND_COMPLETION, used
    if both and isinstance(row["prompt"], list) and isinstance(row["completion"], list):
        turns, used = [*row["prompt"], *row["completion"]], ["prompt", "completion"]
    else:
        name = next((name for name in _CONVERSATIONS if isinstance(row.get(name), list)), "")
        if not name:
            return None
        turns, used = row[name], [name]
    name = ", ".join(used)
    if not all(isinstance(turn, Mapping) for turn in turns):
        return None
    roles = [str(turn.get("role", turn.get("from"))) for turn in turns]
    roles = [key for key in _BEFORE if row.get(key)] + roles
    if [_ROLES.get(role, role) for role in roles] != ["user", "assistant"]:
        shown = ", ".join(roles[:6]) + (", …" if len(roles) > 6 else "")
        raise InputError(
            f"{place}: a conversation ({name}) of {shown or 'no messages'}; only one message of the user and "
            "the assistant's answer to it are read; write other rows as instruction and output"
        )
    keys = ["content" if "content" in turn else "value" for turn in turns]
    values = [
        (part, f"{name}[{number}].{key}", turn.get(key))
        for number, (part, turn, key) in enumerate(zip(_PARTS, turns, keys, strict=True))
    ]
    return values, CONVERSATION, used


def _has(row: Mapping[str, Any]) -> str:
    """`the row has a, b`, in one line and not long."""
    names = ", ".join(name.encode(errors="backslashreplace").decode() for name in [*row][:12])
    names = names[:200] + ("…" if len(names) > 200 else "") + (", …" if len(row) > 12 else "")
    return f"the row has {names or 'none'}"


def _shown(value: Any) -> str:
    """Returns a short JSON text of a value that is not a string."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return str(value)[:40]
    return {"dict": "an object", "list": "a list"}.get(type(value).__name__, f"a {type(value).__name__}")
