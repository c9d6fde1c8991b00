"""The samples of local shards, to be written again: by (shard, position), through a memory map.

In memory are 24 bytes a sample, and 4 a label.
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
from data_sharding.sampling.sample_order import locate
from data_sharding.sources.base import Sample, safe_key
from data_sharding.tools.scan import Scan

_MAX_OPEN_SHARDS = 4096  # opening one again walks its headers
_OUR_PREFIX = re.compile(r"^[0-9]{8}-")


@dataclass(frozen=True, eq=False)
class ShardSamples:
    """The samples of a split: those at `indices` among all samples of local shards.

    Args:
        paths: local path of each shard.
        origins: name of each shard in messages.
        ends: number of samples in the shards up to each; shape (shards,).
        labels: labels of all samples, one after the other.
        label_ends: number of labels of the samples up to each; shape (all samples,).
        image_bytes: size of each image file; shape (all samples,).
        rule: label rule of the shards.
    """

    paths: tuple[Path, ...]
    origins: tuple[str, ...]
    ends: NDArray[np.int64]
    labels: NDArray[np.int32]
    label_ends: NDArray[np.int64]
    image_bytes: NDArray[np.int64]
    rule: LabelRule
    indices: NDArray[np.int64]

    @classmethod
    def of(
        cls, scans: Sequence[Scan], label_maps: Sequence[Mapping[int | str, int]], rule: LabelRule
    ) -> "ShardSamples":
        """Select all samples of scanned shards.

        Args:
            label_maps: for each shard, the class index of every label in it.
        """
        labels = [
            np.array([label_map[value] for value in scan.values], dtype=np.int32)[scan.codes]
            for scan, label_map in zip(scans, label_maps, strict=True)
        ]
        ends = np.cumsum([scan.num_samples for scan in scans], dtype=np.int64)
        return cls(
            paths=tuple(scan.path for scan in scans),
            origins=tuple(scan.url for scan in scans),
            ends=ends,
            labels=np.concatenate([np.zeros(0, np.int32), *labels]),
            label_ends=np.cumsum(
                np.concatenate([np.zeros(0, np.int32), *(scan.num_labels for scan in scans)]),
                dtype=np.int64,
            ),
            image_bytes=np.concatenate([np.zeros(0, np.int64), *(s.image_bytes for s in scans)]),
            rule=rule,
            indices=np.arange(ends[-1] if len(ends) else 0, dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        number = int(self.indices[index])
        (shard,), (i,) = (x.tolist() for x in locate(self.ends, self.indices[[index]]))
        reader = _open(self.paths[shard], self.rule)
        key = reader.key(i)
        origin = f"{self.origins[shard]}: {key}"
        try:
            extension = extension_of(reader.image(i))
        except BadSample as error:
            raise DataError(
                f"{origin}: {error}; nothing was published",
                value=origin,
                hint="Repair the shard, or leave it out.",
            ) from error
        # The last part of any tar's key, without the number that an earlier set of ours gave it.
        name = safe_key(_OUR_PREFIX.sub("", key.rpartition("/")[2]))
        read = partial(_read, self.paths[shard], self.rule, i)
        return Sample(f"{number:08d}-{name}", extension, self._label(number), origin, read)

    @property
    def single_labels(self) -> NDArray[np.int64] | None:
        """The label of each selected sample; None where samples have several labels or none."""
        if self.rule.kind != "single":
            return None
        return self.labels[self.label_ends[self.indices] - 1].astype(np.int64)

    @property
    def num_bytes(self) -> NDArray[np.int64]:
        """Image file sizes of the selected samples."""
        return self.image_bytes[self.indices]

    def where(self, mask: NDArray[np.bool_]) -> "ShardSamples":
        """Select by a mask over the selected samples."""
        return replace(self, indices=self.indices[mask])

    def _label(self, number: int) -> int | tuple[int, ...] | None:
        start = int(self.label_ends[number - 1]) if number else 0
        labels: tuple[int, ...] = tuple(self.labels[start : self.label_ends[number]].tolist())
        if self.rule.kind == "none":
            return None
        return labels[0] if self.rule.kind == "single" else labels


def _read(path: Path, rule: LabelRule, i: int) -> bytes:
    return bytes(_open(path, rule).image(i))


@lru_cache(maxsize=_MAX_OPEN_SHARDS)
def _open(path: Path, rule: LabelRule) -> ShardReader:
    _raise_file_limit()
    return ShardReader(path, labels=rule)


@lru_cache(maxsize=1)
def _raise_file_limit() -> None:
    """Allow this process as many open files as the system permits: each map holds one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
