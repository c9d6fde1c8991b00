"""The node's cache: whole shards of remote data sets, each fetched once, in bounded bytes.

A directory of a node's own disk, shared by all ranks and workers of all jobs of a user:

    <sha256>.tar      a shard, named by what it holds; verified before it got this name
    <sha256>.part     one that is being fetched; locked by its fetcher
    plans/*.plan      what each rank will read next; locked by its owner
    room.lock         held while room is made

Who misses a shard locks its part file. Others who miss it wait for that lock and then find the
shard, or, if its fetcher was killed, fetch it. A part becomes a shard by being renamed, so a crash
leaves nothing that could be believed. An open shard stays readable when it is evicted.
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

from data_sharding.errors import DataError, UnavailableError
from data_sharding.format.manifest import ShardInfo
from data_sharding.io.download import DownloadSettings
from data_sharding.io.file_lock import exclusive_lock, is_same_file, make_private, shared_lock
from data_sharding.io.flock import flock
from data_sharding.storage.access_plans import AccessPlan, publish_access_plan
from data_sharding.storage.cache_eviction import PART, SHARD, SpaceBudget
from data_sharding.storage.fetch_shard import download

_Opened = TypeVar("_Opened")


@dataclass(frozen=True)
class CacheSettings:
    """Where a node keeps shards, how many bytes of them, and how hard it asks for more.

    Args:
        directory: on a disk of the node; network file systems do not know its locks.
        max_bytes: of all shards there together.
        num_connections, part_bytes, part_timeout_s, deadline_s: see `DownloadSettings`.
    """

    directory: Path
    max_bytes: int
    num_connections: int = DownloadSettings.num_connections
    part_bytes: int = DownloadSettings.part_bytes
    part_timeout_s: float = DownloadSettings.part_timeout_s
    deadline_s: float = DownloadSettings.deadline_s

    @property
    def transfer(self) -> DownloadSettings:
        return DownloadSettings(
            self.num_connections, self.part_bytes, self.part_timeout_s, self.deadline_s
        )


def cache_directory(configured: str | None) -> Path:
    """Return where this node keeps shards, asked now and here: TMPDIR is a node's or a job's own.

    Args:
        configured: cluster.cache.dir, in which `$NAME` is a variable of this node; None is below
            the directory for temporary files, by the number of the user: names may be unset.

    Raises:
        DataError: a variable is not set here.
    """
    if configured is None:
        return Path(gettempdir(), f"tahoe-cache-{os.getuid()}")
    directory = os.path.expandvars(configured)
    if "$" in directory:
        raise DataError(
            f"cluster.cache.dir={configured} names a variable that {os.uname().nodename} does not "
            "know: remote shards cannot be kept there. Set it, or choose another directory; null "
            "is below TMPDIR."
        )
    return Path(directory)


def free_bytes(directory: Path) -> int:
    """Return the room of a cache's directory, once a file could be written and locked there.

    Raises:
        DataError: it could not.
    """
    try:
        make_private(directory)
        with TemporaryFile(dir=directory) as file:
            flock(file.fileno(), directory / "room.lock")
            file.write(b"x" * 4096)
            file.flush()
        return shutil.disk_usage(directory).free
    except OSError as error:
        raise DataError(_unusable(directory, error.strerror or str(error))) from error


def _unusable(directory: Path, reason: str) -> str:
    return (
        f"the cache {directory} cannot be used: {reason}. Remote shards cannot be read without it. "
        "Choose a directory that can be written and has room (cluster.cache.dir), lower "
        "cluster.cache.max_gb, or set cluster.cache=none to stream without a cache."
    )


class PrefetchResult(Enum):
    """What came of fetching a shard ahead."""

    CACHED = auto()
    IN_FLIGHT = auto()  # another process is fetching it
    NO_SPACE = auto()  # all that the cache holds is needed sooner


class Cache:
    """The shards in a directory of this node.

    Every method that may fetch raises ShardError where a shard is missing or not what it must be,
    UnavailableError where it cannot be read now or there is no room, and DataError where the
    directory cannot be used.
    """

    def __init__(self, settings: CacheSettings) -> None:
        self.max_bytes = settings.max_bytes
        self._directory, self._transfer = settings.directory, settings.transfer

    def open(self, shard: ShardInfo, url: str, read: Callable[[Path], _Opened]) -> _Opened:
        """Return what `read` makes of a shard's path, which nobody removes meanwhile.

        The shard is fetched from `url` if it is not there. What has been opened or mapped by then
        stays readable for good; the path does not.
        """
        path, part_path = self._paths(shard)
        with self._explained(shard):
            while True:
                with shared_lock(path) as found:
                    if found and _num_bytes(found) == shard.num_bytes:
                        return read(path)
                with self._part(part_path) as part:
                    assert part is not None
                    if self.has(shard):
                        continue  # it has come while this process waited
                    self._fetch(shard, url, part, None)
                    return read(path)  # before the lock goes, so that nobody can evict it

    def prefetch(self, shard: ShardInfo, url: str, distance: int) -> PrefetchResult:
        """Fetch a shard unless that would cost one that is needed sooner.

        Args:
            distance: batches until it is needed.
        """
        _, part_path = self._paths(shard)
        with self._explained(shard):
            if self.has(shard):
                return PrefetchResult.CACHED
            with self._part(part_path, wait=False) as part:
                if part is None:
                    return PrefetchResult.IN_FLIGHT
                if self.has(shard) or self._fetch(shard, url, part, distance):
                    return PrefetchResult.CACHED
                return PrefetchResult.NO_SPACE

    def has(self, shard: ShardInfo) -> bool:
        """Return whether a shard is there; it may be gone the next moment."""
        path, _ = self._paths(shard)
        try:
            return path.stat().st_size == shard.num_bytes
        except FileNotFoundError:
            return False

    @contextmanager
    def plan(self) -> Iterator[AccessPlan]:
        """Take part with a plan, for as long as the context lasts."""
        with self._explained(), publish_access_plan(self._room.plans, self._room.lock) as plan:
            yield plan

    def tidy(self) -> None:
        """Remove what processes that have ended left behind."""
        with self._explained():
            self._room.tidy()

    @cached_property
    def _room(self) -> SpaceBudget:
        """Made with the directory when it is first needed, in the process that needs it."""
        make_private(self._directory)
        make_private(self._directory / "plans")
        return SpaceBudget(self._directory, self.max_bytes)

    def _paths(self, shard: ShardInfo) -> tuple[Path, Path]:
        return self._directory / f"{shard.sha256}{SHARD}", self._directory / f"{shard.sha256}{PART}"

    @contextmanager
    def _part(self, path: Path, *, wait: bool = True) -> Iterator[IO[bytes] | None]:
        """Hold a shard's part file, empty; it is removed at the end unless it was published."""
        assert self._room
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
        """Fetch a shard into its part file and publish it, if there is room."""
        if not self._room.reserve(part, shard.num_bytes, distance):
            return False
        download(url, shard, part, self._transfer)
        os.fdatasync(part)  # after a power cut the name is believed, so the bytes must be there
        path, part_path = self._paths(shard)
        self._room.publish(part_path, path)
        return True

    @contextmanager
    def _explained(self, shard: ShardInfo | None = None) -> Iterator[None]:
        """Say what a failure of the node's disk means and what to do about it."""
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                reason = error.strerror or str(error)
                raise DataError(_unusable(self._directory, reason)) from error
            reason = "there is no room"
            if shard:
                reason += f" for the {shard.num_bytes / 1e6:.1f} MB of {shard.name}"
            raise UnavailableError(_unusable(self._directory, reason)) from error


def small_cache_warning(
    settings: CacheSettings, *, shards_in_use: int, mean_shard_bytes: float
) -> str | None:
    """Return what to tell the user about a cache that is too small for its node; None if it is not.

    Args:
        shards_in_use: shards that all processes of the node read from at the same time.
        mean_shard_bytes: of the data set's shards.
    """
    needed = shards_in_use * mean_shard_bytes
    if needed <= settings.max_bytes:
        return None
    return (
        f"the cache {settings.directory} may hold {settings.max_bytes / 1e6:.1f} MB, and one step "
        f"reads from {shards_in_use} shards of {mean_shard_bytes / 1e6:.1f} MB on this node, that "
        f"is {needed / 1e6:.1f} MB: shards will be fetched again and again. Raise "
        f"cluster.cache.max_gb above {needed / 1e9:.3g}, lower data.lanes, or write smaller shards."
    )


def _num_bytes(file: IO[bytes]) -> int:
    return file.seek(0, 2)
