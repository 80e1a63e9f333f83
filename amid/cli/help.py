"""Explains choices and settings, from comments in `conf/` and docstrings of the code they configure."""

import difflib
import functools
import importlib.util
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import griffe
import yaml
from hydra import initialize_config_dir
from omegaconf import OmegaConf
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from amid.config.compose import composed, register_resolvers
from amid.config.folders import CONF, built_on, option_file, option_files
from amid.config.folders import group_names as groups
from amid.errors import InputError, choose_one


@dataclass(frozen=True)
class Option:
    """A YAML file: one choice of a group, an entry point, or a file that these build on."""

    group: str
    """The group of the file; empty for an entry point."""
    file: Path

    @property
    def name(self) -> str:
        """The name by which the user chooses the file."""
        return self.file.stem

    @property
    def text(self) -> str:
        """The text of the file."""
        return self.file.read_text(encoding="utf-8").strip()

    @property
    def about(self) -> str:
        """The text of the file's first comment."""
        text = ""
        for line in (line.lstrip("# ") for line in self._lines[0] if not line.startswith("# @package")):
            between = ". " if line[:1].isupper() and text[-1:] not in ".,;:" else " "
            text += between + line if text else line
        return text

    @property
    def settings(self) -> str:
        """The text of the file without its first comment."""
        return "\n".join(self._lines[1])

    @property
    def _lines(self) -> tuple[list[str], list[str]]:
        """Returns the lines of the first comment, and the other lines."""
        lines = self.text.splitlines()
        n = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
        return lines[:n], lines[n:]

    @property
    def bases(self) -> "list[Option]":
        """The files that this file builds on, nearest first; each file is followed by its own bases."""
        entries = (yaml.safe_load(self.text) or {}).get("defaults", [])
        named = [built_on(self.group, e) for e in entries if isinstance(e, str) and e != "_self_"]
        found = [Option(group, file) for group, name in named if (file := option_file(group, name))]
        return [option for base in found for option in (base, *base.bases)]

    @property
    def targets(self) -> list[str]:
        """Every `_target_` in the file, the outermost first."""
        return list(_targets(yaml.safe_load(self.text)))


@dataclass(frozen=True)
class Argument:
    """An argument of a class or function."""

    default: str | None
    """The default in the signature; None for a required argument."""
    meaning: str


@dataclass(frozen=True)
class Target:
    """The explanation of the class or function that a `_target_` names."""

    summary: str
    arguments: Mapping[str, Argument]
    """The arguments that its docstring explains, in the order of the signature."""


def options(group: str) -> list[Option]:
    """Returns the choices of a group; for an empty `group`, the entry points."""
    return [Option(group, file) for file in option_files(group)]


@functools.cache
def target(path: str) -> Target | None:
    """Explains a `_target_` of amid or of a module in the working folder; None for any other `_target_`.

    It reads the source and does not run it.
    """
    package, _, name = path.partition(".")
    here = Path.cwd()
    own = (here / f"{package}.py").is_file() or (here / package / "__init__.py").is_file()
    if package != "amid" and not own:
        return None
    try:
        found = _of_amid(name) if package == "amid" else _own(package, here)[name]
        found = found.final_target if found.is_alias else found
    except griffe.AliasResolutionError:  # of a name from a module of others
        return None
    except (KeyError, griffe.LoadingError) as error:
        reason = "there is no such name" if isinstance(error, KeyError) else str(error)
        raise InputError(f"_target_={path} cannot be read ({reason}); write it as MODULE.NAME") from error
    if found.docstring is None:
        return None
    sections = griffe.Docstring(found.docstring.value).parse("google", warnings=False)
    about = {
        argument.name: " ".join(argument.description.split())
        for section in sections
        if section.kind is griffe.DocstringSectionKind.parameters
        for argument in section.value
    }
    arguments = {
        parameter.name: Argument(_text(parameter.default), about[parameter.name])
        for parameter in _parameters(found)
        if parameter.name in about
    }
    text = next((str(s.value) for s in sections if s.kind is griffe.DocstringSectionKind.text), "")
    return Target(text.partition("\n")[0], arguments)


def explain(word: str, console: Console | None = None) -> None:
    """Prints what a group, an option (GROUP=OPTION, or OPTION alone) or a setting of `amid train` is.

    Raises:
        InputError: if there is none of that name.
    """
    console = console or Console(highlight=False)
    name, _, value = word.lstrip("+").partition("=")
    called = [(group, option.name) for group in groups() for option in options(group) if option.name == name]
    if name in groups():
        _explain_options(console, name, value)
    elif re.fullmatch(r"\w+(\.\w+)*", name) and (found := _config_with(name)):
        _explain_setting(console, name, *found)
    elif called:
        for key in _settings_called(name):
            explain(key, console)
        for group, option in called:
            _explain_options(console, group, option)
    elif len(same := _settings_called(name)) == 1:
        explain(same[0], console)
    else:
        raise InputError(f"{word!r} is no group, option or setting{_remedy(name)}")


def _remedy(name: str) -> str:
    """Returns the name to ask for in place of an unknown name."""
    names = [
        *groups(),
        *(option.name for group in groups() for option in options(group)),
        *_settings(),
    ]
    near = _settings_called(name)[:5] or difflib.get_close_matches(name, names, 1, 0.7)
    return f"; did you mean {' or '.join(near)}?" if near else "; amid train --help lists them"


def _settings() -> list[str]:
    """Returns the names of all settings of `amid train` with its default choices."""
    from amid.settings.words import keys_of  # imports pydantic's models of all settings

    return list(keys_of({key: value for key, value in _composed("").items() if key != "hydra"}))


@functools.cache
def _composed(choice: str) -> dict[str, Any]:
    """Returns the unresolved configuration of `amid train`, with `choice` if it is not empty."""
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = composed("train", [choice] if choice else [])
    content: Any = OmegaConf.to_container(cfg, resolve=False)
    return dict(content)


def _settings_called(name: str) -> list[str]:
    return [key for key in _settings() if key.rpartition(".")[2] == name and key != name]


def _explain_options(console: Console, group: str, name: str) -> None:
    found = options(group)
    chosen = [option for option in found if not name or option.name == name]
    if not chosen:
        names = [option.name for option in found]
        raise InputError(f"{word_of(group, name)} is no option of {group!r}{choose_one(name, names)}")
    for option in chosen:
        _say(console, word_of(group, option.name), option.about)
    if not name:
        return
    (option,) = chosen
    _say(console, "", option.settings)
    for base in option.bases:
        _say(console, f"  {base.name}, which it builds on", base.settings)
    try:
        content: Any = _composed(word_of(group, name))
    except InputError:  # only other options choose an option of this group, such as sft
        content = {}
    for part in group.split("/"):
        content = content.get(part) or {}
    for path in dict.fromkeys([*option.targets, *_targets(content)]):
        known = target(path)
        if known is None:
            _say(console, path, _elsewhere(path))
            continue
        _say(console, path, known.summary)
        for argument, about in known.arguments.items():
            _say(console, f"  {argument}", about.meaning)


def word_of(group: str, option: str) -> str:
    """Returns how the command line chooses an option of a group, or an entry point."""
    return f"{group}={option}" if group else f"amid {option}"


def _explain_setting(console: Console, key: str, cfg: Mapping[str, Any], choice: str) -> None:
    parts = key.split(".")
    nodes: list[Any] = [cfg]
    for part in parts:
        nodes.append(nodes[-1][part])
    written = yaml.safe_dump(nodes[-1], allow_unicode=True, sort_keys=False).removesuffix("...\n").rstrip()
    of = choice and f"   (with {choice})"
    text = f"{key}: {written}{of}" if "\n" not in written else f"{key}:{of}\n{written}"
    console.print(text, markup=False)
    for n in range(len(parts) - 1, 0, -1):
        path = nodes[n].get("_target_")
        if path is None:
            continue
        known = target(path)
        if known is None:
            _say(console, "", f"{parts[n]} of {path}: {_elsewhere(path)}")
        elif parts[n] in known.arguments:
            _say(console, "", known.arguments[parts[n]].meaning)
            _say(console, "", f"({parts[n]} of {path})")
        break
    for comment, where in _comments(key).items():
        _say(console, "", f"{', '.join(where)}: {comment}")


def _elsewhere(path: str) -> str:
    """Returns where to read about a `_target_` without a docstring here."""
    package = path.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        return f"no module {package} is installed, or in this folder"
    return f"see the documentation of {package}"


def _config_with(key: str) -> tuple[dict[str, Any], str] | None:
    """Returns an unresolved configuration that has a setting, and the choice that adds the setting.

    The choice is empty if `amid train` has the setting with its default choices; else it is another option of
    the setting's group. None if no configuration has the setting.
    """
    group, _, rest = key.partition(".")
    others = [word_of(group, option.name) for option in options(group)] if rest and group in groups() else []
    for choice in ("", *others):
        cfg = _composed(choice)
        if key != "hydra" and not key.startswith("hydra.") and _has(cfg, key):
            return cfg, choice
    return None


def _has(content: Any, key: str) -> bool:
    """Returns whether nested mappings have a setting."""
    for part in key.split("."):
        if not (isinstance(content, Mapping) and part in content):
            return False
        content = content[part]
    return True


def _comments(key: str) -> dict[str, list[str]]:
    """Returns the comments on a setting's line in `conf/`, each with the choices that have the comment."""
    group, _, name = key.rpartition(".")
    found: dict[str, list[str]] = {}
    for option in options(group) if group in ("", *groups()) else []:
        for text in (option.text, *(base.text for base in option.bases)):
            if comment := re.search(rf"(?m)^{re.escape(name)}:[^#\n]*#\s*(.+)$", text):
                found.setdefault(comment[1], []).append(word_of(group, option.name))
                break  # the comment of a file goes before the comments of the files that it builds on
    return found


def _say(console: Console, head: str, text: str) -> None:
    if head:
        console.print(head, markup=False)
    console.print(Padding(Text(text), (0, 0, 0, 4 + 2 * head.startswith(" "))))


def _targets(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield str(node["_target_"])
        for child in node.values():
            yield from _targets(child)
    elif isinstance(node, list):
        for child in node:
            yield from _targets(child)


def _of_amid(path: str) -> Any:
    """Returns an object of amid by its path within `amid`; reads its part of the package alone."""
    part, _, name = path.partition(".")
    found = _part(part)[name]
    return _of_amid(found.target_path.removeprefix("amid.")) if found.is_alias else found


@functools.cache
def _own(package: str, folder: Path) -> Any:
    """Returns a module or package of the user in a folder."""
    logging.getLogger("griffe").setLevel(logging.CRITICAL)  # it also logs the error that it raises
    return griffe.load(package, search_paths=[str(folder)])


def _parameters(found: Any) -> list[Any]:
    """Returns the parameters of a function or class; of a dataclass also the fields that it inherits."""
    inherits = found.is_class and "dataclass" in found.labels
    bases = [base.canonical_path for base in found.bases] if inherits else []
    own = [base.removeprefix("amid.") for base in bases if base.startswith("amid.")]
    return [*(parameter for base in own for parameter in _parameters(_of_amid(base))), *found.parameters]


@functools.cache
def _part(name: str) -> Any:
    return griffe.load(name, search_paths=[str(Path(__file__).resolve().parents[1])])


def _text(default: Any) -> str | None:
    if default is None:
        return None
    text = str(default)
    return "null" if text == "None" else text.strip("\"'")
