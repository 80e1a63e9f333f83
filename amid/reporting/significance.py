"""Finds the settings that differ from the best one by more than the choice of prompts explains."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amid.measures import measure_of
from amid.metrics import FEW, Comparison, paired_bootstraps, signed
from amid.reporting.rows import MISSING, OF_NO_METHOD, Row
from amid.reporting.sections import Section
from amid.reporting.table import Table
from amid.results import RunResult
from amid.scoring.answers import PROMPTS, UNREAD, read_per_prompt

NAMED = 3
"""A verdict names at most this many settings and counts the others."""

PAIRS = 5_000
"""The most pairs on the page, enough for about 100 settings; else it has only the best setting's pairs."""

Scores = Mapping[str, Mapping[str, Any]]
OfPrompts = tuple[str | None, list[float]]
"""The key of a set's prompts (None if a run has not recorded it), and the score of each prompt."""

Compared = Mapping[tuple[int, int], Comparison]
"""The comparison of two rows, the first less the second, by their places in the table."""


@dataclass(frozen=True)
class Group:
    """The rows of one pair and data that have scores for each prompt, by their places in the table."""

    rows: Sequence[int]
    """The places of the rows in ascending order, with the teacher."""
    students: Sequence[int]
    best: int
    """The place of the best student."""


@dataclass(frozen=True, kw_only=True)
class AgainstAny(Section):
    """Compares settings with the best one; on the page, with any setting that the reader chooses."""

    page_title: str
    page_note: str
    sets: Sequence[str]
    groups: Sequence[Group]
    compared: Sequence[Compared]
    """The comparisons on each set: each row less every earlier row of its group with the same prompts."""

    def to_page(self) -> dict[str, Any]:
        """Returns a triangle for each group and set: a line for each row, with a cell for each earlier row.

        A cell is [difference, low, high], rounded as in Markdown; a 1 follows if the interval leaves out 0.
        A cell is None if the two rows are not compared. An infinite end of the interval is None, too.
        """
        groups = [
            {
                "rows": group.rows,
                "best": group.best,
                "less": [
                    [
                        [numbers_of(of.get((row, other))) for other in group.rows[:i]]
                        for i, row in enumerate(group.rows)
                    ]
                    for of in self.compared
                ],
            }
            for group in self.groups
        ]
        return {"title": self.page_title, "note": self.page_note, "sets": self.sets, "groups": groups}


def against_the_best(table: Table, records: Mapping[Path, RunResult]) -> Section | None:
    """Compares each row with the best row of its pair and data: difference, 95% interval, and mark, by set.

    The test is the paired bootstrap of `table.quality` over the prompts of a set. A prompt's score is the
    mean over its answers and the training seeds. None if no two rows have scores for each prompt. The
    teacher has no row; on the page the reader can choose it to compare with.

    Args:
        table: the table of the runs.
        records: the runs of `table`, by their folders.

    Raises:
        InputError: naming a file of scores that cannot be read.
    """
    folders = {id(run): folder for folder, run in records.items()}
    means = [_of_row([_read(folders[id(run)]) for run in row.runs], table) for row in table.rows]
    groups = _groups(table, [bool(of_row) for of_row in means])
    with_best = [(row, group.best) for group in groups for row in group.students if row != group.best]
    if not with_best:
        return None
    every = [(row, other) for group in groups for i, row in enumerate(group.rows) for other in group.rows[:i]]
    on_page = every if len(every) <= PAIRS else []
    sets = table.sets(table.quality)
    compared = [_compared([of.get(name) for of in means], {*with_best, *on_page}) for name in sets]

    lines = []
    by_best: dict[int, dict[tuple[str, str], list[str]]] = {}
    for row, best in with_best:
        name, cells = table.name(table.rows[row]), [cell(of.get((row, best))) for of in compared]
        lines.append([name, table.name(table.rows[best]), *cells])
        marked = [(of, cell[0]) for of, cell in zip(sets, cells, strict=True) if cell.endswith("*")]
        for word, sign in (("above", "-"), ("below", "+")):
            if where := ", ".join(of for of, first in marked if first == sign):
                by_best.setdefault(best, {}).setdefault((word, where), []).append(name)
        if not marked and {*cells} - {MISSING}:
            by_best.setdefault(best, {}).setdefault(("not different from", ""), []).append(name)
    verdicts = " ".join(_verdict(table.name(table.rows[best]), by_sets) for best, by_sets in by_best.items())
    quality = measure_of(table.quality).title
    note = (
        f"The best setting has the highest {quality} over the sets that all students of its pair and data "
        "share. Each cell is the difference of the means over the prompts of a set, with its 95% interval by "
        "paired bootstrap over these prompts (Koehn 2004). * marks an interval without 0. "
        f"{_of_few(sets, compared)}The interval covers the choice of prompts. The first table shows how much "
        "training seeds vary. Self-BLEU is not tested."
    )
    heads = ["Setting", "Best", *sets]
    text = (f"Difference in {quality} from the best setting", heads, lines, note, verdicts)
    if not on_page:
        return Section(*text)
    return AgainstAny(
        *text,
        page_title=f"Difference in {quality} from any setting",
        page_note=f"Each cell is a setting minus the chosen one. {note}",
        sets=sets,
        groups=groups,
        compared=compared,
    )


def not_read(table: Table, records: Mapping[Path, RunResult]) -> Section | None:
    """Lists scores that cannot read a set's text, with the largest share of unread characters in any run.

    None if all scores can read all sets.

    Args:
        table: the table of the runs.
        records: the runs of `table`, by their folders.

    Raises:
        InputError: naming a file of scores that cannot be read.
    """
    most: dict[tuple[str, str], float] = {}
    for scores in map(_read, records):
        for name in table.datasets:
            for metric, share in scores.get(name, {}).get(UNREAD, {}).items():
                most[name, metric] = max(share, most.get((name, metric), 0.0))
    if not most:
        return None
    lines = [
        [f"{measure_of(metric).title}, {name}", f"{share:.3g}"] for (name, metric), share in most.items()
    ]
    return Section(
        "Text that scores cannot read",
        ["Score", "Characters (%)"],
        lines,
        "Share of the letters, digits and signs in answers and references that a score drops, or does not "
        "split into words. The score counts the rest. data.metrics.rouge_l.tokenize=intl reads all scripts "
        "with spaces between words, zh reads Chinese, char reads single characters. amid score takes the "
        "same values with --tokenize.",
    )


def _groups(table: Table, scored: Sequence[bool]) -> list[Group]:
    """Returns the groups of two or more rows with scores for each prompt; at least one row is a student."""
    by_labels: dict[tuple[object, ...], list[int]] = {}
    for place, row in enumerate(table.rows):
        if scored[place]:
            by_labels.setdefault(tuple(row.labels.get(label) for label in OF_NO_METHOD), []).append(place)
    groups = []
    for rows in by_labels.values():
        students = [place for place in rows if table.rows[place].labels.get("method") != "teacher"]
        if students and len(rows) > 1:
            scores = {place: _means(table, table.rows[place]) for place in students}
            sets = set.intersection(*map(set, scores.values()))
            if sets:
                best = max(students, key=lambda place: sum(scores[place][name] for name in sets))
                groups.append(Group(rows, students, best))
    return groups


def _means(table: Table, row: Row) -> dict[str, float]:
    """Returns the main score of a row on each set for which it has a finite score."""
    found = {name: table.score(row, table.quality, name) for name in table.sets(table.quality)}
    return {name: of.mean for name, of in found.items() if of is not None and math.isfinite(of.mean)}


def _compared(scores: Sequence[OfPrompts | None], pairs: Collection[tuple[int, int]]) -> Compared:
    """Compares the rows of each of `pairs` if both have `scores` for the same prompts of a set."""
    alike: dict[tuple[str | None, int], dict[int, list[float]]] = {}
    for place, of_row in enumerate(scores):
        if of_row is not None and len(of_row[1]) > 1:
            prompts, values = of_row
            alike.setdefault((prompts, len(values)), {})[place] = values
    found: dict[tuple[int, int], Comparison] = {}
    for systems in alike.values():
        index = {place: n for n, place in enumerate(systems)}
        chosen = [(row, other) for row, other in pairs if row in index and other in index]
        if chosen:
            both = [(index[row], index[other]) for row, other in chosen]
            found |= zip(chosen, paired_bootstraps(list(systems.values()), both), strict=True)
    return found


def _of_few(sets: Sequence[str], compared: Sequence[Compared]) -> str:
    """Returns a sentence on the sets with few prompts and their numbers; empty without such sets."""
    numbers = {
        name: {found.prompts for found in of.values() if found.prompts < FEW}
        for name, of in zip(sets, compared, strict=True)
    }
    few = [f"{name} ({' and '.join(map(str, sorted(found)))})" for name, found in numbers.items() if found]
    if not few:
        return ""
    return (
        f"Sets of fewer than {FEW} prompts are tested exactly, by swapping the scores of each prompt: "
        f"{', '.join(few)}; fewer than 6 can show no difference. "
    )


def _verdict(best: str, by_sets: Mapping[tuple[str, str], Sequence[str]]) -> str:
    """Returns a sentence on the settings that the best one is above or below, and on which sets."""
    parts = [
        f"{word} {', '.join(names) if len(names) <= NAMED else f'{len(names)} settings'}"
        + (f" on {sets}" if sets else "")
        for (word, sets), names in sorted(
            by_sets.items(), key=lambda item: item[0][0] == "not different from"
        )
    ]
    return (
        f"{best} is the best over the sets. By more than the choice of prompts explains, it is "
        f"{'; '.join(parts)}."
    )


def _read(folder: Path) -> Scores:
    """Reads a run's scores for each prompt; empty if it has none."""
    return read_per_prompt(folder / "generations", "delete it, and the report is made without its comparison")


def _of_row(runs: Sequence[Scores], table: Table) -> dict[str, OfPrompts]:
    """Returns for each set the score of each prompt, as the mean over the runs.

    A set is left out if a run lacks its scores, has scores of other prompts or scores that are not finite, or
    has text that the score cannot read at all.
    """
    found: dict[str, OfPrompts] = {}
    for name in table.datasets:
        scores = [run.get(name, {}).get(table.quality) for run in runs]
        known = [values for values in scores if values]
        prompts = {run.get(name, {}).get(PROMPTS) for run in runs}
        unread = any(table.quality in run.get(name, {}).get(UNREAD, {}) for run in runs)
        measured = not unread or any(map(any, known))  # not if nothing could be read
        alike = len(known) == len(scores) and len(prompts) == 1 and len({len(v) for v in known}) == 1
        if alike and measured:
            means = [sum(values) / len(values) for values in zip(*known, strict=True)]
            if all(map(math.isfinite, means)):
                found[name] = (prompts.pop(), means)
    return found


def cell(found: Comparison | None) -> str:
    """Returns a comparison as tables of differences write it, such as `-0.31 (-0.80 to +0.15)`."""
    if found is None:
        return MISSING
    mark = "*" if found.significant else ""
    return f"{signed(found.difference)} ({found.interval}){mark}"


def numbers_of(found: Comparison | None) -> list[float | None] | None:
    """Returns a comparison for the page: difference, low, high (None if infinite), and 1 if it has a mark."""
    if found is None:
        return None
    numbers = (found.difference, found.low, found.high)
    rounded = [float(f"{value:.2f}") if math.isfinite(value) else None for value in numbers]
    return [*rounded, 1] if found.significant else rounded
