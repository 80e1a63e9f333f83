"""`AMiDTrainer` on several processes takes the step of one, and leaves equal weights in all of them."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import hf_ranks
import pytest
import torch

HELPERS = Path(hf_ranks.__file__).parent


def torchrun(folder, processes):
    return ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]


def accelerate(folder, processes):
    """Starts processes by MPI where there is no GPU, as accelerate does."""
    plain = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    started = ["-m", "accelerate.commands.launch", *plain, "--num_processes", str(processes)]
    if not hf_ranks.ON_CPUS:
        return [*started, "--multi_gpu"]
    if shutil.which("mpirun") is None:
        pytest.skip("accelerate launch needs MPI on a CPU: apt-get install openmpi-bin")
    hosts = folder / "hosts"
    hosts.write_text(f"localhost slots={processes}\n")
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        place = ["--main_process_ip", "127.0.0.1", "--main_process_port", str(one.getsockname()[1])]
    by_mpi = ["--cpu", "--num_cpu_threads_per_process", "1", "--mpirun_hostfile", str(hosts)]
    return [*started, *by_mpi, *place]


def launched(folder, processes, names, by=torchrun):
    """What the first of some processes, started by torchrun or accelerate, kept of each case."""
    file = folder / "found.pt"
    python_path = os.pathsep.join([str(HELPERS), *sys.path])
    as_root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    ran = subprocess.run(
        [sys.executable, *by(folder, processes), str(HELPERS / "hf_ranks.py"), str(file), *names],
        env={**os.environ, **as_root, "PYTHONPATH": python_path, "OMP_NUM_THREADS": "1"},
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
@pytest.mark.parametrize("by", [torchrun, accelerate])
def test_two_processes_take_the_step_of_one(tmp_path, by):
    names = ("ddp_lora_checkpointing", "fsdp")
    for name, found in launched(tmp_path, 2, names, by).items():
        check(found, name, tmp_path)


@pytest.mark.slow
def test_four_processes_take_the_step_of_one(tmp_path):
    for name, found in launched(tmp_path, 4, hf_ranks.CASES).items():
        check(found, name, tmp_path)
