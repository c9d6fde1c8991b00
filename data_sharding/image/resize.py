"""Images made anew before they are stored: large ones smaller, greys of 12 bits or so wider.

A large image is resized with Lanczos' filter, after a box filter that brings it to three times its
new size where it is larger than that: of Pillow's filters this keeps the most detail, and the box
saves time where nobody can see it. The result is a JPEG with 4:2:0 chroma and without metadata;
EXIF orientation is not applied, as it is not when images are read. Smaller images stay as they are.
"""

from dataclasses import dataclass
from io import BytesIO

import simplejpeg
from PIL import Image

from data_sharding.errors import BadSample, DataError
from data_sharding.image import jpeg
from data_sharding.image.high_bit_depth import is_high_bit_depth, widen
from data_sharding.image.open_image import MAX_PIXELS, load_image, to_mode

_REDUCING_GAP = 3.0


def widened(data: bytes, num_bits: int) -> bytes | None:
    """Return a PNG of an image in grey that uses all 16 bits; None for any other, and for floats.

    Args:
        num_bits: that the image uses.

    Raises:
        BadSample: it uses more of them.
    """
    image = load_image(data)
    wide = widen(image, num_bits) if is_high_bit_depth(image) else None
    if wide is None:
        return None
    file = BytesIO()
    wide.save(file, "PNG")
    return file.getvalue()


@dataclass(frozen=True)
class ResizeSettings:
    """What is too large, and how well the smaller image is encoded.

    Args:
        max_side: pixels that the longer side has at most, or None.
        short_side: pixels that the shorter side has at most, or None; one of them is given.
        quality: of JPEG, 1 to 100.

    Raises:
        DataError: that makes no sense.
    """

    max_side: int | None = None
    short_side: int | None = None
    quality: int = 90

    def __post_init__(self) -> None:
        sides = [side for side in (self.max_side, self.short_side) if side is not None]
        if len(sides) != 1 or sides[0] < 1 or not 1 <= self.quality <= 100:
            raise DataError(
                f"images cannot be made smaller with --max-side {self.max_side}, --short-side "
                f"{self.short_side} and --quality {self.quality}: nothing was written. Give one "
                "of both sides, at least 1, and a quality from 1 to 100."
            )

    @property
    def facts(self) -> dict[str, int]:
        """What tells this from other settings, in JSON values."""
        side = {"max_side": self.max_side, "short_side": self.short_side}
        return {k: v for k, v in side.items() if v is not None} | {"quality": self.quality}

    def size(self, width: int, height: int) -> tuple[int, int] | None:
        """Return the new width and height, or None for an image that is small enough."""
        if self.max_side is not None:
            side, limit = max(width, height), self.max_side
        else:
            assert self.short_side is not None
            side, limit = min(width, height), self.short_side
        if side <= limit:
            return None
        return max(1, round(width * limit / side)), max(1, round(height * limit / side))

    def apply(self, data: bytes) -> bytes:
        """Return a JPEG of an image that is too large.

        Raises:
            BadSample: it cannot be decoded.
        """
        file = BytesIO()
        self.resized(data).save(file, "JPEG", quality=self.quality, subsampling="4:2:0")
        return file.getvalue()

    def apply_scaled(self, data: bytes) -> bytes | None:
        """Return a JPEG of one that has more pixels than are decoded whole; None where that fails.

        An ordinary JPEG is decoded at a fraction of its size, row by row, which takes the memory
        of the result; a progressive one would be held whole.

        Raises:
            BadSample: it is damaged.
        """
        header = jpeg.read_header(memoryview(data))
        size = self.size(header.width, header.height) if header else None
        if header is None or size is None:
            return None
        width, height = (round(_REDUCING_GAP * side) for side in size)
        eighths = (width + header.width // 8 + 1) * (height + header.height // 8 + 1)
        if width > header.width or height > header.height or eighths > MAX_PIXELS:
            return None
        try:
            pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width)
        except ValueError as error:
            raise BadSample(f"cannot be decoded: {error}") from error
        file = BytesIO()
        small = Image.fromarray(pixels).resize(
            size, Image.Resampling.LANCZOS, reducing_gap=_REDUCING_GAP
        )
        small.save(file, "JPEG", quality=self.quality, subsampling="4:2:0")
        return file.getvalue()

    def resized(self, data: bytes) -> Image.Image:
        """Return what an image that is too large becomes, before it is encoded.

        Raises:
            BadSample: it cannot be decoded.
        """
        pixels = decode_8bit(data)
        size = self.size(*pixels.size)
        assert size is not None
        return pixels.resize(size, Image.Resampling.LANCZOS, reducing_gap=_REDUCING_GAP)


def decode_8bit(data: bytes) -> Image.Image:
    """Decode an image as it is read for training: 8 bits, grey or RGB."""
    image = load_image(data)
    is_grey = image.mode in ("1", "L", "LA") or is_high_bit_depth(image)
    return to_mode(image, "L" if is_grey else "RGB")
