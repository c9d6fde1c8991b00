"""A tar written front to back, hashed on the way; nothing in its headers varies.

Headers are the standard library's, with a name, a size and their checksum put into one that it has
made: to make each anew, as `tarfile.open` does, would cost as much as hashing a photograph.
"""

import hashlib
import tarfile
from typing import IO

_END = bytes(2 * tarfile.BLOCKSIZE)
_NAME, _SIZE, _CHECKSUM = slice(0, 100), slice(124, 136), slice(148, 156)  # of ustar


def _make_header(name: str, num_bytes: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = num_bytes, 0o444, 0
    member.uname = member.gname = "tahoe"
    return member.tobuf(tarfile.USTAR_FORMAT)


def _blank(header: bytes) -> bytes:
    blank = bytearray(header)
    for part, filler in ((_NAME, b"\0"), (_SIZE, b"\0"), (_CHECKSUM, b" ")):
        blank[part] = filler * (part.stop - part.start)
    return bytes(blank)


_BLANK = _blank(_make_header("any", 0))
_BLANK_SUM = sum(_BLANK)
_LARGEST = 8**11 - 1  # bytes, as eleven octal digits


def header(name: str, num_bytes: int) -> bytes:
    """Return the header of a member, owned by nobody in particular; as `tarfile` makes it.

    Raises:
        ValueError: the name is longer than a plain tar can hold.
    """
    encoded = name.encode("utf-8", "surrogateescape")
    if len(encoded) > _NAME.stop or num_bytes > _LARGEST:
        return _make_header(name, num_bytes)
    size = b"%011o\0" % num_bytes
    checksum = b"%06o\0 " % (_BLANK_SUM + sum(encoded) + sum(size))
    parts = (encoded.ljust(_NAME.stop, b"\0"), _BLANK[_NAME.stop : _SIZE.start], size)
    more = (_BLANK[_SIZE.stop : _CHECKSUM.start], checksum, _BLANK[_CHECKSUM.stop :])
    return b"".join(parts + more)


class TarStream:
    """A tar that is being written to a file; `num_bytes` and `sha256` are of what was written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.num_bytes, self.sha256 = file, 0, hashlib.sha256()

    def add(self, name: str, data: bytes) -> None:
        """Write one member.

        Raises:
            ValueError: the name is longer than a plain tar can hold.
        """
        self._write(header(name, len(data)))
        self._write(data)
        self._write(bytes(-len(data) % tarfile.BLOCKSIZE))

    def finish(self) -> None:
        """Write the end: two blocks of zeros, and what fills a record up."""
        self._write(_END)
        self._write(bytes(-self.num_bytes % tarfile.RECORDSIZE))

    def _write(self, data: bytes) -> None:
        self.num_bytes += len(data)
        self.sha256.update(data)
        self._file.write(data)
