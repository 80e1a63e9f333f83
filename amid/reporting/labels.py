"""Places names inside a figure where they cover the least of other names and of the points."""

import math
from collections.abc import Sequence
from typing import Any

GREY = "#555555"

Box = tuple[float, float, float, float]
"""The edges of a box: left, bottom, right, top."""

OFFSETS = [
    (distance * x, distance * y)
    for distance in (4, 8, 14, 22)
    for x, y in ((1, 1), (-1, 1), (1, -1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1))
]
"""The possible offsets of a label from its data point, in typographic points."""


def draw_levels(axes: Any, levels: Sequence[tuple[str, float]]) -> None:
    """Draws dashed horizontal lines, with their names right of the axes and apart from each other."""
    if not levels:
        return
    for _, value in levels:
        axes.axhline(value, color=GREY, linestyle="--", linewidth=1.1, zorder=1)
    axes.autoscale_view()
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom, top)
    gap = 0.07 * (top - bottom)
    levels = sorted(levels, key=lambda level: level[1])
    heights = [value for _, value in levels]
    for _ in range(100):  # push neighbours apart until none overlap
        for i in range(1, len(heights)):
            overlap = max(0.0, gap - (heights[i] - heights[i - 1]))
            heights[i - 1] -= overlap / 2
            heights[i] += overlap / 2
    across = axes.get_yaxis_transform()
    for (name, value), height in zip(levels, heights, strict=True):
        axes.plot([1, 1.035], [value, height], color=GREY, linewidth=0.8, transform=across, clip_on=False)
        axes.text(1.045, height, name, color=GREY, fontsize=9, va="center", transform=across)


def place_labels(
    axes: Any,
    labels: Sequence[tuple[float, float, str]],
    spreads: Sequence[tuple[float, float, float, float]],
) -> None:
    """Writes each text near its point, where it covers the least of other texts, points and error bars."""
    figure = axes.figure
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()
    pixel = figure.dpi / 72
    frame = tuple(axes.get_window_extent(renderer).extents)
    taken: list[Box] = []
    for left, low, right, high in spreads:
        (x0, y0), (x1, y1) = axes.transData.transform([(left, low), (right, high)])
        x, y, arm, dot = (x0 + x1) / 2, (y0 + y1) / 2, pixel, 8 * pixel
        taken += [
            (x0, y - arm, x1, y + arm),
            (x - arm, y0, x + arm, y1),
            (x - dot, y - dot, x + dot, y + dot),
        ]
    for x, y, text in labels:
        note = axes.annotate(
            text, (x, y), (0, 0), textcoords="offset points", color="#333333", fontsize=9, zorder=4
        )

        def place(offset: tuple[float, float], note: Any = note) -> Box:
            note.set_position(offset)
            note.set_ha("left" if offset[0] > 0 else "right" if offset[0] < 0 else "center")
            note.set_va("bottom" if offset[1] > 0 else "top" if offset[1] < 0 else "center")
            left, low, right, high = note.get_window_extent(renderer).extents
            return left, low, right, high

        def cost(offset: tuple[float, float], place: Any = place) -> float:
            box = place(offset)
            outside = _area(box) - _overlap(box, frame)
            return sum(_overlap(box, other) for other in taken) + 10 * outside + math.hypot(*offset)

        taken.append(place(min(OFFSETS, key=cost)))


def _area(box: Box) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def _overlap(a: Box, b: Box) -> float:
    return _area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
