"""The manifest of a split: all that planning a run needs to know about its shards.

A data set is a URL; `URL/train/manifest.json` and `URL/val/manifest.json` each list the shards that
lie beside them. The manifest is written last, so a split that has one is whole. What it says is
checked when it is read, and a shard's name can only be a plain file name: never a path.
"""

import hashlib
import json
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, Strict, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from data_sharding import files

FORMAT = "tahoe-shards-1"
FILE_NAME = "manifest.json"

_ShardName = Annotated[str, Field(pattern=r"\A[A-Za-z0-9._-]+\.tar\z")]
_Sha256 = Annotated[str, Field(pattern=r"\A[0-9a-f]{64}\z")]
_PositiveInt = Annotated[int, Strict(), Field(gt=0)]


class DataError(Exception):
    """A data set cannot be used or written as asked; the message says what to do instead."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ShardInfo:
    """What a shard must be: its file name, its samples, its size and its digest (hex)."""

    name: _ShardName
    num_samples: _PositiveInt
    num_bytes: _PositiveInt
    sha256: _Sha256


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Manifest:
    """The shards of a split, in order; label i is the class `classes[i]`.

    `source` says how the shards were made, in plain JSON values; nothing is computed from it.
    """

    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    shards: Annotated[tuple[ShardInfo, ...], Field(min_length=1)]
    source: Mapping[str, Any]

    @model_validator(mode="after")
    def _check_unique(self) -> Self:
        for what, names in ("class", self.classes), ("shard", [s.name for s in self.shards]):
            twice = _first_repeated(names)
            if twice is not None:
                raise ValueError(f"the {what} {twice!r} is listed twice")
        return self

    @property
    def num_samples(self) -> int:
        return sum(shard.num_samples for shard in self.shards)

    @property
    def num_bytes(self) -> int:
        return sum(shard.num_bytes for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """The identity of the data: a SHA-256 (hex) that changes with any byte of any shard."""
        identity = {"classes": self.classes, "shards": [asdict(shard) for shard in self.shards]}
        canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


def url_of(url: str, split: str) -> str:
    """Return the URL of a split's manifest."""
    return files.join(url, split, FILE_NAME)


def read_manifest(url: str, split: str) -> Manifest:
    """Read the manifest of a split.

    Raises:
        DataError: there is none, it cannot be read, or what it says cannot be true.
    """
    where = url_of(url, split)
    try:
        data = files.read_bytes(where)
    except FileNotFoundError:
        quoted = shlex.quote(url)
        raise DataError(
            f"no data set at {url}: {split}/{FILE_NAME} is missing there, so there is nothing to "
            f"read. Check the URL, or make the set: `tahoe shard folder DIR {quoted}` from class "
            f"folders, `tahoe shard digits {quoted}` for scikit-learn's handwritten digits."
        ) from None
    except Exception as error:  # every store raises its own kinds
        raise DataError(
            f"cannot read {where}: {type(error).__name__}: {error}. The data set cannot be used "
            "until this works: check the URL, the credentials and the network."
        ) from error
    return _parse(data, where)


def write_manifest(url: str, split: str, manifest: Manifest) -> None:
    """Publish the manifest of a split, whole or not at all; its shards must be there already."""
    text = json.dumps({"format": FORMAT, **asdict(manifest)}, indent=2, ensure_ascii=False)
    files.write_bytes(url_of(url, split), (text + "\n").encode())


def _parse(data: bytes, where: str) -> Manifest:
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
        return TypeAdapter(Manifest).validate_python(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "manifest"
        raise _unusable(where, f"{place}: {first['msg']}, found {first['input']!r:.80}") from error


def _unusable(where: str, reason: str) -> DataError:
    return DataError(
        f"{where} is no usable manifest: {reason}. Nothing is read from this data set: restore the "
        "file from where it was copied, or make the set again."
    )


def _first_repeated(names: Iterable[str]) -> str | None:
    return next((name for name, num in Counter(names).items() if num > 1), None)
