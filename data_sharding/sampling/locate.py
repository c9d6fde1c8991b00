"""Positions in a row of shards -> which shard, and where in it."""

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def locate(ends: Ints, positions: Ints) -> tuple[Ints, Ints]:
    """Return the shard of each position, and the position inside that shard.

    Args:
        ends: the number of samples in the shards up to and with each; shape (shards,).
        positions: counted from 0 through all shards, each less than the last end; any shape.
    """
    shards = np.searchsorted(ends, positions, side="right")
    starts = np.where(shards > 0, ends[shards - 1], 0)
    return shards, positions - starts
