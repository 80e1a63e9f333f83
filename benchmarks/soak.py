"""Kills a sweep again and again, and compares its end with an undisturbed one: `python benchmarks/soak.py`.

A sweep of eight methods with plain text and dropout runs in two processes. At random moments one of them is
killed (SIGKILL), or gets what SLURM sends before it takes a machine away (SIGUSR1 or SIGTERM, with SLURM's
variables and a stand-in for `scontrol`), and is started again at once. The folder of temporary files lies
elsewhere, on another file system where there is one. A sweep that ends before all kills are done is followed
by another one in a new folder.

Each start after a kill must lose at most `checkpoint.every_n_steps` steps, and none after a signal. At the
end, answers, scores, logged values and weights of all runs and fine-tunings must equal the undisturbed
sweep's, byte for byte. Otherwise the script ends with status 1.
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from amid import results

METHODS = ["amid", "taid", "gkd", "minillm", "distillm_srkl", "imitkd", "seqkd", "sft"]
EVERY = 7
"""Steps between two checkpoints."""

SETTINGS = [
    *(f"model.{role}.sft.trainer.max_steps=60" for role in ("teacher", "student")),
    *(f"model.{role}.sft.trainer.limit_train_batches=25" for role in ("teacher", "student")),
    "+model.student.architecture.attention_dropout=0.1",
    "data.train.size=1000",
    "data.valid.size=32",
    "data.valid_prompts=16",
    "data.test_prompts=16",
    "data.batch_size=8",
    "data.plain_text=responses",
    "trainer.limit_train_batches=40",
    "trainer.max_epochs=-1",
    "trainer.max_steps=130",
    "trainer.log_every_n_steps=1",
    "generation.seeds=[1,2]",
    "generation.samples=2",
    "generation.max_new_tokens=12",
    f"checkpoint.every_n_steps={EVERY}",
    "checkpoint.every_minutes=null",
    "checkpoint.requeue=true",
]
GOES_ON = re.compile(r"(\S+) goes on after step (\d+) of its training|(\S+) was begun, and stopped before")
OUT_OF_TIMING = ("step_seconds", "peak_memory", "response_tokens_per_second")


@dataclass
class Soak:
    """One sweep that is disturbed, in `folder`."""

    folder: Path
    environment: dict[str, str]
    methods: list[str]
    logs: list[Path] = field(default_factory=list)
    read: Counter = field(default_factory=Counter)
    stopped: dict[str, tuple[int, str]] = field(default_factory=dict)  # by folder: the step, and by what
    lost: list[tuple[str, str, int]] = field(default_factory=list)

    def start(self, slurm: bool) -> subprocess.Popen:
        """Starts one process of the sweep."""
        self.logs.append(self.folder / f"log-{len(self.logs)}.txt")
        variables = {"SLURM_JOB_ID": "17", "SLURM_JOB_NAME": "soak", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}
        variables |= {"SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NODELIST": "localhost"}
        with self.logs[-1].open("wb") as log:
            return subprocess.Popen(
                command(self.folder, self.methods),
                env=self.environment | (variables if slurm else {}),
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def look(self) -> None:
        """Takes note of what the processes say of the steps from which they go on."""
        for log in self.logs:
            lines = log.read_text(errors="replace").split("\n")[:-1]
            for line in lines[self.read[log] :]:
                if found := GOES_ON.search(line):
                    name = Path((found[1] or found[3]).strip("'")).name
                    if name in self.stopped:
                        step, by = self.stopped.pop(name)
                        lost = step - int(found[2] or 0)
                        self.lost.append((name, by, lost if by == "SIGKILL" else max(0, lost)))
            self.read[log] = len(lines)

    def in_training(self, process: subprocess.Popen) -> Path | None:
        """The run or fine-tuning whose steps `process` takes, or whose training it validates."""
        for file in (*self.folder.glob("runs/*/status.json"), *self.folder.glob("prepared/*/status.json")):
            status = json.loads(file.read_text())
            if status["pid"] == process.pid and (status["state"], status["note"]) == ("running", "training"):
                return file.parent
        return None

    def send(self, number: int, process: subprocess.Popen) -> str:
        """Sends a signal, waits for the end of the process, and returns what it met.

        Takes note of the steps of the training that it met, none of which a restart may lose beyond the
        checkpoint interval: after SIGKILL all that were done, else those before the signal, as a process may
        take further ones until it heeds it.

        metrics.csv does not tell: Lightning deletes it at a start, and the checkpoint's lines come later.
        """
        met = self.in_training(process)
        before = step_of(met)
        process.send_signal(number)
        process.wait(timeout=120)
        steps = step_of(met) if number == signal.SIGKILL else before
        if met and steps and not (met / "result.json").exists():
            self.look()  # at what was said of earlier stops
            self.stopped[met.name] = (steps, signal.Signals(number).name)
        return f"{signal.Signals(number).name} {'in training' if met else 'elsewhere'}"

    def unfinished(self) -> int:
        """How many of the runs have no result."""
        return len(self.methods) - len(list(self.folder.glob("runs/*/result.json")))


def step_of(run: Path | None) -> int:
    """The steps of its training that a run or fine-tuning has said to be done."""
    return json.loads((run / "status.json").read_text()).get("step", 0) if run else 0


ONE_PROCESS = """
import sys
from amid.cli import main as cli
from amid.tracking import status as monitor

monitor.SECONDS_BETWEEN_WRITES = 0.0
sys.exit(cli.main())
"""
"""A process of the sweep whose status.json is that of its latest step, and so tells how many a kill loses."""


def command(folder: Path, methods: list[str]) -> list[str]:
    """That of the sweep in `folder`."""
    places = [
        f"output_dir={folder}/runs",
        f"prepared_dir={folder}/prepared",
        f"data.cache_dir={folder}/cache",
    ]
    return [
        sys.executable,
        "-c",
        ONE_PROCESS,
        "train",
        "-m",
        f"method={','.join(methods)}",
        *SETTINGS,
        *places,
    ]


def what_must_be_equal(folder: Path) -> dict[str, object]:
    """Of a finished sweep and its fine-tunings: answers, logged values, weights and scores."""
    kept: dict[str, object] = {}
    for run in (file.parent for file in sorted(folder.glob("*/*/result.json"))):
        files = [run / "metrics.csv", run / "checkpoints" / "best" / "model.safetensors"]
        for file in (*files, *sorted(run.glob("generations/*.jsonl"))):
            kept[str(file.relative_to(folder))] = file.read_bytes()
        result = results.load(run)
        kept[f"{run.name} scores"] = result.scores
        kept[f"{run.name} training"] = {k: v for k, v in result.training.items() if k not in OUT_OF_TIMING}
    return kept


@dataclass
class Started:
    """A process of the sweep, and when it is killed: so many seconds after it is first seen in a training."""

    process: subprocess.Popen
    due: float | None
    delay: float


def disturb(soak: Soak, numbers: list[int], longest: float, draw: random.Random) -> Counter:
    """Runs a sweep to its end, and sends the signals of `numbers` meanwhile; returns what they met."""
    phases: Counter = Counter()
    processes: list[Started] = []
    slurm = signal.SIGTERM in numbers or signal.SIGUSR1 in numbers

    def started() -> Started:
        if draw.random() < 0.3:  # at any moment after the start, or in a training
            return Started(soak.start(slurm), time.monotonic() + draw.uniform(0, longest), 0)
        return Started(soak.start(slurm), None, draw.uniform(0, longest / 3))

    while soak.unfinished():
        processes = [one for one in processes if one.process.poll() is None]
        while len(processes) < min(2, max(1, soak.unfinished())):
            processes.append(started())
        time.sleep(0.1)
        soak.look()
        for place, one in enumerate(processes):
            if one.due is None and soak.in_training(one.process):
                one.due = time.monotonic() + one.delay
            if not numbers or one.due is None or time.monotonic() < one.due or one.process.poll() is not None:
                continue
            phases[soak.send(numbers.pop(), one.process)] += 1
            processes[place] = started()
    for one in processes:
        one.process.wait()
    soak.look()
    return phases


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--kills", type=int, default=50, help="SIGKILLs")
    parser.add_argument("--signals", type=int, default=20, help="SIGUSR1 and SIGTERM, as SLURM sends them")
    parser.add_argument(
        "--longest", type=float, default=20.0, help="seconds from a start to its kill, at most"
    )
    parser.add_argument("--methods", default=",".join(METHODS), help="of the runs of the sweep")
    parser.add_argument("--seed", type=int, default=1, help="of the moments")
    parser.add_argument("--folder", type=Path, help="where all is kept; by default a temporary one")
    given = parser.parse_args()
    methods = given.methods.split(",")
    draw = random.Random(given.seed)
    base = (given.folder or Path(tempfile.mkdtemp(prefix="amid-soak-"))).resolve()
    shm = Path("/dev/shm")
    elsewhere = Path(tempfile.mkdtemp(prefix="amid-soak-", dir=shm if shm.is_dir() else None))
    (base / "bin").mkdir(parents=True, exist_ok=True)
    (base / "bin" / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {base}/requeued.txt\n')
    (base / "bin" / "scontrol").chmod(0o755)
    environment = os.environ | {"TMPDIR": str(elsewhere), "PATH": f"{base}/bin:{os.environ['PATH']}"}
    whole = base / "whole"
    if not (whole / "done").exists():
        print(f"The undisturbed sweep, in {whole}", flush=True)
        began = time.monotonic()
        whole.mkdir(exist_ok=True)
        with (whole / "log.txt").open("wb") as log:
            subprocess.run(command(whole, methods), check=True, stdout=log, stderr=log, env=environment)
        (whole / "done").touch()
        print(f"  {time.monotonic() - began:.0f} s", flush=True)
    expected = what_must_be_equal(whole)
    wrong: list[str] = []
    for kind, numbers in (
        ("SIGKILL", [signal.SIGKILL] * given.kills),
        ("SLURM", [draw.choice([signal.SIGUSR1, signal.SIGTERM]) for _ in range(given.signals)]),
    ):
        sweeps = 0
        while numbers:
            sweeps += 1
            began, left = time.monotonic(), len(numbers)
            soak = Soak(base / f"{kind}-{sweeps}", environment, methods)
            soak.folder.mkdir()
            phases = disturb(soak, numbers, given.longest, draw)
            found = what_must_be_equal(soak.folder)
            differ = sorted(name for name in expected | found if expected.get(name) != found.get(name))
            limit = EVERY if kind == "SIGKILL" else 0
            lost = [steps for *_, steps in soak.lost]
            wrong += [f"{kind}-{sweeps}: {name} differs" for name in differ]
            wrong += [
                f"{kind}-{sweeps}: {n} lost {steps} steps"
                for n, _, steps in soak.lost
                if not 0 <= steps <= limit
            ]
            print(
                f"{kind} sweep {sweeps}: {left - len(numbers)} kills ({dict(phases)}), "
                f"{len(soak.logs)} starts, {len(lost)} resumed trainings lost {sum(lost)} steps in all, "
                f"{min(lost, default=0)} to {max(lost, default=0)} each (allowed 0 to {limit}); "
                f"{len(expected)} things compared, {len(differ)} differ; {time.monotonic() - began:.0f} s",
                flush=True,
            )
    for line in wrong:
        print(f"  {line}")
    print("All as it was undisturbed" if not wrong else f"{len(wrong)} faults, in {base}")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
