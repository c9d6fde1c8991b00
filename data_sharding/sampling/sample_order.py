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
same batches. Micro-batch m of M is made of the lanes m, m + M, m + 2 * M, ...: lanes side by side
are neighbouring pieces of the shards, and where those are sorted by class a micro-batch of
neighbours would show one or two classes to batch norm.

With `repeats` every sample comes several times in its micro-batch, each time to be
seen another way (Hoffer et al., Augment Your Batch, CVPR 2020): `repeats` times in a pass over the
data, or not at all where it is left over. A step then takes fewer samples, so a pass takes more
steps, while an epoch remains as many images as the data set has (as with DeiT's RASampler,
github.com/facebookresearch/deit, samplers.py).

The only array is as long as the list of shards. The permutations of step 4 are computed element by
element (`rng.permute_index`), so a look-up costs the same at step 0 and at step 10**9.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np

from data_sharding.rng import derive_key, permute_index
from data_sharding.sampling.locate import Ints, locate


class SampleDraw(NamedTuple):
    """The samples of a micro-batch, int64 (n,): their ids, and how often each was drawn before.

    A sample's view is named by (seed, pass, id), so it has another one each time it is drawn.
    """

    ids: Ints
    passes: Ints


@dataclass(frozen=True, eq=False)  # equal by identity: hashing a million sizes is not free
class SampleOrder:
    """The order of training samples.

    Samples are named by ids in range(num_samples): shard after shard in the manifest's order.

    Args:
        shard_sizes: int64 (shards,), samples of each, in the manifest's order; they may differ.
        seed: the run's seed.
        global_batch_size: samples of one step, over all ranks.
        num_lanes: divides the global batch size.
        num_micro_batches: divides the lanes.
        block_size: samples of the blocks that a lane is shuffled in.
        repeats: how often a sample comes in its micro-batch; divides global_batch_size / num_lanes.
        shuffle: False keeps the samples as they lie in the shards (lanes and batches stay).
    """

    shard_sizes: Ints
    seed: int
    global_batch_size: int
    num_lanes: int
    num_micro_batches: int
    block_size: int = 4096
    repeats: int = 1
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
        if self.global_batch_size // self.num_lanes % self.repeats:
            raise ValueError(
                f"repeats={self.repeats} does not divide the "
                f"{self.global_batch_size // self.num_lanes} samples of a lane in a step"
            )
        if self.num_samples < self.global_batch_size:
            raise ValueError(
                f"a global batch of {self.global_batch_size} cannot be filled from "
                f"{self.num_samples} samples: an epoch would have no step"
            )

    @cached_property
    def num_samples(self) -> int:
        return int(np.sum(self.shard_sizes))

    @property
    def steps_per_epoch(self) -> int:
        return self.num_samples // self.global_batch_size

    @property
    def micro_batch_size(self) -> int:
        return self.global_batch_size // self.num_micro_batches

    @property
    def steps_per_pass(self) -> int:
        """Steps until every sample was drawn; without repeats an epoch."""
        return self.num_samples // (self.global_batch_size // self.repeats)

    def micro_batch(self, step: int, micro: int) -> SampleDraw:
        """Return the samples of micro-batch `micro` of a step."""
        return self._draws(step, np.arange(micro, self.num_lanes, self.num_micro_batches))

    def global_batch(self, step: int) -> SampleDraw:
        """Return the samples of a step: its micro-batches, one after the other."""
        drawn = [self.micro_batch(step, micro) for micro in range(self.num_micro_batches)]
        return SampleDraw(*map(np.concatenate, zip(*drawn, strict=True)))

    def _draws(self, step: int, lanes: Ints) -> SampleDraw:
        number, step_of_pass = divmod(step, self.steps_per_pass)
        per_lane = self.global_batch_size // self.num_lanes // self.repeats
        lane_length = self.steps_per_pass * per_lane
        place = step_of_pass * per_lane + np.arange(per_lane)
        lanes, place = (a.ravel() for a in np.meshgrid(lanes, place, indexing="ij"))
        if self.shuffle:
            place = self._shuffle(place, lanes, lane_length, number, shift=self.block_size // 2)
            place = self._shuffle(place, lanes, lane_length, number, shift=0)
        ids = _pass_sequence(self, number)[lanes * lane_length + place]
        # Not side by side: mixup and CutMix take a sample's neighbour, which is to be another one.
        copies = np.repeat(np.arange(self.repeats), len(ids))
        return SampleDraw(np.tile(ids, self.repeats), number * self.repeats + copies)

    def _shuffle(self, place: Ints, lanes: Ints, length: int, number: int, *, shift: int) -> Ints:
        """Permute places inside blocks that start at a multiple of the block size, minus shift."""
        block = (place + shift) // self.block_size
        start = np.maximum(block * self.block_size - shift, 0)
        stop = np.minimum((block + 1) * self.block_size - shift, length)
        key = derive_key(self.seed, f"lane-shuffle-{bool(shift)}", number, lanes, block)
        return start + permute_index(place - start, stop - start, key)


class _PassSequence:
    """Moves 1 and 2: the samples of a pass, shard after shard in a random order, rotated."""

    def __init__(self, order: SampleOrder, number: int) -> None:
        sizes = np.asarray(order.shard_sizes, dtype=np.int64)
        shards, self.offset = np.arange(len(sizes)), 0
        if order.shuffle:
            shards = np.argsort(
                derive_key(order.seed, "shard-order", number, shards), kind="stable"
            )
            size = np.array(order.num_samples)
            self.offset = int(permute_index(0, size, derive_key(order.seed, "rotation", number))[0])
        self.num_samples = order.num_samples
        self.first_ids = (np.cumsum(sizes) - sizes)[shards]
        self.ends = np.cumsum(sizes[shards])

    def __getitem__(self, position: Ints) -> Ints:
        position = (position + self.offset) % self.num_samples
        shards, inside = locate(self.ends, position)
        return self.first_ids[shards] + inside


@lru_cache(maxsize=2)  # the pass being read and its neighbour while workers run ahead
def _pass_sequence(order: SampleOrder, number: int) -> _PassSequence:
    return _PassSequence(order, number)
