import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from amid.cli import main
from amid.config import SWEEPS, check_overrides

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


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.split()[1] == "score"])
def test_every_file_of_answers_is_scored(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = [{"references": [f"say {i}"], "answers": ["say 1"]} for i in range(4)]
    for file in ("ours.jsonl", "theirs.jsonl", "outputs/train/default/generations/open-10.jsonl"):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(command.split()[1:]) == 0
    assert "ROUGE-L" in capsys.readouterr().out


def test_the_losses_example_runs_with_torch_alone():
    code = re.search(r"```python\n(.*?)```", README, flags=re.S).group(1)
    code += "\nimport sys; assert not {'hydra', 'lightning', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
