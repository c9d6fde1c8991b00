"""Samples read by range from a URL, for nodes whose disk is too small for whole shards.

The samples of a micro-batch are requested at once, each by the range of its bytes. These ranges
are found when a node first reads from a shard: the shard is fetched as a whole into memory, checked
by its digest, walked, and dropped. Hence a node transfers every shard that it reads from twice, and
holds one of them in memory for that moment; 16 bytes a sample are kept among the temporary files.

The bytes of a sample, closed by an end mark, are a tar of one sample and are read like any tar.
They are not checked by a digest, only for being the tar members expected at that offset.
"""

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from data_sharding.errors import ShardError, UnavailableError
from data_sharding.format.location import shard_url
from data_sharding.format.manifest import ShardInfo
from data_sharding.format.sample_rule import SampleRule
from data_sharding.format.shard_reader import ShardReader
from data_sharding.io.download import ByteRange, DownloadSettings, fetch_ranges
from data_sharding.io.node_files import node_file, user_directory
from data_sharding.storage.fetch_shard import fetch_shard
from data_sharding.storage.store import Reader, Store

_END_MARK = bytes(1024)

# (samples, 2): the bytes [start, stop) of each sample
SampleRanges = NDArray[np.int64]


class RangeReadStore(Store):
    """Remote shards, of which only the requested samples are fetched."""

    def __init__(self, base: str, rule: SampleRule, settings: DownloadSettings) -> None:
        super().__init__()
        self._base, self._rule, self._settings = base, rule, settings
        self._fetched: dict[tuple[str, int], memoryview] = {}  # samples by (shard name, index)

    def prefetch_samples(self, samples: Sequence[tuple[ShardInfo, int]]) -> None:
        """Fetch samples concurrently, and drop those fetched before."""
        self._fetched.clear()
        readers = {(shard.name, i): cast(RangeReader, self.open(shard)) for shard, i in samples}
        self._fetch(_adjacent_runs(readers, self._settings.chunk_bytes))

    def _fetch(self, runs: Sequence["SampleRun"]) -> None:
        def keep(index: int, data: bytes) -> None:
            reader, first, stop = runs[index]
            for i in range(first, stop):
                begin, end = (reader.ranges[i] - reader.ranges[first, 0]).tolist()
                self._fetched[reader.name, i] = memoryview(data)[begin:end]

        fetch_ranges([run.byte_range for run in runs], self._settings, keep)

    def _open(self, shard: ShardInfo) -> Reader:
        url = shard_url(self._base, shard.name)
        ranges = sample_ranges(shard, url, self._rule, self._settings)
        return RangeReader(shard.name, url, ranges, self)

    def load(self, reader: "RangeReader", i: int) -> ShardReader:
        """Return a shard of one sample, fetched now unless it was prefetched."""
        if (reader.name, i) not in self._fetched:
            self._fetch([SampleRun(reader, i, i + 1)])
        with _memory_file() as (file, path):
            file.write(self._fetched[reader.name, i])
            file.write(_END_MARK)
            file.flush()
            try:
                return ShardReader(path, rule=self._rule)
            except ShardError as error:
                reason = error.problem.replace(path, reader.url)
                raise ShardError(
                    f"sample {i} is not where it should be: {reason}",
                    value=reader.url,
                    hint="If the shard was replaced since the run began, begin a new run.",
                ) from error

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_fetched": {}}


class RangeReader:
    """The samples of a remote shard."""

    def __init__(self, name: str, url: str, ranges: SampleRanges, store: RangeReadStore) -> None:
        self.name, self.url, self.ranges = name, url, ranges
        self._store = store
        self._opened: tuple[int, ShardReader] | None = None  # the sample read last

    def __len__(self) -> int:
        return len(self.ranges)

    def image(self, i: int) -> memoryview:
        return self._sample(i).image(0)

    def label_bytes(self, i: int) -> bytes:
        return self._sample(i).label_bytes(0)

    def key(self, i: int) -> str:
        return self._sample(i).key(0)

    def close(self) -> None:
        if self._opened is not None:
            self._opened[1].close()
        self._opened = None

    def _sample(self, i: int) -> ShardReader:
        if self._opened is None or self._opened[0] != i:
            self.close()
            self._opened = i, self._store.load(self, i)
        return self._opened[1]


class SampleRun(NamedTuple):
    """Samples [first, stop) of a shard."""

    reader: RangeReader
    first: int
    stop: int

    @property
    def byte_range(self) -> ByteRange:
        ranges = self.reader.ranges
        start, stop = int(ranges[self.first, 0]), int(ranges[self.stop - 1, 1])
        return ByteRange(self.reader.url, start, stop)


def _adjacent_runs(readers: dict[tuple[str, int], RangeReader], max_bytes: int) -> list[SampleRun]:
    """Join adjacent samples, given as (shard name, index), up to the bytes of one request."""
    runs: list[SampleRun] = []
    for (_, i), reader in sorted(readers.items(), key=lambda item: item[0]):
        if runs and runs[-1].reader is reader and runs[-1].stop == i:
            longer = SampleRun(reader, runs[-1].first, i + 1)
            is_adjacent = reader.ranges[i - 1, 1] == reader.ranges[i, 0]
            if is_adjacent and longer.byte_range.stop - longer.byte_range.start <= max_bytes:
                runs[-1] = longer
                continue
        runs.append(SampleRun(reader, i, i + 1))
    return runs


def sample_ranges(
    shard: ShardInfo, url: str, rule: SampleRule, settings: DownloadSettings
) -> SampleRanges:
    """Return the ranges of a remote shard's samples; found once a node, then kept on its disk."""

    def find() -> bytes:
        file = io.BytesIO()
        np.save(file, _find_ranges(shard, url, rule, settings))
        return file.getvalue()

    # Another version of Tahoe may find other samples in the same bytes.
    chosen = rule.digest_of_choice
    path = user_directory("samples") / f"{shard.sha256}-{shard.num_samples}{chosen}.ranges.npy"
    try:
        if not path.exists():  # one lock for all shards: a node has one at a time in memory
            node_file(path, "lock", lambda path: True, find)
        ranges: SampleRanges = np.load(path, allow_pickle=False)
    except OSError as error:
        raise UnavailableError(
            f"cannot find the samples of {url}: {error}. Streaming needs memory for one shard, and "
            f"a few bytes a sample in {path.parent}",
            value=url,
            hint="Free some space, or set TMPDIR to a directory of this node that has it.",
        ) from error
    return ranges


def _find_ranges(
    shard: ShardInfo, url: str, rule: SampleRule, settings: DownloadSettings
) -> SampleRanges:
    with _memory_file() as (file, path):
        file.truncate(shard.num_bytes)
        fetch_shard(url, shard, rule, file, settings)
        try:
            with ShardReader(path, shard, rule=rule) as reader:
                if reader.has_links:
                    raise ShardError(
                        f"{url} holds hard links, whose bytes are elsewhere in it: single samples "
                        "cannot be fetched",
                        value=url,
                        hint="Give the node's cache space for the shard (`cache.max_gb`), or write "
                        "the data set again with `webdataset`.",
                    )
                return reader.ranges
        except ShardError as error:
            problem = error.problem.replace(path, url)
            raise ShardError(problem, value=url, hint=error.hint) from error


@contextmanager
def _memory_file() -> Iterator[tuple[IO[bytes], str]]:
    """Create a file in memory, without a name; mappings of it outlive it."""
    with os.fdopen(os.memfd_create("shard"), "w+b") as file:
        yield file, f"/proc/self/fd/{file.fileno()}"
