"""Reads back a run's settings. The run's folder is data: nothing in it runs as code."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from string import Formatter
from typing import Any

import yaml

from amid.config.data_files import path_and_rows
from amid.errors import Damaged, InputError
from amid.files import (
    ADAPTER_CONFIG,
    Record,
    check_regular,
    check_values,
    read_record,
    written_whole,
    yaml_with_sum,
)
from amid.results import BEST, RunResult, check_student

CONFIG_FILE = "config.yaml"

REMEDY = "put the file back from a copy, or delete the folder and run again"

Settings = dict[str, Any]

_NAMED = ("test", "metrics", "logger")
"""Nodes in which the user chooses the keys."""

_LOADS_CODE = {
    *("auto_map", "attn_implementation", "_attn_implementation", "experts_implementation"),
    *("_experts_implementation", "_attn_implementation_internal", "_experts_implementation_internal"),
    *("quantization_config", "compression_config", "transformers_weights", "custom_generate"),
}
"""Fields of a model's or tokenizer's JSON file that make transformers run code from elsewhere."""


class Hashed(Record):
    """The hashed values besides the settings: models as the user named them, and the contents of files."""

    model: Settings
    contents: dict[str, str]


class StoredConfig(Record):
    """The content of a run's config.yaml."""

    hash: str | None = None
    config: Settings
    hashed: Hashed | None = None


def write_settings(content: Mapping[str, Any], directory: Path, key: str) -> None:
    """Writes `directory`/config.yaml, whole or not at all: a `StoredConfig` with its hash."""
    from omegaconf import OmegaConf  # not needed to read it

    directory.mkdir(parents=True, exist_ok=True)
    text = OmegaConf.to_yaml(OmegaConf.create({"hash": key, **content}))
    with written_whole(directory / CONFIG_FILE) as part:
        part.write_text(yaml_with_sum(text), encoding="utf-8")


def read_config(directory: Path, remedy: str = REMEDY) -> StoredConfig | None:
    """Reads config.yaml of the run in `directory`; returns None if there is none.

    Raises:
        Damaged: if the file is not what a run wrote.
    """
    return read_record(directory / CONFIG_FILE, StoredConfig, remedy)


def recorded_hash(directory: Path) -> str | None:
    """Returns the hash of the configuration of the run that was begun in `directory`; None without a run.

    Raises:
        Damaged: if config.yaml is not what a run wrote.
    """
    found = read_config(directory)
    return None if found is None else found.hash


def read_settings(directory: Path, remedy: str = REMEDY) -> Settings | None:
    """Returns the settings of the run in `directory` as plain values; None if it has no config.yaml.

    Raises:
        Damaged: if config.yaml is not what a run wrote.
    """
    found = read_config(directory, remedy)
    return None if found is None else found.config


@dataclass(frozen=True)
class Stored:
    """Settings from a run's folder, which may instantiate only what amid ships.

    Args:
        directory: the folder of the run.
        trusted: whether the user allowed the code that the folder names to run.
        flag: the option by which the user allows it.
    """

    directory: Path
    trusted: bool
    flag: str

    def check(self, settings: Any, *at: str) -> None:
        """Checks the node of the settings with the keys `at`.

        A `_target_` must be one that conf/ has at the same place, with its `_partial_`, unless the folder is
        trusted. `_args_` and other directives, interpolations, fields of a format string besides its own, and
        data that is no regular file are refused.

        Raises:
            InputError: naming the setting.
        """
        for keys, node in _nodes(settings, at):
            where = f"{self.directory / CONFIG_FILE}: {'.'.join(keys)}"
            texts = [node] if isinstance(node, str) else [*node] if isinstance(node, Mapping) else []
            if interpolated := [text for text in texts if "${" in str(text)]:
                raise InputError(
                    f"{where} holds the interpolation {interpolated[0]!r}, and none in the folder of a run "
                    f"is resolved; give the setting on the command line: {'.'.join(keys)}=VALUE"
                )
            if isinstance(node, str):
                _check_text(node, keys, where)
            elif isinstance(node, Mapping) and not self.trusted:
                self._check_target(node, keys, where)

    def _check_target(self, node: Mapping[str, Any], keys: tuple[str, ...], where: str) -> None:
        directives = {str(key) for key in node if str(key).startswith("_") and str(key).endswith("_")}
        known = shipped().get(_place(keys), frozenset())
        entry = (str(node.get("_target_")), node.get("_partial_", False) is True)
        if directives and not (directives <= {"_target_", "_partial_"} and entry in known):
            other = min(directives - {"_target_", "_partial_"}, default="_target_")
            raise InputError(
                f"{where}.{other}={node.get(other)!s:.80} is nothing that amid ships at this place; the "
                "folder of a run is data, and no code that it names is run; if you trust the folder and "
                f"that code: {self.flag}"
            )


def _nodes(node: Any, keys: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield keys, node
    if isinstance(node, Mapping):
        for key, child in node.items():
            yield from _nodes(child, (*keys, str(key)))
    elif isinstance(node, Sequence) and not isinstance(node, str):
        for number, child in enumerate(node):
            yield from _nodes(child, (*keys, str(number)))


def _check_text(text: str, keys: tuple[str, ...], where: str) -> None:
    if keys[-1] in ("without_input", "with_input"):
        try:
            fields = [part[1:] for part in Formatter().parse(text) if part[1] is not None]
        except ValueError:
            return  # the template itself refuses it
        if any(name not in ("instruction", "input") or spec or convert for name, spec, convert in fields):
            raise InputError(f"{where}={text!r} has other fields than {{instruction}} and {{input}}")
    elif {_place(keys), _place(keys[:-1])} & {"train", "valid", "plain_text", "test.*"}:  # one, or of a list
        path = Path(path_and_rows(text)[0])
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise InputError(f"{where}={text} is no file of data; give one: {'.'.join(keys)}=FILE")


@cache
def shipped() -> Mapping[str, frozenset[tuple[str, bool]]]:
    """Returns the classes and functions that conf/ instantiates, by their place (`_place`).

    Each comes with its name and whether it is called later (`_partial_`).
    """
    from amid.config.folders import CONF

    found: dict[str, set[tuple[str, bool]]] = {}
    for file in CONF.rglob("*.yaml"):
        text = file.read_text(encoding="utf-8")
        package = text.partition("# @package ")[2].partition("\n")[0].strip()
        group = file.parent.relative_to(CONF).parts
        start = {"": group, "_global_": ()}.get(package, tuple(package.split(".")))
        for keys, node in _nodes(yaml.safe_load(text), start):
            if isinstance(node, Mapping) and "_target_" in node:
                entry = (node["_target_"], node.get("_partial_", False))
                found.setdefault(_place(keys), set()).add(entry)
    sources = set().union(*(found.get(place, set()) for place in ("train", "valid", "test.*")))
    found |= dict.fromkeys(("train", "valid", "test.*"), sources)
    return {place: frozenset(entries) for place, entries in found.items()}


def _place(keys: Sequence[str]) -> str:
    """Returns the place of a node: its last key, or `PARENT.*` for a key that the user chose (`_NAMED`)."""
    parent = keys[-2] if len(keys) > 1 else ""
    return f"{parent}.*" if parent in _NAMED else keys[-1] if keys else ""


def stored_student(directory: Path, result: RunResult) -> Path:
    """Returns the folder of a finished run's student, after a check that the run wrote its files.

    The folder itself holds weights in safetensors, and nothing that makes transformers run code.

    Raises:
        InputError: if there is no student, a file is not what the run wrote, or the folder holds other files.
    """
    folder, remedy = directory / BEST, "put the file back from a copy, or train the student again"
    check_student(directory, result, remedy)
    for file in folder.iterdir():
        if file.is_symlink():
            raise Damaged(f"{file} is a link, and a run's student is files of its own; {remedy}")
        check_regular(file, remedy)
    weights = [file.name for file in folder.glob("*.safetensors")]
    index = folder / "model.safetensors.index.json"
    if index.exists():
        of_index = _json(index, remedy).get("weight_map")
        weights = list(of_index.values()) if isinstance(of_index, dict) else []
    unsafe = [name for name in weights if not _is_weights(name)]
    if not weights or unsafe:
        what = f"weights in {unsafe[0]!r}" if unsafe else "no weights in safetensors"
        raise InputError(
            f"{folder} has {what}; amid reads a run's weights from *.safetensors files in the folder alone"
        )
    for file in (
        folder / name for name in ("config.json", "tokenizer_config.json", "generation_config.json")
    ):
        for keys, value in _nodes(_json(file, remedy), ()):
            if keys and keys[-1] in _LOADS_CODE and value is not None:
                raise InputError(
                    f"{file} has {keys[-1]}, by which other code would run, and which no run writes; "
                    "take it out of the file"
                )
            if _is_deeper_than_weights(keys, value, [*folder.glob("*.safetensors")]):
                raise InputError(f"{file}: {keys[-1]}={value} is more than its weights are of; {remedy}")
    if (adapters := folder / ADAPTER_CONFIG).exists():
        raise InputError(f"{adapters}: a run's student has no adapters; delete the file")
    return folder


_LEAST_OF_A_LAYER = 100
"""The fewest bytes that the weights of a layer take, with their names."""


def _is_deeper_than_weights(keys: Sequence[str], value: Any, weights: Sequence[Path]) -> bool:
    """Returns whether a field of a model's configuration claims more layers than its weights can hold."""
    layers = bool(keys) and keys[-1].startswith(("num_", "n_")) and keys[-1].endswith(("_layers", "_layer"))
    return (
        layers and type(value) is int and value * _LEAST_OF_A_LAYER > sum(f.stat().st_size for f in weights)
    )


def _is_weights(name: Any) -> bool:
    return isinstance(name, str) and Path(name).name == name and name.endswith(".safetensors")


def _json(file: Path, remedy: str) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
        content = json.loads(text)
        check_values(text, content)
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError, OSError) as error:
        raise Damaged(f"{file} is damaged ({' '.join(str(error).split())}); {remedy}") from error
    return content if isinstance(content, dict) else {}
