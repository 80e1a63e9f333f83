"""The entry point of `amid report`."""

from amid.console import console
from amid.reporting import write_report

MARKS = {"*": "its 95% interval leaves out 0", "†": "read second-hand"}
"""What the marks in the further tables mean."""


def run(directory: str) -> None:
    """Writes the report of the runs below `directory`, prints its tables, the claims and where it is.

    How the figures of the further tables were made, and what the claims rest on, the report tells.

    Raises:
        InputError: if there is no finished run, or the record of one is damaged.
    """
    report = write_report(directory)
    out = console()
    out.print(report.table.to_terminal())
    out.print(report.table.caption, markup=False)
    for section in report.sections:
        out.print(f"\n{section.title}", markup=False)
        out.print(section.to_terminal())
        cells = "".join(cell for line in section.lines for cell in line)
        marks = [f"{mark}: {meaning}." for mark, meaning in MARKS.items() if mark in cells]
        if text := " ".join(filter(None, (section.finding, *marks))):
            out.print(text, markup=False)
    if report.claims:
        out.print("\nWhat the paper claims", markup=False)
        for line in report.claims[:-1]:
            out.print(f"- {line}", markup=False)
    page = report.page or f"left out: {report.why_no_page}"
    out.print(f"Page: {page}", soft_wrap=True, markup=False)
    out.print(f"Report: {report.file}", soft_wrap=True, markup=False)
