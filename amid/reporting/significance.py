"""Which settings differ from the best one by more than the choice of prompts explains."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from amid.errors import InputError
from amid.metrics import paired_bootstrap
from amid.reporting.rows import MISSING, OF_NO_METHOD, Row
from amid.reporting.sections import Section
from amid.reporting.table import Table, title
from amid.results import RunResult
from amid.scoring import PER_PROMPT, PROMPTS

NAMED = 3
"""So many settings at most are named in a verdict; more are counted."""

Scores = Mapping[str, Mapping[str, Any]]
OfPrompts = tuple[str | None, list[float]]
"""The key of the prompts of a set, None where a run has not recorded it, and the scores of each."""


def against_the_best(table: Table, records: Mapping[Path, RunResult]) -> Section | None:
    """Each row against the best of its pair and data: difference, 95% interval, and a mark, for each set.

    By paired bootstrap over the prompts of a set, of `table.quality`, each prompt's score being the mean over
    its answers and the training seeds. None where no two rows have the scores of their prompts.

    Args:
        table: of the runs.
        records: the runs of `table`, by their folders.

    Raises:
        InputError: naming a file of scores that cannot be read.
    """
    folders = {id(run): folder for folder, run in records.items()}
    means = {id(row): _of_row([_read(folders[id(run)]) for run in row.runs], table) for row in table.rows}
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in table.rows:
        if means[id(row)] and row.labels.get("method") != "teacher":
            groups.setdefault(tuple(row.labels.get(label) for label in OF_NO_METHOD), []).append(row)
    sets = table.sets(table.quality)
    lines, verdicts = [], []
    for rows in groups.values():
        best = max(rows, key=lambda row: _overall(table, row))
        told: dict[str, list[str]] = {}
        for row in rows:
            if row is not best:
                cells = [_cell(means[id(row)].get(name), means[id(best)].get(name)) for name in sets]
                lines.append([table.name(row), table.name(best), *cells])
                marked = [name for name, cell in zip(sets, cells, strict=True) if cell.endswith("*")]
                told.setdefault(", ".join(marked) or "no set", []).append(table.name(row))
        if told:
            verdicts.append(_verdict(table.name(best), told))
    if not lines:
        return None
    return Section(
        f"{title(table.quality)} against the best setting",
        ["Setting", "Best", *sets],
        lines,
        f"{' '.join(verdicts)}\n\n"
        f"Best: the highest {title(table.quality)} over all sets in the table of scores. "
        "Difference of the means over prompts, and its 95% interval by paired bootstrap over the prompts of "
        "a set (Koehn 2004); *: the interval leaves out 0. It tells of the choice of prompts; what training "
        "seeds make of a setting is told by the deviations of the first table, where it has several. "
        "Self-BLEU is not tested.",
    )


def _verdict(best: str, told: Mapping[str, Sequence[str]]) -> str:
    """In a sentence from which settings, by the sets that they are told apart on, the best one is."""
    parts = [
        f"from {', '.join(names) if len(names) <= NAMED else f'{len(names)} settings'} on {sets}"
        for sets, names in sorted(told.items(), key=lambda item: item[0] == "no set")
    ]
    return f"{best} is told apart {'; '.join(parts)}."


def _read(folder: Path) -> Scores:
    """The scores of each prompt of a run; empty where it has none."""
    file = folder / "generations" / PER_PROMPT
    try:
        scores: Scores = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(
            f"{file} cannot be read ({error}); delete it, and the report is made without its comparison"
        ) from error
    return scores


def _of_row(runs: Sequence[Scores], table: Table) -> dict[str, OfPrompts]:
    """Of each set the mean over the runs of the score of each prompt; without what some run lacks, or has of
    other prompts."""
    found: dict[str, OfPrompts] = {}
    for name in table.datasets:
        scores = [run.get(name, {}).get(table.quality) for run in runs]
        known = [values for values in scores if values]
        prompts = {run.get(name, {}).get(PROMPTS) for run in runs}
        if len(known) == len(scores) and len(prompts) == 1 and len({len(values) for values in known}) == 1:
            means = [sum(values) / len(values) for values in zip(*known, strict=True)]
            found[name] = (prompts.pop(), means)
    return found


def _overall(table: Table, row: Row) -> float:
    score = table.score(row, table.quality)
    return score.mean if score is not None and math.isfinite(score.mean) else -math.inf


def _cell(first: OfPrompts | None, second: OfPrompts | None) -> str:
    if first is None or second is None:
        return MISSING
    (prompts, ours), (others, theirs) = first, second
    if prompts != others or len(ours) != len(theirs) or len(ours) < 2:
        return MISSING
    found = paired_bootstrap(ours, theirs)
    mark = "*" if found.significant else ""
    return f"{found.difference:+.2f} ({found.low:+.2f} to {found.high:+.2f}){mark}"
