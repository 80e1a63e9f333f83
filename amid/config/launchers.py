"""Hydra's launchers, which start the runs of a command at once: their packages and their settings."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra import initialize_config_dir
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from amid.config.compose import composed, register_resolvers
from amid.config.folders import CONF
from amid.errors import InputError, choose_one

GROUP = "hydra/launcher"

EXTRAS = {"joblib": "joblib", "submitit_local": "slurm", "submitit_slurm": "slurm", "ray": "ray"}
"""The launchers that amid is tested with, and the extra of amid's package that installs each."""


@dataclass(frozen=True)
class Launcher:
    """The launcher of a command with several runs."""

    name: str
    """The option of `hydra/launcher`: `basic` runs one after another, in the process of the command."""
    settings: DictConfig
    """Hydra's node `hydra.launcher`."""
    chosen: bool
    """Whether the user chose it."""

    @property
    def starts_processes(self) -> bool:
        """Whether it starts the runs in processes of their own."""
        return self.name != "basic"


def launcher_of(config_name: str, cfg: DictConfig, overrides: Sequence[Override]) -> Launcher:
    """Returns the launcher of a command, after a check of its settings.

    Args:
        config_name: the primary configuration.
        cfg: the composed configuration of a run, with Hydra's part but without the overrides of that part.
        overrides: the overrides of the command; the settings of other things than the launcher are ignored.

    Raises:
        InputError: for an unknown setting or a wrong value.
    """
    choice = [o for o in overrides if o.key_or_group == GROUP]
    settings = [o for o in overrides if o.key_or_group.startswith("hydra.launcher.")]
    for override in (*choice, *settings):
        if override.is_sweep_override():
            raise InputError(f"{override.input_line} has several values; the runs of a command share one")
    if choice:
        cfg = _composed(config_name, choice)
    name = str(cfg.hydra.runtime.choices[GROUP])
    if settings:
        known = [str(key) for key in cfg.hydra.launcher if key != "_target_"]
        for override in settings:
            key = override.key_or_group.removeprefix("hydra.launcher.").partition(".")[0]
            if key not in known and not override.is_add():
                others = choose_one(key, known) if known else f"; choose a launcher, such as {GROUP}=joblib"
                raise InputError(f"{override.input_line}: {GROUP}={name} has no setting {key!r}{others}")
        cfg = _composed(config_name, [*choice, *settings])
    launcher = Launcher(name, cfg.hydra.launcher, bool(choice) or name != "basic")
    if launcher.settings.get("n_jobs") == 0:
        raise InputError(
            "hydra.launcher.n_jobs=0 must be the number of runs at once, from 1, or -1 for one on each core"
        )
    return launcher


def refused(name: str, installed: Sequence[str]) -> str:
    """Returns the message about a launcher that is not among the installed ones."""
    if name in EXTRAS:
        return f"{GROUP}={name} is not installed; pip install '{package_of(name)}'"
    return f"{GROUP}={name} is no launcher{choose_one(name, list(dict.fromkeys([*installed, *EXTRAS])))}"


def package_of(name: str) -> str:
    """Returns amid's package with the extra of a launcher, as pip takes it."""
    return f"amid-distill[{EXTRAS[name]}]"


def _composed(config_name: str, overrides: Sequence[Override]) -> Any:
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return composed(config_name, [str(override.input_line) for override in overrides])
