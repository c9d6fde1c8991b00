"""Sources: the samples of a data set to be written, listed first and read one at a time.

Listings are sorted and random choices depend on the seed alone, so a source is always the same.
"""

import hashlib
import io
import os
import re
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from data_sharding.errors import DataError
from data_sharding.format.image_formats import OTHER_EXTENSIONS
from data_sharding.format.labels import LabelRule
from data_sharding.format.location import fold_name
from data_sharding.image.quality_report import QualityFindings
from data_sharding.io.text import pluralize, truncated_list
from data_sharding.rng import permutation
from data_sharding.sources.packed_strings import PackedStrings

Table = TypeVar("Table", bound="ImageTable")


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
        root: directory of the origins, left out of reports.
        notes: choices made for the user, in sentences.
        warnings: facts that are probably not meant so, in sentences.
        skipped: files that are no samples, by kind.
        findings: image findings that the listing alone shows; see `quality_report.RULES`.
        times_sha256: digest of the modification times. It is no part of the fingerprint, so that a
            copy of the files gives the same bytes.
    """

    classes: tuple[str, ...]
    splits: Mapping[str, Samples]
    fingerprint: Mapping[str, Any]
    labels: LabelRule = field(default_factory=LabelRule)
    root: str = ""
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    skipped: QualityFindings = field(default_factory=QualityFindings)
    findings: QualityFindings = field(default_factory=QualityFindings)
    times_sha256: str = ""

    @property
    def num_bytes(self) -> dict[str, NDArray[np.int64]]:
        """File sizes of each split in its order; empty if they are not known."""
        tables = {k: v for k, v in self.splits.items() if isinstance(v, ImageTable)}
        is_known = len(tables) == len(self.splits)
        return {split: table.num_bytes for split, table in tables.items() if is_known}

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
        names = ("num_files", "num_bytes", "listing_sha256")
        return {name: getattr(self, name) for name in names}


class Labels(NamedTuple):
    """Labels of images: one each; with `ends`, several, and those of image i end at ends[i]."""

    values: NDArray[np.integer]
    ends: NDArray[np.int64] | None = None

    def of(self, index: int) -> int | tuple[int, ...]:
        if self.ends is None:
            return int(self.values[index])
        start = int(self.ends[index - 1]) if index else 0
        return tuple(self.values[start : self.ends[index]].tolist())


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageTable(ABC):
    """The samples of a split: those at `indices` of a table of images.

    Args:
        labels: labels of all images; None without labels.
        file_bytes: file sizes of all images.
    """

    labels: Labels | None
    file_bytes: NDArray[np.int64]
    indices: NDArray[np.int64]

    @abstractmethod
    def sample(self, number: int, label: int | tuple[int, ...] | None) -> Sample:
        """Construct the sample of an image."""

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        number = int(self.indices[index])
        return self.sample(number, self.labels.of(number) if self.labels else None)

    @property
    def num_bytes(self) -> NDArray[np.int64]:
        """File sizes of the split."""
        return self.file_bytes[self.indices]

    def where(self, mask: NDArray[np.bool_]) -> Self:
        """Select by a mask over the split."""
        return replace(self, indices=self.indices[mask])


@dataclass(frozen=True, eq=False)
class ListedImages(ImageTable):
    """Image files below a directory."""

    root: Path
    paths: PackedStrings

    @classmethod
    def of(cls, root: Path, paths: Sequence[str], labels: Labels | None, sizes: list[int]) -> Self:
        file_bytes, indices = np.array(sizes, dtype=np.int64), np.arange(len(paths))
        packed = PackedStrings(paths)
        return cls(root, packed, labels=labels, file_bytes=file_bytes, indices=indices)

    def sample(self, number: int, label: int | tuple[int, ...] | None) -> Sample:
        path = os.path.join(self.root, self.paths[number])  # noqa: PTH118  a tenth of Path's time
        stem, suffix = os.path.splitext(os.path.basename(path))  # noqa: PTH119, PTH122
        extension = suffix[1:].lower()
        extension = OTHER_EXTENSIONS.get(extension, extension)
        key = f"{number:08d}-{safe_key(stem)}"
        return Sample(key, extension, label, path, partial(_read, path))


@dataclass(frozen=True, eq=False)
class PixelImages(ImageTable):
    """Images in memory, uint8 (n, height, width) or (n, height, width, 3), written as PNGs."""

    pixels: NDArray[np.uint8]
    name: str

    @classmethod
    def of(cls, pixels: NDArray[np.uint8], labels: NDArray[np.integer], name: str) -> Self:
        indices = np.arange(len(pixels))
        file_bytes = np.full(len(pixels), len(encode_png(pixels[0])))  # equal: not compressed
        return cls(pixels, name, labels=Labels(labels), file_bytes=file_bytes, indices=indices)

    def sample(self, number: int, label: int | tuple[int, ...] | None) -> Sample:
        read = partial(encode_png, self.pixels[number])
        return Sample(f"{number:08d}-{label}", "png", label, f"{self.name} {number}", read)


Chosen = tuple[dict[str, Table], dict[str, Any], tuple[str, ...]]


def choose_splits(
    images: Table,
    classes: Sequence[str],
    val_fraction: float | None,
    num_folds: int | None,
    seed: int,
) -> Chosen[Table]:
    """Choose validation samples, or divide all samples into folds; one of the two is given.

    Returns:
        The splits, facts that identify the choice, and notes on classes that are too small for it.
    """
    if num_folds is not None:
        return split_into_folds(images, classes, num_folds, seed)
    assert val_fraction is not None
    return split_off_val(images, classes, val_fraction, seed)


def split_into_folds(
    images: Table, classes: Sequence[str], num_folds: int, seed: int
) -> Chosen[Table]:
    """Deal samples to folds in turn, class by class if they have one label each.

    So the folds differ by one sample at most, and by one of every class at most.
    """
    num = len(images)
    if not 2 <= num_folds <= num:
        problem = f"{pluralize(num, 'image')} cannot be divided into {pluralize(num_folds, 'fold')}"
        raise source_error(problem, num_folds, "`folds` is usually 5 or 10.")
    order, notes = permutation(seed, "folds", num), tuple[str, ...]()
    if images.labels is not None and images.labels.ends is None:
        labels = images.labels.values[images.indices]
        order = order[np.argsort(labels[order], kind="stable")]
        counts = np.bincount(labels)
        rare = [classes[i] for i in np.flatnonzero((counts > 0) & (counts < num_folds)).tolist()]
        note = "classes with fewer images than there are folds, so that some folds have none"
        notes = (f"{note}: {truncated_list(rare)}",) if rare else ()
    fold_of = np.empty(num, dtype=np.int64)
    fold_of[order] = np.arange(num) % num_folds
    splits = {fold_name(fold): images.where(fold_of == fold) for fold in range(num_folds)}
    return splits, {"folds": num_folds, "fold_seed": seed}, notes


def split_off_val(
    images: Table, classes: Sequence[str], val_fraction: float, seed: int
) -> Chosen[Table]:
    """Choose validation samples: a fraction of every class, or of all images without one label.

    A class of two or more images has at least one in either split; a single image is for train.
    """
    if not 0 < val_fraction < 1:
        problem = f"the validation fraction {val_fraction} is not between 0 and 1"
        raise source_error(problem, val_fraction, "`val_fraction` is usually 0.1.")
    in_val, notes, num = np.zeros(len(images), dtype=bool), dict[str, list[str]](), len(images)
    if images.labels is None or images.labels.ends is not None:
        in_val[permutation(seed, "val", num)[: _num_val(num, val_fraction)]] = True
    else:
        labels = images.labels.values[images.indices]
        counts = np.bincount(labels, minlength=len(classes))
        by_class = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])
        for label in np.flatnonzero(counts).tolist():
            name, members = classes[label], by_class[label]
            num_val = _num_val(len(members), val_fraction)
            in_val[members[permutation(seed, f"val/{name}", len(members))[:num_val]]] = True
            if (rounded := round(len(members) * val_fraction)) in (0, len(members)):
                notes.setdefault(_note(len(members), rounded), []).append(name)
    if not in_val.any():
        problem = f"{pluralize(num, 'image')} cannot be split into train and val"
        raise source_error(problem, val_fraction, "Add images: a class needs two.")
    splits = {"train": images.where(~in_val), "val": images.where(in_val)}
    facts = {"val_fraction": val_fraction, "val_seed": seed}
    return (
        splits,
        facts,
        tuple(
            f"{note}: {pluralize(len(names), 'class')} ({truncated_list(names)})"
            for note, names in sorted(notes.items())
        ),
    )


def _num_val(num: int, val_fraction: float) -> int:
    return min(max(round(num * val_fraction), 1), max(num - 1, 0))


def _note(num: int, rounded: int) -> str:
    if num == 1:
        return "classes with a single image, which is in train"
    return f"classes with too few images: {'train' if rounded else 'val'} has one nevertheless"


def check_val_choice(
    where: object, has_val: bool, val_fraction: float | None, num_folds: int | None = None
) -> None:
    """Refuse a source with several ways to validation samples: its own, a fraction, folds."""
    chosen = [value for value in (val_fraction, num_folds) if value is not None]
    if has_val and chosen:
        problem = f"{where} has validation samples, so that others cannot be chosen as well"
    elif not has_val and not chosen:
        problem = f"{where} has no validation samples"
    elif len(chosen) > 1:
        problem = f"{where} is to be divided in two ways"
    else:
        return
    hint = (
        "Name the validation samples, or choose some of every class with `val_fraction`, or "
        "divide all into `folds`."
    )
    raise source_error(problem, chosen[0] if chosen else None, hint)


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
    Image.fromarray(np.ascontiguousarray(image)).save(file, "png", compress_level=0)
    return file.getvalue()
