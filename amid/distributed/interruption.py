"""Signals that stop a run: Ctrl-C, and what SLURM sends before it takes a machine away."""

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

from amid.console import announce
from amid.errors import chain_of

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Ctrl-C, the end of a job, and the warnings before it: `sbatch --signal=USR1@120`, and submitit's USR2."""

_AGAIN = b"\namid: stops after this step; Ctrl-C again stops at once\n"


class Stopped(KeyboardInterrupt):
    """A signal asked this process to stop."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class _Asked:
    """Which signal asked this process to stop, and whether it stops at once."""

    heeded = False
    signum: int | None = None
    held = False


def _answer(signum: int, frame: Any) -> None:
    first = _Asked.signum is None
    _Asked.signum = _Asked.signum or signum
    if _Asked.held and first:
        if signum == signal.SIGINT:
            os.write(2, _AGAIN)  # print could be what was interrupted
    elif first or signum == signal.SIGINT:  # SLURM repeats its signals, and must not cut a save short
        raise Stopped(signum)


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Makes signals raise `Stopped` in its block: at once, or after the step if the training holds them."""
    if _Asked.heeded or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    _Asked.heeded, _Asked.signum, _Asked.held = True, None, False
    _install()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        _Asked.heeded = _Asked.held = False


def _install() -> None:
    for number in SIGNALS:
        signal.signal(number, _answer)


def hold_signals() -> None:
    """Makes signals only be noted from now on; see `stop_requested`. Replaces Lightning's own handlers."""
    if _Asked.heeded:
        _install()
        _Asked.held = True


def release_signals(quiet: bool = False) -> None:
    """Makes signals raise at once from now on; a noted signal raises now, unless `quiet`.

    Raises:
        Stopped: for a signal that was noted.
    """
    _Asked.held = False
    if _Asked.signum is not None and _Asked.heeded and not quiet:
        raise Stopped(_Asked.signum)


def stop_now() -> None:
    """Stops this process for the signal that it or another rank of its run was sent.

    Raises:
        Stopped: always.
    """
    _Asked.held = False
    raise Stopped(_Asked.signum or signal.SIGTERM)


def stop_requested() -> bool:
    """Whether a signal was noted while signals are held."""
    return _Asked.held and _Asked.signum is not None


def ask_to_stop() -> None:
    """Asks this process to stop, as Ctrl-C does; for another thread than the main one."""
    if _Asked.held:
        _Asked.signum = _Asked.signum or int(signal.SIGINT)
    else:
        os.kill(os.getpid(), signal.SIGINT)


def signal_of(error: BaseException) -> int:
    """Returns the signal that led to `error`; Ctrl-C's signal if none is known."""
    return next((link.signum for link in chain_of(error) if isinstance(link, Stopped)), int(signal.SIGINT))


@contextlib.contextmanager
def put_back_into_queue(wanted: bool) -> Iterator[None]:
    """If `wanted`, and a signal other than Ctrl-C stops the block, puts its SLURM job back into the queue.

    Of several ranks, the first one does it.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        if wanted and signal_of(error) != signal.SIGINT and os.environ.get("RANK", "0") == "0":
            announce(requeue())
        raise


def requeue() -> str:
    """Puts the SLURM job that this process is in back into the queue.

    Returns:
        The outcome, in a line for the user.
    """
    array, job = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_JOB_ID")
    if array:
        job = f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID', '')}"
    if not job:
        return "Not put back into the queue: SLURM_JOB_ID is not set, so this is no job of SLURM"
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    except OSError as error:
        return f"SLURM job {job} is not put back into the queue: scontrol cannot be run ({error.strerror})"
    if done.returncode:
        reason = " ".join((done.stderr or done.stdout).split())
        return f"SLURM job {job} is not put back into the queue: {reason or f'scontrol: {done.returncode}'}"
    return f"SLURM job {job} is put back into the queue"
