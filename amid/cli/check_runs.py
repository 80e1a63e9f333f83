"""Checks the settings of several runs before the first run starts."""

import contextlib
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from amid.config.compose import as_dict
from amid.config.sweeps import Sweep
from amid.errors import InputError, in_one_line
from amid.settings import check


def checked(sweep: Sweep) -> list[Path]:
    """Checks the settings of all unfinished runs; returns the folders of all runs, in order.

    Raises:
        InputError: naming the first run with a wrong value. If there is none, it names the first run with an
            objective or files that would be refused, then the first run that would be refused otherwise.
    """
    folders, to_check = check_values(sweep)
    from amid.experiment.plan import Plan  # imports torch, which takes seconds

    plans = {number: Plan(settings) for number, settings in to_check.items()}
    sound: set[str] = set()  # models and data that were checked already, for another run
    try:
        for number, plan in plans.items():
            with _about(sweep.in_words(number)):
                plan.check_at_once()
        for number, plan in plans.items():
            with _about(sweep.in_words(number)):
                plan.check()
                inputs = plan.fingerprint("model", "data")
                if inputs not in sound:
                    plan.check_inputs()
                    sound.add(inputs)
    except InputError as error:
        raise InputError(f"{error}; nothing was started") from error
    return folders


def check_others(name: str, sweep: Sweep) -> None:
    """Checks several evaluations, or several caches of hidden states, before any starts.

    Raises:
        InputError: naming the first one with a wrong value. If there is none, it names the first one that
            would be refused for its model or its files.
    """
    check_values(sweep)
    module = importlib.import_module(f"amid.cli.{name}")
    try:
        for number, (run, cfg) in enumerate(sweep.configs()):
            if not run.finished:
                with _about(sweep.in_words(number)):
                    cfg.logger = {}
                    module.check(cfg)
    except InputError as error:
        raise InputError(f"{error}; nothing was started") from error


def check_values(sweep: Sweep) -> tuple[list[Path], dict[int, dict[str, Any]]]:
    """Checks the settings of all unfinished runs at once, as `amid.settings.check` does.

    Returns:
        The folders of the runs, in order, and by run number the settings of the runs to train.

    Raises:
        InputError: naming the first run with a wrong value.
    """
    folders: list[Path] = []
    to_do: dict[int, dict[str, Any]] = {}
    try:
        for number, (run, cfg) in enumerate(sweep.configs()):
            folders.append(run.directory.absolute())
            if not run.finished:
                with _about(sweep.in_words(number)):
                    check(cfg)
                    cfg.logger = {}
                    if "run" not in cfg:  # an evaluation takes some of its values from a run
                        to_do[number] = as_dict(cfg)
    except InputError as error:
        raise InputError(f"{error}; nothing was started") from error
    return folders, to_do


@contextlib.contextmanager
def _about(run: str) -> Iterator[None]:
    """Puts the name of the run at the beginning of an error raised within the block."""
    try:
        yield
    except Exception as error:
        raise InputError(f"{run}: {in_one_line(error)}") from error
