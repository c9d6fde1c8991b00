"""What kind of file an image is, found by its content and without decoding it where that suffices.

A JPEG's header is walked here, in some ten microseconds; PNG and WebP are opened by Pillow, which
reads only the header. The rest is rare and decoded: nothing cheaper tells whether it is whole.

JPEG's layout and markers: ITU-T T.81, annex B. EXIF: CIPA DC-008, section 4.6.
"""

import struct
from typing import NamedTuple

from PIL import Image

from data_sharding.images import MAX_PIXELS, load_image, open_image
from data_sharding.shard import BadSample

_EXTENSIONS = {
    "AVIF": ("avif",),
    "BMP": ("bmp",),
    "GIF": ("gif",),
    "JPEG": ("jpg", "jpeg"),
    "PNG": ("png",),
    "PPM": ("ppm", "pgm"),
    "TIFF": ("tif", "tiff"),
    "WEBP": ("webp",),
}

_START, _END = b"\xff\xd8", b"\xff\xd9"
_EXIF = b"Exif\0\0"
_SEQUENTIAL, _PROGRESSIVE = (0xC0, 0xC1), 0xC2  # starts of a frame, Huffman coded
_START_OF_SCAN, _APP1, _FILL = 0xDA, 0xE1, 0xFF
_TABLES = (0xC4, 0xCC)  # the markers from C0 to CF that start no frame
_WITHOUT_LENGTH = (0x00, 0x01, *range(0xD0, 0xDA))
_ORIENTATION = 0x0112


class Look(NamedTuple):
    """What a look at an image found."""

    extension: str  # of what it is, whatever its name says
    width: int  # pixels, as it is stored
    height: int
    rules: tuple[str, ...]  # that apply to it; see findings.RULES


class _Header(NamedTuple):
    width: int
    height: int
    num_components: int
    is_progressive: bool
    is_oriented: bool


def inspect(data: bytes, extension: str) -> Look:
    """Look at an image file.

    Args:
        extension: what its name says, in lower case.

    Raises:
        BadSample: it is empty, of no known kind, truncated, or has more than MAX_PIXELS pixels.
    """
    if not data:
        raise BadSample("is empty")
    look = _look_at_jpeg(data) or _look_with_pillow(data)
    if look.width * look.height > MAX_PIXELS:
        raise BadSample(
            f"is too large: {look.width} x {look.height} pixels, more than {MAX_PIXELS}"
        )
    accepted = next(names for names in _EXTENSIONS.values() if look.extension in names)
    if extension in accepted:
        return look._replace(extension=extension)
    return look._replace(rules=(*look.rules, "wrong_extension"))


def _look_at_jpeg(data: bytes) -> Look | None:
    """Look at an ordinary JPEG, or return None."""
    found = _walk(data)
    if found is None:
        return None
    header, scan = found
    _check_end_of_jpeg(data, scan)
    rules = {
        "exif_orientation": header.is_oriented,
        "cmyk": header.num_components == 4,
        "progressive": header.is_progressive,
    }
    applying = tuple(rule for rule, applies in rules.items() if applies)
    return Look("jpg", header.width, header.height, applying)


def _walk(data: bytes) -> tuple[_Header, int] | None:
    """Return what the markers before the first scan say, and where that begins."""
    if data[:2] != _START:
        return None
    position, frame, is_progressive, is_oriented = 2, None, False, False
    try:
        while True:
            marker = data[position + 1]
            if data[position] != 0xFF or marker in _WITHOUT_LENGTH:
                return None
            if marker == _START_OF_SCAN:
                break
            if marker == _FILL:
                position += 1
                continue
            end = position + 2 + (data[position + 2] << 8 | data[position + 3])
            if marker in _SEQUENTIAL or marker == _PROGRESSIVE:
                frame, is_progressive = data[position + 4 : end], marker == _PROGRESSIVE
            elif 0xC0 <= marker <= 0xCF and marker not in _TABLES:
                return None
            elif marker == _APP1 and data[position + 4 : position + 10] == _EXIF:
                is_oriented = _is_oriented(data[position + 10 : end])
            position = end
        precision, height, width, num_components = struct.unpack_from(">BHHB", frame or b"")
    except (IndexError, struct.error):
        return None
    if precision != 8 or num_components not in (1, 3, 4) or not width or not height:
        return None
    return _Header(width, height, num_components, is_progressive, is_oriented), position


def _check_end_of_jpeg(data: bytes, scan: int) -> None:
    """Raise BadSample if there is no end-of-image mark in or behind the scans.

    What follows the mark is padding, or whatever a phone has put there; decoders ignore it.
    """
    if data[-2:] != _END and data.rfind(_END, scan) < 0:
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


def _look_with_pillow(data: bytes) -> Look:
    image = open_image(data)
    image_format = "JPEG" if image.format == "MPO" else str(image.format)
    if image_format == "PNG" and data.rfind(b"IEND") < 0:
        raise BadSample("is truncated: it is a PNG without its end")
    if image_format == "WEBP" and 8 + int.from_bytes(data[4:8], "little") > len(data) + 1:
        raise BadSample("is truncated: it is a WebP shorter than it says")
    rules = _rules_of(image, image_format)
    if image_format == "JPEG":  # of a kind that few decoders know
        _check_end_of_jpeg(data, 0)
    if image_format not in ("PNG", "WEBP"):
        load_image(data)
    return Look(_EXTENSIONS[image_format][0], image.width, image.height, rules)


def _rules_of(image: Image.Image, image_format: str) -> tuple[str, ...]:
    exif = image.info.get("exif", b"").removeprefix(_EXIF)
    rules = {
        # Pillow turns TIFF and AVIF itself when it decodes them.
        "exif_orientation": image_format not in ("TIFF", "AVIF") and _is_oriented(exif),
        "cmyk": image.mode == "CMYK",
        "palette": image.mode in ("P", "PA"),
        "alpha": image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info,
        "16_bit": image.mode[0] in "IF" or ";16" in repr(getattr(image, "tile", "")),
        "animated": _is_animated(image),
    }
    return tuple(rule for rule, applies in rules.items() if applies)


def _is_animated(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception as error:  # decoders raise anything on hostile bytes
        raise BadSample(f"cannot be decoded: {type(error).__name__}: {error}") from error
