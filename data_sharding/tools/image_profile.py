"""Profile some images of a data set by their pixels: sizes, formats, and whether there is colour.

Grey images stored as colour images are still grey.
"""

import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from statistics import median_high
from typing import IO, NamedTuple

import numpy as np
from PIL import Image

from data_sharding.errors import BadSample
from data_sharding.format.image_profile import ImageProfile
from data_sharding.format.location import Location
from data_sharding.format.manifest import Manifest
from data_sharding.format.sample_rule import SampleRule
from data_sharding.image.open_image import detect_format, open_image, to_mode
from data_sharding.io import filesystem

_NUM_SHARDS, _NUM_IMAGES = 4, 32
_MAX_BYTES = 1 << 26  # larger files are skipped
_DRAFT_PX = 256  # JPEGs are decoded at about this size
_GREY_TOLERANCE = 16  # of 255 between two channels of a pixel


class _Image(NamedTuple):
    size: tuple[int, int]  # width and height in pixels
    image_format: str
    has_colours: bool


def with_profile(where: str | Location, split: str, manifest: Manifest) -> Manifest:
    """Return a manifest that records what the images of its split are, if they can be read."""
    return replace(manifest, images=profile_images(where, split, manifest))


def profile_images(where: str | Location, split: str, manifest: Manifest) -> ImageProfile | None:
    """Profile the first images of some shards of a split; None if none of them can be read."""
    table = manifest.shards
    chosen = np.unique(np.linspace(0, len(table) - 1, _NUM_SHARDS).astype(int)).tolist()
    images = list[_Image]()
    for i in chosen:
        shard_url = Location.of(where).shard_url(split, table[i].name)
        images += _inspect_some(shard_url, manifest.rule, _NUM_IMAGES // len(chosen))
    if not images:
        return None
    return ImageProfile(
        len(images),
        sum(image.has_colours for image in images),
        _range([image.size[0] for image in images]),
        _range([image.size[1] for image in images]),
        dict(Counter(image.image_format for image in images)),
    )


def _range(values: list[int]) -> tuple[int, int, int]:
    return min(values), median_high(values), max(values)


def _inspect_some(shard_url: str, rule: SampleRule, num: int) -> Iterator[_Image]:
    """Yield the properties of a shard's first images."""
    try:
        fs, path = filesystem.store_of(shard_url)
        with fs.open(path, "rb") as file:
            for data in islice(_image_files(file, rule), num):
                try:
                    image = open_image(data)
                    size = image.size
                    image.draft(image.mode, (_DRAFT_PX, _DRAFT_PX))
                    yield _Image(size, detect_format(image), _has_colours(image))
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
