"""The space budget of the cache: shards that are needed last are evicted before one is fetched.

Shards that no live process plans to read go first, oldest first; then those whose next use is
furthest away (Belady). LRU would be wrong: a shard just read through is often the one that is not
needed for longest.

An access plan is a file that its owner holds locked as long as it lives. It holds the batch that
its owner is at, and the batch at which its owner next needs each shard. All processes of the node
that use the cache write and read plans and decide under one lock, and a shard that is being fetched
counts in full from the beginning, so the limit holds however many fetch at once.
"""

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from uuid import uuid4

from data_sharding.io.file_lock import exclusive_lock, remove_if_unlocked

log = logging.getLogger(__name__)

SHARD, PART = ".tar", ".part"


class SpaceBudget:
    """The bytes of a cache directory."""

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self._directory, self._max_bytes = directory, max_bytes
        self.lock = directory / "room.lock"
        self.plans = directory / "plans"
        self._has_warned = False

    def reserve(self, part: IO[bytes], num_bytes: int, distance: int | None) -> bool:
        """Free space for a shard and allocate it to its part file.

        Args:
            part: the empty file that it will be fetched into, held by the caller.
            distance: the number of batches until it is needed: nothing that is needed sooner is
                evicted for it. None means now: anything is evicted, and it is fetched even if the
                limit is exceeded.

        Returns:
            True if the space was allocated; nothing was evicted otherwise.
        """
        with exclusive_lock(self.lock):
            excess = self._bytes_over_limit(num_bytes)
            if excess > 0:
                candidates = self._eviction_candidates(distance)
                if distance is not None and sum(shard.num_bytes for shard in candidates) < excess:
                    return False
                excess = _evict(candidates, excess)
            if excess > 0 and distance is not None:
                return False
            part.truncate(num_bytes)
        if excess > 0:
            self._warn_over_limit(excess)
        os.posix_fallocate(part.fileno(), 0, num_bytes)  # fails now if the disk is full
        return True

    def publish(self, part: Path, shard: Path) -> None:
        """Rename a complete part under the lock, so that no count of the bytes misses it."""
        with exclusive_lock(self.lock):
            part.replace(shard)

    @contextmanager
    def access_plan(self) -> Iterator["AccessPlan"]:
        """Publish an access plan that ends with this context or with the process."""
        path = self.plans / f"{uuid4().hex}.plan"
        with exclusive_lock(path) as file:
            assert file is not None
            try:
                yield AccessPlan(file, self.lock)
            finally:
                path.unlink(missing_ok=True)

    def remove_stale(self) -> None:
        """Remove the files of processes that have ended."""
        with exclusive_lock(self.lock):
            self._bytes_over_limit(0)
            next_use_distances(self.plans)

    def _bytes_over_limit(self, num_bytes: int) -> int:
        """Return the bytes by which adding `num_bytes` exceeds the limit; remove stale parts."""
        for path, _ in self._list(PART):
            remove_if_unlocked(path)
        used = sum(stat.st_size for suffix in (SHARD, PART) for _, stat in self._list(suffix))
        return used + num_bytes - self._max_bytes

    def _eviction_candidates(self, distance: int | None) -> "list[_Candidate]":
        """Return the shards that may go for one needed in `distance` batches, first to go first."""
        distances = next_use_distances(self.plans)
        candidates = []
        for path, stat in self._list(SHARD):
            next_use = distances.get(path.stem)
            if next_use is None or distance is None or next_use > distance:
                order = (0, stat.st_mtime_ns) if next_use is None else (1, -next_use)
                candidates.append(_Candidate(order, path, stat.st_size))
        return sorted(candidates)

    def _list(self, suffix: str) -> Iterator[tuple[Path, os.stat_result]]:
        with os.scandir(self._directory) as entries:
            for entry in entries:
                if entry.name.endswith(suffix):
                    with suppress(FileNotFoundError):  # its fetcher has just given up
                        yield Path(entry), entry.stat()

    def _warn_over_limit(self, excess: int) -> None:
        if not self._has_warned:
            log.warning(
                "the cache %s is %.1f MB above its limit of %.1f MB: every shard in it is being "
                "fetched or opened right now. The batches are correct, but shards are fetched "
                "repeatedly. Raise cache.max_gb.",
                self._directory,
                excess / 1e6,
                self._max_bytes / 1e6,
            )
        self._has_warned = True


@dataclass(frozen=True, order=True)
class _Candidate:
    order: tuple[int, int]
    path: Path
    num_bytes: int


def _evict(candidates: list[_Candidate], excess: int) -> int:
    """Remove shards until the limit holds; return the bytes by which it is still exceeded."""
    for shard in candidates:
        if excess <= 0:
            break
        if remove_if_unlocked(shard.path):
            excess -= shard.num_bytes
    return excess


class AccessPlan:
    """The published plan of one process."""

    def __init__(self, file: IO[bytes], budget_lock: Path) -> None:
        self._file, self._budget_lock = file, budget_lock

    def write(self, position: int, next_uses: Mapping[str, int]) -> None:
        """Publish the position of this process.

        Args:
            position: the next batch.
            next_uses: for the digest of each shard, the first batch from there on that needs it.
        """
        text = json.dumps({"position": position, "next_uses": next_uses}).encode()
        with exclusive_lock(self._budget_lock):
            self._file.seek(0)
            self._file.truncate()
            self._file.write(text)


def next_use_distances(plans: Path) -> dict[str, int]:
    """Return the number of batches until each shard is next needed by any live plan, by digest.

    The caller holds the lock of the space budget. Plans of processes that have ended are removed.
    """
    distances: dict[str, int] = {}
    for path in plans.glob("*.plan"):
        if remove_if_unlocked(path):
            continue
        with suppress(OSError, ValueError, KeyError, TypeError):  # its owner ended while writing it
            plan = json.loads(path.read_bytes())
            for digest, batch in plan["next_uses"].items():
                distance = max(batch - plan["position"], 0)
                distances[digest] = min(distance, distances.get(digest, distance))
    return distances
