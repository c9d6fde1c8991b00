"""Samples straight from a URL, for nodes whose disk is too short for whole shards.

The samples of a micro-batch are asked for at once, each by the range of its bytes. Where they lie
is found when a node first reads from a shard: the shard is fetched as a whole into memory, checked
by its digest, walked, and dropped. Hence a node transfers every shard that it reads from twice, and
holds one of them in memory for that moment; what stays is 8 bytes a sample, in the directory for
temporary files.

The bytes of a sample, closed by an end mark, are a tar of one sample, and are read like any tar.
They are not checked by a digest, only for being what a tar must have at that place.
"""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_sharding.errors import ShardError, UnavailableError
from data_sharding.format.labels import LabelRule
from data_sharding.format.manifest import ShardInfo
from data_sharding.format.shard_reader import ShardReader
from data_sharding.io import filesystem
from data_sharding.io.download import ByteRange, DownloadSettings, fetch
from data_sharding.io.file_lock import exclusive_lock, make_private
from data_sharding.storage.fetch_shard import download
from data_sharding.storage.reader_pool import ReaderPool

_END_MARK = bytes(1024)

SampleOffsets = NDArray[
    np.int64
]  # (samples + 1,): where each sample starts, and where the last one ends


class RangeReadStore:
    """Remote shards, of which only the samples asked for are fetched."""

    def __init__(self, url: str, labels: LabelRule, transfer: DownloadSettings) -> None:
        self._url, self._labels, self._transfer = url, labels, transfer
        self._readers: ReaderPool[_StreamedReader] = ReaderPool()
        self._loaded: _Loaded = {}

    def open(self, shard: ShardInfo) -> "_StreamedReader":
        return self._readers.get(shard.name, lambda: self._open(shard))

    def prefetch_samples(self, wanted: Sequence[tuple[ShardInfo, int]]) -> None:
        """Fetch samples, several at a time, and let go of those fetched before."""
        self._loaded.clear()
        samples = {(shard.name, i): self.open(shard) for shard, i in wanted}
        runs = _runs(samples, self._transfer.part_bytes)
        pieces = [reader.piece(first, stop) for reader, first, stop in runs]
        fetch(pieces, self._transfer, lambda number, data: self._keep(runs[number], data))

    def close_evicted(self) -> None:
        pass

    def _keep(self, run: "SampleRun", data: bytes) -> None:
        bounds, view = run.reader.bounds, memoryview(data)
        for i in range(run.first, run.stop):
            start, stop = (bounds[i : i + 2] - bounds[run.first]).tolist()
            self._loaded[run.reader.name, i] = view[start:stop]

    def _open(self, shard: ShardInfo) -> "_StreamedReader":
        url = filesystem.join(self._url, shard.name)
        bounds = sample_bounds(shard, url, self._labels, self._transfer)
        return _StreamedReader(shard.name, url, bounds, self)

    def load(self, reader: "_StreamedReader", i: int) -> ShardReader:
        """Return a shard of one sample, fetched now if nobody has said that it would be read."""
        if (reader.name, i) not in self._loaded:
            run = SampleRun(reader, i, i + 1)
            fetch([reader.piece(i, i + 1)], self._transfer, lambda _, data: self._keep(run, data))
        with _memory_file() as (file, path):
            file.write(self._loaded[reader.name, i])
            file.write(_END_MARK)
            file.flush()
            try:
                return ShardReader(path, labels=self._labels)
            except ShardError as error:
                reason = str(error).replace(path, reader.url)
                raise ShardError(
                    f"sample {i} is not where it should lie: {reason} If the shard was replaced "
                    "since the run began, begin again."
                ) from error

    def __reduce__(self) -> tuple[Any, ...]:
        return RangeReadStore, (self._url, self._labels, self._transfer)


class _StreamedReader:
    """The samples of a remote shard."""

    def __init__(self, name: str, url: str, bounds: SampleOffsets, store: RangeReadStore) -> None:
        self.name, self.url, self.bounds = name, url, bounds
        self._store = store
        self._opened: tuple[int, ShardReader] | None = None  # the sample read last

    def __len__(self) -> int:
        return len(self.bounds) - 1

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

    def piece(self, first: int, stop: int) -> ByteRange:
        """Return where samples [first, stop) lie."""
        return ByteRange(self.url, int(self.bounds[first]), int(self.bounds[stop]))

    def _sample(self, i: int) -> ShardReader:
        if self._opened is None or self._opened[0] != i:
            self.close()
            self._opened = i, self._store.load(self, i)
        return self._opened[1]


_Loaded = dict[tuple[str, int], memoryview]


class SampleRun(NamedTuple):
    """Samples [first, stop) of a shard."""

    reader: _StreamedReader
    first: int
    stop: int


def _runs(samples: dict[tuple[str, int], _StreamedReader], max_bytes: int) -> list[SampleRun]:
    """Join samples that lie side by side, up to the bytes of one request."""
    runs: list[SampleRun] = []
    for (_, i), reader in sorted(samples.items(), key=lambda item: item[0]):
        if runs and runs[-1].reader is reader and runs[-1].stop == i:
            first = runs[-1].first
            if reader.bounds[i + 1] - reader.bounds[first] <= max_bytes:
                runs[-1] = SampleRun(reader, first, i + 1)
                continue
        runs.append(SampleRun(reader, i, i + 1))
    return runs


def sample_bounds(
    shard: ShardInfo, url: str, labels: LabelRule, transfer: DownloadSettings
) -> SampleOffsets:
    """Return where the samples of a remote shard lie; found once a node, then kept on its disk.

    Raises:
        ShardError: the shard is missing, or not what its manifest says.
        UnavailableError: it cannot be read now, or what was found cannot be kept.
    """
    directory = Path(tempfile.gettempdir(), f"tahoe-{os.getuid()}", "samples")
    # an older version may have found other samples in the same bytes
    path = directory / f"{shard.sha256}-{shard.num_samples}.npy"
    try:
        if not path.exists():
            make_private(directory.parent)
            make_private(directory)
            with exclusive_lock(directory / "lock"):  # one for all: a node has one shard in memory
                if not path.exists():
                    _save(path, _find_bounds(shard, url, labels, transfer))
        bounds: SampleOffsets = np.load(path, allow_pickle=False)
    except OSError as error:
        raise UnavailableError(
            f"cannot find the samples of {url}: {error}. Streaming needs memory for one shard, and "
            f"a few bytes a sample below {directory}. Make room, or set TMPDIR to a directory of "
            "this node that has it."
        ) from error
    return bounds


def _find_bounds(
    shard: ShardInfo, url: str, labels: LabelRule, transfer: DownloadSettings
) -> SampleOffsets:
    with _memory_file() as (file, path):
        file.truncate(shard.num_bytes)
        download(url, shard, file, transfer)
        try:
            with ShardReader(path, shard, labels=labels) as reader:
                if reader.has_links:
                    raise _links(url)
                return np.append(reader._index[:, 0], shard.num_bytes)
        except ShardError as error:
            raise ShardError(str(error).replace(path, url)) from error


def _links(url: str) -> ShardError:
    return ShardError(
        f"{url} holds hard links, and the bytes they stand for lie elsewhere in it: single samples "
        "cannot be fetched. Let the node's cache have room for it (cluster.cache.max_gb), or write "
        "the set anew: `tahoe shard webdataset`."
    )


@contextmanager
def _memory_file() -> Iterator[tuple[IO[bytes], str]]:
    """Make a file that has no name and lies in memory; what is mapped of it outlives it."""
    with os.fdopen(os.memfd_create("shard"), "w+b") as file:
        yield file, f"/proc/self/fd/{file.fileno()}"


def _save(path: Path, bounds: SampleOffsets) -> None:
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        np.save(file, bounds)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
