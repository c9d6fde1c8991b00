"""A whole shard fetched into a file and checked by size and digest."""

import hashlib
import logging
from typing import IO

from data_sharding.errors import ShardError
from data_sharding.format.manifest import ShardInfo
from data_sharding.io.download import DownloadSettings, fetch_file, file_size

log = logging.getLogger(__name__)


def download(url: str, shard: ShardInfo, file: IO[bytes], transfer: DownloadSettings) -> None:
    """Fetch a whole shard into a file and check it by size and digest.

    Raises:
        ShardError: it is not there, or not what its manifest says.
        UnavailableError: it could not be read.
        OSError: the file could not be written.
    """
    _check_size(url, shard, transfer)
    for is_last in (False, True):
        fetch_file(url, shard.num_bytes, file, transfer)
        file.seek(0)
        found = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
        if found == shard.sha256:
            return
        if not is_last:
            log.warning("%s came with the digest %s; fetching it again", url, found)
    raise ShardError(
        f"{url} has the SHA-256 {found}, twice, and its manifest says {shard.sha256}: it was "
        "damaged or replaced after the manifest was written. None of its samples is used. Copy it "
        "again from where it came from, or write the manifest anew."
    )


def _check_size(url: str, shard: ShardInfo, transfer: DownloadSettings) -> None:
    found = file_size(url, transfer)
    if found not in (None, shard.num_bytes):
        raise ShardError(
            f"{url} has {found} bytes and its manifest says {shard.num_bytes}: it was cut short or "
            "replaced after the manifest was written. None of its samples is used. Copy it again "
            "from where it came from, or write the manifest anew."
        )
