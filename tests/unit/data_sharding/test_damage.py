"""Damage that decoders tolerate is named; training can read images without it."""

import base64
import itertools
import struct

import numpy as np
import pytest
from foreign_shards import encoded, jpeg, photo, png
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_jpegs import blocks

from data_sharding.errors import BadSample
from data_sharding.image.inspect import find_damage, inspect_image
from data_sharding.image.open_image import load_image, to_mode
from data_sharding.transforms.crops import CropSpec
from data_sharding.transforms.decode import decode, decode_whole

SIZE = (160, 120)
SOUND = encoded(photo(3, SIZE))
ARITHMETIC = base64.b64decode(  # photo(1, (48, 32)) by `cjpeg -arithmetic -quality 50`
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABALDA4MChAODQ4SERATGCgaGBYWGDEjJR0oOjM9PDkzODdASFxOQERXRTc4"
    "UG1RV19iZ2hnPk1xeXBkeFxlZ2P/2wBDARESEhgVGC8aGi9jQjhCY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2Nj"
    "Y2NjY2NjY2NjY2NjY2NjY2NjY2P/yQARCAAgADADASIAAhEBAxEB/8wACgAQEAUBEBEF/9oADAMBAAIRAxEAPwD/AHhw"
    "/wBkb4IUbDBOCoXhlSDJrdLtSty985A8dNjp64MiwT4TgJV5vqfb7P8AibAa28iU/wBTk7wCw44feH9RApoCt+2nVSNG"
    "Y2t5sFafw012EHZ+jMXqW8ASulWp6Aao/wDpEf8A0NR+PAkMIAj+QpjfgFH2DZh/1FA/zbmhYq0SAchKtoMXWdIGmFcA"
    "vR4acVNQ3v/Z"
)


def closed(data):
    """Cut a JPEG in the middle of its scan, and end it as if that were all."""
    return data[: len(data) // 2] + b"\xff\xd9"


def zeroed(data):
    return data[: len(data) // 2] + bytes(200) + data[len(data) // 2 + 200 :]


def trained_on(data, box=None, channels=3):
    """Return the pixels of a view, and the damage that decoding it met."""
    out = np.empty((1, 32, 32, channels), dtype=np.uint8)
    damage = decode(memoryview(data), lambda w, h: [CropSpec(box or (0, 0, w, h))], out)
    return out, damage


@pytest.mark.parametrize("damaged", [closed, zeroed])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
def test_damage_is_found_in_a_scan_with_an_end_mark(damaged, options):
    sound = encoded(photo(3, SIZE), **options)
    assert find_damage(sound) is None
    assert inspect_image(sound, "jpg").damage is None
    damage = find_damage(damaged(sound))
    assert damage
    assert inspect_image(damaged(sound), "jpg").damage == damage


@pytest.mark.parametrize("damaged", [closed, zeroed])
@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_damage_is_found_in_grey_and_cmyk(damaged, mode):
    sound = encoded(photo(3, SIZE, mode))
    assert find_damage(sound) is None
    assert find_damage(damaged(sound))


def test_training_reports_damage_where_it_decodes_all():
    pixels, damage = trained_on(closed(SOUND))
    assert damage
    assert trained_on(SOUND)[1] is None
    assert np.array_equal(pixels[0, :8], trained_on(SOUND)[0][0, :8])  # above the cut
    images, damage = decode_whole(memoryview(closed(SOUND)), lambda w, h: [(w, h)], 3)
    assert damage
    assert images[0].shape == (3, 120, 160)


def test_skipped_rows_are_no_damage():
    for bottom in (1, 30, 60, 90, 119):
        assert trained_on(SOUND, (0, 0, 160, bottom))[1] is None
    assert trained_on(zeroed(SOUND), (0, 0, 160, 20))[1] is None
    assert trained_on(closed(SOUND), (0, 0, 160, 90))[1]


def test_a_wrong_checksum_of_a_png_is_damage():
    sound = png(1)
    at = sound.index(b"IDAT")
    (length,) = struct.unpack(">I", sound[at - 4 : at])
    end = at + 4 + length
    broken = sound[:end] + bytes(4) + sound[end + 4 :]
    assert find_damage(sound) is None
    assert find_damage(broken)


FACTORS = [(1, 1), (2, 1), (1, 2), (2, 2), (4, 1), (1, 4)]
SAMPLINGS = [
    (y, cb, cr)
    for y, cb, cr in itertools.product(FACTORS, repeat=3)
    if sum(h * v for h, v in (y, cb, cr)) <= 10
]


@pytest.mark.parametrize("channels", [1, 3])
def test_all_decoders_agree_on_sampling_factors(channels):
    """TurboJPEG knows some of them, libjpeg more: 4:1:0 with odd chroma, say, and not 3:2."""
    num_read = 0
    for factors in SAMPLINGS:
        data = blocks(factors, 70, 50)
        try:
            expected = to_mode(load_image(data), "RGB" if channels == 3 else "L")
        except BadSample:
            with pytest.raises(BadSample):
                inspect_image(data, "jpg")
            with pytest.raises(BadSample):
                trained_on(data, channels=channels)
            continue
        num_read += 1
        assert inspect_image(data, "jpg").damage is None
        out = np.empty((1, 50, 50, channels), dtype=np.uint8)
        decode(memoryview(data), lambda w, h: [CropSpec((0, 0, 50, 50))], out)
        expected = np.asarray(expected.crop((0, 0, 50, 50))).reshape(50, 50, channels)
        assert np.abs(out[0] - expected.astype(int)).max() <= 1, factors
    assert num_read > 50


@pytest.mark.parametrize("data", [ARITHMETIC, ARITHMETIC + b"padding"])
def test_arithmetic_coding_is_no_damage(data):
    assert inspect_image(data, "jpg").damage is None
    out = np.empty((1, 32, 32, 3), dtype=np.uint8)
    assert decode(memoryview(data), lambda w, h: [CropSpec((0, 0, 32, 32))], out) is None
    assert np.abs(out[0] - np.asarray(photo(1, (48, 32)))[:, :32].astype(int)).mean() < 12


def test_all_decoders_refuse_twelve_bits():
    deep = jpeg(1).replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c")
    for read in find_damage, trained_on, load_image:
        with pytest.raises(BadSample):
            read(deep)


KINDS = {
    "baseline": SOUND,
    "4:4:4": encoded(photo(3, SIZE), subsampling="4:4:4"),
    "progressive": encoded(photo(3, SIZE), progressive=True),
    "restart": encoded(photo(3, SIZE), restart_marker_rows=1),
    "grey": encoded(photo(3, SIZE, "L")),
    "cmyk": encoded(photo(3, SIZE, "CMYK")),
    "odd": blocks([(1, 1), (1, 1), (2, 1)], 70, 50),
    "png": encoded(photo(3, SIZE), "png"),
    "webp": encoded(photo(3, SIZE), "webp"),
    "gif": encoded(photo(3, SIZE), "gif"),
}


@settings(max_examples=150)
@given(st.sampled_from(sorted(KINDS)), st.data())
def test_training_can_read_images_without_damage(kind, data):
    """In colour and in grey, whatever happened to it: what training cannot read does not pass."""
    damaged = bytearray(KINDS[kind])
    for _ in range(data.draw(st.integers(0, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(damaged[: data.draw(st.integers(len(damaged) // 2, len(damaged)))])
    damaged += data.draw(st.sampled_from([b"", b"\xff\xd9"]))
    try:
        find_damage(damaged)
    except BadSample:
        return
    trained_on(damaged)
    trained_on(damaged, channels=1)
