"""The commands that started the runs of a folder, and the commands that resume them."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amid.config.run_names import HYDRA_FOLDER, Naming
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
    of_plan = list(plan.runs) if plan else []
    return [*of_plan, *(name for name in _of_multirun(directory) if name not in of_plan)]


def _of_multirun(directory: Path) -> list[str]:
    """Returns the runs of the last multirun; none if the user gave their folders names of another form."""
    overrides = _overrides_in(directory / MULTIRUN_FILE)
    if overrides is None:
        return []
    from amid.config.sweeps import Sweep

    sweep = Sweep("", directory, [[o for o in overrides.task if not o.startswith("hydra.")]])
    try:
        runs, naming = sweep.runs(), sweep.naming
    except InputError as error:
        raise damaged(directory / MULTIRUN_FILE, error, _ANEW) from error
    for override in overrides.hydra:
        if override.startswith("hydra.sweep.subdir="):  # of a whole sweep, which may have other runs too
            written = Naming.of_subdir(override, directory)
            if written is None:
                return []
            naming = written
    return list(dict.fromkeys(naming.name(run.overrides) for run in runs))


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
    commands = []
    plan, multirun = _plan(directory), _overrides_in(directory / MULTIRUN_FILE)
    of_plan = (plan.runs or list(names)) if plan else []  # a plan without runs: a sweeper chooses them
    of_multirun = [name for name in _of_multirun(directory) if name not in of_plan]
    if plan and set(names) & set(of_plan):
        commands.append(_as_amid(plan, directory))
    if multirun and set(names) & set(of_multirun):
        commands.append(_command("train -m", multirun))
    for name in names:
        folder = directory if name == name_of_run(directory) else directory / name
        if name not in (*of_plan, *of_multirun):
            overrides = _overrides_in(folder / HYDRA_FOLDER / "hydra.yaml")
            commands += [] if overrides is None else [_command("train", overrides)]
    return commands


def name_of_run(directory: Path) -> str:
    """Returns the name of a run's folder, also of the working folder or one above it."""
    return directory.name if directory.name not in ("", "..") else directory.resolve().name


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
