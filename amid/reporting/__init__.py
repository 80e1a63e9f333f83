"""Tables, figures and the report page, made from the records of finished runs alone."""

from amid.reporting.page import write_report
from amid.reporting.table import Row, Table, build_table

__all__ = ["Row", "Table", "build_table", "write_report"]
