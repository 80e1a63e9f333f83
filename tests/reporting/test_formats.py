"""Names that users choose, in each format of a report: shown as they are, never run as markup or code."""

import csv
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from amid.cli.report import run as report
from amid.errors import plain
from amid.reporting import build_table
from amid.reporting.formats import latex, markdown, markdown_code, markdown_line
from amid.results import save
from amid.terminal import console

HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "<!-- all of the rest",
    "[link](javascript:alert(1))",
    "![image](http://x.example/a.png)",
    "[a][b] [c]: http://x.example",
    "**bold** and *slanted*",
    "__init__ _target_=x ._y_",
    "`code` and ``more``",
    "a|b ~~gone~~",
    "R&D &lt; &#60; AT&amp;T",
    "\\*x\\* \\cmd{y}",
    "$x$ costs 5$ $$z$$",
    "one\ntwo\r\n# three",
    "50% #1 {a} ~ ^ \\input{/etc/passwd}",
]
PARSER = MarkdownIt("gfm-like", {"html": True, "linkify": False})


def text_of(html):
    """What a reader sees of it; no tag but those of a paragraph is allowed."""
    inner = html.strip().removeprefix("<p>").removesuffix("</p>")
    assert "<" not in inner, html
    for entity, character in (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&amp;", "&")):
        inner = inner.replace(entity, character)
    return inner


@pytest.mark.parametrize("text", HOSTILE)
def test_markdown_shows_a_text_as_it_is(text):
    line = " ".join(re.split(r"[\n\r]+", text))
    assert text_of(PARSER.render(f"x {markdown(text)} y")) == f"x {line} y"


@given(st.text(st.sampled_from("ab1*_`~<>&[]()!|$\\ #\n-+."), max_size=12))
def test_markdown_shows_any_text_as_it_is(text):
    line = " ".join(re.split("\n+", text))
    shown = text_of(PARSER.render(f"x {markdown(text)} y"))
    assert re.sub(" +", " ", shown) == re.sub(" +", " ", f"x {line} y")


def test_names_that_are_harmless_stay_readable():
    for name in ("αβ(p, r) α=-5", "gpt2_xl_to_gpt2", "text=student seeds=[1,2]", "-3.00 (-4.00 to -2.00)*"):
        assert markdown(name) == name
    assert markdown_line(["a|b", "c"]) == "| a&#124;b | c |"
    assert markdown_code("a=1,b=2") == "`a=1,b=2`"
    assert "<code>" not in PARSER.render(markdown_code("a`<b>`"))


@pytest.mark.parametrize("text", HOSTILE)
def test_latex_has_no_command_of_a_text(text):
    written = latex(text)
    allowed = r"\\(textbackslash|textless|textgreater|textbar|textasciitilde|textasciicircum|[&%$#_{}`])"
    rest = re.sub(allowed + r"(\{\})?", "", written).replace("{[}", "[")
    assert not re.search(r"[\\&%$#_^~{}<>|`\n]", rest), written


def test_mathematics_beside_a_dollar_is_whole():
    assert latex("$αβ") == r"\$$\alpha\beta$"
    assert latex("α=-5") == r"$\alpha$=$-5$"


def test_a_terminal_obeys_no_name(capsys):
    name = "a\x1b[31mred\x07\x9b2J\u202eb"
    assert plain(name) == "a\ufffd[31mred\ufffd\ufffd2J\ufffdb"
    assert plain("a\n\tb") == "a\n\tb"
    console().print(name, markup=False)
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\x9b" not in out


def test_a_report_of_hostile_names(make_run, tmp_path, capsys):
    """All of them as names of models, sets and runs at once."""
    runs = tmp_path / "<b>runs"
    for number, name in enumerate([*HOSTILE, "a\x1b[31mb"]):
        save(make_run(model=name, sets=[HOSTILE[0], "x|y\x1b[2J", "$s$"], optimizer=name), runs / str(number))
    report([str(runs)])
    assert "\x1b" not in capsys.readouterr().out
    folder = runs / "report"
    for name in ("report.md", "table.md"):
        html = PARSER.render((folder / name).read_text(encoding="utf-8"))
        tags = set(re.findall(r"<(/?\w+)", html.replace('<img src="', '<figure src="')))
        assert {tag.strip("/") for tag in tags} <= {
            *("h1", "h2", "p", "table", "thead", "tbody", "tr", "th", "td", "strong", "em", "code", "figure"),
            *("ul", "li"),
        }
        assert "\x1b" not in html
        (heads, *rows) = re.findall(r"<tr>(.*?)</tr>", html.split("</table>")[0], flags=re.S)
        assert {row.count("<td") for row in rows} == {heads.count("<th")}
    assert "&lt;img src=x" in (folder / "report.md").read_text(encoding="utf-8")
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "<img src=x" not in page
    assert "<b>runs" not in page
    with (folder / "table.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert {line["model"] for line in lines} >= {*HOSTILE}
    assert "\\input{" not in (folder / "table.tex").read_text(encoding="utf-8")
    assert build_table([make_run(model=HOSTILE[0])]).caption
