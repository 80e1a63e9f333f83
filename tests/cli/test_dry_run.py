"""The time that a dry run expects, and the processes that it composes in."""

import math
import os
import sys
from types import SimpleNamespace

import pytest

from amid.cli import dry_run
from amid.cli.dry_run import _entries, _seconds
from amid.config.sweeps import read_sweep


def run(tokens, seconds=None, kind="tiny"):
    return SimpleNamespace(kind=kind, cost=SimpleNamespace(tokens=tokens), seconds=seconds)


def test_the_time_of_a_run_follows_from_the_tokens_of_finished_ones_of_its_kind():
    scored, trained, other = run(0.0, 30.0), run(100.0, 20.0), run(1.0, 99.0, kind="large")
    to_do = run(50.0)
    assert _seconds(to_do, [to_do, scored, trained, other]) == 10.0, "scoring alone takes no time for a token"
    assert math.isnan(_seconds(to_do, [to_do, scored, other]))
    assert _seconds(scored, [to_do, scored]) == 30.0


@pytest.mark.skipif(sys.platform != "linux", reason="one process elsewhere")
def test_several_processes_find_what_one_finds(monkeypatch):
    grid = [
        "assistant.alpha=-5,1",
        "assistant.lam=0.1",
        "seed=1,2",
        "data.train.size=64",
        "data.valid.size=8",
    ]
    monkeypatch.setattr(dry_run, "ENOUGH", 1)
    found = []
    for cores in ({0}, {0, 1, 2}):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: cores)
        found.append(_entries(read_sweep("alpha", grid)))
    assert found[0] == found[1]
    entries, notes = found[0]
    assert len(entries) > len({entry.cost for entry in entries}) > 1
    assert not notes.unknown


@pytest.mark.skipif(sys.platform != "linux", reason="one process elsewhere")
def test_a_process_names_the_run_that_is_refused(monkeypatch):
    monkeypatch.setattr(dry_run, "ENOUGH", 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    entries, _ = _entries(read_sweep("alpha", ["assistant.alpha=-5,1", "assistant.lam=0.1,7", "seed=1"]))
    refused = [entry.state for entry in entries if entry.state.startswith("refused")]
    assert len(refused) == 2
    assert "assistant.lam=7" in refused[0]
