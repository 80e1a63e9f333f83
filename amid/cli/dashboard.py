"""The entry point of `amid dashboard`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb

from amid.config.compose import without_wandb
from amid.config.folders import sweep_file, sweep_names
from amid.config.run_settings import CONFIG_FILE, REMEDY, read_settings
from amid.config.sweeps import read_sweep
from amid.console import announce, as_typed
from amid.errors import InputError, choose_one
from amid.files import Record, as_record, written_whole
from amid.results import quality_metrics
from amid.tracking.wandb_workspace import SweepScores, build_workspace, specification

SPECIFICATION = "workspace.json"


class _Data(Record):
    test: dict[str, Any]
    metrics: dict[str, Any]
    valid_metric: str | None = None


class _Generation(Record):
    samples: int = 1
    seeds: list[int]


class _Scored(Record):
    """Holds what a run's settings say about its scores."""

    data: _Data
    generation: _Generation


def _settings(directory: Path) -> Mapping[str, Any]:
    settings = read_settings(directory)
    return as_record(settings, _Scored, directory / CONFIG_FILE, REMEDY).model_dump()


def run(arguments: list[str]) -> None:
    """Saves a W&B workspace: SWEEP [entity=NAME] [project=amid] [scale=small].

    Raises:
        InputError: see `save`; or for other arguments.
    """
    if {"-h", "--help"} & set(arguments):
        print(
            "amid dashboard SWEEP [entity=NAME] [project=amid] [scale=small]\n\n"
            "Saves a W&B workspace for a sweep. SWEEP is the name of a sweep file or a folder of runs.\n"
            "Without an account or network it writes the specification into that folder, as workspace.json."
        )
        return
    given = dict(word.split("=", 1) for word in arguments[1:] if "=" in word)
    if not arguments or len(given) != len(arguments) - 1 or not {*given} <= {"entity", "project", "scale"}:
        raise InputError(
            "amid dashboard SWEEP [entity=NAME] [project=amid] [scale=small] takes a sweep, by name or folder"
        )
    if not Path(arguments[0]).is_dir():
        try:
            sweep_file(arguments[0])
        except InputError:
            unknown = f"{arguments[0]} is neither a folder of runs nor a sweep"
            raise InputError(unknown + choose_one(arguments[0], sweep_names())) from None
    save(
        arguments[0],
        as_typed(["dashboard", *arguments]),
        given.get("scale"),
        given.get("entity"),
        given.get("project", "amid"),
    )


def save(sweep: str, again: str, scale: str | None, entity: str | None, project: str) -> None:
    """Saves the W&B workspace of a sweep; without account or network it writes the specification instead.

    Args:
        sweep: the name of a sweep in `sweeps/`, or the folder of a sweep that was started.
        again: the command that saves the workspace later.
        scale: the scale of a named sweep; None for the default scale.
        entity: the W&B user or team; None for the account's own.
        project: the W&B project of the runs.

    Raises:
        InputError: if there is no such sweep, the folder has no run, or W&B refuses the workspace.
    """
    folder, scores = _scores(sweep, scale)
    if without_wandb():
        unstarted = "" if folder.exists() else " (no run of it has started yet)"
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / SPECIFICATION
        with written_whole(file) as part:
            part.write_text(specification(build_workspace(scores, entity or "", project)), encoding="utf-8")
        announce(f"No W&B account, or no network. The workspace's specification: {file}{unstarted}")
        announce(f"To save it later: wandb login && {again}")
        if folder.exists() and not any(folder.glob("*/wandb")):
            announce("No run of it is in W&B yet; logger=wandb logs runs there")
        return
    try:
        entity = entity or wandb.Api().default_entity
        saved = build_workspace(scores, entity or "", project).save()
    except (wandb.Error, ValueError) as error:
        raise InputError(
            f"W&B refuses the workspace of entity={entity} project={project} "
            f"({' '.join(str(error).split())}); check both, and wandb login"
        ) from error
    announce(f"Workspace: {saved.url}")


def _scores(sweep: str, scale: str | None) -> tuple[Path, SweepScores]:
    """Returns the folder of a sweep, and the sets and metrics by which its runs are scored."""
    if Path(sweep).is_dir():
        folder = Path(sweep)
        files = sorted(folder.glob("*/config.yaml"))
        configs = [_settings(file.parent) for file in files]
        if not configs:
            raise InputError(
                f"{sweep} holds no run; give the folder of a sweep, or one of {', '.join(sweep_names())}"
            )
    else:
        configs = [cfg for _, cfg in read_sweep(sweep, [], scale).configs()]
        if not configs:
            raise InputError(
                f"sweep {sweep}: its sweeper chooses its runs; start it, and then give its folder"
            )
        folder = Path(configs[0]["output_dir"])
    sets = list(dict.fromkeys(name for cfg in configs for name in cfg["data"]["test"]))
    measured = list(dict.fromkeys(name for cfg in configs for name in cfg["data"]["metrics"]))
    metrics = quality_metrics([measured])
    drawn = [cfg["generation"] for cfg in configs]
    several = all(of["samples"] > 1 or len(of["seeds"]) > 1 for of in drawn)
    return folder, SweepScores(
        group=folder.resolve().name,
        sets=sets,
        metrics=metrics,
        valid_metric=configs[0]["data"].get("valid_metric"),
        diversity="self_bleu" if several else "corpus_self_bleu",
    )
