"""The entry point of a training run."""

import logging
from pathlib import Path
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from amid.config import KEYS_OF_SWEEPS, LABELS, further_settings
from amid.errors import InputError
from amid.experiment import run_experiment
from amid.monitor import alone, end_of, watched
from amid.progress import announce, shown, silence_bars
from amid.results import METRICS, RunResult, quality_metrics
from amid.tracking import finish


def run(cfg: DictConfig) -> None:
    """Trains, scores and records the run that `cfg` describes, in Hydra's folder for it."""
    hydra = HydraConfig.get()
    labels = {name: hydra.runtime.choices.get(name) for name in LABELS}
    labels["settings"] = further_settings(hydra.overrides.task)
    directory = Path(hydra.runtime.output_dir)
    for name in ("pytorch_lightning", "lightning.pytorch", "httpx", "datasets"):
        logging.getLogger(name).setLevel(logging.WARNING)
    silence_bars()
    try:
        with alone(directory), watched(directory):
            result = run_experiment(as_dict(cfg), directory, labels)
    except BaseException as error:
        finish(end_of(error))
        raise
    finish()
    announce(summary(result))
    if hydra.mode == RunMode.RUN:
        announce(f"Run: {shown(directory)}")


def as_dict(cfg: DictConfig) -> dict[str, Any]:
    """`cfg` with everything resolved, the student that it names, and without the keys that only sweeps read.

    Raises:
        InputError: if `student_is` is neither student nor teacher.
    """
    settings = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))
    for key in KEYS_OF_SWEEPS:
        settings.pop(key, None)
    student = settings.pop("student_is")
    if student not in ("student", "teacher"):
        raise InputError(f"student_is={student} must be student or teacher, of the pair")
    settings["model"]["student"] = settings["model"][student]
    return settings


def summary(result: RunResult) -> str:
    """One line with the scores of a run, or the step at which it diverged."""
    seconds = f"({sum(result.timings.values()):.0f} s)"
    if result.diverged_step is not None:
        return f"  diverged at step {result.diverged_step}   {seconds}"
    sets = [
        " ".join(
            [name]
            + [
                f"{METRICS.get(metric, metric)} {by[metric].mean:.1f}"
                for metric in [*quality_metrics([by]), *(["self_bleu"] if "self_bleu" in by else [])]
            ]
        )
        for name, by in result.scores.items()
    ]
    if not sets:
        sets = ["no scores: data.test has no set; to score it: amid evaluate run=FOLDER +data.test.NAME=FILE"]
    return "  " + "   ".join([*sets, seconds])
