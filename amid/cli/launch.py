"""The runs of a command: checked before any starts, launched through Hydra, and what is said at their end."""

import contextlib
import importlib
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amid.config.own_modules import search_working_folder
from amid.console import shown
from amid.errors import Busy, Damaged, InputError, in_one_line, is_mistake, print_error, was_interrupted
from amid.tracking.run_log import RUN_LOG, logged, off_the_screen
from amid.training.interruption import heeded

if TYPE_CHECKING:
    from amid.config.sweeps import Sweep


def checked(sweep: "Sweep") -> list[Path]:
    """The folders of the runs, in their order, after a check of the settings of all that are not finished.

    Raises:
        InputError: naming the first run with a wrong value, then the first whose objective or files would be
            refused, then the first that would be for anything else.
    """
    from hydra.utils import instantiate

    from amid.config.data_files import check_files

    folders, to_check = check_values(sweep)
    try:
        for number, settings in to_check.items():
            with _about(sweep.in_words(number)):
                check_files(settings["data"])
                instantiate(settings["objective"])
        from amid.experiment.plan import Checks  # takes seconds

        checks = Checks()
        for number, settings in to_check.items():
            with _about(sweep.in_words(number)):
                checks.check(settings)
    except InputError as error:
        raise InputError(f"{error}; nothing was started") from error
    return folders


def check_others(name: str, sweep: "Sweep") -> None:
    """Checks several evaluations, or several caches of states, before any starts.

    Raises:
        InputError: naming the first with a wrong value, then the first that would be refused for its model or
            its files.
    """
    _, to_cache = check_values(sweep)
    module = importlib.import_module(f"amid.cli.{name}")
    try:
        for number, (run, cfg) in enumerate(sweep.configs()):
            with _about(sweep.in_words(number)):
                if number in to_cache:
                    module.check(to_cache[number])
                elif not run.finished:
                    module.check(cfg)
    except InputError as error:
        raise InputError(f"{error}; nothing was started") from error


def check_values(sweep: "Sweep") -> tuple[list[Path], dict[int, dict[str, Any]]]:
    """Checks the settings of all runs that are not finished as `amid.settings.check` does, at once.

    Returns:
        The folders of the runs, in their order, and the settings of those to train or to cache, by number.

    Raises:
        InputError: naming the first run with a wrong value.
    """
    from amid.config.compose import as_dict
    from amid.settings import check

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
def without_empty_folders(*folders: Path) -> Iterator[None]:
    """Removes those of `folders`, and of the folders above them, that were made meanwhile and stay empty."""
    made = [place for folder in folders for place in (folder, *folder.parents) if not place.exists()]
    try:
        yield
    finally:
        for place in made:
            with contextlib.suppress(OSError):  # as of one that holds something
                place.rmdir()


@contextlib.contextmanager
def _about(run: str) -> Iterator[None]:
    """Has an error begin with the run that it is about."""
    try:
        yield
    except Exception as error:
        raise InputError(f"{run}: {in_one_line(error)}") from error


def launch(name: str, arguments: Sequence[str], runs: list[Path], elsewhere: list[Path]) -> list[str]:
    """Runs an entry point's job, or jobs with -m; one that fails is printed, and does not stop the others.

    Of several jobs, it passes over a job that another process is at.

    Args:
        name: of the entry point.
        arguments: of Hydra's command line.
        runs: the folders of all runs of the command, in their order; those that are not known yet are added.
        elsewhere: to which the folders of those that are passed over are added.

    Returns:
        The names of the failed jobs, of several.

    Raises:
        InputError: why a single job failed.
    """
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import DictConfig

    from amid.config.compose import check_used, register_resolvers
    from amid.config.folders import CONF
    from amid.config.secrets import check_for_secrets
    from amid.settings import check
    from amid.tracking.command_records import MULTIRUN_FILE
    from amid.tracking.status import time_left

    for record in {directory.parent / MULTIRUN_FILE for directory in runs}:
        if record.is_symlink():  # Hydra would write through it
            raise Damaged(f"{record} is a link, and writing would change what it leads to; remove it")
    register_resolvers()
    os.environ["HYDRA_FULL_ERROR"] = "1"
    refused: list[InputError] = []
    failed: list[str] = []

    @heeded()
    def task(cfg: DictConfig) -> Any:
        search_working_folder()  # also where a launcher starts it in a process of its own
        directory = Path(HydraConfig.get().runtime.output_dir)
        place, left = "", ""
        if directory in runs:
            place, left = f" {runs.index(directory) + 1} of {len(runs)}:", time_left(directory, runs)
        else:
            runs.append(directory)
        if name == "train":
            print(f"run{place} {directory.name}{left}", flush=True)
        try:
            check_for_secrets(cfg)
            check_for_secrets(HydraConfig.get(), "hydra")  # type: ignore[arg-type]
            check_used(cfg, HydraConfig.get())
            check(cfg)
            if chooses(HydraConfig.get().sweeper):
                _check_direction(cfg, HydraConfig.get().sweeper)
            with off_the_screen() if name == "cache" else logged(directory):  # a cache is of no run
                return importlib.import_module(f"amid.cli.{name}").run(cfg)
        except BrokenPipeError:
            sys.exit(unread())  # Hydra would report it
        except Exception as error:
            if was_interrupted(error):
                raise KeyboardInterrupt from error
            single = HydraConfig.get().mode == RunMode.RUN
            searches = not single and chooses(HydraConfig.get().sweeper)
            if isinstance(error, Busy) and not single and not searches:
                elsewhere.append(directory)
                return None
            failure = _failure(error, directory, single)
            if searches:  # such a sweeper has to know
                raise failure from error
            if single:
                refused.append(failure)
            else:
                print_error(failure)  # at once: kept, its traceback would hold the run's models
                failed.append(directory.name)
        return None

    before = sys.argv
    try:
        sys.argv = [f"amid {name}", *arguments]
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)(task)()
    finally:
        sys.argv = before
    if refused:
        raise refused[0]
    return failed


def _failure(error: Exception, directory: Path, single: bool) -> InputError:
    """What a command prints of a job that failed: the reason, and where a defect's traceback was written.

    Removes the folder of a single job that was refused before it computed anything.
    """
    from amid.config.secrets import hide

    line = ("" if single else f"{directory.name}: ") + in_one_line(error)
    if not is_mistake(error):
        with contextlib.suppress(OSError):
            (directory / "error.log").write_text(hide(traceback.format_exc()), encoding="utf-8")
            line += f" (traceback: {directory / 'error.log'})"
    elif single and not isinstance(error, Busy):  # of several jobs, status and report tell
        _remove_if_nothing_was_computed(directory)
    failure = InputError(line)
    failure.__cause__ = error
    return failure


def chooses(sweeper: Any) -> bool:
    """Whether a sweeper, as Hydra's configuration has it, chooses runs by the scores of earlier ones."""
    return str(sweeper["_target_"]) != "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


def _check_direction(cfg: Any, sweeper: Any) -> None:
    """Refuses a sweeper that looks for the worst validation score, as one that minimises ROUGE-L.

    Raises:
        InputError: naming the direction to use.
    """
    said = sweeper.get("direction")
    better = {"max": "maximize", "min": "minimize"}[cfg.checkpoint.mode]
    name = str(getattr(said, "name", said))
    if name in ("maximize", "minimize") and name != better:
        raise InputError(
            f"hydra.sweeper.direction={name}: of checkpoint.monitor={cfg.checkpoint.monitor}, which a run "
            f"returns, checkpoint.mode={cfg.checkpoint.mode} is better; use hydra.sweeper.direction={better}"
        )


def tell_of(elsewhere: Sequence[Path]) -> None:
    """Says which runs were left to other processes."""
    if elsewhere:
        folder, names = shown(elsewhere[0].parent), ", ".join(directory.name for directory in elsewhere)
        print(
            f"{len(elsewhere)} left to other processes, which run them: {names}; amid status {folder} tells "
            f"how far they are, and amid report {folder} has them when they end",
            flush=True,
        )


def check_results(runs: Sequence[Path]) -> None:
    """Whether all runs came to an end, also those in processes of their own, as launchers start them.

    Raises:
        InputError: naming those that did not.
    """
    from amid.results import RESULT_FILE

    if without := [directory for directory in runs if not (directory / RESULT_FILE).exists()]:
        names = ", ".join(directory.name for directory in without)
        raise InputError(
            f"no result in {without[0].parent} of {names}; amid status {without[0].parent} says why"
        )


def _remove_if_nothing_was_computed(directory: Path) -> None:
    from amid.tracking.status import LOCK_FILE, STATUS_FILE, alone, read_told

    with contextlib.suppress(OSError, Busy, Damaged), alone(directory):
        told = read_told(directory)
        begun = told is not None and told.state != "failed"  # by an earlier command
        nothing = {".hydra", LOCK_FILE, RUN_LOG, STATUS_FILE}
        if not begun and {file.name for file in directory.iterdir()} <= nothing:
            shutil.rmtree(directory)


@contextlib.contextmanager
def and_what_is_next(directories: Sequence[Path], report: bool) -> Iterator[None]:
    """Prints, however the runs in `directories` end, the commands for what they left.

    They are the one that sends to W&B what was logged offline, and with `report`, or where several runs were
    interrupted, the one that reports the finished ones.
    """
    try:
        yield
    except BaseException:
        report = report or len(directories) > 1
        raise
    finally:
        if any((directory / "wandb").is_dir() for directory in directories):
            from amid.tracking.wandb_runs import sync_command

            if command := sync_command(directories):
                print(f"To send these runs to W&B: {command}", flush=True)
        from amid.results import RESULT_FILE

        finished = {directory.parent for directory in directories if (directory / RESULT_FILE).exists()}
        if report and finished:
            for folder in sorted(finished):
                print(f"Report: amid report {shown(folder)}", flush=True)


def unread() -> int:
    """Where whoever read the output wants no more of it: sends the rest nowhere; returns the exit status."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + signal.SIGPIPE
