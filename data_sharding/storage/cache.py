"""The node's cache: whole shards of remote data sets, each fetched once, in bounded bytes.

A directory on a disk of the node, shared by all ranks and workers of all jobs of a user:

    <sha256>.tar      a shard, named by its content; verified before it got this name
    <sha256>.part     one that is being fetched; locked by its fetcher
    plans/*.plan      the access plan of each rank; locked by its owner
    room.lock         held while space is freed

A process that misses a shard locks its part file. Others that miss it wait for that lock and then
find the shard, or, if its fetcher was killed, fetch it. A part becomes a shard by being renamed, so
a crash leaves nothing that could be believed. An open shard stays readable when it is evicted.
"""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from typing import IO, TypeVar

from pydantic import PositiveFloat

from data_sharding.errors import DataError, UnavailableError
from data_sharding.format.manifest import ShardInfo
from data_sharding.format.sample_rule import SampleRule
from data_sharding.io.download import DownloadSettings
from data_sharding.io.file_lock import exclusive_lock, flock, is_same_file, shared_lock
from data_sharding.io.node_files import make_private
from data_sharding.storage.cache_eviction import PART, SHARD, AccessPlan, SpaceBudget
from data_sharding.storage.fetch_shard import fetch_shard

_Opened = TypeVar("_Opened")


@dataclass(frozen=True, kw_only=True)
class CacheSettings(DownloadSettings):
    """The size and place of a node's cache, and the limits on its requests.

    Args:
        dir: a directory on a disk of the node (network file systems may not support its locks), as
            `cache_directory` takes it.
        max_gb: the gigabytes of all its shards together.
    """

    dir: str | None
    max_gb: PositiveFloat

    @property
    def max_bytes(self) -> int:
        return round(self.max_gb * 1e9)


def cache_directory(configured: str | None) -> Path:
    """Resolve the directory of the cache on this node, since TMPDIR may be a node's or a job's own.

    Args:
        configured: a path in which `$NAME` is a variable of this node; None is a directory among
            the temporary files, named by the number of the user, who may have no name.
    """
    if configured is None:
        return Path(gettempdir(), f"tahoe-cache-{os.getuid()}")
    directory = os.path.expandvars(configured)
    if "$" in directory:
        raise DataError(
            f"the cache directory {configured} names a variable that {os.uname().nodename} does "
            "not know: remote shards cannot be kept there",
            value=configured,
            hint="Set the variable, or choose another `cache.dir`; null is one below TMPDIR.",
        )
    return Path(directory)


def free_bytes(directory: Path) -> int:
    """Return the free space of a cache's directory, after writing and locking a file there."""
    try:
        make_private(directory)
        with TemporaryFile(dir=directory) as file:
            flock(file.fileno(), directory / "room.lock")
            file.write(b"x" * 4096)
            file.flush()
        return shutil.disk_usage(directory).free
    except OSError as error:
        raise _unusable(directory, error.strerror or str(error)) from error


def _unusable(directory: Path, reason: str, kind: type[DataError] = DataError) -> DataError:
    return kind(
        f"the cache {directory} cannot be used: {reason}. Remote shards cannot be read without it",
        value=directory,
        hint="Choose a directory that is writable and has space (`cache.dir`), lower "
        "`cache.max_gb`, or stream without a cache (`cache=none`).",
    )


class PrefetchResult(Enum):
    """The outcome of fetching a shard ahead."""

    CACHED = auto()
    IN_FLIGHT = auto()  # another process is fetching it
    NO_SPACE = auto()  # every shard in the cache is needed sooner


class Cache:
    """The shards in a directory of this node.

    Every method that may fetch raises ShardError if a shard is missing or not what its manifest
    says, UnavailableError if it cannot be read now or there is no space, and DataError if the
    directory cannot be used.

    Args:
        rule: the rule that finds the labels of a shard's samples, as `fetch_shard` takes it.
    """

    def __init__(self, settings: CacheSettings, rule: SampleRule) -> None:
        self.max_bytes, self._rule = settings.max_bytes, rule
        self._directory, self._settings = cache_directory(settings.dir), settings

    def open(self, shard: ShardInfo, url: str, read: Callable[[Path], _Opened]) -> _Opened:
        """Call `read` with a shard's path, while nobody removes it; fetch it from `url` if needed.

        Whatever `read` has opened or mapped stays readable forever; the path does not.
        """
        path, part_path = self._paths(shard)
        with self._disk_errors(shard):
            while True:
                with shared_lock(path) as cached:
                    if cached and cached.seek(0, os.SEEK_END) == shard.num_bytes:
                        return read(path)
                with self._part_file(part_path) as part:
                    assert part is not None
                    if self.has(shard):
                        continue  # fetched by another process while this one waited
                    self._fetch(shard, url, part, None)
                    return read(path)  # under the lock, so that nobody can evict it

    def prefetch(self, shard: ShardInfo, url: str, distance: int) -> PrefetchResult:
        """Fetch a shard unless one that is needed sooner would have to be evicted.

        Args:
            distance: the number of batches until it is needed.
        """
        _, part_path = self._paths(shard)
        with self._disk_errors(shard):
            if self.has(shard):
                return PrefetchResult.CACHED
            with self._part_file(part_path, wait=False) as part:
                if part is None:
                    return PrefetchResult.IN_FLIGHT
                if self.has(shard) or self._fetch(shard, url, part, distance):
                    return PrefetchResult.CACHED
                return PrefetchResult.NO_SPACE

    def has(self, shard: ShardInfo) -> bool:
        """Check whether a shard is cached; it may be evicted the next moment."""
        path, _ = self._paths(shard)
        try:
            return path.stat().st_size == shard.num_bytes
        except FileNotFoundError:
            return False

    @contextmanager
    def plan(self) -> Iterator[AccessPlan]:
        """Publish an access plan for as long as the context lasts."""
        with self._disk_errors(), self._budget.access_plan() as plan:
            yield plan

    def remove_stale(self) -> None:
        """Remove the files of processes that have ended."""
        with self._disk_errors():
            self._budget.remove_stale()

    @cached_property
    def _budget(self) -> SpaceBudget:
        """The space budget, created with the directory by the process that first needs it."""
        make_private(self._directory)
        make_private(self._directory / "plans")
        return SpaceBudget(self._directory, self.max_bytes)

    def _paths(self, shard: ShardInfo) -> tuple[Path, Path]:
        return self._directory / f"{shard.sha256}{SHARD}", self._directory / f"{shard.sha256}{PART}"

    @contextmanager
    def _part_file(self, path: Path, *, wait: bool = True) -> Iterator[IO[bytes] | None]:
        """Hold a shard's empty part file; remove it at the end unless it was published."""
        assert self._budget
        with exclusive_lock(path, wait=wait) as part:
            if part is None:
                yield None
                return
            try:
                part.truncate(0)
                yield part
            finally:
                if is_same_file(part, path):
                    path.unlink()

    def _fetch(self, shard: ShardInfo, url: str, part: IO[bytes], distance: int | None) -> bool:
        """Fetch a shard into its part file and publish it, if there is space."""
        if not self._budget.reserve(part, shard.num_bytes, distance):
            return False
        fetch_shard(url, shard, self._rule, part, self._settings)
        os.fdatasync(part)  # the name is believed after a power cut, so the bytes must be on disk
        path, part_path = self._paths(shard)
        self._budget.publish(part_path, path)
        return True

    @contextmanager
    def _disk_errors(self, shard: ShardInfo | None = None) -> Iterator[None]:
        """Convert errors of the node's disk to DataError and UnavailableError."""
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise _unusable(self._directory, error.strerror or str(error)) from error
            reason = "there is no space"
            if shard:
                reason += f" for the {shard.num_bytes / 1e6:.1f} MB of {shard.name}"
            raise _unusable(self._directory, reason, UnavailableError) from error


def small_cache_warning(
    settings: CacheSettings, *, shards_in_use: int, mean_shard_bytes: float
) -> str | None:
    """Return a warning if the cache is too small for its node, else None.

    Args:
        shards_in_use: the number of shards that the processes of the node read from in one step.
        mean_shard_bytes: the mean size of the data set's shards.
    """
    needed = shards_in_use * mean_shard_bytes
    if needed <= settings.max_bytes:
        return None
    return (
        f"the cache {cache_directory(settings.dir)} may hold {settings.max_bytes / 1e6:.1f} MB, "
        f"and one step reads from {shards_in_use} shards of {mean_shard_bytes / 1e6:.1f} MB on "
        f"this node, that is {needed / 1e6:.1f} MB: shards will be fetched repeatedly. Raise "
        f"cache.max_gb above {needed / 1e9:.3g}, lower num_lanes, or write smaller shards."
    )
