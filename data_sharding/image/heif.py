"""Convert HEIC and HEIF photographs to JPEGs, which every reader of shards knows.

pillow-heif decodes them, in 8 bits. A rotation of theirs is part of their container, and so every
decoder follows it; as of other images, colour profiles are ignored and the main frame is used.
"""

import importlib
from functools import cache
from importlib.util import find_spec
from io import BytesIO

from data_sharding.errors import BadSample
from data_sharding.format.image_formats import UNREAD_IMAGES
from data_sharding.image.open_image import MAX_PIXELS, is_grey, load_image, to_mode

_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"))  # not AVIF's
_MAX_BRANDS_BYTES = 256
_QUALITY = 95  # the loss is below that of the photographs' own


def can_read_heif() -> bool:
    """Return True if pillow-heif is installed."""
    return find_spec("pillow_heif") is not None


def is_heif(data: bytes) -> bool:
    """Check whether a file is HEIC or HEIF, by the brands that it begins with (ISO 14496-12)."""
    if data[4:8] != b"ftyp":
        return False
    end = min(int.from_bytes(data[:4], "big"), _MAX_BRANDS_BYTES)
    return any(data[start : start + 4] in _BRANDS for start in (8, *range(16, end, 4)))


def known_format(data: bytes, max_pixels: int = MAX_PIXELS) -> bytes:
    """Return the JPEG of a HEIC or HEIF photograph, and any other file as it is.

    Raises:
        BadSample: it cannot be decoded, has more than `max_pixels`, or pillow-heif is missing.
    """
    if not is_heif(data):
        return data
    if not can_read_heif():
        raise BadSample(f"cannot be decoded: {UNREAD_IMAGES['heic']}")
    _register()
    image = load_image(data, max_pixels, ("HEIF",))
    file = BytesIO()
    to_mode(image, "L" if is_grey(image) else "RGB").save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()


@cache
def _register() -> None:
    heif = importlib.import_module("pillow_heif")
    heif.register_heif_opener(thumbnails=False, decode_threads=1)  # one process a core
