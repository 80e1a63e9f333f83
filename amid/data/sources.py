"""Where examples come from: JSON Lines files on disk or on the Hugging Face hub, or any list of examples."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from amid.data.examples import Example
from amid.errors import InputError

HUB_PREFIX = "hf://datasets/"

Source = str | Sequence[Example]
"""The path of a JSON Lines file, `hf://datasets/OWNER/NAME/FILE`, or the examples themselves.

A slice of rows may follow the path: `FILE[1000:]`, `FILE[:60]`.
"""


def load_examples(source: Source | None, limit: int | None = None) -> list[Example]:
    """The examples of `source`, the first `limit` of them.

    Raises:
        InputError: if the file is not there, cannot be downloaded or holds no usable example (see
            `read_jsonl`), or `limit` is not positive.
    """
    if limit is not None and limit < 1:
        raise InputError(f"data limit must be at least 1, got {limit}; use null for all examples")
    if source is None:
        raise InputError("data.train and data.valid must not be null for a training run; give a path")
    if isinstance(source, str):
        match = re.fullmatch(r"(.*?)(?:\[(\d*):(\d*)\])?", source, flags=re.DOTALL)
        assert match is not None
        path, start, stop = match.groups()
        examples = read_jsonl(_download(path) if path.startswith(HUB_PREFIX) else Path(path))
        examples = examples[int(start or 0) : int(stop) if stop else None]
        if not examples:
            raise InputError(f"data source {source!r} is a slice without rows; widen it")
    else:
        examples = list(source)
    return examples[:limit]


def read_jsonl(path: Path) -> list[Example]:
    """Reads `{"instruction": str, "input": str (may be missing), "output": str | [str, ...]}` rows.

    Rows whose outputs are all empty are left out; blank lines are skipped.

    Raises:
        InputError: naming file and line, for a line that is not a JSON object, a missing or mistyped
            field; naming the file, where it does not exist, is empty, or has no output that is not empty.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise InputError(
            f"data file {path} cannot be read ({error.strerror}); give the path of a JSON Lines file"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"data file {path} is not UTF-8 ({error}); convert it to UTF-8") from error
    rows = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise InputError(f"data file {path} is empty; give a file with one JSON object a line")
    examples = [_parse(line, f"{path}:{number}") for number, line in rows]
    usable = [example for example in examples if example.outputs]
    if not usable:
        raise InputError(
            f"data file {path}: all {len(rows)} rows have an empty 'output'; "
            "give a file with at least one response"
        )
    return usable


def _parse(line: str, place: str) -> Example:
    try:
        row: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{place}: not valid JSON ({error}); repair or remove the line") from error
    if not isinstance(row, dict):
        raise InputError(f"{place}: a {type(row).__name__}, not a JSON object; give one object a line")
    for field in ("instruction", "output"):
        if field not in row:
            raise InputError(
                f"{place}: field '{field}' is missing (the row has {', '.join(row) or 'none'}); "
                "each row needs 'instruction' and 'output', and may have 'input'"
            )
    outputs = row["output"] if isinstance(row["output"], list) else [row["output"]]
    strings = {"instruction": row["instruction"], "input": row.get("input") or ""}
    for field, value in [*strings.items(), *(("output", output) for output in outputs)]:
        if not isinstance(value, str):
            raise InputError(f"{place}: field '{field}' is {value!r}, not a string; make it one")
    return Example(**strings, outputs=tuple(output for output in outputs if output.strip()))


def _download(url: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError

    owner, _, rest = url.removeprefix(HUB_PREFIX).partition("/")
    name, _, file = rest.partition("/")
    if not (owner and name and file):
        raise InputError(f"data source {url!r} is incomplete; write {HUB_PREFIX}OWNER/NAME/FILE.jsonl")
    try:
        return Path(hf_hub_download(f"{owner}/{name}", file, repo_type="dataset"))
    except (RepositoryNotFoundError, EntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise InputError(
            f"data source {url!r} is neither in the hub's cache nor can it be downloaded "
            f"({type(error).__name__}); check the name and the network, or give the path of a JSON Lines file"
        ) from error
