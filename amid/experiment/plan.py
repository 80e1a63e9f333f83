"""What can be checked of a run before a row of its data or a weight of its models is read."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hydra.utils import instantiate

from amid.config.data_files import check_files
from amid.errors import InputError, choose_one
from amid.experiment.fine_tuning import check_models, fine_tuning_settings
from amid.generation.sampling import Sampling
from amid.losses import Loss
from amid.measures import VALIDATION
from amid.schedule import Schedule
from amid.text import Text, on_student_text
from amid.training.checkpoints import Checkpoints
from amid.training.learning_rate import check_rates
from amid.training.trainer import own_callbacks

Config = dict[str, Any]

_MANY_STEPS = 10**6
"""Taken for the steps of a training while its data are not read."""


@dataclass(frozen=True)
class Parts:
    """What a run is made of besides its data and its models."""

    objective: Loss
    text: Text
    schedule: Schedule | None
    sampling: Sampling
    compared: bool
    """Whether its validations compare the student with a teacher that the objective does not need."""

    def used(self, cfg: Config) -> Config:
        """The configuration of the run without a teacher that it has no use for."""
        if self.objective.needs_teacher or self.compared or self.text.from_teacher:
            return cfg
        return {**cfg, "model": {name: part for name, part in cfg["model"].items() if name != "teacher"}}


def parts_of(cfg: Config, prefix: str = "") -> Parts:
    """The parts of a run that need neither data nor models.

    Args:
        cfg: of the run.
        prefix: of the keys of its trainer, where it is a part of another configuration.

    Raises:
        InputError: for a setting outside its range, or settings that do not fit, those of the fine-tuning of
            its models among them.
    """
    objective: Loss = instantiate(cfg["objective"])
    text: Text = instantiate(cfg["text"])
    if text.from_student and on_student_text(objective) is None:
        raise InputError(
            f"objective={objective!r} needs labels, and the student's own text gives none; use text=data or "
            "text=teacher, or an objective with a teacher"
        )
    if objective.uses_sampling and not text.sampled:
        raise InputError(
            f"objective={objective!r} needs text with the probabilities that it was sampled with; use "
            "text=rollouts"
        )
    in_parts = objective.additive or cfg["data"].get("mean") == "micro_batch"
    for limit in ("micro_batch_size", "tokens_per_batch"):
        if not in_parts and cfg["data"][limit] is not None:
            raise InputError(
                f"data.{limit}={cfg['data'][limit]} cuts a step into parts, but {objective!r} is no sum of "
                f"parts; use data.{limit}=null, objective.maximum=token, or data.mean=micro_batch"
            )
    most = cfg["trainer"]["max_steps"]
    check_rates(cfg, most if most > 0 else _MANY_STEPS, prefix)
    if not isinstance(instantiate(cfg["checkpoint"]), Checkpoints):
        raise InputError(
            f"{prefix}checkpoint._target_={cfg['checkpoint']['_target_']} makes no "
            "amid.training.checkpoints.Checkpoints; use that or a class derived from it"
        )
    schedule: Schedule | None = instantiate(cfg.get("schedule"))
    if schedule is not None:
        schedule.begin(objective)
    compared = is_compared(cfg, objective)
    if objective.needs_teacher or compared:
        instantiate(cfg["teacher"])
    _check_monitors(cfg, with_teacher=objective.needs_teacher or compared)
    parts = Parts(objective, text, schedule, instantiate(cfg["generation"]), compared)
    cfg = parts.used(cfg)
    for role in ("teacher", "student"):
        sft = cfg["model"].get(role, {}).get("sft")
        if sft:
            parts_of(fine_tuning_settings(cfg, role), prefix=f"model.{role}.sft.")
    return parts


def _check_monitors(cfg: Config, with_teacher: bool) -> None:
    """Checks that the user's own callbacks watch what is measured.

    Raises:
        InputError: naming what there is.
    """
    callbacks = own_callbacks(cfg)
    known = [of.logged for of in VALIDATION.values() if with_teacher or of.taken != "with a teacher"]
    if (metric := cfg["data"].get("valid_metric")) is not None:
        known += [f"valid/{metric}", f"valid/{metric}_best"]
    for name, callback in zip(cfg.get("callbacks") or {}, callbacks, strict=True):
        monitor = getattr(callback, "monitor", None)
        if isinstance(monitor, str) and monitor not in known and not monitor.startswith("train/"):
            raise InputError(
                f"callbacks.{name}.monitor={monitor} is not measured{choose_one(monitor, known)}, or of each "
                "logged step train/loss"
            )


def is_compared(cfg: Mapping[str, Any], objective: Loss) -> bool:
    """Whether a run's validations compare the student with a teacher that its objective does not need.

    That is so with `teacher=cached`, which asks for the teacher's states, where they can be kept.
    """
    asked = (cfg.get("teacher") or {}).get("mode") == "cached"
    teacher = cfg["model"].get("teacher") or {}
    return asked and bool(teacher.get("path") or teacher.get("sft")) and not objective.needs_teacher


class Checks:
    """The checks of several runs that read no row of their data and no weight of their models."""

    def __init__(self) -> None:
        self._sound: set[str] = set()
        """The models and data that were checked already, for another run."""

    def check(self, cfg: Config) -> None:
        """Checks one run.

        Raises:
            InputError: for settings, tokenizers and files of data that a run would refuse too.
        """
        cfg = parts_of(cfg).used(cfg)
        models_and_data = [cfg["model"], {**cfg["data"], "seed": None}]
        key = json.dumps(models_and_data, sort_keys=True, default=str)
        if key not in self._sound:
            check_files(cfg["data"])
            tokenizer = instantiate(cfg["model"]["tokenizer"])
            unread: Config = {"train": None, "valid": None, "test": {}, "plain_text": None}
            instantiate({**cfg["data"], **unread}, tokenizer=tokenizer)
            check_models(cfg, tokenizer)
            self._sound.add(key)
