"""Pixels are Pillow's, whatever the file is; what is no image is a bad sample and nothing else."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from data_sharding.augment import View
from data_sharding.decode import decode
from data_sharding.shard import BadSample

WIDTH, HEIGHT, SIZE = 60, 44, 16


def picture(mode="RGB"):
    """Return a smooth picture, so that lossy formats stay near it."""
    x, y = np.meshgrid(np.linspace(0, 1, WIDTH), np.linspace(0, 1, HEIGHT))
    rgb = np.stack([255 * x, 255 * y, 127 + 100 * np.sin(6 * x * y)], axis=-1)
    return Image.fromarray(rgb.astype(np.uint8)).convert(mode)


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(data, view=None, channels=3):
    out = np.full((SIZE, SIZE, channels), 77, dtype=np.uint8)
    whole = View((0, 0, WIDTH, HEIGHT))
    decode(memoryview(data), lambda width, height: view or whole, out)
    return out


def expected(image, box=(0, 0, WIDTH, HEIGHT)):
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=box))


@pytest.mark.parametrize(
    ("kind", "options"),
    [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("PPM", {}), ("WEBP", {"lossless": True})],
)
def test_lossless_files_give_the_same_pixels(kind, options):
    assert np.array_equal(decoded(encoded(picture(), kind, **options)), expected(picture()))


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_files_give_nearly_the_same_pixels(kind):
    difference = decoded(encoded(picture(), kind, quality=95)) - expected(picture()).astype(int)
    assert np.abs(difference).mean() < 1


@pytest.mark.parametrize("box", [(0, 0, 30, 44), (7, 5, 41, 39), (10.5, 2.25, 50.25, 40)])
def test_a_view_is_cropped_and_resized_at_once(box):
    data = encoded(picture(), "PNG")
    assert np.array_equal(decoded(data, View(box)), expected(picture(), box))


def test_flip_mirrors_and_shift_brings_zeros():
    data, box = encoded(picture(), "PNG"), (0, 0, WIDTH, HEIGHT)
    plain = decoded(data)
    assert np.array_equal(decoded(data, View(box, flip=True)), plain[:, ::-1])
    shifted = decoded(data, View(box, shift=(2, -3)))
    assert np.array_equal(shifted[3:, :-2], plain[:-3, 2:])
    assert not shifted[:3].any()
    assert not shifted[:, -2:].any()


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_becomes_grey_or_rgb(mode, channels):
    kind = "JPEG" if mode == "CMYK" else "PNG"
    found = decoded(encoded(picture(mode), kind), channels=channels)
    wanted = expected(picture(mode).convert({1: "L", 3: "RGB"}[channels])).reshape(found.shape)
    assert np.abs(found - wanted.astype(int)).mean() < 3


def test_sixteen_bits_keep_their_range():
    ramp = np.linspace(0, 65535, WIDTH * HEIGHT).reshape(HEIGHT, WIDTH).astype(np.uint16)
    found = decoded(encoded(Image.fromarray(ramp), "PNG"), channels=1)
    assert found.min() < 20
    assert found.max() > 235
    assert 100 < found.mean() < 155


def test_a_palette_with_transparency_gives_no_warning():
    image = picture("P")
    data = encoded(image, "PNG", transparency=bytes(range(256)))
    assert np.array_equal(decoded(data), expected(image.convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_a_file_cut_anywhere_is_a_bad_sample_or_an_image(kind):
    data = encoded(picture(), kind)
    num_bad = 0
    for end in range(0, len(data), max(1, len(data) // 60)):
        try:
            decoded(data[:end])
        except BadSample:
            num_bad += 1
    assert num_bad > 10


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=200), st.sampled_from([b"", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n"]))
def test_any_bytes_are_a_bad_sample(rest, start):
    with pytest.raises(BadSample):
        decoded(start + rest)


def test_a_bomb_is_a_bad_sample():
    """A picture of a hundred bytes whose header promises 2.5 gigapixels."""
    data = encoded(picture("L"), "PNG")
    header = b"IHDR" + struct.pack(">II", 50_000, 50_000) + data[24:29]
    bomb = data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]
    with pytest.raises(BadSample, match="DecompressionBomb"):
        decoded(bomb)


def test_postscript_is_not_run():
    with pytest.raises(BadSample, match="is none of JPEG, PNG"):
        decoded(encoded(picture(), "EPS"))
