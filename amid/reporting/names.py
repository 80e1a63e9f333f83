"""Short names for the rows of a table in figures."""

from collections.abc import Sequence

from amid.reporting.table import Row, Table


def names_of(table: Table, rows: Sequence[Row], without: Sequence[str]) -> list[str]:
    """Returns a name for each row: its divergence and what varies, except the labels `without`."""
    hidden = ["method", "divergence", *without]
    several_methods = len({row.method for row in rows}) > 1
    words = [
        [
            row.method if several_methods else "",
            "" if "divergence" in without else row.divergence,
            table.name(row, without=hidden),
        ]
        for row in rows
    ]
    return [" ".join(filter(None, parts)).replace("=-", "=−") for parts in words]


def by_name(table: Table, rows: Sequence[Row], without: Sequence[str]) -> dict[str, list[Row]]:
    """Groups the rows by their names without these labels."""
    found: dict[str, list[Row]] = {}
    for row, name in zip(rows, names_of(table, rows, without), strict=True):
        found.setdefault(name, []).append(row)
    return found


def named_baselines(table: Table, rows: Sequence[Row]) -> dict[str, Row]:
    """Returns the rows by the name of their method; the names are longer only if two would be the same."""
    of_the_method = ("method", "divergence", "alpha", "lam")
    names = [f"{row.method} {table.name(row, without=of_the_method)}".strip() for row in rows]
    if len(set(names)) < len(names):
        names = [table.name(row) for row in rows]
    return dict(zip(names, rows, strict=True))
