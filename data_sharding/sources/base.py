"""Sources: the samples of a data set to be written, listed first and read one at a time.

Listings are sorted and random choices depend on the seed alone, so a source is always the same.
"""

import hashlib
import io
import os
import re
import tarfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from data_sharding.errors import DataError
from data_sharding.format.image_formats import OTHER_EXTENSIONS
from data_sharding.format.labels import LabelRule
from data_sharding.image.quality_report import QualityFindings
from data_sharding.io.packed_strings import PackedStrings
from data_sharding.io.text import pluralize, truncated_list
from data_sharding.rng import permutation

Labels = NDArray[np.int64] | tuple[tuple[int, ...], ...] | None  # one a sample, several, none


@dataclass(frozen=True)
class Sample:
    """One image to be written."""

    key: str  # name in the shard: letters, digits, `_` and `-`; unique in its split
    extension: str  # of the image file, lower case, without the dot
    label: int | tuple[int, ...] | None  # class index, or several; None without labels
    origin: str  # path or archive member, for messages
    read: Callable[[], bytes]  # returns the image file; raises OSError

    @property
    def labels(self) -> tuple[int, ...]:
        """Class indices; empty without labels."""
        if self.label is None:
            return ()
        return self.label if isinstance(self.label, tuple) else (self.label,)

    def read_or_raise(self) -> bytes:
        """Read the image file; a failure is a `DataError` that names it."""
        try:
            return self.read()
        except OSError as error:
            raise source_error(
                f"cannot read the image {self.origin}: {error.strerror or error}; nothing was "
                "published",
                self.origin,
                "Make it readable, or remove it, and run the same command again.",
            ) from error


class Samples(Protocol):
    """The samples of a split, each constructed on access."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Sample: ...


@dataclass(frozen=True)
class Source:
    """The samples of a data set to be written. It is pickled once for each worker process.

    Args:
        classes: label i is `classes[i]`.
        splits: "train" and "val".
        fingerprint: JSON values that identify the source; equal ones mean equal samples.
        labels: label rule; only its kind matters, since the writer chooses how labels are stored.
        num_bytes: file sizes of each split in its order, where known.
        root: directory of the origins, left out of reports.
        notes: choices made for the user, in sentences.
        skipped: files that are no samples, by kind.
        findings: image findings that the listing alone shows; see `quality_report.RULES`.
        times_sha256: digest of the modification times. It is no part of the fingerprint, so that a
            copy of the files gives the same bytes.
    """

    classes: tuple[str, ...]
    splits: Mapping[str, Samples]
    fingerprint: Mapping[str, Any]
    labels: LabelRule = field(default_factory=LabelRule)
    num_bytes: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    root: str = ""
    notes: tuple[str, ...] = ()
    skipped: QualityFindings = field(default_factory=QualityFindings)
    findings: QualityFindings = field(default_factory=QualityFindings)
    times_sha256: str = ""

    def name(self, sample: Sample) -> str:
        """Return the origin of a sample as reports show it, independent of `root`."""
        name = sample.origin.removeprefix(f"{self.root}/")
        return os.fsencode(name).decode("utf-8", "backslashreplace")


@dataclass
class ListingDigest:
    """A running digest of listed files, by which a later listing recognises them."""

    num_files: int = 0
    num_bytes: int = 0
    listing_sha256: str = ""  # of the digest before it, a path and a size
    times_sha256: str = ""  # of the digest before it and a modification time

    def add(self, path: str, num_bytes: int, mtime_ns: int = 0) -> None:
        """Add a file, by its path below the source."""
        line = f"{self.listing_sha256} {path} {num_bytes}"
        self.listing_sha256 = hashlib.sha256(os.fsencode(line)).hexdigest()
        times = f"{self.times_sha256} {mtime_ns}"
        self.times_sha256 = hashlib.sha256(times.encode()).hexdigest()
        self.num_files += 1
        self.num_bytes += num_bytes

    @property
    def facts(self) -> dict[str, Any]:
        """Fingerprint of the files, in JSON values."""
        facts = ("num_files", "num_bytes", "listing_sha256")
        return {name: getattr(self, name) for name in facts}


@dataclass(frozen=True, eq=False)
class ListedImages:
    """The images of a split: those at `indices` among all image files below a directory.

    `paths`, `labels` and `file_bytes` are those of all listed files.
    """

    root: Path
    paths: PackedStrings
    labels: Labels
    file_bytes: NDArray[np.int64]
    indices: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        number = int(self.indices[index])
        path = os.path.join(self.root, self.paths[number])  # noqa: PTH118  a tenth of Path's time
        stem, suffix = os.path.splitext(os.path.basename(path))  # noqa: PTH119, PTH122
        extension, label = suffix[1:].lower(), None
        if self.labels is not None:
            label = self.labels[number]
            label = label if isinstance(label, tuple) else int(label)
        extension = OTHER_EXTENSIONS.get(extension, extension)
        return Sample(
            f"{number:08d}-{safe_key(stem)}", extension, label, path, partial(_read, path)
        )

    @property
    def num_bytes(self) -> NDArray[np.int64]:
        """File sizes of the split."""
        return self.file_bytes[self.indices]

    def where(self, mask: NDArray[np.bool_]) -> "ListedImages":
        """Select by a mask over all listed files."""
        return replace(self, indices=np.flatnonzero(mask))


def stratified_split(
    labels: Labels, num: int, classes: Sequence[str], val_fraction: float, seed: int
) -> tuple[NDArray[np.bool_], tuple[str, ...]]:
    """Choose validation samples: a fraction of every class, or of all samples without one label.

    A class of two or more samples has at least one in either split; a single sample is for train.

    Args:
        labels: labels of `num` samples.

    Returns:
        A mask, shape (num,), and notes on classes that are too small for the fraction.
    """
    if not 0 < val_fraction < 1:
        raise source_error(
            f"the validation fraction {val_fraction} is not between 0 and 1",
            val_fraction,
            "`val_fraction` is usually 0.1.",
        )
    in_val, notes = np.zeros(num, dtype=bool), dict[str, list[str]]()
    if not isinstance(labels, np.ndarray):
        in_val[permutation(seed, "val", num)[: _num_val(num, val_fraction)]] = True
    else:
        counts = np.bincount(labels, minlength=len(classes))
        by_class = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])
        for label in np.flatnonzero(counts).tolist():
            name, members = classes[label], by_class[label]
            num_val = _num_val(len(members), val_fraction)
            in_val[members[permutation(seed, f"val/{name}", len(members))[:num_val]]] = True
            if (rounded := round(len(members) * val_fraction)) in (0, len(members)):
                notes.setdefault(_note(len(members), rounded), []).append(name)
    if not in_val.any():
        raise source_error(
            f"no image can be spared for validation: {pluralize(num, 'image')}"
            + (", at most one in each class" if isinstance(labels, np.ndarray) else "")
            + "",
            val_fraction,
            "Add images, or name those for validation yourself.",
        )
    return in_val, tuple(
        f"{note}: {pluralize(len(names), 'class')} ({truncated_list(names)})"
        for note, names in sorted(notes.items())
    )


def _num_val(num: int, val_fraction: float) -> int:
    return min(max(round(num * val_fraction), 1), max(num - 1, 0))


def _note(num: int, rounded: int) -> str:
    if num == 1:
        return "classes with a single image, which is in train"
    return f"classes with too few images: {'train' if rounded else 'val'} has one nevertheless"


def check_val_choice(where: object, has_val: bool, val_fraction: float | None) -> None:
    """Refuse a source with both validation samples and a fraction to choose, or with neither."""
    if has_val and val_fraction is not None:
        problem = f"{where} has validation samples, so {val_fraction:g} cannot be chosen as well"
    elif not has_val and val_fraction is None:
        problem = f"{where} has no validation samples"
    else:
        return
    raise source_error(
        f"{problem}",
        val_fraction,
        "Either name the validation samples, or choose some of every class with "
        "`val_fraction`, for example 0.1.",
    )


def source_error(problem: str, value: object, hint: str = "") -> DataError:
    """Construct the error of a source that cannot be used."""
    value = str(value) if isinstance(value, Path) else value
    return DataError(f"{problem}; nothing was written", value=value, hint=hint)


def read_members(archive: Path, names: Collection[str]) -> dict[str, bytes]:
    """Read files of a tar by their base names; a name that is there twice is a `TarError`."""
    data = dict[str, bytes]()
    with tarfile.open(archive) as tar:
        for member in tar:
            name = member.name.rpartition("/")[2]  # a name, never a path
            file = tar.extractfile(member) if member.isfile() and name in names else None
            if file is not None and name in data:
                raise tarfile.TarError(f"{name} is in it twice")
            if file is not None:
                data[name] = file.read()
    return data


def safe_key(name: str) -> str:
    """Replace characters that a key cannot have, and limit its length."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)[:60]


def _read(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123
        return file.read()


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """Encode pixels, (height, width) or (height, width, 3), as a PNG.

    It is not compressed, so its bytes are the same with every version of zlib.
    """
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "png", compress_level=0)
    return file.getvalue()
