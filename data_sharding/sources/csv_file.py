"""Images listed in a CSV file: a path and a label in each row, or several labels, or none.

No row is dropped and no image is taken twice: unusable rows are named by their lines. Columns are
found without regard to case and to blanks around their names. Labels are composed (Unicode's NFC),
as the names of class directories are; paths are looked up in either form.
"""

import csv
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np

from data_sharding.format.labels import LabelRule, sorted_classes
from data_sharding.io.text import pluralize, truncated_list
from data_sharding.sources.base import (
    Labels,
    ListedImages,
    ListingDigest,
    Source,
    check_val_choice,
    choose_splits,
    source_error,
)

_MAX_NAMED = 20
_DELIMITERS = (",", ";", "\t", "|")
# A blank before a quote would make the quote part of the cell.
_DIALECT: dict[str, Any] = {"skipinitialspace": True, "strict": True}


@dataclass(frozen=True)
class Columns:
    """Format of a CSV file.

    Args:
        path: header of the column of paths.
        label: header of the column of labels; None for images without labels.
        separator: text between the labels of an image with several; None for one label each.
        delimiter: character between cells; None detects it.
    """

    path: str = "path"
    label: str | None = "label"
    separator: str | None = None
    delimiter: str | None = None

    @property
    def rule(self) -> LabelRule:
        """Label rule of the images."""
        if self.label is None:
            return LabelRule(kind="none")
        return LabelRule() if self.separator is None else LabelRule("multi", "json")


class _Header(NamedTuple):
    delimiter: str
    num_cells: int
    columns: tuple[int, ...]  # of the path and the label


class _Row(NamedTuple):
    line: int
    path: str  # as the file is called on disk
    labels: tuple[str, ...]
    num_bytes: int
    mtime_ns: int


class _BadRowError(Exception):
    """A row cannot be used, for the reason in the message."""


def csv_file(
    path: str | Path,
    columns: Columns = Columns(),
    *,
    root: str | Path | None = None,
    val_path: str | Path | None = None,
    val_fraction: float | None = None,
    num_folds: int | None = None,
    seed: int = 0,
) -> Source:
    """List the images of a CSV file in UTF-8 whose first row names the columns.

    Args:
        root: base directory of the paths; the file's own by default.
        val_path: CSV file of the validation images.
        val_fraction: alternative to `val_path`: fraction of every class that becomes the validation
            split, or of all images if they have several labels or none; the seed chooses them.
        num_folds: alternative to both: number of folds of equal size that all images are dealt to.
    """
    check_val_choice(path, val_path is not None, val_fraction, num_folds)
    reader = _Reader(columns, Path(path).parent if root is None else Path(root), {})
    rows = reader.read(Path(path))
    num_train = len(rows)
    classes = sorted_classes({label for row in rows for label in row.labels})
    if not classes and columns.label is not None:
        raise source_error(f"{path} has no label in any row", path, "Check its column of labels.")
    if val_path is not None:
        rows += reader.read(Path(val_path))
        _check_known(val_path, rows[num_train:], classes)
    images, digest = _list(reader.root, rows, classes, columns.rule)
    in_val = np.arange(len(rows)) >= num_train
    notes: tuple[str, ...] = ()
    splits = {"train": images.where(~in_val), "val": images.where(in_val)}
    facts = {"kind": "csv", "labels": str(columns.rule), **digest.facts}
    if val_path is None:
        splits, val_facts, notes = choose_splits(images, classes, val_fraction, num_folds, seed)
        facts |= val_facts
    notes += tuple(_note_unlabelled(rows, columns.rule))
    times = digest.times_sha256
    return Source(classes, splits, facts, columns.rule, str(reader.root), notes, times_sha256=times)


@dataclass(frozen=True)
class _Reader:
    """Reads rows; `first_seen` holds the line that listed each image first."""

    columns: Columns
    root: Path
    first_seen: dict[Path, str]

    def read(self, path: Path) -> list[_Row]:
        """Return all rows of a file; refuse a file with unusable ones."""
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                rows, bad = self._rows(file, path)
        except OSError as error:
            raise source_error(
                f"cannot read {path}: {error.strerror}", path, "Check the path."
            ) from error
        except (csv.Error, UnicodeDecodeError) as error:
            raise source_error(
                f"{path} is no CSV file in UTF-8: {error}", path, "Save it as one."
            ) from error
        if bad:
            problem = f"{pluralize(len(bad), 'row')} of {path} cannot be used: "
            problem += truncated_list(bad, _MAX_NAMED, "; ")
            raise source_error(problem, path, "Correct or remove them.")
        if not rows:
            raise source_error(f"{path} lists no images", path, "Add rows below its header.")
        return rows

    def _rows(self, file: TextIO, path: Path) -> tuple[list[_Row], list[str]]:
        """Return the usable rows, and the problems of the others."""
        first = next(file, "")
        header = self._header(first, path)
        lines = csv.reader(chain([first], file), delimiter=header.delimiter, **_DIALECT)
        next(lines)
        rows, bad = [], []
        for cells in filter(None, lines):
            try:
                row = self._row(cells, lines.line_num, header)
                image = _canonical(self.root.absolute() / row.path)
                if image in self.first_seen:
                    raise _BadRowError(f"{row.path} is listed already, in {self.first_seen[image]}")
                self.first_seen[image] = f"{path.name} line {row.line}"
                rows.append(row)
            except _BadRowError as error:
                bad.append(f"line {lines.line_num}: {error}")
        return rows, bad

    def _header(self, line: str, path: Path) -> _Header:
        """Find the columns; a delimiter that is not given is the first with which all exist."""
        names = [name for name in (self.columns.path, self.columns.label) if name is not None]
        given = self.columns.delimiter
        headers = {
            delimiter: next(csv.reader([line], delimiter=delimiter, **_DIALECT), [])
            for delimiter in ((given,) if given else _DELIMITERS)
        }
        for delimiter, cells in headers.items():
            columns = [_matching_columns(cells, name) for name in names]
            if all(len(matches) == 1 for matches in columns):
                return _Header(delimiter, len(cells), tuple(matches[0] for matches in columns))
        paths = (text for delimiter in _DELIMITERS for text in line.split(delimiter))
        if any(_find(self.root, path_text.strip(' "\r\n')) for path_text in paths):
            problem = f"{path} has no header: its first row, {line.strip()!r}, is an image"
            hint = f"Add the row {(given or ',').join(names)!r} above it."
            raise source_error(problem, path, hint)
        header = max(headers.values(), key=len)  # the first of equals
        wrong = next(name for name in names if len(_matching_columns(header, name)) != 1)
        num = pluralize(len(_matching_columns(header, wrong)), "column")
        raise source_error(
            f"{path} has {num} called {wrong!r} and needs one "
            f"(it has {', '.join(map(repr, header))})",
            path,
            "Name its columns with `path_column` and `label_column`, or use `no_labels`; and set "
            "`delimiter` if the cells are not separated by it.",
        )

    def _row(self, cells: Sequence[str], line: int, header: _Header) -> _Row:
        if len(cells) != header.num_cells:
            raise _BadRowError(
                f"it has {pluralize(len(cells), 'cell')}, and the header {header.num_cells} (a "
                f"cell with {header.delimiter!r} in it needs double quotes)"
            )
        path, *label_cells = (cells[column] for column in header.columns)
        labels = [label for cell in label_cells for label in self._labels(cell)]
        if not path:
            raise _BadRowError("it has no path")
        try:
            found = _find(self.root, path)
        except (OSError, ValueError) as error:  # characters that no path can have
            raise _BadRowError(f"cannot read {path!r}: {error}") from error
        if found is None:
            raise _BadRowError(f"no file at {self.root / path}")
        stat = (self.root / found).stat()
        return _Row(line, found, tuple(dict.fromkeys(labels)), stat.st_size, stat.st_mtime_ns)

    def _labels(self, cell: str) -> list[str]:
        separator = self.columns.separator
        if separator is not None and not cell.strip():  # the image shows none of the classes
            return []
        labels = [cell] if separator is None else cell.split(separator)
        labels = [unicodedata.normalize("NFC", label.strip()) for label in labels]
        if not all(labels):
            raise _BadRowError("it has an empty label")
        return labels


def _matching_columns(header: Sequence[str], name: str) -> list[int]:
    """Return the indices of columns with exactly that name, or else with a similar one."""
    exact = [i for i, cell in enumerate(header) if cell == name]
    folded = name.strip().casefold()
    return exact or [i for i, cell in enumerate(header) if cell.strip().casefold() == folded]


def _find(root: Path, path: str) -> str | None:
    """Return the name on disk of the file at a path: as given, stripped, composed, or decomposed.

    macOS has decomposed names on some disks, and editors compose what is typed.
    """
    stripped = path.strip()
    forms = (path, stripped, *(unicodedata.normalize(form, stripped) for form in ("NFC", "NFD")))
    return next((form for form in dict.fromkeys(forms) if (root / form).is_file()), None)


def _canonical(path: Path) -> Path:
    """Resolve a path; directories are looked up once."""
    path = _real_directory(path.parent) / path.name
    return path.resolve() if path.is_symlink() else path


@lru_cache(maxsize=1 << 16)
def _real_directory(path: Path) -> Path:
    return path.resolve()


def _note_unlabelled(rows: Sequence[_Row], rule: LabelRule) -> Iterator[str]:
    """Yield a note on images without a label, where they may have any number of them."""
    num = sum(not row.labels for row in rows)
    if rule.kind == "multi" and num:
        yield f"{pluralize(num, 'image')} without a label, which show none of the classes"


def _check_known(path: str | Path, rows: Sequence[_Row], classes: Sequence[str]) -> None:
    known = set(classes)
    unknown = [f"line {row.line}: {x}" for row in rows for x in row.labels if x not in known]
    if unknown:
        raise source_error(
            f"{path} has classes that no training image has: "
            f"{truncated_list(unknown, _MAX_NAMED, '; ')}; no model can learn them",
            path,
            "Add training images, or remove these rows.",
        )


def _list(
    root: Path, rows: Sequence[_Row], classes: Sequence[str], rule: LabelRule
) -> tuple[ListedImages, ListingDigest]:
    digest, indices = ListingDigest(), {name: i for i, name in enumerate(classes)}
    for row in rows:
        digest.add(f"{row.path} {row.labels}", row.num_bytes, row.mtime_ns)
    labels = [sorted(indices[label] for label in row.labels) for row in rows]
    values = np.array([*chain.from_iterable(labels)], dtype=np.int64)
    ends = np.cumsum([len(row) for row in labels]) if rule.kind == "multi" else None
    table = None if rule.kind == "none" else Labels(values, ends)
    sizes = [row.num_bytes for row in rows]
    return ListedImages.of(root, [row.path for row in rows], table, sizes), digest
