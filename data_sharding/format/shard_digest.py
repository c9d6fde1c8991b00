"""Digests of shards: SHA-256 of all bytes, or of the size and of samples of the bytes.

A sampled digest identifies a shard that is not read whole, wherever a copy of it is. It covers the
size, the start, the middle and the end, so it tells shards apart that were written separately (the
idea is imohash's, https://github.com/kalafut/imohash). It does not see a change of other bytes that
keeps the size, such as another label in its place or a damaged disk block.
"""

import hashlib
import io
from collections.abc import Callable
from typing import IO, Literal

DigestKind = Literal["whole", "sampled"]

_PART_BYTES = 64 << 10  # the last 10 KiB of a tar may be zeros


def sampled_sha256(num_bytes: int, read: Callable[[int, int], bytes]) -> str:
    """Return the sampled digest (hex) of a file.

    Args:
        num_bytes: the size of the file.
        read: a function from start and stop to the bytes in between.
    """
    digest = hashlib.sha256(b"tahoe-sampled-1 %d\n" % num_bytes)
    for start, stop in _parts(num_bytes):
        digest.update(read(start, stop))
    return digest.hexdigest()


def file_sha256(file: IO[bytes], kind: DigestKind) -> str:
    """Return the digest (hex) of an open file; its position changes."""
    if kind == "whole":
        file.seek(0)
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]

    def read(start: int, stop: int) -> bytes:
        file.seek(start)
        return file.read(stop - start)

    return sampled_sha256(file.seek(0, io.SEEK_END), read)


def _parts(num_bytes: int) -> list[tuple[int, int]]:
    """Return start and stop of the parts: start, middle and end, or all of a small file."""
    if num_bytes <= 3 * _PART_BYTES:
        return [(0, num_bytes)]
    starts = (0, (num_bytes - _PART_BYTES) // 2, num_bytes - _PART_BYTES)
    return [(start, start + _PART_BYTES) for start in starts]
