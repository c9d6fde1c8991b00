"""Shards fetched into the node's cache before they are read, by a process beside each rank.

The order of the samples is known, so nothing is guessed: the process walks the batches that its
rank will read, fetches their shards in the order of first use, and tells the other processes of the
node, through its plan, what is needed when. It fetches a shard only if that costs none that is
needed sooner; else it waits until the rank has gone on.

It is a help, never a condition: without it, or where it fails, readers fetch what they miss, and
meet the error themselves.
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
from data_sharding.format.manifest import ShardInfo
from data_sharding.io import filesystem
from data_sharding.io.worker_process import exit_with_parent, forkserver_context, signals_blocked
from data_sharding.storage.access_plans import AccessPlan
from data_sharding.storage.cache import PrefetchResult
from data_sharding.storage.shard_store import CachedStore, Store

log = logging.getLogger(__name__)

ShardsOf = Callable[[Any], NDArray[np.int64]]

_MAX_BATCHES_AHEAD = 4096  # some minutes of training; looking further costs more than it brings


class DeliveryCounter:
    """How far a rank has come, as its prefetcher hears of it."""

    def __init__(self, delivered: Semaphore | None) -> None:
        self._delivered = delivered

    def advance(self) -> None:
        """Say that the next batch was delivered; never waits."""
        if self._delivered is not None:
            self._delivered.release()


@contextmanager
def prefetching(
    store: Store, shards: Sequence[ShardInfo], names: Iterable[Any], shards_of: ShardsOf
) -> Iterator[DeliveryCounter]:
    """Fetch ahead as long as the context lasts, if the store has a cache; else do nothing.

    Args:
        shards: of the split, by number.
        names: of the batches in the order in which they will be delivered; can be pickled.
        shards_of: from the name of a batch to the numbers of its shards; can be pickled.
    """
    if not isinstance(store, CachedStore):
        yield DeliveryCounter(None)
        return
    context = forkserver_context(__name__)
    with signals_blocked():
        delivered = context.Semaphore(0)
    process = context.Process(
        target=_prefetch, args=(store, shards, names, shards_of, delivered), daemon=True
    )
    # A fork server that has only just been started imports for seconds: the rank does not wait.
    starter = threading.Thread(target=_start, args=(process,), daemon=True)
    starter.start()
    try:
        yield DeliveryCounter(delivered)
    finally:
        starter.join()
        if process.pid is not None:
            process.kill()
            process.join()
            with suppress(DataError):  # a directory that cannot be used was named by then
                store.cache.tidy()


class _ShardUses(NamedTuple):
    """The batches that need a shard, in order."""

    shard: ShardInfo
    batches: deque[int]


class LookaheadWindow:
    """The batches that are looked at: from the next one on, as many as the cache could serve."""

    def __init__(
        self, shards: Sequence[ShardInfo], batches: Iterator[Sequence[int]], max_bytes: int
    ) -> None:
        self.position = 0
        self._shards, self._rest, self._max_bytes = shards, batches, max_bytes
        self._batches: deque[Sequence[int]] = deque()
        self._uses: dict[int, _ShardUses] = {}
        self._num_bytes = 0

    def extend(self) -> bool:
        """Look as far ahead as is of use; return whether there is any batch left."""
        while self._num_bytes <= self._max_bytes and len(self._batches) < _MAX_BATCHES_AHEAD:
            if not self._look_at_another():
                break
        return bool(self._batches)

    def advance(self) -> None:
        """Go to the next batch."""
        if self._batches or self._look_at_another():
            for number in self._batches.popleft():
                uses = self._uses[number]
                uses.batches.popleft()
                if not uses.batches:
                    del self._uses[number]
                    self._num_bytes -= uses.shard.num_bytes
        self.position += 1

    def next_uses(self) -> list[tuple[int, ShardInfo]]:
        """Return the shards of these batches: (batch that needs it next, shard), in that order."""
        uses = ((uses.batches[0], uses.shard) for uses in self._uses.values())
        return sorted(uses, key=lambda use: (use[0], use[1].name))

    def _look_at_another(self) -> bool:
        for numbers in self._rest:
            batch = self.position + len(self._batches)
            self._batches.append(numbers)
            for number in numbers:
                if number not in self._uses:
                    self._uses[number] = _ShardUses(self._shards[number], deque())
                    self._num_bytes += self._uses[number].shard.num_bytes
                self._uses[number].batches.append(batch)
            return True
        return False


class _Prefetcher:
    def __init__(self, store: CachedStore, window: LookaheadWindow, plan: AccessPlan) -> None:
        self._store, self._window, self._plan = store, window, plan
        self._failed: set[str] = set()

    def run(self, delivered: Semaphore) -> None:
        """Fetch ahead until no batch is left."""
        while self._window.extend():
            uses = self._window.next_uses()
            self._plan.write(self._window.position, {shard.sha256: batch for batch, shard in uses})
            if not self._fetch_one(uses):
                delivered.acquire()
                self._window.advance()
            while delivered.acquire(block=False):
                self._window.advance()

    def _fetch_one(self, uses: list[tuple[int, ShardInfo]]) -> bool:
        """Fetch the shard that is missed first; return whether one was fetched."""
        cache = self._store.cache
        for batch, shard in uses:
            if shard.sha256 in self._failed or cache.has(shard):
                continue
            url = filesystem.join(self._store.url, shard.name)
            try:
                outcome = cache.prefetch(shard, url, batch - self._window.position)
            except DataError as error:
                log.warning("not fetched ahead: %s", error)
                self._failed.add(shard.sha256)
                continue
            if outcome is not PrefetchResult.IN_FLIGHT:
                return outcome is PrefetchResult.CACHED
        return False


def _start(process: ForkServerProcess) -> None:
    try:
        with signals_blocked():
            process.start()
    except Exception:
        log.exception("shards are not fetched ahead: the process for it cannot be started")


def _prefetch(
    store: CachedStore,
    shards: Sequence[ShardInfo],
    names: Iterable[Any],
    shards_of: ShardsOf,
    delivered: Semaphore,
) -> None:
    """Run in the process beside the rank."""
    exit_with_parent()
    batches = (np.unique(shards_of(name)).tolist() for name in names)
    try:
        store.cache.tidy()
        window = LookaheadWindow(shards, batches, store.cache.max_bytes)
        with store.cache.plan() as plan:
            _Prefetcher(store, window, plan).run(delivered)
    except DataError as error:
        log.warning("shards are not fetched ahead: %s", error)
    except Exception:
        log.exception("shards are no longer fetched ahead: readers fetch what they miss")
