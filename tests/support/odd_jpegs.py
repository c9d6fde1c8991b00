"""JPEGs that Pillow does not write: any sampling factors, made of blocks of one colour each.

Baseline Huffman coding without AC coefficients (ITU-T T.81, annexes F and K.3): a block is its DC.
"""

import struct
from collections.abc import Sequence

Factors = Sequence[tuple[int, int]]  # horizontal and vertical, of each component

_NUM_CODES = (0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0)  # of 1 to 16 bits, K.3
_EOB = "0"  # the only code of the table for AC
_STEP = 16  # of quantisation, so that a level is 2 greys


def blocks(factors: Factors, width: int, height: int) -> bytes:
    """Return a JPEG whose first component is a ramp over the blocks, the others in the middle."""
    max_h, max_v = (max(column) for column in zip(*factors, strict=True))
    across, down = -(-width // (8 * max_h)), -(-height // (8 * max_v))
    bits, before = [], [0] * len(factors)
    for mcu in range(across * down):
        for component, (h, v) in enumerate(factors):
            for _ in range(h * v):
                level = -40 + 80 * mcu // (across * down) if component == 0 else 0
                bits.append(_dc(level - before[component]) + _EOB)
                before[component] = level
    return b"".join([
        b"\xff\xd8",
        _segment(0xDB, b"\0" + bytes([_STEP]) * 64),
        _segment(0xC0, _frame(factors, width, height)),
        _segment(0xC4, b"\0" + bytes(_NUM_CODES) + bytes(range(12))),
        _segment(0xC4, b"\x10" + bytes([1]) + bytes(15) + b"\0"),
        _segment(0xDA, _scan(len(factors))),
        _packed("".join(bits)),
        b"\xff\xd9",
    ])  # fmt: skip


def _segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def _frame(factors: Factors, width: int, height: int) -> bytes:
    of_components = (bytes([i, 16 * h + v, 0]) for i, (h, v) in enumerate(factors, start=1))
    return struct.pack(">BHHB", 8, height, width, len(factors)) + b"".join(of_components)


def _scan(num_components: int) -> bytes:
    ids = b"".join(bytes([i, 0]) for i in range(1, num_components + 1))
    return bytes([num_components]) + ids + b"\0\x3f\0"


def _dc(difference: int) -> str:
    """Return the code of a difference's size and its bits."""
    size = abs(difference).bit_length()
    code = _CODES[size]
    if not size:
        return code
    return code + format(
        difference if difference > 0 else difference + (1 << size) - 1, f"0{size}b"
    )


def _codes() -> list[str]:
    codes, code = list[str](), 0
    for length, num in enumerate(_NUM_CODES, start=1):
        for _ in range(num):
            codes.append(format(code, f"0{length}b"))
            code += 1
        code <<= 1
    return codes


_CODES = _codes()


def _packed(bits: str) -> bytes:
    bits += "1" * (-len(bits) % 8)
    data = bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))
    return data.replace(b"\xff", b"\xff\0")
