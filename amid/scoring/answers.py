"""Answers of models to prompts, and the files that hold them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import Field

from amid.errors import Damaged, InputError
from amid.files import (
    Record,
    check_regular,
    check_sums,
    check_values,
    damaged,
    key_of,
    read_record,
    written_whole,
)

PER_PROMPT = "per_prompt.json"

"""Beside a run's answers: set -> metric -> the score of the answers to each prompt."""

PROMPTS = "prompts"
"""In the same file, set -> `PROMPTS` -> a key of the prompts and their references."""

UNREAD = "unread"
"""In the same file, set -> `UNREAD` -> score -> the share of characters it cannot read (`unread_by`)."""

MANIFEST = ".made_from.json"
"""A file beside a run's answers: their configuration and student, the seconds that they took, and the
checksums of their files."""

_REFERENCES = ("references", "reference", "output")

_ANSWERS = ("answers", "answer", "prediction")

_OF_A_LINE = {"instruction", "input", "seed", *_REFERENCES, *_ANSWERS}
"""The keys that the lines of a file may have besides `Answered.fields`."""

FORM = 'give JSON Lines, an object a line, such as {"references": ["Paris"], "answers": ["Paris", "It is."]}'
"""The form of a file of answers, for the message about a file in another form."""


class MadeFrom(Record):
    """The content of `MANIFEST`."""

    made_from: dict[str, Any]
    seconds: float
    """Seconds that the answers took so far; 0 once all sets are answered."""
    files: dict[str, str] = Field(default_factory=dict)
    """Checksums by name; empty where an earlier version wrote the answers."""


@dataclass(frozen=True)
class Answer:
    """A generated answer: its text, its tokens (EOS included), and whether it ended with EOS.

    `tokens` and `ended` are None if unknown, as for another system's answers. `log_probs` are the tokens'
    log-probabilities in the model's own distribution, before temperature or top-p; None if unknown.
    """

    text: str
    tokens: int | None = None
    ended: bool | None = None
    log_probs: list[float] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Answered:
    """A prompt, its acceptable answers, and the answers to it that were drawn with one seed."""

    instruction: str
    input: str
    references: tuple[str, ...]
    answers: list[Answer]
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Other fields of the row, such as a category."""


def answers_file(folder: Path, dataset: str, seed: int) -> Path:
    """Returns the path of the file with a run's answers to a set with a sampling seed: SET-SEED.jsonl."""
    return folder / f"{dataset}-{seed}.jsonl"


def answers_files(folder: Path) -> dict[str, dict[int, Path]]:
    """Returns the files of `answers_file` in a folder: set -> sampling seed -> file, in order.

    Raises:
        InputError: naming a JSON Lines file that has another name.
        Damaged: naming a file that is not what the run wrote.
    """
    check_answers(folder)
    found: dict[str, dict[int, Path]] = {}
    for file in folder.glob("*.jsonl"):
        dataset, _, seed = file.stem.rpartition("-")
        if not dataset or not seed.isdecimal() or file != answers_file(folder, dataset, int(seed)):
            raise InputError(f"{file} is not named SET-SEED.jsonl; move it out of the folder of answers")
        found.setdefault(dataset, {})[int(seed)] = file
    return {dataset: dict(sorted(files.items())) for dataset, files in sorted(found.items())}


def check_answers(folder: Path, name: str | None = None, remedy: str = "") -> None:
    """Checks that the run wrote the files in a folder of answers, or only the file of a given name.

    Raises:
        Damaged: naming the first file that differs.
    """
    written = read_record(folder / MANIFEST, MadeFrom, REMEDY)
    for place in [folder / name] if name else folder.glob("*.jsonl"):
        if place.exists():
            check_regular(place, remedy or REMEDY)
    for file, found in written.files.items() if written else ():
        if file == name or (name is None and file != PER_PROMPT):
            check_sums(folder, {file: found}, remedy or REMEDY)


REMEDY = (
    "put it back from a copy, or have the answers drawn anew, into another folder: amid evaluate run=RUN "
    "(and delete this folder of answers)"
)


def write_answers(file: Path, answered: Iterable[Answered], seed: int) -> None:
    """Writes a file of answers, whole or not at all.

    Each line holds one prompt: `instruction`, `input`, `references`, `seed` and `answers`. Each answer has
    `text`, `tokens`, `ended` and `log_probs`. The line also holds the prompt's `fields`, unless a field has
    the name of one of these keys.
    """
    with written_whole(file) as part, part.open("w", encoding="utf-8") as out:
        for one in answered:
            line = {
                "instruction": one.instruction,
                "input": one.input,
                "references": list(one.references),
                "seed": seed,
                "answers": [
                    {
                        "text": answer.text,
                        "tokens": answer.tokens,
                        "ended": answer.ended,
                        "log_probs": answer.log_probs and [round(value, 4) for value in answer.log_probs],
                    }
                    for answer in one.answers
                ],
                **{name: value for name, value in one.fields.items() if name not in _OF_A_LINE},
            }
            out.write(json.dumps(line, ensure_ascii=False) + "\n")


def write_per_prompt(
    directory: Path,
    scores: Mapping[str, Mapping[str, Sequence[float]]],
    sets: Mapping[str, Sequence[Answered]],
    unread: Mapping[str, Mapping[str, float]],
) -> None:
    """Writes `directory`/`PER_PROMPT`, whole or not at all: the scores of the prompts of each set.

    The scores have four digits. `PROMPTS` is a key of the prompts and their references. `UNREAD` holds the
    text that the scores of a set cannot read (`unread_by`), if there is any.
    """
    rounded = {
        name: {metric: [round(value, 4) for value in values] for metric, values in by.items()}
        | {PROMPTS: key_of([(one.instruction, one.input, *one.references) for one in sets[name]])}
        | ({UNREAD: dict(unread[name])} if unread.get(name) else {})
        for name, by in scores.items()
    }
    with written_whole(directory / PER_PROMPT) as part:
        part.write_text(json.dumps(rounded), encoding="utf-8")


def read_per_prompt(directory: Path, remedy: str) -> dict[str, dict[str, Any]]:
    """Reads `directory`/`PER_PROMPT`, the scores of the prompts of each set; empty if there is no such file.

    Args:
        directory: a folder of answers.
        remedy: what to do about a damaged file, for the message.

    Raises:
        Damaged: if the file is not what the run wrote.
    """
    file = directory / PER_PROMPT
    if not file.exists():
        return {}
    try:
        check_answers(directory, file.name, remedy)
        scores = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, Damaged):
            raise
        raise damaged(file, error, remedy) from error
    if not isinstance(scores, dict) or not all(map(_is_of_set, scores.values())):
        raise damaged(file, "it holds no scores of prompts", remedy)
    return scores


def _is_of_set(scores: Any) -> bool:
    return isinstance(scores, dict) and all(
        isinstance(values, str)
        if name == PROMPTS
        else _are_numbers(list(values.values()) if name == UNREAD and isinstance(values, dict) else values)
        for name, values in scores.items()
    )


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) in (int, float) for value in values)


def read_answers(file: str | Path, most: int | None = None) -> list[Answered]:
    """Reads a file of `write_answers`, or of another system.

    JSON Lines, each with `references` (a string or a list of them; also called `reference` or `output`) and
    `answers` (strings, or objects with a `text`; a single string may be called `answer` or `prediction`).

    Args:
        file: its path.
        most: lines to read; None reads all.

    Raises:
        InputError: naming file and line, for a missing field or a line that is no JSON.
    """
    file = Path(file)
    answered = []
    try:
        with file.open(encoding="utf-8", newline="\n") as lines:
            for number, line in enumerate(islice(lines, most), start=1):
                line = line.removeprefix("\ufeff")  # the mark that some programs begin a file with
                if line.strip():
                    try:
                        record = json.loads(line)
                        check_values(line, record)
                        answered.append(_of_line(record))
                    except (ValueError, RecursionError) as error:
                        raise InputError(
                            f"{file}, line {number}, is no prompt with answers: {error}; {FORM}"
                        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is no text ({error}); {FORM}") from error
    except OSError as error:
        raise InputError(
            f"{file} cannot be read ({error.strerror}); give a file of answers, JSON Lines, or the folder of "
            "a finished run"
        ) from error
    if not answered:
        raise InputError(f"{file} is empty; {FORM}")
    return answered


def _of_line(record: Any) -> Answered:
    if not isinstance(record, dict):
        raise ValueError(f"no JSON object but {str(record)[:40]!r}")
    references = _first(record, _REFERENCES)
    references = [references] if isinstance(references, str) else references
    is_list = isinstance(references, list) and all(isinstance(each, str) for each in references)
    answers = _first(record, _ANSWERS)
    answers = [answers] if isinstance(answers, str) else answers
    if not references or not is_list:
        raise ValueError(
            f"references must be a string or a list of them, at least one, got {str(references)[:40]!r}"
        )
    if not isinstance(answers, list) or not answers:
        raise ValueError("answers must be a string or a list, at least one")
    return Answered(
        _text(record, "instruction"),
        _text(record, "input"),
        tuple(references),
        [_of_record(answer) for answer in answers],
        {name: value for name, value in record.items() if name not in _OF_A_LINE},
    )


def _text(record: Mapping[str, Any], name: str) -> str:
    value = record.get(name)
    return "" if value is None else str(value)


def _first(record: Mapping[str, Any], names: Sequence[str]) -> Any:
    for name in names:
        if name in record:
            return record[name]
    raise ValueError(f"no {' or '.join(names)}; it has {', '.join(record) or 'nothing'}")


LARGEST = 2**53
"""The bound on numbers of tokens and on log-probabilities, so that their mean can be computed."""


def _of_record(answer: Any) -> Answer:
    if isinstance(answer, str):
        return Answer(answer)
    if not isinstance(answer, dict) or not isinstance(answer.get("text"), str):
        raise ValueError(f"an answer must be a string or an object with a text, got {str(answer)[:40]!r}")
    tokens, ended, log_probs = (answer.get(name) for name in ("tokens", "ended", "log_probs"))
    if not (tokens is None or (type(tokens) is int and 0 <= tokens < LARGEST)):
        raise ValueError(f"tokens must be a number of tokens, got {str(tokens)[:40]!r}")
    if not (ended is None or isinstance(ended, bool)):
        raise ValueError(f"ended must be true or false, got {str(ended)[:40]!r}")
    if not (log_probs is None or (isinstance(log_probs, list) and _are_below_largest(log_probs))):
        raise ValueError(f"log_probs must be a list of numbers, one a token, got {str(log_probs)[:40]!r}")
    return Answer(answer["text"], tokens, ended, log_probs)


def _are_below_largest(values: list[Any]) -> bool:
    """Returns whether all values are numbers below `LARGEST`, also without their sign; NaN is not."""
    return {*map(type, values)} <= {int, float} and all(-LARGEST < value < LARGEST for value in values)
