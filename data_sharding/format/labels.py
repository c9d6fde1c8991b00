"""Read the labels of a sample from its member `KEY.<extension>`, as webdataset reads it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from data_sharding.errors import BadLabelError, DataError
from data_sharding.io.text import truncated_list

# webdataset.autodecode's kinds of extensions, without pickles and arrays.
INTEGERS = frozenset(("cls", "cls2", "index", "inx", "id"))
TEXTS = frozenset(("txt", "text", "transcript"))
JSONS = frozenset(("json", "jsn"))


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class LabelRule:
    """The member of a sample that holds its labels, and their format.

    Args:
        kind: "single" (one class a sample), "multi" (any number of them) or "none" (no labels).
        extension: extension of the member, in lower case: integer (`cls`; with "multi" any number
            of them), text (`txt`: a class name; with "multi" one a line) or JSON (an integer or a
            class name; with "multi" a list of them).
        field: for JSON, the key of an object that holds the labels; dots descend.
    """

    kind: Literal["single", "multi", "none"] = "single"
    extension: Annotated[str, Field(pattern=r"\A[a-z0-9._-]+\z")] = "cls"
    field: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        known = INTEGERS | TEXTS | JSONS
        if self._last_extension not in known:
            raise ValueError(f"'{self.extension}' holds no labels: {', '.join(sorted(known))}")
        if self.field is not None and self._last_extension not in JSONS:
            raise ValueError(
                f"field '{self.field}' needs JSON, and the extension is {self._last_extension}"
            )
        return self

    @property
    def _last_extension(self) -> str:
        return self.extension.rpartition(".")[2]

    def values(self, data: bytes) -> list[int | str]:
        """Parse the labels in a member's bytes to numbers or names of classes, unchecked.

        Raises:
            BadLabelError: they do not follow this rule.
        """
        if self.kind == "none":
            return []
        try:
            content = self._read(data)
        except (ValueError, LookupError, TypeError, RecursionError):
            content = None
        values = content if self.kind == "multi" else [content]
        if not isinstance(values, list) or not all(type(v) in (int, str) for v in values):
            quoted = repr(bytes(data[:40])) + ("..." if len(data) > 40 else "")
            raise BadLabelError(f"has the label {quoted}, which is not {self}")
        return values

    def __str__(self) -> str:
        if self.kind == "none":
            return "none"
        suffix = f" under '{self.field}'" if self.field else ""
        return f"{self.kind} {self.extension}{suffix}"

    def _read(self, data: bytes) -> Any:
        if self._last_extension in INTEGERS:
            return [int(word) for word in data.split()] if self.kind == "multi" else int(data)
        text = bytes(data).decode("utf-8")
        if self._last_extension in TEXTS:
            lines = [line.strip() for line in text.split("\n")]
            return [line for line in lines if line] if self.kind == "multi" else text.strip()
        content = json.loads(text)
        for key in self.field.split(".") if self.field else ():
            content = content[key]
        return content


def class_index(value: int | str, classes: Mapping[str, int]) -> int:
    """Return the class index of a label.

    Raises:
        BadLabelError: there is no such class.
    """
    index = classes.get(value) if isinstance(value, str) else value
    if index is None or not 0 <= index < len(classes):
        raise BadLabelError(f"has the label {value!r}, and there are {len(classes):,} classes")
    return index


def refuse_unknown_labels(what: str, values: Iterable[int | str], classes: Sequence[str]) -> None:
    """Raise a DataError if labels are neither names nor numbers of classes.

    Args:
        what: where the labels occur, for the message.
    """
    unknown = sorted({*values} - {*classes, *range(len(classes))}, key=str)
    if unknown:
        raise DataError(
            f"{what} has labels that are none of the {len(classes):,} classes: "
            f"{truncated_list([*map(repr, unknown)])}. No model can learn them, so nothing was "
            "written",
            value=unknown,
            hint="List all classes in `classes`, index both splits together, or fix the shards.",
        )


def sorted_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Sort class names in the order of their labels, for all sources of images alike.

    By code point, as torchvision's ImageFolder does; if all are whole numbers, by value, so that
    classes 0, 1, 2, ... keep their numbers.
    """
    unique = set(names)
    if all(name.isascii() and name.isdigit() and str(int(name)) == name for name in unique):
        return tuple(sorted(unique, key=int))
    return tuple(sorted(unique))
