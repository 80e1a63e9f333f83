"""GPUs that are handed out to runs; made-up ones, because locks know nothing of hardware."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from amid.cli.gpus import Gpu, devices_of, gpus_here, runs_at_once
from amid.errors import InputError

TWO = [Gpu("4", "first"), Gpu("6", "second")]

JOB = """
import os, sys
from amid.cli.gpus import Gpu, take
take([Gpu("4", "first"), Gpu("6", "second")], int(sys.argv[1]))
print(os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
input()
"""


@pytest.fixture
def job(tmp_path):
    """Starts a process that takes GPUs and keeps them until it is let go."""
    started = []

    def start(devices):
        process = subprocess.Popen(
            [sys.executable, "-c", JOB, str(devices)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(tmp_path)},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_no_two_processes_have_the_same_gpu_and_a_third_waits(job):
    first, second = job(1), job(1)
    taken = {first.stdout.readline().strip(): first, second.stdout.readline().strip(): second}
    assert sorted(taken) == ["4", "6"]
    third = job(1)
    assert third.stdout.readline() == "Waiting for 1 free GPU of 2\n"
    taken["6"].kill()
    assert third.stdout.readline() == "6\n"


def test_a_run_with_two_gpus_waits_for_both(job):
    one = job(1)
    assert one.stdout.readline() == "4\n"
    both = job(2)
    assert both.stdout.readline() == "Waiting for 2 free GPUs of 2\n"
    one.kill()
    assert both.stdout.readline() == "4,6\n"


def test_gpus_have_the_names_that_the_environment_gives_them(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: SimpleNamespace(uuid=f"uuid{i}"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpus_here() == [Gpu("0", "uuid0"), Gpu("1", "uuid1")]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, 6,9")  # CUDA stops at a number that it does not know
    assert gpus_here() == [Gpu("4", "uuid0"), Gpu("6", "uuid1")]


@pytest.mark.parametrize(
    ("accelerator", "devices", "count"),
    [
        ("auto", 1, 1),
        ("gpu", 2, 2),
        ("cpu", 1, None),
        ("mps", 1, None),
        ("auto", [2], None),
        ("auto", -1, None),
    ],
)
def test_a_run_takes_as_many_gpus_as_its_trainer_has_devices(accelerator, devices, count):
    assert devices_of(SimpleNamespace(accelerator=accelerator, devices=devices)) == count


def test_so_many_runs_fit():
    assert runs_at_once(TWO, 1) == 2
    assert runs_at_once(TWO * 4, 3) == 2
    with pytest.raises(
        InputError, match=r"trainer.devices=3: this machine has 2 GPUs; give each run up to 2"
    ):
        runs_at_once(TWO, 3)
