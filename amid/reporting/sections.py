"""Further tables of a report: pass@k, validation measures, pivots, failed runs, and the assistant's cost."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table as TerminalTable

from amid.measures import OF_ANSWERS, RUN, VALIDATION, Measure, measure_of, pass_name
from amid.reporting.folders import configuration
from amid.reporting.formats import markdown, markdown_line
from amid.reporting.rows import AVERAGE, MISSING, Row, score_text
from amid.reporting.table import SYMBOLS, Table
from amid.results import COLLAPSE_SHARE, RunResult, Score

NEAR_ZERO = 1.0
"""A student with a score (0 to 100) below this has collapsed."""

Outcome = Literal["diverged", "collapsed", "trained", "not trained"]
FAILED: tuple[Outcome, Outcome] = ("diverged", "collapsed")


@dataclass(frozen=True)
class Section:
    """A titled table of text, and a note on it; the first column is a name, the others are numbers."""

    title: str
    heads: Sequence[str]
    lines: Sequence[Sequence[str]]
    note: str
    """The meaning of the numbers."""
    finding: str = ""
    """The finding from the numbers, in a sentence or two."""

    def to_markdown(self) -> str:
        """Returns title, table, finding and note in Markdown."""
        rule = ["---", *("---:" for _ in self.heads[1:])]
        head, *body = ([markdown(cell) for cell in line] for line in (self.heads, *self.lines))
        table = "\n".join(markdown_line(line) for line in (head, rule, *body))
        texts = [markdown(text) for text in (self.title, self.finding, self.note)]
        return "\n\n".join(filter(None, (f"## {texts[0]}", table, *texts[1:])))

    def to_terminal(self) -> TerminalTable:
        """Returns the table for the terminal, without title, finding and note."""
        table = TerminalTable(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        for index, head in enumerate(self.heads):
            table.add_column(escape(head), justify="right" if index else "left", no_wrap=index > 0)
        for line in self.lines:
            table.add_row(*map(escape, line))
        return table

    def to_page(self) -> dict[str, Any]:
        """Returns the section's data for the page, ready for JSON."""
        return {
            "title": self.title,
            "heads": self.heads,
            "lines": self.lines,
            "finding": self.finding,
            "note": self.note,
        }


def outcome(run: RunResult, quality: str) -> Outcome:
    """Returns how a run ended: diverged, collapsed (`NEAR_ZERO`, `COLLAPSE_SHARE`), trained or not trained.

    Args:
        run: a run with or without scores.
        quality: the metric that shows a collapse, such as `rouge_l`.
    """
    if run.diverged_step is not None:
        return "diverged"
    means = [by[quality].mean for by in run.scores.values() if quality in by]
    before = run.training.get(f"valid_{quality}_before", math.nan)
    after = run.training.get(f"valid_{quality}", math.nan)
    began_near_zero = before < NEAR_ZERO  # such as exact answers to hard questions
    near_zero = bool(means) and not began_near_zero and not sum(means) / len(means) >= NEAR_ZERO
    if near_zero or after < COLLAPSE_SHARE * before:
        return "collapsed"
    return "not trained" if run.training.get("steps") == 0 else "trained"


def on_validation(table: Table) -> Section | None:
    """Returns the table of measures on the validation text, with a row for each setting.

    Settings without a measure, such as a model that is only scored, and measures that no run has are left
    out. None if nothing was measured.
    """
    taken = {name for row in table.rows for run in row.runs for name in run.training}
    measures = [
        measure
        for name, measure in VALIDATION.items()
        if "section" in measure.shown and f"valid_{name}" in taken
    ]
    lines = []
    for row in table.rows:
        cells = [_on_validation(row, measure) for measure in measures]
        if set(cells) - {MISSING}:
            lines.append([row_name(table, row), *cells])
    if not lines:
        return None
    meanings = " ".join(f"{of.title}: {of.meaning}, {of.better} is better." for of in measures)
    return Section(
        "Measures on the validation data",
        ["Setting", *(measure.head for measure in measures)],
        lines,
        "Each run keeps one student, which is measured on the references of the validation data. "
        f"{meanings} ± is the standard deviation over training seeds. {_before_training(table, measures)}",
    )


_FAULTS = ("unparsable", "overlong", "repetition", "eos_share")
"""Scores that say in which ways an answer fails."""


def passes(table: Table) -> Section | None:
    """Returns the table of pass@k and of the shares of failed answers; None if no run has pass@k."""
    names = [pass_name(k) for k in table.ks]
    if not names:
        return None
    sets = table.sets(names[0])
    faults = [name for name in _FAULTS if any(table.score(row, name) for row in table.rows)]
    columns = [measure_of(name) for name in (*names, *faults)]
    lines = [
        [row_name(table, row), *(table.score_text(row, of.name, of.digits) for of in columns)]
        for row in table.rows
    ]
    by = dict.fromkeys(
        str(score.signature)
        for row in table.rows
        for run in row.runs
        for scores in run.scores.values()
        if (score := scores.get(names[0])) is not None
    )
    where = sets[0] if len(sets) == 1 else f"the sets {', '.join(sets)}"
    meanings = " ".join(f"{OF_ANSWERS[name].title}: {OF_ANSWERS[name].meaning}." for name in faults)
    return Section(
        "pass@k and failures",
        ["Setting", *(of.head for of in columns)],
        lines,
        f"pass@k: chance that one of k answers at least is right ({', '.join(by)}), the mean over prompts of "
        f"{where}. {meanings} 0 to 100. ± is the standard deviation over training seeds, or over the "
        "sampling seeds of a single run.",
    )


def row_name(table: Table, row: Row) -> str:
    """Returns `Table.name`, with the method even if it is the only one."""
    return f"{row.method} {table.name(row, without=['method'])}".strip()


def _on_validation(row: Row, measure: Measure) -> str:
    found = row.validation(measure.name)
    scaled = Score.over_seeds([measure.scale * value for value in found.values]) if found else None
    return score_text(row, scaled, measure.digits)


def _before_training(table: Table, measures: Sequence[Measure]) -> str:
    trained = [run.training for row in table.rows for run in row.runs if run.training.get("steps")]
    said, unlike = [], []
    for measure in measures:
        found = [training.get(f"valid_{measure.name}_before") for training in trained]
        texts = {f"{measure.number(value)} {measure.unit}".strip() for value in found if value is not None}
        if len(texts) > 1:
            unlike.append(measure.title)
        elif texts:
            said.append(f"{measure.title} {texts.pop()}")
    if unlike:
        *first, last = unlike
        all_of_them = f"{', '.join(first)} and {last} differ" if first else f"{last} differs"
        said.append(f"{all_of_them} between the runs (see table.csv)")
    return f"Before the training: {', '.join(said)}." if said else ""


def pivots(table: Table) -> list[Section]:
    """Returns tables of the main score over two of divergence, α and λ that vary, and of failed runs."""
    grid = [row for row in table.rows if not row.baseline]
    values = {
        label: sorted({value for row in grid if (value := number(row, label)) is not None})
        for label in ("alpha", "lam")
    }
    across = "alpha" if len(values["alpha"]) > 1 else "lam"
    columns = values[across]
    hidden = ["divergence", across, *(["method"] if len({row.method for row in grid}) == 1 else [])]
    lines_of = [f"{row.divergence} {table.name(row, without=hidden)}".strip() for row in grid]
    names = list(dict.fromkeys(lines_of))
    if len(columns) < 2 or len(names) < 2:
        return []
    cells = {(line, number(row, across)): row for line, row in zip(lines_of, grid, strict=True)}
    heads = [f"{SYMBOLS[across]} =", *(f"{column:g}" for column in columns)]

    def section(name: str, text: Callable[[Row], str], note: str) -> Section:
        rows = [[cells.get((line, column)) for column in columns] for line in names]
        lines = [
            [line, *(MISSING if row is None else text(row) for row in across_row)]
            for line, across_row in zip(names, rows, strict=True)
        ]
        return Section(name, heads, lines, note)

    quality = measure_of(table.quality).title
    over = "the set" if table.overall(table.quality) != AVERAGE else "all sets"
    made = [
        section(
            f"{quality} by divergence, α and λ",
            lambda row: table.score_text(row, table.quality),
            f"{quality} over {over}, as in the first table.",
        )
    ]
    if all(len(found) > 1 for found in values.values()) or any(failed(table, row) for row in grid):
        made.append(
            section(
                "Failed runs by divergence, α and λ",
                lambda row: f"{failed(table, row)}/{len(row.runs)}",
                "Failed runs / all runs. A run fails if it diverges (its loss or gradient is not finite) or "
                f"collapses ({quality} is below {NEAR_ZERO:g}, or on the validation prompts below "
                f"{COLLAPSE_SHARE:.0%} of the score before the training).",
            )
        )
    return made


_OF_AN_ASSISTANT = ("assistant", "objective.assistant", "objective.order", "schedule")
"""Keys of a configuration in which a run with an assistant may differ from its counterpart without one."""


def cost(table: Table, records: Mapping[Path, RunResult]) -> Section | None:
    """Returns the assistant's cost: step time and memory against the same divergence of p and q directly.

    A row is compared with a row that has a seed in common and the same configuration, except for the
    assistant, its schedule and the order of the divergence's arguments. A row without such a partner is left
    out. Returns None if every row is left out.

    Args:
        table: the table of the runs.
        records: the runs of `table`, by their folders, which hold their configurations.

    Raises:
        InputError: naming a configuration that cannot be read.
    """
    folders = {id(run): folder for folder, run in records.items()}

    def without_assistant(row: Row) -> list[dict[str, Any]]:
        found = [configuration(folders[id(run)]) for run in row.runs]
        own = tuple(f"{key}." for key in _OF_AN_ASSISTANT)
        return [{k: v for k, v in of.items() if not f"{k}.".startswith(own)} for of in found if of]

    trained = [row for row in table.rows if _figure(row, "step_seconds")]  # not runs that were scored again
    directly = [row for row in trained if row.labels.get("alpha") is None and row.labels.get("order") == "pq"]
    grid = [(row, without_assistant(row)) for row in trained if directly and not row.baseline]
    lines: list[list[str]] = []
    compared: list[Row] = []
    for direct in directly if grid else []:
        same = without_assistant(direct)
        if rows := [row for row, others in grid if any(other in same for other in others)]:
            lines += [_cost_line(table, row, direct) for row in (direct, *rows)]
            compared += rows
    if not lines:
        return None
    heads = ["Setting"]
    for measure in _FIGURES:
        heads += [measure.head, *([f"{measure.title} × direct"] if measure.name in _COMPARED else [])]
    heads.append(f"{measure_of(table.quality).title} gained")
    note = (
        f"{' '.join(f'{of.title}: {of.meaning}.' for of in _FIGURES)} × direct: divided by the value of the "
        "same divergence without an assistant, which is the first line of each group. All other settings are "
        "equal. Settings without such a run are left out."
    )
    shown = {id(row) for row in compared}
    left_out = dict.fromkeys(row.divergence for row, _ in grid if id(row) not in shown)
    finding = (
        "On a machine that does other work, times vary by more than an assistant costs. Without a GPU, the "
        "memory is that of the whole process, which is too coarse for a comparison."
    )
    if left_out:
        finding += f" Left out because there is no run without an assistant: {', '.join(left_out)}."
    return Section("Cost of the assistant", heads, lines, note, finding)


_FIGURES = [measure for measure in RUN.values() if "section" in measure.shown]
_COMPARED = ("step_seconds", "peak_memory")
"""The numbers of a run that are also divided by the numbers without an assistant."""


def _cost_line(table: Table, row: Row, direct: Row) -> list[str]:
    cells = [row_name(table, row)]
    for measure in _FIGURES:
        ours, theirs = _figure(row, measure.name), _figure(direct, measure.name)
        cells.append(MISSING if ours is None else measure.number(ours.mean))
        if measure.name in _COMPARED:
            cells.append(f"{ours.mean / theirs.mean:.2f}" if ours and theirs else MISSING)
    mine, other = table.score(row, table.quality), table.score(direct, table.quality)
    gain = mine.mean - other.mean if mine and other else math.nan
    return [*cells, f"{gain:+.2f}" if math.isfinite(gain) else MISSING]


def _figure(row: Row, name: str) -> Score | None:
    """Returns a number about the training, over the runs that have it."""
    found = [run.training[name] for run in row.runs if run.training.get(name)]
    return Score.over_seeds(found) if found else None


def number(row: Row, label: str) -> float | None:
    """Returns the value of a label that is a number; else None."""
    value = row.labels.get(label)
    return float(value) if isinstance(value, int | float) else None


def failed(table: Table, row: Row) -> int:
    """Returns how many runs of a row diverged or collapsed."""
    return sum(outcome(run, table.quality) in FAILED for run in row.runs)
