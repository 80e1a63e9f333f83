"""Compares settings at equal diversity, from the ladders of temperatures that their runs were scored at."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from amid.measures import measure_of
from amid.metrics import Comparison, Front, over_sets, quality_at
from amid.metrics.fronts import Curves, SeedSpread, difference_of_areas, differences_at, seed_spreads
from amid.reporting.rows import AVERAGE, OF_NO_METHOD, AtDiversity, Row
from amid.reporting.table import Table
from amid.results import RunResult, Score
from amid.scoring.ladders import Ladder, read_ladder

RESAMPLES = 4_000
"""Sets of prompts that each interval draws."""

DIVERSITIES = ("self_bleu", "distinct_1", "distinct_2")


@dataclass(frozen=True)
class Target:
    """A diversity to compare at: the diversity of the teacher's answers in the table, or of another row's."""

    row: int
    """The place of the row in the table."""
    name: str
    """`teacher`, `start`, or the name of the best student."""
    at: Mapping[str, float]
    """The diversity on each set, and on all sets (`Fronts.everywhere`)."""


@dataclass(frozen=True)
class Fronts:
    """The curves of the rows of one pair and data that answered the same prompts at several temperatures."""

    table: Table
    rows: Mapping[int, Mapping[int, Ladder]]
    """The ladder of each training seed, by the place of the row."""
    best: int
    """The place of the best student of the table, which the others are compared with."""
    sets: Sequence[str]
    """The sets that all rows have curves on."""
    quality: str
    diversity: str
    targets: Sequence[Target] = ()
    _made: dict[tuple[int, str], Curves] = field(default_factory=dict, compare=False, repr=False)
    _spread: dict[tuple[object, ...], list[SeedSpread | None]] = field(
        default_factory=dict, compare=False, repr=False
    )

    @property
    def everywhere(self) -> str:
        """The set that stands for all sets: the only one, or `AVERAGE`."""
        return self.sets[0] if len(self.sets) == 1 else AVERAGE

    @property
    def places(self) -> list[str]:
        """All sets together, then each set if there are several."""
        return [self.everywhere, *(self.sets if len(self.sets) > 1 else ())]

    @property
    def ladder(self) -> str:
        """`temperature` or `top_p`."""
        return next(iter(next(iter(self.rows.values())).values())).name

    @property
    def students(self) -> list[int]:
        """The places of the rows that are students."""
        return [place for place in self.rows if self.table.rows[place].labels.get("method") != "teacher"]

    def name(self, place: int) -> str:
        """The name of a row."""
        return self.table.name(self.table.rows[place]) or self.table.rows[place].method

    def systems(self, place: int, where: str, quality: str = "", diversity: str = "") -> dict[int, Front]:
        """Returns the front of each training seed of a row, on one set or on all sets together.

        Args:
            place: the place of the row.
            where: a set, or `everywhere`.
            quality: a metric; by default the main one.
            diversity: a measure of diversity; by default Self-BLEU.
        """
        sets = self.sets if where == AVERAGE else [where]
        return {
            seed: over_sets(
                [ladder.front(name, quality or self.quality, diversity or self.diversity) for name in sets]
            )
            for seed, ladder in self.rows[place].items()
        }

    def quality_at(self, place: int, diversity: float, where: str = "") -> dict[int, float]:
        """Returns the quality of each training seed of a row at a diversity; NaN outside of its ladder."""
        systems = self.systems(place, where or self.everywhere)
        return {seed: float(quality_at(front, [diversity])[0]) for seed, front in systems.items()}

    def differences(
        self, place: int, other: int, diversities: Sequence[float], where: str = ""
    ) -> list[Comparison | None]:
        """Returns the quality of a row less that of another at each diversity; None where it is not known.

        At each diversity, the spread over training seeds is pooled over all trained rows that reach it: they
        are taken to vary alike. The teacher and the student at start have no part in it.
        """
        where = where or self.everywhere
        pair = self._curves(place, where), self._curves(other, where)
        return differences_at(*pair, diversities, self._spreads(diversities, where))

    def references(self, diversities: Sequence[float], where: str = "") -> list[int | None]:
        """Returns for each diversity the place of the student that the others are compared with.

        It is the student with the highest quality in the table that reaches the diversity; None if none does.
        """
        found: list[int | None] = [None] * len(diversities)
        for place in sorted(self.students, key=lambda place: _in_table(self.table, place), reverse=True):
            known = self._curves(place, where or self.everywhere).known_at(diversities)
            found = [
                place if old is None and reached else old for old, reached in zip(found, known, strict=True)
            ]
            if None not in found:
                break
        return found

    def area(self, place: int, other: int, where: str = "") -> Comparison | None:
        """Returns the mean difference of two rows over the diversities that both reach; None without any."""
        where = where or self.everywhere
        ends = [self.reach(row, where) for row in (place, other)]
        low, high = max(low for low, _ in ends), min(high for _, high in ends)
        if low >= high:
            return None
        (spread,) = self._spreads([(low + high) / 2], where)
        return difference_of_areas(self._curves(place, where), self._curves(other, where), spread)

    def reach(self, place: int, where: str = "", diversity: str = "") -> tuple[float, float]:
        """Returns the lowest and the highest diversity that all training seeds of a row reach."""
        ends = [of.reach for of in self.systems(place, where or self.everywhere, "", diversity).values()]
        return max(low for low, _ in ends), min(high for _, high in ends)

    def _spreads(self, diversities: Sequence[float], where: str) -> list[SeedSpread | None]:
        key = (where, *diversities)
        if key not in self._spread:
            self._spread[key] = seed_spreads([self._curves(place, where) for place in self.rows], diversities)
        return self._spread[key]

    def _curves(self, place: int, where: str) -> Curves:
        if (place, where) not in self._made:
            trained = self.table.rows[place].labels.get("method") not in ("teacher", "start")
            systems = list(self.systems(place, where).values())
            self._made[place, where] = Curves(systems, RESAMPLES, trained=trained)
        return self._made[place, where]


def fronts_of(table: Table, records: Mapping[Path, RunResult]) -> list[Fronts]:
    """Returns the curves of the rows of `table` for each pair and data with at least two rows that have them.

    The ladder is that of temperatures, or of top-p if no run has temperatures. The quality is the main metric
    of the table, or the first one that scores single prompts. A set of one prompt shows no difference and is
    left out. A row is left out if a run has no ladder, other prompts than the best student, or Self-BLEU
    among another number of answers.

    Args:
        table: the table of the runs.
        records: the runs of `table`, by their folders.

    Raises:
        InputError: naming a file of scores that is missing or cannot be read.
    """
    folders = {id(run): folder for folder, run in records.items()}
    names = [name for row in table.rows for run in row.runs for name in run.ladders]
    if not names:
        return []
    ladder = "temperature" if "temperature" in names else names[0]
    groups: dict[tuple[object, ...], dict[int, dict[int, Ladder]]] = {}
    for place, row in enumerate(table.rows):
        if all(ladder in run.ladders for run in row.runs):
            read = {run.seed: read_ladder(folders[id(run)], ladder) for run in row.runs}
            labels = tuple(row.labels.get(label) for label in OF_NO_METHOD)
            groups.setdefault(labels, {})[place] = read
    return [made for rows in groups.values() if (made := _of_group(table, rows)) is not None]


def _of_group(table: Table, rows: Mapping[int, Mapping[int, Ladder]]) -> Fronts | None:
    """Returns the curves of rows of one pair and data; None if no two of them can be compared."""

    students = [place for place in rows if table.rows[place].labels.get("method") != "teacher"]
    if not students:
        return None
    best = max(students, key=lambda place: _in_table(table, place))
    first = next(iter(rows[best].values()))
    quality = next(
        (name for name in table.metrics for of in table.datasets if name in first.metrics(of)), table.quality
    )
    needed = {quality, DIVERSITIES[0]}
    sets = [
        name
        for name in table.sets_of(table.rows[best], quality)
        if needed <= set(first.metrics(name)) and first.size(name, quality) > 1
    ]

    def alike(place: int) -> bool:
        return all(
            needed <= set(ladder.metrics(name)) and ladder.prompts(name) == first.prompts(name)
            for ladder in rows[place].values()
            for name in sets
        ) and all(_among(table.rows[place], name) == _among(table.rows[best], name) for name in sets)

    kept = {place: of for place, of in rows.items() if alike(place)}
    if not sets or len(kept) < 2:
        return None
    made = Fronts(table, kept, best, sets, quality, DIVERSITIES[0])
    return Fronts(table, kept, best, sets, quality, DIVERSITIES[0], _targets(made))


def _among(row: Row, name: str) -> set[str | None]:
    """Returns among how many answers Self-BLEU was computed on a set, as its signature says."""
    scores = [run.scores.get(name, {}).get(DIVERSITIES[0]) for run in row.runs]
    return {score.signature for score in scores if score is not None}


def _targets(fronts: Fronts) -> list[Target]:
    """Returns the teacher's diversity and the student's at start; without both, the best student's."""
    found = []
    for method in ("teacher", "start"):
        rows = [place for place in fronts.rows if fronts.table.rows[place].labels.get("method") == method]
        found += [(place, method) for place in rows[:1]]
    targets = []
    for place, name in found or [(fronts.best, fronts.name(fronts.best))]:
        at = {of: _on_set(fronts.table.rows[place], fronts.diversity, of) for of in fronts.sets}
        at[fronts.everywhere] = sum(at.values()) / len(at)
        targets.append(Target(place, name, at))
    return [target for target in targets if all(map(math.isfinite, target.at.values()))]


def _in_table(table: Table, place: int) -> float:
    """Returns the main score of a row over all sets; minus infinity without one."""
    score = table.score(table.rows[place], table.quality)
    return score.mean if score is not None and math.isfinite(score.mean) else -math.inf


def _on_set(row: Row, metric: str, name: str) -> float:
    score = row.score(name, metric)
    return math.nan if score is None else score.mean


def main_target(fronts: Fronts) -> Target | None:
    """Returns the target that most students reach, the teacher's if several do; None if no student does."""

    def reached(target: Target) -> int:
        ends = [fronts.reach(place) for place in fronts.students]
        return sum(low <= target.at[fronts.everywhere] <= high for low, high in ends)

    best = max(fronts.targets, key=reached, default=None)
    return best if best is not None and reached(best) else None


def at_diversity(table: Table, found: Sequence[Fronts]) -> AtDiversity | None:
    """Returns the column of the table with the quality of each row at its group's main target.

    Groups with another quality than the first group have no value.
    """
    values: dict[int, float | None] = {}
    places, sentences = set(), []
    for fronts in found:
        if fronts.quality != found[0].quality or (target := main_target(fronts)) is None:
            continue
        at = target.at[fronts.everywhere]
        for place in fronts.rows:
            by_seed = fronts.quality_at(place, at)
            for run in table.rows[place].runs:
                value = by_seed[run.seed]
                values[id(run)] = value if math.isfinite(value) else None
        diversity = measure_of(fronts.diversity).title
        places.add(f"{diversity} {at:.1f}")
        sentences.append(f"{at:.1f} is the {diversity} of {owner(target)}")
    if not values:
        return None
    quality = measure_of(found[0].quality).title
    name = f"at {places.pop()}" if len(places) == 1 else "at equal diversity"
    for run in (run for row in table.rows for run in row.runs):
        if run.diverged_step is not None:
            values[id(run)] = math.nan
    note = (
        f"{quality} {name}: from the curve of a setting over several {LADDERS[found[0].ladder]}; "
        f"{'; '.join(dict.fromkeys(sentences))}."
    )
    return AtDiversity(name, found[0].quality, values, note)


LADDERS = {"temperature": "temperatures", "top_p": "top-p values"}


def owner(target: Target) -> str:
    """Returns the words for the row that has the diversity of a target."""
    return {"teacher": "the teacher", "start": "the student at start"}.get(target.name, target.name)


def over_seeds(by_seed: Mapping[int, float]) -> Score | None:
    """Returns the mean over training seeds with its deviation; None if a seed has no value."""
    values = list(by_seed.values())
    return Score.over_seeds(values) if all(map(math.isfinite, values)) else None
