"""Convert grey images of more than 8 bits: integers by the bits in their header, floats by range.

Pillow would clip them: 16 bits to white, floating point from 0 to 1 to black.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from data_sharding.errors import BadSample

_BITS_PER_SAMPLE = ExifTags.Base.BitsPerSample
_PHOTOMETRIC, _WHITE_IS_ZERO = ExifTags.Base.PhotometricInterpretation, 0
_TOLERANCE = 0.1  # of white, for filters that overshoot
_MAX_OF_UNIT_SCALE = 16  # a higher maximum means floats from 0 to 255


def is_high_bit_depth(image: Image.Image) -> bool:
    """Return True if an image is grey with more than 8 bits in Pillow's memory."""
    return image.mode[0] in "IF"


def to_8_bits(image: Image.Image) -> Image.Image:
    """Convert such an image to mode L."""
    values, tags = np.asarray(image), getattr(image, "tag_v2", {})
    if image.mode == "F":
        white = 1 if values.max() < _MAX_OF_UNIT_SCALE else 255
        low, high = -_TOLERANCE * white, (1 + _TOLERANCE) * white
        _check_range(values, low, high, "0 to 1, and 0 to 255")
        grey = np.rint(values * (255 / white)).clip(0, 255).astype(np.uint8)
    else:
        num_bits = _num_bits(tags)
        white = (1 << num_bits) - 1
        _check_range(values, 0, white, f"0 to {white}")
        grey = (values >> (num_bits - 8)).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # Pillow inverts only up to 8 bits
        grey = 255 - grey
    return Image.fromarray(grey)


def widen(image: Image.Image, num_bits: int) -> Image.Image | None:
    """Scale an image that uses only `num_bits` bits to all 16.

    Returns:
        The image; None if it has floats, or its header has the number of bits.

    Raises:
        BadSample: it uses more bits.
    """
    values, tags = np.asarray(image), getattr(image, "tag_v2", {})
    if image.mode == "F" or _num_bits(tags) < 16:
        return None
    white = (1 << num_bits) - 1
    _check_range(values, 0, white, f"0 to {white}, by `bit_depth` {num_bits}")
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        values = white - values
    return Image.fromarray((values << (16 - num_bits)).astype(np.uint16))


def _num_bits(tags: Mapping[int, tuple[int, ...]]) -> int:
    """Return the bits of a value: 16, or fewer by a TIFF's header; 32 count as 16."""
    return min(16, *tags.get(_BITS_PER_SAMPLE, (16,)))


def _check_range(values: NDArray[np.number], low: float, high: float, known: str) -> None:
    if not low <= values.min() <= values.max() <= high:  # also if there are NaNs
        raise BadSample(f"has values from {values.min():g} to {values.max():g}: known are {known}")
