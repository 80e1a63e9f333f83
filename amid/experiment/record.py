"""The record of a run: writes its settings and its result, and finds a result that is already there."""

import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from amid import __version__
from amid.config.identity import contents_of, differences
from amid.config.run_settings import read_config, recorded_hash, write_settings
from amid.config.secrets import without_secrets
from amid.console import announce, shown
from amid.errors import InputError
from amid.experiment.plan import Plan
from amid.results import CHECKPOINTS, RESULT_FILE, RunResult, load


def finished_run(directory: Path, plan: Plan) -> RunResult | None:
    """The result in `directory` of the run of a plan, and says so; None where it is not finished.

    Raises:
        InputError: for a directory with a run of another configuration.
    """
    result = load(directory) if (directory / RESULT_FILE).exists() else None
    old = recorded_hash(directory) or (result.config_hash if result else None)
    if not plan.has_key(old) and (result is not None or (directory / CHECKPOINTS).exists()):
        changes = "; ".join(_changes(directory, plan.hashed)) or (
            "what differs is not recorded, as an earlier version of amid recorded less"
        )
        raise InputError(
            f"{directory} holds a run of another configuration: {changes}; choose another output_dir= "
            "(or hydra.run.dir=, where that was given), or delete the folder"
        )
    if result is not None:
        lacks = "valid_kl_pq" not in result.training and plan.compared
        hint = ", without a teacher to compare with; to have one, delete the folder" if lacks else ""
        announce(f"{shown(directory)} is finished already{hint}")
    return result


def _changes(directory: Path, hashed: Mapping[str, Any]) -> list[str]:
    """Lists how the run begun in `directory` differs from another run: in settings and contents of files."""
    record = read_config(directory)
    if record is None or record.hashed is None:  # of an older version, or none
        return []
    before = {**record.config, "model": record.hashed.model}
    changes = differences(before, hashed)
    contents = record.hashed.contents
    for path, content in contents_of(hashed).items():
        if contents.get(path, content) != content:
            changes.append(f"the content of {path} has changed")
    return changes


def write_config(plan: Plan, directory: Path) -> None:
    """Writes `directory`/config.yaml, whole or not at all, without secrets: the settings with the models that
    were prepared, and what was hashed of the models and files that were given."""
    given = {"model": plan.hashed["model"], "contents": contents_of(plan.hashed)}
    write_settings(without_secrets({"config": plan.settings, "hashed": given}), directory, plan.key)


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    packages = ("torch", "lightning", "transformers", "tokenizers", "rouge-score", "sacrebleu")
    ours = {"python": platform.python_version(), "amid-distill": __version__}
    return ours | {name: version(name) for name in packages}
