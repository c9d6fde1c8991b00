"""What a source of samples is, and one: scikit-learn's handwritten digits.

A source only lists; the bytes of a sample are read when it is written, one at a time. Listings are
sorted, and what is drawn at random depends on the seed alone, so a source is the same every time.
"""

import hashlib
import io
import os
import re
from collections.abc import Callable, Mapping, Sequence
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

_STRANGE = re.compile(r"[^A-Za-z0-9_-]")


@dataclass(frozen=True)
class Sample:
    """One image to be written."""

    key: str  # its name in the shard: letters, digits, `_` and `-`; unique in its split
    extension: str  # of its file, in lower case, without the dot
    label: int | tuple[int, ...] | None  # the index of its class, or of each; None without labels
    origin: str  # where it comes from, for messages
    read: Callable[[], bytes]  # returns the bytes of its file; raises OSError

    @property
    def labels(self) -> tuple[int, ...]:
        """The indices of its classes; none without labels."""
        if self.label is None:
            return ()
        return self.label if isinstance(self.label, tuple) else (self.label,)

    def read_or_raise(self) -> bytes:
        """Return the bytes of its file.

        Raises:
            DataError: it cannot be read.
        """
        try:
            return self.read()
        except OSError as error:
            raise DataError(
                f"cannot read the image {self.origin}: {error.strerror or error}. Nothing was "
                "published: make it readable, or remove it, and run the same command again."
            ) from error


class Samples(Protocol):
    """The samples of a split, by number; each is made when it is asked for."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Sample: ...


@dataclass(frozen=True)
class Source:
    """What is to be written.

    To be written by several processes, it is pickled once for each.

    Args:
        classes: label i is `classes[i]`.
        splits: "train" and "val".
        fingerprint: identify the source, in JSON values: equal facts, equal samples.
        skipped: how many files were passed over, by kind; `ignored_names` has the first of each.
        labels: whether a sample has one label, several or none; how they are stored is the
            writer's choice.
        num_bytes: the sizes of the files of each split, in its order, where they are known.
        root: the directory below which origins lie, if they do; reports leave it out.
        notes: sentences for the user: what was decided that nobody asked for.
        found: what the listing alone shows of images, by rule; see findings.RULES.
        times_sha256: a digest of when each file was last changed. Unlike facts it differs for a
            copy of the files, so the bytes of a data set do not depend on it.
    """

    classes: tuple[str, ...]
    splits: Mapping[str, Samples]
    fingerprint: Mapping[str, Any]
    skipped: Mapping[str, int] = field(default_factory=dict)
    labels: LabelRule = field(default_factory=LabelRule)
    num_bytes: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    root: str = ""
    notes: tuple[str, ...] = ()
    ignored_names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    found: QualityFindings = field(default_factory=QualityFindings)
    times_sha256: str = ""

    def name(self, sample: Sample) -> str:
        """Return what reports call a sample: its origin, the same wherever the source lies."""
        name = sample.origin.removeprefix(f"{self.root}/")
        return os.fsencode(name).decode("utf-8", "backslashreplace")


@dataclass
class ListingDigest:
    """What a listing met: enough to recognise the same files again, and what it passed over."""

    num_files: int = 0
    num_bytes: int = 0
    listing_sha256: str = ""  # of the digest before, and one more path and size
    times_sha256: str = ""  # likewise, of times of change

    def add(self, path: str, num_bytes: int, mtime_ns: int = 0) -> None:
        """Count one more file, by its path below the source."""
        line = f"{self.listing_sha256} {path} {num_bytes}"
        self.listing_sha256 = hashlib.sha256(os.fsencode(line)).hexdigest()
        times = f"{self.times_sha256} {mtime_ns}"
        self.times_sha256 = hashlib.sha256(times.encode()).hexdigest()
        self.num_files += 1
        self.num_bytes += num_bytes

    @property
    def facts(self) -> dict[str, Any]:
        return {
            "num_files": self.num_files,
            "num_bytes": self.num_bytes,
            "listing_sha256": self.listing_sha256,
        }


Labels = NDArray[np.int64] | tuple[tuple[int, ...], ...] | None  # one a sample, several, none


@dataclass(frozen=True, eq=False)
class ListedImages:
    """Image files below a directory, of which `numbers` are meant.

    Args:
        paths, labels, num_bytes: of all listed.
    """

    root: Path
    paths: PackedStrings
    labels: Labels
    num_bytes: NDArray[np.int64]
    numbers: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Sample:
        number = int(self.numbers[index])
        path = os.path.join(self.root, self.paths[number])  # noqa: PTH118  a tenth of Path's time
        stem, suffix = os.path.splitext(os.path.basename(path))  # noqa: PTH119, PTH122
        name = _STRANGE.sub("_", stem)[:60]
        extension, label = suffix[1:].lower(), self._label(number)
        extension = OTHER_EXTENSIONS.get(extension, extension)
        return Sample(f"{number:08d}-{name}", extension, label, path, partial(_read, path))

    def where(self, mask: NDArray[np.bool_]) -> "ListedImages":
        """Return the images at which a mask over all listed is true."""
        return replace(self, numbers=np.flatnonzero(mask))

    def _label(self, number: int) -> int | tuple[int, ...] | None:
        if self.labels is None:
            return None
        label = self.labels[number]
        return label if isinstance(label, tuple) else int(label)


def listed_source(
    classes: tuple[str, ...],
    splits: Mapping[str, ListedImages],
    facts: Mapping[str, Any],
    ignored: Mapping[str, int],
    labels: LabelRule = LabelRule(),  # noqa: B008  a value, not a place
    notes: tuple[str, ...] = (),
) -> Source:
    """Return the source of some listed images."""
    sizes = {split: images.num_bytes[images.numbers] for split, images in splits.items()}
    home = str(splits["train"].root)
    return Source(classes, splits, facts, ignored, labels, sizes, home, notes)


def stratified_split(
    labels: NDArray[np.int64], classes: Sequence[str], val_fraction: float, seed: int
) -> NDArray[np.bool_]:
    """Return which samples are for validation: the same share of every class, shape (n,).

    A class of few samples has one at least in either split; one of a single sample trains it.

    Raises:
        DataError: the fraction is none, or no class has two samples.
    """
    _check_fraction(val_fraction)
    in_val = np.zeros(len(labels), dtype=bool)
    for label, name in enumerate(classes):
        members = np.flatnonzero(labels == label)
        num_val = num_for_val(len(members), val_fraction)
        in_val[members[permutation(seed, f"val/{name}", len(members))[:num_val]]] = True
    if not in_val.any():
        raise DataError(
            f"no class has two images, so --val-fraction {val_fraction} finds none for validation: "
            "nothing was written. Add images, or name those for validation yourself."
        )
    return in_val


def choose_val_of_all(num: int, val_fraction: float, seed: int) -> NDArray[np.bool_]:
    """Return which of samples without a class of their own are for validation: shape (n,).

    Raises:
        DataError: the fraction is none, or there is one sample.
    """
    _check_fraction(val_fraction)
    if num < 2:
        raise DataError(
            f"there is {num} image, and train and val need one each: nothing was written. Add "
            "images."
        )
    in_val = np.zeros(num, dtype=bool)
    in_val[permutation(seed, "val", num)[: num_for_val(num, val_fraction)]] = True
    return in_val


def num_for_val(num: int, val_fraction: float) -> int:
    """Return how many of a class's samples are for validation: one at least in either split."""
    return min(max(round(num * val_fraction), 1), max(num - 1, 0))


def notes_on_val(
    labels: NDArray[np.int64], classes: Sequence[str], val_fraction: float
) -> tuple[str, ...]:
    """Say for which classes `stratified_split` takes another share than was asked for."""
    counts = np.bincount(labels, minlength=len(classes)).tolist()
    found: dict[str, list[str]] = {}
    for name, num in zip(classes, counts, strict=True):
        if num and (share := round(num * val_fraction)) in (0, num):
            found.setdefault(_why_another(num, share), []).append(name)
    return tuple(
        f"--val-fraction {val_fraction} of few images: {why}, in "
        f"{pluralize(len(names), 'class')} ({truncated_list(names)})"
        for why, names in sorted(found.items())
    )


def _why_another(num: int, share: int) -> str:
    if num == 1:
        return "the only one is for train, and val has none"
    return "val has one all the same" if not share else "train keeps one all the same"


def _check_fraction(val_fraction: float) -> None:
    if not 0 < val_fraction < 1:
        raise DataError(
            f"the validation fraction is {val_fraction}, and must be between 0 and 1: nothing was "
            "written. Usual is --val-fraction 0.1"
        )


def _read(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123
        return file.read()


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """Return pixels, (height, width) or (height, width, 3), as a PNG without compression.

    So no version of zlib changes its bytes.
    """
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "png", compress_level=0)
    return file.getvalue()
