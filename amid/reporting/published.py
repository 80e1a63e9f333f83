"""Compares our scores with published scores of the same method, for the same or another model pair."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from amid.measures import measure_of
from amid.reporting.claims import by_seed, diverged, judge, paired
from amid.reporting.rows import AVERAGE, MISSING, Row, overrides, score_text
from amid.reporting.sections import Section
from amid.reporting.table import Table
from amid.results import Label

FILE = Path(__file__).with_name("published.yaml")

_OBJECTIVE = ("method", "divergence", "order", "assistant", "alpha", "lam", "settings")
"""Labels in which methods differ. Rows compare if all other labels, and settings except free ones, agree."""


@dataclass(frozen=True)
class Published:
    """The published scores of one method with one model pair, by evaluation set, `AVERAGE` among them."""

    source: str
    second_hand: bool
    """Whether the scores were not read in the source itself."""
    metric: str
    pair: Mapping[str, Label]
    """The labels `model` and `data`."""
    labels: Mapping[str, Label]
    """The method, and the other labels of its objective that a row must have."""
    needs: frozenset[str]
    """Settings, KEY=VALUE, that a row must have."""
    free: frozenset[str]
    """Further settings that a row may have, as KEY=VALUE or, with any value, KEY."""
    values: Mapping[str, float]
    sets: frozenset[str]
    """The sets that the average covers."""

    def is_of(self, row: Row) -> bool:
        """Returns whether a row has the same method and objective, with any pair, data and settings."""
        return all(row.labels.get(name) == value for name, value in self.labels.items())

    def unlike(self, row: Row) -> list[str]:
        """Describes how a row of the same method (`is_of`) differs: in pair, data and settings."""
        pair = [
            f"{name} {row.labels.get(name)}" for name in self.pair if row.labels.get(name) != self.pair[name]
        ]
        own = overrides(row.runs[0])
        without = [f"without {setting}" for setting in sorted(self.needs.difference(own))]
        return [*pair, *self.others(row), *without]

    def others(self, row: Row) -> list[str]:
        """Returns the settings of a row that are neither needed nor free."""
        allowed = self.needs | self.free
        return [s for s in overrides(row.runs[0]) if not {s, s.split("=")[0]} & allowed]

    def belongs_to(self, row: Row) -> bool:
        """Returns whether a row has the same method, pair, data and settings."""
        return self.is_of(row) and not self.unlike(row)

    def text(self, name: str) -> str:
        """Returns the score on a set, with a mark if it is second-hand."""
        return f"{self.values[name]:.2f}{self.mark}"

    @property
    def mark(self) -> str:
        """† for second-hand scores; else empty."""
        return "†" if self.second_hand else ""


Match = tuple[Row, Published]
"""A row, and the published scores of its method."""


@cache
def published() -> tuple[Published, ...]:
    """Returns all scores in `published.yaml`."""
    return tuple(
        Published(
            source=table["source"],
            second_hand=table["second_hand"],
            metric=table["metric"],
            pair={"model": table["model"], "data": table["data"]},
            labels={"method": entry["method"]} | entry.get("where", {}),
            needs=frozenset(entry.get("needs", ())),
            free=frozenset(table["free"]),
            values=entry["values"],
            sets=frozenset(name for e in table["figures"] for name in e["values"]) - {AVERAGE},
        )
        for table in yaml.safe_load(FILE.read_text(encoding="utf-8"))
        for entry in table["figures"]
    )


def against_published(table: Table) -> Section | None:
    """Compares our score with the published score on each set; None if no published score belongs to a row.

    Averages are compared only if they cover the same sets.
    """
    matches = [(row, figures) for row in table.rows for figures in published() if figures.belongs_to(row)]
    if not matches:
        return None
    sets = list(dict.fromkeys(name for _, figures in matches for name in figures.values))
    lines = [
        [table.name(row), *(_cell(table, row, figures, name) for name in sets)] for row, figures in matches
    ]
    metric = measure_of(matches[0][1].metric).title
    note = f"{metric}: ours / published (ours - published). Published: {_sources(matches)}."
    return Section("Comparison with published results", ["Method", *sets], lines, note)


def beside_published(table: Table) -> Section | None:
    """Shows our averages beside published ones of another pair or other settings, and AMiD less each method.

    Scores of different experiments cannot be compared, but the sign of AMiD less a method can. The section
    covers each pair, data and settings in the table that have a row without a published score. None if AMiD
    with published settings is not among the rows.
    """
    groups: dict[object, list[Match]] = {}
    for row in table.rows:
        labels = frozenset((name, value) for name, value in row.labels.items() if name not in _OBJECTIVE)
        for figures in published():
            if figures.is_of(row) and AVERAGE in figures.values:
                key = labels, figures.source, *figures.pair.values(), *figures.others(row)
                groups.setdefault(key, []).append((row, figures))
    unlike = [
        group
        for group in groups.values()
        if any(figures.unlike(row) for row, figures in group)
        and any(table.score(row, figures.metric) for row, figures in group)
    ]
    matches = [match for group in unlike for match in group]
    if not any(row.labels.get("method") == "amid" for row, _ in matches):
        return None
    lines = [line for group in unlike for line in _beside(table, group)]
    metric = matches[0][1].metric
    nearest = filter(None, map(_amid_of, unlike))
    amid = " or ".join(table.name(row) for row, _ in nearest)
    theirs = dict.fromkeys(" on ".join(map(str, figures.pair.values())) for _, figures in matches)
    note = (
        f"{measure_of(metric).title}, the average over {', '.join(table.sets(metric))} (ours) and over "
        f"{', '.join(sorted(matches[0][1].sets))} (published: {_sources(matches)}, of {', '.join(theirs)}). "
        f"Our experiment differs: {_differences(matches)}. "
        "Δ is AMiD minus the method; ours is the mean ± standard error over the training seeds that both "
        "have. Direction: ours agrees with the published sign, or does not, if its 95% interval (Student's "
        "t) leaves out 0. Otherwise the difference is within the spread. One training seed shows a "
        "direction, not significance."
    )
    return Section(
        "Published results of another experiment (compare directions, not numbers)",
        ["Method", "Ours", "Published", "Δ ours", "Δ published", "Direction"],
        lines,
        note,
        f"Δ is {amid} minus the method. A published Δ is from another experiment.",
    )


def other_pairs(table: Table) -> str | None:
    """Returns a sentence if the published scores belong to other pairs or data than all runs; else None."""
    pairs = {(figures.pair["model"], figures.pair["data"]) for figures in published()}
    if any((row.labels.get("model"), row.labels.get("data")) in pairs for row in table.rows):
        return None
    theirs = ", ".join(f"{model} on {data}" for model, data in sorted(pairs))
    ours = ", ".join(dict.fromkeys(f"{r.labels.get('model')} on {r.labels.get('data')}" for r in table.rows))
    return (
        f"The published results are for {theirs}, and these runs are for {ours}: compare directions, not "
        "numbers."
    )


def published_score(table: Table, row: Row, metric: str, name: str) -> tuple[float, Published] | None:
    """Returns the published score of a row on a set, or on `AVERAGE` over the same sets, with its source."""
    for figures in published():
        if figures.metric == metric and figures.belongs_to(row) and name in figures.values:
            return (figures.values[name], figures) if _same_sets(table, row, figures, name) else None
    return None


def _same_sets(table: Table, row: Row, figures: Published, name: str) -> bool:
    return name != AVERAGE or figures.sets == set(table.sets_of(row, figures.metric))


def _cell(table: Table, row: Row, figures: Published, name: str) -> str:
    theirs = figures.values.get(name)
    if theirs is None:
        return MISSING
    ours = table.score(row, figures.metric, name) if _same_sets(table, row, figures, name) else None
    if ours is None:
        return f"{MISSING} / {figures.text(name)}"
    if not math.isfinite(ours.mean):
        return f"{score_text(row, ours, 2)} / {figures.text(name)}"
    return f"{ours.mean:.2f} / {figures.text(name)} ({ours.mean - theirs:+.2f})"


def _beside(table: Table, group: Sequence[Match]) -> list[list[str]]:
    """Returns a line for each row of `group`; the group has one pair and one choice of settings."""
    amid = _amid_of(group)
    lines = []
    for row, figures in group:
        rest = table.name(row, without=("method", "divergence", "alpha", "lam"))
        name = f"{row.method} {rest}".strip()
        differences = [MISSING] * 3
        if amid is not None and row is not amid[0]:
            theirs = amid[1].values[AVERAGE] - figures.values[AVERAGE]
            ours, direction = _difference(table, amid[0], row, figures.metric, theirs)
            differences = [ours, f"{theirs:+.2f}{figures.mark}", direction]
        ours = table.score_text(row, figures.metric, 2)
        lines.append([name, ours, figures.text(AVERAGE), *differences])
    return lines


def _amid_of(group: Sequence[Match]) -> Match | None:
    """Returns the AMiD row with the settings nearest to the published settings."""
    own = [match for match in group if match[0].labels.get("method") == "amid"]
    return min(own, key=lambda match: len(match[1].unlike(match[0])), default=None)


def _difference(table: Table, first: Row, second: Row, metric: str, theirs: float) -> tuple[str, str]:
    """Returns the first row's score over all sets less the second's, and whether it has `theirs`' sign."""
    scores = by_seed(table, first, metric), by_seed(table, second, metric)
    ours = paired(*scores)
    if ours is None:
        return MISSING, "no seed has both runs"
    text = f"{ours.mean:+.2f}"
    if ours.std is not None:
        text += f" ± {ours.std / math.sqrt(len(ours.values)):.2f}"
    if diverged(first, second):
        return text, "a run diverged"
    if ours.std is None:
        product = ours.mean * theirs
        return text, f"one seed: {'same way' if product > 0 else 'other way' if product < 0 else 'equal'}"
    verdict, _ = judge(*(scores if theirs > 0 else scores[::-1]))
    words = {"holds": "agrees", "does not hold": "does not agree", "undecided": "within the spread"}
    return text, words[verdict]


def _sources(matches: Sequence[Match]) -> str:
    used = dict.fromkeys((figures.source, figures.second_hand) for _, figures in matches)
    return ", ".join(source + (" (†: read second-hand)" if mark else "") for source, mark in used)


def _differences(matches: Sequence[Match]) -> str:
    """Describes how rows differ from the published ones: first what all rows share, then what some have."""
    by_method: dict[str, dict[str, None]] = {}
    for row, figures in matches:
        by_method.setdefault(row.method, {}).update(dict.fromkeys(figures.unlike(row)))
    first, *others = by_method.values()
    common = [words for words in first if all(words in of for of in others)]
    rest = {method: [words for words in of if words not in common] for method, of in by_method.items()}
    parts = [", ".join(common)] if common else []
    parts += [f"{method} {', '.join(words)}" for method, words in rest.items() if words]
    return "; ".join(parts)
