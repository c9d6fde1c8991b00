"""Which tars of a directory are the shards of a split, and which lie where none are looked for."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase

from data_sharding.errors import DataError
from data_sharding.io import filesystem
from data_sharding.tools.duplicate_shards import place
from data_sharding.tools.scan_warnings import describe_left, warn

TRAIN = ("train", "training")
VAL = ("val", "valid", "validation")
TEST = ("test", "testing")

_WORDS = {"train": (TRAIN,), "val": (VAL, TEST)}  # names of directories, those first that win


def list_shards(directory: str, pattern: str = "*.tar") -> tuple[str, ...]:
    """Return the sorted names of the tars in a directory that match; hidden files are no shards.

    Raises:
        DataError: the directory cannot be listed.
    """
    with reaching(directory):
        names = filesystem.list_names(directory)
    tars = [name for name in names if name.endswith(".tar") and not name.startswith(".")]
    if tars:
        warn(directory, [describe_left(names, tars)])
    return tuple(name for name in tars if fnmatchcase(name, pattern))


def split_directories(url: str) -> dict[str, str]:
    """Return what the directories of the splits are called, as directories of images may be.

    Those called `train` and `val` win; another one is told.
    """
    with reaching(url):
        names = filesystem.list_names(url)
    found = {split: split for split in _WORDS}
    for split in set(_WORDS) - {*names}:
        alike = (name for words in _WORDS[split] for name in names if name.casefold() in words)
        found[split] = next(
            (name for name in alike if list_shards(filesystem.join(url, name))), split
        )
        if found[split] != split:
            warn(url, [f"the shards of {split} are those in {found[split]}/"])
    return found


def warn_unused_tars(url: str, directories: Iterable[str], taken: Iterable[str]) -> None:
    """Log which tars lie beside or below the directories of splits.

    Args:
        directories: of the splits, by name.
        taken: the URLs of the shards that are used; links to one are no others.
    """
    with reaching(url):
        words = {word for kinds in _WORDS.values() for kind in kinds for word in kind}
        beside = [name for name in filesystem.list_names(url) if name.casefold() in words]
        below = [
            f"{name}/{sub}"
            for name in directories
            for sub in filesystem.list_directories(filesystem.join(url, name))
            if not sub.startswith(".")
        ]
    used, told = {place(shard) for shard in taken}, []
    for where in ("", *sorted({*beside} - {*directories}), *below):
        directory = filesystem.join(url, where) if where else url
        left = [
            name
            for name in list_shards(directory)
            if place(filesystem.join(directory, name)) not in used
        ]
        if left:
            told.append(f"{len(left):,} in {where or '.'}/ (first {left[0]})")
    if told:
        what = f"tars that are not used: {', '.join(told)}"
        warn(url, [f"{what}. Move or link them into train/ or val/ if they belong to the set."])


@contextmanager
def reaching(url: str) -> Iterator[None]:
    """Say in one sentence that a URL cannot be reached; every store raises its own kinds.

    Raises:
        DataError: whatever was raised inside.
    """
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"cannot list {url}: {type(error).__name__}: {error}. Nothing was written: check the "
            "URL, the credentials and the network."
        ) from error
