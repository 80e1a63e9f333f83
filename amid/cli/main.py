"""The `amid` command."""

import contextlib
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module

from amid import __version__
from amid.cli.environment import set_environment
from amid.config.own_modules import search_working_folder
from amid.console import as_typed, stop_printing
from amid.distributed.interruption import signal_of, stopped_by_signals
from amid.distributed.screen import print_nothing
from amid.distributed.start import is_other_rank_of_torchrun
from amid.errors import InputError, choose_one, print_error, was_interrupted, with_traceback
from amid.tracking.run_log import off_the_screen
from amid.training.process_memory import keep_freed_memory

COMMANDS = (
    *("train", "evaluate", "cache", "sweep", "score", "report", "card", "push", "status", "dashboard"),
    "help",
)

READERS = ("report", "card", "push", "status", "dashboard")
"""Commands that read files of other people, and run none of their code."""

USAGE = """\
amid: distil large language models into small ones with the α-mixture assistant.

  amid train [KEY=VALUE ...]        train and score one student; -m runs every combination of KEY=A,B
  amid sweep NAME [KEY=VALUE ...]   run sweeps/NAME.yaml, then report it; --dry-run lists and estimates:
                                    {sweeps}
  amid evaluate run=FOLDER          score a run again, or any model: model.student.path=MODEL data=dolly
  amid cache [KEY=VALUE ...]        write the teacher's hidden states for model= and data= to disk
  amid score FILE|RUN ...           score files of answers from any system, and test the differences
  amid report FOLDER|ZIP ...        write a page, tables and figures of all finished runs in FOLDER
  amid card RUN                     write the model card of a run's student
  amid push RUN OWNER/NAME          upload the student with its card to the Hugging Face hub; private
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


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    given = list(sys.argv[1:] if argv is None else argv)
    arguments = [word for word in given if word != "--traceback"]
    with with_traceback(arguments != given), off_the_screen():
        return _run(arguments)


def _run(arguments: list[str]) -> int:
    set_environment()
    if is_other_rank_of_torchrun():
        print_nothing()
    keep_freed_memory()
    command, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if command not in READERS and (command != "score" or "--trust-run" in rest):
        search_working_folder()
    try:
        with stopped_by_signals():
            if command in ("-h", "--help"):
                _help([])
            elif command == "--version":
                print(f"amid {__version__}")
            elif command in COMMANDS:
                _command(command)(rest)
            else:
                raise InputError(f"{command!r} is no command of amid{choose_one(command, COMMANDS)}")
        sys.stdout.flush()
    except BrokenPipeError:
        return stop_printing()
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
    """Prints how to resume the runs of an interrupted command, if it had any; returns the exit status."""
    if arguments[0] in ("train", "evaluate", "cache", "sweep"):
        again = as_typed(arguments)
        print(
            f"\namid: interrupted; finished runs, checkpoints and answered sets stay. To go on: {again}",
            file=sys.stderr,
        )
    return 128 + signal_of(error)


def _help(arguments: list[str]) -> None:
    from amid.config.folders import SEARCH_PATH, sweep_names, take_folders  # imports Hydra

    words = [word for word in take_folders(arguments) if not word.startswith(SEARCH_PATH)]
    if not words or {"-h", "--help", "help"} & set(words):
        print(USAGE.format(sweeps=", ".join(sweep_names())))
        return
    for word in words:
        if word in COMMANDS:
            with contextlib.suppress(SystemExit):  # argparse's exit status
                _command(word)(["--help"])
        else:
            from amid.cli.help import explain

            explain(word)


def _command(name: str) -> Callable[[list[str]], None]:
    """Returns the function that runs a command on its arguments; imports that command's modules alone."""
    if name == "help":
        return _help
    if name in ("train", "evaluate", "cache"):
        return partial(import_module("amid.cli.hydra_commands").run, name)
    run: Callable[[list[str]], None] = import_module(f"amid.cli.{name}").run
    return run
