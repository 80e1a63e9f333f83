"""From a row of a file to an example, or to a document."""

import json
import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from amid.data.conversations import MESSAGES, check_messages, checked_text, conversation_of, is_messages
from amid.data.examples import Example, Message
from amid.errors import InputError
from amid.settings import check_arguments, nodes

Fields = Mapping[str, str]
"""Where a row has what an example needs: `instruction`, `input` (may be left out) and `output`, each the name
of a field, dotted for one inside another: `translation.de`."""

FIELDS: Fields = {"instruction": "instruction", "input": "input", "output": "output"}

INSTRUCTION = "instruction, input and output"
PROMPT_AND_COMPLETION = "prompt and completion (instruction and output)"
TEXT = "plain text, of which all tokens count"
"""The names of forms that rows have, besides the forms of conversations."""

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


def example_of(row: Mapping[str, Any], place: str, fields: Fields) -> tuple[Example, str]:
    """The example in a row, perhaps without an output that has text, and the name of the row's form.

    Raises:
        InputError: naming `place` and the field, for one that is missing, is no string, or cannot be kept;
            for a row of no known form; see also `amid.data.conversations.conversation_of`.
    """
    if fields == FIELDS and not {"instruction", "output"} & row.keys():
        return _of_other_form(row, place)
    values: _Values = []
    for name in ("output", "instruction", "input"):
        if name in fields:
            value = _value(row, name, fields, place)
            values.append((name, fields[name], "" if name == "input" and value is None else value))
    return _example(row, place, values, list(fields.values())), INSTRUCTION


def _of_other_form(row: Mapping[str, Any], place: str) -> tuple[Example, str]:
    """The example in a row that has neither `instruction` nor `output`, and the name of its form."""
    sides = [row.get(name) for name in ("prompt", "completion")]
    if all(isinstance(side, str) for side in sides) and not is_messages(row["prompt"]):
        values = [("instruction", "prompt", row["prompt"]), ("output", "completion", row["completion"])]
        return _example(row, place, values, ["prompt", "completion"]), PROMPT_AND_COMPLETION
    found = conversation_of(row, place)
    if found is not None:
        conversation, form, used = found
        *before, question, answer = conversation.messages
        values = [
            ("instruction", form, question["content"]),
            ("input", form, "\n\n".join(f"{message['role']}: {_said(message)}" for message in before)),
            ("output", form, _said(answer)),
        ]
        return replace(_example(row, place, values, used), conversation=conversation), form
    if "text" in row:
        values = [("instruction", "text", ""), ("output", "text", document_of(row, place))]
        return replace(_example(row, place, values, ["text"]), is_text=True), TEXT
    check_messages(row, place)
    raise InputError(
        f"{place}: the form of the row is not recognised ({_has(row)}); give instruction and output, prompt "
        f"and completion, messages, conversations, or text; {_remedy(row)}"
    )


_Values = list[tuple[str, str, Any]]
"""The values that an example is made of: each with its part of the example and its field of the row."""


def _example(row: Mapping[str, Any], place: str, values: _Values, used: Sequence[str]) -> Example:
    """Makes the example of `values`; the row's fields that are not `used` become its `fields`."""
    texts: dict[str, Any] = {"input": ""}
    for name, field, value in values:
        several = name == "output" and isinstance(value, list)
        for one in value if several else [value]:
            checked_text(one, field, place)
        texts[name] = tuple(value) if several else value
    outputs = texts.pop("output")
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    others = {name: _further(value, name, place) for name, value in row.items() if name not in used}
    return Example(
        **texts,
        outputs=tuple(output for output in outputs if has_text(output)),
        fields={name: value for name, value in others.items() if value is not None},
    )


def _said(message: Message) -> str:
    """The text of a message, with its calls of tools."""
    calls = message.get("tool_calls")
    called = [json.dumps(calls, ensure_ascii=False, default=str)] if calls else []
    return "\n".join(filter(None, [message["content"], *called]))


def output_in(form: str, fields: Fields) -> str:
    """The part of a row of this form that is its output, in the words of a message."""
    names = {INSTRUCTION: fields["output"], PROMPT_AND_COMPLETION: "completion", TEXT: "text"}
    return repr(names[form]) if form in names else f"last answer ({form})"


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
    return checked_text(row["text"], "text", place)


def _further(value: Any, name: str, place: str) -> str | int | float | None:
    """Returns a further string or number of a row; None, which stands for no value, for anything else."""
    if not isinstance(value, str | int | float) or (isinstance(value, float) and math.isnan(value)):
        return None
    checked_text(name, name, place)
    if isinstance(value, str):
        return checked_text(value, name, place)
    if isinstance(value, float) and math.isinf(value):
        raise InputError(f"{place}: field {name!r} is {value}; give a finite number or null")
    return value


def _value(row: Mapping[str, Any], part_of_example: str, fields: Fields, place: str) -> Any:
    """The field of a row for a part of an example."""
    name = fields[part_of_example]
    found = _at(row, name)
    if not found and part_of_example != "input":
        raise InputError(
            f"{place}: field {name!r} is missing ({_has(row)}); each row needs an instruction and an "
            f"output; {_remedy(row) if fields == FIELDS else _remedy_of(fields, row)}"
        )
    return found[0] if found else None


def _at(row: Mapping[str, Any], name: str) -> list[Any]:
    """The value of a field, one inside another by its dotted name; an empty list where there is none."""
    value: Any = row
    for part in [name] if name in row else name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return []
        value = value[part]
    return [value]


def missing_input(row: Mapping[str, Any], fields: Fields) -> str | None:
    """The error of an `input` of `data.fields` that no row has, by one of the rows; None if this row has it.

    Rows may lack the usual `input`.
    """
    name = fields.get("input", FIELDS["input"])
    if name == FIELDS["input"] or _at(row, name):
        return None
    return (
        f"data.fields.input={name}: no row has this field ({_has(row)}); name another, or leave input out "
        "for rows without one"
    )


def _remedy_of(fields: Fields, row: Mapping[str, Any]) -> str:
    """The remedy where `data.fields` names a field that the row lacks."""
    try:
        _, form = example_of(row, "", FIELDS)
    except InputError:
        form = TEXT
    if form == TEXT:
        return _remedy(row)
    return f"leave data.fields out, and the row is read as {form}"


def _is_row(value: Any) -> bool:
    return isinstance(value, Mapping) and not {"role", "from"} & value.keys()


def _remedy(row: Mapping[str, Any]) -> str:
    inside = next((n for n, of in row.items() if isinstance(of, list) and of[:1] and _is_row(of[0])), None)
    if inside is not None and inside not in MESSAGES:
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


def _has(row: Mapping[str, Any]) -> str:
    """`the row has a, b`, in one line and not long."""
    names = ", ".join(name.encode(errors="backslashreplace").decode() for name in [*row][:12])
    names = names[:200] + ("…" if len(names) > 200 else "") + (", …" if len(row) > 12 else "")
    return f"the row has {names or 'none'}"
