"""Write a tar front to back and hash it on the way; nothing in its headers varies.

A header is the standard library's, with another name, size and checksum: to make each from scratch,
as `tarfile.open` does, would cost as much as hashing a photograph.
"""

import hashlib
import tarfile
from typing import IO

_END = bytes(2 * tarfile.BLOCKSIZE)
_NAME, _SIZE, _CHECKSUM = slice(0, 100), slice(124, 136), slice(148, 156)  # of ustar
_MAX_BYTES = 8**11 - 1  # eleven octal digits


def _make_header(name: str, num_bytes: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = num_bytes, 0o444, 0
    member.uname = member.gname = "tahoe"
    return member.tobuf(tarfile.USTAR_FORMAT)


def _make_blank() -> bytes:
    blank = bytearray(_make_header("any", 0))
    for field, filler in ((_NAME, b"\0"), (_SIZE, b"\0"), (_CHECKSUM, b" ")):
        blank[field] = filler * (field.stop - field.start)
    return bytes(blank)


_BLANK = _make_blank()
_BLANK_SUM = sum(_BLANK)


def header(name: str, num_bytes: int) -> bytes:
    """Return the header of a member, equal to that of `tarfile`.

    Raises:
        ValueError: the name is longer than a plain tar can hold.
    """
    encoded = name.encode("utf-8", "surrogateescape")
    if len(encoded) > _NAME.stop or num_bytes > _MAX_BYTES:
        return _make_header(name, num_bytes)
    size = b"%011o\0" % num_bytes
    result = bytearray(_BLANK)
    result[: len(encoded)] = encoded
    result[_SIZE] = size
    result[_CHECKSUM] = b"%06o\0 " % (_BLANK_SUM + sum(encoded) + sum(size))
    return bytes(result)


class TarStream:
    """A tar that is being written to a file.

    Attributes:
        num_bytes, sha256: size and digest of the bytes written so far.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.num_bytes, self.sha256 = file, 0, hashlib.sha256()

    def add(self, name: str, data: bytes) -> None:
        """Write one member."""
        self._write(header(name, len(data)))
        self._write(data)
        self._write(bytes(-len(data) % tarfile.BLOCKSIZE))

    def finish(self) -> None:
        """Write the end: two blocks of zeros, and padding up to a whole record."""
        self._write(_END)
        self._write(bytes(-self.num_bytes % tarfile.RECORDSIZE))

    def _write(self, data: bytes) -> None:
        self.num_bytes += len(data)
        self.sha256.update(data)
        self._file.write(data)
