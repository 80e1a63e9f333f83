"""The process of a job: its lines, its working folder, and how it stops with its command."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from amid.cli.job_process import Command, job_of, prefix_of
from amid.distributed.interruption import stopped_by_signals
from amid.errors import InputError


@pytest.fixture(autouse=True)
def stays_in_its_group(monkeypatch):
    monkeypatch.setattr(os, "setpgid", lambda *_: None)  # else Ctrl-C would no longer reach pytest


@pytest.fixture
def command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Command(tmp_path / "here", tmp_path / "stop")


def test_every_line_names_the_run_and_the_folder_is_that_of_the_command(command, capsys):
    command.folder.mkdir()
    with job_of(command, "[a=1] "):
        print("one\ntw", end="")
        print("o")
        print("wrong", file=sys.stderr)
        assert not sys.stdout.isatty()
        assert Path.cwd() == command.folder
    out, err = capsys.readouterr()
    assert out == "[a=1] one\n[a=1] two\n"
    assert err == "[a=1] wrong\n"


def test_a_machine_without_the_folder_is_named(command):
    with (
        pytest.raises(InputError, match=r"has no folder .*here; start the command in a folder that all"),
        job_of(command, ""),
    ):
        pass


def test_a_job_stops_when_its_command_asks_for_it(command):
    command.folder.mkdir()

    def job():
        with stopped_by_signals(), job_of(command, ""):
            command.stop.touch()
            time.sleep(30)

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        job()
    assert time.monotonic() - began < 20
    with pytest.raises(KeyboardInterrupt), job_of(command, ""):  # one that begins later
        pytest.fail("it began")


def test_a_job_stops_when_its_command_is_gone(command):
    command.folder.mkdir()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with pytest.raises(KeyboardInterrupt), job_of(replace(command, pid=gone.pid), ""):
        pytest.fail("it began")
    with job_of(replace(command, pid=gone.pid, host="elsewhere"), ""):
        pass
    with job_of(replace(command, pid=gone.pid, stop=None), ""):  # as with SLURM
        pass


def test_a_long_name_gives_way_to_the_number_of_the_run():
    runs = [Path("runs/seed=1"), Path(f"runs/{'a' * 41}")]
    assert [prefix_of(run, runs) for run in runs] == ["[seed=1] ", "[run 2] "]
