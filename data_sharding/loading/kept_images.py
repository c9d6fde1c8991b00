"""Decoded images and their labels, kept in memory that the processes of a node share.

The memory has no name (memfd): it is there as long as a process has it open, so nothing is left
behind by one that is killed. Others open it by its place in /proc.
"""

import math
import mmap
import os
import stat
import weakref
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_sharding.sampling.sample_order import Ints
from data_sharding.transforms.decode import Pixels

_TOKEN_BYTES = 16


class Layout(NamedTuple):
    """The memory for `num` samples: pixels of one shape, labels of one shape and type."""

    num: int
    image_shape: tuple[int, ...]
    label_shape: tuple[int, ...]
    label_type: str

    @property
    def arrays(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """The types and shapes of what follows each other: token, labels, is_kept, images."""
        return (
            ("u1", (_TOKEN_BYTES,)),
            (self.label_type, (self.num, *self.label_shape)),
            ("?", (self.num,)),
            ("u1", (self.num, *self.image_shape)),
        )

    @property
    def num_bytes(self) -> int:
        """The size of the memory as a whole; a dtype of all arrays would end at 2 GiB."""
        return sum(_num_bytes(*array) for array in self.arrays)


class Place(NamedTuple):
    """The memory of a process, as others of its node find it."""

    path: str
    token: bytes
    layout: Layout


class KeptImages:
    """The images of a split that have been decoded, by sample. Used by one thread at a time.

    Args:
        place: memory of another process; None makes new memory.

    Raises:
        OSError: there is none.
    """

    def __init__(self, layout: Layout, place: Place | None = None) -> None:
        num_bytes = layout.num_bytes
        file = _create(num_bytes) if place is None else _open(place)
        weakref.finalize(self, os.close, file)
        token, self._labels, self._is_kept, self._images = _map(file, layout)
        self._new = np.empty(0, dtype=np.int64)
        if place is None:
            token[:] = np.frombuffer(os.urandom(_TOKEN_BYTES), dtype=np.uint8)
            path = f"/proc/{os.getpid()}/fd/{file}"
            place = Place(path, token.tobytes(), layout)
        elif token.tobytes() != place.token:
            raise FileNotFoundError(f"{place.path} is another file")
        self.place = place

    def take(self, samples: Ints, images: Pixels, labels: NDArray[np.generic]) -> Ints:
        """Copy those of the samples that are kept; return the rows of the others.

        Args:
            images, labels: arrays with a row for each sample.
        """
        # Marked a batch after they were written: by then every core of the node sees their pixels.
        self._is_kept[self._new] = True
        self._new = np.empty(0, dtype=np.int64)
        is_kept = self._is_kept[samples]
        if is_kept.all():
            np.take(self._images, samples, axis=0, out=images, mode="clip")
            np.take(self._labels, samples, axis=0, out=labels, mode="clip")
        else:
            images[is_kept] = self._images[samples[is_kept]]
            labels[is_kept] = self._labels[samples[is_kept]]
        return np.flatnonzero(~is_kept)

    def put(self, samples: Ints, images: Pixels, labels: NDArray[np.generic]) -> None:
        """Keep samples; whoever does gives the same."""
        self._images[samples], self._labels[samples] = images, labels
        self._new = samples

    def __reduce__(self) -> tuple[object, ...]:
        return find_kept, (self.place,)


def find_kept(place: Place) -> KeptImages | None:
    """Open the memory of another process of this node; None if it cannot be reached."""
    try:
        return KeptImages(place.layout, place)
    except OSError:
        return None


def _create(num_bytes: int) -> int:
    file = os.memfd_create("tahoe-decoded-images")
    os.ftruncate(file, num_bytes)
    return file


def _map(file: int, layout: Layout) -> list[NDArray[Any]]:
    """Map a file into memory; return the arrays of the layout in it."""
    memory, offset, arrays = mmap.mmap(file, layout.num_bytes), 0, list[NDArray[Any]]()
    for dtype, shape in layout.arrays:
        arrays.append(np.ndarray(shape, dtype, memory, offset))
        offset += _num_bytes(dtype, shape)
    return arrays


def _num_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * np.dtype(dtype).itemsize


def _open(place: Place) -> int:
    """Open a file that is expected to have the size of the memory; in a container it may not be."""
    file = os.open(place.path, os.O_RDWR | os.O_NONBLOCK)
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode) or found.st_size != place.layout.num_bytes:
        os.close(file)
        raise FileNotFoundError(f"{place.path} is another file")
    return file
