"""Arrays in a file that are mapped, not read: looking at one costs the pages that are looked at.

The format is safetensors (github.com/huggingface/safetensors, "Format"): the length of a header,
the header in JSON, then the arrays as they lie in memory. Nothing in it can be code.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

_MAX_HEADER_BYTES = 1 << 16
_DTYPES: dict[str, np.dtype[Any]] = {
    "I64": np.dtype("<i8"),
    "U32": np.dtype("<u4"),
    "U8": np.dtype("u1"),
}


def arrays_to_safetensors(columns: Mapping[str, NDArray[Any]]) -> bytes:
    """Return arrays of int64, uint32 or uint8 as the bytes of such a file."""
    return save({name: np.ascontiguousarray(column) for name, column in columns.items()})


def mmap_safetensors(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of a file, which stay where they are.

    Raises:
        ValueError: it is no such file, or damaged.
        OSError: it cannot be read.
    """
    data = np.memmap(path, dtype=np.uint8, mode="r")
    length = int.from_bytes(data[:8].tobytes(), "little")
    if not 2 <= length <= min(_MAX_HEADER_BYTES, len(data) - 8):
        raise ValueError("it is damaged: there is no header")
    body = data[8 + length :]
    try:
        header = json.loads(data[8 : 8 + length].tobytes())
        return {
            name: _array(body, described)
            for name, described in header.items()
            if name != "__metadata__"
        }
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"it is damaged: {type(error).__name__}: {error}") from error


def _array(body: NDArray[np.uint8], described: Mapping[str, Any]) -> NDArray[Any]:
    (start, stop), shape = described["data_offsets"], described["shape"]
    if not 0 <= start <= stop <= len(body):
        raise ValueError(f"no bytes {start} to {stop}")
    dtype: np.dtype[Any] = _DTYPES[described["dtype"]]
    array: NDArray[Any] = body[start:stop].view(dtype).reshape(shape)
    return array
