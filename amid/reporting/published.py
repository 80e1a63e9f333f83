"""Published figures beside our own of the same method, model pair and evaluation set."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from amid.reporting.sections import Section
from amid.reporting.table import AVERAGE, MISSING, Row, Table, title
from amid.results import Label

FILE = Path(__file__).with_name("published.yaml")


@dataclass(frozen=True)
class Published:
    """The published scores of one method with one model pair, by evaluation set, `AVERAGE` among them."""

    source: str
    second_hand: bool
    """Not read in the source itself."""
    metric: str
    labels: Mapping[str, Label]
    """What a row must have for the figures to belong to it."""
    values: Mapping[str, float]
    sets: frozenset[str]
    """What the average is over."""

    def belongs_to(self, row: Row) -> bool:
        """Whether a row is the same method, pair and data, with the same settings."""
        return all(row.labels.get(name) == value for name, value in self.labels.items())


@cache
def published() -> tuple[Published, ...]:
    """All figures of `published.yaml`."""
    return tuple(
        Published(
            source=table["source"],
            second_hand=table["second_hand"],
            metric=table["metric"],
            labels={"model": table["model"], "data": table["data"], "method": entry["method"]}
            | entry.get("where", {}),
            values=entry["values"],
            sets=frozenset(name for e in table["figures"] for name in e["values"]) - {AVERAGE},
        )
        for table in yaml.safe_load(FILE.read_text(encoding="utf-8"))
        for entry in table["figures"]
    )


def against_published(table: Table) -> Section | None:
    """Ours, the published figure and the difference, set by set; None where no figure belongs to a row.

    An average is compared only where it is over the same sets.
    """
    matches = [(row, figures) for row in table.rows for figures in published() if figures.belongs_to(row)]
    if not matches:
        return None
    sets = list(dict.fromkeys(name for _, figures in matches for name in figures.values))
    lines = [
        [table.name(row), *(_cell(table, row, figures, name) for name in sets)] for row, figures in matches
    ]
    used = list(dict.fromkeys((figures.source, figures.second_hand) for _, figures in matches))
    sources = ", ".join(source + (" (†: read second-hand)" if mark else "") for source, mark in used)
    metric = title(matches[0][1].metric)
    note = f"{metric}: ours / published (ours - published). Published: {sources}."
    return Section("Against the published figures", ["Method", *sets], lines, note)


def other_pairs(table: Table) -> str | None:
    """A sentence, where the published figures belong to other pairs or data than all of these runs."""
    pairs = {(figures.labels["model"], figures.labels["data"]) for figures in published()}
    if any((row.labels.get("model"), row.labels.get("data")) in pairs for row in table.rows):
        return None
    theirs = ", ".join(f"{model} on {data}" for model, data in sorted(pairs))
    ours = ", ".join(dict.fromkeys(f"{r.labels.get('model')} on {r.labels.get('data')}" for r in table.rows))
    return (
        f"The published figures belong to {theirs}, these runs are of {ours}: "
        "directions can be compared, numbers cannot."
    )


def published_score(table: Table, row: Row, metric: str, name: str) -> tuple[float, Published] | None:
    """The published score of a row on a set, or `AVERAGE` over the same sets, with where it is from."""
    for figures in published():
        if figures.metric == metric and figures.belongs_to(row) and name in figures.values:
            return (figures.values[name], figures) if _same_sets(table, figures, name) else None
    return None


def _same_sets(table: Table, figures: Published, name: str) -> bool:
    return name != AVERAGE or figures.sets == set(table.sets(figures.metric))


def _cell(table: Table, row: Row, figures: Published, name: str) -> str:
    theirs = figures.values.get(name)
    if theirs is None:
        return MISSING
    same_sets = _same_sets(table, figures, name)
    ours = row.score(name, figures.metric, table.sets(figures.metric)) if same_sets else None
    mark = "†" if figures.second_hand else ""
    if ours is None:
        return f"{MISSING} / {theirs:.2f}{mark}"
    return f"{ours.mean:.2f} / {theirs:.2f}{mark} ({ours.mean - theirs:+.2f})"
