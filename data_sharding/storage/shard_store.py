"""The stores of a split's shards: in place, in the node's cache, or by range over the network."""

import os
from pathlib import Path
from typing import Any

from data_sharding.errors import ShardError
from data_sharding.format.location import Location, shard_url
from data_sharding.format.manifest import ShardInfo
from data_sharding.format.sample_rule import SampleRule
from data_sharding.format.shard_reader import ShardReader
from data_sharding.io import filesystem
from data_sharding.io.download import DownloadSettings
from data_sharding.storage.cache import Cache, CacheSettings
from data_sharding.storage.range_reads import RangeReadStore
from data_sharding.storage.store import Reader, Store


def open_store(
    location: Location, split: str, settings: CacheSettings | None, rule: SampleRule
) -> Store:
    """Open the store of a split; local shards are read in place.

    Args:
        settings: the node's cache; without one, remote samples are fetched by range.
        rule: the rule that finds image and label of a sample.
    """
    base = location.base(split)
    if location.is_local(split):
        return LocalStore(base, rule)
    if settings is None:
        return RangeReadStore(base, rule, DownloadSettings())
    return CachedStore(base, settings, rule)


class LocalStore(Store):
    """Local shards, mapped in place."""

    def __init__(self, base: str, rule: SampleRule) -> None:
        super().__init__()
        self._base, self._rule = base, rule

    def _open(self, shard: ShardInfo) -> Reader:
        path = filesystem.local_path(shard_url(self._base, shard.name))
        assert path is not None
        return ShardReader(path, shard, rule=self._rule)


class CachedStore(Store):
    """Remote shards, mapped in the node's cache.

    `base` is what their names are relative to.
    """

    def __init__(self, base: str, settings: CacheSettings, rule: SampleRule) -> None:
        super().__init__()
        self.base, self.cache, self._rule = base, Cache(settings, rule), rule

    def close_evicted(self) -> None:
        for name, reader in list(self._readers.items()):
            if isinstance(reader, _CachedReader) and reader.was_evicted():
                self._readers.pop(name).close()

    def _open(self, shard: ShardInfo) -> Reader:
        url = shard_url(self.base, shard.name)
        read = lambda path: _CachedReader(path, shard, rule=self._rule)  # noqa: E731
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
