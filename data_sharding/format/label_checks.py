"""Labels that are probably not meant like this: with gaps, sorted, in validation alone."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_sharding.io.text import pluralize, truncated_list

_MIN_CHANGES = 20  # expected of shuffled samples; with fewer, chance could do it
_MAX_SHARE = 0.25  # of these that sorted samples have


def describe_gaps(values: Collection[int | str]) -> str:
    """Return what is odd about labels that are numbers of classes; nothing if they have no gap."""
    numbers = sorted(value for value in values if isinstance(value, int))
    if not numbers or len(numbers) != len(values) or numbers == [*range(len(numbers))]:
        return ""
    num_classes = numbers[-1] + 1
    num_empty = num_classes - len(numbers)
    is_from_1 = numbers == [*range(1, num_classes)]
    seem = "they seem to be counted from 1" if is_from_1 else "some numbers do not occur"
    return (
        f"{len(numbers):,} numbers from {numbers[0]:,} to {numbers[-1]:,}: {seem}. "
        f"Label n means class n, counted from 0, so there are {num_classes:,} classes, "
        f"{num_empty:,} of them without samples. `tahoe shard webdataset URL OUT --relabel` "
        "numbers the labels that occur from 0 on."
    )


def describe_runs(labels: Sequence[NDArray[Any]]) -> str:
    """Return what is odd about the order of samples; nothing if labels change often enough.

    Args:
        labels: one a sample, for each shard in its order.
    """
    every = np.concatenate(labels) if len(labels) else np.zeros(0, dtype=np.int64)
    num_pairs = sum(max(len(mine) - 1, 0) for mine in labels)
    num_alike = sum(int((mine[1:] == mine[:-1]).sum()) for mine in labels)
    _, counts = np.unique(every, return_counts=True)
    alike_by_chance = float(np.square(counts / max(len(every), 1)).sum())
    expected = num_pairs * (1 - alike_by_chance)
    if expected < _MIN_CHANGES or num_pairs - num_alike > _MAX_SHARE * expected:
        return ""
    return (
        f"samples lie sorted by label: {num_alike / num_pairs:.0%} of them are followed by one of "
        f"their class, and {alike_by_chance:.0%} would be if they were shuffled. Training shuffles "
        "within some thousand samples, so its batches may hold few classes. `tahoe shard "
        "webdataset URL OUT` writes them shuffled."
    )


def describe_untrained(in_train: Iterable[str], in_val: Iterable[str]) -> str:
    """Return which classes occur in val alone; nothing if none does."""
    names = sorted({*in_val} - {*in_train})
    if not names:
        return ""
    return (
        f"{pluralize(len(names), 'class')} of val without an image in train: "
        f"{truncated_list(names)}. Nothing can learn them, so their images in val count as wrong: "
        "add training images, move some of val there, or leave these classes out."
    )
