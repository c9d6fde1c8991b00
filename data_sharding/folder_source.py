"""Directories of images by class."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from data_sharding.formats import IMAGE_EXTENSIONS
from data_sharding.manifest import DataError
from data_sharding.sources import (
    ListedImages,
    Source,
    Tally,
    choose_val,
    listed_source,
    notes_on_val,
)
from data_sharding.texts import Texts


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
    notes = notes_on_val(images.labels, classes, val_fraction)
    return listed_source(classes, splits, facts, +tally.ignored, notes=notes)


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
