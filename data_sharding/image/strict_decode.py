"""An image decoded whole, as training would decode it, and strictly: what a decoder puts up with.

A JPEG whose scan was cut and closed, or has a flipped bit or zeros in its middle, is decoded by
everybody, with parts that are grey or wrong. The decoder knows: libjpeg warns.
"""

import simplejpeg
from PIL import Image

from data_sharding.image import jpeg
from data_sharding.image.open_image import detect_format, load_image, open_image, to_mode


def find_damage(data: bytes | memoryview) -> str | None:
    """Decode all of an image, and return what is damaged although it can be decoded; else None.

    Raises:
        BadSample: it cannot be decoded, so training cannot read it.
    """
    view, image = memoryview(data), open_image(data)  # which has looked at its size
    is_jpeg = detect_format(image) == "JPEG"
    warning, is_decoded = _decode_jpeg(view) if is_jpeg else (None, False)
    is_ordinary = is_decoded and jpeg.read_header(view) is not None
    if warning or not is_ordinary:  # which Pillow decodes for training, as it does for all greys
        to_mode(load_image(data), "RGB")
    return _broken_chunk(image) if image.format == "PNG" else warning


def _decode_jpeg(data: memoryview) -> tuple[str | None, bool]:
    """Return TurboJPEG's first warning, and whether it can decode the image."""
    warning = None
    for strict in (True, False):
        try:  # all of it, and only the mean of each block: that needs no transform
            simplejpeg.decode_jpeg(data, "GRAY", min_height=1, min_width=1, strict=strict)
        except ValueError as error:
            warning = str(error)
        else:
            return warning, True
    return None, False


def _broken_chunk(image: Image.Image) -> str | None:
    """Return what is wrong with a PNG's checksums, not all of which its decoder looks at."""
    try:
        image.verify()
    except Exception as error:  # decoders raise anything on hostile bytes
        return str(error)
    return None
