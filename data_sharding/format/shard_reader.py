"""Random access to the samples of a shard: image bytes and label of sample i, without a copy.

A shard is a plain tar that `webdataset` and `tar` read. Its members are found by walking their
512-byte headers once, when it is opened; the file is memory-mapped, and an image is a slice of the
map. Members are grouped to samples by webdataset's rule: in any order within a sample, and those
that are neither image nor label are passed over and counted. Nothing is extracted, so a member's
name never becomes a path; a hard link stands for an earlier member.

A file may hold several tars one after the other, as `cat a.tar b.tar` makes them. All are read, as
`tar --ignore-zeros` does; plain `tar` and webdataset stop at the end of the first.

Most shards hold only ordinary files, whose headers are parsed here in about 5 us each. Any other
header (long names, hard links, extended attributes) sends the whole tar to the standard library's
`tarfile`, which knows every dialect at five times the cost.
"""

import errno
import hashlib
import io
import mmap
import re
import struct
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import IO, Protocol, Self, cast

import numpy as np
from numpy.typing import NDArray

from data_sharding.errors import BadSample, ShardError, UnavailableShardError, UserError
from data_sharding.format.image_formats import IMAGE_EXTENSIONS
from data_sharding.format.manifest import ShardInfo
from data_sharding.format.sample_rule import SampleRule
from data_sharding.format.shard_digest import headers_digest
from data_sharding.format.tar_samples import (
    DIRECTORY,
    FILE,
    KEY_AND_EXTENSION,
    OTHER_CLASSES,
    SPECIAL,
    SYMLINK,
    UNKNOWN,
    Member,
    UnusableError,
    group_members,
)

_BLOCK_BYTES = 512
_ZERO_BLOCK = bytes(_BLOCK_BYTES)
# POSIX.1-1988, ustar: name, size, checksum, type, prefix of the name.
_HEADER = struct.Struct("100s 24x 12s 12x 8s c 188x 155s 12x")

_PLAIN_KINDS = {b"5": DIRECTORY, b"2": SYMLINK, b"3": SPECIAL, b"4": SPECIAL, b"6": SPECIAL}
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_CHUNK_BYTES = 1 << 20  # for skipping the zeros after an end mark

# Extended headers with times only: GNU tar and webdataset write one before every file.
_ONLY_TIMES = re.compile(rb"(?:\d+ [acm]time=[0-9.]+\n)+")


class TooLarge(BadSample):
    """An image has more pixels than are decoded."""


class ShardBytes(Protocol):
    """The bytes of a shard: a memory map, or ranges that are fetched when they are asked for."""

    def __len__(self) -> int: ...
    def __getitem__(self, part: slice, /) -> bytes: ...
    def seek(self, position: int, /) -> object: ...
    def tell(self) -> int: ...
    def read(self, num_bytes: int = -1, /) -> bytes: ...


class ShardHeaders:
    """The keys, the labels and the image sizes of a shard's samples: headers and labels are read.

    Args:
        data: the bytes of the shard.
        rule: the members of a sample that are its image and its label, and the classes that count.

    Raises:
        UnusableError: they are no tar, or its members form no samples.
    """

    def __init__(self, data: ShardBytes, rule: SampleRule) -> None:
        _refuse_other_files(data)
        self._data, self._rule = data, rule
        self._index, self.passed_over, self.remarks = group_members(_archives(data), rule)
        self._stops = np.append(self._index[1:, 0], len(data))
        self._drop_other_classes()

    def __len__(self) -> int:
        return len(self._index)

    def num_image_bytes(self, i: int) -> int:
        """Return the size of the i-th image file.

        Raises:
            BadSample: no member of the sample has a known image extension.
        """
        return self._image_range(i)[1]

    def label_bytes(self, i: int) -> bytes:
        """Return the content of the i-th sample's label; empty without labels."""
        _, _, _, offset, num_bytes = self._index[i].tolist()
        return self._data[offset : offset + num_bytes] if offset >= 0 else b""

    def key(self, i: int) -> str:
        """Return the key of the i-th sample, read from its header again: for messages."""
        return next(self._names(i))[0]

    def digest(self, sampled: str) -> "hashlib._Hash":
        """Return the digest of the headers; updated with all labels it is that of the shard.

        Args:
            sampled: the sampled digest (hex) of the shard.
        """
        assert self._rule.class_labels is None  # all samples count
        return headers_digest(sampled, self._index.astype("<i8").tobytes())

    @property
    def has_links(self) -> bool:
        """True if the bytes of a sample are before its header, since it consists of hard links."""
        starts, offsets = self._index[:, :1], self._index[:, [1, 3]]
        return bool(((offsets >= 0) & (offsets < starts)).any())

    @property
    def ranges(self) -> NDArray[np.int64]:
        """The bytes [start, stop) of each sample, from its first header on; shape (samples, 2)."""
        return np.stack([self._index[:, 0], self._stops], axis=1)

    def _drop_other_classes(self) -> None:
        """Drop the samples that are of none of the chosen classes, and count them."""
        if self._rule.class_labels is None:
            return
        is_kept = np.array([self._rule.keeps(self.label_bytes(i)) for i in range(len(self))])
        if not is_kept.all():
            first = int((~is_kept).argmax())
            self.passed_over.add(OTHER_CLASSES, self.key(first), int((~is_kept).sum()))
        self._index, self._stops = self._index[is_kept], self._stops[is_kept]

    def _image_range(self, i: int) -> tuple[int, int]:
        """Return offset and size of an image; raises as `num_image_bytes` does."""
        _, offset, num_bytes, _, _ = self._index[i].tolist()
        if offset == UNKNOWN:
            chosen = self._rule.image
            known = "of a known kind" if chosen is None else f"called {chosen}"
            others = f", and those of images are {', '.join(sorted(IMAGE_EXTENSIONS))}"
            raise BadSample(
                f"has no image {known}: its extensions, from the first dot on, are "
                f"{', '.join(self._extensions(i))}{others * (chosen is None)}; `image` chooses one"
            )
        return offset, num_bytes

    def _names(self, i: int) -> Iterator[tuple[str, str]]:
        """Yield key and extension of the members from the i-th sample on."""
        with _open_tar(self._data, int(self._index[i, 0])) as tar:
            while (member := tar.next()) is not None:
                match = KEY_AND_EXTENSION.match(member.name)
                yield (match[1], match[2]) if match else ("", "")

    def _extensions(self, i: int) -> list[str]:
        key = self.key(i)
        names = takewhile(lambda name: name[0] == key, self._names(i))
        return [extension for _, extension in names]


class ShardReader(ShardHeaders):
    """The samples of a local shard; usable as a context manager.

    Args:
        expected: the shard's entry in its manifest; the digest is not compared.
        rule: the members of a sample that are its image and its label, and the classes that count.

    Raises:
        ShardError: the shard is missing, truncated or damaged, differs from `expected`, or has a
            sample without exactly one image and, if there are labels, one label, or with two
            members of one extension.
    """

    def __init__(
        self,
        path: str | Path,
        expected: ShardInfo | None = None,
        rule: SampleRule = SampleRule(),  # noqa: B008  immutable
    ) -> None:
        self.path = Path(path)
        try:
            with self.path.open("rb") as file:
                self._map = _map(file, expected)
                super().__init__(self._map, rule)
            if expected is not None and expected.num_samples != len(self):
                raise UnusableError(
                    f"it has {len(self)} samples and its manifest says {expected.num_samples}",
                    hint="Copy it again from where it came from; or, if others have counted its "
                    "samples, count them with `index`, `read` headers and `force`.",
                )
        except FileNotFoundError:
            raise ShardError(
                f"no shard at {path}: the data set is incomplete",
                value=path,
                hint="Copy the missing file from where the set came from, or write the set again.",
            ) from None
        except OSError as error:
            raise UnavailableShardError(
                f"cannot read the shard {path}: {error}. None of its samples is used",
                value=path,
                hint="Raise the limit on open files (`ulimit -n`), and resume."
                if error.errno in (errno.EMFILE, errno.ENFILE)
                else "Check the permissions of the file, and the disk.",
            ) from error
        except UnusableError as error:
            raise ShardError(
                f"cannot read the shard {path}: {error.problem}. None of its samples is used",
                value=path,
                hint=error.hint
                or "Copy it again from where it came from, or write the data set again.",
            ) from error
        self._view = memoryview(self._map)

    def image(self, i: int) -> memoryview:
        """Return the bytes of the i-th image file: a view that stays valid, even after `close`.

        Raises:
            BadSample: no member of the sample has a known image extension.
        """
        offset, num_bytes = self._image_range(i)
        return self._view[offset : offset + num_bytes]

    def close(self) -> None:
        """Close the shard; image views that are still held stay valid."""
        self._view.release()
        with suppress(BufferError):  # the map goes with the last view
            self._map.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class _UnusualError(Exception):
    """A shard has headers that `tarfile` must parse."""


def _map(file: IO[bytes], expected: ShardInfo | None) -> mmap.mmap:
    num_bytes = file.seek(0, io.SEEK_END)
    if expected is not None and expected.num_bytes != num_bytes:
        raise UnusableError(f"it has {num_bytes} bytes and its manifest says {expected.num_bytes}")
    if num_bytes == 0:
        raise UnusableError("it is empty")
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _refuse_other_files(data: ShardBytes) -> None:
    for magic, name in _COMPRESSED.items():
        if data[: len(magic)] == magic:
            raise UnusableError(
                f"it is compressed ({name}), and shards are plain tars", hint="Unpack it."
            )


def _archives(data: ShardBytes) -> Iterator[list[Member]]:
    """Yield the members of each tar in a file; each must have its end mark."""
    start: int | None = 0
    while start is not None:
        try:
            members, end = _walk_plain(data, start)
        except _UnusualError:
            members, end = _walk_with_tarfile(data, start)
        yield members
        start = _after_zeros(data, end)


def _after_zeros(data: ShardBytes, end: int) -> int | None:
    """Return the offset of the first block from `end` on that is not zero, if there is one."""
    for start in range(end, len(data), _CHUNK_BYTES):
        chunk = data[start : start + _CHUNK_BYTES]
        rest = chunk.lstrip(b"\0")
        if rest:
            return start + (len(chunk) - len(rest)) // _BLOCK_BYTES * _BLOCK_BYTES
    return None


def _walk_plain(data: ShardBytes, start: int) -> tuple[list[Member], int]:
    """Walk a tar of plain v7, ustar or GNU headers; raises _UnusualError at any other.

    Returns:
        The members, and the offset of the end mark.
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
        elif kind not in b"xg" or not _ONLY_TIMES.fullmatch(data[offset : offset + num_bytes]):
            raise _UnusualError
        start = offset + -(-num_bytes // _BLOCK_BYTES) * _BLOCK_BYTES
    return members, start


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


def _walk_with_tarfile(data: ShardBytes, start: int) -> tuple[list[Member], int]:
    """Walk a tar of any dialect with tarfile, which must not stop early unnoticed."""
    members = []
    by_name: dict[str, Member] = {}  # targets of hard links
    try:
        with _open_tar(data, start) as tar:
            while (header := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # it would keep every one
                member = _member(header, by_name)
                members.append(member)
                if member.kind == FILE:
                    by_name[member.name] = member
            end = tar.offset
    except UserError:  # ours, also of bytes that could not be fetched
        raise
    except Exception as error:  # tarfile raises many kinds on damaged input
        raise UnusableError(f"it is damaged: {type(error).__name__}: {error}") from error
    if data[end : end + _BLOCK_BYTES] != _ZERO_BLOCK:
        raise UnusableError(f"it is truncated or damaged: no end mark at byte {end}")
    return members, end


def _open_tar(data: ShardBytes, start: int) -> tarfile.TarFile:
    data.seek(start)
    return tarfile.open(fileobj=cast("IO[bytes]", data), mode="r:", encoding="utf-8")


def _member(header: tarfile.TarInfo, by_name: Mapping[str, Member]) -> Member:
    """Convert a member of tarfile's; a hard link becomes the file that it stands for."""
    if header.issparse():
        raise UnusableError(
            f"{header.name!r} is a sparse file", hint="Pack it without `tar --sparse`."
        )
    if header.size < 0:  # tarfile would walk backwards, for ever
        raise UnusableError(f"{header.name!r} has the size {header.size}")
    if header.isreg():
        return Member(header.name, header.offset, header.offset_data, header.size)
    if header.islnk():
        if header.linkname not in by_name:
            raise UnusableError(
                f"{header.name!r} is a hard link to {header.linkname!r}, which does not precede it",
                hint="Pack both into one tar, or the files with `tar --hard-dereference`.",
            )
        return by_name[header.linkname]._replace(name=header.name, start=header.offset)
    kind = SYMLINK if header.issym() else DIRECTORY if header.isdir() else SPECIAL
    return Member(header.name, header.offset, kind=kind)
