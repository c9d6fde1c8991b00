"""Decode image bytes and cut crops out: the one seam behind which faster decoders go."""

from collections.abc import Callable, Sequence

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from data_sharding.errors import BadSample
from data_sharding.image import jpeg
from data_sharding.image.open_image import MAX_PIXELS, load_image, to_mode, undecodable
from data_sharding.transforms.crops import CropSpec

Pixels = NDArray[np.uint8]
ViewsFn = Callable[[int, int], Sequence[CropSpec]]  # from (width, height) in pixels
SizesFn = Callable[[int, int], Sequence[tuple[int, int]]]  # the same, to such pairs

# pixels (height, width, channels), perhaps cut off below the views; the decoder's warning
_Decoded = tuple[Pixels, str | None]

_MODES = {1: "L", 3: "RGB"}
_BELOW_THE_CUT = "extraneous bytes before marker"  # the warning about rows that are left out


def decode(data: memoryview, choose_views: ViewsFn, out: Pixels) -> str | None:
    """Decode an image once, cut its views out, and write them to `out`.

    Resizing is bilinear and antialiased, as in Pillow and torchvision. The image format is detected
    from the content, never from the name; data_sharding.image.open_image has the rules for pixels.
    An ordinary JPEG is not decoded below the lowest view.

    Args:
        choose_views: a function from the image's (width, height) to as many views as `out` holds.
        out: (views, size, size, channels) with 1 (grey) or 3 (RGB) channels.

    Returns:
        The decoder's warning about damage, if any: parts of the image may be grey or wrong.

    Raises:
        BadSample: the bytes cannot be decoded.
    """
    (pixels, damage), views = _decode(data, choose_views, out.shape[-1])
    for view, view_out in zip(views, out, strict=True):
        _crop_and_resize(pixels, view, view_out)
    return damage


def decode_whole(
    data: memoryview, choose_sizes: SizesFn, channels: int
) -> tuple[list[torch.Tensor], str | None]:
    """Decode an image once, and resize the whole of it to several sizes, as `decode` does.

    Returns:
        Images, uint8 (channels, height, width), of each size; and the decoder's warning.
    """
    whole = lambda *size: (CropSpec((0, 0, *size)),)  # noqa: E731
    (pixels, damage), (view,) = _decode(data, whole, channels)
    height, width = pixels.shape[:2]
    return [_resize(pixels, view.box, size) for size in choose_sizes(width, height)], damage


def _decode(
    data: memoryview, choose_views: ViewsFn, channels: int
) -> tuple[_Decoded, Sequence[CropSpec]]:
    try:
        header = jpeg.read_header(data) if channels == 3 else None  # Pillow weighs RGB to grey
        if header and header.width * header.height <= MAX_PIXELS:
            views = choose_views(header.width, header.height)
            decoded = _decode_jpeg(data, header, views)
        else:
            decoded = _decode_by_pillow(data, _MODES[channels])
            views = choose_views(*decoded[0].shape[1::-1])
    except (BadSample, MemoryError):
        raise
    except Exception as error:  # decoders raise anything on hostile bytes
        raise undecodable(error) from error
    return decoded, views


def _decode_by_pillow(data: memoryview, mode: str) -> _Decoded:
    pixels = np.array(to_mode(load_image(data), mode))
    return pixels.reshape(*pixels.shape[:2], -1), None


def _decode_jpeg(data: memoryview, header: jpeg.JpegHeader, views: Sequence[CropSpec]) -> _Decoded:
    bottom = int(np.ceil(max(view.box[3] for view in views)))
    cut, height = jpeg.cut_below(data, header, bottom)
    pixels = np.empty((height, header.width, 3), dtype=np.uint8)
    try:
        # A strict decoder goes on to the end, and then raises the first warning that it had.
        simplejpeg.decode_jpeg(cut, "RGB", buffer=pixels)
    except ValueError as error:
        if height < header.height and _BELOW_THE_CUT in str(error):
            return pixels, None
        damage = str(error)
    else:
        return pixels, None
    try:
        return simplejpeg.decode_jpeg(cut, "RGB", strict=False), damage
    except ValueError:  # it was no warning; TurboJPEG knows fewer sampling factors than libjpeg
        return _decode_by_pillow(data, "RGB")


def _crop_and_resize(pixels: Pixels, view: CropSpec, out: Pixels) -> None:
    """Write a view of the pixels to `out`, shape (size, size, channels)."""
    size = len(out)
    if pixels.shape == out.shape and view == CropSpec((0, 0, size, size)):
        out[:] = pixels
        return
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
    """Resize a box of the image to (width, height); uint8 (channels, height, width)."""
    width, height = size
    left, top, right, bottom = (int(edge) for edge in box)
    if (left, top, right, bottom) != box:  # fractions of pixels: only Pillow supports them
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
