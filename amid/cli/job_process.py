"""The processes that launchers start: each runs a job of a command, and stops with the command."""

import contextlib
import io
import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from amid.cli.environment import set_environment
from amid.cli.gpus import Gpu, take
from amid.config.own_modules import search_working_folder
from amid.distributed.interruption import ask_to_stop, hold_signals, release_signals, stop_requested
from amid.errors import InputError
from amid.training.process_memory import keep_freed_memory

LONGEST_PREFIX = 40
"""The most characters of a run's name before its lines; a run with a longer name is named by its number."""

PREFIX = "AMID_LINE_PREFIX"
"""The environment variable that hands the prefix of lines to the processes of a run on several devices."""

SECONDS_BETWEEN_LOOKS = 0.25


@dataclass(frozen=True)
class Command:
    """What the jobs of a command know about it."""

    folder: Path
    """Its working folder."""
    stop: Path | None
    """The file with which it stops its jobs, on a file system that they see; None if they outlive it."""
    gpus: tuple[Gpu, ...] = ()
    """The GPUs that it hands out; none if a scheduler does it, or nobody."""
    devices: int = 1
    """How many of them a run takes."""
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)

    @property
    def stops(self) -> bool:
        """Whether it asks its jobs to stop, or is gone."""
        return self.stop is not None and (self.stop.exists() or not self.is_alive)

    @property
    def is_alive(self) -> bool:
        """Whether its process runs, as far as is known on this machine."""
        if self.host != socket.gethostname():
            return True
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True


@contextlib.contextmanager
def job_of(command: Command, prefix: str) -> Iterator[None]:
    """Makes this process a job of a command within the block.

    Every line has a prefix. The working folder is that of the command. The job takes its GPUs, and stops when
    the command asks for it.

    Raises:
        InputError: if this machine does not have the working folder.
        Stopped: if the command stops its jobs.
    """
    try:
        os.chdir(command.folder)
    except OSError as error:
        raise InputError(
            f"{socket.gethostname()} has no folder {command.folder}; start the command in a folder that all "
            "machines see"
        ) from error
    search_working_folder()
    set_environment()
    keep_freed_memory()
    with contextlib.suppress(OSError):  # some launchers have done it
        os.setpgid(0, 0)  # Ctrl-C reaches the command alone, which lets its jobs finish their steps
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    multiprocessing.set_start_method(None, force=True)  # joblib's own is unknown to the ranks of a run
    os.environ[PREFIX] = prefix
    try:
        with lines_of_job(), _stopped_by(command):
            if command.gpus:
                take(command.gpus, command.devices)
            yield
    finally:
        del os.environ[PREFIX]


@contextlib.contextmanager
def lines_of_job() -> Iterator[None]:
    """Begins every line that the block prints with the name of the run, if this process is of a job."""
    prefix = os.environ.get(PREFIX)
    if prefix is None:
        yield
        return
    with (
        contextlib.redirect_stdout(_Prefixed(sys.stdout, prefix)),
        contextlib.redirect_stderr(_Prefixed(sys.stderr, prefix)),
    ):
        yield


@contextlib.contextmanager
def _stopped_by(command: Command) -> Iterator[None]:
    over = threading.Event()

    def watch() -> None:
        while not over.wait(SECONDS_BETWEEN_LOOKS):
            if command.stops:
                ask_to_stop()
                return

    if command.stops:
        raise KeyboardInterrupt
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        if command.stop is not None and not command.is_alive:
            os._exit(1)  # joblib would keep this process for further jobs


@contextlib.contextmanager
def stopping_jobs(command: Command | None) -> Iterator[None]:
    """Passes signals in the block on to the jobs of this command, which end before the block does.

    A second Ctrl-C ends the block at once. Without such jobs, the block is as it is.

    Raises:
        Stopped: at the end of the block, for a signal within it.
    """
    if command is None or command.stop is None:
        yield
        return
    stop, over = command.stop, threading.Event()

    def watch() -> None:
        while not over.wait(SECONDS_BETWEEN_LOOKS):
            if stop_requested():
                stop.touch()
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    hold_signals()
    # Processes inherit what the starting thread blocks: Ctrl-C must not end them while they start.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        over.set()
        watcher.join()
        stop.unlink(missing_ok=True)
        release_signals()


def prefix_of(directory: Path, runs: Sequence[Path]) -> str:
    """Returns the prefix of the lines of the run in `directory`: its name, or if that is long its number."""
    name = directory.name
    if len(name) > LONGEST_PREFIX and directory in runs:
        name = f"run {runs.index(directory) + 1}"
    return f"[{name}] "


class _Prefixed(io.TextIOBase):
    """Writes whole lines, each with a prefix, so that the lines of several processes do not mix."""

    def __init__(self, screen: TextIO, prefix: str) -> None:
        self._screen, self._prefix, self._begun = screen, prefix, ""

    def write(self, text: str) -> int:
        """Writes the lines that `text` completes."""
        *lines, self._begun = (self._begun + text).split("\n")
        if lines:
            self._screen.write("".join(f"{self._prefix}{line}\n" for line in lines))
            self._screen.flush()
        return len(text)

    def flush(self) -> None:
        """Does nothing: lines are written when they are complete."""

    def fileno(self) -> int:
        """Returns the descriptor of the screen."""
        return self._screen.fileno()
