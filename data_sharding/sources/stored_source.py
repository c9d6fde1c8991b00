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

_KIND, _ARRAY, _ITEMS = "kind", "array", "items"
STORED_CLASSES: dict[str, type[Any]] = {
    record.__name__: record
    for record in (
        *(ArchivedImages, LabelRule, Labels, ListedImages, PixelImages),
        *(QualityFindings, SampleRule, ShardSamples, Source),
    )
}
_Arrays = dict[str, NDArray[Any]]


def write_source(source: Source, path: Path) -> None:
    """Write a listed source to a file."""
    arrays: _Arrays = {}
    tree = json.dumps(_encode(source, arrays))
    save_file(arrays, path, metadata={"source": tree})


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


def _encode(value: Any, arrays: _Arrays) -> Any:
    """Return a JSON value; arrays are collected, and named in it."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [_encode(item, arrays) for item in value]
    if isinstance(value, np.ndarray):
        name = f"{len(arrays):04d}"
        arrays[name] = np.ascontiguousarray(value)
        return {_KIND: _ARRAY, _ITEMS: name}
    kind, items = _parts(value)
    return {_KIND: kind, _ITEMS: _encode(items, arrays)}


def _parts(value: Any) -> tuple[str, list[Any]]:
    """Return the kind of a value that is no JSON, and what it is built from."""
    kind = type(value).__name__
    if isinstance(value, PackedStrings):
        return "PackedStrings", [*value.arrays]
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


def _decode(value: Any, arrays: _Arrays) -> Any:
    if isinstance(value, list):
        return [_decode(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    kind = value[_KIND]
    if kind == _ARRAY:
        return arrays[value[_ITEMS]]
    items = cast("list[Any]", _decode(value[_ITEMS], arrays))
    if kind in STORED_CLASSES:
        return STORED_CLASSES[kind](**dict(items))
    return _BUILDERS[kind](items)


_BUILDERS: dict[str, Callable[[list[Any]], Any]] = {
    "PackedStrings": lambda items: PackedStrings.from_arrays(*items),
    "Path": lambda items: Path(*items),
    "tuple": tuple,
    "dict": dict,
    "Counter": lambda items: Counter(dict(items)),
}
