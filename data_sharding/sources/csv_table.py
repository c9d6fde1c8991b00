"""A CSV file's rows by the names of columns, whatever separates its cells.

Columns are found without regard to case and to blanks around their names.
"""

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from data_sharding.io.text import pluralize

DELIMITERS = (",", ";", "\t", "|")
# A blank before a quote would make the quote part of the cell.
_DIALECT: dict[str, Any] = {"skipinitialspace": True, "strict": True}


class BadHeaderError(Exception):
    """The first row lacks a column; the message quotes it."""


@dataclass(frozen=True)
class Table:
    """The rows below a header.

    Args:
        header: cells of the first row.
        columns: indices of the requested columns.
        rows: number of the last line of each row, and its cells.
    """

    header: tuple[str, ...]
    columns: tuple[int, ...]
    delimiter: str
    rows: Iterator[tuple[int, list[str]]]


def read_table(lines: Iterable[str], names: Sequence[str], delimiter: str | None) -> Table:
    """Read a table lazily, as its rows are iterated.

    Args:
        names: names of the requested columns.
        delimiter: None takes the first of DELIMITERS with which the first line has all columns.

    Raises:
        BadHeaderError: the first line does not have each of the names exactly once.
        csv.Error: a line is no CSV.
    """
    lines = iter(lines)
    first = next(lines, "")
    headers = {d: _cells(first, d) for d in ((delimiter,) if delimiter else DELIMITERS)}
    for separator, header in headers.items():
        columns = [_matching_columns(header, name) for name in names]
        if all(len(matches) == 1 for matches in columns):
            reader = csv.reader(chain([first], lines), delimiter=separator, **_DIALECT)
            next(reader)
            rows = ((reader.line_num, cells) for cells in reader if cells)
            return Table(tuple(header), tuple(matches[0] for matches in columns), separator, rows)
    header = max(headers.values(), key=len)  # the first of equals
    wrong = next(name for name in names if len(_matching_columns(header, name)) != 1)
    num = len(_matching_columns(header, wrong))
    raise BadHeaderError(
        f"has {pluralize(num, 'column')} called {wrong!r} and needs one "
        f"(it has {', '.join(map(repr, header))})"
    )


def _cells(line: str, delimiter: str) -> list[str]:
    return next(csv.reader([line], delimiter=delimiter, **_DIALECT), [])


def _matching_columns(header: Sequence[str], name: str) -> list[int]:
    """Return the indices of columns with exactly that name, or else with a similar one."""
    exact = [i for i, cell in enumerate(header) if cell == name]
    folded = name.strip().casefold()
    return exact or [i for i, cell in enumerate(header) if cell.strip().casefold() == folded]
