"""Parse the header of a JPEG, and stop its decoder below a crop.

Layout and markers: ITU-T T.81, annex B.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

START, END = b"\xff\xd8", b"\xff\xd9"  # of the image

_SEQUENTIAL = (0xC0, 0xC1)
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # all that start a frame
_START_OF_SCAN, _FILL = 0xDA, 0xFF
_WITHOUT_LENGTH = (0x00, 0x01, *range(0xD0, 0xDA))
_FRAME = struct.Struct(">BHHB")  # precision, height, width, components


class JpegHeader(NamedTuple):
    """The properties of an image that cutting it needs."""

    width: int
    height: int
    num_components: int
    mcu_height: int  # pixels; a decoder works in rows of minimum coded units of this height
    height_offset: int  # of the two bytes that hold the height


def read_header(data: memoryview) -> JpegHeader | None:
    """Return the header of an ordinary photograph, or None for whatever needs a closer look.

    Ordinary is: sequential Huffman coding, 8 bits, grey or three components in a single scan, and
    an end-of-image mark as its last bytes, without which the file may be truncated.
    """
    if data[-2:] != END:
        return None
    header = None
    for marker, body, offset in _segments(data):
        if marker in _SEQUENTIAL:
            header = _read_frame(body, offset)
            if header is None:
                return None
        elif marker in _FRAMES:
            return None
        elif marker == _START_OF_SCAN and header is not None:
            return header if body[:1] == bytes([header.num_components]) else None
    return None


def scan_offset(data: memoryview) -> int:
    """Return the offset of the first scan in bytes; 0 if there is none."""
    return next((offset for marker, _, offset in _segments(data) if marker == _START_OF_SCAN), 0)


def cut_below(
    data: memoryview, header: JpegHeader, bottom: int
) -> tuple[bytearray | memoryview, int]:
    """Lower the height of an image, so that no decoder works on rows below `bottom`.

    Two bytes are changed. One row of units is kept below, since chroma is interpolated from there,
    so pixels above `bottom` stay the same.

    Args:
        bottom: row in pixels, counted from the top.

    Returns:
        The image, and its new height.
    """
    rows = -(-bottom // header.mcu_height) + 1
    height = rows * header.mcu_height
    if height >= header.height:
        return data, header.height
    cut = bytearray(data)
    cut[header.height_offset : header.height_offset + 2] = height.to_bytes(2, "big")
    return cut, height


class _Segment(NamedTuple):
    marker: int
    body: memoryview
    offset: int  # of the body, in bytes


def _segments(data: memoryview) -> Iterator[_Segment]:
    """Yield the segments up to the start of the first scan; stop where the header is broken."""
    if data[:2] != START:
        return
    position = 2
    try:
        while data[position] == 0xFF and (marker := data[position + 1]) not in _WITHOUT_LENGTH:
            if marker == _FILL:
                position += 1
                continue
            end = position + 2 + (data[position + 2] << 8 | data[position + 3])
            yield _Segment(marker, data[position + 4 : end], position + 4)
            if marker == _START_OF_SCAN:
                return
            position = end
    except IndexError:  # it is cut short
        return


def _read_frame(body: memoryview, offset: int) -> JpegHeader | None:
    if len(body) < _FRAME.size:
        return None
    precision, height, width, num_components = _FRAME.unpack_from(body)
    sampling = body[7 : 7 + 3 * num_components : 3]  # of each component, as 16 * h + v
    rows = max((byte & 15 for byte in sampling), default=0)
    if precision != 8 or num_components not in (1, 3) or len(sampling) < num_components:
        return None
    if not (height and width and rows):
        return None
    mcu_height = 8 * rows if num_components > 1 else 8
    return JpegHeader(width, height, num_components, mcu_height, offset + 1)
