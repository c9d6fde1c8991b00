"""Open image files with Pillow, safely: known formats only, and no decompression bombs.

In every format, wherever an image is decoded, its pixels are taken as they are stored. Orientation
tags and colour profiles are ignored, as in the reference ImageNet pipelines, torchvision's and
timm's. Transparency is dropped, and of several frames the first is used.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO

from PIL import ExifTags, Image, UnidentifiedImageError

from data_sharding.errors import BadSample
from data_sharding.format.image_formats import EXTENSIONS
from data_sharding.format.shard_reader import TooLarge
from data_sharding.image.high_bit_depth import is_high_bit_depth, to_8_bits

MAX_PIXELS = 89_478_485  # Pillow's own limit for a decompression bomb: 256 MiB of RGB
FORMATS = tuple(EXTENSIONS)

_UNDO_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def open_image(
    data: bytes | memoryview, max_pixels: int = MAX_PIXELS, formats: tuple[str, ...] = FORMATS
) -> Image.Image:
    """Open an image by its content, never by its name; its pixels are not decoded yet.

    Raises:
        BadSample: it is of no known format, damaged, or has more than `max_pixels`.
    """
    try:
        with warnings.catch_warnings():  # about bombs, which are refused here, and odd metadata
            warnings.simplefilter("ignore")
            image = Image.open(BytesIO(data), formats=formats)
    except UnidentifiedImageError as error:  # whose message is a memory address
        raise BadSample(f"is none of {', '.join(formats)}") from error
    except Image.DecompressionBombError as error:  # above twice MAX_PIXELS
        raise TooLarge(f"is too large: {error}") from error
    except Exception as error:  # decoders raise anything on hostile bytes
        raise undecodable(error) from error
    if image.width * image.height > max_pixels:
        raise TooLarge(
            f"is too large: {image.width} x {image.height} pixels, more than {max_pixels}"
        )
    return image


def load_image(
    data: bytes | memoryview, max_pixels: int = MAX_PIXELS, formats: tuple[str, ...] = FORMATS
) -> Image.Image:
    """Open an image and decode all of its pixels, as they are stored.

    Raises:
        BadSample: it cannot be decoded, or has more than `max_pixels`.
    """
    with _pillow_limit(max_pixels), open_image(data, max_pixels, formats) as image:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                applied = orientation(image) if image.format == "TIFF" else 1  # by Pillow's load
                image.load()
        except MemoryError:
            raise
        except Exception as error:
            raise undecodable(error) from error
        if applied in _UNDO_ORIENTATION:  # in place, as Pillow applied it
            image.im = image.im.transpose(_UNDO_ORIENTATION[applied])
            image._size = image.im.size
    return image


@contextmanager
def _pillow_limit(max_pixels: int) -> Iterator[None]:
    """Let Pillow, which refuses more than twice its limit, open images of a higher one."""
    default = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = max(max_pixels, default or max_pixels)
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = default


def stored_size(image: Image.Image) -> tuple[int, int]:
    """Return width and height, as stored, of an image that is opened and not decoded yet."""
    is_rotated = image.format == "TIFF" and orientation(image) >= 5  # on load
    return (image.height, image.width) if is_rotated else image.size


def orientation(image: Image.Image) -> int:
    """Return EXIF's orientation of an opened image, from 1 (as stored) to 8."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a tag can hold anything
        return 1


def to_mode(image: Image.Image, mode: str) -> Image.Image:
    """Convert to 8 bits a channel ("L" or "RGB"); transparency is dropped, not blended.

    Raises:
        BadSample: its values are on no known scale, or Pillow cannot convert its mode.
    """
    if is_high_bit_depth(image):
        image = to_8_bits(image)
    image.info.pop("transparency", None)  # Pillow would warn that a palette's is dropped
    try:
        return image if image.mode == mode else image.convert(mode)
    except (ValueError, OSError) as error:
        raise undecodable(error) from error


def is_grey(image: Image.Image) -> bool:
    """Return True if an image has no colour channels."""
    return image.mode in ("1", "L", "LA") or is_high_bit_depth(image)


def detect_format(image: Image.Image) -> str:
    """Return the format of an opened image, a key of `image_formats.EXTENSIONS`."""
    # MPO is Pillow's name for JPEGs with more than one image, which some cameras make.
    return "JPEG" if image.format == "MPO" else str(image.format)


def extension_of(data: bytes | memoryview) -> str:
    """Return the extension that fits an image's content; `jpg` if it cannot be opened."""
    try:
        return EXTENSIONS[detect_format(open_image(data))][0]
    except BadSample:
        return "jpg"


def undecodable(error: Exception) -> BadSample:
    """Wrap the error of a decoder."""
    return BadSample(f"cannot be decoded: {type(error).__name__}: {error}")
