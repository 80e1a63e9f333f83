"""Data of a run for Weights & Biases besides its metrics: columns, tags, summaries, samples and its end."""

import logging
import shlex
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger

from amid.config.secrets import without_secrets
from amid.measures import OF_ANSWERS, TRAINING, VALIDATION, Better, measure_of
from amid.results import RunResult, average_scores
from amid.scoring.answers import answers_files, read_answers
from amid.tracking.status import STATES

log = logging.getLogger(__name__)

STEP = "trainer/global_step"
"""The key of the optimiser steps in a W&B run."""

SAMPLES = 64
"""Answers of each evaluation set in the table of samples."""

OFFLINE_RUNS = "wandb/offline-run-*"

LONGEST_TAG = 64
"""The most characters that W&B takes in a tag."""

EMPTY_LOG = 7
"""Bytes of an offline run's log without a record, as of one killed early: W&B writes 32 KiB at a time."""

SECONDS_TO_WRITE = 20.0
"""The most time that W&B's own process may take to write a log after its run has ended."""

EXIT_CODES = {"done": 0, "failed": 1, "interrupted": 255}
"""The exit code that W&B gets for each final state; 255 is W&B's own code for an interrupt."""


def going_on(loggers: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """Returns the settings of `loggers`, with the earlier W&B id of this run in the settings of W&B loggers.

    So W&B appends to the earlier part of the run. An id that the settings already name stays.

    Args:
        loggers: the settings of the loggers, by name.
        directory: the folder of the resumed run.
    """
    parts = sorted(part.name.removeprefix("offline-") for part in (directory / "wandb").glob("*run-*-*"))
    if not parts:
        return dict(loggers)
    _, _, earlier = parts[-1].split("-", 2)
    return {
        name: {**settings, "id": settings.get("id") or earlier}
        if settings["_target_"].endswith(".WandbLogger")
        else settings
        for name, settings in loggers.items()
    }


def begin(loggers: Sequence[Logger], labels: Mapping[str, Any], cfg: Mapping[str, Any]) -> None:
    """Gives a run its columns, tags and the summaries of its metrics.

    The labels are columns of their own (`alpha`, `lam`, `divergence`, `order`, `method`, ...), beside `text`,
    `seed` and the whole configuration as `config`, in which values of secrets are hidden. Its sweep, method
    and divergence are its tags. Its state in the summary is `running`, and stays so if the run is killed. The
    summary of a metric logged in training has its best and its last value. Most final scores are defined as
    better when higher; scores such as Self-BLEU are defined as better when lower.

    Args:
        loggers: the loggers of the run; it ignores all but W&B's.
        labels: the labels of the run in tables.
        cfg: the configuration of the run.
    """
    for logger in loggers:
        if not isinstance(logger, WandbLogger):
            continue
        columns = dict(labels) | {
            "text": _text(cfg["text"]),
            "seed": cfg["seed"],
            "config": without_secrets(cfg),
        }
        logger._wandb_init.pop("anonymous", None)  # which W&B warns of, whatever its value
        logger.log_hyperparams(columns)
        run = logger.experiment
        _log_warnings()
        tags = [run.group, *(labels.get(name) for name in ("method", "divergence"))]
        tags = [str(tag)[:LONGEST_TAG] for tag in tags if tag not in (None, "", "none")]
        kept = [tag for tag in run.tags or () if tag not in STATES]  # without how its earlier part ended
        run.tags = tuple(dict.fromkeys([*kept, *tags]))
        run.summary["state"] = "running"
        for name, summary in _summaries(cfg["data"]).items():
            run.define_metric(name, step_metric=STEP, step_sync=True, summary=summary)


def _log_warnings() -> None:
    """Sends W&B's warnings to the log of the run; what else it prints stays on the screen.

    A run must have begun: a session of W&B that begins here would not know the settings of the logger.
    """
    import wandb

    settings = wandb.setup().settings.model_copy(update={"show_warnings": False})
    wandb.termsetup(settings, log)


_BEST: dict[Better, str] = {"lower": "min", "higher": "max", None: "last"}


def _summaries(data: Mapping[str, Any]) -> dict[str, str]:
    """Returns what W&B shows of each column: the best value, and of a training metric also the last value."""
    metric = data.get("valid_metric")
    logged = [*TRAINING.values(), *VALIDATION.values(), *([measure_of(metric)] if metric else [])]
    best = {measure.logged: _BEST[measure.better] for measure in logged if "wandb" in measure.shown}
    in_training = {name: which if which == "last" else f"{which},last" for name, which in best.items()}
    groups = [*(f"test/{name}" for name in data.get("test") or ()), "average"]
    at_the_end = [measure_of(name) for name in data.get("metrics") or ()]
    at_the_end += [measure for measure in OF_ANSWERS.values() if "wandb" in measure.shown]
    return in_training | {
        f"{group}/{measure.name}": _BEST[measure.better] for group in groups for measure in at_the_end
    }


def conclude(loggers: Sequence[Logger], result: RunResult, generations: Path) -> None:
    """Adds the outcome of a run: average scores, a table of its first answers, and the tag of its state.

    The summary has `state` (`done` or `diverged`), `diverged_step`, `test/SET/METRIC` and its standard
    deviation over the sampling seeds, `test/SET/METRIC_std`, and `average/METRIC` over the evaluation sets;
    the state is a tag, too.

    Args:
        loggers: the loggers of the run; it ignores all but W&B's.
        result: the result of the run.
        generations: the folder of its answers.
    """
    for logger in loggers:
        if not isinstance(logger, WandbLogger):
            continue
        run = logger.experiment
        state = "done" if result.diverged_step is None else "diverged"
        summary: dict[str, Any] = {"state": state}
        if result.diverged_step is not None:
            summary["diverged_step"] = result.diverged_step
        summary |= {f"average/{name}": mean for name, mean in average_scores(result).items()}
        for of, by in result.scores.items():
            summary |= {f"test/{of}/{m}": s.mean for m, s in by.items()}  # a number, not its maximum
            summary |= {f"test/{of}/{m}_std": s.std for m, s in by.items() if s.std is not None}
        run.summary.update(summary)
        run.tags = (*(run.tags or ()), state)
        if state == "done":
            logger.log_table("generations", columns=[*COLUMNS], data=_samples(result, generations))


def finish(state: str = "done") -> None:
    """Ends the W&B run of this process, if there is one, so that the next job does not continue it.

    Args:
        state: the final state. `failed` and `interrupted` also become a tag, the summary's state and the exit
            code.
    """
    if wandb := sys.modules.get("wandb"):  # loaded by its logger only
        if state != "done" and wandb.run is not None:
            wandb.run.tags = (*(wandb.run.tags or ()), state)
            wandb.run.summary["state"] = state
        wandb.finish(exit_code=EXIT_CODES[state])


def sync_command(directories: Iterable[Path]) -> str | None:
    """Returns the shell command that sends unsent offline logs of runs to W&B; None if there are none.

    It leaves out a log without a record: at such a log W&B stops, and sends nothing.

    Args:
        directories: the folders of the runs.
    """
    logs = {directory: sorted(directory.glob(OFFLINE_RUNS)) for directory in sorted(set(directories))}
    kept = {
        directory: unsent
        for directory, found in logs.items()
        if (unsent := [log for log in found if _holds_records(log) and not any(log.glob("*.wandb.synced"))])
    }
    if not kept:
        return None
    if len(kept) == 1 or not all(_holds_records(log) for found in logs.values() for log in found):
        return shlex.join(["wandb", "sync", *(str(path) for found in kept.values() for path in found)])
    parents = sorted({directory.parent for directory in kept})
    return " ".join(["wandb sync", *(f"{shlex.quote(str(p))}/*/{OFFLINE_RUNS}" for p in parents)])


def _holds_records(log: Path) -> bool:
    """Whether an offline run has a record, or may get one still."""
    files = [file.stat() for file in log.glob("*.wandb")]
    return any(f.st_size > EMPTY_LOG or time.time() - f.st_mtime < SECONDS_TO_WRITE for f in files)


COLUMNS = ("set", "instruction", "input", "reference", "answer", "tokens", "ended")


def _samples(result: RunResult, generations: Path) -> list[list[Any]]:
    """The first answer to each of the first prompts of each evaluation set, with the first seed."""
    rows: list[list[Any]] = []
    files = answers_files(generations)
    for name in result.scores:
        first = next(iter(files[name].values()))
        for answered in read_answers(first, SAMPLES):
            answer = answered.answers[0]
            shown = [answered.instruction, answered.input, answered.references[0]]
            rows.append([name, *shown, answer.text, answer.tokens, answer.ended])
    return rows


def _text(settings: Mapping[str, Any]) -> str:
    """Returns the value of `text=`, which says who wrote the responses that the student is trained on."""
    name: str = settings["_target_"].rpartition(".")[2].removesuffix("Text").lower()
    return (
        "mixed"
        if name == "student" and settings.get("share", 1) < 1
        else {"rollout": "rollouts"}.get(name, name)
    )
