"""CIFAR-10 and CIFAR-100 from their archives, cifar-10-binary.tar.gz and cifar-100-binary.tar.gz.

A. Krizhevsky: Learning Multiple Layers of Features from Tiny Images, 2009; the format is described
at https://www.cs.toronto.edu/~kriz/cifar.html. The archives "for Python" hold pickles, which are
programs: they are not read.
"""

import hashlib
import tarfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_sharding.errors import DataError
from data_sharding.sources.base import Sample, Source, encode_png

_PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class _Format:
    """How an archive lies: files of each split, of the classes' names, and bytes of labels."""

    train: tuple[str, ...]
    val: str
    classes: str
    num_labels: int  # of an image; the last counts: CIFAR-100's fine one


_FORMATS = (
    _Format(
        tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin", "batches.meta.txt", 1
    ),
    _Format(("train.bin",), "test.bin", "fine_label_names.txt", 2),
)


@dataclass(frozen=True, eq=False)
class TinyImages:
    """Images of 32x32 pixels: uint8 (n, 3, 32, 32), and their labels."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    split: str

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        label = int(self.labels[index])
        image = np.ascontiguousarray(self.pixels[index].transpose(1, 2, 0))
        read = partial(encode_png, image)
        return Sample(f"{index:08d}-{label}", "png", label, f"{self.split} image {index}", read)


def cifar(archive: Path) -> Source:
    """Return the images of both splits, as PNGs.

    Raises:
        DataError: the file is neither of the archives.
    """
    members = _members(archive)
    for form in _FORMATS:
        wanted = (*form.train, form.val, form.classes)
        if all(name in members for name in wanted):
            break
    else:
        raise DataError(
            f"{archive} is neither of CIFAR's binary archives, which have data_batch_1.bin or "
            "train.bin in them: nothing was written. Take cifar-10-binary.tar.gz or "
            "cifar-100-binary.tar.gz; those for Python hold pickles."
        )
    classes = tuple(members[form.classes].decode().split())
    train = _images(archive, b"".join(members[name] for name in form.train), form, "train")
    val = _images(archive, members[form.val], form, "val")
    for images in (train, val):
        if len(images) and int(images.labels.max()) >= len(classes):
            raise DataError(
                f"{archive}: an image has the label {images.labels.max()}, and there are "
                f"{len(classes)} classes: it is damaged, so nothing was written. Download it again."
            )
    digest = hashlib.sha256(b"".join(members[name] for name in wanted)).hexdigest()
    return Source(classes, {"train": train, "val": val}, {"kind": "cifar", "sha256": digest})


def _members(archive: Path) -> dict[str, bytes]:
    names = {name for form in _FORMATS for name in (*form.train, form.val, form.classes)}
    found = {}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                name = member.name.rpartition("/")[2]  # a name, never a path
                file = tar.extractfile(member) if member.isfile() and name in names else None
                if file is not None and name in found:
                    raise _unreadable(archive, f"{name} is in it twice")
                if file is not None:
                    found[name] = file.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise _unreadable(archive, str(error)) from None
    return found


def _unreadable(archive: Path, reason: str) -> DataError:
    return DataError(f"cannot read {archive}: {reason}. Nothing was written. Download it again.")


def _images(archive: Path, data: bytes, form: _Format, split: str) -> TinyImages:
    width = form.num_labels + _PIXELS
    if len(data) % width or not data:
        raise DataError(
            f"{archive}: the {split} images have {len(data)} bytes, no multiple of {width}: they "
            "are cut short, so nothing was written. Download it again."
        )
    rows = np.frombuffer(data, dtype=np.uint8).reshape(-1, width)
    pixels = rows[:, form.num_labels :].reshape(-1, 3, 32, 32)
    return TinyImages(pixels, rows[:, form.num_labels - 1], split)
