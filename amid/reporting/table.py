"""The table of an experiment: a row for each setting, a column for each score, and its written forms."""

import csv
import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from operator import itemgetter

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table as TerminalTable

from amid.errors import InputError
from amid.measures import OF_ANSWERS, VALIDATION, ks_of, measure_of
from amid.reporting.formats import latex, markdown, markdown_line
from amid.reporting.rows import (
    AVERAGE,
    MISSING,
    OF_CLASSES,
    OF_NO_METHOD,
    OUTSIDE,
    STATES,
    AtDiversity,
    Repeat,
    Row,
    has_own_assistant,
    label_text,
    rows_of,
    score_text,
)
from amid.results import Label, RunResult, Score, quality_metrics

__all__ = ["AVERAGE", "SYMBOLS", "Row", "Table", "build_table"]

NAMED = 3
"""At most this many runs that got far worse are named; the others are counted."""

SYMBOLS = {
    "method": "Method",
    "model": "Model",
    "data": "Data",
    "divergence": "Divergence",
    "order": "Order",
    "alpha": "α",
    "lam": "λ",
    "teacher_states": "States",
}
"""The written names of the labels, in the order of the table's columns."""


def build_table(results: Sequence[RunResult]) -> "Table":
    """Builds the table of `results`, which may come in any order.

    A run that repeats an earlier one (`rows_of`) is left out; `Table.repeats` has it.

    Raises:
        InputError: for no results.
    """
    if not results:
        raise InputError(
            "results is empty, a table needs at least one finished run; make some: amid sweep alpha"
        )
    return Table(*rows_of(results))


@dataclass(frozen=True)
class Table:
    """The rows of an experiment, written as Markdown, LaTeX, CSV or for the terminal.

    Baselines come first, then the grid by divergence, α and λ. A score is the mean ± the sample standard
    deviation. The best score of a column is bold: the lowest Self-BLEU, the highest of other metrics. The
    second best is italic, if one row is the best of three or more. Scores that are equal in the digits shown
    get the same mark. A diverged run's score is written `diverged`, another NaN `failed`, and a score that
    was not taken `–`.
    """

    rows: list[Row]
    repeats: tuple[Repeat, ...] = ()
    at_diversity: AtDiversity | None = None
    """A column with the main score at equal diversity, if runs were scored at several temperatures."""

    @cached_property
    def datasets(self) -> list[str]:
        """The evaluation sets, in the order of the runs."""
        return _unique(name for row in self.rows for run in row.runs for name in run.scores)

    @cached_property
    def metrics(self) -> list[str]:
        """The metrics in the columns: the quality metrics, the main one first, then `diversity`."""
        return [*self._quality, self.diversity]

    @cached_property
    def quality(self) -> str:
        """The main metric of quality; `diversity` if there is no quality metric."""
        return self.metrics[0]

    @cached_property
    def _quality(self) -> list[str]:
        return quality_metrics(by for row in self.rows for run in row.runs for by in run.scores.values())

    def sets(self, metric: str) -> list[str]:
        """Returns the evaluation sets that some run has scored with `metric`; all sets if no run has."""
        runs = [sets for of_data in self._scored.get(metric, {}).values() for sets in of_data]
        return [name for name in self.datasets if any(name in sets for sets in runs)] or self.datasets

    def sets_of(self, row: Row, metric: str) -> list[str]:
        """Returns the sets of the row's average: more than half of the runs on its data scored them.

        Runs without any score of `metric` do not count.
        """
        runs = self._scored.get(metric, {}).get(row.labels.get("data"), [])
        return [name for name in self.datasets if 2 * sum(name in sets for sets in runs) > len(runs)]

    @cached_property
    def _scored(self) -> dict[str, dict[Label, list[set[str]]]]:
        """Metric -> data of runs -> the evaluation sets that each of these runs scored with the metric."""
        found: dict[str, dict[Label, list[set[str]]]] = {}
        for run in (run for row in self.rows for run in row.runs):
            for metric in {metric for by in run.scores.values() for metric in by}:
                sets = {name for name, by in run.scores.items() if metric in by}
                found.setdefault(metric, {}).setdefault(run.labels.get("data"), []).append(sets)
        return found

    @cached_property
    def ks(self) -> list[int]:
        """Each k of the scores pass@k that some run has, from the smallest."""
        return ks_of(self._scored)

    def overall(self, metric: str) -> str:
        """Returns the set that stands for all sets of `metric`: the only set, or `AVERAGE`."""
        sets = self.sets(metric)
        return sets[0] if len(sets) == 1 else AVERAGE

    @cached_property
    def diversity(self) -> str:
        """The metric in the Self-BLEU columns: Self-BLEU per prompt if a run has it, else over whole sets."""
        metrics = {
            metric for row in self.rows for run in row.runs for by in run.scores.values() for metric in by
        }
        in_tables = [name for name, measure in OF_ANSWERS.items() if "table" in measure.shown]
        return next((name for name in in_tables if name in metrics), in_tables[0])

    @cached_property
    def varying(self) -> list[str]:
        """The labels that separate rows and that their names show; `order` is part of `divergence`."""
        methods = _unique(row.method for row in self.rows)
        shown = ["method"] if len(methods) > 1 else []
        for label in _unique([*SYMBOLS, *(label for row in self.rows for label in row.labels)]):
            groups = [None] if label in (*OF_NO_METHOD, STATES) else methods
            values = [
                {row.labels.get(label) for row in self.rows if method in (None, row.method)}
                for method in groups
            ]
            hidden = label == "assistant" and not any(has_own_assistant(row.labels) for row in self.rows)
            if label != "method" and not hidden and any(len(of_group) > 1 for of_group in values):
                shown.append("divergence" if label == "order" else label)
        return _unique(shown) or ["method"]

    @cached_property
    def _own_classes(self) -> list[str]:
        """The labels that name a class of the user's own and are equal in all rows."""
        return [
            label
            for label in OF_CLASSES
            if len({row.labels.get(label) for row in self.rows}) == 1
            and (label != "assistant" or has_own_assistant(self.rows[0].labels))
        ]

    @cached_property
    def versions(self) -> dict[str, list[str]]:
        """The versions of each package that the numbers depend on."""
        runs = [run for row in self.rows for run in row.runs]
        packages = _unique(package for run in runs for package in run.versions)
        return {
            package: _unique(run.versions[package] for run in runs if package in run.versions)
            for package in packages
        }

    def score(self, row: Row, metric: str, dataset: str | None = None) -> Score | None:
        """Returns a row's score on one set, by default on all sets (`overall`), or at `at_diversity`."""
        if self.at_diversity and dataset == self.at_diversity.name:
            return self.at_diversity.score(row)
        return row.score(dataset or self.overall(metric), metric, self.sets_of(row, metric))

    def score_text(
        self, row: Row, metric: str, digits: int = 1, dataset: str | None = None, plus_minus: str = " ± "
    ) -> str:
        """Returns a row's score on one set, by default on all sets (`overall`), as the table writes it."""
        if self.at_diversity and dataset == self.at_diversity.name and self.at_diversity.outside(row):
            return OUTSIDE
        return score_text(row, self.score(row, metric, dataset), digits, plus_minus)

    def name(self, row: Row, without: Sequence[str] = ()) -> str:
        """Returns the row's name, such as `AMiD αβ(p, r) α=-5 λ=0.1`: the varying labels except `without`."""
        words = []
        for label in self.varying:
            text = label_text(row, label)
            if label not in without and text != MISSING:
                symbol = f"{SYMBOLS.get(label, label)}=" if label not in ("method", "divergence") else ""
                words.append(symbol + text)
        return " ".join(words)

    @property
    def caption(self) -> str:
        """The caption: what the numbers are, what they are averaged over, and what is equal in all rows."""
        return self.caption_with("italic")

    def caption_with(self, second: str) -> str:
        """Returns `caption` for a table that marks a column's second best in another way than by italics."""
        diversity = measure_of(self.diversity)
        quality = ", ".join(
            measure_of(name).title + (" (F1 × 100)" if name.startswith("rouge") else "")
            for name in self._quality
        )
        teacher = any(row.labels.get("method") == "teacher" for row in self.rows)
        without = "; the teacher is not marked" if teacher else ""
        sentences = [
            *([f"{quality}: 0 to 100, higher is better."] if quality else []),
            f"{diversity.title}: {diversity.meaning}, 0 to 100, lower is more diverse.",
            f"Numbers are {self._spread()}. Bold marks the best value of a column at the digits shown, "
            f"{second} the second best{without}.",
        ]
        if AVERAGE in (dataset for dataset, _ in self.columns()):
            sentences.append(self._averaged())
        for metric in self.metrics:
            if signatures := self._signatures(metric):
                alike = all(self._alike(metric, name) for name in self.sets(metric))
                unlike = "" if alike else ", not the same in all rows: no best value is marked"
                sentences.append(f"{measure_of(metric).title}: {' or '.join(signatures)}{unlike}.")
        if self.at_diversity:
            sentences.append(self.at_diversity.note)
        common = [
            f"{SYMBOLS.get(label, label).lower()} {text}"
            for label in (*OF_NO_METHOD, STATES, *self._own_classes)
            if label not in self.varying and (text := label_text(self.rows[0], label)) != MISSING
        ]
        if common:
            sentences.append(f"All rows share {', '.join(common)}.")
        for method in _unique(row.method for row in self.rows):
            row = next(row for row in self.rows if row.method == method)
            settings = [row.divergence] if "divergence" not in self.varying else []
            settings += [
                f"{SYMBOLS[label]} = {label_text(row, label)}"
                for label in ("alpha", "lam")
                if label not in self.varying
            ]
            settings = [text for text in settings if not text.endswith(MISSING)]
            if settings:
                sentences.append(f"{method}: {', '.join(settings)}.")
        if worse := self._far_worse():
            sentences.append(f"Far worse on the validation data than before the training: {worse}.")
        if self.repeats:
            differing = sum(repeat.differs for repeat in self.repeats)
            sentences.append(
                "Runs left out because they repeat another one in configuration, seed and versions: "
                f"{len(self.repeats)}" + (f", {differing} of them with other scores." if differing else ".")
            )
        return " ".join(sentences)

    def _spread(self) -> str:
        """Says what the numbers of the table are a mean over."""
        counts = {len(row.runs) for row in self.rows}
        spread = "mean ± standard deviation over "
        if counts == {1}:
            return spread + "the sampling seeds of one training run"
        many = f"{min(counts)} training" if len(counts) == 1 else "n training"
        spread += f"{many} seeds (of each run's mean over its sampling seeds)"
        return spread + (", where n = 1 over the sampling seeds of that run" if 1 in counts else "")

    def _far_worse(self) -> str:
        """Names the first runs that got far worse in training, with the numbers, and counts the others."""
        runs = [(self.name(row) or row.method, run) for row in self.rows for run in row.runs if run.far_worse]
        first = [f"{name}, seed {run.seed} ({run.far_worse})" for name, run in runs[:NAMED]]
        more = f", and {len(runs) - NAMED} more" if len(runs) > NAMED else ""
        return "; ".join(first) + more

    def to_markdown(self, digits: int = 2) -> str:
        """Returns the table in Markdown, without its caption."""
        heads, cells = self._cells(digits, self.columns(), ("**{}**".format, "*{}*".format))
        n_labels = len(self._label_columns)
        lines = [
            [markdown(f"{top} {below}".strip()) for top, below in heads],
            *([*map(markdown, line[:n_labels]), *line[n_labels:]] for line in cells),
        ]
        widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(heads))]
        rule = ["-" * width if i < n_labels else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
        aligned = [
            [
                cell.ljust(width) if i < n_labels else cell.rjust(width)
                for i, (cell, width) in enumerate(pairs)
            ]
            for pairs in (zip(line, widths, strict=True) for line in lines)
        ]
        return "".join(f"{markdown_line(line)}\n" for line in [aligned[0], rule, *aligned[1:]])

    def to_terminal(self, digits: int = 1) -> TerminalTable:
        """Returns the table for the terminal, without caption; above two sets, only the average Self-BLEU."""
        columns = [
            (dataset, metric)
            for dataset, metric in self.columns()
            if metric != self.diversity or dataset == AVERAGE or len(self.datasets) <= 2
        ]
        marks = ("[bold green]{}[/]".format, "[italic]{}[/]".format)
        heads, cells = self._cells(digits, columns, marks, "±")
        table = TerminalTable(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        n_labels = len(self._label_columns)
        for index, (top, below) in enumerate(heads):
            text = f"{top.rstrip(' ↑↓')}\n{below}" if index >= n_labels else f"\n{top}"
            table.add_column(
                escape(text), justify="left" if index < n_labels else "right", no_wrap=index >= n_labels
            )
        for row, line in enumerate(cells):
            last = row + 1 == len(cells) or self.rows[row].baseline != self.rows[row + 1].baseline
            table.add_row(*map(escape, line[:n_labels]), *line[n_labels:], end_section=last)
        return table

    def to_latex(self, digits: int = 2) -> str:
        """Returns the table in LaTeX with its caption; a table wider than the text is scaled down.

        It needs the packages booktabs and graphicx. The second best is underlined.
        """
        columns = self.columns()
        heads, cells = self._cells(digits, columns, ("\\textbf{{{}}}".format, "\\underline{{{}}}".format))
        n_labels = len(self._label_columns)
        groups = [(top, len(list(members))) for top, members in groupby(heads[n_labels:], itemgetter(0))]
        spans, rules, start = [], [], n_labels + 1
        for top, width in groups:
            spans.append(f"\\multicolumn{{{width}}}{{c}}{{{latex(top)}}}")
            rules.append(f"\\cmidrule(lr){{{start}-{start + width - 1}}}")
            start += width
        names = [
            *(latex(top) for top, _ in heads[:n_labels]),
            *(latex(below) for _, below in heads[n_labels:]),
        ]
        lines = [
            " & ".join([*[""] * n_labels, *spans]) + " \\\\",
            " ".join(rules),
            " & ".join(names) + " \\\\",
        ]
        body: list[str] = []
        for index, (row, line) in enumerate(zip(self.rows, cells, strict=True)):
            if index and row.baseline != self.rows[index - 1].baseline:
                body.append("\\midrule")
            body.append(
                " & ".join([*map(latex, line[:n_labels]), *map(_latex_score, line[n_labels:])]) + " \\\\"
            )
        return "\n".join(
            [
                "% needs \\usepackage{booktabs,graphicx}",
                "\\begin{table}",
                "\\centering",
                f"\\caption{{{latex(self.caption_with('underlined'))}}}",
                "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%",
                f"\\begin{{tabular}}{{{'l' * n_labels}{'r' * len(columns)}}}",
                "\\toprule",
                *lines,
                "\\midrule",
                *body,
                "\\bottomrule",
                "\\end{tabular}}",
                "\\end{table}",
                "",
            ]
        )

    def places(self, metric: str, dataset: str, digits: int = 2) -> list[int]:
        """Returns the place of each row in a column: 1 for the best, 2 for the second, else 0.

        Rows that are equal in the digits shown share a place. The teacher has no place. There is a second
        place only if one row is the best of three or more. No row has a place if the scores were computed in
        different ways, such as Self-BLEU among different numbers of answers, or if no row is better.
        """
        direction = measure_of(metric).better
        if direction is None or not self._alike(metric, dataset):
            return [0] * len(self.rows)
        means = [
            round(score.mean, digits)
            if (score := self.score(row, metric, dataset)) is not None
            and math.isfinite(score.mean)
            and row.labels.get("method") != "teacher"
            else None
            for row in self.rows
        ]
        ranked = sorted((mean for mean in means if mean is not None), reverse=direction == "higher")
        place = {ranked[1]: 2} if len(ranked) > 2 else {}
        place |= {ranked[0]: 1} if ranked else {}
        return [place.get(mean, 0) if mean is not None else 0 for mean in means]

    def to_csv(self) -> str:
        """Returns all labels and all metrics as CSV, unrounded.

        The columns are SET/METRIC_mean and SET/METRIC_std, with `avg` for the mean over sets, and the name of
        `at_diversity` for the score at equal diversity. `std_over` says
        whether a row's deviations are over training or sampling seeds. The measures on the validation text
        follow (`amid.measures.VALIDATION`), as valid_NAME_mean and valid_NAME_std, always over training
        seeds. NAME_before is the measure of the student before the training. A number that was not taken is
        empty; a failed number is nan.
        """
        labels = _unique(label for row in self.rows for label in row.labels)
        metrics = _unique(
            m for row in self.rows for run in row.runs for by in run.scores.values() for m in by
        )
        averages = [AVERAGE] if len(self.datasets) > 1 else []
        columns = [(d, m) for d in [*self.datasets, *averages] for m in metrics]
        if self.at_diversity:
            columns.append((self.at_diversity.name, self.at_diversity.metric))
        on_text = [name for name, measure in VALIDATION.items() if "section" in measure.shown]
        measured = [
            name
            for name in (*on_text, *(f"{name}_before" for name in on_text))
            if any(f"valid_{name}" in run.training for row in self.rows for run in row.runs)
        ]
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        score_heads = [
            f"{d.lower() if d == AVERAGE else d}/{m}_{part}" for d, m in columns for part in ("mean", "std")
        ]
        score_heads += [f"valid_{name}_{part}" for name in measured for part in ("mean", "std")]
        writer.writerow([*labels, "runs", "seeds", "std_over", *score_heads])
        for row in self.rows:
            scores = [self.score(row, metric, dataset) for dataset, metric in columns]
            scores += [row.validation(name) for name in measured]
            writer.writerow(
                [
                    *(row.labels.get(label) for label in labels),
                    len(row.runs),
                    " ".join(str(run.seed) for run in row.runs),
                    "training seeds" if len(row.runs) > 1 else "sampling seeds",
                    *(
                        number
                        for s in scores
                        for number in ((s.mean, s.std) if s is not None else (None, None))
                    ),
                ]
            )
        return file.getvalue()

    def columns(self) -> list[tuple[str, str]]:
        """Returns the columns of scores as (set, metric), with the average and `at_diversity` last."""
        further = self.at_diversity
        return [
            (dataset, metric)
            for metric in self.metrics
            for dataset in [
                *self.sets(metric),
                *([AVERAGE] if self.overall(metric) == AVERAGE else []),
                *([further.name] if further and further.metric == metric else []),
            ]
        ]

    def _alike(self, metric: str, dataset: str) -> bool:
        """Returns whether a column's scores cover the same sets and were computed in the same way.

        The teacher's row does not count.
        """
        if dataset == AVERAGE and not self._same_sets(metric):
            return False
        rivals = [run for row in self.rows if row.labels.get("method") != "teacher" for run in row.runs]
        names = self.sets(metric) if dataset == AVERAGE else [dataset]
        return all(
            len({run.scores[name][metric].signature for run in rivals if metric in run.scores.get(name, {})})
            < 2
            for name in names
        )

    def _averaged(self) -> str:
        """Returns over which sets the averages are taken, in a sentence."""
        of = "the sets"
        if not all(map(self._same_sets, self.metrics)):
            of = "the sets of the data of the row (no best value is marked)"
        for metric in self.metrics:
            sets = next(filter(None, (self.sets_of(row, metric) for row in self.rows)), [])
            if not sets and self.overall(metric) == AVERAGE:
                return f"{AVERAGE} is empty, as no set has scores of most runs."
            if len(sets) < len(self.sets(metric)) and self._same_sets(metric):
                of = f"the sets that most runs have ({', '.join(sets)})"
        return f"{AVERAGE} is the mean over {of}, with equal weights."

    def _same_sets(self, metric: str) -> bool:
        return len({tuple(self.sets_of(row, metric)) for row in self.rows} - {()}) < 2

    def _signatures(self, metric: str) -> list[str]:
        scores = [by.get(metric) for row in self.rows for run in row.runs for by in run.scores.values()]
        return _unique(score.signature for score in scores if score is not None and score.signature)

    @cached_property
    def _label_columns(self) -> list[tuple[str, Callable[[Row], str]]]:
        def column(label: str) -> tuple[str, Callable[[Row], str]]:
            return SYMBOLS.get(label, label), lambda row: label_text(row, label)

        columns = [column(label) for label in self.varying]
        if len({frozenset(row.labels.items()) for row in self.rows}) < len(self.rows):
            columns.append(("Run", lambda row: row.runs[0].name))
        if len({len(row.runs) for row in self.rows}) > 1:
            columns.append(("n", lambda row: str(len(row.runs))))
        return columns

    def _cells(
        self,
        digits: int,
        columns: list[tuple[str, str]],
        marks: tuple[Callable[[str], str], Callable[[str], str]],
        plus_minus: str = " ± ",
    ) -> tuple[list[tuple[str, str]], list[list[str]]]:
        """Returns two-line heads and the cells below them, with marks for the best and the second."""
        heads = [(title, "") for title, _ in self._label_columns]
        cells = [[text(row) for _, text in self._label_columns] for row in self.rows]
        for dataset, metric in columns:
            measure = measure_of(metric)
            heads.append((f"{measure.title} {'↓' if measure.better == 'lower' else '↑'}", dataset))
            places = self.places(metric, dataset, digits)
            for row, line, place in zip(self.rows, cells, places, strict=True):
                text = self.score_text(row, metric, digits, dataset, plus_minus)
                line.append(marks[place - 1](text) if place else text)
        return heads, cells


def _latex_score(text: str) -> str:
    """Returns a cell of `_cells` in LaTeX, marked or not."""
    return text.replace(" ± ", r" $\pm$ ").replace("–", "--")


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
