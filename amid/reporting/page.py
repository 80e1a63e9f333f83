"""The report of an experiment: a page with its table, its figures and its runs."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from amid.errors import InputError
from amid.monitor import without_result
from amid.reporting.claims import NOTE, claims
from amid.reporting.figures import Figure, draw_figures
from amid.reporting.formats import markdown, markdown_code, markdown_line
from amid.reporting.interactive import PageTooLarge, interactive_page
from amid.reporting.published import against_published, beside_published, other_pairs
from amid.reporting.sections import Section, cost, on_validation, pivots
from amid.reporting.significance import against_the_best, not_read
from amid.reporting.table import Table, build_table
from amid.results import RESULT_FILE, RunResult, check_curves, files_below, load_folders

REPORT = "report"
PAGE = "report.html"


@dataclass(frozen=True)
class Report:
    """A report that was written, and what it says."""

    file: Path
    """report.md."""
    page: Path | None
    """report.html, the same as one interactive page; None where it is left out."""
    why_no_page: str | None
    """Why it is left out: it is too large."""
    table: Table
    sections: Sequence[Section]
    claims: Sequence[str]
    """`claims_in_words`."""


def write_report(directory: str | Path) -> Report:
    """Writes `directory`/report/ from every finished run below `directory`.

    report.html (all of it as one interactive page), report.md (tables, the paper's claims, figures, runs),
    table.md, table.csv, table.tex, and for each figure a PNG and a PDF file.
    All is made in a hidden folder first, so that a report that fails leaves the last one as it was. Where the
    page would be too large, it alone is left out, and the last one is removed, as figures are that are no
    longer drawn.

    Raises:
        InputError: if there is no finished run, or the record of one is damaged.
    """
    directory = Path(directory)
    records = load_folders(directory)
    if not records and (unscored := files_below(directory, RESULT_FILE)):
        raise InputError(
            f"{unscored[0].parent} is finished and has no scores, as its data have no test set; "
            f"amid evaluate run={unscored[0].parent} +data.test.NAME=FILE scores its student"
        )
    if not records:
        begun = "; ".join(_begun(directory))
        raise InputError(
            f"{directory} has no {RESULT_FILE} in it or below, so there is no finished run to report"
            f"{f' ({begun})' if begun else ''}; make some: amid sweep alpha"
        )
    for folder, result in records.items():
        check_curves(folder, result)
    table = build_table(list(records.values()))
    name = directory.resolve().name
    report = directory / REPORT
    if report.is_symlink() or (report.exists() and not report.is_dir()):
        raise InputError(f"{report} is no folder of its own, so no report is written there; delete it")
    with tempfile.TemporaryDirectory(prefix=".report-", dir=directory) as temporary:
        made = Path(temporary)
        figures = draw_figures(table, records, made)
        (made / "table.md").write_text(
            f"{table.to_markdown()}\n{markdown(table.caption)}\n", encoding="utf-8"
        )
        (made / "table.csv").write_text(table.to_csv(), encoding="utf-8")
        (made / "table.tex").write_text(table.to_latex(), encoding="utf-8")
        further, found = sections(directory, table, records), claims_in_words(table)
        text = _page(directory, table, further, found, figures, records)
        why_no_page = None
        try:
            page = interactive_page(name, table, further, records, without_result(directory))
            (made / PAGE).write_text(page, encoding="utf-8")
        except PageTooLarge as error:
            why_no_page = str(error)
            text += f"\n{PAGE} is left out: {why_no_page}.\n"
        (made / "report.md").write_text(text, encoding="utf-8")
        report.mkdir(exist_ok=True)
        for stale in [*report.glob("*.png"), *report.glob("*.pdf"), *report.glob(PAGE)]:
            stale.unlink()
        for file in sorted(made.iterdir(), key=lambda file: file.suffix == ".md"):
            os.replace(file, report / file.name)
    written = None if why_no_page else report / PAGE
    return Report(report / "report.md", written, why_no_page, table, further, found)


def sections(directory: Path, table: Table, records: Mapping[Path, RunResult]) -> list[Section]:
    """The runs below `directory` that are not in `table`, and the further tables that its rows allow.

    Args:
        directory: of the report.
        table: of the runs that have a result.
        records: these runs by their folders.

    Raises:
        InputError: naming a file of a run that cannot be read.
    """
    further = (
        on_validation(table),
        against_the_best(table, records),
        cost(table, records),
        against_published(table),
        beside_published(table),
    )
    unread = filter(None, [not_read(table, records)])
    return [*_without_result(directory), *unread, *pivots(table), *filter(None, further)]


def _without_result(directory: Path) -> list[Section]:
    note = (
        "They are in no table. The command that began a run, given again, goes on with it; where it is not "
        "wanted, delete its folder."
    )
    lines = [[line] for line in _begun(directory)]
    return [Section("Runs without a result", ["Run"], lines, note)] if lines else []


def _begun(directory: Path) -> list[str]:
    """In a line each the runs below `directory` without a result: their state, and why."""
    found = without_result(directory).items()
    return [
        f"{folder.relative_to(directory)}: {', '.join(filter(None, (run.state, run.note)))}"
        for folder, run in found
    ]


def claims_in_words(table: Table) -> list[str]:
    """A line for each of the paper's claims that `table` bears on, and one on what they rest on."""
    found = [str(claim) for claim in claims(table)]
    return [*found, " ".join(filter(None, (NOTE, other_pairs(table))))] if found else []


def _page(
    directory: Path,
    table: Table,
    further: Sequence[Section],
    found: Sequence[str],
    figures: Sequence[Figure],
    records: Mapping[Path, RunResult],
) -> str:
    name, caption = markdown(directory.resolve().name), markdown(table.caption)
    parts = [f"# {name}", "## Scores", table.to_markdown().rstrip(), caption]
    parts += [section.to_markdown() for section in further]
    if found:
        found = [markdown(line) for line in found]
        parts += ["## What the paper claims", "\n".join(f"- {line}" for line in found[:-1]), found[-1]]
    if figures:
        parts.append("## Figures")
        captions = [markdown(figure.caption) for figure in figures]
        parts += [
            f"![{caption}]({figure.file})\n\n{caption}"
            for caption, figure in zip(captions, figures, strict=True)
        ]
    runs = [(table.name(row), run) for row in table.rows for run in row.runs]
    lines = [
        markdown_line(["Run", "Setting", "Seed", "Configuration", "Time"]),
        "| --- | --- | ---: | --- | ---: |",
    ]
    lines += [
        markdown_line(
            [
                markdown(run.name),
                markdown(setting),
                str(run.seed),
                markdown_code(run.config_hash),
                _duration(sum(run.timings.values())),
            ]
        )
        for setting, run in runs
    ]
    parts += ["## Runs", "\n".join(lines)]
    if table.repeats:
        folders = {id(run): folder.relative_to(directory) for folder, run in records.items()}
        left_out = [
            f"- {markdown_code(folders[id(repeat.run)])}, a repeat of "
            f"{markdown_code(folders[id(repeat.counted)])}"
            + (", with other scores" if repeat.differs else "")
            for repeat in table.repeats
        ]
        parts.append("\n".join(["Left out:\n", *left_out]))
    if table.versions:
        versions = ", ".join(f"{name} {' and '.join(of)}" for name, of in table.versions.items())
        parts.append(markdown(f"Versions: {versions}."))
    return "\n\n".join(parts) + "\n"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
