"""Draw stored images of a split on a contact sheet, as training reads them, before any view."""

from collections.abc import Iterator

import numpy as np
from PIL import Image

from data_sharding.errors import BadLabelError, BadSample
from data_sharding.format.location import Location
from data_sharding.format.manifest import Manifest
from data_sharding.image.contact_sheet import Tile, draw_sheet, fit_image, grid
from data_sharding.image.open_image import load_image, to_mode
from data_sharding.rng import permutation
from data_sharding.sampling.sample_order import Ints, locate
from data_sharding.scanning.local_copy import open_shard
from data_sharding.storage.store import Reader

_TILE_PX, _COLUMNS = 160, 8  # digits and CIFAR images fill 160 pixels exactly


def preview(
    where: str | Location,
    split: str,
    manifest: Manifest,
    *,
    num: int,
    seed: int | None,
    scratch: str | None,
) -> Image.Image:
    """Draw a sheet of images with their classes.

    Args:
        seed: seed of a random choice from the whole split; None takes the first images.
        scratch: directory for copies of remote shards.
    """
    num = min(num, manifest.num_samples)
    chosen = np.arange(num)
    if seed is not None:
        chosen = np.sort(permutation(seed, "preview", manifest.num_samples)[:num])
    location = Location.of(where)
    tiles = list(_tiles(location, split, manifest, chosen, scratch))
    choice = f"the first {num:,}" if seed is None else f"{num:,} chosen with seed {seed}"
    subtitle = (
        f"images: {manifest.num_samples:,}; classes: {len(manifest.classes):,}; "
        f"shards: {len(manifest.shards):,}; shown: {choice}"
    )
    place = location.url or ", ".join(location.patterns(split))
    rows = grid(tiles, _COLUMNS)
    return draw_sheet(rows, title=f"{place}  {split}", subtitle=subtitle, tile_px=_TILE_PX)


def stored_tile(reader: Reader, i: int, manifest: Manifest, size: int) -> Tile:
    """Make a tile of a stored image with its classes, or with the reason why it is unusable.

    Args:
        size: width and height in pixels that the image is fitted to.
    """
    try:
        image = fit_image(to_mode(load_image(reader.image(i)), "RGB"), size)
        labels = manifest.parse_labels(reader.label_bytes(i))
    except (BadSample, BadLabelError) as error:
        return Tile(None, f"{reader.key(i)}: {error}")
    return Tile(image, ", ".join(manifest.classes[label] for label in labels) or reader.key(i))


def _tiles(
    location: Location, split: str, manifest: Manifest, samples: Ints, scratch: str | None
) -> Iterator[Tile]:
    shards, indices = locate(np.cumsum(manifest.shards.num_samples), samples)
    for number in np.unique(shards).tolist():
        shard = manifest.shards[number]
        url = location.shard_url(split, shard.name)
        with open_shard(url, shard, manifest.rule, scratch) as reader:
            for i in indices[shards == number].tolist():
                yield stored_tile(reader, i, manifest, _TILE_PX)
