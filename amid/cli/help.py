"""What choices and settings mean: comments in `conf/`, and docstrings of what they configure."""

import difflib
import functools
import importlib.util
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import griffe
import yaml
from omegaconf import OmegaConf
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from amid.config.compose import check_overrides
from amid.config.folders import built_on, group_names, option_file, option_files
from amid.errors import InputError, choose_one


@dataclass(frozen=True)
class Option:
    """One choice of a group, an entry point, or what these build on: a YAML file."""

    group: str
    """Empty for an entry point."""
    file: Path

    @property
    def name(self) -> str:
        """As it is chosen."""
        return self.file.stem

    @property
    def text(self) -> str:
        """Of the file."""
        return self.file.read_text(encoding="utf-8").strip()

    @property
    def about(self) -> str:
        """What the file's first comment says."""
        text = ""
        for line in (line.lstrip("# ") for line in self._lines[0] if not line.startswith("# @package")):
            between = ". " if line[:1].isupper() and text[-1:] not in ".,;:" else " "
            text += between + line if text else line
        return text

    @property
    def settings(self) -> str:
        """The file without that comment."""
        return "\n".join(self._lines[1])

    @property
    def _lines(self) -> tuple[list[str], list[str]]:
        """Those of the first comment, and the others."""
        lines = self.text.splitlines()
        n = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
        return lines[:n], lines[n:]

    @property
    def bases(self) -> "list[Option]":
        """The files that it builds on, the nearest one first, each with its own after it."""
        entries = (yaml.safe_load(self.text) or {}).get("defaults", [])
        named = [built_on(self.group, e) for e in entries if isinstance(e, str) and e != "_self_"]
        found = [Option(group, file) for group, name in named if (file := option_file(group, name))]
        return [option for base in found for option in (base, *base.bases)]

    @property
    def targets(self) -> list[str]:
        """Every `_target_`, the outermost first."""
        return list(_targets(yaml.safe_load(self.text)))


@dataclass(frozen=True)
class Argument:
    """Of a class or function."""

    default: str | None
    """As its signature has it; None where it has to be given."""
    meaning: str


@dataclass(frozen=True)
class Target:
    """What a `_target_` is."""

    summary: str
    arguments: Mapping[str, Argument]
    """Those that its docstring explains, in their order."""


def groups() -> list[str]:
    """The groups of options, but Hydra's own."""
    return group_names()


def options(group: str) -> list[Option]:
    """The choices of a group; the entry points where it is empty."""
    return [Option(group, file) for file in option_files(group)]


@functools.cache
def target(path: str) -> Target | None:
    """What a `_target_` of this package, or of a module in the working folder, is, from its source, which is
    not run; None for one of another's."""
    package, _, name = path.partition(".")
    here = Path.cwd()
    own = (here / f"{package}.py").is_file() or (here / package / "__init__.py").is_file()
    if package != "amid" and not own:
        return None
    found: Any = (_package() if package == "amid" else griffe.load(package, search_paths=[str(here)]))[name]
    found = found.final_target if found.is_alias else found
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
        for parameter in found.parameters
        if parameter.name in about
    }
    return Target(sections[0].value.splitlines()[0], arguments)


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
    """What to ask for in place of a name that there is not."""
    names = [*groups(), *(option.name for group in groups() for option in options(group)), *_settings()]
    near = _settings_called(name)[:5] or difflib.get_close_matches(name, names, 1, 0.7)
    return f"; did you mean {' or '.join(near)}?" if near else "; amid train --help lists them"


def _settings() -> list[str]:
    """Of `amid train` as it is."""
    return list(keys_of({key: value for key, value in _composed("").items() if key != "hydra"}))


@functools.cache
def _composed(choice: str) -> dict[str, Any]:
    """The configuration of `amid train`, with a choice if one is named, as it is written."""
    content: Any = OmegaConf.to_container(check_overrides("train", [choice] if choice else []), resolve=False)
    return dict(content)


def _settings_called(name: str) -> list[str]:
    return [key for key in _settings() if key.rpartition(".")[2] == name and key != name]


def keys_of(content: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The names of all settings in nested mappings, in dots."""
    for key, child in content.items():
        yield f"{prefix}{key}"
        if isinstance(child, Mapping):
            yield from keys_of(child, f"{prefix}{key}.")


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
    except InputError:  # a group that only other options choose of, such as sft
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
    """How an option of a group, or an entry point, is chosen on the command line."""
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
    """Where a `_target_` is explained that has no docstring here."""
    package = path.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        return f"no module {package} is installed, or in this folder"
    return f"see the documentation of {package}"


def _config_with(key: str) -> tuple[dict[str, Any], str] | None:
    """A configuration that has a setting, as it is written, and the choice that has it: none for that of
    `amid train` as it is, else another option of its group. None where none has it."""
    group, _, rest = key.partition(".")
    others = [word_of(group, option.name) for option in options(group)] if rest and group in groups() else []
    for choice in ("", *others):
        cfg = _composed(choice)
        if key != "hydra" and not key.startswith("hydra.") and _has(cfg, key):
            return cfg, choice
    return None


def _has(content: Any, key: str) -> bool:
    """Whether nested mappings have a setting."""
    for part in key.split("."):
        if not (isinstance(content, Mapping) and part in content):
            return False
        content = content[part]
    return True


def _comments(key: str) -> dict[str, list[str]]:
    """What the files of `conf/` say in the line of a setting, and what chooses each of them."""
    group, _, name = key.rpartition(".")
    found: dict[str, list[str]] = {}
    for option in options(group) if group in ("", *groups()) else []:
        for text in (option.text, *(base.text for base in option.bases)):
            if comment := re.search(rf"(?m)^{re.escape(name)}:[^#\n]*#\s*(.+)$", text):
                found.setdefault(comment[1], []).append(word_of(group, option.name))
                break  # what a file says goes before what it builds on says
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


@functools.cache
def _package() -> Any:
    return griffe.load("amid", resolve_aliases=True, search_paths=[str(Path(__file__).resolve().parents[2])])


def _text(default: Any) -> str | None:
    if default is None:
        return None
    text = str(default)
    return "null" if text == "None" else text.strip("\"'")
