"""The samples of local shards, to be written again: by (shard, position), through a memory map.

In memory are 24 bytes a sample, and 4 a label.
"""

import re
import resource
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_sharding.errors import BadSample, DataError
from data_sharding.format.sample_rule import SampleRule
from data_sharding.format.shard_reader import ShardReader
from data_sharding.image.open_image import extension_of
from data_sharding.sampling.sample_order import locate
from data_sharding.scanning.scan import Scan
from data_sharding.sources.base import ImageTable, Labels, Sample, safe_key

_MAX_OPEN_SHARDS = 4096  # opening one again walks its headers
_OUR_PREFIX = re.compile(r"^[0-9]{8}-")


@dataclass(frozen=True, eq=False)
class ShardSamples(ImageTable):
    """Samples of local shards.

    Args:
        paths: local path of each shard.
        origins: name of each shard in messages.
        ends: number of samples in the shards up to each; shape (shards,).
        rule: rule by which samples are read from the shards.
    """

    paths: tuple[Path, ...]
    origins: tuple[str, ...]
    ends: NDArray[np.int64]
    rule: SampleRule

    @classmethod
    def of(
        cls, scans: Sequence[Scan], label_maps: Sequence[Mapping[int | str, int]], rule: SampleRule
    ) -> "ShardSamples":
        """Select all samples of scanned shards.

        Args:
            label_maps: for each shard, the class index of every label in it.
        """
        values = _concatenate(
            np.array([label_map[value] for value in scan.values], dtype=np.int32)[scan.codes]
            for scan, label_map in zip(scans, label_maps, strict=True)
        )
        ends = np.cumsum([scan.num_samples for scan in scans], dtype=np.int64)
        label_ends = None
        if rule.labels.kind == "multi":
            label_ends = np.cumsum(_concatenate(s.num_labels for s in scans), dtype=np.int64)
        return cls(
            tuple(scan.path for scan in scans),
            tuple(scan.url for scan in scans),
            ends,
            rule,
            labels=None if rule.labels.kind == "none" else Labels(values, label_ends),
            file_bytes=_concatenate(scan.image_bytes for scan in scans),
            indices=np.arange(ends[-1] if len(ends) else 0, dtype=np.int64),
        )

    def sample(self, number: int, label: int | tuple[int, ...] | None) -> Sample:
        (shard,), (i,) = (x.tolist() for x in locate(self.ends, np.array([number])))
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
        return Sample(f"{number:08d}-{name}", extension, label, origin, read)


def _concatenate(arrays: Iterable[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate([np.zeros(0, dtype=np.int32), *arrays])


def _read(path: Path, rule: SampleRule, i: int) -> bytes:
    return bytes(_open(path, rule).image(i))


@lru_cache(maxsize=_MAX_OPEN_SHARDS)
def _open(path: Path, rule: SampleRule) -> ShardReader:
    _raise_file_limit()
    return ShardReader(path, rule=rule)


@lru_cache(maxsize=1)
def _raise_file_limit() -> None:
    """Allow this process as many open files as the system permits: each map holds one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
