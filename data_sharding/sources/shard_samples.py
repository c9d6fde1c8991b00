"""Samples that lie in shards already, to be written anew: by (shard, number), by memory map.

Only what tells samples apart is in memory: 24 bytes a sample, and 4 a label.
"""

import re
import resource
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_sharding.errors import BadSample, DataError
from data_sharding.format.labels import LabelRule
from data_sharding.format.shard_reader import ShardReader
from data_sharding.image.open_image import extension_of
from data_sharding.sampling.locate import locate
from data_sharding.sources.base import Sample, choose_val_of_all, notes_on_val, stratified_split
from data_sharding.tools.scan import Scan

_MAX_OPEN_SHARDS = 4096  # a walk over headers each time that one is opened again
_OUR_PREFIX = re.compile(r"^[0-9]{8}-")
_STRANGE = re.compile(r"[^A-Za-z0-9_-]")


@dataclass(frozen=True, eq=False)
class ShardSamples:
    """Samples of local shards.

    Args:
        paths, origins: of the shards; where they lie, and what they are called in messages.
        ends: the number of samples in the shards up to each; shape (shards,).
        labels: of all samples one after the other.
        label_ends: the number of labels of the samples up to each; shape (samples of all shards,).
        image_bytes: the size of the image file of each sample; shape (samples of all shards,).
        rule: of the labels as they are in the shards.
        numbers: the samples meant, as positions among those of all shards.
    """

    paths: tuple[Path, ...]
    origins: tuple[str, ...]
    ends: NDArray[np.int64]
    labels: NDArray[np.int32]
    label_ends: NDArray[np.int64]
    image_bytes: NDArray[np.int64]
    rule: LabelRule
    numbers: NDArray[np.int64]

    @classmethod
    def of(
        cls, scans: Sequence[Scan], numbers_of: Sequence[Mapping[int | str, int]], rule: LabelRule
    ) -> "ShardSamples":
        """Return all samples of scanned shards.

        Args:
            numbers_of: for each shard, the number of the class that a label means.
        """
        ends = np.cumsum([scan.num_samples for scan in scans], dtype=np.int64)
        labels = [
            np.array([numbers[value] for value in scan.values], dtype=np.int32)[scan.codes]
            for scan, numbers in zip(scans, numbers_of, strict=True)
        ]
        return cls(
            paths=tuple(scan.path for scan in scans),
            origins=tuple(scan.target.url for scan in scans),
            ends=ends,
            labels=np.concatenate([np.zeros(0, np.int32), *labels]),
            label_ends=np.cumsum(
                np.concatenate([np.zeros(0, np.int32), *(scan.num_labels for scan in scans)]),
                dtype=np.int64,
            ),
            image_bytes=np.concatenate([np.zeros(0, np.int64), *(s.image_bytes for s in scans)]),
            rule=rule,
            numbers=np.arange(ends[-1] if len(ends) else 0, dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Sample:
        number = int(self.numbers[index])
        (shard,), (i,) = (x.tolist() for x in locate(self.ends, self.numbers[[index]]))
        reader = _open(self.paths[shard], self.rule)
        key = reader.key(i)
        try:
            extension = extension_of(reader.image(i))
        except BadSample as error:
            raise DataError(
                f"{self.origins[shard]}: {key}: {error}. Nothing was published: mend the shard, or "
                "leave it out."
            ) from error
        return Sample(
            key=f"{number:08d}-{_safe_key(key)}",
            extension=extension,
            label=self._label(number),
            origin=f"{self.origins[shard]}: {key}",
            read=partial(_read, self.paths[shard], self.rule, i),
        )

    @property
    def only_labels(self) -> NDArray[np.int64]:
        """The label of each sample meant, where all have one."""
        return self.labels[self.label_ends[self.numbers] - 1].astype(np.int64)

    @property
    def num_bytes(self) -> NDArray[np.int64]:
        """The size of the image file of each sample meant."""
        return self.image_bytes[self.numbers]

    def where(self, mask: NDArray[np.bool_]) -> "ShardSamples":
        """Return the samples at which a mask over the samples meant is true."""
        return replace(self, numbers=self.numbers[mask])

    def _label(self, number: int) -> int | tuple[int, ...] | None:
        start = int(self.label_ends[number - 1]) if number else 0
        labels: tuple[int, ...] = tuple(self.labels[start : self.label_ends[number]].tolist())
        if self.rule.kind == "none":
            return None
        return labels[0] if self.rule.kind == "single" else labels


def split_off(
    samples: ShardSamples, classes: Sequence[str], val_fraction: float, seed: int
) -> tuple[NDArray[np.bool_], tuple[str, ...]]:
    """Return which samples are for validation, shape (samples,), and what is to be said of that.

    The same share of every class, where a sample has one; else a draw from all.

    Raises:
        DataError: the fraction leaves a split without samples.
    """
    if samples.rule.kind != "single":
        return choose_val_of_all(len(samples), val_fraction, seed), ()
    present, labels = np.unique(samples.only_labels, return_inverse=True)
    names = tuple(classes[label] for label in present.tolist())
    return stratified_split(labels, names, val_fraction, seed), notes_on_val(
        labels, names, val_fraction
    )


def _safe_key(key: str) -> str:
    """Return a name from a key of any tar: its last part, without the number we once gave it."""
    return _STRANGE.sub("_", _OUR_PREFIX.sub("", key.rpartition("/")[2]))[:60]


def _read(path: Path, rule: LabelRule, i: int) -> bytes:
    return bytes(_open(path, rule).image(i))


@lru_cache(maxsize=_MAX_OPEN_SHARDS)
def _open(path: Path, rule: LabelRule) -> ShardReader:
    _allow_open_files()
    return ShardReader(path, labels=rule)


@lru_cache(maxsize=1)
def _allow_open_files() -> None:
    """Let this process have as many files open as the system lets it: a map holds one each."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
