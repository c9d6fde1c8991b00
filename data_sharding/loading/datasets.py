"""Micro-batches of training samples and batches of evaluation samples, by key.

A data set here is a function from a key to a batch: (step, micro-batch, part) for training, a batch
number for evaluation. There is no iterator state to save: resuming at a step means asking for it.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from data_sharding.errors import BadSample, DataError
from data_sharding.loading.kept_images import KeptImages, Layout
from data_sharding.loading.mixed_reader import MixedReader
from data_sharding.loading.split_reader import Reading, SplitReader
from data_sharding.rng import derive_key, uniform
from data_sharding.sampling.sample_order import Ints, MicroBatchKey, SampleDraw
from data_sharding.transforms.crops import NUM_RANDOMS, CropFn, CropSpec, Randoms
from data_sharding.transforms.decode import Pixels, ViewsFn
from data_sharding.transforms.eval_protocol import EvalProtocol
from data_sharding.transforms.padded_crop import PaddedCrop, whole_image
from data_sharding.transforms.pixel_transforms import PixelAugment
from data_sharding.transforms.progressive_resize import ImageSizeSchedule

_MAX_REPLACEMENTS = 64  # that many unreadable samples in a row are not an accident


class BatchMeta(NamedTuple):
    """A batch whose pixels are in a buffer.

    shape: the shape of the images, (n, size, size, channels).
    labels: the labels as `SplitReader.encode_labels` returns them.
    ids: int64 (n,), the samples; in training with the replacements of unreadable ones.
    readable: bool (n,); False in evaluation if an image could not be decoded.
    bad: a line for each unreadable sample, with shard, key and reason.
    damaged: such a line for each sample that was decoded with a warning about damage.
    """

    shape: tuple[int, ...]
    labels: NDArray[np.generic]
    ids: Ints
    readable: NDArray[np.bool_]
    bad: list[str]
    damaged: Sequence[str] = ()


class _Samples(NamedTuple):
    """The samples of a batch, as in `BatchMeta`."""

    labels: NDArray[np.generic]
    ids: Ints
    bad: list[str]
    damaged: list[str]


class TrainOrder(Protocol):
    """The samples of micro-batches: `sampling.sample_order`, `mixed_order` or `class_balanced`."""

    @property
    def seed(self) -> int: ...
    @property
    def micro_batch_size(self) -> int: ...
    def micro_batch(self, step: int, micro: int) -> SampleDraw: ...


class TrainDataset:
    """Micro-batches, or parts of them that add up to the same bits, by `MicroBatchKey`.

    `max_bytes` is the size of the largest batch's images; `size_key` names the setting that makes
    batches smaller, for hints. `kept` is memory for decoded images, if there is any.

    Args:
        samples_per_crop: the number of consecutive samples of a micro-batch that share a crop.
        num_parts: the number of parts of a micro-batch; the keys' parts must not be larger.
    """

    size_key = "`global_batch_size` / `num_micro_batches`"

    def __init__(
        self,
        shards: SplitReader | MixedReader,
        order: TrainOrder,
        crop: CropFn,
        augment: PixelAugment,
        sizes: ImageSizeSchedule,
        channels: int,
        samples_per_crop: int = 1,
        num_parts: int = 1,
    ) -> None:
        self.shards, self.order, self.crop, self.augment = shards, order, crop, augment
        self.sizes, self.channels, self.samples_per_crop = sizes, channels, samples_per_crop
        self.num_parts = num_parts
        self.kept: KeptImages | None = None

    @property
    def max_bytes(self) -> int:
        num_rows = self.order.micro_batch_size // self.num_parts
        return num_rows * self.sizes.largest**2 * self.channels

    @property
    def layout(self) -> Layout | None:
        """The memory that `kept` would be: whole images of one size; None for other crops."""
        if not isinstance(self.crop, PaddedCrop) or self.sizes.is_growing:
            return None
        side = self.sizes.last
        return layout_of(self.shards, (side, side, self.channels))

    def write_batch(self, key: MicroBatchKey, memory: NDArray[np.uint8]) -> BatchMeta:
        """Write a micro-batch; an unreadable sample is replaced, the same way in any attempt.

        Raises:
            DataError: too many samples in a row are unreadable.
        """
        micro_batch = self.order.micro_batch(key.step, key.micro)
        rows = key.part.rows(len(micro_batch.ids))
        draw, size = micro_batch.take(rows), self.sizes(key.step)
        shape = (len(rows), size, size, self.channels)
        images = memory[: math.prod(shape)].reshape(shape)
        cropped_as = micro_batch.take(rows // self.samples_per_crop * self.samples_per_crop)
        randoms = uniform(self._keys("augment", cropped_as), NUM_RANDOMS)
        if isinstance(self.crop, PaddedCrop):
            whole = np.empty_like(images)
            samples = self._read_all(draw.ids, [whole_image] * len(rows), whole)
            self.crop.cut(whole, randoms, images)
        else:
            views = [partial(_crop_view, self.crop, row) for row in randoms]
            samples = self._read_all(draw.ids, views, images)
        if self.augment:
            keys = self._keys("distort", draw).astype(np.int64).tolist()
            for image, image_key in zip(
                torch.from_numpy(images).permute(0, 3, 1, 2), keys, strict=True
            ):
                image.copy_(self.augment(image, image_key))
        self.shards.close_evicted()
        readable = np.ones(len(rows), dtype=bool)
        return BatchMeta(shape, samples.labels, samples.ids, readable, samples.bad, samples.damaged)

    def shards_of(self, key: MicroBatchKey) -> Ints:
        ids = self.order.micro_batch(key.step, key.micro).ids
        return self.shards.shards_of(ids[key.part.rows(len(ids))])

    def _keys(self, purpose: str, draw: SampleDraw) -> NDArray[np.uint64]:
        return derive_key(self.order.seed, purpose, draw.passes, draw.ids)

    def _read_all(self, samples: Ints, views: Sequence[ViewsFn], out: Pixels) -> _Samples:
        """Read samples, a view of each to its row of `out`; those that are kept are not decoded."""
        labels, ids = empty_labels(self.shards, len(samples)), samples.copy()
        missing = np.arange(len(samples))
        if self.kept:
            missing = self.kept.take(samples, out, labels)
        self.shards.prefetch(samples[missing])
        readings, bad = list[Reading[Pixels]](), list[str]()
        for i, sample in zip(missing.tolist(), samples[missing].tolist(), strict=True):
            ids[i], reading = self._read(sample, views[i], out[i : i + 1], bad)
            readings.append(reading)
        labels[missing] = self.shards.encode_labels([reading.labels for reading in readings])
        damaged = [reading.damaged for reading in readings if reading.damaged]
        if self.kept and len(missing):  # not those to be named again in the next epoch
            is_sound = np.array([reading.damaged is None for reading in readings])
            sound = missing[is_sound & (ids == samples)[missing]]
            self.kept.put(samples[sound], out[sound], labels[sound])
        return _Samples(labels, ids, bad, damaged)

    def _read(
        self, sample: int, view: ViewsFn, out: Pixels, bad: list[str]
    ) -> tuple[int, Reading[Pixels]]:
        """Read a sample, or in its place the next readable one of its source."""
        for distance in range(_MAX_REPLACEMENTS):
            candidate = self.shards.successor(sample, distance)
            try:
                return candidate, self.shards.read(candidate, view, out)
            except BadSample as error:
                bad.append(str(error))
        raise DataError(
            f"{_MAX_REPLACEMENTS} samples in a row cannot be read (the last: {bad[-1]}): there is "
            "nothing to replace them with",
            value=bad[-1],
            hint="Check the data set with `verify`.",
        )


class EvalDataset:
    """Batches by number: consecutive samples, each exactly once, the last batch shorter.

    The images of a batch are the views of its first sample, then those of its second, and so on.
    """

    size_key = "`batch_size`"

    def __init__(
        self, shards: SplitReader, batch_size: int, protocol: EvalProtocol, channels: int
    ) -> None:
        self.shards, self.batch_size, self.protocol = shards, batch_size, protocol
        self.channels = channels
        self.kept: KeptImages | None = None

    def __len__(self) -> int:
        return math.ceil(len(self.shards) / self.batch_size)

    @property
    def max_bytes(self) -> int:
        num_views = min(self.batch_size, len(self.shards)) * self.protocol.num_views
        return num_views * self.protocol.crop**2 * self.channels

    @property
    def layout(self) -> Layout:
        """The memory that `kept` would be: all views of each sample."""
        side = self.protocol.crop
        return layout_of(self.shards, (self.protocol.num_views, side, side, self.channels))

    def write_batch(self, key: int, memory: NDArray[np.uint8]) -> BatchMeta:
        """Write a batch; an unreadable sample is black and marked."""
        ids = self._ids(key)
        num_views, size = self.protocol.num_views, self.protocol.crop
        shape = (len(ids) * num_views, size, size, self.channels)
        images = memory[: math.prod(shape)].reshape(shape)
        views = images.reshape(len(ids), num_views, size, size, self.channels)
        labels, readable = empty_labels(self.shards, len(ids)), np.ones(len(ids), dtype=bool)
        bad, damaged, is_sound = list[str](), list[str](), np.ones(len(ids), dtype=bool)
        missing = np.arange(len(ids))
        if self.kept:
            missing = self.kept.take(ids, views, labels)
        self.shards.prefetch(ids[missing])
        read = list[tuple[int, ...]]()
        for i in missing.tolist():
            try:
                reading = self.shards.read(int(ids[i]), self.protocol.views, views[i])
                read.append(reading.labels)
                damaged += [reading.damaged] if reading.damaged else []
                is_sound[i] = not reading.damaged
            except BadSample as error:
                views[i] = 0
                read.append((0,) if error.labels is None else error.labels)
                readable[i] = is_sound[i] = False
                bad.append(str(error))
        labels[missing] = self.shards.encode_labels(read)
        if self.kept and len(missing):  # not those to be named again in the next evaluation
            sound = missing[is_sound[missing]]
            self.kept.put(ids[sound], views[sound], labels[sound])
        self.shards.close_evicted()
        return BatchMeta(shape, labels, ids, readable, bad, damaged)

    def shards_of(self, key: int) -> Ints:
        return self.shards.shards_of(self._ids(key))

    def _ids(self, number: int) -> Ints:
        first = number * self.batch_size
        return np.arange(first, min(first + self.batch_size, len(self.shards)))


def empty_labels(shards: SplitReader | MixedReader, num: int) -> NDArray[np.generic]:
    """Return an array for the encoded labels of some samples."""
    example = shards.encode_labels([])
    return np.empty((num, *example.shape[1:]), example.dtype)


def layout_of(shards: SplitReader | MixedReader, image_shape: tuple[int, ...]) -> Layout:
    """Return the memory that all samples of a split take."""
    labels = empty_labels(shards, 0)
    return Layout(len(shards), image_shape, labels.shape[1:], labels.dtype.str)


def _crop_view(crop: CropFn, randoms: Randoms, width: int, height: int) -> tuple[CropSpec]:
    return (crop(width, height, randoms),)


BatchDataset = TrainDataset | EvalDataset
