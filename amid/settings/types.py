"""Types of single settings, with descriptions that complete the words "must be"; the base of all nodes."""

import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

MOST_THREADS = max(256, os.cpu_count() or 1)
"""The most threads; a larger number is a typing error, and would end the process."""

LONGEST_PART = 255
"""Bytes of a file's or a folder's name, on the usual file systems."""

LONGEST_SET_NAME = 100
"""The most characters of an evaluation set's name, which stands in the names of its answer files."""


class Node(BaseModel):
    """The settings of one node. It refuses text and true in place of a number, and unknown keys."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


def refuse(text: str) -> NoReturn:
    """Raises a validator's error: `text` completes "must be"; if empty, the field's description does."""
    raise PydanticCustomError("amid", "{text}", {"text": text})


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _warmup(value: Any) -> Any:
    whole = isinstance(value, int) and value >= 0
    share = isinstance(value, float) and 0 <= value < 1
    return value if _is_number(value) and (whole or share) else refuse("")


def _limit(value: Any) -> Any:
    whole = isinstance(value, int) and value >= 1
    share = isinstance(value, float) and 0 < value <= 1
    return value if value is None or (_is_number(value) and (whole or share)) else refuse("")


def _devices(value: Any) -> Any:
    if isinstance(value, Sequence) and not isinstance(value, str):
        numbers = [number for number in value if type(number) is int and number >= 0]
        fits = 0 < len(value) == len(set(numbers))
    else:
        fits = type(value) is int and value > 0
    return value if fits else refuse("")


def _device_map(value: Any) -> Any:
    by_module = isinstance(value, dict) and all(
        isinstance(name, str) and isinstance(device, str | int) and not isinstance(device, bool)
        for name, device in value.items()
    )
    return value if value in (None, "auto", "balanced", "sequential") or (by_module and value) else refuse("")


def _folder(value: str) -> str:
    if not value.strip() or "\0" in value:
        refuse("")
    for part in value.split("/"):
        if len(part.encode()) > LONGEST_PART:
            refuse(f"a folder whose names have at most {LONGEST_PART} bytes each, not {len(part.encode())}")
    place = next((place for place in (Path(value), *Path(value).parents) if os.path.exists(place)), None)
    if place is not None and not place.is_dir():
        refuse(f"{FOLDER}, and {place} is a file; choose another")
    return value


def _source(value: Any) -> Any:
    """Checks a source of rows: a path, or a node with a `_target_`, which is checked by itself."""
    if isinstance(value, str) and "://" in value and not value.startswith("hf://datasets/"):
        refuse(
            "a path, and it is an address; download the file, or write OWNER/NAME or "
            "hf://datasets/OWNER/NAME/FILE for what is on the Hugging Face hub"
        )
    if isinstance(value, list) and not (value and all(isinstance(v, str) and v.strip() for v in value)):
        refuse("a path, or a list of paths")
    for path in value if isinstance(value, list) else ():
        _source(path)
    if value is None or isinstance(value, list) or (isinstance(value, str) and value.strip()):
        return value
    return value if isinstance(value, dict) and "_target_" in value else refuse("")


def _text_source(value: Any) -> Any:
    """Checks a source of plain text: a path, or null."""
    if isinstance(value, list):
        refuse("a single path; a pattern names several files: 'texts/*.txt'")
    return _source(value)


def _sets(value: Any) -> Any:
    if not isinstance(value, dict):
        refuse(f"evaluation sets by name; add a set by its name: +data.test.mine={value or 'FILE'}")
    for name in value:
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name) or set(name) <= {"."}:
            refuse(
                f"evaluation sets by name, and {name!r} is none: use letters, digits, and . _ - alone, as "
                "the files of its answers are named by it"
            )
        if len(name) > LONGEST_SET_NAME:
            refuse(
                f"evaluation sets by name, and {name[:20]}… has {len(name)} characters; use at most "
                f"{LONGEST_SET_NAME}"
            )
    return value


def _seeds(value: Any) -> Any:
    if not isinstance(value, list):
        refuse(f"a list, such as [{value}]" if _is_number(value) else "")
    if any(type(seed) is not int or seed < 0 for seed in value) or not value:
        refuse("")
    if len(set(value)) < len(value):
        refuse(
            "different seeds: equal ones draw the same answers; for several answers with each, use "
            "generation.samples"
        )
    return value


def _pass_at(value: Any) -> Any:
    if not isinstance(value, list):
        refuse(f"a list, such as [{value}]" if _is_number(value) else "")
    if any(type(k) is not int or k < 1 for k in value):
        refuse("")
    if twice := [k for k in dict.fromkeys(value) if value.count(k) > 1]:
        refuse(f"different numbers, and has {twice[0]} twice; leave one out")
    return value


def _rungs(most: float) -> Callable[[Any], Any]:
    """Returns a validator of the rungs of a ladder, up to `most`."""

    def check(values: Any) -> Any:
        if values is None:
            return None
        if not isinstance(values, list):
            refuse(f"a list of numbers, such as [0.5, 1.0], and is {values!r}")
        for value in values:
            if not _is_number(value) or not -most <= value <= most or not math.isfinite(value):
                reach = "finite numbers" if most == math.inf else f"numbers above 0, up to {most:g}"
                refuse(f"{reach}, and {value!r} is none")
            if value <= 0:
                greedy = ", as answers drawn with 0 (greedy) are all equal" if value == 0 else ""
                refuse(f"numbers above 0, and {value!r} is none{greedy}; leave it out")
        if len(values) < 2:
            refuse("two numbers or more, such as [0.5, 1.0]; for one, set the temperature or top_p itself")
        if len(set(values)) < len(values):
            twice = next(value for value in values if values.count(value) > 1)
            refuse(f"different numbers, and {twice} stands there twice; leave one out")
        return values

    return check


def _layers(value: Any) -> Any:
    fits = isinstance(value, list) and value and all(type(i) is int and i >= 0 for i in value)
    return value if value is None or fits else refuse("")


def _fields(value: Any) -> Any:
    if not isinstance(value, dict):
        return value if value is None else refuse("")
    for name, field in value.items():
        if name not in ("instruction", "input", "output"):
            refuse(f"the names of fields by instruction, input and output, and has {name}; leave it out")
        optional = name == "input" and field is None
        if not optional and not (isinstance(field, str) and field.strip()):
            refuse(f"the names of fields; {name} is {field!r}: name a field of your rows in quotes")
    if lacking := {"instruction", "output"} - value.keys():
        refuse(f"the names of fields, and lacks {' and '.join(sorted(lacking))}; name those too")
    return value


def _format(*fields: str) -> Callable[[str], str]:
    """Returns a validator that requires a text to have `{FIELD}` for each of `fields` and no other field."""

    def check(value: str) -> str:
        for field in fields:
            if "{" + field + "}" not in value:
                refuse(f"a text with {{{field}}} in it; add it")
        try:
            value.format(**dict.fromkeys(fields, ""))
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            known = " and ".join("{" + field + "}" for field in fields)
            refuse(f"a text with {known} alone in braces ({error!r}); write a literal brace twice")
        return value

    return check


def _architecture(value: Any) -> Any:
    if not isinstance(value, dict):
        return value if value is None else refuse("")
    for name, number in value.items():
        if name in SIZES and (type(number) is not int or number < 1):
            refuse(f"fields of a configuration; {name}={number} must be a whole number from 1")
    return value


def _finite(value: float) -> float:
    return value if math.isfinite(value) else refuse("")


FOLDER = "the path of a folder"
SIZES = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("max_position_embeddings", "head_dim", "n_embd", "n_layer", "n_head", "n_positions", "ffn_dim"),
)
"""Fields of a model's configuration that must be at least 1."""

Flag = Annotated[bool, Field(description="true or false")]
FlagOrNone = Annotated[bool | None, Field(description="true, false or null")]
Text = Annotated[str, Field(description="text")]
OptionalText = Annotated[str | None, Field(description="text, or null")]
Natural = Annotated[int, Field(ge=0, description="a whole number from 0")]
Count = Annotated[int, Field(ge=1, description="a whole number from 1")]
CountOrAll = Annotated[
    Annotated[int, Field(ge=1)] | None, Field(description="a whole number from 1, or null for all")
]
CountOrNone = Annotated[
    Annotated[int, Field(ge=1)] | None, Field(description="a whole number from 1, or null for no limit")
]
Seed = Annotated[
    int, Field(ge=0, lt=2**32, description=f"a whole number, from 0 to {2**32 - 1}")
]  # the range that numpy accepts
Number = Annotated[float, AfterValidator(_finite), Field(description="a finite number")]
NumberOrNone = Annotated[Number | None, Field(description="a finite number, or null for none")]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False, description="a finite number from 0")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False, description="a finite number above 0")]
Share = Annotated[float, Field(ge=0, le=1, description="a number from 0 to 1")]
Inside = Annotated[float, Field(gt=0, lt=1, description="a number between 0 and 1, without the ends")]
ShareAboveNone = Annotated[float, Field(gt=0, le=1, description="a number above 0, up to 1")]
ShareBelowAll = Annotated[float, Field(ge=0, lt=1, description="a number from 0, below 1")]
Betas = Annotated[
    Sequence[Annotated[float, Field(ge=0, lt=1)]],
    Field(min_length=2, max_length=2, description="two numbers from 0, below 1, such as [0.9, 0.999]"),
]
ClipNorm = Annotated[
    Annotated[float, Field(gt=0, allow_inf_nan=False)] | None,
    Field(description="a number above 0, or null not to clip"),
]
Folder = Annotated[str, AfterValidator(_folder), Field(description=FOLDER)]
Source = Annotated[
    Any,
    BeforeValidator(_source),
    Field(
        description="a file, a folder, a pattern of files, OWNER/NAME of the hub, a list of such, a node "
        "with a _target_ that makes the rows, or null"
    ),
]

Hub = Annotated[
    str,
    Field(min_length=1, description="hf://datasets, or a folder with copies of its files as OWNER/NAME/FILE"),
]

Warmup = Annotated[
    Any,
    BeforeValidator(_warmup),
    Field(description="a whole number of steps, or a share of them below 1, such as 0.1"),
]
Limit = Annotated[
    Any,
    BeforeValidator(_limit),
    Field(description="a whole number of steps from 1, a share of an epoch above 0 up to 1.0, or null"),
]
Devices = Annotated[
    Any,
    BeforeValidator(_devices),
    Field(description="a number of devices from 1, or the numbers of GPUs, such as [2] or [0, 1]"),
]
DeviceMap = Annotated[
    Any,
    BeforeValidator(_device_map),
    Field(
        description="auto, balanced or sequential, devices by module as {model.layers.0: 0, lm_head: cpu}, "
        "or null for one device"
    ),
]
WithoutInput = Annotated[
    str, AfterValidator(_format("instruction")), Field(description="a text with {instruction} in it")
]
WithInput = Annotated[
    str,
    AfterValidator(_format("instruction", "input")),
    Field(description="a text with {instruction} and {input} in it"),
]
Fields = Annotated[
    Any,
    BeforeValidator(_fields),
    Field(description="the names of your rows' fields, as {instruction: question, output: answer}"),
]
Architecture = Annotated[
    Any,
    BeforeValidator(_architecture),
    Field(description="fields of a configuration, as {model_type: llama}, or null"),
]
Sets = Annotated[Any, BeforeValidator(_sets), Field(description="evaluation sets by name")]
Seeds = Annotated[
    Any, BeforeValidator(_seeds), Field(description="a list of whole numbers from 0, such as [10, 20]")
]
PassAt = Annotated[
    Any,
    BeforeValidator(_pass_at),
    Field(description="a list of whole numbers from 1, such as [1, 4], or [] for no pass@k"),
]
Temperatures = Annotated[
    Any,
    BeforeValidator(_rungs(math.inf)),
    Field(description="a list of numbers above 0, such as [0.5, 1.0], or null for none"),
]
TopPs = Annotated[
    Any,
    BeforeValidator(_rungs(1.0)),
    Field(description="a list of numbers above 0, up to 1, such as [0.5, 1.0], or null for none"),
]
Layers = Annotated[
    Any, BeforeValidator(_layers), Field(description="a list of layer numbers from 0, or null for all")
]
PlainText = Annotated[
    Any, BeforeValidator(_text_source), Field(description="a path, responses, or null for none")
]
