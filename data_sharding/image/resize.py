"""Convert images before they are stored: shrink large ones, scale greys of 12 bits or so to 16.

A large image is resized with Lanczos' filter, after a box filter that brings it to three times its
new size where it is larger than that: of Pillow's filters this keeps the most detail, and the box
saves time without a visible difference. The result is a JPEG with 4:2:0 chroma and without
metadata; EXIF orientation is not applied, as it is not when images are read.
"""

from dataclasses import dataclass
from io import BytesIO

import simplejpeg
from PIL import Image

from data_sharding.errors import DataError
from data_sharding.format.shard_reader import TooLarge
from data_sharding.image import jpeg
from data_sharding.image.high_bit_depth import is_high_bit_depth, widen
from data_sharding.image.open_image import MAX_PIXELS, is_grey, load_image, to_mode, undecodable

_REDUCING_GAP = 3.0


def widened(data: bytes, num_bits: int) -> bytes | None:
    """Scale a grey image that uses only `num_bits` bits to all 16.

    Returns:
        A PNG; None for images of another kind, and floats.
    """
    image = load_image(data)
    wide = widen(image, num_bits) if is_high_bit_depth(image) else None
    return None if wide is None else _encode(wide, "PNG")


@dataclass(frozen=True)
class ResizeSettings:
    """The size above which images are shrunk, and the quality of the result.

    Args:
        max_side: maximum of the longer side in pixels.
        short_side: maximum of the shorter side in pixels; exactly one of them is given.
        quality: quality of the JPEG, 1 to 100.
        max_megapixels: images of more than MAX_PIXELS pixels, and up to this number of millions,
            are decoded whole if they must be; None decodes none of them whole.
    """

    max_side: int | None = None
    short_side: int | None = None
    quality: int = 90
    max_megapixels: int | None = None

    def __post_init__(self) -> None:
        sides = [side for side in (self.max_side, self.short_side) if side is not None]
        if len(sides) != 1 or sides[0] < 1 or not 1 <= self.quality <= 100:
            raise DataError(
                f"images cannot be resized with {self}: nothing was written",
                value=self,
                hint="Give either `max_side` or `short_side`, at least 1, and a `quality` from 1 "
                "to 100.",
            )

    @property
    def facts(self) -> dict[str, int]:
        """The settings that are set, in JSON values."""
        return {name: value for name, value in vars(self).items() if value is not None}

    @property
    def max_pixels(self) -> int:
        """Maximum number of pixels of an image that is decoded whole."""
        return max(MAX_PIXELS, (self.max_megapixels or 0) * 1_000_000)

    def size(self, width: int, height: int) -> tuple[int, int] | None:
        """Return the new width and height, or None for an image that is small enough."""
        side, limit = max(width, height), self.max_side
        if limit is None:
            side, limit = min(width, height), self.short_side
        assert limit is not None
        if side <= limit:
            return None
        return max(1, round(width * limit / side)), max(1, round(height * limit / side))

    def apply(self, data: bytes) -> bytes:
        """Shrink an image that is too large, to a JPEG."""
        return self._encode_jpeg(self.resized(data))

    def apply_huge(self, data: bytes) -> bytes:
        """Shrink an image that has more than MAX_PIXELS pixels, to a JPEG.

        An ordinary JPEG is decoded at a fraction of its size, row by row, which takes the memory
        of the result. A progressive one, or another format, is decoded whole if `max_megapixels`
        allows it.

        Raises:
            TooLarge: it is not decoded, or still too large for readers.
        """
        header = jpeg.read_header(memoryview(data))
        image = self._decode_scaled(data, header) if header else None
        if image is None:
            image = decode_8bit(data, self.max_pixels)
        width, height = (header.width, header.height) if header else image.size
        size = self.size(width, height)
        if size is None or size[0] * size[1] > MAX_PIXELS:
            raise TooLarge(f"is too large: {width} x {height} pixels, and not to be shrunk enough")
        return self._encode_jpeg(_resize(image, size))

    def _decode_scaled(self, data: bytes, header: jpeg.JpegHeader) -> Image.Image | None:
        """Decode a JPEG at a fraction of its size, up to MAX_PIXELS and no smaller than needed."""
        size = self.size(header.width, header.height)
        if size is None:
            return None
        for gap in (_REDUCING_GAP, 2, 1):
            width, height = (round(gap * side) for side in size)
            eighths = (width + header.width // 8 + 1) * (height + header.height // 8 + 1)
            if width <= header.width and height <= header.height and eighths <= MAX_PIXELS:
                try:
                    pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width)
                except ValueError as error:
                    raise undecodable(error) from error
                return Image.fromarray(pixels)
        return None

    def resized(self, data: bytes) -> Image.Image:
        """Decode and shrink an image that is too large."""
        image = decode_8bit(data)
        size = self.size(*image.size)
        assert size is not None
        return _resize(image, size)

    def _encode_jpeg(self, image: Image.Image) -> bytes:
        return _encode(image, "JPEG", quality=self.quality, subsampling="4:2:0")


def decode_8bit(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image as training reads it: 8 bits, grey or RGB."""
    image = load_image(data, max_pixels)
    return to_mode(image, "L" if is_grey(image) else "RGB")


def _resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=_REDUCING_GAP)


def _encode(image: Image.Image, image_format: str, **options: object) -> bytes:
    file = BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()
