"""The folders from which YAML files are read: amid's own folders and the user's folders."""

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from amid.errors import InputError, choose_one

SEARCH_PATH = "hydra.searchpath"
OWN = "conf"
"""The folder in the working folder that amid always searches."""


def _folder(name: str) -> Path:
    """Returns the folder `conf` or `sweeps`: inside an installed package, beside the package in a clone."""
    here = Path(__file__).resolve().parents[1]
    return here / name if (here / name).is_dir() else here.parent / name


CONF = _folder("conf")
SWEEPS = _folder("sweeps")

_given: list[str] = []
"""Further folders from the command line, as Hydra writes them: `file:///my/conf`, `pkg://my.conf`."""


def folders_to_search() -> list[str]:
    """Returns amid's folder of configurations and the user's folders, as Hydra writes them."""
    return [f"file://{CONF}", *_own()]


def take_folders(arguments: Sequence[str]) -> list[str]:
    """Makes this process search the folders of `--config-dir` and `hydra.searchpath=` from now on.

    Returns:
        The other arguments. If there are folders, one `hydra.searchpath=` with all of them is added, so that
        the command can be repeated elsewhere.

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
    from hydra.core.override_parser.types import Quote, QuotedString  # slow to import

    listed = ",".join(QuotedString(entry, Quote.single).with_quotes() for entry in _given)
    return [*kept, f"{SEARCH_PATH}=[{listed}]"]


def search_also(folder: Path) -> None:
    """Makes this process also search a folder from now on."""
    entry = f"file://{folder.absolute()}"
    if entry not in _given:
        _given.append(entry)


def say_what_is_not_read() -> None:
    """Prints which of the user's files are ignored because a file of amid has the same name."""
    for folder in _local()[1:]:
        of_both = (CONF / file.relative_to(folder) for file in sorted(folder.rglob("*.yaml")))
        hidden = [folder / file.relative_to(CONF) for file in of_both if file.exists()]
        if hidden and folder.resolve() != CONF.resolve():
            names = ", ".join(str(file) for file in hidden)
            print(f"amid: not read: {names}; amid has files of these names: rename them", file=sys.stderr)


def not_text() -> str:
    """Returns in words which of the user's YAML files are not UTF-8 text."""
    wrong = []
    for file in (file for folder in _local()[1:] for file in sorted(folder.rglob("*.yaml"))):
        try:
            file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            wrong.append(str(file))
    return ", ".join(wrong) or "a YAML file"


def is_group(name: str) -> bool:
    """Returns whether there is a group of this name with options."""
    return any((folder / name).is_dir() for folder in _local())


def option_files(group: str) -> list[Path]:
    """Returns the files of a group's options, or for an empty `group` of the entry points, by name.

    A file with a name such as `_data.yaml` is no option; options build on it.
    """
    found: dict[str, Path] = {}
    for folder in _local():
        for file in (folder / group).glob("[!_]*.yaml"):
            found.setdefault(file.stem, file)
    return [found[name] for name in sorted(found)]


def option_file(group: str, name: str) -> Path | None:
    """Returns the file of an option; None if there is no such option."""
    files = (folder / group / f"{name}.yaml" for folder in _local())
    return next((file for file in files if file.is_file()), None)


def built_on(group: str, entry: str) -> tuple[str, str]:
    """Returns the group and the name of the file that an entry of a defaults list names.

    Args:
        group: the group of the file with the defaults list; empty for an entry point.
        entry: an absolute or relative name, such as `/_data` or `dolly`, and not `_self_`.
    """
    path = PurePosixPath("/", group, entry)
    return str(path.parent).strip("/"), path.name


def group_names() -> list[str]:
    """Returns the groups of options, without Hydra's own groups."""
    files = {str(file.parent.relative_to(folder)) for folder in _local() for file in folder.rglob("*.yaml")}
    return sorted(name for name in files - {"."} if not name.startswith("hydra"))


def sweep_names() -> list[str]:
    """Returns the sweeps that a name finds: sweeps in the working folder's `sweeps/`, and amid's sweeps."""
    return sorted({file.stem for folder in (Path(SWEEPS.name), SWEEPS) for file in folder.glob("*.yaml")})


def sweep_file(name: str) -> Path:
    """Returns the file of a sweep, by its path or its name; a file of the user goes before a file of amid.

    Raises:
        InputError: if there is no such file, or it has the name of an entry point.
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
    """Returns the user's folders, as Hydra writes them."""
    here = Path(OWN).absolute()
    own = here.is_dir() and here.resolve() != CONF.resolve()
    return list(dict.fromkeys([*_given, *([f"file://{here}"] if own else [])]))


def _local() -> list[Path]:
    """Returns the folders on disk that are searched, amid's own folder first."""
    folders = [CONF]
    for entry in _own():
        scheme, _, place = entry.partition("://")
        folder = Path(place) if scheme == "file" else _of_package(place)
        if folder is not None:
            folders.append(folder)
    return folders


def _of_package(name: str) -> Path | None:
    """Returns the folder of a package; None if there is no package of this name."""
    try:
        spec = importlib.util.find_spec(name.replace("/", "."))
    except (ImportError, ValueError):
        return None
    return next((Path(place) for place in spec.submodule_search_locations or ()), None) if spec else None


def _entry(value: str, said: str) -> str:
    """Returns a folder as Hydra writes it, with its absolute path."""
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
    """Returns the folders in `hydra.searchpath=[A,B]`.

    Raises:
        InputError: if the value is no list of folders.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser  # slow to import
    from hydra.errors import HydraException

    try:
        value: Any = OverridesParser.create().parse_override(override).value()
    except HydraException:
        value = None
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise InputError(
            f'{override}: write the folders as a list, in quotes: "{SEARCH_PATH}=[file://my/conf]"'
        )
    return value
