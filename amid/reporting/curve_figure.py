"""Draws curves over optimiser steps: of the training loss, and of the validation score."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from amid.reporting.drawing import COLOURS, MOST_PANELS, minus, number_of, shades_of
from amid.reporting.labels import GREY
from amid.reporting.names import by_name, named_baselines, names_of
from amid.reporting.sections import FAILED, outcome
from amid.reporting.table import SYMBOLS, Row, Table

BASELINES = "Baselines"
LEGEND_CHARACTERS = 64
PANELS_ACROSS = 3
TITLE_CHARACTERS = 36
SMOOTHED_FROM = 40
"""The fewest records of a training curve that is drawn smoothed."""
ROOM_OF_A_LINE = 0.1
"""The share of a panel's height that a line of its legend takes."""

Logged = Mapping[int, Mapping[str, Mapping[int, float]]]
"""The identity of a run -> the name of a curve -> optimiser step -> value."""

Line = tuple[str, Row, Any]
"""A line of a panel: its name, its row, and its colour."""


def draw_curves(table: Table, logged: Logged, key: str, name: str) -> Canvas | None:
    """Draws a curve over optimiser steps: a line for each setting, panels for baselines and for each series.

    Args:
        table: the table of all runs.
        logged: the curves of each run.
        key: the key of the curve.
        name: the name of the curve on the axis.
    """
    rows = [row for row in table.rows if any(logged.get(id(run), {}).get(key) for run in row.runs)]
    panels = panels_of(table, rows)
    if not rows or len(panels) > MOST_PANELS:
        return None
    across = min(PANELS_ACROSS, len(panels))
    down = math.ceil(len(panels) / across)
    figure = Canvas(figsize=(1 + 3.6 * across, 0.6 + 2.8 * down), layout="constrained")
    shared: Literal["all", "none"] = "all" if key.startswith("valid/") else "none"
    all_axes = [*figure.subplots(down, across, squeeze=False, sharex=True, sharey=shared).flat]
    legend: dict[str, Any] = {}
    smoothed = False
    for axes, (of_panel, lines) in zip(all_axes, panels.items(), strict=False):
        found = {
            id(run): {s: y for s, y in logged.get(id(run), {}).get(key, {}).items() if math.isfinite(y)}
            for _, row, _ in lines
            for run in row.runs
        }
        drawn, any_smoothed, any_failed = _draw_panel(table, axes, lines, found)
        smoothed = smoothed or any_smoothed
        if not of_panel.startswith(BASELINES) and (of_panel or len(lines) > 1):
            legend |= {own: line for own, line in drawn.items() if own not in legend}
        heading = of_panel or (lines[0][0] if len(lines) == 1 else "")
        axes.set_title(textwrap.fill(heading, TITLE_CHARACTERS), fontsize=10)
        if of_panel.startswith(BASELINES):
            low, high = axes.get_ylim()
            axes.set_ylim(low, high + (high - low) * ROOM_OF_A_LINE * math.ceil(len(lines) / 2))
            axes.legend(fontsize=8, loc="upper center", ncols=2)
        if any_failed:
            legend["failed"] = Line2D([], [], color=GREY, linestyle=":", marker="x")
    for axes in all_axes[len(panels) :]:
        axes.remove()
    for axes in all_axes[len(panels) - across : len(panels)]:
        axes.tick_params(labelbottom=True)
    figure.supxlabel("Optimiser step", fontsize=10)
    figure.supylabel(f"{name}, smoothed" if smoothed else name, fontsize=10)
    if legend:
        columns = max(LEGEND_CHARACTERS * across // 2 // (max(map(len, legend)) + 4), 1)
        figure.legend(legend.values(), legend.keys(), loc="outside upper center", ncols=columns)
    return figure


def panels_of(table: Table, rows: Sequence[Row]) -> dict[str, list[Line]]:
    """Returns the lines of each panel by its title: baselines, at most one for each colour, then series."""
    grid = [row for row in rows if not row.baseline]
    coloured_by, shades = shades_of(grid)
    series = by_name(table, grid, (coloured_by,)) if coloured_by else {"": grid} if grid else {}
    named = [*named_baselines(table, [row for row in rows if row.baseline]).items()]
    panels: dict[str, list[Line]] = {}
    for start in range(0, len(named), len(COLOURS)):
        of_panel = f"{BASELINES} {start // len(COLOURS) + 1}" if start else BASELINES
        several = zip(named[start:], COLOURS, strict=False)
        panels[of_panel] = [(own, row, colour) for (own, row), colour in several]
    for of_panel, members in series.items():
        names = names_of(table, members, ())
        panels[of_panel] = [
            (
                f"{SYMBOLS[coloured_by]} = {minus(number_of(row, coloured_by))}" if coloured_by else own,
                row,
                shades.get(number_of(row, coloured_by), COLOURS[i % len(COLOURS)]),
            )
            for i, (own, row) in enumerate(zip(names, members, strict=True))
        ]
    return panels


def _draw_panel(
    table: Table, axes: Any, lines: Sequence[Line], found: Mapping[int, Mapping[int, float]]
) -> tuple[dict[str, Any], bool, bool]:
    """Draws the lines of one panel.

    Args:
        table: the table of all runs.
        axes: the axes of the panel.
        lines: the settings.
        found: the curve of each run, by its identity.

    Returns:
        The drawn lines by name, whether a line is smoothed, and whether a run failed.
    """
    failed: list[tuple[Mapping[int, float], int | None, Any]] = []
    drawn: dict[str, Any] = {}
    smoothed = False
    for own, row, colour in lines:
        trained = []
        for run in row.runs:
            if not (curve := found[id(run)]):
                continue
            if outcome(run, table.quality) not in FAILED:
                trained.append(curve)
            else:
                failed.append((curve, run.diverged_step, colour))
        steps = sorted(set.intersection(*(set(curve) for curve in trained))) if trained else []
        means = [sum(curve[step] for curve in trained) / len(trained) for step in steps]
        marker = "o" if len(steps) == 1 else ""
        smoothed = smoothed or len(means) >= SMOOTHED_FROM
        (line,) = axes.plot(steps, _smoothed(means), color=colour, label=own, marker=marker)
        drawn.setdefault(own, line)
    _draw_failed(axes, failed)
    return drawn, smoothed, bool(failed)


def _draw_failed(axes: Any, failed: Sequence[tuple[Mapping[int, float], int | None, Any]]) -> None:
    """Draws the curves of failed runs, up to the step of divergence; cuts them far from the other curves."""
    others = [y for line in axes.lines for y in line.get_ydata()]
    low, high = (min(others), max(others)) if others else (-math.inf, math.inf)
    room = (high - low) / 2 if others else 0.0
    for curve, diverged_step, colour in failed:
        steps = [*curve, max(curve) if diverged_step is None else diverged_step]
        heights = [min(max(y, low - room), high + room) for y in (*curve.values(), curve[max(curve)])]
        axes.plot(steps, heights, color=colour, linestyle=":", linewidth=1.2)
        axes.plot(steps[-1], heights[-1], "x", color=colour)


def _smoothed(values: Sequence[float]) -> list[float]:
    """Returns the mean of each value and its neighbours, a fortieth of all values to either side."""
    reach = len(values) // SMOOTHED_FROM
    around = (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
    return [sum(near) / len(near) for near in around]
