"""A shard opened for random access: sample i -> its image bytes and its label, without a copy.

A shard is a plain tar that `webdataset` and `tar` read. Its members are found by walking their
512-byte headers once, when it is opened; the file is memory-mapped, and an image is a slice of the
map. Members are grouped to samples by WebDataset's rule. A sample's members come in any order, and
those that are neither image nor label are passed over and counted. Nothing is extracted, so a
member's name never becomes a path; a hard link means the member of that name which came before.

A file may hold several tars one behind the other, as `cat a.tar b.tar` makes them. All are read, as
`tar --ignore-zeros` does; plain `tar` and webdataset stop at the end of the first.

Most shards hold nothing but ordinary files, whose headers are parsed here in about 5 us each.
Anything else in a header (long names, hard links, extended attributes) sends the whole tar to
the standard library's `tarfile`, which knows every dialect at five times the cost.
"""

import io
import mmap
import re
import struct
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Self

from data_sharding.errors import (
    BadSample,
    ShardError,
    UnavailableShardError,
)
from data_sharding.format.image_formats import IMAGE_EXTENSIONS
from data_sharding.format.labels import LabelRule
from data_sharding.format.manifest import ShardInfo
from data_sharding.format.tar_samples import (
    DIRECTORY,
    FILE,
    KEY_AND_EXTENSION,
    SPECIAL,
    SYMLINK,
    UNKNOWN,
    Member,
    UnusableError,
    group,
)

_BLOCK_BYTES = 512
_ZERO_BLOCK = bytes(_BLOCK_BYTES)
# POSIX.1-1988, ustar: name, size, checksum, type, prefix of the name.
_HEADER = struct.Struct("100s 24x 12s 12x 8s c 188x 155s 12x")

_PLAIN_KINDS = {b"5": DIRECTORY, b"2": SYMLINK, b"3": SPECIAL, b"4": SPECIAL, b"6": SPECIAL}
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_CHUNK_BYTES = 1 << 20  # in which the zeros behind an end mark are looked through

# Extended headers that say nothing but times: GNU tar and webdataset write one before every file.
_ONLY_TIMES = re.compile(rb"(?:\d+ [acm]time=[0-9.]+\n)+")


class TooLarge(BadSample):
    """An image may be sound, and has more pixels than are decoded."""


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
                found = group(_archives(self._map), labels)
            self._index, self.passed_over, self.remarks = found
            self._check_num_samples(expected)
        except FileNotFoundError:
            raise ShardError(
                f"no shard at {path}: the data set is incomplete. Copy the missing file from where "
                "the set came from, or make the set again."
            ) from None
        except OSError as error:
            raise UnavailableShardError(
                f"cannot read the shard {path}: {error}. None of its samples is used until it can "
                "be read: look at its rights and at the disk."
            ) from error
        except UnusableError as error:
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
        if offset == UNKNOWN:
            known, mine = ", ".join(sorted(IMAGE_EXTENSIONS)), ", ".join(self._extensions(i))
            raise BadSample(
                f"has no image of a known kind: what follows the first dot of its names is {mine}, "
                f"and that of an image is {known}"
            )
        return self._view[offset : offset + num_bytes]

    def label_bytes(self, i: int) -> bytes:
        """Return what the member with the i-th sample's label holds; nothing without labels."""
        _, _, _, offset, num_bytes = self._index[i].tolist()
        return self._map[offset : offset + num_bytes] if offset >= 0 else b""

    def key(self, i: int) -> str:
        """Return the name of the i-th sample, read from its header again: for messages."""
        return next(self._names(i))[0]

    @property
    def has_links(self) -> bool:
        """Whether the bytes of a sample lie before it, since it is made of hard links."""
        starts, offsets = self._index[:, :1], self._index[:, [1, 3]]
        return bool(((offsets >= 0) & (offsets < starts)).any())

    def close(self) -> None:
        """Give the shard up; image views that are still held stay valid."""
        self._view.release()
        with suppress(BufferError):  # the map goes with the last view
            self._map.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _names(self, i: int) -> Iterator[tuple[str, str]]:
        """Yield key and extension of the members from the i-th sample on, read from headers."""
        self._map.seek(int(self._index[i, 0]))
        with tarfile.open(fileobj=self._map, mode="r:", encoding="utf-8") as tar:
            while (member := tar.next()) is not None:
                match = KEY_AND_EXTENSION.match(member.name)
                yield (match[1], match[2]) if match else ("", "")

    def _extensions(self, i: int) -> list[str]:
        key, mine = self.key(i), []
        for name, extension in self._names(i):
            if name != key:
                break
            mine.append(extension)
        return mine

    def _check_num_samples(self, expected: ShardInfo | None) -> None:
        if expected is not None and expected.num_samples != len(self):
            raise UnusableError(
                f"it holds {len(self)} samples and its manifest says {expected.num_samples}"
            )


class _UnusualError(Exception):
    """A shard has headers that are left to tarfile."""


def _map(file: IO[bytes], expected: ShardInfo | None) -> mmap.mmap:
    num_bytes = file.seek(0, io.SEEK_END)
    if expected is not None and expected.num_bytes != num_bytes:
        raise UnusableError(f"it has {num_bytes} bytes and its manifest says {expected.num_bytes}")
    if num_bytes == 0:
        raise UnusableError("it is empty")
    data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    for magic, name in _COMPRESSED.items():
        if data[: len(magic)] == magic:
            raise UnusableError(f"it is compressed ({name}), and shards are plain tars: unpack it")
    return data


def _archives(data: mmap.mmap) -> Iterator[list[Member]]:
    """Yield the members of each tar in a file; each ends with the mark that every whole one has."""
    start: int | None = 0
    while start is not None:
        try:
            members, end = _walk_plain(data, start)
        except _UnusualError:
            members, end = _walk_with_tarfile(data, start)
        yield members
        start = _after_zeros(data, end)


def _after_zeros(data: mmap.mmap, end: int) -> int | None:
    """Return the first block from `end` on that is not of zeros; None if there is none."""
    for start in range(end, len(data), _CHUNK_BYTES):
        chunk = data[start : start + _CHUNK_BYTES]
        rest = chunk.lstrip(b"\0")
        if rest:
            return start + (len(chunk) - len(rest)) // _BLOCK_BYTES * _BLOCK_BYTES
    return None


def _walk_plain(data: mmap.mmap, start: int) -> tuple[list[Member], int]:
    """Walk a tar of plain v7, ustar or GNU headers; raises _UnusualError at any other.

    Returns:
        The members, and where the end mark begins.
    """
    members = []
    while (header := data[start : start + _BLOCK_BYTES]) != _ZERO_BLOCK:
        if len(header) < _BLOCK_BYTES:
            raise UnusableError(f"it is truncated: no end mark at byte {start}")
        short_name, size, checksum, kind, prefix = _HEADER.unpack(header)
        _check_sum(header, checksum, start)
        num_bytes = _number(size, start)
        name = _name(short_name, prefix)
        offset = start + _BLOCK_BYTES
        if num_bytes < 0:
            raise UnusableError(f"the header at byte {start} has the size {num_bytes}")
        if kind in b"0\0" and not name.endswith("/"):
            members.append(Member(name, start, offset, num_bytes))
        elif kind in _PLAIN_KINDS and not num_bytes:
            members.append(Member(name, start, kind=_PLAIN_KINDS[kind]))
        elif not _says_only_times(kind, data[offset : offset + num_bytes]):
            raise _UnusualError
        start = offset + -(-num_bytes // _BLOCK_BYTES) * _BLOCK_BYTES
    return members, start


def _says_only_times(kind: bytes, body: bytes) -> bool:
    return kind in b"xg" and _ONLY_TIMES.fullmatch(body) is not None


def _check_sum(header: bytes, field: bytes, start: int) -> None:
    """Compare a header's checksum: the sum of its bytes, with blanks where the sum is stored."""
    # Adler-32 begins with 1 + the sum of all bytes modulo 65521: eight times as fast as sum().
    total = (zlib.adler32(header) & 0xFFFF) - 1 - sum(field) + 8 * ord(" ")
    excess = _number(field, start) - total
    if excess % 65521 != 0 and (excess + 256 * sum(byte > 127 for byte in header)) % 65521 != 0:
        raise UnusableError(f"there is no valid tar header at byte {start}")  # nor a signed sum


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
        raise UnusableError(f"there is no valid tar header at byte {start}") from None


def _walk_with_tarfile(data: mmap.mmap, start: int) -> tuple[list[Member], int]:
    """Walk a tar of any dialect with tarfile, which must not end early without a word."""
    data.seek(start)
    members = []
    by_name: dict[str, Member] = {}  # what a hard link may mean
    try:
        with tarfile.open(fileobj=data, mode="r:", encoding="utf-8") as tar:
            while (found := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # it would keep every one
                member = _member(found, by_name)
                members.append(member)
                if member.kind == FILE:
                    by_name[member.name] = member
            end = tar.offset
    except UnusableError:
        raise
    except Exception as error:  # tarfile raises many kinds on damaged input
        raise UnusableError(f"it is damaged: {type(error).__name__}: {error}") from error
    if data[end : end + _BLOCK_BYTES] != _ZERO_BLOCK:
        raise UnusableError(f"it is truncated or damaged: no end mark at byte {end}")
    return members, end


def _member(found: tarfile.TarInfo, by_name: Mapping[str, Member]) -> Member:
    """Return a member that tarfile has found; a hard link is the file that it stands for."""
    if found.issparse():
        raise UnusableError(f"{found.name!r} is sparse: pack it without --sparse")
    if found.size < 0:  # tarfile would walk backwards, for ever
        raise UnusableError(f"{found.name!r} has the size {found.size}")
    if found.isreg():
        return Member(found.name, found.offset, found.offset_data, found.size)
    if found.islnk():
        if found.linkname not in by_name:
            raise UnusableError(
                f"{found.name!r} is a hard link to {found.linkname!r}, which does not come before "
                "it: pack both into one tar, or the files again with `tar --hard-dereference`"
            )
        return by_name[found.linkname]._replace(name=found.name, start=found.offset)
    kind = SYMLINK if found.issym() else DIRECTORY if found.isdir() else SPECIAL
    return Member(found.name, found.offset, kind=kind)
