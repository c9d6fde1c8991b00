"""The shards of a split as columns: a million of them are 64 MB that are mapped, not parsed.

A table of a file costs what is looked at of it, and travels to other processes as the file's path.
"""

import hashlib
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, overload

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, Strict
from pydantic.dataclasses import dataclass

from data_sharding.io.mapped_arrays import arrays_to_safetensors, mmap_safetensors
from data_sharding.rng import splitmix64

_ShardName = Annotated[str, Field(pattern=r"\A[A-Za-z0-9._-]+\.tar\z")]
Sha256 = Annotated[str, Field(pattern=r"\A[0-9a-f]{64}\z")]
_PositiveInt = Annotated[int, Strict(), Field(gt=0, lt=1 << 62)]

_LIMIT = 1 << 62  # of samples and of bytes; counter.permute goes no further
_ROWS = 1 << 16  # that are checked at a time: checking a million takes little memory then
_IN_NAMES = np.zeros(256, dtype=bool)
_IN_NAMES[[*b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-"]] = True
_SUFFIX = np.frombuffer(b".tar", dtype=np.uint8)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ShardInfo:
    """What a shard must be: its file name, its samples, its size and its digest (hex)."""

    name: _ShardName
    num_samples: _PositiveInt
    num_bytes: _PositiveInt
    sha256: Sha256


class ShardTable(Sequence[ShardInfo]):
    """The shards of a split, in order.

    Args:
        names: uint8 (n, width), ASCII, filled up with zeros to the width of the longest.
        num_samples, num_bytes: int64 (n,).
        digests: uint8 (n, 32), SHA-256.
        path: the file that the columns are mapped from.
    """

    def __init__(
        self,
        names: NDArray[np.uint8],
        num_samples: NDArray[np.int64],
        num_bytes: NDArray[np.int64],
        digests: NDArray[np.uint8],
        path: Path | None = None,
    ) -> None:
        self._names, self._digests, self._path = names, digests, path
        self.num_samples, self.num_bytes = num_samples, num_bytes
        self._state = None if path is None else _state_of(path)

    @classmethod
    def from_infos(cls, shards: Iterable[ShardInfo]) -> "ShardTable":
        """Return the table of some shards."""
        shards = list(shards)
        names = np.array([shard.name.encode("ascii") for shard in shards], dtype=np.bytes_)
        digests = np.frombuffer(bytes.fromhex("".join(s.sha256 for s in shards)), dtype=np.uint8)
        return cls(
            names.view(np.uint8).reshape(len(shards), names.itemsize),
            np.array([shard.num_samples for shard in shards], dtype=np.int64),
            np.array([shard.num_bytes for shard in shards], dtype=np.int64),
            digests.reshape(-1, 32),
        )

    @classmethod
    def from_file(cls, path: Path) -> "ShardTable":
        """Return the table of a file, which stays where it is.

        Raises:
            ValueError: it is no table.
            OSError: it cannot be read.
        """
        columns = {name: np.asarray(column) for name, column in mmap_safetensors(path).items()}
        found = {name: (column.dtype.str, column.shape) for name, column in columns.items()}
        num, width = columns["names"].shape if len(found.get("names", ("", ()))[1]) == 2 else (0, 0)
        wanted: dict[str, tuple[str, tuple[int, ...]]] = {
            "names": ("|u1", (num, width)),
            "digests": ("|u1", (num, 32)),
            "num_samples": ("<i8", (num,)),
            "num_bytes": ("<i8", (num,)),
        }
        if found != wanted:
            raise ValueError(f"its columns are not those of a table of shards: {found!s:.300}")
        return cls(**columns, path=path)

    def to_bytes(self) -> bytes:
        """Return the binary form."""
        return arrays_to_safetensors(self._columns)

    @cached_property
    def sha256(self) -> str:
        """A digest (hex) of all that is known of the shards, however they are stored."""
        digest = hashlib.sha256(f"{self._names.shape}".encode())
        for column in self._columns.values():
            digest.update(np.ascontiguousarray(column).data)
        return digest.hexdigest()

    def check(self) -> None:
        """Raise ValueError if a shard cannot be what the table says."""
        if not len(self):
            raise ValueError("there are no shards")
        for start in range(0, len(self), _ROWS):
            _check_names(self._names[start : start + _ROWS], start)
        if not self._names[:, -1].any():
            raise ValueError("the column of names is wider than the longest name")
        _check_counts("num_samples", self.num_samples)
        _check_counts("num_bytes", self.num_bytes)
        _check_unique(np.ascontiguousarray(self._names).view(f"S{self._names.shape[1]}").ravel())

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
            name=bytes(self._names[index]).rstrip(b"\0").decode("ascii"),
            num_samples=int(self.num_samples[index]),
            num_bytes=int(self.num_bytes[index]),
            sha256=bytes(self._digests[index]).hex(),
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ShardTable) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)

    def __repr__(self) -> str:
        return f"ShardTable({len(self)} shards)"

    def __reduce__(self) -> tuple[Any, ...]:
        if self._path is not None:
            return _map_again, (self._path, self._state)
        return ShardTable, tuple(self._columns.values())

    @property
    def _columns(self) -> dict[str, NDArray[Any]]:
        """The columns as __init__ takes them."""
        return {
            "names": self._names,
            "num_samples": self.num_samples,
            "num_bytes": self.num_bytes,
            "digests": self._digests,
        }


def _state_of(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _map_again(path: Path, state: tuple[int, ...]) -> ShardTable:
    """Map a table that another process has mapped."""
    table = ShardTable.from_file(path)
    if table._state != state:
        raise ValueError(
            f"{path} was replaced while a process was using it, so another would read other shards"
        )
    return table


def _check_names(names: NDArray[np.uint8], first: int) -> None:
    """Check that all rows are NAME.tar of plain characters, and zeros behind it."""
    is_end = names == 0
    lengths = names.shape[1] - is_end.sum(axis=1)
    is_bad = ~(is_end | _IN_NAMES[names]).all(axis=1) | (is_end[:, :-1] > is_end[:, 1:]).any(axis=1)
    is_bad |= lengths <= len(_SUFFIX)
    rest = np.flatnonzero(~is_bad)
    last = lengths[rest, None] + np.arange(-len(_SUFFIX), 0)
    is_bad[rest] = (names[rest[:, None], last] != _SUFFIX).any(axis=1)
    if is_bad.any():
        row = int(is_bad.argmax())
        name = bytes(names[row]).rstrip(b"\0")
        raise ValueError(f"shards.{first + row}.name: {name!r:.80} is no plain NAME.tar")


def _check_counts(name: str, column: NDArray[np.int64]) -> None:
    is_bad = (column <= 0) | (column >= _LIMIT)
    if is_bad.any():
        row = int(is_bad.argmax())
        raise ValueError(f"shards.{row}.{name}: {column[row]} is not from 1 to 2**62 - 1")
    if column.sum(dtype=np.float64) >= _LIMIT:
        raise ValueError(f"{name}: all shards together have 2**62 or more")


def _check_unique(names: NDArray[np.bytes_]) -> None:
    if (names[:-1] < names[1:]).all() or len(np.unique(_hash(names))) == len(names):
        return
    found, counts = np.unique(names, return_counts=True)
    if counts.max() > 1:
        twice = found[counts.argmax()].decode("ascii")
        raise ValueError(f"the shard {twice!r} is listed twice")


def _hash(names: NDArray[np.bytes_]) -> NDArray[np.uint64]:
    """Return a number for each name, equal ones for equal names: they sort 15 times as fast."""
    words = names.astype(f"S{-(-names.itemsize // 8) * 8}").view(np.uint64)
    key = np.zeros(len(names), dtype=np.uint64)
    for word in words.reshape(len(names), -1).T:
        key = splitmix64(key + word)
    return key
