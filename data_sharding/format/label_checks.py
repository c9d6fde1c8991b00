"""Describe labels that are probably not intended: with gaps, sorted, or only in validation."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_sharding.io.text import pluralize, truncated_list

_MIN_CHANGES = 20  # expected in shuffled samples; with fewer, sorted ones could be chance
_MAX_FRACTION = 0.25  # of these changes that sorted samples have


def describe_gaps(values: Collection[int | str]) -> str:
    """Describe gaps in labels that are numbers of classes; empty if there are none."""
    numbers = sorted(value for value in values if isinstance(value, int))
    if not numbers or len(numbers) != len(values) or numbers == [*range(len(numbers))]:
        return ""
    num_classes = numbers[-1] + 1
    is_from_1 = numbers == [*range(1, num_classes)]
    reason = "they seem to be counted from 1" if is_from_1 else "some numbers do not occur"
    return (
        f"{len(numbers):,} numbers from {numbers[0]:,} to {numbers[-1]:,}: {reason}. "
        f"Label n means class n, counted from 0, so there are {num_classes:,} classes, "
        f"{num_classes - len(numbers):,} of them without samples. `webdataset` with `relabel` "
        "numbers the labels that occur from 0 on."
    )


def describe_runs(labels: Sequence[NDArray[Any]]) -> str:
    """Describe samples that are sorted by label; empty if labels change often enough.

    Args:
        labels: label of each sample, for each shard.
    """
    flat = np.concatenate(labels) if len(labels) else np.zeros(0, dtype=np.int64)
    num_pairs = sum(max(len(shard) - 1, 0) for shard in labels)
    num_equal = sum(int((shard[1:] == shard[:-1]).sum()) for shard in labels)
    _, counts = np.unique(flat, return_counts=True)
    equal_by_chance = float(np.square(counts / max(len(flat), 1)).sum())
    expected = num_pairs * (1 - equal_by_chance)
    if expected < _MIN_CHANGES or num_pairs - num_equal > _MAX_FRACTION * expected:
        return ""
    return (
        f"samples are sorted by label: {num_equal / num_pairs:.0%} of them are followed by one of "
        f"their class, and {equal_by_chance:.0%} would be if they were shuffled. Training shuffles "
        "within some thousand samples, so its batches may hold few classes. `webdataset` writes "
        "them shuffled."
    )


def describe_untrained(in_train: Iterable[str], in_val: Iterable[str]) -> str:
    """Describe the classes that occur only in val; empty if there are none."""
    names = sorted({*in_val} - {*in_train})
    if not names:
        return ""
    return (
        f"{pluralize(len(names), 'class')} of val without an image in train: "
        f"{truncated_list(names)}. Nothing can learn them, so their images in val count as wrong: "
        "add training images, move some of val there, or leave these classes out."
    )
