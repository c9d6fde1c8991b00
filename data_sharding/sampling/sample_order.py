"""The order of training samples: pure integers, no I/O, no torch.

An epoch of N samples is N // B global batches of B samples. Its order is the result of four moves,
each a function of (seed, epoch) alone, so that any step can be looked up directly:

1. the shards are permuted and their samples laid end to end, shards staying in one piece;
2. that sequence is rotated by a random offset, so that the N mod B samples left over at its end
   differ from epoch to epoch, even where the data set is a single shard;
3. its first (N // B) * B samples are cut into `num_lanes` equal lanes;
4. each lane is shuffled inside blocks of `block_size` samples, twice, the second time with the
   blocks shifted by half a block, so that samples also cross the borders of blocks.

Global batch t takes the next B / num_lanes samples of every lane. Ranks own whole lanes, so a rank
reads its own few shards nearly sequentially, and every world size that divides the lanes sees the
same batches. Micro-batch m of M is made of the lanes m, m + M, m + 2 * M, ...: lanes side by side
are neighbouring pieces of the shards, and where those are sorted by class a micro-batch of
neighbours would show one or two classes to batch norm.

With `repeats` every sample comes several times in its micro-batch, each time with another
augmentation (Hoffer et al., Augment Your Batch, CVPR 2020). A step then takes fewer samples, so a
pass over the data takes more steps, while an epoch remains as many images as the data set has (as
with DeiT's RASampler, github.com/facebookresearch/deit, samplers.py).

The only array is as long as the list of shards. The permutations of move 4 are computed element by
element (`rng.permute_index`), so a look-up costs the same at step 0 and at step 10**9.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache, partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_sharding.rng import derive_key, permute_index

Ints = NDArray[np.int64]


class SampleDraw(NamedTuple):
    """The samples of a micro-batch: their ids and the number of earlier draws of each, int64 (n,).

    A sample's augmentation is keyed by (seed, pass, id), so it differs each time it is drawn.
    """

    ids: Ints
    passes: Ints

    def take(self, rows: Ints) -> "SampleDraw":
        """Return the samples in some rows of the micro-batch."""
        return SampleDraw(self.ids[rows], self.passes[rows])


@dataclass(frozen=True)
class Part:
    """One of `count` equal ranges of the rows of a micro-batch; by default all rows."""

    index: int = 0
    count: int = 1

    def rows(self, num_rows: int) -> Ints:
        """Return the rows of this part of a micro-batch of `num_rows`."""
        size = num_rows // self.count
        return np.arange(self.index * size, (self.index + 1) * size)


class MicroBatchKey(NamedTuple):
    """The rows of a micro-batch that one rank computes in a step."""

    step: int
    micro: int
    part: Part = Part()


def locate(ends: Ints, positions: Ints) -> tuple[Ints, Ints]:
    """Return the shard of each position in a row of shards, and the position inside that shard.

    Args:
        ends: the cumulative number of samples up to and with each shard; shape (shards,).
        positions: positions counted through all shards, each below the last end; any shape.
    """
    shards = np.searchsorted(ends, positions, side="right")
    starts = np.where(shards > 0, ends[shards - 1], 0)
    return shards, positions - starts


@dataclass(frozen=True, eq=False)  # equal by identity: hashing a million sizes is not free
class SampleOrder:
    """The order of training samples, whose ids count through the shards in the manifest's order.

    Args:
        shard_sizes: the number of samples in each shard, int64 (shards,).
        global_batch_size: the samples of one step, over all ranks.
        num_lanes: a divisor of the global batch size.
        num_micro_batches: a divisor of the number of lanes.
        block_size: the samples of the blocks that a lane is shuffled in.
        repeats: the number of times that a sample comes in its micro-batch; a divisor of
            global_batch_size / num_lanes.
        shuffle: False keeps the samples in the order of the shards; lanes and batches stay.
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
        check_divides(self, "num_lanes", "global_batch_size")
        check_divides(self, "num_micro_batches", "num_lanes")
        per_lane = self.global_batch_size // self.num_lanes
        if per_lane % self.repeats:
            raise ValueError(
                f"repeats={self.repeats} does not divide the {per_lane} samples of a lane in a step"
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
        """The steps until every sample was drawn; without repeats an epoch."""
        return self.num_samples // (self.global_batch_size // self.repeats)

    def micro_batch(self, step: int, micro: int) -> SampleDraw:
        """Look up the samples of micro-batch `micro` of a step."""
        return self._draw(step, np.arange(micro, self.num_lanes, self.num_micro_batches))

    def global_batch(self, step: int) -> SampleDraw:
        """Look up the samples of a step: its micro-batches, one after the other."""
        micros = [self.micro_batch(step, micro) for micro in range(self.num_micro_batches)]
        return SampleDraw(*map(np.concatenate, zip(*micros, strict=True)))

    @cached_property
    def _pass_sequence(self) -> "Callable[[int], _PassSequence]":
        """The function from a pass to its samples; it keeps two of them."""
        return lru_cache(maxsize=2)(partial(_PassSequence, self))  # workers run ahead of each other

    def __getstate__(self) -> dict[str, object]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def _draw(self, step: int, lanes: Ints) -> SampleDraw:
        pass_number, step_of_pass = divmod(step, self.steps_per_pass)
        per_lane = self.global_batch_size // self.num_lanes // self.repeats
        lane_length = self.steps_per_pass * per_lane
        index = step_of_pass * per_lane + np.arange(per_lane)
        lanes, index = (a.ravel() for a in np.meshgrid(lanes, index, indexing="ij"))
        if self.shuffle:
            for shift in (self.block_size // 2, 0):
                index = self._shuffle(index, lanes, lane_length, pass_number, shift)
        ids = self._pass_sequence(pass_number)[lanes * lane_length + index]
        # Copies are not adjacent: mixup and CutMix mix neighbours, which must be different samples.
        copies = np.repeat(np.arange(self.repeats), len(ids))
        return SampleDraw(np.tile(ids, self.repeats), pass_number * self.repeats + copies)

    def _shuffle(
        self, index: Ints, lanes: Ints, lane_length: int, pass_number: int, shift: int
    ) -> Ints:
        """Permute indices inside blocks that start at a multiple of the block size, minus shift."""
        block = (index + shift) // self.block_size
        start = np.maximum(block * self.block_size - shift, 0)
        stop = np.minimum((block + 1) * self.block_size - shift, lane_length)
        key = derive_key(self.seed, f"lane-shuffle-{bool(shift)}", pass_number, lanes, block)
        return start + permute_index(index - start, stop - start, key)


def check_divides(order: object, divisor: str, dividend: str) -> None:
    """Check that one attribute of an order divides another; ValueError if not."""
    small, large = getattr(order, divisor), getattr(order, dividend)
    if large % small:
        raise ValueError(f"{divisor}={small} does not divide {dividend}={large}")


class _PassSequence:
    """Moves 1 and 2: the samples of a pass, shard after shard in a random order, rotated."""

    def __init__(self, order: SampleOrder, pass_number: int) -> None:
        sizes = np.asarray(order.shard_sizes, dtype=np.int64)
        shards, self.offset = np.arange(len(sizes)), 0
        if order.shuffle:
            keys = derive_key(order.seed, "shard-order", pass_number, shards)
            shards = np.argsort(keys, kind="stable")
            key = derive_key(order.seed, "rotation", pass_number)
            self.offset = int(permute_index(0, order.num_samples, key)[0])
        self.num_samples = order.num_samples
        self.first_ids = (np.cumsum(sizes) - sizes)[shards]
        self.ends = np.cumsum(sizes[shards])

    def __getitem__(self, position: Ints) -> Ints:
        position = (position + self.offset) % self.num_samples
        shards, inside = locate(self.ends, position)
        return self.first_ids[shards] + inside
