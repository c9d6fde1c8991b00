"""Find out what kind of file an image is, by its content, and whether all of it can be decoded.

A JPEG whose scan was cut and closed, or has a flipped bit or zeros in its middle, can be decoded,
with areas that are grey or wrong. The decoder knows: libjpeg warns. Where images are not to be
decoded, JPEG, PNG and WebP are checked for their end, and other formats, which are rare, are
decoded all the same: nothing cheaper shows whether they are complete.
"""

from typing import NamedTuple, cast

import simplejpeg
from PIL import Image

from data_sharding.errors import BadSample
from data_sharding.format.image_formats import EXTENSIONS
from data_sharding.image import jpeg
from data_sharding.image.open_image import (
    detect_format,
    load_image,
    open_image,
    orientation,
    stored_size,
    to_mode,
    undecodable,
)

_WITH_END_CHECK = ("JPEG", "PNG", "WEBP")
_DARK = 64  # of 255


class ImageInfo(NamedTuple):
    """The properties of an image file."""

    extension: str  # by its content; its own if that fits
    width: int  # pixels, as it is stored
    height: int
    rules: tuple[str, ...]  # those of quality_report.RULES that apply
    damage: str | None = None  # tolerated by decoders


def inspect_image(data: bytes, extension: str, *, decode: bool = True) -> ImageInfo:
    """Inspect an image file.

    Args:
        extension: extension of its name, in lower case.
        decode: decode all of it, which finds all that training could not read, and damage.

    Raises:
        BadSample: it is empty, of no known format, cannot be decoded, or has more than MAX_PIXELS
            pixels.
    """
    if not data:
        raise BadSample("is empty")
    if data.startswith(jpeg.START) and data.rfind(jpeg.END, jpeg.scan_offset(memoryview(data))) < 0:
        raise BadSample("is truncated: it is a JPEG without its end")
    image = open_image(data)
    image_format = detect_format(image)
    if image_format == "PNG" and data.rfind(b"IEND") < 0:
        raise BadSample("is truncated: it is a PNG without its end")
    if image_format == "WEBP" and 8 + int.from_bytes(data[4:8], "little") > len(data) + 1:
        raise BadSample("is truncated: it is a WebP shorter than its header says")
    rules = _rules_of(image, image_format, data)
    damage = find_damage(data) if decode or image_format not in _WITH_END_CHECK else None
    if extension not in EXTENSIONS[image_format]:
        extension, rules = EXTENSIONS[image_format][0], (*rules, "wrong_extension")
    return ImageInfo(extension, *stored_size(image), rules, damage)


def find_damage(data: bytes | memoryview) -> str | None:
    """Decode all of an image, and return what is damaged although it can be decoded.

    Raises:
        BadSample: it cannot be decoded, so training cannot read it.
    """
    image = open_image(data)  # refuses images that are too large
    warning, is_decoded = None, False
    if detect_format(image) == "JPEG":
        warning, is_decoded = _decode_jpeg(memoryview(data))
    is_ordinary = is_decoded and jpeg.read_header(memoryview(data)) is not None
    if warning or not is_ordinary:  # training decodes it with Pillow, as it does all grey images
        to_mode(load_image(data), "RGB")
    if image.format == "PNG":  # its decoder does not look at all checksums
        try:
            image.verify()
        except Exception as error:  # decoders raise anything on hostile bytes
            return str(error)
    return warning


def _decode_jpeg(data: memoryview) -> tuple[str | None, bool]:
    """Return TurboJPEG's first warning, and whether it can decode the image."""
    warning = None
    for strict in (True, False):
        try:  # the entropy-coded data, and the mean of each block only: no transform is needed
            simplejpeg.decode_jpeg(data, "GRAY", min_height=1, min_width=1, strict=strict)
        except ValueError as error:
            warning = str(error)
        else:
            return warning, True
    return None, False


def _rules_of(image: Image.Image, image_format: str, data: bytes) -> tuple[str, ...]:
    is_16_bit = image.mode[0] in "IF" or ";16" in repr(getattr(image, "tile", ""))
    rules = {
        "exif_orientation": 2 <= orientation(image) <= 8,
        "cmyk": image.mode == "CMYK",
        "progressive": image_format == "JPEG" and "progressive" in image.info,
        "palette": image.mode in ("P", "PA"),
        "alpha": image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info,
        "16_bit": is_16_bit,
        "few_levels": is_16_bit and _is_dark(data),
        "animated": image_format != "JPEG" and _is_animated(image),
    }
    return tuple(rule for rule, applies in rules.items() if applies)


def _is_dark(data: bytes) -> bool:
    """Check whether nothing is brighter than a quarter of white: 16 bits that use 14 or fewer."""
    _, brightest = to_mode(load_image(data), "L").getextrema()
    return cast("int", brightest) < _DARK


def _is_animated(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception as error:  # decoders raise anything on hostile bytes
        raise undecodable(error) from error
