"""From the messages of a row to a conversation, with checks of roles, turns and contents."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from amid.data.examples import WEIGHTS, Conversation, Message, counts
from amid.data.formats import Unreadable
from amid.errors import InputError

MESSAGES = ("messages", "conversations")
"""Fields of a row that hold a conversation."""

_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "observation", "function", "function_response"), "tool"),
}
"""The names that data sets give to the roles."""

_AFTER = {
    None: ("system", "user", "assistant"),
    "system": ("user", "assistant"),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}
"""The roles that may follow a role; None stands for the beginning."""

_VARIABLES = "chat_template_kwargs"
"""The field of a row that holds variables of the chat template, as in TRL."""

_SHOWN = 6
"""How many roles an error names."""


def conversation_of(row: Mapping[str, Any], place: str) -> tuple[Conversation, str, list[str]] | None:
    """The conversation of a row, the name of its form, and the fields it is made of; None if it has none.

    Messages after the last answer that counts are left out.

    Raises:
        InputError: naming `place`, for messages that are no conversation: an unknown role, turns that do not
            alternate, no answer that counts, a weight that is neither 0 nor 1, or a content that is no text.
    """
    given = 0
    found = {name: of for name in MESSAGES if (of := _list_in(row.get(name))) is not None}
    name = next(iter(found), "")
    if {"prompt", "completion"} <= row.keys() and not name:
        name = "prompt, completion"
        in_cells = isinstance(row["prompt"], str) and is_messages(row["prompt"])
        prompt, completion = (_list_of(row[field], role, in_cells) for field, role in _SIDES.items())
        if prompt is None or completion is None:
            return None
        turns, given, form = [*prompt, *completion], len(prompt), "prompt and completion of messages"
    elif name:
        turns = found[name]
        shared = any(isinstance(turn, Mapping) and "from" in turn for turn in turns)
        form = f"{'ShareGPT ' if shared else ''}{name}"
    else:
        return None
    used = [*name.split(", "), "system", "tools", _VARIABLES]
    if row.get("history"):
        raise InputError(
            f"{place}: field 'history' stands beside a conversation ({name}); move it into the messages"
        )
    messages = [_message(turn, f"{name}[{number}]", place) for number, turn in enumerate(turns)]
    system = row.get("system")
    if isinstance(system, str) and system.strip():
        messages, given = [{"role": "system", "content": system}, *messages], given + bool(given)
    messages = _checked(messages, name, place)
    if given >= len(messages):
        raise InputError(
            f"{place}: the completion has no answer of the assistant that counts; give it the answer to learn"
        )
    variables = _from_cell(row.get(_VARIABLES), _VARIABLES, "an object of variables", place) or {}
    if not isinstance(variables, Mapping):
        raise InputError(f"{place}: field {_VARIABLES!r} is {shown(variables)}; write an object of variables")
    variables = {variable: value for variable, value in variables.items() if value is not None}
    tools = _tools(row.get("tools"), place)
    return Conversation(tuple(messages), given, tools, variables, place), form, used


def check_messages(row: Mapping[str, Any], place: str) -> None:
    """Checks that a field for messages holds some.

    Raises:
        InputError: naming `place` and the field, for one of another type.
    """
    for name in MESSAGES:
        if name in row and _list_in(row[name]) is None:
            raise InputError(
                f"{place}: field {name!r} is {shown(row[name])}, not a list of messages; write "
                "[{role: user, content: TEXT}, {role: assistant, content: TEXT}]"
            )


def _list_in(value: Any) -> list[Any] | None:
    """Returns a list, or the list that a cell of a table holds as JSON text; None for anything else."""
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, str) and value.lstrip().startswith("["):
        with contextlib.suppress(ValueError, RecursionError):
            return list(json.loads(value))
    return None


def is_messages(value: Any) -> bool:
    """Whether a value is a list of messages, or the JSON text of one."""
    turns = _list_in(value) or [None]
    keys = (*_KEYS, ("role", "tool_calls"))
    return all(isinstance(turn, Mapping) and any({*pair} <= turn.keys() for pair in keys) for turn in turns)


_SIDES = {"prompt": "user", "completion": "assistant"}
"""Fields of a prompt and its completion: the role of a string beside a list of messages."""


def _list_of(value: Any, role: str, in_cells: bool) -> list[Any] | None:
    """Returns the messages of a side; `in_cells` says that a string may hold them as JSON text."""
    if isinstance(value, list | tuple) or (in_cells and is_messages(value)):
        return _list_in(value)
    return [{"role": role, "content": value}] if isinstance(value, str) else None


_KEYS = (("role", "content"), ("from", "value"))
"""The keys of a message's role and text."""


def _message(turn: Any, name: str, place: str) -> Message:
    """Returns a turn with its role and its content under the usual names, without fields that are null."""
    if not isinstance(turn, Mapping):
        raise InputError(f"{place}: {name} is no message; write {{role: user, content: TEXT}}")
    given = {key: value for key, value in turn.items() if value is not None}
    label, field = next((keys for keys in _KEYS if keys[0] in given), _KEYS[0])
    role, content = given.get(label), given.get(field, "" if given.get("tool_calls") else None)
    if role is None or (content is None and field not in turn):
        raise InputError(
            f"{place}: {name} has {', '.join(map(str, given))[:80] or 'no keys'}; amid reads the keys role "
            "and content, or from and value; rename or add keys"
        )
    if not isinstance(role, str) or role not in _ROLES:
        raise InputError(
            f"{place}: {name} has the unknown role {str(role)[:40]!r}; name one of "
            f"{', '.join(dict.fromkeys(_ROLES.values()))}"
        )
    message = {key: value for key, value in given.items() if key not in ("from", "value")}
    for key in WEIGHTS:
        if _ROLES[role] == "assistant" and message.get(key, 1) not in (0, 1):
            raise InputError(
                f"{place}: {name}.{key} is {shown(message[key])}; write 1 for an answer that counts, 0 for "
                "an answer that does not, or rename the key"
            )
    return {**message, "role": _ROLES[role], "content": _text(content, f"{name}.{field}", place)}


def _text(content: Any, field: str, place: str) -> str:
    """The text of a content, which may be a list of parts.

    Raises:
        InputError: for another content, such as an image.
    """
    if isinstance(content, list | tuple):
        return "".join(_part(part, f"{field}[{number}]", place) for number, part in enumerate(content))
    return checked_text(content, field, place)


def _part(part: Any, field: str, place: str) -> str:
    if not isinstance(part, Mapping):
        return checked_text(part, field, place)
    kind = part.get("type", "text")
    if kind != "text":
        raise InputError(
            f"{place}: {field} is of type {str(kind)[:40]!r}; only text is read, so leave the row out"
        )
    return checked_text(part.get("text"), f"{field}.text", place)


def _checked(messages: Sequence[Message], name: str, place: str) -> list[Message]:
    """Returns the messages up to the last answer, if roles follow each other as in a conversation."""
    roles = [message["role"] for message in messages]
    shown = ", ".join(roles[:_SHOWN]) + (", …" if len(roles) > _SHOWN else "")
    what = f"{place}: a conversation ({name}) of {shown or 'no messages'}"
    if not roles:
        raise InputError(
            f"{what}; give a message of the user and the assistant's answer, or leave the row out"
        )
    if "assistant" not in (roles[roles.index("user") :] if "user" in roles else ()):
        raise InputError(f"{what} has no answer of the assistant; add one, or leave the row out")
    before = None
    for number, role in enumerate(roles):
        if role not in _AFTER[before]:
            where = "begins with" if before is None else f"has {before}, then"
            raise InputError(
                f"{what} {where} {role} ({name}[{number}]): the turns do not alternate; "
                f"{'at first' if before is None else f'after {before}'} comes {' or '.join(_AFTER[before])}; "
                "merge or remove messages"
            )
        before = role
    counted = [number for number, message in enumerate(messages) if counts(message)]
    if not counted or counted[-1] < roles.index("user"):
        raise InputError(
            f"{what} has no answer that counts ({', '.join(WEIGHTS)} of its messages); let one of them "
            "count, or leave the row out"
        )
    return list(messages[: counted[-1] + 1])


def _tools(tools: Any, place: str) -> tuple[Mapping[str, Any], ...]:
    """The descriptions of tools in a row, which may be JSON text."""
    tools = _from_cell(tools, "tools", "a list of tools", place)
    if not tools:
        return ()
    if not isinstance(tools, list | tuple) or not all(isinstance(tool, Mapping) for tool in tools):
        raise InputError(f"{place}: field 'tools' is no list of objects; write one object for each tool")
    return tuple(tools)


def _from_cell(value: Any, field: str, what: str, place: str) -> Any:
    """Returns what a cell of a table holds as JSON text; any other value as it is."""
    if not isinstance(value, str) or not value.strip():
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}: field {field!r} is no JSON ({error}); write {what}") from error


def checked_text(value: Any, field: str, place: str) -> str:
    """`value`, which is to be a string that can be written.

    Raises:
        InputError: if it is not a string, or has half of a surrogate pair in it.
    """
    if isinstance(value, Unreadable):
        raise InputError(f"{place}: field {field!r} is {value}")
    if not isinstance(value, str):
        raise InputError(f"{place}: field {field!r} is {shown(value)}, not a string; make it one")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{place}: field {field!r} has half of a surrogate pair, {value[error.start]!a}, which "
            "is no character; repair or remove it"
        ) from error
    return value


def shown(value: Any) -> str:
    """Returns a value in the words of a message, in short."""
    if isinstance(value, str):
        return f"the string {value[:40]!r}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return str(value)[:40]
    return {"dict": "an object", "list": "a list"}.get(type(value).__name__, f"a {type(value).__name__}")
