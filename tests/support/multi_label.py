"""Digits with several labels each: the digit, whether it is even, whether it is above 4.

The last class, "none", has no image.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from data_sharding.format.labels import LabelRule
from data_sharding.sources.base import Sample, Samples
from data_sharding.sources.digits import digits
from data_sharding.writing.dataset_writer import write_dataset

CLASSES = (*map(str, range(10)), "even", "above 4", "none")


def labels_of(digit: int) -> tuple[int, ...]:
    """Return the numbers of a digit's classes."""
    return (digit, *[10] * (digit % 2 == 0), *[11] * (digit > 4))


@dataclass(frozen=True)
class _Several:
    single: Samples

    def __len__(self) -> int:
        return len(self.single)

    def __getitem__(self, index: int) -> Sample:
        sample = self.single[index]
        return replace(sample, label=labels_of(sample.labels[0]))


def write_several_labels(path: Path) -> Path:
    """Write the data set in shards of some hundred images."""
    source = digits()
    splits = {split: _Several(samples) for split, samples in source.splits.items()}
    several = replace(source, classes=CLASSES, splits=splits, labels=LabelRule("multi", "json"))
    write_dataset(several, str(path), seed=0, samples_per_shard=300)
    return path
