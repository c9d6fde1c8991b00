"""Where samples come from: directories of images by class, or scikit-learn's handwritten digits.

A source only lists; the bytes of a sample are read when it is written, one at a time. Listings are
sorted, and what is drawn at random depends on the seed alone, so a source is the same every time.
"""

import hashlib
import io
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from data_sharding.manifest import DataError
from data_sharding.shard import IMAGE_EXTENSIONS


@dataclass(frozen=True)
class Sample:
    """One image to be written."""

    key: str  # its name in the shard: letters, digits, `_` and `-`; unique in its split
    extension: str  # of its file, in lower case, without the dot
    label: int  # the index of its class
    origin: str  # where it comes from, for messages
    read: Callable[[], bytes]  # returns the bytes of its file; raises OSError


class Samples(Protocol):
    """The samples of a split, by number; each is made when it is asked for."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Sample: ...


@dataclass(frozen=True)
class Source:
    """What is to be written."""

    classes: tuple[str, ...]  # label i is `classes[i]`
    splits: Mapping[str, Samples]  # "train" and "val"
    facts: Mapping[str, Any]  # identify the source, in JSON values: equal facts, equal samples
    ignored: Mapping[str, int] = field(default_factory=dict)  # files passed over, by extension


def permutation(seed: int, purpose: str, num: int) -> NDArray[np.int64]:
    """Return a random order of range(num) that depends on the seed and the purpose alone.

    Sorts raw Philox output, whose stream numpy never changes (NEP 19), unlike its `Generator`s'.
    """
    key = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:16]
    bits = np.random.Philox(key=int.from_bytes(key, "little")).random_raw(num)
    return np.argsort(bits, kind="stable")


def digits(val_fraction: float = 0.2, seed: int = 0) -> Source:
    """scikit-learn's 1,797 handwritten digits: 8x8 grey PNGs in ten classes; needs no download.

    E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits, UCI, 1998 (its test set).

    Raises:
        DataError: the fraction leaves a class without training or validation samples.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    grey = np.rint(data.images * (255 / 16)).astype(np.uint8)  # from 0..16
    classes = tuple(str(name) for name in data.target_names)
    samples = [
        Sample(f"{number:08d}-{label}", "png", int(label), f"digit {number}", partial(_png, image))
        for number, (image, label) in enumerate(zip(grey, data.target, strict=True))
    ]
    in_val = _choose_val(data.target, classes, val_fraction, seed)
    train, val = ([samples[i] for i in np.flatnonzero(mask)] for mask in (~in_val, in_val))
    facts = {"kind": "digits", "val_fraction": val_fraction, "val_seed": seed}
    return Source(classes, {"train": train, "val": val}, facts)


def folder(directory: str | Path, val_fraction: float | None = None, seed: int = 0) -> Source:
    """Images in one directory a class: DIR/{train,val}/CLASS/..., or DIR/CLASS/... and a fraction.

    `test/` stands in for a missing `val/`. Images count at any depth below their class. Links to
    files are followed, and class directories may be links; links to directories further down are
    not followed. Those, hidden files and files that are not images are passed over and counted.

    Args:
        val_fraction: the share of every class that becomes the validation split, for a directory
            without `train/`; the seed says which images.

    Raises:
        DataError: the directory is not laid out like this, or a class has no images.
    """
    root = Path(directory)
    if not root.is_dir():
        raise DataError(f"no directory at {root}: nothing was written. Check the path.")
    has_train = (root / "train").is_dir()
    if has_train and val_fraction is not None:
        raise DataError(
            f"{root} has a train/, and --val-fraction {val_fraction} asks to choose from all there "
            "is: nothing was written. Leave out --val-fraction, or let Tahoe choose from train/ "
            f"alone: give {root / 'train'} as the directory."
        )
    try:
        if has_train:
            return _split_as_found(root)
        return _split_by_choice(root, val_fraction, seed)
    except OSError as error:
        raise DataError(
            f"cannot list {error.filename}: {error.strerror}. Nothing was written: make it "
            "readable, or remove it."
        ) from error


def _split_as_found(root: Path) -> Source:
    val = next((root / name for name in ("val", "test") if (root / name).is_dir()), None)
    if val is None:
        raise DataError(
            f"{root} has a train/ but neither val/ nor test/: nothing was written. Add one, or let "
            f"Tahoe choose from train/: give {root / 'train'} as the directory, with "
            "--val-fraction 0.1"
        )
    classes = _class_names(root / "train")
    unknown = sorted(set(_class_names(val)) - set(classes))
    if unknown:
        raise DataError(
            f"{val} has classes that train/ lacks: {', '.join(unknown[:5])}. No model can learn "
            "them, so nothing was written. Add training images, or remove these directories."
        )
    tally = _Tally()
    train = _list_images(root, "train", classes, tally)
    splits = {"train": train, "val": _list_images(root, val.name, classes, tally)}
    return Source(classes, splits, {"kind": "folder", **tally.facts}, +tally.ignored)


def _split_by_choice(root: Path, val_fraction: float | None, seed: int) -> Source:
    if val_fraction is None:
        raise DataError(
            f"{root} has no train/, so nothing says which images are for validation: nothing was "
            "written. Let Tahoe choose some of every class: --val-fraction 0.1"
        )
    tally, classes = _Tally(), _class_names(root)
    images = _list_images(root, "", classes, tally)
    in_val = _choose_val(images.labels, classes, val_fraction, seed)
    splits = {"train": images.where(~in_val), "val": images.where(in_val)}
    facts = {"kind": "folder", **tally.facts, "val_fraction": val_fraction, "val_seed": seed}
    return Source(classes, splits, facts, +tally.ignored)


@dataclass
class _Tally:
    """What a listing met: enough to recognise the same files again, and what it passed over."""

    num_files: int = 0
    num_bytes: int = 0
    listing_sha256: str = ""  # of the digest before, and one more path and size
    ignored: Counter[str] = field(default_factory=Counter)

    def add(self, path: str, num_bytes: int) -> None:
        line = f"{self.listing_sha256} {path} {num_bytes}"
        self.listing_sha256 = hashlib.sha256(os.fsencode(line)).hexdigest()
        self.num_files += 1
        self.num_bytes += num_bytes

    @property
    def facts(self) -> dict[str, Any]:
        return {
            "num_files": self.num_files,
            "num_bytes": self.num_bytes,
            "listing_sha256": self.listing_sha256,
        }


@dataclass(frozen=True)
class _Images:
    """Images below a directory: `paths` and `labels` of all listed, `numbers` of those meant."""

    root: Path
    paths: list[str]
    labels: NDArray[np.int64]
    numbers: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Sample:
        number = int(self.numbers[index])
        path = self.root / self.paths[number]
        name = re.sub(r"[^A-Za-z0-9_-]", "_", path.stem)[:60]
        extension = path.suffix[1:].lower()
        label = int(self.labels[number])
        return Sample(f"{number:08d}-{name}", extension, label, str(path), path.read_bytes)

    def where(self, mask: NDArray[np.bool_]) -> "_Images":
        return replace(self, numbers=np.flatnonzero(mask))


def _class_names(root: Path) -> tuple[str, ...]:
    """Return the directories of a split, sorted by code point."""
    with os.scandir(root) as entries:
        names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    if not names:
        raise DataError(
            f"{root} has no classes: it holds no directories, so nothing was written. Put the "
            f"images of every class into a directory of their own: {root}/CLASS/image.jpg"
        )
    for name in names:
        if any("\ud800" <= character <= "\udfff" for character in name):
            raise DataError(
                f"the name of the class {name!r} in {root} is not UTF-8, so no manifest can hold "
                "it: nothing was written. Rename the directory."
            )
    return tuple(names)


def _list_images(home: Path, split: str, classes: Iterable[str], tally: _Tally) -> _Images:
    """List the images of every class that has a directory in home/split, in sorted order."""
    root = home / split
    tally.ignored["outside of classes"] += sum(not path.is_dir() for path in root.iterdir())
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        if not (root / name).is_dir():
            continue
        num_before = len(paths)
        for entry in _image_files(root / name, tally):
            paths.append(os.path.relpath(entry.path, home))
            tally.add(paths[-1], entry.stat().st_size)
        labels += [label] * (len(paths) - num_before)
        if len(paths) == num_before:
            raise DataError(
                f"the class {name} has no images in {root / name}: nothing was written. Add some "
                f"({', '.join(sorted(IMAGE_EXTENSIONS))}), or remove the directory."
            )
    return _Images(home, paths, np.array(labels), np.arange(len(paths)))


def _image_files(directory: Path, tally: _Tally) -> Iterator[os.DirEntry[str]]:
    for entry in _walk(directory):
        suffix = Path(entry.name).suffix.lower()
        if entry.name.startswith("."):
            tally.ignored["hidden"] += 1
        elif entry.is_dir():
            tally.ignored["linked directory"] += 1
        elif suffix[1:] not in IMAGE_EXTENSIONS:
            tally.ignored[suffix or "no extension"] += 1
        else:
            yield entry


def _walk(directory: str | Path) -> Iterator[os.DirEntry[str]]:
    """Yield what is below a directory, sorted at every level, with plain directories opened."""
    with os.scandir(directory) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
            yield from _walk(entry.path)
        else:
            yield entry


def _choose_val(
    labels: NDArray[np.int64], classes: tuple[str, ...], val_fraction: float, seed: int
) -> NDArray[np.bool_]:
    """Return which samples are for validation: the same share of every class, shape (n,)."""
    if not 0 < val_fraction < 1:
        raise DataError(
            f"the validation fraction is {val_fraction}, and must be between 0 and 1: nothing was "
            "written. Usual is --val-fraction 0.1"
        )
    in_val = np.zeros(len(labels), dtype=bool)
    for label, name in enumerate(classes):
        members = np.flatnonzero(labels == label)
        num_val = round(len(members) * val_fraction)
        if not 0 < num_val < len(members):
            raise DataError(
                f"the class {name} has {len(members)} images, and --val-fraction {val_fraction} "
                f"takes {num_val} for validation; every class needs some in either split, so "
                "nothing was written. Change the fraction, or add images."
            )
        in_val[members[permutation(seed, f"val/{name}", len(members))[:num_val]]] = True
    return in_val


def _png(image: NDArray[np.uint8]) -> bytes:
    """Encode grey pixels (height, width) as a PNG; stored, so that no zlib version changes it."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "png", compress_level=0)
    return file.getvalue()
