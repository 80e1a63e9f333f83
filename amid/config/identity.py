"""The identity of a run: the hash of its configuration, and the differences between two configurations."""

import contextlib
import copy
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amid.config.data_files import Place, parts_of, place_of
from amid.config.ladders import LADDERS
from amid.config.run_names import LIMITS, PLACES
from amid.config.secrets import without_secrets
from amid.errors import InputError
from amid.files import ADAPTER_CONFIG, checksum, key_of, read_mapping

if TYPE_CHECKING:  # commands that only read results do without Hydra
    from omegaconf import DictConfig

_WAYS_TO_COMPUTE = {"objective": ("fused", "compiled")}
"""Keys that change no result and still separate runs: their values are timed against each other."""


def config_hash(cfg: Mapping[str, Any]) -> str:
    """Returns a hash of everything that decides a run's result.

    The hash covers the configuration without the places that the run writes to, the content of the data
    files and local models that it names (of the local models of adapters too), and the commit of each data
    set of the hub, also of one of which it names a file.
    """
    text = json.dumps([_decisive(cfg), contents_of(cfg)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def setting_hash(cfg: "DictConfig", directory: Path) -> str:
    """Returns a hash of the settings, without the seed, that decide the result of the run in `directory`."""
    from amid.config.compose import as_dict

    other = copy.deepcopy(cfg)
    other.seed = 0
    text = json.dumps(_decisive(as_dict(other)), sort_keys=True, default=str)
    return hashlib.sha256(text.replace(str(directory), "").encode()).hexdigest()[:12]


def contents_of(cfg: Mapping[str, Any]) -> dict[str, str]:
    """Returns a hash of the content of each data file and local model that a configuration names, by path.

    A data set of the hub has its commit, by its name.

    If the commit is not known, as the hub is not asked and its cache has none, the data set is left out.
    """
    places = [place_of(part) for source in _data_sources(cfg) for part in parts_of(source)]
    sets = {(place.repository, place.revision) for place in places if place.repository}
    commits = {f"{name}@{revision}" if revision else name: _commit(name, revision) for name, revision in sets}
    local = [place.path for place in places if place.kind == "folder"]
    local += [file for place in places if place.kind == "files" for file in _files_of(place)]
    given = [path for path in _model_paths(cfg) if Path(path).exists()]
    models = [*given, *(base for path in given if (base := _local_base(Path(path))) is not None)]
    found = {path: _data_hash(Path(path)) for path in local}
    found |= {path: _content_hash(Path(path)) for path in models}
    return dict(sorted((found | {name: commit for name, commit in commits.items() if commit}).items()))


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns the differences between two configurations in the settings that their hashes cover.

    A difference reads `optimizer.lr was 0.1, is 0.2`. A value that another setting refers to is named once.
    """
    old, new = (dict(leaves(_decisive(cfg))) for cfg in (before, now))
    pairs = {
        key: tuple(
            json.dumps(values[key], default=str) if key in values else "not there" for values in (old, new)
        )
        for key in (*old, *(key for key in new if key not in old))
    }
    pairs = {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}
    tails = {key: [key.split(".", n)[-1] for n in range(1, key.count(".") + 1)] for key in pairs}
    return [
        f"{key} was {was}, is {is_now}"
        for key, (was, is_now) in pairs.items()
        if not any(pairs.get(tail) == (was, is_now) for tail in tails[key])
    ]


def leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the settings of nested mappings: their dotted names, with their values."""
    for key, child in node.items():
        if isinstance(child, Mapping) and child:
            yield from leaves(child, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", child


def _decisive(cfg: Mapping[str, Any]) -> Any:
    """Returns `cfg` without the settings that have no effect on a run's result."""
    per_micro_batch = (cfg.get("data") or {}).get("mean") == "micro_batch"
    counts = ("micro_batch_size",) if per_micro_batch else ()
    what = _effective({key: value for key, value in cfg.items() if key not in PLACES}, counts)
    for ladder in LADDERS.values():
        if isinstance(what.get("generation"), dict) and what["generation"].get(ladder, "") is None:
            del what["generation"][ladder]
    data = what.get("data") or {}
    if data.get("special_tokens") == "text":  # no effect if no row has special tokens
        del data["special_tokens"]
    if data.get("turns") == "all":  # no effect if no row has several turns
        del data["turns"]
    for name, usual in {"system": None, "thinking": "keep"}.items():
        if (data.get("template") or {}).get(name, ...) == usual:
            del data["template"][name]
    if not (what.get("data") or {}).get("pass_at", True):  # as in settings without pass@k
        del what["data"]["pass_at"]
    states = (cfg.get("teacher") or {}).get("states", "exact")
    if states != "exact" and (cfg.get("model") or {}).get("teacher"):
        what["teacher"] = {"states": states}
    for role in (what.get("model") or {}).values():
        if isinstance(role, dict) and role.get("quantization", "") is None:  # as in settings without it
            del role["quantization"]
    return without_secrets(what)


def _effective(node: Any, counts: Collection[str], name: str = "") -> Any:
    """Returns `node` without the keys that have no effect on a result; keys in `counts` have an effect."""
    if not isinstance(node, Mapping):
        return node
    idle = {*LIMITS.get(name, ()), *_WAYS_TO_COMPUTE.get(name, ())}.difference(counts)
    return {key: _effective(child, counts, str(key)) for key, child in node.items() if key not in idle}


def _data_sources(cfg: Mapping[str, Any]) -> Iterator[Any]:
    """Yields the data sources that `cfg` names."""
    data = cfg.get("data") or {}
    yield from (data.get(name) for name in ("train", "valid", "plain_text"))
    yield from (data.get("test") or {}).values()


def _model_paths(cfg: Mapping[str, Any]) -> Iterator[str]:
    """Yields the paths of models and of a tokenizer that `cfg` names."""
    model = cfg.get("model") or {}
    paths = ((model.get(role) or {}).get("path") for role in ("teacher", "student", "tokenizer"))
    yield from (path for path in paths if isinstance(path, str))


def _local_base(folder: Path) -> str | None:
    """Returns the path of the model that the adapters in a folder belong to; None if it is no local one."""
    settings = read_mapping(folder / ADAPTER_CONFIG, "give another copy of the adapters") or {}
    base = settings.get("base_model_name_or_path")
    return base if isinstance(base, str) and base and Path(base).exists() else None


def _files_of(place: Place) -> list[str]:
    """Returns the files of a place that exist; a missing file is named when the data are checked."""
    with contextlib.suppress(InputError):
        return [file for file in place.files if Path(file).exists()]
    return []


def _commit(name: str, revision: str | None) -> str | None:
    """Returns the commit of a data set of the hub; None if it cannot be known."""
    from amid.models.hub import ask_its_cache_alone_if_it_is_silent, commit_of

    ask_its_cache_alone_if_it_is_silent()
    with contextlib.suppress(Exception):  # whatever the hub refuses is named when the data are read
        return commit_of(name, "dataset", revision)
    return None


def _data_hash(path: Path) -> str:
    """Returns the hash of a data file, or of all files in a folder that are not hidden."""
    if path.is_file():
        return _content_hash(path)
    files = [file.relative_to(path) for file in path.rglob("*") if file.is_file()]
    shown = [file for file in files if not any(part.startswith(".") for part in file.parts)]
    return key_of({str(file): checksum(path / file) for file in shown})


def _content_hash(path: Path) -> str:
    """Returns the hash of a file, or of a folder's files that can change what a model computes.

    Files that only describe the model are left out.
    """
    files = [path] if path.is_file() else [p for p in path.glob("[!.]*") if p.is_file() and p.suffix != ".md"]
    return key_of({file.name: checksum(file) for file in files})
