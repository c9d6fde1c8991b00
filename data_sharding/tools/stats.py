"""Statistics of a data set: samples per class, sizes and kinds of images, mean and deviation."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_sharding.errors import BadLabelError, BadSample
from data_sharding.format.location import Location, shard_url
from data_sharding.format.manifest import Manifest, ShardInfo
from data_sharding.image.open_image import is_grey, load_image, open_image, stored_size, to_mode
from data_sharding.io.process_pool import ProgressFn, parallel_map
from data_sharding.rng import derive_key, permute_index
from data_sharding.scanning.local_copy import open_shard
from data_sharding.scanning.scan import DEFAULT_OPTIONS, ReadOptions
from data_sharding.tools.remarks import describe_runs, warn

PERCENTILES = (1, 50, 99)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Stats:
    """The statistics of one split.

    samples_per_class: shape (classes,).
    first_labels: first label of each sample, in their order; -1 if it has none.
    widths, heights: sizes of the images in pixels, at the PERCENTILES.
    bits_per_pixel: sizes of the compressed files, at the PERCENTILES.
    formats, modes: number of images of each, as Pillow names them.
    num_unreadable: samples with an invalid label or a damaged image; the header of every image is
        read, and the pixels of those measured.
    num_measured: number of images that `mean` and `std` come from.
    mean, std: mean and deviation of pixels from 0 to 1, by channel; every image has the same weight
        whatever its size. One number if all are grey, else three; empty if none was readable.
    """

    num_shards: int
    num_samples: int
    num_bytes: int
    samples_per_class: NDArray[np.int64]
    first_labels: NDArray[np.int32]
    widths: tuple[float, ...]
    heights: tuple[float, ...]
    bits_per_pixel: tuple[float, ...]
    formats: Counter[str]
    modes: Counter[str]
    num_unreadable: int
    num_measured: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def measure(
    where: str | Location,
    split: str,
    manifest: Manifest,
    options: ReadOptions = DEFAULT_OPTIONS,
    *,
    num_measured: int,
) -> Stats:
    """Read all labels and image headers of a split, and the pixels of some images.

    Args:
        num_measured: number of images, always the same ones, that mean and deviation come from.
    """
    chosen = _choose_measured(manifest.num_samples, num_measured)
    ends = np.cumsum(manifest.shards.num_samples)
    parts = np.split(chosen, np.searchsorted(chosen, ends[:-1]))
    tasks = [
        _Task(shard, set((part - end + shard.num_samples).tolist()))
        for shard, part, end in zip(manifest.shards, parts, ends, strict=True)
    ]
    shards = parallel_map(
        _measure_shard,
        _Job(Location.of(where).base(split), manifest, options.scratch),
        tasks,
        num_workers=options.num_workers,
        on_progress=options.on_progress,
    )
    if split == "train" and manifest.labels.kind == "single":
        warn(split, [describe_runs([shard.first_labels for shard in shards])])
    return _merge(manifest, shards)


class _Job(NamedTuple):
    base: str
    manifest: Manifest
    scratch: str | Path | None


class _Task(NamedTuple):
    """A shard, and those of its samples whose pixels are measured."""

    shard: ShardInfo
    chosen: set[int]


@dataclass(frozen=True)
class _ShardStats:
    samples_per_class: NDArray[np.int64]
    first_labels: NDArray[np.int32]
    sizes: NDArray[np.int64]  # (images, 3): width, height, bytes
    formats: Counter[str]
    modes: Counter[str]
    num_unreadable: int
    moments: Floats  # (images measured, 7): is grey, means of the pixels, means of their squares


def _choose_measured(num_samples: int, num: int) -> NDArray[np.int64]:
    indices = np.arange(min(num, num_samples))
    return np.sort(permute_index(indices, num_samples, derive_key(0, "stat")))


def _measure_shard(job: _Job, task: _Task, advance: ProgressFn) -> _ShardStats:
    manifest = job.manifest
    labels, sizes, moments = list[tuple[int, ...]](), [], []
    formats, modes, num_unreadable = Counter[str](), Counter[str](), 0
    url = shard_url(job.base, task.shard.name)
    with open_shard(url, task.shard, manifest.rule, job.scratch) as reader:
        for i in range(len(reader)):
            labels.append(())
            try:
                labels[i] = manifest.parse_labels(reader.label_bytes(i))
                data = reader.image(i)
                image = open_image(data)
                sizes.append((*stored_size(image), len(data)))
                formats[image.format or ""] += 1
                modes[image.mode] += 1
                if i in task.chosen:
                    moments.append(_moments(load_image(data)))
            except (BadSample, BadLabelError):
                num_unreadable += 1
            advance(1)
    return _ShardStats(
        np.bincount(np.array([*chain(*labels)], dtype=np.int64), minlength=len(manifest.classes)),
        np.array([next(iter(of_sample), -1) for of_sample in labels], dtype=np.int32),
        np.array(sizes, dtype=np.int64).reshape(-1, 3),
        formats,
        modes,
        num_unreadable,
        np.array(moments, dtype=np.float64).reshape(-1, 7),
    )


def _moments(image: Image.Image) -> Sequence[float]:
    """Return 1 for a grey image else 0, the means of its pixels, and the means of their squares."""
    pixels = np.asarray(to_mode(image, "RGB")).reshape(-1, 3) / 255
    return (float(is_grey(image)), *pixels.mean(axis=0), *np.square(pixels).mean(axis=0))


def _merge(manifest: Manifest, shards: Sequence[_ShardStats]) -> Stats:
    width, height, num_bytes = np.concatenate([shard.sizes for shard in shards]).T
    moments = np.concatenate([shard.moments for shard in shards])
    mean, std = _mean_and_std(moments)
    return Stats(
        num_shards=len(manifest.shards),
        num_samples=manifest.num_samples,
        num_bytes=manifest.num_bytes,
        samples_per_class=np.sum([shard.samples_per_class for shard in shards], axis=0),
        first_labels=np.concatenate([shard.first_labels for shard in shards]),
        widths=_percentiles(width),
        heights=_percentiles(height),
        bits_per_pixel=_percentiles(8 * num_bytes / np.maximum(width * height, 1)),
        formats=sum((shard.formats for shard in shards), Counter()),
        modes=sum((shard.modes for shard in shards), Counter()),
        num_unreadable=sum(shard.num_unreadable for shard in shards),
        num_measured=len(moments),
        mean=mean,
        std=std,
    )


def _mean_and_std(moments: Floats) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if not len(moments):
        return (), ()
    channels = 1 if moments[:, 0].all() else 3
    mean, mean_square = moments[:, 1 : 1 + channels].mean(0), moments[:, 4 : 4 + channels].mean(0)
    return tuple(mean.tolist()), tuple(np.sqrt(np.maximum(mean_square - mean**2, 0)).tolist())


def _percentiles(values: NDArray[Any]) -> tuple[float, ...]:
    return tuple(np.percentile(values, PERCENTILES).tolist()) if len(values) else ()
