"""Draws the figures: scores over α, λ and k, quality against diversity, heat maps, training curves."""

import itertools
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from amid.measures import TRAINING, measure_of, pass_name
from amid.reporting.curve_figure import (
    LEGEND_CHARACTERS,
    PANELS_ACROSS,
    TITLE_CHARACTERS,
    Logged,
    draw_curves,
    panels_of,
)
from amid.reporting.drawing import (
    COLOURS,
    MARKERS,
    MOST_PANELS,
    STYLE,
    axis_title,
    minus,
    number_of,
    shades_of,
)
from amid.reporting.folders import curves
from amid.reporting.front_figure import draw_fronts
from amid.reporting.fronts import Fronts
from amid.reporting.labels import GREY, draw_levels, place_labels
from amid.reporting.names import by_name, named_baselines, names_of
from amid.reporting.table import SYMBOLS, Row, Table
from amid.results import RunResult

DPI = 200
BASELINE_MARKERS = ("X", "P", "d", ">", "h", "<", "*", "8")
LEGEND_COLUMNS = 5


@dataclass(frozen=True)
class Figure:
    """A written figure: the name of its PNG file, and its caption. Its PDF file has the same name."""

    file: str
    caption: str


def draw_figures(
    table: Table, records: Mapping[Path, RunResult], directory: Path, fronts: Sequence[Fronts] = ()
) -> list[Figure]:
    """Writes the figures that the rows of `table` allow, as PNG and PDF files, to `directory`.

    alpha and lambda need an α or λ that varies within one setting. plane needs a row with both scores.
    divergence needs an α and a divergence that both vary. alpha_lambda needs an α that varies at two or more
    λ of one setting. pass_at_k needs pass@k for two or more k. training and validation need curves in the
    folders of `records`, the runs of `table`. The last three, and fronts, have at most `MOST_PANELS`
    panels. fronts needs runs that were scored at several temperatures, `fronts`.

    Raises:
        InputError: naming a file of curves that cannot be read.
    """
    logged = {id(run): curves(folder) for folder, run in records.items()}
    figures = []
    with matplotlib.rc_context(STYLE):
        for file, canvas, caption in _drawings(table, logged, fronts):
            if canvas is not None:
                canvas.savefig(directory / file, dpi=DPI)
                canvas.set_layout_engine("none")  # the PDF keeps the layout, which takes most of the time
                pdf = (directory / file).with_suffix(".pdf")
                FigureCanvasPdf(canvas).print_pdf(pdf, metadata={"CreationDate": None})  # draws once only
                figures.append(Figure(file, caption))
    return figures


def _drawings(
    table: Table, logged: Logged, fronts: Sequence[Fronts]
) -> Iterator[tuple[str, Canvas | None, str]]:
    """Yields each figure: its file, the drawing (None if the rows do not allow it), and its caption."""
    main, loss = measure_of(table.quality), TRAINING["loss"]
    quality, diversity = main.title, measure_of(table.diversity).title
    by_step = (
        "by optimiser step, the mean over the training seeds of a setting. A dotted line that ends in a "
        "cross is a run that diverged or collapsed. It is cut where it is far from the others."
    )
    bars = "Error bars show the standard deviation"
    yield (
        "alpha.png",
        _draw_lines(table, "alpha"),
        f"Effect of α on {quality} and {diversity}. {bars}; dashed lines are baselines.",
    )
    yield (
        "lambda.png",
        _draw_lines(table, "lam"),
        f"Effect of λ, the weight of the teacher in the mixture, on {quality} and {diversity}. "
        f"{bars}; dashed lines are baselines.",
    )
    yield (
        "plane.png",
        _draw_plane(table),
        f"{quality} against {diversity}. Higher is better, and further left is more diverse. The ringed "
        "points on the dotted line are the Pareto front: no other student is better in both. "
        f"{bars}; baselines are grey.",
    )
    for place, of_group in enumerate(fronts):
        number = f"_{place + 1}" if len(fronts) > 1 else ""
        yield f"fronts{number}.png", *draw_fronts(of_group)
    yield (
        "pass_at_k.png",
        _draw_passes(table),
        "Chance that one of k answers at least is right, against k. Error bars show the standard deviation "
        "over training seeds, if there are several. All panels have one scale.",
    )
    yield (
        "divergence.png",
        _draw_heat_map(table, "divergence"),
        f"{quality} by divergence and α. The best value is bold.",
    )
    yield "alpha_lambda.png", _draw_heat_map(table, "lam"), f"{quality} by α and λ. The best value is bold."
    yield (
        "training.png",
        draw_curves(table, logged, loss.logged, loss.title),
        f"{loss.title} {by_step} Losses of different divergences have different scales.",
    )
    yield (
        "validation.png",
        draw_curves(table, logged, main.logged, f"{quality} (validation)"),
        f"{quality} of the answers to the validation prompts {by_step}",
    )


def _draw_lines(table: Table, label: str) -> Canvas | None:
    """Draws both scores over a label, with one line for each setting of the other labels."""
    lines = _series(table, label)
    rows_drawn = [row for rows in lines.values() for row in rows]
    if not any(_scored(table, row) for row in rows_drawn):
        return None
    ticks = sorted({number_of(row, label) for row in rows_drawn})
    baselines = _baselines(table)

    # In inches: the layout is fixed, because the names of the baselines stand right of each panel.
    room = 0.25 + 0.075 * max(map(len, baselines), default=0)
    legend_rows = math.ceil((len(lines) + 1) / LEGEND_COLUMNS)  # with room for "failed"
    left, panel_width, panel_height, bottom, top = 0.7, 3.6, 2.9, 0.55, 0.2 + 0.22 * legend_rows
    width, height = 2 * (left + panel_width + room), bottom + panel_height + top
    figure = Canvas(figsize=(width, height))
    any_failed = False
    for panel, metric in enumerate((table.quality, table.diversity)):
        axes = figure.add_axes(
            (left / width + panel / 2, bottom / height, panel_width / width, panel_height / height)
        )
        at_bottom = axes.get_xaxis_transform()
        for index, (name, rows) in enumerate(lines.items()):
            colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
            style = "-" if index < len(COLOURS) else ":"
            x = [number_of(row, label) for row in rows]
            y, error = zip(*(_mean_and_std(table, row, metric) for row in rows), strict=True)
            axes.errorbar(x, y, error, label=name, color=colour, marker=marker, linestyle=style, capsize=3)
            failed = [number_of(row, label) for row in rows if _failed(table, row, metric)]
            axes.plot(failed, [0.03] * len(failed), "x", color=colour, transform=at_bottom, clip_on=False)
            any_failed = any_failed or bool(failed)
        axes.margins(y=0.12)
        draw_levels(axes, [(name, _mean(table, row, metric)) for name, row in baselines.items()])
        axes.set_xlabel(SYMBOLS[label])
        axes.set_ylabel(axis_title(table, metric))
        axes.set_xticks(ticks, _sparse(ticks))
        axes.grid(visible=False, axis="x")
    handles, names = figure.axes[0].get_legend_handles_labels()
    if any_failed:
        handles.append(Line2D([], [], color=GREY, marker="x", linestyle=""))
        names.append("failed")
    columns = math.ceil(len(names) / math.ceil(len(names) / LEGEND_COLUMNS))
    figure.legend(handles, names, loc="upper center", ncols=columns)
    return figure


def _draw_plane(table: Table) -> Canvas | None:
    """Draws Self-BLEU to the right and the main score upwards, with one point for each row."""
    rows = [row for row in table.rows if _scored(table, row)]
    if not rows:
        return None
    grid = [row for row in rows if not row.baseline]
    coloured_by, shades = shades_of(grid)
    figure = Canvas(figsize=(6.4, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()

    def draw(row: Row, colour: Any, marker: str, size: float) -> None:
        x, x_error = _mean_and_std(table, row, table.diversity)
        y, y_error = _mean_and_std(table, row, table.quality)
        axes.errorbar(x, y, y_error, x_error, color=colour, elinewidth=1, alpha=0.45, zorder=2)
        axes.plot(x, y, marker, color=colour, markersize=size, markeredgecolor="white", zorder=3)

    series = by_name(table, grid, (coloured_by,) if coloured_by else ())
    for index, members in enumerate(series.values()):
        path = [[_mean(table, row, metric) for row in members] for metric in (table.diversity, table.quality)]
        axes.plot(*path, color="#bbbbbb", linewidth=1, zorder=1)
        for row in members:
            draw(row, shades.get(number_of(row, coloured_by), COLOURS[0]), MARKERS[index % len(MARKERS)], 8)
    baselines = _baselines(table)
    for index, row in enumerate(baselines.values()):
        draw(row, GREY, BASELINE_MARKERS[index % len(BASELINE_MARKERS)], 10)
    front = [
        [_mean(table, row, metric) for row in _front(table, rows)]
        for metric in (table.diversity, table.quality)
    ]
    axes.plot(*front, color="black", linestyle=":", linewidth=1.4, zorder=1.5)
    axes.plot(*front, "o", markersize=14, markerfacecolor="none", markeredgecolor="black", zorder=4)
    axes.set_xlabel(axis_title(table, table.diversity) + "  (← more diverse)")
    axes.set_ylabel(axis_title(table, table.quality))
    axes.margins(0.1)

    if len(series) > 1 or (series and not coloured_by):
        handles = [
            Line2D([], [], color=GREY if coloured_by else COLOURS[0], marker=marker, linestyle="")
            for marker, _ in zip(itertools.cycle(MARKERS), series, strict=False)
        ]
        columns = max(LEGEND_CHARACTERS // (max(map(len, series)) + 4), 1)  # a marker takes the room of four
        figure.legend(handles, list(series), loc="outside upper center", ncols=min(len(series), columns))
    if coloured_by:
        _draw_colour_bar(axes, shades, SYMBOLS[coloured_by])
    _name_points(table, axes, rows, baselines, front)
    return figure


def _draw_passes(table: Table) -> Canvas | None:
    """Draws pass@k over k: a line for each setting, with a panel for the baselines and for each series."""
    ks = table.ks
    rows = [row for row in table.rows if any(not math.isnan(_mean(table, row, pass_name(k))) for k in ks)]
    panels = panels_of(table, rows)
    if len(ks) < 2 or not panels or len(panels) > MOST_PANELS:
        return None
    across = min(PANELS_ACROSS, len(panels))
    down = math.ceil(len(panels) / across)
    figure = Canvas(figsize=(1 + 3.6 * across, 0.8 + 3.0 * down), layout="constrained")
    all_axes = [*figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).flat]
    for axes, (of_panel, lines) in zip(all_axes, panels.items(), strict=False):
        for (own, row, colour), marker in zip(lines, itertools.cycle(MARKERS), strict=False):
            y, error = zip(*(_mean_and_std(table, row, pass_name(k)) for k in ks), strict=True)
            axes.errorbar(ks, y, error, label=own, color=colour, marker=marker, capsize=3)
        axes.set_xscale("log", base=2)
        axes.set_xticks(ks, [str(k) for k in ks])
        axes.set_title(textwrap.fill(of_panel, TITLE_CHARACTERS), fontsize=10)
        axes.legend(fontsize=8)
    for axes in all_axes[len(panels) :]:
        axes.remove()
    for axes in all_axes[len(panels) - across : len(panels)]:
        axes.tick_params(labelbottom=True)
    figure.supxlabel("k", fontsize=10)
    figure.supylabel(axis_title(table, pass_name(ks[0])).replace(f"@{ks[0]}", "@k"), fontsize=10)
    return figure


def _draw_colour_bar(axes: Any, shades: Mapping[float, Any], symbol: str) -> None:
    """Draws a colour bar right of the axes, with one field for each value of the coloured number."""
    one_each = BoundaryNorm(range(len(shades) + 1), len(shades))
    mapped = matplotlib.cm.ScalarMappable(one_each, ListedColormap(list(shades.values())))
    middles = [i + 0.5 for i in range(len(shades))]
    bar = axes.figure.colorbar(mapped, ax=axes, ticks=middles, aspect=30, pad=0.02)
    bar.set_ticklabels([minus(level) for level in shades])
    bar.ax.tick_params(which="both", length=0)
    bar.ax.set_title(symbol, fontsize=11)
    bar.outline.set_visible(False)


def _name_points(
    table: Table,
    axes: Any,
    rows: Sequence[Row],
    baselines: Mapping[str, Row],
    front: Sequence[Sequence[float]],
) -> None:
    """Writes the names of the baselines beside their points, away from other points and the Pareto front."""
    points = [
        (*_mean_and_std(table, row, table.diversity), *_mean_and_std(table, row, table.quality))
        for row in rows
    ]
    for (x0, x1), (y0, y1) in zip(*map(itertools.pairwise, front), strict=True):  # points along the front
        points += [(x0 + k / 6 * (x1 - x0), 0.0, y0 + k / 6 * (y1 - y0), 0.0) for k in range(1, 6)]
    place_labels(
        axes,
        [
            (_mean(table, row, table.diversity), _mean(table, row, table.quality), name)
            for name, row in baselines.items()
        ],
        [(x - dx, y - dy, x + dx, y + dy) for x, dx, y, dy in points],
    )


def _front(table: Table, rows: Sequence[Row]) -> list[Row]:
    """Returns the Pareto front of quality and diversity without the teacher, in order of Self-BLEU."""
    front: list[Row] = []
    for row in sorted(
        (row for row in rows if row.labels.get("method") != "teacher"),
        key=lambda row: (_mean(table, row, table.diversity), -_mean(table, row, table.quality)),
    ):
        if not front or _mean(table, row, table.quality) > _mean(table, front[-1], table.quality):
            front.append(row)
    return front


def _draw_heat_map(table: Table, down: Literal["divergence", "lam"]) -> Canvas | None:
    """Draws the main score in cells, with a column for each α and a row for each divergence or each λ.

    A map over divergences is at λ = 0.1 if λ varies. A map over λ has only settings with two or more λ.
    """
    lines = _series(table, "alpha")
    lams = {name: number_of(rows[0], "lam") for name, rows in lines.items()}
    if down == "divergence" and len(set(lams.values())) > 1 and 0.1 in lams.values():
        lines = {name: rows for name, rows in lines.items() if lams[name] == 0.1}
    if down == "lam":
        rest = dict(
            zip(lines, names_of(table, [rows[0] for rows in lines.values()], ("alpha", "lam")), strict=True)
        )
        lines = {
            name: rows
            for name, rows in lines.items()
            if len({lams[other] for other in lines if rest[other] == rest[name]}) > 1
        }
    cells = {(name, number_of(row, "alpha")): row for name, rows in lines.items() for row in rows}
    means = {cell: _mean(table, row, table.quality) for cell, row in cells.items()}
    finite = [mean for mean in means.values() if not math.isnan(mean)]
    if (down == "divergence" and len({row.divergence for row in cells.values()}) < 2) or not finite:
        return None
    names, alphas = list(lines), sorted({alpha for _, alpha in cells})
    low, high = min(finite), max(finite)
    figure = Canvas(figsize=(1.9 + 0.85 * len(alphas), 1.4 + 0.5 * len(names)), layout="constrained")
    axes = figure.subplots()
    image: Any = axes.imshow(
        [[means.get((name, alpha), math.nan) for alpha in alphas] for name in names],
        cmap="cividis",
        vmin=low,
        vmax=high if high > low else low + 1,
        aspect="auto",
    )
    for (name, alpha), mean in means.items():
        failed = _failed(table, cells[name, alpha], table.quality)
        text = "failed" if failed else "–" if math.isnan(mean) else f"{mean:.1f}"
        dark = not math.isnan(mean) and sum(image.cmap(image.norm(mean))[:3]) < 1.5
        axes.text(
            alphas.index(alpha),
            names.index(name),
            text,
            ha="center",
            va="center",
            color="white" if dark else "black",
            fontweight="bold" if text == f"{high:.1f}" else "normal",
        )
    axes.set_xticks(range(len(alphas)), [minus(alpha) for alpha in alphas])
    axes.set_yticks(range(len(names)), names)
    axes.set_xticks([j - 0.5 for j in range(1, len(alphas))], minor=True)
    axes.set_yticks([i - 0.5 for i in range(1, len(names))], minor=True)
    axes.set_facecolor("#eeeeee")
    axes.grid(visible=False)
    axes.grid(visible=True, which="minor", color="white", linewidth=2)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("α")
    axes.set_title(axis_title(table, table.quality), fontsize=10)
    return figure


def _series(table: Table, label: str) -> dict[str, list[Row]]:
    """Returns the grid's rows that differ in the number `label` only, ordered by it, by the rest's name."""
    grid = [row for row in table.rows if not row.baseline and not math.isnan(number_of(row, label))]
    return {
        name: sorted(rows, key=lambda row: number_of(row, label))
        for name, rows in by_name(table, grid, (label,)).items()
        if len({number_of(row, label) for row in rows}) > 1
    }


def _baselines(table: Table) -> dict[str, Row]:
    """Returns the baselines that have scores, by name."""
    return named_baselines(table, [row for row in table.rows if row.baseline and _scored(table, row)])


def _mean_and_std(table: Table, row: Row, metric: str) -> tuple[float, float]:
    """Returns mean and standard deviation of a score; NaN and 0 if it is not finite."""
    score = table.score(row, metric)
    if score is None or not math.isfinite(score.mean):
        return math.nan, 0.0
    return score.mean, score.std or 0.0


def _mean(table: Table, row: Row, metric: str) -> float:
    return _mean_and_std(table, row, metric)[0]


def _scored(table: Table, row: Row) -> bool:
    """Returns whether the row has a number for both scores."""
    return not any(math.isnan(_mean(table, row, metric)) for metric in (table.quality, table.diversity))


def _failed(table: Table, row: Row, metric: str) -> bool:
    """Returns whether the score was taken but is no number."""
    return table.score(row, metric) is not None and math.isnan(_mean(table, row, metric))


def _sparse(ticks: Sequence[float]) -> list[str]:
    """Returns the text of each tick; empty if the text would run into the text before it."""
    texts: list[str] = []
    last = -math.inf
    for tick in ticks:
        if tick - last >= 0.05 * (ticks[-1] - ticks[0]):
            texts.append(minus(tick))
            last = tick
        else:
            texts.append("")
    return texts
