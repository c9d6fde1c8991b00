"""The samples of one split, by id: bytes from the shards, pixels and labels out of them."""

from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from data_sharding.errors import BadLabelError, BadSample
from data_sharding.format.manifest import Manifest, ShardInfo
from data_sharding.sampling.sample_order import Ints, locate
from data_sharding.storage.store import Store
from data_sharding.transforms.decode import Pixels, ViewsFn, decode

Decoded = TypeVar("Decoded")
_NUM_SHARDS_AT_HAND = 256


class ShardPosition(NamedTuple):
    """The position of a sample: the number of its shard, and its index in there."""

    shard: int
    sample: int


class Reading(NamedTuple, Generic[Decoded]):
    """A readable sample.

    labels: the numbers of its classes.
    image: the result of decoding its image.
    damaged: a line with shard, key and reason, if the decoder warned about damage.
    """

    labels: tuple[int, ...]
    image: Decoded
    damaged: str | None


class SplitReader:
    """The samples of a split, numbered from 0 through its shards in the manifest's order."""

    def __init__(self, split: str, manifest: Manifest, store: Store) -> None:
        self.split, self.manifest, self.store = split, manifest, store
        self._ends = np.cumsum(np.asarray(manifest.shards.num_samples, dtype=np.int64))
        self._shards: dict[int, ShardInfo] = {}  # the last ones in use; a table makes new ones

    def __len__(self) -> int:
        return self.manifest.num_samples

    @property
    def sources(self) -> tuple[Self, ...]:
        """The splits that the samples are from; see `MixedReader`."""
        return (self,)

    @property
    def num_shards(self) -> int:
        return len(self.manifest.shards)

    def shards_of(self, samples: Ints) -> Ints:
        """Return the numbers of the shards that hold these samples, each once."""
        return np.unique(locate(self._ends, samples)[0])

    def locate(self, samples: Ints) -> list[ShardPosition]:
        """Return the positions of samples."""
        shards, inside = locate(self._ends, samples)
        return list(map(ShardPosition, shards.tolist(), inside.tolist()))

    def find(self, sample: int) -> tuple[Self, int]:
        """Return the reader of a sample, and the sample's number in it."""
        return self, sample

    def successor(self, sample: int, distance: int) -> int:
        """Return the sample some places after another; the first follows the last."""
        return (sample + distance) % len(self)

    def prefetch(self, samples: Ints) -> None:
        """Announce the samples to be read next, so that they can be fetched at once."""
        self.store.prefetch_samples([(self._shard(n), i) for n, i in self.locate(samples)])

    def read(self, sample: int, choose_views: ViewsFn, out: Pixels) -> Reading[Pixels]:
        """Decode a sample's views to `out`, (views, size, size, channels); raises BadSample."""
        return self.decode(sample, lambda data: (out, decode(data, choose_views, out)))

    def decode(
        self, sample: int, decoder: Callable[[memoryview], tuple[Decoded, str | None]]
    ) -> Reading[Decoded]:
        """Read a sample.

        Args:
            decoder: a function from the bytes of an image to the result and a warning about damage.

        Raises:
            BadSample: it cannot be decoded or has no valid label; the message names shard and key.
        """
        number = int(self._ends.searchsorted(sample, side="right"))
        i = sample - (int(self._ends[number - 1]) if number else 0)
        shard = self._shard(number)
        reader = self.store.open(shard)
        labels: tuple[int, ...] | None = None
        try:
            labels = self.manifest.parse_labels(reader.label_bytes(i))
            image, damage = decoder(reader.image(i))
        except (BadSample, BadLabelError) as error:
            name = f"{self.split}/{shard.name}: {reader.key(i)}"
            raise BadSample(f"{name}: {error}", labels) from error
        damaged = damage and f"{self.split}/{shard.name}: {reader.key(i)}: {damage}"
        return Reading(labels, image, damaged)

    def _shard(self, number: int) -> ShardInfo:
        if number not in self._shards:
            if len(self._shards) == _NUM_SHARDS_AT_HAND:
                self._shards.clear()
            self._shards[number] = self.manifest.shards[number]
        return self._shards[number]

    def close_evicted(self) -> None:
        """Close shards that the cache has evicted, to free their disk space."""
        self.store.close_evicted()

    def encode_labels(self, labels: Sequence[tuple[int, ...]]) -> NDArray[np.generic]:
        """Encode the labels of samples for a loss.

        Single labels become int64 (n,), several float32 (n, classes) of zeros and ones, and missing
        ones int64 (n,) of -1.
        """
        if self.manifest.labels.kind == "multi":
            multi_hot = np.zeros((len(labels), len(self.manifest.classes)), dtype=np.float32)
            for row, classes in zip(multi_hot, labels, strict=True):
                row[list(classes)] = 1
            return multi_hot
        return np.array([next(iter(classes), -1) for classes in labels], dtype=np.int64)
