"""The header of a JPEG, and how to stop its decoder below a crop.

Layout and markers: ITU-T T.81, annex B.
"""

from typing import NamedTuple

_START, _END = b"\xff\xd8", b"\xff\xd9"
_SEQUENTIAL = (0xC0, 0xC1)  # start of a frame: baseline, extended; Huffman coded both
_START_OF_SCAN = 0xDA
_NO_FRAMES = (0xC4, 0xC8, 0xCC)  # the other markers from C0 to CF start a frame


class JpegHeader(NamedTuple):
    """What the frame says, and where its height is written."""

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
    if data[:2] != _START or data[-2:] != _END:
        return None
    position, header = 2, None
    try:
        while True:
            if data[position] != 0xFF:
                return None
            marker = data[position + 1]
            if marker == _START_OF_SCAN:
                whole = header is not None and data[position + 4] == header.num_components
                return header if whole else None
            if marker in _SEQUENTIAL:
                header = _read_frame(data, position)
            if marker == 0xFF:  # a fill byte
                position += 1
            elif 0xC0 <= marker <= 0xCF and marker not in _NO_FRAMES and header is None:
                return None
            else:
                position += 2 + (data[position + 2] << 8 | data[position + 3])
    except IndexError:
        return None


def cut_below(data: memoryview, header: JpegHeader, bottom: int) -> bytearray | memoryview:
    """Return the image with its height lowered, so that no decoder works on rows below `bottom`.

    Two bytes are changed. One row of units is kept below, since chroma is interpolated from there,
    so pixels above `bottom` stay the same.

    Args:
        bottom: in pixels, counted from the top.
    """
    rows = -(-bottom // header.mcu_height) + 1
    height = rows * header.mcu_height
    if height >= header.height:
        return data
    cut = bytearray(data)
    cut[header.height_offset : header.height_offset + 2] = height.to_bytes(2, "big")
    return cut


def _read_frame(data: memoryview, position: int) -> JpegHeader | None:
    precision, num_components = data[position + 4], data[position + 9]
    height = data[position + 5] << 8 | data[position + 6]
    width = data[position + 7] << 8 | data[position + 8]
    if precision != 8 or num_components not in (1, 3) or not height or not width:
        return None
    sampling = (data[position + 11 + 3 * i] & 15 for i in range(num_components))
    mcu_height = 8 * max(sampling) if num_components > 1 else 8
    return JpegHeader(width, height, num_components, mcu_height, position + 5)
