"""Training images as the network sees them, on a sheet: epoch beneath epoch.

The pixels are those of a run with this config, before normalisation; mixing, which happens on the
device, is not shown.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from data_sharding.batches import TrainSet
from data_sharding.contact_sheet import Row, Tile, draw_sheet
from data_sharding.curriculum import ImageSizes
from data_sharding.manifest import read_manifest
from data_sharding.order import Draws
from data_sharding.places import Ints
from data_sharding.preview import stored_tile
from data_sharding.samples import ShardSet
from orchestrator.plan import make_plan
from orchestrator.schema import Config
from orchestrator.training.datasets import open_train_set

_TILE_PX = 160


def draw(config: Config, num: int, num_epochs: int) -> Image.Image:
    """Return a sheet: a column for each of the first samples of a run, a row for each epoch.

    Raises:
        ConfigError, DataError: the config cannot be run on its data set.
    """
    train, val = (read_manifest(config.data.url, split) for split in ("train", "val"))
    plan = make_plan(config, config.world_size, train, val)
    train_set = open_train_set(config, train, plan)
    first = _first_draws(train_set, plan.num_micro_batches, num)
    rows = [Row(_stored(train_set.shards, first.ids), "as stored")]
    for epoch in range(num_epochs):
        size = train_set.sizes(epoch * plan.steps_per_epoch)
        rows.append(Row(_as_seen(train_set, first, epoch, size), f"epoch {epoch + 1}"))
    augment = config.data.augment
    return draw_sheet(
        rows,
        title=f"{config.data.name}: what the network sees",
        subtitle=(
            f"{config.data.url}, {config.data.image_size} pixels, {augment.kind}, "
            f"seed {config.seed}; before normalisation and mixing"
        ),
        tile_px=_TILE_PX,
    )


def _first_draws(train_set: TrainSet, num_micro_batches: int, num: int) -> Draws:
    """Return the first samples of a run's first step, each once."""
    draws = [train_set.order.micro_batch(0, micro) for micro in range(num_micro_batches)]
    ids, passes = (np.concatenate(column) for column in zip(*draws, strict=True))
    first = np.sort(np.unique(ids, return_index=True)[1])[:num]
    return Draws(ids[first], passes[first])


def _stored(shards: ShardSet, samples: Ints) -> list[Tile]:
    """Return samples as they lie in their shards, with their classes."""
    manifest = shards.manifest
    return [
        stored_tile(shards.store.open(manifest.shards[shard]), i, manifest, _TILE_PX)
        for shard, i in shards.places(samples)
    ]


def _as_seen(train_set: TrainSet, first: Draws, epoch: int, size: int) -> list[Tile]:
    """Return samples as the network sees them in an epoch.

    Args:
        size: of the images at that time, in pixels.
    """
    shown = TrainSet(
        train_set.shards,
        _SameSamples(train_set.order.seed, first),
        train_set.choose_view,
        train_set.distortion,
        ImageSizes(size),
        train_set.channels,
    )
    memory = np.empty(shown.max_bytes, dtype=np.uint8)
    shape = shown.fill((epoch, 0), memory).shape
    pixels = memory[: np.prod(shape)].reshape(shape)
    return [Tile(Image.fromarray(image.squeeze()).convert("RGB")) for image in pixels]


@dataclass(frozen=True)
class _SameSamples:
    """An order whose step t is one micro-batch: the same samples, t passes later."""

    seed: int
    first: Draws

    @property
    def micro_batch_size(self) -> int:
        return len(self.first.ids)

    def micro_batch(self, step: int, micro: int) -> Draws:
        return self.first._replace(passes=self.first.passes + step)
