"""The samples of one split, by id: bytes from the shards, pixels and labels out of them."""

from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from data_sharding.errors import BadLabelError, BadSample
from data_sharding.format.manifest import Manifest
from data_sharding.sampling.locate import Ints, locate
from data_sharding.storage.shard_store import Store
from data_sharding.transforms.decode import Pixels, ViewsFn, decode

Decoded = TypeVar("Decoded")


class ShardPosition(NamedTuple):
    """Where a sample lies: the number of its shard, and its own in there."""

    shard: int
    sample: int  # counted from 0 in its shard


class Reading(NamedTuple, Generic[Decoded]):
    """A sample that could be read.

    labels: its classes, by number.
    image: what was made of its image's bytes.
    damaged: a line with shard, key and reason, if a decoder has put up with damage.
    """

    labels: tuple[int, ...]
    image: Decoded
    damaged: str | None


class SplitReader:
    """The samples of a split, numbered from 0 through its shards in the manifest's order."""

    def __init__(self, split: str, manifest: Manifest, store: Store) -> None:
        self.split, self.manifest, self.store = split, manifest, store
        self._ends = np.cumsum(np.asarray(manifest.shards.num_samples, dtype=np.int64))
        self._numbers = {name: number for number, name in enumerate(manifest.classes)}

    def __len__(self) -> int:
        return self.manifest.num_samples

    def shards_of(self, samples: Ints) -> Ints:
        """Return the numbers of the shards that hold these samples, each once."""
        return np.unique(locate(self._ends, samples)[0])

    def locate(self, samples: Ints) -> list[ShardPosition]:
        """Return where samples lie."""
        shards, inside = locate(self._ends, samples)
        return list(map(ShardPosition, shards.tolist(), inside.tolist()))

    def preload(self, samples: Ints) -> None:
        """Say which samples are about to be read, so that they may come all at once."""
        shards = self.manifest.shards
        self.store.prefetch_samples(
            [(shards[place.shard], place.sample) for place in self.locate(samples)]
        )

    def read(self, sample: int, choose_views: ViewsFn, out: Pixels) -> Reading[Pixels]:
        """Write a sample's pixels to `out`, (views, size, size, channels).

        Raises:
            BadSample: as `decode` does.
        """
        return self.decode(sample, lambda data: (out, decode(data, choose_views, out)))

    def decode(
        self, sample: int, decoder: Callable[[memoryview], tuple[Decoded, str | None]]
    ) -> Reading[Decoded]:
        """Return a sample's labels, and what is made of its image's bytes.

        Args:
            decoder: from those bytes to that, and to the damage that it has put up with.

        Raises:
            BadSample: it cannot be decoded or has no valid label; the message names shard and key.
        """
        (place,) = self.locate(np.array([sample]))
        shard = self.manifest.shards[place.shard]
        reader = self.store.open(shard)
        labels: tuple[int, ...] | None = None
        try:
            label = reader.label_bytes(place.sample)
            labels = self.manifest.labels.parse(label, self._numbers)
            image, damage = decoder(reader.image(place.sample))
        except (BadSample, BadLabelError) as error:
            key = reader.key(place.sample)
            raise BadSample(f"{self.split}/{shard.name}: {key}: {error}", labels) from error
        damaged = damage and f"{self.split}/{shard.name}: {reader.key(place.sample)}: {damage}"
        return Reading(labels, image, damaged)

    def encode_labels(self, labels: Sequence[tuple[int, ...]]) -> NDArray[np.generic]:
        """Return what an objective takes.

        For one label a sample int64 (n,), for several float32 (n, classes) of zeros and ones, for
        none int64 (n,) of -1.
        """
        if self.manifest.labels.kind == "multi":
            hot = np.zeros((len(labels), len(self.manifest.classes)), dtype=np.float32)
            for row, mine in zip(hot, labels, strict=True):
                row[list(mine)] = 1
            return hot
        return np.array([next(iter(mine), -1) for mine in labels], dtype=np.int64)
