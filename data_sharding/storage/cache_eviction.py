"""Bounded bytes: room for a shard is made before it is fetched, by evicting what is needed last.

What no live plan wants goes first, oldest first; then what all plans need latest. Which was used
last says nothing here: a shard that was just read through is often the one not needed for longest.

All processes of the node that use the cache decide under one lock, and a shard that is being
fetched counts in full from the beginning, so the bound holds however many fetch at once.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from data_sharding.io.file_lock import exclusive_lock, remove_if_unlocked
from data_sharding.storage.access_plans import next_use_distances

log = logging.getLogger(__name__)

SHARD, PART = ".tar", ".part"


class SpaceBudget:
    """The bytes of a cache directory."""

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self._directory, self._max_bytes = directory, max_bytes
        self.lock = directory / "room.lock"
        self.plans = directory / "plans"
        self._has_complained = False

    def reserve(self, part: IO[bytes], num_bytes: int, distance: int | None) -> bool:
        """Make room for a shard and let its part file take it.

        Args:
            part: the file that it will be fetched into, held by the caller, of 0 bytes.
            distance: batches until it is needed: nothing that is needed sooner is evicted for it.
                None is needed now: anything is evicted, and it is fetched even without room.

        Returns:
            Whether the room was taken; nothing was evicted if it could not be.
        """
        with exclusive_lock(self.lock):
            excess = self._bytes_over_limit(num_bytes)
            if excess > 0:
                victims = self._eviction_candidates(distance)
                if distance is not None and sum(victim.num_bytes for victim in victims) < excess:
                    return False
                excess = _evict(victims, excess)
            if excess > 0 and distance is not None:
                return False
            part.truncate(num_bytes)
        if excess > 0:
            self._warn_over_limit(excess)
        os.posix_fallocate(part.fileno(), 0, num_bytes)  # a full disk shows now
        return True

    def publish(self, part: Path, shard: Path) -> None:
        """Give a whole part its final name, between two counts of the bytes and not during one."""
        with exclusive_lock(self.lock):
            part.replace(shard)

    def tidy(self) -> None:
        """Remove what processes that have ended left behind."""
        with exclusive_lock(self.lock):
            self._bytes_over_limit(0)
            next_use_distances(self.plans)

    def _bytes_over_limit(self, num_bytes: int) -> int:
        """Return by how much the bound is exceeded if so many bytes are added."""
        for path, _ in self._list(PART):
            remove_if_unlocked(path)
        used = sum(state.st_size for kind in (SHARD, PART) for _, state in self._list(kind))
        return used + num_bytes - self._max_bytes

    def _eviction_candidates(self, distance: int | None) -> "list[_Victim]":
        """Return the shards that may go for one that is needed in `distance` batches, in order."""
        distances = next_use_distances(self.plans)
        found = []
        for path, state in self._list(SHARD):
            mine = distances.get(path.stem)
            if mine is None or distance is None or mine > distance:
                order = (0, state.st_mtime_ns) if mine is None else (1, -mine)
                found.append(_Victim(order, path, state.st_size))
        return sorted(found)

    def _list(self, suffix: str) -> Iterator[tuple[Path, os.stat_result]]:
        with os.scandir(self._directory) as entries:
            for entry in entries:
                if entry.name.endswith(suffix):
                    with suppress(FileNotFoundError):  # given up by its fetcher just now
                        yield Path(entry), entry.stat()

    def _warn_over_limit(self, excess: int) -> None:
        if not self._has_complained:
            log.warning(
                "the cache %s is %.1f MB above its bound of %.1f MB: all that it holds is being "
                "fetched or opened right now. The batches are right, but shards are fetched more "
                "often than once. Raise cluster.cache.max_gb.",
                self._directory,
                excess / 1e6,
                self._max_bytes / 1e6,
            )
        self._has_complained = True


@dataclass(frozen=True, order=True)
class _Victim:
    order: tuple[int, int]
    path: Path
    num_bytes: int


def _evict(victims: list[_Victim], excess: int) -> int:
    """Remove shards until the bound holds; return what it is still exceeded by."""
    for victim in victims:
        if excess <= 0:
            break
        if remove_if_unlocked(victim.path):
            excess -= victim.num_bytes
    return excess
