"""The processes of a run: their result, and what is said when one of them ends."""

import os
import signal
import sys
import threading
import time

import pytest

from amid.distributed import interruption, processes
from amid.distributed.interruption import Stopped, stopped_by_signals
from amid.distributed.processes import RankFailed, run_in_processes
from amid.distributed.ranks import LostContact
from amid.errors import InputError


def place():
    print(f"rank {os.environ['RANK']} prints", flush=True)
    return [int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")]


def test_the_first_rank_returns_and_prints_for_all(capfd):
    assert run_in_processes(2, place) == [0, 0, 2, 2]
    assert capfd.readouterr().out == "rank 0 prints\n"


def fails(rank, how):
    if int(os.environ["RANK"]) != rank:
        time.sleep(600)
    if how == "refuse":
        raise InputError("data.train=no.jsonl does not exist; give another")
    if how == "exit":
        sys.exit(3)
    os.kill(os.getpid(), signal.Signals[how])


@pytest.mark.parametrize(
    ("rank", "how", "error", "said"),
    [
        (1, "SIGKILL", RankFailed, "rank 1 of 2 was ended by SIGKILL, perhaps for lack of memory"),
        (0, "SIGSEGV", RankFailed, "rank 0 of 2 was ended by SIGSEGV; the same command goes on"),
        (1, "refuse", InputError, "data.train=no.jsonl does not exist; give another"),
    ],
)
def test_a_rank_that_ends_ends_the_run_and_is_named(monkeypatch, rank, how, error, said):
    monkeypatch.setattr("amid.distributed.processes.LAST_WORDS", 0.5)
    began = time.monotonic()
    with pytest.raises(error, match=said):
        run_in_processes(2, fails, rank, how)
    assert time.monotonic() - began < 500  # the other one would sleep on


class OfRank:
    """A stand-in of a process, which fails when it is looked at for the `fails_at`-th time."""

    def __init__(self, fails_at):
        self.sentinel, self.looks, self.status, self._fails_at = object(), 0, None, fails_at

    @property
    def exitcode(self):
        self.looks += 1
        if self.looks == self._fails_at:
            self.status = -signal.SIGSEGV
        return self.status

    def is_alive(self):
        return self.exitcode is None

    def join(self, seconds):
        pass

    def terminate(self):
        self.status = self.status or -signal.SIGTERM


@pytest.mark.parametrize("fails_at", range(1, 9))
def test_a_failure_is_seen_whenever_it_comes(monkeypatch, fails_at):
    failing, other = of_ranks = OfRank(fails_at), OfRank(None)

    def wait(waited_for):
        assert failing.status is None or failing.sentinel in waited_for, "nothing would end the waiting"

    monkeypatch.setattr("amid.distributed.processes.wait", wait)
    monkeypatch.setattr("amid.distributed.processes.LAST_WORDS", 0.0)
    assert processes._wait(of_ranks, [], []) == [0]
    assert other.status == -signal.SIGTERM


def saves_when_asked(folder):
    """Notes signals as a training does, and ends after its step."""
    interruption.hold_signals()
    (folder / f"ready-{os.environ['RANK']}").touch()
    until = time.monotonic() + 60
    while not interruption.stop_requested() and time.monotonic() < until:
        time.sleep(0.05)
    (folder / f"saved-{os.environ['RANK']}").touch()
    interruption.release_signals()


def ask_when_ready(folder, signum):
    """Sends a signal to this process as soon as two ranks have begun."""

    def send():
        until = time.monotonic() + 60
        while len(list(folder.glob("ready-*"))) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        os.kill(os.getpid(), signum)

    threading.Thread(target=send, daemon=True).start()


def loses_contact(rank):
    if int(os.environ["RANK"]) != rank:
        raise LostContact
    time.sleep(0.5)
    raise InputError("data.micro_batch_size=64 does not fit in the memory")


@pytest.mark.parametrize("rank", [0, 1])
def test_the_cause_is_said_and_not_the_loss_of_contact_that_follows_from_it(rank):
    with pytest.raises(InputError, match="micro_batch_size=64 does not fit"):
        run_in_processes(2, loses_contact, rank)


def ends_late(folder):
    """Ends as a run that a signal stopped; the first rank takes longer."""
    try:
        saves_when_asked(folder)
    finally:
        if os.environ["RANK"] == "0":
            time.sleep(3)
            (folder / "written").touch()


def test_a_rank_that_ended_by_the_signal_does_not_hurry_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr("amid.distributed.processes.PATIENCE", 0.5)
    ask_when_ready(tmp_path, signal.SIGTERM)
    with pytest.raises(Stopped), stopped_by_signals():
        run_in_processes(2, ends_late, tmp_path)
    assert (tmp_path / "written").exists()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGUSR1])
def test_a_signal_reaches_all_ranks_which_end_in_their_own_time(tmp_path, signum):
    ask_when_ready(tmp_path, signum)
    with pytest.raises(Stopped) as stop, stopped_by_signals():
        run_in_processes(2, saves_when_asked, tmp_path)
    assert stop.value.signum == signum
    assert sorted(file.name for file in tmp_path.glob("saved-*")) == ["saved-0", "saved-1"]
