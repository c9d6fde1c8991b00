"""Directories of images by class: DIR/{train,val}/CLASS/..., or DIR/CLASS/... and a fraction.

Each file below DIR is a sample, or counted as skipped. Class names are composed (Unicode's NFC), so
that disks of macOS and Linux give the same ones.
"""

import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_sharding.format.image_formats import IMAGE_EXTENSIONS, UNREAD_IMAGES
from data_sharding.format.labels import sorted_classes
from data_sharding.image.quality_report import QualityFindings
from data_sharding.io.text import pluralize, truncated_list
from data_sharding.sources.base import (
    Labels,
    ListedImages,
    ListingDigest,
    Source,
    check_val_choice,
    choose_splits,
    source_error,
)
from data_sharding.sources.folder_layout import BESIDE_SPLITS, Classes, check_classes, find_splits
from data_sharding.sources.folder_walk import CLUTTER, HIDDEN, Walk

# Files that often accompany images: no sign that images were skipped.
_COMPANIONS = (
    ".txt .text .md .rst .pdf .log .html .htm .xml .json .jsonl .yaml .yml .csv .tsv .xlsx .db "
    ".ini .cfg .names .lst .url .lnk .md5 .sha256 .py .ipynb .sh"
)
_NO_IMAGES = frozenset((*_COMPANIONS.split(), HIDDEN, CLUTTER, BESIDE_SPLITS))
_FORMATS = f"Add images ({', '.join(sorted(IMAGE_EXTENSIONS))})"


@dataclass(frozen=True)
class FolderOptions:
    """Tolerances of a listing.

    Args:
        follow_links: whether linked directories below the classes are opened.
        allow_empty: whether classes without training images are kept.
        max_passed_over: fraction of the files that may be skipped although they may be images.
    """

    follow_links: bool = False
    allow_empty: bool = False
    max_passed_over: float = 0.1


def folder(
    directory: str | Path,
    val_fraction: float | None = None,
    seed: int = 0,
    options: FolderOptions = FolderOptions(),
    *,
    num_folds: int | None = None,
) -> Source:
    """List the images of a directory that has one directory for each class.

    Images count at any depth below their class. Links to files are followed, and class directories
    may be links.

    Args:
        val_fraction: fraction of every class that becomes the validation split, for a directory
            without `train/`; the seed chooses the images.
        num_folds: alternative to it: number of folds of equal size that all images are dealt to.
    """
    root = Path(directory)
    listing = _Listing(root, Walk(root, options.follow_links), options)
    try:
        if not root.is_dir():
            raise source_error(f"no directory at {root}", root, "Check the path.")
        splits = find_splits(root, listing.walk)
        if splits is not None:
            return _given_splits(listing, *splits, val_fraction, num_folds)
        return _chosen_splits(listing, val_fraction, num_folds, seed)
    except OSError as error:
        problem = f"cannot list {error.filename}: {error.strerror}"
        raise source_error(problem, error.filename, "Make it readable, or remove it.") from error


def _given_splits(
    listing: "_Listing",
    train: Path,
    val: Path | None,
    val_fraction: float | None,
    num_folds: int | None,
) -> Source:
    if val is None or val_fraction is not None or num_folds is not None:
        problem = "neither val/ nor test/"
        if val_fraction is not None:
            problem = f"no use for a validation fraction of {val_fraction:g}"
        elif num_folds is not None:
            problem = f"images of its own for validation, and no use for {num_folds} folds"
        raise source_error(
            f"{listing.root} has {train.name}/ but {problem}",
            num_folds if val_fraction is None else val_fraction,
            "Provide both directories and no `val_fraction`; or choose validation images "
            f"from {train.name}/ alone: {train} as the directory, with a `val_fraction` like 0.1 "
            "or with `folds`.",
        )
    classes = listing.classes(train)
    check_classes(train, classes)
    val_classes = listing.classes(val)
    both = {**val_classes, **classes}
    all_classes = {name: both[name] for name in sorted_classes(both)}
    splits = {
        "train": listing.images(all_classes, classes),
        "val": listing.images(all_classes, val_classes),
    }
    listing.check_learnable(all_classes, splits["train"], splits["val"])
    absent = [name for name in all_classes if name not in val_classes]
    notes = [f"classes without a directory in {val.name}/: {truncated_list(absent)}"]
    return listing.source(all_classes, splits, notes * bool(absent))


def _chosen_splits(
    listing: "_Listing", val_fraction: float | None, num_folds: int | None, seed: int
) -> Source:
    classes = listing.classes(listing.root)
    check_classes(listing.root, classes)
    check_val_choice(listing.root, False, val_fraction, num_folds)
    images = listing.images(classes, classes)
    listing.check_learnable(classes, images)
    splits, facts, notes = choose_splits(images, [*classes], val_fraction, num_folds, seed)
    return listing.source(classes, splits, notes, facts)


@dataclass(frozen=True)
class _Listing:
    """The listing of a directory, shared by its splits.

    Args:
        link_targets: target of each image behind a link, by its path.
        empty: class directories without images.
    """

    root: Path
    walk: Walk
    options: FolderOptions
    digest: ListingDigest = field(default_factory=ListingDigest)
    link_targets: dict[str, str] = field(default_factory=dict)
    empty: list[str] = field(default_factory=list)

    def classes(self, split: Path) -> dict[str, list[Path]]:
        """Return the class directories of a split, in the order of their labels."""
        directories: dict[str, list[Path]] = {}
        for path in self.walk.directories(split, "outside of classes"):
            if any("\ud800" <= character <= "\udfff" for character in path.name):
                problem = f"the name of the class {path.name!r} in {split} is not UTF-8"
                raise source_error(problem, path, "Rename the directory.")
            directories.setdefault(unicodedata.normalize("NFC", path.name), []).append(path)
        if not directories:
            hint = f"Put the images of each class into its own directory: {split}/CLASS/1.jpg"
            raise source_error(f"{split} has no class directories", split, hint)
        return {name: directories[name] for name in sorted_classes(directories)}

    def images(self, names: Sequence[str] | Classes, classes: Classes) -> ListedImages:
        """List the images of classes; labels are positions in `names`."""
        paths, labels, sizes = list[str](), list[int](), list[int]()
        for label, name in enumerate(names):
            for directory in classes.get(name, ()):
                num_before = len(paths)
                for image in self.walk.images(directory):
                    paths.append(os.path.relpath(image.path, self.root))
                    sizes.append(image.stat.st_size)
                    self.digest.add(paths[-1], sizes[-1], image.stat.st_mtime_ns)
                    if image.is_linked:
                        self.link_targets[paths[-1]] = os.path.realpath(image.path)
                labels += [label] * (len(paths) - num_before)
                if len(paths) == num_before:
                    self.empty.append(os.path.relpath(directory, self.root))
        return ListedImages.of(self.root, paths, Labels(np.array(labels, np.int64)), sizes)

    def check_learnable(
        self, classes: Classes, train: ListedImages, val: ListedImages | None = None
    ) -> None:
        """Refuse classes without images, unless they are allowed, and those with none in train.

        The classes are the directories of both splits: what has an image is in train.
        """
        no_labels = np.zeros(0, dtype=np.int64)
        in_train, in_val = (
            np.bincount(i.labels.values if i and i.labels else no_labels, minlength=len(classes))
            for i in (train, val)
        )
        names = np.array([*classes])
        if val_only := names[(in_train == 0) & (in_val > 0)].tolist():
            raise source_error(
                f"val has images of classes that train has none of: {truncated_list(val_only)}",
                val_only[0],
                " ".join((*self._unread_formats(), "Add training images, or remove these.")),
            )
        empty = [str(classes[name][0]) for name in names[in_train == 0].tolist()]
        if empty and not self.options.allow_empty:
            hint = f"{_FORMATS}, remove the directories, or keep such classes with `allow_empty`."
            raise source_error(
                f"{pluralize(len(empty), 'class')} without images ({truncated_list(empty)})",
                empty[0],
                " ".join((*self._unread_formats(), hint)),
            )

    def source(
        self,
        classes: Classes,
        splits: Mapping[str, ListedImages],
        notes: Sequence[str] = (),
        facts: Mapping[str, object] = {},
    ) -> Source:
        """Construct the source of the listed images."""
        for split, images in splits.items():
            if not len(images):
                problem = f"there are no images for {split} in {self.root}"
                raise source_error(problem, split, f"{_FORMATS}.")
        warnings = self._check_skipped()
        empty = [f"class directories without images: {truncated_list(self.empty)}"]
        return Source(
            tuple(classes),
            splits,
            {"kind": "folder", **self.digest.facts, **facts},
            root=str(self.root),
            notes=(*notes, *empty * bool(self.empty), *self._unread_formats()),
            warnings=warnings,
            skipped=self.walk.skipped,
            findings=self._linked_twice(splits),
            times_sha256=self.digest.times_sha256,
        )

    def _check_skipped(self) -> tuple[str, ...]:
        """Refuse a listing that skips too much, and warn of one that could be refused."""
        counts, names = self.walk.skipped.counts, self.walk.skipped.names
        kinds = {kind: num for kind, num in counts.most_common() if kind not in _NO_IMAGES}
        num_skipped = sum(kinds.values())
        fraction = num_skipped / max(self.digest.num_files + num_skipped, 1)
        if fraction <= min(self.options.max_passed_over, FolderOptions.max_passed_over):
            return ()
        shown = truncated_list([f"{num:,} {kind}" for kind, num in kinds.items()])
        what = f"({shown}; {names[next(iter(kinds))][0]} for one)"
        if fraction > self.options.max_passed_over:
            hint = "Convert or remove these files, or raise `max_passed_over`."
            raise source_error(
                f"{fraction:.0%} of the files in {self.root} would be skipped {what}, more than "
                f"{self.options.max_passed_over:.0%}",
                fraction,
                " ".join((*self._unread_formats(), hint)),
            )
        return (f"{fraction:.0%} of the files were skipped {what}",)

    def _unread_formats(self) -> list[str]:
        """Return advice on skipped images of formats that are not read."""
        counts = self.walk.skipped.counts
        return sorted({text for kind, text in UNREAD_IMAGES.items() if counts[f".{kind}"]})

    def _linked_twice(self, splits: Mapping[str, ListedImages]) -> QualityFindings:
        """Find images that are the same file as one before."""
        findings, first_paths = QualityFindings(), dict[str, str]()
        root, targets = self.root.resolve(), {*self.link_targets.values()}
        for images in splits.values() if targets else ():
            for number in images.indices.tolist():
                path = images.paths[number]
                file = self.link_targets.get(path) or str(root / path)
                if file in first_paths:
                    findings.add("linked_twice", f"{path} is {first_paths[file]}")
                elif file in targets:
                    first_paths[file] = path
        return findings
