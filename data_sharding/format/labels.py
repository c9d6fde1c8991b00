"""How the labels of a sample are read from its member `KEY.<extension>`, as webdataset reads it."""

import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from data_sharding.errors import BadLabelError

# What webdataset.autodecode makes of an extension; pickles and arrays are nobody's labels.
INTEGERS = frozenset(("cls", "cls2", "index", "inx", "id"))
TEXTS = frozenset(("txt", "text", "transcript"))
JSONS = frozenset(("json", "jsn"))


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class LabelRule:
    """Which member of a sample holds its labels, and what they are.

    Args:
        kind: "single" is one class a sample; "multi" any number of them; "none" is no labels.
        extension: of the member, without regard to case: an integer (`cls`; for "multi" any number
            of them), text (`txt`: the name of a class; for "multi" one a line) or JSON (an integer
            or a name; for "multi" a list of them).
        field: for JSON, the key of an object under which the labels lie; dots descend.
    """

    kind: Literal["single", "multi", "none"] = "single"
    extension: Annotated[str, Field(pattern=r"\A[a-z0-9._-]+\z")] = "cls"
    field: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        last = self.extension.rpartition(".")[2]
        if last not in INTEGERS | TEXTS | JSONS:
            raise ValueError(
                f"'{self.extension}' holds no labels: {', '.join(sorted(INTEGERS | TEXTS | JSONS))}"
            )
        if self.field is not None and last not in JSONS:
            raise ValueError(f"field '{self.field}' needs JSON, and the extension is {last}")
        return self

    def parse(self, data: bytes, numbers: Mapping[str, int]) -> tuple[int, ...]:
        """Return the labels that a member's bytes say, each below the number of classes.

        Args:
            numbers: from the name of a class to its number.

        Raises:
            BadLabelError: they are not of this rule, or there is no such class.
        """
        values = self.values(data)
        return tuple(_number(value, numbers) for value in values)

    def values(self, data: bytes) -> list[int | str]:
        """Return the labels as they are written: numbers or names of classes.

        Raises:
            BadLabelError: the bytes are not of this rule.
        """
        if self.kind == "none":
            return []
        try:
            found = self._read(data)
        except (ValueError, LookupError, TypeError, RecursionError):
            raise BadLabelError(f"has the label {_shown(data)}, which is not {self}") from None
        values = found if self.kind == "multi" else [found]
        if not isinstance(values, list) or not all(type(v) in (int, str) for v in values):
            raise BadLabelError(f"has the label {_shown(data)}, which is not {self}")
        return values

    def __str__(self) -> str:
        if self.kind == "none":
            return "none"
        where = f" under '{self.field}'" if self.field else ""
        return f"{self.kind} {self.extension}{where}"

    def _read(self, data: bytes) -> Any:
        last = self.extension.rpartition(".")[2]
        if last in INTEGERS:
            return [int(word) for word in data.split()] if self.kind == "multi" else int(data)
        text = bytes(data).decode("utf-8")
        if last in TEXTS:
            lines = [line.strip() for line in text.split("\n")]
            return [line for line in lines if line] if self.kind == "multi" else text.strip()
        found = json.loads(text)
        for key in self.field.split(".") if self.field else ():
            found = found[key]
        return found


def sorted_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Return class names in the order of their labels, one for all sources of images.

    By code point, as torchvision's ImageFolder does; if all are whole numbers, by their value, so
    that classes 0, 1, 2, ... keep their numbers.
    """
    every = set(names)
    if all(name.isascii() and name.isdigit() and str(int(name)) == name for name in every):
        return tuple(sorted(every, key=int))
    return tuple(sorted(every))


def _number(value: int | str, numbers: Mapping[str, int]) -> int:
    number = numbers.get(value) if isinstance(value, str) else value
    if number is None or not 0 <= number < len(numbers):
        raise BadLabelError(f"has the label {value!r}, and there are {len(numbers):,} classes")
    return number


def _shown(data: bytes) -> str:
    return repr(bytes(data[:40])) + ("..." if len(data) > 40 else "")
