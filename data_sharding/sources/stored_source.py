"""A listed source in one file, so that processes on other nodes need not list it again.

Listing a directory of ten million files takes a shared file system many minutes, and two listings
may differ. The file is a safetensors file: the arrays of the listing, and in its metadata a JSON
tree that says what they are. Only the classes below are built from it, by name: no pickle.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from data_sharding.errors import DataError
from data_sharding.format.labels import LabelRule
from data_sharding.format.sample_rule import SampleRule
from data_sharding.image.quality_report import QualityFindings
from data_sharding.sources.base import Labels, ListedImages, PixelImages, Source
from data_sharding.sources.imagenet import ArchivedImages
from data_sharding.sources.packed_strings import PackedStrings
from data_sharding.sources.shard_samples import ShardSamples

_KIND, _ITEMS, _ARRAY, _STRINGS = "kind", "items", "array", "strings"
STORED_CLASSES: dict[str, type[Any]] = {
    record.__name__: record
    for record in (
        *(ArchivedImages, LabelRule, Labels, ListedImages, PixelImages),
        *(QualityFindings, SampleRule, ShardSamples, Source),
    )
}


def write_source(source: Source, path: Path) -> None:
    """Write a listed source to a file."""
    bulk = _Bulk()
    tree = json.dumps(_encode(source, bulk))
    save_file(bulk.arrays, path, metadata={"source": tree})


def read_source(path: Path) -> Source:
    """Read a source that `write_source` has written.

    Raises:
        DataError: the file is missing, damaged or none of these.
    """
    try:
        with safe_open(path, "np") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            source = _decode(json.loads(file.metadata()["source"]), arrays)
        if not isinstance(source, Source):
            raise TypeError(f"it holds a {type(source).__name__}")
    except (SafetensorError, OSError, LookupError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} holds no listed source ({error}); nothing was written",
            value=path,
            hint="Run the command again that lists the source.",
        ) from error
    return source


class _Bulk:
    """Collects the arrays of a source: those that its splits share, which may be large, once."""

    def __init__(self) -> None:
        self.arrays: dict[str, NDArray[Any]] = {}
        self._references: dict[int, dict[str, str]] = {}

    def add(self, value: NDArray[Any] | PackedStrings) -> dict[str, str]:
        """Return the JSON value that stands for an array, or for strings."""
        if id(value) not in self._references:
            name = f"{len(self._references):04d}"
            if isinstance(value, PackedStrings):
                self.arrays |= zip((f"{name}.data", f"{name}.ends"), value.arrays, strict=True)
            else:
                self.arrays[name] = np.ascontiguousarray(value)
            kind = _STRINGS if isinstance(value, PackedStrings) else _ARRAY
            self._references[id(value)] = {_KIND: kind, _ITEMS: name}
        return self._references[id(value)]


def _encode(value: Any, bulk: _Bulk) -> Any:
    """Return a JSON value; arrays and strings are collected, and named in it."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [_encode(item, bulk) for item in value]
    if isinstance(value, np.ndarray | PackedStrings):
        return bulk.add(value)
    kind, items = _parts(value)
    return {_KIND: kind, _ITEMS: _encode(items, bulk)}


def _parts(value: Any) -> tuple[str, list[Any]]:
    """Return the kind of a value that is no JSON, and what it is built from."""
    kind = type(value).__name__
    if isinstance(value, Path):
        return "Path", [str(value)]
    if kind in STORED_CLASSES and is_dataclass(value):
        return kind, [[field.name, getattr(value, field.name)] for field in fields(value)]
    if kind in STORED_CLASSES:  # a NamedTuple
        return kind, [[*pair] for pair in value._asdict().items()]
    if isinstance(value, tuple):
        return "tuple", [*value]
    if isinstance(value, Mapping):
        return "Counter" if kind == "Counter" else "dict", [[*pair] for pair in value.items()]
    raise TypeError(f"a {kind} of a source cannot be stored: add it to {__name__}")


def _decode(value: Any, bulk: dict[str, Any]) -> Any:
    if isinstance(value, list):
        return [_decode(item, bulk) for item in value]
    if not isinstance(value, dict):
        return value
    kind, stored = value[_KIND], value[_ITEMS]
    if kind == _STRINGS and stored not in bulk:
        bulk[stored] = PackedStrings.from_arrays(bulk[f"{stored}.data"], bulk[f"{stored}.ends"])
    if kind in (_ARRAY, _STRINGS):
        return bulk[stored]
    items = cast("list[Any]", _decode(stored, bulk))
    if kind in STORED_CLASSES:
        return STORED_CLASSES[kind](**dict(items))
    return _BUILDERS[kind](items)


_BUILDERS: dict[str, Callable[[list[Any]], Any]] = {
    "Path": lambda items: Path(*items),
    "tuple": tuple,
    "dict": dict,
    "Counter": lambda items: Counter(dict(items)),
}
