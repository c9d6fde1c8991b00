"""Greys of more than 8 bits, on the scale of 8: integers by what their file says, floats by range.

Pillow would clip them: 16 bits to white, floating point from 0 to 1 to black.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from data_sharding.errors import BadSample

_BITS_PER_SAMPLE = ExifTags.Base.BitsPerSample
_PHOTOMETRIC, _WHITE_IS_ZERO = ExifTags.Base.PhotometricInterpretation, 0
_SLACK = 0.1  # of white: so far a filter may have gone beyond it, or below black
_DIM = 16  # floats that end between 1 and this are on neither scale


def is_high_bit_depth(image: Image.Image) -> bool:
    """Return whether an image is grey with more than 8 bits, as Pillow has it in memory."""
    return image.mode[0] in "IF"


def to_8_bits(image: Image.Image) -> Image.Image:
    """Return a deep image as one of 8 bits (mode L), white at 255.

    Raises:
        BadSample: its values are on no known scale.
    """
    values, tags = np.asarray(image), getattr(image, "tag_v2", {})
    grey = _of_floats(values) if image.mode == "F" else _of_integers(values, _num_bits(tags))
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # Pillow turns these itself up to 8 bits
        grey = 255 - grey
    return Image.fromarray(grey)


def widen(image: Image.Image, num_bits: int) -> Image.Image | None:
    """Return an image of which fewer bits are used than it has as one that uses all 16.

    None where it has floats, or says itself how many bits it has.

    Raises:
        BadSample: more bits are used.
    """
    values, tags = np.asarray(image), getattr(image, "tag_v2", {})
    if image.mode == "F" or _num_bits(tags) < 16:
        return None
    white = (1 << num_bits) - 1
    _check(values, 0, white, f"0 to {white}, by --bit-depth {num_bits}")
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        values = white - values
    return Image.fromarray((values << (16 - num_bits)).astype(np.uint16))


def _num_bits(tags: Mapping[int, tuple[int, ...]]) -> int:
    """Return how many bits a value has: 16, unless a TIFF says fewer; 32 are taken for 16."""
    return min(16, *tags.get(_BITS_PER_SAMPLE, (16,)))


def _of_integers(values: NDArray[np.integer], num_bits: int) -> NDArray[np.uint8]:
    white = (1 << num_bits) - 1
    _check(values, 0, white, f"0 to {white}")
    return (values >> (num_bits - 8)).astype(np.uint8)


def _of_floats(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Return greys of 0 to 1, or of 0 to 255: the brightest value tells which."""
    white = 1 if values.max() < _DIM else 255
    _check(values, -_SLACK * white, (1 + _SLACK) * white, "0 to 1, and 0 to 255")
    grey: NDArray[np.uint8] = np.rint(values * (255 / white)).clip(0, 255).astype(np.uint8)
    return grey


def _check(values: NDArray[np.number], low: float, high: float, known: str) -> None:
    if not low <= values.min() <= values.max() <= high:  # false for what is not a number
        raise BadSample(f"has values from {values.min():g} to {values.max():g}: known are {known}")
