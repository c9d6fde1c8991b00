"""Bytes and views -> pixels. The one seam behind which faster decoders go."""

from collections.abc import Callable, Sequence

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from data_sharding import jpeg
from data_sharding.augment import View
from data_sharding.images import MAX_PIXELS, convert, open_image
from data_sharding.shard import BadSample

Pixels = NDArray[np.uint8]
ChooseViews = Callable[[int, int], Sequence[View]]  # from (width, height) in pixels
ChooseSizes = Callable[[int, int], Sequence[tuple[int, int]]]  # from such a pair, pairs like it

_MODES = {1: "L", 3: "RGB"}


def decode(data: memoryview, choose_views: ChooseViews, out: Pixels) -> None:
    """Decode an image once, cut its views out, and write them to `out`.

    Resizing is bilinear and antialiased, as Pillow and torchvision do it. The kind of file is
    recognised by its content, never by its name. EXIF orientation is left alone, as in the
    reference ImageNet pipelines. An ordinary JPEG is not decoded below the lowest view.

    Args:
        choose_views: called with the image's (width, height) in pixels; as many as `out` holds.
        out: (views, size, size, channels) with 1 (grey) or 3 (RGB) channels.

    Raises:
        BadSample: the bytes cannot be decoded.
    """
    pixels, views = _pixels(data, choose_views, out.shape[-1])
    for view, place in zip(views, out, strict=True):
        _cut(pixels, view, place)


def decode_whole(data: memoryview, choose_sizes: ChooseSizes, channels: int) -> list[torch.Tensor]:
    """Decode an image once, and resize the whole of it to several sizes, as `decode` does.

    Args:
        choose_sizes: called with the image's (width, height) in pixels; returns such pairs.

    Returns:
        uint8 (channels, height, width) of each size.

    Raises:
        BadSample: the bytes cannot be decoded.
    """
    pixels, views = _pixels(data, lambda *size: (View((0, 0, *size)),), channels)
    (whole,) = views
    height, width = pixels.shape[:2]
    return [_resize(pixels, whole.box, size) for size in choose_sizes(width, height)]


def _pixels(
    data: memoryview, choose_views: ChooseViews, channels: int
) -> tuple[Pixels, Sequence[View]]:
    """Return (height, width, channels), perhaps cut off below the views, and the views."""
    try:
        header = jpeg.read_header(data) if channels == 3 else None  # Pillow weighs RGB to grey
        if header and header.width * header.height <= MAX_PIXELS:
            views = choose_views(header.width, header.height)
            pixels = _decode_jpeg(data, header, views)
        else:
            with open_image(data) as image:
                views = choose_views(*image.size)
                pixels = np.array(convert(image, _MODES[channels]))
    except (BadSample, MemoryError):
        raise
    except Exception as error:  # decoders raise anything on hostile bytes
        raise BadSample(f"cannot be decoded: {type(error).__name__}: {error}") from error
    return pixels.reshape(*pixels.shape[:2], channels), views


def _decode_jpeg(data: memoryview, header: jpeg.JpegHeader, views: Sequence[View]) -> Pixels:
    bottom = int(np.ceil(max(view.box[3] for view in views)))
    cut = jpeg.cut_below(data, header, bottom)
    # Not strict: what is left below the cut is an error to a strict decoder.
    pixels: Pixels = simplejpeg.decode_jpeg(cut, "RGB", strict=False)
    return pixels


def _cut(pixels: Pixels, view: View, out: Pixels) -> None:
    """Write a view of the pixels to `out`, (size, size, channels)."""
    size = len(out)
    image = _resize(pixels, view.box, (size, size))
    x, y = (max(-size, min(shift, size)) for shift in view.shift)
    if x or y:
        image = F.pad(image, (-x, x, -y, y))  # cuts off on one side, adds zeros on the other
    if view.flip:
        image = image.flip(2)
    torch.from_numpy(out).permute(2, 0, 1).copy_(image)


def _resize(
    pixels: Pixels, box: tuple[float, float, float, float], size: tuple[int, int]
) -> torch.Tensor:
    """Return a box of the image at a (width, height) in pixels; uint8 (channels, height, width)."""
    width, height = size
    left, top, right, bottom = (int(edge) for edge in box)
    if (left, top, right, bottom) != box:  # between pixels: only Pillow has this
        mode = _MODES[pixels.shape[2]]
        image = Image.fromarray(pixels if mode == "RGB" else pixels[:, :, 0])
        image = image.resize(size, Image.Resampling.BILINEAR, box=box)
        return torch.from_numpy(np.array(image).reshape(height, width, -1)).permute(2, 0, 1)
    crop = torch.from_numpy(pixels[top:bottom, left:right]).permute(2, 0, 1)
    if crop.shape[1:] == (height, width):
        return crop
    # torch's port of Pillow-SIMD. A crop that is not contiguous would come out with the channels
    # first, and putting them last again takes longer than the copy.
    crop = crop[None].contiguous(memory_format=torch.channels_last)
    return F.interpolate(crop, (height, width), mode="bilinear", antialias=True)[0]
