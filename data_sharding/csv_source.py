"""Images listed in a CSV file: a path and a label a row, or several labels, or none.

Class names are sorted by code point, as those of class folders are; if all are whole numbers, by
their value, so that classes 0, 1, 2, ... keep their numbers.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os.path import normpath
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_sharding.labels import LabelRule
from data_sharding.manifest import DataError
from data_sharding.sources import (
    Labels,
    ListedImages,
    Source,
    Tally,
    choose_val,
    choose_val_of_all,
    listed_source,
    notes_on_val,
)
from data_sharding.texts import Texts

_MAX_NAMED = 20


@dataclass(frozen=True)
class Columns:
    """How the rows of a CSV file are read.

    Args:
        path: the header of the column of paths.
        label: of the column of labels; None if images have none.
        separator: between the labels of an image that has several; None if each has one.
    """

    path: str = "path"
    label: str | None = "label"
    separator: str | None = None

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
    line: int
    path: str
    labels: tuple[str, ...]
    num_bytes: int


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
    seen: dict[str, str] = {}
    rows = _read(Path(path), columns, home, seen)
    num_train = len(rows)
    if val_path is not None:
        rows += _read(Path(val_path), columns, home, seen)
    classes = _class_names(rows[:num_train])
    if val_path is not None:
        _check_known(Path(val_path), rows[num_train:], classes)
    images, facts = _list(home, rows, classes, columns.rule)
    notes: tuple[str, ...] = ()
    if val_fraction is None:
        in_val = np.arange(len(rows)) >= num_train
    else:
        in_val, notes = _choose_val(images.labels, len(rows), classes, val_fraction, seed)
        facts |= {"val_fraction": val_fraction, "val_seed": seed}
    splits = {"train": images.where(~in_val), "val": images.where(in_val)}
    return listed_source(classes, splits, facts, {}, columns.rule, notes)


def _check_val(path: str | Path, val_path: str | Path | None, fraction: float | None) -> None:
    if (val_path is None) == (fraction is None):
        what = "nothing says" if val_path is None else "a file and a fraction both say"
        raise DataError(
            f"{what} which images of {path} are for validation: nothing was written. Name the file "
            "that lists them (--val FILE.csv), or let Tahoe choose some (--val-fraction 0.1)."
        )


def _read(path: Path, columns: Columns, home: Path, seen: dict[str, str]) -> list[_Row]:
    """Return the rows of a file; `seen` says where each image was listed."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows, bad = _sort_out(csv.DictReader(file, strict=True), path, columns, home, seen)
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror}. Nothing was written: check the path."
        ) from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} is no CSV file in UTF-8: {error}. Nothing was written: save it as one."
        ) from error
    if bad:
        more = f" and {len(bad) - _MAX_NAMED} more" if len(bad) > _MAX_NAMED else ""
        raise DataError(
            f"{len(bad)} rows of {path} cannot be used: {'; '.join(bad[:_MAX_NAMED])}{more}. "
            "Nothing was written: mend or remove these rows."
        )
    if not rows:
        raise DataError(f"{path} lists no images: nothing was written. Add rows below its header.")
    return rows


def _sort_out(
    reader: "csv.DictReader[str]", path: Path, columns: Columns, home: Path, seen: dict[str, str]
) -> tuple[list[_Row], list[str]]:
    """Return the rows that can be used, and what is wrong with the others."""
    there = list(reader.fieldnames or ())
    for name in (columns.path, columns.label):
        if name is not None and there.count(name) != 1:
            raise DataError(
                f"{path} has {there.count(name)} columns called {name!r} and needs one (it has "
                f"{', '.join(map(repr, there))}): nothing was written. Name the right one with "
                "--path-column or --label-column; --no-labels if there are no labels."
            )
    rows, bad = [], []
    for values in reader:
        try:
            row = _row(values, reader.line_num, columns, home)
            place = normpath(home / row.path)
            if place in seen:
                raise _BadRowError(f"{row.path} is listed already, in {seen[place]}")
            seen[place] = f"{path.name} line {row.line}"
            rows.append(row)
        except _BadRowError as error:
            bad.append(f"line {reader.line_num}: {error}")
    return rows, bad


class _BadRowError(Exception):
    """A row cannot be used; the message says why."""


def _row(values: Mapping[str, str | None], line: int, columns: Columns, home: Path) -> _Row:
    path, labels = values[columns.path], _labels(values, columns)
    if not path:
        raise _BadRowError("it has no path")
    try:
        place = home / path
        if not place.is_file():
            raise _BadRowError(f"no file at {place}")
        return _Row(line, path, labels, place.stat().st_size)
    except (OSError, ValueError) as error:  # a path of other characters than files have
        raise _BadRowError(f"cannot read {path!r}: {error}") from error


def _labels(values: Mapping[str, str | None], columns: Columns) -> tuple[str, ...]:
    if columns.label is None:
        return ()
    cell = values[columns.label] or ""
    labels = [cell] if columns.separator is None else cell.split(columns.separator)
    labels = [label.strip() for label in labels]
    if not all(labels):
        raise _BadRowError("it has an empty label")
    return tuple(dict.fromkeys(labels))


def _class_names(rows: Sequence[_Row]) -> tuple[str, ...]:
    names = {label for row in rows for label in row.labels}
    if all(name.isascii() and name.isdigit() and str(int(name)) == name for name in names):
        return tuple(sorted(names, key=int))
    return tuple(sorted(names))


def _check_known(path: Path, rows: Sequence[_Row], classes: Sequence[str]) -> None:
    known = set(classes)
    unknown = [f"line {row.line}: {x}" for row in rows for x in row.labels if x not in known]
    if unknown:
        more = f" and {len(unknown) - _MAX_NAMED} more" if len(unknown) > _MAX_NAMED else ""
        raise DataError(
            f"{path} has classes that no training image has: {'; '.join(unknown[:_MAX_NAMED])}"
            f"{more}. No model can learn them, so nothing was written. Add training images, or "
            "remove these rows."
        )


def _list(
    home: Path, rows: Sequence[_Row], classes: Sequence[str], rule: LabelRule
) -> tuple[ListedImages, dict[str, object]]:
    """Return all images, and what identifies them and their labels."""
    tally, numbers = Tally(), {name: number for number, name in enumerate(classes)}
    for row in rows:
        tally.add(f"{row.path} {row.labels}", row.num_bytes)
    found = [tuple(sorted(numbers[label] for label in row.labels)) for row in rows]
    labels: Labels = None
    if rule.kind == "multi":
        labels = tuple(found)
    elif rule.kind == "single":
        labels = np.array([number for (number,) in found])
    images = ListedImages(
        home,
        Texts(row.path for row in rows),
        labels,
        np.array([row.num_bytes for row in rows]),
        np.arange(len(rows)),
    )
    return images, {"kind": "csv", "labels": str(rule), **tally.facts}


def _choose_val(
    labels: Labels, num: int, classes: tuple[str, ...], val_fraction: float, seed: int
) -> tuple[NDArray[np.bool_], tuple[str, ...]]:
    """Return which samples are for validation, and what is to be said of that."""
    if not isinstance(labels, np.ndarray):
        return choose_val_of_all(num, val_fraction, seed), ()
    in_val = choose_val(labels, classes, val_fraction, seed)
    return in_val, notes_on_val(labels, classes, val_fraction)
