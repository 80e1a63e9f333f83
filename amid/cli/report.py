"""The entry point of `amid report`."""

import argparse
from collections.abc import Sequence

from amid.cli.arguments import Arguments
from amid.reporting import write_report
from amid.terminal import console

MARKS = {"*": "its 95% interval leaves out 0", "†": "read second-hand"}
"""The meaning of the marks in the further tables."""


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the arguments of `amid report`."""
    found = Arguments(
        prog="amid report",
        description="Writes tables, figures and a page of all finished runs in FOLDER to FOLDER/report/.",
        epilog="A FOLDER may also be a zip file of runs; the report of runs.zip lies in runs/report/.",
    )
    found.add_argument("places", nargs="+", metavar="FOLDER")
    found.add_argument(
        "--into", metavar="FOLDER", help="write report/ into this FOLDER; needed for several folders"
    )
    found.add_argument(
        "--archive",
        metavar="FILE",
        help="also write the records of these runs, with the answers, into one zip file",
    )
    return found


def run(arguments: Sequence[str]) -> None:
    """Writes the report of the runs in folders and archives; prints its tables, the claims and its path.

    The report says how the numbers of the further tables were computed, and what the claims rest on.

    Raises:
        InputError: if there is no finished run, or the record of one is damaged.
    """
    given = parser().parse_args(arguments)
    report = write_report(*given.places, into=given.into, archive=given.archive)
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
        out.print("\nClaims of the paper", markup=False)
        for line in report.claims[:-1]:
            out.print(f"- {line}", markup=False)
    page = report.page or f"left out: {report.why_no_page}"
    out.print(f"Page: {page}", soft_wrap=True, markup=False)
    out.print(f"Report: {report.file}", soft_wrap=True, markup=False)
    if given.archive:
        out.print(f"Archive: {given.archive}", soft_wrap=True, markup=False)
