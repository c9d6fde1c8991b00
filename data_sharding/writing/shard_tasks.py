"""The division of a source into shards: which samples, in which order, are in which shard.

It depends on the source and the settings alone, so that every process that writes a part of a set
computes the same shards.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_sharding.errors import DataError
from data_sharding.format.location import publish_order
from data_sharding.rng import permutation
from data_sharding.sources.base import Source
from data_sharding.writing.dedupe import Duplicates
from data_sharding.writing.shard_writer import ImageChecks, ShardTask


@dataclass(frozen=True)
class WriteSettings:
    """The settings that a written set depends on, beside its source; see `write_dataset`."""

    seed: int
    samples_per_shard: int | None = None
    shard_bytes: int | None = None
    checks: ImageChecks | None = None

    def facts(self, source: Source) -> dict[str, Any]:
        """Return JSON values that identify the set of a source."""
        sizes = {"samples_per_shard": self.samples_per_shard, "shard_bytes": self.shard_bytes}
        size = {name: value for name, value in sizes.items() if value is not None}
        if len(size) != 1 or min(size.values()) < 1:
            given = ", ".join(f"{name}={value}" for name, value in size.items()) or "none"
            raise DataError(
                f"shards need one maximum size, at least 1, and have {given}; nothing was written",
                value=self.samples_per_shard if self.shard_bytes is None else self.shard_bytes,
                hint="Give either `samples_per_shard` (1000 to 10000 suit photographs) or "
                "`shard_bytes`.",
            )
        if self.shard_bytes is not None and not source.num_bytes:
            raise DataError(
                "the file sizes of this source are not known; nothing was written",
                value=self.shard_bytes,
                hint="Use `samples_per_shard` instead of `shard_bytes`.",
            )
        checks = self.checks.facts if self.checks else {}
        return {**source.fingerprint, "seed": self.seed, **size, **checks}


def divide_into_shards(
    source: Source, facts: Mapping[str, Any], duplicates: Duplicates
) -> list[ShardTask]:
    """Divide the samples that are no duplicates into shards, those of val first."""
    tasks = []
    for split in publish_order(source.splits):
        indices = np.arange(len(source.splits[split]))
        indices = np.delete(indices, duplicates.dropped.get(split, ()))
        order = indices[permutation(facts["seed"], f"shards/{split}", len(indices))]
        shards = _cut(source, facts, order, split)
        tasks += [ShardTask(split, number, members) for number, members in enumerate(shards)]
    return tasks


def _cut(
    source: Source, facts: Mapping[str, Any], order: NDArray[np.int64], split: str
) -> Sequence[NDArray[np.int64]]:
    if not len(order):
        return []
    if "shard_bytes" in facts:
        num_bytes = source.num_bytes[split][order]
        return np.split(order, _starts(num_bytes, facts["shard_bytes"])[1:])
    return np.array_split(order, -(-len(order) // facts["samples_per_shard"]))


def _starts(num_bytes: NDArray[np.int64], shard_bytes: int) -> list[int]:
    """Return the starts of shards that hold as much as they may, and at least one file."""
    ends, starts, before = np.cumsum(num_bytes), [], 0
    start = 0
    while start < len(ends):
        starts.append(start)
        stop = int(np.searchsorted(ends, before + shard_bytes, side="right"))
        start = max(stop, start + 1)
        before = int(ends[start - 1])
    return starts
