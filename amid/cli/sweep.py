"""`amid sweep`: the runs of a sweep file, then their report."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from omegaconf import DictConfig

from amid.cli.check_runs import checked
from amid.cli.launch import (
    announce_left_to_others,
    check_direction,
    check_results,
    launch,
    next_commands_printed,
    requeues,
)
from amid.cli.side_by_side import launch_side_by_side, side_by_side
from amid.config.folders import SWEEPS, say_what_is_not_read, sweep_names, take_folders
from amid.config.launchers import Launcher, launcher_of
from amid.config.overrides import check_overrides, parsed_overrides, quoted
from amid.config.secrets import check_overrides_for_secrets
from amid.config.sweeps import Sweep, read_sweep, title
from amid.console import as_typed
from amid.distributed.interruption import put_back_into_queue
from amid.distributed.start import is_other_rank_of_torchrun
from amid.errors import InputError, print_error
from amid.results import RESULT_FILE
from amid.tracking.command_records import write_plan
from amid.training.process_memory import lasting_imports


def run(arguments: list[str]) -> None:
    """Runs the grid of a sweep file, then its baselines, then reports; finished runs are skipped.

    Raises:
        InputError: for a mistake in `arguments`, or naming the runs that failed.
    """
    name, *words = [word for word in arguments if word != "--dry-run"] or ["--help"]
    if {"-h", "--help"} & {name, *words}:
        _sweep_help()
        return
    name, *words = take_folders([name, *words])
    sweep, cfg = _read_sweep(name, words)
    launcher = launcher_of(sweep.name, cfg, parsed_overrides(sweep.of_hydra))
    if sweep.searches:
        check_direction(cfg)
    print(f"Sweep {name} in {sweep.output_dir}: {sweep.in_short}", flush=True)
    if "--dry-run" not in arguments:
        with put_back_into_queue(requeues(cfg)):
            _run_sweep(sweep, launcher, cfg, as_typed(["sweep", *arguments]))
        return
    if sweep.searches:
        raise InputError(
            "--dry-run lists the runs of a sweep, but a sweeper chooses the runs of this one; leave it out"
        )
    with lasting_imports():
        from amid.cli.dry_run import show_plan  # imports torch

    show_plan(sweep)


def _sweep_help() -> None:
    print("amid sweep NAME [scale=small|full] [--dry-run] [KEY=VALUE ...]\n")
    for name in sweep_names():
        print(f"  {name:<12} {title(name)}")
    print(
        "\nNAME may also be your own file, such as sweeps/mine.yaml (docs/how-to/own-files.md)."
        "\nscale=small, the default, is for a machine without a GPU; scale=full is the published size."
        "\n--dry-run lists the runs, with an estimate of steps, memory and disk, and starts nothing."
        "\nKEY=VALUE sets a value in every run; KEY=A,B runs every value. Baselines, such as SFT and KD, keep"
        "\ntheir own method, divergence, assistant, objective, schedule and text; text.KEY, objective.fused"
        "\nand objective.compiled reach each baseline with this setting. The same command again skips"
        "\nfinished runs."
        "\nOn several GPUs the runs go side by side, one GPU each; hydra/launcher=joblib, submitit_slurm,"
        "\nsubmitit_local or ray choose where they run (docs/how-to/launcher.md)."
    )


def _read_sweep(name: str, words: Sequence[str]) -> tuple[Sweep, DictConfig]:
    """Reads the sweep of a file with scale=NAME and KEY=VALUE, and checks its first run.

    Returns:
        The sweep, and the configuration of its first run with Hydra's part.

    Raises:
        InputError: for a word that is neither, or a setting that is refused.
    """
    say_what_is_not_read()
    overrides: list[str] = []
    scale = None
    for word in words:
        if word.startswith("scale="):
            scale = word.removeprefix("scale=")
        elif word.startswith("-") or not ("=" in word or word.startswith("~")):
            raise InputError(f"{word!r} is neither KEY=VALUE nor --dry-run; see amid sweep --help")
        else:
            overrides.append(quoted(word))
    check_overrides_for_secrets(parsed_overrides(overrides))
    sweep = read_sweep(name, overrides, scale)
    try:
        cfg = check_overrides(sweep.name, [*sweep.jobs[0], *sweep.of_hydra])
    except InputError as error:
        own = sweep.folder != SWEEPS  # amid's files are right: the command line has the mistake
        raise InputError(f"sweep {name}: {error}" if own else str(error)) from error
    return replace(sweep, output_dir=Path(cfg.output_dir)), cfg


def _run_sweep(sweep: Sweep, launcher: Launcher, cfg: DictConfig, again: str) -> None:
    """Runs the unfinished runs of a sweep, then reports the sweep.

    Args:
        sweep: the sweep, read from its file.
        launcher: the launcher of its runs.
        cfg: the configuration of its first run.
        again: the command that resumes the sweep.
    """
    runs = checked(sweep)
    write_plan(sweep.output_dir, [directory.name for directory in runs], again)
    to_start = None if sweep.searches else sum(not run.finished for run in sweep.runs())
    chosen = side_by_side("train", launcher, cfg, sweep.output_dir, to_start)
    elsewhere: list[Path] = []
    starts: list[Callable[[], list[str]]]
    if chosen is None or sweep.searches:
        command, further = (None, []) if chosen is None else (chosen.command, chosen.arguments)
        lines = [[*line, *further] for line in sweep.launch_arguments()]
        starts = [partial(launch, "train", line, runs, elsewhere, command) for line in lines]
    else:
        starts = [partial(launch_side_by_side, "train", sweep, chosen, runs, elsewhere)]
    failed = False
    with next_commands_printed(runs, report=False):
        for start in starts:
            try:
                failed |= bool(start())
            except InputError as error:
                failed = True
                print_error(error)
    if any((directory / RESULT_FILE).exists() for directory in (runs or sweep.output_dir.glob("*"))):
        from amid.cli.report import run as report  # draws figures, by matplotlib

        if not is_other_rank_of_torchrun():
            report([str(sweep.output_dir)])
    announce_left_to_others(elsewhere)
    if failed:
        raise InputError(f"some runs failed (above); to try them again: {again}")
    if not sweep.searches:  # the sweeper of a search decides how many runs may fail
        check_results([directory for directory in runs if directory not in elsewhere])
