"""The report of an experiment: a page with its table, its figures and its runs."""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from amid.errors import InputError
from amid.reporting.archives import write_archive
from amid.reporting.claims import claims, evidence
from amid.reporting.figures import Figure, draw_figures
from amid.reporting.formats import markdown, markdown_code, markdown_line
from amid.reporting.front_sections import at_equal_diversity
from amid.reporting.fronts import Fronts, at_diversity, fronts_of
from amid.reporting.interactive import PageTooLarge, interactive_page
from amid.reporting.published import against_published, beside_published, other_pairs
from amid.reporting.runs import Runs, line, read_runs
from amid.reporting.sections import Section, cost, on_validation, passes, pivots
from amid.reporting.significance import against_the_best, not_read
from amid.reporting.table import Table, build_table

REPORT = "report"
PAGE = "report.html"


@dataclass(frozen=True)
class Report:
    """A written report, and its content."""

    file: Path
    """report.md."""
    page: Path | None
    """report.html, the report as one interactive page; None if it is left out."""
    why_no_page: str | None
    """The reason why the page is left out: it is too large."""
    table: Table
    sections: Sequence[Section]
    claims: Sequence[str]
    """`claims_in_words`."""


def write_report(
    *places: str | Path, into: str | Path | None = None, archive: str | Path | None = None
) -> Report:
    """Writes a folder report/ from every finished run in `places`: below its folders and in its zip files.

    report/ holds report.html (the whole report as one interactive page), report.md (tables, the paper's
    claims, figures, runs), table.md, table.csv, table.tex, and for each figure a PNG and a PDF file.
    It is first made in a hidden folder, so a failure leaves the earlier report as it was. A page that would
    be too large is left out. The earlier page is then removed, like figures that are no longer drawn.

    Args:
        places: one or more folders and zip files; `read_archive` reads the zip files.
        into: the folder that gets report/; by default the only place, or for a zip file a folder of its name.
        archive: a zip file to write the records of all these runs to.

    Raises:
        InputError: if there is no finished run, the record of a run is damaged, or `into` is missing.
    """
    given = [Path(place) for place in places]
    report = _home(given, into) / REPORT
    if report.is_symlink() or (report.exists() and not report.is_dir()):
        raise InputError(f"{report} is no folder of its own, so no report is written there; delete it")
    with read_runs(given) as runs:
        if archive is not None:
            write_archive(Path(archive), {runs.names[folder]: folder for folder in runs.records})
        return _write(runs, report)


def _home(places: Sequence[Path], into: str | Path | None) -> Path:
    """Returns the folder that gets report/."""
    if into is not None:
        return Path(into)
    if len(places) != 1:
        raise InputError(f"a report of {len(places)} places goes to a folder that you choose: --into FOLDER")
    return places[0].with_suffix("") if places[0].is_file() else places[0]


def _write(runs: Runs, report: Path) -> Report:
    table = build_table(list(runs.records.values()))
    fronts = fronts_of(table, runs.records)
    table = replace(table, at_diversity=at_diversity(table, fronts))
    try:
        report.parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(prefix=".report-", dir=report.parent)
    except (PermissionError, FileExistsError, NotADirectoryError) as error:
        raise InputError(
            f"{report.parent} can hold no report ({error.strerror}); choose another folder: --into FOLDER"
        ) from error
    with temporary as folder:
        made = Path(folder)
        figures = draw_figures(table, runs.records, made, fronts)
        (made / "table.md").write_text(
            f"{table.to_markdown()}\n{markdown(table.caption)}\n", encoding="utf-8"
        )
        (made / "table.csv").write_text(table.to_csv(), encoding="utf-8")
        (made / "table.tex").write_text(table.to_latex(), encoding="utf-8")
        further, found = sections(runs, table, fronts), claims_in_words(table)
        text = _page(runs, table, further, found, figures)
        why_no_page = None
        try:
            (made / PAGE).write_text(interactive_page(runs, table, further), encoding="utf-8")
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


def sections(runs: Runs, table: Table, fronts: Sequence[Fronts] = ()) -> list[Section]:
    """Returns the section on runs without a result, and the further tables that the rows of `table` allow.

    Args:
        runs: the runs of the report.
        table: the table of the runs that have a result.
        fronts: the curves of the runs that were scored at several temperatures.

    Raises:
        InputError: naming a file of a run that cannot be read.
    """
    further = (
        passes(table),
        on_validation(table),
        against_the_best(table, runs.records),
        cost(table, runs.records),
        against_published(table),
        beside_published(table),
    )
    first = (_without_result(runs), not_read(table, runs.records))
    return [*filter(None, first), *at_equal_diversity(fronts), *pivots(table), *filter(None, further)]


def _without_result(runs: Runs) -> Section | None:
    note = "No table holds these runs. Give the command of a run again to resume it, or delete its folder."
    lines = [[line(run, runs.names[folder])] for folder, run in runs.unfinished.items()]
    return Section("Runs without a result", ["Run"], lines, note) if lines else None


def claims_in_words(table: Table) -> list[str]:
    """Returns a line for each of the paper's claims that `table` can test, and a line on their evidence."""
    found = [str(claim) for claim in claims(table)]
    return [*found, " ".join(filter(None, (evidence(table), other_pairs(table))))] if found else []


def _page(
    runs: Runs,
    table: Table,
    further: Sequence[Section],
    found: Sequence[str],
    figures: Sequence[Figure],
) -> str:
    name, caption = markdown(runs.name), markdown(table.caption)
    parts = [f"# {name}", "## Scores", table.to_markdown().rstrip(), caption]
    parts += [section.to_markdown() for section in further]
    if found:
        found = [markdown(line) for line in found]
        parts += ["## Claims of the paper", "\n".join(f"- {line}" for line in found[:-1]), found[-1]]
    if figures:
        parts.append("## Figures")
        captions = [markdown(figure.caption) for figure in figures]
        parts += [
            f"![{caption}]({figure.file})\n\n{caption}"
            for caption, figure in zip(captions, figures, strict=True)
        ]
    in_rows = [(table.name(row), run) for row in table.rows for run in row.runs]
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
        for setting, run in in_rows
    ]
    parts += ["## Runs", "\n".join(lines)]
    if table.repeats:
        names = {id(run): runs.names[folder] for folder, run in runs.records.items()}
        left_out = [
            f"- {markdown_code(names[id(repeat.run)])}, a repeat of "
            f"{markdown_code(names[id(repeat.counted)])}" + (", with other scores" if repeat.differs else "")
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
