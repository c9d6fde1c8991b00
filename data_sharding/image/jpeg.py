"""The header of a JPEG, and how to stop its decoder below a crop.

Layout and markers: ITU-T T.81, annex B.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

START, END = b"\xff\xd8", b"\xff\xd9"  # of the image
SEQUENTIAL, PROGRESSIVE = (0xC0, 0xC1), 0xC2
HUFFMAN_CODED = (*SEQUENTIAL, PROGRESSIVE)
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # all that start a frame
START_OF_SCAN, APP1 = 0xDA, 0xE1

_FILL = 0xFF
_WITHOUT_LENGTH = (0x00, 0x01, *range(0xD0, 0xDA))
_FRAME = struct.Struct(">BHHB")  # precision, height, width, components


class Segment(NamedTuple):
    """A marker and what belongs to it."""

    marker: int
    body: memoryview
    offset: int  # of the body, in bytes


class Frame(NamedTuple):
    """What a frame says of the image."""

    width: int
    height: int
    num_components: int


class JpegHeader(NamedTuple):
    """What cutting an image needs to know."""

    width: int
    height: int
    mcu_height: int  # pixels; a decoder works in rows of minimum coded units of this height
    height_offset: int  # of the two bytes that hold the height


def segments(data: memoryview) -> Iterator[Segment]:
    """Yield what comes before the first scan, and its start; it ends earlier where that is not."""
    if data[:2] != START:
        return
    position = 2
    try:
        while data[position] == 0xFF and (marker := data[position + 1]) not in _WITHOUT_LENGTH:
            if marker == _FILL:
                position += 1
                continue
            end = position + 2 + (data[position + 2] << 8 | data[position + 3])
            yield Segment(marker, data[position + 4 : end], position + 4)
            if marker == START_OF_SCAN:
                return
            position = end
    except IndexError:  # it is cut short
        return


def read_frame(body: memoryview) -> Frame | None:
    """Return what a frame says, or None if no common decoder would take it."""
    if len(body) < _FRAME.size:
        return None
    precision, height, width, num_components = _FRAME.unpack_from(body)
    if precision != 8 or num_components not in (1, 3, 4) or not height or not width:
        return None
    return Frame(width, height, num_components)


def read_header(data: memoryview) -> JpegHeader | None:
    """Return the header of an ordinary photograph, or None for whatever needs a closer look.

    Ordinary is: sequential Huffman coding, 8 bits, grey or three components in a single scan, and
    an end-of-image mark as its last bytes, without which the file may be truncated.
    """
    if data[-2:] != END:
        return None
    header, num_components = None, 0
    for marker, body, offset in segments(data):
        if marker in SEQUENTIAL:
            frame = read_frame(body)
            if frame is None or frame.num_components == 4:
                return None
            header, num_components = _header(frame, body, offset), frame.num_components
        elif marker in FRAMES:
            return None
        elif marker == START_OF_SCAN:
            return header if body[:1] == bytes([num_components]) else None
    return None


def cut_below(
    data: memoryview, header: JpegHeader, bottom: int
) -> tuple[bytearray | memoryview, int]:
    """Return the image with its height lowered, so that no decoder works on rows below `bottom`.

    Two bytes are changed. One row of units is kept below, since chroma is interpolated from there,
    so pixels above `bottom` stay the same.

    Args:
        bottom: in pixels, counted from the top.

    Returns:
        The image, and its height.
    """
    rows = -(-bottom // header.mcu_height) + 1
    height = rows * header.mcu_height
    if height >= header.height:
        return data, header.height
    cut = bytearray(data)
    cut[header.height_offset : header.height_offset + 2] = height.to_bytes(2, "big")
    return cut, height


def _header(frame: Frame, body: memoryview, offset: int) -> JpegHeader | None:
    sampling = body[7 : 7 + 3 * frame.num_components : 3]  # of each component, as 16 * h + v
    rows = max((byte & 15 for byte in sampling), default=0)
    if len(sampling) < frame.num_components or not rows:
        return None
    mcu_height = 8 * rows if frame.num_components > 1 else 8
    return JpegHeader(frame.width, frame.height, mcu_height, offset + 1)
