"""Tables, figures and the report page, made from the records of finished runs alone."""

from amid.reporting.claims import Claim, claims
from amid.reporting.page import Report, claims_in_words, sections, write_report
from amid.reporting.rows import Row
from amid.reporting.table import Table, build_table

__all__ = [
    "Claim",
    "Report",
    "Row",
    "Table",
    "build_table",
    "claims",
    "claims_in_words",
    "sections",
    "write_report",
]
