"""Answers to the prompts of a set, in memory and as files, and what they are worth. No torch."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy
from numpy.typing import NDArray
from pydantic import Field

from amid.config.calls import by_name
from amid.errors import InputError
from amid.files import Record, check_regular, check_sums, check_values, key_of, read_record, written_whole
from amid.metrics import (
    ROUGE_SCORE,
    Metric,
    Resampled,
    SetScore,
    distinct_n,
    overlong,
    repetition,
    self_bleu,
    self_bleu_per_prompt,
    tokenize_of,
    unread,
)
from amid.results import METRICS, Score

PER_PROMPT = "per_prompt.json"
PROMPTS = "prompts"
"""Beside a run's answers: set -> metric -> the mean score of the answers to each prompt."""
UNREAD = "unread"
"""In it, set -> `UNREAD` -> score -> the share of the characters that it cannot read (`unread_by`)."""

LEAST_UNREAD = 1.0
"""Below so many per cent of the characters nothing is said of what a score cannot read."""

OF_WORDS = ("self_bleu", "corpus_self_bleu", "distinct_1", "distinct_2", "repetition")
"""The scores of the answers alone that count words."""

MANIFEST = ".made_from.json"
"""Beside a run's answers: the configuration and student that they are of, the seconds that they took, and the
checksums of their files."""

_REFERENCES = ("references", "reference", "output")
_ANSWERS = ("answers", "answer", "prediction")
_OF_A_LINE = {"instruction", "input", "seed", *_REFERENCES, *_ANSWERS}
"""What the lines of a file may have besides `Answered.fields`."""

FORM = 'give JSON Lines, an object a line, such as {"references": ["Paris"], "answers": ["Paris", "It is."]}'
"""What a file of answers is, for the message on one that is not."""


class MadeFrom(Record):
    """What `MANIFEST` says."""

    made_from: dict[str, Any]
    seconds: float
    files: dict[str, str] = Field(default_factory=dict)
    """Checksums by name; empty where an earlier version wrote the answers."""


@dataclass(frozen=True)
class Answer:
    """A generated answer: its text, its tokens (EOS included), and whether it ended with EOS.

    `tokens` and `ended` are None where that is not known, as of another system's answers. `log_probs` are
    those of the tokens by the model's own distribution, whatever changed it for the drawing; None where they
    are not known.
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
    """What else is told of it, such as a category."""


Given = Sequence[Sequence[float] | SetScore]
"""What a metric gives the answers of each seed: a score for each answer, in their order, or one for all."""


def applied(metrics: Mapping[str, Metric], by_seed: Sequence[Sequence[Answered]]) -> dict[str, Given]:
    """What each of `metrics` gives the answers of each seed, computed once for all that is made from it.

    Raises:
        ValueError: if a metric refuses the answers.
    """
    answers = [_flat(answered) for answered in by_seed]
    return {
        name: [by_name(metric, predictions=texts, references=references) for texts, references in answers]
        for name, metric in metrics.items()
    }


def _flat(answered: Sequence[Answered]) -> tuple[list[str], list[list[str]]]:
    """The texts of all answers, and the references of each."""
    texts = [answer.text for row in answered for answer in row.answers]
    return texts, [list(row.references) for row in answered for _ in row.answers]


def set_scores(given: Mapping[str, Given], metrics: Mapping[str, Metric]) -> dict[str, Score]:
    """Each metric's score over all answers of a seed, from what it gives them: the only one, or the mean.

    The signature is the metric's own; of a mean, the tokenisation where it is not the published one.
    """
    found = {}
    for name, of_seeds in given.items():
        tokenize = tokenize_of(metrics[name])
        own = None if tokenize in (None, ROUGE_SCORE) else f"tokenize={tokenize}"
        whole = [
            scores if isinstance(scores, SetScore) else SetScore(_mean(scores), own) for scores in of_seeds
        ]
        found[name] = Score.over_seeds([score.value for score in whole], whole[-1].signature)
    return found


def tokenize_for_answers(metrics: Mapping[str, Metric]) -> str:
    """What splits answers into words where they are held against each other.

    It is the first tokeniser of sacrebleu that a metric is set to; 13a where none is.
    """
    own = [tokenize for metric in metrics.values() if (tokenize := tokenize_of(metric))]
    return next((tokenize for tokenize in own if tokenize != ROUGE_SCORE), "13a")


def unread_by(
    metrics: Mapping[str, Metric], by_seed: Sequence[Sequence[Answered]], tokenize: str = "13a"
) -> dict[str, float]:
    """Which share of the characters each score cannot read, × 100, of scores that should be warned of.

    Those are scores that drop or do not split `LEAST_UNREAD` % of the characters of answers and references
    (`amid.metrics.unread`), or all characters of the references of a prompt. `OF_WORDS`, by `tokenize`, see
    the answers alone.
    """
    answers = [answer.text for answered in by_seed for row in answered for answer in row.answers]
    prompts = by_seed[0] if by_seed else []
    references = [text for row in prompts for text in row.references]
    found: dict[str, float] = {}
    for name, of in [*((n, t) for n, m in metrics.items() if (t := tokenize_of(m))), ("", tokenize)]:
        share = unread(of, [*answers, *references] if name else answers)
        hidden = name and any(unread(of, row.references) == 100 for row in prompts)
        if share >= LEAST_UNREAD or hidden:
            found |= dict.fromkeys([name] if name else OF_WORDS, share)
    return found


def unread_in_words(shares: Mapping[str, Mapping[str, float]]) -> str:
    """What scores cannot read, from the shares of each set or system by score; empty for nothing."""
    by_scores: dict[tuple[str, ...], list[str]] = {}
    for of, by in shares.items():
        for share in dict.fromkeys(by.values()):
            names = tuple(METRICS.get(name, name) for name in by if by[name] == share)
            by_scores.setdefault(names, []).append(f"{share:.3g}% of the characters of {of}")
    return "; ".join(
        f"{', '.join(names)} cannot read or split {', '.join(of)}" for names, of in by_scores.items()
    )


def score_answers(
    by_seed: Sequence[Sequence[Answered]], metrics: Mapping[str, Metric], tokenize: str = "13a"
) -> dict[str, Score]:
    """The scores of several answers to each prompt, drawn with several seeds.

    Args:
        by_seed: for each seed the same prompts, with as many answers each.
        metrics: by name, what scores the answers against the references.
        tokenize: of Self-BLEU, distinct-n and repetition, as in `amid.metrics.self_bleu`.

    Returns:
        Each of `metrics`, over all answers of a seed (`set_scores`). As means over them: eos_share (0..100),
        length (tokens) and log_prob (nats a token), left out where an answer does not tell; repetition and
        overlong (0..100, see `amid.metrics`). distinct_1 and distinct_2 (0..100) over all answers of a seed.
        corpus_self_bleu (0..100): Self-BLEU over all answers of a seed. self_bleu (0..100): Self-BLEU over
        the answers to one prompt, mean over the prompts; with one sample a seed, over the answers of all
        seeds (and then a single value, without a deviation); left out where there is only one answer. The
        signature of both says among how many answers, as other numbers cannot be compared, and `tokenize`
        where it is not 13a.

    Raises:
        ValueError: if a metric refuses the answers.
    """
    values: dict[str, list[float]] = {}
    signatures: dict[str, str] = {}
    by = "" if tokenize == "13a" else f", tokenize={tokenize}"

    def add(name: str, value: float) -> None:
        values.setdefault(name, []).append(value)

    def add_self_bleu(groups: list[list[str]]) -> None:
        add("self_bleu", self_bleu_per_prompt(groups, tokenize=tokenize))
        numbers = sorted({len(group) for group in groups})
        signatures["self_bleu"] = f"among {'/'.join(map(str, numbers))} answers to a prompt{by}"

    for answered in by_seed:
        flat = [answer for row in answered for answer in row.answers]
        texts, targets = _flat(answered)
        for name, told in _TOLD.items():
            if (mean := _mean_if_known(map(told, flat))) is not None:
                add(name, mean)
        add("repetition", _mean(repetition(texts, tokenize=tokenize)))
        add("overlong", _mean(overlong(texts, targets)))
        for n in (1, 2):
            add(f"distinct_{n}", distinct_n(texts, n=n, tokenize=tokenize))
        if len(texts) > 1:
            add("corpus_self_bleu", self_bleu(texts, tokenize=tokenize))
            signatures["corpus_self_bleu"] = f"among {len(texts)} answers{by}"
        if all(len(row.answers) > 1 for row in answered):
            add_self_bleu([[a.text for a in row.answers] for row in answered])
    if "self_bleu" not in values and len(by_seed) > 1:
        add_self_bleu([[a.text for row in rows for a in row.answers] for rows in zip(*by_seed, strict=True)])
    of_answers = {name: Score.over_seeds(each, signatures.get(name)) for name, each in values.items()}
    return set_scores(applied(metrics, by_seed), metrics) | of_answers


_TOLD: dict[str, Callable[[Answer], float | None]] = {
    "eos_share": lambda answer: None if answer.ended is None else 100.0 * answer.ended,
    "length": lambda answer: answer.tokens,
    "log_prob": lambda answer: _mean(answer.log_probs) if answer.log_probs else None,
}


def per_prompt(given: Given, by_seed: Sequence[Sequence[Answered]]) -> list[float] | None:
    """The mean score of all answers to each prompt, from what a metric gives them (`applied`).

    None for a metric of whole sets.
    """
    waiting = [iter(scores) for scores in given if not isinstance(scores, SetScore)]
    if len(waiting) < len(given):
        return None
    return [
        _mean([next(scores) for one, scores in zip(row, waiting, strict=True) for _ in one.answers])
        for row in zip(*by_seed, strict=True)
    ]


def resampled(given: Given, by_seed: Sequence[Sequence[Answered]]) -> Resampled | None:
    """The mean over the seeds of a score of whole sets, from how often each prompt is drawn.

    None for a metric of single answers (see `per_prompt`), or one that does not tell.
    """
    sets = []
    for score, answered in zip(given, by_seed, strict=True):
        numbers = [len(row.answers) for row in answered]
        if not isinstance(score, SetScore) or score.resampled is None:
            return None
        sets.append((score.resampled, numbers))

    def of_draws(draws: NDArray[numpy.int64]) -> NDArray[numpy.float64]:
        scores = [score(draws.repeat(numbers, axis=1)) for score, numbers in sets]
        mean: NDArray[numpy.float64] = numpy.mean(scores, axis=0)
        return mean

    return of_draws


def answers_file(folder: Path, dataset: str, seed: int) -> Path:
    """Where a run keeps its answers to an evaluation set, drawn with a sampling seed: SET-SEED.jsonl."""
    return folder / f"{dataset}-{seed}.jsonl"


def answers_files(folder: Path) -> dict[str, dict[int, Path]]:
    """The files of `answers_file` in a folder: set -> sampling seed -> file, in their order.

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
    """Checks that the files in a folder of answers, or the one of a name, are those that the run wrote.

    Raises:
        Damaged: naming the first that is not.
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

    One prompt a line: `instruction`, `input`, `references`, `seed` and `answers`, each with `text`, `tokens`,
    `ended` and `log_probs`; and its `fields`, those aside that are called as something that a line has.
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
    """Writes `directory`/`PER_PROMPT`, whole or not at all: the scores of the prompts of each set, to four
    digits, as `PROMPTS` a key of these prompts and their references, and as `UNREAD` what the scores of a set
    cannot read (`unread_by`), where that is something."""
    rounded = {
        name: {metric: [round(value, 4) for value in values] for metric, values in by.items()}
        | {PROMPTS: key_of([(one.instruction, one.input, *one.references) for one in sets[name]])}
        | ({UNREAD: dict(unread[name])} if unread.get(name) else {})
        for name, by in scores.items()
    }
    with written_whole(directory / PER_PROMPT) as part:
        part.write_text(json.dumps(rounded), encoding="utf-8")


def read_answers(file: str | Path, most: int | None = None) -> list[Answered]:
    """Reads a file of `write_answers`, or of another system.

    JSON Lines, each with `references` (a string or a list of them; also called `reference` or `output`) and
    `answers` (strings, or objects with a `text`; a single string may be called `answer` or `prediction`).

    Args:
        file: its path.
        most: lines to read; None reads all.

    Raises:
        InputError: naming file and line, for what is missing or no JSON.
    """
    file = Path(file)
    answered = []
    try:
        with file.open(encoding="utf-8", newline="\n") as lines:
            for number, line in enumerate(islice(lines, most), start=1):
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
    answers = _first(record, _ANSWERS)
    answers = [answers] if isinstance(answers, str) else answers
    if not references or not all(isinstance(each, str) for each in references):
        raise ValueError("references must be a string or a list of them, at least one")
    if not isinstance(answers, list) or not answers:
        raise ValueError("answers must be a string or a list, at least one")
    return Answered(
        str(record.get("instruction", "")),
        str(record.get("input", "")),
        tuple(references),
        [_of_record(answer) for answer in answers],
        {name: value for name, value in record.items() if name not in _OF_A_LINE},
    )


def _first(record: Mapping[str, Any], names: Sequence[str]) -> Any:
    for name in names:
        if name in record:
            return record[name]
    raise ValueError(f"no {' or '.join(names)}; it has {', '.join(record) or 'nothing'}")


LARGEST = 2**53
"""What a number of tokens and a log-probability are below, so that there is a mean of them."""


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
    if not (log_probs is None or (isinstance(log_probs, list) and all(map(_is_number, log_probs)))):
        raise ValueError(f"log_probs must be a list of numbers, one a token, got {str(log_probs)[:40]!r}")
    return Answer(answer["text"], tokens, ended, log_probs)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _mean_if_known(values: Iterable[float | None]) -> float | None:
    known = list(values)
    numbers = [float(value) for value in known if value is not None]
    return _mean(numbers) if numbers and len(numbers) == len(known) else None
