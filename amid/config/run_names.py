"""The names of runs: the names of their folders, and their settings as tables show them."""

import contextlib
import functools
import hashlib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from amid.config.secrets import hide
from amid.errors import shortened

LABELS = ("method", "model", "data", "divergence", "assistant")
"""The groups that name a run in a table by its choices."""

LONGEST_NAME = 100
"""Characters of a run's folder name; a longer one is cut, and ends in a hash."""

LONGEST_SETTINGS = 1000
"""The most characters of a run's settings in a table; longer text loses its middle."""

HYDRA_FOLDER = ".hydra"
"""The folder in a run's folder with the overrides that began it."""

WITH_THE_REST = "*"
"""An argument of `run_name` in `conf/`: with it, a name ends with the overrides that all runs share."""

PLACES = ("hub", "output_dir", "prepared_dir", "logger", "threads", "teacher", "trust_run")
"""Root keys that say where and how fast a run goes, not what it learns; except `LOSSY`."""

LOSSY = "teacher.states"
"""The key that says whether the states of the teacher cache are exact."""

LIMITS = {
    "data": ("cache_dir", "micro_batch_size", "tokens_per_batch", "packing", "sharing"),
    "trainer": ("log_every_n_steps", "devices", "num_nodes", "strategy"),
    "text": ("batch_size",),
    "generation": ("batch_size",),
    "sft": ("micro_batch_size", "tokens_per_batch"),
    "checkpoint": ("every_n_steps", "every_minutes", "requeue"),
    "teacher": ("gradient_checkpointing", "device_map", "attention"),
    "student": ("gradient_checkpointing", "device_map", "attention"),
}
"""Keys, by node, that also say where and how fast a run goes, not what it learns."""

_SHORTENED = ("assistant.", "objective.")
"""Prefixes of settings that names leave out."""


@dataclass(frozen=True)
class Naming:
    """Names the folders of the runs of one command.

    If a run with the same overrides was begun in `output_dir`, a run has the folder of that earlier run. Else
    its overrides name it: the settings that vary come first, sorted, and what all runs share is left out.

    Args:
        output_dir: the folder that holds the folders of the runs.
        varying: the settings that vary between the runs. A single run has none: all overrides name it.
        rest: whether the names also hold what all runs share, after the settings that vary.
    """

    output_dir: Path
    varying: tuple[str, ...] = ()
    rest: bool = False

    @classmethod
    def of(cls, runs: Sequence[Sequence[str]], output_dir: Path) -> "Naming":
        """Returns the naming of runs, given by their overrides.

        The names hold what all runs share only if a name without it belongs to another run in `output_dir`,
        such as a run of an earlier command with another method.
        """
        of_runs = [_telling(overrides) for overrides in runs]
        settings = {_key(override) for overrides in of_runs for override in overrides}
        shared = set.intersection(*(set(overrides) for overrides in of_runs)) if runs else set()
        naming = cls(output_dir, tuple(sorted(settings - {_key(override) for override in shared})))
        begun = _begun(output_dir)
        names = [(run_name(overrides, naming.varying), set(overrides)) for overrides in of_runs]
        taken = any(name in begun and begun[name] != overrides for name, overrides in names)
        return cls(output_dir, naming.varying, rest=taken)

    @classmethod
    def of_chosen(cls, varying: Sequence[str], shared: Sequence[str], output_dir: Path) -> "Naming":
        """Returns the naming of runs for which a sweeper will choose the values of the settings `varying`.

        The runs share the overrides `shared`.
        """
        of_all = set(_telling(shared))
        others = any(not of_all <= overrides for overrides in _begun(output_dir).values())
        return cls(output_dir, tuple(sorted(varying)), rest=others)

    @classmethod
    def of_subdir(cls, override: str, output_dir: Path) -> "Naming | None":
        """Returns the naming in an override `hydra.sweep.subdir='RESOLVER'`; None if it has another value."""
        found = re.fullmatch(
            r"hydra\.sweep\.subdir='\$\{run_name:\$\{output_dir\}((?:,[^,{}']+)*)\}'", override
        )
        if found is None:
            return None
        varying = found[1].split(",")[1:]
        named = tuple(setting for setting in varying if setting != WITH_THE_REST)
        return cls(output_dir, named, rest=WITH_THE_REST in varying)

    @property
    def resolver(self) -> str:
        """The value of `hydra.sweep.subdir` with which Hydra names the folders in this way."""
        rest = [WITH_THE_REST] if self.rest and self.varying else []
        return f"${{run_name:{','.join(['${output_dir}', *self.varying, *rest])}}}"

    def name(self, overrides: Sequence[str]) -> str:
        """Returns the name of the folder of the run with these overrides."""
        telling = set(_telling(overrides))
        name = run_name(overrides, self.varying, self.rest or not self.varying)
        begun = [folder for folder, of in _begun(self.output_dir).items() if of == telling]
        return name if name in begun or not begun else begun[0]


def run_name(overrides: Sequence[str], varying: Collection[str] = (), rest: bool | None = None) -> str:
    """Returns a short folder name from a run's overrides, such as `alpha=-5,seed=2`; `default` without any.

    A name that loses characters of the overrides, or is cut, ends in a hash of the overrides.

    Args:
        overrides: the overrides of the run; the name leaves out overrides that change no result.
        varying: the settings that come first.
        rest: whether the other settings follow. None means that they follow only if `varying` is empty.
    """
    rest = not varying if rest is None else rest
    first = sorted(_shown(o) for o in _telling(overrides) if _key(o) in varying)
    last = sorted(_shown(o) for o in _telling(overrides) if _key(o) not in varying) if rest else []
    whole = ",".join([*first, *last]) or "default"
    name = in_folder_name(whole)
    if name != whole or len(name) > LONGEST_NAME:
        begin = name
        if len(name) > LONGEST_NAME - 9:
            begin = name[: LONGEST_NAME - 9]
            begin = begin.rpartition(",")[0] or begin  # cut between two settings
        name = f"{begin}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"
    return name


def in_folder_name(text: str) -> str:
    """Returns text as it stands in a folder name: `_` for slashes and other characters, `-` for colons."""
    return re.sub(r"[^\w.=,+-]+", "_", text.replace(":", "-"), flags=re.ASCII)


def further_settings(overrides: Sequence[str]) -> str | None:
    """Returns the overrides, except for the seed and settings with a column in tables; None without any."""
    columns = (*LABELS, "assistant.alpha", "assistant.lam", "objective.order", "seed", "run", LOSSY)
    further = [o.lstrip("+") for o in _telling(overrides) if o.split("=")[0] not in columns]
    said = hide(",".join(sorted(further, key=_key)))
    return (said if len(said) <= LONGEST_SETTINGS else shortened(said, LONGEST_SETTINGS)) or None


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _shown(override: str) -> str:
    """Returns an override as a name shows it, without quotes around its value."""
    key, equals, value = override.lstrip("+~").partition("=")
    quoted = re.fullmatch(r"(['\"])([^'\"]*)\1", value)
    for prefix in _SHORTENED:
        key = key.removeprefix(prefix)
    return key + equals + (quoted.group(2) if quoted else value)


def _telling(overrides: Sequence[str]) -> list[str]:
    """Returns the overrides that say what a run learns, not where it writes or how much memory it uses.

    So a run that ran out of memory can resume with other limits.
    """
    per_micro_batch = "data.mean=micro_batch" in overrides
    telling = []
    for override in overrides:
        *nodes, key = _key(override).split(".")
        idle = LIMITS.get(nodes[-1], ()) if nodes else ()
        counts = (per_micro_batch and key == "micro_batch_size") or _key(override) == LOSSY
        of_hydra = re.match("hydra[./]", _key(override))
        if not of_hydra and (([*nodes, key][0] not in PLACES and key not in idle) or counts):
            telling.append(override)
    return telling


def _begun(output_dir: Path) -> dict[str, set[str]]:
    """Returns the overrides (`_telling`) of the runs that were begun in `output_dir`, by folder name."""
    begun = {}
    for file in sorted(output_dir.glob(f"*/{HYDRA_FOLDER}/overrides.yaml")):
        with contextlib.suppress(OSError):
            begun[file.parents[1].name] = set(_telling(_overrides_in(file, file.stat().st_mtime_ns)))
    return begun


@functools.cache
def _overrides_in(file: Path, mtime_ns: int) -> list[str]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return []
    return [str(override) for override in content] if isinstance(content, list) else []
