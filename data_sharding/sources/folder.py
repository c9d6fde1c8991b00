"""Directories of images by class: DIR/{train,val}/CLASS/..., or DIR/CLASS/... and a fraction.

Each file below DIR is a sample, or counted among what was passed over. Class names are composed
(Unicode's NFC), so that disks of macOS and Linux give the same ones.
"""

import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from data_sharding.errors import DataError
from data_sharding.format.image_formats import IMAGE_EXTENSIONS, UNREAD_IMAGES
from data_sharding.format.labels import sorted_classes
from data_sharding.image.quality_report import QualityFindings
from data_sharding.io.packed_strings import PackedStrings
from data_sharding.io.text import pluralize, truncated_list
from data_sharding.sources.base import (
    ListedImages,
    ListingDigest,
    Source,
    listed_source,
    notes_on_val,
    stratified_split,
)
from data_sharding.sources.folder_layout import Classes, check_classes, find_splits
from data_sharding.sources.folder_walk import CLUTTER, HIDDEN, Walk

# What lies beside images and is none: not a sign that images were passed over.
_COMPANIONS = frozenset(
    f".{name}"
    for name in (
        *("txt", "text", "md", "rst", "pdf", "log", "html", "htm", "xml", "json", "jsonl", "yaml"),
        *("yml", "csv", "tsv", "xlsx", "db", "ini", "cfg", "names", "lst", "url", "lnk", "md5"),
        *("sha256", "py", "ipynb", "sh"),
    )
)
_NO_IMAGES = _COMPANIONS | {HIDDEN, CLUTTER, "beside the splits"}


@dataclass(frozen=True)
class FolderOptions:
    """What is put up with.

    Args:
        follow_links: open linked directories below the classes, too.
        allow_empty: keep classes that have no training images.
        max_passed_over: the share of files that may be passed over, if they may be images.
    """

    follow_links: bool = False
    allow_empty: bool = False
    max_passed_over: float = 0.1


def folder(
    directory: str | Path,
    val_fraction: float | None = None,
    seed: int = 0,
    lenience: FolderOptions = FolderOptions(),
) -> Source:
    """List images in one directory a class.

    Images count at any depth below their class. Links to files are followed, and class directories
    may be links. What is passed over is counted and named.

    Args:
        val_fraction: the share of every class that becomes the validation split, for a directory
            without `train/`; the seed says which images.

    Raises:
        DataError: the directory is not laid out like this, a class has no images, or too many
            files are passed over.
    """
    root = Path(directory)
    listing = _Listing(root, Walk(root, lenience.follow_links), lenience)
    try:
        if not root.is_dir():
            raise DataError(f"no directory at {root}: nothing was written. Check the path.")
        splits = find_splits(root, listing.walk)
        if splits is not None:
            return _split_as_found(listing, *splits, val_fraction)
        return _split_by_choice(listing, val_fraction, seed)
    except OSError as error:
        raise DataError(
            f"cannot list {error.filename}: {error.strerror}. Nothing was written: make it "
            "readable, or remove it."
        ) from error


def _split_as_found(
    listing: "_Listing", train: Path, val: Path | None, val_fraction: float | None
) -> Source:
    root = listing.root
    if val_fraction is not None:
        raise DataError(
            f"{root} has a {train.name}/, and --val-fraction {val_fraction} asks to choose from "
            "all there is: nothing was written. Leave out --val-fraction, or let Tahoe choose from "
            f"{train.name}/ alone: give {train} as the directory."
        )
    if val is None:
        raise DataError(
            f"{root} has a {train.name}/ but neither val/ nor test/: nothing was written. Add one, "
            f"or let Tahoe choose from {train.name}/: give {train} as the directory, with "
            "--val-fraction 0.1"
        )
    classes = listing.classes(train)
    check_classes(train, classes)
    in_val = listing.classes(val)
    if unknown := sorted(set(in_val) - set(classes)):
        raise DataError(
            f"{val} has classes that {train.name}/ lacks: {truncated_list(unknown)}. No model can "
            "learn them, so nothing was written. Add training images, or remove these directories."
        )
    names = tuple(classes)
    images = {"train": listing.images(names, classes), "val": listing.images(names, in_val)}
    listing.check_learned(images["train"], images["val"], classes)
    return listing.source(names, images, {}, ())


def _split_by_choice(listing: "_Listing", val_fraction: float | None, seed: int) -> Source:
    root = listing.root
    classes = listing.classes(root)
    check_classes(root, classes)
    if val_fraction is None:
        raise DataError(
            f"{root} has no train/, so nothing says which images are for validation: nothing was "
            "written. Let Tahoe choose some of every class: --val-fraction 0.1"
        )
    names = tuple(classes)
    images = listing.images(names, classes)
    listing.check_learned(images, None, classes)
    assert isinstance(images.labels, np.ndarray)
    in_val = stratified_split(images.labels, names, val_fraction, seed)
    splits = {"train": images.where(~in_val), "val": images.where(in_val)}
    facts = {"val_fraction": val_fraction, "val_seed": seed}
    notes = notes_on_val(images.labels, names, val_fraction)
    return listing.source(names, splits, facts, notes)


@dataclass(frozen=True)
class _Listing:
    """The listing of a directory: its splits share what is passed over and what is linked.

    Args:
        linked: the file itself of each image that a link leads to, by its path.
        empty: class directories without images.
    """

    root: Path
    walk: Walk
    lenience: FolderOptions
    tally: ListingDigest = field(default_factory=ListingDigest)
    linked: dict[str, str] = field(default_factory=dict)
    empty: list[str] = field(default_factory=list)

    def classes(self, split: Path) -> dict[str, list[Path]]:
        """Return the class directories of a split, in the order of their labels."""
        found: dict[str, list[Path]] = {}
        for path in self.walk.directories(split, "outside of classes"):
            if any("\ud800" <= character <= "\udfff" for character in path.name):
                raise DataError(
                    f"the name of the class {path.name!r} in {split} is not UTF-8, so no manifest "
                    "can hold it: nothing was written. Rename the directory."
                )
            found.setdefault(unicodedata.normalize("NFC", path.name), []).append(path)
        if not found:
            raise DataError(
                f"{split} has no classes: it holds no directories, so nothing was written. Put the "
                f"images of every class into a directory of their own: {split}/CLASS/image.jpg"
            )
        return {name: found[name] for name in sorted_classes(found)}

    def images(self, names: Sequence[str], classes: Classes) -> ListedImages:
        """List the images of some classes; a label is the place of its class among `names`."""
        paths, labels, sizes = list[str](), list[int](), list[int]()
        for label, name in enumerate(names):
            for directory in classes.get(name, ()):
                num_before = len(paths)
                for image in self.walk.images(directory):
                    paths.append(os.path.relpath(image.path, self.root))
                    sizes.append(image.stat.st_size)
                    self.tally.add(paths[-1], sizes[-1], image.stat.st_mtime_ns)
                    if image.is_linked:
                        self.linked[paths[-1]] = os.path.realpath(image.path)
                labels += [label] * (len(paths) - num_before)
                if len(paths) == num_before:
                    self.empty.append(os.path.relpath(directory, self.root))
        return ListedImages(
            self.root,
            PackedStrings(paths),
            np.array(labels, dtype=np.int64),
            np.array(sizes, dtype=np.int64),
            np.arange(len(paths)),
        )

    def check_learned(
        self, train: ListedImages, val: ListedImages | None, classes: Classes
    ) -> None:
        """Refuse classes without training images.

        Raises:
            DataError: there are such, and nobody allows for them, or val has images of them.
        """
        names, in_val = list(classes), np.zeros(len(classes), dtype=np.int64)
        in_train = np.bincount(train.labels, minlength=len(names))  # type: ignore[arg-type]
        if val is not None:
            in_val = np.bincount(val.labels, minlength=len(names))  # type: ignore[arg-type]
        empty = [names[label] for label in np.flatnonzero(in_train == 0)]
        judged = [names[label] for label in np.flatnonzero((in_train == 0) & (in_val > 0))]
        if judged:
            raise DataError(
                f"val has images of classes that train has none of: {truncated_list(judged)}. No "
                "model can learn them, so nothing was written. Add training images, or remove "
                "these."
            )
        if empty and not self.lenience.allow_empty:
            where = truncated_list([str(classes[name][0]) for name in empty])
            raise DataError(
                f"{pluralize(len(empty), 'class')} without images ({where}): nothing was "
                f"written. Add some ({', '.join(sorted(IMAGE_EXTENSIONS))}), remove the "
                "directories, or keep such classes with --allow-empty."
            )

    def source(
        self,
        classes: tuple[str, ...],
        splits: Mapping[str, ListedImages],
        facts: Mapping[str, object],
        notes: tuple[str, ...],
    ) -> Source:
        """Return the source of what was listed.

        Raises:
            DataError: a split has no images, or too many files were passed over.
        """
        for split, images in splits.items():
            if not len(images):
                raise DataError(
                    f"there are no images for {split} in {self.root}: nothing was written. Add "
                    f"some ({', '.join(sorted(IMAGE_EXTENSIONS))})."
                )
        self._check_passed_over()
        empty = (
            [f"class directories without images: {truncated_list(self.empty)}"]
            if self.empty
            else []
        )
        source = listed_source(
            classes,
            splits,
            {"kind": "folder", **self.tally.facts, **facts},
            self.walk.passed_over.counts,
            notes=(*notes, *empty, *self._unread()),
        )
        names = self.walk.passed_over.names
        found, times = self._linked_twice(splits), self.tally.times_sha256
        return replace(source, ignored_names=names, found=found, times_sha256=times)

    def _check_passed_over(self) -> None:
        counts = self.walk.passed_over.counts
        kinds = {kind: num for kind, num in counts.most_common() if kind not in _NO_IMAGES}
        num_files = self.tally.num_files + sum(kinds.values())
        share = sum(kinds.values()) / max(num_files, 1)
        if share > self.lenience.max_passed_over:
            found = truncated_list([f"{num:,} {kind}" for kind, num in kinds.items()])
            first = self.walk.passed_over.names[next(iter(kinds))][0]
            raise DataError(
                f"{share:.0%} of the files in {self.root} would be passed over ({found}; {first} "
                "for one), and --max-passed-over allows "
                f"{self.lenience.max_passed_over:g}: nothing was written. "
                + "".join(f"{text} " for text in self._unread())
                + "Convert or remove these files, or allow for more: --max-passed-over 1"
            )

    def _unread(self) -> list[str]:
        """Say what can be done about images of formats that are not read."""
        counts = self.walk.passed_over.counts
        return sorted({text for kind, text in UNREAD_IMAGES.items() if counts[f".{kind}"]})

    def _linked_twice(self, splits: Mapping[str, ListedImages]) -> QualityFindings:
        """Return which images are the same file as one before."""
        found, home, targets = QualityFindings(), self.root.resolve(), set(self.linked.values())
        seen: dict[str, str] = {}
        for images in splits.values() if targets else ():
            for number in images.numbers.tolist():
                path = images.paths[number]
                file = self.linked.get(path) or str(home / path)
                if file in seen:
                    found.add("linked_twice", f"{path} is {seen[file]}")
                elif file in targets:
                    seen[file] = path
        return found
