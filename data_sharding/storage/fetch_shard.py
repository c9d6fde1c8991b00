"""Fetch a whole shard into a file and check its size and digest."""

import logging
import mmap
from dataclasses import replace
from typing import IO

from data_sharding.errors import ShardError
from data_sharding.format.manifest import ShardInfo
from data_sharding.format.sample_rule import SampleRule
from data_sharding.format.shard_digest import DigestKind, file_sha256
from data_sharding.format.shard_reader import ShardHeaders
from data_sharding.format.tar_samples import UnusableError
from data_sharding.io.download import DownloadSettings, fetch_file, file_size

log = logging.getLogger(__name__)

_NUM_ATTEMPTS = 2  # for the right digest


def fetch_shard(
    url: str, shard: ShardInfo, rule: SampleRule, file: IO[bytes], settings: DownloadSettings
) -> None:
    """Fetch a whole shard into a file and check its size and digest.

    Args:
        rule: the rule that finds the labels of its samples, which a digest of headers covers.

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
        try:
            digest = shard_sha256(file, shard.digest, rule)
        except UnusableError as error:
            digest = f"of damaged headers ({error.problem})"
        if digest == shard.sha256:
            return
        log.warning("%s arrived with the wrong digest %s", url, digest)
    raise _mismatch(url, f"has the SHA-256 {digest}, twice, and its manifest says {shard.sha256}")


def shard_sha256(file: IO[bytes], kind: DigestKind, rule: SampleRule) -> str:
    """Return the digest (hex) of an open shard; the position of the file changes.

    Raises:
        UnusableError: the digest is of headers, and they are damaged.
    """
    if kind != "headers":
        return file_sha256(file, kind)
    sampled = file_sha256(file, "sampled")
    file.flush()
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        headers = ShardHeaders(data, replace(rule, class_labels=None))
        digest = headers.digest(sampled)
        for i in range(len(headers)):
            digest.update(headers.label_bytes(i))
    return digest.hexdigest()


def _mismatch(url: str, difference: str) -> ShardError:
    return ShardError(
        f"{url} {difference}: it was damaged or replaced after the manifest was written, and none "
        "of its samples is used",
        value=url,
        hint="Copy it again from its source, or write the manifest again with `index`.",
    )
