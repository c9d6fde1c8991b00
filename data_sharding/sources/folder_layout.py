"""Which directories of images are splits, which are classes, and what only looks like them.

Names of splits are known in any case: `train` or `training`; `val`, `valid` or `validation`; and
`test` or `testing`, which stands in for a missing `val`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from data_sharding.errors import DataError
from data_sharding.io.text import truncated_list
from data_sharding.sources.folder_walk import Walk, children
from data_sharding.tools.find_shards import TEST, TRAIN, VAL

Classes = Mapping[str, Sequence[Path]]  # the directories of each; two may be spelled alike


def find_splits(root: Path, walk: Walk) -> tuple[Path, Path | None] | None:
    """Return the directories of train and val, or None where there is no train.

    What else lies there is counted then.

    Raises:
        DataError: there are several for one split.
    """
    names = [name for name, is_directory in children(root) if is_directory]
    train = _only_one(root, [name for name in names if _is(name, TRAIN) and _is_split(root / name)])
    if train is None:
        return None
    val = _only_one(root, [name for name in names if _is(name, VAL)]) or _only_one(
        root, [name for name in names if _is(name, TEST)]
    )
    for path in walk.directories(root, "beside the splits"):
        if path not in (train, val):
            walk.pass_over("beside the splits", path)
    return train, val


def check_classes(root: Path, classes: Classes) -> None:
    """Refuse directories that are no classes: splits, what holds splits, a wrapper around classes.

    Raises:
        DataError: they are such; or there is one class alone, which teaches nothing.
    """
    splits = [name for name in classes if _is(name, (*TRAIN, *VAL, *TEST))]
    if len(splits) == len(classes) or any(not _is(name, TRAIN) for name in splits):
        raise _no_classes(
            root,
            f"{root} holds {truncated_list(splits)}, which splits are called, and no train/ with "
            "class directories in it",
            "Give the directory that holds train/CLASS/image.jpg, or rename what is a class",
        )
    inside = {name: _only_directories(paths) for name, paths in classes.items()}
    for name, held in inside.items():
        if held and all(_is(one, (*TRAIN, *VAL, *TEST)) for one in held):
            raise _no_classes(
                root,
                f"{root / name} holds no images but {truncated_list(sorted(held))}: splits inside "
                "of a class, which would be mixed",
                "Lay them out as train/CLASS/image.jpg and val/CLASS/image.jpg",
            )
    _check_number(root, inside)


def _check_number(root: Path, inside: Mapping[str, set[str] | None]) -> None:
    first, *others = inside.values()
    if not others:
        name, more = next(iter(inside)), ""
        if first:
            listed = truncated_list(sorted(first))
            more = f", and {listed} in it may be the classes: give {root / name}"
        raise _no_classes(
            root,
            f"{root} has one class, {name}, and nothing can be learned from that{more}",
            "Images without classes are for `tahoe shard csv --no-labels`",
        )
    if first is not None and len(first) > 1 and all(held == first for held in others):
        raise _no_classes(
            root,
            f"each of {truncated_list(sorted(inside))} in {root} holds no images but the same "
            f"directories, {truncated_list(sorted(first))}, which may be the classes",
            f"Give one of them ({root / next(iter(inside))}), merge them, or list the images in a "
            "CSV file: `tahoe shard csv`",
        )


def _no_classes(root: Path, what: str, remedy: str) -> DataError:
    return DataError(f"{what}: nothing was written. {remedy}.")


def _only_one(root: Path, names: Sequence[str]) -> Path | None:
    if len(names) > 1:
        raise DataError(
            f"{root} holds {' and '.join(sorted(names))}, and one split can be only one of them: "
            "nothing was written. Merge them, or move one away."
        )
    return root / names[0] if names else None


def _is(name: str, names: Sequence[str]) -> bool:
    return name.casefold() in names


def _is_split(directory: Path) -> bool:
    """Return whether something called `train` holds classes; if not, it may be a class itself."""
    has_images = False
    for _, is_directory in children(directory):
        if is_directory:
            return True
        has_images = True
    return not has_images


def _only_directories(paths: Sequence[Path]) -> set[str] | None:
    """Return the names of the directories in some, or None if there are images in them."""
    found = set()
    for path in paths:
        for name, is_directory in children(path):
            if not is_directory:
                return None
            found.add(name)
    return found
