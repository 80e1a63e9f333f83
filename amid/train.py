"""The entry point of a training run."""

import logging
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from amid.config import LABELS, as_dict, further_settings
from amid.experiment import run_experiment
from amid.monitor import alone, end_of, watched
from amid.progress import announce, shown, silence_bars
from amid.results import METRICS, RESULT_FILE, RunResult, quality_metrics
from amid.tracking import finish


def run(cfg: DictConfig) -> None:
    """Trains, scores and records the run that `cfg` describes, in Hydra's folder for it."""
    hydra = HydraConfig.get()
    labels = {name: hydra.runtime.choices.get(name) for name in LABELS}
    labels["settings"] = further_settings(hydra.overrides.task)
    directory = Path(hydra.runtime.output_dir)
    finished = (directory / RESULT_FILE).exists()
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
        anew = " (to train it anew, delete the folder)" if finished else ""
        announce(f"Run: {shown(directory)}{anew}")


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
