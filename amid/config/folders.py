"""The folders that YAML files are read from: those of amid, and the user's own."""

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin

from amid.errors import InputError, choose_one

SEARCH_PATH = "hydra.searchpath"
OWN = "conf"
"""The folder in the working folder whose files are found by themselves."""


def _folder(name: str) -> Path:
    """`conf` or `sweeps`: inside the package where it is installed, beside it in a clone."""
    here = Path(__file__).resolve().parents[1]
    return here / name if (here / name).is_dir() else here.parent / name


CONF = _folder("conf")
SWEEPS = _folder("sweeps")

_given: list[str] = []
"""What this process's command was given besides, as Hydra writes it: `file:///my/conf`, `pkg://my.conf`."""


class OwnFolders(SearchPathPlugin):
    """Has Hydra look for configurations in the user's folders, after those of amid."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Adds them."""
        for entry in (f"file://{CONF}", *_own()):
            search_path.append("amid", entry)


def register_folders() -> None:
    """Makes the folders known to Hydra."""
    Plugins.instance().register(OwnFolders)


def take_folders(arguments: Sequence[str]) -> list[str]:
    """Has the folders of `--config-dir` and `hydra.searchpath=` searched by this process from now on.

    Returns:
        The other arguments, with one `hydra.searchpath=` of all folders where there are any, by which the
        command can be repeated elsewhere.

    Raises:
        InputError: for a folder that does not exist.
    """
    kept: list[str] = []
    given: list[str] = []
    words = iter(arguments)
    for word in words:
        flag, _, value = word.partition("=")
        if flag in ("--config-dir", "-cd"):
            value = value or next(words, "")
            if not value:
                raise InputError(f"{flag} names no folder; write --config-dir FOLDER")
            given.append(_entry(value, flag))
        elif flag.lstrip("+") == SEARCH_PATH:
            given += [_entry(one, SEARCH_PATH) for one in _listed(word)]
        else:
            kept.append(word)
    _given[:] = list(dict.fromkeys(given))
    if not _given:
        return kept
    listed = ",".join(f"'{entry}'" for entry in _given)
    return [*kept, f"{SEARCH_PATH}=[{listed}]"]


def search_also(folder: Path) -> None:
    """Has a folder searched, too, by this process from now on."""
    entry = f"file://{folder.absolute()}"
    if entry not in _given:
        _given.append(entry)


def say_what_is_not_read() -> None:
    """Tells which of the user's files have the names of files of amid, which are read instead."""
    for folder in _local()[1:]:
        of_both = (CONF / file.relative_to(folder) for file in sorted(folder.rglob("*.yaml")))
        hidden = [folder / file.relative_to(CONF) for file in of_both if file.exists()]
        if hidden and folder.resolve() != CONF.resolve():
            names = ", ".join(str(file) for file in hidden)
            print(f"amid: not read: {names}; amid has files of these names: rename them", file=sys.stderr)


def not_text() -> str:
    """Which of the user's YAML files are no text in UTF-8, in words."""
    wrong = []
    for file in (file for folder in _local()[1:] for file in sorted(folder.rglob("*.yaml"))):
        try:
            file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            wrong.append(str(file))
    return ", ".join(wrong) or "a YAML file"


def is_group(name: str) -> bool:
    """Whether there are options of a group of this name."""
    return any((folder / name).is_dir() for folder in _local())


def option_files(group: str) -> list[Path]:
    """The options of a group, or the entry points where it is empty, by their names.

    A file with a name such as `_data.yaml` is no option: options build on it.
    """
    found: dict[str, Path] = {}
    for folder in _local():
        for file in (folder / group).glob("[!_]*.yaml"):
            found.setdefault(file.stem, file)
    return [found[name] for name in sorted(found)]


def option_file(group: str, name: str) -> Path | None:
    """The file of an option; None where there is none."""
    files = (folder / group / f"{name}.yaml" for folder in _local())
    return next((file for file in files if file.is_file()), None)


def built_on(group: str, entry: str) -> tuple[str, str]:
    """The group and the name of the file that an entry of a defaults list names, such as `/_data` or `dolly`.

    Args:
        group: of the file with the list; empty for an entry point.
        entry: an absolute or relative name, and not `_self_`.
    """
    path = PurePosixPath("/", group, entry)
    return str(path.parent).strip("/"), path.name


def group_names() -> list[str]:
    """The groups of options, but Hydra's own."""
    files = {str(file.parent.relative_to(folder)) for folder in _local() for file in folder.rglob("*.yaml")}
    return sorted(name for name in files - {"."} if not name.startswith("hydra"))


def sweep_names() -> list[str]:
    """The sweeps that a name alone finds: those in `sweeps/` of the working folder, and those of amid."""
    return sorted({file.stem for folder in (Path(SWEEPS.name), SWEEPS) for file in folder.glob("*.yaml")})


def sweep_file(name: str) -> Path:
    """The file of a sweep, by its path or its name; one of the user's own goes before one of amid.

    Raises:
        InputError: if there is none, or it has the name of an entry point.
    """
    if "/" in name or name.endswith((".yaml", ".yml")):
        paths = [Path(name), Path(f"{name}.yaml"), Path(SWEEPS.name, name)]
    else:
        paths = [folder / f"{name}.yaml" for folder in (Path(SWEEPS.name), SWEEPS)]
    file = next((path for path in paths if path.is_file()), None)
    if file is None:
        where = f"a file, nor in {SWEEPS.name}/ here or in {SWEEPS}"
        raise InputError(f"sweep {name!r} is not {where}{choose_one(Path(name).stem, sweep_names())}")
    if file.suffix != ".yaml" or (CONF / file.name).exists():
        raise InputError(f"sweep {file} must have another name: NAME.yaml, and none of the files in {CONF}")
    return file


def _own() -> list[str]:
    """The user's folders, as Hydra writes them."""
    here = Path(OWN).absolute()
    own = here.is_dir() and here.resolve() != CONF.resolve()
    return list(dict.fromkeys([*_given, *([f"file://{here}"] if own else [])]))


def _local() -> list[Path]:
    """The folders that are searched, those of amid first."""
    folders = [CONF]
    for entry in _own():
        scheme, _, place = entry.partition("://")
        folder = Path(place) if scheme == "file" else _of_package(place)
        if folder is not None:
            folders.append(folder)
    return folders


def _of_package(name: str) -> Path | None:
    """The folder of a package; None where there is none of this name."""
    try:
        spec = importlib.util.find_spec(name.replace("/", "."))
    except (ImportError, ValueError):
        return None
    return next((Path(place) for place in spec.submodule_search_locations or ()), None) if spec else None


def _entry(value: str, said: str) -> str:
    """A folder as Hydra writes it, with its whole path."""
    scheme, _, place = value.partition("://") if "://" in value else ("file", "", value)
    if scheme == "pkg":
        found = _of_package(place) is not None
    else:
        path = Path(place).expanduser().absolute()
        value, found = f"file://{path}", scheme == "file" and path.is_dir()
    if not found:
        raise InputError(f"{said}: {value} is no folder; give that of your YAML files, such as my/conf")
    return value


def _listed(override: str) -> list[str]:
    """The folders in `hydra.searchpath=[A,B]`.

    Raises:
        InputError: if it is no list of them.
    """
    try:
        value: Any = OverridesParser.create().parse_override(override).value()
    except HydraException:
        value = None
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise InputError(
            f'{override}: write the folders as a list, in quotes: "{SEARCH_PATH}=[file://my/conf]"'
        )
    return value
