"""Makes reference/configuration.md of conf/ and of docstrings when the site is built (a hook of mkdocs)."""

import importlib
import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import griffe
import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

CONF = Path(__file__).resolve().parents[1] / "conf"
PAGE = "reference/configuration.md"
INTRODUCTION = """\
# Configuration

Made from the YAML files of `conf/` and the docstrings of what they configure. A group is chosen with
`GROUP=OPTION`, a key set with `GROUP.KEY=VALUE`, as in
`amid train model=smollm2_pruned divergence=kl assistant.alpha=-1`. The values in the files are the defaults;
`null` is no value, `???` has to be given. Every key is an argument of the group's `_target_`.
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the page."""
    files.append(File.generated(config, PAGE, content=page()))
    return files


def page() -> str:
    """The page in Markdown."""
    parts = [INTRODUCTION]
    roots = sorted(CONF.glob("*.yaml"))
    parts.append("\n## Entry points\n")
    parts += [_option(file, "amid " + file.stem) for file in roots]
    for group in sorted({file.parent for file in CONF.rglob("*.yaml")} - {CONF}):
        name = str(group.relative_to(CONF))
        if name.startswith("hydra"):
            continue
        parts.append(f"\n## {name}\n")
        files = sorted(group.glob("*.yaml"))
        parts += [_option(file, f"{name}={file.stem}") for file in files]
        targets = dict.fromkeys(
            t for file in files for t in _targets(yaml.safe_load(file.read_text("utf-8")))
        )
        parts += [_arguments(target) for target in targets]
    return "\n".join(parts)


def _option(file: Path, title: str) -> str:
    """Its heading, what its first comment says, and the file."""
    text = file.read_text(encoding="utf-8").strip()
    lines = text.splitlines()
    if lines and lines[0].startswith("# @package"):
        lines = lines[1:]
    n = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    about = " ".join(line.lstrip("# ") for line in lines[:n])
    body = "\n".join(f"    {line}" for line in ["```yaml", *text.splitlines(), "```"])
    return f'### `{title}`\n\n{_escaped(about)}\n\n??? note "{file.relative_to(CONF.parent)}"\n\n{body}\n'


def _targets(node: Any) -> Iterator[str]:
    """Every `_target_`, the outermost first."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield str(node["_target_"])
        for child in node.values():
            yield from _targets(child)
    elif isinstance(node, list):
        for child in node:
            yield from _targets(child)


def _arguments(target: str) -> str:
    """A table of the arguments, from docstring and signature; of foreign classes the name alone."""
    if not target.startswith("amid."):
        return f"The arguments of `{target}` stand in the documentation of `{target.split('.')[0]}`.\n"
    module, _, name = target.rpartition(".")
    thing = getattr(importlib.import_module(module), name)
    docstring = griffe.Docstring(inspect.cleandoc(thing.__doc__ or ""))
    sections = docstring.parse("google", warnings=False)
    about = {
        argument.name: argument.description
        for section in sections
        if section.kind is griffe.DocstringSectionKind.parameters
        for argument in section.value
    }
    rows = [
        f"| `{parameter.name}` | {_default(parameter)} | {_cell(about.get(parameter.name, ''))} |"
        for parameter in inspect.signature(thing).parameters.values()
        if parameter.name in about
    ]
    head = f"#### `{target}`\n\n{_escaped(sections[0].value.splitlines()[0])}\n"
    if not rows:
        return head
    return "\n".join([head, "| argument | default | |", "|---|---|---|", *rows, ""])


def _default(parameter: inspect.Parameter) -> str:
    value = parameter.default
    if value is inspect.Parameter.empty:
        return ""
    return "`null`" if value is None else f"`{value if isinstance(value, str) else repr(value)}`"


def _cell(text: str) -> str:
    return _escaped(" ".join(text.split())).replace("|", "\\|")


def _escaped(text: str) -> str:
    """Text in which Markdown sees no markup but code in backticks."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(p if p.startswith("`") else re.sub(r"([*_\[\]<])", r"\\\1", p) for p in parts)
