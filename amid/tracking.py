"""What a run tells Weights & Biases besides its metrics: columns, tags, summaries, samples and its end."""

import json
import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger

from amid.results import RunResult, average_scores

STEP = "trainer/global_step"
"""The key of the optimiser steps in a W&B run."""

SAMPLES = 64
"""Answers of each evaluation set in the table of samples."""

SECRET = re.compile(r"(api_?key|secret|password|passwd|credentials?|(^|_)token)$", re.IGNORECASE)
"""Names of settings whose values are not logged."""

OFFLINE_RUNS = "wandb/offline-run-*"


def begin(loggers: Sequence[Logger], labels: Mapping[str, Any], cfg: Mapping[str, Any]) -> None:
    """Gives a run its columns, tags and the summaries of its metrics.

    The labels are columns of their own (`alpha`, `lam`, `divergence`, `order`, `method`, ...), beside `text`,
    `seed` and the whole configuration as `config`, in which values of secrets are hidden. Method and
    divergence are its tags. The summary of a loss is its least value and its last, that of a validation
    score its highest and its last.

    Args:
        loggers: of the run; those that are not of W&B are left out.
        labels: what tables call the run.
        cfg: its configuration.
    """
    for logger in loggers:
        if not isinstance(logger, WandbLogger):
            continue
        columns = dict(labels) | {
            "text": _text(cfg["text"]),
            "seed": cfg["seed"],
            "config": _without_secrets(cfg),
        }
        logger.log_hyperparams(columns)
        run = logger.experiment
        tags = [
            str(labels[name]) for name in ("method", "divergence") if labels.get(name) not in (None, "none")
        ]
        run.tags = tuple(dict.fromkeys([*(run.tags or ()), *tags]))
        metric = cfg["data"].get("valid_metric")
        best = dict.fromkeys(("train/loss", "valid/loss", "valid/cross_entropy"), "min")
        best |= {f"valid/{metric}": "max"} if metric else {}
        for name, which in best.items():
            run.define_metric(name, step_metric=STEP, step_sync=True, summary=f"{which},last")
        for name in ("train/gradient_norm", "train/lr", "train/alpha", "train/lam"):
            run.define_metric(name, step_metric=STEP, step_sync=True, summary="last")


def conclude(loggers: Sequence[Logger], result: RunResult, generations: Path) -> None:
    """Adds what a run came to: average scores, a table of its first answers, and the tag of its state.

    The summary has `state` (`done` or `diverged`), `diverged_step`, `average/METRIC` over the evaluation
    sets, and `test/SET/METRIC_std` over the sampling seeds; the state is a tag, too.

    Args:
        loggers: of the run; those that are not of W&B are left out.
        result: its record.
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
            summary |= {f"test/{of}/{m}_std": s.std for m, s in by.items() if s.std is not None}
        run.summary.update(summary)
        run.tags = (*(run.tags or ()), state)
        if state == "done":
            logger.log_table("generations", columns=[*COLUMNS], data=_samples(result, generations))


def finish(failed: bool) -> None:
    """Ends the W&B run of this process, where there is one, so that the next job does not go on in it.

    Args:
        failed: W&B shows it as failed.
    """
    if wandb := sys.modules.get("wandb"):  # loaded by its logger only
        if failed and wandb.run is not None:
            wandb.run.tags = (*(wandb.run.tags or ()), "failed")
            wandb.run.summary["state"] = "failed"
        wandb.finish(exit_code=1 if failed else 0)


def sync_command(directories: Iterable[Path]) -> str | None:
    """The shell command that sends to W&B what runs logged offline and nobody has sent; None for nothing.

    Args:
        directories: of the runs.
    """
    kept = {
        directory: sorted(
            found for found in directory.glob(OFFLINE_RUNS) if not any(found.glob("*.wandb.synced"))
        )
        for directory in sorted(set(directories))
    }
    kept = {directory: found for directory, found in kept.items() if found}
    if not kept:
        return None
    if len(kept) == 1:
        return shlex.join(["wandb", "sync", *(str(path) for found in kept.values() for path in found)])
    parents = sorted({directory.parent for directory in kept})
    return " ".join(["wandb sync", *(f"{shlex.quote(str(p))}/*/{OFFLINE_RUNS}" for p in parents)])


COLUMNS = ("set", "instruction", "input", "reference", "answer", "tokens", "ended")


def _samples(result: RunResult, generations: Path) -> list[list[Any]]:
    """The first answer to each of the first prompts of each evaluation set, with the first seed."""
    rows: list[list[Any]] = []
    for name in result.scores:
        seeds = sorted(generations.glob(f"{name}-*.jsonl"))
        with seeds[0].open(encoding="utf-8") as lines:
            for line, _ in zip(lines, range(SAMPLES), strict=False):
                row = json.loads(line)
                answer = row["answers"][0]
                shown = [row["instruction"], row["input"], row["references"][0]]
                rows.append([name, *shown, answer["text"], answer["tokens"], answer["ended"]])
    return rows


def _text(settings: Mapping[str, Any]) -> str:
    """Whose responses are trained on, as `text=` says it."""
    name: str = settings["_target_"].rpartition(".")[2].removesuffix("Text").lower()
    return (
        "mixed"
        if name == "student" and settings.get("share", 1) < 1
        else {"rollout": "rollouts"}.get(name, name)
    )


def _without_secrets(node: Any) -> Any:
    """`node` with the values of secrets hidden, also those of addresses with a password."""
    if isinstance(node, Mapping):
        return {
            key: "hidden" if SECRET.search(str(key)) and child is not None else _without_secrets(child)
            for key, child in node.items()
        }
    if isinstance(node, list):
        return [_without_secrets(child) for child in node]
    return re.sub(r"(?<=://)[^/@\s]+@", "", node) if isinstance(node, str) else node
