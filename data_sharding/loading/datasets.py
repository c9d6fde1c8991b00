"""Micro-batches of training samples and batches of evaluation samples, by name.

A data set here is a function from a name to a batch: (step, micro-batch) for training, a batch
number for evaluation. There is no iterator state to save: to resume at a step is to ask for it.
"""

import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from data_sharding.errors import BadSample, DataError
from data_sharding.loading.split_reader import Reading, SplitReader
from data_sharding.rng import derive_key, uniform
from data_sharding.sampling.locate import Ints
from data_sharding.sampling.sample_order import SampleDraw
from data_sharding.transforms.crops import NUM_RANDOMS, CropFn, CropSpec
from data_sharding.transforms.eval_protocol import EvalProtocol as EvaluationProtocol
from data_sharding.transforms.pixel_transforms import PixelAugment
from data_sharding.transforms.progressive_resize import ImageSizeSchedule

_MAX_REPLACEMENTS = 64  # that many unreadable samples in a row are no accident


class BatchMeta(NamedTuple):
    """A batch whose pixels were written elsewhere.

    shape: of the images: (n, size, size, channels).
    labels: as ShardSet.encode_labels returns them.
    ids: int64 (n,), the samples: in training with those in place of what could not be read.
    readable: bool (n,); False in evaluation where an image could not be decoded.
    bad: a line for each sample that could not be read, with shard, key and reason.
    damaged: such a line for each that was read although a decoder has put up with damage.
    """

    shape: tuple[int, ...]
    labels: NDArray[np.generic]
    ids: Ints
    readable: NDArray[np.bool_]
    bad: list[str]
    damaged: Sequence[str] = ()


class BatchDataset(Protocol):
    """Batches by name.

    size_key: what is set lower so that they are smaller.
    """

    shards: SplitReader
    size_key: str

    @property
    def max_bytes(self) -> int:
        """The most bytes that the images of a batch take."""
        ...

    def write_batch(self, name: Any, memory: NDArray[np.uint8]) -> BatchMeta:
        """Write the images of a batch to the beginning of `memory`."""
        ...

    def shards_of(self, name: Any) -> Ints:
        """Return the numbers of the shards that a batch is read from."""
        ...


class TrainOrder(Protocol):
    """Which samples form a micro-batch: `sampling.sample_order`, or `sampling.class_balanced`."""

    @property
    def seed(self) -> int: ...
    @property
    def micro_batch_size(self) -> int: ...
    def micro_batch(self, step: int, micro: int) -> SampleDraw: ...


class TrainDataset:
    """(step, micro-batch) -> batch."""

    size_key = "the micro-batch (recipe.global_batch_size / recipe.num_micro_batches)"

    def __init__(
        self,
        shards: SplitReader,
        order: TrainOrder,
        choose_view: CropFn,
        distortion: PixelAugment,
        sizes: ImageSizeSchedule,
        channels: int,
        views_shared_by: int = 1,
    ) -> None:
        self.shards, self.order, self.choose_view = shards, order, choose_view
        self.distortion, self.sizes, self.channels = distortion, sizes, channels
        self.views_shared_by = views_shared_by  # so many consecutive samples of a micro-batch

    @property
    def max_bytes(self) -> int:
        return self.order.micro_batch_size * self.sizes.largest**2 * self.channels

    def write_batch(self, name: tuple[int, int], memory: NDArray[np.uint8]) -> BatchMeta:
        """Write a micro-batch; a sample that cannot be read is replaced, the same in any attempt.

        Raises:
            DataError: there is nothing left to replace one with.
        """
        drawn = self.order.micro_batch(*name)
        size = self.sizes(name[0])
        shape = (len(drawn.ids), size, size, self.channels)
        images = memory[: math.prod(shape)].reshape(shape)
        draws = uniform(self._key("augment", drawn), NUM_RANDOMS)
        draws = draws[np.arange(len(draws)) // self.views_shared_by * self.views_shared_by]
        self.shards.preload(drawn.ids)
        bad = list[str]()
        found = [
            self._read(sample, partial(_one, self.choose_view, draws[i]), images[i : i + 1], bad)
            for i, sample in enumerate(drawn.ids.tolist())
        ]
        ids, readings = np.array([sample for sample, _ in found]), [reading for _, reading in found]
        if self.distortion:
            keys = self._key("distort", drawn).astype(np.int64).tolist()
            _distort(images, self.distortion, keys)
        self.shards.store.close_evicted()
        labels = self.shards.encode_labels([reading.labels for reading in readings])
        readable = np.ones(len(readings), dtype=bool)
        return BatchMeta(shape, labels, ids, readable, bad, _damaged(readings))

    def shards_of(self, name: tuple[int, int]) -> Ints:
        return self.shards.shards_of(self.order.micro_batch(*name).ids)

    def _key(self, purpose: str, drawn: SampleDraw) -> NDArray[np.uint64]:
        return derive_key(self.order.seed, purpose, drawn.passes, drawn.ids)

    def _read(
        self, sample: int, view: Any, out: NDArray[np.uint8], bad: list[str]
    ) -> tuple[int, Reading[NDArray[np.uint8]]]:
        """Read a sample, or in its place the next readable one: the same one in every attempt."""
        for number in range(sample, sample + _MAX_REPLACEMENTS):
            candidate = number % len(self.shards)
            try:
                return candidate, self.shards.read(candidate, view, out)
            except BadSample as error:
                bad.append(str(error))
        raise DataError(
            f"{_MAX_REPLACEMENTS} samples in a row cannot be read, the last: {bad[-1]}. There is "
            "nothing to put in their place. Check the data set: `tahoe shard verify URL`."
        )


class EvalDataset:
    """Batch number -> batch: consecutive samples, each exactly once, the last batch shorter.

    The images of a batch are the views of its first sample, then those of its second, and so on.
    """

    size_key = "evaluate.batch_size"

    def __init__(
        self, shards: SplitReader, batch_size: int, protocol: EvaluationProtocol, channels: int
    ) -> None:
        self.shards, self.batch_size, self.protocol = shards, batch_size, protocol
        self.channels = channels

    def __len__(self) -> int:
        return math.ceil(len(self.shards) / self.batch_size)

    @property
    def max_bytes(self) -> int:
        num_views = min(self.batch_size, len(self.shards)) * self.protocol.num_views
        return num_views * self.protocol.crop**2 * self.channels

    def write_batch(self, name: int, memory: NDArray[np.uint8]) -> BatchMeta:
        """Write a batch; a sample that cannot be read is black and marked."""
        ids = self._ids(name)
        num_views, size = self.protocol.num_views, self.protocol.crop
        shape = (len(ids) * num_views, size, size, self.channels)
        images = memory[: math.prod(shape)].reshape(shape)
        labels, readable, bad = [], np.ones(len(ids), dtype=bool), list[str]()
        damaged = list[str]()
        self.shards.preload(ids)
        for i, sample in enumerate(ids.tolist()):
            out = images[i * num_views : (i + 1) * num_views]
            try:
                reading = self.shards.read(sample, self.protocol.views, out)
                labels.append(reading.labels)
                damaged += _damaged([reading])
            except BadSample as error:
                out[:] = 0
                labels.append((0,) if error.labels is None else error.labels)
                readable[i] = False
                bad.append(str(error))
        self.shards.store.close_evicted()
        return BatchMeta(shape, self.shards.encode_labels(labels), ids, readable, bad, damaged)

    def shards_of(self, name: int) -> Ints:
        return self.shards.shards_of(self._ids(name))

    def _ids(self, number: int) -> Ints:
        return np.arange(
            number * self.batch_size, min((number + 1) * self.batch_size, len(self.shards))
        )


def _damaged(readings: Iterable[Reading[Any]]) -> list[str]:
    return [reading.damaged for reading in readings if reading.damaged]


def _one(choose_view: CropFn, draws: Any, width: int, height: int) -> Sequence[CropSpec]:
    return (choose_view(width, height, draws),)


def _distort(images: NDArray[np.uint8], distortion: PixelAugment, keys: Sequence[int]) -> None:
    for image, key in zip(torch.from_numpy(images).permute(0, 3, 1, 2), keys, strict=True):
        image.copy_(distortion(image, key))
