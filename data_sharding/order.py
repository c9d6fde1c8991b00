"""Which samples form global batch t: pure integers, no I/O, no torch.

An epoch of N samples is N // B global batches of B samples. Its order is made in four moves, each
a function of (seed, epoch) alone, so that any step can be looked up without the steps before it:

1. the shards are permuted and their samples laid end to end, shards staying in one piece;
2. that sequence is rotated by a random offset, so that the N mod B samples left over at its end are
   other ones each epoch, even where the data set is a single shard;
3. its first (N // B) * B samples are cut into `num_lanes` equal lanes;
4. each lane is shuffled inside blocks of `block_size` samples, twice, the second time with the
   blocks shifted by half a block, so that samples also cross the borders of blocks.

Global batch t takes the next B / num_lanes samples of every lane. Ranks own whole lanes, so a rank
reads its own few shards nearly sequentially, and every world size that divides the lanes sees the
same batches. Micro-batch m of M is made of the lanes [m * L / M, (m + 1) * L / M).

The only array is as long as the list of shards. The permutations of step 4 are computed element by
element (`counter.permute`), so a look-up costs the same at step 0 and at step 10**9.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from data_sharding.counter import derive, permute

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)  # equal by identity: hashing a million sizes is not free
class Order:
    """The order of training samples.

    Samples are named by ids in range(num_samples): shard after shard in the manifest's order.

    Args:
        shard_sizes: samples of each shard, in the manifest's order; shards may differ in size.
        seed: the run's seed.
        global_batch_size: samples of one step, over all ranks.
        num_lanes: divides the global batch size.
        num_micro_batches: divides the lanes.
        block_size: samples of the blocks that a lane is shuffled in.
        shuffle: False keeps the samples as they lie in the shards (lanes and batches stay).
    """

    shard_sizes: tuple[int, ...]
    seed: int
    global_batch_size: int
    num_lanes: int
    num_micro_batches: int
    block_size: int = 4096
    shuffle: bool = True

    def __post_init__(self) -> None:
        for whole, part in (
            ("global_batch_size", "num_lanes"),
            ("num_lanes", "num_micro_batches"),
        ):
            if getattr(self, whole) % getattr(self, part):
                raise ValueError(
                    f"{part}={getattr(self, part)} does not divide {whole}={getattr(self, whole)}"
                )
        if self.num_samples < self.global_batch_size:
            raise ValueError(
                f"a global batch of {self.global_batch_size} cannot be filled from "
                f"{self.num_samples} samples: an epoch would have no step"
            )

    @cached_property
    def num_samples(self) -> int:
        return sum(self.shard_sizes)

    @property
    def steps_per_epoch(self) -> int:
        return self.num_samples // self.global_batch_size

    @property
    def micro_batch_size(self) -> int:
        return self.global_batch_size // self.num_micro_batches

    def epoch(self, step: int) -> int:
        """Return the epoch that a step belongs to."""
        return step // self.steps_per_epoch

    def micro_batch(self, step: int, micro: int) -> Ints:
        """Return the sample ids of micro-batch `micro` of a step; shape (micro_batch_size,)."""
        lanes_each = self.num_lanes // self.num_micro_batches
        lanes = np.arange(micro * lanes_each, (micro + 1) * lanes_each)
        return self._samples(step, lanes)

    def global_batch(self, step: int) -> Ints:
        """Return the sample ids of a step; shape (global_batch_size,)."""
        return self._samples(step, np.arange(self.num_lanes))

    def _samples(self, step: int, lanes: Ints) -> Ints:
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        per_lane = self.global_batch_size // self.num_lanes
        lane_length = self.steps_per_epoch * per_lane
        place = step_of_epoch * per_lane + np.arange(per_lane)
        lanes, place = (a.ravel() for a in np.meshgrid(lanes, place, indexing="ij"))
        if self.shuffle:
            place = self._shuffle(place, lanes, lane_length, epoch, shift=self.block_size // 2)
            place = self._shuffle(place, lanes, lane_length, epoch, shift=0)
        return _epoch_sequence(self, epoch)[lanes * lane_length + place]

    def _shuffle(self, place: Ints, lanes: Ints, length: int, epoch: int, *, shift: int) -> Ints:
        """Permute places inside blocks that start at a multiple of the block size, minus shift."""
        block = (place + shift) // self.block_size
        start = np.maximum(block * self.block_size - shift, 0)
        stop = np.minimum((block + 1) * self.block_size - shift, length)
        key = derive(self.seed, f"lane-shuffle-{bool(shift)}", epoch, lanes, block)
        return start + permute(place - start, stop - start, key)


class _EpochSequence:
    """Moves 1 and 2: the samples of an epoch, shard after shard in a random order, rotated."""

    def __init__(self, order: Order, epoch: int) -> None:
        sizes = np.asarray(order.shard_sizes, dtype=np.int64)
        first_ids = np.cumsum(sizes) - sizes
        if order.shuffle:
            shards = permute(
                np.arange(len(sizes)), len(sizes), derive(order.seed, "shard-order", epoch)
            )
            size = np.array(order.num_samples)
            self.offset = int(permute(0, size, derive(order.seed, "rotation", epoch))[0])
        else:
            shards, self.offset = np.arange(len(sizes)), 0
        self.num_samples = order.num_samples
        self.first_ids = first_ids[shards]
        self.ends = np.cumsum(sizes[shards])
        self.starts = self.ends - sizes[shards]

    def __getitem__(self, position: Ints) -> Ints:
        position = (position + self.offset) % self.num_samples
        shard = np.searchsorted(self.ends, position, side="right")
        return self.first_ids[shard] + position - self.starts[shard]


@lru_cache(maxsize=2)  # the epoch being read and its neighbour while workers run ahead
def _epoch_sequence(order: Order, epoch: int) -> _EpochSequence:
    return _EpochSequence(order, epoch)
