"""CIFAR-10 and CIFAR-100 from their archives, cifar-10-binary.tar.gz and cifar-100-binary.tar.gz.

A. Krizhevsky: Learning Multiple Layers of Features from Tiny Images, 2009; the format is described
at https://www.cs.toronto.edu/~kriz/cifar.html. The archives "for Python" hold pickles, which are
programs: they are not read.
"""

import hashlib
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_sharding.sources.base import PixelImages, Source, read_members, source_error

_PIXELS = 3 * 32 * 32
_DOWNLOAD = "Download it again."


@dataclass(frozen=True)
class _Format:
    """Members of an archive: images of each split, and names of the classes."""

    train: tuple[str, ...]
    val: str
    classes: str
    num_labels: int  # bytes before the pixels; the last is the label (CIFAR-100: the fine one)

    @property
    def members(self) -> tuple[str, ...]:
        return *self.train, self.val, self.classes


_BATCHES = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
_FORMATS = (
    _Format(_BATCHES, "test_batch.bin", "batches.meta.txt", 1),
    _Format(("train.bin",), "test.bin", "fine_label_names.txt", 2),
)


def cifar(archive: Path) -> Source:
    """List the images of both splits, as PNGs."""
    names = {name for form in _FORMATS for name in form.members}
    try:
        data = read_members(archive, names)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise source_error(f"cannot read {archive}: {error}", archive, _DOWNLOAD) from None
    form = next((form for form in _FORMATS if data.keys() >= {*form.members}), None)
    if form is None:
        raise source_error(
            f"{archive} has the files of neither of CIFAR's binary archives",
            archive,
            "Use cifar-10-binary.tar.gz or cifar-100-binary.tar.gz; those for Python hold pickles.",
        )
    classes = tuple(data[form.classes].decode().split())
    train_data = b"".join(data[name] for name in form.train)
    splits = {
        split: _parse(archive, split_data, form, split, len(classes))
        for split, split_data in (("train", train_data), ("val", data[form.val]))
    }
    digest = hashlib.sha256(b"".join(data[name] for name in form.members)).hexdigest()
    return Source(classes, splits, {"kind": "cifar", "sha256": digest})


def _parse(archive: Path, data: bytes, form: _Format, split: str, num_classes: int) -> PixelImages:
    width = form.num_labels + _PIXELS
    if len(data) % width or not data:
        problem = f"{archive} is truncated: {split} has {len(data)} bytes, no multiple of {width}"
        raise source_error(problem, len(data), _DOWNLOAD)
    rows = np.frombuffer(data, dtype=np.uint8).reshape(-1, width)
    labels = rows[:, form.num_labels - 1]
    if labels.max() >= num_classes:
        problem = f"{archive} is damaged: the label {labels.max()} of {num_classes} classes"
        raise source_error(problem, int(labels.max()), _DOWNLOAD)
    pixels = rows[:, form.num_labels :].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return PixelImages.of(pixels, labels, f"{split} image")
