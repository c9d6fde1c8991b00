"""Read the headers and labels of shards, and not their images; or not even these.

A remote shard is read by ranges. That saves most of the bytes and costs a request for nearly every
sample, so it pays where images are large or the network is slow: both ways are tried for a moment.
Shards are then identified by sampled digests, or by the SHA-256 that their store has of them.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from typing import Literal, NamedTuple

from data_sharding.errors import DataError, ShardError
from data_sharding.format.sample_rule import SampleRule
from data_sharding.format.shard_digest import file_sha256, sampled_sha256
from data_sharding.format.shard_reader import ShardHeaders, ShardReader
from data_sharding.format.tar_samples import UnusableError
from data_sharding.io import filesystem
from data_sharding.io.download import (
    ByteRange,
    DownloadSettings,
    fetch_ranges,
    file_size,
    sends_whole_files,
)
from data_sharding.io.process_pool import ProgressFn
from data_sharding.scanning.local_copy import reason_of
from data_sharding.scanning.scan import (
    Scan,
    ScanJob,
    scan_or_problem,
    scan_samples,
    scan_whole,
    unusable_scan,
)
from data_sharding.storage.ranged_file import RangedFile

Way = Literal["whole", "headers", "counts"]

SHARDS_AT_ONCE = 16  # in a process; each waits for one request at a time
_SMALL_SET_BYTES = 256e6  # is read whole at once
_TRIAL_CHUNK_MB, _NUM_TRIAL_CHUNKS = 4, 16
_TRIAL_S, _TRIAL_TIMEOUT_S = 1.5, 5
_MIN_GAIN = 1.5  # whole digests are worth some time
_SETTINGS = DownloadSettings(max_concurrent_requests=1)


def scan_headers(job: ScanJob, url: str, advance: ProgressFn) -> Scan:
    """Read the headers and labels of a shard, and not its images."""
    return scan_or_problem(url, lambda: _scan_headers(job, url, advance))


def _scan_headers(job: ScanJob, url: str, advance: ProgressFn) -> Scan:
    path = filesystem.local_path(url)
    if path is not None:
        with path.open("rb") as file:
            digest = file_sha256(file, "sampled")
        scan = Scan(url, path, path.stat().st_size, sampled_sha256=digest)
        try:
            with ShardReader(path, rule=job.rule) as reader:
                return scan_samples(job, scan, reader, advance)
        except ShardError as error:
            return unusable_scan(scan, reason_of(error))
    if sends_whole_files(url, _SETTINGS):  # it would send one for each range
        return scan_whole(job, url, advance)
    scan, data = _identify(url)
    try:
        return scan_samples(job, scan, ShardHeaders(data, job.rule), advance)
    except UnusableError as error:
        return unusable_scan(scan, str(error))


def scan_counted(url: str, num_samples: int) -> Scan:
    """Identify a remote shard whose samples others have counted; its labels are not read."""
    return scan_or_problem(url, lambda: replace(_identify(url)[0], num_samples=num_samples))


def _identify(url: str) -> tuple[Scan, RangedFile]:
    data = RangedFile(url, _size(url), _SETTINGS)
    digest = sampled_sha256(len(data), lambda start, stop: data[start:stop])
    stored = filesystem.stored_sha256(url)
    return Scan(url, num_bytes=len(data), sha256=stored or "", sampled_sha256=digest), data


def _size(url: str) -> int:
    num_bytes = file_size(url, _SETTINGS)
    if num_bytes is None:
        raise OSError("its store does not know its size")
    return num_bytes


class _TrialOverError(Exception):
    """A trial has taken its time."""


class Speeds(NamedTuple):
    """The bytes of shards that a process passes over in a second, by reading all or headers."""

    whole: float
    headers: float


def choose_way(
    urls: Sequence[str],
    rule: SampleRule,
    on_message: Callable[[str], None],
    *,
    counts_suffice: bool = False,
) -> Way:
    """Choose how shards are read: local and few ones whole, others as a trial shows.

    Args:
        counts_suffice: whether counts exist and labels need not be read.
    """
    if filesystem.local_path(urls[0]) is not None:
        return "whole"
    try:
        sizes = [_size(url) for url in urls[:SHARDS_AT_ONCE]]
        num_bytes = sum(sizes) / len(sizes) * len(urls)
        if num_bytes < _SMALL_SET_BYTES or sends_whole_files(urls[0], _SETTINGS):
            return "whole"
        if counts_suffice:
            return "counts"
        speeds = measure_speeds(dict(zip(urls, sizes, strict=False)), rule)
    except (DataError, OSError):  # reading whole shards names what is wrong
        return "whole"
    way: Way = "headers" if speeds.headers > speeds.whole * _MIN_GAIN else "whole"
    names = {"headers": "headers and labels are read", "whole": "everything is read"}
    on_message(
        f"{names[way]} of about {num_bytes / 1e9:,.1f} GB: in a trial, a process passed over "
        f"{speeds.headers / 1e6:,.0f} MB/s by headers, and read {speeds.whole / 1e6:,.0f} MB/s"
    )
    return way


def measure_speeds(sizes: dict[str, int], rule: SampleRule) -> Speeds:
    """Read the first shards each way for a moment.

    Args:
        sizes: size of each shard by its URL.

    Raises:
        DataError: they cannot be read by ranges.
    """
    return Speeds(_speed_of_reading(sizes), _speed_of_walking(sizes, rule))


def _speed_of_reading(sizes: dict[str, int]) -> float:
    settings = DownloadSettings(chunk_mb=_TRIAL_CHUNK_MB, retry_timeout_s=_TRIAL_TIMEOUT_S)
    chunks = (
        ByteRange(url, start, min(start + settings.chunk_bytes, num_bytes))
        for url, num_bytes in sizes.items()
        for start in range(0, num_bytes, settings.chunk_bytes)
    )
    wanted = [*islice(chunks, _NUM_TRIAL_CHUNKS)]
    start_s = time.monotonic()
    fetch_ranges(wanted, settings, lambda index, data: None)
    return sum(chunk.stop - chunk.start for chunk in wanted) / (time.monotonic() - start_s)


def _speed_of_walking(sizes: dict[str, int], rule: SampleRule) -> float:
    settings = replace(_SETTINGS, retry_timeout_s=_TRIAL_TIMEOUT_S)
    start_s = time.monotonic()
    positions = dict.fromkeys(sizes, 0)

    def walk(url: str) -> None:
        def on_fetch(offset: int) -> None:
            positions[url] = max(offset, positions[url])
            if time.monotonic() > start_s + _TRIAL_S:
                raise _TrialOverError

        with suppress(_TrialOverError, UnusableError):
            ShardHeaders(RangedFile(url, sizes[url], settings, on_fetch), rule)
            positions[url] = sizes[url]

    with ThreadPoolExecutor(len(sizes)) as pool:
        [*pool.map(walk, sizes)]
    return sum(positions.values()) / (time.monotonic() - start_s)
