"""The packages that commands import: a command that computes nothing does without the slow ones."""

import json
import subprocess
import sys

PROGRAM = """
import contextlib, io, json, sys
from amid.cli.main import main
SLOW = {"torch", "lightning", "transformers", "pandas", "matplotlib", "scipy"}
for command in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(command) == 0, command
    print(json.dumps([out.getvalue(), sorted((SLOW | {"hydra", "pydantic"}) & {*sys.modules})]))
"""


def test_a_command_that_computes_nothing_imports_nothing_slow(finished, prepared, shortened):
    """In one process, one command after the other: packages stay imported."""
    places = [f"output_dir={finished.parent}", f"prepared_dir={prepared}"]
    again = ["train", *shortened, *places, f"data.cache_dir={finished.parents[1] / 'cache'}"]
    commands = [["--help"], ["status", str(finished.parent)], ["help", "assistant.alpha"], again]
    call = [sys.executable, "-c", PROGRAM, json.dumps(commands)]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (usage, first), (status, second), (word, third), (trained, last) = map(
        json.loads, done.stdout.splitlines()
    )
    assert "amid train [KEY=VALUE ...]" in usage
    assert first == []
    assert "1 run: 1 done" in status
    assert second == ["pydantic"]
    assert word.startswith("assistant.alpha: -5.0")
    assert third == ["hydra", "pydantic"]
    assert "is finished already" in trained
    assert last == ["hydra", "pydantic"]


def test_a_report_imports_neither_hydra_nor_the_metrics_packages():
    program = "import sys, amid.cli.report, amid.metrics; print(*sorted({*sys.argv[1:]} & {*sys.modules}))"
    slow = ["torch", "pandas", "hydra", "omegaconf", "nltk", "sacrebleu", "amid.settings", "matplotlib"]
    done = subprocess.run([sys.executable, "-c", program, *slow], capture_output=True, text=True, check=True)
    assert done.stdout == "matplotlib\n"
