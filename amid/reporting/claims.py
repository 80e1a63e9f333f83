"""Tests the paper's claims against the results of an experiment."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from amid.measures import measure_of
from amid.reporting.rows import METHODS, Row
from amid.reporting.sections import failed, number
from amid.reporting.table import Table
from amid.results import Label, Score

Verdict = Literal["holds", "does not hold", "undecided"]

LAMBDAS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""The paper's grid over λ."""

PUBLISHED: dict[str, Label] = {"divergence": "alpha_beta", "order": "pr", "alpha": -5.0, "lam": 0.1}
"""The setting of AMiD that the paper compares with other methods."""

STUDENT_T = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
"""The 97.5% quantiles of Student's t with 1 to 9 degrees of freedom, of 2 to 10 seeds."""

NOTE = (
    "A difference is the mean ± standard error over the training seeds that two settings share. A claim "
    "holds, or does not hold, if the 95% interval of the mean by Student's t leaves out 0. The interval "
    "reaches 12.7 standard errors to each side with two seeds, 4.3 with three, 2.8 with five. One training "
    "seed shows a direction, not significance. A free α is the α chosen on the validation data. It is at "
    "least as good if the mean difference is 0 or more. ρ is Spearman's rank correlation of α and the mean "
    "scores: -1 if every step of the grid falls. Settings with a run that diverged do not count in ρ."
)


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, and the verdict of the results on it."""

    text: str
    verdict: Verdict
    why: str

    def __str__(self) -> str:
        return f"{self.text}: {self.verdict} ({self.why})"


def claims(table: Table) -> list[Claim]:
    """Returns the paper's claims that the settings in `table` can test, each with the verdict of the results.

    Against α: quality and Self-BLEU fall from -5 to 1, a free α is at least as good as -1 and 1. Against λ at
    α = -5: 0.1 is the best, and none fails. Over divergences: αβ has the smallest spread over α, reverse KL
    with α = 1 fails. Over methods: AMiD is above every baseline.

    If the table has a column at equal diversity, each claim on quality is judged a second time, by it.
    """
    return [*_methods(table), *_alpha(table), *_lambda(table), *_divergence(table)]


def evidence(table: Table) -> str:
    """Returns the note on what the verdicts rest on."""
    if len(ways := _ways(table)) == 1:
        return NOTE
    return (
        f"{NOTE} A claim that begins with {ways[1][1].rstrip(': ')} is judged at equal diversity, where a "
        "sharper student has no advantage."
    )


def judge(
    better: Mapping[int, float], worse: Mapping[int, float], at_least: bool = False
) -> tuple[Verdict, str]:
    """Judges whether the first numbers are above the second, both by training seed, and by how much.

    With `at_least`, a mean difference that is not negative is enough. One seed cannot decide, because the
    spread is not known; the text says in which direction it points.
    """
    difference = paired(better, worse)
    if difference is None:
        return "undecided", "missing runs: no seed has both"
    mean = difference.mean
    if difference.std is None:
        return _one_seed(mean > 0 or (at_least and mean >= 0), mean < 0, f"{mean:+.2f}")
    seeds = len(difference.values)
    error = difference.std / math.sqrt(seeds)
    within = STUDENT_T[min(seeds - 2, len(STUDENT_T) - 1)] * error
    why = f"{mean:+.2f} ± {error:.2f} over {seeds} seeds"
    if mean > within or (at_least and mean >= 0):
        return "holds", why
    return ("does not hold", why) if mean < -within else ("undecided", f"{why}: within the spread")


def paired(first: Mapping[int, float], second: Mapping[int, float]) -> Score | None:
    """Returns the first numbers less the second over the training seeds that have both; None without any."""
    common = sorted(first.keys() & second.keys())
    return Score.over_seeds([first[seed] - second[seed] for seed in common]) if common else None


def by_seed(table: Table, row: Row, metric: str, where: str | None = None) -> dict[int, float]:
    """Returns the score by training seed, for the runs that have one: over all sets, or at equal diversity.

    Args:
        table: the table of the row.
        row: the row.
        metric: the score.
        where: None, or the name of `Table.at_diversity`.
    """
    one_each = (Row(row.labels, (run,), row.baseline) for run in row.runs)
    scores = ((each.runs[0].seed, table.score(each, metric, where)) for each in one_each)
    return {seed: s.mean for seed, s in scores if s is not None and math.isfinite(s.mean)}


def diverged(*rows: Row) -> int:
    """Returns how many runs of `rows` diverged."""
    return sum(run.diverged_step is not None for row in rows for run in row.runs)


def _one_seed(that_way: bool, other_way: bool, said: str) -> tuple[Verdict, str]:
    way = "that way" if that_way else "the other way" if other_way else "neither way"
    return "undecided", f"the only training seed points {way}: {said}; the spread is unknown"


def _ways(table: Table) -> list[tuple[str | None, str]]:
    """Returns what claims on quality are judged by, and the words before such a claim.

    None is the table's own score; the name of `Table.at_diversity` is the score at equal diversity.
    """
    further = table.at_diversity
    if further is None or further.metric != table.quality:
        return [(None, "")]
    return [(None, ""), (further.name, f"{further.name[:1].upper()}{further.name[1:]}: ")]


def _methods(table: Table) -> Iterator[Claim]:
    for group in _groups(table.rows, ("model", "data")):
        ours = [row for row in group if _is(row, {"method": "amid"} | PUBLISHED)]
        baselines = [row for row in group if row.labels.get("method") in _BASELINES]
        if not ours or not baselines:
            continue
        amid = min(ours, key=lambda row: len(str(row.labels.get("settings") or "")))
        names = ", ".join(dict.fromkeys(row.method for row in baselines))
        for way, words in _ways(table):
            means = {id(row): _mean(table, row, where=way) for row in baselines}
            best = max(baselines, key=lambda row: means[id(row)])
            verdict, why = _compared(table, amid, best, where=way)
            short = _short_of(table, way, *baselines)
            if short and verdict == "holds":
                verdict, why = "undecided", f"{why}; {short}"
            yield Claim(
                f"{words}AMiD is above every baseline, {names}{_where(table, group)}",
                verdict,
                f"{table.name(amid)} to {best.method} {why}",
            )


def _alpha(table: Table) -> Iterator[Claim]:
    for rows in series_over(table, "alpha"):
        by_alpha = {number(row, "alpha"): row for row in rows}
        where = f" with {_setting(table, rows[0], 'alpha')}"
        judged = [(table.quality, *way) for way in _ways(table)]
        for metric, way, words in [*judged, (table.diversity, None, "")]:
            text = f"{words}{measure_of(metric).title} falls from α = -5 to 1{where}"
            grid = _over_the_grid(table, by_alpha, metric, way)
            missing = [f"α = {alpha:g}" for alpha in (-5.0, 1.0) if alpha not in by_alpha]
            if missing:
                yield Claim(text, "undecided", f"missing runs: {', '.join(missing)}{grid}")
            else:
                low, high = by_alpha[-5.0], by_alpha[1.0]
                verdict, why = _compared(table, low, high, metric, where=way)
                means = [_mean(table, row, metric, way) for row in (low, high)]
                if all(map(math.isfinite, means)):
                    why = f"{' to '.join(f'{mean:.1f}' for mean in means)}; {why}"
                yield Claim(text, verdict, f"{why}{grid}")
        yield from _free_alpha(table, by_alpha, where)


def _free_alpha(table: Table, by_alpha: Mapping[float | None, Row], where: str) -> Iterator[Claim]:
    """Judges whether the α that the validation data choose is at least as good as α = -1 and α = 1."""
    fixed = [by_alpha[alpha] for alpha in (-1.0, 1.0) if alpha in by_alpha]
    free = [row for alpha, row in by_alpha.items() if alpha not in (-1.0, 1.0)]
    if not fixed or not free:
        return
    text = f"A free α is at least as good as α = -1 and α = 1{where}"
    if len(fixed) < 2:
        missing_alpha = next(alpha for alpha in (-1.0, 1.0) if alpha not in by_alpha)
        yield Claim(text, "undecided", f"missing runs: α = {missing_alpha:g}")
        return
    if not any(math.isfinite(_validation(table, row)) for row in free):
        quality = measure_of(table.quality).title
        yield Claim(text, "undecided", f"no run has a validation {quality} to choose α by")
        return
    chosen = max(free, key=lambda row: _validation(table, row))
    for way, words in _ways(table):
        means = {id(row): _mean(table, row, where=way) for row in fixed}
        best = max(fixed, key=lambda row: means[id(row)])
        verdict, why = _compared(table, chosen, best, at_least=True, where=way)
        alphas = [f"{number(row, 'alpha'):g}" for row in (chosen, best)]
        why = f"α = {alphas[0]}, chosen on the validation set, to α = {alphas[1]}: {why}"
        yield Claim(f"{words}{text}", verdict, why)


def _lambda(table: Table) -> Iterator[Claim]:
    for rows in series_over(table, "lam"):
        if number(rows[0], "alpha") != -5.0:
            continue
        by_lam = {number(row, "lam"): row for row in rows}
        where = f" with {_setting(table, rows[0], 'lam')}"
        texts = (f"λ = 0.1 is the best at α = -5{where}", f"No λ fails at α = -5{where}")
        missing = [f"λ = {lam:g}" for lam in LAMBDAS if lam not in by_lam]
        failing = [row for row in rows if failed(table, row)]
        if missing:
            yield Claim(texts[0], "undecided", f"missing runs: {', '.join(missing)}")
        for way, words in _ways(table) if not missing else []:
            means = {lam: _mean(table, row, where=way) for lam, row in by_lam.items() if lam != 0.1}
            best = by_lam[max(means, key=lambda lam: means[lam])]
            verdict, why = _compared(table, by_lam[0.1], best, where=way)
            yield Claim(f"{words}{texts[0]}", verdict, f"to λ = {number(best, 'lam'):g}: {why}")
        if failing:
            names = ", ".join(
                f"{failed(table, row)} of {len(row.runs)} with λ = {number(row, 'lam'):g}" for row in failing
            )
            yield Claim(texts[1], "does not hold", names)
        elif missing:
            yield Claim(texts[1], "undecided", f"missing runs: {', '.join(missing)}")
        else:
            why = f"none of {sum(len(row.runs) for row in rows)} runs failed"
            several = min(len(row.runs) for row in rows) > 1
            yield Claim(texts[1], *(("holds", why) if several else _one_seed(True, False, why)))


def _divergence(table: Table) -> Iterator[Claim]:
    lines = series_over(table, "alpha")
    for group in _groups([rows[0] for rows in lines], ("model", "data", "order")):
        members = [rows for rows in lines if any(rows[0] is first for first in group)]
        names = [rows[0].labels.get("divergence") for rows in members]
        if len(set(names)) < 2:
            continue
        where = _where(table, group)
        text = f"αβ has the smallest spread over α{where}"
        if "alpha_beta" not in names:
            yield Claim(text, "undecided", "missing runs: αβ")
        else:
            for way, words in _ways(table):
                yield Claim(
                    f"{words}{text}", *_smallest_spread(table, members, names.index("alpha_beta"), way)
                )
    for rows in lines:
        if _is(rows[0], {"divergence": "reverse_kl", "order": "pr"}):
            yield _corner(table, rows)


def _smallest_spread(
    table: Table, members: Sequence[Sequence[Row]], ours: int, way: str | None
) -> tuple[Verdict, str]:
    """Judges whether one of several series over α, `members[ours]`, has the smallest spread (`_spreads`)."""
    shared = set.intersection(*({number(row, "alpha") for row in rows} for rows in members))
    rows = [[row for row in series if number(row, "alpha") in shared] for series in members]
    every = [row for series in rows for row in series]
    if short := _short_of(table, way, *every):
        return "undecided", short
    if way is not None and diverged(*every):
        return "undecided", f"{diverged(*every)} of {sum(len(row.runs) for row in every)} runs diverged"
    spreads = [_spreads(table, series, way) for series in rows]
    others = [i for i in range(len(members)) if i != ours]
    if len(shared) < 2 or not all(spreads):
        return "undecided", "missing runs: two α that every divergence has"
    least = min(others, key=lambda i: sum(spreads[i].values()) / len(spreads[i]))
    verdict, why = judge(spreads[least], spreads[ours])
    return verdict, f"the spread of {members[least][0].divergence} minus its own: {why}"


def _corner(table: Table, rows: Sequence[Row]) -> Claim:
    """Judges the claim on reverse KL with α = 1, from the rows of reverse KL over α."""
    text = f"Reverse KL, KL(r ‖ p), fails with α = 1{_where(table, rows)}"
    corner = next((row for row in rows if number(row, "alpha") == 1.0), None)
    if corner is None:
        return Claim(text, "undecided", "missing runs: α = 1")
    failures, runs = failed(table, corner), len(corner.runs)
    score = f"{measure_of(table.quality).title} {table.score_text(corner, table.quality)}"
    why = f"{failures} of {runs} runs failed, {score}"
    if runs == 1:
        return Claim(text, *_one_seed(failures == 1, failures == 0, why))
    verdict: Verdict = "holds" if failures == runs else "undecided" if failures else "does not hold"
    return Claim(text, verdict, why)


_BASELINES = METHODS.keys() - {"teacher", "start", "amid"}


def series_over(table: Table, label: str) -> list[list[Row]]:
    """Returns series of at least two AMiD rows that differ in the number `label` alone.

    A series over α uses the rows with λ = 0.1 if λ varies.
    """
    ours = [row for row in table.rows if row.labels.get("method") in ("amid", None)]
    grid = [row for row in ours if number(row, label) is not None]
    if label == "alpha" and len({number(row, "lam") for row in grid}) > 1:
        grid = [row for row in grid if number(row, "lam") == 0.1]
    others = sorted({name for row in grid for name in row.labels} - {label})
    return [rows for rows in _groups(grid, others) if len({number(row, label) for row in rows}) > 1]


def _groups(rows: Sequence[Row], labels: Sequence[str]) -> list[list[Row]]:
    groups: dict[tuple[Label, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.labels.get(label) for label in labels), []).append(row)
    return list(groups.values())


def _is(row: Row, labels: Mapping[str, Label]) -> bool:
    return all(row.labels.get(name) == value for name, value in labels.items())


def _over_the_grid(
    table: Table, by_alpha: Mapping[float | None, Row], metric: str, where: str | None = None
) -> str:
    """Describes a score over three α or more: the count of falling steps, and Spearman's rank correlation."""
    rows = {alpha: row for alpha, row in by_alpha.items() if alpha is not None and not diverged(row)}
    means = [
        mean for alpha in sorted(rows) if math.isfinite(mean := _mean(table, rows[alpha], metric, where))
    ]
    if len(means) < 3:
        return ""
    falls = sum(later < earlier for earlier, later in pairwise(means))
    text = f"; over {len(means)} α {falls} of {len(means) - 1} steps fall"
    if len(set(means)) == 1:
        return text
    ranks = [sum(other < mean for other in means) + sum(other <= mean for other in means) for mean in means]
    return f"{text}, ρ = {statistics.correlation(range(len(ranks)), ranks):+.2f}"


def _compared(
    table: Table,
    better: Row,
    worse: Row,
    metric: str | None = None,
    at_least: bool = False,
    where: str | None = None,
) -> tuple[Verdict, str]:
    """Judges two rows (see `judge`); if a seed diverged, the remaining seeds decide nothing."""
    metric = metric or table.quality
    if short := _short_of(table, where, better, worse):
        return "undecided", short
    first, second = (by_seed(table, row, metric, where) for row in (better, worse))
    verdict, why = judge(first, second, at_least)
    if not (n_diverged := diverged(better, worse)):
        return verdict, why
    several = where is None and paired(first, second) is not None  # a setting that diverged has no curve
    others = f"; the other runs: {why}" if several else ""
    return "undecided", f"{n_diverged} of {len(better.runs) + len(worse.runs)} runs diverged{others}"


def _short_of(table: Table, where: str | None, *rows: Row) -> str:
    """Names the rows that have no score at equal diversity; empty if all have, or if `where` is None."""
    if where is None:
        return ""
    metric = table.quality
    short = [table.name(row) for row in rows if not diverged(row) and not table.score(row, metric, where)]
    if len(short) > 2:
        return f"{len(short)} settings do not reach it"
    return f"not reached by {' and '.join(short)}" if short else ""


def _mean(table: Table, row: Row, metric: str | None = None, where: str | None = None) -> float:
    """Returns the mean score over the training seeds; -inf without any."""
    values = by_seed(table, row, metric or table.quality, where).values()
    return sum(values) / len(values) if values else -math.inf


def _validation(table: Table, row: Row) -> float:
    name = f"valid_{table.quality}"
    values = [run.training[name] for run in row.runs if name in run.training]
    return sum(values) / len(values) if values else -math.inf


def _spreads(table: Table, rows: Sequence[Row], where: str | None = None) -> dict[int, float]:
    """Returns the difference between the best and the worst of `rows` for each training seed of all rows.

    A run that diverged counts as 0.
    """
    zeroed = [{run.seed: 0.0 for run in row.runs if run.diverged_step is not None} for row in rows]
    scores = [by_seed(table, row, table.quality, where) for row in rows]
    by_row = [of_row | zeros for of_row, zeros in zip(scores, zeroed, strict=True)]
    seeds = set.intersection(*(set(values) for values in by_row)) if by_row else set()
    return {seed: max(v[seed] for v in by_row) - min(v[seed] for v in by_row) for seed in sorted(seeds)}


def _setting(table: Table, row: Row, without: str) -> str:
    rest = table.name(row, without=["method", "divergence", "alpha", "lam", without])
    return f"{row.divergence} {rest}".strip()


def _where(table: Table, rows: Sequence[Row]) -> str:
    """Names the model pair and data of rows, if the table has several."""
    names = [str(rows[0].labels.get(label)) for label in ("model", "data") if label in table.varying]
    return f" ({', '.join(names)})" if names else ""
