"""The commands that started the runs of a folder, and the commands that resume them."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amid.config.run_names import HYDRA_FOLDER
from amid.config.secrets import hide, without_secrets
from amid.console import as_typed
from amid.errors import InputError
from amid.files import Record, damaged, read_record, write_json, written_whole

if TYPE_CHECKING:  # commands that only read records do without Hydra
    from omegaconf import DictConfig

PLAN_FILE = "sweep.json"
MULTIRUN_FILE = "multirun.yaml"

_ANEW = "start its runs again with the command that began them, which writes it anew, or delete it"
"""The remedy for a damaged file that only lists the runs."""


def record_command(directory: Path, cfg: "DictConfig") -> None:
    """Writes the overrides and the configuration of the run in `directory` into `.hydra/`.

    Hydra itself would write them before anything is checked, and overwrite the files of an earlier command.
    """
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

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


class _Plan(Record):
    """The record that `write_plan` writes."""

    command: str
    runs: list[str]


class _Overrides(Record):
    task: list[str]
    hydra: list[str]


class _OfHydra(Record):
    overrides: _Overrides


class _Launch(Record):
    """The record that Hydra writes of a job or a multirun."""

    hydra: _OfHydra


def planned(directory: Path) -> list[str]:
    """Returns the runs that `amid sweep` recorded, then the runs of the last `amid train -m` (from Hydra).

    Raises:
        Damaged: if the file of either record is damaged.
    """
    plan = _plan(directory)
    names = list(plan.runs) if plan else []
    if overrides := _overrides_in(directory / MULTIRUN_FILE):
        from amid.config.sweeps import Sweep

        task = [o for o in overrides.task if not o.startswith("hydra.")]
        try:
            names += [run.directory.name for run in Sweep("", directory, [task]).runs()]
        except InputError as error:
            raise damaged(directory / MULTIRUN_FILE, error, _ANEW) from error
    return names


def _plan(directory: Path) -> _Plan | None:
    plan = read_record(directory / PLAN_FILE, _Plan, _ANEW)
    for name in plan.runs if plan else []:
        if name in ("", ".", "..") or Path(name).name != name:
            raise damaged(directory / PLAN_FILE, f"{name!r} is no name of a run's folder", _ANEW)
    return plan


def commands_of(directory: Path, names: Sequence[str]) -> list[str]:
    """Returns the commands that resume the runs called `names` in the folder `directory`: the command of the
    sweep or of the last multirun there, and the commands of single runs.

    Raises:
        Damaged: if a file that records a command is damaged.
    """
    commands, in_plan = [], planned(directory)
    plan = _plan(directory)
    if plan and not plan.runs:  # a sweeper chooses them
        in_plan = [*in_plan, *names]
    if set(names) & set(in_plan):
        if plan:
            commands.append(_as_amid(plan, directory))
        elif multirun := _overrides_in(directory / MULTIRUN_FILE):
            commands.append(_command("train -m", multirun))
    for folder in (directory if name == directory.name else directory / name for name in names):
        if folder.name not in in_plan and (overrides := _overrides_in(folder / HYDRA_FOLDER / "hydra.yaml")):
            commands.append(_command("train", overrides))
    return commands


def overrides_of_run(run: Path) -> list[str] | None:
    """Returns the overrides that the run in a folder was started with; None if they were not recorded.

    Raises:
        Damaged: if the file that records them is damaged.
    """
    found = _overrides_in(run / HYDRA_FOLDER / "hydra.yaml")
    return None if found is None else found.task


def _as_amid(plan: _Plan, directory: Path) -> str:
    """Returns the command of a plan as a command of amid alone, whatever else the file holds."""
    try:
        program, *words = shlex.split(plan.command)
    except ValueError:
        program, words = "", []
    if program != "amid" or not plan.command.isprintable():
        raise damaged(directory / PLAN_FILE, f"{plan.command!r} is no command of amid", _ANEW)
    return as_typed(words)


def _command(name: str, overrides: _Overrides) -> str:
    ours = ("hydra.mode=", "hydra.sweep.subdir='${run_name:")
    of_hydra = [o for o in overrides.hydra if not o.startswith(ours)]
    return as_typed([*name.split(), *overrides.task, *of_hydra])


def _overrides_in(file: Path) -> _Overrides | None:
    """Reads the overrides of a command, as Hydra stores them; None if there is no such file."""
    found = read_record(file, _Launch, _ANEW)
    return None if found is None else found.hydra.overrides
