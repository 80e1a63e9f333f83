"""Overrides as they are typed, KEY=VALUE: read, checked against the YAML files, refused by name."""

import functools
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from amid.config import launchers
from amid.config.compose import composed, overrides_of, register_resolvers
from amid.config.data_files import list_as_typed
from amid.config.folders import CONF, built_on, is_group, option_file, option_files
from amid.config.secrets import check_for_secrets
from amid.errors import InputError, choose_one, first_line, shortened
from amid.settings import check, check_values, has_argument, other_word
from amid.settings.nodes import OfHydra
from amid.settings.words import NEED_A_SCORE, nearest_setting

_CALL = re.compile(r"(choice|range|interval|glob|sort|shuffle|tag|int|float|str|bool|json_str)\(.*\)$")
"""A function of Hydra's command line. Its arguments may have names: glob(*, exclude=a*)."""

REQUIRED = (
    *("method", "model", "data", "data/template", "assistant", "divergence", "objective", "schedule", "text"),
    *("teacher", "optimizer", "scheduler", "trainer", "checkpoint", "generation"),
)
"""Groups from which a run chooses exactly one option each."""


def quoted(argument: str) -> str:
    """Returns KEY=VALUE with the value in quotes if it holds a second `=`, as a run's folder does."""
    if argument[0:1] == "-" or _CALL.match(argument.partition("=")[2]):
        return argument
    return re.sub(r"^([\w.+/@-]+=)([^'\"\[{(][^'\"]*=[^'\"]*)$", r"\1'\2'", argument)


def parsed_overrides(overrides: Sequence[str]) -> list[Override]:
    """Returns overrides KEY=VALUE as Hydra parses them.

    Raises:
        InputError: for an override that Hydra cannot parse.
    """
    parser = OverridesParser.create()
    parsed = []
    for override in overrides:
        if override.endswith(","):
            raise InputError(f"{override} ends with a comma; leave it out, or write another value after it")
        if override.startswith("="):
            raise InputError(f"{override} has no name before its =; write KEY=VALUE without spaces around =")
        if override.partition("=")[2].startswith("="):
            raise InputError(f"{shortened(override)} has == where one = belongs; write KEY=VALUE")
        try:
            parsed.append(parser.parse_override(override))
        except (HydraException, ValueError) as error:
            reason = first_line(error).partition(" expecting ")[0]  # which lists the grammar's tokens
            raise InputError(
                f"{shortened(override)} cannot be read ({reason}); write KEY=VALUE, and a value "
                f'with spaces or brackets in quotes that the shell leaves: "{_as_typed(override)}"'
            ) from error
    return parsed


def _as_typed(override: str) -> str:
    """Returns an override of data sources with slices as it can be read; for others their form."""
    key, _, value = override.partition("=")
    if re.fullmatch(r"\[.*\[\d*:\d*\].*\]", value):
        return f"{key}={list_as_typed(value)}"
    if re.fullmatch(r"[^][' ]+\[\d*:\d*\]", value):
        return f"{key}='{value}'"
    return "KEY='VALUE'"


def check_overrides(config_name: str, overrides: Sequence[str]) -> DictConfig:
    """Composes the configuration with the first of all values, to find mistakes before anything runs.

    Raises:
        InputError: for a group option that does not exist, with the nearest one; for a key that does not
            exist, with the choices that have it, or the nearest key; for anything else that Hydra refuses;
            and for a setting that `amid.settings.check` refuses.
    """
    register_resolvers()
    parsed = parsed_overrides(overrides)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        for override in parsed:
            _check_option(loader, override)
        for override in parsed:
            if override.key_or_group in ("hydra.run.dir", "hydra.sweep.dir") and not override.is_delete():
                check_values(override.key_or_group.removesuffix("dir"), OfHydra, {"dir": override.value()})
        own = [_first_choice(o) for o in parsed if not o.key_or_group.startswith("hydra")]
        own += [str(o.input_line) for o in parsed if _OF_HYDRA.match(o.key_or_group)]
        try:
            cfg = composed(config_name, own)
        except InputError as error:
            raise InputError(_unknown_setting(config_name, loader, parsed) or str(error)) from error
    check_for_secrets(cfg)
    check_used(cfg, cfg.hydra)
    check(cfg)
    return cfg


_OF_HYDRA = re.compile(r"hydra[./]sweeper(?!\.params)|hydra\.job\.")
"""The settings of Hydra itself that are checked with a configuration."""


def check_used(cfg: DictConfig, hydra: Any) -> None:
    """Refuses a chosen divergence or assistant that the objective of a configuration does not take.

    Args:
        cfg: the configuration.
        hydra: Hydra's own part of it.

    Raises:
        InputError: naming the choice, or Hydra's setting that would change the meaning of paths.
    """
    if hydra.job.chdir:
        raise InputError(
            "hydra.job.chdir=true: the paths of settings are relative to the folder in which amid is "
            "started, and runs share caches there; leave it out"
        )
    choices = hydra.runtime.choices
    for override in overrides_of(hydra):
        group = override.partition("=")[0]
        if group in ("data.train", "data.valid") and choices.data == "builtin" and "{" not in override:
            raise InputError(f"{override}: data=builtin makes its rows; for files of your own add data=jsonl")
        if group in ("divergence", "assistant") and cfg[group] is not None and group not in cfg.objective:
            raise InputError(
                f"{override}: method={choices.method} (objective={choices.objective}) has no "
                f"{group}; leave it out, or use another method"
            )


def _unknown_setting(config_name: str, loader: ConfigLoader, overrides: Sequence[Override]) -> str | None:
    """Returns the message about the first override of a setting that does not exist; None if all exist."""
    groups = [o for o in overrides if not o.is_delete() and loader.get_group_options(o.key_or_group)]
    cfg = composed(config_name, [_first_choice(o) for o in groups])
    keys = [key for key in _flat(cfg) if not key.startswith("hydra")]
    for override in overrides:
        key = override.key_or_group
        adds = override.is_add() or override.is_force_add()
        value = None if override.is_delete() or override.is_sweep_override() else override.value()
        if key == "data.test" and value is not None:
            return f"{override.input_line}: add each set by its name: {_sets_by_name(value)}"
        if override.is_add() and key in keys:
            written = (override.input_line or "").partition("=")[2]
            return f"{override.input_line}: there is a {key} already; set it: {key}={written}"
        for name in value if isinstance(value, dict) and key in keys else ():
            if f"{key}.{name}" not in keys:
                known = [k.removeprefix(f"{key}.") for k in keys if k.startswith(f"{key}.")]
                remedy = other_word(f"{key}.{name}")
                ending = nearest_setting(str(name), known) if remedy is None else f"; {remedy}"
                return f"{shortened(override.input_line or '')}: {key} has no setting {str(name)!r}{ending}"
        if not (override in groups or adds or key.startswith("hydra.") or key in keys):
            node, _, name = key.rpartition(".")
            if node and has_argument(OmegaConf.select(cfg, f"{node}._target_"), name):
                given = override.input_line
                return f"{given}: no YAML file of this run sets {key}; add it, +{given}"
            return (
                _of_another_choice(override, cfg, [o.key_or_group for o in groups])
                or f"no setting is named {key!r}{_remedy(override, [*keys, *_groups(loader)])}"
            )
    return None


def _sets_by_name(value: Any) -> str:
    """Returns the overrides that add the evaluation sets of a value one by one."""
    sets = value if isinstance(value, dict) else {"mine": value[0] if isinstance(value, list) else value}
    return shortened(" ".join(f"+data.test.{name}={source}" for name, source in sets.items()), 200)


def _groups(loader: ConfigLoader) -> list[str]:
    return [g for g in loader.get_group_options("", ObjectType.GROUP) if g != "hydra"]


def _check_option(loader: ConfigLoader, override: Override) -> None:
    group = override.key_or_group
    # Hydra copies all that it knows to look for options, so it is asked about groups alone.
    options = loader.get_group_options(group) if is_group(group) or group.startswith("hydra/") else []
    if options and override.is_delete() and group in REQUIRED:
        raise InputError(f"{override.input_line}: a run needs a {group}; choose one of {', '.join(options)}")
    if not options or override.is_delete() or isinstance(override.value(), Glob):
        return
    values = override.sweep_iterator() if override.is_sweep_override() else [override.value()]
    for value in values:
        names = value if isinstance(value, list) else [value]
        if group in REQUIRED and len(names) > 1:
            raise InputError(
                f"{override.input_line}: a run has one {group}; for a run of each write "
                f"-m {group}={','.join(map(str, names))}"
            )
        for name in names:
            if isinstance(name, dict) or name is None:
                single = next(iter(name), "KEY") if name else "KEY"
                raise InputError(
                    f"{override.input_line}: {group} takes the name of an option ({', '.join(options)}); "
                    f"single settings are given by their names: {group}.{single}=VALUE"
                )
            if str(name) not in options:
                if group == launchers.GROUP:
                    raise InputError(launchers.refused(str(name), options))
                if group.partition("@")[0] == "scheduler" and name in NEED_A_SCORE:
                    raise InputError(
                        f"{group}={name} needs a score at each step, which there is none of; use a schedule "
                        f"over steps, one of {', '.join(options)}"
                    )
                package = f"hydra-{name}-{group.removeprefix('hydra/')}".replace("_", "-")
                install = f"; pip install {package} where it is one of that package" * (group[:6] == "hydra/")
                raise InputError(
                    f"{group}={name!s} is no option of {group!r}{choose_one(str(name), options)}{install}"
                )


def _of_another_choice(override: Override, cfg: DictConfig, said: Collection[str]) -> str | None:
    """Returns what to choose to get a setting that another option of its group has; None if none has it.

    Args:
        override: the override of the setting, which `cfg` does not have.
        cfg: the configuration with Hydra's own part.
        said: the groups in which the user chose an option.
    """
    key, choices = override.key_or_group, cfg.hydra.runtime.choices
    group, _, name = key.partition(".")
    options = [file.stem for file in option_files(group) if {name, key} & _settings(group, file.stem)]
    chosen = choices.get(group)
    if not options or chosen in options or (chosen is None and not isinstance(cfg.get(group), DictConfig)):
        return None
    remedies = [f"{group}={', '.join(options)}"]
    present, what = f"{group}={chosen}" if chosen is not None else f"the choice of {group}", key
    if group not in said and (methods := _methods_with(group, options)):
        remedies.insert(0, f"method={', '.join(methods)}")
        present = f"method={choices.method} ({present})"
        what = group if cfg[group] is None else key
    return f"{override.input_line}: {present} has no {what}; use {', or '.join(remedies)}"


def _methods_with(group: str, options: Collection[str]) -> list[str]:
    """Returns the methods that choose one of `options`; none if no method chooses an option of this group."""
    choices = {
        file.stem: _defaults("method", file.stem).get(f"override /{group}") for file in option_files("method")
    }
    usual = _defaults("", "train").get(group)
    return (
        sorted(m for m, choice in choices.items() if (choice or usual) in options)
        if any(choices.values())
        else []
    )


def takes(overrides: Sequence[str], setting: str) -> bool:
    """Returns whether a run has a setting `GROUP.KEY`, given the option that it chooses in the group.

    Args:
        overrides: the overrides of the run, including GROUP=OPTION. A method's choices come from its file.
        setting: the setting, such as `text.share`.
    """
    group, _, key = setting.partition(".")
    chosen = dict(override.split("=", 1) for override in overrides)
    usual = _defaults("", "train")
    of_method = _defaults("method", chosen.get("method", usual["method"]))
    option = chosen.get(group) or of_method.get(f"override /{group}") or usual[group]
    return key in _settings(group, option)


def _settings(group: str, option: str) -> set[str]:
    """Returns the settings of an option and of the options that it builds on: `KEY` and `KEY.KEY`."""
    content = _content(group, option)
    entries = [entry for entry in content.get("defaults", []) if isinstance(entry, str)]
    own = {*_flat(content)} - {"defaults"}
    return own.union(*(_settings(*built_on(group, e)) for e in entries if e != "_self_"))


def _defaults(group: str, option: str) -> dict[str, str]:
    """Returns the options that an option chooses in its defaults list or in the options that it builds on."""
    content: Any = OmegaConf.to_container(_content(group, option))
    chosen: dict[str, str] = {}
    for entry in content.get("defaults", []):
        if isinstance(entry, str):
            chosen |= {} if entry == "_self_" else _defaults(*built_on(group, entry))
        else:
            chosen |= entry
    return chosen


def _content(group: str, option: str) -> Any:
    """Returns the unresolved content of an option's file; empty if there is no such file.

    Raises:
        InputError: if the file is no YAML of settings.
    """
    file = option_file(group, option)
    try:
        content = _loaded(file, file.stat().st_mtime_ns) if file else OmegaConf.create()
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{file} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, DictConfig):
        raise InputError(f"{file} has no settings; write KEY: VALUE into it")
    return content


@functools.lru_cache  # a sweep asks for the files of its methods many times
def _loaded(file: Path, changed_at: int) -> Any:
    return OmegaConf.load(file)


def _flat(node: Any, prefix: str = "") -> Iterator[str]:
    for key in node:
        name = f"{prefix}{key}"
        yield name
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_interpolation():
            yield from _flat(child, f"{name}.")


def values_of(override: Override) -> list[str]:
    """Returns the values of KEY=A,B in order, each as KEY=VALUE; a single value gives a list of one.

    Raises:
        InputError: if a sweeper has to choose the values first.
    """
    key = override.get_key_element()
    if not override.is_sweep_override():
        return [f"{key}={override.get_value_element_as_str()}"]
    if isinstance(value := override.value(), Glob):
        options = [file.stem for file in option_files(override.key_or_group)]
        return [f"{key}={name}" for name in _some(override, value.filter(options))]
    if not override.is_discrete_sweep():
        raise InputError(
            f"{override.input_line}: Hydra's own sweeper takes no interval; use one that chooses values, "
            "such as hydra/sweeper=optuna (pip install hydra-optuna-sweeper)"
        )
    try:
        values = [f"{key}={text}" for text in override.sweep_string_iterator()]
    except ValueError as error:  # such as a range with step 0
        raise InputError(f"{override.input_line}: {error}; give values, such as {key}=range(1,4)") from error
    return _some(override, values)


def _some(override: Override, values: list[str]) -> list[str]:
    """Returns `values`, and refuses an override without any."""
    if not values:
        raise InputError(
            f"{override.input_line} has no values; write the values to run, such as "
            f"{override.key_or_group}=A,B"
        )
    return values


def _first_choice(override: Override) -> str:
    """Returns KEY=VALUE with the first value of KEY=A,B, or the middle of an interval."""
    value = override.value() if override.is_sweep_override() else None
    if isinstance(value, IntervalSweep):  # for a sweeper to choose from
        interval: Any = value
        middle = (interval.start + interval.end) / 2
        whole = isinstance(interval.start, int) and isinstance(interval.end, int)  # as Optuna does
        return f"{override.get_key_element()}={int(middle) if whole else middle}"
    if not override.is_sweep_override():
        return override.input_line or ""
    return values_of(override)[0]


def _remedy(override: Override, names: Sequence[str]) -> str:
    """Returns what to write in place of a setting that does not exist."""
    written = override.input_line or ""
    if (word := other_word(override.key_or_group)) is not None:
        return f"; {word}"
    if written.startswith("data.test."):
        return f"; to add an evaluation set: +{written}"
    if Path(written).is_dir():
        return f"; for that run: run={written}"
    return nearest_setting(override.key_or_group, names)
