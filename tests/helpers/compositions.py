"""Configurations composed once a process: Hydra takes 0.2 s for each, and tests ask for thousands."""

import os
import pickle
from pathlib import Path
from typing import Any

from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.defaults_list import DefaultsList, Overrides
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig

_LISTS: dict[Any, DefaultsList] = {}
"""Hydra's lists of the files to compose, by the choices that they come from and the state of the files."""
_COMPOSED: dict[int, bytes] = {}
"""What was composed from the files of a list, pickled, by the identity of the list."""

_list_of = config_loader_impl.create_defaults_list
_compose = ConfigLoaderImpl._compose_config_from_defaults_list


def compose_once() -> None:
    """Has Hydra compose each choice of files once a process. Hydra still sets the values of settings."""
    config_loader_impl.create_defaults_list = _kept_list
    ConfigLoaderImpl._compose_config_from_defaults_list = _kept_configuration


def compose_anew() -> None:
    """Has Hydra compose by itself again."""
    config_loader_impl.create_defaults_list = _list_of
    ConfigLoaderImpl._compose_config_from_defaults_list = _compose


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


def _state(repo: Any) -> tuple[Any, ...]:
    """What the files that Hydra looks for are: a changed one changes it."""
    folders = [(source.scheme(), source.path) for source in repo.get_sources()]
    files = [_files(path) for scheme, path in folders if scheme == "file"]
    return (*folders, *files, str(ConfigStore.instance().repo.get("hydra", {}).get("sweeper", {}).keys()))


def _files(folder: str) -> tuple[Any, ...]:
    found = [Path(place) / name for place, _, names in os.walk(folder) for name in names]
    return tuple(sorted((str(file), (of := file.stat()).st_mtime_ns, of.st_size) for file in found))
