import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from amid.cli.main import main
from amid.config.folders import SWEEPS
from amid.config.overrides import check_overrides
from amid.config.run_names import run_name
from amid.results import RunResult, save

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
COMMANDS = [line.split("  #")[0].strip() for line in re.findall(r"^    (amid .*)$", README, flags=re.M)]


def test_there_are_commands():
    assert len(COMMANDS) > 8


@pytest.mark.parametrize(
    "command", [c for c in COMMANDS if c.split()[1] in ("train", "sweep", "evaluate", "cache")]
)
def test_every_command_is_valid(command):
    import shlex

    _, name, *arguments = shlex.split(command)
    if name == "sweep":
        assert (SWEEPS / f"{arguments[0]}.yaml").exists()
        name, arguments = "train", [a for a in arguments[1:] if not a.startswith("scale=")]
    check_overrides(name, [a for a in arguments if not a.startswith(("-", "run="))])


def test_what_a_command_reads_an_earlier_one_has_written():
    made, read = set(), set()
    for command in COMMANDS:
        _, name, *arguments = command.split()
        given = dict(a.split("=", 1) for a in arguments if "=" in a)
        if name in ("report", "status", "score", "evaluate"):
            folders = {a.removeprefix("run=") for a in arguments if a.startswith(("run=", "outputs/"))}
            assert folders, command
            assert folders <= made, command
            read |= folders
        elif name == "sweep":
            made.add(given.get("output_dir", f"outputs/{arguments[0]}"))
        elif name == "train":
            folder = given.get("output_dir", "outputs/train")
            overrides = [a for a in arguments if "=" in a]
            made.add(folder if "-m" in arguments else f"{folder}/{run_name(overrides)}")
    assert len(read) > 2


def test_make_help_lists_the_targets():
    root = Path(__file__).parents[1]
    targets = re.search(r"^\.PHONY: (.*)$", (root / "Makefile").read_text(), re.M).group(1).split()
    told = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=root, check=True, capture_output=True, text=True
    ).stdout
    assert [line.split()[0] for line in told.splitlines()] == targets
    assert all(len(line.split()) > 1 for line in told.splitlines())


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.split()[1] == "help"])
def test_every_word_is_explained(command, capsys):
    assert main(command.split()[1:]) == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.split()[1] == "score"])
def test_every_file_of_answers_is_scored(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = [{"references": [f"say {i}"], "answers": ["say 1"], "family": "say"} for i in range(4)]
    for folder in ("default", "method=distillm_srkl"):
        file = Path("outputs/train", folder, "generations/open-10.jsonl")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(command.split()[1:]) == 0
    assert "ROUGE-L" in capsys.readouterr().out


STATUS = [c for c in COMMANDS if c.startswith("amid status")]


@pytest.mark.parametrize("command", STATUS)
def test_status_commands_run(command, tmp_path, monkeypatch, capsys):
    folder = command.split()[2]
    monkeypatch.chdir(tmp_path)
    save(RunResult("a", {}, "", 1, {}, {"steps": 4.0}, {}, {}), tmp_path / folder / "a")
    monkeypatch.setattr("amid.cli.status.console", lambda: Console(force_terminal=True, width=100))
    assert main(command.split()[1:]) == 0
    assert "1 done" in capsys.readouterr().out


def test_no_command_is_left_out():
    tried = {"train", "sweep", "evaluate", "cache", "score", "status", "help"}
    assert STATUS
    assert {c.split()[1] for c in COMMANDS} - tried == {"report"}


def test_the_losses_example_runs_with_torch_alone():
    code = re.search(r"```python\n(.*?)```", README, flags=re.S).group(1)
    code += "\nimport sys; assert not {'hydra', 'lightning', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
