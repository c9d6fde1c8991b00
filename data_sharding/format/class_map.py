"""Read which classes of a data set are kept, and how they are numbered, from a file.

A text file names the classes to keep, one a line: the number of the line, from 0 on, is the new
label, as in timm's class maps. A CSV or TSV file has rows `old,new`, and a JSON file an object
{old: new}: several old labels may become one, and a new label below 0 leaves an old one out.
An old label is the name of a class, or its number.
"""

import csv
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from data_sharding.errors import DataError
from data_sharding.format.sample_rule import ClassLabels
from data_sharding.io import filesystem
from data_sharding.io.text import pluralize, truncated_list

_PIN = "#sha256="  # before the digest of the content, behind the path
MAX_CLASSES = 1 << 20  # larger labels are ids of something else
_DELIMITERS = {"csv": ",", "tsv": "\t"}
_NUMBER = re.compile(r"-?[0-9]+")


@dataclass(frozen=True)
class ClassMap:
    """The content of a class map.

    Args:
        url: path or URL of the file.
        sha256: digest (hex) of its content.
        old: for each new label, the names or numbers of the old classes that become it.
        names: names of the new classes; None keeps those of the old ones.
    """

    url: str
    sha256: str
    old: tuple[tuple[str, ...], ...]
    names: tuple[str, ...] | None

    def resolve(
        self, classes: Sequence[str] | None, labels: Iterable[int | str]
    ) -> tuple[tuple[str, ...], ClassLabels]:
        """Find the old classes in a data set.

        Args:
            classes: names of all classes of the set, if they are known.
            labels: distinct labels that occur in its shards.

        Returns:
            The names of the new classes, and for each the labels in the shards that mean it.

        Raises:
            DataError: an old class is none of the set.
        """
        labels = {*labels}
        kinds = {type(label) for label in labels}
        indices = {name: i for i, name in enumerate(classes or ())}
        found = [
            [_find(text, indices, classes, labels, kinds) for text in texts] for texts in self.old
        ]
        unknown = [
            text
            for texts, places in zip(self.old, found, strict=True)
            for text, place in zip(texts, places, strict=True)
            if place is None
        ]
        if unknown:
            raise self._unknown(unknown, classes)
        names = self.names or tuple(name for places in found for name, _ in filter(None, places))
        class_labels = tuple(
            tuple(label for _, labels in filter(None, places) for label in labels)
            for places in found
        )
        _refuse_repeated(self.url, [label for labels in class_labels for label in labels], "label")
        _refuse_repeated(self.url, names, "class")
        return names, class_labels

    def _unknown(self, unknown: Sequence[str], classes: Sequence[str] | None) -> DataError:
        what = (
            f"none of the {pluralize(len(classes), 'class')} of the data set"
            if classes
            else "no labels of the data set, which does not name its classes otherwise"
        )
        return DataError(
            f"{self.url} chooses classes that are {what}: {truncated_list(unknown)}. Nothing was "
            "written",
            value=unknown[0],
            hint="Choose by names as in the manifest, or by numbers counted from 0; `classes` "
            "names numbered ones. Rows OLD,NEW are in a file called .csv, or with tabs .tsv.",
        )


def _find(
    text: str,
    indices: dict[str, int],
    classes: Sequence[str] | None,
    known: set[int | str],
    kinds: set[type],
) -> tuple[str, tuple[int | str, ...]] | None:
    """Find an old class; return its name and its labels in the shards, None if there is none."""
    number = int(text) if _NUMBER.fullmatch(text) else None
    if text in indices:  # a name that is a number too is a name
        number = indices[text]
    elif classes is not None:
        if number is None or number >= len(classes):
            return None
        text = classes[number] if number >= 0 else text
    elif text not in known and (number is None or int not in kinds):
        return None
    labels: list[int | str] = [] if number is None else [number]
    labels.append(text)
    return text, tuple(label for label in labels if type(label) in kinds or not kinds)


def pin(url: str) -> str:
    """Return a path or URL with the digest of its content, by which it is known from then on."""
    return url if _PIN in url else f"{url}{_PIN}{read_class_map(url).sha256}"


def digest_of(pinned: str) -> str:
    """Return the digest (hex) of a class map that `pin` has been applied to."""
    return pin(pinned).rpartition(_PIN)[2]


def read_class_map(url: str) -> ClassMap:
    """Read a class map from a path or URL, which may end in the digest that it must have.

    Raises:
        DataError: it cannot be read, or is none; the problem names the line.
    """
    url, _, sha256 = url.partition(_PIN)
    try:
        data = filesystem.read_bytes(url)
        old, names = _parse(url, data.decode("utf-8-sig"))
    except DataError:
        raise
    except Exception as error:  # stores raise many kinds
        raise DataError(
            f"{url} is no class map: {error}. Nothing was written",
            value=url,
            hint="Give a text file with the name or number of a class to keep on each line, class "
            "0 first, or .csv, .tsv with rows OLD,NEW, or .json with {OLD: NEW}.",
        ) from error
    found = hashlib.sha256(data).hexdigest()
    if sha256 not in ("", found):
        raise DataError(
            f"{url} has changed: its digest is {found}, and {sha256} is asked for. Nothing was "
            "written",
            value=url,
            hint="Restore the file, or give it another name and begin a new run.",
        )
    return ClassMap(url, found, old, names)


def _parse(url: str, text: str) -> tuple[tuple[tuple[str, ...], ...], tuple[str, ...] | None]:
    """Return the old classes of each new one, and the names of the new ones if they are given."""
    extension = url.rpartition(".")[2].lower()
    if extension == "json":
        return _parse_pairs(_json_pairs(text))
    if extension in _DELIMITERS:
        rows = csv.reader(io.StringIO(text), delimiter=_DELIMITERS[extension])
        return _parse_pairs(_csv_pairs(rows))
    names = [line.strip() for line in text.rstrip().split("\n")]
    if "" in names:
        raise ValueError("it names no class" if len(names) == 1 else _blank(names))
    _refuse_repeated(url, names, "class")
    return tuple((name,) for name in names), None


def _blank(names: Sequence[str]) -> str:
    return f"line {names.index('') + 1} is blank"


def _json_pairs(text: str) -> list[tuple[str, str]]:
    objects: list[list[tuple[str, Any]]] = []
    values = json.loads(text, object_pairs_hook=objects.append)  # a dict would hide repeated keys
    if values is not None or len(objects) != 1:
        raise ValueError("it is no JSON object of labels, {OLD: NEW}")
    if not all(type(new) in (int, str) for _, new in objects[0]):
        raise ValueError("a new label is neither a number nor a name")
    return [(old, str(new)) for old, new in objects[0]]


def _csv_pairs(rows: Iterable[list[str]]) -> list[tuple[str, str]]:
    pairs = []
    for line, row in enumerate(rows, 1):
        cells = [cell.strip() for cell in row]
        if not any(cells) or (line == 1 and [cell.lower() for cell in cells] == ["old", "new"]):
            continue
        if len(cells) != 2 or "" in cells:
            raise ValueError(f"line {line} is not OLD,NEW: {row!s:.80}")
        pairs.append((cells[0], cells[1]))
    return pairs


def _parse_pairs(
    pairs: Sequence[tuple[str, str]],
) -> tuple[tuple[tuple[str, ...], ...], tuple[str, ...]]:
    """Number the new classes: by their numbers, or names in the order in which they first occur."""
    repeated = [old for old, num in Counter(old for old, _ in pairs).items() if num > 1]
    if repeated:
        raise ValueError(f"it maps {repeated[0]!r} twice")
    is_number = {bool(_NUMBER.fullmatch(new)) for _, new in pairs}
    if len(is_number) > 1:
        raise ValueError("some new labels are numbers, and some are names")
    if is_number == {True}:
        most = max(int(new) for _, new in pairs)
        if not 0 <= most < MAX_CLASSES:
            raise ValueError(f"the largest new label is {most}, which leaves no usable classes")
        names = tuple(map(str, range(most + 1)))
        indices = {new: int(new) for _, new in pairs}
    else:
        names = tuple(dict.fromkeys(new for _, new in pairs))
        indices = {name: i for i, name in enumerate(names)}
    if not names:
        raise ValueError("it maps no label")
    old: list[list[str]] = [[] for _ in names]
    for label, new in pairs:
        if indices[new] >= 0:
            old[indices[new]].append(label)
    return tuple(map(tuple, old)), names


def _refuse_repeated(url: str, values: Sequence[int | str], what: str) -> None:
    repeated = [value for value, num in Counter(values).items() if num > 1]
    if repeated:
        raise DataError(
            f"{url} has the {what} {repeated[0]!r} twice. Nothing was written",
            value=repeated[0],
            hint="Each old label has one new one, and each new class one name; a class may be "
            "named by its number elsewhere in the file.",
        )
