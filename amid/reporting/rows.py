"""The rows of a table: groups runs of one setting, leaves out repeated runs, and sorts the rows."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from amid.errors import plain
from amid.results import Label, RunResult, Score

AVERAGE = "Avg"
"""The name that stands in place of an evaluation set for the mean over all sets."""

MISSING = "–"

OUTSIDE = "not reached"
"""A score at a diversity that a setting's ladder does not reach."""

METHODS = {
    "teacher": "Teacher",
    "start": "Student at start",
    "sft": "SFT",
    "kd": "KD",
    "seqkd": "SeqKD",
    "imitkd": "ImitKD",
    "minillm": "MiniLLM",
    "gkd": "GKD",
    "tvd": "TVD",
    "jsd": "JSD",
    "akl": "AKL",
    "bdkd": "BDKD",
    "alphanet": "AlphaNet",
    "distillm_skl": "DistiLLM SKL",
    "distillm_srkl": "DistiLLM SRKL",
    "taid": "TAID",
    "abkd": "ABKD",
    "amid": "AMiD",
}
"""The written names of the methods, in the order of the table's rows."""

DIVERGENCES = {
    "kl": "KL",
    "reverse_kl": "RKL",
    "jensen_shannon": "JS",
    "total_variation": "TV",
    "alpha": "α-div",
    "alpha_beta": "αβ",
}
"""The written names of the divergences, in the order of the table's rows."""

CONFIGURATION = "configuration"
"""The label with a hash of all settings but the seed."""

OF_NO_METHOD = ("model", "data")
"""Labels that always separate rows; other differences between two methods follow from their names."""

OF_CLASSES = ("assistant", "objective", "schedule", "text", "optimizer", "scheduler", "generation")
"""Labels that hold the name of the user's own class if a `_target_` names one."""

STATES = "teacher_states"
"""The label of runs with a lossy teacher cache: how its states were written. It always separates rows."""


def has_own_assistant(labels: Mapping[str, Label]) -> bool:
    """Returns whether the assistant has the user's own class."""
    return labels.get("assistant") not in (None, "none", "alpha_mixture")


def _written(names: Mapping[str, str], name: str) -> str:
    """Returns how an option is written; "own" marks a user's option with the name of another option."""
    return names.get(name) or (f"own {name}" if name in names.values() else name)


@dataclass(frozen=True)
class Row:
    """One setting: the runs that differ in nothing but their training seed."""

    labels: dict[str, Label]
    runs: tuple[RunResult, ...]
    baseline: bool
    """Whether this is a row to compare with, not a row of a grid over α-mixtures."""

    @property
    def method(self) -> str:
        """The method's name as it is written."""
        method = self.labels.get("method")
        own = has_own_assistant(self.labels) or self.labels.get("objective") is not None
        if method in ("amid", None) and self.labels.get("alpha") is None and not own:
            return "No assistant"
        return _written(METHODS, str(method)) if method is not None else METHODS["amid"]

    @property
    def divergence(self) -> str:
        """The divergence with its arguments, such as `αβ(p, r)`."""
        name, order = self.labels.get("divergence"), self.labels.get("order")
        if name in (None, "none"):
            return MISSING
        arguments = f"({', '.join(str(order))})" if order is not None else ""
        return _written(DIVERGENCES, str(name)) + arguments

    def score(self, dataset: str, metric: str, datasets: Sequence[str] = ()) -> Score | None:
        """Returns the row's score; None if a run has no score. A diverged run has NaN.

        With several training seeds, the values are the runs' means; with one, the values of its sampling
        seeds. With `AVERAGE` as the set, it is the mean over `datasets`, which must all have been scored.
        """

        def of_run(run: RunResult) -> Score | None:
            if run.diverged_step is not None:
                return Score(math.nan, None, [math.nan])
            if dataset == AVERAGE:
                return _mean_over_sets([run.scores.get(name, {}).get(metric) for name in datasets])
            return run.scores.get(dataset, {}).get(metric)

        scores = [of_run(run) for run in self.runs]
        if len(scores) == 1:
            return scores[0]
        means = [score.mean for score in scores if score is not None]
        return Score.over_seeds(means) if len(means) == len(scores) else None

    def validation(self, name: str) -> Score | None:
        """Returns a `VALIDATION` measure, or its `_before`, over the training seeds; None if a run has none.

        A diverged run has NaN, except for values from before the training.
        """
        values = [
            math.nan
            if run.diverged_step is not None and not name.endswith("_before")
            else run.training.get(f"valid_{name}")
            for run in self.runs
        ]
        known = [value for value in values if value is not None]
        return Score.over_seeds(known) if len(known) == len(values) else None


@dataclass(frozen=True)
class AtDiversity:
    """A column of the table with the main score at equal diversity."""

    name: str
    """Stands in place of a set, such as `at Self-BLEU 55.2`."""
    metric: str
    """The score, such as rouge_l."""
    values: Mapping[int, float | None]
    """The score of each run with a ladder, by its identity; None if its ladder does not reach the diversity,
    NaN if it diverged."""
    note: str
    """The meaning of the column, in a sentence."""

    def score(self, row: Row) -> Score | None:
        """Returns a row's score over its training seeds; None if a run has none (see `outside`)."""
        values = [self.values.get(id(run)) for run in row.runs]
        known = [value for value in values if value is not None]
        return Score.over_seeds(known) if len(known) == len(values) else None

    def outside(self, row: Row) -> bool:
        """Returns whether the ladder of a run of a row does not reach the diversity."""
        return any(id(run) in self.values and self.values[id(run)] is None for run in row.runs)


@dataclass(frozen=True)
class Repeat:
    """A run that a table leaves out, and the run in the table that it repeats."""

    run: RunResult
    counted: RunResult

    @property
    def differs(self) -> bool:
        """Whether its scores differ, as on another machine."""
        return self.run.scores != self.counted.scores


def rows_of(results: Sequence[RunResult]) -> tuple[list[Row], tuple[Repeat, ...]]:
    """Returns the rows of a table of one or more results, in table order, and the runs that it leaves out.

    A run repeats an earlier run if labels, configuration, seed and versions are equal, such as a point that
    two sweeps share. An evaluation repeats a trained run with the same sets. Repeated runs are left out.
    """
    groups: dict[Any, list[RunResult]] = {}
    turns: Counter[Any] = Counter()
    mixtures: dict[Label, set[tuple[Label, Label]]] = {}
    shared, unlike = _shared_settings(results), _alike_but_for_files(results)
    known: dict[Any, RunResult] = {}
    repeats: list[Repeat] = []
    for result in sorted(results, key=_is_evaluation):
        labels = _labels(result, shared, unlike)
        key = frozenset(labels.items())
        same = (key, result.config_hash, result.seed, frozenset(result.versions.items()))
        scored = (key, result.seed, frozenset(result.scores))
        counted = known.get(same) or (known.get(scored) if _is_evaluation(result) else None)
        if counted is not None:
            repeats.append(Repeat(result, counted))
            continue
        known[same] = result
        if not _is_evaluation(result):
            known.setdefault(scored, result)
        # A seed that comes twice is no repetition: the runs differ in something that no label shows.
        groups.setdefault((key, turns[key, result.seed]), []).append(result)
        turns[key, result.seed] += 1
        mixtures.setdefault(labels.get("method"), set()).add((labels.get("alpha"), labels.get("lam")))
    rows = []
    for runs in groups.values():
        runs.sort(key=lambda run: run.seed)
        labels = _labels(runs[0], shared, unlike)
        method = labels.get("method")
        in_grid = labels.get("alpha") is not None and (method in ("amid", None) or len(mixtures[method]) > 1)
        rows.append(Row(labels, tuple(runs), baseline=not in_grid))
    return sorted(rows, key=_place), tuple(repeats)


def _alike_but_for_files(results: Sequence[RunResult]) -> set[frozenset[tuple[str, Label]]]:
    """Returns the labels that runs with different `CONFIGURATION` share, such as after a file changed."""
    hashes: dict[frozenset[tuple[str, Label]], set[Label]] = {}
    for result in results:
        hashes.setdefault(_without_hash(result), set()).add(result.labels.get(CONFIGURATION))
    return {labels for labels, of in hashes.items() if len(of - {None}) > 1}


def _without_hash(result: RunResult) -> frozenset[tuple[str, Label]]:
    return frozenset((name, of) for name, of in result.labels.items() if name != CONFIGURATION)


def _is_evaluation(result: RunResult) -> bool:
    return not result.training


def overrides(result: RunResult) -> list[str]:
    """Returns the overrides in the label `settings`, each KEY=VALUE; a value may hold commas."""
    text = str(result.labels.get("settings") or "")
    return re.split(r",(?=[\w.@/]+=)", text) if text else []


def _shared_settings(results: Sequence[RunResult]) -> dict[Label, set[str]]:
    """Returns for each data set the settings of all runs, and the data settings of all runs on that data."""
    of_all = set.intersection(*(set(overrides(result)) for result in results))
    by_data: dict[Label, set[str]] = {}
    for result in results:
        own = {setting for setting in overrides(result) if setting.startswith("data.")}
        by_data[result.labels.get("data")] = by_data.get(result.labels.get("data"), own) & own
    return {data: of_all | own for data, own in by_data.items()}


def _labels(
    result: RunResult,
    shared_settings: dict[Label, set[str]],
    unlike: set[frozenset[tuple[str, Label]]],
) -> dict[str, Label]:
    """Returns the labels without the seed and shared settings, and with the default order of the objective.

    They include `CONFIGURATION` only if nothing else separates the runs (`_alike_but_for_files`).
    """
    shared = shared_settings[result.labels.get("data")]
    hidden = ("seed",) if _without_hash(result) in unlike else ("seed", CONFIGURATION)
    labels = {label: value for label, value in result.labels.items() if label not in hidden}
    if labels.get("settings") is not None:
        labels["settings"] = ",".join(s for s in overrides(result) if s not in shared) or None
    if labels.get("divergence") not in (None, "none") and labels.get("order") is None:
        labels["order"] = "pq" if labels.get("alpha") is None else "pr"
    return labels


def _place(row: Row) -> Any:
    """Returns the sort key of a row: baselines first, then divergence, order, α and λ, then other labels."""

    def rank(names: dict[str, str], name: Label) -> tuple[int, str]:
        return (list(names).index(str(name)) if name in names else len(names), str(name))

    def number(value: Label) -> tuple[int, float, str]:
        return (1, float(value), "") if isinstance(value, int | float) else (0, 0.0, str(value))

    labels = row.labels
    return (
        not row.baseline,
        rank(METHODS, labels.get("method")),
        rank(DIVERGENCES, labels.get("divergence")),
        str(labels.get("order")),
        number(labels.get("alpha")),
        number(labels.get("lam")),
        sorted((label, number(value)) for label, value in labels.items()),
    )


def _mean_over_sets(scores: Sequence[Score | None]) -> Score | None:
    taken = [score for score in scores if score is not None]
    if not taken or len(taken) < len(scores):
        return None
    if len({len(score.values) for score in taken}) == 1:  # one value per sampling seed: average seed by seed
        return Score.over_seeds([sum(v) / len(v) for v in zip(*(s.values for s in taken), strict=True)])
    means = [score.mean for score in taken]
    return Score(sum(means) / len(means), None, means)


_LONG_NUMBER = re.compile(r"(?<==)-?\d+\.\d{6,}(e[+-]?\d+)?(?=,|$)")
"""A number of a setting that a search chose, such as a learning rate, with more digits than a table has."""


def label_text(row: Row, label: str) -> str:
    """Returns the value of a label of `row` as tables write it."""
    if label == "method":
        return row.method
    if label == "divergence":
        return row.divergence
    value = row.labels.get(label)
    if value is None:
        return MISSING
    if isinstance(value, float):
        return f"{value:g}"
    return _LONG_NUMBER.sub(lambda number: f"{float(number[0]):g}", plain(str(value)))


def score_text(row: Row, score: Score | None, digits: int, plus_minus: str = " ± ") -> str:
    """Returns a score of `row` as the table writes it."""
    if score is None:
        return MISSING
    if math.isnan(score.mean):
        word = "diverged" if any(run.diverged_step is not None for run in row.runs) else "failed"
        failed = sum(map(math.isnan, score.values))
        return word if failed in (0, len(score.values)) else f"{word} {failed}/{len(score.values)}"
    text = f"{score.mean:z.{digits}f}"  # removes the minus of a rounded zero
    return text if score.std is None else f"{text}{plus_minus}{score.std:.{digits}f}"
