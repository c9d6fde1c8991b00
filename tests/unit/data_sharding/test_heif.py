"""HEIC is converted where pillow-heif is installed, and the error names it where it is not."""

import base64
from io import BytesIO

import numpy as np
import pytest
from foreign_shards import encoded, jpeg, photo, png
from PIL import Image

from data_sharding.errors import BadSample
from data_sharding.image.heif import can_read_heif, is_heif, known_format
from data_sharding.image.inspect import inspect_image

HEIC = base64.b64decode(  # photo(3, (40, 32)) turned left, and a rotation that turns it back
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAchtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAA"
    "AAAAAAAAADRpbG9jAAAAAERAAAIAAQAAAAAB7AABAAAAAAAAAGYAAgAAAAACUgABAAAAAAAAACQAAAA4aWluZgAAAAAA"
    "AgAAABVpbmZlAgAAAAABAABodmMxAAAAABVpbmZlAgAAAQACAABFeGlmAAAAAA5waXRtAAAAAAABAAABB2lwcnAAAADm"
    "aXBjbwAAAHZodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQAq"
    "QgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbq5Ka5uAhoMCAAAAMDIAAAAwAhYgABAAZEAcFzwIkAAAATY29scm5jbHgAAQAN"
    "AAaAAAAAFGlzcGUAAAAAAAAAQAAAAEAAAAAoY2xhcAAAACAAAAABAAAAKAAAAAH////gAAAAAv///+gAAAACAAAAEHBp"
    "eGkAAAAAAwgICAAAAAlpcm90AwAAABlpcG1hAAAAAAAAAAEAAQaBAgMFhIYAAAAaaXJlZgAAAAAAAAAOY2RzYwACAAEA"
    "AQAAAJJtZGF0AAAAYigBrwtgdP/zRaQUlsJYqHAF9+OjKhW4N1RbwaYIAEPamAn4z3v2M9az9re51t1cV9CbhQS2Yv5n"
    "EDCHg0ygGzc3QDw8cIdf1KeDmU/M5W3O7fD6k1d8GjTE2EIoRiSNQWonAAAABkV4aWYAAE1NACoAAAAIAAEBEgADAAAA"
    "AQAGAAAAAAAA"
)


def test_only_heic_is_converted() -> None:
    assert is_heif(HEIC)
    for data in (jpeg(1), png(1), encoded(photo(1), "avif"), b"", HEIC[:7]):
        assert not is_heif(data)
        assert known_format(data) is data


def test_heic_becomes_a_jpeg_or_is_named() -> None:
    if not can_read_heif():
        with pytest.raises(BadSample, match="pillow-heif"):
            known_format(HEIC)
        return
    data = known_format(HEIC)
    assert inspect_image(data, "jpg") == ("jpg", 40, 32, (), None)
    image = Image.open(BytesIO(data))
    assert "icc_profile" not in image.info
    difference = np.asarray(image, dtype=float) - np.asarray(photo(3, (40, 32)))
    assert np.abs(difference).mean() < 25
    with pytest.raises(BadSample, match="too large"):
        known_format(HEIC, max_pixels=40 * 32 - 1)
    with pytest.raises(BadSample):
        known_format(HEIC[:-30])
