"""A finished run as its model card and its upload read it."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amid.config.data_files import HUB, HUB_PREFIX, path_and_rows, place_of
from amid.config.identity import leaves
from amid.config.run_names import in_folder_name
from amid.config.run_settings import REMEDY, Settings, read_config
from amid.config.secrets import hide
from amid.errors import InputError
from amid.results import BEST, RESULT_FILE, RunResult, files_below, load
from amid.tracking.command_records import overrides_of_run
from amid.tracking.status import STATUS_FILE

MOST_NAMED = 5
"""At most this many runs of a folder are named."""

_HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:@(.+))?")

_PLACES = ("output_dir", "prepared_dir", "hub", "data.cache_dir", "teacher.cache_dir", "logger", "hydra")
"""Settings that say where a run reads and writes, and not what it computes."""


@dataclass(frozen=True)
class FinishedRun:
    """A finished run with a student.

    Args:
        directory: its folder.
        result: its record.
        settings: its settings, with the models that were prepared for it.
        models: its teacher and student as the user named them.
        local: the data files and models that were paths of this machine.
    """

    directory: Path
    result: RunResult
    settings: Settings
    models: Settings
    local: frozenset[str]

    @classmethod
    def read(cls, directory: Path) -> "FinishedRun":
        """Reads a run.

        Raises:
            InputError: for no run, several runs, a run that is not finished, or one without a student.
        """
        if not (directory / RESULT_FILE).exists():
            raise InputError(_why_no_result(directory))
        result = load(directory)
        if result.diverged_step is not None:
            raise InputError(
                f"{directory} diverged at step {result.diverged_step}: it has no student to publish; give "
                "another run"
            )
        if not (directory / BEST).is_dir():
            raise InputError(
                f"{directory} has no student in {BEST}; give a training run that has, such as the one that "
                "an evaluation scored"
            )
        stored = read_config(directory)
        if stored is None:
            raise InputError(f"{directory} has no config.yaml, which says how it was trained; {REMEDY}")
        models = stored.config.get("model") if stored.hashed is None else stored.hashed.model
        local = [] if stored.hashed is None else stored.hashed.contents
        named = models if isinstance(models, dict) else {}
        return cls(directory, result, stored.config, named, frozenset(local))

    def model(self, role: str) -> Mapping[str, Any]:
        """The settings of the teacher or student as the user named it; empty if there is none."""
        found = self.models.get(role)
        return found if isinstance(found, dict) else {}

    def hub_id(self, role: str) -> str | None:
        """The hub's `OWNER/NAME` of the teacher or student; None for random weights or a local model."""
        path = self.model(role).get("path")
        found = _HUB_ID.fullmatch(path) if isinstance(path, str) else None
        return None if found is None or self._is_local(str(path)) else found[1]

    def sources(self, *names: str) -> Iterator[Any]:
        """The data sources in these settings of the data: train, valid, plain_text or test."""
        data = self.settings.get("data")
        for name in names:
            node = data.get(name) if isinstance(data, dict) else None
            yield from node.values() if name == "test" and isinstance(node, dict) else [node]

    def datasets_of(self, source: Any) -> list[str]:
        """The hub's `OWNER/NAME` of the data sets that a source is of; empty for data of other places."""
        if isinstance(source, Mapping):
            target = str(source.get("_target_"))
            return ["Helsinki-NLP/opus-100"] if target == "amid.data.opus100.corpus" else []
        if isinstance(source, Sequence) and not isinstance(source, str):
            return list(dict.fromkeys(name for part in source for name in self.datasets_of(part)))
        if not isinstance(source, str):
            return []
        path = path_and_rows(source)[0]
        copies = f"{str(self.settings.get('hub', HUB)).rstrip('/')}/"
        if copies != HUB_PREFIX and path.startswith(copies):
            return ["/".join(path.removeprefix(copies).split("/")[:2])]
        if self._is_local(path):
            return []
        repository = place_of(source).repository
        return [] if repository is None else [repository]

    @property
    def command(self) -> str | None:
        """The command that trains the run again, without places and paths of this machine; None if it was not
        recorded."""
        words = overrides_of_run(self.directory)
        if words is None:
            return None
        from amid.console import as_typed

        kept = [word for word in words if not re.match(rf"[+~]*({'|'.join(_PLACES)})[=./@]", word)]
        return hide(" ".join(as_typed(["train", *map(self.without_paths, kept)]).split("\n")))

    def without_paths(self, text: str) -> str:
        """Returns text in which the last part stands for each path of this machine and of the run's name."""
        places = {str(self.directory.resolve()), str(Path.cwd()), str(Path.home()), *self.local}
        places |= {path_and_rows(value)[0] for value in _texts(self.settings) if _is_absolute(value)}
        longest_first = sorted(filter(_leads_elsewhere, places), key=len, reverse=True)
        for place in longest_first:
            text = text.replace(place, Path(place).name)
        text = text.replace(self.directory.name, _name_without(longest_first, self.directory.name))
        return _ABSOLUTE.sub(lambda found: Path(found[0]).name, text)

    def _is_local(self, path: str) -> bool:
        return path in self.local or _is_absolute(path) or Path(path).exists()


_ABSOLUTE = re.compile(r"(?<![\w:/.~-])(?:~|\.\.)?/[\w.@+-]+(?:/[\w.@+-]+)+")
"""A path from the root, the home folder or the folder above, of at least two parts."""


def _is_absolute(text: str) -> bool:
    return text.startswith(("/", "~", "../"))


def _leads_elsewhere(place: str) -> bool:
    """Whether a path has several parts, so that its last one is shorter."""
    return len(Path(place).parts) > 1 and Path(place).name != place


def _name_without(places: Sequence[str], name: str) -> str:
    """Returns a run's name in which the last part stands for each place; a long name may cut the last one."""
    for place in places:
        whole, last = in_folder_name(place), in_folder_name(Path(place).name)
        name = name.replace(whole, last)
        begin, equals, rest = name.rpartition("=")
        cut, dash, hashed = rest.rpartition("-")
        if cut.strip("_") and whole.startswith(cut):
            name = f"{begin}{equals}{last}{dash}{hashed}"
    return name


def _texts(settings: Settings) -> Iterator[str]:
    for _, value in leaves(settings):
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, str):
                yield one


def _why_no_result(directory: Path) -> str:
    """Returns the message about a folder that is no finished run."""
    if not directory.is_dir():
        return f"{directory} is no folder; give the folder of a finished run, such as outputs/train/default"
    if (directory / STATUS_FILE).exists() or (directory / "config.yaml").exists():
        return (
            f"{directory} is not finished; run its command again until it is (amid status "
            f"{os.path.relpath(directory.parent)})"
        )
    runs = [str(file.parent) for file in files_below(directory, RESULT_FILE)]
    if runs:
        more = f" and {len(runs) - MOST_NAMED} more" * (len(runs) > MOST_NAMED)
        number = f"{len(runs)} run{'s' * (len(runs) > 1)}"
        return f"{directory} holds {number}; give one: {', '.join(runs[:MOST_NAMED])}{more}"
    return f"{directory} holds no run; give the folder of a finished run, such as outputs/train/default"
