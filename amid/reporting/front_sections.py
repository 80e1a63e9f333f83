"""Tables of a report at equal diversity: quality at given diversities, differences, and the page's curves."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy

from amid.measures import measure_of
from amid.metrics import quality_at
from amid.reporting.claims import series_over
from amid.reporting.fronts import DIVERSITIES, LADDERS, Fronts, Target, main_target, over_seeds, owner
from amid.reporting.rows import MISSING, OF_NO_METHOD, OUTSIDE
from amid.reporting.sections import Section, number
from amid.reporting.significance import NAMED, cell, numbers_of

STOPS = 40
"""Diversities, evenly spaced, that the page's reader can choose, besides the targets."""

REFERENCE = "reference"

SENTENCES = 4
"""A finding has at most this many sentences on pairs of settings."""


@dataclass(frozen=True, kw_only=True)
class AtAnyDiversity(Section):
    """Compares settings at the diversities of the teacher and the start; on the page, at any diversity."""

    fronts: Fronts

    def to_page(self) -> dict[str, Any]:
        """Returns the section with the curves of each quality, diversity and set."""
        return super().to_page() | {"fronts": _page(self.fronts)}


def at_equal_diversity(found: Sequence[Fronts]) -> list[Section]:
    """Returns for each group of settings the table at equal diversity, and for several sets one by set."""
    several = len(found) > 1
    made: list[Section] = []
    for fronts in found:
        labels = fronts.table.rows[fronts.best].labels
        group = f" ({', '.join(str(labels.get(label)) for label in OF_NO_METHOD)})" if several else ""
        made.append(_over_the_sets(fronts, group))
        if len(fronts.sets) > 1 and (target := main_target(fronts)):
            made.append(_by_set(fronts, target, group))
    return made


def _over_the_sets(fronts: Fronts, group: str) -> Section:
    quality, diversity = measure_of(fronts.quality).title, measure_of(fronts.diversity).title
    heads = ["Setting", f"{diversity} reached"]
    for target in fronts.targets:
        heads += [f"{quality} at {target.at[fronts.everywhere]:.1f}", "Difference"]
    heads.append("Over the shared range")
    diversities = [target.at[fronts.everywhere] for target in fronts.targets]
    references = fronts.references(diversities)
    lines = []
    for place in fronts.rows:
        low, high = fronts.reach(place)
        line = [fronts.name(place), f"{low:.1f} to {high:.1f}"]
        for at, reference in zip(diversities, references, strict=True):
            score = over_seeds(fronts.quality_at(place, at))
            line.append(OUTSIDE if score is None else f"{score.mean:.1f}")
            line.append(_difference(fronts, place, reference, at, fronts.everywhere))
        line.append(REFERENCE if place == fronts.best else cell(fronts.area(place, fronts.best)))
        lines.append(line)
    note = _note(fronts, _named(fronts, references, [f"at {at:.1f}" for at in diversities]))
    finding = " ".join(_findings(fronts))
    return AtAnyDiversity(f"{quality} at equal diversity{group}", heads, lines, note, finding, fronts=fronts)


def _difference(fronts: Fronts, place: int, reference: int | None, at: float, where: str) -> str:
    if reference is None:
        return MISSING
    if place == reference:
        return REFERENCE
    (found,) = fronts.differences(place, reference, [at], where)
    return cell(found)


def _named(fronts: Fronts, references: Sequence[int | None], where: Sequence[str]) -> str:
    """Names the references, such as `α=-5`, or with unlike ones `α=-5 at 46.1 and SFT at 33.7`."""
    by_place: dict[int, list[str]] = {}
    for place, words in zip(references, where, strict=True):
        if place is not None:
            by_place.setdefault(place, []).append(words)
    if len(by_place) == 1:
        return fronts.name(next(iter(by_place)))
    return " and ".join(f"{fronts.name(place)} {', '.join(words)}" for place, words in by_place.items())


def _by_set(fronts: Fronts, target: Target, group: str) -> Section:
    quality, diversity = measure_of(fronts.quality).title, measure_of(fronts.diversity).title
    heads = ["Setting", *(f"{name}, {diversity} {target.at[name]:.1f}" for name in fronts.sets)]
    references = [fronts.references([target.at[name]], name)[0] for name in fronts.sets]
    of_sets = list(zip(fronts.sets, references, strict=True))
    lines = [
        [
            fronts.name(place),
            *(_difference(fronts, place, reference, target.at[name], name) for name, reference in of_sets),
        ]
        for place in fronts.rows
    ]
    named = _named(fronts, references, [f"on {name}" for name in fronts.sets])
    note = (
        f"Difference in {quality} on each set, at the {diversity} of {owner(target)} on that set. "
        f"Intervals and marks are as in the table above. The reference is {named or 'missing'}. {MISSING} "
        "marks a set where a setting does not reach it, or ends too near to it."
    )
    return Section(f"{quality} at equal diversity, by set{group}", heads, lines, note)


def _note(fronts: Fronts, references: str) -> str:
    quality, diversity = measure_of(fronts.quality).title, measure_of(fronts.diversity).title
    ladders = [tuple(ladder.rungs) for by_seed in fronts.rows.values() for ladder in by_seed.values()]
    steps = ", ".join(f"{rung:g}" for rung in max(ladders, key=len))
    unlike = "" if len(set(ladders)) == 1 else " (some settings at fewer or others)"
    over = "the sets, with equal weights" if len(fronts.sets) > 1 else fronts.sets[0]
    given = "; ".join(
        f"{target.at[fronts.everywhere]:.1f} is the {diversity} of {owner(target)} in the first table"
        for target in fronts.targets
    )
    main = measure_of(fronts.table.quality).title
    seeds = max(map(len, fronts.rows.values()))
    of_seeds = (
        ", and over the training seeds by Student's t with one spread for all settings" if seeds > 1 else ""
    )
    return (
        f"Each setting answers at {LADDERS[fronts.ladder]} {steps}{unlike}. Its curve joins the means of "
        f"{quality} and {diversity} over {over}. {given}. A difference is the setting minus the reference, "
        f"with its 95% interval by paired bootstrap over the prompts{of_seeds}. The reference is the student "
        f"with the highest {main} in the first table that reaches the diversity: {references or 'none'}. "
        "* marks an interval without 0; ± is half of an interval. The last column is the mean difference "
        f"from {fronts.name(fronts.best)} over the diversities that both reach. {OUTSIDE} and {MISSING}: "
        "outside of a ladder, or so near to its end that prompts drawn again do not reach it; nothing is "
        f"extrapolated.{_left_out(fronts)}"
    )


def _left_out(fronts: Fronts) -> str:
    """Returns a sentence on the rows of the pair and data that have no curve; empty without such rows."""
    table = fronts.table
    labels = [[row.labels.get(label) for label in OF_NO_METHOD] for row in table.rows]
    names = [
        fronts.name(place)
        for place, own in enumerate(labels)
        if own == labels[fronts.best] and place not in fronts.rows
    ]
    if not names:
        return ""
    named = ", ".join(names) if len(names) <= NAMED else f"{len(names)} settings"
    return f" Left out, with no such answers, other prompts or other numbers of answers: {named}."


def _findings(fronts: Fronts) -> list[str]:
    """Returns a sentence for each series over α; without one, for the best and the last student."""
    table = fronts.table
    place_of = {id(row): place for place, row in enumerate(table.rows)}
    found: dict[str, tuple[tuple[int, str], tuple[int, str]]] = {}
    for series in series_over(table, "alpha"):
        rows = sorted(
            (row for row in series if place_of[id(row)] in fronts.rows),
            key=lambda row: number(row, "alpha") or 0.0,
        )
        if len(rows) > 1:
            first, *_, last = [(place_of[id(row)], f"α = {number(row, 'alpha'):g}") for row in rows]
            found[table.name(rows[0], without=["method", "alpha"])] = first, last
    if not found:
        means = {place: _in_table(fronts, place) for place in fronts.students}
        lowest = min(means, key=lambda place: means[place])
        if lowest != fronts.best:
            best, last = ((place, fronts.name(place)) for place in (fronts.best, lowest))
            found[""] = best, last
    several = len(found) > 1
    return [
        _finding(fronts, *pair, f"With {setting}, of" if several and setting else "Of")
        for setting, pair in list(found.items())[:SENTENCES]
    ]


def _finding(fronts: Fronts, first: tuple[int, str], second: tuple[int, str], begin: str) -> str:
    """Returns the sentences on how much of the difference of two settings in the table remains: at one
    diversity, and over the range of diversities that both reach."""
    (one, name), (other, other_name) = first, second
    points = _in_table(fronts, one) - _in_table(fronts, other)
    if points < 0:
        (one, name), (other, other_name), points = second, first, -points
    own = {ladder.own for place in (one, other) for ladder in fronts.rows[place].values()}
    at_own = f"at {fronts.ladder} {own.pop():g}" if len(own) == 1 else "in the first table"
    quality, diversity = measure_of(fronts.quality).title, measure_of(fronts.diversity).title
    begin = f"{begin} the {points:.1f} points of {quality} between {name} and {other_name} {at_own}"
    lows, highs = zip(*(fronts.reach(place) for place in (one, other)), strict=True)
    low, high = max(lows), min(highs)
    if low >= high:
        return f"{begin}, it is not known how many remain: their curves share no {diversity}."
    given = [target.at[fronts.everywhere] for target in fronts.targets]
    for at in [*given, (low + high) / 2]:
        (found,) = fronts.differences(one, other, [at])
        if found is not None:
            half, where = (found.high - found.low) / 2, f"at equal diversity ({diversity} {at:.1f})"
            over_all = _over_the_range(fronts, first=(one, name), second=(other, other_name))
            if found.high < 0:
                turned = f"{other_name} is {-found.difference:.1f} ± {half:.1f} above"
                return f"{begin}, none remain {where}: {turned}.{over_all}"
            if round(found.difference, 1) > round(points, 1):
                wider = f"{name} is {found.difference:.1f} ± {half:.1f} above"
                return f"{begin}, all remain {where}: {wider}.{over_all}"
            return f"{begin}, {found.difference:z.1f} ± {half:.1f} remain {where}.{over_all}"
    return f"{begin}, it is not known how many remain: too few resamples of the prompts share a {diversity}."


def _over_the_range(fronts: Fronts, first: tuple[int, str], second: tuple[int, str]) -> str:
    """Returns a sentence on the mean difference of two settings over the diversities that both reach."""
    found = fronts.area(first[0], second[0])
    if found is None:
        return ""
    (_, name), other = (first, second[1]) if found.difference >= 0 else (second, first[1])
    mean, half = abs(found.difference), (found.high - found.low) / 2
    return (
        f" Over the diversities that both reach, {name} is on average {mean:.1f} ± {half:.1f} above {other}."
    )


def _in_table(fronts: Fronts, place: int) -> float:
    """Returns the quality of a row in the first table, over the sets of the curves."""
    scores = [fronts.table.rows[place].score(name, fronts.quality) for name in fronts.sets]
    return sum(math.nan if score is None else score.mean for score in scores) / len(scores)


def _page(fronts: Fronts) -> dict[str, Any]:
    """Returns the curves for the page, with differences from the best for the main quality and diversity."""
    first = next(iter(fronts.rows[fronts.best].values()))
    measured = set.intersection(*(set(first.metrics(name)) for name in fronts.sets))
    shared = [
        name
        for name in measured
        if all(
            name in ladder.metrics(of)
            for by_seed in fronts.rows.values()
            for ladder in by_seed.values()
            for of in fronts.sets
        )
    ]
    qualities = [name for name in fronts.table.metrics if name in shared and name not in DIVERSITIES]
    diversities = [name for name in DIVERSITIES if name in shared]
    return {
        "rows": list(fronts.rows),
        "ladder": {"temperature": "temperature", "top_p": "top-p"}[fronts.ladder],
        "qualities": [{"name": name, "title": measure_of(name).title} for name in qualities],
        "diversities": [{"name": name, "title": diversity_title(name)} for name in diversities],
        "sets": fronts.places,
        "views": {
            f"{quality}/{diversity}/{where}": _view(fronts, quality, diversity, where)
            for quality in qualities
            for diversity in diversities
            for where in fronts.places
        },
    }


def diversity_title(name: str) -> str:
    """Returns the name of a diversity, turned so that high means similar answers."""
    measure = measure_of(name)
    return f"100 - {measure.title}" if measure.better == "higher" else measure.title


def _view(fronts: Fronts, quality: str, diversity: str, where: str) -> dict[str, Any]:
    """Returns the curves on one set: stops along the diversity, and by row its knots and its values there."""
    systems = {place: fronts.systems(place, where, quality, diversity) for place in fronts.rows}
    main = (quality, diversity) == (fronts.quality, fronts.diversity)
    targets = fronts.targets if main else ()
    marks = [(target.name, round(target.at[where], 2)) for target in targets]
    ends = [end for by_seed in systems.values() for front in by_seed.values() for end in front.reach]
    even = numpy.linspace(min(ends), max(ends), STOPS + 1)
    stops = sorted({*(round(float(stop), 2) for stop in even), *(at for _, at in marks)})
    references = fronts.references(stops, where) if main else []
    rows = []
    for place, by_seed in systems.items():
        values = quality_at(list(by_seed.values()), stops)
        row: dict[str, Any] = {"knots": _knots(by_seed), "at": [_short(float(value)) for value in values]}
        if main:
            others = set(references) - {None, place}
            found = {
                other: fronts.differences(place, other, stops, where) for other in others if other is not None
            }
            row["less"] = [
                numbers_of(found[other][k]) if other in found else None for k, other in enumerate(references)
            ]
        rows.append(row)
    return {"stops": stops, "marks": marks, "references": references, "rows": rows}


def _knots(by_seed: Mapping[int, Any]) -> list[list[float | None]]:
    """Returns [temperature, diversity, quality] of each rung, the mean over the seeds that have it."""
    found: dict[float, list[tuple[float, float]]] = {}
    for front in by_seed.values():
        diversity, quality = front.curve()
        for rung, x, y in zip(front.temperatures, diversity[0, ::-1], quality[0, ::-1], strict=True):
            found.setdefault(float(rung), []).append((float(x), float(y)))
    return [
        [rung, *(_short(sum(values) / len(values)) for values in zip(*points, strict=True))]
        for rung, points in sorted(found.items())
    ]


def _short(value: float) -> float | None:
    return float(f"{value:.2f}") if math.isfinite(value) else None
