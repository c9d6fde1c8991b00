"""The manifest of a split: all that planning a run needs to know about its shards.

A data set is a URL; `URL/train/manifest.json` and `URL/val/manifest.json` each list the shards that
lie beside them. The manifest is written last, so a split that has one is whole. What it says is
checked when it is read, and a shard's name can only be a plain file name: never a path.
"""

import hashlib
import json
import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BeforeValidator, ConfigDict, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from data_sharding.errors import DataError, UnavailableError
from data_sharding.format.labels import LabelRule
from data_sharding.format.shard_table import Sha256, ShardTable
from data_sharding.format.shard_table import ShardInfo as ShardInfo  # noqa: PLC0414  exported here too
from data_sharding.io import filesystem
from data_sharding.io.node_files import node_copy

FORMAT = "tahoe-shards-1"
FILE_NAME = "manifest.json"
SPLITS = ("train", "val")
PUBLISH_ORDER = SPLITS[::-1]  # a data set is complete when train has its manifest
TABLE_NAME: Final = "shards.safetensors"
_MAX_LISTED = 10_000  # shards; more are a table in a file of its own, mapped and not parsed


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class _TableFile:
    """A file beside the manifest that holds the shards.

    columns_sha256: the digest (hex) of what is in it, which is also that of the same shards listed.
    """

    file: Literal["shards.safetensors"]
    num_bytes: int
    columns_sha256: Sha256

    def is_in(self, path: Path) -> bool:
        """Return whether a file is this one."""
        try:
            return ShardTable.from_file(path).sha256 == self.columns_sha256
        except (OSError, ValueError):
            return False


def _as_table(shards: Any) -> ShardTable:
    return shards if isinstance(shards, ShardTable) else ShardTable.from_infos(shards)


@dataclass(frozen=True, config=ConfigDict(extra="forbid", arbitrary_types_allowed=True))
class Manifest:
    """The shards of a split, in order; label i is the class `classes[i]`.

    `source` says how the shards were made, in plain JSON values; nothing is computed from it.
    """

    classes: tuple[str, ...]
    shards: Annotated[ShardTable, BeforeValidator(_as_table)]
    source: Mapping[str, Any]
    labels: LabelRule = LabelRule()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.classes and self.labels.kind != "none":
            raise ValueError("there are no classes")
        twice = next((name for name, num in Counter(self.classes).items() if num > 1), None)
        if twice is not None:
            raise ValueError(f"the class {twice!r} is listed twice")
        self.shards.check()
        return self

    @property
    def num_samples(self) -> int:
        return int(self.shards.num_samples.sum())

    @property
    def num_bytes(self) -> int:
        return int(self.shards.num_bytes.sum())

    @property
    def fingerprint(self) -> str:
        """The identity of the data: a SHA-256 (hex) that changes with any byte of any shard."""
        identity = [self.classes, asdict(self.labels), self.shards.sha256]
        canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


def url_of(url: str, split: str) -> str:
    """Return the URL of a split's manifest."""
    return filesystem.join(url, split, FILE_NAME)


def read_manifest(url: str, split: str) -> Manifest:
    """Read the manifest of a split.

    Raises:
        DataError: there is none, it cannot be read, or what it says cannot be true.
    """
    where = url_of(url, split)
    try:
        data = filesystem.read_bytes(where)
    except FileNotFoundError:
        quoted = shlex.quote(url)
        raise DataError(
            f"no data set at {url}: {split}/{FILE_NAME} is missing there, so there is nothing to "
            f"read. Check the URL, or make the set: `tahoe shard folder DIR {quoted}` from class "
            f"folders, `tahoe shard digits {quoted}` for scikit-learn's handwritten digits."
        ) from None
    except OSError as error:
        raise _out_of_reach(where, error) from error
    except Exception as error:  # fsspec, of the protocol
        raise DataError(
            f"cannot read {where}: {type(error).__name__}: {error}. The data set cannot be used "
            "until this works: check the URL."
        ) from error
    return _parse(data, url, split)


def write_manifest(url: str, split: str, manifest: Manifest) -> None:
    """Publish the manifest of a split, whole or not at all; its shards must be there already.

    Many shards are a table in a file of its own, which the manifest names with its digest.
    """
    values: dict[str, Any] = {"format": FORMAT, "classes": manifest.classes}
    if manifest.labels != LabelRule():
        values["labels"] = asdict(manifest.labels)
    if len(manifest.shards) <= _MAX_LISTED:
        values["shards"] = [asdict(shard) for shard in manifest.shards]
    else:
        table = manifest.shards.to_bytes()
        filesystem.write_bytes(filesystem.join(url, split, TABLE_NAME), table)
        values["shards"] = asdict(_TableFile(TABLE_NAME, len(table), manifest.shards.sha256))
    values["source"] = manifest.source
    text = json.dumps(values, indent=2, ensure_ascii=False)
    filesystem.write_bytes(url_of(url, split), (text + "\n").encode())


def _parse(data: bytes, url: str, split: str) -> Manifest:
    where = url_of(url, split)
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _unusable(where, f"it is not JSON ({error})") from error
    if not isinstance(values, dict):
        raise _unusable(where, "it is not a JSON object")
    found = values.pop("format", None)
    if found != FORMAT:
        raise DataError(
            f"{where} has the format {found!r}, and this Tahoe reads {FORMAT!r}: the data set "
            "cannot be used. Upgrade Tahoe if the set is newer, or make the set again."
        )
    try:
        if isinstance(values.get("shards"), dict):
            described = _TABLE.validate_python({"shards": values["shards"]})["shards"]
            values["shards"] = _map_table(url, split, described)
        elif "shards" in values:
            values["shards"] = _LISTED.validate_python({"shards": values["shards"]})["shards"]
        return _MANIFEST.validate_python(values)
    except ValidationError as error:
        raise _unusable(where, _reason(error)) from error


def _reason(error: ValidationError) -> str:
    """Return the first thing that is wrong, and where."""
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    if not place:  # one of our own checks, which says where
        return str(first["msg"]).removeprefix("Value error, ")
    return f"{place}: {first['msg']}, found {first['input']!r:.80}"


def _map_table(url: str, split: str, described: _TableFile) -> ShardTable:
    """Return the table that a manifest describes, from a file on this node."""
    where = filesystem.join(url, split, TABLE_NAME)
    try:
        path = node_copy(where, f"{described.columns_sha256}.safetensors", described.is_in)
        if path.stat().st_size != described.num_bytes:
            raise ValueError(f"it has {path.stat().st_size} bytes, not {described.num_bytes}")
        table = ShardTable.from_file(path)
        if table.sha256 != described.columns_sha256:
            raise ValueError(f"its digest is {table.sha256}, not {described.columns_sha256}")
    except (FileNotFoundError, ValueError) as error:
        raise _unusable(where, str(error)) from error
    except OSError as error:
        raise _out_of_reach(where, error) from error
    return table


_LISTED = TypeAdapter(dict[str, tuple[ShardInfo, ...]])
_TABLE = TypeAdapter(dict[str, _TableFile])
_MANIFEST = TypeAdapter(Manifest)


def _out_of_reach(where: str, error: OSError) -> UnavailableError:
    return UnavailableError(
        f"cannot read {where}: {type(error).__name__}: {error}. The data set cannot be used until "
        "this works: check the URL, the credentials and the network."
    )


def _unusable(where: str, reason: str) -> DataError:
    return DataError(
        f"{where} is no usable manifest: {reason}. Nothing is read from this data set: restore the "
        "file from where it was copied, or make the set again."
    )
