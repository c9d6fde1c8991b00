"""Digests of shards: SHA-256 of all bytes, or of the size and of some of the bytes.

A digest of some bytes identifies a shard that is not read whole, wherever a copy of it is. A
sampled one covers the size, the start, the middle and the end, so it tells shards apart that were
written separately (the idea is imohash's, https://github.com/kalafut/imohash). One of the headers
also covers all labels, and the places and sizes of labels and images. Neither sees a change of
other bytes that keeps the size, such as a damaged disk block in an image.
"""

import hashlib
import io
from collections.abc import Callable
from typing import IO, Literal

DigestKind = Literal["whole", "headers", "sampled"]

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


def headers_digest(sampled: str, places: bytes) -> "hashlib._Hash":
    """Return the digest of a shard's headers, to be updated with the labels of all its samples.

    Args:
        sampled: the sampled digest (hex).
        places: offsets and sizes of images and labels, as `tar_samples` finds them; int64,
            little-endian.
    """
    return hashlib.sha256(f"tahoe-headers-1 {sampled}\n".encode() + places)


def file_sha256(file: IO[bytes], kind: Literal["whole", "sampled"]) -> str:
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
