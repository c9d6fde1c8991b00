"""Stores of a split's shards: read in place, from the node's cache, or by range over the network.

A store is pickled for the processes that read; its open shards are not, each process opens its own.
It is used by one thread at a time.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from data_sharding.errors import ShardError
from data_sharding.format.labels import LabelRule
from data_sharding.format.manifest import ShardInfo
from data_sharding.format.shard_reader import ShardReader
from data_sharding.io import filesystem
from data_sharding.io.download import DownloadSettings
from data_sharding.storage.cache import Cache, CacheSettings
from data_sharding.storage.range_reads import RangeReadStore
from data_sharding.storage.reader_pool import ReaderPool


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

    def close(self) -> None:
        """Close the shard."""
        ...


class Store(Protocol):
    """The shards of a split."""

    def open(self, shard: ShardInfo) -> Reader:
        """Open a shard; the reader is valid until the store is used again.

        Raises:
            ShardError: it is missing, damaged, or not what its manifest says.
            UnavailableError: it cannot be read now.
            DataError: the node's cache cannot be used.
        """
        ...

    def prefetch_samples(self, samples: Sequence[tuple[ShardInfo, int]]) -> None:
        """Announce the samples (shard, index) to be read next; raises as `open` does."""
        ...

    def close_evicted(self) -> None:
        """Close shards that the cache has evicted, to free their disk space."""
        ...


def open_store(url: str, settings: CacheSettings | None, labels: LabelRule) -> Store:
    """Open the store of a split.

    Args:
        url: the URL of the split; a local one is read in place.
        settings: the node's cache; without one, remote samples are fetched by range.
        labels: the rule that finds and parses the label of a sample.
    """
    directory = filesystem.local_path(url)
    if directory is not None:
        return LocalStore(directory, labels)
    if settings is None:
        return RangeReadStore(url, labels, DownloadSettings())
    return CachedStore(url, settings, labels)


class LocalStore:
    """Shards of a local directory, mapped in place."""

    def __init__(self, directory: Path, labels: LabelRule) -> None:
        self._directory, self._labels = directory, labels
        self._readers: ReaderPool[ShardReader] = ReaderPool()

    def open(self, shard: ShardInfo) -> Reader:
        path = self._directory / shard.name
        return self._readers.get(shard.name, lambda: ShardReader(path, shard, labels=self._labels))

    def prefetch_samples(self, samples: Sequence[tuple[ShardInfo, int]]) -> None:
        pass

    def close_evicted(self) -> None:
        pass


class CachedStore:
    """Remote shards, mapped in the node's cache."""

    def __init__(self, url: str, settings: CacheSettings, labels: LabelRule) -> None:
        self.url, self.cache = url, Cache(settings)
        self._labels = labels
        self._readers: ReaderPool[_CachedReader] = ReaderPool()

    def open(self, shard: ShardInfo) -> Reader:
        return self._readers.get(shard.name, lambda: self._open(shard))

    def prefetch_samples(self, samples: Sequence[tuple[ShardInfo, int]]) -> None:
        pass

    def close_evicted(self) -> None:
        self._readers.close_if(_CachedReader.was_evicted)

    def _open(self, shard: ShardInfo) -> "_CachedReader":
        url = filesystem.join(self.url, shard.name)
        read = lambda path: _CachedReader(path, shard, labels=self._labels)  # noqa: E731
        try:
            return self.cache.open(shard, url, read)
        except ShardError as error:
            problem = f"{error.problem} (read from {url})"
            raise type(error)(problem, value=url, hint=error.hint) from error


class _CachedReader(ShardReader):
    """A shard that may be evicted while it is open."""

    def __init__(self, path: Path, *arguments: Any, **options: Any) -> None:
        super().__init__(path, *arguments, **options)
        self._identity = path.stat()

    def was_evicted(self) -> bool:
        """Check whether the cache has removed this file; it may have fetched it again since."""
        try:
            return not os.path.samestat(self._identity, self.path.stat())
        except FileNotFoundError:
            return True
