"""Fetch a whole shard into a file and check its size and digest."""

import logging
from typing import IO

from data_sharding.errors import ShardError
from data_sharding.format.manifest import ShardInfo
from data_sharding.format.shard_digest import file_sha256
from data_sharding.io.download import DownloadSettings, fetch_file, file_size

log = logging.getLogger(__name__)

_NUM_ATTEMPTS = 2  # for the right digest


def fetch_shard(url: str, shard: ShardInfo, file: IO[bytes], settings: DownloadSettings) -> None:
    """Fetch a whole shard into a file and check its size and digest.

    Raises:
        ShardError: it does not exist, or is not what its manifest says.
        UnavailableError: it could not be read.
        OSError: the file could not be written.
    """
    num_bytes = file_size(url, settings)
    if num_bytes not in (None, shard.num_bytes):
        raise _mismatch(url, f"has {num_bytes} bytes and its manifest says {shard.num_bytes}")
    for _ in range(_NUM_ATTEMPTS):
        fetch_file(url, shard.num_bytes, file, settings)
        digest = file_sha256(file, shard.digest)
        if digest == shard.sha256:
            return
        log.warning("%s arrived with the wrong digest %s", url, digest)
    raise _mismatch(url, f"has the SHA-256 {digest}, twice, and its manifest says {shard.sha256}")


def _mismatch(url: str, difference: str) -> ShardError:
    return ShardError(
        f"{url} {difference}: it was damaged or replaced after the manifest was written, and none "
        "of its samples is used",
        value=url,
        hint="Copy it again from its source, or write the manifest again with `index`.",
    )
