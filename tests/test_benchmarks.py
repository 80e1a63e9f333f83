"""The benchmark of several processes runs with small settings, so that it goes on to run."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.slow
def test_scaling_prints_its_figures():
    settings = [
        "--processes",
        "1",
        "2",
        "--strategies",
        "fsdp",
        "--layers",
        "1",
        "--rows",
        "2",
        "--tokens",
        "8",
        "--steps",
        "1",
    ]
    words = [sys.executable, str(BENCHMARKS / "scaling.py"), *settings]
    assert "2          fsdp" in subprocess.run(words, check=True, capture_output=True, text=True).stdout
