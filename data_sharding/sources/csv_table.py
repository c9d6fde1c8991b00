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
    """The first row names no such columns; the message says what it holds."""


@dataclass(frozen=True)
class Table:
    """The rows below a header: the line that each ends on, and its cells.

    Args:
        header: what the first row holds.
        places: of the columns asked for.
    """

    header: tuple[str, ...]
    places: tuple[int, ...]
    delimiter: str
    rows: Iterator[tuple[int, list[str]]]


def read_table(lines: Iterable[str], names: Sequence[str], delimiter: str | None) -> Table:
    """Return the table in some lines; cells are read as `rows` is.

    Args:
        names: of the columns that are needed.
        delimiter: None takes the first of DELIMITERS that makes a header of the first line.

    Raises:
        BadHeaderError: the first line has not each of the names, once.
        csv.Error: a line is no CSV.
    """
    rest = iter(lines)
    first = next(rest, "")
    found = [(d, _header(first, d)) for d in ((delimiter,) if delimiter else DELIMITERS)]
    for separator, header in found:
        places = [_places(header, name) for name in names]
        if all(len(place) == 1 for place in places):
            reader = csv.reader(chain([first], rest), delimiter=separator, **_DIALECT)
            next(reader)
            rows = ((reader.line_num, cells) for cells in reader if cells)
            return Table(tuple(header), tuple(place[0] for place in places), separator, rows)
    _, header = max(found, key=lambda one: len(one[1]))  # max takes the first of equals
    wrong = next(name for name in names if len(_places(header, name)) != 1)
    raise BadHeaderError(
        f"has {pluralize(len(_places(header, wrong)), 'column')} called {wrong!r} and needs one "
        f"(it has {', '.join(map(repr, header))})"
    )


def _header(line: str, delimiter: str) -> list[str]:
    return next(csv.reader([line], delimiter=delimiter, **_DIALECT), [])


def _places(header: Sequence[str], name: str) -> list[int]:
    """Return which columns are meant: those of that name, else those that are nearly called so."""
    exact = [place for place, there in enumerate(header) if there == name]
    near = [place for place, there in enumerate(header) if _plain(there) == _plain(name)]
    return exact or near


def _plain(name: str) -> str:
    return name.strip().casefold()
