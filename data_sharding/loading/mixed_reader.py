"""The samples of several splits, numbered through them, read as if they were one."""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from data_sharding.loading.split_reader import Reading, SplitReader
from data_sharding.sampling.sample_order import Ints, locate
from data_sharding.transforms.decode import Pixels, ViewsFn


class MixedReader:
    """The samples of some splits with the same classes, and their shards, counted through them.

    Args:
        sources: the readers of the splits, each with a store and a rule for labels of its own.
    """

    def __init__(self, sources: Sequence[SplitReader]) -> None:
        self.sources = tuple(sources)
        sizes = [len(source) for source in self.sources]
        self._ends = np.cumsum(sizes, dtype=np.int64)
        nums_shards = (source.num_shards for source in self.sources[:-1])
        self._first_shards = [*accumulate(nums_shards, initial=0)]

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def num_shards(self) -> int:
        return sum(source.num_shards for source in self.sources)

    def find(self, sample: int) -> tuple[SplitReader, int]:
        """Return the reader of a sample, and the sample's number in it."""
        (source,), (own,) = locate(self._ends, np.array([sample]))
        return self.sources[source], int(own)

    def shards_of(self, samples: Ints) -> Ints:
        """Return the numbers of the shards that hold these samples, each once."""
        own = zip(self._first_shards, self.sources, self._divide(samples), strict=True)
        return np.concatenate([first + source.shards_of(ids) for first, source, ids in own])

    def prefetch(self, samples: Ints) -> None:
        """Announce the samples to be read next, so that they can be fetched at once."""
        for source, ids in zip(self.sources, self._divide(samples), strict=True):
            source.prefetch(ids)

    def read(self, sample: int, choose_views: ViewsFn, out: Pixels) -> Reading[Pixels]:
        """Decode a sample's views as `SplitReader.read` does."""
        source, own = self.find(sample)
        return source.read(own, choose_views, out)

    def successor(self, sample: int, distance: int) -> int:
        """Return the sample some places after another in its source; the first follows the last."""
        source, own = self.find(sample)
        return sample - own + source.successor(own, distance)

    def encode_labels(self, labels: Sequence[tuple[int, ...]]) -> NDArray[np.generic]:
        """Encode the labels of samples as `SplitReader.encode_labels` does."""
        return self.sources[0].encode_labels(labels)

    def close_evicted(self) -> None:
        """Close shards that the cache has evicted, to free their disk space."""
        for source in self.sources:
            source.close_evicted()

    def _divide(self, samples: Ints) -> list[Ints]:
        """Return the own numbers of samples, by source."""
        sources, own = locate(self._ends, samples)
        return [own[sources == number] for number in range(len(self.sources))]
