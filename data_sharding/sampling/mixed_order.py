"""The order of training samples of several data sets: exact quotas a step, each in its own order.

A step takes `quota` samples from each source, which is the global batch of the source's own
`SampleOrder`: its own seed, lanes, passes and remainders. So a sample counts once in each pass of
its source, and any step can be looked up directly. All micro-batches have the same composition.
Sample ids count through the sources, one after the other.

The rows of a micro-batch are permuted, a function of (seed, step, micro-batch), so that neighbours,
which mixup mixes, come from any two sources. Copies of a sample keep their distance: each copy is
in another range of the rows, and the ranges have the same permutation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np

from data_sharding.rng import derive_key, permute_index
from data_sharding.sampling.sample_order import Ints, SampleDraw, SampleOrder


@dataclass(frozen=True, eq=False)
class MixedOrder:
    """An order of training samples from several sources.

    Args:
        sources: the orders of the sources, with equal numbers of micro-batches and of repeats; the
            global batch size of each is its quota.
    """

    sources: tuple[SampleOrder, ...]
    seed: int

    def __post_init__(self) -> None:
        for name in ("num_micro_batches", "repeats"):
            numbers = {getattr(source, name) for source in self.sources}
            if len(numbers) != 1:
                raise ValueError(f"{name} of the sources differ: {sorted(numbers)}")

    @property
    def global_batch_size(self) -> int:
        return sum(source.global_batch_size for source in self.sources)

    @property
    def num_micro_batches(self) -> int:
        return self.sources[0].num_micro_batches

    @property
    def micro_batch_size(self) -> int:
        return self.global_batch_size // self.num_micro_batches

    @cached_property
    def first_ids(self) -> list[int]:
        """The id of the first sample of each source."""
        return first_ids([source.num_samples for source in self.sources])

    def micro_batch(self, step: int, micro: int) -> SampleDraw:
        """Look up the samples of micro-batch `micro` of a step."""
        draws = [source.micro_batch(step, micro) for source in self.sources]
        copies = self.sources[0].repeats
        rows = self.micro_batch_size // copies
        key = derive_key(self.seed, "mix-rows", step, micro)
        permutation = permute_index(np.arange(rows), rows, key)

        def joined(columns: Sequence[Ints]) -> Ints:
            rows_of_copies = [column.reshape(copies, -1) for column in columns]
            return np.concatenate(rows_of_copies, axis=1)[:, permutation].ravel()

        ids = [draw.ids + first for draw, first in zip(draws, self.first_ids, strict=True)]
        return SampleDraw(joined(ids), joined([draw.passes for draw in draws]))


def mix_orders(
    shard_sizes: Sequence[Ints],
    quotas: Sequence[int],
    *,
    seed: int,
    num_lanes: int,
    num_micro_batches: int,
    block_size: int,
    repeats: int = 1,
) -> MixedOrder:
    """Make the order of a mixture.

    Args:
        shard_sizes: the number of samples in each shard, of each source.
        quotas: the samples that a step takes from each source, from `divide_batch`.
        num_lanes: see `divide_lanes`.
        block_size, repeats: as of `SampleOrder`.
    """
    lanes = divide_lanes(num_lanes, [quota // repeats for quota in quotas], num_micro_batches)
    orders = [
        SampleOrder(
            sizes,
            seed=int(derive_key(seed, "mix-source", number)[0]),
            global_batch_size=quota,
            num_lanes=num,
            num_micro_batches=num_micro_batches,
            block_size=block_size,
            repeats=repeats,
        )
        for number, (sizes, quota, num) in enumerate(zip(shard_sizes, quotas, lanes, strict=True))
    ]
    return MixedOrder(tuple(orders), seed)


def divide_batch(weights: Sequence[float], batch: int, multiple: int) -> list[int]:
    """Divide a batch among sources by their weights, nearly: into multiples of a number.

    Largest remainders decide, of equal ones the first. A source of small weight may get nothing.

    Args:
        batch: a multiple of `multiple`.
    """
    exact = [Fraction(str(weight)) for weight in weights]  # 0.7, 0.2 and 0.1 are 7 to 2 to 1
    shares = [weight * (batch // multiple) / sum(exact) for weight in exact]
    numbers = [int(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: numbers[i] - shares[i])
    for i in by_remainder[: batch // multiple - sum(numbers)]:
        numbers[i] += 1
    return [number * multiple for number in numbers]


def divide_lanes(num_lanes: int, samples: Sequence[int], num_micro_batches: int) -> list[int]:
    """Divide lanes among sources by their samples in a step, as nearly as these are divisible.

    The lanes of a source divide its samples, and micro-batches divide the lanes.

    Args:
        samples: multiples of the number of micro-batches.
    """

    def lanes_of(number: int) -> int:
        multiples = range(num_micro_batches, number + 1, num_micro_batches)
        nearest = Fraction(num_lanes * number, sum(samples))
        divisors = (n for n in multiples if number % n == 0)
        return min(divisors, key=lambda n: max(n / nearest, nearest / n))

    return [lanes_of(number) for number in samples]


def first_ids(num_samples: Sequence[int]) -> list[int]:
    """Return the id of the first sample of each source, counted through the sources."""
    return [sum(num_samples[:number]) for number in range(len(num_samples))]
