"""The report as one interactive page: a single file that needs no network."""

import json
import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from amid.errors import InputError
from amid.measures import in_order, measure_of
from amid.reporting.claims import claims, evidence
from amid.reporting.folders import Drawn, Prompt, answers, configuration, curves, differences, sizes, thinned
from amid.reporting.front_sections import AtAnyDiversity
from amid.reporting.names import names_of
from amid.reporting.published import other_pairs, published_score
from amid.reporting.rows import AVERAGE, MISSING, Row, overrides
from amid.reporting.runs import Runs
from amid.reporting.sections import FAILED, Section, number, outcome
from amid.reporting.table import SYMBOLS, Table
from amid.results import Label, RunResult

LARGEST = 6_000_000
"""Bytes that the page may have."""

FOR_CURVES = 1_500_000
"""Bytes, about, that the training curves of all runs may take."""

POINTS = 400
"""The most points of a curve."""

_BYTES_OF_A_POINT = 18
_READ = 3
"""At most this many times `LARGEST` bytes of answers are read: every run's files repeat the references."""

_ASSETS = Path(__file__).with_name("assets")
_SCRIPTS = [
    f"{name}.js"
    for name in ("base", "scores", "drawing", "figures", "training", "answers", "differences", "page")
]
"""The parts of one script, in order."""

_WITH_FRONTS = [*_SCRIPTS, "fronts.js"]
"""The same with the part that draws quality at equal diversity."""

Answers = dict[str, dict[Prompt, dict[int, list[Drawn]]]]
"""Set -> prompt -> number of the run -> its answers."""


class PageTooLarge(InputError):
    """The page has more than `LARGEST` bytes even without any answer, because there are so many runs."""


def interactive_page(runs: Runs, table: Table, sections: Sequence[Section]) -> str:
    """Returns the page: HTML with style, script and data inside, of at most `LARGEST` bytes.

    For each evaluation set it holds the answers to the first prompts, as many as there is room for.

    Args:
        runs: the runs of the table, with answers, curves and configurations in their folders, and runs
            without a result, which may have curves.
        table: the table of all runs.
        sections: further tables to show.

    Raises:
        PageTooLarge: if there are so many runs that the page is too large even without any answer.
        InputError: if a file in a run's folder is damaged.
    """
    folder_of = {id(run): folder for folder, run in runs.records.items()}
    places = [folder_of[id(run)] for row in table.rows for run in row.runs]
    data = _data(runs, table, sections, places)
    template = _template(_WITH_FRONTS if any(isinstance(of, AtAnyDiversity) for of in sections) else _SCRIPTS)
    sets, totals = _first_answers(places)

    def page(prompts: int) -> str:
        shown = [_set_of_answers(of, totals[of], by_prompt, prompts) for of, by_prompt in sets.items()]
        return template.replace("{{DATA}}", embedded(data | {"generations": shown}))

    most = max((len(rows) for rows in sets.values()), default=0)
    if len((whole := page(most)).encode()) <= LARGEST:
        return whole
    left_out = bisect_left(range(most + 1), True, lo=1, key=lambda n: len(page(most - n).encode()) <= LARGEST)
    if left_out > most:
        raise PageTooLarge(
            f"the page of {len(places)} runs has more than {LARGEST / 1e6:g} MB without any answer; "
            "report fewer at once, such as one folder of outputs at a time"
        )
    return page(most - left_out)


def _template(scripts: Sequence[str]) -> str:
    """Returns the page with style and script, without data."""
    template = (_ASSETS / "page.html").read_text(encoding="utf-8")
    for mark, files in (("/*STYLE*/", ["page.css"]), ("/*SCRIPT*/", scripts)):
        text = "\n".join((_ASSETS / file).read_text(encoding="utf-8") for file in files)
        template = template.replace(mark, text)
    return template


def _first_answers(places: Sequence[Path]) -> tuple[Answers, dict[str, int]]:
    """Returns the runs' answers to as many prompts as may fit, and the number of prompts of each set."""
    size = [sizes(place) for place in places]
    totals = {
        of: max(by[of][0] for by in size if of in by) for of in dict.fromkeys(of for by in size for of in by)
    }
    bytes_of_a_prompt = sum(per_prompt for by in size for _, per_prompt in by.values())
    most = max(1, int(_READ * LARGEST / bytes_of_a_prompt)) if bytes_of_a_prompt else 0
    sets = _by_prompt([answers(place, most) for place in places])
    for of, rows in sets.items():
        if totals[of] <= most:  # all lines were read; lines of one prompt are merged
            totals[of] = len(rows)
    return sets, totals


def _set_of_answers(
    of: str, total: int, by_prompt: Mapping[Prompt, Mapping[int, Sequence[Drawn]]], most: int
) -> dict[str, Any]:
    """Returns the answers to the first `most` prompts of a set, in the form of the page."""
    return {
        "set": of,
        "total": total,
        "prompts": [
            [
                prompt.instruction,
                prompt.input,
                prompt.references,
                {run: [[a.seed, a.text, a.tokens, a.ended] for a in drawn] for run, drawn in by.items()},
            ]
            for prompt, by in islice(by_prompt.items(), most)
        ],
    }


def embedded(data: Any) -> str:
    """Returns `data` as JSON that is safe in a <script>, whatever its text; numbers are finite, or None."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _data(of: Runs, table: Table, sections: Sequence[Section], places: Sequence[Path]) -> dict[str, Any]:
    """Returns all data of the page except for the answers.

    Args:
        of: the runs of the table, and the runs without a result.
        table: the table of all runs.
        sections: further tables.
        places: the folders of the runs, in the order of the table.
    """
    common, config = differences([configuration(place) for place in places])
    drawn = _curves([*places, *of.unfinished])
    runs = [(index, run) for index, row in enumerate(table.rows) for run in row.runs]
    further, found = _further(table), claims(table)
    return {
        "title": of.name,
        "caption": table.caption_with("underlined"),
        "labels": [{"key": label, "title": SYMBOLS.get(label, label)} for label in table.varying],
        "filters": _filters(table),
        "columns": [
            _column(table, dataset, metric) | {"further": metric in further}
            for dataset, metric in _columns(table)
        ],
        "further": " ".join(f"{of.title}: {of.meaning}." for of in map(measure_of, further)),
        "quality": f"{table.overall(table.quality)}/{table.quality}",
        "diversity": f"{table.overall(table.diversity)}/{table.diversity}",
        "average": AVERAGE,
        "rows": _rows(table),
        "runs": [
            _run(table, index, run, of.names[place], own, of_run)
            for (index, run), place, own, of_run in zip(runs, places, config, drawn[: len(runs)], strict=True)
        ],
        "unfinished": [
            {
                "name": run.name,
                "folder": of.names[place],
                "state": run.state,
                "note": run.note,
                "curves": of_run,
            }
            for (place, run), of_run in zip(of.unfinished.items(), drawn[len(runs) :], strict=True)
        ],
        "common": {key: _value(value) for key, value in common.items()},
        "claims": [{"text": claim.text, "verdict": claim.verdict, "why": claim.why} for claim in found],
        "claimsNote": " ".join(filter(None, (evidence(table), other_pairs(table)))) if found else "",
        "sections": [section.to_page() for section in sections],
        "versions": table.versions,
        "megabytes": LARGEST / 1e6,
    }


def _column(table: Table, dataset: str, metric: str) -> dict[str, Any]:
    """Returns the head of a column; the column at equal diversity stands beside the columns of all sets."""
    measure, title = measure_of(metric), measure_of(metric).title
    key = f"{dataset}/{metric}"
    if table.at_diversity and dataset == table.at_diversity.name:
        dataset, title = table.overall(metric), f"{title} {dataset}"
    return {"key": key, "title": title, "set": dataset, "metric": metric, "better": measure.better}


def _columns(table: Table) -> list[tuple[str, str]]:
    """Returns the columns of scores as (set, metric): the table's columns, then further columns."""
    further = [(dataset, metric) for metric in _further(table) for dataset in _sets(table, metric)]
    return [*table.columns(), *further]


def _rows(table: Table) -> list[dict[str, Any]]:
    """Returns the rows, each with its cells, its lines in the figures, and its runs."""
    cells = [_cells(table, metric, dataset) for dataset, metric in _columns(table)]
    numbers = iter(range(sum(len(row.runs) for row in table.rows)))
    grid = [row for row in table.rows if not row.baseline]
    series = {
        key: dict(zip(map(id, grid), names_of(table, grid, without), strict=True)) if grid else {}
        for key, without in (
            ("alpha", ("alpha",)),
            ("lam", ("lam",)),
            ("alpha_lam", ("alpha", "lam")),
            ("divergence_alpha", ("divergence", "order", "alpha")),
        )
    }
    labels = dict.fromkeys((*table.varying, "method", "divergence"))
    return [
        {
            "name": table.name(row),
            "labels": {label: _label(row, label) for label in labels},
            "alpha": number(row, "alpha"),
            "lam": number(row, "lam"),
            "baseline": row.baseline,
            "teacher": row.labels.get("method") == "teacher",
            "series": {key: names[id(row)] for key, names in series.items() if id(row) in names},
            "cells": [column[index] for column in cells],
            "runs": [next(numbers) for _ in row.runs],
        }
        for index, row in enumerate(table.rows)
    ]


def _run(
    table: Table, row: int, run: RunResult, folder: str, own: Mapping[str, Any], drawn: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the data of a run: its outcome, the settings that others do not share, and its curves."""
    ending = outcome(run, table.quality)
    return {
        "name": run.name,
        "folder": folder,
        "row": row,
        "seed": run.seed,
        "hash": run.config_hash,
        "seconds": round(sum(run.timings.values()), 1),
        "outcome": ending,
        "failed": ending in FAILED,
        "diverged": run.diverged_step,
        "config": {key: _value(value) for key, value in own.items()},
        "curves": drawn,
    }


def _curves(places: Sequence[Path]) -> list[dict[str, list[list[float]]]]:
    """Returns the curves in each folder, thinned so that all curves take about `FOR_CURVES` bytes."""
    logged = [curves(place) for place in places]
    n_curves = sum(len(of_run) for of_run in logged)
    points = max(2, min(POINTS, FOR_CURVES // (_BYTES_OF_A_POINT * max(1, n_curves))))
    return [
        {
            key: [[step, _rounded(value)] for step, value in thinned(curve, points)]
            for key, curve in of_run.items()
        }
        for of_run in logged
    ]


def _cells(table: Table, metric: str, dataset: str) -> list[dict[str, Any]]:
    """Returns the cells of a column: each row's score as text and as a number, and the published score."""
    made = []
    scores = [table.score(row, metric, dataset) for row in table.rows]
    places = table.places(metric, dataset)
    if len({score.mean for score in scores if score is not None and math.isfinite(score.mean)}) < 2:
        places = [0] * len(places)  # such as when no answer matches exactly
    for row, place, score in zip(table.rows, places, scores, strict=True):
        cell: dict[str, Any] = {"text": table.score_text(row, metric, 2, dataset)}
        if score is not None:
            cell["mean"], cell["std"] = _finite(score.mean), _finite(score.std)
        if place:
            cell["place"] = place
        if (theirs := published_score(table, row, metric, dataset)) is not None:
            value, figures = theirs
            cell["published"] = value
            cell["source"] = figures.source + (", read second-hand" if figures.second_hand else "")
        made.append(cell)
    return made


def _further(table: Table) -> list[str]:
    """Returns the measured metrics that have no column in the table."""
    measured = {name for row in table.rows for run in row.runs for by in run.scores.values() for name in by}
    return [name for name in in_order(measured - {*table.metrics}) if "page" in measure_of(name).shown]


def _sets(table: Table, metric: str) -> list[str]:
    """Returns the sets of a metric, and their average if there are two or more."""
    return list(dict.fromkeys([*table.sets(metric), table.overall(metric)]))


def _filters(table: Table) -> list[dict[str, Any]]:
    """Returns the filters of rows: labels with two or more values, each with the value of every row.

    Each key of the settings is a filter of its own; a row without the key has the default.
    """
    own = [dict(s.partition("=")[::2] for s in overrides(row.runs[0]) if s) for row in table.rows]
    labels = dict.fromkeys([*SYMBOLS, *(label for row in table.rows for label in row.labels)])
    found: dict[str, list[Label]] = {
        label: [_label(row, label) for row in table.rows]
        for label in labels
        if label not in ("order", "assistant", "settings")
    }
    for key in sorted({key for of_row in own for key in of_row}):
        found[key] = [of_row.get(key, "default") for of_row in own]
    return [
        {"key": key, "title": SYMBOLS.get(key, key), "values": values}
        for key, values in found.items()
        if len(set(values) - {None, MISSING}) > 1
    ]


def _by_prompt(by_run: Sequence[dict[str, dict[Prompt, list[Drawn]]]]) -> Answers:
    sets: Answers = {}
    for run, of_run in enumerate(by_run):
        for name, prompts in of_run.items():
            for prompt, drawn in prompts.items():
                sets.setdefault(name, {}).setdefault(prompt, {})[run] = drawn
    return sets


def _label(row: Row, label: str) -> Label:
    if label in ("method", "divergence"):
        return row.method if label == "method" else row.divergence
    return row.labels.get(label)


def _finite(value: float | None) -> float | None:
    return _rounded(value, 6) if value is not None and math.isfinite(value) else None


def _rounded(value: float, digits: int = 4) -> float:
    return float(f"{value:.{digits}g}")


def _value(value: Any) -> str:
    """Returns a value of a configuration as YAML on one line."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
