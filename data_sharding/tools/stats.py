"""A data set in numbers: samples a class, sizes and kinds of images, mean and deviation."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_sharding.errors import BadLabelError, BadSample
from data_sharding.format.label_checks import describe_runs
from data_sharding.format.labels import LabelRule
from data_sharding.format.manifest import Manifest, ShardInfo
from data_sharding.format.shard_reader import ShardReader
from data_sharding.image.high_bit_depth import is_high_bit_depth
from data_sharding.image.open_image import load_image, open_image, stored_size, to_mode
from data_sharding.io import filesystem
from data_sharding.io.process_pool import ProgressFn, parallel_map
from data_sharding.rng import derive_key, permute_index
from data_sharding.tools.local_copy import open_shard
from data_sharding.tools.scan_warnings import warn

PERCENTILES = (1, 50, 99)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Stats:
    """The numbers of one split.

    samples_per_class: shape (classes,).
    first_labels: the first label of each sample, in their order; -1 where it has none.
    widths, heights: of the images in pixels, at the PERCENTILES.
    bits_per_pixel: of the files, compressed as they are, at the PERCENTILES.
    formats, modes: how many images are of which, as Pillow names them.
    num_unreadable: samples whose label is none, or whose image was found to be damaged; the header
        of every image is read, the pixels of those measured.
    num_measured: images that `mean` and `std` come from.
    mean, std: of pixels from 0 to 1 by channel; every image counts the same whatever its size. One
        number if all images measured are grey, else three; empty if none could be measured.
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

    @property
    def override(self) -> str:
        """What to add to `tahoe train` for images to be normalised by these numbers."""
        mean, std = (",".join(f"{x:.4f}" for x in numbers) for numbers in (self.mean, self.std))
        channels = "data.channels=1 " if len(self.mean) == 1 else ""
        return f"{channels}data.mean=[{mean}] data.std=[{std}]"


def measure(
    url: str,
    split: str,
    manifest: Manifest,
    *,
    num_measured: int,
    num_workers: int = 1,
    scratch: str | None = None,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Stats:
    """Read all labels and image headers of a split, and the pixels of some images.

    Args:
        num_measured: images that mean and deviation are taken from: always the same ones.
        scratch: the directory for copies of remote shards.

    Raises:
        DataError: a shard cannot be read.
    """
    chosen = _choose_measured(manifest.num_samples, num_measured)
    ends = np.cumsum(manifest.shards.num_samples)
    starts = ends - manifest.shards.num_samples
    cuts = np.searchsorted(chosen, ends[:-1])
    items = [
        _Item(shard, mine - start)
        for shard, mine, start in zip(manifest.shards, np.split(chosen, cuts), starts, strict=True)
    ]
    numbers = {name: number for number, name in enumerate(manifest.classes)}
    job = _Job(filesystem.join(url, split), manifest.labels, numbers, scratch)
    parts = parallel_map(
        _measure_shard, job, items, num_workers=num_workers, on_progress=on_progress
    )
    if split == "train" and manifest.labels.kind == "single":
        warn(split, [describe_runs([part.first_labels for part in parts])])
    return _merge_parts(manifest, parts)


class _Job(NamedTuple):
    """What all shards have in common; `numbers` are those of the classes, by name."""

    url: str
    labels: LabelRule
    numbers: Mapping[str, int]
    scratch: str | None


class _Item(NamedTuple):
    """A shard, and the samples of it whose pixels are measured."""

    shard: ShardInfo
    chosen: NDArray[np.int64]


@dataclass(frozen=True)
class _Part:
    """The numbers of one shard; sizes is (images, 3): width, height, bytes."""

    samples_per_class: NDArray[np.int64]
    first_labels: NDArray[np.int32]
    sizes: NDArray[np.int64]
    kinds: Counter[tuple[str, str]]  # (format, mode)
    num_unreadable: int
    moments: Floats  # (images measured, 7): is grey, means of the pixels, means of their squares


def _choose_measured(num_samples: int, num: int) -> NDArray[np.int64]:
    numbers = np.arange(min(num, num_samples))
    return np.sort(permute_index(numbers, num_samples, derive_key(0, "stat")))


def _measure_shard(job: _Job, item: _Item, advance: ProgressFn) -> _Part:
    url = filesystem.join(job.url, item.shard.name)
    with open_shard(url, item.shard, job.labels, job.scratch) as reader:
        return _measure_samples(job, reader, set(item.chosen.tolist()), advance)


def _measure_samples(
    job: _Job, reader: ShardReader, chosen: Collection[int], advance: ProgressFn
) -> _Part:
    labels, sizes, kinds, moments = list[tuple[int, ...]](), [], Counter[tuple[str, str]](), []
    num_unreadable = 0
    for i in range(len(reader)):
        advance(1)
        mine: tuple[int, ...] = ()
        try:
            mine = job.labels.parse(reader.label_bytes(i), job.numbers)
            data = reader.image(i)
            image = open_image(data)
            sizes.append((*stored_size(image), len(data)))
            kinds[image.format or "", image.mode] += 1
            if i in chosen:
                moments.append(_moments(load_image(data)))
        except (BadSample, BadLabelError):
            num_unreadable += 1
        labels.append(mine)
    return _Part(
        np.bincount(np.array([*chain(*labels)], dtype=np.int64), minlength=len(job.numbers)),
        np.array([next(iter(mine), -1) for mine in labels], dtype=np.int32),
        np.array(sizes, dtype=np.int64).reshape(-1, 3),
        kinds,
        num_unreadable,
        np.array(moments, dtype=np.float64).reshape(-1, 7),
    )


def _moments(image: Image.Image) -> Sequence[float]:
    """Return whether the image is grey, and the means of its pixels and of their squares."""
    is_grey = image.mode in ("1", "L", "LA") or is_high_bit_depth(image)
    pixels = np.asarray(to_mode(image, "RGB")).reshape(-1, 3) / 255
    return (float(is_grey), *pixels.mean(axis=0), *np.square(pixels).mean(axis=0))


def _merge_parts(manifest: Manifest, parts: Sequence[_Part]) -> Stats:
    width, height, num_bytes = np.concatenate([part.sizes for part in parts]).T
    moments = np.concatenate([part.moments for part in parts])
    mean, std = _normalisation(moments)
    formats, modes = Counter[str](), Counter[str]()
    for part in parts:
        for (image_format, mode), num in part.kinds.items():
            formats[image_format] += num
            modes[mode] += num
    return Stats(
        num_shards=len(manifest.shards),
        num_samples=manifest.num_samples,
        num_bytes=manifest.num_bytes,
        samples_per_class=np.sum([part.samples_per_class for part in parts], axis=0),
        first_labels=np.concatenate([part.first_labels for part in parts]),
        widths=_percentiles(width),
        heights=_percentiles(height),
        bits_per_pixel=_percentiles(8 * num_bytes / np.maximum(width * height, 1)),
        formats=formats,
        modes=modes,
        num_unreadable=sum(part.num_unreadable for part in parts),
        num_measured=len(moments),
        mean=mean,
        std=std,
    )


def _normalisation(moments: Floats) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if not len(moments):
        return (), ()
    channels = 1 if moments[:, 0].all() else 3
    mean, mean_square = moments[:, 1 : 1 + channels].mean(0), moments[:, 4 : 4 + channels].mean(0)
    return tuple(mean.tolist()), tuple(np.sqrt(np.maximum(mean_square - mean**2, 0)).tolist())


def _percentiles(values: NDArray[Any]) -> tuple[float, ...]:
    return tuple(np.percentile(values, PERCENTILES).tolist()) if len(values) else ()
