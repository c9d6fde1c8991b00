"""Images listed in a CSV file: a path and a label a row, or several labels, or none.

No row is dropped and no image is taken twice: what cannot be used is named by its line. Labels are
composed (Unicode's NFC), as the names of class folders are; paths are looked for in either form.
"""

import csv
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from data_sharding.errors import DataError
from data_sharding.format.labels import LabelRule, sorted_classes
from data_sharding.io.packed_strings import PackedStrings
from data_sharding.io.text import pluralize, truncated_list
from data_sharding.sources.base import (
    Labels,
    ListedImages,
    ListingDigest,
    Source,
    choose_val_of_all,
    listed_source,
    notes_on_val,
    stratified_split,
)
from data_sharding.sources.csv_table import DELIMITERS, BadHeaderError, Table, read_table

_MAX_NAMED = 20


@dataclass(frozen=True)
class Columns:
    """How the rows of a CSV file are read.

    Args:
        path: the header of the column of paths.
        label: of the column of labels; None if images have none.
        separator: between the labels of an image that has several; None if each has one.
        delimiter: between cells; None finds it.
    """

    path: str = "path"
    label: str | None = "label"
    separator: str | None = None
    delimiter: str | None = None

    @property
    def rule(self) -> LabelRule:
        """What labels the images have."""
        if self.label is None:
            return LabelRule(kind="none")
        if self.separator is not None:
            return LabelRule(kind="multi", extension="json")
        return LabelRule()


@dataclass(frozen=True)
class _Row:
    """An image: the line that lists it, and the path by which it was found."""

    line: int
    path: str
    labels: tuple[str, ...]
    num_bytes: int
    mtime_ns: int


def csv_file(
    path: str | Path,
    columns: Columns = Columns(),
    *,
    root: str | Path | None = None,
    val_path: str | Path | None = None,
    val_fraction: float | None = None,
    seed: int = 0,
) -> Source:
    """Images listed in a CSV file in UTF-8, whose first row names the columns.

    Args:
        root: the directory that paths start from; the file's own by default.
        val_path: a file like it, of the validation images.
        val_fraction: instead of that: the share of every class that becomes the validation split,
            or of all images if they have several labels or none; the seed says which.

    Raises:
        DataError: a file cannot be read, a row cannot be used, or nothing says which images are
            for validation.
    """
    _check_val(path, val_path, val_fraction)
    home = Path(root) if root is not None else Path(path).parent
    seen: dict[Path, str] = {}
    rows = _read(Path(path), columns, home, seen)
    num_train = len(rows)
    if val_path is not None:
        rows += _read(Path(val_path), columns, home, seen)
    classes = sorted_classes({label for row in rows[:num_train] for label in row.labels})
    if val_path is not None:
        _check_known(Path(val_path), rows[num_train:], classes)
    images, facts, times = _list(home, rows, classes, columns.rule)
    notes: tuple[str, ...] = ()
    if val_fraction is None:
        in_val = np.arange(len(rows)) >= num_train
    else:
        in_val, notes = _choose_val(images.labels, len(rows), classes, val_fraction, seed)
        facts |= {"val_fraction": val_fraction, "val_seed": seed}
    splits = {"train": images.where(~in_val), "val": images.where(in_val)}
    source = listed_source(classes, splits, facts, {}, columns.rule, notes)
    return replace(source, times_sha256=times)


def _check_val(path: str | Path, val_path: str | Path | None, fraction: float | None) -> None:
    if (val_path is None) == (fraction is None):
        what = "nothing says" if val_path is None else "a file and a fraction both say"
        raise DataError(
            f"{what} which images of {path} are for validation: nothing was written. Name the file "
            "that lists them (--val FILE.csv), or let Tahoe choose some (--val-fraction 0.1)."
        )


def _read(path: Path, columns: Columns, home: Path, seen: dict[Path, str]) -> list[_Row]:
    """Return the rows of a file; `seen` says where each image was listed."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows, bad = _sort_out(_table(file, path, columns, home), path, columns, home, seen)
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror}. Nothing was written: check the path."
        ) from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} is no CSV file in UTF-8: {error}. Nothing was written: save it as one."
        ) from error
    if bad:
        raise DataError(
            f"{pluralize(len(bad), 'row')} of {path} cannot be used: "
            f"{truncated_list(bad, _MAX_NAMED, '; ')}. Nothing was written: mend or remove them."
        )
    if not rows:
        raise DataError(f"{path} lists no images: nothing was written. Add rows below its header.")
    return rows


def _table(file: TextIO, path: Path, columns: Columns, home: Path) -> Table:
    """Return the table in a file.

    Raises:
        DataError: its first row is no header, or lacks a column.
    """
    lines = iter(file)
    first = next(lines, "")
    names = [name for name in (columns.path, columns.label) if name is not None]
    try:
        return read_table(chain([first], lines), names, columns.delimiter)
    except BadHeaderError as error:
        what = str(error)
        if _names_a_file(first, home):
            what = (
                f"has no header: its first row is {first.strip()!r}, an image already. Add a row "
                f"{(columns.delimiter or ',').join(names)!r} above it; it {what}"
            )
        raise DataError(
            f"{path} {what}: nothing was written. Name the right columns with --path-column and "
            "--label-column (--no-labels if there are no labels), and what separates them with "
            "--delimiter."
        ) from None


def _names_a_file(line: str, home: Path) -> bool:
    cells = (cell for delimiter in DELIMITERS for cell in line.split(delimiter))
    return any(_find(home, cell.strip(' "\r\n')) is not None for cell in cells)


def _sort_out(
    table: Table, path: Path, columns: Columns, home: Path, seen: dict[Path, str]
) -> tuple[list[_Row], list[str]]:
    """Return the rows that can be used, and what is wrong with the others."""
    rows, bad = [], []
    for line, cells in table.rows:
        try:
            row = _row(cells, line, table, columns, home)
            file = _without_links(home.absolute() / row.path)
            if file in seen:
                raise _BadRowError(f"{row.path} is listed already, in {seen[file]}")
            seen[file] = f"{path.name} line {line}"
            rows.append(row)
        except _BadRowError as error:
            bad.append(f"line {line}: {error}")
    return rows, bad


class _BadRowError(Exception):
    """A row cannot be used; the message says why."""


def _row(cells: Sequence[str], line: int, table: Table, columns: Columns, home: Path) -> _Row:
    if len(cells) != len(table.header):
        raise _BadRowError(
            f"it has {pluralize(len(cells), 'cell')}, and the header {len(table.header)} (a cell "
            f"with {table.delimiter!r} in it needs double quotes)"
        )
    path = cells[table.places[0]]
    labels = () if columns.label is None else _labels(cells[table.places[1]], columns)
    if not path:
        raise _BadRowError("it has no path")
    try:
        found = _find(home, path)
    except (OSError, ValueError) as error:  # a path of other characters than files have
        raise _BadRowError(f"cannot read {path!r}: {error}") from error
    if found is None:
        raise _BadRowError(f"no file at {home / path}")
    stat = (home / found).stat()
    return _Row(line, found, labels, stat.st_size, stat.st_mtime_ns)


def _find(home: Path, path: str) -> str | None:
    """Return how a file is called that a path means: as it stands, without blanks, composed, not.

    macOS has decomposed names on some disks, and editors compose what is typed.
    """
    plain = path.strip()
    forms = (path, plain, *(unicodedata.normalize(form, plain) for form in ("NFC", "NFD")))
    return next((form for form in dict.fromkeys(forms) if (home / form).is_file()), None)


def _without_links(path: Path) -> Path:
    """Return the one name of a file, however it is spelled and whatever links lead to it."""
    place = _real_directory(path.parent) / path.name
    return place.resolve() if place.is_symlink() else place


@lru_cache(maxsize=1 << 16)
def _real_directory(path: Path) -> Path:
    return path.resolve()


def _labels(cell: str, columns: Columns) -> tuple[str, ...]:
    labels = [cell] if columns.separator is None else cell.split(columns.separator)
    labels = [unicodedata.normalize("NFC", label.strip()) for label in labels]
    if not all(labels):
        raise _BadRowError("it has an empty label")
    return tuple(dict.fromkeys(labels))


def _check_known(path: Path, rows: Sequence[_Row], classes: Sequence[str]) -> None:
    known = set(classes)
    unknown = [f"line {row.line}: {x}" for row in rows for x in row.labels if x not in known]
    if unknown:
        raise DataError(
            f"{path} has classes that no training image has: "
            f"{truncated_list(unknown, _MAX_NAMED, '; ')}. No model can learn them, so nothing was "
            "written. Add training images, or remove these rows."
        )


def _list(
    home: Path, rows: Sequence[_Row], classes: Sequence[str], rule: LabelRule
) -> tuple[ListedImages, dict[str, object], str]:
    """Return all images, what identifies them and their labels, and a digest of their times."""
    tally, numbers = ListingDigest(), {name: number for number, name in enumerate(classes)}
    for row in rows:
        tally.add(f"{row.path} {row.labels}", row.num_bytes, row.mtime_ns)
    found = [tuple(sorted(numbers[label] for label in row.labels)) for row in rows]
    labels: Labels = None
    if rule.kind == "multi":
        labels = tuple(found)
    elif rule.kind == "single":
        labels = np.array([number for (number,) in found])
    images = ListedImages(
        home,
        PackedStrings(row.path for row in rows),
        labels,
        np.array([row.num_bytes for row in rows]),
        np.arange(len(rows)),
    )
    facts = {"kind": "csv", "labels": str(rule), **tally.facts}
    return images, facts, tally.times_sha256


def _choose_val(
    labels: Labels, num: int, classes: tuple[str, ...], val_fraction: float, seed: int
) -> tuple[NDArray[np.bool_], tuple[str, ...]]:
    """Return which samples are for validation, and what is to be said of that."""
    if not isinstance(labels, np.ndarray):
        return choose_val_of_all(num, val_fraction, seed), ()
    in_val = stratified_split(labels, classes, val_fraction, seed)
    return in_val, notes_on_val(labels, classes, val_fraction)
