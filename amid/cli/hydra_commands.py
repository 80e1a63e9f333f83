"""`amid train`, `amid evaluate` and `amid cache`: checks the command line, then launches it through Hydra."""

from collections.abc import Collection, Sequence
from pathlib import Path

from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from amid.cli.check_runs import check_others, checked
from amid.cli.launch import (
    announce_left_to_others,
    check_direction,
    check_results,
    chooses,
    launch,
    next_commands_printed,
    requeues,
    without_empty_folders,
)
from amid.cli.side_by_side import SideBySide, launch_side_by_side, side_by_side
from amid.config.compose import reason_of_hydra
from amid.config.folders import say_what_is_not_read, take_folders
from amid.config.launchers import launcher_of
from amid.config.overrides import check_overrides, parsed_overrides, quoted
from amid.config.secrets import check_overrides_for_secrets
from amid.config.stored_overrides import for_stored_settings
from amid.config.sweeps import Sweep
from amid.console import as_typed
from amid.distributed.interruption import put_back_into_queue
from amid.errors import InputError, choose_one
from amid.tracking.command_records import write_plan

BASIC = "hydra/sweeper=basic"

OPTIONS = ("-m", "--multirun", "-h", "--help", "--hydra-help", "-c", "--cfg", "--resolve", "--config-dir")
"""Hydra's options that `amid train`, `amid evaluate` and `amid cache` take."""


def run(name: str, arguments: list[str]) -> None:
    """Runs an entry point under Hydra, after a check of the command line.

    Args:
        name: train, evaluate or cache.
        arguments: the arguments of the command.

    Raises:
        InputError: for a mistake in the arguments, or naming the runs that failed.
    """
    written = arguments
    arguments = [quoted(a) for a in take_folders(arguments)]
    say_what_is_not_read()
    overrides = [a for a in arguments if a.startswith("~") or ("=" in a and not a.startswith("-"))]
    flags = {a for a in arguments if a.startswith("-")}
    several = bool({"-m", "--multirun"} & flags)
    runs: list[Path] = []
    places: list[Path] = []
    searches = back_into_queue = False
    sweep: Sweep | None = None
    chosen: SideBySide | None = None
    if not {"-h", "--help", "--hydra-help"} & flags:
        _check_words(name, arguments, overrides, flags)
        options = [a for a in arguments if a not in overrides]
        overrides = for_stored_settings(overrides) if name == "evaluate" else overrides
        arguments = [*options, *overrides]  # Hydra wants options first
        parsed = parsed_overrides(overrides)
        check_overrides_for_secrets(parsed)
        _check_number(name, parsed, several)
        cfg = check_overrides(name, overrides)
        back_into_queue = requeues(cfg)
        launcher = launcher_of(name, cfg, parsed)
        if several and flags <= {"-m", "--multirun"} and not _names_folders(parsed):
            sweep = _sweep_of(name, cfg, parsed)
            searches = sweep.searches
            if searches and name == "train":
                check_direction(cfg)
            runs = _checked_runs(sweep, written)
            if name == "train":
                arguments.append(sweep.subdir)
        if several:
            to_start = None if sweep is None or searches else sum(not run.finished for run in sweep.runs())
            chosen = side_by_side(name, launcher, cfg, Path(cfg.output_dir), to_start)
            arguments += [] if chosen is None else chosen.arguments
        places = [Path(cfg.output_dir), Path(cfg.prepared_dir), Path(cfg.data.cache_dir)]
    elsewhere: list[Path] = []
    with (
        put_back_into_queue(back_into_queue),
        without_empty_folders(*places),
        next_commands_printed(runs, report=several),
    ):
        try:
            if sweep is None or searches or chosen is None:
                command = None if chosen is None else chosen.command
                failed = launch(name, arguments, runs, elsewhere, command)
            else:
                failed = launch_side_by_side(name, sweep, chosen, runs, elsewhere)
        except (HydraException, OmegaConfBaseException) as error:
            check_overrides(name, overrides)  # this check explains a mistake in them better
            raise InputError(reason_of_hydra(error)) from error
        finally:
            announce_left_to_others(elsewhere)
        if failed:
            raise InputError(f"{len(failed)} of {len(runs)} runs failed (above)")
        if name == "train" and not searches:
            check_results([directory for directory in runs if directory not in elsewhere])


def _check_words(
    name: str, arguments: Sequence[str], overrides: Sequence[str], flags: Collection[str]
) -> None:
    """Raises InputError for a word of a command that is neither KEY=VALUE nor an option."""
    for word in arguments:
        if word not in (*overrides, *flags, "job", "hydra", "all"):
            remedy = f"for that run: run={word}" if Path(word).is_dir() else f"see amid {name} --help"
            if "=" in arguments:
                remedy = "write KEY=VALUE without spaces around ="
            raise InputError(f"{word!r} is neither KEY=VALUE nor an option; {remedy}")
    for flag in (flag for flag in flags if flag.partition("=")[0] not in OPTIONS):
        of_sweeps = "; it is one of amid sweep NAME" if flag == "--dry-run" else choose_one(flag, OPTIONS)
        raise InputError(f"{flag} is no option of amid {name}{of_sweeps}")


def _check_number(name: str, overrides: Sequence[Override], several: bool) -> None:
    """Raises InputError for several values without -m, and for the folder of a single run with it."""
    for override in overrides:
        if not several and override.is_sweep_override():
            raise InputError(
                f"{override.input_line} has several values, each for a run of its own: "
                f"amid {name} -m {override.input_line}; for one value that is a list, write [A,B]"
            )
        if several and override.key_or_group == "hydra.run.dir" and not override.is_delete():
            raise InputError(f"{override.input_line} is for one run; the folder of several is output_dir=")


def _sweep_of(name: str, cfg: DictConfig, overrides: Sequence[Override]) -> Sweep:
    """Returns the runs of a command with -m; `cfg` is the configuration of the first run."""
    params = [f"{key}={value}" for key, value in (cfg.hydra.sweeper.get("params") or {}).items()]
    lines = [str(override.input_line) for override in overrides]
    settings = [*params, *(line for line in lines if not line.lstrip("+~").startswith("hydra"))]
    of_hydra = [line for line in lines if line.lstrip("+~").startswith("hydra")]
    return Sweep(name, Path(cfg.output_dir), [settings], of_hydra, searches=chooses(cfg.hydra.sweeper))


def _checked_runs(sweep: Sweep, written: Sequence[str]) -> list[Path]:
    """Checks all runs of a command with -m; returns the known folders of the runs to train."""
    if sweep.name != "train":
        check_others(sweep.name, sweep)
    elif sweep.searches:
        write_plan(sweep.output_dir, [], as_typed(["train", *written]))
    else:
        return checked(sweep)
    return []


def _names_folders(overrides: Sequence[Override]) -> bool:
    """Returns whether the command itself sets the names of the folders or the list of the runs."""
    said = ("hydra.sweep.subdir", "hydra.sweeper.params", "hydra.sweeper.search_space")
    return any(o.key_or_group.startswith(said) or str(o.input_line) == BASIC for o in overrides)
