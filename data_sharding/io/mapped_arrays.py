"""Memory-mapped arrays in a safetensors file: reading one costs the pages that are touched.

The format (github.com/huggingface/safetensors, "Format") is the length of a header, the header in
JSON, then the arrays as they are in memory. Nothing in it can be code.
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


def arrays_to_safetensors(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Serialize arrays of int64, uint32 or uint8."""
    return save({name: np.ascontiguousarray(array) for name, array in arrays.items()})


def mmap_safetensors(path: Path) -> dict[str, NDArray[Any]]:
    """Map the arrays of a file into memory.

    Raises:
        ValueError: the file is damaged or not of this format.
        OSError: it cannot be read.
    """
    data = np.memmap(path, dtype=np.uint8, mode="r")
    length = int.from_bytes(data[:8].tobytes(), "little")
    if not 2 <= length <= min(_MAX_HEADER_BYTES, len(data) - 8):
        raise ValueError("it is damaged: there is no header")
    body = data[8 + length :]
    try:
        header = json.loads(data[8 : 8 + length].tobytes())
        header.pop("__metadata__", None)
        return {name: _array(body, entry) for name, entry in header.items()}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"it is damaged: {type(error).__name__}: {error}") from error


def _array(body: NDArray[np.uint8], entry: Mapping[str, Any]) -> NDArray[Any]:
    start, stop = entry["data_offsets"]
    if not 0 <= start <= stop <= len(body):
        raise ValueError(f"no bytes {start} to {stop}")
    array: NDArray[Any] = body[start:stop].view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return array
