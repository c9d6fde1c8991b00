"""A JPEG cut below a crop shows the same crop; unusual ones are left to Pillow."""

import io

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_sharding.image.jpeg import cut_below, read_header

WIDTH, HEIGHT = 83, 131
RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def photograph(mode="RGB", **options):
    file = io.BytesIO()
    Image.fromarray(NOISE).convert(mode).save(file, "jpeg", quality=90, **options)
    return file.getvalue()


ORDINARY = {
    "4:4:4": photograph(subsampling=0),
    "4:2:2": photograph(subsampling=1),
    "4:2:0": photograph(subsampling=2),
    "grey": photograph("L"),
    "restart": photograph(restart_marker_rows=1),
    "exif": photograph(exif=b"Exif\0\0" + bytes(5000)),
}
HEIGHTS = {"4:4:4": 8, "4:2:2": 8, "4:2:0": 16, "grey": 8, "restart": 16, "exif": 16}


@pytest.mark.parametrize("kind", ORDINARY)
def test_headers_agree_with_pillow(kind):
    header = read_header(memoryview(ORDINARY[kind]))
    assert header is not None
    assert (header.width, header.height) == (WIDTH, HEIGHT)
    assert header.mcu_height == HEIGHTS[kind]


@settings(max_examples=200)
@given(st.sampled_from(sorted(ORDINARY)), st.integers(1, HEIGHT))
def test_pixels_above_the_cut_do_not_change(kind, bottom):
    data = memoryview(ORDINARY[kind])
    header = read_header(data)
    shorter, height = cut_below(data, header, bottom)
    cut = simplejpeg.decode_jpeg(shorter, "RGB", strict=False)
    assert len(cut) == height
    whole = simplejpeg.decode_jpeg(data, "RGB")
    assert np.array_equal(cut[:bottom], whole[:bottom])
    assert len(cut) <= bottom + 2 * header.mcu_height  # or nothing was saved


def test_the_original_is_not_changed():
    data = bytearray(ORDINARY["4:2:0"])
    before = bytes(data)
    cut_below(memoryview(data), read_header(memoryview(data)), 5)
    assert data == before


@pytest.mark.parametrize(
    "data",
    [
        photograph(progressive=True),
        photograph("CMYK"),
        ORDINARY["4:2:0"][:-2],  # no end mark: it may be cut in half
        ORDINARY["4:2:0"][: len(ORDINARY["4:2:0"]) // 2],
        ORDINARY["4:2:0"] + b"behind the end",
        b"",
        b"\xff\xd8\xff\xd9",
        b"\xff\xd8" + 100 * b"\xff" + b"\xff\xd9",
        b"\xff\xd8\xff\xc0\x00\x03\xff\xd9",
        b"\x89PNG\r\n\x1a\n\xff\xd9",
    ],
)
def test_unusual_images_have_no_header(data):
    assert read_header(memoryview(data)) is None


@settings(max_examples=300)
@given(st.data())
def test_damage_raises_no_error(data):
    damaged = bytearray(ORDINARY["exif"])
    for _ in range(data.draw(st.integers(1, 5))):
        place = data.draw(st.integers(0, 700) | st.integers(5000, len(damaged) - 1))
        damaged[place] = data.draw(st.integers(0, 255))
    header = read_header(memoryview(damaged))
    if header is not None:
        assert header.width > 0
        cut_below(memoryview(damaged), header, 1)
