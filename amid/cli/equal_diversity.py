"""Compares systems with answers at several temperatures where their answers are equally diverse."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from amid.config.ladders import LADDERS
from amid.errors import InputError
from amid.measures import measure_of
from amid.metrics import Comparison, Front, Resampled, signed
from amid.metrics.fronts import Curves, difference_of_areas, differences_at
from amid.scoring.ladders import similarity
from amid.scoring.scores import diversity_per_prompt, self_bleus_by_seed
from amid.scoring.systems import System, fewest_answers

DIVERSITIES = ("self_bleu", "distinct_1", "distinct_2")
"""The measures of diversity that each prompt has a value of."""

RESAMPLES = 10_000
"""Sets of prompts that are drawn for an interval."""


def print_at_equal_diversity(
    systems: Sequence[System],
    metric: str,
    scores: Callable[[System], Sequence[float] | Resampled | None],
    diversity: str,
    at: Sequence[float],
    out: Console,
) -> None:
    """Prints the difference in a metric of every two systems of a group where their diversity is equal.

    Args:
        systems: systems that answer the same prompts; those with several rungs of a ladder are compared.
        metric: the name of the metric.
        scores: returns the score of each prompt of a system in the metric, unless it is of a whole set.
        diversity: one of `DIVERSITIES`.
        at: diversities to compare at, besides the mean over the diversities that both systems reach.
        out: the console.

    Raises:
        InputError: if two systems do not both reach a diversity of `at`.
    """
    for ladder in LADDERS:
        curves = {of: rungs for of, rungs in _curves(systems, ladder).items() if len(rungs) > 1}
        if len(curves) < 2:
            continue
        if reason := _why_not(curves, diversity):
            out.print(f"{reason}: no quality at equal diversity is given.\n", markup=False)
            continue
        if callable(found := scores(systems[0])) or found is None:
            whole = f"{measure_of(metric).title} is of a whole set"
            out.print(f"{whole}: no quality at equal diversity is given.\n", markup=False)
            continue
        drawn = {of: Curves(_front(rungs, scores, diversity), RESAMPLES) for of, rungs in curves.items()}
        _print(drawn, systems[0].dataset, metric, diversity, at, out)


def check_ladders_at(at: Sequence[float], groups: Sequence[Sequence[System]]) -> None:
    """Checks that systems can be compared at the diversities `at`, if there are any.

    Raises:
        InputError: if no two systems of a group have answers at several rungs of one ladder.
    """
    several = (
        sum(len(rungs) > 1 for rungs in _curves(systems, ladder).values())
        for systems in groups
        for ladder in LADDERS
    )
    if at and max(several) < 2:
        raise InputError(
            f"--at {at[0]:g}: no two of these systems answer the same prompts at several temperatures; leave "
            "it out, or give files NAME@TEMPERATURE.jsonl or runs with generation.temperatures"
        )


def _curves(systems: Sequence[System], ladder: str) -> dict[str, dict[float, System]]:
    """Returns the systems at each rung of a ladder, by the system whose answers they are."""
    found: dict[str, dict[float, System]] = {}
    for system in systems:
        for rung in system.rungs:
            if rung.ladder == ladder:
                found.setdefault(system.of, {})[rung.value] = system
    return {of: dict(sorted(rungs.items())) for of, rungs in found.items()}


def _why_not(curves: Mapping[str, Mapping[float, System]], diversity: str) -> str:
    """Returns why curves cannot be compared; empty if they can."""
    systems = [system for rungs in curves.values() for system in rungs.values()]
    numbers = {system.name: _answers(system) for system in systems}
    if len(systems[0].by_seed[0]) < 2:
        return "One prompt cannot show a difference"
    words = {system.name: system.words for system in systems}
    if len(set(words.values())) > 1:
        of_each = ", ".join(f"{name} {of}" for name, of in words.items())
        return f"Diversity of unlike tokenisers cannot be compared ({of_each}); choose one with --tokenize"
    if len(set(numbers.values())) > 1:
        of_each = ", ".join(f"{name} {number}" for name, number in numbers.items())
        return (
            f"Diversity among unequal numbers of answers to a prompt cannot be compared ({of_each}); draw "
            "equally many"
        )
    if diversity == "self_bleu" and min(map(fewest_answers, systems)) < 2:
        return "Self-BLEU needs several answers to each prompt"
    return ""


def _answers(system: System) -> str:
    """Returns the answers to a prompt of each seed."""
    return ",".join(str(sorted({len(row.answers) for row in of_seed})) for of_seed in system.by_seed)


def _front(
    rungs: Mapping[float, System],
    scores: Callable[[System], Sequence[float] | Resampled | None],
    diversity: str,
) -> Front:
    qualities, diversities = [], []
    for system in rungs.values():
        quality: Any = scores(system)
        qualities.append(quality)
        alike = self_bleus_by_seed(system.by_seed, system.words) if diversity == "self_bleu" else []
        of_prompts = diversity_per_prompt(system.by_seed, alike, system.words)[diversity]
        diversities.append(similarity(diversity, of_prompts))
    return Front(list(rungs), qualities, diversities)


def _print(
    curves: Mapping[str, Curves],
    dataset: str,
    metric: str,
    diversity: str,
    at: Sequence[float],
    out: Console,
) -> None:
    quality, equal = measure_of(metric).title, measure_of(diversity).title
    if diversity != "self_bleu":  # elsewhere it is of all answers of a seed
        equal += " of a prompt"
    turned = measure_of(diversity).better == "higher"
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title=escape(dataset) or None, title_justify="left")
    for column in ("First", "Second", f"Equal {equal}", f"{quality} difference", "95% interval", "p", ""):
        table.add_column(escape(column), justify="left" if column in ("First", "Second", "") else "right")
    apart: list[str] = []
    reached: set[float] = set()
    for (one, first), (other, second) in itertools.combinations(curves.items(), 2):
        reach = {of: _reach(curve, turned) for of, curve in ((one, first), (other, second))}
        low, high = max(ends[0] for ends in reach.values()), min(ends[1] for ends in reach.values())
        whole = difference_of_areas(first, second)
        said = " and ".join(f"{of} from {ends[0]:.1f} to {ends[1]:.1f}" for of, ends in reach.items())
        if whole is None:
            none = "no" if low > high else "too little"
            apart.append(f"{one} and {other} reach {none} {equal} in common ({said}); add temperatures.")
        else:
            _add(table, one, other, f"{low:.1f} to {high:.1f}", whole)
        found_at = differences_at(first, second, similarity(diversity, at)) if at else []
        for value, found in zip(at, found_at, strict=True):
            if found is None:
                apart.append(
                    f"--at {value:g}: {one} and {other} do not both reach {equal} {value:g} ({said}), or it "
                    "is too near an end; choose a value inside of both, or add temperatures"
                )
                continue
            _add(table, one, other, f"{value:g}", found)
            reached.add(value)
    if not_reached := [value for value in at if value not in reached]:
        raise InputError(next(line for line in apart if line.startswith(f"--at {not_reached[0]:g}: ")))
    if table.row_count:
        out.print(table)
        out.print(
            f"Difference of {quality} where {equal} is equal: the mean over the values that both reach, or "
            "at one value. The curves are interpolated between temperatures. The prompts are drawn anew for "
            "the interval; *: it leaves out 0.\n",
            markup=False,
        )
    for line in apart:
        out.print(f"{line}\n", markup=False)


def _reach(curve: Curves, turned: bool) -> tuple[float, float]:
    """Returns the least and the largest diversity of a curve."""
    low, high = curve.reach
    return (100 - high, 100 - low) if turned else (low, high)


def _add(table: Table, one: str, other: str, where: str, found: Comparison) -> None:
    table.add_row(
        escape(one),
        escape(other),
        where,
        signed(found.difference),
        found.interval,
        f"{found.p_value:.4f}" if found.p_value else "<0.0002",
        "*" if found.significant else "",
    )
