"""Protocols are parsed from names, and have the views of torchvision."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.v2 import functional

from data_sharding.transforms.crops import CropSpec
from data_sharding.transforms.decode import decode
from data_sharding.transforms.eval_protocol import (
    DenseProtocol,
    EvalProtocol,
    parse_dense,
    parse_protocol,
)

examples = settings(max_examples=300)
sides = st.integers(1, 5000)


def box_of_torchvision(width: int, height: int, crop: int, resize: int) -> tuple[float, ...]:
    """Return the box of Resize(resize), CenterCrop(crop) in source pixels.

    torchvision.transforms.functional: the longer side is rounded down, the offset rounded.
    """
    short, long = min(width, height), max(width, height)
    new_long = int(resize * long / short)
    new_width, new_height = (resize, new_long) if width <= height else (new_long, resize)
    left, top = round((new_width - crop) / 2), round((new_height - crop) / 2)
    x, y = width / new_width, height / new_height
    return (left * x, top * y, (left + crop) * x, (top + crop) * y)


@examples
@given(sides, sides, st.integers(1, 600), st.integers(0, 100))
def test_the_central_crop_is_that_of_torchvision(
    width: int, height: int, crop: int, more: int
) -> None:
    resize = crop + more
    ours = EvalProtocol("", crop, (resize,)).views(width, height)[0].box
    theirs = box_of_torchvision(width, height, crop, resize)
    assert np.allclose(ours, theirs, rtol=1e-9)
    assert ours[0] >= 0
    assert ours[1] >= 0
    assert ours[2] <= width
    assert ours[3] <= height


@pytest.mark.parametrize(
    ("protocol", "size", "box"),
    [
        ("center-224-of-256", 224, (70, 16, 294, 240)),  # of 364 x 256 pixels
        ("center-256-of-256", 256, (54, 0, 310, 256)),
        ("center-128-of-256", 128, (118, 64, 246, 192)),
        ("center-1-of-2", 1, (0, 0, 182, 128)),  # of 2 x 2 pixels, the offset of 0.5 rounded to 0
    ],
)
def test_the_box_of_each_protocol(protocol: str, size: int, box: tuple[int, ...]) -> None:
    parsed = parse_protocol(protocol)
    assert parsed.crop == size
    assert parsed.views(364, 256) == (CropSpec(box),)


def waves_of(width: int, height: int) -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 3, width), np.linspace(0, 3, height))
    waves = np.stack([np.sin(x), np.cos(y), np.sin(x * y)], axis=2)
    return Image.fromarray((127 + 120 * waves).astype(np.uint8))


def seen(image: Image.Image, name: str) -> np.ndarray:
    """Return the views of a protocol, as a network gets them."""
    file = io.BytesIO()
    image.save(file, "png")
    protocol = parse_protocol(name)
    views = np.empty((protocol.num_views, protocol.crop, protocol.crop, 3), dtype=np.uint8)
    decode(memoryview(file.getvalue()), protocol.views, views)
    return views.astype(int)


def far_apart(ours: np.ndarray, theirs: Image.Image) -> float:
    return float(np.abs(ours - np.asarray(theirs).astype(int)).mean())


SIZES = [(64, 48), (31, 77), (40, 40)]


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_flip_and_multi_scale_views(width: int, height: int) -> None:
    image = waves_of(width, height)
    center = functional.center_crop(functional.resize(image, 32), [28, 28])
    flipped = seen(image, "flip-28-of-32")
    assert len(flipped) == 2
    assert far_apart(flipped[0], center) < 1
    assert far_apart(flipped[1], functional.hflip(center)) < 1

    larger = functional.center_crop(functional.resize(image, 40), [28, 28])
    several = seen(image, "multi-scale-28-of-32-40")
    expected = [center, larger, functional.hflip(center), functional.hflip(larger)]
    assert len(several) == 4
    assert all(far_apart(a, b) < 1 for a, b in zip(several, expected, strict=True))


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_warp_makes_images_square(width: int, height: int) -> None:
    image = waves_of(width, height)
    (view,) = seen(image, "warp-28-of-32")
    assert far_apart(view, functional.center_crop(functional.resize(image, [32, 32]), [28, 28])) < 1


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_googlenets_144_crops(width: int, height: int) -> None:
    """Section 7: 4 scales x 3 squares x (4 corners, middle, whole) x mirrored or not."""
    image = waves_of(width, height)
    views = seen(image, "144-crop-28-of-32-36-40-44")
    assert len(views) == 144
    expected = []
    for scale in (32, 36, 40, 44):
        resized = functional.resize(image, scale)
        w, h = resized.size
        for share in (0, 0.5, 1):
            left, top = round(share * (w - scale)), round(share * (h - scale))
            square = functional.crop(resized, top, left, scale, scale)
            crops = functional.five_crop(square, [28, 28])
            expected += [*crops, functional.resize(square, [28, 28])]
    expected += [functional.hflip(one) for one in expected]
    # A resized square is resized twice there and once here.
    apart = [far_apart(a, b) for a, b in zip(views, expected, strict=True)]
    assert max(apart) < 3
    assert np.median(apart) < 1


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_ten_crops_are_those_of_torchvision(width: int, height: int) -> None:
    image = waves_of(width, height)
    ours = seen(image, "ten-crop-28-of-32")
    theirs = functional.ten_crop(functional.resize(image, 32), [28, 28])
    in_their_order = (0, 1, 2, 3, 4, 6, 5, 8, 7, 9)  # they crop again after mirroring
    for number, image in zip(in_their_order, theirs, strict=True):
        assert far_apart(ours[number], image) < 1


@pytest.mark.parametrize(
    "protocol",
    [
        "", "center", "center-224", "ten-crop", "five-crop-224-of-256", "ten-crop-2-of-1",
        "center-224-of-", "center-0-of-256",
        "center-256-of-224", "center--1-of-256", "center-224-of-256 ", "center-224-of-256\n",
        "Center-224-of-256", "center-1e2-of-256", "center-٣-of-٤", "center-0224-of-256",
        "xcenter-224-of-256", "center-2-of-3-", "center-2-of-3-4", "multi-scale-2-of-3",
        "multi-scale-4-of-3-5", "144-crop-224-of-256", "flip-2-of-1", "dense", "dense-", "dense-0",
        "dense-2-", "dense-2-of-3", "dense-٣",
    ],
)  # fmt: skip
def test_invalid_names_are_refused(protocol: str) -> None:
    with pytest.raises(ValueError, match="is not an evaluation protocol"):
        parse_protocol(protocol)


def test_dense_protocols_are_refused() -> None:
    assert parse_dense("dense-256") == DenseProtocol((256,))
    assert parse_dense("dense-256-384-512") == DenseProtocol((256, 384, 512))
    assert parse_dense("center-224-of-256") is None
    with pytest.raises(ValueError, match="only `evaluate` supports"):
        parse_protocol("dense-256-384-512")


@examples
@given(sides, sides, st.lists(st.integers(1, 600), min_size=1, max_size=3))
def test_whole_images_are_resized_as_by_torchvision(
    width: int, height: int, resizes: list[int]
) -> None:
    sizes = DenseProtocol(tuple(resizes)).sizes(width, height)
    for (new_width, new_height), resize in zip(sizes, resizes, strict=True):
        image = torch.empty((1, height, width), device="meta")
        assert functional.resize(image, [resize]).shape == (1, new_height, new_width)
