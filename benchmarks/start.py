"""The seconds that a user waits for a command: `python benchmarks/start.py`.

Each command runs in a process of its own, after one run of it that fills the caches of the disk and of
Python. Wall time, median of `--rounds`; the commands take turns. A command whose first run takes longer than
`--long` seconds is measured in one round only. The runs that they read lie in a temporary folder: a short run
of the built-in pair, and copies of it with other labels. Where Chromium is installed, the seconds in which it
reads and lays out each report's page are measured too, from the start of the navigation.
"""

import argparse
import contextlib
import dataclasses
import itertools
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from amid import results

SHORT = (
    "trainer.max_steps=2",
    "model.teacher.sft.trainer.max_steps=2",
    "model.student.sft.trainer.max_steps=2",
    "data.valid_prompts=4",
    "data.test_prompts=125",
    "generation.seeds=[1,2]",
    "generation.max_new_tokens=24",
    "output_dir=short",
)
"""A run with 500 answers: 125 prompts of two sets, two seeds."""


def amid(*words: str) -> list[str]:
    """Returns an `amid` command as a list of words."""
    return [sys.executable, "-m", "amid", *words]


def seconds(command: list[str], status: int = 0) -> float:
    """Runs a command; returns its seconds.

    Raises:
        RuntimeError: if the command ends with another status.
    """
    began = time.perf_counter()
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    took = time.perf_counter() - began
    if ended.returncode != status:
        raise RuntimeError(f"{command} ended with {ended.returncode}: {ended.stderr or ended.stdout}")
    return took


def seconds_to_first_step(command: list[str]) -> float:
    """Starts a training; returns the seconds until it prints its first step, and ends it."""
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.lstrip().startswith("step 1/"):
                took = time.perf_counter() - began
                process.kill()
                return took
    raise RuntimeError(f"{command} printed no step")


def seconds_to_lay_out(page: Path, browser: str) -> float:
    """Opens a page without a window; returns the seconds until its scripts have run and it is laid out."""
    script = (
        "<script>addEventListener('load', () => { document.body.getBoundingClientRect();"
        " document.documentElement.dataset.seconds = performance.now() / 1000; });</script></body>"
    )
    timed = page.with_name("timed.html")
    timed.write_text(page.read_text(encoding="utf-8").replace("</body>", script), encoding="utf-8")
    with tempfile.TemporaryDirectory() as profile:
        quietly = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking")
        command = [browser, *quietly, f"--user-data-dir={profile}", "--dump-dom", timed.absolute().as_uri()]
        dom = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r'data-seconds="([\d.]+)"', dom)
    if found is None:
        raise RuntimeError(f"{command} did not run the page's scripts")
    return float(found[1])


def copies(run: Path, folder: Path, number: int) -> Path:
    """Copies a run `number` times, as a grid of α and divergences with five seeds; returns their folder."""
    result = results.load(run)
    grid = itertools.product(("kl", "reverse_kl", "alpha_beta", "js"), (-5.0, -3.0, -1.0, 0.0, 1.0), range(5))
    for divergence, alpha, seed in itertools.islice(grid, number):
        labels = result.labels | {"alpha": alpha, "divergence": divergence}
        name = f"alpha={alpha},divergence={divergence},seed={seed}"
        shutil.copytree(run, folder / name)
        results.save(dataclasses.replace(result, name=name, labels=labels, seed=seed), folder / name)
    return folder


def main() -> None:
    """Prints a table of commands and seconds."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # Python would compile a clone's modules each time
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--long", type=float, default=15.0, help="seconds above which one round is enough")
    parser.add_argument("--runs", type=int, nargs="+", default=[10, 100], help="of the reports")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        seconds(amid("train", *SHORT))
        (run,) = (file.parent for file in Path("short").glob("*/result.json"))
        anew = [word for word in SHORT if not word.startswith("output_dir")]
        cases = {
            "amid --help": lambda: seconds(amid("--help")),
            "amid help assistant.alpha": lambda: seconds(amid("help", "assistant.alpha")),
            "amid status FOLDER": lambda: seconds(amid("status", "short")),
            "a wrong value is refused": lambda: seconds(amid("train", "assistant.lam=7"), status=1),
            "a run is finished already": lambda: seconds(amid("train", *SHORT)),
            "first step, models ready": lambda: seconds_to_first_step(
                amid("train", *anew, f"output_dir=new{time.time_ns()}")
            ),
            "amid sweep main scale=full --dry-run": lambda: seconds(
                amid("sweep", "main", "scale=full", "--dry-run")
            ),
        }
        for number in options.runs:
            folder = copies(run, Path(f"of{number}"), number)
            cases[f"amid report, {number} runs"] = lambda folder=folder: seconds(amid("report", str(folder)))
        long = {name for name, measure in cases.items() if measure() > options.long}
        taken = {name: [] for name in cases}
        for round in range(options.rounds):
            for name, measure in cases.items():
                if round == 0 or name not in long:
                    taken[name].append(measure())
        pages = {number: Path(f"of{number}/report/report.html") for number in options.runs}
        sizes = {number: page.stat().st_size for number, page in pages.items()}
        browser = shutil.which("chromium") or shutil.which("google-chrome")
        drawn = {
            number: [seconds_to_lay_out(page, browser) for _ in range(options.rounds)]
            for number, page in (pages.items() if browser else ())
        }
    table = Table("command", "seconds", "rounds", title="medians")
    for name, found in taken.items():
        table.add_row(name, f"{statistics.median(found):.2f}", str(len(found)))
    Console(width=100).print(table)
    for number, size in sizes.items():
        in_browser = (
            f"laid out in {statistics.median(drawn[number]):.2f} s" if browser else "no Chromium found"
        )
        print(f"the page of {number} runs with 500 answers each: {size / 1e6:.1f} MB, {in_browser}")


if __name__ == "__main__":
    main()
