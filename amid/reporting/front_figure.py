"""Draws quality over diversity along the ladder of temperatures of each setting."""

import itertools
from typing import Any

import numpy
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from amid.measures import measure_of
from amid.metrics import quality_at
from amid.reporting.drawing import COLOURS, MARKERS, MOST_PANELS, axis_title, minus, number_of, shades_of
from amid.reporting.fronts import Fronts, owner
from amid.reporting.labels import GREY
from amid.reporting.names import by_name, named_baselines
from amid.reporting.table import SYMBOLS

POINTS = 120
"""Points of a drawn curve."""

DASHES = ("-", "--", ":", "-.")
PANELS_ACROSS = 2

Line = tuple[str, int, Any, Any]
"""A curve: its name, the place of its row, its colour, and its line style."""


def draw_fronts(fronts: Fronts) -> tuple[Canvas | None, str]:
    """Returns the figure of the curves and its caption: a panel for each series, baselines in all panels.

    The figure is None if it would have more than `MOST_PANELS` panels.
    """
    panels = _panels(fronts)
    if len(panels) > MOST_PANELS:
        return None, ""
    across = min(PANELS_ACROSS, len(panels))
    down = -(-len(panels) // across)
    figure = Canvas(figsize=(0.8 + 5.2 * across, 1.1 + 3.7 * down), layout="constrained")
    every = [*figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).flat]
    rungs = sorted({rung for by_seed in fronts.rows.values() for of in by_seed.values() for rung in of.rungs})
    shapes = dict(zip(rungs, itertools.cycle(MARKERS), strict=False))
    for axes, (title, lines) in zip(every, panels.items(), strict=False):
        for line in lines:
            _draw_curve(axes, fronts, line, shapes)
        for target in fronts.targets:
            at = target.at[fronts.everywhere]
            axes.axvline(at, color=GREY, linewidth=0.9, linestyle=(0, (1, 3)), zorder=0)
            axes.annotate(
                target.name, (at, 1), (2, -2), xycoords=("data", "axes fraction"), color=GREY,
                textcoords="offset points", fontsize=8, rotation=90, va="top",
            )  # fmt: skip
        axes.set_title(title, fontsize=10)
        axes.legend(fontsize=8, loc="lower right", ncols=1 + (len(lines) > 8))
        axes.tick_params(labelbottom=True)
    for axes in every[len(panels) :]:
        axes.remove()
    figure.supxlabel(f"{axis_title(fronts.table, fronts.diversity)}  (← more diverse)", fontsize=10)
    figure.supylabel(axis_title(fronts.table, fronts.quality), fontsize=10)
    marks = [Line2D([], [], color=GREY, marker=shape, linestyle="") for shape in shapes.values()]
    figure.legend(
        marks, [f"{rung:g}" for rung in rungs], loc="outside upper center", ncols=min(len(rungs), 8),
        title={"temperature": "Temperature", "top_p": "Top-p"}[fronts.ladder], title_fontsize=9, fontsize=9,
    )  # fmt: skip
    return figure, _caption(fronts)


def _caption(fronts: Fronts) -> str:
    quality, diversity = measure_of(fronts.quality).title, measure_of(fronts.diversity).title
    given = " and ".join(owner(target) for target in fronts.targets)
    rung = {"temperature": "temperature", "top_p": "top-p"}[fronts.ladder]
    dotted = f" Dotted lines: the {diversity} of {given} in the first table." if given else ""
    return (
        f"{quality} over {diversity}: each curve is one setting, and each marker a {rung}. "
        f"At equal {diversity}, the higher curve is better.{dotted}"
    )


def _panels(fronts: Fronts) -> dict[str, list[Line]]:
    """Returns the curves of each panel by its title: the baselines, and the rows of one series."""
    table = fronts.table
    place_of = {id(table.rows[place]): place for place in fronts.rows}
    rows = [table.rows[place] for place in fronts.rows]
    grid = [row for row in rows if not row.baseline]
    named = named_baselines(table, [row for row in rows if row.baseline])
    baselines: list[Line] = [
        (name, place_of[id(row)], "black" if i < len(DASHES) else GREY, DASHES[i % len(DASHES)])
        for i, (name, row) in enumerate(named.items())
    ]
    coloured_by, shades = shades_of(grid)
    if not coloured_by:
        own = named_baselines(table, rows)
        return {
            "": [
                (name, place_of[id(row)], COLOURS[i % len(COLOURS)], DASHES[i // len(COLOURS) % len(DASHES)])
                for i, (name, row) in enumerate(own.items())
            ]
        }
    panels = {}
    for title, members in by_name(table, grid, (coloured_by,)).items():
        lines = [
            (f"{SYMBOLS[coloured_by]} = {minus(value)}", place_of[id(row)], shades[value], "-")
            for row in members
            if (value := number_of(row, coloured_by)) in shades
        ]
        panels[title] = [*baselines, *lines]
    return panels


def _draw_curve(axes: Any, fronts: Fronts, line: Line, shapes: dict[float, str]) -> None:
    """Draws the mean curve of a row over its training seeds, with a marker at each temperature."""
    name, place, colour, style = line
    systems = list(fronts.systems(place, fronts.everywhere).values())
    low, high = fronts.reach(place)
    x = numpy.linspace(low, high, POINTS)
    axes.plot(x, quality_at(systems, x), color=colour, linestyle=style, label=name, linewidth=1.4)
    knots = [front.curve() for front in systems]
    if len({tuple(front.temperatures) for front in systems}) == 1:
        means = [numpy.mean([of[axis][0] for of in knots], axis=0)[::-1] for axis in (0, 1)]
        for rung, at, quality in zip(systems[0].temperatures, *means, strict=True):
            axes.plot(at, quality, shapes[float(rung)], color=colour, markersize=5, markeredgecolor="white")
