"""Images of every format are recognised by their content; damaged ones are refused."""

import struct
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from foreign_shards import bomb, encoded, jpeg, photo, png
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_sharding.errors import BadSample
from data_sharding.image.inspect import ImageInfo, inspect_image


def saved(image: Image.Image, kind: str, **settings: Any) -> bytes:
    file = BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x010E] = "a description before the orientation"
    exif[0x0112] = orientation
    return exif


def refusal(data: bytes, extension: str = "jpg") -> str:
    with pytest.raises(BadSample) as caught:
        inspect_image(data, extension)
    return str(caught.value)


IMAGE = photo(1, (24, 16))
DEEP = Image.fromarray(np.arange(24 * 16, dtype=np.uint16).reshape(16, 24) * 100)
FRAMES = [photo(number, (24, 16)) for number in range(3)]


@pytest.mark.parametrize(
    ("data", "extension", "rules"),
    [
        (jpeg(1), "jpg", ()),
        (jpeg(1, "L"), "jpg", ()),
        (saved(IMAGE, "JPEG", progressive=True), "jpg", ("progressive",)),
        (saved(IMAGE.convert("CMYK"), "JPEG"), "jpg", ("cmyk",)),
        (saved(IMAGE, "JPEG", exif=turned(6)), "jpg", ("exif_orientation",)),
        (saved(IMAGE, "JPEG", exif=turned(1)), "jpg", ()),
        (saved(IMAGE, "JPEG", exif=turned(3), progressive=True), "jpg",
         ("exif_orientation", "progressive")),
        (jpeg(1)[:2] + b"\xff\xff" + jpeg(1)[2:], "jpg", ()),  # fill bytes
        (jpeg(1) + bytes(3000), "jpg", ()),  # padding
        (jpeg(1) + b"\x00\x00ftypmp42", "jpg", ()),  # the film that a phone adds
        (png(1), "png", ()),
        (png(1, "L"), "png", ()),
        (png(1, "P"), "png", ("palette",)),
        (png(1, "RGBA"), "png", ("alpha",)),
        (saved(IMAGE, "PNG", exif=turned(8)), "png", ("exif_orientation",)),
        (saved(DEEP, "PNG"), "png", ("16_bit",)),
        (saved(DEEP, "TIFF"), "tif", ("16_bit",)),
        (saved(IMAGE, "WEBP"), "webp", ()),
        (saved(IMAGE, "WEBP", exif=turned(2)), "webp", ("exif_orientation",)),
        (saved(FRAMES[0], "WEBP", save_all=True, append_images=FRAMES[1:]), "webp", ("animated",)),
        (saved(FRAMES[0], "PNG", save_all=True, append_images=FRAMES[1:]), "png", ("animated",)),
        (saved(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]), "gif",
         ("palette", "animated")),
        (saved(IMAGE, "BMP"), "bmp", ()),
        (saved(IMAGE, "TIFF"), "tif", ()),
        (saved(IMAGE, "PPM"), "ppm", ()),
        (saved(IMAGE, "TIFF", exif=turned(6)), "tif", ("exif_orientation",)),
        (saved(IMAGE, "AVIF"), "avif", ()),
        (saved(IMAGE, "AVIF", exif=turned(6)), "avif", ("exif_orientation",)),
        (saved(Image.fromarray(np.asarray(DEEP) // 16), "PNG"), "png", ("16_bit", "few_levels")),
    ],
)  # fmt: skip
def test_formats_and_rules(data: bytes, extension: str, rules: tuple[str, ...]) -> None:
    assert inspect_image(data, extension) == ImageInfo(extension, 24, 16, rules)
    other = "png" if extension == "jpg" else "jpg"
    assert inspect_image(data, other) == ImageInfo(extension, 24, 16, (*rules, "wrong_extension"))


def test_other_extensions_of_a_format_are_kept() -> None:
    assert inspect_image(jpeg(1), "jpeg") == ImageInfo("jpeg", 24, 16, ())
    assert inspect_image(saved(IMAGE, "TIFF"), "tiff") == ImageInfo("tiff", 24, 16, ())
    assert inspect_image(saved(IMAGE.convert("L"), "PPM"), "pgm") == ImageInfo("pgm", 24, 16, ())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_truncated_images_are_refused(kind: str) -> None:
    data = encoded(photo(1, (64, 48)), kind)
    for length in (1, 10, 100, len(data) // 2, len(data) - 30):
        refusal(data[:length])
    assert "is empty" in refusal(b"")


def test_the_end_of_an_exif_preview_is_not_that_of_the_image() -> None:
    exif = turned(1)
    whole = saved(photo(1, (64, 48)), "JPEG", exif=exif.tobytes() + jpeg(2))
    assert inspect_image(whole, "jpg").width == 64
    assert "is truncated: it is a JPEG without its end" in refusal(whole[:-10])


def test_files_that_are_no_images_are_refused() -> None:
    assert "is none of JPEG" in refusal(b"<html>not found</html>")
    assert "is too large" in refusal(bomb())
    giant = jpeg(1).replace(struct.pack(">HH", 16, 24), struct.pack(">HH", 60_000, 60_000), 1)
    assert "is too large" in refusal(giant)


@given(st.data())
def test_hostile_bytes_are_refused_or_inspected(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["JPEG", "PNG", "WEBP", "GIF"]))
    whole = bytearray(encoded(IMAGE, kind))
    if kind == "JPEG":
        whole[2:2] = b"\xff\xe1\x00\x40Exif\0\0II*\0" + bytes(52)
    for _ in range(data.draw(st.integers(1, 5))):
        whole[data.draw(st.integers(0, min(len(whole), 150) - 1))] = data.draw(st.integers(0, 255))
    try:
        look = inspect_image(bytes(whole), "jpg")
    except BadSample:
        return
    assert look.width > 0 < look.height
