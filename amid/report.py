"""The entry point of `amid report`."""

from rich.console import Console

from amid.reporting import write_report

WIDTH_OF_FILES = 200
"""Columns where the output is no terminal, so that nothing is folded."""


def run(directory: str) -> None:
    """Writes the report of the runs below `directory`, prints its tables, the claims and where it is.

    Raises:
        InputError: if there is no finished run, or the record of one is damaged.
    """
    report = write_report(directory)
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDTH_OF_FILES)
    console.print(report.table.to_terminal())
    console.print(report.table.caption, markup=False)
    for section in report.sections:
        console.print(f"\n{section.title}", markup=False)
        console.print(section.to_terminal())
        console.print(section.note, markup=False)
    if report.claims:
        console.print("\nWhat the paper claims", markup=False)
        for line in report.claims:
            console.print(line, markup=False)
    page = report.page or f"left out: {report.why_no_page}"
    console.print(f"Page: {page}", soft_wrap=True, markup=False)
    console.print(f"Report: {report.file}", soft_wrap=True, markup=False)
