"""The labels of a run in tables: the chosen options, or the class that takes the place of an option's."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig

from amid.config.compose import as_dict
from amid.config.folders import CONF
from amid.config.identity import setting_hash
from amid.config.run_names import LABELS, further_settings
from amid.results import Label

OWN = ("objective", "schedule", "text", "optimizer", "scheduler", "generation")
"""Groups that label a run if another class takes the place of the chosen option's class."""

NONE = "none"


def labels_of(
    cfg: DictConfig, choices: Mapping[str, Any], overrides: Sequence[str], directory: Path
) -> dict[str, Label]:
    """Returns the labels of a training run, except the numbers of its objective.

    `method`, `model` and `data` are the chosen options. `divergence` and `assistant` are the ones that the
    objective gets. These two and the groups in `OWN` have the name of the option, or of the class or function
    that a `_target_` puts in its place. `settings` holds the remaining overrides. `configuration` is a hash
    of all settings without the seed. It separates runs with equal labels and different settings files.

    Args:
        cfg: the configuration of the run.
        choices: the chosen option of each group.
        overrides: the overrides of the run.
        directory: the folder of the run, which is not part of its settings.
    """
    settings = as_dict(copy.deepcopy(cfg))
    labels: dict[str, Label] = {name: choices.get(name) for name in LABELS}
    for group in ("divergence", "assistant"):
        used = settings["objective"].get(group)
        labels[group] = _name(group, choices.get(group), used, overrides)
    for group in OWN:
        name = _name(group, choices.get(group), settings.get(group), overrides)
        if name not in (choices.get(group), NONE):
            labels[group] = name
    labels["settings"] = further_settings(overrides)
    labels["configuration"] = setting_hash(cfg, directory)
    return labels


def _name(group: str, choice: Any, node: Any, overrides: Sequence[str]) -> str:
    """Returns the label of a group's node: its option if the node has that option's class, else its class."""
    target = node.get("_target_") if isinstance(node, Mapping) else None
    if target is None:
        return NONE
    shipped = {file.stem: _target(file) for file in sorted((CONF / group).glob("*.yaml"))}
    keys = {override.lstrip("+").partition("=")[0] for override in overrides}
    named = not any(
        key in (f"{of}{group}._target_", f"objective.{group}") for key in keys for of in ("", "objective.")
    )
    if shipped.get(choice) == target or (choice not in (*shipped, None, NONE) and named):
        return str(choice)
    options = [option for option, of in shipped.items() if of == target]
    own = str(target).rpartition(".")[2]
    return options[0] if options else str(target) if own in shipped else own


def _target(file: Path) -> str | None:
    """Returns the class that an option, or the option that it builds on, names."""
    content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    bases = [entry for entry in content.get("defaults", []) if isinstance(entry, str) and entry != "_self_"]
    inherited = [_target(file.with_name(f"{base}.yaml")) for base in bases]
    return content.get("_target_") or next(filter(None, inherited), None)
