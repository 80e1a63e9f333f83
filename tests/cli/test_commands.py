"""The help of the commands, and their messages about arguments and defects."""

import json
import os
import shlex
import subprocess
import sys

import pytest
import torch
from command_line import run

from amid.console import as_typed


def test_help_and_version(capsys):
    assert run("--help") == 0
    assert "amid sweep NAME" in capsys.readouterr().out
    assert run("--version") == 0
    assert run("sweep") == 0
    assert "alpha" in capsys.readouterr().out
    assert run("trian") == 1
    assert "did you mean 'train'? Choose one of train, evaluate" in capsys.readouterr().err
    assert run("nope") == 1
    assert "'nope' is no command of amid; choose one of train, evaluate" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["--help", "train --help", "sweep", "sweep alpha --dry-run"])
def test_a_closed_pipe_ends_it_quietly(command, tmp_path):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "amid", *command.split()],
        stdout=write,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        check=False,
    )
    os.close(write)
    assert done.stderr == b""
    assert done.returncode


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("report", "finished runs in FOLDER"),
        ("card", "Writes the model card"),
        ("push", "Uploads a run's student"),
        ("status", "--follow refreshes"),
        ("dashboard", "a W&B workspace for a sweep"),
        ("sweep", "--dry-run lists the runs"),
        ("sweep alpha", "--dry-run lists the runs"),
        ("score", "Scores files of answers"),
        ("evaluate", "Score the student of a finished run again (run=FOLDER)"),
        ("cache", "Write the teacher cache"),
    ],
)
def test_help_of_a_command_says_what_it_does(command, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(*command.split(), "--help") == 0
    assert words in capsys.readouterr().out
    assert run("help", command.split()[0]) == 0
    assert words in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_command_to_type_is_quoted_as_one_would():
    words = ["train", "data.train='a.jsonl[:9]'", "-m", "data.fields={output: b}", 'a=it\'s "x" $y']
    typed = as_typed(words)
    assert shlex.split(typed) == ["amid", *words]
    assert typed.startswith("""amid train "data.train='a.jsonl[:9]'" -m 'data.fields={output: b}' """)


@pytest.mark.slow
def test_help_of_several_words_and_options_behind_settings(capsys):
    assert run("help", "score", "assistant.alpha", "cache") == 0
    out = capsys.readouterr().out
    parts = ["Scores files of answers", "assistant.alpha: -5.0", "Write the teacher cache"]
    assert [out.index(part) for part in parts] == sorted(out.index(part) for part in parts)
    assert run("train", "seed=1", "--cfg", "job", "assistant.alpha=-2") == 0
    assert "alpha: -2" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["status", "report", "score", "card", "push", "dashboard"])
def test_an_interrupt_of_what_has_no_runs_says_nothing(command, tmp_path, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"amid.cli.{command}.run", interrupted)
    assert run(command, tmp_path) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("command", ["train", "evaluate", "cache"])
def test_several_values_without_multirun_are_one_line_with_the_command_for_them(
    command, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert run(command, "seed=1", "assistant.alpha=-5,1") == 1
    err = capsys.readouterr().err
    assert f"amid {command} -m assistant.alpha=-5,1" in err
    assert "seed" not in err
    assert len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_an_interrupt_that_a_library_turns_into_an_error_of_its_own_is_an_interrupt(
    quick, tmp_path, capsys, monkeypatch
):
    def interrupted(self, *_, **__):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise RuntimeError("no such key") from error

    monkeypatch.setattr("amid.models.ModelSource.load", interrupted)
    assert run("train", *quick) == 130
    assert "To go on: amid train" in capsys.readouterr().err
    (status,) = (tmp_path / "runs").glob("*/status.json")
    assert json.loads(status.read_text())["state"] == "interrupted"


def test_no_right_to_write(quick, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run("train", *quick, f"output_dir={tmp_path / 'file'}") == 1
    assert "is a file; choose another" in capsys.readouterr().err


def test_a_defect_leaves_its_traceback_and_a_mistake_does_not(quick, tmp_path, capsys, monkeypatch):
    def defective(*_):
        list(zip([1], [], strict=True))

    monkeypatch.setattr("amid.experiment.run.run_experiment", defective)
    assert run("train", *quick) == 1
    assert "error.log" in capsys.readouterr().err
    (log,) = tmp_path.glob("runs/*/error.log")
    assert "zip() argument 2 is shorter" in log.read_text()


@pytest.mark.parametrize("asked", ["option", "environment"])
def test_a_traceback_follows_the_line_where_it_is_asked_for(capsys, monkeypatch, asked):
    def defective(arguments):
        raise RuntimeError(f"cannot report {' '.join(arguments)}")

    monkeypatch.setattr("amid.cli.report.run", defective)
    assert run("report", "runs") == 1
    assert capsys.readouterr().err == ("amid: RuntimeError: cannot report runs (--traceback prints where)\n")
    monkeypatch.setenv("AMID_TRACEBACK", "1" if asked == "environment" else "0")
    assert run(*["--traceback"][: asked == "option"], "report", "runs") == 1
    line, head, *rest = capsys.readouterr().err.splitlines()
    assert line == "amid: RuntimeError: cannot report runs"
    assert head == "Traceback (most recent call last):"
    assert any("in defective" in place for place in rest)
    assert rest[-1] == "RuntimeError: cannot report runs"
    assert os.environ["AMID_TRACEBACK"] == ("1" if asked == "environment" else "0")


def test_a_mistake_has_a_traceback_too_wherever_the_option_stands(capsys):
    for arguments in (["--traceback", "score", "none"], ["score", "--traceback", "none"]):
        assert run(*arguments) == 1
        line, head, *_ = capsys.readouterr().err.splitlines()
        assert line.startswith("amid: none")
        assert head == "Traceback (most recent call last):"


@pytest.mark.slow
def test_each_of_several_failed_runs_has_its_line_and_traceback(quick, tmp_path, capsys, monkeypatch):
    def defective(plan, *_):
        raise RuntimeError(f"seed {plan.seed} is bad")

    monkeypatch.setattr("amid.experiment.run.run_experiment", defective)
    assert run("train", "-m", *quick, "seed=1,2") == 1
    first, second, last = capsys.readouterr().err.splitlines()
    for number, line in enumerate((first, second), 1):
        log = tmp_path / "runs" / f"seed={number}" / "error.log"
        assert line == f"amid: seed={number}: RuntimeError: seed {number} is bad (traceback: {log})"
    assert last == "amid: 2 of 2 runs failed (above)"
    assert run("train", "-m", *quick, "seed=1,2", "--traceback") == 1
    err = capsys.readouterr().err
    assert err.count("\nRuntimeError: seed 1 is bad\n") == err.count("\nRuntimeError: seed 2 is bad\n") == 1


def test_a_gpu_out_of_memory_is_told_in_short_with_the_remedy(quick, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 42.00 MiB. GPU 0 has none.")

    monkeypatch.setattr("amid.experiment.run.run_experiment", full)
    assert run("train", *quick) == 1
    told = capsys.readouterr().err
    assert "amid: CUDA out of memory: lower data.micro_batch_size for training" in told
    assert "Tried to allocate 42.00 MiB" in next(tmp_path.glob("runs/*/error.log")).read_text()
