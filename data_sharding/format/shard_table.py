"""The shards of a split as columns: a million of them are 64 MB that are mapped, not parsed.

A table in a file costs only what is looked at, and is sent to other processes as the file's path.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, overload

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, ConfigDict, Field, Strict
from pydantic.dataclasses import dataclass

from data_sharding.format.location import check_shard_name
from data_sharding.format.shard_digest import DigestKind
from data_sharding.io.mapped_arrays import arrays_to_safetensors, mmap_safetensors
from data_sharding.io.node_files import node_copy

_LIMIT = 1 << 62  # of samples and of bytes; rng.permute_index goes no further
_COLUMNS: dict[DigestKind, str] = {
    "whole": "digests",
    "headers": "header_digests",
    "sampled": "sampled_digests",
}
_ROWS = 1 << 16  # checked at a time, which takes little memory

Sha256 = Annotated[str, Field(pattern=r"\A[0-9a-f]{64}\z")]
_PositiveInt = Annotated[int, Strict(), Field(gt=0, lt=_LIMIT)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ShardInfo:
    """The number of samples, size and digest (hex) that a shard must have.

    name: its path below the base of its split (see `format.location`), mostly a file name.
    digest: the bytes that `sha256` is of, as in `shard_digest`; all shards of a split are alike.
    """

    name: Annotated[str, AfterValidator(check_shard_name)]
    num_samples: _PositiveInt
    num_bytes: _PositiveInt
    sha256: Sha256
    digest: DigestKind = "whole"

    def as_listed(self) -> dict[str, Any]:
        """Return its entry in the list of a manifest, where digests are whole unless it says so."""
        values = asdict(self)
        if self.digest == "whole":
            del values["digest"]
        return values


class ShardTable(Sequence[ShardInfo]):
    """The shards of a split, in order.

    Args:
        names: uint8 (n, width), UTF-8, padded with zeros to the width of the longest.
        num_samples, num_bytes: int64 (n,).
        digests: uint8 (n, 32), SHA-256.
        kind: the bytes that the digests are of.
        path: file that the columns are mapped from.
    """

    def __init__(
        self,
        names: NDArray[np.uint8],
        num_samples: NDArray[np.int64],
        num_bytes: NDArray[np.int64],
        digests: NDArray[np.uint8],
        kind: DigestKind = "whole",
        path: Path | None = None,
    ) -> None:
        self._names, self._digests, self._kind, self._path = names, digests, kind, path
        self.num_samples, self.num_bytes = num_samples, num_bytes
        self._version = None if path is None else _version_of(path)

    @classmethod
    def from_infos(cls, shards: Iterable[ShardInfo]) -> "ShardTable":
        """Make a table of shards.

        Raises:
            ValueError: their digests are of different kinds.
        """
        shards = list(shards)
        kind: DigestKind = shards[0].digest if shards else "whole"
        if any(shard.digest != kind for shard in shards):
            raise ValueError(
                "the digests are not all whole, not all of headers, and not all sampled"
            )
        names = np.array([shard.name.encode() for shard in shards], dtype=np.bytes_)
        digests = np.frombuffer(bytes.fromhex("".join(s.sha256 for s in shards)), dtype=np.uint8)
        return cls(
            names.view(np.uint8).reshape(len(shards), names.itemsize),
            np.array([shard.num_samples for shard in shards], dtype=np.int64),
            np.array([shard.num_bytes for shard in shards], dtype=np.int64),
            digests.reshape(-1, 32),
            kind,
        )

    @classmethod
    def from_file(cls, path: Path) -> "ShardTable":
        """Map the table in a file.

        Raises:
            ValueError: it is no table.
            OSError: it cannot be read.
        """
        columns = {name: np.asarray(column) for name, column in mmap_safetensors(path).items()}
        kinds: list[DigestKind] = [kind for kind, name in _COLUMNS.items() if name in columns]
        kind = kinds[0] if kinds else "whole"
        formats = {name: (column.dtype.str, column.shape) for name, column in columns.items()}
        shape = formats.get("names", ("", ()))[1]
        num, width = shape if len(shape) == 2 else (0, 0)
        if formats != {
            "names": ("|u1", (num, width)),
            _COLUMNS[kind]: ("|u1", (num, 32)),
            "num_samples": ("<i8", (num,)),
            "num_bytes": ("<i8", (num,)),
        }:
            raise ValueError(f"its columns are not those of a table of shards: {formats!s:.300}")
        columns["digests"] = columns.pop(_COLUMNS[kind])
        return cls(**columns, kind=kind, path=path)

    def to_bytes(self) -> bytes:
        """Return the content of a table file."""
        return arrays_to_safetensors(self._columns)

    @cached_property
    def sha256(self) -> str:
        """A digest (hex) of all fields of all shards, however they are stored."""
        kind = "" if self._kind == "whole" else self._kind
        digest = hashlib.sha256(f"{kind}{self._names.shape}".encode())
        for column in self._columns.values():
            digest.update(np.ascontiguousarray(column).data)
        return digest.hexdigest()

    def check(self) -> None:
        """Raise ValueError if a field of a shard is impossible, or a name occurs twice."""
        if not len(self):
            raise ValueError("there are no shards")
        width = self._names.shape[1]
        if not width or not self._names[:, -1].any():
            raise ValueError("the column of names is wider than the longest name")
        names = np.ascontiguousarray(self._names).view(f"S{width}").ravel()
        for start in range(0, len(self), _ROWS):
            for row, name in enumerate(names[start : start + _ROWS].tolist(), start):
                try:
                    check_shard_name(name.decode())
                except ValueError as error:
                    raise ValueError(f"shards.{row}.name: {error}") from error
        _check_counts("num_samples", self.num_samples)
        _check_counts("num_bytes", self.num_bytes)
        if not (names[:-1] < names[1:]).all():
            seen = set[bytes]()
            for name in names.tolist():
                if name in seen:
                    raise ValueError(f"the shard {name.decode()!r} is listed twice")
                seen.add(name)

    def __len__(self) -> int:
        return len(self.num_samples)

    @overload
    def __getitem__(self, index: int) -> ShardInfo: ...
    @overload
    def __getitem__(self, index: slice) -> "ShardTable": ...
    def __getitem__(self, index: int | slice) -> "ShardInfo | ShardTable":
        if isinstance(index, slice):
            return ShardTable.from_infos(self[i] for i in range(*index.indices(len(self))))
        return ShardInfo(
            name=bytes(self._names[index]).rstrip(b"\0").decode(),
            num_samples=int(self.num_samples[index]),
            num_bytes=int(self.num_bytes[index]),
            sha256=bytes(self._digests[index]).hex(),
            digest=self._kind,
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ShardTable) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)

    def __repr__(self) -> str:
        return f"ShardTable({len(self)} shards)"

    def __reduce__(self) -> tuple[Any, ...]:
        if self._path is not None:
            return _map_again, (self._path, self._version)
        return ShardTable, (*self._columns.values(), self._kind)

    @property
    def _columns(self) -> dict[str, NDArray[Any]]:
        """The columns in the order of `__init__`."""
        return {
            "names": self._names,
            "num_samples": self.num_samples,
            "num_bytes": self.num_bytes,
            _COLUMNS[self._kind]: self._digests,
        }


def _version_of(path: Path) -> tuple[int, ...]:
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _map_again(path: Path, version: tuple[int, ...]) -> ShardTable:
    """Map a table that another process has mapped."""
    table = ShardTable.from_file(path)
    if table._version != version:
        raise ValueError(
            f"{path} was replaced while a process was using it, so another would read other shards"
        )
    return table


def _check_counts(name: str, column: NDArray[np.int64]) -> None:
    is_bad = (column <= 0) | (column >= _LIMIT)
    if is_bad.any():
        row = int(is_bad.argmax())
        raise ValueError(f"shards.{row}.{name}: {column[row]} is not from 1 to 2**62 - 1")
    if column.sum(dtype=np.float64) >= _LIMIT:
        raise ValueError(f"{name}: all shards together have 2**62 or more")


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class TableFile:
    """A file beside the manifest that holds the table of shards.

    file: its name there; only that which `Location.files` gives it is read.
    columns_sha256: digest (hex) of its content, equal to that of the same shards in a list.
    """

    file: str
    num_bytes: int
    columns_sha256: Sha256

    def open(self, url: str) -> ShardTable:
        """Map the table at a URL, from a file on this node.

        Raises:
            ValueError: it is not the table of the manifest.
            OSError: it cannot be read.
        """
        path = node_copy(url, f"{self.columns_sha256}.safetensors", self._matches)
        if path.stat().st_size != self.num_bytes:
            raise ValueError(f"it has {path.stat().st_size} bytes, not {self.num_bytes}")
        table = ShardTable.from_file(path)
        if table.sha256 != self.columns_sha256:
            raise ValueError(f"its digest is {table.sha256}, not {self.columns_sha256}")
        return table

    def _matches(self, path: Path) -> bool:
        try:
            return ShardTable.from_file(path).sha256 == self.columns_sha256
        except (OSError, ValueError):
            return False
