"""`AMiDTrainer` on several processes takes the step of one, and leaves equal weights in all of them."""

import os
import subprocess
import sys
from pathlib import Path

import hf_ranks
import pytest
import torch

HELPERS = Path(hf_ranks.__file__).parent


def launched(folder, processes, names):
    """What the first of some processes, started by torchrun, kept of each case."""
    file = folder / "found.pt"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    ran = subprocess.run(
        [sys.executable, *launcher, str(HELPERS / "hf_ranks.py"), str(file), *names],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HELPERS), *sys.path]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    return torch.load(file)


def relative_difference(found, expected):
    assert found.keys() == expected.keys()
    pairs = [(found[name].double(), expected[name].double()) for name in expected]
    apart = sum(float((a - b).square().sum()) for a, b in pairs)
    return (apart / sum(float(b.square().sum()) for _, b in pairs)) ** 0.5


def check(found, name, folder):
    """Compares five steps of several processes with the same steps of one."""
    case = hf_ranks.CASES[name]
    if hf_ranks.ON_CPUS:
        alone, tolerance = hf_ranks.run(case, str(folder), 1), 1e-6
    else:  # a process of its own, which has one GPU
        alone, tolerance = launched(folder, 1, [name])[name], 1e-4
    assert found["differing"] == [0] * hf_ranks.STEPS
    assert (found["sharded"] > 0) == ("fsdp" in case.arguments)
    assert relative_difference(found["gradients"], alone["gradients"]) <= tolerance
    assert relative_difference(found["weights"], alone["weights"]) <= tolerance
    for ours, theirs in zip(found["logged"], alone["logged"], strict=True):
        assert ours == pytest.approx(theirs, rel=10 * tolerance)
    assert found["evaluated"] == pytest.approx(alone["evaluated"], rel=10 * tolerance)


@pytest.mark.slow
def test_two_processes_take_the_step_of_one(tmp_path):
    names = ("ddp_lora_checkpointing", "fsdp")
    for name, found in launched(tmp_path, 2, names).items():
        check(found, name, tmp_path)


@pytest.mark.slow
def test_four_processes_take_the_step_of_one(tmp_path):
    for name, found in launched(tmp_path, 4, hf_ranks.CASES).items():
        check(found, name, tmp_path)
