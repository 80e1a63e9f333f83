"""Start-up time of a sweep's jobs, and time saved by a cached teacher: `python benchmarks/sweep.py`.

All jobs run in this process, on the built-in data, in a temporary folder. The fine-tuned models are made
before anything is measured. The two sweeps of the second table are run in turn, with nothing cached at the
start of each: the first job of `teacher=cached` runs the teacher for the others.
"""

import argparse
import contextlib
import io
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

import amid.experiment.run
from amid import results
from amid.cli.main import main as amid_command
from amid.training.module import DistillationModule

ALPHAS = "-5,-3,-1,0,0.5,1"


@contextlib.contextmanager
def start_ups() -> Iterator[list[float]]:
    """Collects the seconds from the end of each run to the first step of the next."""
    gaps: list[float] = []
    ends: list[float] = []  # of the last run, until the next has begun
    step, save = DistillationModule.training_step, amid.experiment.run.save

    def training_step(module, batches, index):
        if ends:
            gaps.append(time.perf_counter() - ends.pop())
        return step(module, batches, index)

    def saved(result, directory):
        path = save(result, directory)
        ends[:] = [time.perf_counter()]
        return path

    DistillationModule.training_step, amid.experiment.run.save = training_step, saved
    try:
        yield gaps
    finally:
        DistillationModule.training_step, amid.experiment.run.save = step, save


def sweep(overrides: list[str], name: str) -> float:
    """Runs a multirun without its output; returns its seconds."""
    out, err = io.StringIO(), io.StringIO()
    started = time.perf_counter()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        places = [f"output_dir={name}", "prepared_dir=prepared", f"data.cache_dir={name}/cache"]
        status = amid_command(["train", "-m", *overrides, *places])
    if status:
        raise SystemExit(err.getvalue())
    return time.perf_counter() - started


def table(title: str, columns: list[str], rows: list[list[str]]) -> Table:
    made = Table(title=title)
    for column in columns:
        made.add_column(column, justify="left" if column == columns[0] else "right")
    for row in rows:
        made.add_row(*row)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repeats", type=int, default=3, help="times each sweep is run (default 3)")
    parser.add_argument("overrides", nargs="*", help="further KEY=VALUE of all runs")
    arguments = parser.parse_args()
    common = [
        "divergence=kl",
        f"trainer.accelerator={arguments.device}",
        *arguments.overrides,
    ]
    console = Console(width=120)
    with tempfile.TemporaryDirectory() as folder:
        before = Path.cwd()
        os.chdir(folder)
        try:
            short = [*common, "trainer.max_steps=5"]
            sweep([*short, "assistant.alpha=2"], "warm-up")
            gaps, seconds = [], []
            for repeat in range(arguments.repeats):
                with start_ups() as measured:
                    seconds.append(sweep([*short, "assistant.alpha=-5,-1,1"], f"short-{repeat}"))
                gaps += measured
            gap, job = statistics.median(gaps), statistics.median(seconds) / 3
            console.print(
                table(
                    f"Three jobs of 5 steps; medians of {len(gaps)} starts",
                    ["", "seconds", "of a job"],
                    [
                        [
                            "from one finished job to the next one's first step",
                            f"{gap:.2f}",
                            f"{gap / job:.2f}",
                        ],
                        ["a whole job", f"{job:.2f}", "1.00"],
                    ],
                )
            )
            whole: dict[str, list[float]] = {"live": [], "cached": []}
            train: dict[str, list[float]] = {"live": [], "cached": []}
            for repeat in range(arguments.repeats):
                for teacher in whole:
                    name = f"{teacher}-{repeat}"
                    alphas = f"assistant.alpha={ALPHAS}"
                    whole[teacher].append(sweep([*common, f"teacher={teacher}", alphas], name))
                    train[teacher].append(sum(run.timings["train"] for run in results.load_all(name)))
            rows = []
            for what, by in (("the whole sweep, s", whole), ("its training, s", train)):
                live, cached = (statistics.median(by[teacher]) for teacher in ("live", "cached"))
                rows.append([what, f"{live:.1f}", f"{cached:.1f}", f"{live / cached:.2f}"])
            title = f"The sweep α = {ALPHAS}; medians of {arguments.repeats}"
            console.print(table(title, ["", "teacher=live", "teacher=cached", "ratio"], rows))
        finally:
            os.chdir(before)


if __name__ == "__main__":
    main()
