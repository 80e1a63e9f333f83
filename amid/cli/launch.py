"""Launches the runs of a command through Hydra, and prints what to do next."""

import contextlib
import importlib
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import hydra
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from amid.cli.job_process import Command, job_of, lines_of_job, prefix_of, stopping_jobs
from amid.config.compose import register_resolvers
from amid.config.folders import CONF
from amid.config.identity import leaves
from amid.config.overrides import check_used
from amid.config.own_modules import search_working_folder
from amid.config.secrets import check_for_secrets, hide
from amid.console import shown, stop_printing
from amid.distributed import ranks
from amid.distributed.interruption import put_back_into_queue, stopped_by_signals
from amid.distributed.processes import run_in_processes
from amid.distributed.screen import print_nothing, print_own_error
from amid.distributed.start import has_gpus, ranks_to_start, started_elsewhere
from amid.errors import Busy, Damaged, InputError, in_one_line, is_mistake, print_error, was_interrupted
from amid.results import RESULT_FILE
from amid.settings import check
from amid.settings.nodes import Trainer
from amid.tracking.command_records import MULTIRUN_FILE
from amid.tracking.run_log import RUN_LOG, logged, off_the_screen
from amid.tracking.status import LOCK_FILE, STATUS_FILE, only_process_in, read_status_record


@contextlib.contextmanager
def without_empty_folders(*folders: Path) -> Iterator[None]:
    """Removes empty folders that were made within the block: `folders` and the folders above them."""
    made = [place for folder in folders for place in (folder, *folder.parents) if not place.exists()]
    try:
        yield
    finally:
        for place in made:
            with contextlib.suppress(OSError):  # such as a folder that is not empty
                place.rmdir()


def launch(
    name: str,
    arguments: Sequence[str],
    runs: list[Path],
    elsewhere: list[Path],
    command: Command | None = None,
) -> list[str]:
    """Runs an entry point's job, or several jobs with -m.

    It prints a job that fails and goes on with the other jobs. With several jobs, it skips a job that another
    process is running.

    Args:
        name: the entry point.
        arguments: Hydra's command line.
        runs: the known folders of the command's runs, in order; `launch` adds folders as it learns them.
        elsewhere: a list to which `launch` adds the folders of the jobs that it skips.
        command: what the jobs know about their command, if a launcher starts them in other processes.

    Returns:
        The names of the failed jobs, if there are several jobs.

    Raises:
        InputError: why a single job failed.
    """
    for record in {directory.parent / MULTIRUN_FILE for directory in runs}:
        if record.is_symlink():  # Hydra would write through it
            raise Damaged(f"{record} is a link, and writing would change what it leads to; remove it")
    register_resolvers()
    os.environ["HYDRA_FULL_ERROR"] = "1"
    jobs = _Jobs(name, runs, elsewhere)
    job = jobs.run if command is None else Job(name, tuple(runs), command).value

    def task(cfg: DictConfig) -> Any:
        with stopped_by_signals():
            return job(cfg)

    before = sys.argv
    try:
        sys.argv = [f"amid {name}", *arguments]
        with stopping_jobs(command):
            if any(argument.startswith("-") for argument in arguments):
                hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)(task)()
            else:
                _run_one(name, arguments, task)
    finally:
        sys.argv = before
    if jobs.refused:
        raise jobs.refused[0]
    return list(jobs.failed)


def _run_one(name: str, overrides: Sequence[str], task: Callable[[DictConfig], Any]) -> None:
    """Runs a task once through Hydra, as `hydra.main` does without an option.

    `hydra.main` would first compose the configuration once more, to look up `hydra.mode`.
    """
    with initialize_config_dir(str(CONF), version_base="1.3", job_name="launch"):
        launcher: Any = GlobalHydra.instance().hydra
        launcher.run(name, task, [*overrides, "hydra.mode=RUN"])


def run_as_rank(name: str, cfg: DictConfig, hydra: Any, directory: Path) -> Any:
    """Runs an entry point in a new process, as a rank of its run, with Hydra's own configuration."""
    register_resolvers()
    HydraConfig.instance().cfg = hydra
    search_working_folder()
    with lines_of_job():
        return run_entry_point(name, cfg, directory, of_several=True)


def run_entry_point(name: str, cfg: DictConfig, directory: Path, of_several: bool) -> Any:
    """Runs an entry point in this process, alone or with the other ranks of its run; returns its value."""
    trainer = _trainer(cfg)
    with ranks.together(has_gpus(trainer)) if of_several else contextlib.nullcontext():
        _check_same(cfg, directory)
        own_log = name != "cache" and ranks.is_first()  # a cache belongs to no run
        with logged(directory) if own_log else off_the_screen():
            value = importlib.import_module(f"amid.cli.{name}").run(cfg)
            ranks.wait_for_all()
            return value


def _check_same(cfg: DictConfig, directory: Path) -> None:
    """Raises InputError if a rank was started with other settings than the first."""
    if ranks.number() == 1:
        return
    settings = cast(dict[str, Any], OmegaConf.to_container(cfg))
    first, *others = ranks.gathered(dict(leaves(settings)) | {"the folder of the run": str(directory)})
    for rank, other in enumerate(others, 1):
        for key in {**first, **other}:
            if first.get(key) != other.get(key):
                raise InputError(
                    f"{key} is {first.get(key)!r} on rank 0 and {other.get(key)!r} on rank {rank}; start all "
                    "ranks of a run by the same command"
                )


def _trainer(cfg: DictConfig) -> Trainer:
    return Trainer.model_construct(**cast(dict[str, Any], OmegaConf.to_container(cfg.trainer, resolve=True)))


@dataclass
class _Jobs:
    """Runs the jobs of a command and notes how they ended; see `launch`."""

    name: str
    runs: list[Path]
    elsewhere: list[Path]
    refused: list[InputError] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def run(self, cfg: DictConfig) -> Any:
        """Runs Hydra's current job after a check of its settings; returns the entry point's value."""
        settings = HydraConfig.get()
        directory = Path(settings.runtime.output_dir)
        self._begin(directory)
        try:
            check_for_secrets(cfg)
            check_for_secrets(settings, "hydra")  # type: ignore[arg-type]
            check_used(cfg, settings)
            check(cfg)
            return self._start(cfg, directory)
        except BrokenPipeError:
            sys.exit(stop_printing())  # Hydra would report it
        except Exception as error:
            if was_interrupted(error):
                raise KeyboardInterrupt from error
            self._end(error, directory)
        return None

    def _start(self, cfg: DictConfig, directory: Path) -> Any:
        """Runs the entry point in this process, or in a process for each device of the run."""
        trainer = _trainer(cfg)
        n = ranks_to_start(trainer)
        if n > 1:
            if not (directory / RESULT_FILE).exists():
                importlib.import_module(f"amid.cli.{self.name}").check(cfg)  # before processes start
            # Plain values: processes that a launcher started have other classes of the launcher's settings.
            of_hydra = OmegaConf.create(OmegaConf.to_container(HydraConfig.instance().cfg))
            return run_in_processes(n, run_as_rank, self.name, cfg, of_hydra, directory)
        of_several = started_elsewhere(trainer)
        if of_several and os.environ["RANK"] != "0":
            print_nothing()
        try:
            return run_entry_point(self.name, cfg, directory, of_several)
        except Exception as error:
            print_own_error(error)
            raise

    def _begin(self, directory: Path) -> None:
        """Prints which run begins."""
        place, left = "", ""
        if directory in self.runs:
            from amid.tracking.overview import time_left  # imports Rich

            place = f" {self.runs.index(directory) + 1} of {len(self.runs)}:"
            left = time_left(directory, self.runs)
        else:
            self.runs.append(directory)
        if self.name == "train":
            print(f"run{place} {directory.name}{left}", flush=True)

    def _end(self, error: Exception, directory: Path) -> None:
        """Notes why a job failed, or that another process is running it."""
        single = HydraConfig.get().mode == RunMode.RUN
        searches = not single and chooses(HydraConfig.get().sweeper)
        if isinstance(error, Busy) and not single and not searches:
            self.elsewhere.append(directory)
            return
        failure = _failure(error, directory, single)
        if searches:  # a sweeper that searches needs the failure
            raise failure from error
        if single:
            self.refused.append(failure)
        else:
            print_error(failure)
            self.failed[directory.name] = str(failure)  # the error's traceback would hold the run's models


@dataclass(frozen=True)
class End:
    """How a job ended in a process of its own."""

    directory: Path
    state: Literal["done", "failed", "elsewhere", "interrupted"]
    reason: str = ""


@dataclass(frozen=True)
class Job:
    """The job of each run of a command, in a process that a launcher starts; it is pickled."""

    name: str
    """The entry point."""
    runs: tuple[Path, ...]
    """The known folders of the command's runs, in order."""
    command: Command

    def end(self, cfg: DictConfig) -> End:
        """Runs Hydra's current job; returns how it ended."""
        return self._run(cfg)[0]

    def value(self, cfg: DictConfig) -> Any:
        """Runs Hydra's current job; returns the entry point's value, for a sweeper.

        Raises:
            InputError: if the job failed.
            KeyboardInterrupt: if it was interrupted.
        """
        end, value = self._run(cfg)
        if end.state == "interrupted":
            raise KeyboardInterrupt
        if end.state == "failed":
            raise InputError(end.reason)
        return value

    def _run(self, cfg: DictConfig) -> tuple[End, Any]:
        directory = Path(HydraConfig.get().runtime.output_dir)
        jobs = _Jobs(self.name, list(self.runs), [])
        try:
            with (
                stopped_by_signals(),
                job_of(self.command, prefix_of(directory, self.runs)),
                put_back_into_queue(self.command.stop is None and requeues(cfg)),
            ):
                value = jobs.run(cfg)
        except KeyboardInterrupt:
            return End(directory, "interrupted"), None
        except InputError as error:
            return End(directory, "failed", str(error)), None
        if jobs.failed:
            return End(directory, "failed", *jobs.failed.values()), None
        return End(directory, "elsewhere" if jobs.elsewhere else "done"), value


def _failure(error: Exception, directory: Path, single: bool) -> InputError:
    """Returns the text to print about a failed job: the reason, and the file with the traceback of a defect.

    Removes the folder of a single job that was refused before it computed anything.
    """
    line = ("" if single else f"{directory.name}: ") + in_one_line(error)
    if not is_mistake(error):
        with contextlib.suppress(OSError):
            (directory / "error.log").write_text(hide(traceback.format_exc()), encoding="utf-8")
            line += f" (traceback: {directory / 'error.log'})"
    elif single and not isinstance(error, Busy):  # else status and report show why
        _remove_if_nothing_was_computed(directory)
    failure = InputError(line)
    failure.__cause__ = error
    return failure


def requeues(cfg: DictConfig) -> bool:
    """Returns whether a configuration asks to put a stopped SLURM job back into the queue."""
    return bool(OmegaConf.select(cfg, "checkpoint.requeue", default=False))


def chooses(sweeper: Any) -> bool:
    """Returns whether the sweeper in Hydra's configuration chooses runs by the scores of earlier runs."""
    return str(sweeper["_target_"]) != "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


def check_direction(cfg: DictConfig) -> None:
    """Refuses a sweeper that looks for the worst validation score, such as one that minimises ROUGE-L.

    Raises:
        InputError: naming the direction to use.
    """
    said = cfg.hydra.sweeper.get("direction")
    better = {"max": "maximize", "min": "minimize"}[cfg.checkpoint.mode]
    name = str(getattr(said, "name", said))
    if name in ("maximize", "minimize") and name != better:
        raise InputError(
            f"hydra.sweeper.direction={name}: of checkpoint.monitor={cfg.checkpoint.monitor}, which a run "
            f"returns, checkpoint.mode={cfg.checkpoint.mode} is better; use hydra.sweeper.direction={better}"
        )


def announce_left_to_others(elsewhere: Sequence[Path]) -> None:
    """Prints which runs other processes are running."""
    if elsewhere:
        folder, names = shown(elsewhere[0].parent), ", ".join(directory.name for directory in elsewhere)
        print(
            f"{len(elsewhere)} left to other processes, which run them: {names}; amid status {folder} shows "
            f"their progress, and amid report {folder} includes them once they end",
            flush=True,
        )


def check_results(runs: Sequence[Path]) -> None:
    """Checks that every run has a result, including runs that launchers start in other processes.

    Raises:
        InputError: naming the runs without a result.
    """
    if without := [directory for directory in runs if not (directory / RESULT_FILE).exists()]:
        names = ", ".join(directory.name for directory in without)
        raise InputError(
            f"{without[0].parent} has no result of {names}; amid status {without[0].parent} shows why"
        )


def _remove_if_nothing_was_computed(directory: Path) -> None:
    with contextlib.suppress(OSError, Busy, Damaged), only_process_in(directory):
        told = read_status_record(directory)
        begun = told is not None and told.state != "failed"  # an earlier command began the run
        nothing = {".hydra", LOCK_FILE, RUN_LOG, STATUS_FILE}
        if not begun and {file.name for file in directory.iterdir()} <= nothing:
            shutil.rmtree(directory)


@contextlib.contextmanager
def next_commands_printed(directories: Sequence[Path], report: bool) -> Iterator[None]:
    """Prints the next commands for the runs in `directories`, whether or not the block ends with an error.

    One command sends offline logs to W&B. Another one reports the finished runs; it is printed with `report`
    or if several runs were interrupted.
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

        finished = {directory.parent for directory in directories if (directory / RESULT_FILE).exists()}
        if report and finished:
            for folder in sorted(finished):
                print(f"Report: amid report {shown(folder)}", flush=True)
