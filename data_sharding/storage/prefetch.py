"""Prefetching of shards into the node's cache, by a process beside each rank.

The order of the samples is known, so nothing is guessed: the process walks the batches that its
rank will read, fetches their shards in the order of first use, and publishes an access plan for the
other processes of the node. It fetches a shard only if none that is needed sooner has to be evicted
for it; else it waits until the rank has gone on.

Prefetching is optional: without it, or where it fails, readers fetch what they miss and meet the
error themselves.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.context import ForkServerProcess
from multiprocessing.synchronize import Semaphore
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_sharding.errors import DataError
from data_sharding.format.location import shard_url
from data_sharding.format.manifest import ShardInfo
from data_sharding.io.worker_process import exit_with_parent, forkserver_context, signals_blocked
from data_sharding.storage.cache import PrefetchResult
from data_sharding.storage.cache_eviction import AccessPlan
from data_sharding.storage.shard_store import CachedStore
from data_sharding.storage.store import Store

log = logging.getLogger(__name__)

ShardsOf = Callable[[Any], NDArray[np.int64]]

_MAX_BATCHES_AHEAD = 4096  # some minutes of training; looking further costs more than it gains


@contextmanager
def prefetching(
    store: Store, shards: Sequence[ShardInfo], keys: Iterable[Any], shards_of: ShardsOf
) -> Iterator[Callable[[], object]]:
    """Prefetch for as long as the context lasts, if the store has a cache; else do nothing.

    Yields a function to be called for each batch that is delivered; it does not block.

    Args:
        shards: the shards of the split, by number.
        keys: the keys of the batches in the order of their delivery; can be pickled.
        shards_of: the function from a batch key to its shard numbers; can be pickled.
    """
    if not isinstance(store, CachedStore):
        yield lambda: None
        return
    context = forkserver_context(__name__)
    with signals_blocked():
        delivered = context.Semaphore(0)
    process = context.Process(
        target=_prefetch, args=(store, shards, keys, shards_of, delivered), daemon=True
    )
    # A fork server that has only just been started imports for seconds: the rank does not wait.
    starter = threading.Thread(target=_start, args=(process,), daemon=True)
    starter.start()
    try:
        yield delivered.release
    finally:
        starter.join()
        if process.pid is not None:
            process.kill()
            process.join()
            with suppress(DataError):  # an unusable directory was already reported
                store.cache.remove_stale()


class _ShardUses(NamedTuple):
    """The batches that need a shard, in order."""

    shard: ShardInfo
    batches: deque[int]


class LookaheadWindow:
    """The upcoming batches, from the next one on: as many as the cache could serve."""

    def __init__(
        self, shards: Sequence[ShardInfo], batches: Iterator[Sequence[int]], max_bytes: int
    ) -> None:
        self.position = 0
        self._shards, self._upcoming, self._max_bytes = shards, batches, max_bytes
        self._batches: deque[Sequence[int]] = deque()
        self._uses: dict[int, _ShardUses] = {}
        self._num_bytes = 0

    def extend(self) -> bool:
        """Extend the window as far as is useful; return False if no batch is left."""
        while self._num_bytes <= self._max_bytes and len(self._batches) < _MAX_BATCHES_AHEAD:
            if not self._append_batch():
                break
        return bool(self._batches)

    def advance(self) -> None:
        """Move on to the next batch."""
        if self._batches or self._append_batch():
            for number in self._batches.popleft():
                uses = self._uses[number]
                uses.batches.popleft()
                if not uses.batches:
                    del self._uses[number]
                    self._num_bytes -= uses.shard.num_bytes
        self.position += 1

    def next_uses(self) -> list[tuple[int, ShardInfo]]:
        """Return (batch that needs it next, shard) for the shards of the window, in that order."""
        uses = ((uses.batches[0], uses.shard) for uses in self._uses.values())
        return sorted(uses, key=lambda use: (use[0], use[1].name))

    def _append_batch(self) -> bool:
        numbers = next(self._upcoming, None)
        if numbers is None:
            return False
        batch = self.position + len(self._batches)
        self._batches.append(numbers)
        for number in numbers:
            if number not in self._uses:
                self._uses[number] = _ShardUses(self._shards[number], deque())
                self._num_bytes += self._uses[number].shard.num_bytes
            self._uses[number].batches.append(batch)
        return True


class _Prefetcher:
    def __init__(self, store: CachedStore, window: LookaheadWindow, plan: AccessPlan) -> None:
        self._store, self._window, self._plan = store, window, plan
        self._failed: set[str] = set()

    def run(self, delivered: Semaphore) -> None:
        """Prefetch until no batch is left."""
        while self._window.extend():
            uses = self._window.next_uses()
            self._plan.write(self._window.position, {shard.sha256: batch for batch, shard in uses})
            if not self._fetch_one(uses):
                delivered.acquire()
                self._window.advance()
            while delivered.acquire(block=False):
                self._window.advance()

    def _fetch_one(self, uses: list[tuple[int, ShardInfo]]) -> bool:
        """Fetch the missing shard that is needed first; return True if one was fetched."""
        cache = self._store.cache
        for batch, shard in uses:
            if shard.sha256 in self._failed or cache.has(shard):
                continue
            url = shard_url(self._store.base, shard.name)
            try:
                result = cache.prefetch(shard, url, batch - self._window.position)
            except DataError as error:
                log.warning("not prefetched: %s", error)
                self._failed.add(shard.sha256)
                continue
            if result is not PrefetchResult.IN_FLIGHT:
                return result is PrefetchResult.CACHED
        return False


def _start(process: ForkServerProcess) -> None:
    try:
        with signals_blocked():
            process.start()
    except Exception:
        log.exception("no prefetching: its process cannot be started")


def _prefetch(
    store: CachedStore,
    shards: Sequence[ShardInfo],
    keys: Iterable[Any],
    shards_of: ShardsOf,
    delivered: Semaphore,
) -> None:
    """Run in the process beside the rank."""
    exit_with_parent()
    batches = (np.unique(shards_of(key)).tolist() for key in keys)
    try:
        store.cache.remove_stale()
        window = LookaheadWindow(shards, batches, store.cache.max_bytes)
        with store.cache.plan() as plan:
            _Prefetcher(store, window, plan).run(delivered)
    except DataError as error:
        log.warning("no prefetching: %s", error)
    except Exception:
        log.exception("prefetching has stopped: readers fetch what they miss")
