"""Overrides of an evaluation that change or delete settings which the evaluated run has stored."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override

from amid.config.overrides import parsed_overrides
from amid.config.run_settings import read_settings
from amid.errors import InputError

TAKEN = ("data", "generation", "trainer")
"""The nodes that an evaluation takes from its run, unless the command line chooses another option."""

_SETS = "data.test."


def for_stored_settings(overrides: Sequence[str]) -> list[str]:
    """Returns overrides that Hydra accepts whichever data, generation and trainer the run was made with.

    An evaluation is composed from the default data, and its run's settings replace them later. So a setting
    that only the run has is added, and one that is deleted is added first. A deleted evaluation set is null.

    Args:
        overrides: of `amid evaluate`; without `run=` they stay as they are.

    Raises:
        InputError: for an evaluation set that the run does not have.
    """
    parsed = parsed_overrides(overrides)
    runs = [Path(str(value)) for one in parsed if one.key_or_group == "run" for value in _values(one)]
    stored = [settings for run in runs if run.is_dir() and (settings := read_settings(run))]
    if not stored:
        return list(overrides)
    chosen = {one.key_or_group for one in parsed}
    found = []
    for one, line in zip(parsed, overrides, strict=True):
        key = one.key_or_group
        added = one.is_add() or one.is_force_add()
        if added or "." not in key or key.partition(".")[0] not in {*TAKEN} - chosen:
            found.append(line)
        elif any(_has(settings, key) for settings in stored):
            found += _accepted(one, line)
        elif key.startswith(_SETS):
            sets = [name for name, source in (stored[0]["data"].get("test") or {}).items() if source]
            add = "" if one.is_delete() else f"; to add it: +{line}"
            raise InputError(
                f"{line}: run={runs[0]} has no evaluation set {key.removeprefix(_SETS)}, but "
                f"{', '.join(sets) or 'none'}{add}"
            )
        else:
            found.append(line)
    return found


def _values(override: Override) -> Iterator[Any]:
    if override.is_delete():
        return
    if override.is_discrete_sweep():
        yield from override.sweep_iterator()
    elif not override.is_sweep_override():
        yield override.value()


def _has(settings: Mapping[str, Any], key: str) -> bool:
    node: Any = settings
    for name in key.split("."):
        if not isinstance(node, Mapping) or name not in node:
            return False
        node = node[name]
    return True


def _accepted(override: Override, line: str) -> list[str]:
    if not override.is_delete():
        return [f"++{line}"]
    key = override.key_or_group
    of_set = key.startswith(_SETS) and key.count(".") == 2
    return [f"++{key}=null"] if of_set else [f"++{key}={{}}", f"~{key}"]
