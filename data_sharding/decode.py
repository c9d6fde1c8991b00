"""Bytes and a view -> pixels. The one seam behind which faster decoders go."""

from collections.abc import Callable
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from data_sharding.augment import View
from data_sharding.shard import BadSample

_MODES = {1: "L", 3: "RGB"}

# What photographs come in. Pillow knows more, but to open EPS it starts Ghostscript.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "PPM", "TIFF", "AVIF")


def decode(
    data: memoryview, choose_view: Callable[[int, int], View], out: NDArray[np.uint8]
) -> None:
    """Decode an image, cut its view out, and write it to `out`.

    Resizing is bilinear and antialiased (Pillow's, which torchvision reproduces). The kind of file
    is recognised by its content, never by its name. EXIF orientation is left alone, as in the
    reference ImageNet pipelines.

    Args:
        choose_view: called with the image's (width, height) in pixels.
        out: (size, size, channels) with 1 (grey) or 3 (RGB) channels.

    Raises:
        BadSample: the bytes cannot be decoded.
    """
    size, channels = out.shape[0], out.shape[2]
    try:
        with Image.open(BytesIO(data), formats=_FORMATS) as image:
            view = choose_view(*image.size)
            pixels = _convert(image, _MODES[channels]).resize(
                (size, size), Image.Resampling.BILINEAR, box=view.box
            )
    except UnidentifiedImageError as error:  # whose message is a memory address
        raise BadSample(f"is none of {', '.join(_FORMATS)}") from error
    except Exception as error:  # decoders raise anything on hostile bytes
        raise BadSample(f"cannot be decoded: {type(error).__name__}: {error}") from error
    if view.shift != (0, 0):
        x, y = view.shift
        pixels = pixels.crop((x, y, x + size, y + size))
    if view.flip:
        pixels = pixels.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    out[:] = np.asarray(pixels).reshape(out.shape)


def _convert(image: Image.Image, mode: str) -> Image.Image:
    """Convert to 8 bits a channel; transparency is dropped, not blended."""
    if image.mode.startswith("I"):  # 16-bit greys, which Pillow would clip to white
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    image.info.pop("transparency", None)  # of a palette: Pillow would warn that it is dropped
    return image.convert(mode)
