"""The start of the ranks of a run on one machine, and what happens when one of them ends."""

import contextlib
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from amid.distributed.interruption import Stopped, signal_of, stopped_by_signals
from amid.distributed.ranks import LostContact, that_can_be_sent
from amid.distributed.screen import print_nothing
from amid.errors import in_one_line, was_interrupted
from amid.tracking.run_log import off_the_screen

LAST_WORDS = 5.0
"""Seconds in which the other ranks may say why they end too, after one has ended."""

PATIENCE = 20.0
"""Seconds from a request to end to the end by force."""

Job = Callable[..., Any]


class RankFailed(ChildProcessError):
    """A rank of a run ended without a message, such as by a signal."""


@dataclass(frozen=True)
class _Failure:
    """Why a rank failed: its error, and the text of its traceback."""

    error: Exception
    traceback: str


def run_in_processes(ranks: int, job: Job, *given: Any) -> Any:
    """Runs `job(*given)` in new processes, the ranks of a run, and returns what the first one returns.

    Each process has RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT in its
    environment. Only the first one prints. Signals to this process go to all of them. Once one has failed,
    the others are ended.

    Args:
        ranks: the number of processes.
        job: a function of a module.
        given: its arguments; they can be pickled.

    Raises:
        Exception: the error of the rank that failed first.
        RankFailed: if a rank ended without an error of its own, such as by SIGKILL.
        Stopped: for a signal.
    """
    context = multiprocessing.get_context("spawn")
    port = _free_port()
    processes, ends = [], []
    said: list[Any] = [None] * ranks
    try:
        for rank in range(ranks):
            here, there = context.Pipe(duplex=False)
            of_rank = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
            environment = {**of_rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            arguments = there, environment, job, given
            process = context.Process(target=_rank, args=arguments, name=f"rank {rank}")
            process.start()
            there.close()
            processes.append(process)
            ends.append(here)
        failed = _wait(processes, ends, said)
    except Stopped as stop:
        _stop(processes, stop.signum)
        raise
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
            process.join()
    _listen(ends, said)
    _check(processes, failed, said)
    return said[0]


def _wait(processes: Sequence[BaseProcess], ends: Sequence[Connection], said: list[Any]) -> list[int]:
    """Waits until all processes have ended; if one fails, ends the others.

    Returns:
        The ranks that failed by themselves.
    """
    while True:
        # A process may fail at any time: it is among the living here, or has a status in the next line.
        alive = [process.sentinel for process in processes if process.is_alive()]
        if any(process.exitcode for process in processes):
            break
        if not alive:
            return []
        wait([*alive, *(end for end in ends if not end.closed)])
        _listen(ends, said)
    _let_end(processes, LAST_WORDS)
    _listen(ends, said)
    failed = [rank for rank, process in enumerate(processes) if process.exitcode]
    for process in processes:
        process.terminate()
    _let_end(processes, PATIENCE)
    return failed


def _stop(processes: Sequence[BaseProcess], signum: int) -> None:
    """Passes a signal on to the ranks, and waits until they have saved their state; a second one hurries.

    If a rank ends otherwise than by the signal, the others have `PATIENCE`: they may be waiting for it.
    """
    well = {None, 0}
    while any(process.is_alive() for process in processes):
        well.add(128 + signum)
        for process in processes:
            if process.is_alive() and process.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signum)
        try:
            while alive := [process.sentinel for process in processes if process.is_alive()]:
                failed = any(process.exitcode not in well for process in processes)
                if failed and not _let_end(processes, PATIENCE):
                    return
                wait(alive)
        except Stopped as again:
            signum = again.signum


def _let_end(processes: Sequence[BaseProcess], seconds: float) -> bool:
    """Waits so long for processes to end; returns whether all have."""
    until = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
    return not any(process.is_alive() for process in processes)


def _listen(ends: Sequence[Connection], said: list[Any]) -> None:
    """Takes what the ranks have sent; closes an end that a rank has closed too."""
    for rank, end in enumerate(ends):
        try:
            while not end.closed and end.poll():
                said[rank] = pickle.loads(end.recv_bytes())  # from a process that this one has started
        except (EOFError, OSError):
            end.close()


def _check(processes: Sequence[BaseProcess], failed: Sequence[int], said: Sequence[Any]) -> None:
    """Raises the error of the rank that failed first: others fail because it is gone."""
    silent = [rank for rank in failed if not isinstance(said[rank], _Failure)]
    failures = [said[rank] for rank in failed if rank not in silent]
    own = [failure for failure in failures if not isinstance(failure.error, LostContact)]
    if own and not silent:
        own[0].error.add_note(own[0].traceback)
        raise own[0].error
    if silent:
        code = processes[silent[0]].exitcode or 0
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        reason = ", perhaps for lack of memory" if code == -signal.SIGKILL else ""
        raise RankFailed(
            f"rank {silent[0]} of {len(processes)} {how}{reason}; the same command goes on from the last "
            "checkpoint"
        )
    if failures:
        raise failures[0].error


def _rank(end: Connection, environment: dict[str, Any], job: Job, given: Sequence[Any]) -> None:
    """The main function of a rank: runs the job, and sends its result or error to the process that waits."""
    os.environ.update({name: str(value) for name, value in environment.items()})
    os.setpgid(0, 0)  # Ctrl-C goes to the process that started this one, which passes it on
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if environment["RANK"]:
        print_nothing()
    status = 0
    with off_the_screen():
        try:
            with stopped_by_signals():
                sent: Any = job(*given)
        except BaseException as error:
            interrupted = was_interrupted(error)
            status = 128 + signal_of(error) if interrupted else 1
            own = error if isinstance(error, Exception) else RuntimeError(in_one_line(error))
            sent = None if interrupted else _Failure(that_can_be_sent(own), traceback.format_exc())
    with contextlib.suppress(OSError):
        end.send_bytes(pickle.dumps(sent))
    end.close()
    with contextlib.suppress(OSError):  # whoever read the output may have ended
        sys.stdout.flush()
    os._exit(status)  # threads of a broken connection would hold up an ordinary end


def _end_with_parent() -> None:
    """Ends this process as soon as the one that started it has ended, which nobody would stop otherwise."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _free_port() -> int:
    """Returns a port of this machine that is free now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port
