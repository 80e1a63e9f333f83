"""The `amid` command."""

import contextlib
import os
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from amid import __version__
from amid.cli.launch import (
    announce_left_to_others,
    check_others,
    check_results,
    checked,
    launch,
    next_commands_printed,
    unread,
    without_empty_folders,
)
from amid.config.own_modules import search_working_folder
from amid.console import as_typed
from amid.errors import InputError, choose_one, print_error, was_interrupted, with_traceback
from amid.tracking.run_log import off_the_screen
from amid.training.interruption import signal_of, stopped_by_signals
from amid.training.process_memory import keep_freed_memory

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig

    from amid.config.sweeps import Sweep


USAGE = """\
amid: distil large language models into small ones with the α-mixture assistant.

  amid train [KEY=VALUE ...]        train and score one student; -m runs every combination of KEY=A,B
  amid sweep NAME [KEY=VALUE ...]   run sweeps/NAME.yaml, then report it; --dry-run lists and estimates:
                                    {sweeps}
  amid evaluate run=FOLDER          score a run again, or any model: model.student.path=MODEL data=dolly
  amid cache [KEY=VALUE ...]        write the teacher's hidden states for model= and data= to disk
  amid score FILE|RUN ...           score files of answers from any system, and test the differences
  amid report FOLDER|ZIP ...        write a page, tables and figures of all finished runs in FOLDER
  amid status FOLDER                show how far each run is; --follow refreshes until all have finished
  amid dashboard SWEEP              save a W&B workspace for a sweep; entity=, project=

  amid train --help                 list the options and settings
  amid help WORD                    explain them: amid help method method=taid assistant.alpha
  amid --version

An error is one line. --traceback anywhere in a command, or AMID_TRACEBACK=1, prints its traceback too.

Examples
  amid sweep alpha
  amid sweep main scale=full --dry-run
  amid train model=tiny data=builtin divergence=kl assistant.alpha=-1 assistant.lam=0.1
  amid train -m assistant.alpha=-5,-1,1 seed=1,2,3 output_dir=outputs/mine
  amid train data=jsonl data.train=my/train.jsonl data.valid=my/valid.jsonl
"""

BASIC = "hydra/sweeper=basic"

OPTIONS = ("-m", "--multirun", "-h", "--help", "--hydra-help", "-c", "--cfg", "--resolve", "--config-dir")
"""Of Hydra, that the commands which train, evaluate and write states take."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    given = list(sys.argv[1:] if argv is None else argv)
    arguments = [word for word in given if word != "--traceback"]
    with with_traceback(arguments != given), off_the_screen():
        return _run(arguments)


def _run(arguments: list[str]) -> int:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    keep_freed_memory()
    command, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if command not in ("report", "status", "dashboard") and (command != "score" or "--trust-run" in rest):
        search_working_folder()  # those read what others may have made, and take no code
    try:
        with stopped_by_signals():
            if command in ("-h", "--help"):
                _help([])
            elif command == "--version":
                print(f"amid {__version__}")
            elif command in COMMANDS:
                COMMANDS[command](rest)
            else:
                raise InputError(f"{command!r} is no command of amid{choose_one(command, list(COMMANDS))}")
        sys.stdout.flush()
    except BrokenPipeError:
        return unread()
    except KeyboardInterrupt as error:
        return _interrupted(arguments, error)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except Exception as error:
        if was_interrupted(error):
            return _interrupted(arguments, error)
        print_error(error)
        return 1
    return 0


def _interrupted(arguments: Sequence[str], error: BaseException) -> int:
    """Says how to go on with what was interrupted, where it had runs; returns the exit status."""
    if arguments[0] in ("train", "evaluate", "cache", "sweep"):
        again = as_typed(arguments)
        print(
            f"\namid: interrupted; finished runs, checkpoints and answered sets stay. To go on: {again}",
            file=sys.stderr,
        )
    return 128 + signal_of(error)


def _help(arguments: list[str]) -> None:
    from amid.config.folders import SEARCH_PATH, sweep_names, take_folders

    words = [word for word in take_folders(arguments) if not word.startswith(SEARCH_PATH)]
    if not words or {"-h", "--help", "help"} & set(words):
        print(USAGE.format(sweeps=", ".join(sweep_names())))
        return
    for word in words:
        if word in COMMANDS:
            with contextlib.suppress(SystemExit):  # as argparse ends with
                COMMANDS[word](["--help"])
        else:
            from amid.cli.help import explain

            explain(word)


def _hydra(name: str, arguments: list[str]) -> None:
    """Runs an entry point under Hydra, after a check of what was written."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from amid.config.compose import check_overrides, parsed_overrides, quoted, reason_of_hydra
    from amid.config.folders import say_what_is_not_read, take_folders
    from amid.config.secrets import check_overrides_for_secrets

    written = arguments
    arguments = [quoted(a) for a in take_folders(arguments)]
    say_what_is_not_read()
    overrides = [a for a in arguments if a.startswith("~") or ("=" in a and not a.startswith("-"))]
    flags = {a for a in arguments if a.startswith("-")}
    several = bool({"-m", "--multirun"} & flags)
    runs: list[Path] = []
    places: list[Path] = []
    searches = False
    if not {"-h", "--help", "--hydra-help"} & flags:
        _check_words(name, arguments, overrides, flags)
        arguments = [a for a in arguments if a not in overrides] + overrides  # Hydra wants options first
        parsed = parsed_overrides(overrides)
        check_overrides_for_secrets(parsed)
        _check_number(name, parsed, several)
        cfg = check_overrides(name, overrides)
        if several and flags <= {"-m", "--multirun"} and not _names_folders(parsed):
            sweep = _sweep_of(name, cfg, parsed)
            searches = sweep.searches
            runs = _checked_runs(sweep, written)
            if name == "train":
                arguments.append(sweep.subdir)
        places = [Path(cfg.output_dir), Path(cfg.prepared_dir), Path(cfg.data.cache_dir)]
    elsewhere: list[Path] = []
    with without_empty_folders(*places), next_commands_printed(runs, report=several):
        try:
            failed = launch(name, arguments, runs, elsewhere)
        except (HydraException, OmegaConfBaseException) as error:
            check_overrides(name, overrides)  # which says more of a mistake in them
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


def _check_number(name: str, overrides: "Sequence[Override]", several: bool) -> None:
    """Raises InputError for several values without -m, and for the folder of a single run with it."""
    for override in overrides:
        if not several and override.is_sweep_override():
            raise InputError(
                f"{override.input_line} has several values, each for a run of its own: "
                f"amid {name} -m {override.input_line}; for one value that is a list, write [A,B]"
            )
        if several and override.key_or_group == "hydra.run.dir" and not override.is_delete():
            raise InputError(f"{override.input_line} is for one run; the folder of several is output_dir=")


def _sweep_of(name: str, cfg: "DictConfig", overrides: "Sequence[Override]") -> "Sweep":
    """The runs of a command with -m, whose first has the configuration `cfg`."""
    from amid.config.sweeps import Sweep

    params = [f"{key}={value}" for key, value in (cfg.hydra.sweeper.get("params") or {}).items()]
    lines = [str(override.input_line) for override in overrides]
    settings = [*params, *(line for line in lines if not line.lstrip("+~").startswith("hydra"))]
    return Sweep(name, Path(cfg.output_dir), [settings], searches=_searches(cfg, overrides))


def _checked_runs(sweep: "Sweep", written: Sequence[str]) -> list[Path]:
    """Checks all runs of a command with -m; the folders of those to train, as far as they are known."""
    from amid.tracking.command_records import write_plan

    if sweep.name != "train":
        check_others(sweep.name, sweep)
    elif sweep.searches:
        write_plan(sweep.output_dir, [], as_typed(["train", *written]))
    else:
        return checked(sweep)
    return []


def _names_folders(overrides: "Sequence[Override]") -> bool:
    """Whether a command itself says how folders are called, or which runs there are."""
    said = ("hydra.sweep.subdir", "hydra.sweeper.params", "hydra.sweeper.search_space")
    return any(o.key_or_group.startswith(said) or str(o.input_line) == BASIC for o in overrides)


def _searches(cfg: "DictConfig", overrides: "Sequence[Override]") -> bool:
    """Whether a sweeper chooses the runs by the scores of earlier ones."""
    from amid.cli.launch import chooses

    said = [override.value() for override in overrides if override.key_or_group == "hydra/sweeper"]
    return bool(said and said[-1] != "basic") or chooses(cfg.hydra.sweeper)


def _sweep(arguments: list[str]) -> None:
    """Runs the grid of a sweep file, then its baselines, then reports; finished runs are skipped."""
    from amid.config.folders import take_folders

    if not arguments or {"-h", "--help"} & set(arguments):
        _sweep_help()
        return
    name, *words = take_folders(arguments)
    sweep = _read_sweep(name, [word for word in words if word != "--dry-run"])
    print(f"Sweep {name} in {sweep.output_dir}: {sweep.in_short}", flush=True)
    if "--dry-run" not in words:
        _run_sweep(sweep, as_typed(["sweep", *arguments]))
        return
    if sweep.searches:
        raise InputError(
            "--dry-run lists the runs of a sweep, but a sweeper chooses the runs of this one; leave it out"
        )
    from amid.cli.dry_run import show_plan

    show_plan(sweep)


def _sweep_help() -> None:
    from amid.config.folders import sweep_names
    from amid.config.sweeps import title

    print("amid sweep NAME [scale=small|full] [--dry-run] [KEY=VALUE ...]\n")
    for name in sweep_names():
        print(f"  {name:<12} {title(name)}")
    print(
        "\nNAME may also be your own file, such as sweeps/mine.yaml (docs/how-to/own-files.md)."
        "\nscale=small, the default, is for a machine without a GPU; scale=full is the published size."
        "\n--dry-run lists the runs, with an estimate of time, memory and disk, and starts nothing."
        "\nKEY=VALUE sets a value in every run; KEY=A,B runs every value. A baseline keeps its own method,"
        "\ndivergence, assistant, objective, schedule and text. It takes text.KEY, objective.fused and"
        "\nobjective.compiled if it has such a setting. The same command again skips finished runs."
    )


def _read_sweep(name: str, words: Sequence[str]) -> "Sweep":
    """The sweep of a file, with scale=NAME and KEY=VALUE, after a check of its first run.

    Raises:
        InputError: for a word that is neither, or a setting that is refused.
    """
    from amid.config.compose import check_overrides, parsed_overrides, quoted
    from amid.config.folders import SWEEPS, say_what_is_not_read
    from amid.config.secrets import check_overrides_for_secrets
    from amid.config.sweeps import read_sweep

    say_what_is_not_read()
    overrides: list[str] = []
    scale = None
    for word in words:
        if word.startswith("scale="):
            scale = word.removeprefix("scale=")
        elif word.startswith("-") or "=" not in word:
            raise InputError(f"{word!r} is neither KEY=VALUE nor --dry-run; see amid sweep --help")
        else:
            overrides.append(quoted(word))
    check_overrides_for_secrets(parsed_overrides(overrides))
    sweep = read_sweep(name, overrides, scale)
    try:
        check_overrides(sweep.name, sweep.jobs[0])
    except InputError as error:
        own = sweep.folder != SWEEPS  # those of amid are right, so that the mistake is on the command line
        raise InputError(f"sweep {name}: {error}" if own else str(error)) from error
    return sweep


def _run_sweep(sweep: "Sweep", again: str) -> None:
    """Runs what is not finished of a sweep, and reports it.

    Args:
        sweep: of a file.
        again: the command that goes on with it.
    """
    from amid.results import RESULT_FILE
    from amid.tracking.command_records import write_plan

    runs = checked(sweep)
    write_plan(sweep.output_dir, [directory.name for directory in runs], again)
    failed = False
    elsewhere: list[Path] = []
    with next_commands_printed(runs, report=False):
        for line in sweep.launch_arguments():
            try:
                failed |= bool(launch("train", line, runs, elsewhere))
            except InputError as error:
                failed = True
                print_error(error)
    if any((directory / RESULT_FILE).exists() for directory in (runs or sweep.output_dir.glob("*"))):
        _report([str(sweep.output_dir)])
    announce_left_to_others(elsewhere)
    if failed:
        raise InputError(f"some runs failed (above); to try them again: {again}")
    if not sweep.searches:  # whose sweeper decides how many may fail
        check_results([directory for directory in runs if directory not in elsewhere])


def _report(arguments: list[str]) -> None:
    from amid.cli.report import run

    run(arguments)


def _score(arguments: list[str]) -> None:
    from amid.cli.score import run

    run(arguments)


def _status(arguments: list[str]) -> None:
    if {"-h", "--help"} & set(arguments):
        print(
            "amid status FOLDER [--follow]\n\n"
            "Prints state, step, loss, last validation score and time left of each run in a sweep's FOLDER. "
            "--follow refreshes until all have finished, or until none has run for two minutes."
        )
        return
    folders = [word for word in arguments if not word.startswith("-")]
    if len(folders) != 1 or not set(arguments) <= {*folders, "--follow"}:
        raise InputError("amid status FOLDER [--follow] takes one folder of runs, such as outputs/alpha")
    from amid.cli.status import run

    run(folders[0], "--follow" in arguments)


def _dashboard(arguments: list[str]) -> None:
    if {"-h", "--help"} & set(arguments):
        print(
            "amid dashboard SWEEP [entity=NAME] [project=amid] [scale=small]\n\n"
            "Saves a W&B workspace for a sweep. SWEEP is the name of a sweep file or a folder of runs.\n"
            "Without an account or network it writes the specification into that folder, as workspace.json."
        )
        return
    given = dict(word.split("=", 1) for word in arguments[1:] if "=" in word)
    if not arguments or len(given) != len(arguments) - 1 or not {*given} <= {"entity", "project", "scale"}:
        raise InputError(
            "amid dashboard SWEEP [entity=NAME] [project=amid] [scale=small] takes a sweep, by name or folder"
        )
    from amid.config.folders import sweep_file, sweep_names

    if not Path(arguments[0]).is_dir():
        try:
            sweep_file(arguments[0])
        except InputError:
            unknown = f"{arguments[0]} is neither a folder of runs nor a sweep"
            raise InputError(unknown + choose_one(arguments[0], sweep_names())) from None
    from amid.cli.dashboard import run

    run(
        arguments[0],
        as_typed(["dashboard", *arguments]),
        given.get("scale"),
        given.get("entity"),
        given.get("project", "amid"),
    )


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": lambda arguments: _hydra("train", arguments),
    "evaluate": lambda arguments: _hydra("evaluate", arguments),
    "cache": lambda arguments: _hydra("cache", arguments),
    "sweep": _sweep,
    "score": _score,
    "report": _report,
    "status": _status,
    "dashboard": _dashboard,
    "help": _help,
}
