"""Profile some images of a data set by their pixels: sizes, and whether there is colour.

No manifest records this, and grey images stored as colour images are still grey.
"""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import IO

import numpy as np
from PIL import Image

from data_sharding.errors import BadSample
from data_sharding.format.location import Location
from data_sharding.format.manifest import Manifest
from data_sharding.format.sample_rule import SampleRule
from data_sharding.image.open_image import open_image, to_mode
from data_sharding.io import filesystem

_NUM_SHARDS, _NUM_IMAGES = 4, 32
_MAX_BYTES = 1 << 26  # larger files are skipped
_DRAFT_PX = 256  # JPEGs are decoded at about this size
_GREY_TOLERANCE = 16  # of 255 between two channels of a pixel


@dataclass(frozen=True)
class ImageProfile:
    """The sizes are (width, height) in pixels."""

    num_seen: int
    num_coloured: int
    sizes: frozenset[tuple[int, int]]


def profile_images(where: str | Location, split: str, manifest: Manifest) -> ImageProfile | None:
    """Profile the first images of some shards of a split; None if none of them can be read."""
    table = manifest.shards
    chosen = np.unique(np.linspace(0, len(table) - 1, _NUM_SHARDS).astype(int)).tolist()
    images = list[tuple[tuple[int, int], bool]]()
    for i in chosen:
        shard_url = Location.of(where).shard_url(split, table[i].name)
        images += _sizes_and_colours(shard_url, manifest.rule, _NUM_IMAGES // len(chosen))
    if not images:
        return None
    sizes, coloured = zip(*images, strict=True)
    return ImageProfile(len(images), sum(coloured), frozenset(sizes))


def _sizes_and_colours(
    shard_url: str, rule: SampleRule, num: int
) -> Iterator[tuple[tuple[int, int], bool]]:
    """Yield the sizes of a shard's first images, and whether they have colours."""
    try:
        fs, path = filesystem.store_of(shard_url)
        with fs.open(path, "rb") as file:
            for data in islice(_image_files(file, rule), num):
                try:
                    image = open_image(data)
                    size = image.size
                    image.draft(image.mode, (_DRAFT_PX, _DRAFT_PX))
                    yield size, _has_colours(image)
                except (BadSample, OSError, ValueError):
                    continue
    except Exception:  # stores and tarfile raise many kinds; the profile is of what can be read
        return


def _image_files(file: IO[bytes], rule: SampleRule) -> Iterator[bytes]:
    with tarfile.open(fileobj=file, mode="r|", encoding="utf-8") as tar:
        for member in tar:
            name = member.name.rpartition("/")[2].lower()
            extension = name.rpartition(".")[2] if rule.image is None else name.partition(".")[2]
            is_image = extension in rule.image_ranks
            if is_image and member.isreg() and member.size <= _MAX_BYTES:
                content = tar.extractfile(member)
                assert content is not None
                yield content.read()


def _has_colours(image: Image.Image) -> bool:
    pixels = np.asarray(to_mode(image, "RGB"), dtype=np.int16)
    return bool((pixels.max(axis=2) - pixels.min(axis=2)).max() > _GREY_TOLERANCE)
