"""Escapes users' text, such as names of runs, sets and settings, for each format of a report."""

import re
from collections.abc import Iterable

from amid.errors import plain

_MARKDOWN = {
    "&": "&amp;",
    "<": "&lt;",
    ">": "&gt;",
    "\\": "&#92;",
    "`": "&#96;",
    "$": "&#36;",
    "|": "&#124;",
    "~": "&#126;",
}
_LEAVES = "\ue000"
"""Stands for the sign around mathematics until the whole text is written; `latex` drops it from the text."""

_MATHEMATICS = {
    "α": r"\alpha",
    "β": r"\beta",
    "λ": r"\lambda",
    "ρ": r"\rho",
    "±": r"\pm",
    "×": r"\times",
    "↑": r"\uparrow",
    "↓": r"\downarrow",
    "−": "-",
    "‖": r"\|",
    "∞": r"\infty",
}
_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "[": "{[}",  # after a line end it would be an argument
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\`{}",
    "–": "--",
    "\n": " ",
    **{character: f"{_LEAVES}{sign}{_LEAVES}" for character, sign in _MATHEMATICS.items()},
}


def markdown(text: object) -> str:
    """Returns text as Markdown that shows each character: no HTML, link, emphasis or extra line."""
    escaped = "".join(_MARKDOWN.get(character, character) for character in _in_a_line(text))
    escaped = re.sub(r"\](?=[(\[:])", "&#93;", escaped)  # else a link or an image
    escaped = re.sub(r"\*(?=[^\s*]|\*+\S)", "&#42;", escaped)  # a sign that can begin an emphasis
    return re.sub(r"(?<![^\W_])_(?=\S)", "&#95;", escaped)  # the same; not within a word


def markdown_line(cells: Iterable[str]) -> str:
    """Returns a line of a Markdown table from cells in Markdown."""
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


def markdown_code(text: object) -> str:
    """Returns text as code in Markdown, or as plain text if it has backticks."""
    line = _in_a_line(text)
    return markdown(line) if "`" in line else f"`{line}`"


def latex(text: object) -> str:
    """Returns plain text in LaTeX; a hyphen before a digit becomes a minus sign."""
    line = _in_a_line(text).replace(_LEAVES, "")
    escaped = "".join(_LATEX.get(character, character) for character in line)
    escaped = escaped.replace(2 * _LEAVES, "").replace(_LEAVES, "$")
    return re.sub(r"(?<![\w.)\]-])-(\d[\d.]*)", r"$-\1$", escaped)


def _in_a_line(text: object) -> str:
    return " ".join(re.split(r"[\n\r\t\x0b\x0c\x85\u2028\u2029]+", plain(str(text))))
