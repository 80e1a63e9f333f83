"""The wheel works alone: in an environment of its own, outside of the clone."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command, cwd, **environment):
    """The output of a command that finds nothing of this process's environment or of the clone."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(command, cwd=cwd, env=kept | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    try:
        run(sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", folder, ROOT, cwd=folder)
    except AssertionError as error:
        if "No matching distribution found for hatchling" in str(error):
            pytest.skip("no package index can be reached from here")
        raise
    (file,) = folder.glob("*.whl")
    return file


@pytest.mark.slow
def test_the_wheel_has_the_settings_the_sweeps_and_its_types(wheel):
    with zipfile.ZipFile(wheel) as content:
        names = set(content.namelist())
    assert "amid/py.typed" in names
    for folder in ("conf", "sweeps"):
        files = {str(file.relative_to(ROOT)) for file in (ROOT / folder).rglob("*.yaml")}
        assert files
        assert {f"amid/{name}" for name in files} <= names
    assert not [name for name in names if name.startswith(("tests", "docs", "benchmarks"))]


@pytest.mark.slow
def test_an_installed_wheel_runs_a_sweep_outside_of_the_clone(wheel, tmp_path):
    own, work = tmp_path / "environment", tmp_path / "work"
    work.mkdir()
    run(sys.executable, "-m", "venv", own, cwd=work)
    run(own / "bin" / "python", "-m", "pip", "install", "-c", ROOT / "constraints.txt", wheel, cwd=work)
    amid = own / "bin" / "amid"
    version = run(amid, "--version", cwd=work).split()[1]
    assert f"-{version}-" in wheel.name
    short = ["data.train.size=64", "data.valid.size=8", "data.valid_prompts=2", "data.test_prompts=2"]
    short += ["trainer.max_epochs=1", "trainer.limit_train_batches=2", "generation.max_new_tokens=4"]
    short += [f"model.{role}.sft.trainer.max_steps=2" for role in ("teacher", "student")]
    grid = ["divergence=kl", "assistant.alpha=-1,1", "seed=1", "generation.seeds=[1]"]
    said = run(amid, "sweep", "alpha", *grid, *short, "output_dir=runs", cwd=work)
    assert (work / "runs" / "report" / "report.html").exists(), said
    assert len(list(work.glob("runs/*/result.json"))) == 6, "two of the grid, four baselines"
    code = "import amid, amid.losses, pathlib; print(pathlib.Path(amid.__file__).parent)"
    assert run(own / "bin" / "python", "-c", code, cwd=work).strip().startswith(str(own))
