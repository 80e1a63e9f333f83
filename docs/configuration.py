"""Makes reference/configuration.md of conf/ and of docstrings when the site is built (a hook of mkdocs)."""

import re

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from amid.cli.help import Option, groups, options, target, word_of
from amid.config.folders import CONF

PAGE = "reference/configuration.md"
INTRODUCTION = """\
# Configuration

This page lists every group of settings, its options and their keys. `GROUP=OPTION` chooses an option, and
`GROUP.KEY=VALUE` sets a key: `amid train model=smollm2_pruned divergence=kl assistant.alpha=-1`.

The YAML files below have the default values. `null` means no value, and you must give a value for `???`.
Every key is an argument of the file's `_target_`. On the command line, `amid help WORD` explains a group, an
option or a key.
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the page."""
    files.append(File.generated(config, PAGE, content=page()))
    return files


def page() -> str:
    """The page in Markdown."""
    parts = [INTRODUCTION]
    parts.append("\n## Entry points\n")
    parts += [_option(option, word_of("", option.name)) for option in options("")]
    for group in groups():
        parts.append(f"\n## {group}\n")
        parts += [_option(option, word_of(group, option.name)) for option in options(group)]
        bases = {base.file: base for option in options(group) for base in option.bases if not base.group}
        parts += [_option(base, base.file.name) for base in bases.values()]
        targets = dict.fromkeys(path for of in (*options(group), *bases.values()) for path in of.targets)
        parts += [_arguments(path) for path in targets]
    return "\n".join(parts)


def _option(option: Option, title: str) -> str:
    """Its heading, what its first comment says, and the file."""
    body = "\n".join(f"    {line}" for line in ["```yaml", *option.text.splitlines(), "```"])
    note = f'??? note "{option.file.relative_to(CONF.parent)}"'
    return f"### `{title}`\n\n{_escaped(option.about)}\n\n{note}\n\n{body}\n"


def _arguments(path: str) -> str:
    """A table of the arguments, from docstring and signature; of foreign classes the name alone."""
    known = target(path)
    if known is None:
        return f"See the documentation of `{path.split('.')[0]}` for the arguments of `{path}`.\n"
    rows = [
        f"| `{name}` | {'' if about.default is None else f'`{about.default}`'} | {_cell(about.meaning)} |"
        for name, about in known.arguments.items()
    ]
    head = f"#### `{path}`\n\n{_escaped(known.summary)}\n"
    if not rows:
        return head
    return "\n".join([head, "| Argument | Default | Meaning |", "|---|---|---|", *rows, ""])


def _cell(text: str) -> str:
    return _escaped(text).replace("|", "\\|")


def _escaped(text: str) -> str:
    """Text in which Markdown sees no markup but code in backticks."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(p if p.startswith("`") else re.sub(r"([*_\[\]<])", r"\\\1", p) for p in parts)
