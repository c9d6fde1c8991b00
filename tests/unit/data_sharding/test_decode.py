"""Pixels are Pillow's, whatever the file is; what is no image is a bad sample and nothing else."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps
from torchvision.transforms.functional import center_crop, resize
from torchvision.transforms.v2 import functional

from data_sharding.errors import BadSample
from data_sharding.image.open_image import load_image, open_image, stored_size
from data_sharding.transforms.crops import CropSpec
from data_sharding.transforms.decode import decode, decode_whole
from data_sharding.transforms.eval_protocol import parse_protocol

WIDTH, HEIGHT, SIZE = 60, 44, 16

quickly = settings(max_examples=150)


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
    out = np.full((1, SIZE, SIZE, channels), 77, dtype=np.uint8)
    whole = CropSpec((0, 0, WIDTH, HEIGHT))
    decode(memoryview(data), lambda width, height: [view or whole], out)
    return out[0]


def expected(image, box=(0, 0, WIDTH, HEIGHT)):
    """Crop, then resize, as RandomResizedCrop does; between pixels only Pillow knows what to do."""
    if all(isinstance(edge, int) for edge in box):
        return np.asarray(image.crop(box).resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=box))


def nearly_equal(ours, theirs):
    """torch resizes with another rounding than Pillow."""
    return np.abs(ours - theirs.astype(int)).max() <= 1


@pytest.mark.parametrize(
    ("kind", "options"),
    [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("PPM", {}), ("WEBP", {"lossless": True})],
)
def test_lossless_files_give_the_same_pixels(kind, options):
    assert nearly_equal(decoded(encoded(picture(), kind, **options)), expected(picture()))


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF"])
def test_lossy_files_give_nearly_the_same_pixels(kind):
    difference = decoded(encoded(picture(), kind, quality=95)) - expected(picture()).astype(int)
    assert np.abs(difference).mean() < 1


@pytest.mark.parametrize("box", [(0, 0, 30, 44), (7, 5, 41, 39), (10.5, 2.25, 50.25, 40)])
def test_a_view_is_cropped_and_resized_at_once(box):
    data = encoded(picture(), "PNG")
    assert nearly_equal(decoded(data, CropSpec(box)), expected(picture(), box))


def photograph(width, height):
    """Return noise of many scales as a JPEG: the details are what antialiasing is about."""
    rng = np.random.default_rng(0)
    layers = [rng.normal(size=(n, n, 3)) for n in (2, 5, 17, 60, 200)]
    grown = [
        np.stack(
            [np.asarray(Image.fromarray(c).resize((width, height))) for c in np.moveaxis(x, 2, 0)],
            axis=2,
        )
        for x in layers
    ]
    pixels = (128 + 25 * sum(grown)).clip(0, 255).astype(np.uint8)
    return encoded(Image.fromarray(pixels), "JPEG", quality=90)


@pytest.mark.parametrize("tensor", [False, True])
@pytest.mark.parametrize(
    ("width", "height", "box"),
    [
        (500, 375, (0, 0, 500, 375)),
        (500, 375, (31, 17, 420, 330)),
        (375, 500, (200, 100, 260, 150)),
        (64, 48, (10, 5, 40, 45)),
    ],
)
def test_crops_are_those_of_torchvision(width, height, box, tensor):
    """Its resized_crop of Pillow's image, and of a tensor."""
    data, (left, top, right, bottom) = photograph(width, height), box
    image = Image.open(io.BytesIO(data)).convert("RGB")
    image = functional.pil_to_tensor(image) if tensor else image
    size = [right - left, bottom - top]
    theirs = functional.resized_crop(image, top, left, size[1], size[0], [56, 56], antialias=True)
    theirs = theirs.permute(1, 2, 0).numpy() if tensor else np.asarray(theirs)
    ours = np.empty((1, 56, 56, 3), dtype=np.uint8)
    decode(memoryview(data), lambda width, height: [CropSpec(box)], ours)
    assert np.abs(ours[0] - theirs.astype(int)).mean() < 1


@pytest.mark.parametrize(("width", "height"), [(512, 640), (640, 512), (128, 192), (256, 256)])
def test_the_central_crop_is_that_of_torchvision(width, height):
    data = photograph(width, height)
    image = Image.open(io.BytesIO(data)).convert("RGB")
    theirs = np.asarray(functional.center_crop(functional.resize(image, 64), 56)).astype(int)
    ours = np.empty((1, 56, 56, 3), dtype=np.uint8)
    decode(memoryview(data), parse_protocol("center-56-of-64").views, ours)
    assert np.abs(ours[0] - theirs).mean() < 1


def test_the_view_is_chosen_by_width_and_height():
    sizes = []
    decode(
        memoryview(encoded(picture(), "PNG")),
        lambda width, height: sizes.append((width, height)) or [CropSpec((0, 0, 1, 1))],
        np.empty((1, SIZE, SIZE, 3), dtype=np.uint8),
    )
    assert sizes == [(WIDTH, HEIGHT)]


@pytest.mark.parametrize("shift", [(0, 0), (1, 0), (0, -2), (-3, 4), (SIZE, 0), (0, -SIZE - 5)])
@pytest.mark.parametrize("flip", [False, True])
def test_what_comes_in_from_outside_is_zero(shift, flip):
    image = ImageOps.invert(picture())  # nowhere black
    data, box = encoded(image, "PNG"), (0, 0, WIDTH, HEIGHT)
    plain = np.pad(decoded(data), ((40, 40), (40, 40), (0, 0)))
    x, y = 40 + shift[0], 40 + shift[1]
    reference = plain[y : y + SIZE, x : x + SIZE]
    pixels = decoded(data, CropSpec(box, shift, flip))
    assert np.array_equal(pixels, reference[:, ::-1] if flip else reference)


def test_flip_mirrors_and_shift_brings_zeros():
    data, box = encoded(picture(), "PNG"), (0, 0, WIDTH, HEIGHT)
    plain = decoded(data)
    assert np.array_equal(decoded(data, CropSpec(box, flip=True)), plain[:, ::-1])
    shifted = decoded(data, CropSpec(box, shift=(2, -3)))
    assert np.array_equal(shifted[3:, :-2], plain[:-3, 2:])
    assert not shifted[:3].any()
    assert not shifted[:, -2:].any()


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_becomes_grey_or_rgb(mode, channels):
    kind = "JPEG" if mode == "CMYK" else "PNG"
    pixels = decoded(encoded(picture(mode), kind), channels=channels)
    reference = expected(picture(mode).convert({1: "L", 3: "RGB"}[channels])).reshape(pixels.shape)
    assert np.abs(pixels - reference.astype(int)).mean() < 3


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_keep_their_range(kind, channels):
    """Pillow would clip them to 255: all but the darkest would be white."""
    ramp = np.linspace(0, 65535, WIDTH * HEIGHT).reshape(HEIGHT, WIDTH).astype(np.uint16)
    pixels = decoded(encoded(Image.fromarray(ramp), kind), channels=channels)
    reference = expected(Image.fromarray((ramp >> 8).astype(np.uint8)))
    assert all(np.array_equal(channel, reference) for channel in np.moveaxis(pixels, 2, 0))


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
def test_orientation_is_left_alone_in_every_format(kind, orientation):
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100}
    plain = encoded(picture(), kind, **options)
    marked = encoded(picture(), kind, exif=turned(orientation), **options)
    assert orientation == 1 or (Image.open(io.BytesIO(marked)).getexif()[0x0112] == orientation)
    sizes = []

    def read(data):
        out = np.empty((1, SIZE, SIZE, 3), dtype=np.uint8)
        decode(memoryview(data), lambda *size: sizes.append(size) or [CropSpec((0, 0, *size))], out)
        return out

    assert np.array_equal(read(marked), read(plain))
    assert sizes == [(WIDTH, HEIGHT)] * 2
    for channels in 1, 3:
        ours, theirs = (
            decode_whole(memoryview(data), lambda *size: [size], channels)[0][0]
            for data in (marked, plain)
        )
        assert np.array_equal(ours, theirs)
    loaded = load_image(marked)
    assert loaded.size == (WIDTH, HEIGHT)
    assert np.array_equal(np.asarray(loaded), np.asarray(load_image(plain)))
    assert stored_size(open_image(marked)) == (WIDTH, HEIGHT)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
def test_colour_profiles_are_ignored_in_every_format(kind):
    """As torchvision and timm ignore them. This one has red and blue change places."""
    profile = swapped_profile()
    plain, marked = encoded(picture(), kind), encoded(picture(), kind, icc_profile=profile)
    image = Image.open(io.BytesIO(marked))
    assert image.info["icc_profile"] == profile
    assert np.array_equal(decoded(marked), decoded(plain))


def swapped_profile():
    """Return sRGB's profile with the primaries of red and blue exchanged."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile.replace(b"rXYZ", b"TEMP").replace(b"bXYZ", b"rXYZ").replace(b"TEMP", b"bXYZ")


RAMP = np.linspace(0, 1, WIDTH * HEIGHT).reshape(HEIGHT, WIDTH)


def tiff(values, bits, *, white=1, kind=1):
    """Return a grey TIFF of one strip: photometric interpretation, sample format (TIFF 6.0)."""
    data, (height, width) = values if isinstance(values, bytes) else values.tobytes(), RAMP.shape
    tags = [
        (256, width), (257, height), (258, bits), (259, 1), (262, white), (273, 8), (277, 1),
        (278, height), (279, len(data)), (339, kind),
    ]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory


def packed_12(values):
    a, b = values.reshape(-1, 2).T
    return np.stack([a >> 4, (a & 15) << 4 | b >> 8, b & 255], axis=1).astype(np.uint8).tobytes()


def grey(data, channels):
    """Return all of an image's pixels; every channel is the same."""
    out = decode_whole(memoryview(data), lambda *size: [size], channels)[0][0].numpy()
    assert (out == out[:1]).all()
    return out[0].astype(int)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("data", "bits", "kind", "white"),
    [
        ((RAMP * 255).astype("u1"), 8, 1, 1),
        ((RAMP * 255).astype("u1"), 8, 1, 0),
        (packed_12((RAMP * 4095).astype(int)), 12, 1, 1),
        ((RAMP * 65535).astype("<u2"), 16, 1, 1),
        ((RAMP * 65535).astype("<u2"), 16, 1, 0),
        (RAMP.astype("<f4"), 32, 3, 1),
        (RAMP.astype("<f4"), 32, 3, 0),
        ((RAMP * 255).astype("<f4"), 32, 3, 1),
        ((RAMP * 1.04 - 0.02).astype("<f4"), 32, 3, 1),  # a filter has overshot
    ],
)
def test_greys_of_any_depth_go_from_black_to_white(data, bits, kind, white, channels):
    """`white` is 0 where 0 is white."""
    pixels = grey(tiff(data, bits, white=white, kind=kind), channels)
    reference = RAMP * 255 if white else 255 - RAMP * 255
    assert np.abs(pixels - reference).max() <= 6
    assert len(np.unique(pixels)) > 240


@pytest.mark.parametrize(
    ("values", "bits", "kind"),
    [
        (RAMP.astype("<f4") * 2 - 1, 32, 3),
        (RAMP.astype("<f4") * 5, 32, 3),  # 0 to 1, or 0 to 255?
        (RAMP.astype("<f4") * 4095, 32, 3),
        (RAMP.astype("<f4") * np.nan, 32, 3),
        (RAMP.astype("<f4") + np.inf, 32, 3),
        ((RAMP * 100).astype("<i2") - 50, 16, 2),
        ((RAMP * 100_000).astype("<i4"), 32, 2),
    ],
)
def test_values_on_no_known_scale_are_refused(values, bits, kind):
    with pytest.raises(BadSample, match="has values from"):
        grey(tiff(values, bits, kind=kind), 3)


@pytest.mark.parametrize("color", [4, 6])  # grey and RGB, each with alpha
def test_sixteen_bits_with_alpha(color):
    """The alpha is dropped, and of each value the high byte is kept."""
    values = (RAMP * 65535).astype(">u2")
    planes = [values] * (color == 6) * 2 + [values, 65535 - values]
    rows = np.stack(planes, axis=2).astype(">u2")
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, color, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(raw)), (b"IEND", b""))
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )
    assert np.abs(grey(data, 3) - RAMP * 255).max() <= 1


def test_a_palette_with_transparency_gives_no_warning():
    image = picture("P")
    data = encoded(image, "PNG", transparency=bytes(range(256)))
    assert nearly_equal(decoded(data), expected(image.convert("RGB")))


def reading(data):
    """Return the pixels, or None for a bad sample, which must leave the output alone."""
    out = np.full((1, SIZE, SIZE, 3), 77, dtype=np.uint8)
    try:
        decode(memoryview(data), lambda width, height: [CropSpec((0, 0, width, height))], out)
    except BadSample:
        assert np.all(out == 77)
        return None
    return out


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF"])
def test_a_file_cut_anywhere_is_a_bad_sample_or_whole(kind):
    """Whole, because the last bytes of some formats are only an end mark. Never grey below."""
    data = encoded(picture(), kind)
    whole, num_bad = reading(data), 0
    ends = {*range(0, len(data), max(1, len(data) // 100)), *range(len(data) - 30, len(data))}
    for end in ends:
        pixels = reading(data[:end])
        num_bad += pixels is None
        assert pixels is None or np.array_equal(pixels, whole)
    assert num_bad >= 0.7 * len(ends)


@quickly
@given(st.binary(max_size=200), st.sampled_from([b"", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n"]))
def test_any_bytes_are_a_bad_sample(rest, start):
    assert reading(start + rest) is None


DAMAGED = {kind: encoded(picture(), kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF")}


@quickly
@given(st.sampled_from(sorted(DAMAGED)), st.data())
def test_damage_is_a_bad_sample_or_another_picture(kind, data):
    """Whatever a decoder raises: nothing but BadSample comes out."""
    image = bytearray(DAMAGED[kind])
    places = st.integers(0, min(len(image), 700) - 1)
    for place, byte in data.draw(st.dictionaries(places, st.integers(0, 255), max_size=8)).items():
        image[place] = byte
    reading(bytes(image))


def test_a_reason_is_the_same_every_time():
    """It names no address in memory: the lines of two runs are compared."""
    for data in b"", b"no image", encoded(picture(), "PNG")[:200], encoded(picture(), "JPEG")[:300]:
        reasons = set()
        for _ in range(3):
            with pytest.raises(BadSample) as caught:
                decoded(data)
            reasons.add(str(caught.value))
        assert len(reasons) == 1
        assert "0x" not in reasons.pop()


def test_a_bomb_is_a_bad_sample():
    """A picture of a hundred bytes whose header promises 2.5 gigapixels."""
    data = encoded(picture("L"), "PNG")
    header = b"IHDR" + struct.pack(">II", 50_000, 50_000) + data[24:29]
    bomb = data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]
    with pytest.raises(BadSample, match="is too large"):
        decoded(bomb)


@pytest.mark.parametrize("kind", ["EPS", "PDF", "PCX", "TGA", "ICO", "DDS", "JPEG2000"])
def test_other_kinds_are_not_even_tried(kind):
    """Pillow hands PostScript to another program, and its rare decoders are old."""
    with pytest.raises(BadSample, match="is none of JPEG, PNG"):
        decoded(encoded(picture(), kind))


@pytest.mark.parametrize(("width", "height"), [(60, 44), (44, 60), (51, 51), (97, 33)])
def test_an_evaluation_protocol_shows_what_torchvision_shows(width, height):
    image = picture().resize((width, height))
    theirs = center_crop(resize(image, 18), 16)
    out = np.empty((1, 16, 16, 3), dtype=np.uint8)
    decode(memoryview(encoded(image, "PNG")), parse_protocol("center-16-of-18").views, out)
    assert np.abs(out[0] - np.asarray(theirs).astype(int)).mean() < 0.5
