"""A glimpse of a data set: what some of its images are, by their pixels.

No manifest says it, and grey images stored as colours are grey all the same.
"""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import IO

import numpy as np
from PIL import Image

from data_sharding.errors import BadSample
from data_sharding.format.image_formats import IMAGE_EXTENSIONS
from data_sharding.format.manifest import Manifest, ShardInfo
from data_sharding.image.open_image import open_image, to_mode
from data_sharding.io import filesystem

_SHARDS, _IMAGES = 4, 32
_MAX_BYTES = 1 << 26  # of a file; larger ones are passed over
_LOOK_PX = 256  # JPEGs are decoded at about this size
_GREY_TOLERANCE = 16  # of 255 between two colours of a pixel


@dataclass(frozen=True)
class ImageProfile:
    """What was seen. The sizes are (width, height) in pixels."""

    num_seen: int
    num_coloured: int
    sizes: frozenset[tuple[int, int]]


def profile_images(url: str, split: str, manifest: Manifest) -> ImageProfile | None:
    """Look at the first images of some shards of a split; None if none of them can be read."""
    table = manifest.shards
    chosen = np.unique(np.linspace(0, len(table) - 1, _SHARDS).astype(int)).tolist()
    num = _IMAGES // len(chosen)
    seen = [one for i in chosen for one in _images_of(url, split, table[i], num)]
    if not seen:
        return None
    coloured = sum(is_coloured for _, is_coloured in seen)
    return ImageProfile(len(seen), coloured, frozenset(size for size, _ in seen))


def _images_of(
    url: str, split: str, shard: ShardInfo, num: int
) -> list[tuple[tuple[int, int], bool]]:
    """Return size and whether there are colours of a shard's first images."""
    found = []
    try:
        fs, path = filesystem.store_of(filesystem.join(url, split, shard.name))
        with fs.open(path, "rb") as file:
            for data in islice(_image_files(file), num):
                try:
                    image = open_image(data)
                    size = image.size
                    image.draft(image.mode, (_LOOK_PX, _LOOK_PX))
                    found.append((size, _has_colours(image)))
                except (BadSample, OSError, ValueError):
                    continue  # what training does with it is another matter
    except Exception:  # every store, and tarfile, raises its own kinds
        return found
    return found


def _image_files(file: IO[bytes]) -> Iterator[bytes]:
    with tarfile.open(fileobj=file, mode="r|", encoding="utf-8") as tar:
        for member in tar:
            is_image = member.name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS
            if is_image and member.isreg() and member.size <= _MAX_BYTES:
                content = tar.extractfile(member)
                assert content is not None
                yield content.read()


def _has_colours(image: Image.Image) -> bool:
    pixels = np.asarray(to_mode(image, "RGB"), dtype=np.int16)
    return bool((pixels.max(axis=2) - pixels.min(axis=2)).max() > _GREY_TOLERANCE)
