"""Stored images of a split on a contact sheet: what training would read, before any view of it."""

from collections.abc import Iterator

import numpy as np
from PIL import Image

from data_sharding.errors import BadLabelError, BadSample
from data_sharding.format.manifest import Manifest
from data_sharding.image.contact_sheet import Tile, draw_sheet, fit_image, grid
from data_sharding.image.open_image import load_image, to_mode
from data_sharding.io import filesystem
from data_sharding.rng import permutation
from data_sharding.storage.shard_store import Reader
from data_sharding.tools.local_copy import open_shard

_TILE_PX, _COLUMNS = 160, 8  # 160: digits and CIFAR fill it exactly


def preview(
    url: str, split: str, manifest: Manifest, *, num: int, seed: int | None, scratch: str | None
) -> Image.Image:
    """Return a sheet of images with their classes.

    Args:
        seed: of a fair draw from the whole split; None takes the first images.
        scratch: the directory for copies of remote shards.

    Raises:
        DataError: a shard cannot be read.
    """
    num = min(num, manifest.num_samples)
    chosen = np.arange(num)
    if seed is not None:
        chosen = np.sort(permutation(seed, "preview", manifest.num_samples)[:num])
    tiles = list(_tiles(url, split, manifest, chosen.tolist(), scratch))
    which = f"the first {num:,}" if seed is None else f"{num:,} drawn with seed {seed}"
    subtitle = (
        f"images: {manifest.num_samples:,}; classes: {len(manifest.classes):,}; "
        f"shards: {len(manifest.shards):,}; shown: {which}"
    )
    rows = grid(tiles, _COLUMNS)
    return draw_sheet(rows, title=f"{url}  {split}", subtitle=subtitle, tile_px=_TILE_PX)


def stored_tile(reader: Reader, i: int, manifest: Manifest, size: int) -> Tile:
    """Return a stored image with its classes, or why it cannot be used.

    Args:
        size: width and height in pixels that it is to fit.
    """
    numbers = {name: number for number, name in enumerate(manifest.classes)}
    try:
        image = fit_image(to_mode(load_image(reader.image(i)), "RGB"), size)
        labels = manifest.labels.parse(reader.label_bytes(i), numbers)
    except (BadSample, BadLabelError) as error:
        return Tile(None, f"{reader.key(i)}: {error}")
    return Tile(image, ", ".join(manifest.classes[label] for label in labels) or reader.key(i))


def _tiles(
    url: str, split: str, manifest: Manifest, chosen: list[int], scratch: str | None
) -> Iterator[Tile]:
    waiting, first = chosen, 0
    for shard in manifest.shards:
        here = [i - first for i in waiting if i < first + shard.num_samples]
        waiting, first = waiting[len(here) :], first + shard.num_samples
        if here:
            shard_url = filesystem.join(url, split, shard.name)
            with open_shard(shard_url, shard, manifest.labels, scratch) as reader:
                yield from (stored_tile(reader, i, manifest, _TILE_PX) for i in here)
        if not waiting:
            return
