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

from data_sharding.formats import IMAGE_EXTENSIONS
from data_sharding.labels import LabelRule
from data_sharding.manifest import DataError
from data_sharding.texts import Texts

_STRANGE = re.compile(r"[^A-Za-z0-9_-]")


@dataclass(frozen=True)
class Sample:
    """One image to be written."""

    key: str  # its name in the shard: letters, digits, `_` and `-`; unique in its split
    extension: str  # of its file, in lower case, without the dot
    label: int | tuple[int, ...] | None  # the index of its class, or of each; None without labels
    origin: str  # where it comes from, for messages
    read: Callable[[], bytes]  # returns the bytes of its file; raises OSError

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
        facts: identify the source, in JSON values: equal facts, equal samples.
        ignored: files passed over, by extension.
        labels: whether a sample has one label, several or none; how they are stored is the
            writer's choice.
        num_bytes: the sizes of the files of each split, in its order, where they are known.
        home: the directory below which origins lie, if they do; reports leave it out.
    """

    classes: tuple[str, ...]
    splits: Mapping[str, Samples]
    facts: Mapping[str, Any]
    ignored: Mapping[str, int] = field(default_factory=dict)
    labels: LabelRule = field(default_factory=LabelRule)
    num_bytes: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    home: str = ""

    def name(self, sample: Sample) -> str:
        """Return what reports call a sample: its origin, the same wherever the source lies."""
        name = sample.origin.removeprefix(f"{self.home}/")
        return os.fsencode(name).decode("utf-8", "backslashreplace")


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
        Sample(f"{n:08d}-{label}", "png", int(label), f"digit {n}", partial(stored_png, image))
        for n, (image, label) in enumerate(zip(grey, data.target, strict=True))
    ]
    in_val = choose_val(data.target, classes, val_fraction, seed)
    train, val = ([samples[i] for i in np.flatnonzero(mask)] for mask in (~in_val, in_val))
    facts = {"kind": "digits", "val_fraction": val_fraction, "val_seed": seed}
    file_bytes = len(samples[0].read())  # of each: they are stored, not compressed
    sizes = {"train": np.full(len(train), file_bytes), "val": np.full(len(val), file_bytes)}
    return Source(classes, {"train": train, "val": val}, facts, num_bytes=sizes)


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
    tally = Tally()
    train = _list_images(root, "train", classes, tally)
    splits = {"train": train, "val": _list_images(root, val.name, classes, tally)}
    return listed_source(classes, splits, {"kind": "folder", **tally.facts}, +tally.ignored)


def _split_by_choice(root: Path, val_fraction: float | None, seed: int) -> Source:
    if val_fraction is None:
        raise DataError(
            f"{root} has no train/, so nothing says which images are for validation: nothing was "
            "written. Let Tahoe choose some of every class: --val-fraction 0.1"
        )
    tally, classes = Tally(), _class_names(root)
    images = _list_images(root, "", classes, tally)
    assert isinstance(images.labels, np.ndarray)
    in_val = choose_val(images.labels, classes, val_fraction, seed)
    splits = {"train": images.where(~in_val), "val": images.where(in_val)}
    facts = {"kind": "folder", **tally.facts, "val_fraction": val_fraction, "val_seed": seed}
    return listed_source(classes, splits, facts, +tally.ignored)


@dataclass
class Tally:
    """What a listing met: enough to recognise the same files again, and what it passed over."""

    num_files: int = 0
    num_bytes: int = 0
    listing_sha256: str = ""  # of the digest before, and one more path and size
    ignored: Counter[str] = field(default_factory=Counter)

    def add(self, path: str, num_bytes: int) -> None:
        """Count one more file, by its path below the source."""
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


Labels = NDArray[np.int64] | tuple[tuple[int, ...], ...] | None  # one a sample, several, none


@dataclass(frozen=True, eq=False)
class ListedImages:
    """Image files below a directory, of which `numbers` are meant.

    Args:
        paths, labels, num_bytes: of all listed.
    """

    root: Path
    paths: Texts
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
) -> Source:
    """Return the source of some listed images."""
    sizes = {split: images.num_bytes[images.numbers] for split, images in splits.items()}
    home = str(splits["train"].root)
    return Source(classes, splits, facts, ignored, labels, num_bytes=sizes, home=home)


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


def _list_images(home: Path, split: str, classes: Iterable[str], tally: Tally) -> ListedImages:
    """List the images of every class that has a directory in home/split, in sorted order."""
    root = home / split
    tally.ignored["outside of classes"] += sum(not path.is_dir() for path in root.iterdir())
    paths: list[str] = []
    labels: list[int] = []
    sizes: list[int] = []
    for label, name in enumerate(classes):
        if not (root / name).is_dir():
            continue
        num_before = len(paths)
        for entry in _image_files(root / name, tally):
            paths.append(os.path.relpath(entry.path, home))
            sizes.append(entry.stat().st_size)
            tally.add(paths[-1], sizes[-1])
        labels += [label] * (len(paths) - num_before)
        if len(paths) == num_before:
            raise DataError(
                f"the class {name} has no images in {root / name}: nothing was written. Add some "
                f"({', '.join(sorted(IMAGE_EXTENSIONS))}), or remove the directory."
            )
    return ListedImages(
        home, Texts(paths), np.array(labels), np.array(sizes), np.arange(len(paths))
    )


def _image_files(directory: Path, tally: Tally) -> Iterator[os.DirEntry[str]]:
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


def choose_val(
    labels: NDArray[np.int64], classes: tuple[str, ...], val_fraction: float, seed: int
) -> NDArray[np.bool_]:
    """Return which samples are for validation: the same share of every class, shape (n,).

    Raises:
        DataError: the fraction leaves a class without training or validation samples.
    """
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


def _read(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123
        return file.read()


def stored_png(image: NDArray[np.uint8]) -> bytes:
    """Return pixels, (height, width) or (height, width, 3), as a PNG without compression.

    So no version of zlib changes its bytes.
    """
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "png", compress_level=0)
    return file.getvalue()
