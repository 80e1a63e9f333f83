"""Runs side by side: how many at once, with which GPUs, and the same results as one after another."""

import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from command_line import run
from omegaconf import OmegaConf

from amid.cli import side_by_side as module
from amid.cli.gpus import Gpu
from amid.cli.side_by_side import side_by_side
from amid.config.launchers import launcher_of
from amid.config.overrides import check_overrides, parsed_overrides
from amid.errors import InputError
from amid.results import load
from amid.tracking.status import read_status

pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="no launcher: pip install -e '.[joblib]'")


@pytest.fixture
def gpus(monkeypatch):
    """Makes this machine one with so many GPUs."""

    def have(count):
        monkeypatch.setattr(module, "gpus_here", lambda: [Gpu(str(i), f"test-{i}") for i in range(count)])

    return have


@pytest.fixture
def chosen(tmp_path):
    """Returns how runs with such a launcher run side by side."""

    def choose(*of_launcher, runs=20, devices=1, name="train", accelerator="auto"):
        cfg = check_overrides("train", [f"trainer.accelerator={accelerator}"])
        cfg.trainer.devices = devices
        launcher = launcher_of("train", cfg, parsed_overrides(of_launcher))
        return side_by_side(name, launcher, cfg, tmp_path / "runs", runs)

    return choose


def test_runs_share_out_the_gpus_unless_the_user_says_otherwise(gpus, chosen):
    gpus(8)
    eight = chosen()
    assert eight.in_words == "8 runs at once, one GPU each (hydra/launcher=basic: one after another)"
    assert (eight.launcher.name, eight.launcher.settings.n_jobs) == ("joblib", 8)
    assert [gpu.name for gpu in eight.command.gpus] == list("01234567")
    assert chosen(runs=3).launcher.settings.n_jobs == 3
    three_each = chosen(devices=3)
    assert three_each.in_words.startswith("2 runs at once, 3 GPUs each")
    assert three_each.command.devices == 3
    assert chosen("hydra/launcher=joblib").launcher.settings.n_jobs == 8
    assert chosen("hydra/launcher=joblib", "hydra.launcher.n_jobs=5").launcher.settings.n_jobs == 5
    for one_after_another in (
        chosen("hydra/launcher=basic"),
        chosen("hydra/launcher=joblib", "hydra.launcher.n_jobs=1"),
        chosen(runs=1),
        chosen(devices=5),
        chosen(devices=[2]),
        chosen(accelerator="cpu"),
        chosen(name="evaluate"),
    ):
        assert one_after_another is None


@pytest.mark.parametrize("count", [0, 1])
def test_a_machine_with_at_most_one_gpu_shares_out_nothing(gpus, chosen, count):
    gpus(count)
    assert chosen() is None
    two = chosen("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert two.in_words == "2 runs at once"
    assert two.command.gpus == ()


def test_without_joblib_a_line_says_how_to_use_all_gpus(gpus, chosen, capsys, monkeypatch):
    gpus(2)
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    assert chosen() is None
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("2 GPUs: the runs use one, one after another; ")
    assert line.endswith(": pip install 'amid-distill[joblib]'")


def test_more_than_there_is_is_refused(gpus, chosen):
    gpus(2)
    with pytest.raises(InputError, match=r"trainer.devices=3: this machine has 2 GPUs"):
        chosen(devices=3)
    with pytest.raises(InputError, match=r"n_jobs=3: 2 GPUs are enough for 2 runs at once; leave it out"):
        chosen("hydra/launcher=joblib", "hydra.launcher.n_jobs=3")


def test_jobs_of_slurm_outlive_the_command_and_get_their_gpus_from_it(gpus, chosen):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    gpus(2)
    slurm, local = chosen("hydra/launcher=submitit_slurm"), chosen("hydra/launcher=submitit_local")
    assert (slurm.command.stop, slurm.command.gpus) == (None, ())
    assert (local.command.stop.parent.name, len(local.command.gpus)) == ("runs", 2)
    assert re.fullmatch(
        r"20 runs handed to submitit_slurm; .*/\.submitit has what they print, .*", slurm.in_words
    )


MINE = """
import os
from pathlib import Path
from lightning.pytorch import Callback

class Mine(Callback):
    def __init__(self, fails):
        self.fails = fails

    def on_train_start(self, trainer, module):
        with open("gpus.txt", "a") as file:
            file.write(os.environ["CUDA_VISIBLE_DEVICES"] + " ")
        if self.fails:
            raise RuntimeError("broken on purpose")
"""


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_runs_side_by_side_have_the_results_of_runs_one_after_another(
    finished, quick, gpus, tmp_path, monkeypatch, capfd, launcher
):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    command = ["train", "-m", *quick, "+callbacks.mine._target_=mine.Mine"]
    gpus(2)
    several = [*command, "+callbacks.mine.fails=false,true", "output_dir=both"]
    assert run(*several, f"hydra/launcher={launcher}") == 1
    out, err = capfd.readouterr()
    screen = out + "".join(file.read_text() for file in tmp_path.glob("both/.submitit/*/*.out"))
    good, bad = "callbacks.mine.fails=False", "callbacks.mine.fails=True"
    assert re.search(rf"^\[{good}\] run 1 of 2: {good}$", screen, re.M)
    assert re.search(rf"^\[{good}\]   open ROUGE-L", screen, re.M)
    assert err.count("broken on purpose") == 1
    assert f"amid: {bad}: RuntimeError: broken on purpose (traceback: " in err
    assert err.endswith("amid: 1 of 2 runs failed (above)\n")
    assert sorted((tmp_path / "gpus.txt").read_text().split()) == ["0", "1"]
    states = {status.name: (status.state, status.note) for status in read_status("both")}
    assert states == {good: ("done", ""), bad: ("failed", "broken on purpose")}
    assert load(tmp_path / "both" / good).scores == load(finished).scores


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_a_signal_leaves_runs_that_go_on_and_no_process(quick, tmp_path, monkeypatch, scontrol, number):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    longer = [o for o in quick if not o.startswith("trainer.max_epochs")]
    words = ["train", "-m", *longer, "trainer.max_epochs=500", "seed=1,2,3", "hydra/launcher=joblib"]
    words += ["hydra.launcher.n_jobs=2", "checkpoint.requeue=true"]
    command = [sys.executable, "-m", "amid", *words]
    with subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True) as process:
        runs = tmp_path / "runs"
        while True:
            trained = (
                [run for run in read_status(runs) if run.step] if any(runs.glob("*/status.json")) else []
            )
            if len(trained) == 2:
                break
            assert process.poll() is None
            time.sleep(0.2)
        subprocess.run(["kill", f"-{number.name}", "--", f"-{process.pid}"], check=True)
        err = process.stderr.read()  # ends when no process has it any more
    assert process.returncode == 128 + number
    assert "amid: interrupted; finished runs, checkpoints and answered sets stay" in err
    assert sorted(run.state for run in read_status(runs)) == ["interrupted", "interrupted", "waiting"]
    assert len(list(runs.glob("*/checkpoints/last.ckpt"))) == 2
    assert not list(runs.glob(".stop*"))
    assert (scontrol.read_text() if scontrol.exists() else "") == ("requeue 17\n" * (number != signal.SIGINT))


@pytest.fixture
def ray(monkeypatch):
    """Ray with a cluster of two machines with so many GPUs."""

    def have(*gpus):
        cluster = SimpleNamespace(
            is_initialized=lambda: True,
            nodes=lambda: [{"Alive": True, "Resources": {"CPU": 8.0, "GPU": float(n)}} for n in gpus],
        )
        monkeypatch.setitem(sys.modules, "ray", cluster)

    return have


def test_ray_gives_a_run_its_gpus_if_the_cluster_has_some(ray, capsys):
    def remote(devices, **said):
        settings = OmegaConf.create({"init": {}, "remote": said})
        module._start_ray(settings, devices)
        return dict(settings.remote)

    ray(4, 2)
    assert remote(3) == {"num_gpus": 3}
    assert capsys.readouterr().out == "Ray: 2 machines with 16 cores and 6 GPUs\n"
    assert remote(1, num_gpus=0.5) == {"num_gpus": 0.5}
    assert remote(None) == {}
    with pytest.raises(InputError, match=r"trainer.devices=5: the machines of Ray's cluster have 4 GPUs"):
        remote(5)
    ray(0, 0)
    assert remote(1) == {}
