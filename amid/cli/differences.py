"""Tests the differences between systems that answered the same prompts, at the same temperature."""

import itertools
from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from amid.errors import InputError
from amid.measures import k_of, measure_of
from amid.metrics import (
    Comparison,
    Metric,
    Resampled,
    how_tested,
    paired_bootstrap,
    paired_bootstrap_of_sets,
    signed,
)
from amid.scoring.scores import metric_values, passes, per_prompt, resampled, unread_by
from amid.scoring.systems import System


def print_differences(
    systems: Sequence[System], name: str, metrics: Mapping[str, Metric], out: Console
) -> bool:
    """Prints the difference of every two systems at the same rung in a metric, or why none can be tested.

    Returns:
        Whether the metric can read the answers.

    Args:
        systems: answers of at least two systems to the same set.
        name: the metric or the pass@k that is tested.
        metrics: the functions that it is computed from.
        out: where to print.

    Raises:
        InputError: if the metric cannot score these answers, or cannot be tested on them.
    """
    if len(systems[0].by_seed[0]) == 1:
        out.print("One prompt cannot show a difference; give two or more.\n", markup=False)
        return True
    title = measure_of(name).title
    table = _empty_table(systems[0].dataset, title)
    try:
        scores = [scores_of_prompts(name, metrics, system) for system in systems]
    except ValueError as error:
        raise InputError(f"--metric={name} cannot score these answers: {error}") from error
    if any(name in unread_by(metrics, s.by_seed) for s in systems) and not _any_above_0(scores):
        out.print(f"{title} cannot read these answers: no difference in it is tested.\n", markup=False)
        return False
    tested: list[Comparison] = []
    for (one, first), (other, second) in itertools.combinations(zip(systems, scores, strict=True), 2):
        if _at_other_rungs(one, other):
            continue
        if first is None or second is None:
            out.print(
                f"{title} is of a whole set and cannot be computed again for other draws of prompts: no "
                "difference in it is tested.\n",
                markup=False,
            )
            return True
        try:
            found = _compared(first, second, len(one.by_seed[0]))
        except ValueError as error:
            raise InputError(f"--metric={name} cannot be tested on these answers: {error}") from error
        tested.append(found)
        table.add_row(
            escape(one.name),
            escape(other.name),
            signed(found.difference),
            found.interval,
            f"{found.p_value:.4f}" if found.p_value else "<0.0002",  # one of 10,000 resamples is 0.0002
            "*" if found.significant else "",
        )
    if not tested:
        return True
    out.print(table)
    of = "scores of the set" if callable(scores[0]) else "means over prompts"
    out.print(
        f"Difference of the {of}, with its 95% interval {how_tested(tested)}; *: the interval leaves out 0."
        "\n",
        markup=False,
    )
    return True


def _empty_table(dataset: str, title: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title=escape(dataset) or None, title_justify="left")
    for column in ("First", "Second", f"{escape(title)} difference", "95% interval", "p", ""):
        is_text = column in ("First", "Second", "")
        table.add_column(column, justify="left" if is_text else "right", overflow="fold", no_wrap=not is_text)
    return table


def scores_of_prompts(
    name: str, metrics: Mapping[str, Metric], system: System
) -> Sequence[float] | Resampled | None:
    """Returns the score of each prompt, or of draws of prompts, by the metric or the pass@k called `name`."""
    by_seed = system.by_seed
    given = metric_values(metrics, by_seed)
    if (k := k_of(name)) is not None:
        return passes(given, by_seed, [k])[name]
    return per_prompt(given[name], by_seed) or resampled(given[name], by_seed)


def _at_other_rungs(one: System, other: System) -> bool:
    """Whether the answers of two systems, one of them a further rung of a ladder, were drawn differently.

    Answers of two runs at their own settings are compared, whatever these are.
    """
    if one.name == one.of and other.name == other.of:
        return False
    return any(
        one.drawn_at[ladder] != other.drawn_at[ladder] for ladder in {*one.drawn_at} & {*other.drawn_at}
    )


def _any_above_0(scores: Sequence[Sequence[float] | Resampled | None]) -> bool:
    return any(scored is None or callable(scored) or any(scored) for scored in scores)


def _compared(
    first: Sequence[float] | Resampled, second: Sequence[float] | Resampled, prompts: int
) -> Comparison:
    if callable(first) and callable(second):
        return paired_bootstrap_of_sets(first, second, prompts)
    assert not callable(first)
    assert not callable(second)
    return paired_bootstrap(first, second)
