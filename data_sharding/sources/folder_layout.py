"""Splits and classes among the directories of a data set, and layouts that only resemble them.

Names of splits are known in any case: `train` or `training`; `val`, `valid` or `validation`; and
`test` or `testing`, which stands in for a missing `val`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from data_sharding.io.text import truncated_list
from data_sharding.sources.base import source_error
from data_sharding.sources.folder_walk import Walk, children
from data_sharding.tools.find_shards import TEST, TRAIN, VAL

Classes = Mapping[str, Sequence[Path]]  # directories by class; Unicode may spell one in two ways

BESIDE_SPLITS = "beside the splits"
_SPLIT_NAMES = frozenset((*TRAIN, *VAL, *TEST))


def find_splits(root: Path, walk: Walk) -> tuple[Path, Path | None] | None:
    """Find the directories of train and val; None where there is no train.

    With a train directory, everything beside the two counts as skipped.
    """
    names = [name for name, is_directory in children(root) if is_directory]
    train = _single(root, [n for n in names if n.casefold() in TRAIN and _has_classes(root / n)])
    if train is None:
        return None
    val = _single(root, [n for n in names if n.casefold() in VAL])
    val = val or _single(root, [n for n in names if n.casefold() in TEST])
    for path in walk.directories(root, BESIDE_SPLITS):
        if path not in (train, val):
            walk.skip(BESIDE_SPLITS, path)
    return train, val


def check_classes(root: Path, classes: Classes) -> None:
    """Refuse directories that are splits, hold splits, or wrap classes; and a single class."""
    splits = [name for name in classes if name.casefold() in _SPLIT_NAMES]
    if len(splits) == len(classes) or any(name.casefold() not in TRAIN for name in splits):
        raise source_error(
            f"{root} has {truncated_list(splits)}, names of splits, and no train/ with classes",
            root,
            "Give the directory that holds train/CLASS/image.jpg, or rename what is a class.",
        )
    inside = {name: _subdirectories(paths) for name, paths in classes.items()}
    for name, directories in inside.items():
        if directories and all(inner.casefold() in _SPLIT_NAMES for inner in directories):
            raise source_error(
                f"{root / name} has no images but {truncated_list(sorted(directories))}, as if "
                "splits were inside a class",
                root / name,
                "Lay them out as train/CLASS/image.jpg and val/CLASS/image.jpg.",
            )
    first_name, (first, *others) = next(iter(inside)), inside.values()
    if not others:
        classes_inside = truncated_list(sorted(first or ()))
        raise source_error(
            f"{root} has a single class, {first_name}, so there is nothing to learn",
            root,
            (f"If the classes are {classes_inside}, give {root / first_name}. " if first else "")
            + "Images without classes are for `csv` with `no_labels`.",
        )
    if first is not None and len(first) > 1 and all(directories == first for directories in others):
        raise source_error(
            f"{truncated_list(sorted(inside))} in {root} have no images but the same directories, "
            f"{truncated_list(sorted(first))}, which may be the classes",
            root,
            f"Give one of them ({root / first_name}), merge them, or list the images for `csv`.",
        )


def _single(root: Path, names: Sequence[str]) -> Path | None:
    if len(names) > 1:
        both = " and ".join(sorted(names))
        raise source_error(
            f"{root} has {both} for one split", root, "Merge them, or move one away."
        )
    return root / names[0] if names else None


def _has_classes(directory: Path) -> bool:
    """Check whether a directory called `train` is a split and not a class."""
    kinds = {is_directory for _, is_directory in children(directory)}
    return True in kinds or not kinds


def _subdirectories(paths: Sequence[Path]) -> set[str] | None:
    """Return the names of the directories inside several, or None if one holds images."""
    names = set()
    for path in paths:
        for name, is_directory in children(path):
            if not is_directory:
                return None
            names.add(name)
    return names
