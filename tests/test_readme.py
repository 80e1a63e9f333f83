import re
import subprocess
import sys
from pathlib import Path

import pytest

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


def test_the_losses_example_runs_with_torch_alone():
    code = re.search(r"```python\n(.*?)```", README, flags=re.S).group(1)
    code += "\nimport sys; assert not {'hydra', 'lightning', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
