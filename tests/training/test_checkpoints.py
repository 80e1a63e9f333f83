"""The checkpoints of a training: which are kept, that they are whole, and which one a run resumes from."""

import errno
import os
import random
import runpy
import signal
import subprocess
import sys
from fractions import Fraction
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only

from amid import results
from amid.cli.main import main
from amid.distributed import interruption
from amid.errors import InputError, in_one_line
from amid.training.checkpoints import (
    BEST_EPOCH,
    FORMAT,
    LAST,
    PREVIOUS,
    Checkpoints,
    WholeFiles,
    forget_states,
)
from amid.training.length import Course
from amid.training.resume import last_checkpoint as latest
from amid.training.resume import whole_state


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"every_n_steps": 0}, "checkpoint.every_n_steps=0 must be a whole number from 1"),
        ({"every_n_steps": 1.5}, "every_n_steps=1.5"),
        ({"every_n_steps": True}, "every_n_steps=true"),
        ({"every_minutes": 0}, "checkpoint.every_minutes=0 must be a number of minutes above 0"),
        ({"every_minutes": float("nan")}, "every_minutes=nan"),
        ({"every_minutes": "5"}, "every_minutes='5' must be a number of minutes"),
        ({"mode": "foo"}, "checkpoint.mode=foo must be min or max"),
        ({"requeue": "yes"}, "checkpoint.requeue=yes must be true or false"),
    ],
)
def test_settings_outside_their_range(setting, message):
    with pytest.raises(InputError, match=message.replace("=", "=")):
        Checkpoints("valid/loss", **setting)


def test_a_state_is_due_after_the_steps_or_the_minutes():
    by_both = Checkpoints("valid/loss", every_n_steps=10, every_minutes=0.5)
    assert [by_both.due(steps, seconds) for steps, seconds in ((9, 29), (10, 0), (1, 30))] == [
        False,
        True,
        True,
    ]
    assert not Checkpoints("valid/loss", every_minutes=None).due(10**9, 1e9)


def test_validations_of_a_course():
    course = Course(steps=11, of_epoch=3, epochs_to_validation=2)
    assert [step for step in range(12) if course.validates_at(step)] == [6, 11]
    assert [course.place(step) for step in (0, 2, 3, 10, 11)] == [(0, 0), (0, 2), (1, 0), (3, 1), (4, 0)]
    every = Course(steps=5, of_epoch=2, epochs_to_validation=1)
    assert [step for step in range(6) if every.validates_at(step)] == [2, 4, 5]


def kept(folder, name, step, validated_step=0, has_best_epoch=False, **further):
    state = {"format": FORMAT, "global_step": step, "validated_step": validated_step}
    state |= {"has_best_epoch": has_best_epoch, "weights": torch.arange(300.0), **further}
    WholeFiles().save_checkpoint(state, folder / "checkpoints" / name)


def test_a_checkpoint_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    folder = tmp_path / "checkpoints"
    for step in (1, 2, 3):
        kept(tmp_path, LAST, step)
    assert sorted(path.name for path in folder.iterdir()) == [LAST, PREVIOUS]
    steps = [torch.load(folder / name, weights_only=True)["global_step"] for name in (PREVIOUS, LAST)]
    assert steps == [2, 3]

    def cut(state, stream):
        stream.write(b"PK half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))  # nothing goes through it
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", cut)
        with pytest.raises(OSError, match="No space left") as full:
            kept(tmp_path, LAST, 4)
    assert full.value.filename == str(folder / LAST)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("no hard links here")))
    kept(tmp_path, LAST, 5)
    steps = [torch.load(folder / name, weights_only=True)["global_step"] for name in (PREVIOUS, LAST)]
    assert steps == [3, 5]


def test_a_whole_state_with_an_object_is_no_damaged_one(tmp_path):
    kept(tmp_path, LAST, 7, schedule=Fraction(1, 3))
    file = tmp_path / "checkpoints" / LAST
    with pytest.raises(InputError, match=r"last\.ckpt is whole and holds an object .*state_dict"):
        whole_state(file)
    assert file.exists()


def test_the_states_are_forgotten_and_what_others_wrote_stays(tmp_path):
    ours = [BEST_EPOCH, LAST, PREVIOUS, f"{LAST}.damaged", f".{LAST}.0.part"]
    theirs = ["epoch=1-step=10.ckpt", "mine.ckpt.d", "notes.txt"]
    for name in [*ours, *theirs]:
        (tmp_path / name).touch()
    (tmp_path / f"{LAST}.5f").mkdir()
    forget_states(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(theirs)


def test_a_damaged_byte_is_found_wherever_it_changes_what_is_read(tmp_path):
    kept(tmp_path, LAST, 7, metrics=["a,b\r\n1,2\r\n"])
    file = tmp_path / "checkpoints" / LAST
    whole = file.read_bytes()
    state = torch.load(file, weights_only=True)
    draw = random.Random(1)
    found = 0
    for place in draw.sample(range(len(whole)), 300):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << draw.randrange(8)
        file.write_bytes(damaged)
        read = whole_state(file)
        found += read is None
        if read is not None:  # between the parts, where nothing stands
            assert torch.equal(read.pop("weights"), state["weights"])
            assert read == {name: value for name, value in state.items() if name != "weights"}
    assert found > 100
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        assert not whole_state(file)


@pytest.mark.parametrize(
    ("damaged", "chosen", "told"),
    [
        ([], LAST, "goes on after step 5 of its training\n"),
        (
            [LAST],
            PREVIOUS,
            "last.ckpt is damaged: {run} goes on after step 4 of its training, from previous.ckpt",
        ),
        (
            [LAST, PREVIOUS],
            BEST_EPOCH,
            "are damaged: {run} goes on after step 2 of its training, from best-epoch",
        ),
        ([LAST, PREVIOUS, BEST_EPOCH], None, "best-epoch.ckpt are damaged: {run} starts over"),
        ([BEST_EPOCH], None, "best-epoch.ckpt is damaged: {run} starts over"),
    ],
)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, capsys, damaged, chosen, told):
    kept(tmp_path, BEST_EPOCH, 2, 2, has_best_epoch=True)
    kept(tmp_path, LAST, 4, 2, has_best_epoch=True)
    kept(tmp_path, LAST, 5, 2, has_best_epoch=True)
    folder = tmp_path / "checkpoints"
    (folder / ".last.ckpt.0123.part").write_bytes(b"of a killed process")
    for number, name in enumerate(damaged):
        whole = bytearray((folder / name).read_bytes())
        whole[len(whole) // 2] ^= 1
        (folder / name).write_bytes([whole, whole[:1000], b""][number])
    path = latest(tmp_path)
    assert (path and path.name) == chosen
    assert told.format(run=tmp_path) in capsys.readouterr().out
    assert {file.name for file in folder.iterdir() if "damaged" in file.name} == {
        f"{n}.damaged" for n in damaged
    }
    assert not list(folder.glob(".*"))
    assert latest(tmp_path) == path


def test_a_validated_state_is_preferred_and_one_of_another_version_is_not_read(tmp_path, capsys):
    kept(tmp_path, LAST, 4, 2)
    kept(tmp_path, BEST_EPOCH, 4, 4, has_best_epoch=True)
    assert latest(tmp_path).name == BEST_EPOCH
    kept(tmp_path, LAST, 5, 4, has_best_epoch=True, format=FORMAT + 1)
    assert latest(tmp_path).name == BEST_EPOCH
    (tmp_path / "checkpoints" / BEST_EPOCH).unlink()
    kept(tmp_path, LAST, 6, 4, has_best_epoch=True)
    (tmp_path / "checkpoints" / PREVIOUS).unlink(missing_ok=True)
    capsys.readouterr()
    assert latest(tmp_path) is None
    assert f"No checkpoint is left of the best epoch: {tmp_path} starts over" in capsys.readouterr().out


SLURM = {
    "SLURM_JOB_ID": "17",
    "SLURM_JOB_NAME": "of_a_test",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "0",
    "SLURM_NODELIST": "localhost",
}


def files_of(run):
    found = [run / "metrics.csv", run / "checkpoints" / "best" / "model.safetensors"]
    return [file.read_bytes() for file in (*found, *sorted(run.glob("generations/*.jsonl")))]


@pytest.fixture(scope="module")
def five_steps(shortened, prepared, tmp_path_factory):
    """The overrides of runs of five steps, and the folder of one that nothing cut."""
    folder = tmp_path_factory.mktemp("whole")
    keys = ("trainer.max_epochs", "trainer.limit_train_batches")
    given = [*(o for o in shortened if not o.startswith(keys)), "trainer.limit_train_batches=3"]
    given += ["trainer.max_epochs=-1", "trainer.max_steps=5", "trainer.log_every_n_steps=2"]
    given += ["data.batch_size=8", f"prepared_dir={prepared}", f"data.cache_dir={folder / 'cache'}"]
    assert main(["train", *given, f"output_dir={folder / 'runs'}"]) == 0
    (whole,) = (folder / "runs").iterdir()
    return given, whole


@pytest.mark.parametrize(
    ("cut", "at", "number", "goes_on"),
    [
        pytest.param(
            "training_step",
            1,
            signal.SIGUSR2,
            "goes on after step 2 of its training\n",
            marks=pytest.mark.slow,
        ),
        ("training_step", 4, signal.SIGTERM, "goes on after step 5 of its training\n"),
        pytest.param(
            "validation_step",
            3,
            signal.SIGTERM,
            "goes on after step 3 of its training\n",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "_score", 5, signal.SIGINT, "goes on after step 5 of its training\n", marks=pytest.mark.slow
        ),
    ],
)
def test_a_signal_ends_a_run_after_its_step_and_it_goes_on_from_there(
    five_steps, tmp_path, monkeypatch, capsys, scontrol, cut, at, number, goes_on
):
    from amid.training.module import DistillationModule

    given, whole = five_steps
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    went = getattr(DistillationModule, cut)
    done = []

    def signalled(self, *arguments):
        if self.trainer.global_step == at:
            os.kill(os.getpid(), number)
        result = went(self, *arguments)
        done.append(self.trainer.global_step)
        return result

    with monkeypatch.context() as patched:
        patched.setattr(DistillationModule, cut, signalled)
        out = f"output_dir={tmp_path / 'cut'}"
        assert main(["train", *given, out, "checkpoint.requeue=true"]) == 128 + number
    assert (at + 1 in done) == (cut == "training_step")
    assert scontrol.exists() == (number != signal.SIGINT)
    if scontrol.exists():
        assert scontrol.read_text() == "requeue 17\n"
    (folder,) = (tmp_path / "cut").iterdir()
    assert not list(folder.rglob("hpc_ckpt*"))
    (folder / "hpc_ckpt_1.ckpt").write_bytes(b"of Lightning, which nothing may read")
    capsys.readouterr()
    assert main(["train", *given, out]) == 0
    assert goes_on in capsys.readouterr().out
    assert files_of(folder) == files_of(whole)
    assert results.load(folder).scores == results.load(whole).scores


def test_a_process_that_slurm_starts_beside_others_logs(monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 1)  # as Lightning has it there
    runpy.run_module("amid.training.devices", run_name="imported anew")
    assert rank_zero_only.rank == 0


@pytest.mark.slow
def test_each_of_the_processes_that_slurm_starts_logs():
    code = "import amid.training.devices as _; from lightning.pytorch.utilities import rank_zero_only as of"
    code += "; print(of.rank)"
    given = {"env": os.environ | SLURM, "capture_output": True, "text": True}
    assert subprocess.run([sys.executable, "-c", code], check=True, **given).stdout == "0\n"


def test_signals_that_come_again_while_a_state_is_written_do_not_cut_it(capfd):
    with interruption.stopped_by_signals():
        interruption.hold_signals()
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert interruption.stop_requested()
        with pytest.raises(interruption.Stopped) as stopped:
            interruption.release_signals()
        assert stopped.value.signum == signal.SIGTERM
    with interruption.stopped_by_signals():
        interruption.hold_signals()
        os.kill(os.getpid(), signal.SIGINT)
        assert "stops after this step; Ctrl-C again stops at once" in capfd.readouterr().err
        with pytest.raises(interruption.Stopped):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL


@pytest.mark.parametrize(
    ("environment", "script", "told"),
    [
        ({}, "exit 0", "SLURM_JOB_ID is not set"),
        ({"SLURM_JOB_ID": "17"}, "exit 0", "SLURM job 17 is put back into the queue"),
        (
            {"SLURM_JOB_ID": "18", "SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "3"},
            "exit 0",
            "job 17_3 is put",
        ),
        (
            {"SLURM_JOB_ID": "17"},
            "echo no such job >&2; exit 1",
            "17 is not put back into the queue: no such job",
        ),
    ],
)
def test_what_comes_of_a_requeue_is_told(monkeypatch, scontrol, environment, script, told):
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    stand_in = scontrol.parent / "bin" / "scontrol"
    stand_in.write_text(f"#!/bin/sh\n{script}\n")
    assert told in interruption.requeue()
    stand_in.unlink()
    monkeypatch.setenv("PATH", str(stand_in.parent))
    assert ("scontrol cannot be run" in interruption.requeue()) == bool(environment)


@pytest.mark.parametrize(
    ("wanted", "number", "rank", "calls"),
    [
        (True, signal.SIGUSR1, None, "requeue 17\n"),
        (True, signal.SIGTERM, "0", "requeue 17\n"),
        (True, signal.SIGTERM, "1", None),  # the first rank does it
        (True, signal.SIGINT, None, None),
        (False, signal.SIGUSR1, None, None),
    ],
)
def test_a_job_goes_back_into_the_queue_once(monkeypatch, scontrol, wanted, number, rank, calls):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)

    def stopped():
        try:
            raise interruption.Stopped(number)
        except KeyboardInterrupt as error:
            raise KeyboardInterrupt from error  # as a job of Hydra ends

    with pytest.raises(KeyboardInterrupt), interruption.put_back_into_queue(wanted):
        stopped()
    assert (scontrol.read_text() if scontrol.exists() else None) == calls


def test_a_log_goes_on_after_its_lines(tmp_path):
    from amid.training.resume import _restore, _text

    first = CSVLogger(tmp_path, name="", version="")
    first.log_metrics({"train/loss": 1.0}, step=0)
    text = _text(first)
    first.log_metrics({"train/loss": 2.0, "valid/loss": 3.0}, step=1)
    first.save()
    (tmp_path / "metrics.csv").write_text("torn")
    later = CSVLogger(tmp_path, name="", version="")
    _restore(later, text)
    later.log_metrics({"valid/loss": 3.0}, step=1)
    later.save()
    written = (tmp_path / "metrics.csv").read_text().splitlines()
    assert written == ["step,train/loss,valid/loss", "0,1.0,", "1,,3.0"]
    _restore(later, "")
    assert not (tmp_path / "metrics.csv").exists()


def test_a_full_folder_of_temporary_files_is_named(tmp_path, monkeypatch):
    temporary, results_ = tmp_path / "temporary", tmp_path / "results"
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(temporary))
    free = {str(temporary): 0, ".": 2**40}
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=free[str(folder)]))
    told = f"no disk space left in TMPDIR={temporary}; set TMPDIR"
    assert told in in_one_line(OSError(errno.ENOSPC, "No space left on device"))
    assert told in in_one_line(OSError(errno.ENOSPC, "No space", str(temporary / "of_torch")))
    elsewhere = OSError(errno.ENOSPC, "No space left on device", str(results_ / LAST))
    assert "no disk space left where results are written" in in_one_line(elsewhere)
    free[str(temporary)] = 2**40
    assert "where results are written" in in_one_line(RuntimeError("No space left on device"))
    monkeypatch.setenv("TMPDIR", str(temporary))
    none = FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")
    assert f"set TMPDIR ({temporary}) to one with space" in in_one_line(none)
