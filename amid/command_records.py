"""The commands that started the runs of a folder, as they are kept there, and those that go on with them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from amid.console import as_typed
from amid.files import read_json, write_json, written_whole
from amid.run_names import HYDRA_FOLDER
from amid.secrets import hide, without_secrets

PLAN_FILE = "sweep.json"


def record_command(directory: Path, cfg: DictConfig) -> None:
    """Writes what Hydra was told of the run in `directory`, and its configuration, into `.hydra/`.

    Hydra itself would do so before anything is checked, and over what an earlier command left.
    """
    folder = directory / HYDRA_FOLDER
    folder.mkdir(exist_ok=True)
    hydra: Any = OmegaConf.to_container(HydraConfig.get())
    contents = {
        "config": OmegaConf.to_container(cfg),
        "hydra": {"hydra": hydra},
        "overrides": hydra["overrides"]["task"],
    }
    for name, content in contents.items():
        with written_whole(folder / f"{name}.yaml", durable=False) as part:
            OmegaConf.save(OmegaConf.create(without_secrets(content)), part)


def write_plan(output_dir: Path, names: Sequence[str], command: str) -> None:
    """Writes which runs a sweep consists of, by the names of their folders, before `command` starts them."""
    output_dir.mkdir(parents=True, exist_ok=True)
    write_json(output_dir / PLAN_FILE, {"command": hide(command), "runs": list(names)})


def planned(directory: Path) -> list[str]:
    """The runs that `amid sweep` wrote down, then those of the last `amid train -m`, which Hydra has."""
    names = [str(name) for name in read_json(directory / PLAN_FILE).get("runs", [])]
    if overrides := _overrides_of_multirun(directory):
        from amid.sweep import Sweep

        task = [o for o in overrides["task"] if not o.startswith("hydra.")]
        names += [run.directory.name for run in Sweep("", directory, [task]).runs()]
    return names


def commands_of(directory: Path, names: Sequence[str]) -> list[str]:
    """The commands that go on with the runs called `names` in the folder `directory`: the one of the sweep or
    the last multirun there, and those of single runs."""
    commands, plan = [], planned(directory)
    if set(names) & set(plan):
        if kept := read_json(directory / PLAN_FILE):
            commands.append(str(kept.get("command", "the command that started them")))
        else:
            commands.append(_command("train -m", _overrides_of_multirun(directory)))
    for folder in (directory if name == directory.name else directory / name for name in names):
        file = folder / HYDRA_FOLDER / "hydra.yaml"
        if folder.name not in plan and file.exists():
            commands.append(_command("train", _overrides_in(file)))
    return commands


def _command(name: str, overrides: Mapping[str, list[str]]) -> str:
    ours = ("hydra.mode=", "hydra.sweep.subdir='${run_name:")
    of_hydra = [o for o in overrides["hydra"] if not o.startswith(ours)]
    return as_typed([*name.split(), *overrides["task"], *of_hydra])


def _overrides_of_multirun(directory: Path) -> dict[str, list[str]]:
    """What the last `amid train -m` was told, as Hydra keeps it; nothing where there was none."""
    multirun = directory / "multirun.yaml"
    return _overrides_in(multirun) if multirun.exists() else {}


def _overrides_in(file: Path) -> dict[str, list[str]]:
    hydra = yaml.safe_load(file.read_text(encoding="utf-8"))["hydra"]
    return dict(hydra["overrides"])
