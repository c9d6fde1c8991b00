"""The base class of stores: the shards of a split, opened by the process that reads them."""

import resource
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Protocol
from weakref import WeakSet

from data_sharding.format.manifest import ShardInfo

_MAX_OPEN = 256  # of a store
_OPEN_FRACTION = 1 / 2  # of the files that the process may open; each open shard holds one


class Reader(Protocol):
    """The samples of an open shard."""

    def __len__(self) -> int: ...

    def image(self, i: int) -> memoryview:
        """Return the bytes of the i-th image; BadSample if its type is unknown."""
        ...

    def label_bytes(self, i: int) -> bytes:
        """Return the content of the label member of the i-th sample."""
        ...

    def key(self, i: int) -> str:
        """Return the name of the i-th sample, for messages."""
        ...

    def close(self) -> None: ...


class Store:
    """The shards of a split; used by one thread at a time, and pickled without its open shards."""

    def __init__(self) -> None:
        self._readers: OrderedDict[str, Reader] = OrderedDict()  # the most recently used last

    def open(self, shard: ShardInfo) -> Reader:
        """Open a shard; the reader is valid until the store is used again.

        Raises:
            ShardError: it is missing, damaged, or not what its manifest says.
            UnavailableError: it cannot be read now.
            DataError: the node's cache cannot be used.
        """
        if shard.name not in self._readers:
            _used.add(self)
            for _ in range(len(self._readers) - _max_open(len(_used)) + 1):
                self._readers.popitem(last=False)[1].close()
            self._readers[shard.name] = self._open(shard)
        self._readers.move_to_end(shard.name)
        return self._readers[shard.name]

    def _open(self, shard: ShardInfo) -> Reader:
        raise NotImplementedError

    def prefetch_samples(self, samples: Sequence[tuple[ShardInfo, int]]) -> None:
        """Announce the samples (shard, index) to be read next; raises as `open` does."""

    def close_evicted(self) -> None:
        """Close shards that the cache has evicted, to free their disk space."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_readers": OrderedDict()}


_used = WeakSet[Store]()  # by this process: a mixture reads from many


def _max_open(num_stores: int) -> int:
    """Return the number of shards that each of the stores of this process may keep open."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == resource.RLIM_INFINITY:
        return _MAX_OPEN
    return max(min(_MAX_OPEN, int(most * _OPEN_FRACTION) // num_stores), 1)
