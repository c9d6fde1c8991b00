"""What kind of file an image is, found by its content, and whether all of it can be decoded.

A JPEG's header is walked here, in some ten microseconds; the rest is opened by Pillow. Where images
are not to be decoded, PNG and WebP are asked for their end, and the rest, which is rare, is decoded
all the same: nothing cheaper tells whether it is whole.

EXIF: CIPA DC-008, section 4.6.
"""

import struct
from typing import NamedTuple, cast

from PIL import Image

from data_sharding.errors import BadSample
from data_sharding.format.image_formats import EXTENSIONS
from data_sharding.format.shard_reader import TooLarge
from data_sharding.image import jpeg
from data_sharding.image.open_image import (
    MAX_PIXELS,
    detect_format,
    load_image,
    open_image,
    orientation,
    stored_size,
    to_mode,
)
from data_sharding.image.strict_decode import find_damage

_EXIF = b"Exif\0\0"
_ORIENTATION = 0x0112
_TELLING_THEIR_END = ("jpg", "png", "webp")
_DIM = 64  # of 255


class ImageInfo(NamedTuple):
    """What a look at an image found."""

    extension: str  # of what it is, whatever its name says
    width: int  # pixels, as it is stored
    height: int
    rules: tuple[str, ...]  # that apply to it; see findings.RULES
    damage: str | None = None  # that decoders put up with


def inspect_image(data: bytes, extension: str, *, decode: bool = True) -> ImageInfo:
    """Look at an image file.

    Args:
        extension: what its name says, in lower case.
        decode: decode all of it, which finds whatever training could not read, and damage.

    Raises:
        BadSample: it is empty, of no known kind, cannot be decoded, or has more than MAX_PIXELS
            pixels.
    """
    if not data:
        raise BadSample("is empty")
    look = _look_at_jpeg(data) or _look_with_pillow(data)
    if look.width * look.height > MAX_PIXELS:
        raise TooLarge(f"is too large: {look.width} x {look.height} pixels, more than {MAX_PIXELS}")
    if decode or look.extension not in _TELLING_THEIR_END:
        look = look._replace(damage=find_damage(data))
    accepted = next(names for names in EXTENSIONS.values() if look.extension in names)
    if extension in accepted:
        return look._replace(extension=extension)
    return look._replace(rules=(*look.rules, "wrong_extension"))


def _look_at_jpeg(data: bytes) -> ImageInfo | None:
    """Look at an ordinary JPEG, or return None."""
    frame, is_progressive, is_oriented = None, False, False
    for segment in jpeg.segments(memoryview(data)):
        if segment.marker in jpeg.HUFFMAN_CODED:
            frame = jpeg.read_frame(segment.body)
            is_progressive = segment.marker == jpeg.PROGRESSIVE
        elif segment.marker in jpeg.FRAMES:
            return None
        elif segment.marker == jpeg.APP1 and segment.body[:6] == _EXIF:
            is_oriented = _is_oriented(bytes(segment.body[6:]))
        elif segment.marker == jpeg.START_OF_SCAN and frame:
            _check_end_of_jpeg(data, segment.offset)
            rules = {
                "exif_orientation": is_oriented,
                "cmyk": frame.num_components == 4,
                "progressive": is_progressive,
            }
            applying = tuple(rule for rule, applies in rules.items() if applies)
            return ImageInfo("jpg", frame.width, frame.height, applying)
    return None


def _check_end_of_jpeg(data: bytes, scan: int) -> None:
    """Raise BadSample if there is no end-of-image mark in or behind the scans.

    What follows the mark is padding, or whatever a phone has put there; decoders ignore it.
    """
    if data.rfind(jpeg.END, scan) < 0:
        raise BadSample("is truncated: it is a JPEG without its end")


def _is_oriented(exif: bytes) -> bool:
    """Return whether EXIF data asks for the image to be turned or mirrored."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2], "")
    if not order:
        return False
    try:
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        (num_entries,) = struct.unpack_from(f"{order}H", exif, start)
        for entry in range(start + 2, start + 2 + 12 * num_entries, 12):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", exif, entry)
            if tag == _ORIENTATION:
                return bool(2 <= value <= 8)
    except struct.error:
        pass
    return False


def _look_with_pillow(data: bytes) -> ImageInfo:
    image = open_image(data)
    image_format = detect_format(image)
    if image_format == "PNG" and data.rfind(b"IEND") < 0:
        raise BadSample("is truncated: it is a PNG without its end")
    if image_format == "WEBP" and 8 + int.from_bytes(data[4:8], "little") > len(data) + 1:
        raise BadSample("is truncated: it is a WebP shorter than it says")
    if image_format == "JPEG":  # of a kind that few decoders know
        _check_end_of_jpeg(data, 0)
    return ImageInfo(EXTENSIONS[image_format][0], *stored_size(image), _rules_of(image, data))


def _rules_of(image: Image.Image, data: bytes) -> tuple[str, ...]:
    is_deep = image.mode[0] in "IF" or ";16" in repr(getattr(image, "tile", ""))
    rules = {
        "exif_orientation": 2 <= orientation(image) <= 8,
        "cmyk": image.mode == "CMYK",
        "palette": image.mode in ("P", "PA"),
        "alpha": image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info,
        "16_bit": is_deep,
        "few_levels": is_deep and _is_dim(data),
        "animated": _is_animated(image),
    }
    return tuple(rule for rule, applies in rules.items() if applies)


def _is_dim(data: bytes) -> bool:
    """Return whether nothing is brighter than a quarter of white: 16 bits that hold 14 or fewer."""
    _, brightest = to_mode(load_image(data), "L").getextrema()
    return cast("int", brightest) < _DIM


def _is_animated(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception as error:  # decoders raise anything on hostile bytes
        raise BadSample(f"cannot be decoded: {type(error).__name__}: {error}") from error
