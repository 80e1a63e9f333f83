"""Configurations composed once a process, and files, overrides and interpolations read once.

Hydra takes 0.2 s for a configuration, and OmegaConf takes a millisecond for an interpolation. Tests ask for
thousands of them.
"""

import functools
import os
import pickle
from pathlib import Path
from typing import Any

from hydra._internal import config_loader_impl, defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.defaults_list import DefaultsList, Overrides
from hydra.core.config_store import ConfigStore
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, base, grammar_parser

_LISTS: dict[Any, DefaultsList] = {}
"""Hydra's lists of the files to compose, by the choices that they come from and the state of the files."""
_COMPOSED: dict[int, bytes] = {}
"""What was composed from the files of a list, pickled, by the identity of the list."""

_FILES: dict[Any, bytes] = {}
"""Files as Hydra loads them, pickled, by their place, time and size."""
_PARSED: dict[tuple[str, str], bytes] = {}
"""Overrides, pickled, by their text and the rule of the grammar."""

_list_of = config_loader_impl.create_defaults_list
_compose = ConfigLoaderImpl._compose_config_from_defaults_list
_load_file = ConfigRepository.load_config
_map_of = defaults_list._create_interpolation_map
_parse_override = OverridesParser.parse_rule


def compose_once() -> None:
    """Has Hydra compose each choice of files once a process. Hydra still sets the values of settings.

    Hydra also loads each file and parses each override once, and OmegaConf parses each interpolation once.
    """
    config_loader_impl.create_defaults_list = _kept_list
    ConfigLoaderImpl._compose_config_from_defaults_list = _kept_configuration
    ConfigRepository.load_config = _kept_file
    defaults_list._create_interpolation_map = _map_if_needed
    OverridesParser.parse_rule = _kept_override
    base.parse = functools.cache(grammar_parser.parse)  # nothing changes a tree


def compose_anew() -> None:
    """Has Hydra compose by itself again."""
    config_loader_impl.create_defaults_list = _list_of
    ConfigLoaderImpl._compose_config_from_defaults_list = _compose
    ConfigRepository.load_config = _load_file
    defaults_list._create_interpolation_map = _map_of
    OverridesParser.parse_rule = _parse_override
    base.parse = grammar_parser.parse


def _kept_list(
    repo: Any, config_name: str | None, overrides_list: list[Any], prepend_hydra: bool, skip_missing: bool
) -> DefaultsList:
    values = Overrides(repo=repo, overrides_list=overrides_list).config_overrides
    choices = [override for override in overrides_list if override not in values]
    lines = tuple(override.input_line for override in choices)
    key = (config_name, lines, prepend_hydra, skip_missing, _state(repo))
    if key not in _LISTS:
        _LISTS[key] = _list_of(repo, config_name, choices, prepend_hydra, skip_missing)
    kept = _LISTS[key]
    return DefaultsList(kept.defaults, kept.defaults_tree, values, kept.overrides)


def _kept_configuration(self: ConfigLoaderImpl, defaults: list[Any], repo: Any) -> DictConfig:
    if id(defaults) not in _COMPOSED:
        _COMPOSED[id(defaults)] = pickle.dumps(_compose(self, defaults, repo))
    return pickle.loads(_COMPOSED[id(defaults)])


def _kept_file(self: ConfigRepository, config_path: str) -> ConfigResult | None:
    source = self._find_object_source(config_path, ObjectType.CONFIG)
    if source is None or source.scheme() != "file":
        return _load_file(self, config_path)
    file = Path(source.path, f"{config_path.removesuffix('.yaml')}.yaml")
    key = (source.path, source.provider, str(file), *_state_of(file))
    if key not in _FILES:
        _FILES[key] = pickle.dumps(_load_file(self, config_path))
    return pickle.loads(_FILES[key])


def _map_if_needed(overrides: Overrides, defaults: list[Any], self_added: bool) -> DictConfig | None:
    """Returns what interpolations in a defaults list may name; None for a list without interpolations."""
    return _map_of(overrides, defaults, self_added) if any(d.is_interpolation() for d in defaults) else None


def _kept_override(self: OverridesParser, text: str, rule: str) -> Any:
    if "(" in text:  # a function such as shuffle has another value each time
        return _parse_override(self, text, rule)
    if (text, rule) not in _PARSED:
        _PARSED[text, rule] = pickle.dumps(_parse_override(self, text, rule))
    return pickle.loads(_PARSED[text, rule])


def _state(repo: Any) -> tuple[Any, ...]:
    """What the files that Hydra looks for are: a changed one changes it."""
    folders = [(source.scheme(), source.path) for source in repo.get_sources()]
    files = [_files(path) for scheme, path in folders if scheme == "file"]
    return (*folders, *files, str(ConfigStore.instance().repo.get("hydra", {}).get("sweeper", {}).keys()))


def _files(folder: str) -> tuple[Any, ...]:
    found = [Path(place) / name for place, _, names in os.walk(folder) for name in names]
    return tuple(sorted((str(file), *_state_of(file)) for file in found))


def _state_of(file: Path) -> tuple[int, int]:
    state = file.stat()
    return state.st_mtime_ns, state.st_size
