"""A sheet of training images as the network gets them, a row for each epoch.

The pixels are those of a run with this config, before normalisation; mixup and CutMix, which happen
on the device, are not shown.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from data_sharding.image.contact_sheet import Row, Tile, draw_sheet
from data_sharding.loading.datasets import TrainDataset
from data_sharding.loading.mixed_reader import MixedReader
from data_sharding.loading.split_reader import SplitReader
from data_sharding.sampling.sample_order import Ints, MicroBatchKey, SampleDraw
from data_sharding.tools.preview import stored_tile
from data_sharding.transforms.progressive_resize import ImageSizeSchedule
from orchestrator.config.schema import Config
from orchestrator.run.plan import make_largest_plan
from orchestrator.run.train_data import read_data
from orchestrator.training.inputs.datasets import open_train_set

_TILE_PX = 160


def draw_augmented_views(config: Config, num: int, num_epochs: int) -> Image.Image:
    """Draw a sheet with a column for each of a run's first samples and a row for each epoch."""
    train, val = read_data(config)
    plan = make_largest_plan(config, train, val)
    train_set = open_train_set(config, train, plan)
    first = _first_samples(train_set, plan.num_micro_batches, num)
    rows = [Row(_stored(train_set.shards, first.ids), "as stored")]
    for epoch in range(num_epochs):
        size = train_set.sizes(epoch * plan.steps_per_epoch)
        rows.append(Row(_augmented(train_set, first, epoch, size), f"epoch {epoch + 1}"))
    where = ", ".join(map(str, config.data.train_locations))
    return draw_sheet(
        rows,
        title=f"{config.data.name}: what the network sees",
        subtitle=(
            f"{where}, {config.data.image_size} pixels, {config.data.crop.mode}, "
            f"seed {config.seed}; before normalisation and mixing"
        ),
        tile_px=_TILE_PX,
    )


def _first_samples(train_set: TrainDataset, num_micro_batches: int, num: int) -> SampleDraw:
    """Return the first samples of a run's first step, each once."""
    draws = [train_set.order.micro_batch(0, micro) for micro in range(num_micro_batches)]
    ids, passes = (np.concatenate(column) for column in zip(*draws, strict=True))
    first = np.sort(np.unique(ids, return_index=True)[1])[:num]
    return SampleDraw(ids[first], passes[first])


def _stored(shards: SplitReader | MixedReader, ids: Ints) -> list[Tile]:
    return [_stored_tile(*shards.find(sample)) for sample in ids.tolist()]


def _stored_tile(source: SplitReader, sample: int) -> Tile:
    ((shard, i),) = source.locate(np.array([sample]))
    reader = source.store.open(source.manifest.shards[shard])
    return stored_tile(reader, i, source.manifest, _TILE_PX)


def _augmented(train_set: TrainDataset, first: SampleDraw, epoch: int, size: int) -> list[Tile]:
    shown = TrainDataset(
        train_set.shards,
        _FixedSampleOrder(train_set.order.seed, first),
        train_set.crop,
        train_set.augment,
        ImageSizeSchedule(size),
        train_set.channels,
    )
    memory = np.empty(shown.max_bytes, dtype=np.uint8)
    shape = shown.write_batch(MicroBatchKey(epoch, 0), memory).shape
    pixels = memory[: np.prod(shape)].reshape(shape)
    return [Tile(Image.fromarray(image.squeeze()).convert("RGB")) for image in pixels]


@dataclass(frozen=True)
class _FixedSampleOrder:
    """An order whose step t is one micro-batch: the same samples, t passes later."""

    seed: int
    first: SampleDraw

    @property
    def micro_batch_size(self) -> int:
        return len(self.first.ids)

    def micro_batch(self, step: int, micro: int) -> SampleDraw:
        return self.first._replace(passes=self.first.passes + step)
