"""Sweeps: the runs that a file in `sweeps/` defines, at one of its scales."""

import copy
import functools
import itertools
import pickle
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from amid.config.compose import register_resolvers
from amid.config.folders import CONF, group_names, is_group, search_also, sweep_file
from amid.config.overrides import check_overrides, check_used, parsed_overrides, takes, values_of
from amid.config.run_names import Naming
from amid.config.secrets import check_for_secrets
from amid.errors import InputError, choose_one, shortened
from amid.results import RESULT_FILE
from amid.settings import SweepFile, sweep_of

SMALL = "small"
"""The default scale; the other scales write to folders of their own."""

SAID_BY_BASELINES = ("assistant", "divergence", "objective", "method", "schedule", "text")
"""The groups that make a method: a baseline makes its own choices in them and gets none from the grid."""

UNTRAINED = {"method=teacher", "method=start"}
"""The choices of baselines that score a model without training it."""


@dataclass(frozen=True)
class Sweep:
    """The runs of a sweep file at one scale, or of a command line."""

    name: str
    """The name of the primary configuration."""
    output_dir: Path
    """The folder of its runs. An interpolation in it is not resolved before the configuration is composed."""
    jobs: list[list[str]]
    """The overrides of each multirun: the grid, then each baseline; KEY=A,B runs each."""
    of_hydra: Sequence[str] = ()
    """The overrides of Hydra's own settings, such as its launcher, which all runs share."""
    folder: Path = CONF
    """The folder of the primary configuration."""
    searches: bool = False
    """Whether a sweeper chooses runs by the scores of earlier runs, so that no run is known in advance."""

    def runs(self) -> "list[PlannedRun]":
        """Returns every run in starting order; a run that is listed twice comes once, at its first place."""
        return self._runs

    @functools.cached_property
    def _runs(self) -> "list[PlannedRun]":
        if self.searches:
            return []
        runs: dict[frozenset[str], PlannedRun] = {}
        for job in self.jobs:
            for overrides in _multiplied(job):
                run = PlannedRun(overrides, self.output_dir / self.naming.name(overrides))
                runs.setdefault(frozenset(overrides), run)
        return list(runs.values())

    @functools.cached_property
    def naming(self) -> Naming:
        """The naming of the folders of its runs."""
        if self.searches:
            overrides = [override for job in self.jobs for override in parsed_overrides(job)]
            varying = [o.key_or_group for o in overrides if o.is_sweep_override()]
            fixed = [o.input_line or "" for o in overrides if not o.is_sweep_override()]
            return Naming.of_chosen(varying, fixed, self.output_dir)
        return Naming.of([overrides for job in self.jobs for overrides in _multiplied(job)], self.output_dir)

    @property
    def subdir(self) -> str:
        """The override that makes Hydra name the folders of the runs by `naming`."""
        return f"hydra.sweep.subdir='{self.naming.resolver}'"

    @property
    def in_short(self) -> str:
        """The numbers of runs in words: `10 runs, 6 of the grid and 4 baselines`."""
        if self.searches:
            return "runs that its sweeper chooses"
        runs, grid = len(self.runs()), len(replace(self, jobs=self.jobs[:1]).runs())
        baselines = f", {grid} of the grid and {runs - grid} baseline{'s' * (runs - grid > 1)}"
        return f"{runs} run{'s' * (runs > 1)}" + (baselines if runs > grid else "")

    def configs(
        self, runs: "Sequence[PlannedRun] | None" = None
    ) -> "Iterator[tuple[PlannedRun, DictConfig]]":
        """Yields runs, each with the configuration that it will have.

        Hydra composes once for all runs that differ only in the values of settings.

        Args:
            runs: some of the sweep's runs; None for all.

        Raises:
            InputError: naming a run that Hydra refuses.
        """
        register_resolvers()
        composed: dict[tuple[str, ...], DictConfig] = {}
        files = _Files()
        before = HydraConfig.instance().cfg
        numbers = {tuple(run.overrides): number for number, run in enumerate(self.runs())}
        try:
            for run in self.runs() if runs is None else runs:
                number = numbers[tuple(run.overrides)]
                try:
                    cfg = self._config(run, composed, files)
                except (HydraException, OmegaConfBaseException) as error:
                    raise InputError(f"{self.in_words(number)}: {self._reason(run, error)}") from error
                except InputError as error:
                    raise InputError(f"{self.in_words(number)}: {error}") from error
                run = replace(run, directory=Path(cfg.output_dir) / run.directory.name)
                _be_the_run(cfg, run, number)
                yield run, cfg
        finally:
            HydraConfig.instance().cfg = before

    def of_each_setting(self) -> "list[PlannedRun]":
        """Returns the first of the runs that differ only in their seed, for each setting."""
        first: dict[frozenset[str], PlannedRun] = {}
        for run in self.runs():
            first.setdefault(run.without_seed, run)
        return list(first.values())

    def in_words(self, number: int) -> str:
        """Returns the place of a run, given from 0, and its own overrides: `run 2 of 6 (seed=2)`."""
        runs = self.runs()
        of_all = set.intersection(*(set(run.overrides) for run in runs))
        own = " ".join(override for override in runs[number].overrides if override not in of_all)
        return f"run {number + 1} of {len(runs)}" + (f" ({own})" if own else "")

    def _config(
        self, run: "PlannedRun", composed: dict[tuple[str, ...], DictConfig], files: "_Files"
    ) -> DictConfig:
        """Returns the configuration of a run; `composed` caches the configuration of its choices alone."""
        overrides = parsed_overrides(run.overrides)
        values = [override for override in overrides if _only_sets_a_value(override)]
        choices = tuple(o.input_line or "" for o in overrides if o not in values)
        if choices not in composed:
            with initialize_config_dir(str(CONF), version_base="1.3"):
                files.give_to(GlobalHydra.instance().config_loader())
                composed[choices] = compose(self.name, [*choices], return_hydra_config=True)
            check_for_secrets(composed[choices])
        cfg = copy.deepcopy(composed[choices])
        for override in values:
            OmegaConf.update(cfg, override.key_or_group, override.value(), merge=True)
        check_used(cfg, cfg.hydra)
        return cfg

    def _reason(self, run: "PlannedRun", error: Exception) -> str:
        try:
            check_overrides(self.name, run.overrides)
        except InputError as mistake:
            return str(mistake)
        return " ".join(str(error).split())

    def launch_arguments(self) -> Iterator[list[str]]:
        """Returns the command line of each multirun, as Hydra reads it."""
        for job in self.jobs:
            yield [
                *("--config-dir", str(self.folder), "--config-name", self.name),
                *("-m", "hydra.sweeper.params=null", *job, *self.of_hydra),
                self.subdir,
            ]


class _Files:
    """Hydra's repository of YAML files, with each file parsed once; Hydra parses all for each composition."""

    def __init__(self) -> None:
        self._repository: Any = None
        self._parsed: dict[str, bytes] = {}

    def give_to(self, loader: Any) -> None:
        """Lets a loader of Hydra take files from here."""
        self._repository, loader.repository = loader.repository, self

    def __deepcopy__(self, memo: Any) -> "_Files":
        return self  # Hydra copies its repository for each composition

    def __getattr__(self, name: str) -> Any:
        return getattr(self._repository, name)

    def load_config(self, config_path: str) -> Any:
        """Returns the content of a file, or None if there is none; composing changes it, so it is a copy."""
        if config_path not in self._parsed:
            self._parsed[config_path] = pickle.dumps(self._repository.load_config(config_path))
        return pickle.loads(self._parsed[config_path])


def _multiplied(job: Sequence[str]) -> list[list[str]]:
    """Returns the overrides of each run of a multirun: all combinations of the values of its overrides."""
    choices = {override.get_key_element(): values_of(override) for override in parsed_overrides(job)}
    return [list(overrides) for overrides in itertools.product(*choices.values())]


def _only_sets_a_value(override: Override) -> bool:
    """Returns whether an override only sets a value, and chooses no file of `conf/`."""
    changes_keys = override.is_add() or override.is_force_add() or override.is_delete()
    of_hydra = override.key_or_group.startswith("hydra")
    return not (changes_keys or of_hydra or override.package or is_group(override.key_or_group))


def _be_the_run(cfg: DictConfig, run: "PlannedRun", number: int) -> None:
    """Gives interpolations in `cfg` the values that Hydra has for the run, and removes Hydra's own part."""
    with read_write(cfg.hydra), open_dict(cfg.hydra):
        cfg.hydra.overrides.task = run.overrides
        cfg.hydra.runtime.output_dir = str(run.directory.absolute())
        cfg.hydra.job.num, cfg.hydra.job.id = number, str(number)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep, before it is started."""

    overrides: list[str]
    directory: Path

    @property
    def without_seed(self) -> frozenset[str]:
        """The overrides but the seed, which changes neither what a run needs nor whether it is refused."""
        return frozenset(o for o in self.overrides if not re.fullmatch(r"seed=\d{1,9}", o))

    @property
    def finished(self) -> bool:
        """Whether the run's result exists."""
        return (self.directory / RESULT_FILE).exists()


def title(name: str) -> str:
    """Returns the description of a sweep in a line: the first comment of its file."""
    first, *_ = [*sweep_file(name).read_text(encoding="utf-8", errors="replace").splitlines(), ""]
    return first.lstrip("# ") if first.startswith("#") else ""


def read_sweep(name: str, overrides: Sequence[str], scale: str | None = None) -> Sweep:
    """Reads the sweep of a file (`sweep_file`) at a scale, with further overrides for every run.

    The default scale is `SMALL`; a file without scales is read as it is.

    A sweep file is a primary configuration with the keys `hydra.sweeper.params`, its grid; `baselines`, a
    list of further runs; `scales`, the overrides of each scale. Later overrides replace earlier
    ones: first the grid's, then the scale's, then `overrides`. A baseline takes the scale's overrides and
    `overrides`, except for keys that would make it another method (`SAID_BY_BASELINES`). A baseline that
    trains nothing (`UNTRAINED`) has a single seed.

    Raises:
        InputError: if there is no such sweep or scale, or the file is no sweep file.
    """
    path = sweep_file(name)
    search_also(path.parent)
    file, params = _read(path)
    scales = file.scales
    if scale is not None and not scales:
        raise InputError(f"scale={scale}: sweep {name} has no scales; leave out scale=")
    scale = SMALL if scale is None else scale
    if scales and scale not in scales:
        raise InputError(f"scale={scale} is none of sweep {name}{choose_one(scale, list(scales))}")
    grid = [f"{key}={value}" for key, value in params.items()]
    everywhere = [*scales.get(scale, []), *overrides]
    of_hydra = _merged([override for override in everywhere if _is_of_hydra(override)])
    everywhere = [override for override in everywhere if not _is_of_hydra(override)]
    jobs = [_merged([*grid, *everywhere])]
    jobs += [_merged([*line, *_reaching(line, everywhere)]) for line in file.baselines]
    usual = (file.output_dir or f"outputs/{path.stem}").rstrip("/") + ("" if scale == SMALL else f"-{scale}")
    given = [override for override in everywhere if _key(override) == "output_dir"]
    folder = given[-1].lstrip("+") if given else f"output_dir={_as_value(usual)}"
    (of_all,) = parsed_overrides([folder])
    if of_all.is_sweep_override():
        raise InputError(f"{folder} has several values; the runs of a sweep are in one folder")
    jobs = [_merged([*job, folder]) for job in jobs]
    searches = _searches(file, of_hydra)
    if searches and len(jobs) > 1:
        raise InputError(
            f"sweep {path} has baselines, and its sweeper searches; put them into a file of their own"
        )
    return Sweep(path.stem, Path(str(of_all.value())), jobs, of_hydra, path.parent.absolute(), searches)


def _is_of_hydra(override: str) -> bool:
    return re.match(r"[+~]*hydra[./]", override) is not None


def _searches(file: SweepFile, of_hydra: Sequence[str]) -> bool:
    """Returns whether a sweep's file, or overrides of Hydra's settings, set a sweeper that searches."""
    entries = [entry for entry in file.defaults if isinstance(entry, dict)]
    said = {str(key).split("/", 1)[-1]: name for entry in entries for key, name in entry.items()}
    chosen = {key.removeprefix("hydra/"): name for key, name in said.items()}
    chosen |= dict(
        o.lstrip("+").removeprefix("hydra/").split("=", 1) for o in of_hydra if "hydra/sweeper=" in o
    )
    return str(chosen.get("sweeper", "basic")) != "basic"


def _read(path: Path) -> tuple[SweepFile, dict[str, str]]:
    """Reads the settings of a sweep file and its grid (`amid.settings.sweep_of`).

    Raises:
        InputError: if the file is no YAML of a primary configuration that builds on `train`, or one of its
            keys is unknown or has a value of the wrong shape.
    """
    try:
        content: Any = OmegaConf.load(path)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = "it is nested too deeply" if "recursion" in str(error) else shortened(str(error))
        raise InputError(f"sweep {path} cannot be read: {reason}") from error
    if not isinstance(content, DictConfig) or "defaults" not in content:
        raise InputError(f"sweep {path} does not build on train; begin it with defaults: [train, _self_]")
    try:
        values: Any = OmegaConf.to_container(content, resolve=False)
        file, params = sweep_of(values, group_names())
    except InputError as error:
        raise InputError(f"sweep {path}: {error}") from error
    for entry in (entry for entry in file.defaults if isinstance(entry, str)):
        base = entry.strip("/").removesuffix(".yaml") + ".yaml"
        of_amid = (CONF / base).exists()  # Hydra takes that one
        if not of_amid and _defines_runs(path.parent / base):
            raise InputError(
                f"sweep {path} builds on {base}, and a sweep takes no grid, scales or baselines from "
                "another; build on train, and write them into the file"
            )
    return file, params


def _defines_runs(file: Path) -> bool:
    """Returns whether there is such a file of a sweep: it has a grid, scales or baselines."""
    try:
        content: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):  # Hydra says what is wrong with it
        return False
    if not isinstance(content, dict):
        return False
    params: Any = content.get("hydra")
    for key in ("sweeper", "params"):
        params = params.get(key) if isinstance(params, dict) else None
    return any(of is not None for of in (params, content.get("scales"), content.get("baselines")))


def _reaching(line: Sequence[str], everywhere: Sequence[str]) -> list[str]:
    """Returns the overrides for every run that a baseline gets.

    A baseline that trains nothing gets only the first of several seeds: its result is the same with each.
    """
    trains = any(UNTRAINED.isdisjoint(run) for run in _multiplied(line))
    reaching = [override for override in everywhere if _reaches(override, line)]
    return [o if trains or _key(o) != "seed" else _multiplied([o])[0][0] for o in reaching]


def _reaches(override: str, line: Sequence[str]) -> bool:
    """Returns whether a baseline gets an override of the sweep.

    It gets overrides that are no part of a method, such as `data=dolly`. It also gets `text.*` and the ways
    to compute the loss, if each run of its `line` has the setting.
    """
    key = override.partition("=")[0].lstrip("+~")
    if re.split("[.@]", key)[0] not in SAID_BY_BASELINES:
        return True
    makes_no_method = key.startswith("text.") or key in ("objective.fused", "objective.compiled")
    return makes_no_method and all(takes(run, key) for run in _multiplied(line))


def _merged(overrides: Sequence[str]) -> list[str]:
    """Returns `overrides` with only the last override of each key; a key that was added stays added."""
    merged: dict[str, str] = {}
    for override in overrides:
        key = _key(override)
        before = merged.get(key, "")
        added = "" if override.startswith("+") else before[: len(before) - len(before.lstrip("+"))]
        merged[key] = added + override
    return list(merged.values())


def _key(override: str) -> str:
    return override.split("=")[0].lstrip("+")


def _as_value(text: str) -> str:
    """Returns text as Hydra reads it as the value of an override: in quotes if it has other characters."""
    plain = re.fullmatch(r"[A-Za-z_./][\w./-]*", text, flags=re.ASCII)
    return text if plain else QuotedString(text, Quote.single).with_quotes()
