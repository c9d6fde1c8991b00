"""A shard opened for random access: sample i -> its image bytes and its label, without a copy.

A shard is a plain tar that `webdataset` and `tar` read. Its members are found by walking their
512-byte headers once, when it is opened; the file is memory-mapped, and an image is a slice of the
map. Members are grouped to samples by WebDataset's rule: consecutive members whose names agree up
to the first dot of the file name, and what follows the dot is the extension. A sample's members
come in any order, and those that are neither image nor label are passed over. Nothing is
extracted, so a member's name never becomes a path.

Most shards hold nothing but ordinary files, whose headers are parsed here in about 5 us each.
Anything else in a header (long names, extended attributes that matter) sends the whole shard to
the standard library's `tarfile`, which knows every dialect at five times the cost.
"""

import io
import mmap
import re
import struct
import tarfile
import zlib
from array import array
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from data_sharding.formats import IMAGE_EXTENSIONS
from data_sharding.labels import LabelRule
from data_sharding.manifest import DataError, ShardInfo

_BLOCK_BYTES = 512
_ZERO_BLOCK = bytes(_BLOCK_BYTES)
# POSIX.1-1988, ustar: name, size, checksum, type, prefix of the name.
_HEADER = struct.Struct("100s 24x 12s 12x 8s c 188x 155s 12x")

# webdataset.tariterators, 1.0: base_plus_ext and tar_file_iterator's skip_meta
_KEY_AND_EXTENSION = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")
_METADATA = re.compile(r"__[^/]*__($|/)")

# Extended headers that say nothing but times: GNU tar and webdataset write one before every file.
_ONLY_TIMES = re.compile(rb"(?:\d+ [acm]time=[0-9.]+\n)+")

_ABSENT, _UNKNOWN = -1, -2  # instead of an offset: no image; only members of unknown kinds


class ShardError(DataError):
    """A shard is missing, damaged, or not what its manifest says; no sample of it can be used."""


class BadSample(Exception):  # noqa: N818  a fact about the data, not about the program
    """One sample cannot be used; the others can.

    Args:
        labels: its labels, if they at least are known.
    """

    def __init__(self, message: str, labels: tuple[int, ...] | None = None) -> None:
        super().__init__(message)
        self.labels = labels


class ShardReader:
    """The samples of a local shard; usable as a context manager.

    Args:
        path: of the tar.
        expected: what the manifest says; size and sample count are compared, the digest is not.
        labels: which member of a sample is its label.

    Raises:
        ShardError: the shard is missing, truncated or damaged, differs from `expected`, or holds a
            sample without exactly one image and, if there are labels, one label, or with two
            members of one extension.
    """

    def __init__(
        self,
        path: str | Path,
        expected: ShardInfo | None = None,
        labels: LabelRule = LabelRule(),  # noqa: B008  a value, not a place
    ) -> None:
        self.path = Path(path)
        try:
            with self.path.open("rb") as file:
                self._map = _map(file, expected)
                self._index = _index(_members(self._map), labels)
            self._check_num_samples(expected)
        except FileNotFoundError:
            raise ShardError(
                f"no shard at {path}: the data set is incomplete. Copy the missing file from where "
                "the set came from, or make the set again."
            ) from None
        except (OSError, _UnreadableError) as error:
            raise ShardError(
                f"cannot read the shard {path}: {error}. None of its samples is used. Copy it "
                "again from where it came from, or make the data set again."
            ) from error
        self._view = memoryview(self._map)

    def __len__(self) -> int:
        return len(self._index)

    def image(self, i: int) -> memoryview:
        """Return the bytes of the i-th image file: a view that stays valid, even after `close`.

        Raises:
            BadSample: no member of the sample has a known image extension.
        """
        _, offset, num_bytes, _, _ = self._index[i].tolist()
        if offset == _UNKNOWN:
            known = ", ".join(sorted(IMAGE_EXTENSIONS))
            raise BadSample(f"has no image of a known kind ({known})")
        return self._view[offset : offset + num_bytes]

    def label_bytes(self, i: int) -> bytes:
        """Return what the member with the i-th sample's label holds; nothing without labels."""
        _, _, _, offset, num_bytes = self._index[i].tolist()
        return self._map[offset : offset + num_bytes] if offset >= 0 else b""

    def key(self, i: int) -> str:
        """Return the name of the i-th sample, read from its header again: for messages."""
        self._map.seek(int(self._index[i, 0]))
        with tarfile.open(fileobj=self._map, mode="r:", encoding="utf-8") as tar:
            member = tar.next()
        match = member and _KEY_AND_EXTENSION.match(member.name)
        return match[1] if match else ""

    def close(self) -> None:
        """Give the shard up; image views that are still held stay valid."""
        self._view.release()
        with suppress(BufferError):  # the map goes with the last view
            self._map.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _check_num_samples(self, expected: ShardInfo | None) -> None:
        if expected is not None and expected.num_samples != len(self):
            raise _UnreadableError(
                f"it holds {len(self)} samples and its manifest says {expected.num_samples}"
            )


class _UnreadableError(Exception):
    """Why a shard cannot be read."""


class _UnusualError(Exception):
    """A shard has headers that are left to tarfile."""


class _Member(NamedTuple):
    """A regular file in a tar: where its header starts, and where its bytes lie."""

    name: str
    start: int
    offset: int
    num_bytes: int


def _map(file: IO[bytes], expected: ShardInfo | None) -> mmap.mmap:
    num_bytes = file.seek(0, io.SEEK_END)
    if expected is not None and expected.num_bytes != num_bytes:
        raise _UnreadableError(
            f"it has {num_bytes} bytes and its manifest says {expected.num_bytes}"
        )
    if num_bytes == 0:
        raise _UnreadableError("it is empty")
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _index(members: Iterable[_Member], labels: LabelRule) -> NDArray[np.int64]:
    """Group members to samples.

    Returns:
        Offsets and sizes in bytes, shape (samples, 5): start of the sample's first header, offset
        and size of its image, offset and size of its label.
    """
    label_extension = None if labels.kind == "none" else labels.extension
    rows, row, key, extensions = array("q"), [0, 0, 0, 0, 0], None, set[str]()
    for member in members:
        match = _KEY_AND_EXTENSION.match(member.name)
        if match is None or _METADATA.match(member.name):
            continue
        if match[1] != key:
            rows.extend(_checked(row, key, label_extension))
            row, key, extensions = [member.start, _ABSENT, 0, _ABSENT, 0], match[1], set()
        extension = match[2].lower()
        if extension in extensions:  # webdataset's error too
            raise _UnreadableError(f"the sample {key!r} has two members .{extension}")
        extensions.add(extension)
        if extension == label_extension:
            row[3:] = member.offset, member.num_bytes
        elif extension in IMAGE_EXTENSIONS:
            if row[1] >= 0:
                raise _UnreadableError(f"the sample {key!r} has two images")
            row[1:3] = member.offset, member.num_bytes
        elif row[1] == _ABSENT:
            row[1] = _UNKNOWN
    rows.extend(_checked(row, key, label_extension))
    if not rows:
        raise _UnreadableError("it holds no samples, that is, no members KEY.jpg and KEY.cls")
    return np.frombuffer(rows, dtype=np.int64).reshape(-1, 5)


def _checked(row: list[int], key: str | None, label_extension: str | None) -> list[int]:
    """Return the row of a finished sample; none before the first."""
    if key is None:
        return []
    if row[1] == _ABSENT:
        raise _UnreadableError(f"the sample {key!r} has no image")
    if row[3] == _ABSENT and label_extension is not None:
        raise _UnreadableError(f"the sample {key!r} has no label ({key}.{label_extension})")
    return row


def _members(data: mmap.mmap) -> Iterable[_Member]:
    """List the regular files of a tar; it must end with the mark that every whole archive has."""
    try:
        return list(_walk_plain(data))
    except _UnusualError:
        return _walk_any(data)


def _walk_plain(data: mmap.mmap) -> Iterator[_Member]:
    """Walk a tar of plain v7, ustar or GNU headers; raises _UnusualError at any other."""
    start = 0
    while (header := data[start : start + _BLOCK_BYTES]) != _ZERO_BLOCK:
        if len(header) < _BLOCK_BYTES:
            raise _UnreadableError(f"it is truncated: no end mark at byte {start}")
        short_name, size, checksum, kind, prefix = _HEADER.unpack(header)
        _check_sum(header, checksum, start)
        num_bytes = _number(size, start)
        name = _name(short_name, prefix)
        offset = start + _BLOCK_BYTES
        if num_bytes < 0:
            raise _UnreadableError(f"the header at byte {start} has the size {num_bytes}")
        if kind in b"0\0" and not name.endswith("/"):
            yield _Member(name, start, offset, num_bytes)
        elif not _says_nothing(kind, data[offset : offset + num_bytes]):
            raise _UnusualError
        start = offset + -(-num_bytes // _BLOCK_BYTES) * _BLOCK_BYTES


def _says_nothing(kind: bytes, body: bytes) -> bool:
    """Return whether a header that is no file's can be passed over: a directory, or times."""
    if kind in b"xg":
        return _ONLY_TIMES.fullmatch(body) is not None
    return kind == b"5" and not body


def _check_sum(header: bytes, field: bytes, start: int) -> None:
    """Compare a header's checksum: the sum of its bytes, with blanks where the sum is stored."""
    # Adler-32 begins with 1 + the sum of all bytes modulo 65521: eight times as fast as sum().
    total = (zlib.adler32(header) & 0xFFFF) - 1 - sum(field) + 8 * ord(" ")
    excess = _number(field, start) - total
    if excess % 65521 != 0 and (excess + 256 * sum(byte > 127 for byte in header)) % 65521 != 0:
        raise _UnreadableError(f"there is no valid tar header at byte {start}")  # nor a signed sum


def _name(name: bytes, prefix: bytes) -> str:
    name = name.partition(b"\0")[0]
    if prefix[0]:
        name = prefix.partition(b"\0")[0] + b"/" + name
    return name.decode("utf-8", "surrogateescape")


def _number(field: bytes, start: int) -> int:
    """Parse an octal field, or GNU tar's base-256 field for large numbers."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    try:
        return int(field.partition(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        raise _UnreadableError(f"there is no valid tar header at byte {start}") from None


def _walk_any(data: mmap.mmap) -> Iterator[_Member]:
    """Walk a tar of any dialect with tarfile, which must not end early without a word."""
    data.seek(0)
    try:
        with tarfile.open(fileobj=data, mode="r:", encoding="utf-8") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # it would keep every one
                if member.issparse():
                    raise _UnreadableError(f"{member.name!r} is sparse: pack it without --sparse")
                if member.size < 0:  # tarfile would walk backwards, for ever
                    raise _UnreadableError(f"{member.name!r} has the size {member.size}")
                if member.isreg():
                    yield _Member(member.name, member.offset, member.offset_data, member.size)
            end = tar.offset
    except _UnreadableError:
        raise
    except Exception as error:  # tarfile raises many kinds on damaged input
        raise _UnreadableError(f"it is damaged: {type(error).__name__}: {error}") from error
    if data[end : end + _BLOCK_BYTES] != _ZERO_BLOCK:
        raise _UnreadableError(f"it is truncated or damaged: no end mark at byte {end}")
