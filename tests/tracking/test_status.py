import io
import json
import shlex
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from rich.console import Console

from amid.cli.main import main
from amid.cli.train import summary
from amid.errors import InputError
from amid.files import read_mapping, write_json
from amid.generation.sampling import Sampling
from amid.results import RunResult, load, save
from amid.tracking.command_records import commands_of, write_plan
from amid.tracking.overview import seconds_left, to_terminal
from amid.tracking.progress import Progress
from amid.tracking.status import (
    PREPARING,
    SILENCE,
    RunStatus,
    StatusWriter,
    read_status,
    record_status,
    watched,
)
from amid.training.module import DistillationModule


def started(folder, **fields):
    folder.mkdir(parents=True, exist_ok=True)
    StatusWriter(folder).write(**fields)
    return folder / "status.json"


def finished(folder, **training):
    save(
        RunResult(
            folder.name, {}, "", 1, {}, training, {"prepare": 500.0, "train": 50.0, "evaluate": 10.0}, {}
        ),
        folder,
    )


def shown(runs):
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(to_terminal(runs))
    return console.export_text()


def test_a_number_that_is_another_process_s_by_now_does_not_keep_a_run_alive(tmp_path):
    file = started(tmp_path / "a", step=1, steps=40)
    assert read_status(tmp_path)[0].state == "running"
    write_json(file, (record := read(tmp_path / "a")) | {"updated": record["updated"] - SILENCE})
    assert read_status(tmp_path)[0].state == "failed"


def test_every_state_is_told_from_what_runs_write(tmp_path):
    write_plan(tmp_path, ["e", "a", "b", "c", "d", "f"], "amid sweep mine")
    finished(tmp_path / "a", steps=40.0, valid_loss=1.0, valid_rouge_l=31.25)
    started(tmp_path / "b", step=7, steps=40, loss=float("nan"))
    finished(tmp_path / "b", steps=7.0, diverged_step=8.0)
    started(tmp_path / "c", step=10, steps=40, loss=1.5, metric="rouge_l", score=30.0, seconds_left=30.0)
    with pytest.raises(RuntimeError), watched_in(tmp_path / "d"):
        raise RuntimeError("out\nof memory")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    file = started(tmp_path / "f", step=10, steps=40, seconds_left=30.0)
    write_json(file, read(tmp_path / "f") | {"pid": dead.pid})
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


def test_a_finished_run_that_got_far_worse_says_so(tmp_path):
    (tmp_path / "a").mkdir()
    training = {"steps": 40.0, "valid_cross_entropy_before": 5.0, "valid_cross_entropy": 3744.0}
    finished(tmp_path / "a", **training)
    note = "far worse than it began: cross-entropy 5.000 before the training, 3,744.000 after it"
    (run,) = read_status(tmp_path)
    assert (run.state, run.note) == ("done", note)
    assert summary(load(tmp_path / "a")).splitlines()[-1] == f"  {note}"


def test_a_run_on_another_machine_is_gone_after_a_long_silence(tmp_path):
    file = started(tmp_path / "a", step=1, steps=2)
    record = read(tmp_path / "a") | {"host": socket.gethostname() + "x", "pid": 0}
    for age, state in ((300, "running"), (900, "failed")):
        write_json(file, record | {"updated": time.time() - age})
        assert read_status(tmp_path)[0].state == state


def read(folder):
    return read_mapping(folder / "status.json", "")


def test_a_silent_run_gives_signs_of_life_until_it_ends(tmp_path, monkeypatch):
    monkeypatch.setattr("amid.tracking.status.HEARTBEAT", 0.02)
    before = threading.active_count()
    with watched_in(tmp_path / "a"):
        record_status(step=1, steps=4, seconds_left=100.0)
        first = read(tmp_path / "a")
        for _ in range(500):
            last = read(tmp_path / "a")  # whole, whenever it is read
            if last["updated"] > first["updated"] + 0.1:
                break
            time.sleep(0.01)
        passed = last["updated"] - first["updated"]
        assert passed > 0.1
        assert last["seconds_left"] == pytest.approx(100 - passed, abs=0.02)
        assert threading.active_count() == before + 1
        finished(tmp_path / "a", steps=4.0)
    assert threading.active_count() == before
    assert read(tmp_path / "a")["state"] == "done"
    time.sleep(0.1)
    assert read(tmp_path / "a")["state"] == "done"


def test_signs_of_life_lose_nothing_that_is_told_meanwhile(tmp_path, monkeypatch):
    monkeypatch.setattr("amid.tracking.status.HEARTBEAT", 0.0)
    with watched_in(tmp_path / "a"):
        for step in range(300):
            record_status(step=step)
            assert read(tmp_path / "a")["step"] == step
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["status.json"]


def test_what_is_computed_is_told_with_its_share_and_its_time(tmp_path, monkeypatch):
    monkeypatch.setattr("amid.tracking.status.SECONDS_BETWEEN_WRITES", 0.0)
    with watched_in(tmp_path / "a"):
        with Progress("teacher's states", 200) as progress:
            progress.advance(80)
            (run,) = read_status(tmp_path / "a")
            assert (run.state, run.note, run.part.done, run.part.total) == ("running", PREPARING, 80, 200)
            assert run.seconds_left is not None
            assert "preparing: teacher's states 40%" in shown([run])
            assert "about" not in shown([run])  # the run is still to come
        assert "preparing\n" in shown(read_status(tmp_path / "a"))
        record_status(note="scoring")
        with Progress("answers", 8) as progress:
            progress.advance(6)
            out = shown(read_status(tmp_path / "a"))
        assert "scoring: answers 75%" in out
        assert "; about " in out


def test_a_run_tells_how_far_the_fine_tuning_for_it_is(tmp_path):
    with watched_in(tmp_path / "a"):
        record_status(part="fine-tuning of the teacher")
        with watched_in(tmp_path / "teacher"):
            record_status(note="training", step=30, steps=40, seconds_left=9.0)
            run, teacher = (read_status(tmp_path / name)[0] for name in ("a", "teacher"))
            assert (teacher.step, teacher.steps, teacher.note) == (30, 40, "training")
            assert (run.step, run.steps, run.part.done, run.part.total) == (0, None, 30, 40)
            assert "preparing: fine-tuning of the teacher 75%" in shown([run])
            assert run.seconds_left == pytest.approx(9, abs=1)


def test_a_finished_run_stays_so_and_an_interrupt_is_told(tmp_path):
    finished(tmp_path, steps=1.0)
    with pytest.raises(ValueError, match="again"), watched(tmp_path):
        raise ValueError("again")
    assert read_status(tmp_path)[0].state == "done"
    with pytest.raises(KeyboardInterrupt), watched_in(tmp_path / "cut"):
        raise KeyboardInterrupt
    (cut,) = read_status(tmp_path / "cut")
    assert (cut.state, cut.note) == ("interrupted", "")
    assert "1 run: 1 interrupted" in shown([cut])


@pytest.mark.parametrize(
    ("training", "state"), [({"steps": 40.0}, "done"), ({"steps": 7.0, "diverged_step": 8.0}, "diverged")]
)
def test_the_file_tells_the_end_too(tmp_path, training, state):
    with watched_in(tmp_path / "a"):
        record_status(note="scoring", step=7, steps=40, loss=1.5, seconds_left=3.0)
        finished(tmp_path / "a", **training)
    record = json.loads((tmp_path / "a" / "status.json").read_text())
    assert (record["state"], record["note"]) == (state, "")
    assert (record["step"], record["steps"], record["loss"]) == (7, 40, 1.5)
    assert "seconds_left" not in record


def ended_by(error, folder, note):
    with watched(folder):
        assert read_status(folder)[0].step == 7
        record_status(note=note)
        raise error


def test_a_mistake_leaves_the_status_of_a_run_that_was_begun(tmp_path):
    begun = started(tmp_path / "a", state="interrupted", step=7, steps=40, note="")
    before = begun.read_bytes()
    with pytest.raises(InputError):
        ended_by(InputError("of another configuration"), tmp_path / "a", PREPARING)
    assert begun.read_bytes() == before
    with pytest.raises(RuntimeError):
        ended_by(RuntimeError("out of luck"), tmp_path / "a", PREPARING)
    (run,) = read_status(tmp_path / "a")
    assert (run.state, run.step, run.steps, run.note) == ("failed", 7, 40, "out of luck")
    with pytest.raises(InputError):
        ended_by(InputError("an empty test set"), tmp_path / "a", "training")
    assert read_status(tmp_path / "a")[0].note == "an empty test set"


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
    assert seconds_left([done, one, waiting], starting=1) == 40
    assert seconds_left([done, waiting, waiting], starting=1) == 120
    assert seconds_left([waiting], starting=1) is None
    assert seconds_left([one, waiting]) is None
    assert seconds_left([done, waiting]) is None
    assert seconds_left([done, RunStatus("e", "running")]) is None


@pytest.mark.slow
def test_a_sweep_is_followed_while_it_runs(small_run, tmp_path, capsys, monkeypatch):
    seen, step = [], DistillationModule.training_step

    def look(self, batches, index):
        if index == 1:
            seen.append(read_status(tmp_path / "runs"))
        return step(self, batches, index)

    answers_to_sets, scoring = Sampling.answers_to_sets, []

    def look_again(self, model, tokenizer, sets, finished):
        def told(answers):
            finished(answers)
            scoring.append(read_status(tmp_path / "runs")[0])

        return answers_to_sets(self, model, tokenizer, sets, told)

    monkeypatch.setattr("amid.tracking.status.SECONDS_BETWEEN_WRITES", 0.0)
    monkeypatch.setattr("amid.tracking.progress.SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setattr(DistillationModule, "training_step", look)
    monkeypatch.setattr(Sampling, "answers_to_sets", look_again)
    arguments = [*small_run, "model.teacher.sft=null", "model.student.sft=null", "divergence=kl"]
    assert main(["train", "-m", *arguments, "assistant.alpha=-1,1"]) == 0
    first, second, third, _ = seen
    assert [run.state for run in first] == ["running", "waiting"]
    assert (first[0].step, first[0].steps, first[0].score) == (1, 4, None)
    assert (second[0].step, second[0].metric) == (3, "rouge_l")
    assert first[0].loss > 0
    assert first[0].seconds_left > 0
    assert [run.state for run in third] == ["done", "running"]
    of_first = [run for run in scoring if run.state == "running"]
    assert {(run.note, run.part.name, run.part.total) for run in of_first} == {
        ("scoring", "answers", 2 * 4 * 2 * 2)
    }
    assert [run.part.done for run in of_first] == sorted({run.part.done for run in of_first})
    assert (of_first[-1].part.done, of_first[-1].step, of_first[-1].metric) == (32, 4, "rouge_l")
    assert "  answers 100%  " in capsys.readouterr().out
    runs = tmp_path / "runs"
    names = [run.name for run in read_status(runs)]
    (again,) = commands_of(runs, names)
    assert again.startswith("amid train -m ")
    assert shlex.split(again)[3:] == [*arguments, "assistant.alpha=-1,1"]
    assert main(["status", str(tmp_path / "runs")]) == 0
    out = capsys.readouterr().out
    assert "2 runs: 2 done" in out
    assert "4/4" in out


def test_the_plan_of_a_sweep_is_written_before_its_runs(small_run, tmp_path, monkeypatch):
    def nothing(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("amid.cli.sweep.launch", nothing)
    arguments = [*small_run, "assistant.alpha=-1,1", "seed=1"]
    runs = tmp_path / "runs"
    assert main(["sweep", "alpha", *arguments]) == 130
    assert commands_of(runs, [run.name for run in read_status(runs)]) == [
        f"amid sweep alpha {shlex.join(arguments)}"
    ]
    runs = read_status(tmp_path / "runs")
    assert len(runs) == 6
    assert {run.state for run in runs} == {"waiting"}


def begun(folder, *overrides):
    """The records of a run that a command with these overrides began, and that was interrupted."""
    started(folder, state="interrupted", step=3, steps=5)
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump([*overrides]))
    of_hydra = {"task": [*overrides], "hydra": ["hydra.mode=RUN"]}
    (folder / ".hydra" / "hydra.yaml").write_text(yaml.safe_dump({"hydra": {"overrides": of_hydra}}))


def multirun(folder, varying, *overrides):
    """What Hydra writes of a multirun, such as of the grid or of a baseline of a sweep."""
    subdir = f"hydra.sweep.subdir='${{run_name:${{output_dir}},{varying}}}'"
    of_hydra = {"task": [*overrides], "hydra": ["hydra.mode=MULTIRUN", subdir]}
    (folder / "multirun.yaml").write_text(yaml.safe_dump({"hydra": {"overrides": of_hydra}}))


def test_a_baseline_of_a_sweep_has_the_names_of_the_sweep(tmp_path):
    names = ["alpha=1,seed=1", "method=kd,seed=1", "method=kd,seed=2"]
    write_plan(tmp_path, names, "amid sweep alpha")
    multirun(tmp_path, "assistant.alpha,method,seed", "method=kd", "seed=1,2")
    assert [run.name for run in read_status(tmp_path)] == names
    begun(tmp_path / "method=kd,seed=1", "method=kd", "seed=1")
    assert [run.name for run in read_status(tmp_path)] == names


def test_each_run_has_the_command_that_goes_on_with_it(tmp_path):
    write_plan(tmp_path, ["seed=1"], "amid sweep mine")
    multirun(tmp_path, "assistant.alpha", "assistant.alpha=7,8")
    begun(tmp_path / "seed=5", "seed=5")
    again, anew, alone = "amid sweep mine", "amid train -m assistant.alpha=7,8", "amid train seed=5"
    assert [run.name for run in read_status(tmp_path)] == ["seed=1", "alpha=7", "alpha=8", "seed=5"]
    assert commands_of(tmp_path, ["alpha=7"]) == [anew]
    assert commands_of(tmp_path, ["alpha=8", "seed=1", "seed=5"]) == [again, anew, alone]
    (tmp_path / "multirun.yaml").write_text(
        (tmp_path / "multirun.yaml").read_text().replace("run_name", "mine")
    )
    assert [run.name for run in read_status(tmp_path)] == ["seed=1", "seed=5"]


def test_the_working_folder_may_be_a_run(tmp_path, monkeypatch):
    begun(tmp_path / "seed=5", "seed=5")
    monkeypatch.chdir(tmp_path / "seed=5")
    assert [run.name for run in read_status(".")] == ["seed=5"]
    assert commands_of(Path("."), ["seed=5"]) == ["amid train seed=5"]


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
    from amid.cli import status

    started(tmp_path / "a", step=1, steps=2)
    console = Console(force_terminal=True, width=200, record=True, file=io.StringIO())
    monkeypatch.setattr(status, "console", lambda: console)
    monkeypatch.setattr(status.time, "sleep", lambda _: finished(tmp_path / "a", steps=2.0))
    status.run([str(tmp_path), "--follow"])
    assert "1 run: 1 done" in console.export_text()


def test_follow_ends_where_none_runs_with_the_command_that_goes_on(tmp_path, monkeypatch):
    from amid.cli import status

    write_plan(tmp_path, ["a", "b"], "amid sweep mine seed=1")
    finished(tmp_path / "a", steps=2.0)
    console = Console(force_terminal=True, width=200, record=True, file=io.StringIO())
    monkeypatch.setattr(status, "console", lambda: console)
    now = [0.0]
    monkeypatch.setattr(status, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=lambda _: later()))

    def later():
        now[0] += 50
        if now[0] == 100:
            started(tmp_path / "b", step=1, steps=2)
        elif now[0] == 150:
            (tmp_path / "b" / "status.json").unlink()

    status.run([str(tmp_path), "--follow"])
    assert now[0] == 250  # two minutes after it last ran, at 100
    assert "None is running. To go on: amid sweep mine seed=1" in console.export_text()


def test_following_shows_what_matters_in_a_low_terminal(tmp_path, monkeypatch):
    from amid.cli import status

    names = [f"a{i:02}" for i in range(29)]
    write_plan(tmp_path, [*names, "z"], "amid sweep mine")
    for name in names[:20]:
        finished(tmp_path / name, steps=2.0)
    started(tmp_path / "z", step=1, steps=2)
    console = Console(force_terminal=True, width=100, height=12)
    group = status._fitting(read_status(tmp_path), console)
    with console.capture() as captured:
        console.print(group)
    lines = captured.get().splitlines()
    assert len(lines) < 12
    assert any(line.startswith("z") for line in lines)
    assert any("and 22 more" in line for line in lines)
    assert "30 runs: 1 running, 20 done, 9 waiting" in lines[-1]


def test_a_status_commands_no_terminal(tmp_path, capsys):
    for name, told in {
        "a": {"state": "failed", "note": "\x1b]0;title\x07 \x9b31m \u202e"},
        "b": {"state": "interrupted", "metric": "[/no] \x1b[2J", "score": 1.0},
    }.items():
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "status.json", told)
    assert main(["status", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "valid [/no]" in out
    assert not set("\x1b\x07\x9b\u202e") & set(out)
