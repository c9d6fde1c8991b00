"""Sampled digests: equal for a file and its parts, another for whatever is written separately."""

import hashlib
from io import BytesIO

import pytest

from data_sharding.format.shard_digest import file_sha256, sampled_sha256

SIZE = 1_000_003


def sampled(data: bytes) -> str:
    return file_sha256(BytesIO(data), "sampled")


def test_a_digest_of_a_large_file_reads_little_of_it() -> None:
    data = bytes(range(256)) * (SIZE // 256)
    num_read = 0

    def read(start: int, stop: int) -> bytes:
        nonlocal num_read
        num_read += stop - start
        return data[start:stop]

    assert sampled_sha256(len(data), read) == sampled(data)
    assert num_read == 3 * 65536
    assert file_sha256(BytesIO(data), "whole") == hashlib.sha256(data).hexdigest() != sampled(data)


@pytest.mark.parametrize("offset", [0, SIZE // 2, SIZE - 1])
def test_start_middle_and_end_are_covered(offset: int) -> None:
    data = bytearray(SIZE)
    data[offset] = 1
    assert sampled(bytes(data)) != sampled(bytes(SIZE))


@pytest.mark.parametrize("size", [0, 1, 65536, 65537, 3 * 65536, 3 * 65536 + 1])
def test_the_size_is_covered(size: int) -> None:
    assert len({sampled(bytes(size + more)) for more in (0, 1, 2)}) == 3


@pytest.mark.parametrize("size", [1, 65537, 3 * 65536])
def test_every_byte_of_a_small_file_is_covered(size: int) -> None:
    for offset in {0, size // 3, size - 1}:
        data = bytearray(size)
        data[offset] = 1
        assert sampled(bytes(data)) != sampled(bytes(size))
