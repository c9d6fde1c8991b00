"""Image files opened by Pillow, safely: known formats only, and no decompression bombs."""

import warnings
from io import BytesIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from data_sharding.formats import EXTENSIONS
from data_sharding.shard import BadSample

MAX_PIXELS = 89_478_485  # Pillow's own limit for a decompression bomb: 256 MiB of RGB


def open_image(data: bytes | memoryview) -> Image.Image:
    """Open an image by its content, never by its name; its pixels are not decoded yet.

    Raises:
        BadSample: it is of no known format, damaged, or has more than MAX_PIXELS pixels.
    """
    try:
        with warnings.catch_warnings():  # of bombs, which are checked here; of odd metadata
            warnings.simplefilter("ignore")
            image = Image.open(BytesIO(data), formats=tuple(EXTENSIONS))
    except UnidentifiedImageError as error:  # whose message is a memory address
        raise BadSample(f"is none of {', '.join(EXTENSIONS)}") from error
    except Image.DecompressionBombError as error:  # twice the limit below
        raise BadSample(f"is too large: {error}") from error
    except Exception as error:  # decoders raise anything on hostile bytes
        raise _undecodable(error) from error
    if image.width * image.height > MAX_PIXELS:
        raise BadSample(
            f"is too large: {image.width} x {image.height} pixels, more than {MAX_PIXELS}"
        )
    return image


def load_image(data: bytes | memoryview) -> Image.Image:
    """Open an image and decode all of its pixels.

    Raises:
        BadSample: it cannot be decoded.
    """
    image = open_image(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.load()
    except MemoryError:
        raise
    except Exception as error:
        raise _undecodable(error) from error
    return image


def convert(image: Image.Image, mode: str) -> Image.Image:
    """Convert to 8 bits a channel ("L" or "RGB"); transparency is dropped, not blended."""
    if image.mode.startswith("I"):  # 16-bit greys, which Pillow would clip to white
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    image.info.pop("transparency", None)  # of a palette: Pillow would warn that it is dropped
    return image.convert(mode)


def format_of(image: Image.Image) -> str:
    """Return the format of an opened image, as in formats.EXTENSIONS."""
    # Pillow calls a JPEG with more pictures behind the first, as some cameras make it, MPO.
    return "JPEG" if image.format == "MPO" else str(image.format)


def extension_of(data: bytes | memoryview) -> str:
    """Return the extension that suits an image's content; `jpg` for what nobody can open."""
    try:
        return EXTENSIONS[format_of(open_image(data))][0]
    except BadSample:
        return "jpg"


def _undecodable(error: Exception) -> BadSample:
    return BadSample(f"cannot be decoded: {type(error).__name__}: {error}")
