"""The entry point of a training run."""

import math
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from amid.config.compose import as_dict, overrides_of
from amid.config.run_labels import labels_of
from amid.console import announce, shown
from amid.distributed import ranks
from amid.experiment.plan import Plan
from amid.experiment.record import finished_run
from amid.measures import measure_of
from amid.results import RESULT_FILE, RunResult, quality_metrics
from amid.tracking.command_records import record_command
from amid.tracking.status import end_of, only_process_in, watched
from amid.training.process_memory import lasting_imports


def check(cfg: DictConfig) -> None:
    """Checks what needs no row of the data and no weight of a model.

    Raises:
        InputError: for what the run would refuse too.
    """
    plan = Plan(as_dict(cfg))
    plan.check()
    plan.check_inputs()


def run(cfg: DictConfig) -> float | None:
    """Trains, scores and records the run that `cfg` describes, in Hydra's folder for it.

    Returns:
        The validation score of the kept student, for a sweeper that searches: the score that
        `checkpoint.monitor` names. A run that diverged returns the worst value (infinite), and a run that
        measured nothing returns None.
    """
    hydra = HydraConfig.get()
    directory = Path(hydra.runtime.output_dir)
    finished = ranks.from_first((directory / RESULT_FILE).exists)
    with ranks.first_in(lambda: only_process_in(directory)), ranks.first_in(lambda: watched(directory)):
        if not finished:
            ranks.from_first(lambda: record_command(directory, cfg))
        plan = Plan(as_dict(cfg))
        result = ranks.from_first(lambda: finished_run(directory, plan)) if finished else None
        if result is None:
            labels = labels_of(cfg, hydra.runtime.choices, overrides_of(hydra), directory)
            with lasting_imports():
                plan.check()
                import_module("amid.experiment.run")
            result = _run(plan, directory, labels)

    announce(summary(result))
    if hydra.mode == RunMode.RUN:
        anew = " (to train it anew, delete the folder)" if finished else ""
        announce(f"Run: {shown(directory)}{anew}")
    return _score(result, cfg.checkpoint.monitor, cfg.checkpoint.mode)


def _score(result: RunResult, monitor: str, mode: str) -> float | None:
    """Returns the validation score of a run: the score by which its checkpoint is chosen."""
    if result.diverged_step is not None:
        return math.inf if mode == "min" else -math.inf
    score = result.training.get(monitor.replace("/", "_"))
    return None if score is None else float(score)


def _run(plan: Plan, directory: Path, labels: Mapping[str, Any]) -> RunResult:
    from amid.experiment.run import run_experiment
    from amid.tracking.progress import silence_bars
    from amid.tracking.wandb_runs import finish

    silence_bars()
    try:
        result = run_experiment(plan, directory, labels)
    except BaseException as error:
        finish(end_of(error))
        raise
    finish()
    return result


def summary(result: RunResult) -> str:
    """Returns a line with a run's scores or divergence step, and a second line if the run got far worse."""
    seconds = f"({sum(result.timings.values()):.0f} s)"
    if result.diverged_step is not None:
        return f"  diverged at step {result.diverged_step}   {seconds}"
    sets = [
        " ".join(
            [name]
            + [
                f"{measure_of(metric).title} {measure_of(metric).number(by[metric].mean)}"
                for metric in [*quality_metrics([by]), *(["self_bleu"] if "self_bleu" in by else [])]
            ]
        )
        for name, by in result.scores.items()
    ]
    if not sets:
        sets = ["no scores: data.test has no set; to score it: amid evaluate run=FOLDER +data.test.NAME=FILE"]
    worse = f"\n  far worse than it began: {result.far_worse}" if result.far_worse else ""
    return "  " + "   ".join([*sets, seconds]) + worse
