import io
import json
import socket
import subprocess
import sys
import time

import pytest
from rich.console import Console

from amid.cli import main
from amid.module import DistillationModule
from amid.monitor import RunStatus, StatusWriter, read_status, seconds_left, to_terminal, watched, write_plan
from amid.results import RunResult, save


def started(folder, **fields):
    folder.mkdir(parents=True, exist_ok=True)
    StatusWriter(folder).write(**fields)
    return folder / "status.json"


def finished(folder, **training):
    save(RunResult(folder.name, {}, "", 1, {}, training, {"train": 50.0, "evaluate": 10.0}, {}), folder)


def shown(runs):
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(to_terminal(runs))
    return console.export_text()


def test_every_state_is_told_from_what_runs_write(tmp_path):
    write_plan(tmp_path, ["e", "a", "b", "c", "d", "f"])
    finished(tmp_path / "a", steps=40.0, valid_loss=1.0, valid_rouge_l=31.25)
    started(tmp_path / "b", step=7, steps=40, loss=float("nan"))
    finished(tmp_path / "b", steps=7.0, diverged_step=8.0)
    started(tmp_path / "c", step=10, steps=40, loss=1.5, metric="rouge_l", score=30.0, seconds_left=30.0)
    with pytest.raises(RuntimeError), watched_in(tmp_path / "d"):
        raise RuntimeError("out\nof memory")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    file = started(tmp_path / "f", step=10, steps=40, seconds_left=30.0)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pid": dead.pid}))
    runs = read_status(tmp_path)
    assert [run.name for run in runs] == ["e", "a", "b", "c", "d", "f"]
    assert [run.state for run in runs] == ["waiting", "done", "diverged", "running", "failed", "failed"]
    assert (runs[1].score, runs[1].metric, runs[1].seconds) == (31.25, "rouge_l", 60.0)
    assert runs[2].note == "at step 8"
    assert 25 < runs[3].seconds_left <= 30
    assert runs[4].note == "out of memory"
    assert runs[5].note == "its process is gone"
    assert runs[5].seconds_left is None
    out = shown(runs)
    assert "valid ROUGE-L" in out.splitlines()[0]
    (line,) = [line for line in out.splitlines() if line.startswith("c ")]
    assert line.split()[:5] == ["c", "running", "10/40", "1.500", "30.0"]
    assert "6 runs: 1 running, 1 done, 1 diverged, 2 failed, 1 waiting; about 90 s left" in out


def watched_in(folder):
    folder.mkdir()
    return watched(folder)


def test_a_run_on_another_machine_is_gone_after_a_long_silence(tmp_path):
    file = started(tmp_path / "a", step=1, steps=2)
    record = json.loads(file.read_text()) | {"host": socket.gethostname() + "x", "pid": 0}
    for age, state in ((600, "running"), (7200, "failed")):
        file.write_text(json.dumps(record | {"updated": time.time() - age}))
        assert read_status(tmp_path)[0].state == state


def test_a_finished_run_stays_so_and_an_interrupt_is_told(tmp_path):
    finished(tmp_path, steps=1.0)
    with pytest.raises(ValueError, match="again"), watched(tmp_path):
        raise ValueError("again")
    assert read_status(tmp_path)[0].state == "done"
    with pytest.raises(KeyboardInterrupt), watched_in(tmp_path / "cut"):
        raise KeyboardInterrupt
    (cut,) = read_status(tmp_path / "cut")
    assert (cut.state, cut.note) == ("interrupted", "")
    assert "1 runs: 1 interrupted" in shown([cut])


@pytest.mark.parametrize(
    ("training", "state"), [({"steps": 40.0}, "done"), ({"steps": 7.0, "diverged_step": 8.0}, "diverged")]
)
def test_the_file_tells_the_end_too(tmp_path, training, state):
    with watched_in(tmp_path / "a"):
        StatusWriter(tmp_path / "a").write(step=7, steps=40, loss=1.5, seconds_left=3.0, note="scoring")
        finished(tmp_path / "a", **training)
    record = json.loads((tmp_path / "a" / "status.json").read_text())
    assert (record["state"], record["note"]) == (state, "")
    assert (record["step"], record["steps"], record["loss"]) == (7, 40, 1.5)
    assert "seconds_left" not in record


def test_a_full_disk_at_the_end_spoils_no_finished_run(tmp_path, monkeypatch):
    def full(self, **fields):
        raise OSError("no space")

    with watched_in(tmp_path / "a"):
        finished(tmp_path / "a", steps=1.0)
        monkeypatch.setattr(StatusWriter, "write", full)
    assert read_status(tmp_path / "a")[0].state == "done"


def test_time_left():
    done, waiting = RunStatus("a", "done", seconds=60.0), RunStatus("b", "waiting")
    one, other = RunStatus("c", "running", seconds_left=10.0), RunStatus("d", "running", seconds_left=20.0)
    assert seconds_left([done, one]) == 10
    assert seconds_left([done, one, waiting]) == 70
    assert seconds_left([done, one, other, waiting]) == 50
    assert seconds_left([one, waiting]) is None
    assert seconds_left([done, waiting]) is None
    assert seconds_left([done, RunStatus("e", "running")]) is None


def test_a_sweep_is_followed_while_it_runs(small_run, tmp_path, capsys, monkeypatch):
    seen, step = [], DistillationModule.training_step

    def look(self, batches, index):
        if index == 1:
            seen.append(read_status(tmp_path / "runs"))
        return step(self, batches, index)

    monkeypatch.setattr("amid.monitor.SECONDS_BETWEEN_WRITES", 0.0)
    monkeypatch.setattr(DistillationModule, "training_step", look)
    arguments = [*small_run, "model.teacher.sft=null", "model.student.sft=null", "divergence=kl"]
    assert main(["train", "-m", *arguments, "assistant.alpha=-1,1"]) == 0
    first, second, third, _ = seen
    assert [run.state for run in first] == ["running", "waiting"]
    assert (first[0].step, first[0].steps, first[0].score) == (1, 4, None)
    assert (second[0].step, second[0].metric) == (3, "rouge_l")
    assert first[0].loss > 0
    assert first[0].seconds_left > 0
    assert [run.state for run in third] == ["done", "running"]
    capsys.readouterr()
    assert main(["status", str(tmp_path / "runs")]) == 0
    out = capsys.readouterr().out
    assert "2 runs: 2 done" in out
    assert "4/4" in out


def test_the_plan_of_a_sweep_is_written_before_its_runs(small_run, tmp_path, monkeypatch):
    def nothing(name, arguments, directories):
        raise KeyboardInterrupt

    monkeypatch.setattr("amid.cli._launch", nothing)
    assert main(["sweep", "alpha", *small_run, "assistant.alpha=-1,1"]) == 130
    runs = read_status(tmp_path / "runs")
    assert len(runs) == 4
    assert {run.state for run in runs} == {"waiting"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "takes one folder"),
        (["no/where"], "no/where is not a folder"),
        (["."], "holds no run"),
        ([".", "--folow"], "takes one folder"),
        ([".", "--follow"], "--follow refreshes a terminal"),
    ],
)
def test_mistakes(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["status", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_follow_ends_with_the_last_run(tmp_path, monkeypatch):
    from amid import status

    started(tmp_path / "a", step=1, steps=2)
    console = Console(force_terminal=True, width=200, record=True, file=io.StringIO())
    monkeypatch.setattr(status, "Console", lambda **_: console)
    monkeypatch.setattr(status.time, "sleep", lambda _: finished(tmp_path / "a", steps=2.0))
    status.run(str(tmp_path), follow=True)
    assert "1 runs: 1 done" in console.export_text()
