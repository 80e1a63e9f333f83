"""The entry point of `amid score`: scores files of answers, and tests whether the scores differ."""

import argparse
import csv
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from amid.cli.arguments import Arguments
from amid.cli.differences import print_differences, scores_of_prompts
from amid.cli.equal_diversity import DIVERSITIES, check_ladders_at, print_at_equal_diversity
from amid.errors import InputError
from amid.files import written_whole
from amid.measures import OF_ANSWERS, k_of, measure_of
from amid.metrics import (
    FEW,
    Metric,
    self_bleu,
)
from amid.results import Score
from amid.scoring.scores import (
    right_by,
    score_answers,
    unread_by,
    unread_in_words,
)
from amid.scoring.systems import (
    ALWAYS,
    KNOWN,
    System,
    check_pass_at,
    in_common,
    main_metric,
    metric_of,
    read_systems,
    rivals,
)
from amid.terminal import console

ALL = "all"
"""The name of the part with all prompts."""
PARTS_OF_LENGTH = 3
WIDEST = 10_000
COLUMN = 16
ABOUT = """\
Scores files of answers, or runs, and tests the differences between them.

FILE  answers of any system: JSON Lines, an object a line, with `references` (one or a list; also called
      `reference` or `output`) and `answers` (a list; one may be called `answer` or `prediction`):
      {"references": ["Paris"], "answers": ["Paris", "It is Paris."], "category": "open_qa"}
      Files of one system at several temperatures are called NAME@TEMPERATURE.jsonl, as kd@0.4.jsonl.
RUN   the folder of a finished run: every set in its generations/, over the sampling seeds, at every rung of
      its ladders (generation.temperatures)
"""
MORE = f"""\
scores  Always: {", ".join(ALWAYS)}; self_bleu (among the answers to one prompt),
        corpus_self_bleu (among all), distinct_1, distinct_2, repetition, overlong. If the lines have ended,
        tokens and log_probs: eos_share, length, log_prob. With exact_answer: unparsable. For a run also the
        metrics in data.metrics of its config.yaml, such as exact_answer with data=gsm8k, bleu and chrf with
        data=opus100.
pass@k  --pass-at 1,4 adds the chance that one of k answers is right: in its number, if exact_answer is among
        the scores, else by exact match. A run has the k of its data.pass_at. --metric pass_4 tests it.
parts   --by shows the main score, or --metric, and Self-BLEU; --csv has all scores of all parts.
tests   For every two systems with answers to the same set, at the same temperature: the difference of their
        scores, its 95% interval and p by paired bootstrap over the prompts. With fewer than {FEW} prompts the
        test is exact and swaps scores. BLEU and chrF are computed again for each draw.
equal diversity
        For every two systems with answers at several temperatures: the difference of their quality at equal
        --diversity, as a mean over the diversities that both reach, and at each of --at.

amid score outputs/train/default --by family --csv scores.csv
amid score ours.jsonl theirs.jsonl --metric bleu
amid score ours@0.5.jsonl ours@1.jsonl theirs@0.5.jsonl theirs@1.jsonl --at 20
"""


@dataclass(frozen=True)
class Line:
    """The scores of a system on a part of the prompts of a set."""

    system: System
    part: str
    prompts: int
    scores: Mapping[str, Score]

    @property
    def answers(self) -> str:
        """The answers to a prompt with each seed, and the number of seeds if several: `4 × 3 seeds`."""
        numbers = sorted({len(row.answers) for of_seed in self.system.by_seed for row in of_seed})
        seeds = len(self.system.by_seed)
        return "/".join(map(str, numbers)) + (f" × {seeds} seeds" if seeds > 1 else "")


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the arguments of `amid score`."""
    found = Arguments(
        prog="amid score",
        description=ABOUT,
        epilog=MORE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("paths", nargs="+", metavar="FILE|RUN")
    found.add_argument(
        "--by",
        metavar="FIELD",
        help="also print scores by a field of the lines, such as the category of a data row, or by `length`: "
        "thirds by the number of words of the longest reference",
    )
    found.add_argument(
        "--metric",
        metavar="NAME",
        help=f"test the differences of this score: {', '.join(KNOWN)}, or a metric that a run names; by "
        "default the run's main score (data.valid_metric), for files rouge_l",
    )
    found.add_argument(
        "--pass-at",
        metavar="K,K,…",
        help="also print pass@k for each of these k, over all answers to a prompt; by default the k of a "
        "run's data.pass_at",
    )
    found.add_argument(
        "--tokenize",
        metavar="NAME",
        help="the tokeniser that splits text into words for ROUGE, BLEU, Self-BLEU, distinct-n and "
        "repetition: one of sacrebleu's, such as intl (all scripts with spaces), zh (Chinese) or char; by "
        "default the run's, else the published one, for English",
    )
    found.add_argument(
        "--diversity",
        choices=DIVERSITIES,
        default=DIVERSITIES[0],
        help="what is equal where systems with answers at several temperatures are compared (self_bleu)",
    )
    found.add_argument(
        "--at",
        type=float,
        action="append",
        default=[],
        metavar="NUMBER",
        help="also compare them where the diversity has this value; may be given several times",
    )
    found.add_argument("--csv", metavar="FILE", help="also write all scores, unrounded, to this file")
    found.add_argument(
        "--trust-run",
        action="store_true",
        help="allow a run's config.yaml to name metrics of your own, and run their code",
    )
    return found


def run(arguments: Sequence[str]) -> None:
    """Prints the scores of each file or run, by parts with --by, and the difference of every two systems.

    Raises:
        InputError: for a file that cannot be read or scored, or an option that does not fit.
    """
    given = parser().parse_args(arguments)
    if given.csv:
        _check_csv(Path(given.csv))
    if given.tokenize is not None:
        _check_tokenize(given.tokenize)
    paths = [Path(path) for path in given.paths]
    pass_at = None if given.pass_at is None else _whole_numbers(given.pass_at)
    systems = read_systems(paths, given.tokenize, given.trust_run, pass_at)
    if tested := k_of(given.metric or ""):
        systems = [replace(one, pass_at=tuple(sorted({*one.pass_at, tested}))) for one in systems]
        for system in systems:
            check_pass_at(system)
    if given.by and given.by != "length":
        _check_field(systems, given.by)
    groups = rivals(systems)
    check_ladders_at(given.at, groups)
    lines = [_lines(group, given.by, given.metric or main_metric(group)) for group in groups]
    of_all = [line for of_group in lines for line in of_group]
    if given.csv:
        try:
            _write_csv(Path(given.csv), of_all)
        except OSError as error:
            raise InputError(
                f"--csv={given.csv} cannot be written ({error.strerror}); choose another file"
            ) from error
    out = console()
    for table in _tables([line for line in of_all if line.part == ALL], out):
        out.print(table)
    out.print(_legend(of_all), markup=False)
    if unread := _unread(systems, given.metric):
        out.print(f"{unread}\n", markup=False)
    sets = [system.dataset for system in systems]
    for group, of_group in zip(groups, lines, strict=True):
        first, metric = group[0], given.metric or main_metric(group)
        if given.by:
            for table in _parts_tables(of_group, given.by, metric, out):
                out.print(table)
        if len(group) > 1:
            chosen = _chosen(metric, group)
            scores = partial(scores_of_prompts, metric, chosen)
            if print_differences(group, metric, chosen, out):
                print_at_equal_diversity(group, metric, scores, given.diversity, given.at, out)
        elif len(systems) > 1 and (not first.dataset or sets.count(first.dataset) > 1):
            out.print(f"{_called(first)} is not compared: {_why_alone(first, systems)}.", markup=False)


def _check_csv(file: Path) -> None:
    """Refuses a file that cannot be written because of its folder, or because it is a folder."""
    if not file.parent.is_dir():
        raise InputError(f"--csv={file}: there is no folder {file.parent}; make it first")
    if file.is_dir():
        raise InputError(f"--csv={file} is a folder; give the name of a file, such as {file / 'scores.csv'}")


def _check_tokenize(tokenize: str) -> None:
    """Refuses a tokeniser that is unknown or not installed."""
    try:
        self_bleu(["a", "b"], tokenize=tokenize)
    except ValueError as error:
        raise InputError(f"--tokenize={tokenize}: {error}") from error


def _whole_numbers(text: str) -> tuple[int, ...]:
    """Returns the k of --pass-at, in order."""
    numbers = text.split(",")
    if not all(k.isascii() and k.isdecimal() and int(k) for k in numbers):
        raise InputError(f"--pass-at={text} must be whole numbers from 1, such as --pass-at 1,4")
    if len(set(map(int, numbers))) < len(numbers):
        raise InputError(f"--pass-at={text} has a number twice; leave one out")
    return tuple(sorted(map(int, numbers)))


def _unread(systems: Sequence[System], metric: str | None) -> str:
    """Returns which scores, `metric` included, cannot read which systems' text, and which tokeniser can."""
    chosen = _chosen(metric, systems) if metric else {}
    shares = {
        _called(system): unread_by(chosen | dict(system.metrics), system.by_seed, system.words)
        for system in systems
    }
    words = unread_in_words(shares)
    remedy = "--tokenize=intl reads all scripts with spaces between words, zh Chinese, char single characters"
    return f"{words}: they are of the rest. {remedy}." if words else ""


def _called(system: System) -> str:
    return f"{system.name} {system.dataset}".strip()


def _why_alone(system: System, systems: Sequence[System]) -> str:
    """Returns why no other system answers exactly the prompts of this one."""
    others = [other for other in systems if other is not system]
    shared, other = max(((in_common(system, other), other) for other in others), key=lambda pair: pair[0])
    if not shared:
        return "no other one answers its prompts"
    number = len(system.by_seed[0])
    return f"of its {number} prompts {_called(other)} answers {shared}, and compared are equal sets alone"


def _lines(group: Sequence[System], by: str | None, metric: str) -> list[Line]:
    """Computes the scores of systems that answer the same prompts, `metric` included.

    With `by` it also scores each part of the prompts. The first system with the field in its lines defines
    the parts.
    """
    parts = {ALL: list(range(len(group[0].by_seed[0])))}
    if by:
        parts |= next(filter(None, (_parts(system, by) for system in group)), {})
    main = _chosen(metric, group)
    lines = []
    for system in group:
        for name, prompts in parts.items():
            try:
                by_seed, metrics = system.only(prompts), main | dict(system.metrics)
                scores = score_answers(by_seed, metrics, system.words, system.pass_at)
            except ValueError as error:
                raise InputError(f"{_called(system)} cannot be scored: {error}") from error
            lines.append(Line(system, name, len(prompts), scores))
    return lines


def _chosen(metric: str, systems: Sequence[System]) -> dict[str, Metric]:
    """Returns the metric called `metric`, by its name; for pass@k the metric that says what is right."""
    if k_of(metric) is None:
        return {metric: metric_of(metric, systems)}
    known = right_by(name for system in systems for name in system.metrics)
    return {str(known): metric_of(str(known), systems)}


def _check_field(systems: Sequence[System], by: str) -> None:
    """Refuses a field that no line of the files has."""
    fields = dict.fromkeys(
        field for system in systems for answered in system.by_seed[0] for field in answered.fields
    )
    if by not in fields:
        raise InputError(f"--by={by}: no line has such a field; choose of {', '.join(['length', *fields])}")


def _parts(system: System, by: str) -> dict[str, list[int]]:
    """Splits prompts by the value of a field, or into thirds by the words of their longest reference.

    None if no line of the system has the field.
    """
    first = system.by_seed[0]
    parts: dict[str, list[int]] = {}
    if by == "length":
        words = [max(len(text.split()) for text in answered.references) for answered in first]
        order = sorted(range(len(words)), key=lambda i: (words[i], i))
        cuts = [len(order) * k // PARTS_OF_LENGTH for k in range(1, PARTS_OF_LENGTH)]
        for i, cut in enumerate(cuts):  # up to the first prompt of the next length
            while 0 < cut < len(order) and words[order[cut - 1]] == words[order[cut]]:
                cut += 1
            cuts[i] = cut
        for low, high in itertools.pairwise([0, *cuts, len(order)]):
            if prompts := order[low:high]:
                shortest, longest = words[prompts[0]], words[prompts[-1]]
                span = f"{shortest}" if shortest == longest else f"{shortest}-{longest}"
                parts[f"{span} word{'s' * (longest != 1)}"] = sorted(prompts)
        return parts
    if any(by in answered.fields for answered in first):
        for index, answered in enumerate(first):
            parts.setdefault(f"{by}={answered.fields.get(by, '–')}", []).append(index)
    return dict(sorted(parts.items()))


def _tables(lines: Sequence[Line], out: Console) -> Iterator[Table]:
    """Returns tables with a row for each of `lines`.

    If the terminal is too narrow, each of `lines` gets a column, in as many tables as needed.
    """
    columns = {"System": [line.system.name for line in lines]}
    if any(line.system.dataset for line in lines):
        columns["Set"] = [line.system.dataset for line in lines]
    title = columns.pop("System")[0] if len(columns) > 1 and len(set(columns["System"])) == 1 else None
    labels = list(columns)
    columns["Prompts"] = [str(line.prompts) for line in lines]
    columns["Answers"] = [line.answers for line in lines]
    for metric in _measured(lines):
        columns[measure_of(metric).title] = [_cell(line.scores.get(metric)) for line in lines]
    shape: dict[str, Any] = {"box": SIMPLE_HEAD, "pad_edge": False, "title_justify": "left"}
    wide = Table(**shape, title=title and escape(title))
    for name in columns:
        wide.add_column(name, justify="left" if name in labels else "right")
    for row in zip(*columns.values(), strict=True):
        wide.add_row(*map(escape, row))
    if out.measure(wide, options=out.options.update(width=WIDEST)).maximum <= out.width:
        yield wide
        return
    at_once = max((out.width - max(map(len, columns))) // COLUMN, 1)
    for start in range(0, len(lines), at_once):
        some = slice(start, start + at_once)
        narrow = Table(**shape, title=title and escape(title))
        head, *others = columns.items()
        narrow.add_column(head[0])
        for name in head[1][some]:
            _add_column(narrow, name)
        for label, cells in others:
            narrow.add_row(label, *map(escape, cells[some]))
        yield narrow


def _parts_tables(lines: Sequence[Line], by: str, metric: str, out: Console) -> Iterator[Table]:
    """Returns tables with a row for each part of the prompts, and `metric` and Self-BLEU of each system.

    There are as many tables as the width of the terminal needs, and none where there are no parts.
    """
    names = list(dict.fromkeys(line.system.name for line in lines))
    parts = {line.part: line.prompts for line in lines if line.part != ALL}
    scores = {(line.system.name, line.part): line.scores for line in lines}
    told = [name for name in (metric, "self_bleu") if any(name in line.scores for line in lines)]
    at_once = max((out.width - max(map(len, [*parts, by])) - 10) // (COLUMN * len(told)), 1)
    for start in range(0, len(names) if parts else 0, at_once):
        some = names[start : start + at_once]
        title = " ".join(filter(None, (lines[0].system.dataset, some[0] if len(names) == 1 else "")))
        table = Table(box=SIMPLE_HEAD, pad_edge=False, title=escape(title) or None, title_justify="left")
        table.add_column(escape(by))
        table.add_column("prompts", justify="right")
        for score, name in itertools.product(told, some):
            label = measure_of(score).title
            _add_column(table, label if len(names) == 1 else f"{label}, {name}")
        for part, prompts in parts.items():
            cells = [_cell(scores[name, part].get(score)) for score, name in itertools.product(told, some)]
            table.add_row(escape(part.removeprefix(f"{by}=")), str(prompts), *cells)
        yield table


def _add_column(table: Table, name: str) -> None:
    """Adds a column of numbers; its name breaks into a new line after a comma."""
    table.add_column(
        escape(re.sub(",(?! )", ",\n", name)), justify="right", overflow="fold", max_width=COLUMN - 2
    )


def _measured(lines: Sequence[Line]) -> list[str]:
    """Returns the scores that some line has; scores against the references come first."""
    found = dict.fromkeys(name for line in lines for name in line.scores)
    return [*(name for name in found if name not in OF_ANSWERS), *(n for n in OF_ANSWERS if n in found)]


def _legend(lines: Sequence[Line]) -> str:
    """Returns one line for each score of `lines`: what it is, and how a score of a whole set was computed."""
    measured = _measured(lines)
    unlike = " and ".join(measure_of(name).title for name in measured if measure_of(name).unit)
    quality = ", ".join(measure_of(name).title for name in measured if name not in OF_ANSWERS)
    kinds = [
        f"{OF_ANSWERS[name].title}: {OF_ANSWERS[name].meaning}"
        f"{', lower is more diverse' * ('self_bleu' in name)}."
        for name in measured
        if name in OF_ANSWERS
    ]
    spread = any(score.std is not None for line in lines for score in line.scores.values())
    seeds = " ±: over the seeds." if spread else ""
    signatures: dict[str, dict[str, list[str]]] = {}  # the systems, by signature and score
    for name, line in itertools.product([name for name in measured if name not in OF_ANSWERS], lines):
        if (signature := line.scores[name].signature if name in line.scores else None) is not None:
            systems = signatures.setdefault(signature, {}).setdefault(measure_of(name).title, [])
            systems.append(line.system.name)
    every = {line.system.name for line in lines}
    computed = [
        f"{', '.join(of)}{'' if {*names} == every else f' of {_and(names)}'}: {signature}\n"
        for signature, by_score in signatures.items()
        for names, of in _by_systems(by_score)
    ]
    unequal = len({line.answers for line in lines}) > 1 and any("self_bleu" in name for name in measured)
    seeds += " Of unequal numbers of answers, Self-BLEU and distinct-n cannot be compared." * unequal
    scale = "0 to 100" + (f", but {unlike}" if unlike else "")
    return f"{scale}. Higher is better of {quality}. {' '.join(kinds)}{seeds}\n{''.join(computed)}"


def _by_systems(by_score: Mapping[str, Sequence[str]]) -> list[tuple[list[str], list[str]]]:
    """Returns lists of systems, each with the scores that these systems have."""
    found: dict[tuple[str, ...], list[str]] = {}
    for score, systems in by_score.items():
        found.setdefault(tuple(dict.fromkeys(systems)), []).append(score)
    return [([*systems], scores) for systems, scores in found.items()]


def _and(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _cell(score: Score | None) -> str:
    if score is None or math.isnan(score.mean):
        return "–"
    return f"{score.mean:.2f}" + ("" if score.std is None else f" ±{score.std:.2f}")


def _write_csv(file: Path, lines: Sequence[Line]) -> None:
    metrics = list(dict.fromkeys(metric for line in lines for metric in line.scores))
    with written_whole(file) as part, part.open("w", encoding="utf-8", newline="") as out:
        writer: Any = csv.writer(out, lineterminator="\n")
        writer.writerow(["system", "set", "prompts", *(f"{m}_{s}" for m in metrics for s in ("mean", "std"))])
        for line in lines:
            cells = [
                value
                for metric in metrics
                for score in [line.scores.get(metric)]
                for value in ((score.mean, score.std) if score else (None, None))
            ]
            writer.writerow([line.system.name, line.system.dataset, line.part, *cells])
