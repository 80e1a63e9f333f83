"""A W&B workspace of a sweep, as code: curves over α, the plane, the settings and the training."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

from amid.measures import MEASURES, measure_of

MOST_RUNS = 100
"""Runs that a panel shows at most."""

LEGEND = "${config:method} ${config:divergence} α=${config:alpha} λ=${config:lam}"
"""The label of a run in a plot."""


@dataclass(frozen=True)
class SweepScores:
    """The scores of the runs of a sweep, and the name of their group in W&B."""

    group: str
    """The group of the runs in W&B: the name of the sweep's folder."""
    sets: Sequence[str]
    """Evaluation sets."""
    metrics: Sequence[str]
    """Metrics against references, the main one first."""
    valid_metric: str | None = None
    """The metric that scores validation answers."""
    diversity: str = "self_bleu"
    """The score of diversity: the name of a Self-BLEU that all runs have."""


def build_workspace(scores: SweepScores, entity: str, project: str) -> ws.Workspace:
    """Returns a workspace of the runs in the sweep's group; it sends nothing to W&B.

    Its sections: quality and diversity against α and λ, averaged over the evaluation sets, and the plane of
    both; the plane of each set; parallel coordinates from the settings to the scores, with the comparison of
    runs; the courses of the training.

    Args:
        scores: the scores to show.
        entity: the W&B user or team; empty for the user who saves the workspace.
        project: the W&B project of the runs.
    """
    quality, diversity = scores.metrics[0], scores.diversity
    courses = [measure.logged for measure in MEASURES if "workspace" in measure.shown]
    courses += [f"valid/{scores.valid_metric}"] if scores.valid_metric else []
    return ws.Workspace(
        name=f"{scores.group}: α-mixture distillation",
        entity=entity,
        project=project,
        auto_generate_panels=False,
        sections=[
            ws.Section(
                name="Quality and diversity",
                is_open=True,
                panels=[
                    _plane("average", "the average", quality, diversity),
                    *_against_settings(quality, diversity),
                ],
            ),
            ws.Section(
                name="Evaluation sets",
                is_open=len(scores.sets) < 3,
                panels=[_plane(f"test/{name}", name, quality, diversity) for name in scores.sets],
            ),
            _settings_section(quality, diversity),
            ws.Section(
                name="Training",
                is_open=True,
                panels=[
                    wr.LinePlot(title=name, x="trainer/global_step", y=[name], max_runs_to_show=MOST_RUNS)
                    for name in courses
                ],
            ),
        ],
        settings=ws.WorkspaceSettings(max_runs=MOST_RUNS),
        runset_settings=ws.RunsetSettings(filters=[ws.Metric("Group") == scores.group]),
    )


def specification(workspace: ws.Workspace) -> str:
    """Returns the JSON that saving `workspace` would send to W&B."""
    view: dict[str, Any] = json.loads(workspace._to_model().model_dump_json(by_alias=True, exclude_none=True))
    return json.dumps(view, indent=1, ensure_ascii=False) + "\n"


def _against_settings(quality: str, diversity: str) -> list[wr.ScatterPlot]:
    """The average of both scores against α, then against λ."""
    return [
        wr.ScatterPlot(
            title=f"{measure_of(metric).title} against {symbol}",
            x=wr.Config(column),
            y=wr.SummaryMetric(f"average/{metric}"),
            legend_template=LEGEND,
        )
        for symbol, column in (("α", "alpha"), ("λ", "lam"))
        for metric in (quality, diversity)
    ]


def _settings_section(quality: str, diversity: str) -> ws.Section:
    """Parallel coordinates from the settings of a run to its scores, and the comparison of runs."""
    columns = [("α", wr.Config("alpha")), ("λ", wr.Config("lam"))]
    columns += [(name, wr.Config(name)) for name in ("divergence", "order", "method", "text")]
    scored: list[tuple[str, wr.SummaryMetric]] = [
        (measure_of(metric).title, wr.SummaryMetric(f"average/{metric}")) for metric in (quality, diversity)
    ]
    return ws.Section(
        name="Settings",
        is_open=True,
        panels=[
            wr.ParallelCoordinatesPlot(
                title="From settings to scores",
                columns=[
                    wr.ParallelCoordinatesPlotColumn(metric=metric, display_name=name)
                    for name, metric in [*columns, *scored]
                ],
            ),
            wr.RunComparer(diff_only="split"),
        ],
    )


def _plane(prefix: str, of: str, quality: str, diversity: str) -> wr.ScatterPlot:
    return wr.ScatterPlot(
        title=f"{measure_of(quality).title} and {measure_of(diversity).title}, {of}",
        x=wr.SummaryMetric(f"{prefix}/{diversity}"),
        y=wr.SummaryMetric(f"{prefix}/{quality}"),
        legend_template=LEGEND,
    )
