"""Sweeps: the runs that a file of `sweeps/` asks for, at one of its scales."""

import copy
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from amid.config import CONF, SWEEPS, register_resolvers, run_name
from amid.errors import InputError, choose_one
from amid.results import RESULT_FILE

SMALL = "small"
"""The scale where none is said; the other ones write to folders of their own."""

NUMBERS = ("seed", "assistant.alpha", "assistant.lam")
"""Settings that are plain numbers, and decide no other setting."""

OF_THE_GRID = re.compile(r"[+~]*(assistant|divergence|objective|method|schedule|text)\b")
"""What is not handed on to the baselines, which say it themselves."""


@dataclass(frozen=True)
class Sweep:
    """The runs of a sweep file at one scale."""

    name: str
    output_dir: Path
    jobs: list[list[str]]
    """The overrides of each multirun: the grid, then each baseline; KEY=A,B runs each."""

    def runs(self) -> "list[PlannedRun]":
        """Every run, in the order in which they are started; of the same run said twice, the first."""
        runs = {run.directory: run for job in reversed(self.jobs) for run in reversed(self._of_job(job))}
        return list(reversed(runs.values()))

    def configs(self) -> "Iterator[tuple[PlannedRun, DictConfig]]":
        """Every run with its configuration, as it will be run; composed once for all that differ in
        `NUMBERS` alone.

        Raises:
            InputError: for what Hydra refuses.
        """
        register_resolvers()
        composed: dict[tuple[str, ...], DictConfig] = {}
        for run in self.runs():
            numbers = {o.split("=")[0]: o.split("=")[1] for o in run.overrides if o.split("=")[0] in NUMBERS}
            rest = tuple(o for o in run.overrides if o.split("=")[0] not in NUMBERS)
            if rest not in composed:
                composed[rest] = self._composed(rest)
            cfg = copy.deepcopy(composed[rest])
            for key, value in numbers.items():
                OmegaConf.update(cfg, key, yaml.safe_load(value))
            yield run, cfg

    def _composed(self, overrides: Sequence[str]) -> DictConfig:
        search = f"hydra.searchpath=['file://{CONF}']"
        with initialize_config_dir(str(SWEEPS), version_base="1.3"):
            try:
                return compose(self.name, [*overrides, search])
            except (HydraException, OmegaConfBaseException) as error:
                raise InputError(" ".join(str(error).split())) from error

    def launch_arguments(self) -> Iterator[list[str]]:
        """The command line of each multirun, as Hydra reads it."""
        for job in self.jobs:
            yield [
                *("--config-dir", str(SWEEPS), "--config-name", self.name),
                *("-m", "hydra.sweeper.params=null", *job),
            ]

    def _of_job(self, job: Sequence[str]) -> "list[PlannedRun]":
        parsed = OverridesParser.create().parse_overrides(list(job))
        choices = [
            [f"{override.input_line.split('=')[0]}={value}" for value in override.sweep_string_iterator()]
            if override.is_sweep_override() and override.input_line
            else [override.input_line or ""]
            for override in parsed
        ]
        return [
            PlannedRun(list(overrides), self.output_dir / run_name(overrides))
            for overrides in itertools.product(*choices)
        ]


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep, before it is started."""

    overrides: list[str]
    directory: Path

    @property
    def finished(self) -> bool:
        """Whether its result is there."""
        return (self.directory / RESULT_FILE).exists()


def names() -> list[str]:
    """The sweeps there are."""
    return sorted(file.stem for file in SWEEPS.glob("*.yaml"))


def title(name: str) -> str:
    """What a sweep is, in a line: the first of its file."""
    return (SWEEPS / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0].lstrip("# ")


def read_sweep(name: str, overrides: Sequence[str], scale: str = SMALL) -> Sweep:
    """The sweep of `sweeps/NAME.yaml` at a scale, with further overrides for every run.

    A sweep file is a primary configuration with the keys `hydra.sweeper.params`, its grid; `baselines`, a
    list of further runs; `scales`, the overrides of each scale. Later ones replace earlier ones: those of the
    grid, of the scale, then `overrides`. A baseline gets those that are not about the grid.

    Raises:
        InputError: if there is no such sweep or scale.
    """
    if name not in names():
        raise InputError(f"sweep {name!r} is not in {SWEEPS}{choose_one(name, names())}")
    file: Any = OmegaConf.load(SWEEPS / f"{name}.yaml")
    scales = file.get("scales", {})
    if scale not in scales:
        raise InputError(f"scale={scale} is none of sweep {name}{choose_one(scale, list(scales))}")
    grid = [f"{key}={value}" for key, value in file.hydra.sweeper.params.items()]
    everywhere = [*scales[scale], *overrides]
    lines = [line.split() for line in file.get("baselines", [])]
    jobs = [_merged([*grid, *everywhere])]
    jobs += [_merged([*line, *(o for o in everywhere if not OF_THE_GRID.match(o))]) for line in lines]
    given = [o.split("=", 1)[1] for o in overrides if o.startswith("output_dir=")]
    output_dir = given[-1] if given else file.output_dir + ("" if scale == SMALL else f"-{scale}")
    return Sweep(name, Path(output_dir), [_merged([*job, f"output_dir={output_dir}"]) for job in jobs])


def _merged(overrides: Sequence[str]) -> list[str]:
    """`overrides` with one of each key, the last."""
    return list({override.split("=")[0]: override for override in overrides}.values())
