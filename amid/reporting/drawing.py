"""Style, colours and axes that the figures of a report share."""

import math
from collections.abc import Sequence
from typing import Any

import matplotlib

from amid.measures import measure_of
from amid.reporting.rows import AVERAGE, Row
from amid.reporting.table import Table

MOST_PANELS = 12
"""A figure with more panels is not drawn."""

STYLE = {
    "font.size": 10,
    "text.parse_math": False,  # names with two $
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "lines.markersize": 6,
    "legend.frameon": False,
}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C564B", "#000000")
"""Okabe and Ito's palette, distinct with any colour vision; brown replaces its pale yellow."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")


def shades_of(grid: Sequence[Row]) -> tuple[str | None, dict[float, Any]]:
    """Returns the number that colours show, α or λ, and the colour of each value in ascending order."""
    viridis = matplotlib.colormaps["viridis"]
    for label in ("alpha", "lam"):
        levels = sorted({n for row in grid if not math.isnan(n := number_of(row, label))})
        if len(levels) > 1:
            return label, {level: viridis(0.92 * i / (len(levels) - 1)) for i, level in enumerate(levels)}
    return None, {}


def number_of(row: Row, label: str | None) -> float:
    """Returns the value of a label that is a number; NaN for any other, or without a label."""
    value = row.labels.get(label) if label else None
    return float(value) if isinstance(value, int | float) else math.nan


def axis_title(table: Table, metric: str) -> str:
    """Returns the title of a score's axis: its name, and the sets that it is the mean of."""
    where = table.overall(metric)
    if where == AVERAGE:
        sets = table.sets(metric)
        names = ", ".join(sets)
        where = f"mean of {names if len(names) <= 16 else f'{len(sets)} sets'}"
    return f"{measure_of(metric).title} ({where})"


def minus(number: float) -> str:
    """Returns a number with a minus sign in place of a hyphen."""
    return f"{number:g}".replace("-", "−")
