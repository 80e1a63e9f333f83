"""The entry point of `amid report`."""

from pathlib import Path

from rich.console import Console

from amid.reporting import build_table, claims_in_words, sections, write_report
from amid.reporting.page import PAGE
from amid.results import load_folders

WIDTH_OF_FILES = 200
"""Columns where the output is no terminal, so that nothing is folded."""


def run(directory: str) -> None:
    """Writes the report of the runs below `directory`, prints its tables, the claims and where it is.

    Raises:
        InputError: if there is no finished run, or the record of one is damaged.
    """
    page = write_report(directory)
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDTH_OF_FILES)
    records = load_folders(directory)
    table = build_table(list(records.values()))
    console.print(table.to_terminal())
    console.print(table.caption, markup=False)
    for section in sections(Path(directory), table, records):
        console.print(f"\n{section.title}", markup=False)
        console.print(section.to_terminal())
        console.print(section.note, markup=False)
    if found := claims_in_words(table):
        console.print("\nWhat the paper claims", markup=False)
        for line in found:
            console.print(line, markup=False)
    console.print(f"Page: {page.with_name(PAGE)}", soft_wrap=True, markup=False)
    console.print(f"Report: {page}", soft_wrap=True, markup=False)
