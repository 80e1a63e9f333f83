"""The report as one interactive page: a single file that needs no network."""

import json
import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from amid.errors import InputError
from amid.reporting.claims import NOTE, claims
from amid.reporting.figures import names_of
from amid.reporting.folders import Drawn, Prompt, answers, configuration, curves, differences, sizes, thinned
from amid.reporting.published import other_pairs, published_score
from amid.reporting.sections import Section, number, outcome
from amid.reporting.table import AVERAGE, SYMBOLS, Row, Table, title
from amid.results import RunResult

LARGEST = 6_000_000
"""Bytes that the page may have."""

FOR_CURVES = 1_500_000
"""Bytes, about, that the training curves of all runs may take."""

POINTS = 400
"""Of a curve at most."""

_BYTES_OF_A_POINT = 18
_READ = 3
"""So many times `LARGEST` of the answers' bytes are read at most: references stand in every run's files."""

_ASSETS = Path(__file__).with_name("assets")


def interactive_page(
    name: str, table: Table, sections: Sequence[Section], records: Mapping[Path, RunResult]
) -> str:
    """The page, HTML with its style, its script and its data inside, of at most `LARGEST` bytes.

    Of each evaluation set it holds the answers to as many prompts as there is room for, the first ones.

    Args:
        name: heads the page.
        table: of all runs.
        sections: further tables to show.
        records: the runs of the table by the folders that hold their answers, curves and configurations.

    Raises:
        InputError: if a file in a run's folder is damaged, or there are so many runs that the page is larger
            even without any answer.
    """
    folder_of = {id(run): folder for folder, run in records.items()}
    places = [folder_of[id(run)] for row in table.rows for run in row.runs]
    data = _data(name, table, sections, places)
    template = (_ASSETS / "page.html").read_text(encoding="utf-8")
    for mark, file in (("/*STYLE*/", "page.css"), ("/*SCRIPT*/", "page.js")):
        template = template.replace(mark, (_ASSETS / file).read_text(encoding="utf-8"))

    size = [sizes(place) for place in places]
    totals = {
        of: max(by[of][0] for by in size if of in by) for of in dict.fromkeys(of for by in size for of in by)
    }
    bytes_of_a_prompt = sum(per_prompt for by in size for _, per_prompt in by.values())
    most = max(1, int(_READ * LARGEST / bytes_of_a_prompt)) if bytes_of_a_prompt else 0
    sets = _by_prompt([answers(place, most) for place in places])

    def page(prompts: int) -> str:
        shown = {of: dict(list(rows.items())[:prompts]) for of, rows in sets.items()}
        generations = [
            {
                "set": of,
                "total": max(totals[of], len(rows)),
                "prompts": [
                    [
                        prompt.instruction,
                        prompt.input,
                        prompt.references,
                        {
                            run: [[a.seed, a.text, a.tokens, a.ended] for a in drawn]
                            for run, drawn in by.items()
                        },
                    ]
                    for prompt, by in rows.items()
                ],
            }
            for of, rows in shown.items()
        ]
        return template.replace("{{DATA}}", embedded(data | {"generations": generations}))

    most = max((len(rows) for rows in sets.values()), default=0)
    left_out = bisect_left(range(most + 1), True, key=lambda n: len(page(most - n).encode()) <= LARGEST)
    if left_out > most:
        raise InputError(
            f"the page of {len(places)} runs has more than {LARGEST / 1e6:g} MB without any answer; "
            "report fewer at once, such as one folder of outputs at a time"
        )
    return page(most - left_out)


def embedded(data: Any) -> str:
    """`data` as JSON that can stand in a <script>, whatever text it holds; numbers are finite, or None."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _data(name: str, table: Table, sections: Sequence[Section], places: Sequence[Path]) -> dict[str, Any]:
    runs = [(index, run) for index, row in enumerate(table.rows) for run in row.runs]
    numbers = iter(range(len(runs)))
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
    columns = [
        {
            "key": f"{dataset}/{metric}",
            "title": title(metric),
            "set": dataset,
            "lower": metric == table.diversity,
            "metric": metric,
        }
        for dataset, metric in table.columns()
    ]
    cells = [_cells(table, metric, dataset) for dataset, metric in table.columns()]
    common, config = differences([configuration(place) for place in places])
    logged = [curves(place) for place in places]
    n_curves = sum(len(of_run) for of_run in logged)
    points = max(2, min(POINTS, FOR_CURVES // (_BYTES_OF_A_POINT * max(1, n_curves))))
    found = claims(table)
    return {
        "title": name,
        "caption": table.caption_with("underlined"),
        "labels": [{"key": label, "title": SYMBOLS.get(label, label)} for label in table.varying],
        "columns": columns,
        "quality": f"{table.overall(table.quality)}/{table.quality}",
        "diversity": f"{table.overall(table.diversity)}/{table.diversity}",
        "average": AVERAGE,
        "rows": [
            {
                "name": table.name(row),
                "labels": {label: _label(row, label) for label in {*table.varying, "method", "divergence"}},
                "alpha": number(row, "alpha"),
                "lam": number(row, "lam"),
                "baseline": row.baseline,
                "teacher": row.labels.get("method") == "teacher",
                "series": {key: names[id(row)] for key, names in series.items() if id(row) in names},
                "cells": [column[index] for column in cells],
                "runs": [next(numbers) for _ in row.runs],
            }
            for index, row in enumerate(table.rows)
        ],
        "runs": [
            {
                "name": run.name,
                "folder": str(place),
                "row": index,
                "seed": run.seed,
                "hash": run.config_hash,
                "seconds": round(sum(run.timings.values()), 1),
                "outcome": outcome(run, table.quality),
                "diverged": run.diverged_step,
                "config": {key: _value(value) for key, value in own.items()},
                "curves": {
                    key: [[step, _rounded(value)] for step, value in thinned(curve, points)]
                    for key, curve in of_run.items()
                },
            }
            for (index, run), place, own, of_run in zip(runs, places, config, logged, strict=True)
        ],
        "common": {key: _value(value) for key, value in common.items()},
        "claims": [{"text": claim.text, "verdict": claim.verdict, "why": claim.why} for claim in found],
        "claimsNote": " ".join(filter(None, (NOTE, other_pairs(table)))) if found else "",
        "sections": [
            {"title": s.title, "heads": s.heads, "lines": s.lines, "note": s.note} for s in sections
        ],
        "versions": _versions([run for _, run in runs]),
        "megabytes": LARGEST / 1e6,
    }


def _cells(table: Table, metric: str, dataset: str) -> list[dict[str, Any]]:
    """Of each row the score in one column, as shown and as a number, and what is published of it."""
    made = []
    for row, place in zip(table.rows, table.places(metric, dataset), strict=True):
        score = table.score(row, metric, dataset)
        cell: dict[str, Any] = {"text": table.score_text(row, metric, 2, dataset)}
        if score is not None:
            cell["mean"], cell["std"] = _finite(score.mean), _finite(score.std)
            cell["values"] = [_finite(value) for value in score.values]
        if place:
            cell["place"] = place
        if (theirs := published_score(table, row, metric, dataset)) is not None:
            value, figures = theirs
            cell["published"] = value
            cell["source"] = figures.source + (", read second-hand" if figures.second_hand else "")
        made.append(cell)
    return made


def _by_prompt(
    by_run: list[dict[str, dict[Prompt, list[Drawn]]]],
) -> dict[str, dict[Prompt, dict[int, list[Drawn]]]]:
    """Set -> prompt -> number of the run -> its answers."""
    sets: dict[str, dict[Prompt, dict[int, list[Drawn]]]] = {}
    for run, of_run in enumerate(by_run):
        for name, prompts in of_run.items():
            for prompt, drawn in prompts.items():
                sets.setdefault(name, {}).setdefault(prompt, {})[run] = drawn
    return sets


def _label(row: Row, label: str) -> str | float | bool | None:
    if label in ("method", "divergence"):
        return row.method if label == "method" else row.divergence
    return row.labels.get(label)


def _versions(runs: list[RunResult]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for run in runs:
        for package, version in run.versions.items():
            found.setdefault(package, [])
            if version not in found[package]:
                found[package].append(version)
    return found


def _finite(value: float | None) -> float | None:
    return _rounded(value, 6) if value is not None and math.isfinite(value) else None


def _rounded(value: float, digits: int = 4) -> float:
    return float(f"{value:.{digits}g}")


def _value(value: Any) -> str:
    """A value of a configuration as YAML has it on one line."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
