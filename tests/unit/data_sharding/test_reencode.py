"""Only images that are too large are shrunk, and by the right amount."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from foreign_shards import encoded, photo
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

from data_sharding.errors import BadSample, DataError
from data_sharding.image.resize import ResizeSettings
from data_sharding.sources.folder import folder
from data_sharding.writing.resize_trial import measure_resize

SIDES = st.integers(1, 5000)


@given(SIDES, SIDES, SIDES)
def test_sizes(width: int, height: int, limit: int) -> None:
    longer, shorter = max(width, height), min(width, height)
    for shrink, side in (
        (ResizeSettings(limit), longer),
        (ResizeSettings(short_side=limit), shorter),
    ):
        size = shrink.size(width, height)
        if side <= limit:
            assert size is None
            continue
        assert size is not None
        assert (max(size) if shrink.max_side else min(size)) == limit
        for new, old in zip(size, (width, height), strict=True):
            assert abs(new - old * limit / side) <= 0.5 or new == 1


@pytest.mark.parametrize(
    "settings", [(), (1, 2), (0,), (None, 0), (10, None, 0), (10, None, 101)], ids=str
)
def test_inconsistent_settings_are_refused(settings: tuple[int | None, ...]) -> None:
    with pytest.raises(DataError):
        ResizeSettings(*settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("mode", "kind", "expected"),
    [("RGB", "JPEG", "RGB"), ("L", "JPEG", "L"), ("CMYK", "JPEG", "RGB"), ("P", "PNG", "RGB"),
     ("RGBA", "PNG", "RGB"), ("LA", "PNG", "L"), ("I;16", "PNG", "L")],
)  # fmt: skip
def test_every_format_becomes_a_smaller_jpeg(mode: str, kind: str, expected: str) -> None:
    shrink = ResizeSettings(max_side=100, quality=95)
    image = photo(1, (300, 150))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) << 8)
    else:
        image = image.convert(mode)
    file = BytesIO()
    image.save(file, kind)
    with Image.open(BytesIO(shrink.apply(file.getvalue()))) as found:
        assert (found.format, found.size, found.mode) == ("JPEG", (100, 50), expected)
        ideal = photo(1, (300, 150)).convert(expected).resize((100, 50), Image.Resampling.LANCZOS)
        difference = np.asarray(found, dtype=float) - np.asarray(ideal, dtype=float)
    assert np.abs(difference).mean() < 40  # the same picture, up to the colours of CMYK


def test_orientation_is_not_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = BytesIO()
    photo(1, (300, 150)).save(file, "JPEG", exif=exif)
    with Image.open(BytesIO(ResizeSettings(100).apply(file.getvalue()))) as found:
        assert found.size == (100, 50)
        assert not found.getexif()


def test_a_colour_profile_is_neither_applied_nor_kept() -> None:
    """The pixels are those that are stored, as they are for images that are not shrunk."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    plain, marked = (
        ResizeSettings(100).apply(encoded(photo(1, (300, 150)), **options))
        for options in ({}, {"icc_profile": profile})
    )
    assert marked == plain
    assert "icc_profile" not in Image.open(BytesIO(marked)).info


def test_damaged_images() -> None:
    with pytest.raises(BadSample):
        ResizeSettings(100).apply(encoded(photo(1, (300, 150)))[:-2000])


def test_trial(tmp_path: Path) -> None:
    for number in range(30):
        path = tmp_path / ("val" if number < 2 else "train") / "ab"[number > 20] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (300, 200) if number % 2 else (30, 20)
        path.write_bytes(encoded(photo(number, size)))
    (tmp_path / "train/a/3.jpg").write_bytes(b"no image")
    found = measure_resize(ResizeSettings(100), folder(tmp_path), seed=0)
    assert (found.num_images, found.num_shrunk) == (27, 13)
    sizes = [path.stat().st_size for path in (tmp_path / "train").rglob("*.jpg")]
    assert found.bytes_before == sum(sizes) - len(b"no image")
    assert found.bytes_after < found.bytes_before / 2
    assert min(found.rate_after, found.rate_before) > 0
    assert 0 < found.mean_difference < found.max_difference <= 255
    best = measure_resize(ResizeSettings(100, quality=100), folder(tmp_path), seed=0)
    assert best.mean_difference < found.mean_difference
